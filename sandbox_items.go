package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"app/internal/rawjson"
)

// A sandboxProject is the items of a project and their occurrences.
type sandboxProject struct {
	mu          sync.Mutex
	items       map[int64]sandboxItem
	occurrences map[int64]*sandboxOccurrence
	byUUID      map[string]*sandboxOccurrence
	posts       map[string]int // how often each uuid was posted
	pending     []func()       // what was accepted and not yet processed
	lastItem    int64
	lastOcc     int64
}

// A sandboxItem is the fields of an item, those of lists and of single answers.
type sandboxItem map[string]any

// A sandboxOccurrence is an occurrence of an item.
type sandboxOccurrence struct {
	id, item, at int64
	data         json.RawMessage
	deleting     bool
}

// Rollbar's two kinds of answers lack fields of each other.
var (
	fieldsOfLists   = []string{"unique_occurrences", "controlling_id", "public_item_id", "resolved_in_version", "title_lock", "level_lock"}
	fieldsOfSingles = []string{"last_muted_timestamp", "snooze_status", "snooze_type", "snooze_expiration_threshold_seconds", "snooze_expiration_datetime"}
)

func (it sandboxItem) without(fields []string) sandboxItem {
	shown := maps.Clone(it)
	for _, name := range fields {
		delete(shown, name)
	}
	return shown
}

func (it sandboxItem) int(name string) int64 { n, _ := it[name].(int64); return n }
func (it sandboxItem) text(name string) string {
	text, _ := it[name].(string)
	return text
}

// sorted returns the items for which the function is true, the last to occur first.
func (p *sandboxProject) sorted(match func(sandboxItem) bool) []sandboxItem {
	var found []sandboxItem
	for _, it := range p.items {
		if match(it) {
			found = append(found, it)
		}
	}
	slices.SortFunc(found, func(a, b sandboxItem) int {
		return cmp.Or(cmp.Compare(b.int("last_occurrence_timestamp"), a.int("last_occurrence_timestamp")), cmp.Compare(b.int("id"), a.int("id")))
	})
	return found
}

func (s *sandbox) listItems(r *sandboxRequest) sandboxAnswer {
	query := r.URL.Query()
	terms := searchTerms(query.Get("query"))
	groups := slices.Contains(terms, "is:group")
	found := s.sorted(func(it sandboxItem) bool {
		for _, name := range []string{"status", "level", "environment", "framework"} {
			if wanted := query[name]; len(wanted) > 0 && !slices.Contains(wanted, it.text(name)) {
				return false
			}
		}
		if groups != (it.int("group_status") == 2) || it["group_item_id"] != nil {
			return false
		}
		switch user := query.Get("assigned_user"); {
		case user == "assigned" && it["assigned_user_id"] == nil,
			user == "unassigned" && it["assigned_user_id"] != nil,
			user != "" && user != "assigned" && user != "unassigned" && sandboxUsers[it.int("assigned_user_id")] != user:
			return false
		}
		return !slices.ContainsFunc(terms, func(term string) bool { return !it.matches(term) })
	})
	from, to := r.page(100)
	shown := []sandboxItem{}
	for _, it := range found[min(from, len(found)):min(to, len(found))] {
		shown = append(shown, it.without(fieldsOfSingles))
	}
	var total any = len(found)
	if len(s.items) > s.largeProject {
		total = nil
	}
	number, _ := strconv.Atoi(query.Get("page"))
	return sandboxResult(map[string]any{"items": shown, "page": max(number, 1), "total_count": total})
}

// searchTerm matches a term of a search: a word, or field:value, where the value may be quoted.
var searchTerm = regexp.MustCompile(`[\w.]+:"[^"]*"|\S+`)

func searchTerms(query string) []string { return searchTerm.FindAllString(query, -1) }

// matches reports whether a term of a search finds the item: a word of the title, #counter, a
// field's beginning, field:valu, or its whole value, field:"value".
func (it sandboxItem) matches(term string) bool {
	if counter, ok := strings.CutPrefix(term, "#"); ok {
		return fmt.Sprint(it["counter"]) == counter
	}
	field, value, ok := strings.Cut(term, ":")
	if field == "is" {
		return true
	}
	name := map[string]string{"fingerprint": "hash"}[field]
	if is, known := it[cmp.Or(name, field)]; ok && known {
		if exact, quoted := strings.CutPrefix(value, `"`); quoted {
			return fmt.Sprint(is) == strings.TrimSuffix(exact, `"`)
		}
		return strings.HasPrefix(fmt.Sprint(is), value)
	}
	return strings.Contains(strings.ToLower(it.text("title")), strings.ToLower(term))
}

func (s *sandbox) oneItem(r *sandboxRequest) sandboxAnswer {
	if it, ok := s.items[r.id]; ok {
		return sandboxResult(it.without(fieldsOfLists))
	}
	return sandboxError(404, "Item not found in this project.") // the text is a guess
}

// findItem answers ?counter= and ?uuid=.
func (s *sandbox) findItem(r *sandboxRequest) sandboxAnswer {
	query := r.URL.Query()
	if uuid := query.Get("uuid"); query.Has("uuid") {
		if !uuidForm.MatchString(uuid) {
			return sandboxError(400, "Invalid UUID format")
		}
		if o := s.byUUID[uuid]; o != nil && s.occurrences[o.id] != nil {
			r.id = o.item
			return s.oneItem(r)
		}
		return sandboxError(404, "UUID did not match any occurrence")
	}
	for id, it := range s.items {
		if fmt.Sprint(it["counter"]) == query.Get("counter") {
			r.id = id
		}
	}
	return s.oneItem(r)
}

func (s *sandbox) redirectToItem(r *sandboxRequest) sandboxAnswer {
	for id, it := range s.items {
		if it.int("counter") == r.id {
			path := fmt.Sprintf("/api/1/item/%d", id)
			uri := path
			if s.tokenInLink {
				uri += "?access_token=" + r.token
			}
			answer := sandboxResult(map[string]any{"itemId": id, "path": path, "uri": uri})
			answer.status, answer.header = 301, map[string]string{"Location": uri}
			return answer
		}
	}
	return sandboxError(404, "Item not found in this project.")
}

// patchRules say what a field of a PATCH may be. The texts of refusals are guesses.
var patchRules = map[string]func(any) bool{
	"status":                       func(v any) bool { return v == "active" || v == "resolved" || v == "muted" },
	"level":                        func(v any) bool { text, _ := v.(string); return slices.Contains(levels, text) },
	"title":                        func(v any) bool { text, _ := v.(string); return text != "" && len([]rune(text)) <= 255 },
	"resolved_in_version":          func(v any) bool { text, ok := v.(string); return ok && len(text) <= 40 },
	"assigned_user_id":             isSandboxIDOrNull,
	"assigned_team_id":             isSandboxIDOrNull,
	"snooze_enabled":               func(v any) bool { _, ok := v.(bool); return ok },
	"snooze_expiration_in_seconds": func(v any) bool { n, ok := v.(float64); return ok && n == math.Trunc(n) },
}

func isSandboxIDOrNull(v any) bool {
	n, ok := v.(float64)
	return v == nil || ok && n == math.Trunc(n)
}

func (s *sandbox) patchItem(r *sandboxRequest) sandboxAnswer {
	var changes map[string]any
	if json.Unmarshal(r.body, &changes) != nil {
		return sandboxError(400, "Invalid JSON")
	}
	it, ok := s.items[r.id]
	if !ok {
		return sandboxError(400, "Item not found in this project.")
	}
	echo := map[string]any{}
	for name, value := range changes {
		rule, known := patchRules[name]
		if !known {
			continue
		}
		if !rule(value) {
			return sandboxError(422, "Invalid format. %s is not valid.", name)
		}
		if n, isNumber := value.(float64); isNumber {
			value = int64(n)
		}
		echo[name] = value
	}
	s.change(it, echo)
	return sandboxResult(echo)
}

// change sets fields of an item, and those that follow from them.
func (s *sandbox) change(it sandboxItem, changes map[string]any) {
	now := s.now().Unix()
	for name, value := range changes {
		switch name {
		case "status":
			if value == it["status"] {
				continue
			}
			it["status"] = value
			it[map[any]string{"active": "last_activated_timestamp", "resolved": "last_resolved_timestamp", "muted": "last_muted_timestamp"}[value]] = now
			it["resolved_in_version"] = changes["resolved_in_version"]
		case "resolved_in_version":
			if changes["status"] == "resolved" { // else it is not used
				it[name] = value
			}
		case "snooze_enabled":
			it["snooze_status"], it["snooze_type"] = nil, nil
			if value == true {
				it["snooze_status"], it["snooze_type"] = "active", "time"
			}
		case "snooze_expiration_in_seconds":
			it["snooze_expiration_threshold_seconds"], it["snooze_expiration_datetime"] = value, now+value.(int64)
		case "title", "level":
			it[name], it[name+"_lock"] = value, int64(1)
		default:
			it[name] = value
		}
	}
	it["last_modified_by"] = int64(5325)
}

// postItem takes an occurrence. The answer comes before it is processed.
func (s *sandbox) postItem(r *sandboxRequest) sandboxAnswer {
	if len(r.body) > 1<<20 {
		return sandboxError(413, "Request body too large. The maximum is 1024 KB.") // the text is a guess
	}
	payload, err := rawjson.Compact(r.body)
	if err != nil {
		return sandboxError(400, "Invalid JSON")
	}
	data := rawjson.Get(payload, "data")
	needed := scopePost
	if slices.Contains(clientPlatforms, rawjson.Unquote(rawjson.Get(data, "platform"))) {
		needed = scopePostClient
	}
	if scopes := sandboxScopes[r.token]; !slices.Contains(scopes, needed) {
		return sandboxError(403, "insufficient privileges: %s scope is required but the access token only has %s.", needed, scopes[0])
	}
	if refusal := refusedPayload(data); refusal != "" {
		return sandboxError(422, "Invalid format. %s", refusal)
	}
	uuid := rawjson.Unquote(rawjson.Get(data, "uuid"))
	if uuid == "" {
		uuid = strings.ReplaceAll(newUUID(), "-", "")
		data = rawjson.Set(data, "uuid", rawjson.AppendQuoted(nil, uuid))
	}
	s.posts[uuid]++
	if s.byUUID[uuid] == nil { // a second one is discarded
		o := &sandboxOccurrence{at: s.now().Unix(), data: data}
		s.byUUID[uuid] = o
		s.later(func() { s.occur(o) })
	}
	return sandboxResult(map[string]any{"id": nil, "uuid": uuid})
}

// refusedPayload says what Rollbar would not take about a payload's data, or "". Rollbar's wording
// is known for some of it.
func refusedPayload(data json.RawMessage) string {
	body := rawjson.Get(data, "body")
	if body == nil {
		return "data.body must not be undefined. Instead, it should be an object with a 'message', 'trace', 'trace_chain', or 'crash_report' key."
	}
	kinds := 0
	for _, kind := range bodyKinds {
		if rawjson.Get(body, kind) != nil {
			kinds++
		}
	}
	if kinds != 1 {
		return "data.body must have either a 'trace', 'trace_chain', 'message' or 'crash_report' property, (but not more than one)."
	}
	if level := rawjson.Get(data, "level"); level != nil && level[0] != '"' {
		return "data.level should be string."
	}
	if err := checkPayload(data, "data."); err != nil {
		return err.Error() + "."
	}
	return ""
}

// later carries out what Rollbar does some seconds after it has answered.
func (s *sandbox) later(work func()) {
	if s.manual {
		s.pending = append(s.pending, work)
		return
	}
	work()
}

// process carries out what was put off.
func (s *sandbox) process() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, work := range s.pending {
		work()
	}
	s.pending = nil
}

// occur gives an occurrence to its item: the one with its environment and fingerprint.
func (s *sandbox) occur(o *sandboxOccurrence) {
	title, environment := occurrenceTitle(o.data), rawjson.Unquote(rawjson.Get(o.data, "environment"))
	hash := rawjson.Unquote(rawjson.Get(o.data, "fingerprint"))
	switch {
	case hash == "":
		hash = sandboxHash(digits.ReplaceAllString(title, ""))
	case utf8.RuneCountInString(hash) > 40:
		hash = sandboxHash(hash)
	}
	s.lastOcc++
	o.id = s.lastOcc
	var item sandboxItem
	for _, it := range s.items {
		if it["hash"] == hash && it["environment"] == environment {
			item = it
		}
	}
	if item == nil {
		level := cmp.Or(rawjson.Unquote(rawjson.Get(o.data, "level")), "error")
		if rawjson.Get(o.data, "level") == nil && rawjson.Get(o.data, "body", "message") != nil {
			level = "info"
		}
		item = s.newItem(title, level, environment, hash, o)
	}
	o.item = item.int("id")
	s.occurrences[o.id] = o
	item["last_occurrence_id"], item["last_occurrence_timestamp"] = o.id, o.at
	if item["status"] == "resolved" && !isOlder(rawjson.Unquote(rawjson.Get(o.data, "code_version")), item.text("resolved_in_version")) {
		item["status"], item["activating_occurrence_id"], item["last_activated_timestamp"] = "active", o.id, o.at
		item["total_occurrences"] = int64(0)
	}
	item["total_occurrences"] = item.int("total_occurrences") + 1
}

var digits = regexp.MustCompile(`\d+`)

// isOlder reports whether a version comes before the one in which an item was resolved. Versions
// that are not both numbers with dots are not compared.
func isOlder(version, resolvedIn string) bool {
	a, b := strings.Split(version, "."), strings.Split(resolvedIn, ".")
	if version == "" || resolvedIn == "" || len(a) != len(b) {
		return false
	}
	for i := range a {
		m, errA := strconv.Atoi(a[i])
		n, errB := strconv.Atoi(b[i])
		if errA != nil || errB != nil || m > n {
			return false
		}
		if m < n {
			return true
		}
	}
	return false
}

func (s *sandbox) listOccurrences(r *sandboxRequest) sandboxAnswer {
	query := r.URL.Query()
	below, err := strconv.ParseInt(cmp.Or(query.Get("lastId"), query.Get("last_id")), 10, 64)
	byCursor := err == nil // junk is tolerated
	var found []*sandboxOccurrence
	for _, o := range s.occurrences {
		if (r.id == 0 || o.item == r.id) && (!byCursor || o.id < below) {
			found = append(found, o)
		}
	}
	// By time; among equal times the order is arbitrary, here the wrong one.
	slices.SortFunc(found, func(a, b *sandboxOccurrence) int {
		return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(a.id, b.id))
	})
	from, to := r.page(20)
	if byCursor {
		from, to = 0, to-from
	}
	shown := []any{}
	for _, o := range found[min(from, len(found)):min(to, len(found))] {
		shown = append(shown, s.show(o))
	}
	number, _ := strconv.Atoi(query.Get("page"))
	return sandboxResult(map[string]any{"page": max(number, 1), "instances": shown})
}

// show is an occurrence as Rollbar enriches it, the project's post token included.
func (s *sandbox) show(o *sandboxOccurrence) map[string]any {
	metadata := fmt.Sprintf(`{"access_token":%q,"timestamp_ms":%d,"debug":{"routes":{"counters":{"post_item":1}}}}`, sandboxPostToken, o.at*1000)
	data := rawjson.Set(o.data, "metadata", json.RawMessage(metadata))
	return map[string]any{
		"id": o.id, "item_id": o.item, "project_id": sandboxProjectID, "timestamp": o.at, "version": 2, "billable": 1,
		"data": rawjson.Set(data, "retentionDays", json.RawMessage("180")),
	}
}

func (s *sandbox) oneOccurrence(r *sandboxRequest) sandboxAnswer {
	if o := s.occurrences[r.id]; o != nil {
		return sandboxResult(s.show(o))
	}
	return sandboxError(404, "Not found")
}

// deleteOccurrence deletes an occurrence some time after it has answered; counts stay.
func (s *sandbox) deleteOccurrence(r *sandboxRequest) sandboxAnswer {
	o := s.occurrences[r.id]
	if o == nil || o.deleting {
		return sandboxError(404, "Not found")
	}
	o.deleting = true
	s.later(func() { delete(s.occurrences, r.id) })
	return sandboxAnswer{status: 200, body: map[string]any{"err": 0, "message": "The instance has been deleted"}}
}

// occurrencesOf says how many occurrences carry the uuid: never more than one.
func (s *sandbox) occurrencesOf(uuid string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.byUUID[uuid]; o != nil && s.occurrences[o.id] != nil {
		return 1
	}
	return 0
}

// postsOf says how often the uuid was posted.
func (s *sandbox) postsOf(uuid string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.posts[uuid]
}

// dataOf returns what the path leads to in the data that were posted with the uuid.
func (s *sandbox) dataOf(uuid string, path ...string) json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.byUUID[uuid]; o != nil {
		return rawjson.Get(o.data, path...)
	}
	return nil
}

// itemIDs are the ids of all items, in their order.
func (s *sandbox) itemIDs() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.items))
}

// touch gives an item one more occurrence.
func (s *sandbox) touch(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	it := s.items[id]
	data := fmt.Appendf(nil, `{"environment":%q,"fingerprint":%q,"level":"error","uuid":%q,"body":{"message":{"body":"again"}}}`, it["environment"], it["hash"], newUUID())
	o := &sandboxOccurrence{at: s.now().Unix(), data: data}
	s.byUUID[rawjson.Unquote(rawjson.Get(data, "uuid"))] = o
	s.occur(o)
}

// setItem changes a field of an item behind the API's back.
func (s *sandbox) setItem(id int64, field string, value any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items[id][field] = value
}

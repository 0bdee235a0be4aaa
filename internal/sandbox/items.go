package sandbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A project is the items of a project and their occurrences.
type project struct {
	items       map[int64]item
	occurrences map[int64]*occurrence
	byUUID      map[string]*occurrence
	posts       map[string]int // how often each uuid was posted
	pending     []func()       // work that was accepted and not yet done
	lastItem    int64
	lastOcc     int64
}

// An item is the fields of an item, both those of lists and those of single answers.
type item map[string]any

// A list lacks fields of single answers, and a single answer fields of lists.
var (
	fieldsOfLists   = []string{"unique_occurrences", "controlling_id", "public_item_id", "resolved_in_version", "title_lock", "level_lock"}
	fieldsOfSingles = []string{"last_muted_timestamp", "snooze_status", "snooze_type", "snooze_expiration_threshold_seconds", "snooze_expiration_datetime"}
)

func (it item) without(fields []string) item {
	shown := maps.Clone(it)
	for _, name := range fields {
		delete(shown, name)
	}
	return shown
}

func (it item) int(name string) int64 { n, _ := it[name].(int64); return n }

func (it item) text(name string) string { text, _ := it[name].(string); return text }

// sorted returns the items that match, the last to occur first.
func (p *project) sorted(match func(item) bool) []item {
	var found []item
	for _, it := range p.items {
		if match(it) {
			found = append(found, it)
		}
	}
	slices.SortFunc(found, func(a, b item) int {
		return cmp.Or(cmp.Compare(b.int("last_occurrence_timestamp"), a.int("last_occurrence_timestamp")), cmp.Compare(b.int("id"), a.int("id")))
	})
	return found
}

func (s *Sandbox) listItems(r *request) answer {
	number, from, to := r.page(100)
	if n := s.bulk.length; n > 0 {
		page := s.itemPage([]item{}, number, n)
		if from < n {
			page.text = s.fill(page.text, from, min(to, n))
		}
		return page
	}
	query := r.URL.Query()
	terms := searchTerm.FindAllString(query.Get("query"), -1)
	groups := slices.Contains(terms, "is:group")
	found := s.sorted(func(it item) bool {
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
			user != "" && user != "assigned" && user != "unassigned" && users[it.int("assigned_user_id")] != user:
			return false
		}
		return !slices.ContainsFunc(terms, func(term string) bool { return !it.matches(term) })
	})
	shown := []item{}
	for _, it := range found[min(from, len(found)):min(to, len(found))] {
		shown = append(shown, it.without(fieldsOfSingles))
	}
	return s.itemPage(shown, number, len(found))
}

// itemPage answers with a page of a list.
func (s *Sandbox) itemPage(shown []item, number, length int) answer {
	page := map[string]any{"items": shown, "page": number, "total_count": length}
	if max(length, len(s.items)) > s.settings.LargeProject {
		page["total_count"] = nil
	}
	return result(page)
}

// searchTerm matches a term of a search: a word, or field:value, where the value may be quoted.
var searchTerm = regexp.MustCompile(`[\w.]+:"[^"]*"|\S+`)

var uuidForm = regexp.MustCompile(`(?i)^[0-9a-f]{32}$`) // without dashes

// matches reports whether a term of a search finds the item. The term is a word of the title,
// #counter, the beginning of a field's value, as field:valu, or its whole value, as field:"value".
func (it item) matches(term string) bool {
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

func (s *Sandbox) oneItem(r *request) answer {
	if it, ok := s.items[r.id]; ok {
		return result(it.without(fieldsOfLists))
	}
	return errorf(404, "Item not found in this project.") // the text is a guess
}

// findItem answers ?counter= and ?uuid=.
func (s *Sandbox) findItem(r *request) answer {
	query := r.URL.Query()
	if uuid := query.Get("uuid"); query.Has("uuid") {
		if !uuidForm.MatchString(strings.ReplaceAll(uuid, "-", "")) {
			return errorf(400, "Invalid UUID format")
		}
		if o := s.byUUID[uuid]; o != nil && s.occurrences[o.id] != nil {
			r.id = o.item
			return s.oneItem(r)
		}
		return errorf(404, "UUID did not match any occurrence")
	}
	counter, _ := strconv.ParseInt(query.Get("counter"), 10, 64)
	r.id = s.byCounter(counter)
	return s.oneItem(r)
}

// byCounter returns the id of the item with a counter, or 0.
func (p *project) byCounter(counter int64) int64 {
	for id, it := range p.items {
		if it.int("counter") == counter {
			return id
		}
	}
	return 0
}

func (s *Sandbox) redirectToItem(r *request) answer {
	id := s.byCounter(r.id)
	if id == 0 {
		return errorf(404, "Item not found in this project.")
	}
	path := fmt.Sprintf("/api/1/item/%d", id)
	uri := path
	if s.settings.TokenInLink {
		uri += "?access_token=" + r.token
	}
	a := result(map[string]any{"itemId": id, "path": path, "uri": uri})
	a.status, a.header = 301, map[string]string{"Location": uri}
	return a
}

// patchRules say what Rollbar accepts in a PATCH. It ignores other members.
var patchRules = rules{
	{"status", false, "string", matching("active|resolved|muted")},
	{"level", false, "string", matching(strings.Join(levels, "|"))},
	{"title", false, "string", matching(".{1,255}")},
	{"resolved_in_version", false, "string", matching(".{0,40}")},
	{"assigned_user_id assigned_team_id", false, "integer null", nil},
	{"snooze_enabled", false, "boolean", nil},
	{"snooze_expiration_in_seconds", false, "integer", nil},
}

func (s *Sandbox) patchItem(r *request) answer {
	changes, ok := decode(r.body).(map[string]any)
	if !ok {
		return errorf(400, "Invalid JSON")
	}
	it, ok := s.items[r.id]
	if !ok {
		return errorf(400, "Item not found in this project.")
	}
	if refused := patchRules.refusals("", changes); len(refused) > 0 {
		return errorf(422, "Invalid format. %s", strings.Join(refused, " ")) // the texts are guesses
	}
	for name, value := range changes {
		if n, isNumber := value.(json.Number); isNumber {
			changes[name], _ = n.Int64()
		}
		if !slices.ContainsFunc(patchRules, func(r rule) bool { return slices.Contains(strings.Fields(r.names), name) }) {
			delete(changes, name)
		}
	}
	s.change(it, changes)
	return result(changes)
}

// change sets fields of an item and those that depend on them.
func (s *Sandbox) change(it item, changes map[string]any) {
	now := s.settings.Now().Unix()
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

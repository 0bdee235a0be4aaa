package sandbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	goversion "go/version"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"app/internal/rawjson"
)

type occurrence struct {
	id, item, at int64
	data         json.RawMessage // as posted, compact
	deleting     bool
}

// postItem accepts an occurrence, which is processed later.
func (s *Sandbox) postItem(r *request) response {
	if len(r.body) > 1<<20 {
		return errorf(413, "Request body too large. The maximum is 1024 KB.") // the text is a guess
	}
	payload, err := rawjson.Compact(r.body)
	if err != nil {
		return errorf(400, "Invalid JSON")
	}
	data := rawjson.Get(payload, "data")
	needed, has := "post_server_item", scopes[r.token]
	if slices.Contains([]string{"browser", "android", "ios", "flash", "client"}, textAt(data, "platform")) {
		needed = "post_client_item"
	}
	if !slices.Contains(has, needed) {
		return forbidden(needed, has)
	}
	if refused := refusals(data); len(refused) > 0 {
		return errorf(422, "Invalid format. %s", strings.Join(refused, " "))
	}
	uuid := textAt(data, "uuid")
	if uuid == "" {
		uuid = newUUID()
		data = fmt.Appendf(nil, `{"uuid":%q,%s`, uuid, data[1:])
	}
	s.posts[uuid]++
	if s.byUUID[uuid] == nil { // a repeat is discarded
		o := &occurrence{at: s.settings.Now().Unix(), data: data}
		s.byUUID[uuid] = o
		s.later(func() { s.occur(o) })
	}
	return result(map[string]any{"id": nil, "uuid": uuid})
}

// newUUID returns a random UUID as Rollbar generates them, without dashes.
func newUUID() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

// later does the work that Rollbar does some seconds after its answer.
func (s *Sandbox) later(work func()) {
	if s.settings.Manual {
		s.pending = append(s.pending, work)
		return
	}
	work()
}

// occur adds an occurrence to the item with its environment and fingerprint, or to a new one.
func (s *Sandbox) occur(o *occurrence) {
	title, environment, level := titleOf(o.data), textAt(o.data, "environment"), textAt(o.data, "level")
	hash := cmp.Or(textAt(o.data, "fingerprint"), fingerprint(digits.ReplaceAllString(title, "")))
	if utf8.RuneCountInString(hash) > 40 {
		hash = fingerprint(hash)
	}
	s.lastOcc++
	o.id = s.lastOcc
	var it item
	for _, other := range s.items {
		if other["hash"] == hash && other["environment"] == environment {
			it = other
		}
	}
	if it == nil {
		if level == "" && rawjson.Get(o.data, "body", "message") != nil {
			level = "info"
		}
		it = s.newItem(title, cmp.Or(level, "error"), environment, hash, o)
	}
	o.item = it.int("id")
	s.occurrences[o.id] = o
	it["last_occurrence_id"], it["last_occurrence_timestamp"] = o.id, o.at
	// Numbers with dots are compared as Go versions. That any other version is older is a guess.
	version, resolvedIn := "go"+textAt(o.data, "code_version"), "go"+it.text("resolved_in_version")
	if it["status"] == "resolved" && goversion.Compare(version, resolvedIn) >= 0 {
		it["status"], it["activating_occurrence_id"], it["last_activated_timestamp"] = "active", o.id, o.at
		it["total_occurrences"] = int64(0)
	}
	it["total_occurrences"] = it.int("total_occurrences") + 1
}

// titleOf returns the title that an occurrence gives to its item.
func titleOf(data json.RawMessage) string {
	report, _, _ := strings.Cut(textAt(data, "body", "crash_report", "raw"), "\n")
	traces := rawjson.Elements(rawjson.Get(data, "body", "trace_chain"))
	exception := rawjson.Get(append(traces, rawjson.Get(data, "body", "trace"))[0], "exception")
	return cmp.Or(textAt(data, "title"), textAt(data, "body", "message", "body"), report,
		textAt(exception, "class")+": "+textAt(exception, "message"))
}

var digits = regexp.MustCompile(`\d+`)

func (s *Sandbox) listOccurrences(r *request) response {
	below, err := strconv.ParseInt(cmp.Or(r.query.Get("lastId"), r.query.Get("last_id")), 10, 64)
	if err != nil { // junk is tolerated
		below = math.MaxInt64
	} else {
		r.query.Del("page")
	}
	// By time, the newest first. Equal times have an arbitrary order, here the reverse one.
	found := slices.SortedFunc(maps.Values(s.occurrences), func(a, b *occurrence) int {
		return cmp.Or(cmp.Compare(b.at, a.at), cmp.Compare(a.id, b.id))
	})
	found = slices.DeleteFunc(found, func(o *occurrence) bool { return r.id != 0 && o.item != r.id || o.id >= below })
	number, from, to := r.page(20, len(found))
	shown := []any{}
	for _, o := range found[from:to] {
		shown = append(shown, s.show(o))
	}
	return result(map[string]any{"page": number, "instances": shown})
}

// show returns an occurrence as Rollbar enriches it, which includes the project's post token.
func (s *Sandbox) show(o *occurrence) map[string]any {
	data := rawjson.Set(o.data, "retentionDays", json.RawMessage("180"))
	data = rawjson.Set(data, "metadata", fmt.Appendf(nil, `{"access_token":%q,"timestamp_ms":%d,"debug":{"routes":{"counters":{"post_item":1}}}}`, PostToken, o.at*1000))
	return map[string]any{
		"id": o.id, "item_id": o.item, "project_id": seed().Item["project_id"], "timestamp": o.at, "version": 2, "billable": 1, "data": data,
	}
}

func (s *Sandbox) oneOccurrence(r *request) response {
	if o := s.occurrences[r.id]; o != nil {
		return result(s.show(o))
	}
	return errorf(404, "Not found")
}

// deleteOccurrence deletes an occurrence after the answer. The counts of its item stay.
func (s *Sandbox) deleteOccurrence(r *request) response {
	o := s.occurrences[r.id]
	if o == nil || o.deleting {
		return errorf(404, "Not found")
	}
	o.deleting = true
	s.later(func() { delete(s.occurrences, r.id) })
	return response{200, encode(map[string]any{"err": 0, "message": "The instance has been deleted"})}
}

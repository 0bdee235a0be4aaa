package sandbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"app/internal/rawjson"
)

// An item holds the fields of an item, both those of lists and those of single answers.
type item map[string]any

func (it item) without(fields []string) item {
	shown := maps.Clone(it)
	maps.DeleteFunc(shown, func(name string, _ any) bool { return slices.Contains(fields, name) })
	return shown
}

func (it item) int(name string) int64 { n, _ := it[name].(int64); return n }

func (it item) text(name string) string { text, _ := it[name].(string); return text }

func (s *Sandbox) listItems(r *request) response {
	terms := searchTerm.FindAllString(r.query.Get("query"), -1)
	groups := slices.Contains(terms, "is:group")
	found := slices.SortedFunc(maps.Values(s.items), func(a, b item) int {
		return cmp.Or(cmp.Compare(b.int("last_occurrence_timestamp"), a.int("last_occurrence_timestamp")), cmp.Compare(b.int("id"), a.int("id")))
	})
	found = slices.DeleteFunc(found, func(it item) bool {
		isHidden := groups != (it.int("group_status") == 2) || it["group_item_id"] != nil
		return isHidden || !it.passes(r.query) || slices.ContainsFunc(terms, func(term string) bool { return !it.matches(term) })
	})
	number, from, to := r.page(100, len(found))
	shown := []item{}
	for _, it := range found[from:to] {
		shown = append(shown, it.without(seed().SingleFields))
	}
	return s.itemPage(shown, number, len(found))
}

// passes reports whether an item passes all filters of a list.
func (it item) passes(filters url.Values) bool {
	for _, name := range []string{"status", "level", "environment", "framework"} {
		if filters.Has(name) && !slices.Contains(filters[name], it.text(name)) {
			return false
		}
	}
	user, assigned := users[it.int("assigned_user_id")], "assigned"
	if it["assigned_user_id"] == nil {
		assigned = "unassigned"
	}
	return slices.Contains([]string{"", user, assigned}, filters.Get("assigned_user"))
}

// itemPage answers with a page of a list.
func (s *Sandbox) itemPage(shown []item, number, length int) response {
	page := map[string]any{"items": shown, "page": number, "total_count": length}
	if max(length, len(s.items)) > s.settings.LargeProject {
		page["total_count"] = nil
	}
	return result(page)
}

// searchTerm matches a term of a search: a word, or field:value, where the value may be quoted.
var searchTerm = regexp.MustCompile(`[\w.]+:"[^"]*"|\S+`)

// uuidForm matches a UUID, with or without dashes.
var uuidForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)^([0-9a-f]-*){32}$`) })

// matches reports whether a term of a search finds the item. The term is a word of the title, #counter, the
// beginning of a field's value, as field:valu, or its whole value, as field:"value".
func (it item) matches(term string) bool {
	if counter, ok := strings.CutPrefix(term, "#"); ok {
		return fmt.Sprint(it["counter"]) == counter
	}
	field, value, ok := strings.Cut(term, ":")
	if ok && field == "is" {
		return true
	}
	if field == "fingerprint" {
		field = "hash"
	}
	if is, known := it[field]; ok && known {
		if exact, quoted := strings.CutPrefix(value, `"`); quoted {
			return fmt.Sprint(is) == strings.TrimSuffix(exact, `"`)
		}
		return strings.HasPrefix(fmt.Sprint(is), value)
	}
	return strings.Contains(strings.ToLower(it.text("title")), strings.ToLower(term))
}

func (s *Sandbox) oneItem(r *request) response {
	if it, ok := s.items[r.id]; ok {
		return result(it.without(seed().ListFields))
	}
	return errorf(404, "Item not found in this project.") // the text is a guess
}

// findItem answers ?counter= and ?uuid=.
func (s *Sandbox) findItem(r *request) response {
	counter, _ := strconv.ParseInt(r.query.Get("counter"), 10, 64)
	r.id = firstID + counter
	if uuid := r.query.Get("uuid"); r.query.Has("uuid") {
		o := s.byUUID[uuid]
		switch {
		case !uuidForm().MatchString(uuid):
			return errorf(400, "Invalid UUID format")
		case o == nil || s.occurrences[o.id] == nil:
			return errorf(404, "UUID did not match any occurrence")
		}
		r.id = o.item
	}
	return s.oneItem(r)
}

func (s *Sandbox) patchItem(r *request) response {
	sent, err := rawjson.Compact(r.body)
	if err != nil || kindOf(sent) != "object" {
		return errorf(400, "Invalid JSON")
	}
	it, ok := s.items[r.id]
	if !ok {
		return errorf(400, "Item not found in this project.")
	}
	if refused := accepted().Patch.refusals("", sent); len(refused) > 0 {
		return errorf(422, "Invalid format. %s", strings.Join(refused, " ")) // the texts are guesses
	}
	changes := rawjson.Decode(sent).(map[string]any)
	s.change(it, changes)
	return result(changes)
}

// change sets fields of an item and those that depend on them. It removes the changes that no PATCH makes.
func (s *Sandbox) change(it item, changes map[string]any) {
	now := s.settings.Now().Unix()
	if status := changes["status"]; status != nil && status != it["status"] {
		it[map[any]string{"active": "last_activated_timestamp", "resolved": "last_resolved_timestamp", "muted": "last_muted_timestamp"}[status]] = now
		it["resolved_in_version"] = nil
	}
	for name, value := range changes {
		if n, isNumber := value.(json.Number); isNumber {
			value, _ = n.Int64()
			changes[name] = value
		}
		switch name {
		case "resolved_in_version":
			if changes["status"] == "resolved" { // otherwise it is ignored
				it[name] = value
			}
		case "snooze_enabled":
			it["snooze_status"] = map[any]any{true: "active"}[value]
			it["snooze_type"] = map[any]any{true: "time"}[value]
		case "snooze_expiration_in_seconds":
			it["snooze_expiration_threshold_seconds"], it["snooze_expiration_datetime"] = value, now+value.(int64)
		case "title", "level":
			it[name], it[name+"_lock"] = value, int64(1)
		case "status", "assigned_user_id", "assigned_team_id":
			it[name] = value
		default:
			delete(changes, name)
		}
	}
	it["last_modified_by"] = int64(5325)
}

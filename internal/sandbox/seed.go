package sandbox

import (
	"crypto/sha1"
	"fmt"
	"strings"
	"time"
)

// The project is invented, but it has the shapes that real projects have.
const (
	projectID = int64(12116)
	firstID   = int64(1_705_000_000) // with its counter added, the id of an item
)

var (
	users        = map[int64]string{5325: "ada", 5326: "grace"}
	environments = []string{"production", "production", "staging", "development", "qa-préprod"}
	frameworks   = []string{"rails", "node-js", "django", "unknown", "flask", "browser-js", "go"}
	statuses     = []string{"active", "active", "active", "resolved", "active", "muted", "active", "archived"}
	integrations = []any{nil, nil, map[string]any{"jira": map[string]any{"key": "SHOP-7"}}, "legacy", map[string]any{}}
	titles       = []string{
		"TimeoutError: checkout took longer than 30 s",
		"TypeError: Cannot read properties of undefined (reading 'price')",
		"ActiveRecord::RecordNotFound: Couldn't find Order with 'id'=40002",
		"Zahlung fehlgeschlagen: Überweisung „Müller & Söhne“ abgelehnt",
		"فشل الدفع: انتهت صلاحية البطاقة",
		"Unexpected token '<', \"<!DOCTYPE \"... is not valid JSON",
		"注文を処理できません: 在庫が不足しています 🔥",
		"{\"error\":\"quota\",\"tenant\":\"acme\",\"retry\":false}",
		"PG::UniqueViolation: duplicate key value\nDETAIL:\tKey (email) already exists.\n",
		"RangeError: Invalid time value <script>alert('x')</script>",
		strings.Repeat("very long ", 26)[:255],
	}
	bodies = []string{
		`{"message":{"body":%q,"route":"/cart"}}`,
		`{"trace":{"frames":[{"filename":"app/cart.py","lineno":17,"method":"total"},{"filename":"app/price.py","lineno":4,"method":"of"}],"exception":{"class":"ValueError","message":%q}}}`,
		`{"trace_chain":[{"frames":[{"filename":"src/shop.js","lineno":9}],"exception":{"class":"ShopError","message":%q}},{"frames":[],"exception":{"class":"Error","message":"cause"}}]}`,
		`{"crash_report":{"raw":%q}}`,
	}
)

func pick[T any](from []T, i int) T { return from[i%len(from)] }

// addItem adds the invented item with a number. It depends on nothing but the number and the time.
func (s *Sandbox) addItem(number int) {
	title, last := pick(titles, number), s.settings.Now().Add(-time.Duration(number)*97*time.Minute).Unix()
	if number == 3 {
		s.lastOcc += 1 << 53 // ids need not fit a float64 for ever
	}
	var o *occurrence
	for n := range number%5 + 1 {
		o = s.invent(seedUUID(number, n), last-int64(60*(number%5-n)), fmt.Sprintf(`"title":%q,"fingerprint":%q,"environment":%q,"level":%q,"timestamp":%d,"code_version":"4.%d.0",`+
			`"language":"python","notifier":{"name":"pyrollbar","version":"1.0.0"},"person":{"id":"%d","username":null},`+
			`"request":{"url":"https://shop.example.com/cart?n=%d","method":"GET","user_ip":"192.0.2.7"},`+
			`"custom":{"big":123456789012345678901234567890,"small":1e3,"price":1.10},"body":%s`,
			title, fingerprint(fmt.Sprint(number)), pick(environments, number*3/2), pick(levels, number*7/3), last, number%9,
			1000+number, n, fmt.Sprintf(pick(bodies, number+n), title)))
	}
	it := s.items[o.item]
	it["total_occurrences"] = int64(number%5 + 1 + number*number%1000)
	it["framework"], it["status"], it["integrations_data"] = pick(frameworks, number), pick(statuses, number), pick(integrations, number)
	switch it["status"] {
	case "resolved":
		it["last_resolved_timestamp"], it["resolved_in_version"] = last+600, "4.1.7"
	case "muted":
		it["last_muted_timestamp"] = last + 60
	}
	switch group := o.item - int64(number%60-30); {
	case number%60 == 30:
		it["group_status"] = int64(2)
		delete(s.occurrences, o.id) // a group's occurrences are those of its members
	case number%60 == 31 || number%60 == 32:
		it["group_item_id"], it["controlling_id"] = group, group
	case number%4 == 1:
		it["assigned_user_id"], it["unique_occurrences"] = pick([]int64{5325, 5326}, number/4), int64(number%3+1)
	}
}

// invent adds an occurrence that nobody posted, with the members of its data beside the uuid.
func (s *Sandbox) invent(uuid string, at int64, members string) *occurrence {
	o := &occurrence{at: at, data: fmt.Appendf(nil, `{"uuid":%q,%s}`, uuid, members)}
	s.byUUID[uuid] = o
	s.occur(o)
	return o
}

// seedUUID returns the uuid of the nth occurrence of an invented item.
func seedUUID(number, n int) string {
	return fmt.Sprintf("5a4d0000-0000-4000-8000-%06x%06x", number, n)
}

// newItem adds an item that begins with an occurrence.
func (s *Sandbox) newItem(title, level, environment, hash string, first *occurrence) item {
	counter := int64(len(s.items)+1) + s.skipped
	it := item{
		"id": firstID + counter, "counter": counter, "project_id": projectID, "environment": environment, "platform": "unknown",
		"framework": "unknown", "hash": hash, "title": fmt.Sprintf("%.255s", title), "status": "active", "level": level,
		"total_occurrences": int64(0), "unique_occurrences": nil,
		"first_occurrence_id": first.id, "first_occurrence_timestamp": first.at,
		"last_occurrence_id": first.id, "last_occurrence_timestamp": first.at,
		"activating_occurrence_id": first.id, "last_activated_timestamp": first.at,
		"last_resolved_timestamp": nil, "last_muted_timestamp": nil, "last_modified_by": int64(5325),
		"assigned_user_id": nil, "assigned_team_id": nil, "group_item_id": nil, "group_status": int64(1),
		"controlling_id": firstID + counter, "public_item_id": nil, "resolved_in_version": nil, "title_lock": int64(0), "level_lock": int64(0),
		"integrations_data": nil, "snooze_status": nil, "snooze_type": nil,
		"snooze_expiration_threshold_seconds": nil, "snooze_expiration_datetime": nil,
	}
	s.items[firstID+counter] = it
	return it
}

// fingerprint returns the fingerprint that Rollbar makes of a text, which is its SHA-1.
func fingerprint(text string) string {
	return fmt.Sprintf("%x", sha1.Sum([]byte(text)))
}

package sandbox

import (
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The project is invented, but it has the shapes that real projects have.
const projectID = int64(12116)

var (
	users        = map[int64]string{5325: "ada", 5326: "grace"}
	environments = []string{"production", "production", "staging", "development", "qa-préprod"}
	frameworks   = []string{"rails", "node-js", "django", "unknown", "flask", "browser-js", "go"}
	statuses     = []string{"active", "active", "active", "resolved", "active", "muted", "active", "archived"}
	titles       = []string{
		"TimeoutError: checkout took longer than 30 s",
		"TypeError: Cannot read properties of undefined (reading 'price')",
		"ActiveRecord::RecordNotFound: Couldn't find Order with 'id'=%d",
		"ConnectionError: inventory.internal:8443 refused the connection",
		"ZeroDivisionError: division by zero in shipping_cost()",
		"Zahlung fehlgeschlagen: Überweisung „Müller & Söhne“ abgelehnt",
		"注文を処理できません: 在庫が不足しています",
		"فشل الدفع: انتهت صلاحية البطاقة",
		"🔥 worker crashed 🔥 while importing catalogue",
		"Unexpected token '<', \"<!DOCTYPE \"... is not valid JSON",
		"{\"error\":\"quota\",\"tenant\":\"acme\",\"retry\":false}",
		"OutOfMemoryError: Java heap space\n",
		"panic: runtime error: invalid memory address or nil pointer dereference",
		"PG::UniqueViolation: ERROR: duplicate key value violates unique constraint \"users_email\"\nDETAIL: Key (email) already exists.",
		"RangeError: Invalid time value <script>alert('x')</script>",
		"DeprecationWarning: Buffer() is deprecated\tuse Buffer.alloc()",
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
	title := pick(titles, number)
	if strings.Contains(title, "%d") {
		title = fmt.Sprintf(title, 40_000+number)
	}
	if number%50 == 49 {
		title = strings.Repeat("very long ", 26)[:255]
	}
	level, environment := pick(levels, number*7/3), pick(environments, number*3/2)
	last := s.settings.Now().Add(-time.Duration(number) * 97 * time.Minute).Unix()
	var it item
	for n := range number%5 + 1 {
		s.lastOcc = max(s.lastOcc, 402_859_036_592) + int64(number%7) + 1
		if number == 3 && n == 0 {
			s.lastOcc += 1 << 53 // ids need not fit a float64 for ever
		}
		body, _ := json.Marshal(title) // a string
		data := fmt.Sprintf(`{"uuid":%q,"environment":%q,"level":%q,"timestamp":%d,"code_version":"4.%d.0","language":"python","notifier":{"name":"pyrollbar","version":"1.0.0"},`+
			`"person":{"id":"%d","username":null},"request":{"url":"https://shop.example.com/cart?n=%d","method":"GET","user_ip":"192.0.2.7"},`+
			`"custom":{"big":123456789012345678901234567890,"small":1e3,"price":1.10},"body":%s}`,
			seedUUID(number, n), environment, level, last, number%9, 1000+number, n,
			strings.Replace(pick(bodies, number+n), "%q", string(body), 1))
		o := &occurrence{id: s.lastOcc, at: last - int64(60*(number%5-n)), data: json.RawMessage(data)}
		if it == nil {
			it = s.newItem(title, level, environment, fingerprint(fmt.Sprint(title, "\n", number)), o)
		}
		o.item = it.int("id")
		if number%60 != 30 { // a group's occurrences are those of its members
			s.occurrences[o.id], s.byUUID[seedUUID(number, n)] = o, o
		}
		it["last_occurrence_id"], it["last_occurrence_timestamp"] = o.id, o.at
	}
	it["total_occurrences"] = int64(number%5 + 1 + number*number%1000)
	it["framework"] = pick(frameworks, number)
	s.decorate(it, number, last)
}

// decorate gives an item the fields that only some items have.
func (s *Sandbox) decorate(it item, number int, last int64) {
	it["status"] = pick(statuses, number)
	it["integrations_data"] = pick([]any{nil, nil, map[string]any{"jira": map[string]any{"key": "SHOP-7"}}, "legacy", map[string]any{}}, number)
	switch it["status"] {
	case "resolved":
		it["last_resolved_timestamp"], it["resolved_in_version"] = last+600, "4.1.7"
	case "muted":
		it["last_muted_timestamp"] = last + 60
	}
	switch {
	case number%60 == 30:
		it["group_status"] = int64(2)
	case number%60 == 31 || number%60 == 32:
		it["group_item_id"], it["controlling_id"] = it.int("id")-int64(number%60-30), it.int("id")-int64(number%60-30)
	case number%4 == 1:
		it["assigned_user_id"], it["unique_occurrences"] = pick([]int64{5325, 5326}, number/4), int64(number%3+1)
	case number%11 == 2:
		it["snooze_status"], it["snooze_type"] = "active", "time"
		it["snooze_expiration_threshold_seconds"], it["snooze_expiration_datetime"] = int64(3600), last+3600
	}
}

// seedUUID returns the uuid of the nth occurrence of an invented item.
func seedUUID(number, n int) string {
	return fmt.Sprintf("5a4d0000-0000-4000-8000-%06x%06x", number, n)
}

// newItem adds an item that begins with an occurrence.
func (s *Sandbox) newItem(title, level, environment, hash string, first *occurrence) item {
	s.lastItem++
	id := 1_705_000_000 + s.lastItem
	if runes := []rune(title); len(runes) > 255 {
		title = string(runes[:255])
	}
	it := item{
		"id": id, "counter": s.lastItem, "project_id": projectID, "environment": environment, "platform": "unknown",
		"framework": "unknown", "hash": hash, "title": title, "status": "active", "level": level,
		"total_occurrences": int64(0), "unique_occurrences": nil,
		"first_occurrence_id": first.id, "first_occurrence_timestamp": first.at,
		"last_occurrence_id": first.id, "last_occurrence_timestamp": first.at,
		"activating_occurrence_id": first.id, "last_activated_timestamp": first.at,
		"last_resolved_timestamp": nil, "last_muted_timestamp": nil, "last_modified_by": int64(5325),
		"assigned_user_id": nil, "assigned_team_id": nil, "group_item_id": nil, "group_status": int64(1),
		"controlling_id": id, "public_item_id": nil, "resolved_in_version": nil, "title_lock": int64(0), "level_lock": int64(0),
		"integrations_data": nil, "snooze_status": nil, "snooze_type": nil,
		"snooze_expiration_threshold_seconds": nil, "snooze_expiration_datetime": nil,
	}
	s.items[id] = it
	return it
}

// fingerprint returns the fingerprint that Rollbar makes of a text, which is its SHA-1.
func fingerprint(text string) string {
	return fmt.Sprintf("%x", sha1.Sum([]byte(text)))
}

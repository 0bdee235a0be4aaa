package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// What is in the sandbox: invented, but of the shapes that real projects have.
const sandboxProjectID = int64(12116)

var (
	sandboxUsers        = map[int64]string{5325: "ada", 5326: "grace"}
	sandboxEnvironments = []string{"production", "production", "staging", "development", "qa-préprod"}
	sandboxFrameworks   = []string{"rails", "node-js", "django", "unknown", "flask", "browser-js", "go"}
	sandboxStatuses     = []string{"active", "active", "active", "resolved", "active", "muted", "active", "archived"}
	sandboxTitles       = []string{
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
	sandboxBodies = []string{
		`{"message":{"body":%q,"route":"/cart"}}`,
		`{"trace":{"frames":[{"filename":"app/cart.py","lineno":17,"method":"total"},{"filename":"app/price.py","lineno":4,"method":"of"}],"exception":{"class":"ValueError","message":%q}}}`,
		`{"trace_chain":[{"frames":[{"filename":"src/shop.js","lineno":9}],"exception":{"class":"ShopError","message":%q}},{"frames":[],"exception":{"class":"Error","message":"cause"}}]}`,
		`{"crash_report":{"raw":%q}}`,
	}
)

// addItems adds n invented items.
func (s *sandbox) addItems(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.addItem(len(s.items))
	}
}

func pick[T any](from []T, i int) T { return from[i%len(from)] }

// addItem adds the item with a number, which is all that it depends on, apart from the time.
func (s *sandbox) addItem(number int) {
	title := pick(sandboxTitles, number)
	if strings.Contains(title, "%d") {
		title = fmt.Sprintf(title, 40_000+number)
	}
	if number%50 == 49 {
		title = strings.Repeat("very long ", 26)[:255]
	}
	level, environment := pick(levels, number*7/3), pick(sandboxEnvironments, number*3/2)
	last := s.now().Add(-time.Duration(number) * 97 * time.Minute).Unix()
	var item sandboxItem
	for n := range number%5 + 1 {
		s.lastOcc = max(s.lastOcc, 402_859_036_592) + int64(number%7) + 1
		if number == 3 && n == 0 {
			s.lastOcc += 1 << 53 // ids need not fit a float64 for ever
		}
		body, _ := json.Marshal(title) // a string
		data := fmt.Sprintf(`{"uuid":%q,"environment":%q,"level":%q,"timestamp":%d,"code_version":"4.%d.0","language":"python","notifier":{"name":"pyrollbar","version":"1.0.0"},`+
			`"person":{"id":"%d","username":null},"request":{"url":"https://shop.example.com/cart?n=%d","method":"GET","user_ip":"192.0.2.7"},`+
			`"custom":{"big":123456789012345678901234567890,"small":1e3,"price":1.10},"body":%s}`,
			sandboxUUID(number, n), environment, level, last, number%9, 1000+number, n,
			strings.Replace(pick(sandboxBodies, number+n), "%q", string(body), 1))
		o := &sandboxOccurrence{id: s.lastOcc, at: last - int64(60*(number%5-n)), data: json.RawMessage(data)}
		if item == nil {
			item = s.newItem(title, level, environment, sandboxHash(title, fmt.Sprint(number)), o)
		}
		o.item = item.int("id")
		if number%60 != 30 { // a group's occurrences are those of its members
			s.occurrences[o.id], s.byUUID[sandboxUUID(number, n)] = o, o
		}
		item["last_occurrence_id"], item["last_occurrence_timestamp"] = o.id, o.at
	}
	item["total_occurrences"] = int64(number%5 + 1 + number*number%1000)
	item["framework"] = pick(sandboxFrameworks, number)
	s.decorate(item, number, last)
}

// decorate gives an item what only some have.
func (s *sandbox) decorate(item sandboxItem, number int, last int64) {
	item["status"] = pick(sandboxStatuses, number)
	item["integrations_data"] = pick([]any{nil, nil, map[string]any{"jira": map[string]any{"key": "SHOP-7"}}, "legacy", map[string]any{}}, number)
	switch item["status"] {
	case "resolved":
		item["last_resolved_timestamp"], item["resolved_in_version"] = last+600, "4.1.7"
	case "muted":
		item["last_muted_timestamp"] = last + 60
	}
	switch {
	case number%60 == 30:
		item["group_status"] = int64(2)
	case number%60 == 31 || number%60 == 32:
		item["group_item_id"], item["controlling_id"] = item.int("id")-int64(number%60-30), item.int("id")-int64(number%60-30)
	case number%4 == 1:
		item["assigned_user_id"], item["unique_occurrences"] = pick([]int64{5325, 5326}, number/4), int64(number%3+1)
	case number%11 == 2:
		item["snooze_status"], item["snooze_type"] = "active", "time"
		item["snooze_expiration_threshold_seconds"], item["snooze_expiration_datetime"] = int64(3600), last+3600
	}
}

// sandboxUUID is the uuid of the nth occurrence of an invented item.
func sandboxUUID(number, n int) string {
	return fmt.Sprintf("5a4d0000-0000-4000-8000-%06x%06x", number, n)
}

// newItem adds an item that begins with an occurrence.
func (s *sandbox) newItem(title, level, environment, hash string, first *sandboxOccurrence) sandboxItem {
	s.lastItem++
	id := 1_705_000_000 + s.lastItem
	if runes := []rune(title); len(runes) > 255 {
		title = string(runes[:255])
	}
	item := sandboxItem{
		"id": id, "counter": s.lastItem, "project_id": sandboxProjectID, "environment": environment, "platform": "unknown",
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
	s.items[id] = item
	return item
}

package main

import (
	"io"
	"net/http"
	"strconv"
)

// A standIn is the least that Rollbar can be for a measurement: a list of invented items, made as
// they are asked for, so that there can be millions, and a taker of occurrences.
type standIn struct{ items int }

func (s standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost:
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"err":0,"result":{"id":null,"uuid":null}}`)
	case r.URL.Path != "/api/1/items/":
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"err":1,"message":"Not found"}`)
	default:
		query := r.URL.Query()
		page := s.page(max(1, atoi(query.Get("page"))), atoi(query.Get("limit")))
		h.Set("Content-Length", strconv.Itoa(len(page)))
		_, _ = w.Write(page)
	}
}

func atoi(text string) int {
	n, _ := strconv.Atoi(text) // 0 for none
	return n
}

// page is one page of the items, 100 by default.
func (s standIn) page(number, limit int) []byte {
	if limit == 0 {
		limit = 100
	}
	text := append(make([]byte, 0, 1300*limit), `{"err":0,"result":{"items":[`...)
	for n := (number-1)*limit + 1; n <= min(number*limit, s.items); n++ {
		text = append(appendStandInItem(text, n), ',')
	}
	if text[len(text)-1] == ',' {
		text = text[:len(text)-1]
	}
	text = strconv.AppendInt(append(text, `],"page":`...), int64(number), 10)
	text = strconv.AppendInt(append(text, `,"total_count":`...), int64(s.items), 10)
	return append(text, `}}`...)
}

// appendStandInItem appends an item of Rollbar's shape, about 1.25 kB.
func appendStandInItem(text []byte, n int) []byte {
	number := func(name string, value int) {
		text = strconv.AppendInt(append(append(append(text, `,"`...), name...), `":`...), int64(value), 10)
	}
	word := func(name, value string) {
		text = append(append(append(append(append(text, `,"`...), name...), `":"`...), value...), '"')
	}
	text = append(text, `{"public_item_id":null,"integrations_data":{"jira":null},"level_lock":0`...)
	number("controlling_id", n)
	number("last_activated_timestamp", 1700000000+n)
	text = append(text, `,"assigned_user_id":null,"group_status":1`...)
	word("hash", "0a4d55a8d778e5022fab701977c5d840bbc486d0")
	number("id", 272505123+n)
	word("environment", []string{"production", "staging", "development"}[n%3])
	text = append(text, `,"title_lock":0,"title":"TypeError: cannot read property `...)
	text = strconv.AppendInt(text, int64(n)*2654435761%4294967296, 36)
	text = strconv.AppendInt(append(text, ` of undefined at handler `...), int64(n), 10)
	text = append(text, '"')
	number("last_occurrence_id", 402859036592+n)
	number("last_occurrence_timestamp", 1701111111+n)
	word("platform", "browser")
	number("first_occurrence_timestamp", 1690000000+n)
	number("project_id", 12116)
	text = append(text, `,"resolved_in_version":null`...)
	word("status", []string{"active", "resolved", "muted"}[n%3])
	number("unique_occurrences", n%91)
	text = append(text, `,"group_item_id":null`...)
	word("framework", "node-js")
	number("total_occurrences", n%9999)
	word("level", []string{"critical", "error", "warning", "info", "debug"}[n%5])
	number("counter", n)
	number("last_modified_by", 5325)
	number("first_occurrence_id", 302859036592+n)
	number("activating_occurrence_id", 352859036592+n)
	text = append(text, `,"last_resolved_timestamp":null,"snooze_enabled":false,"team_id":null,"priority":null,"custom":{"trace":"`...)
	for range 12 {
		text = append(text, "c4ca4238a0b923820dcc509a6f75849b"...)
	}
	return append(text, `"}}`...)
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"app/internal/rawjson"
)

const (
	maxEvent  = 2 << 20                 // bytes; an occurrence alone may have half of that
	eventTime = 2500 * time.Millisecond // for storing an event: Rollbar counts one as failed after 3 s
)

// A Receipt says whether an event held something to store.
type Receipt struct {
	Stored bool `json:"stored"`
}

// serveWebhook answers Rollbar, which sends an event again unless the answer is a success. An event may arrive twice,
// or weeks late. Rollbar signs nothing, so only a token in the URL authenticates it; the query must never be logged.
func (s *server) serveWebhook(w *response, r *http.Request) {
	w.operation = "webhooks.rollbar"
	stored, err := s.webhook(w, r)
	w.answer(Receipt{stored}, err)
}

// webhook stores the item and the occurrence that the event in a request holds.
func (s *server) webhook(w *response, r *http.Request) (stored bool, err error) {
	if !isOneOf(r.URL.Query().Get("token"), s.config.webhookTokens) {
		return false, fail(unauthorized, "the webhook's URL must end with ?token= and a token in WEBHOOK_TOKEN")
	}
	text, err := s.readBody(w, r, maxEvent)
	if err != nil {
		return false, err
	}
	event, err := rawjson.Compact(text)
	switch {
	case strings.Contains(strings.ToLower(r.Header.Get("Content-Type")), "xml"), strings.HasPrefix(strings.TrimSpace(string(text)), "<"):
		return false, fail(wrongMedia, "the event must be JSON: set the webhook's format to JSON in Rollbar")
	case err != nil:
		return false, fail(invalid, "the event is not JSON: %w", err)
	case event[0] != '{':
		return false, fail(invalid, "the event is not a JSON object")
	}
	item, last := lastOfEvent(event)
	if item == nil {
		s.app.log.InfoContext(r.Context(), "webhook without an item", "event", cut(rawjson.Unquote(rawjson.Get(event, "event_name"))))
		return false, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), eventTime)
	defer cancel()
	seen := observationOf(*item)
	seen.isEvent = true
	if _, err = s.app.store.archive(ctx, last); err == nil {
		_, err = s.app.store.observe(ctx, []observation{seen})
	}
	if err != nil {
		return false, fail(unavailable, "the event is not stored: %w", databaseError(err))
	}
	return true, nil
}

// lastOfEvent returns the item in an event as Rollbar's API would show it, or nil, and the item's last occurrence,
// if the event has it inside or next to the item.
func lastOfEvent(event json.RawMessage) (*Item, []Occurrence) {
	get := func(object json.RawMessage, path ...string) string {
		return cmp.Or(string(rawjson.Get(object, path...)), "null")
	}
	raw := rawjson.Get(event, "data", "item")
	item, err := itemOf(named(rawjson.Set(raw, "last_occurrence", nil)), nil)
	if err != nil {
		return nil, nil
	}
	data := cmp.Or(string(rawjson.Get(event, "data", "occurrence")), get(raw, "last_occurrence"))
	last, err := occurrenceOf(fmt.Appendf(nil, `{"id":%s,"item_id":%d,"project_id":%s,"timestamp":%s,"data":%s}`,
		get(raw, "last_occurrence_id"), item.ID, get(raw, "project_id"), get(raw, "last_occurrence_timestamp"), data))
	if err != nil || !strings.HasPrefix(data, "{") {
		return &item, nil
	}
	return &item, []Occurrence{last}
}

// numbered maps the numbers that events use to the names that the API uses.
var numbered = map[string][]string{
	"level":    {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"},
	"status":   {1: "active", 2: "resolved", 3: "muted"},
	"platform": strings.Fields("unknown browser flash android ios heroku google-app-engine client"),
	"framework": strings.Fields("unknown rails django pyramid node-js pylons php browser-js rollbar-system android ios mailgun" +
		" logentries python ruby sidekiq flask celery rq java dotnet go react-native macos apex spring bottle twisted asgi starlette" +
		" fastapi karafka flutter"),
}

// named returns the item of an event with names instead of numbers. A number without a name stays.
func named(item json.RawMessage) json.RawMessage {
	for member, names := range numbered {
		n, ok := rawjson.Int(rawjson.Get(item, member))
		if ok && 0 <= n && n < int64(len(names)) && names[n] != "" {
			item = rawjson.Set(item, member, rawjson.AppendQuoted(nil, names[n]))
		}
	}
	return item
}

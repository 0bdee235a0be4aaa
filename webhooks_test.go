package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
)

// newWebhooks starts a service that takes webhooks with the token hook+token.
func newWebhooks(t *testing.T, items int, change ...func(*Config)) *fixture {
	t.Helper()
	return newFixture(t, items, append([]func(*Config){func(c *Config) {
		c.webhookTokens = []string{"other",
			"hook+token"}
	}}, change...)...)
}

// webhook sends an event as Rollbar does.
func (f *fixture) webhook(event string, header ...string) *answer {
	f.t.Helper()
	return f.do("POST", "/webhooks/rollbar?token=hook%2Btoken", event,
		append([]string{"Content-Type", "application/json"}, header...)...)
}

func (a *answer) requireStored(stored bool) {
	a.t.Helper()
	require.Equal(a.t, 200, a.status, a.body)
	require.Equal(a.t, fmt.Sprintf(`{"stored":%t}`+"\n", stored), a.body)
}

// The members of an item as events send them, and an occurrence with some of its members.
const (
	eventItem = `"public_item_id":null,"integrations_data":{},"level_lock":0,"last_activated_timestamp":1700000000,` +
		`"assigned_user_id":null,"group_status":1,"hash":"5f1d","id":700100200,"environment":"production",` +
		`"title_lock":0,"title":"out of ink","last_occurrence_id":400500600700,` +
		`"last_occurrence_timestamp":1700000500,"platform":0,"first_occurrence_timestamp":1700000000,` +
		`"project_id":77,"resolved_in_version":null,"status":1,"unique_occurrences":null,"group_item_id":null,` +
		`"framework":13,"total_occurrences":12,"level":40,"counter":7,"last_modified_by":9,` +
		`"first_occurrence_id":400500600100,"activating_occurrence_id":400500600100`
	eventOccurrence = `{"body":{"message":{"body":"out of ink"}},"uuid":"0b9e1d54-0000-4000-8000-000000000001",` +
		`"level":"error","timestamp":1700000499,"environment":"production","metadata":{"access_token":"s3cret",` +
		`"debug":{"routes":{"access_token":"s3cret","start_time":1}},"timestamp_ms":1700000500123}}`
)

// event returns an event. The members in more are added to its item, or replace the item's own.
func event(name, more string) string {
	item := json.RawMessage(`{` + eventItem + `}`)
	for member, value := range rawjson.Members([]byte(`{` + more + `}`)) {
		item = rawjson.Set(item, member, value)
	}
	return fmt.Sprintf(`{"event_name":%q,"data":{"item":%s}}`, name, item)
}

// eventHistory returns the state and one member of each report of the events' item, newest first.
func (f *fixture) eventHistory(member string) []string {
	f.t.Helper()
	return f.rows(`SELECT concat(state, ' ', data ->> '` + member +
		`') FROM reports WHERE item_id = 700100200 ORDER BY id DESC`)
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	nested := event("new_item", `"last_occurrence":`+eventOccurrence)
	for _, test := range []struct {
		name, event string
		occurrence  bool
	}{
		{"new item", nested, true},
		{"repeated item", strings.Replace(nested, `"data":{`, `"data":{"url":"https://rollbar.com/x","occurrences":10,`,
			1), true},
		{"occurrence beside its item", strings.Replace(event("occurrence", ""), `"data":{`,
			`"data":{"occurrence":`+eventOccurrence+`,`, 1), true},
		{"velocity without an occurrence",
			strings.Replace(event("item_velocity", ""), `"data":{`, `"data":{"trigger":{"threshold":5},`, 1), false},
		{"occurrence that is none", event("new_item", `"last_occurrence":null`), false},
		{"one that is not known yet", strings.Replace(nested, "new_item", "item_painted", 1), true},
		{"one without a name", `{"data":` + string(rawjson.Get([]byte(nested), "data")) + `}`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newWebhooks(t, 0)
			for range 2 { // a second delivery changes nothing
				f.webhook(test.event).requireStored(true)
			}
			want := strings.NewReplacer(`"level":40`, `"level":"error"`, `"status":1`, `"status":"active"`,
				`"platform":0`, `"platform":"unknown"`,
				`"framework":13`, `"framework":"python"`).Replace(`{` + eventItem + `}`)
			assert.Equal(t, []string{want}, f.rows(`SELECT data::text FROM reports WHERE state = 'current'`))
			assert.Len(t, f.rows(`SELECT '' FROM reports`), 1)
			assert.Equal(t, `"active"`, string(at([]byte(f.get("/reports?status=active&level=error").at("reports")),
				"0", "data", "status")))
			archived := f.rows(`SELECT data::text FROM occurrences`)
			if !test.occurrence {
				assert.Empty(t, archived)
				return
			}
			data := strings.ReplaceAll(eventOccurrence, `"access_token":"s3cret",`, "")
			assert.Equal(t, []string{`{"id":400500600700,"item_id":700100200,"project_id":77,` +
				`"timestamp":1700000500,"data":` + data + `}`}, archived)
		})
	}
	f := newWebhooks(t, 0, func(c *Config) { c.ReadOnly = true })
	f.webhook(nested).requireStored(true)
	assert.Empty(t, f.sandbox.Requests(), "Rollbar is not asked")
}

func TestWebhooksWithoutAnItem(t *testing.T) {
	t.Parallel()
	f := newWebhooks(t, 0)
	for _, event := range []string{
		`{"event_name":"test","data":{"message":"it works"}}`, `{"event_name":"deploy","data":{"deploy":{"id":5}}}`,
		`{}`, `{"data":[]}`,
		`{"event_name":"new_item","data":{"item":null}}`, `{"event_name":"new_item","data":{"item":{"id":"x"}}}`,
	} {
		f.webhook(event).requireStored(false)
	}
	assert.Empty(t, f.rows(`SELECT '' FROM reports`))
	assert.Contains(t, f.log.String(), `"event":"test"`)
}

func TestWebhooksRefused(t *testing.T) {
	t.Parallel()
	f := newWebhooks(t, 0, func(c *Config) { c.apiTokens, c.relayTokens = []string{"api"}, []string{"sdk"} })
	good := event("new_item", "")
	fits := strings.Repeat(" ", 2<<20-len(good)) + good
	for _, test := range []struct {
		name, query, body string
		header            []string
		status            int
		kind              string
	}{
		{"no token", "", good, nil, 401, "auth"},
		{"wrong token", "?token=wrong", good, nil, 401, "auth"},
		{"token as it came before decoding", "?token=hook+token", good, nil, 401, "auth"},
		{"token of the API", "?token=api", good, []string{"Authorization", "Bearer api"}, 401, "auth"},
		{"token of the relay", "?token=sdk", good, nil, 401, "auth"},
		{"no JSON", "?token=other", "x", nil, 400, "usage"},
		{"nothing", "?token=other", "", nil, 400, "usage"},
		{"no object", "?token=other", "[]", nil, 400, "usage"},
		{"too large", "?token=other", " " + fits, nil, 413, "usage"},
		{"XML", "?token=other", "<rollbar/>", []string{"Content-Type", "application/xml"}, 415, "usage"},
		{"XML that is declared as something else", "?token=other", " <rollbar/>",
			[]string{"Content-Type", "text/plain"}, 415, "usage"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.do("POST", "/webhooks/rollbar"+test.query, test.body, test.header...).requireProblem(test.status,
				test.kind)
		})
	}
	for _, path := range []string{"/items", "/nowhere", "/webhooks/rollbar"} {
		f.do("GET", path+"?token=other", "", "Authorization", "Bearer other").requireProblem(401, "auth")
	}
	assert.Empty(t, f.rows(`SELECT '' FROM reports`))
	f.webhook(fits, "Host", "errors.example.com", "Sec-Fetch-Site", "cross-site").requireStored(true)
	newFixture(t, 0).do("POST", "/webhooks/rollbar?token=", good).requireProblem(404, "not-found")
}

// Numbers become names, and numbers without a name stay.
func TestWebhooksNameNumbers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ given, want string }{
		{`{"level":10,"status":2,"platform":7,"framework":32}`,
			`{"level":"debug","status":"resolved","platform":"client","framework":"flutter"}`},
		{`{"level":50,"status":3,"platform":6,"framework":8}`,
			`{"level":"critical","status":"muted","platform":"google-app-engine","framework":"rollbar-system"}`},
		{`{"level":45,"status":0,"platform":8,"framework":33}`, `{"level":45,"status":0,"platform":8,"framework":33}`},
		{`{"level":-1,"status":null,"platform":"browser","counter":1}`,
			`{"level":-1,"status":null,"platform":"browser","counter":1}`},
	} {
		assert.Equal(t, test.want, string(named(json.RawMessage(test.given))))
	}
}

// A late event does not undo newer changes. Whatever the event's age, its occurrence is archived.
func TestWebhooksThatComeLate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, stored, event string
		isOlder             bool
	}{
		{"equal in all", "", "", false},
		{"older by the occurrence", "", `"last_occurrence_timestamp":1700000499,` +
			`"last_activated_timestamp":1800000000,"total_occurrences":99`, true},
		{"newer by the occurrence", "", `"last_occurrence_timestamp":1700000501,` +
			`"last_activated_timestamp":1,"total_occurrences":1`, false},
		{"older by the activation", "", `"last_activated_timestamp":1699999999,"total_occurrences":99`, true},
		{"newer by the activation", "", `"last_activated_timestamp":1700000001,"total_occurrences":1`, false},
		{"older by the resolution", `"last_resolved_timestamp":1700000600`,
			`"last_resolved_timestamp":1700000599,"total_occurrences":99`, true},
		{"older, since never resolved", `"last_resolved_timestamp":1700000600`,
			`"last_resolved_timestamp":null,"total_occurrences":99`, true},
		{"newer, since resolved", `"last_resolved_timestamp":null`,
			`"last_resolved_timestamp":1700000600,"total_occurrences":1`, false},
		{"not told of the resolution", `"last_resolved_timestamp":1700000600`, "", false},
		{"older by the number of occurrences", "", `"total_occurrences":11`, true},
		{"newer by the number of occurrences", "", `"total_occurrences":13`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newWebhooks(t, 0)
			f.webhook(event("new_item", test.stored)).requireStored(true)
			f.exec(`UPDATE reports SET last_seen = '2026-01-01'`)
			late := strings.TrimPrefix(test.event+
				`,"title":"renamed","last_occurrence_id":5,"last_occurrence":`+eventOccurrence, ",")
			f.webhook(event("reopened_item", late)).requireStored(true)
			want := []string{"current renamed", "superseded out of ink"}
			if test.isOlder {
				want = []string{"current out of ink"}
				assert.Equal(t, []string{"2026"}, f.rows(`SELECT to_char(max(last_seen), 'YYYY') FROM (SELECT `+
					`last_seen FROM reports UNION ALL SELECT last_seen FROM seen) AS s WHERE last_seen < '2026-01-02'`))
				assert.Empty(t, f.rows(`SELECT '' FROM seen`))
			}
			assert.Equal(t, want, f.eventHistory("title"))
			assert.Equal(t, []string{"5"}, f.rows(`SELECT id::text FROM occurrences`))
		})
	}
}

// Events and reads yield the same state of an item, so that alternating between them makes no new reports.
func TestWebhooksAndReadsAgree(t *testing.T) {
	t.Parallel()
	f := newWebhooks(t, 1)
	id := f.sandbox.ItemIDs()[0]
	path := fmt.Sprintf("/items/%d", id)
	f.sandbox.SetItem(id, "integrations_data", nil)
	tell := func() {
		t.Helper()
		item := json.RawMessage(f.get(path).at())
		for _, member := range []string{"last_resolved_timestamp", "last_muted_timestamp", "snooze_status",
			"assigned_team_id"} {
			item = rawjson.Set(item, member, nil)
		}
		for member, names := range numbered {
			for n, name := range names {
				if name == rawjson.Unquote(rawjson.Get(item, member)) && name != "" {
					item = rawjson.Set(item, member, fmt.Append(nil, n))
				}
			}
		}
		item = rawjson.Set(rawjson.Set(item, "integrations_data", json.RawMessage(`{}`)), "url",
			json.RawMessage(`"https://rollbar.com/x"`))
		require.NotContains(t, string(item), `"status":"`)
		f.webhook(fmt.Sprintf(`{"event_name":"new_item","data":{"item":%s}}`, item)).requireStored(true)
		require.Equal(t, 200, f.get("/items").status)
	}
	reports := func() []string { return f.rows(`SELECT state FROM reports ORDER BY id`) }
	for range 3 {
		tell()
	}
	assert.Equal(t, []string{"current"}, reports())
	assert.Equal(t, []string{"https://rollbar.com/x"}, f.rows(`SELECT data ->> 'url' FROM reports`))
	f.sandbox.Touch(id)
	tell()
	assert.Equal(t, []string{"current"}, reports())
	f.sandbox.SetItem(id, "status", "resolved")
	for range 3 {
		tell()
	}
	assert.Equal(t, []string{"superseded", "current"}, reports())
}

// An event that PostgreSQL does not store in time is refused, so that Rollbar sends it again.
func TestWebhooksWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	f := newWebhooks(t, 0, func(c *Config) { c.DatabaseURL = "postgres://app@127.0.0.1:1/app" })
	f.webhook(event("new_item", "")).requireProblem(503, "unavailable")
	f.webhook(`{"event_name":"test","data":{}}`).requireStored(false)

	f = newWebhooks(t, 0)
	f.webhook(event("new_item", "")).requireStored(true)
	begin(t, f.connect(), `LOCK TABLE reports, occurrences IN ACCESS EXCLUSIVE MODE`)
	began := time.Now()
	f.webhook(event("new_item", `"total_occurrences":99,"last_occurrence":`+eventOccurrence)).requireProblem(503,
		"unavailable")
	assert.Less(t, time.Since(began), 2*storeTimeout, "the occurrence and the item share one limit")
}

// The token in the URL appears nowhere else.
func TestNobodySeesTheWebhooksToken(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t, func(c *Config) { c.webhookTokens = []string{"hook+token"} })
	var answers strings.Builder
	for _, request := range []string{"POST /webhooks/rollbar", "GET /webhooks/rollbar", "POST /webhooks/other",
		"POST /webhooks/rollbar/"} {
		method, path, _ := strings.Cut(request, " ")
		for _, body := range []string{event("new_item", ""), `{"event_name":"test"}`, "[]", "<x/>"} {
			got := f.do(method, path+"?token=hook%2Btoken", body)
			fmt.Fprintln(&answers, got.header, got.body)
		}
	}
	spans, err := json.Marshal(agent.Trace("POST /webhooks/rollbar"))
	require.NoError(t, err)
	metrics, err := json.Marshal(agent.MetricsUntil("app.operations", "operation:webhooks.rollbar", "outcome:ok",
		"surface:http"))
	require.NoError(t, err)
	assert.Contains(t, string(spans), `"operation":"webhooks.rollbar"`)
	for _, form := range []string{"hook+token", "hook%2Btoken", "?token"} {
		assert.NotContains(t, answers.String()+f.log.String()+string(spans)+string(metrics), form)
	}
}

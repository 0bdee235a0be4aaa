package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

func TestItemsFilters(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 120)
	for filter, want := range map[string]func(*answer) bool{
		"status=muted": func(a *answer) bool { return a.all("items", "status", `"muted"`) },
		"level=error&environment=staging": func(a *answer) bool {
			return a.all("items", "level", `"error"`) && a.all("items", "environment", `"staging"`)
		},
		"assigned_user=ada": func(a *answer) bool { return a.all("items", "assigned_user_id", "5325") },
		"query=is:group":    func(a *answer) bool { return a.all("items", "group_status", "2") },
		"framework=go":      func(a *answer) bool { return a.all("items", "framework", `"go"`) },
	} {
		got := f.get("/items?" + filter)
		require.Equal(t, 200, got.status, got.body)
		assert.NotEmpty(t, got.list("items"), filter)
		assert.True(t, want(got), filter)
	}
}

// all reports whether the member of each element has the value.
func (a *answer) all(list, name, value string) bool {
	for _, element := range a.list(list) {
		if string(rawjson.Get(element, name)) != value {
			return false
		}
	}
	return true
}

func TestItemsGet(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 10)
	id := f.sandbox.ItemIDs()[2]
	one := f.get(fmt.Sprintf("/items/%d", id))
	require.Equal(t, 200, one.status, one.body)
	assert.Equal(t, fmt.Sprint(id), one.at("id"))
	assert.Equal(t, one.body, f.get("/items/3?by=counter").body)
	assert.Equal(t, one.body, f.get("/items/"+f.sandbox.UUID(2, 0)+"?by=uuid").body)
	for _, path := range []string{"/items/999", "/items/999?by=counter",
		"/items/00000000-0000-4000-8000-000000000000?by=uuid"} {
		f.get(path).requireProblem(404, "not-found")
	}
	for _, r := range f.sandbox.Requests() {
		assert.NotContains(t, r, "sandbox-", "a token")
		assert.NotContains(t, r, "item_by_counter")
	}
}

// While Rollbar does not answer, a known item is shown as it was last seen, and clearly marked as such.
func TestItemsGetFromTheArchive(t *testing.T) {
	t.Parallel()
	for _, fault := range []sandbox.Fault{sandbox.Down, sandbox.Error, sandbox.BadGateway, sandbox.Truncated,
		sandbox.Slow, sandbox.LimitedFar} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 4, withTimeout(200*time.Millisecond))
			id := fmt.Sprint(f.sandbox.ItemIDs()[2])
			require.Equal(t, 200, f.get("/items/"+id).status)
			f.do("PATCH", "/items/"+id, `{"status":"muted"}`)
			live := f.get("/items/" + id)
			assert.Empty(t, live.header.Get("Report-Source")+live.header.Get("Age"))
			f.exec(`UPDATE reports SET last_seen = last_seen - interval '2 hours'`)
			f.exec(`UPDATE seen SET last_seen = last_seen - interval '1 hour'`)
			f.sandbox.SetFault(fault)
			got := f.get("/items/" + id)
			require.Equal(t, 200, got.status, got.body)
			assert.JSONEq(t, live.body, got.body)
			assert.Equal(t, "archive", got.header.Get("Report-Source"))
			assert.InDelta(t, 7200, atoi(got.header.Get("Age")), 60)
			assert.NotEmpty(t, got.header.Get("ETag"))
			for _, settings := range [][]string{{}, {"-app-url=" + f.url}} {
				shell := f.run(append(settings, "items", "get", id)...)
				assert.Equal(t, 0, shell.exit, shell.err)
				assert.Equal(t, got.body, shell.out)
				assert.Regexp(t, `^app: this is from the archive, as it was last seen 2h0m\d+s ago\n$`, shell.err)
			}
			status := map[sandbox.Fault]int{sandbox.Slow: 504, sandbox.LimitedFar: 429}
			for _, path := range []string{"?source=live", "?by=counter"} {
				number := map[bool]string{true: "3", false: id}[strings.Contains(path, "counter")]
				assert.Equal(t, cmp.Or(status[fault], 502), f.get("/items/"+number+path).status, path)
			}
			assert.Equal(t, cmp.Or(status[fault], 502), f.get("/items/"+fmt.Sprint(f.sandbox.ItemIDs()[0])).status,
				"it was never seen")
		})
	}
}

func TestItemsGetSource(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 4)
	id := fmt.Sprint(f.sandbox.ItemIDs()[2])
	assert.Contains(t, f.get("/items/"+id+"?source=archive").requireProblem(404, "not-found"),
		"there is no current report of item "+id)
	live := f.get("/items/" + id)
	asked := len(f.sandbox.Requests())
	got := f.get("/items/" + id + "?source=archive")
	assert.Equal(t, live.body, got.body)
	assert.Equal(t, "archive", got.header.Get("Report-Source"))
	assert.Len(t, f.sandbox.Requests(), asked, "Rollbar is not asked")
	for _, path := range []string{"/items/3?by=counter&source=archive",
		"/items/" + f.sandbox.UUID(2, 0) + "?by=uuid&source=archive"} {
		assert.Contains(t, f.get(path).requireProblem(400, "usage"), "by must be id, since source is archive")
	}
	f.sandbox.SetFault(sandbox.Forbidden)
	f.get("/items/"+id).requireProblem(502, "rollbar-auth")
	f.sandbox.SetFault(sandbox.Down)
	assert.Contains(t, f.get("/items").requireProblem(502, "unavailable"), "/reports?latest=true")
	f.exec(`ALTER TABLE reports RENAME TO elsewhere`)
	assert.Contains(t, f.get("/items/"+id).requireProblem(502, "unavailable"), "Rollbar does not answer")
	f.get("/items/"+id+"?source=archive").requireProblem(503, "unavailable")
}

// Every operation on one item finds it by its counter or an occurrence's uuid, and errors mention these.
func TestItemsBy(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 10)
	id, uuid := fmt.Sprint(f.sandbox.ItemIDs()[2]), f.sandbox.UUID(2, 0)
	for _, by := range []string{"3?by=counter", uuid + "?by=uuid", id + "?by=id", id} {
		ref, query, _ := strings.Cut(by, "?")
		assert.Equal(t, id, f.do("PATCH", "/items/"+by, `{"level":"info"}`).at("id"), by)
		list := f.get("/items/" + ref + "/occurrences?limit=1&" + query)
		require.Equal(t, 200, list.status, list.body)
		assert.Equal(t, id, list.at("occurrences", "0", "item_id"))
		assert.Equal(t, 200, f.get(list.link("next")).status)
	}
	assert.Equal(t, id, f.do("DELETE", "/items/3?by=counter", "").at("id"))

	f.do("PATCH", "/items/"+id, `{"by":"counter"}`).requireProblem(400, "usage")
	for _, op := range [][3]string{{"GET"}, {"PATCH", "", `{"level":"info"}`}, {"DELETE"}, {"GET", "/occurrences"}} {
		detail := f.do(op[0], "/items/"+uuid+op[1], op[2]).requireProblem(400, "usage")
		assert.Contains(t, detail, "must be a whole number at least 1, since by is id; -by uuid (?by=uuid) finds")
		if op[1] == "" { // for an unknown item, Rollbar returns no occurrences
			detail = f.do(op[0], "/items/4", op[2]).requireProblem(404, "not-found")
			assert.Contains(t, detail, "item with the id 4: Rollbar answered 40", op)
			assert.Contains(t, detail, "(-by counter or ?by=counter finds an item by its counter)")
		}
		f.do(op[0], "/items/99"+op[1]+"?by=counter", op[2]).requireProblem(404, "not-found")
		f.do(op[0], "/items/+3"+op[1], op[2]).requireProblem(400, "usage")
	}
}

func TestItemsUpdate(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	path := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[1])
	require.Equal(t, 200, f.get("/items").status)
	got := f.do("PATCH", path, `{"status":"resolved","resolved_in_version":"4.2.0","assigned_user_id":null,
		"title":"a \"b\" <c>"}`)
	require.Equal(t, 200, got.status, got.body)
	assert.Equal(t, `"resolved"`, got.at("status"))
	assert.Equal(t, `"a \"b\" <c>"`, got.at("title"))
	assert.Equal(t, "null", got.at("assigned_user_id"))
	assert.Equal(t, got.body, f.get(path).body)
	assert.Equal(t, got.body, f.do("PUT", path, `{"status":"resolved","resolved_in_version":"4.2.0"}`).body)

	// The report also holds the fields that were sent and that Rollbar echoed, but that the read lacks.
	history := f.get("/reports?item_id=" + fmt.Sprint(f.sandbox.ItemIDs()[1]))
	require.Len(t, history.list("reports"), 2)
	assert.Equal(t, `"current"`, history.at("reports", "0", "state"))
	assert.Equal(t, `"4.2.0"`, history.at("reports", "0", "data", "resolved_in_version"))
	assert.Equal(t, `"superseded"`, history.at("reports", "1", "state"))
	assert.Equal(t, `null`, history.at("reports", "1", "data", "resolved_in_version"))

	require.Equal(t, 200, f.get("/items?status=resolved").status)
	assert.Len(t, f.get("/reports?item_id="+fmt.Sprint(f.sandbox.ItemIDs()[1])).list("reports"), 2,
		"the list says nothing new")
	f.do("PATCH", "/items/999", `{"status":"muted"}`).requireProblem(404, "not-found")
}

func TestItemsDelete(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 40)
	f.sandbox.Set(func(s *sandbox.Settings) { s.Manual = true })
	id := f.sandbox.ItemIDs()[4]
	path := fmt.Sprintf("/items/%d", id)
	occurrences := len(f.get(path + "/occurrences").list("occurrences"))
	require.Equal(t, 5, occurrences)

	f.do("DELETE", path+"?max=4", "").requireProblem(409, "conflict")
	assert.NotContains(t, fmt.Sprint(f.sandbox.Requests()), "DELETE")

	deleted := f.do("DELETE", path+"?max=5", "")
	assert.Equal(t, fmt.Sprintf(`{"id":%d,"deleted_occurrences":5,"status":"resolved"}`+"\n", id), deleted.body)
	assert.Equal(t, `"resolved"`, f.get(path).at("status"))
	assert.Len(t, f.get(path+"/occurrences").list("occurrences"), 5, "Rollbar is not done yet")
	again := fmt.Sprintf(`{"id":%d,"deleted_occurrences":0,"status":"resolved"}`+"\n", id)
	assert.Equal(t, again, f.do("DELETE", path, "").body)
	f.sandbox.Process()
	assert.Empty(t, f.get(path+"/occurrences").list("occurrences"))
	assert.Equal(t, again, f.do("DELETE", path, "").body)
	assert.Len(t, f.get(fmt.Sprintf("/reports?item_id=%d", id)).list("reports"), 2, "stored before and after")

	group := f.sandbox.ItemIDs()[30]
	assert.Contains(t, f.do("DELETE", fmt.Sprintf("/items/%d", group), "").requireProblem(409, "conflict"),
		"is a group")
	f.do("DELETE", "/items/999", "").requireProblem(404, "not-found")
}

func TestItemsOccurrences(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5)
	require.Equal(t, 200, f.get("/reports").status)
	id := f.sandbox.ItemIDs()[4]
	var seen []string
	for _, got := range f.walk(fmt.Sprintf("/items/%d/occurrences?limit=2", id), "next") {
		for _, o := range got.list("occurrences") {
			seen = append(seen, string(rawjson.Get(o, "id")))
			assert.Nil(t, rawjson.Get(o, "data", "metadata", "access_token"))
			assert.NotNil(t, rawjson.Get(o, "data", "metadata", "timestamp_ms"))
			assert.Equal(t, `{"big":123456789012345678901234567890,"small":1e3,"price":1.10}`,
				string(rawjson.Get(o, "data", "custom")))
		}
		assert.Equal(t, got.link("next") == "", got.at("next") == "null")
	}
	assert.Len(t, seen, 5)
	unique := map[string]bool{}
	for _, id := range seen {
		unique[id] = true
	}
	assert.Len(t, unique, 5)
	assert.Equal(t, []string{"0"}, f.rows(`SELECT count(*)::text FROM reports`), "occurrences are not stored")
}

// Rollbar does not order the occurrences of one second by id. All are listed exactly once, even if others arrive
// meanwhile, and all are deleted.
func TestOccurrencesOfOneSecond(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	at := func(now time.Time) {
		f.sandbox.Set(func(s *sandbox.Settings) { s.Now = func() time.Time { return now } })
	}
	at(time.Now())
	storm := func() { assert.Equal(t, 201, f.do("POST", "/items", `{"message":"storm"}`).status) }
	for range 130 {
		storm()
	}
	item := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
	first := f.get(item + "/occurrences?limit=50")
	listed := first.list("occurrences")
	at(time.Now().Add(2 * time.Second))
	storm() // moves the others towards the next page
	for _, got := range f.walk(first.link("next"), "next") {
		listed = append(listed, got.list("occurrences")...)
	}
	seen := map[string]bool{}
	for _, o := range listed {
		seen[string(rawjson.Get(o, "id"))] = true
	}
	assert.Len(t, seen, len(listed))
	assert.Len(t, listed, 130)
	f.do("DELETE", item+"?max=130", "").requireProblem(409, "conflict")
	assert.Contains(t, f.do("DELETE", item+"?max=131", "").body, `"deleted_occurrences":131`)
	assert.Empty(t, f.get(item+"/occurrences").list("occurrences"))
}

func TestItemsSync(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 250)
	first := f.do("POST", "/items/sync", "")
	total := f.rows(`SELECT count(*)::text FROM reports`)[0]
	assert.Equal(t, fmt.Sprintf(`{"items":%s,"changed":%s,"pages":3}`+"\n", total, total), first.body)
	assert.Equal(t, fmt.Sprintf(`{"items":%s,"changed":0,"pages":3}`+"\n", total), f.do("POST", "/items/sync", "").body)
	assert.Equal(t, `{"items":100,"changed":0,"pages":1}`+"\n", f.do("POST", "/items/sync?recent=true", "").body)

	f.sandbox.Touch(f.sandbox.ItemIDs()[7]) // changes only its counters, and moves it to the front
	assert.Equal(t, `{"items":200,"changed":0,"pages":2}`+"\n", f.do("POST", "/items/sync?recent=true", "").body)
	f.sandbox.SetItem(f.sandbox.ItemIDs()[8], "status", "muted")
	assert.Equal(t, `{"items":200,"changed":1,"pages":2}`+"\n", f.do("POST", "/items/sync?recent=true", "").body)
	assert.Equal(t, []string{"1"}, f.rows(`SELECT count(*)::text FROM reports WHERE state = 'superseded'`))
}

func TestCreateRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 200, f.get("/reports").status)
	for body, want := range map[string]string{
		`{"data":{}}`: "data.body must be an object with exactly one of trace, trace_chain, message, crash_report; " +
			"data.environment is required",
		`{"data":{"environment":"e","body":{"message":{"body":"x"},"trace":{}}}}`: "data.body must be an object " +
			"with exactly one of",
		`{"data":{"environment":1,"level":"fatal","body":{"message":{}}}}`: "data.body.message.body is required " +
			"and must be a string; data.environment must be a string; data.level must be one of",
		`{"data":{"environment":"e","body":{"trace":{"frames":[]}}}}`: "data.body.trace.exception.class is required " +
			"and must be a string",
		`{"data":{"environment":"e","body":{"trace_chain":[]}}}`: "data.body.trace_chain must be an array of at " +
			"least one trace",
		`{"data":{"environment":"e","person":{"name":"x"},"body":{"crash_report":{"raw":"x"}}}}`: "data.person.id " +
			"is required",
		`{"data":{"environment":"e","uuid":"` + fmt.Sprintf("%037d", 0) +
			`","body":{"crash_report":{"raw":"x"}}}}`: "data.uuid must be a UUID, or another text of up to " +
			"36 Latin-1 characters",
		`{"data":{"environment":"e","uuid":"\u4e00","body":{"crash_report":{"raw":"x"}}}}`: "data.uuid must be a " +
			"UUID, or another text",
		`{"data":{"environment":"e","context":{},"body":{"crash_report":{"raw":"x"}}}}`: "data.context must " +
			"be a string",
		`{"data":{"environment":"","level":null,"timestamp":"now","person":{"id":""},"body":{"crash_report":` +
			`{"raw":"x"}}}}`: "data.environment must not be empty; data.level must be one of debug, info, warning, " +
			"error, critical; data.person.id is required in data.person; data.timestamp must be a number",
		`{"data":{"environment":"e","level":"","body":{"crash_report":{"raw":"x"}}}}`: "data.level must be one of",
		"{\"message\":\"a\xff\"}": "the body cannot be used: it is not UTF-8",
		`{"message":"x","code_version":"` + fmt.Sprintf("%041d", 0) +
			`"}`: "code_version must be from 1 to 40 characters long",
	} {
		assert.Contains(t, f.do("POST", "/items", body).requireProblem(400, "usage"), want)
	}
	assert.NotContains(t, fmt.Sprint(f.sandbox.Requests()), "POST")
	assert.Equal(t, []string{"0"}, f.rows(`SELECT count(*)::text FROM reports`))
}

// Every fault of Rollbar, for every operation on items but create, over HTTP and on the command line.
func TestFaultsOnItems(t *testing.T) {
	t.Parallel()
	faults := []struct {
		fault        sandbox.Fault
		status, exit int
		kind         string
	}{
		{sandbox.Down, 502, 7, "unavailable"},
		{sandbox.Error, 502, 7, "unavailable"},
		{sandbox.BadGateway, 502, 7, "unavailable"},
		{sandbox.Truncated, 502, 7, "unavailable"},
		{sandbox.Dropped, 502, 7, "unavailable"},
		{sandbox.Slow, 504, 7, "unavailable"},
		{sandbox.LimitedFar, 429, 6, "rate-limited"},
		{sandbox.Deactivated, 502, 5, "rollbar-auth"},
		{sandbox.Forbidden, 502, 5, "rollbar-auth"},
	}
	for _, fault := range faults {
		t.Run(string(fault.fault), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 3)
			if fault.fault == sandbox.Slow {
				f = newFixture(t, 3, withTimeout(50*time.Millisecond))
			}
			id := fmt.Sprint(f.sandbox.ItemIDs()[0])
			require.Equal(t, 200, f.get("/reports").status)
			f.sandbox.SetFault(fault.fault)
			for _, op := range []struct {
				method, path, body string
				args               []string
			}{
				{"GET", "/items", "", []string{"items", "list"}},
				{"GET", "/items/" + id, "", []string{"items", "get", id}},
				{"PATCH", "/items/" + id, `{"status":"muted"}`, []string{"items", "update", id, "-status", "muted"}},
				{"DELETE", "/items/" + id, "", []string{"items", "delete", "-yes", id}},
				{"GET", "/items/" + id + "/occurrences", "", []string{"items", "occurrences", id}},
				{"POST", "/items/sync", "", []string{"items", "sync"}},
			} {
				got := f.do(op.method, op.path, op.body)
				got.requireProblem(fault.status, fault.kind)
				assert.NotContains(t, got.body, "sandbox-", "a token")
				assert.Equal(t, fault.status == 429, got.header.Get("Retry-After") != "")
				shell := f.run(op.args...)
				assert.Equal(t, fault.exit, shell.exit, shell.err)
				assert.Empty(t, shell.out)
				assert.NotContains(t, shell.err, "sandbox-", "a token")
			}
			assert.Equal(t, []string{"0"}, f.rows(`SELECT count(*)::text FROM reports`))
		})
	}
}

// An answer without a usable result is a failure, not an empty list.
func TestUnusableAnswers(t *testing.T) {
	t.Parallel()
	for _, result := range []string{``, `,"result":null`, `,"result":"text"`, `,"result":[]`, `,"result":{}`,
		`,"result":{"items":{},"instances":null}`} {
		f := newFixture(t, 3)
		id := f.sandbox.ItemIDs()[0]
		next := f.app.rollbar.client.Transport
		f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/items/") || strings.HasSuffix(r.URL.Path, "/instances") {
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(`{"err":0` + result + `}`)),
					Header: http.Header{}, Request: r}, nil
			}
			return next.RoundTrip(r)
		})
		f.get("/items").requireProblem(502, "unavailable")
		f.do("POST", "/items/sync", "").requireProblem(502, "unavailable")
		f.get(fmt.Sprintf("/items/%d/occurrences", id)).requireProblem(502, "unavailable")
		f.do("DELETE", fmt.Sprintf("/items/%d", id), "").requireProblem(502, "unavailable")
		assert.NotContains(t, fmt.Sprint(f.sandbox.Requests()), "PATCH", "nothing is resolved that was not deleted")
	}
}

// Calls that wait at the same time use up the request's retry budget only once.
func TestDeleteLimitedForASecond(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	id := f.sandbox.ItemIDs()[0]
	for range 7 {
		f.sandbox.Touch(id)
	}
	f.sandbox.FailOnly("DELETE /instance/", 8, sandbox.LimitedNear)
	deleted := f.do("DELETE", fmt.Sprintf("/items/%d", id), "")
	assert.Equal(t, 200, deleted.status, deleted.body)
	assert.Equal(t, "8", deleted.at("deleted_occurrences"))
}

// An empty value is invalid: it does not mean all.
func TestEmptyFilters(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	for _, query := range []string{"environment=", "environment=&environment=a", "environment=a&environment=",
		"framework=", "query=", "assigned_user=", "status="} {
		f.get("/items?"+query).requireProblem(400, "usage")
		f.do("POST", "/items/sync?"+query, "").requireProblem(400, "usage")
	}
	for _, query := range []string{"environment=", "q=", "since=", "cursor=", "level="} {
		f.get("/reports?"+query).requireProblem(400, "usage")
	}
	assert.Equal(t, 2, f.run("items", "sync", "-environment", "").exit)
	assert.Empty(t, f.sandbox.Requests())
}

// A rate limit that ends soon is waited out.
func TestLimitedForASecond(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.sandbox.FailNext(1, sandbox.LimitedNear)
	assert.Equal(t, 200, f.get("/items").status)
	assert.Len(t, f.sandbox.Requests(), 2)
}

// The total shows that a page is the last, so that no empty page needs to be read.
func TestLastPageOfItems(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 150)
	assert.NotEmpty(t, f.get("/items").link("next"))
	last := f.get("/items?page=2")
	assert.Empty(t, last.link("next"), last.body)
	assert.NotEmpty(t, last.link("prev"))
	assert.Empty(t, f.get("/items?limit=150").link("next"), "larger pages may be short, but this one has all")
}

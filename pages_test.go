package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/sandbox"
)

// browserAccept is what browsers send.
const browserAccept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

// browse opens a page without following redirects.
func (f *fixture) browse(path string, header ...string) *answer {
	f.t.Helper()
	return f.submit("GET", path, nil, header...)
}

// submit sends a request as a browser does, with the form if it is not nil.
func (f *fixture) submit(method, path string, form url.Values, header ...string) *answer {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, strings.NewReader(form.Encode()))
	require.NoError(f.t, err)
	req.Header.Set("Accept", browserAccept)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(f.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(f.t, err)
	return &answer{f.t, req.URL, res.StatusCode, res.Header, string(text)}
}

// requirePage checks that the answer is a page with the status that loads nothing from elsewhere.
func (a *answer) requirePage(status int) {
	a.t.Helper()
	require.Equal(a.t, status, a.status, a.body)
	require.Equal(a.t, "text/html; charset=utf-8", a.header.Get("Content-Type"))
	require.Contains(a.t, a.header.Values("Vary"), "Accept")
	require.Equal(a.t, "no-referrer", a.header.Get("Referrer-Policy"))
	require.Contains(a.t, a.header.Get("Content-Security-Policy"), "default-src 'none'; style-src 'self'")
	require.NotContains(a.t, a.header.Get("Content-Security-Policy"), "unsafe-inline")
	const foreign = `(?i)<script|<style|<[^>]* (style|on\w+)=|="(/|\w+:[^:])`
	require.NotRegexp(a.t, foreign, strings.ReplaceAll(a.body, `="data:image`, ""))
}

// requireLead checks that the answer redirects to a path, by a relative reference.
func (a *answer) requireLead(path string) {
	a.t.Helper()
	require.Equal(a.t, http.StatusSeeOther, a.status, a.body)
	location := a.header.Get("Location")
	require.Regexp(a.t, `^\.`, location)
	reference, err := url.Parse(location)
	require.NoError(a.t, err)
	require.Equal(a.t, path, a.url.ResolveReference(reference).RequestURI())
}

func TestPageOrNot(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	f.do("POST", "/items/sync", "")
	item := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
	const page, problem = "text/html; charset=utf-8", "application/problem+json"
	for _, tt := range []struct{ path, accept, want string }{
		{"/items", browserAccept, page},
		{"/items", "text/html", page},
		{"/items", "TEXT/HTML;charset=utf-8", page},
		{"/items", "text/html, */*", page},
		{"/items", "application/json;q=0.9, text/html", page},
		{"/items", "text/html, application/x-ndjson;q=0.5", page},
		{"/items", "", "application/json"},
		{"/items", "*/*", "application/json"},
		{"/items", "text/*", "application/json"},
		{"/items", "text/html;q=0", "application/json"},
		{"/items", "text/html;q=0.8, */*", "application/json"},
		{"/items", "text/html, application/json", "application/json"},
		{"/items", "application/x-ndjson, text/html;q=0.5", ndjson},
		{item, browserAccept, page},
		{item + "/occurrences", browserAccept, page},
		{"/reports/1", browserAccept, page},
		{"/reports", browserAccept, page},
		{"/which", browserAccept, page},
		{"/which", "text/plain", "text/plain; charset=utf-8"},
		{"/check", browserAccept, page},
		{"/items?level=fatal", browserAccept, page},
		{"/items?level=fatal", "", problem},
		{"/nowhere", browserAccept, page},
		{"/openapi.json", browserAccept, "application/json"},
	} {
		answer := f.do("GET", tt.path, "", "Accept", tt.accept)
		assert.Equal(t, tt.want, answer.header.Get("Content-Type"), "%s as %q", tt.path, tt.accept)
		assert.Contains(t, answer.header.Values("Vary"), "Accept", "%s as %q", tt.path, tt.accept)
		if head := f.do("HEAD", tt.path, "", "Accept", tt.accept); assert.Equal(t, answer.status, head.status) {
			assert.Equal(t, answer.header.Get("Content-Type"), head.header.Get("Content-Type"), "HEAD %s", tt.path)
		}
	}
	f.browse("/").requireLead("/reports/summary")
	f.get("/").requireProblem(404, "not-found")
}

// hostileItem gives an item hostile texts and two stored states, and returns its path.
func hostileItem(f *fixture) string {
	f.t.Helper()
	id := f.sandbox.ItemIDs()[0]
	path := fmt.Sprintf("/items/%d", id)
	const evil = `"><script>alert(1)</script><img src=x onerror='alert(2)'> javascript:alert(3)`
	f.sandbox.SetItem(id, "title", evil)
	f.sandbox.SetItem(id, "environment", "javascript:alert(4)")
	require.Equal(f.t, 200, f.get(path).status)
	require.Equal(f.t, 200, f.do("PATCH", path, `{"status":"resolved","resolved_in_version":"4.2.0"}`).status)
	return path
}

// The pages are golden, except for what varies between runs: go test -update rewrites them.
func TestPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.do("POST", "/items/sync", "")
	item := hostileItem(f)
	for _, tt := range []struct {
		name, path string
		form       url.Values
		status     int
	}{
		{"item", item, nil, 200},
		{"items", "/items?level=&level=debug&level=critical&limit=2", nil, 200},
		{"report", "/reports/1", nil, 200},
		{"which", "/which", nil, 200},
		{"refused", "/reports?since=yesterday&q=%22%3E%3Cscript%3E", nil, 400},
		{"confirm", item, url.Values{"_method": {"DELETE"}, "max": {"7"}}, 200},
	} {
		method := "GET"
		if tt.form != nil {
			method = "POST"
		}
		page := f.submit(method, tt.path, tt.form)
		page.requirePage(tt.status)
		requireGolden(t, "page_"+tt.name+".html", withoutTimes(page.body))
	}
}

var (
	somePageTime = regexp.MustCompile(`\d+[mhd] ago|just now|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	someMark     = regexp.MustCompile(`request [A-Z0-9]{26}|style-\w+\.css|app dev\S*|(_timestamp&#34;: )\d+`)
)

func withoutTimes(page string) string {
	return someMark.ReplaceAllString(somePageTime.ReplaceAllString(page, "TIME"), "${1}MARK")
}

// A trace is shown with its most recent call first, and with the surrounding lines of code if they were sent.
func TestPageOfTraces(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.do("POST", "/items", `{"data":{"environment":"e","body":{"trace_chain":[
		{"exception":{"class":"Outer","message":"<b>broken</b>"},"frames":[
			{"filename":"main.py","lineno":9,"method":"run"},
			{"filename":"cart.py","lineno":17,"code":"  sum(<items>)","locals":{"n":1},
				"context":{"pre":["def total():"],"post":["","end"]}}]},
		{"exception":{"class":"Cause"},"frames":[{"filename":"price.py"}]}]}}}`).status)
	page := f.browse(fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0]))
	page.requirePage(200)
	at := -1
	for _, want := range []string{
		"Outer</b>: &lt;b&gt;broken", "cart.py:17", `16</span> def total():`,
		`class="current"><span class="number">17</span>   sum(&lt;items&gt;)`,
		`18</span> `, `19</span> end`, "locals", "main.py:9", "run", "Cause", "price.py",
	} {
		next := strings.Index(page.body, want)
		require.Greater(t, next, at, "%s\n%s", want, page.body)
		at = next
	}
	report := f.browse("/reports/1") // of the created occurrence
	report.requirePage(200)
	assert.Contains(t, report.body, "cart.py:17")
}

// The page of an occurrence is rendered whatever it holds in place of a trace.
func TestPagesOfOddOccurrences(t *testing.T) {
	t.Parallel()
	for _, thing := range []string{
		`{}`, `{"id":5,"data":{"body":7}}`,
		`{"id":5,"data":{"body":{"trace":"x","trace_chain":{},"message":[],"crash_report":null}}}`,
		`{"data":{"body":{"trace":{"frames":[1,"x",null,[],{"filename":{},"lineno":"9","code":[],` +
			`"context":{"pre":"x","post":7}}],"exception":[]}}}}`,
		`{"id":"x","data":{"body":{}},"level":{},"timestamp":-1e400,"a_timestamp":9999999999999999,"item_id":1.5}`,
	} {
		for _, c := range []*Command{itemsGetCmd, reportsGetCmd} {
			var text bytes.Buffer
			w := &response{ResponseWriter: httptest.NewRecorder(), request: &http.Request{}}
			p := &page{server: &server{app: &App{}}, w: w, command: c, Root: "./"}
			p.showThing(json.RawMessage(thing))
			assert.NoError(t, pageTemplates().ExecuteTemplate(&text, "page", p), thing)
		}
	}
}

func TestForms(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	id := f.sandbox.ItemIDs()[0]
	item := fmt.Sprintf("/items/%d", id)
	method := func(m string, more ...string) url.Values {
		form := url.Values{"_method": {m}, "title": {""}, "level": {""}}
		for i := 0; i < len(more); i += 2 {
			form.Set(more[i], more[i+1])
		}
		return form
	}
	f.submit("POST", item, method("PATCH", "status", "resolved", "assigned_user_id", "null")).requireLead(item)
	assert.Equal(t, `"resolved"`, f.get(item).at("status"))
	f.submit("POST", item, method("PUT", "status", "active")).requireLead(item)
	made := url.Values{"message": {"made by a form"}, "custom": {`{"a":1}`}, "data": {""}}
	f.submit("POST", "/items", made).requireLead("/reports")
	assert.Equal(t, `{"a":1}`, f.get("/reports?state=delivered").at("reports", "0", "data", "custom"))
	report := f.browse("/reports/" + f.get("/reports?state=delivered").at("reports", "0", "id"))
	assert.Contains(t, report.body, "<pre dir=\"auto\">made by a form</pre>")
	assert.NotContains(t, report.body, "/occurrences/", "it has the id of a report")
	f.submit("POST", "/items/sync", url.Values{"level": {"debug", "error", ""},
		"recent": {"true"}}).requireLead("/items")
	f.submit("POST", "/reports/deliver", url.Values{}).requireLead("/reports")
	byCounter := f.submit("POST", "/items/1?by=counter", method("PATCH", "level", "info"))
	byCounter.requireLead("/items/1?by=counter")

	for _, id := range f.sandbox.ItemIDs() {
		action := fmt.Sprintf(`<form action="../items/%d" method="post">`, id)
		page := f.submit("GET", fmt.Sprintf("/items/%d", id), nil).body
		assert.Equal(t, 3, strings.Count(page, action), "to resolve it, to change it and to delete it")
	}

	made.Set("message", "")
	made.Set("title", strings.Repeat(`"`, 100_000))
	long := f.submit("POST", "/items", made)
	long.requirePage(400)
	assert.Less(t, len(long.body), 16<<10)
	bad := method("PATCH", "title", `<"x">`, "level", "fatal")
	tests := []struct {
		name, path string
		form       url.Values
		status     int
		want       string
	}{
		{"bad value", item, bad, 400, "level must be one of debug"},
		{"what was typed is kept", item, bad, 400, `value="&lt;&#34;x&#34;&gt;"`},
		{"unknown field", "/items", url.Values{"stauts": {"active"}}, 400, "unknown field &#34;stauts&#34;"},
		{"method that no form has", item, url.Values{"_method": {"GET"}}, 400, "_method must be PUT, PATCH or DELETE"},
		{"method that the route lacks", "/items", url.Values{"_method": {"PATCH"}}, 405, "/items takes "},
		{"nothing at all", "/items", url.Values{}, 400, "message is required"},
		{"no such item", "/items/999", url.Values{"_method": {"PATCH"}, "level": {"info"}}, 404, "Not found"},
		{"route that reads", "/which", url.Values{}, 405, "/which takes "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			page := f.submit("POST", tt.path, tt.form)
			page.requirePage(tt.status)
			assert.Contains(t, page.body, tt.want)
		})
	}
	f.do("POST", "/items", `{"message":"x","_method":"DELETE"}`).requireProblem(400, "usage")
	f.do("POST", "/items", "message=x").requireProblem(400, "usage") // nobody prefers a page
}

// Forms ask for confirmation where the command line does.
func TestFormsAsk(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	f.do("POST", "/items/sync", "")
	id := f.sandbox.ItemIDs()[0]
	item := fmt.Sprintf("/items/%d", id)
	form := url.Values{"_method": {"DELETE"}, "item_id": {fmt.Sprint(id)}, "state": {"superseded"}}
	asked := f.submit("POST", "/reports", form)
	asked.requirePage(200)
	assert.Contains(t, asked.body, "Permanently delete 0 reports")
	for name := range form {
		assert.Contains(t, asked.body, fmt.Sprintf(`<input type="hidden" name="%s" value="%s">`, name, form.Get(name)))
	}
	form.Set("_confirm", "no")
	f.submit("POST", "/reports", form).requirePage(200)
	form.Set("_confirm", "yes")
	form.Del("state")
	f.submit("POST", "/reports", form).requireLead("/reports")
	assert.Len(t, f.get("/reports").list("reports"), 1)

	asked = f.submit("POST", item, url.Values{"_method": {"DELETE"}})
	asked.requirePage(200)
	assert.Equal(t, `"active"`, f.get(item).at("status"))
	f.submit("POST", item, url.Values{"_method": {"DELETE"}, "max": {"0"}}).requirePage(400) // asks nothing
	f.submit("POST", item, url.Values{"_method": {"DELETE"}, "_confirm": {"yes"}}).requireLead(item)
	assert.Equal(t, `"resolved"`, f.get(item).at("status"))
}

// basicAuth returns the Authorization header of a browser that is signed in.
func basicAuth(password string) string {
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth("anybody", password)
	return r.Header.Get("Authorization")
}

func TestSigningIn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) {
		c.apiTokens, c.apiReadTokens = []string{"first-token", "second-token"}, []string{"read-token"}
	})
	unknown := f.browse("/items")
	unknown.requirePage(401)
	assert.Equal(t, `Basic realm="app", charset="UTF-8"`, unknown.header.Get("WWW-Authenticate"))
	assert.NotContains(t, unknown.body, "reports", "what the caller may not do is not offered")
	f.browse("/which").requirePage(200)
	style := regexp.MustCompile(`style-\w+\.css`).FindString(unknown.body)
	sheet := f.get("/" + style)
	assert.Equal(t, 200, sheet.status)
	assert.Equal(t, "text/css; charset=utf-8", sheet.header.Get("Content-Type"))

	f.browse("/items", "Authorization", basicAuth("third-token")).requirePage(401)
	reader := []string{"Authorization", basicAuth("read-token")}
	item := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
	assert.NotContains(t, f.browse(item, reader...).body, `method="post"`, "what the caller may not do is not offered")
	f.submit("POST", "/items", url.Values{"message": {"x"}}, reader...).requirePage(403)
	assert.Contains(t, f.browse(item, "Authorization", basicAuth("first-token")).body, `method="post"`)

	f.browse("/items", "Authorization", basicAuth("second-token")).requirePage(200)
	assert.Equal(t, 200, f.do("GET", "/items", "", "Authorization", basicAuth("first-token")).status)

	form := url.Values{"message": {"x"}}
	for _, tt := range []struct {
		name, header, value, authorization string
		status                             int
	}{
		{"another origin, signed in", "Origin", "https://attacker.example.com", basicAuth("first-token"), 403},
		{"another site, signed in", "Sec-Fetch-Site", "cross-site", basicAuth("first-token"), 403},
		{"another site below ours, signed in", "Sec-Fetch-Site", "same-site", basicAuth("first-token"), 403},
		{"no origin to tell, signed in", "Origin", "null", basicAuth("first-token"), 403},
		{"our page", "Sec-Fetch-Site", "same-origin", basicAuth("first-token"), 303},
		{"our page, by its origin", "Origin", f.url, basicAuth("first-token"), 303},
		{"no browser, by Basic", "X-Nothing", "", basicAuth("first-token"), 303},
		{"another origin, by Bearer", "Origin", "https://attacker.example.com", "Bearer first-token", 303},
		{"nobody", "Sec-Fetch-Site", "same-origin", "", 401},
	} {
		answer := f.submit("POST", "/items", form, tt.header, tt.value, "Authorization", tt.authorization)
		assert.Equal(t, tt.status, answer.status, tt.name)
	}
	header := []string{"Authorization", basicAuth("first-token"), "Sec-Fetch-Site", "cross-site"}
	f.do("DELETE", "/reports", "", header...).requireProblem(403, "auth")
	f.browse("/items", header...).requirePage(200)
}

// An operation that is added to the registry gets its page, its form and its links.
func TestPagesOfNewOperations(t *testing.T) {
	t.Parallel()
	type listInput struct {
		Colour Opt[string] `query:"colour" enum:"red,blue" help:"only these"`
		Since  Opt[Moment] `query:"since" help:"only those since then"`
		Page   int64       `query:"page" default:"1" min:"1" help:"number of the page"`
	}
	type oneInput struct {
		ID int64 `path:"id" min:"1" help:"the widget's id"`
	}
	type paintInput struct {
		ID     int64  `path:"id" min:"1" help:"the widget's id"`
		Colour string `json:"colour" enum:"red,blue" help:"the new colour"`
	}
	widget := json.RawMessage(`{"id":7,"colour":"red","last_part_id":3,"made_timestamp":1700000000}`)
	list := func(context.Context, *App, listInput) (*List, error) {
		rows := sliceRows([]json.RawMessage{widget}, func(w json.RawMessage) json.RawMessage { return w })
		return &List{Name: "widgets", Rows: rows, Next: url.Values{"page": {"2"}},
			Rest: json.RawMessage(`{"total":9}`)}, nil
	}
	one := func(context.Context, *App, oneInput) (json.RawMessage, error) { return widget, nil }
	paint := func(context.Context, *App, paintInput) (json.RawMessage, error) { return widget, nil }
	added := []*Command{
		whichCmd,
		{Name: "widgets.list", Route: "GET /widgets", Short: "List widgets", Run: typed(list),
			Columns: "id colour last_part_id made_timestamp"},
		{Name: "widgets.get", Route: "GET /widgets/{id}", Short: "Show a widget", Run: typed(one)},
		{Name: "widgets.paint", Route: "POST /widgets/{id}/paint", Short: "Paint a widget", Changes: true,
			Run: typed(paint)},
		{Name: "parts.get", Route: "GET /parts/{id}", Short: "Show a part", Run: typed(one)},
		{Name: "cache.clear", Route: "DELETE /cache", Short: "Clear the cache", Changes: true, Run: typed(which)},
	}
	f := newFixture(t, 0)
	f.serve(newHandler(f.app, added, f.config))
	requireAll := func(path string, wants ...string) {
		t.Helper()
		page := f.browse(path)
		page.requirePage(200)
		for _, want := range append(wants, `>widgets</a>`, `>which</a>`) {
			assert.Contains(t, page.body, want, path)
		}
	}
	requireAll("/widgets?colour=red", `<form action="./widgets" method="get">`, `<option selected>red</option>`,
		`name="since"`, `name="page"`, `<a href="./widgets/7">7</a>`, `<a href="./parts/3">3</a>`,
		`<time datetime="2023-11-14T22:13:20Z"`, `href="?colour=red&amp;page=2"`, "total 9")
	requireAll("/widgets/7", `<form action="../widgets/7/paint" method="post">`, `<select name="colour">`,
		"Paint a widget", `<a href="../widgets">`)
	requireAll("/which", `<form action="./cache" method="post">`, `name="_method" value="DELETE"`)
	f.submit("POST", "/widgets/7/paint", url.Values{"colour": {"blue"}}).requireLead("/widgets/7")

	f.serve(newHandler(f.app, allowed(added, true), f.config))
	assert.NotContains(t, f.browse("/widgets/7").body, "paint", "what READ_ONLY leaves out is not offered")
	f.submit("POST", "/widgets/7/paint", url.Values{"colour": {"blue"}}).requirePage(404)
}

// The pages of lists link to their neighbours.
func TestPagesOfLists(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 45)
	f.do("POST", "/items/sync", "")
	page := f.browse("/reports?limit=20&level=&q=")
	page.requirePage(200)
	assert.Equal(t, 20+1, strings.Count(page.body, "<tr>"))
	sameEnd := f.browse("/reports?q=nothing==&limit=20&item_id=")
	assert.Contains(t, sameEnd.body, `value="nothing=="`, "a value may have the sign that is behind the name")
	next := regexp.MustCompile(`rel="next" href="(\?[^"]*)"`).FindStringSubmatch(page.body)
	require.NotNil(t, next)
	assert.NotContains(t, next[1], "level", "an empty field is none")
	second := f.browse("/reports" + strings.ReplaceAll(next[1], "&amp;", "&"))
	second.requirePage(200)
	assert.Contains(t, second.body, `rel="prev"`)
	assert.Contains(t, f.browse("/reports?q=nothing-like-it").body, "There is nothing here.")

	var packed bytes.Buffer
	zipper := gzip.NewWriter(&packed)
	_, _ = io.WriteString(zipper, page.body)
	_, _ = zipper.Write(styleSheet)
	require.NoError(t, zipper.Close())
	assert.Less(t, packed.Len(), 14<<10)
}

// The summary has charts, with a table for those who cannot see them, and links to what it counts.
func TestPageOfTheSummary(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 8)
	f.do("POST", "/items/sync", "")
	page := f.browse("/reports/summary?since=7d")
	page.requirePage(200)
	assert.Contains(t, page.body, `<h1>8 items</h1>`)
	assert.Contains(t, page.body, `<a href="../reports?state=current&amp;status=active">active</a></th><td>5</td>`)
	assert.Contains(t, page.body, `role="img" aria-label="New items on each of 8 days;`)
	assert.Contains(t, page.body, `height="100"><title>`)
	assert.Contains(t, page.body, "The days as a table")
	assert.Contains(t, page.body, `<a href="../items/1705000008">`)
	assert.Contains(t, f.browse("/reports/summary?since=3000d").body, "since must be")
}

// The page of an item says what it cannot show.
func TestPageOfAnItemInParts(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) { c.DatabaseURL = "" })
	item := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
	page := f.browse(item)
	page.requirePage(200)
	assert.Contains(t, page.body, "DATABASE_URL is not set")
	f.sandbox.SetFault(sandbox.BadGateway)
	f.browse(item).requirePage(502)
}

// While Rollbar is down, the page of an item shows what was stored.
func TestPageOfAnItemFromTheArchive(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	item := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[1])
	f.browse(item).requirePage(200) // stores its occurrences
	f.sandbox.SetFault(sandbox.BadGateway)
	page := f.browse(item)
	page.requirePage(200)
	assert.Equal(t, "archive", page.header.Get("Report-Source"))
	assert.Contains(t, page.body, "This is from the archive")
	assert.Contains(t, page.body, "app/price.py:4")
	assert.Contains(t, page.body, "report 1")
	assert.Contains(t, page.body, fmt.Sprintf(`href="../occurrences?item_id=%d"`, f.sandbox.ItemIDs()[1]))
}

// What surrounds a list is kept, but only for the same caller and the same state of the service.
func TestFrames(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3, func(c *Config) { c.apiTokens, c.apiReadTokens = []string{"all"}, []string{"reader"} })
	as := func(token, path string) string {
		page := f.browse(path, "Authorization", "Bearer "+token)
		page.requirePage(200)
		return page.body
	}
	const offersCreate, isUnstored = `name="fingerprint"`, "none of this is stored"
	for range 2 {
		assert.Contains(t, as("all", "/items"), offersCreate)
		assert.NotContains(t, as("reader", "/items"), offersCreate)
	}
	for _, id := range f.sandbox.ItemIDs() {
		assert.Contains(t, as("all", fmt.Sprintf("/items/%d/occurrences", id)),
			fmt.Sprintf(`› <a href="../../items/%d"`, id))
	}
	f.exec(`ALTER TABLE reports RENAME TO hidden`)
	for _, path := range []string{"/items", "/items?page=1"} {
		assert.Contains(t, as("all", path), isUnstored)
	}
	f.exec(`ALTER TABLE hidden RENAME TO reports`)
	assert.NotContains(t, as("all", "/items?page=1"), isUnstored)
}

// A list that fails before anything was sent gives the page of its failure; later, the page breaks off.
func TestPageOfAListThatFailsHalfway(t *testing.T) {
	t.Parallel()
	for rows, status := range map[int]int{10: 503, 10_000: 0} {
		f := newFixture(t, 0)
		failing := func(context.Context, *App, struct{}) (*List, error) {
			return &List{Name: "rows", Rows: func(yield func(json.RawMessage, error) bool) {
				for range rows {
					if !yield(json.RawMessage(`{"id":"some text"}`), nil) {
						return
					}
				}
				yield(nil, fail(unavailable, "gone"))
			}}, nil
		}
		list := &Command{Name: "rows.list", Route: "GET /rows", Columns: "id", Run: typed(failing)}
		f.serve(newHandler(f.app, []*Command{list}, &Config{}))
		if status > 0 {
			page := f.browse("/rows")
			page.requirePage(status)
			assert.Contains(t, page.body, "gone")
			assert.NotContains(t, page.body, "some text")
			continue
		}
		req, err := http.NewRequestWithContext(t.Context(), "GET", f.url+"/rows", nil)
		require.NoError(t, err)
		req.Header.Set("Accept", "text/html")
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	}
}

func TestKeptFramesAreFewAndShort(t *testing.T) {
	t.Parallel()
	s := newHandler(newFixture(t, 0).app, commands, &Config{}).(*server)
	browse := func(path string) {
		r := httptest.NewRequest("GET", path, nil)
		r.Host = "localhost"
		r.Header.Set("Accept", "text/html")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		require.Equal(t, 200, w.Code)
	}
	for n := range 600 {
		browse(fmt.Sprint("/reports?item_id=", n+1))
	}
	browse("/reports?q=" + strings.Repeat("a", 15000))
	kept := 0
	s.frames.Range(func(_, value any) bool {
		kept++
		return assert.Less(t, len(value.(frame).before), 16<<10)
	})
	assert.Positive(t, kept)
	assert.Less(t, kept, 500)
}

// Hostile text is escaped in every kind of value.
func TestValueIsEscaped(t *testing.T) {
	t.Parallel()
	const hostile, escaped = `"><b>'&`, `&#34;&gt;&lt;b&gt;&#39;&amp;`
	for kind, m := range map[string]member{
		"text": {}, "time": {At: "2026-11-28T15:23:03Z"}, "link": {URL: "./" + hostile}, "folded": {IsLong: true},
		"tag": {IsTag: true},
	} {
		m.Text = hostile
		html := string(m.HTML())
		assert.NotContains(t, html, "<b>", kind)
		assert.NotContains(t, html, "'", kind)
		assert.Contains(t, html, ">"+escaped+"</", kind)
	}
}

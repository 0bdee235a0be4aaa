package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWhich(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	got := f.get("/which")
	assert.Equal(t, 200, got.status)
	assert.Equal(t, "text/plain; charset=utf-8", got.header.Get("Content-Type"))
	assert.Regexp(t, `^app \S+\n$`, got.body)
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	for _, path := range []string{"/which", "/items", "/nowhere"} {
		got := f.get(path)
		assert.Equal(t, "nosniff", got.header.Get("X-Content-Type-Options"))
		assert.Equal(t, "no-store", got.header.Get("Cache-Control"))
		assert.NotEmpty(t, got.header.Get("X-Request-Id"))
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	id := f.sandbox.itemIDs()[0]
	for _, path := range []string{"/which", "/check", "/items", fmt.Sprintf("/items/%d", id), fmt.Sprintf("/items/%d/occurrences", id), "/reports", "/reports/1"} {
		get, head := f.get(path), f.do("HEAD", path, "")
		assert.Equal(t, 200, head.status, path)
		assert.Empty(t, head.body, path)
		for _, name := range []string{"Content-Type", "Link", "ETag"} { // but no length: that would take the body's work
			assert.Equal(t, get.header.Values(name), head.header.Values(name), path)
		}
	}
}

func TestWrongMethod(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	for path, allow := range map[string]string{
		"/items":      "GET, HEAD, POST",
		"/items/5":    "DELETE, GET, HEAD, PATCH, PUT",
		"/items/sync": "POST",
		"/reports":    "DELETE, GET, HEAD",
		"/which":      "GET, HEAD",
	} {
		got := f.do("OPTIONS", path, "")
		assert.Contains(t, got.requireProblem(405, "usage"), path+" takes ")
		for method := range strings.SplitSeq(allow, ", ") {
			assert.Contains(t, got.header.Get("Allow"), method, path)
		}
	}
}

func TestUnknownRoute(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	assert.Equal(t, "there is no route GET /nowhere", f.get("/nowhere").requireProblem(404, "not-found"))
	f.get("/items/").requireProblem(404, "not-found")
}

func TestRequestsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	item := fmt.Sprintf("/items/%d", f.sandbox.itemIDs()[0])
	require.Equal(t, 200, f.get("/reports").status)
	const form, text = "application/x-www-form-urlencoded", "text/plain"
	tests := []struct {
		name, method, path, kind, body string
		status                         int
		want                           string
	}{
		{"typo in a query parameter", "GET", "/items?stauts=active", "", "", 400, `unknown query parameter "stauts", did you mean "status"? (valid: status, level, environment, framework, query, assigned_user, page, limit)`},
		{"parameter of the command line alone", "GET", "/items?all=true", "", "", 400, `unknown query parameter "all"`},
		{"typo in a body field", "PATCH", item, form, `{"stauts":"active"}`, 400, `unknown field "stauts", did you mean "status"?`},
		{"field with capitals", "PATCH", item, form, `{"Status":"active"}`, 400, `unknown field "Status", did you mean "status"?`},
		{"parameter of the body in the query", "PATCH", item + "?status=active", "", "", 400, `unknown query parameter "status": there are none here`},
		{"body where none belongs", "POST", "/items/sync", form, `{"recent":true}`, 400, `unknown field "recent": there are none here`},
		{"malformed id", "GET", "/items/abc", "", "", 400, "id must be a whole number at least 1, since by is id"},
		{"id beyond int64", "GET", "/reports/99999999999999999999", "", "", 400, "id must be a whole number at least 1"},
		{"malformed uuid", "GET", "/items/123?by=uuid", "", "", 400, "id must be a UUID, since by is uuid"},
		{"value not of the enum", "GET", "/items?level=error&level=fatal", "", "", 400, "level must be one of debug, info, warning, error, critical"},
		{"limit above the maximum", "GET", "/reports?limit=1001", "", "", 400, "limit must be a whole number from 1 to 1000"},
		{"cursor that is none", "GET", "/reports?cursor=x", "", "", 400, "cursor must be a cursor that an earlier page gave as next"},
		{"cursor that is none, of occurrences", "GET", item + "/occurrences?cursor=x", "", "", 400, "cursor must be a cursor that an earlier page gave as next"},
		{"search without a word", "GET", "/reports?q=-", "", "", 400, "q must hold a word: letters or digits"},
		{"query that is none", "GET", "/items?query=%zz", "", "", 400, "the query cannot be read"},
		{"queued reports to be cleaned", "DELETE", "/reports?state=queued", "", "", 400, "state must be one of current, superseded, delivered, rejected"},
		{"body that is no JSON", "POST", "/items", form, `message=x`, 400, "the body cannot be used: it is not JSON"},
		{"body that is no object", "POST", "/items", form, `[1]`, 400, "the body cannot be used: it is not a JSON object"},
		{"body with something behind it", "POST", "/items", form, `{"message":"x"} {}`, 400, "the body cannot be used: it is not JSON"},
		{"field given twice", "POST", "/items", form, `{"message":"x","message":"y"}`, 400, `the body cannot be used: "message" is given twice`},
		{"body declared as text", "POST", "/items", text, `{"message":"x"}`, 415, "curl --json"},
		{"body over the bound", "POST", "/items", form, `{"message":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "the body is larger than 1048576 bytes"},
		{"nothing to change", "PATCH", item, form, `{}`, 400, "there is nothing to change: give at least one of status, level, title"},
		{"version without the status", "PATCH", item, form, `{"resolved_in_version":"1.2"}`, 400, "resolved_in_version is valid only together with status resolved"},
		{"null where it means nothing", "PATCH", item, form, `{"title":null}`, 400, "title must be a string"},
		{"message missing", "POST", "/items", form, `{}`, 400, "message is required, or else data with Rollbar's own payload"},
		{"message empty", "POST", "/items", form, `{"message":""}`, 400, "message must be at least 1 characters long"},
		{"payload and more", "POST", "/items", form, `{"message":"x","data":{}}`, 400, "data is Rollbar's own payload: nothing else can be given beside it"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := len(f.sandbox.requests())
			var header []string
			if test.kind != "" {
				header = []string{"Content-Type", test.kind}
			}
			got := f.do(test.method, test.path, test.body, header...)
			assert.Contains(t, got.requireProblem(test.status, "usage"), test.want)
			assert.Len(t, f.sandbox.requests(), before, "Rollbar was not asked")
		})
	}
	assert.Equal(t, []string{"0"}, f.rows(`SELECT count(*)::text FROM reports`), "nothing was recorded")
}

func TestValidationErrorsByField(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	got := f.get("/items?page=0&limit=x")
	got.requireProblem(400, "usage")
	assert.JSONEq(t, `[
		{"field":"page","message":"page must be a whole number at least 1"},
		{"field":"limit","message":"limit must be a whole number from 1 to 5000"}]`, got.at("errors"))
}

// A plain `curl -d` declares a form, and a body may declare nothing.
func TestBodiesTakenAsJSON(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	for _, kind := range []string{"", "application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded"} {
		got := f.do("POST", "/items", ` {"message": "x"} `, "Content-Type", kind)
		assert.Equal(t, 201, got.status, "%q: %s", kind, got.body)
	}
}

func TestAPIToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) { c.APIToken = "first-token, second-token" })
	for _, path := range []string{"/which", "/check"} {
		assert.Equal(t, 200, f.get(path).status)
	}
	for _, header := range []string{"", "first-token", "Bearer", "Bearer third-token", "Bearer first-token, second-token", "Basic first-token"} {
		got := f.do("GET", "/items", "", "Authorization", header)
		detail := got.requireProblem(401, "auth")
		assert.Equal(t, "Bearer", got.header.Get("WWW-Authenticate"))
		assert.NotContains(t, detail, "first-token")
	}
	f.get("/nowhere").requireProblem(401, "auth")
	for _, token := range []string{"first-token", "second-token"} {
		assert.Equal(t, 200, f.do("GET", "/items", "", "Authorization", "Bearer "+token).status)
	}
	assert.Equal(t, 200, f.do("GET", "/items", "", "Authorization", "Bearer first-token", "Host", "errors.example.com").status)
}

// Without a token, the browser of somebody on this machine is an attacker's tool.
func TestBrowsersWithoutAPIToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	for _, host := range []string{"errors.example.com", "errors.example.com:8080", "192.0.2.1", ""} {
		if host != "" {
			f.do("GET", "/items", "", "Host", host).requireProblem(421, "auth")
		}
	}
	for _, host := range []string{"localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"} {
		assert.Equal(t, 200, f.do("GET", "/items", "", "Host", host).status, host)
	}
	f.do("POST", "/items", `{"message":"x"}`, "Sec-Fetch-Site", "cross-site").requireProblem(403, "auth")
	f.do("DELETE", "/reports", "", "Origin", "https://attacker.example.com").requireProblem(403, "auth")
	assert.Equal(t, 200, f.do("GET", "/items", "", "Sec-Fetch-Site", "cross-site").status)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	postgres := startTestPostgres(t, "")
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL = postgres.URL() })
	requireCheck := func(status int, body string) {
		t.Helper()
		require.Eventually(t, func() bool {
			got := f.get("/check")
			return got.status == status && got.body == body+"\n"
		}, waitLimit, waitTick)
	}
	requireCheck(200, `{"status":"OK"}`)
	postgres.halt(t, "immediate")
	requireCheck(503, `{"status":"KO"}`)
	assert.Equal(t, shell{7, `{"status":"KO"}` + "\n", ""}, f.run("check"))
	postgres.resume(t)
	requireCheck(200, `{"status":"OK"}`)
	assert.Equal(t, shell{0, `{"status":"OK"}` + "\n", ""}, f.run("check"))
}

func ids(rows []json.RawMessage) string {
	var ids []string
	for _, row := range rows {
		ids = append(ids, string(member(row, "id")))
	}
	return strings.Join(ids, " ")
}

// Pages are reached by their links alone, none twice, in both directions.
func TestPagesByLinks(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 250)
	tests := []struct{ name, path, list string }{
		{"items", "/items", "items"},
		{"items with a limit", "/items?limit=60", "items"},
		{"reports", "/reports", "reports"},
		{"reports with a filter", "/reports?limit=7&level=error", "reports"},
		{"reports of a length that divides", "/reports?limit=25", "reports"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var forth, back []string
			seen := map[string]bool{}
			path, last := test.path, ""
			for path != "" {
				got := f.get(path)
				require.Equal(t, 200, got.status, got.body)
				page := got.list(test.list)
				for _, row := range page {
					id := string(member(row, "id"))
					require.False(t, seen[id], "%s is there twice", id)
					seen[id] = true
				}
				if len(page) > 0 {
					forth = append(forth, ids(page))
					last = path
				}
				path = got.link("next")
			}
			for path := last; path != ""; {
				got := f.get(path)
				back = append(back, ids(got.list(test.list)))
				path = got.link("prev")
			}
			slices.Reverse(back)
			assert.Equal(t, forth, back)
			assert.NotEmpty(t, seen)
		})
	}
}

// An answer that fails half way must not look like a whole one.
func TestListThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	row := json.RawMessage(`{"x":"` + strings.Repeat("x", 1<<10) + `"}`)
	failing := func(rows int) http.HandlerFunc {
		list := &List{
			Name: "rows",
			Rest: func() json.RawMessage { return json.RawMessage(`{}`) },
			Rows: func(yield func(json.RawMessage, error) bool) {
				for range rows {
					yield(row, nil)
				}
				yield(nil, fail(unavailable, "gone"))
			},
		}
		s := newHandler(f.app, nil, nil).(*server)
		s.mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { s.respond(w.(*exchange), r, list) })
		return s.ServeHTTP
	}
	f.serve(failing(10))
	assert.Equal(t, "gone", f.get("/").requireProblem(503, "unavailable"), "nothing was sent before it failed")
	f.serve(failing(1000))
	_, err := http.Get(f.url + "/")
	if err == nil {
		res, _ := http.Get(f.url + "/")
		_, err = res.Body.Read(make([]byte, 2<<20))
		for err == nil {
			_, err = res.Body.Read(make([]byte, 2<<20))
		}
	}
	assert.ErrorContains(t, err, "EOF")
	assert.NotEqual(t, "EOF", err.Error())
}

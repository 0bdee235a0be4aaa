package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/devpg/devpgtest"
	"app/internal/rawjson"
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
	id := f.sandbox.ItemIDs()[0]
	for _, path := range []string{"/which", "/check", "/items", fmt.Sprintf("/items/%d", id),
		fmt.Sprintf("/items/%d/occurrences", id), "/reports", "/reports/1"} {
		get, head := f.get(path), f.do("HEAD", path, "")
		assert.Equal(t, 200, head.status, path)
		assert.Empty(t, head.body, path)
		// no Content-Length: it would take the work of making the body
		for _, name := range []string{"Content-Type", "Link", "ETag"} {
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
	for path, want := range map[string]string{
		"/nowhere": "", "/items/": `, did you mean "/items"?`, "/itmes": `, did you mean "/items"?`,
		"/reprots/7": `, did you mean "/reports/7"?`, "/reports/../wich": `, did you mean "/which"?`,
	} {
		assert.Equal(t, "there is no route GET "+path+want, f.get(path).requireProblem(404, "not-found"))
	}
}

func TestRequestsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	item := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
	require.Equal(t, 200, f.get("/reports").status)
	const form, text = "application/x-www-form-urlencoded", "text/plain"
	tests := []struct {
		name, method, path, kind, body string
		status                         int
		want                           string
	}{
		{"typo in a query parameter", "GET", "/items?stauts=active", "", "", 400,
			`unknown query parameter "stauts", did you mean "status"? (valid: status, level, environment, framework, ` +
				`query, assigned_user, page, limit)`},
		{"parameter of the command line alone", "GET", "/items?all=true", "", "", 400, `unknown query parameter "all"`},
		{"typo in a body field", "PATCH", item, form, `{"stauts":"active"}`, 400,
			`unknown field "stauts", did you mean "status"?`},
		{"field with capitals", "PATCH", item, form, `{"Status":"active"}`, 400,
			`unknown field "Status", did you mean "status"?`},
		{"parameter of the body in the query", "PATCH", item + "?status=active", "", "", 400,
			`"status" belongs in the JSON body`},
		{"body where none belongs", "POST", "/items/sync", form, `{"recent":true}`, 400,
			`"recent" belongs in the query`},
		{"plus sign", "GET", "/items?page=%2B5", "", "", 400, "page must be a whole number at least 1"},
		{"leading zeros", "GET", "/reports/007", "", "", 400, "id must be a whole number at least 1"},
		{"fraction in JSON", "PATCH", item, form, `{"assigned_user_id":1.5}`, 400,
			"assigned_user_id must be a whole number, or null"},
		{"huge exponent in JSON", "PATCH", item, form, `{"assigned_user_id":1e999999999}`, 400,
			"assigned_user_id must be a whole number, or null"},
		{"malformed id", "GET", "/items/abc", "", "", 400, "id must be a whole number at least 1, since by is id"},
		{"id beyond int64", "GET", "/reports/99999999999999999999", "", "", 400,
			"id must be a whole number at least 1"},
		{"malformed uuid", "GET", "/items/123?by=uuid", "", "", 400, "id must be a UUID, since by is uuid"},
		{"value not of the enum", "GET", "/items?level=error&level=fatal", "", "", 400,
			"level must be one of debug, info, warning, error, critical"},
		{"limit above the maximum", "GET", "/reports?limit=1001", "", "", 400,
			"limit must be a whole number from 1 to 1000"},
		{"cursor that is none", "GET", "/reports?cursor=x", "", "", 400,
			"cursor must be a cursor that an earlier page gave as next"},
		{"cursor with a plus sign, +5.0", "GET", "/reports?cursor=KzUuMA", "", "", 400,
			"cursor must be a cursor that an earlier page gave as next"},
		{"cursor that is none, of occurrences", "GET", item + "/occurrences?cursor=x", "", "", 400,
			"cursor must be a cursor that an earlier page gave as next"},
		{"search without a word", "GET", "/reports?q=-", "", "", 400, "q must contain a word of letters or digits"},
		{"query that is none", "GET", "/items?query=%zz", "", "", 400, "the query cannot be read"},
		{"queued reports to be cleaned", "DELETE", "/reports?state=queued", "", "", 400,
			"state must be one of current, superseded, delivered, rejected"},
		{"body that is no JSON", "POST", "/items", form, `message=x`, 400, "the body cannot be used: it is not JSON"},
		{"body that is no object", "POST", "/items", form, `[1]`, 400,
			"the body cannot be used: it is not a JSON object"},
		{"body with something behind it", "POST", "/items", form, `{"message":"x"} {}`, 400,
			"the body cannot be used: it is not JSON"},
		{"field given twice", "POST", "/items", form, `{"message":"x","message":"y"}`, 400,
			`the body cannot be used: "message" is given twice`},
		{"body declared as text", "POST", "/items", text, `{"message":"x"}`, 415, "curl --json"},
		{"body over the bound", "POST", "/items", form, `{"message":"` + strings.Repeat("x", 1<<20) + `"}`, 413,
			"the body is larger than 1048576 bytes"},
		{"nothing to change", "PATCH", item, form, `{}`, 400,
			"nothing to change: give at least one of status, level, title"},
		{"version without the status", "PATCH", item, form, `{"resolved_in_version":"1.2"}`, 400,
			"resolved_in_version is valid only together with status resolved"},
		{"null where it means nothing", "PATCH", item, form, `{"title":null}`, 400, "title must be a string"},
		{"message missing", "POST", "/items", form, `{}`, 400,
			"message is required, unless data holds Rollbar's own payload"},
		{"message empty", "POST", "/items", form, `{"message":""}`, 400, "message must not be empty"},
		{"telemetry with a text as its time", "POST", "/items", form,
			`{"data":{"environment":"e","body":{"message":{"body":"x"},"telemetry":[{},{"timestamp_ms":"1"}]}}}`, 400,
			"data.body.telemetry[1].timestamp_ms must be a number, Unix milliseconds"},
		{"nested too deep", "POST", "/items", form,
			`{"message":"x","custom":{"a":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}}`, 400,
			"the payload is nested more than 200 levels deep"},
		{"payload and more", "POST", "/items", form, `{"message":"x","data":{}}`, 400,
			"data is Rollbar's own payload: nothing else can be given with it"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := len(f.sandbox.Requests())
			var header []string
			if test.kind != "" {
				header = []string{"Content-Type", test.kind}
			}
			got := f.do(test.method, test.path, test.body, header...)
			assert.Contains(t, got.requireProblem(test.status, "usage"), test.want)
			assert.Len(t, f.sandbox.Requests(), before, "Rollbar was not asked")
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

// A plain `curl -d` declares a form, and some clients send no Content-Type.
func TestBodiesTakenAsJSON(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	for _, kind := range []string{"", "application/json", "application/json; charset=utf-8",
		"application/x-www-form-urlencoded"} {
		got := f.do("POST", "/items", ` {"message": "x"} `, "Content-Type", kind)
		assert.Equal(t, 201, got.status, "%q: %s", kind, got.body)
	}
}

func TestAPIToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) { c.apiTokens = []string{"first-token", "second-token"} })
	for _, path := range []string{"/which", "/check"} {
		assert.Equal(t, 200, f.get(path).status)
	}
	for _, header := range []string{"", "first-token", "Bearer", "Bearer third-token",
		"Bearer first-token, second-token", "Basic first-token", "Bearerfirst-token"} {
		got := f.do("GET", "/items", "", "Authorization", header)
		detail := got.requireProblem(401, "auth")
		assert.Equal(t, "Bearer", got.header.Get("WWW-Authenticate"))
		assert.NotContains(t, detail, "first-token")
	}
	f.get("/nowhere").requireProblem(401, "auth")
	assert.Equal(t, 200, f.do("GET", "/items", "", "Authorization", "bearer  first-token").status)
	for _, token := range []string{"first-token", "second-token"} {
		assert.Equal(t, 200, f.do("GET", "/items", "", "Authorization", "Bearer "+token).status)
	}
	assert.Equal(t, 200, f.do("GET", "/items", "", "Authorization", "Bearer first-token", "Host",
		"errors.example.com").status)
}

// Without a token, web pages could attack through the browser of somebody on this machine.
func TestBrowsersWithoutAPIToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	for _, host := range []string{"errors.example.com", "errors.example.com:8080", "192.0.2.1"} {
		f.do("GET", "/items", "", "Host", host).requireProblem(421, "auth")
	}
	assert.Contains(t, f.rawResponses("GET /items HTTP/1.0\r\n\r\n"), " 421 ", "no Host")
	for _, host := range []string{"localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"} {
		assert.Equal(t, 200, f.do("GET", "/items", "", "Host", host).status, host)
	}
	f.do("POST", "/items", `{"message":"x"}`, "Sec-Fetch-Site", "cross-site").requireProblem(403, "auth")
	f.do("DELETE", "/reports", "", "Origin", "https://attacker.example.com").requireProblem(403, "auth")
	assert.Equal(t, 200, f.do("GET", "/items", "", "Sec-Fetch-Site", "cross-site").status)
}

// Paths that a ServeMux would redirect to a clean path are not found, and do not bypass the check of the
// caller.
func TestUncleanPaths(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	requests := []string{
		"GET //items", "GET /items/../which", "GET /./which", "GET /items//7", "POST //items", "OPTIONS *",
		"OPTIONS /items",
		"GET /items/", "GET /items/%2e%2e/which",
	}
	for _, request := range requests {
		for host, status := range map[string]string{"localhost": "404", "errors.example.com": "421"} {
			if request == "OPTIONS /items" && host == "localhost" {
				status = "405"
			}
			answer := f.rawResponses(request + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
			assert.True(t, strings.HasPrefix(answer, "HTTP/1.1 "+status+" "), "%s: %s", request, answer)
			for _, header := range []string{"X-Content-Type-Options: nosniff", "Cache-Control: no-store",
				"X-Request-Id: ", "Content-Type: application/problem+json"} {
				assert.Contains(t, answer, header, request)
			}
		}
	}
	assert.Contains(t, f.rawResponses("CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n"+
		"Connection: close\r\n\r\n"), "there is no route CONNECT")
}

// The size of requests is bounded, whether or not they declare it.
func TestBounds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	body := `{"message":"` + strings.Repeat("x", maxBody) + `"}`
	f.do("POST", "/items", body).requireProblem(413, "usage")
	chunked := fmt.Sprintf("POST /items HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: "+
		"close\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	go io.WriteString(conn, chunked) // the service does not read all of it
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	assert.Equal(t, 413, res.StatusCode)
	assert.Empty(t, f.sandbox.Requests())

	for path, status := range map[string]int{"/items": 413, "/nothing": 404} {
		large := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"+
			"Content-Length: %d\r\n\r\n%s", path, 10<<20, strings.Repeat(" ", 10<<20))
		assert.Contains(t, f.rawResponses(large), fmt.Sprintf("HTTP/1.1 %d ", status), "nothing was read before")
	}

	server := newHTTPServer(nil, f.app.log)
	assert.Equal(t, 64<<10, server.MaxHeaderBytes)
	assert.Positive(t, server.ReadHeaderTimeout)
	assert.Positive(t, server.IdleTimeout)
	assert.Zero(t, server.WriteTimeout, "an answer may take an hour, as long as the client takes it")
}

// A body may be compressed or begin with a byte order mark. A bad header is refused before the body is
// read.
func TestBodyEncodings(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	zipped := func(text string) string {
		var body bytes.Buffer
		zipper := gzip.NewWriter(&body)
		_, err := io.WriteString(zipper, text)
		require.NoError(t, err)
		require.NoError(t, zipper.Close())
		return body.String()
	}
	const message = `{"message":"x"}`
	assert.Equal(t, 201, f.do("POST", "/items", zipped(message), "Content-Encoding", "gzip").status)
	assert.Equal(t, 201, f.do("POST", "/items", "\uFEFF"+message).status)
	f.do("POST", "/items", zipped(strings.Repeat(" ", maxBody+1)), "Content-Encoding", "gzip").requireProblem(413,
		"usage")
	f.do("POST", "/items", message, "Content-Encoding", "gzip").requireProblem(400, "usage")
	assert.Contains(t, f.do("POST", "/items", message, "Content-Encoding", "br").requireProblem(415, "usage"),
		`must be gzip or absent, not "br"`)
	for _, header := range []string{fmt.Sprint("Content-Length: ", maxBody+1),
		"Content-Length: 9\r\nContent-Type: text/xml"} {
		got := f.rawResponses("POST /items HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" +
			"Expect: 100-continue\r\n" + header + "\r\n\r\n")
		assert.Regexp(t, `^HTTP/1\.1 41[35] `, got, "and no 100 Continue")
	}
}

// However many names are unknown, the message stays short and lists the valid ones once.
func TestManyUnknownNames(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	path := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
	got := f.do("PUT", path, f.get(path).body)
	assert.Equal(t, 1, strings.Count(got.requireProblem(400, "usage"), "(valid: status, level"), got.body)
	var body strings.Builder
	for n := range 80_000 {
		fmt.Fprintf(&body, `"f%d":0,`, n)
	}
	got = f.do("POST", "/items", "{"+strings.TrimSuffix(body.String(), ",")+"}")
	assert.Contains(t, got.requireProblem(400, "usage"), "and 79992 more")
	assert.Less(t, len(got.body), 4_000)
	got = f.do("POST", "/items", `{"`+strings.Repeat("x", 500_000)+`":0}`)
	got.requireProblem(400, "usage")
	assert.Less(t, len(got.body), 4_000)
}

// A failure is at most 16 kB long in an answer and 4 kB in the log, whatever callers and Rollbar send.
func TestLongFailures(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\u001b<\u202e", 3_000)
	escaped, err := json.Marshal(strings.Repeat(long, 100))
	require.NoError(t, err)
	f := newFixture(t, 0, func(c *Config) {
		answer := `{"err":1,"message":` + string(escaped) + `}`
		c.RollbarURL = brokenRollbar(t, func(string) string {
			return fmt.Sprintf("HTTP/1.1 422 No\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(answer),
				answer)
		})
	})
	frames := strings.Repeat(`{},`, 20_000) + `{}`
	for _, request := range []struct{ method, path, body string }{
		{"GET", "/" + url.PathEscape(long), ""},
		{"POST", "/items/" + url.PathEscape(long), ""},
		{"GET", "/items/" + url.PathEscape(long), ""},
		{"GET", "/items?x=" + url.QueryEscape(long), ""},
		{"GET", "/items?status=" + url.QueryEscape(long), ""},
		{"GET", "/items?" + strings.Repeat("status=&", 5_000), ""},
		{"GET", "/items?" + url.QueryEscape(long), ""},
		{"GET", "/items?" + strings.Repeat("%zz", 10_000), ""},
		{"GET", "/reports?cursor=" + url.QueryEscape(long), ""},
		{"GET", "/items", ""},
		{"GET", "/items/1", ""},
		{"POST", "/items", `{"message":"x"}`},
		{"POST", "/items", `{"data":{"body":{"trace_chain":[` + frames + `]}}}`},
		{"POST", "/items", `{"data":{"body":{"telemetry":[` + strings.ReplaceAll(frames, "{}", `{"timestamp_ms":""}`) +
			`]}}}`},
		{"POST", "/items", strings.Repeat("[", 1<<20)},
		{"POST", "/items", strings.Repeat("x", 1<<20)},
		{"POST", "/items", `{"` + long + `":1,"` + long + `":1}`},
	} {
		got := f.do(request.method, request.path, request.body)
		assert.GreaterOrEqual(t, got.status, 400)
		assert.Less(t, len(got.body), 16_000, request.path[:min(30, len(request.path))])
	}
	f.app.log.Error(long, "error", errors.New(long), "detail", long, "error.stack", long)
	lines := strings.SplitAfter(f.log.String(), "\n")
	assert.Greater(t, len(lines), 15)
	for _, line := range lines {
		assert.LessOrEqual(t, len(line), 4_000+96, line[:min(200, len(line))])
	}
}

// Monitors are answered whatever Host they send, and even if they have closed their half of the connection.
func TestMonitors(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	for _, path := range []string{"/which", "/check"} {
		assert.Equal(t, 200, f.do("GET", path, "", "Host", "monitor.example.com").status)
		conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		require.NoError(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, "GET "+path+" HTTP/1.0\r\n\r\n")
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		text, err := io.ReadAll(conn)
		require.NoError(t, err)
		assert.Contains(t, string(text), " 200 OK", path)
	}
}

// The caller's preferences decide between JSON and ndjson.
func TestPreference(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "application/json": false, ndjson: true, "Application/X-NDJSON": true,
		"application/json, " + ndjson: true, "application/json;q=1, application/x-ndjson;q=0.1": false,
		"application/json;q=0.5, application/x-ndjson; Q=0.7": true, ndjson + ";q=0": false, ndjson + ";q=x": false,
		ndjson + ";v=1;q=0.1, application/json;q=0.2": false, ndjson + ";\tq=0": false, "text/html,\t" + ndjson: true,
		ndjson + ";q=5": false, ndjson + ";q=NaN": false, ndjson + ";q=-0": false, ndjson + ";q=1.5": false,
		ndjson + ";q=0.5, */*": false, ndjson + ";q=0.5, application/*": false, ndjson + ", */*;q=0.1": true,
		ndjson + ", */*": true, "application/json;q=0, */*, " + ndjson + ";q=0.1": true,
	} {
		r := httptest.NewRequest("GET", "/reports", nil)
		r.Header.Set("Accept", accept)
		assert.Equal(t, want, wantedType(r) == ndjson, accept)
	}
}

// The log names the path and the client, but not the query. Our own failures stand out, and a monitor's
// successes do not.
func TestLogOfRequests(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.get("/which")
	f.get("/check")
	f.get("/reports?q=hunter2")
	f.get("/items/x")
	f.app.rollbar.tokens[scopeRead] = accessToken{}
	f.get("/items")
	var got []string
	for _, line := range f.log.Lines() {
		if line["message"] == "request" {
			got = append(got, fmt.Sprintf("%v %v %v %v", line["level"], line["http.status_code"],
				line["http.url_details.path"], line["network.client.ip"]))
		}
	}
	want := []string{"INFO 200 /reports 127.0.0.1", "INFO 400 /items/x 127.0.0.1", "WARN 502 /items 127.0.0.1"}
	assert.Equal(t, want, got)
	assert.NotContains(t, f.log.String(), "hunter2")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	postgres := devpgtest.Start(t, "")
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL = postgres.URL })
	requireCheck := func(status int, body string) {
		t.Helper()
		require.Eventually(t, func() bool {
			got := f.get("/check")
			return got.status == status && got.body == body+"\n"
		}, waitLimit, waitTick)
	}
	requireCheck(200, `{"status":"OK"}`)
	postgres.Halt("immediate")
	requireCheck(503, `{"status":"KO"}`)
	check := f.run("check")
	assert.Equal(t, shell{7, `{"status":"KO"}` + "\n", check.err}, check)
	assert.Contains(t, check.err, "app: nothing is stored: PostgreSQL at DATABASE_URL: ")
	remote := runShell(t, "", "check", "-app-url", f.url)
	assert.Equal(t, shell{7, check.out, "app: nothing is stored: the server's PostgreSQL does not answer\n"}, remote)
	postgres.Resume()
	requireCheck(200, `{"status":"OK"}`)
	assert.Equal(t, shell{0, `{"status":"OK"}` + "\n", ""}, f.run("check"))
}

func ids(rows []json.RawMessage) string {
	var ids []string
	for _, row := range rows {
		ids = append(ids, string(rawjson.Get(row, "id")))
	}
	return strings.Join(ids, " ")
}

// Links lead through all pages in both directions, and no element is listed twice.
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
			var last string
			for path, got := range f.walk(test.path, "next") {
				page := got.list(test.list)
				for _, row := range page {
					id := string(rawjson.Get(row, "id"))
					require.False(t, seen[id], "%s is there twice", id)
					seen[id] = true
				}
				forth, last = append(forth, ids(page)), path
			}
			for path, got := range f.walk(last, "prev") {
				back = append(back, ids(got.list(test.list)))
				assert.False(t, strings.HasSuffix(path, "?"), path)
			}
			slices.Reverse(back)
			assert.Equal(t, forth, back)
			assert.NotEmpty(t, seen)
		})
	}
}

// Links stay valid behind a proxy that adds a prefix to the paths.
func TestLinksBelowAPrefix(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5)
	f.serve(http.StripPrefix("/rollbar", newHandler(f.app, commands, &Config{})))
	for _, list := range []string{"items", "reports"} { // items first: reading them stores their reports
		path := "/rollbar/" + list + "?limit=2"
		var last string
		seen := 0
		for page, got := range f.walk(path, "next") {
			assert.True(t, strings.HasPrefix(page, "/rollbar/"), page)
			seen += len(got.list(list))
			last = page
		}
		assert.Equal(t, 5, seen, path)
		for page := range f.walk(last, "prev") {
			last = page
		}
		assert.True(t, strings.HasPrefix(last, "/rollbar/"), last)
	}
}

// An answer that fails halfway must not look complete.
func TestListThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	row := json.RawMessage(`{"x":"` + strings.Repeat("x", 1<<10) + `"}`)
	failing := func(rows int) http.HandlerFunc {
		list := &List{
			Name: "rows",
			Rows: func(yield func(json.RawMessage, error) bool) {
				for range rows {
					yield(row, nil)
				}
				yield(nil, fail(unavailable, "gone"))
			},
		}
		s := newHandler(f.app, nil, &Config{}).(*server)
		s.mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { w.(*response).respond(list) })
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

// A read token allows what READ_ONLY leaves, and nothing else.
func TestAPIReadToken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		tokens       []string
		mayAnyChange bool
	}{{"beside others", []string{"all", "more"}, true}, {"alone", nil, false}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1, func(c *Config) {
				c.apiTokens, c.apiReadTokens = test.tokens,
					[]string{"old-reader", "reader"}
			})
			f.get("/items").requireProblem(401, "auth")
			for _, token := range []string{"reader", "all"} {
				isKnown, mayChange := token == "reader" || test.mayAnyChange, token == "all" && test.mayAnyChange
				for _, c := range commands {
					for _, route := range c.routes() {
						method, path, _ := strings.Cut(strings.ReplaceAll(route, "{id}", "7"), " ")
						got := f.do(method, path, `{"x":1}`, "Authorization", "Bearer "+token)
						switch {
						case c.Open || isKnown && (mayChange || !c.Changes):
							assert.NotContains(t, []int{401, 403}, got.status, route)
						case isKnown:
							assert.Contains(t, got.requireProblem(403, "auth"), "API_TOKEN", route)
							assert.Equal(t, `"Not allowed"`, got.at("title"))
						default:
							got.requireProblem(401, "auth")
						}
					}
				}
			}
			for command, exit := range map[string]int{"items list": 0, "items create -message x": 5} {
				args := append(strings.Fields(command), "-app-url", f.url, "-api-read-token", "reader,other")
				got := runShell(t, "", args...)
				assert.Equal(t, exit, got.exit, got.err)
				assert.Contains(t, runShell(t, "", append(args, "-as-curl")...).out,
					`"Authorization: Bearer ${API_READ_TOKEN%%,*}"`)
			}
			assert.Empty(t, f.sandbox.PostsOf(""))
		})
	}
}

package main

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

// Lists as one element per line: as many as the limit says, or all without a limit.
func TestLines(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 150)
	const reports = 2500
	addReports(t, f.app.store, reports)
	lines := func(path string) []string {
		answer := f.do("GET", path, "", "Accept", ndjson)
		require.Equal(t, 200, answer.status, answer.body)
		require.Equal(t, ndjson, answer.header.Get("Content-Type"))
		require.True(t, strings.HasSuffix(answer.body, "\n"))
		lines := strings.Split(strings.TrimSpace(answer.body), "\n")
		for _, line := range lines {
			require.True(t, json.Valid([]byte(line)))
		}
		return lines
	}
	all := lines("/reports")
	require.Len(t, all, reports)
	seen := map[string]bool{}
	for _, line := range all {
		seen[string(rawjson.Get(json.RawMessage(line), "id"))] = true
	}
	assert.Len(t, seen, reports, "each once")
	assert.Len(t, lines("/reports?limit=7"), 7)
	assert.Len(t, lines("/reports?level=error"), reports/5)
	assert.Len(t, lines("/reports?q=alpha&since=1h"), reports/3)
	assert.Len(t, lines("/items"), 100, "a page") // stores the page
	assert.Equal(t, `{"status":"OK"}`+"\n", f.do("GET", "/check", "", "Accept", ndjson).body)

	assert.Len(t, strings.Split(f.run("reports", "list", "-o", "ndjson").out, "\n"), reports+100+1)
	assert.Len(t, strings.Split(f.run("reports", "list", "-o", "ndjson", "-limit", "3").out, "\n"), 4)
	remote := runShell(t, "", "reports", "list", "-o", "ndjson", "-app-url", f.url)
	assert.Equal(t, f.run("reports", "list", "-o", "ndjson").out, remote.out)
}

// A stream that fails halfway says so in its last line, and the command line by its exit code.
func TestLinesThatFail(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	addReports(t, f.app.store, 1200)
	f.exec(`ALTER TABLE reports RENAME TO kept`)
	f.exec(`CREATE FUNCTION data_of(n bigint) RETURNS json STABLE LANGUAGE plpgsql AS $$
		BEGIN
			IF n = 50 THEN
				RAISE 'disk on fire: %', '` + sandbox.ReadToken + `' USING ERRCODE = '58030';
			END IF;
			RETURN json_build_object('x', repeat('x', 1000));
		END $$`)
	f.exec(`CREATE VIEW reports AS SELECT k.id, item_id, uuid, state, status, level, environment, words, ` +
		`first_seen, last_seen, data_of(k.id) AS data FROM kept k`)
	answer := f.do("GET", "/reports", "", "Accept", ndjson)
	require.Equal(t, 200, answer.status, answer.body)
	lines := strings.Split(strings.TrimSpace(answer.body), "\n")
	require.Greater(t, len(lines), 100, "it fails half way")
	last := lines[len(lines)-1]
	require.True(t, strings.HasPrefix(last, `{"error":{`), last)
	assert.Contains(t, last, "disk on fire: ***")
	assert.Equal(t, `"/problems/unavailable"`, string(rawjson.Get(json.RawMessage(last), "error", "type")))
	for _, args := range [][]string{{"-database-url", f.config.DatabaseURL}, {"-app-url", f.url}} {
		got := runShell(t, "", append(args, "reports", "list", "-o", "ndjson")...)
		assert.Equal(t, 7, got.exit)
		assert.NotContains(t, got.out, "error")
		assert.Contains(t, got.err, "/problems/unavailable")
	}
	f.exec(`CREATE OR REPLACE FUNCTION data_of(n bigint) RETURNS json STABLE LANGUAGE plpgsql AS $$
		BEGIN
			RAISE 'disk on fire' USING ERRCODE = '58030';
		END $$`)
	f.do("GET", "/reports", "", "Accept", ndjson).requireProblem(503, "unavailable")
}

// A report that the caller already has is not sent again until it changes.
func TestConditionalRequests(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.get("/items")
	const path = "/reports/1"
	first := f.get(path)
	tag := first.header.Get("ETag")
	require.NotEmpty(t, tag)
	for _, known := range []string{tag, `"other", ` + tag, "*", strings.TrimPrefix(tag, "W/")} {
		same := f.do("GET", path, "", "If-None-Match", known)
		assert.Equal(t, 304, same.status)
		assert.Empty(t, same.body)
		assert.Equal(t, tag, same.header.Get("ETag"))
	}
	assert.Equal(t, first.body, f.do("GET", path, "", "If-None-Match", `"other"`).body)
	head := f.do("HEAD", path, "")
	assert.Equal(t, 200, head.status)
	assert.Equal(t, tag, head.header.Get("ETag"))
	assert.Equal(t, 304, f.do("HEAD", path, "", "If-None-Match", tag).status)
	f.do("GET", "/reports/999", "", "If-None-Match", "*").requireProblem(404, "not-found")

	f.sandbox.Touch(f.sandbox.ItemIDs()[0])
	f.get("/items")
	changed := f.do("GET", path, "", "If-None-Match", tag)
	assert.Equal(t, 200, changed.status)
	assert.NotEqual(t, tag, changed.header.Get("ETag"))
}

// Answers are compressed if the caller accepts that and it pays.
func TestGzip(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 200)
	f.do("POST", "/items/sync", "")
	f.do("POST", "/items", fmt.Sprintf(`{"message":%q}`, strings.Repeat("checkout ", 40_000)))
	large := "/reports/" + f.rows(`SELECT max(id)::text FROM reports`)[0]
	for _, tt := range []struct {
		path, accepted, kind, want string
	}{
		{"/reports?limit=100", "gzip, deflate", "", "gzip"},
		{"/reports", "gzip", ndjson, "gzip"},
		{"/reports?limit=1&state=current", "gzip", "", ""},
		{large, "gzip", "", "gzip"},
		{"/reports?limit=100", "deflate, gzip;q=0", "", ""},
		{"/reports?limit=100", "gzip;v=1;q=0", "", ""},
		{"/reports?limit=100", "gzip;q=5", "", ""},
		{"/reports?limit=100", "*", "", "gzip"},
		{"/reports?limit=100", "gzip;q=0, *", "", ""},
		{"/reports?limit=100", "identity", "", ""},
	} {
		name := fmt.Sprintf("%s as %q", tt.path, tt.accepted)
		plain := f.do("GET", tt.path, "", "Accept", tt.kind, "Accept-Encoding", "identity")
		assert.Contains(t, plain.header.Values("Vary"), "Accept-Encoding", name)
		answer := f.do("GET", tt.path, "", "Accept", tt.kind, "Accept-Encoding", tt.accepted)
		require.Equal(t, tt.want, answer.header.Get("Content-Encoding"), name)
		body := io.Reader(strings.NewReader(answer.body))
		if tt.want != "" {
			assert.Less(t, len(answer.body), len(plain.body)/2, name)
			head := f.do("HEAD", tt.path, "", "Accept", tt.kind, "Accept-Encoding", tt.accepted).header
			assert.Contains(t, []string{"", answer.header.Get("Content-Length")}, head.Get("Content-Length"), name)
			var err error
			body, err = gzip.NewReader(body)
			require.NoError(t, err)
		}
		text, err := io.ReadAll(body)
		require.NoError(t, err)
		assert.Equal(t, plain.body, string(text), name)
	}
}

// A stream is sent while it is read from the database: the first lines arrive long before the last is read.
func TestLinesStream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	addReports(t, f.app.store, 30_000)
	req, err := http.NewRequestWithContext(t.Context(), "GET", f.url+"/reports", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", ndjson)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	require.True(t, lines.Scan())
	f.exec(`DELETE FROM reports WHERE id < 1000`)
	count := 1
	for lines.Scan() {
		count++
	}
	require.NoError(t, lines.Err())
	assert.Less(t, count, 30_000, "what went before it was read is not there")
}

// The Links are right even if the answer is too large to be held back, or has no body.
func TestLinksOfLargePages(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 200, f.get("/reports").status)
	f.exec(`INSERT INTO reports (item_id, state, data) SELECT n, 'current', json_build_object('x', repeat('y', ` +
		`20000)) FROM generate_series(1, 50) AS n`)
	for _, limit := range []int{20, 25, 49, 50, 51, 100, 101} {
		var seen []string
		for path, page := range f.walk(fmt.Sprintf("/reports?limit=%d", limit), "next") {
			for _, report := range page.list("reports") {
				seen = append(seen, string(rawjson.Get(report, "item_id")))
			}
			next := page.link("next")
			head := f.do("HEAD", path, "")
			assert.Equal(t, next, head.link("next"))
			assert.Equal(t, page.link("prev"), head.link("prev"))
			target, err := url.Parse(next)
			require.NoError(t, err)
			assert.Equal(t, target.Query().Get("cursor"), rawjson.Unquote([]byte(page.at("next"))))
		}
		want := make([]string, 50)
		for i := range want {
			want[i] = fmt.Sprint(50 - i)
		}
		assert.Equal(t, want, seen, limit)
	}
	assert.NotEmpty(t, f.do("GET", f.get("/reports?limit=20").link("next"), "", "Accept", ndjson).link("prev"))
}

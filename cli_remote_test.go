package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/rawjson"
	"app/internal/sandbox"
)

// The command line asks the server at APP_URL.
func TestAskServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 250, func(c *Config) { c.apiTokens = []string{"one", "two"} })
	ask := func(args ...string) shell {
		return runShell(t, "", append(args, "-app-url", f.url, "-api-token", "one")...)
	}
	assert.Equal(t, shell{0, `{"status":"OK"}` + "\n", ""}, ask("check"))
	assert.Equal(t, shell{0, "app " + buildVersion() + "\n", ""}, ask("which"))

	id := fmt.Sprint(f.sandbox.ItemIDs()[0])
	for _, args := range []string{"items list -limit 3", "items get " + id,
		"items update " + id + " -title x -assigned-user-id null", "items occurrences " + id, "reports list -latest"} {
		here, there := f.run(strings.Fields(args)...), ask(strings.Fields(args)...)
		assert.Equal(t, here, there, args)
	}
	assert.Equal(t, f.run("items", "list", "-all").out, ask("items", "list", "-all").out)
	assert.Contains(t, ask("items", "create", "-message", "x", "-custom", `{"n":1}`).out, `"delivered"`)
	assert.Equal(t, shell{4, "", "app: there is no report 999999\n"}, ask("reports", "get", "999999"))
	refused := runShell(t, "", "items", "list", "-app-url", f.url)
	assert.Equal(t, shell{5, "", "app: the server at APP_URL, " + f.url + ", wants one of its tokens: set API_TOKEN\n"},
		refused)
	refused = runShell(t, "", "items", "list", "-app-url", f.url, "-api-token", "three")
	assert.Equal(t, shell{5, "", "app: the server at APP_URL, " + f.url + ", refuses the token in API_TOKEN\n"},
		refused)
	f.sandbox.SetFault(sandbox.LimitedFar)
	assert.Equal(t, 6, ask("items", "list").exit)
	nobody := runShell(t, "", "check", "-app-url", "http://127.0.0.1:1")
	assert.Equal(t, 7, nobody.exit)
	assert.Contains(t, nobody.err, "the server at APP_URL, http://127.0.0.1:1, does not answer")
}

// A response from another kind of server at APP_URL, or from a proxy in front of it, never counts
// as success.
func TestAskForeignServer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, kind, body string
		status, exit     int
	}{
		{"a proxy's refusal", "application/json", `{"message":"Unauthorized"}`, 401, 7},
		{"a proxy's error", "text/html", `<html>Bad Gateway</html>`, 502, 7},
		{"a proxy's text", "text/plain", `upstream connect error`, 503, 7},
		{"lines with an error's status", ndjson, `{"id":1}`, 500, 7},
		{"lines that are not JSON", ndjson, `{"error":` + "\n", 200, 7},
		{"an object", "application/json", `{}`, 200, 0},
		{"another JSON", "application/json", `{"error":"x"}`, 200, 0},
		{"null", "application/json", `null`, 200, 7},
		{"a list", "application/json", `[]`, 200, 7},
		{"nothing", "application/json", ``, 200, 7},
		{"a page", "text/html", `<html>Welcome</html>`, 200, 7},
		{"a text", "text/plain", `Welcome`, 200, 7},
		{"a bug of the service", "application/problem+json",
			`{"type":"/problems/internal","status":500,"detail":"internal error"}`, 500, 1},
		{"a problem of another's", "application/problem+json", `{"type":"about:blank","status":404}`, 404, 7},
		{"a problem that is none", "application/problem+json", `oops`, 500, 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", tt.kind)
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer stranger.Close()
			for _, args := range []string{"check", "items list", "items list -all", "items list -o ndjson",
				"reports list",
				"reports list -o table", "reports summary -o table", "items get 5", "items create -message m",
				"items delete 5 -yes"} {
				exit := tt.exit
				if tt.exit == 0 && strings.Contains(args, "list") { // not a list
					exit = 7
				}
				got := runShell(t, "", append(strings.Fields(args), "-app-url", stranger.URL)...)
				assert.Equal(t, exit, got.exit, "%s: %s", args, got.err)
				if exit != 0 {
					assert.Empty(t, got.out, args)
					assert.Regexp(t, `^(app: .*|\{.*\})\n$`, got.err)
				}
			}
			if tt.kind != "text/plain" || tt.status != 200 {
				assert.NotZero(t, runShell(t, "", "which", "-app-url", stranger.URL).exit)
			}
		})
	}
}

// A failure of the server is passed on unchanged, and a truncated list counts as a failure.
func TestAskServerThatFails(t *testing.T) {
	t.Parallel()
	const more = `"request_id":"r1","upstream_status":403,"errors":[{"field":"level","message":"other"}]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/items" {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(502)
			_, _ = io.WriteString(w, `{"type":"/problems/rollbar-auth","status":502,"detail":"refused",`+more)
			return
		}
		w.Header().Set("Content-Type", ndjson)
		_, _ = io.WriteString(w, `{"id":1}`+"\n")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer server.Close()
	got := runShell(t, "", "items", "list", "-o", "json", "-app-url", server.URL)
	assert.Equal(t, 5, got.exit)
	assert.Contains(t, got.err, `"detail":"refused"`)
	assert.Contains(t, got.err, more)
	got = runShell(t, "", "reports", "list", "-o", "ndjson", "-app-url", server.URL)
	assert.Equal(t, 7, got.exit)
	assert.Equal(t, `{"id":1}`+"\n", got.out)
	assert.Contains(t, got.err, "does not answer")
}

// Redirects are not followed, since they would turn a change into a read.
func TestAskServerThatRedirects(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.URL.Path
		http.Redirect(w, r, "https://errors.example.com"+r.URL.Path, http.StatusMovedPermanently)
	}))
	defer server.Close()
	got := runShell(t, "", "items", "create", "-message", "x", "-app-url", server.URL)
	assert.Equal(t, shell{3, "", fmt.Sprintf("app: the server at APP_URL, %s, redirects to "+
		"https://errors.example.com/items: set APP_URL to the address of the service itself\n", server.URL)}, got)
	assert.Equal(t, []string{"POST /items"}, datadogtest.Drained(asked))
}

// Tables and ndjson name the next page, also with APP_URL.
func TestNextPageOfAServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 250)
	for _, args := range []string{"items list -limit 3 -o table", "items list -limit 3 -page 2 -o table",
		"reports list -limit 3 -o table", "reports list -limit 3 -o ndjson"} {
		here, there := f.run(strings.Fields(args)...),
			runShell(t, "", append(strings.Fields(args), "-app-url", f.url)...)
		assert.Equal(t, here, there)
		assert.Contains(t, there.err, "next page: -")
	}
}

// The request is printed instead of being sent. The token stays in the environment, and the line runs in a
// shell unchanged.
func TestAsCurl(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"items", "list", "-status", "active", "-status", "muted", "-query", "a b&c"},
			`curl 'http://127.0.0.1:8080/items?query=a+b%26c&status=active&status=muted'`},
		{[]string{"items", "get", "it's", "-by", "uuid"}, ""},
		{[]string{"items", "create", "-message", "it's <b>", "-custom", `{"n":1e3}`},
			`curl -H 'Content-Type: application/json' -d '{"message":"it'\''s <b>","custom":{"n":1e3}}' ` +
				`'http://127.0.0.1:8080/items'`},
		{[]string{"items", "update", "5", "-assigned-user-id", "null"},
			`curl -X PATCH -H 'Content-Type: application/json' -d '{"assigned_user_id":null}' ` +
				`'http://127.0.0.1:8080/items/5'`},
		{[]string{"items", "delete", "5", "-api-token", "secret,other", "-app-url", "https://errors.example.com/app/"},
			`curl -X DELETE -H "Authorization: Bearer ${API_TOKEN%%,*}" 'https://errors.example.com/app/items/5'`},
		{[]string{"items", "sync", "-recent", "-addr", "[::1]:81"},
			`curl -X POST 'http://[::1]:81/items/sync?recent=true'`},
		{[]string{"reports", "list", "-o", "ndjson", "-addr", ":81"},
			`curl -H 'Accept: application/x-ndjson' 'http://localhost:81/reports'`},
		{[]string{"items", "get", "5", "-api-token", "secret"},
			`curl -H "Authorization: Bearer $API_TOKEN" 'http://127.0.0.1:8080/items/5'`},
		{[]string{"check", "-api-token", "secret"}, `curl 'http://127.0.0.1:8080/check'`},
		{[]string{"items", "get", "5", "-app-url", "http://token:hunter2@host/p/"}, `curl "${APP_URL%/}"'/items/5'`},
		{[]string{"items", "list", "-limit", "1", "-app-url", "http://u@host"}, `curl "${APP_URL%/}"'/items?limit=1'`},
		{[]string{"items", "list", "-all"}, ""},
		{[]string{"items", "list", "-page", "0"}, ""},
	} {
		got := runShell(t, "", append(tt.args, "-as-curl")...)
		if tt.want == "" {
			assert.Equal(t, 2, got.exit, tt.args)
			continue
		}
		assert.Equal(t, shell{0, tt.want + "\n", ""}, got)
	}

	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Log("curl is not installed: its line is not run")
		return
	}
	f := newFixture(t, 3, func(c *Config) { c.apiTokens = []string{"secret"} })
	line := runShell(t, "", "items", "create", "-message", "it's $HOME \\ \"x\"", "-app-url", f.url, "-api-token",
		"secret,other", "-as-curl")
	cmd := exec.Command("sh", "-c", strings.Replace(line.out, "curl", curl+" -s", 1))
	cmd.Env = []string{"API_TOKEN=secret,other"}
	out, err := cmd.Output()
	require.NoError(t, err)
	uuid := rawjson.Unquote(rawjson.Get(bytes.TrimSpace(out), "uuid"))
	assert.Equal(t, "it's $HOME \\ \"x\"",
		rawjson.Unquote(rawjson.Get(f.sandbox.DataOf(uuid), "body", "message", "body")), "%s", out)
}

// A terminal shows progress while a slow server works. This one responds only after something is shown.
func TestWaitingForAServer(t *testing.T) {
	t.Parallel()
	shown := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		select {
		case text := <-shown:
			fmt.Fprintln(w, text)
		case <-time.After(waitLimit):
		}
	}))
	t.Cleanup(server.Close)
	call := &Call{progress: func(done, total int64, what string) {
		select {
		case shown <- fmt.Sprintf("%d/%d %s", done, total, what):
		default:
		}
	}}
	got, err := askServer(withCall(t.Context(), call), &Config{AppURL: server.URL}, whichCmd, arguments{})
	require.NoError(t, err)
	assert.Equal(t, Text("1/-1 s: waiting for the server"), got)
}

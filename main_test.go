package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"app/internal/datadog"
	"app/internal/datadog/datadogtest"
	"app/internal/devpg/devpgtest"
	"app/internal/rawjson"
	"app/internal/sandbox"
)

// TestMain keeps the developer's settings out of the tests, except TEST_DATABASE_URL.
func TestMain(m *testing.M) {
	flag.Parse()
	if only := flag.Lookup("test.run"); *update && only.Value.String() == "" {
		_ = only.Value.Set(goldenTests)
	}
	for _, s := range new(Config).settings() {
		os.Unsetenv(s.env())
	}
	code := m.Run()
	os.RemoveAll(testDir)
	os.Exit(code)
}

var testDir string // holds the binary; removed at the end

// testBinary builds the program, once.
var testBinary = sync.OnceValues(func() (string, error) {
	var err error
	if testDir, err = os.MkdirTemp("", "app-test-"); err != nil {
		return "", err
	}
	path := filepath.Join(testDir, "app")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// A fixture is the service with a sandbox for Rollbar and a database of its own.
type fixture struct {
	t       testing.TB
	sandbox *sandbox.Control
	config  *Config
	app     *App
	url     string // of the service
	log     *datadogtest.LogLines
	admin   string // the database as its owner, if that is not the service
}

// newFixture starts a service on a sandbox with n items. The functions change its settings.
func newFixture(t testing.TB, n int, change ...func(*Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, sandbox: sandbox.New(n).Control(), log: &datadogtest.LogLines{}}
	rollbar := httptest.NewServer(f.sandbox)
	t.Cleanup(rollbar.Close)
	t.Cleanup(func() { f.sandbox.SetFault(sandbox.None) }) // releases slow responses
	var err error
	f.config, err = loadConfig([]string{"-database-url=" + devpgtest.Schema(t)}, "")
	require.NoError(t, err)
	f.config.useSandbox(rollbar.URL + "/api/1")
	for _, c := range change {
		c(f.config)
	}
	f.app = f.newApp()
	if f.app.store != nil { // making the tables may take longer than a request waits
		if conn, err := f.app.store.writer(t.Context()); err == nil {
			conn.Release()
		}
	}
	f.serve(newHandler(f.app, commands, f.config))
	return f
}

// newApp returns another App on the same sandbox and database. Its retries do not wait long.
func (f *fixture) newApp() *App {
	f.t.Helper()
	log := slog.New(datadog.NewLogHandler(f.config.mask().Writer(f.log), slog.LevelInfo,
		datadog.Settings{Service: "app"}))
	telemetry, err := f.config.startTelemetry(log)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { telemetry.Close(time.Second) })
	app, err := newApp(f.config, log, telemetry)
	require.NoError(f.t, err)
	app.rollbar.backoff = time.Millisecond
	if app.outbox != nil {
		app.outbox.pace, app.outbox.backoff = time.Millisecond, 20*time.Millisecond
	}
	f.t.Cleanup(app.Close)
	return app
}

// An answer is a response of the service.
type answer struct {
	t      testing.TB
	url    *url.URL // of the request
	status int
	header http.Header
	body   string
}

// do sends a request with a body, if it is not empty, as a plain curl -d would.
func (f *fixture) do(method, path, body string, header ...string) *answer {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*waitLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, f.url+path, strings.NewReader(body))
	require.NoError(f.t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(f.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(f.t, err)
	return &answer{f.t, req.URL, res.StatusCode, res.Header, string(text)}
}

func (f *fixture) get(path string) *answer { f.t.Helper(); return f.do("GET", path, "") }

// at returns the JSON text of a member of the body. A path such as "errors", "0", "field" goes through arrays.
func (a *answer) at(path ...string) string {
	a.t.Helper()
	value, err := rawjson.Compact([]byte(a.body))
	require.NoError(a.t, err, a.body)
	return string(at(value, path...))
}

func at(value json.RawMessage, path ...string) json.RawMessage {
	for _, name := range path {
		if value[0] != '[' {
			value = rawjson.Get(value, name)
			continue
		}
		n := 0
		for _, element := range rawjson.Elements(value) {
			if fmt.Sprint(n) == name {
				value = element
				break
			}
			n++
		}
	}
	return value
}

// list returns the elements of the array with the name.
func (a *answer) list(name string) []json.RawMessage {
	a.t.Helper()
	return rawjson.Elements([]byte(a.at(name)))
}

// link returns the path of the Link header with the relation, resolved against the request, or "".
func (a *answer) link(rel string) string {
	for _, link := range a.header.Values("Link") {
		target, found := strings.CutSuffix(link, `>; rel="`+rel+`"`)
		if found {
			reference, err := url.Parse(strings.TrimPrefix(target, "<"))
			require.NoError(a.t, err)
			return a.url.ResolveReference(reference).RequestURI()
		}
	}
	return ""
}

// walk yields the page at the path and every page reached from it by links of the relation, with their
// paths.
func (f *fixture) walk(path, rel string) iter.Seq2[string, *answer] {
	return func(yield func(string, *answer) bool) {
		for path != "" {
			page := f.get(path)
			require.Equal(f.t, 200, page.status, page.body)
			if !yield(path, page) {
				return
			}
			path = page.link(rel)
		}
	}
}

// requireProblem checks that the answer is a failure of a kind, and returns its detail.
func (a *answer) requireProblem(status int, kind string) string {
	a.t.Helper()
	require.Equal(a.t, status, a.status, a.body)
	require.Equal(a.t, "application/problem+json", a.header.Get("Content-Type"))
	require.Equal(a.t, `"/problems/`+kind+`"`, a.at("type"))
	require.Equal(a.t, fmt.Sprint(status), a.at("status"))
	require.NotEmpty(a.t, a.at("request_id"))
	return rawjson.Unquote([]byte(a.at("detail")))
}

// A shell is what a run of the command line printed and returned.
type shell struct {
	exit     int
	out, err string
}

// run runs the command line on the fixture's sandbox and database.
func (f *fixture) run(args ...string) shell {
	f.t.Helper()
	return f.runWith("", args...)
}

func (f *fixture) runWith(stdin string, args ...string) shell {
	f.t.Helper()
	return runShell(f.t, stdin, f.arguments(args...)...)
}

// arguments puts the fixture's settings before the arguments.
func (f *fixture) arguments(args ...string) []string {
	return append([]string{
		"-rollbar-url=" + f.config.RollbarURL, "-rollbar-read-token=" + f.config.readToken,
		"-rollbar-write-token=" + f.config.writeToken, "-rollbar-post-token=" + f.config.postToken,
		"-rollbar-post-client-token=" + f.config.postClientToken,
		"-rollbar-timeout=" + f.config.RollbarTimeout.String(), "-database-url=" + f.config.DatabaseURL,
	}, args...)
}

// runShell runs the command line without any settings but those in the arguments.
func runShell(t testing.TB, stdin string, args ...string) shell {
	t.Helper()
	var out, err bytes.Buffer
	exit := run(t.Context(), args, console{strings.NewReader(stdin), &out, &err, ""})
	return shell{exit, out.String(), err.String()}
}

// rows runs a query on the fixture's database.
func (f *fixture) rows(sql string) []string {
	f.t.Helper()
	f.app.store.deliveries.Flush(f.t.Context())
	conn, err := pgx.Connect(f.t.Context(), f.config.DatabaseURL)
	require.NoError(f.t, err)
	defer conn.Close(f.t.Context())
	rows, _ := conn.Query(f.t.Context(), sql) // CollectRows returns its error
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(f.t, err)
	return values
}

// serve starts a server with the handler, which replaces the fixture's service.
func (f *fixture) serve(handler http.Handler) {
	service := httptest.NewUnstartedServer(handler)
	service.Config = newHTTPServer(handler, f.app.log)
	service.Start()
	f.t.Cleanup(service.Close)
	f.url = service.URL
}

// exec runs statements on the fixture's database, as its owner.
func (f *fixture) exec(sql string) {
	f.t.Helper()
	conn, err := pgx.Connect(f.t.Context(), cmp.Or(f.admin, f.config.DatabaseURL))
	require.NoError(f.t, err)
	defer conn.Close(f.t.Context())
	_, err = conn.Exec(f.t.Context(), sql)
	require.NoError(f.t, err)
}

// Whatever a test waits for happens soon, or never.
const (
	waitLimit = 30 * time.Second
	waitTick  = 5 * time.Millisecond
)

// newContext returns a context that a test can cancel before the test itself ends.
func newContext(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(t.Context()))
}

// withTimeout sets the timeout of calls to Rollbar.
func withTimeout(d time.Duration) func(*Config) {
	return func(c *Config) { c.RollbarTimeout = d }
}

// A roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// atoi parses a number and returns 0 if the text is not one.
func atoi(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

// writer returns a connection to the primary after updating its schema. The caller must release it.
func (s *Store) writer(ctx context.Context) (*pgxpool.Conn, error) {
	if err := s.writeSlowly(ctx, func(context.Context, *pgx.Conn) error { return nil }); err != nil {
		return nil, err
	}
	return s.pool.Acquire(ctx)
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"app/internal/devpg/devpgtest"
	"app/internal/sandbox"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tryCreate posts an occurrence and reports whether it was acknowledged, and whether it was stored.
func tryCreate(url, uuid string) (acknowledged, stored bool) {
	body := strings.NewReader(fmt.Sprintf(`{"message":"%s","uuid":"%s"}`, uuid, uuid))
	res, err := http.Post(url+"/items", "application/json", body)
	if err != nil {
		return false, false
	}
	defer res.Body.Close()
	if _, err := io.ReadAll(res.Body); err != nil {
		return false, false
	}
	acknowledged = res.StatusCode == 201 || res.StatusCode == 202
	return acknowledged, acknowledged && res.Header.Get("Report-Stored") != "false"
}

// timePasses ends all leases and waits of the queue, as time would. It locks in the order of ids, as the service does.
const timePasses = `
	WITH queued AS (SELECT id FROM reports WHERE state = 'queued' ORDER BY id FOR NO KEY UPDATE)
	UPDATE reports SET leased_until = now(), next_attempt = now() WHERE id IN (SELECT id FROM queued) RETURNING ''`

func (f *fixture) passTime() {
	f.rows(timePasses)
}

// A service that is killed in the middle of many creates and started again delivers all occurrences that it had
// acknowledged, each once.
func TestKillLosesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, withTimeout(time.Second))
	p := startServe(t, f.env())
	var (
		mu           sync.Mutex
		acknowledged []string
		clients      sync.WaitGroup
	)
	for n := range 200 {
		if n == 50 {
			f.sandbox.SetFault(sandbox.Down) // from here on, creates are queued
		}
		clients.Go(func() {
			uuid := newUUID()
			if ok, _ := tryCreate(p.url, uuid); ok {
				mu.Lock()
				defer mu.Unlock()
				acknowledged = append(acknowledged, uuid)
				if len(acknowledged) == 100 {
					p.cmd.Process.Kill()
				}
			}
		})
	}
	clients.Wait()
	p.wait()
	require.GreaterOrEqual(t, len(acknowledged), 100)
	f.sandbox.SetFault(sandbox.None)
	f.passTime()
	startServe(t, f.env())
	for _, uuid := range acknowledged {
		f.eventually(uuid, "delivered")
		assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid))
	}
}

// A service that is told to end under load finishes all requests that it has accepted.
func TestEndUnderLoad(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	p := startServe(t, f.env())
	var clients sync.WaitGroup
	var mu sync.Mutex
	answered, created := 0, map[string]bool{}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	request := func(make func() (*http.Response, string, error)) {
		clients.Go(func() {
			for {
				res, uuid, err := make()
				if err != nil {
					return
				}
				text, err := io.ReadAll(res.Body)
				res.Body.Close()
				assert.NoError(t, err)
				assert.True(t, json.Valid(text))
				mu.Lock()
				if answered++; answered == 100 {
					assert.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
				}
				if uuid != "" {
					assert.Equal(t, 201, res.StatusCode)
					created[uuid] = true
				}
				mu.Unlock()
			}
		})
	}
	for n := range 8 {
		request(func() (*http.Response, string, error) {
			res, err := client.Get(fmt.Sprintf("%s/items?limit=%d", p.url, n+1)) // identical ones would share calls
			return res, "", err
		})
		request(func() (*http.Response, string, error) {
			uuid := newUUID()
			res, err := client.Post(p.url+"/items", "",
				strings.NewReader(fmt.Sprintf(`{"message":"x","uuid":%q}`, uuid)))
			return res, uuid, err
		})
	}
	clients.Wait()
	assert.Equal(t, 0, p.wait())
	assert.Len(t, f.sandbox.Requests(), answered, "what was begun was answered")
	assert.NotEmpty(t, created)
	for uuid := range created {
		assert.Equal(t, "delivered", f.state(uuid))
		assert.Equal(t, 1, f.sandbox.PostsOf(uuid))
	}
}

// A PostgreSQL that has no free connection or cannot write counts as down: reads are answered, and occurrences
// that cannot be stored go straight to Rollbar.
func TestPostgreSQLOutOfResources(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		fail func(t *testing.T, f *fixture)
	}{
		{"no connection left", func(t *testing.T, f *fixture) {
			f.exec(`ALTER ROLE app CONNECTION LIMIT 0`)
			f.app.store.pool.Reset()
		}},
		{"disk full", func(t *testing.T, f *fixture) {
			f.exec(`CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
				CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON reports EXECUTE FUNCTION full_disk()`)
		}},
		{"read only", func(t *testing.T, f *fixture) {
			f.exec(`ALTER ROLE app SET default_transaction_read_only = on`)
			f.app.store.pool.Reset()
		}},
		{"no rights", func(t *testing.T, f *fixture) {
			f.exec(`REASSIGN OWNED BY app TO postgres`)
		}},
		{"locked for longer than its limit", func(t *testing.T, f *fixture) {
			f.exec(`ALTER ROLE app SET lock_timeout = '50ms'`)
			f.app.store.pool.Reset()
			conn, err := pgx.Connect(t.Context(), f.admin)
			require.NoError(t, err)
			t.Cleanup(func() { conn.Close(context.Background()) })
			_, err = conn.Exec(t.Context(), `BEGIN; LOCK TABLE reports IN EXCLUSIVE MODE`)
			require.NoError(t, err)
		}},
		{"locked", func(t *testing.T, f *fixture) {
			conn, err := f.app.store.pool.Acquire(t.Context())
			require.NoError(t, err)
			t.Cleanup(func() { conn.Conn().Close(context.Background()); conn.Release() })
			_, err = conn.Exec(t.Context(), `BEGIN; LOCK TABLE reports IN EXCLUSIVE MODE`)
			require.NoError(t, err)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			postgres := devpgtest.Start(t, "")
			f := newFixture(t, 3, func(c *Config) {
				devpgtest.Query(t, postgres.URL, `CREATE ROLE app LOGIN`)
				devpgtest.Query(t, postgres.URL, `GRANT ALL ON SCHEMA public TO app`)
				c.DatabaseURL = strings.Replace(postgres.URL, "postgres@", "app@", 1)
			})
			f.admin = postgres.URL
			require.Equal(t, 200, f.get("/reports").status)
			test.fail(t, f)

			list := f.get("/items")
			assert.Equal(t, 200, list.status)
			assert.Equal(t, "false", list.header.Get("Report-Stored"))
			uuid := newUUID()
			created := f.create(uuid)
			assert.Equal(t, 201, created.status, created.body)
			assert.Equal(t, "false", created.header.Get("Report-Stored"))
			assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid))
			f.do("POST", "/items/sync", "").requireProblem(503, "unavailable")
			id := f.sandbox.ItemIDs()[0]
			kept := f.do("DELETE", fmt.Sprintf("/items/%d", id), "").requireProblem(503, "unavailable")
			assert.Contains(t, kept, "must be stored first")
			assert.Len(t, f.get(fmt.Sprintf("/items/%d/occurrences", id)).list("occurrences"), 1,
				"nothing is deleted that is not stored")
		})
	}
}

// A read that gets no answer from PostgreSQL times out: here a table is locked, but the machine may as well
// have vanished.
func TestReadsDoNotWaitForever(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	require.Equal(t, 200, f.get("/items").status)
	f.app.store.readTimeout = 50 * time.Millisecond
	conn, err := pgx.Connect(t.Context(), f.config.DatabaseURL)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `BEGIN; LOCK TABLE reports IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	for _, path := range []string{"/reports", "/reports?level=error", "/reports/1"} {
		f.get(path).requireProblem(503, "unavailable")
	}
	lines := f.do("GET", "/reports", "", "Accept", "application/x-ndjson")
	lines.requireProblem(503, "unavailable")
	require.NoError(t, conn.Close(t.Context()))
	require.Eventually(t, func() bool { return f.get("/reports/1").status == 200 }, waitLimit, waitTick)
}

// Readers of reports, however slow, never take all connections: other requests go on.
func TestTooManyReaders(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	require.Equal(t, 200, f.get("/items").status)
	places := cap(f.app.store.readers)
	assert.Less(t, places, int(f.app.store.pool.Config().MaxConns))
	for range places {
		f.app.store.readers <- struct{}{}
	}
	got := f.get("/reports")
	assert.Equal(t, "list reports: too many requests are already waiting for PostgreSQL",
		got.requireProblem(503, "unavailable"))
	assert.Equal(t, "1", got.header.Get("Retry-After"))
	assert.Equal(t, 200, f.get("/check").status)
	uuid := newUUID()
	assert.Empty(t, f.create(uuid).header.Get("Report-Stored"))
	assert.Equal(t, "delivered", f.state(uuid))
}

// With no connection left at all, PostgreSQL counts as down.
func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) { c.DatabaseURL += "&pool_max_conns=1" })
	one, err := f.app.store.writer(t.Context())
	require.NoError(t, err)
	other, err := f.app.store.writer(t.Context()) // there are at least two
	require.NoError(t, err)
	got := f.get("/reports")
	assert.Equal(t, "list reports: too many requests are already waiting for PostgreSQL",
		got.requireProblem(503, "unavailable"))
	assert.Equal(t, "1", got.header.Get("Retry-After"))
	assert.Equal(t, "false", f.get("/items").header.Get("Report-Stored"))
	one.Release()
	other.Release()
	assert.Equal(t, 200, f.get("/reports").status)
}

// Only Rollbar's own JSON counts as its word. The answer of a proxy or a gateway, whatever its status but 413, is an
// outage: it deletes, refuses and rejects nothing.
func TestGatewayIsNotRollbar(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 302, 400, 401, 403, 404, 422, 429, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 3)
			f.app.rollbar.backoff = time.Millisecond
			next := f.app.rollbar.client.Transport
			f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				body := `<html>`
				if r.Method != "GET" {
					body = `{"message":"blocked"}` // some gateways answer in JSON, too
				}
				return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)),
					Header: http.Header{}, Request: r}, nil
			})
			uuid := newUUID()
			require.Equal(t, 202, f.create(uuid).status)
			path := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
			for _, method := range []string{"GET", "DELETE"} {
				got := f.do(method, path, "")
				assert.Contains(t, got.requireProblem(502, "unavailable"), "without its JSON")
				assert.Equal(t, fmt.Sprint(status), got.at("upstream_status"))
			}
			f.do("PATCH", path, `{"status":"resolved"}`).requireProblem(502, "unavailable")
			f.do("POST", "/reports/deliver", "")
			assert.Equal(t, "queued", f.state(uuid))

			f.app.rollbar.client.Transport = next
			f.exec(timePasses)
			f.do("POST", "/reports/deliver", "")
			assert.Equal(t, "delivered", f.state(uuid))
		})
	}
}

// Requests that wait too long for a slot are refused.
func TestTooManyCalls(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.app.rollbar.slots = make(chan struct{}, 1)
	f.sandbox.SetFault(sandbox.Slow)
	first := make(chan *answer)
	go func() { first <- f.get("/items") }()
	f.await("GET /items")
	got := f.get("/items?page=2")
	assert.Contains(t, got.requireProblem(503, "unavailable"),
		"page 2 of the items: too many requests are waiting for Rollbar")
	assert.Equal(t, "1", got.header.Get("Retry-After"))
	f.sandbox.SetFault(sandbox.None)
	assert.Equal(t, 200, (<-first).status)
}

func TestPanicIsOneAnswerAndOneLogLine(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	f := newFixture(t, 0)
	f.app.log = slog.New(slog.NewJSONHandler(&log, nil))
	broken := &Command{Name: "broken", Route: "GET /broken", Short: "x",
		Run: typed(func(context.Context, *App, struct{}) (Text, error) {
			panic("a secret detail")
		})}
	f.serve(newHandler(f.app, []*Command{broken}, &Config{}))
	got := f.get("/broken")
	assert.Equal(t, "internal error", got.requireProblem(500, "internal"))
	assert.NotContains(t, got.body, "secret")
	assert.Equal(t, 1, strings.Count(log.String(), `"msg":"panic"`))
	assert.Contains(t, log.String(), "faults_test.go")
	assert.Equal(t, 500, f.get("/broken").status, "the service goes on")
}

// Clients that do not send or read what they should are cut off.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	handler := newHandler(f.app, commands, &Config{}).(*server)
	handler.clientTimeout = 250 * time.Millisecond
	row := json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)
	cut := make(chan error, 1)
	handler.mux.HandleFunc("GET /endless", func(w http.ResponseWriter, r *http.Request) {
		defer func() { cut <- fmt.Errorf("%v", recover()) }()
		w.(*response).respond(&List{Name: "rows", Rows: func(yield func(json.RawMessage, error) bool) {
			for yield(row, nil) {
			}
		}})
	})
	f.serve(handler)
	dial := func(request string) net.Conn {
		conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		_, err = io.WriteString(conn, request)
		require.NoError(t, err)
		return conn
	}
	dial("GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
	assert.EqualError(t, <-cut, http.ErrAbortHandler.Error())
	require.Eventually(t, func() bool { return strings.Contains(f.log.String(), `"error.kind":"interrupted"`) },
		waitLimit, waitTick, "the service is not to blame")

	// A client that reads no answers is cut off, even if they are refusals.
	refused := dial("")
	request := []byte(strings.Repeat("GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 1000))
	for err := error(nil); err == nil; {
		require.NoError(t, refused.SetWriteDeadline(time.Now().Add(waitLimit)))
		_, err = refused.Write(request)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}

	text, err := io.ReadAll(dial("POST /items HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"))
	require.NoError(t, err)
	assert.Contains(t, string(text), "the body was not complete within")
}

// Work may take longer than a client is allowed for sending or reading.
func TestSlowWork(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	handler := newHandler(f.app, commands, &Config{}).(*server)
	handler.clientTimeout = 100 * time.Millisecond
	f.serve(handler)
	f.sandbox.FailOnly("GET /items", 1, sandbox.Slow)
	answers := make(chan *answer, 1)
	go func() { answers <- f.do("POST", "/items/sync", "{}") }()
	f.await("GET /items")
	<-time.After(3 * handler.clientTimeout)
	f.sandbox.SetFault(sandbox.None)
	assert.Equal(t, 200, (<-answers).status)
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.serve(newHandler(f.app, allowed(commands, true), &Config{ReadOnly: true}))
	id := f.sandbox.ItemIDs()[0]
	detail := f.do("POST", "/items", `{"message":"x"}`).requireProblem(405, "usage")
	assert.Equal(t, "/items takes GET, HEAD (READ_ONLY is set)", detail)
	f.do("DELETE", "/reports", "").requireProblem(405, "usage")
	f.do("PATCH", fmt.Sprintf("/items/%d", id), `{"status":"muted"}`).requireProblem(405, "usage")
	f.do("POST", "/reports/deliver", "").requireProblem(405, "usage")
	assert.Equal(t, 200, f.get("/items").status)
	assert.Equal(t, 200, f.do("POST", "/items/sync", "").status)

	for _, args := range []string{"items delete 5", "items create -message x", "items update 5 -level info",
		"reports clean -yes", "reports deliver"} {
		got := runShell(t, "", append([]string{"-read-only"}, strings.Fields(args)...)...)
		assert.Equal(t, 2, got.exit)
		assert.Contains(t, got.err, "is left out by READ_ONLY")
	}
	assert.NotContains(t, runShell(t, "", "-read-only", "-h").out, "DELETE")
	cmd := program(t, []string{"READ_ONLY=true"}, "items", "delete", "5")
	assert.Error(t, cmd.Run())
	assert.Equal(t, 2, cmd.ProcessState.ExitCode())
	cmd = program(t, append(f.env(), "READ_ONLY=1", "LOG_LEVEL=loud"), "items", "delete", fmt.Sprint(id), "-yes",
		"-log-level=info")
	assert.Error(t, cmd.Run())
	assert.Equal(t, 2, cmd.ProcessState.ExitCode())
	assert.NotContains(t, fmt.Sprint(f.sandbox.Requests()), "DELETE")

	p := startServe(t, append(f.env(), "READ_ONLY=true"))
	require.Eventually(t, func() bool { return f.at(p).get("/check").status == 200 }, waitLimit, waitTick)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGQUIT)) // prints all goroutines
	p.wait()
	assert.Contains(t, p.stderr(), "main.serveUntilDone")
	assert.NotContains(t, p.stderr(), "deliverQueue", "what is queued stays queued")
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	got := f.do("GET", "/nowhere", "", "X-Request-Id", "job-17.a_b")
	assert.Equal(t, "job-17.a_b", got.header.Get("X-Request-Id"))
	assert.Equal(t, `"job-17.a_b"`, got.at("request_id"))
	for _, insane := range []string{"", "a b", "<script>", strings.Repeat("x", 129)} {
		assert.NotEqual(t, insane, f.do("GET", "/which", "", "X-Request-Id", insane).header.Get("X-Request-Id"))
	}
}

// Resident memory stays within Compose's mem_limit, whatever Rollbar answers, and however many clients ask and
// however slowly they read. Small requests are answered meanwhile.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	compose, err := os.ReadFile("docker-compose.yml")
	require.NoError(t, err)
	assert.Contains(t, string(compose), fmt.Sprintf("    mem_limit: %dm ", memoryLimit>>20))

	var pages atomic.Int64
	rollbar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, name, size := pages.Add(1), "items", 100
		switch level := r.URL.Query().Get("level"); {
		case r.Method == http.MethodPost:
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, `{"err":0,"result":{}}`)
			return
		case level == "debug": // many small elements
			_, _ = io.WriteString(w, `{"err":0,"result":{"items":[`+strings.Repeat(`{"id":1},`,
				3_000_000)+`{"id":1}]}}`)
			return
		case strings.HasSuffix(r.URL.Path, "/instances"):
			name, size = "instances", 300<<10
		case level == "info": // too large
			size = 600 << 10
		case level == "error":
			size = 300 << 10
		}
		rows := make([]string, 100)
		for i := range rows {
			rows[i] = fmt.Sprintf(`{"id":%d,"environment":"a","title":"%s","data":{"metadata":{"access_token":"x"}}}`,
				n*100+int64(i), strings.Repeat("x", size))
		}
		indent := strings.Repeat(" ", int(n%2)) // makes a copy necessary
		_, _ = io.WriteString(w, `{"err":0,"result":{"`+name+`":[`+indent+strings.Join(rows, ",")+"]}}\n")
	}))
	defer rollbar.Close()
	f := newFixture(t, 0, withTimeout(3*time.Minute), func(c *Config) { c.RollbarURL = rollbar.URL })
	p := startServe(t, f.env())
	until(t, "the service is ready", func() bool { return f.at(p).get("/check").status == 200 })
	var clients sync.WaitGroup
	ask := func(method, path, body string, statuses ...int) {
		clients.Go(func() { assert.Contains(t, statuses, f.at(p).do(method, path, body).status, path) })
	}
	for n := range 6 {
		ask("GET", fmt.Sprintf("/items?level=error&page=%d", n+1), "", 200, 503)
		ask("GET", fmt.Sprintf("/items?level=info&page=%d", n+1), "", 502, 503)
		ask("GET", fmt.Sprintf("/items?level=debug&page=%d", n+1), "", 502, 503)
		ask("GET", fmt.Sprintf("/items/%d/occurrences", n+1), "", 200, 503)
	}
	clients.Wait()
	assert.Equal(t, 200, f.at(p).get("/items?level=error").status, "alone, it is answered")
	for range 24 {
		ask("POST", "/items", `{"message":"`+strings.Repeat(`\"`, 450_000)+`"}`, 201, 202, 503)
	}
	clients.Wait()
	for n := range 12 {
		for _, request := range []string{
			fmt.Sprintf("/items?level=error&page=%d HTTP/1.1", n+1), "/reports HTTP/1.1\r\nAccept: " + ndjson,
			"/reports?limit=1000 HTTP/1.1\r\nAccept-Encoding: gzip",
		} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4<<10))
			_, err = io.WriteString(conn, "GET "+request+"\r\nHost: localhost\r\n\r\n")
			require.NoError(t, err)
		}
	}
	for n := range 12 {
		until(t, "small requests are answered", func() bool {
			return f.at(p).get(fmt.Sprintf("/items?page=%d", n+1)).status == 200 &&
				f.at(p).do("POST", "/items", `{"message":"x"}`).status < 300 && f.at(p).get("/reports/1").status < 500
		})
	}
	assert.Less(t, memoryOf(p.cmd.Process.Pid, "VmHWM:"), float64(memoryLimit>>20))
}

// Clients that stop in the middle of large bodies do not hold up others.
func TestStalledBodies(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.relayTokens = []string{"sdk"} })
	for range 5 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		const header = "POST /api/1/item/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
		_, err = io.WriteString(conn, header+strings.Repeat(" ", 700_000))
		require.NoError(t, err)
	}
	for range 3 {
		a := f.do("POST", "/items", `{"message":"`+strings.Repeat("x", 600_000)+`"}`)
		assert.Contains(t, []int{201, 202}, a.status, a.body)
	}
}

// memoryOf returns a figure of a process in MiB: VmRSS: is its resident memory now, VmHWM: its peak. It is 0 for a
// process that has ended.
func memoryOf(pid int, figure string) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, found := strings.Cut(string(status), figure)
	if !found {
		return 0
	}
	return float64(atoi(strings.Fields(rest)[0])) / 1024
}

package datadog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/devpg/devpgtest"
)

// plain returns the span without what differs from run to run, and without what every span has.
func plain(s datadogtest.Span) datadogtest.Span {
	s.TraceID, s.SpanID, s.ParentID, s.Start, s.Duration = 0, 0, 0, 0, 0
	for _, key := range []string{"runtime-id", "_dd.p.tid", "language", "env", "version", "error.stack"} {
		delete(s.Meta, key)
	}
	delete(s.Metrics, "_sampling_priority_v1")
	return s
}

func TestTraceOnTheWire(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	settings := settingsFor(agent)
	settings.Tags = "team:core"
	telemetry := startTestTelemetry(t, settings)
	began := time.Now()
	ctx, root := telemetry.StartSpan(t.Context(), "app.command", "custom", "GET /items")
	_, child := telemetry.StartSpan(ctx, "step", "sql", "SELECT \"é\\\x00\n\xff\"")
	child.SetTag("key", "old")
	child.SetTag("key", "new")
	child.SetMetric("rows", 3)
	child.SetMetric("rows", 12.5)
	child.SetMetric("no number", math.NaN())
	child.Finish()
	child.SetTag("key", "too late")
	child.Finish()
	root.Finish()

	spans := datadogtest.Receive(t, agent.Traces)
	require.Len(t, spans, 2)
	first, second := spans[0], spans[1]
	assert.Equal(t, root.traceID(), first.ID128())
	assert.Equal(t, fmt.Sprintf("%08x00000000", first.Start/int64(time.Second)), first.Meta["_dd.p.tid"], "the id begins with the time")
	assert.Zero(t, first.ParentID)
	assert.Equal(t, first.SpanID, second.ParentID)
	assert.Equal(t, began.Round(0).UnixNano(), min(began.UnixNano(), first.Start))
	assert.LessOrEqual(t, first.Start, second.Start)
	assert.LessOrEqual(t, second.Duration, first.Duration)
	assert.Equal(t, map[string]float64{"_sampling_priority_v1": 1}, first.Metrics)
	assert.Len(t, first.Meta["runtime-id"], 36)
	delete(first.Meta, "runtime-id")
	delete(first.Meta, "_dd.p.tid")
	assert.Equal(t, map[string]string{"env": "prod", "version": "1.2.3", "team": "core", "language": "go"}, first.Meta)
	assert.Equal(t, datadogtest.Span{
		Service: "shop", Name: "step", Type: "sql", Resource: "SELECT \"é\\\x00\n\ufffd\"",
		Meta: map[string]string{"team": "core", "key": "new"}, Metrics: map[string]float64{"rows": 12.5},
	}, plain(second))
}

func TestTraceOfManySpans(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	ctx, root := telemetry.StartSpan(t.Context(), "step", "custom", "root")
	const children = 2*maxChunkSpans + 10
	for range children {
		_, child := telemetry.StartSpan(ctx, "step", "custom", "child")
		child.Finish()
	}
	assert.Empty(t, root.trace.finished[10:], "what is held in memory")
	root.Finish()
	seen := 0
	for seen < children+1 {
		spans := datadogtest.Receive(t, agent.Traces)
		assert.Equal(t, root.traceID(), spans[0].ID128())
		seen += len(spans)
	}
}

func TestSpanThatOutlivesItsTrace(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	ctx, root := telemetry.StartSpan(t.Context(), "step", "custom", "root")
	_, late := telemetry.StartSpan(ctx, "step", "custom", "late")
	root.Finish()
	require.Len(t, datadogtest.Receive(t, agent.Traces), 1)
	late.Finish()
	spans := datadogtest.Receive(t, agent.Traces)
	require.Len(t, spans, 1)
	assert.Equal(t, root.traceID(), spans[0].ID128())
	assert.Equal(t, root.id, spans[0].ParentID)

	later, above := telemetry.StartSpan(ctx, "step", "custom", "later")
	_, below := telemetry.StartSpan(later, "step", "custom", "below")
	below.Finish()
	above.Finish()
	spans = datadogtest.Receive(t, agent.Traces)
	require.Len(t, spans, 2, "a part of its own")
	assert.Equal(t, root.traceID(), spans[0].ID128())
	assert.Equal(t, root.id, spans[0].ParentID)
}

func TestSpanThatFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		err      error
		message  string
		typeName string
	}{
		{"a plain error", errors.New("no luck"), "no luck", "*errors.errorString"},
		{"the type below added words", fmt.Errorf("item 7: %w", &net.DNSError{Err: "no such host"}), "item 7: lookup : no such host", "*net.DNSError"},
		{"a URL with a query", &url.Error{Op: "Get", URL: "https://h/p?token=secret", Err: io.EOF}, `Get "https://h/p": EOF`, "*errors.errorString"},
		{"a constraint", &pgconn.PgError{Severity: "ERROR", Code: "23505", Message: `duplicate key value violates "uuid_key"`}, `ERROR: duplicate key value violates "uuid_key" (SQLSTATE 23505)`, "*pgconn.PgError"},
		{"data that PostgreSQL quotes", fmt.Errorf("keep: %w", &pgconn.PgError{Severity: "ERROR", Code: "22P02", Message: `invalid input: "secret"`}), "keep: ERROR: unfit data (SQLSTATE 22P02)", "*pgconn.PgError"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			telemetry := startTestTelemetry(t, settingsFor(agent))
			_, s := telemetry.StartSpan(t.Context(), "step", "custom", "thing")
			s.SetError(nil)
			s.SetError(tt.err)
			s.SetError(errors.New("what follows from it"))
			s.Finish()
			got := datadogtest.Receive(t, agent.Traces)[0]
			assert.EqualValues(t, 1, got.Error)
			assert.Contains(t, got.Meta["error.stack"], "TestSpanThatFails")
			assert.Equal(t, map[string]string{"error.message": tt.message, "error.type": tt.typeName}, plain(got).Meta)
		})
	}
}

// headers are those of an HTTP request: "Name: value", one a line.
func headers(lines ...string) http.Header {
	header := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		header.Add(name, value)
	}
	return header
}

func TestExtract(t *testing.T) {
	t.Parallel()
	const high, low, parent = 0x4bf92f3577b34da6, 0xa3ce929d0e0e4736, 0x00f067aa0ba902b7
	datadog := []string{"x-datadog-trace-id: 11803532876627986230", "x-datadog-parent-id: 67667974448284343", "x-datadog-tags: _dd.p.dm=-4,_dd.p.tid=4bf92f3577b34da6"}
	const traceparent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	dm := []spanTag{{"_dd.p.dm", "-4"}}
	for _, tt := range []struct {
		name   string
		header http.Header
		want   any
	}{
		{"nothing", headers(), nil},
		{"Datadog's with too many tags", headers(datadog[0], datadog[1], datadog[2]+",_dd.p.x="+strings.Repeat("x", 500)), traceOrigin{0, low, parent, 1, "", nil}},
		{"our tags in the state", headers(traceparent, "tracestate: dd=s:1;t.dm:-4;t.tid:4bf92f3577b34da6;t.usr.id:YQ~~;x:1"), traceOrigin{high, low, parent, 1, "", append(dm, spanTag{"_dd.p.usr.id", "YQ=="})}},
		{"more states of others than there may be", headers(traceparent, "tracestate: "+strings.Repeat("a=1,", 40)), traceOrigin{high, low, parent, 1, strings.Repeat(",a=1", 31)[1:], nil}},
		{"Datadog's", headers(datadog...), traceOrigin{high, low, parent, 1, "", dm}},
		{"Datadog's with a priority", headers(append(datadog, "x-datadog-sampling-priority: -1")...), traceOrigin{high, low, parent, -1, "", dm}},
		{"Datadog's with a priority that is none", headers(append(datadog, "x-datadog-sampling-priority: 9")...), traceOrigin{high, low, parent, 1, "", dm}},
		{"Datadog's with 64 bits", headers(datadog[:2]...), traceOrigin{0, low, parent, 1, "", nil}},
		{"Datadog's malformed", headers("x-datadog-trace-id: 4bf9", "x-datadog-parent-id: 1"), nil},
		{"Datadog's without a parent", headers(datadog[0]), nil},
		{"the W3C's", headers(traceparent), traceOrigin{high, low, parent, 1, "", nil}},
		{"the W3C's, not sampled", headers(strings.TrimSuffix(traceparent, "01") + "00"), traceOrigin{high, low, parent, 0, "", nil}},
		{"a state that agrees with the flag", headers(traceparent, "tracestate: dd=s:2;p:00f067aa0ba902b7"), traceOrigin{high, low, parent, 2, "", nil}},
		{"a state that contradicts the flag", headers(traceparent, "tracestate: dd=s:-1"), traceOrigin{high, low, parent, 1, "", nil}},
		{"states of others", headers(traceparent, "tracestate: a=1, dd=s:1", "tracestate: b=2"), traceOrigin{high, low, parent, 1, "a=1,b=2", nil}},
		{"a later version", headers(strings.Replace(traceparent, "00-", "01-", 1) + "-more"), traceOrigin{high, low, parent, 1, "", nil}},
		{"version 00 with more", headers(traceparent + "-more"), nil},
		{"the forbidden version", headers(strings.Replace(traceparent, "00-", "ff-", 1)), nil},
		{"capital letters", headers(strings.Replace(traceparent, "4bf9", "4BF9", 1)), nil},
		{"an id of zeros", headers("traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01"), nil},
		{"a short id", headers("traceparent: 00-4bf92f35-00f067aa0ba902b7-01"), nil},
		{"rubbish", headers("traceparent: ---"), nil},
		{"both of one trace: the W3C's parent", headers(append(datadog, "x-datadog-sampling-priority: 2", strings.Replace(traceparent, "02b7", "02b8", 1), "tracestate: a=1")...), traceOrigin{high, low, parent + 1, 2, "a=1", dm}},
		{"both of traces of half the same id", headers(append(datadog, strings.Replace(traceparent, "4bf9", "4bf8", 1))...), traceOrigin{high, low, parent, 1, "", dm}},
		{"both, Datadog's without the higher half", headers(datadog[0], datadog[1], traceparent), traceOrigin{high, low, parent, 1, "", nil}},
		{"both of two traces: Datadog's", headers(append(datadog, strings.Replace(traceparent, "4736", "4737", 1))...), traceOrigin{high, low, parent, 1, "", dm}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			telemetry := &Client{printer: &tracePrinter{}}
			assert.Equal(t, tt.want, telemetry.extract(t.Context(), tt.header).Value(spanKey{}))
		})
	}
}

func TestInject(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		in, out http.Header
	}{
		{"a W3C trace", headers(
			"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			"tracestate: other=1,dd=t.usr.id:YQ~~",
		), headers(
			"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-0633a3eb0fb7aceb-01",
			"tracestate: dd=s:1;p:0633a3eb0fb7aceb;t.tid:4bf92f3577b34da6;t.usr.id:YQ~~,other=1",
			"x-datadog-trace-id: 11803532876627986230",
			"x-datadog-parent-id: 446881018016148715",
			"x-datadog-sampling-priority: 1",
			"x-datadog-tags: _dd.p.tid=4bf92f3577b34da6,_dd.p.usr.id=YQ==",
		)},
		{"a Datadog trace of 64 bits that is not kept", headers(
			"x-datadog-trace-id: 7", "x-datadog-parent-id: 8", "x-datadog-sampling-priority: -1",
		), headers(
			"traceparent: 00-00000000000000000000000000000007-0633a3eb0fb7aceb-00",
			"tracestate: dd=s:-1;p:0633a3eb0fb7aceb",
			"x-datadog-trace-id: 7",
			"x-datadog-parent-id: 446881018016148715",
			"x-datadog-sampling-priority: -1",
		)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			telemetry := &Client{printer: &tracePrinter{}}
			_, s := telemetry.StartSpan(telemetry.extract(t.Context(), tt.in), "step", "custom", "thing")
			s.id = 446881018016148715
			header := http.Header{}
			s.Inject(header)
			assert.Equal(t, tt.out, header)
		})
	}
}

// A place that is kept is enough to continue a trace with all that belongs to it.
func TestTraceThatContinuesLater(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	for _, priority := range []int{-1, 0, 1, 2} {
		ctx := telemetry.extract(t.Context(), headers("x-datadog-trace-id: 7", "x-datadog-parent-id: 8", "x-datadog-tags: _dd.p.dm=-4,_dd.p.tid=4bf92f3577b34da6",
			fmt.Sprintf("x-datadog-sampling-priority: %d", priority), "traceparent: 00-4bf92f3577b34da60000000000000007-0000000000000009-01", "tracestate: other=1"))
		_, before := telemetry.StartSpan(ctx, "http.request", "web", "POST /items")
		kept := before.TraceContext()
		before.Finish()
		first := datadogtest.Receive(t, agent.Traces)[0]
		_, after := telemetry.StartSpan(telemetry.ContinueTrace(t.Context(), kept), "app.delivery", "custom", "delivery")
		after.Finish()
		span := datadogtest.Receive(t, agent.Traces)[0]
		assert.Equal(t, first.ID128(), span.ID128())
		assert.Equal(t, before.id, span.ParentID)
		assert.EqualValues(t, priority, span.Metrics["_sampling_priority_v1"])
		assert.Equal(t, "-4", span.Meta["_dd.p.dm"])
		assert.Equal(t, before.trace.state, after.trace.state)
	}
}

func TestServerSpan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		method, pattern string
		status          int
		err             error
		resource, fail  string
	}{
		{"a route", "GET", "GET /items/{id}", 200, nil, "GET /items/{id}", ""},
		{"a HEAD request of a GET route", "HEAD", "GET /items/{id}", 200, nil, "HEAD /items/{id}", ""},
		{"no route", "GET", "", 404, errors.New("there is no route"), "GET (no route)", ""},
		{"a failure with its reason", "GET", "GET /items/{id}", 502, errors.New("Rollbar is down"), "GET /items/{id}", "Rollbar is down"},
		{"a failure without a reason", "GET", "GET /items/{id}", 500, nil, "GET /items/{id}", "500: Internal Server Error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			telemetry := startTestTelemetry(t, settingsFor(agent))
			r := httptest.NewRequest(tt.method, "http://user@host:80/items/7?token=secret", nil)
			r.Header.Set("User-Agent", "test")
			r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
			_, s := telemetry.StartRequest(r)
			s.FinishRequest(r, tt.pattern, tt.status, tt.err)
			got := datadogtest.Receive(t, agent.Traces)[0]
			assert.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", got.ID128())
			assert.EqualValues(t, 0x00f067aa0ba902b7, got.ParentID)
			want := datadogtest.Span{
				Service: "shop", Name: "http.request", Type: "web", Resource: tt.resource,
				Meta: map[string]string{
					"span.kind": "server", "component": "net/http", "http.method": tt.method,
					"http.url": "http://host:80/items/7", "http.host": "host:80", "http.useragent": "test",
					"http.status_code": fmt.Sprint(tt.status),
				},
				Metrics: map[string]float64{},
			}
			if tt.pattern != "" {
				want.Meta["http.route"] = "/items/{id}"
			}
			got = plain(got)
			if tt.fail != "" {
				want.Error = 1
				want.Meta["error.message"], want.Meta["error.type"] = tt.fail, got.Meta["error.type"]
			}
			assert.Equal(t, want, got)
		})
	}
}

func TestClientSpan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		class  string
		failed int
	}{
		{"success", 200, "2xx", 0},
		{"not found is an answer", 404, "4xx", 0},
		{"refused", 401, "4xx", 1},
		{"broken", 500, "5xx", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			telemetry := startTestTelemetry(t, settingsFor(agent))
			var received http.Header
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				received = r.Header
				w.WriteHeader(tt.status)
			}))
			defer upstream.Close()
			client := http.Client{Transport: telemetry.Transport(http.DefaultTransport, "app.rollbar", func(r *http.Request) string { return r.Method + " /item/{id}" })}
			ctx, root := telemetry.StartSpan(t.Context(), "app.command", "custom", "GET /items/{id}")
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, upstream.URL+"/item/7?token=secret", nil)
			require.NoError(t, err)
			answer, err := client.Do(req)
			require.NoError(t, err)
			require.NoError(t, answer.Body.Close())
			root.Finish()
			assert.Empty(t, req.Header, "the caller's own")

			spans := datadogtest.Receive(t, agent.Traces)
			require.Len(t, spans, 2)
			assert.Equal(t, spans[0].SpanID, spans[1].ParentID)
			assert.Equal(t, fmt.Sprintf("00-%s-%s-01", root.traceID(), Hex64(spans[1].SpanID)), received.Get("Traceparent"))
			port, err := strconv.ParseFloat(req.URL.Port(), 64)
			require.NoError(t, err)
			want := datadogtest.Span{
				Service: "shop", Name: "http.request", Type: "http", Resource: "GET /item/{id}", Error: int32(tt.failed),
				Meta: map[string]string{
					"span.kind": "client", "component": "net/http", "http.method": "GET", "http.url": upstream.URL + "/item/7",
					"network.destination.name": "127.0.0.1", "http.status_code": fmt.Sprint(tt.status),
				},
				Metrics: map[string]float64{"network.destination.port": port},
			}
			if tt.failed == 1 {
				want.Meta["error.message"] = fmt.Sprintf("%d: %s", tt.status, http.StatusText(tt.status))
				want.Meta["error.type"] = "datadog.StatusError"
			}
			assert.Equal(t, want, plain(spans[1]))
			calls := awaitMetric(t, agent, "app.rollbar.calls")
			assert.Equal(t, []string{"env:prod", "method:GET", "service:shop", "status_class:" + tt.class, "version:1.2.3"}, calls.Tags)
		})
	}
}

func TestClientSpanWithoutAnswer(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	broken := telemetry.Transport(roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(io.MultiReader(strings.NewReader("half"), failingReader{}))}, nil
	}), "app.rollbar", func(*http.Request) string { return "GET /items" })
	answer, err := broken.RoundTrip(httptest.NewRequestWithContext(t.Context(), "GET", "http://host/items", nil))
	require.NoError(t, err)
	_, err = io.ReadAll(answer.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NoError(t, answer.Body.Close())
	assert.Equal(t, "unexpected EOF", datadogtest.Receive(t, agent.Traces)[0].Meta["error.message"], "an answer that breaks off")

	absent := telemetry.Transport(roundTripper(func(*http.Request) (*http.Response, error) {
		return nil, io.ErrUnexpectedEOF
	}), "app.rollbar", func(*http.Request) string { return "GET /items" })
	_, err = absent.RoundTrip(httptest.NewRequestWithContext(t.Context(), "GET", "http://host/items", nil))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	span := datadogtest.Receive(t, agent.Traces)[0]
	assert.EqualValues(t, 1, span.Error, "no answer")
	assert.NotContains(t, span.Meta, "http.status_code")
	for awaitMetric(t, agent, "app.rollbar.calls").Tags[3] != "status_class:error" {
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// tracedPool returns a pool of connections to a test database, traced.
func tracedPool(t testing.TB, telemetry *Client) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(devpgtest.Schema(t))
	require.NoError(t, err)
	config.ConnConfig.Tracer = telemetry.PgxTracer(config.ConnConfig)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func TestSQLSpans(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	pool := tracedPool(t, telemetry)
	_, err := pool.Exec(t.Context(), "CREATE TABLE things (id integer PRIMARY KEY, name text)")
	require.NoError(t, err)

	ctx, root := telemetry.StartSpan(t.Context(), "app.command", "custom", "things")
	_, err = pool.Exec(ctx, "INSERT INTO things VALUES ($1, $2), (2, 'b')", 1, "secret")
	require.NoError(t, err)
	var name string
	err = pool.QueryRow(ctx, "SELECT name FROM things WHERE id = @id", pgx.NamedArgs{"id": 3}).Scan(&name)
	require.ErrorIs(t, err, pgx.ErrNoRows)
	_, err = pool.Exec(ctx, "SELECT 1 / $1::integer", 0)
	require.Error(t, err)
	batch := &pgx.Batch{}
	batch.Queue("DELETE FROM things WHERE id = $1", 1)
	require.NoError(t, pool.SendBatch(ctx, batch).Close())
	_, err = pool.CopyFrom(ctx, pgx.Identifier{"things"}, []string{"id"}, pgx.CopyFromRows([][]any{{7}, {8}}))
	require.NoError(t, err)
	root.Finish()

	type seen struct {
		name, kind, resource, operation, message string
		rows                                     float64
	}
	var got []seen
	for _, s := range datadogtest.Receive(t, agent.Traces) {
		assert.NotContains(t, fmt.Sprint(s), "secret")
		if s.Name == "app.command" || s.Name == "pgx.pool.acquire" {
			continue
		}
		got = append(got, seen{s.Name, s.Type, s.Resource, s.Meta["db.operation"], s.Meta["error.message"], s.Metrics["db.result.rows_affected"]})
		assert.Equal(t, "postgresql", s.Meta["db.system"])
		assert.Equal(t, "client", s.Meta["span.kind"])
		assert.Equal(t, pool.Config().ConnConfig.Database, s.Meta["db.name"])
		assert.Equal(t, pool.Config().ConnConfig.User, s.Meta["db.user"])
		assert.Equal(t, pool.Config().ConnConfig.Host, s.Meta["network.destination.name"])
		assert.EqualValues(t, pool.Config().ConnConfig.Port, s.Metrics["network.destination.port"])
		if s.Type == "sql" && s.Name != "pgx.copy_from" {
			assert.Equal(t, s.Resource, s.Meta["db.statement"])
		}
	}
	got = slices.DeleteFunc(got, func(s seen) bool { return s.name == "pgx.prepare" || s.name == "pgx.connect" })
	assert.Equal(t, []seen{
		{"pgx.query", "sql", "INSERT INTO things VALUES ($1, $2), (2, 'b')", "Query", "", 2},
		{"pgx.query", "sql", "SELECT name FROM things WHERE id = @id", "Query", "", 0},
		{"pgx.query", "sql", "SELECT 1 / $1::integer", "Query", "ERROR: unfit data (SQLSTATE 22012)", 0},
		{"pgx.batch", "db", "Batch", "Batch", "", 0},
		{"pgx.batch.query", "sql", "DELETE FROM things WHERE id = $1", "Query", "", 1},
		{"pgx.copy_from", "sql", `COPY "things" FROM STDIN`, "Copy From", "", 2},
	}, got)
}

func TestStatementsWithoutLimits(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"SELECT 1":          "SELECT 1",
		"SELECT 1 LIMIT $1": "SELECT 1 LIMIT $1",
		"SELECT (SELECT 1 LIMIT 1 OFFSET 19 - 1) LIMIT 20": "SELECT (SELECT 1 LIMIT ? OFFSET ? - 1) LIMIT ?",
	} {
		assert.Equal(t, want, withoutLimits(given))
	}
}

func TestConnectionSpans(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	pool := tracedPool(t, telemetry)
	ctx, root := telemetry.StartSpan(t.Context(), "app.command", "custom", "things")
	_, err := pool.Exec(ctx, "SELECT $1::integer", 1)
	require.NoError(t, err)
	pool.Close()
	root.Finish()
	var names []string
	for _, s := range datadogtest.Receive(t, agent.Traces) {
		names = append(names, s.Name+" "+s.Type)
	}
	assert.Subset(t, names, []string{"pgx.pool.acquire db", "pgx.connect db", "pgx.prepare sql", "pgx.query sql"})
}

func TestSQLOutsideOfTraces(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	_, err := tracedPool(t, telemetry).Exec(t.Context(), "SELECT 1")
	require.NoError(t, err)
	telemetry.Close(time.Minute)
	assert.Empty(t, agent.Traces)
}

func TestTracePrinter(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	telemetry := startTestTelemetry(t, Settings{Print: &out})
	ctx, root := telemetry.StartSpan(t.Context(), "http.request", "web", "GET /items/{id}")
	upstream, call := telemetry.StartSpan(ctx, "http.request", "http", "GET /item/{id}")
	_, inner := telemetry.StartSpan(upstream, "step", "custom", "inner")
	inner.Finish()
	call.SetError(errors.New("no\nluck"))
	call.Finish()
	_, query := telemetry.StartSpan(ctx, "pgx.query", "sql", "SELECT id\n\t\tFROM reports\n\t\tWHERE "+strings.Repeat("very ", 50)+"long")
	query.Finish()
	root.SetTag("http.status_code", "200")
	root.Finish()
	times := regexp.MustCompile(`(?m)^ +\d+\.\d\d ms +\d+\.\d\d ms  `)
	assert.Equal(t, "trace "+root.traceID()+`
GET /items/{id} 200
  GET /item/{id} error: "no\nluck"
    inner
  SELECT id FROM reports WHERE `+strings.Repeat("very ", 12)+"…\n",
		strings.NewReplacer("http.request ", "", "step ", "", "pgx.query ", "").Replace(times.ReplaceAllString(out.String(), "")))
}

// BenchmarkRequest is what tracing adds to a request with a call and two statements, sending
// included.
func BenchmarkRequest(b *testing.B) {
	run := func(b *testing.B, telemetry *Client) {
		r := httptest.NewRequest("GET", "http://host/reports?limit=20", nil)
		tracer, _ := telemetry.PgxTracer(&pgx.ConnConfig{Config: pgconn.Config{Host: "localhost", Port: 5432, Database: "app", User: "app"}}).(*pgxTracer)
		const sql = "\n\t\tSELECT id, item_id, uuid, state, first_seen, last_seen, data\n\t\tFROM reports\n\t\tWHERE id < @before\n\t\tORDER BY id DESC\n\t\tLIMIT @limit"
		b.ReportAllocs()
		for b.Loop() {
			ctx, s := telemetry.StartRequest(r)
			acquire := tracer.TraceAcquireStart(ctx, nil, pgxpool.TraceAcquireStartData{})
			tracer.TraceAcquireEnd(acquire, nil, pgxpool.TraceAcquireEndData{})
			for range 2 {
				query := tracer.TraceQueryStart(ctx, nil, pgx.TraceQueryStartData{SQL: sql})
				tracer.TraceQueryEnd(query, nil, pgx.TraceQueryEndData{})
			}
			s.FinishRequest(r, "GET /reports", 200, nil)
			telemetry.Count("app.requests", 1, "operation:reports.list", "surface:http", "outcome:ok")
			telemetry.Latency("app.requests.latency", time.Millisecond, "operation:reports.list", "surface:http", "outcome:ok")
		}
	}
	b.Run("off", func(b *testing.B) { run(b, nil) })
	b.Run("on", func(b *testing.B) {
		agent := datadogtest.New(b)
		agent.AnswerWith(func(w http.ResponseWriter, r *http.Request) bool {
			<-agent.Calls
			_, _ = io.Copy(io.Discard, r.Body)
			return true
		})
		settings := settingsFor(agent)
		settings.Interval = 2 * time.Second
		telemetry := startTestTelemetry(b, settings)
		run(b, telemetry)
		telemetry.Close(time.Minute)
		b.ReportMetric(float64(telemetry.traces.losses.dropped())/float64(b.N), "dropped/op")
	})
}

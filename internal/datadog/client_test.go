package datadog

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
)

// settingsFor returns the settings of a client that sends to the agent every millisecond.
func settingsFor(a *datadogtest.Agent) Settings {
	return Settings{
		TraceAgentURL: "http://" + a.Address,
		DogStatsDURL:  "udp://" + a.Packets.LocalAddr().String(),
		TraceEnabled:  true,
		Service:       "shop",
		Env:           "prod",
		Version:       "1.2.3",
		Interval:      time.Millisecond,
	}
}

// start starts a client that ends with the test.
func start(t testing.TB, settings Settings) *Client {
	t.Helper()
	if settings.Log == nil {
		settings.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	client, err := Start(settings)
	require.NoError(t, err)
	t.Cleanup(func() { client.Close(0) })
	return client
}

// logTo returns a log that keeps its lines.
func logTo(lines *datadogtest.LogLines) *slog.Logger {
	return slog.New(NewLogHandler(lines, slog.LevelInfo, Settings{Service: "app"}))
}

// dropped returns the number of drops in the log.
func dropped(log *datadogtest.LogLines, unit string) (n int) {
	for _, line := range log.Lines() {
		count, _ := line["dropped_"+unit].(float64)
		n += int(count)
	}
	return n
}

// awaitDropped waits for a drop in the log and returns the first line.
func awaitDropped(t testing.TB, log *datadogtest.LogLines, unit string) map[string]any {
	t.Helper()
	require.Eventually(t, func() bool { return dropped(log, unit) > 0 }, 20*time.Second, time.Millisecond)
	return log.Lines()[0]
}

// plain returns the span without the fields that differ between runs and the tags of every span.
func plain(s datadogtest.Span) datadogtest.Span {
	s.TraceID, s.SpanID, s.ParentID, s.Start, s.Duration = 0, 0, 0, 0, 0
	for _, key := range []string{"runtime-id", "_dd.p.tid", "_dd.p.dm", "language", "env", "version", "error.stack"} {
		delete(s.Meta, key)
	}
	delete(s.Metrics, "_sampling_priority_v1")
	return s
}

func TestClientOff(t *testing.T) {
	t.Parallel()
	off, err := Start(Settings{TraceEnabled: true, Service: "shop", Env: "prod", Tags: "team:core"})
	require.NoError(t, err)
	require.Nil(t, off)

	ctx, s := off.StartSpan(t.Context(), "step", "custom", "thing")
	assert.Equal(t, t.Context(), ctx)
	assert.Nil(t, s)
	s.SetTag("key", "value")
	s.SetMetric("key", 1)
	s.SetError(assert.AnError)
	header := http.Header{}
	s.Inject(header)
	s.Finish()
	assert.Empty(t, header)
	assert.Empty(t, s.TraceContext())
	assert.Nil(t, off.PgxTracer(nil))
	off.StartCall(nil, "app.rollbar", nil)(nil, nil)
	assert.Equal(t, t.Context(), off.ContinueTrace(t.Context(),
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	off.Count("app.things", 1)
	off.Gauge("app.things", 1)
	off.Latency("app.things", 1)
	off.ObserveRuntime()
	off.Close(time.Minute)
}

func TestUnixSockets(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "dd") // the path of t.TempDir can be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	apm, dsd := filepath.Join(dir, "apm"), filepath.Join(dir, "dsd")
	listener, err := net.Listen("unix", apm)
	require.NoError(t, err)
	packets, err := net.ListenPacket("unixgram", dsd)
	require.NoError(t, err)
	agent := datadogtest.Start(t, listener, packets)
	settings := settingsFor(agent)
	settings.TraceAgentURL, settings.DogStatsDURL = "unix://"+apm, "unix://"+dsd
	client := start(t, settings)

	_, s := client.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	assert.Equal(t, "thing", datadogtest.Receive(t, agent.Traces)[0].Resource)
	client.Count("app.things", 1)
	assert.Equal(t, []string{"env:prod", "service:shop", "version:1.2.3"}, datadogtest.Receive(t, agent.Metrics).Tags)
}

func TestCloseSendsTheRest(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	settings := settingsFor(agent)
	settings.Interval = time.Hour
	client := start(t, settings)
	_, s := client.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	client.Count("app.things", 1)

	client.Close(time.Minute)
	assert.Len(t, datadogtest.Drained(agent.Traces), 1)
	agent.Metric("app.things")
}

func TestCloseGivesUp(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	agent.Hang()
	settings := settingsFor(agent)
	settings.timeout = time.Hour
	var log datadogtest.LogLines
	settings.Log = logTo(&log)
	client := start(t, settings)
	_, s := client.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	datadogtest.Receive(t, agent.Calls)

	client.Close(10 * time.Millisecond)
	assert.EqualValues(t, 1, dropped(&log, "spans"))
}

func TestDropsAreLogged(t *testing.T) {
	t.Parallel()
	var log datadogtest.LogLines
	d := &drops{log: logTo(&log)}
	d.report()
	assert.Empty(t, log.Lines(), "nothing was dropped")

	d.add(2, 0, assert.AnError)
	d.report()
	assert.Equal(t, 2, dropped(&log, "spans"), "the first drop is logged at once")

	d.add(3, 0, assert.AnError)
	d.add(4, 0, io.ErrUnexpectedEOF)
	d.add(0, 1, io.ErrClosedPipe)
	d.report()
	assert.Len(t, log.Lines(), 1, "the last line is too recent")

	d.logged = d.logged.Add(-quietTime)
	d.report()
	d.report()
	lines := log.Lines()
	require.Len(t, lines, 2, "one line for both units")
	assert.EqualValues(t, 7, lines[1]["dropped_spans"])
	assert.EqualValues(t, 1, lines[1]["dropped_packets"])
	assert.Equal(t, "io: read/write on closed pipe", lines[1]["reason"], "the latest one")
}

// BenchmarkRequest measures the cost of tracing a request with two statements, including the requests to the
// agent.
func BenchmarkRequest(b *testing.B) {
	run := func(b *testing.B, client *Client) {
		r := httptest.NewRequest("GET", "http://host/reports?limit=20", nil)
		tracer, _ := client.PgxTracer(&pgx.ConnConfig{Config: pgconn.Config{Host: "localhost", Port: 5432,
			Database: "app", User: "app"}}).(*pgxTracer)
		const sql = "\n\t\tSELECT id, item_id, uuid, state, first_seen, last_seen, data\n\t\tFROM reports\n\t\tWHERE " +
			"id < @before\n\t\tORDER BY id DESC\n\t\tLIMIT @limit"
		b.ReportAllocs()
		for b.Loop() {
			ctx, s := client.StartRequest(r)
			acquire := tracer.TraceAcquireStart(ctx, nil, pgxpool.TraceAcquireStartData{})
			tracer.TraceAcquireEnd(acquire, nil, pgxpool.TraceAcquireEndData{})
			for range 2 {
				query := tracer.TraceQueryStart(ctx, nil, pgx.TraceQueryStartData{SQL: sql})
				tracer.TraceQueryEnd(query, nil, pgx.TraceQueryEndData{})
			}
			s.FinishRequest(r, "GET /reports", 200, nil)
			client.Count("app.requests", 1, "operation:reports.list", "surface:http", "outcome:ok")
			client.Latency("app.requests.latency", time.Millisecond, "operation:reports.list", "surface:http",
				"outcome:ok")
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
		var log datadogtest.LogLines
		settings := settingsFor(agent)
		settings.Log = logTo(&log)
		settings.Interval = 2 * time.Second
		client := start(b, settings)
		run(b, client)
		client.Close(time.Minute)
		b.ReportMetric(float64(dropped(&log, "spans"))/float64(b.N), "dropped/op")
	})
}

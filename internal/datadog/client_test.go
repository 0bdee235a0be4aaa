package datadog

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
)

func TestTelemetryOff(t *testing.T) {
	t.Parallel()
	off, err := Start(Settings{TraceEnabled: true, Service: "shop", Env: "prod", Tags: "team:core"})
	require.NoError(t, err)
	require.Nil(t, off)

	ctx, s := off.StartSpan(t.Context(), "step", "custom", "thing")
	assert.Equal(t, t.Context(), ctx)
	assert.Nil(t, s)
	s.SetTag("key", "value")
	s.SetMetric("key", 1)
	s.SetResource("other")
	s.SetError(assert.AnError)
	header := http.Header{}
	s.Inject(header)
	s.Finish()
	assert.Empty(t, header)
	assert.Empty(t, s.traceID()+s.TraceContext())
	assert.Nil(t, off.PgxTracer(nil))
	assert.Equal(t, http.DefaultTransport, off.Transport(http.DefaultTransport, "app.rollbar", nil))
	assert.Equal(t, t.Context(), off.ContinueTrace(t.Context(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	off.Count("app.things", 1)
	off.Gauge("app.things", 1)
	off.Latency("app.things", 1)
	off.OnFlush(func() { t.Error("nobody observes") })
	off.Close(time.Minute)
}

func TestTelemetryAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		settings         Settings
		traces, socket   string
		network, metrics string
	}{
		{name: "nothing set"},
		{name: "the host switches on both", settings: Settings{AgentHost: "agent"},
			traces: "http://agent:8126/v0.4/traces", network: "udp", metrics: "agent:8125"},
		{name: "an IPv6 host", settings: Settings{AgentHost: "fd00::7"},
			traces: "http://[fd00::7]:8126/v0.4/traces", network: "udp", metrics: "[fd00::7]:8125"},
		{name: "an IPv6 host in brackets", settings: Settings{AgentHost: "[fd00::7]", DogStatsDPort: "9125"},
			traces: "http://[fd00::7]:8126/v0.4/traces", network: "udp", metrics: "[fd00::7]:9125"},
		{name: "a port of traces only", settings: Settings{TraceAgentPort: "9126"},
			traces: "http://localhost:9126/v0.4/traces"},
		{name: "a port of metrics only", settings: Settings{DogStatsDPort: "9125"},
			network: "udp", metrics: "localhost:9125"},
		{name: "a URL of traces only", settings: Settings{TraceAgentURL: "https://agent:443"},
			traces: "https://agent:443/v0.4/traces"},
		{name: "a URL of metrics only", settings: Settings{DogStatsDURL: "udp://agent"},
			network: "udp", metrics: "agent:8125"},
		{name: "URLs before host and port",
			settings: Settings{AgentHost: "other", TraceAgentPort: "1", DogStatsDPort: "1",
				TraceAgentURL: "http://[fd00::7]:81/", DogStatsDURL: "udp://[fd00::7]:82"},
			traces: "http://[fd00::7]:81/v0.4/traces", network: "udp", metrics: "[fd00::7]:82"},
		{name: "unix sockets",
			settings: Settings{TraceAgentURL: "unix:///run/apm.socket", DogStatsDURL: "unix:///run/dsd.socket"},
			traces:   "http://localhost/v0.4/traces", socket: "/run/apm.socket", network: "unixgram", metrics: "/run/dsd.socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.settings.TraceEnabled = true
			target, socket, err := tt.settings.traceAddress()
			require.NoError(t, err)
			assert.Equal(t, []string{tt.traces, tt.socket}, []string{target, socket})
			network, address, err := tt.settings.metricAddress()
			require.NoError(t, err)
			assert.Equal(t, []string{tt.network, tt.metrics}, []string{network, address})

			tt.settings.TraceEnabled = false
			target, _, err = tt.settings.traceAddress()
			require.NoError(t, err)
			assert.Empty(t, target, "with DD_TRACE_ENABLED=false")
		})
	}
}

func TestBadTelemetrySettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings Settings
		want     string
	}{
		{"a URL as host", Settings{AgentHost: "http://agent"}, "DD_AGENT_HOST must be a host name or an IP address, without scheme and port"},
		{"a port at the host", Settings{AgentHost: "agent:8126"}, "DD_AGENT_HOST must be a host name or an IP address, without scheme and port"},
		{"a port of traces that is a word", Settings{TraceAgentPort: "apm"}, "DD_TRACE_AGENT_PORT must be a port from 1 to 65535"},
		{"a port of metrics above the highest", Settings{DogStatsDPort: "65536"}, "DD_DOGSTATSD_PORT must be a port from 1 to 65535"},
		{"a host as URL of traces", Settings{TraceAgentURL: "agent:8126"}, "DD_TRACE_AGENT_URL must be like http://host:8126, https://host:8126 or unix:///path"},
		{"a URL with port 0", Settings{TraceAgentURL: "http://agent:0"}, "DD_TRACE_AGENT_URL must be like http://host:8126, https://host:8126 or unix:///path"},
		{"a relative unix socket", Settings{TraceAgentURL: "unix://run/apm.socket"}, "DD_TRACE_AGENT_URL must be like http://host:8126, https://host:8126 or unix:///path"},
		{"metrics over HTTP", Settings{DogStatsDURL: "http://agent:8125"}, "DD_DOGSTATSD_URL must be like udp://host:8125 or unix:///path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.settings.TraceEnabled = true
			_, err := Start(tt.settings)
			assert.EqualError(t, err, tt.want)
		})
	}
}

func TestTelemetryIdentity(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings Settings
		want     identity
	}{
		{"nothing set", Settings{}, identity{service: "app", version: "1.2"}},
		{"variables before tags", Settings{Env: "prod", Tags: "env:test,service:shop,version:2"}, identity{service: "shop", env: "prod", version: "2"}},
		{"tags with commas", Settings{Tags: "team:core, url:http://x ,"}, identity{service: "app", version: "1.2", tags: []spanTag{{"team", "core"}, {"url", "http://x"}}}},
		{"tags that are odd", Settings{Tags: "team:a,core,team:b,:x,runtime-id:7"}, identity{service: "app", version: "1.2", tags: []spanTag{{"core", ""}, {"team", "b"}}}},
		{"tags with spaces", Settings{Tags: "team:core  tier:web"}, identity{service: "app", version: "1.2", tags: []spanTag{{"team", "core"}, {"tier", "web"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.settings.DefaultService, tt.settings.DefaultVersion = "app", "1.2"
			got := tt.settings.identity()
			assert.Len(t, got.runtimeID, 36)
			got.runtimeID = ""
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestTelemetryThroughUnixSockets(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "dd") // a test's own directory can be too long for a socket's name
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
	telemetry := startTestTelemetry(t, settings)

	_, s := telemetry.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	assert.Equal(t, "thing", datadogtest.Receive(t, agent.Traces)[0].Resource)
	telemetry.Count("app.things", 1)
	assert.Equal(t, []string{"env:prod", "service:shop", "version:1.2.3"}, datadogtest.Receive(t, agent.Metrics).Tags)
}

func TestTelemetryCloseSendsTheRest(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	settings := settingsFor(agent)
	settings.Interval = time.Hour
	telemetry := startTestTelemetry(t, settings)
	_, s := telemetry.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	telemetry.Count("app.things", 1)

	telemetry.Close(time.Minute)
	assert.Len(t, datadogtest.Drained(agent.Traces), 1)
	for datadogtest.Receive(t, agent.Metrics).Name != "app.things" {
	}
}

func TestTelemetryCloseGivesUp(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	agent.Hang()
	settings := settingsFor(agent)
	settings.Timeout = time.Hour
	var log datadogtest.LogLines
	settings.Log = logTo(&log)
	telemetry := startTestTelemetry(t, settings)
	_, s := telemetry.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	datadogtest.Receive(t, agent.Calls)

	telemetry.Close(10 * time.Millisecond)
	assert.EqualValues(t, 1, dropped(&log, "spans"))
}

// A span never waits: with an agent that hangs, this test would never end if it did.
func TestAgentThatHangs(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	agent.Hang()
	settings := settingsFor(agent)
	settings.Timeout = time.Hour
	var log datadogtest.LogLines
	settings.Log = logTo(&log)
	telemetry := startTestTelemetry(t, settings)
	const spans = 2*maxQueuedSpans + 1
	for range spans {
		_, s := telemetry.StartSpan(t.Context(), "step", "custom", "thing")
		s.Finish()
		telemetry.Count("app.things", 1)
	}
	datadogtest.Receive(t, agent.Calls)
	telemetry.traces.mu.Lock()
	assert.LessOrEqual(t, telemetry.traces.queued, maxQueuedSpans)
	telemetry.traces.mu.Unlock()

	telemetry.Close(0)
	assert.EqualValues(t, spans, dropped(&log, "spans")+telemetry.traces.losses.dropped(), "spans that were counted as dropped")
}

func TestAgentThatTimesOut(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	agent.Hang()
	settings := settingsFor(agent)
	settings.Timeout = 20 * time.Millisecond
	var log datadogtest.LogLines
	settings.Log = logTo(&log)
	telemetry := startTestTelemetry(t, settings)
	_, s := telemetry.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	assert.Contains(t, awaitDropped(t, &log, "spans")["reason"], "deadline exceeded")
	assert.LessOrEqual(t, len(agent.Calls), 1, "what the agent may have taken is not sent again")
}

func TestAgentThatDiesAndReturns(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	var log datadogtest.LogLines
	settings := settingsFor(agent)
	settings.Log = logTo(&log)
	telemetry := startTestTelemetry(t, settings)
	send := func(resource string) {
		_, s := telemetry.StartSpan(t.Context(), "step", "custom", resource)
		s.Finish()
	}
	send("before")
	assert.Equal(t, "before", datadogtest.Receive(t, agent.Traces)[0].Resource)

	agent.Die()
	send("meanwhile")
	line := awaitDropped(t, &log, "spans")
	assert.Equal(t, "Datadog agent did not accept all data", line["message"])
	assert.Equal(t, "WARN", line["level"])
	assert.Positive(t, line["dropped_spans"]) // the answer to the one before may have been lost, too
	assert.Contains(t, line["reason"], "connection refused")

	agent.Listen(datadogtest.ListenTCP(t, agent.Address))
	send("after")
	assert.Equal(t, "after", datadogtest.Receive(t, agent.Traces)[0].Resource)
}

func TestAgentThatRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		calls  int
	}{
		{"a payload that is wrong is sent once", http.StatusBadRequest, 1},
		{"an overloaded agent has a second chance", http.StatusTooManyRequests, 2},
		{"a broken agent has a second chance", http.StatusInternalServerError, 2},
		{"who leads elsewhere is no agent", http.StatusFound, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			agent.AnswerWith(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Location", "/login")
				http.Error(w, "no thanks", tt.status)
				return true
			})
			var log datadogtest.LogLines
			settings := settingsFor(agent)
			settings.Log = logTo(&log)
			telemetry := startTestTelemetry(t, settings)
			_, s := telemetry.StartSpan(t.Context(), "step", "custom", "thing")
			s.Finish()
			assert.Contains(t, awaitDropped(t, &log, "spans")["reason"], "no thanks")
			assert.Len(t, agent.Calls, tt.calls)
		})
	}
}

func TestMetricsAgentThatDiesAndReturns(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	var log datadogtest.LogLines
	settings := settingsFor(agent)
	settings.TraceAgentURL, settings.Log = "", logTo(&log)
	telemetry := startTestTelemetry(t, settings)
	telemetry.OnFlush(func() { telemetry.Gauge("app.thing", 1) })
	address := agent.Packets.LocalAddr().String()
	agent.Packets.Close()
	assert.Contains(t, awaitDropped(t, &log, "packets")["reason"], "connection refused")

	packets, err := net.ListenPacket("udp", address)
	require.NoError(t, err)
	returned := datadogtest.Start(t, datadogtest.ListenTCP(t, "127.0.0.1:0"), packets)
	datadogtest.Receive(t, returned.Metrics)
}

func TestLossesAreToldNowAndThen(t *testing.T) {
	t.Parallel()
	var log datadogtest.LogLines
	losses := &lossLog{log: logTo(&log), quiet: time.Minute}
	spans, packets := losses.losses("spans"), losses.losses("packets")
	losses.tell()
	assert.Empty(t, log.Lines(), "nothing is lost yet")

	spans.add(2)
	losses.tell()
	assert.EqualValues(t, 2, awaitDropped(t, &log, "spans")["dropped_spans"], "the first loss is told at once")

	spans.add(3)
	spans.add(4)
	packets.add(1)
	packets.because(io.ErrClosedPipe)
	losses.tell()
	assert.Len(t, log.Lines(), 1, "within a minute")

	losses.told = losses.told.Add(-time.Minute)
	losses.tell()
	losses.tell()
	lines := log.Lines()
	require.Len(t, lines, 2, "a minute later, of both in one")
	assert.EqualValues(t, 7, lines[1]["dropped_spans"])
	assert.EqualValues(t, 1, lines[1]["dropped_packets"])
	assert.Equal(t, "more spans than the agent takes in time; io: read/write on closed pipe", lines[1]["reason"])
}

func logTo(lines *datadogtest.LogLines) *slog.Logger {
	return slog.New(NewLogHandler(lines, slog.LevelInfo, Settings{Service: "app"}))
}

// dropped sums up what was logged as dropped.
func dropped(b *datadogtest.LogLines, unit string) (n int64) {
	for _, line := range b.Lines() {
		dropped, _ := line["dropped_"+unit].(float64)
		n += int64(dropped)
	}
	return n
}

// await returns the first line about something dropped.
func awaitDropped(t testing.TB, b *datadogtest.LogLines, unit string) map[string]any {
	t.Helper()
	require.Eventually(t, func() bool { return dropped(b, unit) > 0 }, 20*time.Second, time.Millisecond)
	return b.Lines()[0]
}

// settings are those of a service that sends to the agent, often.
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

// startTestTelemetry starts telemetry that ends with the test.
func startTestTelemetry(t testing.TB, settings Settings) *Client {
	t.Helper()
	if settings.Log == nil {
		settings.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	telemetry, err := Start(settings)
	require.NoError(t, err)
	t.Cleanup(func() {
		telemetry.Close(0)
	})
	return telemetry
}

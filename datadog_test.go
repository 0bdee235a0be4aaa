package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog"
	"app/internal/datadog/datadogtest"
	"app/internal/devpg/devpgtest"
	"app/internal/sandbox"
)

// newObserved starts a service that sends to a fake agent.
func newObserved(t *testing.T, change ...func(*Config)) (*fixture, *datadogtest.Agent) {
	t.Helper()
	agent := datadogtest.New(t)
	change = append(change, func(c *Config) {
		c.telemetry = agentSettings(agent)
		c.telemetry.Interval = 20 * time.Millisecond
		c.apiTokens = []string{"api-secret"}
	})
	return newFixture(t, 20, change...), agent
}

// call sends a request with the token of newObserved's service.
func (f *fixture) call(method, path, body string, header ...string) *answer {
	f.t.Helper()
	return f.do(method, path, body, append(header, "Authorization", "Bearer api-secret")...)
}

// kinds counts spans by their type and resource.
func kinds(trace []datadogtest.Span) map[string]int {
	count := map[string]int{}
	for _, s := range trace {
		if s.Type == "sql" {
			count["sql"]++
		} else {
			count[s.Type+" "+s.Resource]++
		}
	}
	return count
}

func TestTraceOfARequest(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	item := fmt.Sprint(f.sandbox.ItemIDs()[0])
	require.Equal(t, 200, f.call("GET", "/items/"+item+"?by=id", "").status)

	trace := agent.Trace("GET /items/{id}")
	root := trace[0]
	assert.Equal(t, "web", root.Type)
	assert.Equal(t, "server", root.Meta["span.kind"])
	assert.Equal(t, "/items/{id}", root.Meta["http.route"])
	assert.Equal(t, "200", root.Meta["http.status_code"])
	assert.Zero(t, root.Error)
	count := kinds(trace)
	assert.Equal(t, 1, count["http GET /api/1/item/{id}"])
	assert.GreaterOrEqual(t, count["sql"], 2, "compare and write")
	ids := map[uint64]bool{}
	for _, s := range trace {
		ids[s.SpanID] = true
	}
	for _, s := range trace[1:] {
		assert.True(t, ids[s.ParentID], "%s has no parent in the trace", s.Resource)
		if s.Type == "sql" {
			assert.NotContains(t, s.Resource, item, "placeholders only")
		}
	}

	var line map[string]any
	for _, l := range f.log.Lines() {
		if l["operation"] == "items.get" {
			line = l
		}
	}
	require.NotNil(t, line)
	assert.Equal(t, root.ID128(), line["dd.trace_id"])
	assert.Equal(t, fmt.Sprint(root.SpanID), line["dd.span_id"])
	assert.EqualValues(t, 200, line["http.status_code"])
	assert.NotContains(t, line, "status")
	upstream, all := line["upstream_duration"].(float64), line["duration"].(float64)
	assert.Positive(t, upstream)
	assert.GreaterOrEqual(t, all, upstream)
	assert.InDelta(t, float64(root.Duration), all, float64(50*time.Millisecond))
}

// A span has failed only if the service or Rollbar is at fault, not the caller.
func TestTraceOfAFailure(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	require.Equal(t, 404, f.call("GET", "/itens/5?secret=1", "").status)
	missing := agent.Trace("GET (no route)")
	assert.Equal(t, "404", missing[0].Meta["http.status_code"])
	assert.Zero(t, missing[0].Error)
	require.Equal(t, 401, f.get("/items").status)
	assert.Zero(t, agent.Trace("GET /items")[0].Error)

	f.sandbox.SetFault(sandbox.Down)
	require.Equal(t, 502, f.call("GET", "/items", "").status)
	trace := agent.Trace("GET /items")
	assert.EqualValues(t, 1, trace[0].Error)
	assert.NotEmpty(t, trace[0].Meta["error.message"])
	assert.NotEmpty(t, trace[0].Meta["error.type"])
	assert.NotEmpty(t, trace[0].Meta["error.stack"])
	attempts := 0
	for _, s := range trace[1:] {
		if s.Type == "http" {
			attempts++
			assert.EqualValues(t, 1, s.Error)
			assert.Equal(t, "client", s.Meta["span.kind"])
		}
	}
	assert.Equal(t, maxAttempts, attempts, "each attempt is a span")
}

// The resource of a request is its route, even if the request is refused.
func TestResourcesOfRequests(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	for _, tt := range []struct{ method, path, body, resource string }{
		{"HEAD", "/items", "", "HEAD /items"},
		{"PUT", "/items/7", `{"status":"resolved"}`, "PUT /items/{id}"},
		{"PATCH", "/items/7", `{"status":"resolved"}`, "PATCH /items/{id}"},
		{"DELETE", "/reports?stat=queued", "", "DELETE /reports"},
		{"POST", "/which", "", "POST (no route)"},
		{"GET", "/nowhere", "", "GET (no route)"},
		{"GET", "//items", "", "GET (no route)"},
	} {
		f.call(tt.method, tt.path, tt.body)
		trace := datadogtest.Receive(t, agent.Traces)
		assert.Equal(t, tt.resource, trace[0].Resource)
		assert.Zero(t, trace[0].Error)
	}
}

// The trace of a panic has the message that the response hides.
func TestTraceOfAPanic(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	broken := &Command{Name: "break", Route: "GET /break", Short: "Break",
		Run: typed(func(context.Context, *App, struct{}) (Text, error) { panic("oh no") })}
	f.serve(newHandler(f.app, []*Command{broken}, &Config{}))
	f.get("/break").requireProblem(500, "internal")
	root := agent.Trace("GET /break")[0]
	assert.EqualValues(t, 1, root.Error)
	assert.Equal(t, "panic: oh no", root.Meta["error.message"])
	assert.Contains(t, root.Meta["error.stack"], "TestTraceOfAPanic")
}

// A caller's trace continues in the service and at Rollbar, with its priority and the state of other vendors.
func TestTraceGoesThrough(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	received := make(chan http.Header, 1)
	f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		received <- r.Header
		return http.DefaultTransport.RoundTrip(r)
	})
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	f.call("GET", "/items", "", "Traceparent", "00-"+id+"-00f067aa0ba902b7-01", "Tracestate", "dd=s:2,other=1")
	trace := agent.Trace("GET /items")
	assert.Equal(t, id, trace[0].ID128())
	assert.EqualValues(t, 0x00f067aa0ba902b7, trace[0].ParentID)
	assert.EqualValues(t, 2, trace[0].Metrics["_sampling_priority_v1"])
	header := datadogtest.Receive(t, received)
	var call datadogtest.Span
	for _, s := range trace {
		if s.Type == "http" {
			call = s
		}
	}
	assert.Equal(t, fmt.Sprintf("00-%s-%016x-01", id, call.SpanID), header.Get("Traceparent"))
	assert.Equal(t, fmt.Sprintf("dd=s:2;p:%016x;t.tid:%s,other=1", call.SpanID, id[:16]), header.Get("Tracestate"))
	assert.Equal(t, "2", header.Get("X-Datadog-Sampling-Priority"))
}

func TestTraceOfADelivery(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	strange := []string{"Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Tracestate",
		"other=\xff,dd=t.x:\xfe;t.\xfc:x", "X-Datadog-Tags", "_dd.p.x=\xfd,_dd.p.\xfb=x"}
	require.Empty(t, f.call("POST", "/items", `{"message":"now"}`, strange...).header.Get("Report-Stored"),
		"an invalid header does not prevent recording")
	agent.Trace("POST /items")
	f.sandbox.SetFault(sandbox.Down)
	require.Equal(t, 202, f.call("POST", "/items", `{"message":"later"}`, "X-Datadog-Trace-Id", "7",
		"X-Datadog-Parent-Id", "8", "X-Datadog-Sampling-Priority", "2").status)
	request := agent.Trace("POST /items")
	f.sandbox.SetFault(sandbox.None)
	require.Equal(t, 200, f.call("POST", "/reports/deliver", "").status)
	delivery := agent.Trace("queue.deliver")
	assert.Equal(t, request[0].ID128(), delivery[0].ID128(), "it continues the request's trace")
	assert.EqualValues(t, 2, delivery[0].Metrics["_sampling_priority_v1"])
	assert.Equal(t, 1, kinds(delivery)["http POST /api/1/item/"])
	agent.Metric("app.queue.delivered")
}

// A create is one complete trace. Work that follows the response is not part of it.
func TestTraceOfACreate(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	require.Equal(t, 201, f.call("POST", "/items", `{"message":"now"}`).status)
	trace := agent.Trace("POST /items")
	assert.Equal(t, 1, kinds(trace)["http POST /api/1/item/"])
	assert.NotZero(t, kinds(trace)["sql"])
	agent.Metric("app.queue.delivered")
	f.call("GET", "/last", "")
	for last := false; !last; {
		next := datadogtest.Receive(t, agent.Traces)
		assert.NotEqual(t, trace[0].ID128(), next[0].ID128())
		last = next[0].Resource == "GET (no route)"
	}
}

func TestMetricsOfTheService(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	ctx, cancel := newContext(t)
	done := make(chan struct{})
	go func() { defer close(done); f.app.watch(ctx) }()
	defer func() { cancel(); <-done }()
	f.call("GET", "/items", "")
	common := []string{"service:shop", "env:prod", "version:1.2.3"}
	ok := append([]string{"operation:items.list", "surface:http", "outcome:ok"}, common...)
	assert.Equal(t, []float64{1}, agent.Metric("app.operations", ok...).Values)
	for _, want := range []struct {
		name string
		tags []string
	}{
		{"app.operations.latency", ok},
		{"app.rollbar.calls", []string{"method:get", "status_class:2xx"}},
		{"app.rollbar.rate_limit_remaining", []string{"scope:read"}},
		{"app.reports.stored", common},
	} {
		f.call("GET", "/items", "")
		agent.Metric(want.name, want.tags...)
	}
	gauges := map[string]bool{"app.queue.length": true, "app.queue.oldest": true, "app.pool.acquired": true,
		"runtime.go.num_goroutine": true}
	for len(gauges) > 0 {
		metric := datadogtest.Receive(t, agent.Metrics)
		if gauges[metric.Name] {
			assert.Subset(t, metric.Tags, common)
		}
		delete(gauges, metric.Name)
	}
	f.call("GET", "/items", "")
	agent.Metric("app.reports.unchanged")
	f.call("GET", "/items?pag=1", "")
	agent.Metric("app.operations", "operation:items.list", "outcome:usage")
	f.sandbox.SetFault(sandbox.Down)
	f.call("GET", "/items", "")
	agent.Metric("app.rollbar.retries", "method:get")
	f.call("POST", "/items", `{"message":"x"}`)
	agent.Metric("app.queue.queued")
	f.call("POST", "/items", `{"message":"x"}`)
	assert.Equal(t, []float64{1}, agent.Metric("app.reports.stored").Values)
	queued, _, err := f.app.store.queueLength(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 2, queued)
}

// Datadog charges for each combination of tags, so tags have values from short lists.
func TestMetricsHaveFewTags(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	id := f.sandbox.ItemIDs()[0]
	for range 3 {
		for _, path := range []string{"/items", "/reports", "/reports/1", "/check", fmt.Sprintf("/items/%d", id),
			fmt.Sprintf("/items/%d/occurrences", id), "/nowhere/" + newUUID()} {
			f.call("GET", path, "")
		}
		f.call("POST", "/items", `{"message":"x"}`)
		f.call("PATCH", fmt.Sprintf("/items/%d", id), `{"title":"x"}`)
	}
	f.call("DELETE", "/reports?state=superseded", "")
	valid := map[string][]string{
		"surface": {"http", "cli", "mcp"}, "method": {"get", "post", "patch", "delete"},
		"status_class": {"2xx", "3xx", "4xx", "5xx", "error"},
		"scope":        {"read", "write", "post_server_item"}, "env": {"prod"}, "service": {"shop"},
		"version": {"1.2.3"},
		"outcome": {"ok"}, "operation": {"none"},
	}
	for _, k := range failureKinds {
		valid["outcome"] = append(valid["outcome"], k.name)
	}
	for _, c := range commands {
		valid["operation"] = append(valid["operation"], c.Name)
	}
	seen := map[string]bool{}
	for _, metric := range agent.MetricsUntil("app.operations", "operation:reports.clean") {
		seen[metric.Name] = true
		for _, tag := range metric.Tags {
			key, value, _ := strings.Cut(tag, ":")
			assert.Contains(t, valid[key], value, "%s of %s", tag, metric.Name)
		}
	}
	assert.Subset(t, slices.Collect(maps.Keys(seen)),
		[]string{"app.operations", "app.operations.latency", "app.rollbar.calls", "app.rollbar.rate_limit_remaining",
			"app.reports.stored", "app.queue.delivered"})
}

// Traces, metrics and logs contain no token, no query and no literal of a statement.
func TestTelemetryHoldsNoSecrets(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	f.call("GET", "/items?query=hushhush", "")
	f.call("POST", "/items", `{"message":"hushhush","custom":{"x":"hushhush"}}`)
	f.call("GET", "/reports?q=hushhush", "")
	f.sandbox.SetFault(sandbox.Down)
	f.call("GET", "/items?query=hushhush", "")
	f.do("GET", "/reports?level=hushhush", "", "Authorization", "Bearer wrong-secret").requireProblem(401, "auth")
	var text strings.Builder
	require.NoError(t, json.NewEncoder(&text).Encode(agent.MetricsUntil("app.operations", "outcome:auth")))
	f.call("GET", "/last", "")
	for last := false; !last; {
		trace := datadogtest.Receive(t, agent.Traces)
		last = trace[0].Resource == "GET (no route)"
		require.NoError(t, json.NewEncoder(&text).Encode(trace))
	}
	for _, l := range f.log.Lines() {
		require.NoError(t, json.NewEncoder(&text).Encode(l))
	}
	for _, secret := range []string{"hushhush", "secret", f.config.readToken, f.config.postToken} {
		assert.NotContains(t, text.String(), secret)
	}
}

// A subcommand of the real program sends its trace and its metrics before it ends.
func TestTelemetryOfASubcommand(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5)
	agent := datadogtest.New(t)
	env := []string{
		"ROLLBAR_URL=" + f.config.RollbarURL, "ROLLBAR_READ_TOKEN=" + f.config.readToken,
		"DATABASE_URL=" + f.config.DatabaseURL,
		"DD_TRACE_AGENT_URL=http://" + agent.Address, "DD_DOGSTATSD_URL=udp://" + agent.Packets.LocalAddr().String(),
		"DD_ENV=test",
	}
	out, err := program(t, env, "items", "list").Output()
	require.NoError(t, err)
	assert.Contains(t, string(out), `"items":[`)
	trace := agent.Trace("GET /items")
	assert.Equal(t, "custom", trace[0].Type)
	assert.Equal(t, "test", trace[0].Meta["env"])
	assert.Equal(t, 1, kinds(trace)["http GET /api/1/items/"])
	metrics := agent.MetricsUntil("app.operations", "operation:items.list", "surface:cli", "outcome:ok", "env:test",
		"service:app")

	for _, tt := range []struct {
		args                         []string
		operation, resource, outcome string
	}{
		{[]string{"items", "get", "1"}, "items.get", "GET /items/{id}", "not-found"},
		{[]string{"items", "update", "x", "-status", "resolved"}, "items.update", "PATCH /items/{id}", "usage"},
		{[]string{"items", "list", "-bogus"}, "items.list", "GET /items", "usage"},
		{[]string{"items", "list", "-output", "yaml"}, "items.list", "GET /items", "usage"},
		{[]string{"items", "delete", "1"}, "items.delete", "DELETE /items/{id}", "usage"},
		{[]string{"items", "create", "-message", "x"}, "items.create", "POST /items", "config"},
	} {
		assert.Error(t, program(t, env, tt.args...).Run())
		root := agent.Trace(tt.resource)[0]
		assert.EqualValues(t, 1, root.Error)
		assert.Equal(t, "custom", root.Type)
		metrics = append(metrics, agent.MetricsUntil("app.operations", "operation:"+tt.operation, "surface:cli",
			"outcome:"+tt.outcome)...)
	}
	for _, metric := range metrics {
		assert.NotRegexp(t, `^(runtime|app\.pool)\.`, metric.Name, "only the service sends these")
	}
}

// With APP_URL, the spans of the subcommand and of the server belong to one trace.
func TestTraceAcrossProcesses(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	env := []string{"APP_URL=" + f.url, "API_TOKEN=api-secret", "DD_TRACE_AGENT_URL=http://" + agent.Address}
	require.NoError(t, program(t, env, "reports", "list").Run())
	one, two := agent.Trace("GET /reports"), agent.Trace("GET /reports")
	assert.Equal(t, one[0].ID128(), two[0].ID128())
}

// An agent that never answers delays the end of a subcommand by one second at most, and of the service by five.
func TestSubcommandWithAnAgentThatHangs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-release
	}))
	defer hanging.Close()
	defer close(release)
	began := time.Now()
	require.NoError(t, program(t, []string{"DD_TRACE_AGENT_URL=" + hanging.URL}, "which").Run())
	assert.Less(t, time.Since(began), 4*time.Second) // one second, and some more on a loaded machine

	p := startServe(t, []string{"DD_TRACE_AGENT_URL=" + hanging.URL, "SANDBOX=true",
		"DATABASE_URL=" + devpgtest.Schema(t)})
	res, err := http.Get(p.url + "/which")
	require.NoError(t, err)
	res.Body.Close()
	began = time.Now()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	assert.Zero(t, p.wait())
	assert.Less(t, time.Since(began), 9*time.Second) // five, and some more on a loaded machine
}

// An agent that hangs does not delay requests.
func TestRequestsWithAnAgentThatHangs(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t)
	agent.Hang()
	began := time.Now()
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 50 {
				assert.Equal(t, 200, f.call("GET", "/reports?limit=1", "").status)
			}
		})
	}
	clients.Wait()
	assert.Less(t, time.Since(began), waitLimit, "a request that waited for the agent would take 5 s")
}

// The real service with the real delays logs once that its agent is missing, and sends when the agent is back.
func TestServeWithoutItsAgent(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	agent.Die()
	packets := agent.Packets.LocalAddr()
	agent.Packets.Close()
	began := time.Now()
	p := startServe(t, []string{
		"DATABASE_URL=" + devpgtest.Schema(t), "SANDBOX=true",
		"DD_TRACE_AGENT_URL=http://" + agent.Address, "DD_DOGSTATSD_URL=udp://" + packets.String(),
	})
	get := func() {
		res, err := http.Get(p.url + "/which")
		require.NoError(t, err)
		res.Body.Close()
	}
	get()
	const line = "Datadog agent did not accept all data"
	require.Eventually(t, func() bool { return strings.Contains(p.stdout(), line) }, waitLimit, waitTick)
	assert.Less(t, time.Since(began), 15*time.Second) // ten, and some more on a loaded machine

	agent.Listen(datadogtest.ListenTCP(t, agent.Address))
	socket, err := net.ListenPacket(packets.Network(), packets.String())
	require.NoError(t, err)
	metrics := datadogtest.Start(t, datadogtest.ListenTCP(t, "127.0.0.1:0"), socket)
	get()
	agent.Trace("GET /which")
	metrics.Metric("app.operations", "operation:which")
	metrics.Metric("runtime.go.num_goroutine")
	assert.Equal(t, 1, strings.Count(p.stdout(), line))
}

// Without the address of an agent there is no client. Nothing is traced, and no metrics are gathered.
func TestTelemetryOff(t *testing.T) {
	t.Setenv("DD_ENV", "prod")
	t.Setenv("DD_TAGS", "a:b")
	t.Setenv("DD_AGENT_HOST", "")
	f := newFixture(t, 1)
	require.Equal(t, "prod", f.config.telemetry.Env)
	require.Equal(t, 200, f.get("/items").status)
	assert.Nil(t, f.app.telemetry)
	assert.Nil(t, f.app.store.pool.Config().ConnConfig.Tracer)
	watched := make(chan struct{})
	go func() { defer close(watched); f.app.watch(t.Context()) }()
	datadogtest.Receive(t, watched) // it ended at once
	for _, line := range f.log.Lines() {
		assert.NotContains(t, line, "dd.trace_id")
	}
}

func TestLogOnATerminal(t *testing.T) {
	t.Parallel()
	config, err := loadConfig([]string{"-dd-service=shop"}, "")
	require.NoError(t, err)
	var out bytes.Buffer
	log := slog.New(newLogHandler(&out, true, config))
	log.Debug("hidden")
	log.Info("done", "duration", 1500*time.Microsecond)
	assert.Regexp(t, `^time=\d\d:\d\d:\d\d level=INFO msg=done duration=1\.5ms\n$`, out.String())
}

func TestBadDatadogSettings(t *testing.T) {
	t.Parallel()
	cmd := program(t, []string{"DD_TRACE_AGENT_URL=datadog:8126"}, "which")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	require.Error(t, cmd.Run())
	assert.Equal(t, 3, cmd.ProcessState.ExitCode())
	assert.Contains(t, stderr.String(), "DD_TRACE_AGENT_URL must be like http://host:8126")
}

// agentSettings returns settings of a client that sends to the agent every millisecond.
func agentSettings(a *datadogtest.Agent) datadog.Settings {
	return datadog.Settings{
		TraceAgentURL: "http://" + a.Address,
		DogStatsDURL:  "udp://" + a.Packets.LocalAddr().String(),
		TraceEnabled:  true,
		Service:       "shop",
		Env:           "prod",
		Version:       "1.2.3",
		Interval:      time.Millisecond,
	}
}

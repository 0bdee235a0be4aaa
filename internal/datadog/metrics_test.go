package datadog

import (
	"context"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
)

// awaitMetric returns the next metric of the name.
func awaitMetric(t testing.TB, agent *datadogtest.Agent, name string) datadogtest.Metric {
	t.Helper()
	for {
		if metric := datadogtest.Receive(t, agent.Metrics); metric.Name == name {
			return metric
		}
	}
}

// sentMetrics returns what arrives of what the function records, by name and tags.
func sentMetrics(t *testing.T, record func(*Client)) map[string]datadogtest.Metric {
	t.Helper()
	agent := datadogtest.New(t)
	address := agent.Packets.LocalAddr()
	sender := newMetricSender(address.Network(), address.String(), identity{service: "shop", env: "prod", version: "1.2.3"}, new(lossLog).losses("packets"))
	defer sender.hangUp()
	telemetry := &Client{metrics: sender}
	record(telemetry)
	sender.flush(t.Context())
	telemetry.Count("app.last", 1)
	sender.flush(t.Context())
	metrics := map[string]datadogtest.Metric{}
	for {
		metric := datadogtest.Receive(t, agent.Metrics)
		if metric.Name == "app.last" {
			return metrics
		}
		metrics[metric.Name+" "+fmt.Sprint(metric.Tags)] = metric
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	got := sentMetrics(t, func(telemetry *Client) {
		telemetry.Count("app.requests", 1, "outcome:ok")
		telemetry.Count("app.requests", 2.5, "outcome:ok")
		telemetry.Count("app.requests", 1, "outcome:conflict")
		telemetry.Gauge("app.queue", 7)
		telemetry.Gauge("app.queue", 3)
		telemetry.distribution("app.size", 12)
		telemetry.distribution("app.size", 0.5)
		telemetry.Latency("app.latency", 1500*time.Microsecond)
		telemetry.Count("app.broken", math.NaN())
		telemetry.Gauge("app.broken", math.Inf(1))
		telemetry.Count("app/odd:name|x", 1, "reason:a,b|c\nd")
	})
	const common = "env:prod service:shop version:1.2.3]"
	tags := func(more ...string) []string { return append(more, "service:shop", "version:1.2.3") }
	assert.Equal(t, map[string]datadogtest.Metric{
		"app.requests [env:prod outcome:ok service:shop version:1.2.3]":       {Name: "app.requests", Kind: "c", Values: []float64{3.5}, Rate: 1, Tags: tags("env:prod", "outcome:ok")},
		"app.requests [env:prod outcome:conflict service:shop version:1.2.3]": {Name: "app.requests", Kind: "c", Values: []float64{1}, Rate: 1, Tags: tags("env:prod", "outcome:conflict")},
		"app.queue [" + common:   {Name: "app.queue", Kind: "g", Values: []float64{3}, Rate: 1, Tags: tags("env:prod")},
		"app.size [" + common:    {Name: "app.size", Kind: "d", Values: []float64{12, 0.5}, Rate: 1, Tags: tags("env:prod")},
		"app.latency [" + common: {Name: "app.latency", Kind: "d", Values: []float64{1.5}, Rate: 1, Tags: tags("env:prod")},
		"app_odd_name_x [env:prod reason:a_b_c_d service:shop version:1.2.3]": {Name: "app_odd_name_x", Kind: "c", Values: []float64{1}, Rate: 1, Tags: tags("env:prod", "reason:a_b_c_d")},
	}, got)
}

func TestDistributionOfManyValues(t *testing.T) {
	t.Parallel()
	s := series{kind: 'd', name: "app.latency", tags: []string{"outcome:ok"}}
	for range 4 * maxValues {
		s.add(123.456)
	}
	var values int
	for message := range s.messages([]string{"env:prod"}, 1432) {
		assert.LessOrEqual(t, len(message), 1432)
		metric, err := datadogtest.ParseMetric(string(message))
		require.NoError(t, err)
		assert.Equal(t, 0.25, metric.Rate)
		values += len(metric.Values)
	}
	assert.Equal(t, maxValues, values)
}

func TestPackets(t *testing.T) {
	t.Parallel()
	m := newMetricSender("udp", "", identity{service: "shop"}, new(lossLog).losses("packets"))
	all := map[string]*series{}
	for i := range 100 {
		name := fmt.Sprintf("app.metric%d", i)
		all[name] = &series{kind: 'c', name: name, value: 1}
	}
	all["too long"] = &series{kind: 'c', name: "app.long", tags: strings.Split(strings.Repeat("key:"+strings.Repeat("v", 190)+"\n", 8), "\n")}
	seen := 0
	for i, packet := range m.pack(all) {
		assert.LessOrEqual(t, len(packet), 1432)
		if i == 0 {
			assert.Greater(t, len(packet), 1300, "packets are filled")
		}
		seen += strings.Count(string(packet), "\n") + 1
	}
	assert.Equal(t, 100, seen)
	assert.EqualValues(t, 1, m.losses.dropped(), "the message that fits into no packet")
}

// A message that fills a packet has one of its own.
func TestPacketsThatAreFull(t *testing.T) {
	t.Parallel()
	m := newMetricSender("udp", "", identity{service: "shop"}, new(lossLog).losses("packets"))
	for size := range 20 {
		s := &series{kind: 'd', name: "app.latency" + strings.Repeat("x", size), values: slices.Repeat([]float64{0.5}, 900), seen: 900}
		for _, packet := range m.pack(map[string]*series{"": s}) {
			assert.NotEmpty(t, packet)
		}
	}
}

func TestTooManySeries(t *testing.T) {
	t.Parallel()
	m := newMetricSender("udp", "", identity{}, new(lossLog).losses("packets"))
	for i := range maxSeries + 5 {
		m.add('c', "app.metric", 1, []string{fmt.Sprint("id:", i)})
	}
	assert.Len(t, m.series, maxSeries)
	assert.EqualValues(t, 5, m.losses.dropped())
}

func TestMetricsRedial(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	address := agent.Packets.LocalAddr()
	m := newMetricSender(address.Network(), address.String(), identity{}, new(lossLog).losses("packets"))
	defer m.hangUp()
	require.NoError(t, m.send(t.Context(), []byte("app.first:1|c|#a:b")))
	first := m.conn
	require.NoError(t, m.send(t.Context(), []byte("app.second:1|c|#a:b")))
	assert.Same(t, first, m.conn)
	m.dialed = m.dialed.Add(-redialAfter)
	require.NoError(t, m.send(t.Context(), []byte("app.third:1|c|#a:b")))
	assert.NotSame(t, first, m.conn, "a while later the name is looked up again")
	awaitMetric(t, agent, "app.third")
}

// A name can have several addresses: the IPv4 one is the likeliest, and after a refusal it is the
// turn of another.
func TestMetricsToLocalhost(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	_, port, err := net.SplitHostPort(agent.Packets.LocalAddr().String())
	require.NoError(t, err)
	m := newMetricSender("udp", "localhost:"+port, identity{}, new(lossLog).losses("packets"))
	defer m.hangUp()
	require.NoError(t, m.send(t.Context(), []byte("app.first:1|c|#a:b")))
	awaitMetric(t, agent, "app.first")

	gone := agent.Packets.LocalAddr()
	agent.Packets.Close()
	for m.refusals == 0 { // what nobody takes is refused later
		_ = m.send(t.Context(), []byte("app.lost:1|c|#a:b"))
	}
	packets, err := net.ListenPacket(gone.Network(), gone.String())
	require.NoError(t, err)
	returned := datadogtest.Start(t, datadogtest.ListenTCP(t, "127.0.0.1:0"), packets)
	require.Eventually(t, func() bool {
		_ = m.send(t.Context(), []byte("app.second:1|c|#a:b"))
		return len(returned.Metrics) > 0
	}, 20*time.Second, time.Millisecond)
}

func TestMetricsOfAnUnknownHost(t *testing.T) {
	t.Parallel()
	m := newMetricSender("udp", "no-such-host.invalid:8125", identity{}, new(lossLog).losses("packets"))
	m.add('c', "app.metric", 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that nobody is asked
	m.flush(ctx)
	assert.EqualValues(t, 1, m.losses.dropped())
}

func TestMetricTags(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "team:a_b,_,"+"x:"+strings.Repeat("…", 66), metricTags([]string{"team:a|b", "\n"}, []string{"x:" + strings.Repeat("…", 67)}))
}

func TestRuntimeMetrics(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	telemetry := startTestTelemetry(t, settingsFor(agent))
	telemetry.OnFlush(telemetry.ObserveRuntime)
	missing := map[string]bool{"runtime.go.num_cpu": true, "runtime.go.gc_stats.pause_quantiles.max": true}
	for _, g := range runtimeGauges {
		missing[g.name] = true
	}
	for len(missing) > 0 {
		metric := datadogtest.Receive(t, agent.Metrics)
		assert.Equal(t, "g", metric.Kind)
		assert.Subset(t, metric.Tags, telemetry.metrics.runtimeTags)
		switch metric.Name {
		case "runtime.go.num_goroutine", "runtime.go.mem_stats.sys", "runtime.go.mem_stats.heap_inuse", "runtime.go.mem_stats.mallocs":
			assert.Positive(t, metric.Values[0], metric.Name)
		}
		delete(missing, metric.Name)
	}
}

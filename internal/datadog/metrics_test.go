package datadog

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
)

// newTestSender returns a sender of metrics to the address. No goroutine flushes it.
func newTestSender(t testing.TB, address string) *metricSender {
	settings := Settings{Service: "shop", Env: "prod", Version: "1.2.3"}
	m := newMetricSender(&url.URL{Scheme: "udp", Host: address}, settings, newDrops(nil))
	t.Cleanup(m.hangUp)
	return m
}

// sentMetrics returns the metrics that arrive after the function has recorded them, by name and tags.
func sentMetrics(t *testing.T, record func(*Client)) map[string]datadogtest.Metric {
	t.Helper()
	agent := datadogtest.New(t)
	sender := newTestSender(t, agent.Packets.LocalAddr().String())
	client := &Client{metrics: sender}
	record(client)
	sender.flush(t.Context())
	client.Count("app.last", 1)
	sender.flush(t.Context())
	metrics := map[string]datadogtest.Metric{}
	for _, metric := range agent.MetricsUntil("app.last") {
		metrics[metric.Name+" "+fmt.Sprint(metric.Tags)] = metric
	}
	delete(metrics, "app.last [env:prod service:shop version:1.2.3]")
	return metrics
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	got := sentMetrics(t, func(client *Client) {
		client.Count("app.requests", 1, "outcome:ok")
		client.Count("app.requests", 2.5, "outcome:ok")
		client.Count("app.requests", 1, "outcome:conflict")
		client.Gauge("app.queue", 7)
		client.Gauge("app.queue", 3)
		client.Latency("app.wait", 12*time.Millisecond)
		client.Latency("app.wait", 500*time.Microsecond)
		client.Latency("app.latency", 1500*time.Microsecond)
		client.Count("app.broken", math.NaN())
		client.Gauge("app.broken", math.Inf(1))
		client.Count("app.odd", 1, "reason:a,b|c\nd")
	})
	const common = "env:prod service:shop version:1.2.3]"
	tags := func(more ...string) []string { return append(more, "service:shop", "version:1.2.3") }
	assert.Equal(t, map[string]datadogtest.Metric{
		"app.requests [env:prod outcome:ok service:shop version:1.2.3]": {Name: "app.requests", Kind: "c",
			Values: []float64{3.5}, Rate: 1, Tags: tags("env:prod", "outcome:ok")},
		"app.requests [env:prod outcome:conflict service:shop version:1.2.3]": {Name: "app.requests", Kind: "c",
			Values: []float64{1}, Rate: 1, Tags: tags("env:prod", "outcome:conflict")},
		"app.queue [" + common: {Name: "app.queue", Kind: "g", Values: []float64{3}, Rate: 1, Tags: tags("env:prod")},
		"app.wait [" + common: {Name: "app.wait", Kind: "d", Values: []float64{12, 0.5}, Rate: 1,
			Tags: tags("env:prod")},
		"app.latency [" + common: {Name: "app.latency", Kind: "d", Values: []float64{1.5}, Rate: 1,
			Tags: tags("env:prod")},
		"app.odd [env:prod reason:a_b_c_d service:shop version:1.2.3]": {Name: "app.odd", Kind: "c",
			Values: []float64{1}, Rate: 1, Tags: tags("env:prod", "reason:a_b_c_d")},
	}, got)
}

func TestDistributionOfManyValues(t *testing.T) {
	t.Parallel()
	s := series{kind: 'd', name: "app.latency", tags: []string{"outcome:ok"}}
	for range 4 * maxValues {
		s.add(123.456)
	}
	var values int
	for _, message := range s.messages([]string{"env:prod"}) {
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
	m := newTestSender(t, "")
	all := map[string]*series{}
	for i := range 100 {
		name := fmt.Sprintf("app.metric%d", i)
		all[name] = &series{kind: 'c', name: name, values: []float64{1}}
	}
	all["too long"] = &series{kind: 'c', name: "app.long", values: []float64{1},
		tags: strings.Split(strings.Repeat("key:"+strings.Repeat("v", 190)+"\n", 8), "\n")}
	seen := 0
	for i, packet := range m.packets(all) {
		assert.LessOrEqual(t, len(packet), 1432)
		if i == 0 {
			assert.Greater(t, len(packet), 1300, "packets are filled")
		}
		seen += strings.Count(string(packet), "\n") + 1
	}
	assert.Equal(t, 100, seen)
	assert.Equal(t, 1, m.drops.counts[packetUnit], "a message that does not fit into a packet")
}

// No value is lost at the border of a packet, and no packet is empty.
func TestPacketsThatAreFull(t *testing.T) {
	t.Parallel()
	m := newTestSender(t, "")
	for size := range 20 {
		s := &series{kind: 'd', name: "app.latency" + strings.Repeat("x", size),
			values: slices.Repeat([]float64{0.5}, 900), added: 900}
		values := 0
		for _, packet := range m.packets(map[string]*series{"": s}) {
			assert.LessOrEqual(t, len(packet), packetSize)
			for line := range strings.SplitSeq(string(packet), "\n") {
				metric, err := datadogtest.ParseMetric(line)
				require.NoError(t, err)
				values += len(metric.Values)
			}
		}
		assert.Equal(t, 900, values)
	}
}

func TestTooManySeries(t *testing.T) {
	t.Parallel()
	m := newTestSender(t, "")
	for i := range maxSeries + 5 {
		(&Client{metrics: m}).Count("app.metric", 1, fmt.Sprint("id:", i))
	}
	assert.Len(t, m.series, maxSeries)
	assert.Equal(t, 5, m.drops.counts[packetUnit])
}

func TestMetricsRedial(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	m := newTestSender(t, agent.Packets.LocalAddr().String())
	require.NoError(t, m.send(t.Context(), []byte("app.first:1|c|#a:b")))
	first := m.conn
	require.NoError(t, m.send(t.Context(), []byte("app.second:1|c|#a:b")))
	assert.Same(t, first, m.conn)
	m.dialed = m.dialed.Add(-redialAfter)
	require.NoError(t, m.send(t.Context(), []byte("app.third:1|c|#a:b")))
	assert.NotSame(t, first, m.conn, "the name is resolved again")
	agent.Metric("app.third")
}

// The name localhost can have an IPv4 and an IPv6 address. Agents listen on the former.
func TestMetricsToLocalhost(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	_, port, err := net.SplitHostPort(agent.Packets.LocalAddr().String())
	require.NoError(t, err)
	m := newTestSender(t, "localhost:"+port)
	require.NoError(t, m.send(t.Context(), []byte("app.first:1|c|#a:b")))
	agent.Metric("app.first")
}

func TestMetricsToIPv6(t *testing.T) {
	t.Parallel()
	packets, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	agent := datadogtest.Start(t, datadogtest.ListenTCP(t, "127.0.0.1:0"), packets)
	m := newTestSender(t, packets.LocalAddr().String())
	require.NoError(t, m.send(t.Context(), []byte("app.first:1|c|#a:b")))
	agent.Metric("app.first")
}

func TestMetricsOfAnUnknownHost(t *testing.T) {
	t.Parallel()
	m := newTestSender(t, "no-such-host.invalid:8125")
	(&Client{metrics: m}).Count("app.metric", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // no name server is asked
	m.flush(ctx)
	assert.Equal(t, 1, m.drops.counts[packetUnit])
}

func TestMetricsAgentThatDiesAndReturns(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	var log datadogtest.LogLines
	settings := settingsFor(agent)
	settings.TraceAgentURL, settings.Log = "", logTo(&log)
	client := start(t, settings)
	client.OnFlush(func() { client.Gauge("app.thing", 1) })
	address := agent.Packets.LocalAddr().String()
	agent.Packets.Close()
	assert.Contains(t, awaitDropped(t, &log, "packets")["reason"], "connection refused")

	packets, err := net.ListenPacket("udp", address)
	require.NoError(t, err)
	returned := datadogtest.Start(t, datadogtest.ListenTCP(t, "127.0.0.1:0"), packets)
	datadogtest.Receive(t, returned.Metrics)
}

func TestMetricTags(t *testing.T) {
	t.Parallel()
	tags := metricTags([]string{"team:a|b", "\n", "Env:Prod,  EU!", "tier:"}, []string{"method:GET",
		"x:" + strings.Repeat("é", 100)})
	assert.Equal(t, "team:a_b,env:prod_eu,tier,method:get,x:"+strings.Repeat("é", 99), tags)
}

func TestRuntimeMetrics(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	client.OnFlush(client.ObserveRuntime)
	missing := map[string]bool{"runtime.go.num_cpu": true, "runtime.go.gc_stats.pause_quantiles.max": true}
	for _, g := range runtimeGauges {
		missing[g.name] = true
	}
	for len(missing) > 0 {
		metric := datadogtest.Receive(t, agent.Metrics)
		assert.Equal(t, "g", metric.Kind)
		assert.Subset(t, metric.Tags, []string{"runtime-id:" + runtimeID, "lang:go", "lang_version:" + goVersion})
		switch metric.Name {
		case "runtime.go.num_goroutine", "runtime.go.mem_stats.sys", "runtime.go.mem_stats.heap_inuse",
			"runtime.go.mem_stats.mallocs":
			assert.Positive(t, metric.Values[0], metric.Name)
		}
		delete(missing, metric.Name)
	}
}

// On a stream, the length of a packet stands before it.
func TestMetricsOnAStream(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "dsd.socket")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer listener.Close()
	client := start(t, Settings{DogStatsDURL: "unixstream://" + socket, Service: "shop"})
	client.Count("app.requests", 1)
	conn, err := listener.Accept()
	require.NoError(t, err)
	defer conn.Close()
	var length uint32
	require.NoError(t, binary.Read(conn, binary.LittleEndian, &length))
	packet := make([]byte, length)
	_, err = io.ReadFull(conn, packet)
	require.NoError(t, err)
	assert.Equal(t, "app.requests:1|c|#service:shop", string(packet))
}

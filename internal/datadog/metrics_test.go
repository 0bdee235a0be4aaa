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
func newTestSender(address string) *metricSender {
	settings := Settings{Service: "shop", Env: "prod", Version: "1.2.3"}
	return newMetricSender(&url.URL{Scheme: "udp", Host: address}, settings, &drops{})
}

// sentMetrics returns the metrics that arrive after the function has recorded them, by name and tags.
func sentMetrics(t *testing.T, record func(*Client)) map[string]datadogtest.Metric {
	t.Helper()
	agent := datadogtest.New(t)
	sender := newTestSender(agent.Packets.LocalAddr().String())
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
	m := newTestSender("")
	client := &Client{metrics: m}
	for range 4 * maxValues {
		client.Latency("app.latency", 123456*time.Microsecond, "outcome:ok")
	}
	var values int
	for _, packet := range m.packets(m.series) {
		assert.LessOrEqual(t, len(packet), 1432)
		for line := range strings.SplitSeq(string(packet), "\n") {
			metric, err := datadogtest.ParseMetric(line)
			require.NoError(t, err)
			assert.Equal(t, 0.25, metric.Rate)
			values += len(metric.Values)
		}
	}
	assert.Equal(t, maxValues, values)
}

func TestPackets(t *testing.T) {
	t.Parallel()
	m := newTestSender("")
	all := map[metric]series{}
	for i := range 100 {
		all[metric{'c', fmt.Sprintf("app.metric%d", i), ""}] = series{values: []float64{1}}
	}
	long := strings.Repeat("key:"+strings.Repeat("v", 190)+"\x00", 8)
	all[metric{'c', "app.long", long}] = series{values: []float64{1}}
	seen := 0
	for i, packet := range m.packets(all) {
		assert.LessOrEqual(t, len(packet), 1432)
		if i == 0 {
			assert.Greater(t, len(packet), 1300, "packets are filled")
		}
		seen += strings.Count(string(packet), "\n") + 1
	}
	assert.Equal(t, 100, seen)
	assert.Equal(t, 1, m.drops.packets, "a message that does not fit into a packet")
}

// No value is lost at the border of a packet, and no packet is empty.
func TestPacketsThatAreFull(t *testing.T) {
	t.Parallel()
	m := newTestSender("")
	for size := range 20 {
		name := metric{'d', "app.latency" + strings.Repeat("x", size), ""}
		s := series{values: slices.Repeat([]float64{0.5}, 900), added: 900}
		values := 0
		for _, packet := range m.packets(map[metric]series{name: s}) {
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

// The name localhost can have an IPv4 and an IPv6 address. Agents listen on the former.
func TestMetricsToLocalhost(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	_, port, err := net.SplitHostPort(agent.Packets.LocalAddr().String())
	require.NoError(t, err)
	m := newTestSender("localhost:" + port)
	sent, err := m.send(t.Context(), [][]byte{[]byte("app.first:1|c|#a:b")})
	require.NoError(t, err)
	assert.Equal(t, 1, sent)
	agent.Metric("app.first")
}

func TestMetricsToIPv6(t *testing.T) {
	t.Parallel()
	packets, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil { // a machine without IPv6 says so
		_, err = newTestSender("[::1]:8125").send(t.Context(), [][]byte{[]byte("app.first:1|c|#a:b")})
		assert.Error(t, err)
		return
	}
	agent := datadogtest.Start(t, datadogtest.ListenTCP(t, "127.0.0.1:0"), packets)
	m := newTestSender(packets.LocalAddr().String())
	sent, err := m.send(t.Context(), [][]byte{[]byte("app.first:1|c|#a:b")})
	require.NoError(t, err)
	assert.Equal(t, 1, sent)
	agent.Metric("app.first")
}

func TestMetricsOfAnUnknownHost(t *testing.T) {
	t.Parallel()
	m := newTestSender("no-such-host.invalid:8125")
	(&Client{metrics: m}).Count("app.metric", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // no name server is asked
	m.flush(ctx)
	assert.Equal(t, 1, m.drops.packets)
}

func TestMetricsAgentThatDiesAndReturns(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	var log datadogtest.LogLines
	settings := settingsFor(agent)
	settings.TraceAgentURL, settings.Log = "", logTo(&log)
	client := start(t, settings)
	address := agent.Packets.LocalAddr().String()
	agent.Packets.Close()
	require.Eventually(t, func() bool {
		client.Gauge("app.thing", 1)
		return dropped(&log, "packets") > 0
	}, 20*time.Second, time.Millisecond)
	assert.Contains(t, log.Lines()[0]["reason"], "connection refused")

	packets, err := net.ListenPacket("udp", address)
	require.NoError(t, err)
	returned := datadogtest.Start(t, datadogtest.ListenTCP(t, "127.0.0.1:0"), packets)
	client.Gauge("app.thing", 1)
	datadogtest.Receive(t, returned.Metrics)
}

func TestMetricTags(t *testing.T) {
	t.Parallel()
	tags := metricTags([]string{"team:a|b", "\n", "Env:Prod,  EU!", "tier:", "method:GET",
		"x:" + strings.Repeat("é", 100)})
	assert.Equal(t, "team:a_b,env:prod_eu,tier,method:get,x:"+strings.Repeat("é", 99), tags)
}

func TestRuntimeMetrics(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	client.ObserveRuntime()
	missing := map[string]bool{"runtime.go.num_cpu": true, "runtime.go.gc_stats.pause_quantiles.max": true}
	for line := range strings.Lines(runtimeGauges) {
		missing[strings.Fields(line)[0]] = true
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

package datadog

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"app/internal/secrets"
)

const (
	maxValues  = 1000 // of one distribution between two flushes
	packetSize = 1432 // at most; fits into an Ethernet frame
)

// Count adds the value to a counter. The name consists of ASCII letters, digits, _ and dots; a tag is "key:value".
// Tags must have few different values: each combination with a name is a series for which Datadog charges.
func (c *Client) Count(name string, value float64, tags ...string) {
	c.addMetric('c', name, value, tags)
}

// Gauge sets the current value of a quantity. The last value before a flush is sent.
func (c *Client) Gauge(name string, value float64, tags ...string) {
	c.addMetric('g', name, value, tags)
}

// Latency adds a time to a distribution, for which Datadog computes percentiles. The unit is the millisecond.
func (c *Client) Latency(name string, took time.Duration, tags ...string) {
	c.addMetric('d', name, float64(took)/float64(time.Millisecond), tags)
}

// A metricSender aggregates metrics and sends them as DogStatsD datagrams.
type metricSender struct {
	network, address string
	tags             []string // of every metric
	drops            *drops
	mask             *secrets.Mask

	mu     sync.Mutex
	series map[metric]series
}

// A metric is a name with tags, separated by NUL. The kind is c, g or d, as in the protocol.
type metric struct {
	kind       byte
	name, tags string
}

// A series is the sum of a counter, the last value of a gauge, or the values of a distribution: all of them, or a
// random sample of maxValues.
type series struct {
	values []float64
	added  int // number of values before sampling
}

func newMetricSender(agent *url.URL, settings Settings, drops *drops) *metricSender {
	networks := map[string]string{"udp": "udp4", "unix": "unixgram", "unixgram": "unixgram", "unixstream": "unix"}
	m := &metricSender{network: networks[agent.Scheme], address: agent.Path, drops: drops, mask: settings.Mask, series: map[metric]series{}}
	if m.network == "udp4" {
		m.address = net.JoinHostPort(agent.Hostname(), cmp.Or(agent.Port(), "8125"))
	}
	for _, tag := range settings.identity() {
		m.tags = append(m.tags, tag.key+":"+tag.value)
	}
	return m
}

func (c *Client) addMetric(kind byte, name string, value float64, tags []string) {
	if c == nil || c.metrics == nil || math.IsNaN(value) || math.IsInf(value, 0) {
		return
	}
	m, key := c.metrics, metric{kind, name, strings.Join(tags, "\x00")}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.series[key]
	s.added++
	switch {
	case len(s.values) == 0, kind == 'd' && len(s.values) < maxValues:
		s.values = append(s.values, value)
	case kind == 'c':
		s.values[0] += value
	case kind == 'g':
		s.values[0] = value
	default: // reservoir sampling: all values have the same chance
		if i := rand.IntN(s.added); i < maxValues {
			s.values[i] = value
		}
	}
	m.series[key] = s
}

func (m *metricSender) flush(ctx context.Context) {
	m.mu.Lock()
	all := m.series
	m.series = make(map[metric]series, len(all))
	m.mu.Unlock()
	packets := m.packets(all)
	if sent, err := m.send(ctx, packets); err != nil {
		m.drops.add(0, len(packets)-sent, err)
	}
}

// packets returns the series as messages NAME:VALUE[:VALUE…]|TYPE[|@RATE]|#TAGS in as few packets as possible.
func (m *metricSender) packets(all map[metric]series) (packets [][]byte) {
	for key, s := range all {
		tail := "|" + string(key.kind)
		if key.kind == 'd' && s.added > len(s.values) { // so that the agent counts each value several times
			tail += "|@" + strconv.FormatFloat(float64(len(s.values))/float64(s.added), 'g', 6, 64)
		}
		tail += "|#" + metricTags(slices.Concat(m.tags, strings.Split(key.tags, "\x00")))
		for some := range slices.Chunk(s.values, 50) { // few enough to leave space for the tags
			message := []byte(key.name)
			for _, value := range some {
				message = strconv.AppendFloat(append(message, ':'), value, 'f', -1, 64)
			}
			message = append(message, tail...)
			switch last := len(packets) - 1; {
			case len(message) > packetSize:
				m.drops.add(0, 1, errors.New("the tags of a metric do not fit into a packet"))
			case last >= 0 && len(packets[last])+1+len(message) <= packetSize:
				packets[last] = append(append(packets[last], '\n'), message...)
			default:
				packets = append(packets, message)
			}
		}
	}
	return packets
}

// normalTag rewrites a tag, or a value that becomes one, as Datadog would.
func normalTag(text string) string {
	isOther := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsNumber(r) && !strings.ContainsRune("_:./-", r)
	}
	return strings.TrimRight(cut(strings.Join(strings.FieldsFunc(strings.ToLower(text), isOther), "_"), 200), "_:")
}

// metricTags joins tags as a message holds them.
func metricTags(tags []string) string {
	for i, tag := range tags {
		tags[i] = normalTag(tag)
	}
	return strings.Join(slices.DeleteFunc(tags, func(tag string) bool { return tag == "" }), ",")
}

// send sends packets through a new connection, because the agent's name may resolve to another address by now. It
// returns how many were sent.
func (m *metricSender) send(ctx context.Context, packets [][]byte) (sent int, err error) {
	if len(packets) == 0 {
		return 0, nil
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, m.network, m.address)
	if err != nil && m.network == "udp4" { // IPv4 is tried first, because agents listen on it by default
		conn, err = dialer.DialContext(ctx, "udp", m.address)
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for i, packet := range packets {
		packet = m.mask.Bytes(packet)
		if m.network == "unix" { // a stream, where each packet follows its length
			packet = append(binary.LittleEndian.AppendUint32(nil, uint32(len(packet))), packet...)
		}
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := conn.Write(packet); err != nil {
			return i, err
		}
	}
	// An agent never answers, but a host without one refuses the packets, a moment later.
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, err
	}
	return len(packets), nil
}

// runtimeGauges are the gauges of Datadog's dashboard for Go, one per line: the name, and the metrics of package
// runtime/metrics to add up. Unlike runtime.ReadMemStats, reading them does not stop the world.
//
//go:embed runtime_gauges.txt
var runtimeGauges string

// ObserveRuntime sets the gauges of the Go runtime.
func (c *Client) ObserveRuntime() {
	tags := []string{"runtime-id:" + runtimeID, "lang:go", "lang_version:" + goVersion}
	c.Gauge("runtime.go.num_cpu", float64(runtime.NumCPU()), tags...)
	for line := range strings.Lines(runtimeGauges) {
		var sum uint64
		words := strings.Fields(line)
		for _, source := range words[1:] {
			sample := []metrics.Sample{{Name: source}}
			metrics.Read(sample)
			if sample[0].Value.Kind() == metrics.KindUint64 { // other releases of Go may lack the metric
				sum += sample[0].Value.Uint64()
			}
		}
		c.Gauge(words[0], float64(sum), tags...)
	}
	pauses := debug.GCStats{PauseQuantiles: make([]time.Duration, 5)}
	debug.ReadGCStats(&pauses)
	for i, quantile := range []string{"min", "25p", "50p", "75p", "max"} {
		c.Gauge("runtime.go.gc_stats.pause_quantiles."+quantile, float64(pauses.PauseQuantiles[i]), tags...)
	}
}

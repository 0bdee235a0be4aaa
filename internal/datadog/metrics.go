package datadog

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"app/internal/secrets"
)

const (
	maxSeries   = 2000 // between two flushes
	maxValues   = 1000 // of one distribution between two flushes
	packetSize  = 1432 // at most: fits into an Ethernet frame
	redialAfter = 15 * time.Second
)

// Count adds the value to a counter. The name is of ASCII letters, digits, _ and dots; a tag is "key:value".
// Tags must have few different values: each combination with a name is a series that Datadog charges for.
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

// MetricsEnabled reports whether the client sends metrics.
func (c *Client) MetricsEnabled() bool { return c != nil && c.metrics != nil }

// OnFlush registers a function that is called before metrics are sent, usually to set gauges. It must be quick.
func (c *Client) OnFlush(f func()) {
	if !c.MetricsEnabled() {
		return
	}
	c.metrics.mu.Lock()
	defer c.metrics.mu.Unlock()
	c.metrics.onFlush = append(c.metrics.onFlush, f)
}

// A metricSender aggregates metrics and sends them as DogStatsD datagrams.
type metricSender struct {
	network, address string
	tags             []string // of every metric
	drops            *drops
	mask             *secrets.Mask

	mu      sync.Mutex
	series  map[string]*series
	onFlush []func()

	// Only flush uses the rest.
	conn   net.Conn // nil until needed
	dialed time.Time
}

// A series is one metric with one set of tags. Counts are added up and the last value of a gauge counts. A
// distribution keeps its values or, if there are more than maxValues, a random sample of them.
type series struct {
	kind   byte // c, g or d, as in the protocol
	name   string
	tags   []string
	values []float64 // one, unless it is a distribution
	added  int       // number of values before sampling
}

// newMetricSender returns a sender to the agent at the URL, which may be that of a unix socket.
func newMetricSender(agent *url.URL, settings Settings, drops *drops) *metricSender {
	m := &metricSender{network: "udp", drops: drops, mask: settings.Mask, series: map[string]*series{}}
	m.address = net.JoinHostPort(agent.Hostname(), cmp.Or(agent.Port(), "8125"))
	switch agent.Scheme {
	case "unix", "unixgram":
		m.network, m.address = "unixgram", agent.Path
	case "unixstream":
		m.network, m.address = "unix", agent.Path
	}
	id := settings.identity()
	for _, tag := range append(id.tags, spanTag{"service", id.service}) {
		m.tags = append(m.tags, tag.key+":"+tag.value)
	}
	return m
}

func (c *Client) addMetric(kind byte, name string, value float64, tags []string) {
	if !c.MetricsEnabled() || math.IsNaN(value) || math.IsInf(value, 0) {
		return
	}
	m := c.metrics
	key := string(kind) + name + "\n" + strings.Join(tags, "\n")
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.series[key]
	if s == nil {
		if len(m.series) >= maxSeries {
			m.drops.add(packetUnit, 1, errors.New("there are too many combinations of metrics and tags"))
			return
		}
		s = &series{kind: kind, name: name, tags: slices.Clone(tags)}
		m.series[key] = s
	}
	s.add(value)
}

func (s *series) add(value float64) {
	s.added++
	switch {
	case len(s.values) == 0, s.kind == 'd' && len(s.values) < maxValues:
		s.values = append(s.values, value)
	case s.kind == 'c':
		s.values[0] += value
	case s.kind == 'g':
		s.values[0] = value
	default: // reservoir sampling: all values have the same chance
		if i := rand.IntN(s.added); i < maxValues {
			s.values[i] = value
		}
	}
}

// flush sends the metrics since the last flush.
func (m *metricSender) flush(ctx context.Context) {
	m.mu.Lock()
	onFlush := m.onFlush
	m.mu.Unlock()
	for _, f := range onFlush {
		f()
	}
	m.mu.Lock()
	all := m.series
	m.series = make(map[string]*series, len(all))
	m.mu.Unlock()
	packets := m.packets(all)
	for i, packet := range packets {
		if err := m.send(ctx, m.mask.Bytes(packet)); err != nil {
			m.drops.add(packetUnit, len(packets)-i, err)
			break
		}
	}
}

// packets returns the messages of the series in as few packets as possible.
func (m *metricSender) packets(all map[string]*series) (packets [][]byte) {
	for _, s := range all {
		for _, message := range s.messages(m.tags) {
			switch last := len(packets) - 1; {
			case len(message) > packetSize:
				m.drops.add(packetUnit, 1, errors.New("the tags of a metric do not fit into a packet"))
			case last >= 0 && len(packets[last])+1+len(message) <= packetSize:
				packets[last] = append(append(packets[last], '\n'), message...)
			default:
				packets = append(packets, message)
			}
		}
	}
	return packets
}

// messages returns the series as DogStatsD messages, NAME:VALUE[:VALUE…]|TYPE[|@RATE]|#TAGS.
func (s *series) messages(common []string) (messages [][]byte) {
	tail := "|" + string(s.kind)
	if s.kind == 'd' && s.added > len(s.values) { // the agent counts each value for several
		tail += "|@" + strconv.FormatFloat(float64(len(s.values))/float64(s.added), 'g', 6, 64)
	}
	tail += "|#" + metricTags(common, s.tags)
	for some := range slices.Chunk(s.values, 50) { // which leave space for the tags in a packet
		message := []byte(s.name)
		for _, value := range some {
			message = strconv.AppendFloat(append(message, ':'), value, 'f', -1, 64)
		}
		messages = append(messages, append(message, tail...))
	}
	return messages
}

var notInTag = regexp.MustCompile(`[^\p{L}\p{N}_:./-]+`)

// normalTag returns a tag, or a value that becomes one, as Datadog would rewrite it.
func normalTag(text string) string {
	return strings.TrimRight(cut(notInTag.ReplaceAllString(strings.ToLower(text), "_"), 200), "_:")
}

// metricTags joins the tags.
func metricTags(common, own []string) string {
	tags := slices.Concat(common, own)
	for i, tag := range tags {
		tags[i] = normalTag(tag)
	}
	return strings.Join(slices.DeleteFunc(tags, func(tag string) bool { return tag == "" }), ",")
}

// send sends a packet. With UDP, an error can be that of an earlier packet.
func (m *metricSender) send(ctx context.Context, packet []byte) error {
	if m.network == "unix" { // a stream, on which the length of a packet precedes it
		packet = append(binary.LittleEndian.AppendUint32(nil, uint32(len(packet))), packet...)
	}
	if err := m.dial(ctx); err != nil {
		return err
	}
	_ = m.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, err := m.conn.Write(packet)
	if err != nil {
		m.hangUp()
	}
	return err
}

// dial connects to the agent, unless that was done not long ago: the agent's name may have another address now.
// It prefers IPv4, on which agents listen by default: connecting by UDP succeeds even if nobody listens.
func (m *metricSender) dial(ctx context.Context) (err error) {
	if m.conn != nil && time.Since(m.dialed) < redialAfter {
		return nil
	}
	m.hangUp()
	m.dialed = time.Now()
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if m.network == "udp" {
		m.conn, err = dialer.DialContext(ctx, "udp4", m.address)
	}
	if m.conn == nil {
		m.conn, err = dialer.DialContext(ctx, m.network, m.address)
	}
	return err
}

func (m *metricSender) hangUp() {
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

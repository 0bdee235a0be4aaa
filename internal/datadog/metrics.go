// metrics.go sends metrics as DogStatsD datagrams. Between two sendings counts are summed up, of a
// gauge the last value stays, and of a distribution the values, or where they are very many a
// random sample of known rate.
package datadog

import (
	"context"
	"iter"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxSeries   = 2000 // names and tag sets between two sendings; further ones are dropped
	maxValues   = 1000 // of one distribution between two sendings
	redialAfter = 15 * time.Second
)

// count adds to a counter. Tags are key:value, with few different values.
func (t *Client) Count(name string, value float64, tags ...string) {
	if t != nil {
		t.metrics.add('c', name, value, tags)
	}
}

// gauge sets what a quantity is now.
func (t *Client) Gauge(name string, value float64, tags ...string) {
	if t != nil {
		t.metrics.add('g', name, value, tags)
	}
}

// distribution adds one of many values of which percentiles are of interest.
func (t *Client) distribution(name string, value float64, tags ...string) {
	if t != nil {
		t.metrics.add('d', name, value, tags)
	}
}

// latency adds a time, in milliseconds, to a distribution.
func (t *Client) Latency(name string, took time.Duration, tags ...string) {
	t.distribution(name, milliseconds(took), tags...)
}

// measuring reports whether metrics go anywhere.
func (t *Client) MetricsEnabled() bool { return t != nil && t.metrics != nil }

// observe has the function called before each sending of metrics, to set gauges. It must be quick.
func (t *Client) OnFlush(gauges func()) {
	if !t.MetricsEnabled() {
		return
	}
	t.metrics.mu.Lock()
	defer t.metrics.mu.Unlock()
	t.metrics.observers = append(t.metrics.observers, gauges)
}

// A metricSender gathers and sends metrics. add may be called from anywhere, the rest is the
// goroutine's.
type metricSender struct {
	network, address string
	size             int // of a packet at most
	tags             []string
	losses           *losses
	runtimeTags      []string // of what Go's runtime says of itself, as in Datadog's own clients

	mu        sync.Mutex
	series    map[string]*series
	observers []func()

	conn     net.Conn // nil until needed
	dialed   time.Time
	refusals int // so far
}

// A series is one metric with one set of tags.
type series struct {
	kind   byte
	name   string
	tags   []string
	value  float64   // of a count or gauge
	values []float64 // of a distribution
	seen   int       // values; more than are kept where they are a sample
}

func newMetricSender(network, address string, id identity, losses *losses) *metricSender {
	m := &metricSender{network: network, address: address, losses: losses, series: map[string]*series{}}
	m.size = 1432 // what one Ethernet frame holds
	if network == "unixgram" {
		m.size = 8192 // what the agent reads at once
	}
	for _, tag := range append(id.unified(), spanTag{"service", id.service}) {
		m.tags = append(m.tags, strings.TrimSuffix(tag.key+":"+tag.value, ":"))
	}
	m.runtimeTags = []string{"runtime-id:" + id.runtimeID, "lang:go", "lang_version:" + strings.TrimPrefix(runtime.Version(), "go")}
	return m
}

func (m *metricSender) add(kind byte, name string, value float64, tags []string) {
	if m == nil || math.IsNaN(value) || math.IsInf(value, 0) {
		return
	}
	var space [200]byte
	key := append(append(space[:0], kind), name...)
	for _, tag := range tags {
		key = append(append(key, '\n'), tag...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.series[string(key)] // without an allocation
	if s == nil {
		if len(m.series) >= maxSeries {
			m.losses.add(1)
			return
		}
		s = &series{kind: kind, name: name, tags: slices.Clone(tags)}
		m.series[string(key)] = s
	}
	s.add(value)
}

func (s *series) add(value float64) {
	s.seen++
	switch {
	case s.kind == 'c':
		s.value += value
	case s.kind == 'g':
		s.value = value
	case len(s.values) < maxValues:
		s.values = append(s.values, value)
	default: // each value seen is kept with the same probability
		if i := rand.IntN(s.seen); i < maxValues {
			s.values[i] = value
		}
	}
}

// run sends at each interval until stopping ends, and then once more. It gives up waiting for the
// agent when sending ends.
func (m *metricSender) run(stopping, sending context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for stopping.Err() == nil {
		select {
		case <-ticker.C:
			m.flush(sending)
			m.losses.tell()
		case <-stopping.Done():
		}
	}
	m.flush(sending)
	m.losses.tell()
	m.hangUp()
}

// flush sends what was gathered.
func (m *metricSender) flush(ctx context.Context) {
	m.mu.Lock()
	observers := m.observers
	m.mu.Unlock()
	for _, observe := range observers {
		observe()
	}
	m.mu.Lock()
	all := m.series
	m.series = make(map[string]*series, len(all))
	m.mu.Unlock()
	packets := m.pack(all)
	for i, packet := range packets {
		if err := m.send(ctx, packet); err != nil {
			m.losses.because(err)
			m.losses.add(len(packets) - i)
			return
		}
	}
}

// pack puts the series' messages into as few packets as they fit into.
func (m *metricSender) pack(all map[string]*series) [][]byte {
	var packets [][]byte
	var packet []byte
	for _, s := range all {
		for message := range s.messages(m.tags, m.size) {
			switch {
			case len(message) > m.size:
				m.losses.add(1)
				continue
			case len(packet) > 0 && len(packet)+1+len(message) > m.size:
				packets = append(packets, packet)
				packet = nil
			}
			if len(packet) > 0 {
				packet = append(packet, '\n')
			}
			packet = append(packet, message...)
		}
	}
	if len(packet) > 0 {
		packets = append(packets, packet)
	}
	return packets
}

// messages returns the series as DogStatsD messages, NAME:VALUE[:VALUE…]|TYPE[|@RATE]|#TAGS, of up
// to size bytes. Only a distribution makes more than one.
func (s *series) messages(common []string, size int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		name := metricName(s.name)
		tail := "|" + string(s.kind)
		values := s.values
		if s.kind != 'd' {
			values = []float64{s.value}
		} else if s.seen > len(values) {
			tail += "|@" + strconv.FormatFloat(float64(len(values))/float64(s.seen), 'g', 6, 64)
		}
		tail += "|#" + metricTags(common, s.tags)
		for len(values) > 0 {
			message := []byte(name)
			for len(values) > 0 {
				longer := strconv.AppendFloat(append(message, ':'), values[0], 'f', -1, 64)
				if len(message) > len(name) && len(longer)+len(tail) > size {
					break
				}
				message, values = longer, values[1:]
			}
			if !yield(append(message, tail...)) {
				return
			}
		}
	}
}

// metricName replaces what a metric's name must not contain.
func metricName(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.':
			return r
		}
		return '_'
	}, name)
	return name[:min(len(name), 200)]
}

// metricTags joins tags. Nothing can be escaped, so what would end a tag becomes an underscore.
func metricTags(lists ...[]string) string {
	var tags []string
	for _, tag := range slices.Concat(lists...) {
		tag = strings.Map(func(r rune) rune {
			if r == ',' || r == '|' || r < ' ' {
				return '_'
			}
			return r
		}, tag)
		tags = append(tags, cut(tag, 200))
	}
	return strings.Join(tags, ",")
}

// send sends one packet. A connection that refuses it tells that its predecessor was lost; the
// packet goes again on a new one, for which the agent's name is looked up anew.
func (m *metricSender) send(ctx context.Context, packet []byte) error {
	if time.Since(m.dialed) > redialAfter {
		m.hangUp()
	}
	reused := m.conn != nil
	err := m.write(ctx, packet)
	if err != nil && reused {
		m.losses.because(err)
		m.losses.add(1)
		err = m.write(ctx, packet)
	}
	return err
}

func (m *metricSender) write(ctx context.Context, packet []byte) (err error) {
	if m.conn == nil {
		if m.conn, err = m.dial(ctx); err != nil {
			return err
		}
		m.dialed = time.Now()
	}
	_ = m.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err = m.conn.Write(packet); err != nil {
		m.refusals++
		m.hangUp()
	}
	return err
}

// dial looks the agent's name up and connects. A name may have several addresses, of which the agent
// listens on one, and with datagrams only a refusal tells which it is not. Most likely, for localhost
// above all, it is the IPv4 one.
func (m *metricSender) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	address := m.address
	if m.network == "udp" {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(found, func(a, b netip.Addr) int { return a.Unmap().Compare(b.Unmap()) }) // IPv4 first
		address = net.JoinHostPort(found[m.refusals%len(found)].Unmap().String(), port)
	}
	return new(net.Dialer).DialContext(ctx, m.network, address)
}

func (m *metricSender) hangUp() {
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

// Package datadogtest provides a fake Datadog agent for tests.
package datadogtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// An Agent is a fake Datadog agent on the loopback interface. It fails the test if it receives data that the
// real agent rejects or silently discards.
type Agent struct {
	Traces  chan []Span    // the received traces
	Metrics chan Metric    // the received metrics
	Calls   chan struct{}  // one value for each request, sent when it arrives
	Address string         // of the trace API
	Packets net.PacketConn // the socket for metrics

	t      testing.TB
	mu     sync.Mutex
	server *http.Server
	answer func(w http.ResponseWriter, r *http.Request) bool // see AnswerWith; may be nil
}

// A Span is a span as the agent decodes it. The types of the fields are part of the protocol.
type Span struct {
	TraceID  uint64             `json:"trace_id"`
	SpanID   uint64             `json:"span_id"`
	ParentID uint64             `json:"parent_id"`
	Service  string             `json:"service"`
	Name     string             `json:"name"`
	Resource string             `json:"resource"`
	Type     string             `json:"type"`
	Start    int64              `json:"start"`
	Duration int64              `json:"duration"`
	Error    int32              `json:"error"`
	Meta     map[string]string  `json:"meta"`
	Metrics  map[string]float64 `json:"metrics"`
}

// ID128 returns the trace id as 32 hexadecimal digits. Only the first span of a trace has all of them.
func (s Span) ID128() string { return s.Meta["_dd.p.tid"] + fmt.Sprintf("%016x", s.TraceID) }

// A Metric is a DogStatsD message.
type Metric struct {
	Name   string
	Kind   string // c, g or d
	Values []float64
	Rate   float64
	Tags   []string // sorted
}

// New starts a fake agent on free ports. It ends with the test.
func New(t testing.TB) *Agent {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	return Start(t, ListenTCP(t, "127.0.0.1:0"), packets)
}

// ListenTCP listens on the address, whose port may be 0.
func ListenTCP(t testing.TB, address string) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	return listener
}

// Start starts a fake agent that receives traces from the listener and metrics from the packets. It ends with
// the test.
func Start(t testing.TB, listener net.Listener, packets net.PacketConn) *Agent {
	a := &Agent{
		t:       t,
		Traces:  make(chan []Span, 10_000),
		Metrics: make(chan Metric, 100_000),
		Calls:   make(chan struct{}, 10_000),
		Address: listener.Addr().String(),
		Packets: packets,
	}
	a.Listen(listener)
	var reading sync.WaitGroup
	reading.Go(a.readPackets)
	t.Cleanup(func() {
		a.Die()
		packets.Close()
		reading.Wait()
	})
	return a
}

// Listen makes the agent receive traces from the listener. A test calls it after Die.
func (a *Agent) Listen(listener net.Listener) {
	server := &http.Server{Handler: a}
	a.mu.Lock()
	a.server = server
	a.mu.Unlock()
	go func() { _ = server.Serve(listener) }() // until Die
}

// Die closes the listener and all connections for traces.
func (a *Agent) Die() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.server.Close()
}

// AnswerWith lets the function answer the requests for traces. If it returns false, the agent answers as usual.
func (a *Agent) AnswerWith(answer func(w http.ResponseWriter, r *http.Request) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// ServeHTTP is the trace API.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.Calls <- struct{}{}
	a.mu.Lock()
	answer := a.answer
	a.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	traces, err := decodeTraces(r)
	if err != nil {
		a.t.Error("the agent would reject: ", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, trace := range traces {
		a.Traces <- trace
	}
	fmt.Fprint(w, `{"rate_by_service":{}}`)
}

// decodeTraces decodes a request as the agent does. The error says what the agent would reject.
func decodeTraces(r *http.Request) ([][]Span, error) {
	for _, name := range []string{"Content-Encoding", "Datadog-Client-Computed-Top-Level",
		"Datadog-Client-Computed-Stats"} {
		if r.Header.Get(name) != "" {
			return nil, fmt.Errorf("header %s must not be set", name)
		}
	}
	if r.URL.Path != "/v0.4/traces" || r.Header.Get("Content-Type") != "application/json" {
		return nil, fmt.Errorf("path %s with content type %q", r.URL.Path, r.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 25<<20+1))
	if err != nil || len(body) > 25<<20 {
		return nil, fmt.Errorf("body of %d bytes: %w", len(body), err)
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	var traces [][]Span
	if err := decoder.Decode(&traces); err != nil {
		return nil, err
	}
	if r.Header.Get("X-Datadog-Trace-Count") != strconv.Itoa(len(traces)) {
		return nil, errors.New("X-Datadog-Trace-Count is not the number of traces")
	}
	for _, trace := range traces {
		if err := checkTrace(trace); err != nil {
			return nil, err
		}
	}
	return traces, nil
}

func checkTrace(trace []Span) error {
	if len(trace) == 0 {
		return errors.New("trace without spans")
	}
	first := trace[0]
	present := map[uint64]bool{}
	tid, has128bits := first.Meta["_dd.p.tid"]
	for _, s := range trace {
		switch {
		case present[s.SpanID]:
			return fmt.Errorf("duplicate span id %d", s.SpanID)
		case s.TraceID != first.TraceID:
			return errors.New("different trace ids in one trace")
		}
		if err := checkSpan(s); err != nil {
			return fmt.Errorf("%s %q: %w", s.Name, s.Resource, err)
		}
		present[s.SpanID] = true
	}
	topmost := 0
	for _, s := range trace {
		if !present[s.ParentID] {
			topmost++
		}
	}
	switch _, hasPriority := first.Metrics["_sampling_priority_v1"]; {
	case !hasPriority:
		return errors.New("no sampling priority on the first span")
	case present[first.ParentID]:
		return errors.New("first span has its parent in the trace")
	case topmost > 1 && len(trace) < 6000: // a larger trace may be only a part
		return fmt.Errorf("%d spans have no parent in the trace", topmost)
	case has128bits && (len(tid) != 16 || tid == "0000000000000000"):
		return errors.New("bad _dd.p.tid on the first span")
	}
	return nil
}

var spanName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.]{0,99}$`)

func checkSpan(s Span) error {
	switch age := time.Since(time.Unix(0, s.Start)); {
	case s.TraceID == 0 || s.SpanID == 0 || s.ParentID == s.SpanID:
		return errors.New("bad id")
	case !spanName.MatchString(s.Name) || s.Service == "" || s.Type == "" || s.Resource == "" || len(s.Resource) > 5000:
		return errors.New("bad name, service, type or resource")
	case age < 0 || age > time.Hour || s.Duration < 0:
		return errors.New("bad start or duration")
	case s.Error != 0 && s.Error != 1:
		return errors.New("bad error")
	case strings.ContainsAny(s.Meta["http.url"], "?@"):
		return errors.New("http.url with a query or a user")
	}
	if status, has := s.Meta["http.status_code"]; has {
		if n, err := strconv.Atoi(status); err != nil || n < 100 || n > 599 {
			return errors.New("bad http.status_code")
		}
	}
	return nil
}

// readPackets receives metrics until the socket is closed.
func (a *Agent) readPackets() {
	limit := 1432
	if a.Packets.LocalAddr().Network() == "unixgram" {
		limit = 8192
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := a.Packets.ReadFrom(buf)
		if err != nil {
			return
		}
		assert.LessOrEqual(a.t, n, limit, "size of a packet")
		for line := range strings.SplitSeq(string(buf[:n]), "\n") {
			metric, err := ParseMetric(line)
			assert.NoError(a.t, err)
			select {
			case a.Metrics <- metric:
			default: // the test does not read metrics
			}
		}
	}
}

var metricMessage = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_.]{0,199}):([0-9.:-]+)\|([cgd])(?:\|@(0\.\d+))?\|#([^|]+)$`)

// ParseMetric parses a DogStatsD message and rejects what the agent rejects.
func ParseMetric(line string) (Metric, error) {
	parts := metricMessage.FindStringSubmatch(line)
	if parts == nil {
		return Metric{}, fmt.Errorf("malformed message %q", line)
	}
	metric := Metric{Name: parts[1], Kind: parts[3], Rate: 1, Tags: strings.Split(parts[5], ",")}
	slices.Sort(metric.Tags)
	for text := range strings.SplitSeq(parts[2], ":") {
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return Metric{}, err
		}
		metric.Values = append(metric.Values, value)
	}
	if parts[4] != "" {
		metric.Rate, _ = strconv.ParseFloat(parts[4], 64) // the pattern allows only numbers
	}
	return metric, nil
}

// Receive returns the next value. It fails the test if none arrives within 20 seconds.
func Receive[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(20 * time.Second):
		require.FailNow(t, "no value was received")
		panic("unreachable")
	}
}

// Drained returns the values that were received but not read yet.
func Drained[T any](from <-chan T) (values []T) {
	for {
		select {
		case value := <-from:
			values = append(values, value)
		default:
			return values
		}
	}
}

// Hang makes the agent leave requests for traces unanswered until the end of the test.
func (a *Agent) Hang() {
	over := make(chan struct{})
	a.t.Cleanup(func() { close(over) })
	a.AnswerWith(func(http.ResponseWriter, *http.Request) bool {
		<-over
		return true
	})
}

// Trace returns the next trace whose first span has the resource.
func (a *Agent) Trace(resource string) []Span {
	a.t.Helper()
	for {
		if trace := Receive(a.t, a.Traces); trace[0].Resource == resource {
			return trace
		}
	}
}

// Metric returns the next metric with the name and all of the tags. It discards earlier metrics.
func (a *Agent) Metric(name string, tags ...string) Metric {
	a.t.Helper()
	metrics := a.MetricsUntil(name, tags...)
	return metrics[len(metrics)-1]
}

// MetricsUntil returns the metrics up to and including the next one with the name and all of the tags.
func (a *Agent) MetricsUntil(name string, tags ...string) (metrics []Metric) {
	a.t.Helper()
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		metric := Receive(a.t, a.Metrics)
		metrics = append(metrics, metric)
		missing := slices.ContainsFunc(tags, func(tag string) bool { return !slices.Contains(metric.Tags, tag) })
		if metric.Name == name && !missing {
			return metrics
		}
	}
	require.FailNow(a.t, "metric was not received", "%s %v", name, tags)
	panic("unreachable")
}

// LogLines keeps lines of JSON. Its zero value is ready for use as the destination of a log.
type LogLines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *LogLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// String returns the lines as they were written.
func (l *LogLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Lines returns the lines as JSON objects.
func (l *LogLines) Lines() (lines []map[string]any) {
	for line := range strings.Lines(l.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			panic(err)
		}
		lines = append(lines, fields)
	}
	return lines
}

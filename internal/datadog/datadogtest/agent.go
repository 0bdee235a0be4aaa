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

// An agentStandIn takes what a Datadog agent takes, on loopback, and refuses what that refuses or
// would throw away in silence.
type Agent struct {
	T       testing.TB
	Traces  chan []Span // the taken ones
	Metrics chan Metric
	Calls   chan struct{} // one for each request, as it comes
	Address string        // for traces
	Packets net.PacketConn

	mu     sync.Mutex
	server *http.Server
	answer func(w http.ResponseWriter, r *http.Request) bool // may answer instead; nil: never
}

// An agentSpan is a span as the agent decodes it: other types than these are refused.
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

// id is the trace's id with all its digits. Only the first span of a trace knows them.
func (s Span) ID128() string { return s.Meta["_dd.p.tid"] + fmt.Sprintf("%016x", s.TraceID) }

// An agentMetric is one DogStatsD message.
type Metric struct {
	Name   string
	Kind   string
	Values []float64
	Rate   float64
	Tags   []string // sorted
}

// newAgent starts an agent on free ports.
func New(t testing.TB) *Agent {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	return Start(t, ListenTCP(t, "127.0.0.1:0"), packets)
}

func ListenTCP(t testing.TB, address string) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	return listener
}

func Start(t testing.TB, listener net.Listener, packets net.PacketConn) *Agent {
	a := &Agent{
		T:       t,
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

// listen begins to take traces, again after die.
func (a *Agent) Listen(listener net.Listener) {
	server := &http.Server{Handler: a}
	a.mu.Lock()
	a.server = server
	a.mu.Unlock()
	go func() { _ = server.Serve(listener) }() // until die
}

// die ends the listener and all connections.
func (a *Agent) Die() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.server.Close()
}

// answerWith lets the function answer those requests for which it returns true.
func (a *Agent) AnswerWith(answer func(w http.ResponseWriter, r *http.Request) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

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
		a.T.Error("the agent refuses: ", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, trace := range traces {
		a.Traces <- trace
	}
	fmt.Fprint(w, `{"rate_by_service":{}}`)
}

// decodeTraces reads a request as the agent does, and reports what it would not take.
func decodeTraces(r *http.Request) ([][]Span, error) {
	for _, name := range []string{"Content-Encoding", "Datadog-Client-Computed-Top-Level", "Datadog-Client-Computed-Stats"} {
		if r.Header.Get(name) != "" {
			return nil, fmt.Errorf("the header %s", name)
		}
	}
	if r.URL.Path != "/v0.4/traces" || r.Header.Get("Content-Type") != "application/json" {
		return nil, fmt.Errorf("%s as %s", r.URL.Path, r.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 25<<20+1))
	if err != nil || len(body) > 25<<20 {
		return nil, fmt.Errorf("a body of %d bytes: %w", len(body), err)
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	var traces [][]Span
	if err := decoder.Decode(&traces); err != nil {
		return nil, err
	}
	if r.Header.Get("X-Datadog-Trace-Count") != strconv.Itoa(len(traces)) {
		return nil, errors.New("another number of traces than in the header")
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
		return errors.New("a trace without spans")
	}
	first := trace[0]
	present := map[uint64]bool{}
	tid, has128bits := first.Meta["_dd.p.tid"]
	for _, s := range trace {
		switch {
		case present[s.SpanID]:
			return fmt.Errorf("span id %d twice", s.SpanID)
		case s.TraceID != first.TraceID:
			return errors.New("two trace ids in one trace")
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
		return errors.New("the first span is not a top-level span")
	case topmost > 1 && len(trace) < 6000: // of a very long trace, parts leave before
		return fmt.Errorf("%d spans have no parent among them", topmost)
	case has128bits && (len(tid) != 16 || tid == "0000000000000000"):
		return errors.New("no upper half of the trace id on the first span")
	}
	return nil
}

var spanName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.]{0,99}$`)

func checkSpan(s Span) error {
	switch age := time.Since(time.Unix(0, s.Start)); {
	case s.TraceID == 0 || s.SpanID == 0 || s.ParentID == s.SpanID:
		return errors.New("a bad id")
	case !spanName.MatchString(s.Name) || s.Service == "" || s.Type == "" || s.Resource == "" || len(s.Resource) > 5000:
		return errors.New("a bad name, service, type or resource")
	case age < 0 || age > time.Hour || s.Duration < 0:
		return errors.New("a bad time")
	case s.Error != 0 && s.Error != 1:
		return errors.New("error is neither 0 nor 1")
	case strings.ContainsAny(s.Meta["http.url"], "?@"):
		return errors.New("a URL with a query or a user")
	}
	if status, has := s.Meta["http.status_code"]; has {
		if n, err := strconv.Atoi(status); err != nil || n < 100 || n > 599 {
			return errors.New("a bad http.status_code")
		}
	}
	return nil
}

// readPackets takes datagrams until the socket is closed.
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
		assert.LessOrEqual(a.T, n, limit, "size of a packet")
		for line := range strings.SplitSeq(string(buf[:n]), "\n") {
			metric, err := ParseMetric(line)
			assert.NoError(a.T, err)
			select {
			case a.Metrics <- metric:
			default: // nobody looks at them
			}
		}
	}
}

var metricMessage = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_.]{0,199}):([0-9.:-]+)\|([cgd])(?:\|@(0\.\d+))?\|#([^|]+)$`)

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
		metric.Rate, _ = strconv.ParseFloat(parts[4], 64) // the pattern has seen to it
	}
	return metric, nil
}

// receive returns the next value, or fails the test where none comes.
func Receive[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(20 * time.Second):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

// drained returns the values that are there already.
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

// hang lets the agent take no more answers until the test is over.
func (a *Agent) Hang() {
	over := make(chan struct{})
	a.T.Cleanup(func() { close(over) })
	a.AnswerWith(func(http.ResponseWriter, *http.Request) bool {
		<-over
		return true
	})
}

// A logLines keeps log lines.
type LogLines struct {
	Mu   sync.Mutex
	Text bytes.Buffer
}

func (b *LogLines) Write(line []byte) (int, error) {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	return b.Text.Write(line)
}

func (b *LogLines) Lines() (lines []map[string]any) {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	for line := range bytes.Lines(b.Text.Bytes()) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			panic(err)
		}
		lines = append(lines, fields)
	}
	return lines
}

// Trace returns the next trace whose first span has the resource.
func (a *Agent) Trace(resource string) []Span {
	a.T.Helper()
	for {
		if trace := Receive(a.T, a.Traces); trace[0].Resource == resource {
			return trace
		}
	}
}

// Metric returns the next message with the name and all the tags.
func (a *Agent) Metric(name string, tags ...string) Metric {
	a.T.Helper()
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		metric := Receive(a.T, a.Metrics)
		if metric.Name == name && len(intersection(metric.Tags, tags)) == len(tags) {
			return metric
		}
	}
	require.FailNow(a.T, "there is no such metric", "%s %v", name, tags)
	panic("unreachable")
}

func intersection(a, b []string) (both []string) {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				both = append(both, x)
			}
		}
	}
	return both
}

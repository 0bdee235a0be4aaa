// trace_send.go hands finished spans to the agent: a bounded queue, an encoder and one goroutine.
package datadog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"app/internal/rawjson"
)

const (
	maxQueuedSpans = 20_000  // in memory until they are encoded; further ones are dropped
	encodeAt       = 500     // spans in the queue: the sender does not wait for its next turn
	maxPayload     = 4 << 20 // bytes in one request; the agent takes 25 MiB
)

// A traceSender sends finished spans. add may be called from anywhere, the rest is the goroutine's.
type traceSender struct {
	url     string
	client  *http.Client
	timeout time.Duration
	losses  *losses
	service string
	tags    []spanTag // of every span
	once    []spanTag // of the first span of a trace

	wake   chan struct{}
	mu     sync.Mutex
	queue  [][]*Span
	queued int // spans in the queue

	payload       []byte // a JSON array without its end, as each trace begins with a comma
	traces, spans int    // in the payload
	failures      int    // in a row
}

// newTraceSender returns a sender to the URL, through the unix socket if there is one.
func newTraceSender(url, socket string, timeout time.Duration, id identity, losses *losses) *traceSender {
	// A connection each time, so that the agent's name is looked up each time; and no proxy.
	transport := &http.Transport{DisableKeepAlives: true}
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	return &traceSender{
		url: url,
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // who sends us elsewhere is no agent
		}},
		timeout: timeout,
		losses:  losses,
		service: id.service,
		tags:    id.unified(),
		once:    []spanTag{{"language", "go"}, {"runtime-id", id.runtimeID}},
		wake:    make(chan struct{}, 1),
	}
}

// add queues the spans, which are of one trace, the topmost first.
func (s *traceSender) add(chunk []*Span) {
	if s == nil {
		return
	}
	s.mu.Lock()
	full := s.queued+len(chunk) > maxQueuedSpans
	if !full {
		s.queue = append(s.queue, chunk)
		s.queued += len(chunk)
	}
	enough := s.queued >= encodeAt
	s.mu.Unlock()
	if full {
		s.losses.add(len(chunk))
	}
	if enough {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// run sends at each interval until stopping ends, and then once more. It gives up waiting for the
// agent when sending ends.
func (s *traceSender) run(stopping, sending context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for stopping.Err() == nil {
		select {
		case <-s.wake:
			s.encode(sending)
		case <-ticker.C:
			s.encode(sending)
			s.flush(sending)
			s.losses.tell()
		case <-stopping.Done():
		}
	}
	s.encode(sending)
	s.flush(sending)
	s.discard()
	s.losses.tell()
}

// encode moves the queue to the payload. A full payload is sent at once, unless the agent just
// failed to take one.
func (s *traceSender) encode(ctx context.Context) {
	s.mu.Lock()
	queue := s.queue
	s.queue, s.queued = nil, 0
	s.mu.Unlock()
	for _, chunk := range queue {
		if len(s.payload) >= maxPayload && s.failures == 0 {
			s.flush(ctx)
		}
		if len(s.payload) >= maxPayload {
			s.losses.add(len(chunk))
			continue
		}
		s.payload = s.appendChunk(append(s.payload, ','), chunk)
		s.traces++
		s.spans += len(chunk)
	}
}

// slowFailure is how long an agent may take to fail and be asked again.
const slowFailure = time.Second

// flush sends the payload. One that the agent has not taken goes again with the next, but only once.
func (s *traceSender) flush(ctx context.Context) {
	if s.traces == 0 {
		return
	}
	began := time.Now()
	err := s.post(ctx)
	if err == nil {
		s.payload, s.traces, s.spans, s.failures = s.payload[:0], 0, 0, 0
		return
	}
	s.losses.because(err)
	s.failures++
	refusal, _ := errors.AsType[agentRefusal](err)
	taken := errors.Is(err, context.DeadlineExceeded) // perhaps: twice would be worse than not at all
	if taken || refusal.isFinal() || s.failures > 1 || time.Since(began) > slowFailure {
		s.discard()
	}
}

func (s *traceSender) discard() {
	s.losses.add(s.spans)
	s.payload, s.traces, s.spans = s.payload[:0], 0, 0
}

// An agentRefusal is an answer of the agent other than success.
type agentRefusal struct {
	status int
	text   string
}

func (r agentRefusal) Error() string {
	return fmt.Sprintf("the agent answered %d: %s", r.status, r.text)
}

// isFinal reports whether the agent would refuse the same payload again.
func (r agentRefusal) isFinal() bool {
	return 300 <= r.status && r.status < 500 && r.status != http.StatusTooManyRequests
}

// post makes one attempt at sending the payload.
func (s *traceSender) post(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	s.payload[0] = '[' // for the comma of the first trace
	body := append(s.payload, ']')
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Datadog-Trace-Count", strconv.Itoa(s.traces))
	req.Header.Set("Datadog-Meta-Lang", "go")
	req.Header.Set("Datadog-Meta-Lang-Version", strings.TrimPrefix(runtime.Version(), "go"))
	req.Header.Set("Datadog-Meta-Lang-Interpreter", runtime.Compiler+"-"+runtime.GOARCH+"-"+runtime.GOOS)
	req.Header.Set("Datadog-Meta-Tracer-Version", "1")
	req.Header.Set("Datadog-Send-Real-Http-Status", "true") // else overload looks like success
	answer, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	switch {
	case answer.StatusCode/100 != 2:
		return agentRefusal{answer.StatusCode, string(bytes.TrimSpace(text[:min(len(text), 200)]))}
	case err != nil:
		return err
	}
	return nil
}

// appendChunk appends the spans as one trace. What is said once for all of them goes with the first.
func (s *traceSender) appendChunk(buf []byte, chunk []*Span) []byte {
	buf = append(buf, '[')
	for i, sp := range chunk {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = s.appendSpan(buf, sp, i == 0)
	}
	return append(buf, ']')
}

func (s *traceSender) appendSpan(buf []byte, sp *Span, first bool) []byte {
	buf = strconv.AppendUint(append(buf, `{"trace_id":`...), sp.trace.low, 10)
	buf = strconv.AppendUint(append(buf, `,"span_id":`...), sp.id, 10)
	buf = strconv.AppendUint(append(buf, `,"parent_id":`...), sp.parent, 10)
	buf = strconv.AppendInt(append(buf, `,"start":`...), sp.start.UnixNano(), 10)
	buf = strconv.AppendInt(append(buf, `,"duration":`...), max(0, sp.duration.Nanoseconds()), 10)
	buf = rawjson.AppendQuoted(append(buf, `,"service":`...), s.service)
	buf = rawjson.AppendQuoted(append(buf, `,"name":`...), sp.name)
	buf = rawjson.AppendQuoted(append(buf, `,"type":`...), sp.kind)
	buf = rawjson.AppendQuoted(append(buf, `,"resource":`...), sp.resource)
	failed := int64(0)
	if sp.failed {
		failed = 1
	}
	buf = strconv.AppendInt(append(buf, `,"error":`...), failed, 10)
	buf = appendTags(append(buf, `,"meta":{`...), s.tags)
	if first {
		buf = appendTags(buf, s.once)
		buf = appendTags(buf, sp.trace.propagated())
	}
	buf = appendTags(buf, sp.tags)
	buf = append(buf, `},"metrics":{`...)
	if first {
		buf = appendNumbers(buf, []spanNumber{{"_sampling_priority_v1", float64(sp.trace.priority)}})
	}
	buf = appendNumbers(buf, sp.numbers)
	return append(buf, `}}`...)
}

func appendTags(buf []byte, tags []spanTag) []byte {
	for _, tag := range tags {
		buf = rawjson.AppendQuoted(appendKey(buf, tag.key), tag.value)
	}
	return buf
}

func appendNumbers(buf []byte, numbers []spanNumber) []byte {
	for _, n := range numbers {
		buf = strconv.AppendFloat(appendKey(buf, n.key), n.value, 'f', -1, 64)
	}
	return buf
}

// appendKey begins a member of a JSON object.
func appendKey(buf []byte, key string) []byte {
	if buf[len(buf)-1] != '{' {
		buf = append(buf, ',')
	}
	return append(rawjson.AppendQuoted(buf, key), ':')
}

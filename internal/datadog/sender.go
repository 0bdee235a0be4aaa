package datadog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"app/internal/rawjson"
)

var goVersion = strings.TrimPrefix(runtime.Version(), "go")

// maxBatch is the size at which a batch is sent at once. The agent accepts requests of 25 MiB.
const maxBatch = 4 << 20

// A traceSender posts finished spans to the agent.
type traceSender struct {
	url       string
	transport *http.Transport // not an http.Client, because agents do not redirect
	settings  Settings
	identity  []spanTag
	drops     *drops
	full      chan struct{} // receives a value when the batch is full

	mu    sync.Mutex
	batch batch
}

// A batch is a JSON array of traces, with a comma before each trace and without the last bracket.
type batch struct {
	json          []byte
	traces, spans int
}

func newTraceSender(agent *url.URL, settings Settings, drops *drops) *traceSender {
	// A new connection for each request makes sure that the agent's name is resolved again.
	transport := &http.Transport{DisableKeepAlives: true}
	if agent.Scheme == "unix" {
		socket := agent.Path
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
		agent = &url.URL{Scheme: "http", Host: "localhost"}
	}
	return &traceSender{
		url:       agent.JoinPath("/v0.4/traces").String(),
		transport: transport,
		settings:  settings,
		identity:  settings.identity(),
		drops:     drops,
		full:      make(chan struct{}, 1),
	}
}

// add adds spans of one trace to the batch, the topmost first.
func (s *traceSender) add(spans []*Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.batch
	if len(b.json) >= maxBatch {
		s.drops.add(len(spans), 0, errors.New("the agent is slower than the program: the buffer for spans is full"))
		return
	}
	b.json = append(b.json, ",["...)
	for i, span := range spans {
		if i > 0 {
			b.json = append(b.json, ',')
		}
		b.json = s.appendSpan(b.json, span, i == 0)
	}
	b.json = append(b.json, ']')
	b.traces++
	b.spans += len(spans)
	if len(b.json) >= maxBatch {
		select {
		case s.full <- struct{}{}:
		default:
		}
	}
}

// flush sends the batch. If the failure may be temporary, it retries once after a pause.
func (s *traceSender) flush(ctx, stopping context.Context) {
	s.mu.Lock()
	b := s.batch
	s.batch = batch{json: make([]byte, 0, min(cap(b.json), 2*len(b.json)))} // enough for as many spans again
	s.mu.Unlock()
	if b.traces == 0 {
		return
	}
	b.json[0] = '['
	b.json = s.settings.Mask.Bytes(append(b.json, ']'))
	isTemporary, err := s.post(ctx, b)
	if isTemporary {
		select {
		case <-time.After(s.settings.Interval):
		case <-stopping.Done():
		}
		_, err = s.post(ctx, b)
	}
	if err != nil {
		s.drops.add(b.spans, 0, err)
	}
}

// post sends the batch in one request. It reports whether a failure may be temporary.
func (s *traceSender) post(ctx context.Context, b batch) (isTemporary bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.settings.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(b.json))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Datadog-Trace-Count", strconv.Itoa(b.traces))
	req.Header.Set("Datadog-Meta-Lang", "go")
	req.Header.Set("Datadog-Meta-Lang-Version", goVersion)
	req.Header.Set("Datadog-Meta-Lang-Interpreter", runtime.Compiler+"-"+runtime.GOARCH+"-"+runtime.GOOS)
	req.Header.Set("Datadog-Meta-Tracer-Version", "1")
	req.Header.Set("Datadog-Send-Real-Http-Status", "true") // without it, an overloaded agent answers 200
	res, err := s.transport.RoundTrip(req)
	if err != nil {
		return !errors.Is(err, context.DeadlineExceeded), err // after a timeout, the agent may have the spans
	}
	defer res.Body.Close()
	if res.StatusCode/100 == 2 {
		return false, nil
	}
	text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	err = fmt.Errorf("the agent answered %d: %s", res.StatusCode, bytes.TrimSpace(text))
	return res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests, err
}

// appendSpan appends a span. The first one has the tags of the whole trace.
func (s *traceSender) appendSpan(buf []byte, span *Span, first bool) []byte {
	buf = strconv.AppendUint(append(buf, `{"trace_id":`...), span.trace.low, 10)
	buf = strconv.AppendUint(append(buf, `,"span_id":`...), span.id, 10)
	buf = strconv.AppendUint(append(buf, `,"parent_id":`...), span.parent, 10)
	buf = strconv.AppendInt(append(buf, `,"start":`...), span.start.UnixNano(), 10)
	buf = strconv.AppendInt(append(buf, `,"duration":`...), span.duration.Nanoseconds(), 10)
	buf = appendTags(buf, s.identity[0], spanTag{"name", span.name}, spanTag{"type", span.kind})
	buf = appendKey(buf, "resource")
	from := len(buf)
	buf = rawjson.AppendQuoted(buf, span.resource)
	resource := buf[from:]
	if span.failed {
		buf = append(buf, `,"error":1`...)
	}
	buf = appendTags(append(buf, `,"meta":{`...), s.identity[1:]...)
	if first {
		buf = appendTags(buf, spanTag{"language", "go"}, spanTag{"runtime-id", runtimeID})
		buf = appendTags(buf, span.trace.tags...)
		buf = appendTags(buf, given(spanTag{"_dd.origin", span.trace.product})...)
	}
	buf = appendTags(buf, span.tags...)
	if span.kind == "sql" { // then the resource is the statement
		buf = append(appendKey(buf, "db.statement"), resource...)
	}
	buf = append(buf, `},"metrics":{`...)
	if first {
		buf = strconv.AppendInt(appendKey(buf, "_sampling_priority_v1"), int64(span.trace.priority), 10)
	}
	for _, n := range span.numbers {
		buf = append(appendKey(buf, n.key), n.value...)
	}
	return append(buf, `}}`...)
}

func appendTags(buf []byte, tags ...spanTag) []byte {
	for _, tag := range tags {
		buf = rawjson.AppendQuoted(appendKey(buf, tag.key), tag.value)
	}
	return buf
}

// appendKey appends the key of the next member of a JSON object.
func appendKey(buf []byte, key string) []byte {
	if buf[len(buf)-1] != '{' {
		buf = append(buf, ',')
	}
	return append(rawjson.AppendQuoted(buf, key), ':')
}

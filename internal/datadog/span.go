// trace.go makes spans, the timed steps of a trace. A span belongs to the span in its context, or
// begins a trace where there is none.
package datadog

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"net/url"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	maxChunkSpans = 6000 // that wait for their trace's root before they leave without it: a few MB
	maxTagLength  = 5000 // Datadog cuts resources here, too
)

// A traceOrigin names a trace, and the span of another process in which our part of it begins.
type traceOrigin struct {
	high, low uint64    // the trace's id
	parent    uint64    // 0 where the trace begins here
	priority  int       // of sampling: 1 and 2 keep the trace, 0 and -1 do not
	state     string    // other vendors' members of the tracestate header
	tags      []spanTag // Datadog's that go from process to process: _dd.p.dm
}

// newOrigin names a new trace. As in Datadog's own clients its id begins with the time.
func newOrigin() traceOrigin {
	return traceOrigin{high: uint64(time.Now().Unix()) << 32, low: newSpanID(), priority: 1}
}

// newSpanID returns a random number that is not 0, which stands for "none".
func newSpanID() uint64 { return rand.Uint64N(math.MaxUint64) + 1 }

// A trace is this process's part of one trace.
type trace struct {
	traceOrigin
	telemetry *Client
	root      *Span

	mu        sync.Mutex // guards the rest and the trace's running spans
	finished  []*Span
	rootEnded bool
}

// A span is one step of a trace. The methods of a nil span do nothing, and so do those that change
// a finished one.
type Span struct {
	trace                *trace
	id, parent           uint64
	name, kind, resource string
	start                time.Time
	duration             time.Duration
	ended, failed        bool
	tags                 []spanTag
	numbers              []spanNumber
}

type spanTag struct{ key, value string }

type spanNumber struct {
	key   string
	value float64
}

type spanKey struct{} // of the current *span, or else a traceOrigin, in a context

// spanOf returns the span that the context is within, or nil.
func SpanFrom(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// tracing reports whether spans go anywhere.
func (t *Client) tracing() bool { return t != nil && (t.traces != nil || t.printer != nil) }

// startSpan begins a span and returns a context for what happens within it. The name says what kind
// of step it is (http.request), kind is Datadog's type (web, http, sql, custom), and the resource
// is the one thing of few that it is about (GET /items/{id}). The caller calls finish.
func (t *Client) StartSpan(ctx context.Context, name, kind, resource string) (context.Context, *Span) {
	if !t.tracing() {
		return ctx, nil
	}
	s := &Span{id: newSpanID(), name: name, kind: kind, resource: cut(resource, maxTagLength), start: time.Now()}
	switch above := ctx.Value(spanKey{}).(type) {
	case *Span:
		s.trace, s.parent = above.trace.part(s), above.id
	case traceOrigin:
		s.trace, s.parent = &trace{traceOrigin: above, telemetry: t, root: s}, above.parent
	default:
		s.trace = &trace{traceOrigin: newOrigin(), telemetry: t, root: s}
	}
	return context.WithValue(ctx, spanKey{}, s), s
}

// part is the part of the trace that a new span belongs to: a further one, of which it is the root,
// where the first has left already.
func (t *trace) part(s *Span) *trace {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.rootEnded {
		return t
	}
	return &trace{traceOrigin: t.traceOrigin, telemetry: t.telemetry, root: s}
}

// outsideTraces returns a context that belongs to no trace.
func WithoutSpan(ctx context.Context) context.Context {
	return context.WithValue(ctx, spanKey{}, nil)
}

// noteShared puts a span into the trace of who has waited since then for work that is part of
// another's trace, and names that.
func AddSharedSpan(ctx context.Context, name string, since time.Time, by *Span) {
	mine := SpanFrom(ctx)
	if mine == nil || by == nil || mine.traceID() == by.traceID() {
		return
	}
	_, s := mine.trace.telemetry.StartSpan(ctx, name, "custom", name)
	s.start = since
	s.SetTag("shared.trace_id", by.traceID())
	s.Finish()
}

// set gives the span a tag.
func (s *Span) SetTag(key, value string) {
	if s == nil {
		return
	}
	s.trace.mu.Lock()
	defer s.trace.mu.Unlock()
	s.setLocked(key, value)
}

// cut shortens a text to so many bytes, and does not cut a character.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

func (s *Span) setLocked(key, value string) {
	if s.ended {
		return
	}
	value = cut(value, maxTagLength)
	for i := range s.tags {
		if s.tags[i].key == key {
			s.tags[i].value = value
			return
		}
	}
	if s.tags == nil {
		s.tags = make([]spanTag, 0, 10)
	}
	s.tags = append(s.tags, spanTag{key, value})
}

// setNumber gives the span a tag that is a number.
func (s *Span) SetMetric(key string, value float64) {
	if s == nil || math.IsNaN(value) || math.IsInf(value, 0) {
		return
	}
	s.trace.mu.Lock()
	defer s.trace.mu.Unlock()
	if !s.ended {
		s.numbers = slices.DeleteFunc(s.numbers, func(n spanNumber) bool { return n.key == key })
		s.numbers = append(s.numbers, spanNumber{key, value})
	}
}

// setResource renames what the span is about, once that is known better.
func (s *Span) SetResource(resource string) {
	if s == nil {
		return
	}
	s.trace.mu.Lock()
	defer s.trace.mu.Unlock()
	if !s.ended {
		s.resource = cut(resource, maxTagLength)
	}
}

// fail marks the span as failed by the error, which may be nil, and notes where that happened.
func (s *Span) SetError(err error) {
	if s == nil || err == nil {
		return
	}
	stack := string(debug.Stack())
	s.trace.mu.Lock()
	defer s.trace.mu.Unlock()
	if s.ended || s.failed { // the first failure is the reason for the others
		return
	}
	s.failed = true
	s.setLocked("error.message", errorText(err))
	s.setLocked("error.type", errorType(err))
	s.setLocked("error.stack", stack)
}

// errorText is the error's text without what must not leave the process: query strings, and the
// values that PostgreSQL quotes when data do not fit (class 22).
func errorText(err error) string {
	text := err.Error()
	if refused, ok := errors.AsType[*url.Error](err); ok {
		bare, _, _ := strings.Cut(refused.URL, "?")
		text = strings.ReplaceAll(text, refused.URL, bare)
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(refused.Code, "22") {
		text = strings.ReplaceAll(text, refused.Message, "unfit data")
	}
	return text
}

// errorType is the type of the error at the root of the chain; those above it add words.
func errorType(err error) string {
	for cause := err; cause != nil; cause = errors.Unwrap(cause) {
		err = cause
	}
	return reflect.TypeOf(err).String()
}

// finish ends the span. With the root, the trace leaves; what ends later leaves by itself. Of a very
// long trace parts leave before.
func (s *Span) Finish() {
	if s == nil {
		return
	}
	t := s.trace
	t.mu.Lock()
	if s.ended {
		t.mu.Unlock()
		return
	}
	s.ended, s.duration = true, time.Since(s.start)
	t.finished = append(t.finished, s)
	t.rootEnded = t.rootEnded || s == t.root
	var chunk []*Span
	if t.rootEnded || len(t.finished) >= maxChunkSpans {
		chunk, t.finished = t.finished, nil
	}
	t.mu.Unlock()
	if chunk == nil {
		return
	}
	// A parent begins before its children and ends after them, so this puts the topmost span first.
	slices.Reverse(chunk)
	slices.SortStableFunc(chunk, func(a, b *Span) int { return a.start.Compare(b.start) })
	t.telemetry.printer.print(chunk)
	t.telemetry.traces.add(chunk)
}

// traceID returns the id of the span's trace as 32 hexadecimal digits.
func (s *Span) traceID() string {
	if s == nil {
		return ""
	}
	return Hex64(s.trace.high) + Hex64(s.trace.low)
}

func Hex64(id uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	return hex.EncodeToString(b[:])
}

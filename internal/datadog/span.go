package datadog

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	maxChunk     = 6000 // finished spans of one trace that wait for its root: a few MB
	maxTagLength = 5000 // Datadog's limit for resources
)

// A traceOrigin is the id of a trace and what this process knows of its beginning in another process.
type traceOrigin struct {
	high, low uint64    // the trace id
	parent    uint64    // the span in the other process; 0 if the trace starts here
	priority  int       // of sampling: 1 and 2 keep the trace, 0 and -1 drop it
	state     string    // the members of other vendors in the tracestate header
	tags      []spanTag // Datadog's tags for all processes, such as _dd.p.dm; a trace adds the id's higher half

	product    string // in which the trace began, such as rum; Datadog calls it the origin
	lastParent string // the nearest earlier span that Datadog knows, in hexadecimal
}

// newSpanID returns a random number other than 0, which means "no span".
func newSpanID() uint64 { return rand.Uint64N(math.MaxUint64) + 1 }

// A trace is the part of a trace that this process records.
type trace struct {
	traceOrigin
	client *Client
	root   *Span

	mu       sync.Mutex // guards the rest and the unfinished spans
	finished []*Span
}

// A Span is one step of a trace, safe for concurrent use. If it is nil or finished, its methods do nothing.
type Span struct {
	trace                *trace
	id, parent           uint64
	name, kind, resource string
	start                time.Time
	duration             time.Duration
	ended, failed        bool
	tags                 []spanTag
	numbers              []spanTag // whose values are JSON numbers
}

type spanTag struct{ key, value string }

// spanKey is the key of a context's span or, for a trace from another process, of its traceOrigin.
type spanKey struct{}

// SpanFrom returns the span of the context, or nil.
func SpanFrom(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

func (c *Client) tracing() bool { return c != nil && c.traces != nil }

// StartSpan starts a span, as a child of the one in ctx, if any, and returns its context. It must be finished.
//
// The name is the operation, such as "http.request"; the kind is Datadog's span type, such as "web", "http",
// "sql" or "custom"; the resource says what it is about, in few different values, such as "GET /items/{id}". For the
// kind "sql" it is the statement.
func (c *Client) StartSpan(ctx context.Context, name, kind, resource string) (context.Context, *Span) {
	if !c.tracing() {
		return ctx, nil
	}
	s := &Span{id: newSpanID(), name: name, kind: kind, resource: cut(resource, maxTagLength), start: time.Now(), tags: make([]spanTag, 0, 12)}
	ctx, before := context.WithValue(ctx, spanKey{}, s), ctx.Value(spanKey{})
	if parent, ok := before.(*Span); ok {
		s.trace, s.parent = parent.trace, parent.id
		return ctx, s
	}
	origin, isElsewhere := before.(traceOrigin)
	if !isElsewhere { // the id starts with the time, as in Datadog's own clients
		origin = traceOrigin{high: uint64(s.start.Unix()) << 32, low: newSpanID(), priority: 1}
		origin.tags = []spanTag{{"_dd.p.tid", hex64(origin.high)}, {"_dd.p.dm", "-0"}} // kept because no rate is known
	} else if origin.high != 0 {
		origin.tags = append([]spanTag{{"_dd.p.tid", hex64(origin.high)}}, origin.tags...)
	}
	s.trace, s.parent = &trace{traceOrigin: origin, client: c, root: s}, origin.parent
	s.tags = append(s.tags, given(spanTag{"_dd.parent_id", origin.lastParent})...)
	return ctx, s
}

// change calls f, which may change the span, unless the span is nil or finished.
func (s *Span) change(f func()) {
	if s == nil {
		return
	}
	s.trace.mu.Lock()
	defer s.trace.mu.Unlock()
	if !s.ended {
		f()
	}
}

// SetTag sets a tag. Its value is truncated to 5000 bytes.
func (s *Span) SetTag(key, value string) { s.setTags(spanTag{key, value}) }

func (s *Span) setTags(tags ...spanTag) {
	s.change(func() {
		for _, tag := range tags {
			s.tags = withTag(s.tags, tag.key, cut(tag.value, maxTagLength))
		}
	})
}

// SetMetric sets a tag whose value is a number.
func (s *Span) SetMetric(key string, value int64) {
	s.change(func() { s.numbers = withTag(s.numbers, key, strconv.FormatInt(value, 10)) })
}

// withTag changes or adds a tag.
func withTag(tags []spanTag, key, value string) []spanTag {
	if i := slices.IndexFunc(tags, func(tag spanTag) bool { return tag.key == key }); i >= 0 {
		tags[i].value = value
		return tags
	}
	return append(tags, spanTag{key, value})
}

// cut truncates the text to the given number of bytes, without splitting a character.
func cut(text string, most int) string {
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}

// SetError marks the span as failed and records the error and the caller's stack, unless the error is nil. Only
// the first error is recorded, because later ones usually follow from it.
func (s *Span) SetError(err error) {
	if err == nil {
		return
	}
	cause := err // the innermost error, as the errors around it only add words
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		cause = inner
	}
	s.change(func() {
		if !s.failed {
			s.failed = true
			s.tags = append(s.tags, spanTag{"error.message", cut(errorMessage(err), maxTagLength)},
				spanTag{"error.type", fmt.Sprintf("%T", cause)}, spanTag{"error.stack", cut(string(debug.Stack()), maxTagLength)})
		}
	})
}

// errorMessage returns the message of the error without confidential parts: the query of a URL, and the values
// that PostgreSQL quotes in errors about invalid data (class 22).
func errorMessage(err error) string {
	text := err.Error()
	if failed, ok := errors.AsType[*url.Error](err); ok {
		bare, _, _ := strings.Cut(failed.URL, "?")
		text = strings.ReplaceAll(text, failed.URL, bare)
	}
	if failed, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(failed.Code, "22") {
		text = strings.ReplaceAll(text, failed.Message, "invalid data")
	}
	return text
}

// Finish ends the span. The spans of a trace are sent when its root ends. Spans that end later are sent by
// themselves, and a trace of very many spans is sent in parts.
func (s *Span) Finish() {
	s.change(func() {
		s.ended, s.duration = true, time.Since(s.start)
		t := s.trace
		t.finished = append(t.finished, s)
		if t.root.ended || len(t.finished) >= maxChunk {
			// Children end before their parents but start after them, so this order has the topmost span first.
			slices.Reverse(t.finished)
			slices.SortStableFunc(t.finished, func(a, b *Span) int { return a.start.Compare(b.start) })
			t.client.traces.add(t.finished)
			t.finished = nil
		}
	})
}

// traceID returns the id of the span's trace as 32 hexadecimal digits.
func (s *Span) traceID() string { return hex64(s.trace.high) + hex64(s.trace.low) }

func hex64(id uint64) string { return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, id)) }

package datadog

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Tags with this prefix are passed on to other processes. In the tracestate header statePrefix replaces it.
const (
	propagatedPrefix = "_dd.p."
	statePrefix      = "t."
)

// extract returns a context in which the next span continues the trace of the headers, which are
// Datadog's or those of the W3C. Malformed headers are ignored.
func (c *Client) extract(ctx context.Context, header http.Header) context.Context {
	if !c.tracing() {
		return ctx
	}
	datadog, fromDatadog := parseDatadogHeaders(header)
	w3c, fromW3C := parseTraceparent(header.Get("Traceparent"), strings.Join(header.Values("Tracestate"), ","))
	sameTrace := w3c.low == datadog.low && (w3c.high == datadog.high || datadog.high == 0)
	origin := datadog
	switch {
	case !fromDatadog && !fromW3C:
		return ctx
	case !fromDatadog:
		origin = w3c
	case fromW3C && sameTrace: // the W3C's parent is the nearer one
		origin.high, origin.parent, origin.state = w3c.high, w3c.parent, w3c.state
	}
	return context.WithValue(ctx, spanKey{}, origin)
}

// ContinueTrace returns a context in which the next span continues the trace of another span, perhaps of
// another process. The traceContext comes from the TraceContext of that span.
func (c *Client) ContinueTrace(ctx context.Context, traceContext string) context.Context {
	parent, state, _ := strings.Cut(traceContext, " ")
	return c.extract(ctx, http.Header{"Traceparent": {parent}, "Tracestate": {state}})
}

// TraceContext returns the identity of the span as one line of text, which can be stored for ContinueTrace.
// The text of a nil span is empty.
func (s *Span) TraceContext() string {
	if s == nil {
		return ""
	}
	return s.traceparent() + " " + s.tracestate()
}

// Inject sets the headers by which the receiver of a request continues the trace.
func (s *Span) Inject(header http.Header) {
	if s == nil {
		return
	}
	t := s.trace
	header.Set("X-Datadog-Trace-Id", strconv.FormatUint(t.low, 10))
	header.Set("X-Datadog-Parent-Id", strconv.FormatUint(s.id, 10))
	header.Set("X-Datadog-Sampling-Priority", strconv.Itoa(t.priority))
	if tags := t.propagated(); len(tags) > 0 {
		pairs := make([]string, len(tags))
		for i, tag := range tags {
			pairs[i] = tag.key + "=" + tag.value
		}
		header.Set("X-Datadog-Tags", strings.Join(pairs, ","))
	}
	header.Set("Traceparent", s.traceparent())
	header.Set("Tracestate", s.tracestate())
}

// traceparent returns the W3C header of that name.
func (s *Span) traceparent() string {
	flags := "00"
	if s.trace.priority > 0 {
		flags = "01"
	}
	return "00-" + s.traceID() + "-" + hex64(s.id) + "-" + flags
}

// tracestate returns the W3C header of that name: Datadog's member of up to 256 characters, followed by the
// members of other vendors.
func (s *Span) tracestate() string {
	state := fmt.Sprintf("dd=s:%d;p:%s", s.trace.priority, hex64(s.id))
	for _, tag := range s.trace.propagated() {
		field := ";" + statePrefix + strings.TrimPrefix(tag.key, propagatedPrefix) + ":" + strings.ReplaceAll(tag.value, "=", "~")
		if len(state)+len(field) <= len("dd=")+256 {
			state += field
		}
	}
	if s.trace.state != "" {
		state += "," + s.trace.state
	}
	return state
}

// propagated returns the tags for other processes and for the first span of a trace, including the
// higher half of a trace id of 128 bits.
func (o traceOrigin) propagated() []spanTag {
	if o.high == 0 {
		return o.tags
	}
	return append([]spanTag{{propagatedPrefix + "tid", hex64(o.high)}}, o.tags...)
}

func parseDatadogHeaders(header http.Header) (origin traceOrigin, ok bool) {
	low, lowErr := strconv.ParseUint(header.Get("X-Datadog-Trace-Id"), 10, 64)
	parent, parentErr := strconv.ParseUint(header.Get("X-Datadog-Parent-Id"), 10, 64)
	if lowErr != nil || parentErr != nil || low == 0 || parent == 0 {
		return traceOrigin{}, false
	}
	origin = traceOrigin{low: low, parent: parent, priority: 1}
	if priority, ok := parsePriority(header.Get("X-Datadog-Sampling-Priority")); ok {
		origin.priority = priority
	}
	tags := header.Get("X-Datadog-Tags")
	if len(tags) > 512 { // the limit of Datadog's own clients
		return origin, true
	}
	for tag := range strings.SplitSeq(tags, ",") {
		key, value, _ := strings.Cut(tag, "=")
		name, found := strings.CutPrefix(key, propagatedPrefix)
		switch {
		case !found || !isPrintable(key) || !isPrintable(value):
		case name == "tid":
			origin.high, _ = parseHex(value, 16) // 0 is the higher half of an id of 64 bits
		default:
			origin.tags = append(origin.tags, spanTag{key, value})
		}
	}
	return origin, true
}

// parseTraceparent parses the W3C headers traceparent, 00-TRACE-PARENT-FLAGS, and tracestate.
func parseTraceparent(parent, state string) (origin traceOrigin, ok bool) {
	fields := strings.Split(parent, "-")
	if len(fields) < 4 || fields[0] == "00" && len(fields) > 4 || fields[0] == "ff" || len(fields[1]) != 32 {
		return traceOrigin{}, false
	}
	_, versionOK := parseHex(fields[0], 2)
	high, highOK := parseHex(fields[1][:16], 16)
	low, lowOK := parseHex(fields[1][16:], 16)
	span, spanOK := parseHex(fields[2], 16)
	flags, flagsOK := parseHex(fields[3], 2)
	if !versionOK || !highOK || !lowOK || !spanOK || !flagsOK || low == 0 || span == 0 {
		return traceOrigin{}, false
	}
	origin = traceOrigin{high: high, low: low, parent: span, priority: int(flags & 1)}
	var foreign []string
	for member := range strings.SplitSeq(state, ",") {
		member = strings.TrimSpace(member)
		if fields, found := strings.CutPrefix(member, "dd="); found {
			origin.parseState(fields)
		} else if isPrintable(member) && len(foreign) < 31 { // the header has up to 32 members
			foreign = append(foreign, member)
		}
	}
	origin.state = strings.Join(foreign, ",")
	return origin, true
}

// parseState parses Datadog's member of the tracestate. Its priority is ignored if it contradicts the flag
// of the traceparent, which is already in the origin and only tells keep (1) from drop (0).
func (o *traceOrigin) parseState(fields string) {
	for field := range strings.SplitSeq(fields, ";") {
		key, value, _ := strings.Cut(field, ":")
		name, isTag := strings.CutPrefix(key, statePrefix)
		if priority, ok := parsePriority(value); key == "s" && ok && (priority > 0) == (o.priority > 0) {
			o.priority = priority
		}
		if isTag && name != "tid" && isPrintable(name) && isPrintable(value) {
			o.tags = append(o.tags, spanTag{propagatedPrefix + name, strings.ReplaceAll(value, "~", "=")})
		}
	}
}

// isPrintable reports whether the text is not empty and consists of printable ASCII. Other characters must
// not be passed on in a header.
func isPrintable(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

// parsePriority parses a sampling priority, which is -1, 0, 1 or 2.
func parsePriority(text string) (int, bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && -1 <= n && n <= 2
}

// parseHex parses a number of exactly so many hexadecimal digits in lower case.
func parseHex(text string, digits int) (uint64, bool) {
	n, err := strconv.ParseUint(text, 16, 64)
	return n, err == nil && len(text) == digits && text == strings.ToLower(text)
}

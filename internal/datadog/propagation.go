// trace_headers.go carries traces from process to process, in Datadog's headers and the W3C's.
package datadog

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// extract returns a context in which the next span continues the trace that the headers name.
// Headers that make no sense are as good as none.
func (t *Client) extract(ctx context.Context, header http.Header) context.Context {
	if !t.tracing() {
		return ctx
	}
	datadog, fromDatadog := parseDatadogHeaders(header)
	w3c, fromW3C := parseTraceparent(header.Get("Traceparent"), strings.Join(header.Values("Tracestate"), ","))
	origin := datadog
	switch {
	case !fromDatadog && !fromW3C:
		return ctx
	case !fromDatadog:
		origin = w3c
	case fromW3C && w3c.low == datadog.low && (w3c.high == datadog.high || datadog.high == 0): // one trace: the W3C's parent is the nearer one
		origin.high, origin.parent, origin.state = w3c.high, w3c.parent, w3c.state
	}
	return context.WithValue(ctx, spanKey{}, origin)
}

// continueTrace returns a context in which the next span continues the trace of a span whose place
// was kept.
func (t *Client) ContinueTrace(ctx context.Context, place string) context.Context {
	parent, state, _ := strings.Cut(place, " ")
	return t.extract(ctx, http.Header{"Traceparent": {parent}, "Tracestate": {state}})
}

// place names the span in one line, for continueTrace: its traceparent and tracestate.
func (s *Span) TraceContext() string {
	if s == nil {
		return ""
	}
	return s.traceparent() + " " + s.tracestate()
}

// traceparent is the W3C's header of that name.
func (s *Span) traceparent() string {
	if s == nil {
		return ""
	}
	flags := "00"
	if s.trace.priority > 0 {
		flags = "01"
	}
	return "00-" + s.traceID() + "-" + Hex64(s.id) + "-" + flags
}

// inject tells the receiver of a request which span the request comes from.
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

// Datadog's tags that go from process to process, and what the name of one begins with in its
// member of the tracestate.
const (
	propagatedPrefix = "_dd.p."
	statePrefix      = "t."
)

// propagated are the tags that go on to other processes, and to the agent with the first span. One
// is the higher half of the trace's id, where that has 128 bits.
func (o traceOrigin) propagated() []spanTag {
	if o.high == 0 {
		return o.tags
	}
	return append([]spanTag{{propagatedPrefix + "tid", Hex64(o.high)}}, o.tags...)
}

// tracestate is the W3C's header of that name: our member, of up to 256 characters, and those of up
// to 31 others.
func (s *Span) tracestate() string {
	state := fmt.Sprintf("dd=s:%d;p:%s", s.trace.priority, Hex64(s.id))
	for _, tag := range s.trace.propagated() {
		member := ";" + statePrefix + strings.TrimPrefix(tag.key, propagatedPrefix) + ":" + strings.ReplaceAll(tag.value, "=", "~")
		if len(state)+len(member) <= len("dd=")+256 {
			state += member
		}
	}
	if s.trace.state != "" {
		state += "," + s.trace.state
	}
	return state
}

func parseDatadogHeaders(header http.Header) (traceOrigin, bool) {
	low, lowErr := strconv.ParseUint(header.Get("X-Datadog-Trace-Id"), 10, 64)
	parent, parentErr := strconv.ParseUint(header.Get("X-Datadog-Parent-Id"), 10, 64)
	if lowErr != nil || parentErr != nil || low == 0 || parent == 0 {
		return traceOrigin{}, false
	}
	origin := traceOrigin{low: low, parent: parent, priority: 1}
	if priority, err := strconv.Atoi(header.Get("X-Datadog-Sampling-Priority")); err == nil && isPriority(priority) {
		origin.priority = priority
	}
	tags := header.Get("X-Datadog-Tags")
	if len(tags) > 512 { // as in Datadog's own clients
		return origin, true
	}
	for tag := range strings.SplitSeq(tags, ",") {
		key, value, _ := strings.Cut(tag, "=")
		name, found := strings.CutPrefix(key, propagatedPrefix)
		switch {
		case !found || !isPlain(key) || !isPlain(value):
		case name == "tid":
			origin.high, _ = parseHex64(value) // else the id has 64 bits
		default:
			origin.tags = append(origin.tags, spanTag{key, value})
		}
	}
	return origin, true
}

// parseTraceparent reads the W3C's header, 00-TRACE-PARENT-FLAGS, and the one that goes with it.
func parseTraceparent(parent, state string) (traceOrigin, bool) {
	fields := strings.Split(parent, "-")
	if len(fields) < 4 || fields[0] == "00" && len(fields) > 4 || fields[0] == "ff" || len(fields[1]) != 32 {
		return traceOrigin{}, false
	}
	_, versionOK := parseHex(fields[0], 2)
	high, highOK := parseHex64(fields[1][:16])
	low, lowOK := parseHex64(fields[1][16:])
	span, spanOK := parseHex64(fields[2])
	flags, flagsOK := parseHex(fields[3], 2)
	if !versionOK || !highOK || !lowOK || !spanOK || !flagsOK || low == 0 || span == 0 {
		return traceOrigin{}, false
	}
	origin := traceOrigin{high: high, low: low, parent: span, priority: int(flags & 1)}
	var foreign []string
	for member := range strings.SplitSeq(state, ",") {
		member = strings.TrimSpace(member)
		if ours, found := strings.CutPrefix(member, "dd="); found {
			origin.priority = statePriority(ours, origin.priority)
			origin.tags = stateTags(ours)
		} else if isPlain(member) && len(foreign) < 31 { // 32 is the most that there may be
			foreign = append(foreign, member)
		}
	}
	origin.state = strings.Join(foreign, ",")
	return origin, true
}

// statePriority returns the priority in our part of the tracestate if it agrees with the flag,
// which says just keep (1) or drop (0).
func statePriority(ours string, flag int) int {
	for field := range strings.SplitSeq(ours, ";") {
		text, found := strings.CutPrefix(field, "s:")
		priority, err := strconv.Atoi(text)
		if found && err == nil && isPriority(priority) && (priority > 0) == (flag > 0) {
			return priority
		}
	}
	return flag
}

// isPlain reports whether a part of a header is there and consists of nothing but printable ASCII, which
// is all that may be passed on.
func isPlain(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

// stateTags are the tags in our part of the tracestate, without that of the trace's id.
func stateTags(ours string) (tags []spanTag) {
	for field := range strings.SplitSeq(ours, ";") {
		key, value, _ := strings.Cut(field, ":")
		if name, found := strings.CutPrefix(key, statePrefix); found && name != "tid" && isPlain(name) && isPlain(value) {
			tags = append(tags, spanTag{propagatedPrefix + name, strings.ReplaceAll(value, "~", "=")})
		}
	}
	return tags
}

func isPriority(n int) bool { return -1 <= n && n <= 2 }

func parseHex64(text string) (uint64, bool) { return parseHex(text, 16) }

// parseHex reads exactly as many hexadecimal digits, which must be in lower case.
func parseHex(text string, digits int) (uint64, bool) {
	n, err := strconv.ParseUint(text, 16, 64)
	return n, err == nil && len(text) == digits && text == strings.ToLower(text)
}

// trace_headers.go carries traces from process to process, in Datadog's headers and the W3C's.
package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// extract returns a context in which the next span continues the trace that the headers name.
// Headers that make no sense are as good as none.
func (t *telemetry) extract(ctx context.Context, header http.Header) context.Context {
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
	case fromW3C && w3c.low == datadog.low: // one trace: the W3C's parent is the nearer one
		origin.high, origin.parent, origin.state = w3c.high, w3c.parent, w3c.state
	}
	return context.WithValue(ctx, spanKey{}, origin)
}

// continueTrace returns a context in which the next span continues the trace of a span whose
// traceparent was kept.
func (t *telemetry) continueTrace(ctx context.Context, traceparent string) context.Context {
	return t.extract(ctx, http.Header{"Traceparent": {traceparent}})
}

// traceparent names the span in one line, for continueTrace.
func (s *span) traceparent() string {
	if s == nil {
		return ""
	}
	flags := "00"
	if s.trace.priority > 0 {
		flags = "01"
	}
	return "00-" + s.traceID() + "-" + hex64(s.id) + "-" + flags
}

// inject tells the receiver of a request which span the request comes from.
func (s *span) inject(header http.Header) {
	if s == nil {
		return
	}
	t := s.trace
	high := hex64(t.high)
	header.Set("X-Datadog-Trace-Id", strconv.FormatUint(t.low, 10))
	header.Set("X-Datadog-Parent-Id", strconv.FormatUint(s.id, 10))
	header.Set("X-Datadog-Sampling-Priority", strconv.Itoa(t.priority))
	header.Set("X-Datadog-Tags", "_dd.p.tid="+high)
	header.Set("Traceparent", s.traceparent())
	state := fmt.Sprintf("dd=s:%d;p:%s;t.tid:%s", t.priority, hex64(s.id), high)
	if t.state != "" {
		state += "," + t.state
	}
	header.Set("Tracestate", state)
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
	for tag := range strings.SplitSeq(header.Get("X-Datadog-Tags"), ",") {
		if high, found := strings.CutPrefix(tag, "_dd.p.tid="); found {
			if n, ok := parseHex64(high); ok { // else the id has 64 bits
				origin.high = n
			}
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
		} else if member != "" {
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

func isPriority(n int) bool { return -1 <= n && n <= 2 }

func parseHex64(text string) (uint64, bool) { return parseHex(text, 16) }

// parseHex reads exactly as many hexadecimal digits, which must be in lower case.
func parseHex(text string, digits int) (uint64, bool) {
	n, err := strconv.ParseUint(text, 16, 64)
	return n, err == nil && len(text) == digits && text == strings.ToLower(text)
}

package datadog

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// extract returns a context in which the next span continues the trace of the headers, if they are valid.
func (c *Client) extract(ctx context.Context, header http.Header) context.Context {
	if !c.tracing() {
		return ctx
	}
	datadog := parseDatadogHeaders(header)
	w3c := parseTraceparent(header.Get("Traceparent"), printable(strings.Join(header.Values("Tracestate"), ","), 8<<10))
	origin := datadog
	switch {
	case datadog.low == 0:
		origin = w3c
	case w3c.low == datadog.low && (w3c.high == datadog.high || datadog.high == 0): // the W3C parent is the nearer one
		origin.high, origin.parent, origin.state = w3c.high, w3c.parent, w3c.state
		origin.product = cmp.Or(datadog.product, w3c.product)
		if w3c.parent != datadog.parent {
			origin.lastParent = cmp.Or(w3c.lastParent, hex64(datadog.parent))
		}
	}
	if origin.low == 0 {
		return ctx
	}
	return context.WithValue(ctx, spanKey{}, origin)
}

// ContinueTrace returns a context in which the next span continues the trace of another span's TraceContext.
func (c *Client) ContinueTrace(ctx context.Context, traceContext string) context.Context {
	parent, state, _ := strings.Cut(traceContext, " ")
	return c.extract(ctx, http.Header{"Traceparent": {parent}, "Tracestate": {state}})
}

// TraceContext returns the span's identity as a line of text for ContinueTrace, also in another process.
func (s *Span) TraceContext() string {
	if s == nil {
		return ""
	}
	return s.traceparent() + " " + s.tracestate()
}

// Inject sets the headers that let the receiver of a request continue the trace.
func (s *Span) Inject(header http.Header) {
	if s == nil {
		return
	}
	t := s.trace
	header.Set("X-Datadog-Trace-Id", strconv.FormatUint(t.low, 10))
	header.Set("X-Datadog-Parent-Id", strconv.FormatUint(s.id, 10))
	header.Set("X-Datadog-Sampling-Priority", strconv.Itoa(t.priority))
	if t.product != "" {
		header.Set("X-Datadog-Origin", t.product)
	}
	var tags []string
	for _, tag := range t.tags {
		tags = append(tags, tag.key+"="+tag.value)
	}
	if len(tags) > 0 {
		header.Set("X-Datadog-Tags", strings.Join(tags, ","))
	}
	header.Set("Traceparent", s.traceparent())
	header.Set("Tracestate", s.tracestate())
}

func (s *Span) traceparent() string {
	return fmt.Sprintf("00-%s-%s-%02x", s.traceID(), hex64(s.id), max(0, min(s.trace.priority, 1)))
}

// stateValue encodes a value for Datadog's member of the tracestate.
var stateValue = strings.NewReplacer("=", "~", "~", "_", ",", "_", ";", "_")

// tracestate returns the W3C header: Datadog's member of up to 256 characters, then those of other vendors.
func (s *Span) tracestate() string {
	state := fmt.Sprintf("dd=s:%d", s.trace.priority)
	if s.trace.product != "" {
		state += ";o:" + cut(stateValue.Replace(s.trace.product), 100)
	}
	state += ";p:" + hex64(s.id)
	for _, tag := range s.trace.tags {
		field := ";t." + strings.TrimPrefix(tag.key, "_dd.p.") + ":" + stateValue.Replace(tag.value)
		if len(state)+len(field) <= len("dd=")+256 {
			state += field
		}
	}
	return strings.TrimSuffix(state+","+s.trace.state, ",")
}

// parseDatadogHeaders returns an empty origin if the ids are missing or malformed.
func parseDatadogHeaders(header http.Header) traceOrigin {
	low, lowErr := strconv.ParseUint(header.Get("X-Datadog-Trace-Id"), 10, 64)
	parent, parentErr := strconv.ParseUint(header.Get("X-Datadog-Parent-Id"), 10, 64)
	if lowErr != nil || parentErr != nil {
		return traceOrigin{}
	}
	origin := traceOrigin{low: low, parent: parent, priority: parsePriority(header.Get("X-Datadog-Sampling-Priority"), 1)}
	origin.product = printable(header.Get("X-Datadog-Origin"), 512)
	for tag := range strings.SplitSeq(printable(header.Get("X-Datadog-Tags"), 512), ",") { // the limit of Datadog's own clients
		key, value, _ := strings.Cut(tag, "=")
		if name, found := strings.CutPrefix(key, "_dd.p."); found && name == "tid" {
			origin.high = parseHex(value)
		} else if found && name != "" && value != "" {
			origin.tags = append(origin.tags, spanTag{key, value})
		}
	}
	return origin
}

// traceparentForm has groups for the version, both halves of the trace id, the parent, the flags, and the rest.
var traceparentForm = regexp.MustCompile(`^([0-9a-f]{2})-([0-9a-f]{16})([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$`)

// parseTraceparent parses the W3C headers. The origin is empty if traceparent is missing or malformed.
func parseTraceparent(parent, state string) traceOrigin {
	fields := traceparentForm.FindStringSubmatch(parent)
	if fields == nil || fields[1] == "ff" || fields[1] == "00" && fields[6] != "" || parseHex(fields[4]) == 0 {
		return traceOrigin{}
	}
	origin := traceOrigin{high: parseHex(fields[2]), low: parseHex(fields[3]), parent: parseHex(fields[4])}
	origin.priority = int(parseHex(fields[5]) & 1)
	var foreign []string
	for member := range strings.SplitSeq(state, ",") {
		member = strings.TrimSpace(member)
		if fields, found := strings.CutPrefix(member, "dd="); found {
			origin.parseState(fields)
		} else if member != "" && len(foreign) < 31 { // the header has up to 32 members
			foreign = append(foreign, member)
		}
	}
	origin.state = strings.Join(foreign, ",")
	return origin
}

// parseState parses Datadog's member of the tracestate. Its priority is ignored if it contradicts the flag of
// the traceparent, which is already in the origin and only tells keep (1) from drop (0).
func (o *traceOrigin) parseState(fields string) {
	for field := range strings.SplitSeq(fields, ";") {
		key, value, _ := strings.Cut(field, ":")
		name, isTag := strings.CutPrefix(key, "t.")
		priority := parsePriority(value, o.priority)
		switch {
		case key == "s" && (priority > 0) == (o.priority > 0):
			o.priority = priority
		case key == "o":
			o.product = strings.ReplaceAll(value, "~", "=")
		case key == "p" && len(value) == 16 && parseHex(value) > 0:
			o.lastParent = value
		case isTag && name != "tid" && name != "" && value != "":
			o.tags = append(o.tags, spanTag{"_dd.p." + name, strings.ReplaceAll(value, "~", "=")})
		}
	}
}

// printable returns the text if a header may pass it on, which takes printable ASCII within the limit of bytes, and
// "" otherwise.
func printable(text string, most int) string {
	if len(text) > most || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return ""
	}
	return text
}

// parsePriority parses a sampling priority, which is -1, 0, 1 or 2. Any other text means the default.
func parsePriority(text string, byDefault int) int {
	if n, err := strconv.Atoi(text); err == nil && -1 <= n && n <= 2 {
		return n
	}
	return byDefault
}

// parseHex parses a hexadecimal number of 64 bits. Any other text means 0.
func parseHex(text string) uint64 {
	if n, err := strconv.ParseUint(text, 16, 64); err == nil {
		return n
	}
	return 0
}

package datadog

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"app/internal/datadog/datadogtest"
)

// headers returns HTTP headers from lines "Name: value".
func headers(lines ...string) http.Header {
	header := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		header.Add(name, value)
	}
	return header
}

func TestExtract(t *testing.T) {
	t.Parallel()
	const high, low, parent = 0x4bf92f3577b34da6, 0xa3ce929d0e0e4736, 0x00f067aa0ba902b7
	datadog := []string{"x-datadog-trace-id: 11803532876627986230", "x-datadog-parent-id: 67667974448284343",
		"x-datadog-tags: _dd.p.dm=-4,_dd.p.tid=4bf92f3577b34da6"}
	const traceparent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	dm := []spanTag{{"_dd.p.dm", "-4"}}
	for _, tt := range []struct {
		name   string
		header http.Header
		want   any
	}{
		{"no headers", headers(), nil},
		{"Datadog's with too many tags",
			headers(datadog[0], datadog[1], datadog[2]+",_dd.p.x="+strings.Repeat("x", 500)),
			traceOrigin{0, low, parent, 1, "", nil, "", ""}},
		{"tags in the state", headers(traceparent,
			"tracestate: dd=s:1;t.dm:-4;t.tid:4bf92f3577b34da6;t.usr.id:YQ~~;x:1"),
			traceOrigin{high, low, parent, 1, "", append(dm, spanTag{"_dd.p.usr.id", "YQ=="}), "", ""}},
		{"more members of other vendors than allowed", headers(traceparent, "tracestate: "+strings.Repeat("a=1,", 40)),
			traceOrigin{high, low, parent, 1, strings.Repeat(",a=1", 31)[1:], nil, "", ""}},
		{"Datadog's", headers(datadog...), traceOrigin{high, low, parent, 1, "", dm, "", ""}},
		{"Datadog's and a foreign tag", headers(datadog[0], datadog[1], datadog[2]+",tid=1"),
			traceOrigin{high, low, parent, 1, "", dm, "", ""}},
		{"Datadog's with a priority", headers(append(datadog, "x-datadog-sampling-priority: -1")...),
			traceOrigin{high, low, parent, -1, "", dm, "", ""}},
		{"Datadog's with an invalid priority", headers(append(datadog, "x-datadog-sampling-priority: 9")...),
			traceOrigin{high, low, parent, 1, "", dm, "", ""}},
		{"Datadog's with 64 bits", headers(datadog[:2]...), traceOrigin{0, low, parent, 1, "", nil, "", ""}},
		{"Datadog's malformed", headers("x-datadog-trace-id: 4bf9", "x-datadog-parent-id: 1"), nil},
		{"Datadog's without a parent", headers(datadog[0]), nil},
		{"W3C", headers(traceparent), traceOrigin{high, low, parent, 1, "", nil, "", ""}},
		{"W3C, dropped", headers(strings.TrimSuffix(traceparent, "01") + "00"),
			traceOrigin{high, low, parent, 0, "", nil, "", ""}},
		{"a state that agrees with the flag", headers(traceparent, "tracestate: dd=s:2;p:00f067aa0ba902b7"),
			traceOrigin{high, low, parent, 2, "", nil, "", "00f067aa0ba902b7"}},
		{"a state that contradicts the flag", headers(traceparent, "tracestate: dd=s:-1"),
			traceOrigin{high, low, parent, 1, "", nil, "", ""}},
		{"members of other vendors", headers(traceparent, "tracestate: a=1, dd=s:1", "tracestate: b=2"),
			traceOrigin{high, low, parent, 1, "a=1,b=2", nil, "", ""}},
		{"a later version", headers(strings.Replace(traceparent, "00-", "01-", 1) + "-more"),
			traceOrigin{high, low, parent, 1, "", nil, "", ""}},
		{"version 00 with more", headers(traceparent + "-more"), nil},
		{"the forbidden version", headers(strings.Replace(traceparent, "00-", "ff-", 1)), nil},
		{"capital letters", headers(strings.Replace(traceparent, "4bf9", "4BF9", 1)), nil},
		{"an id of zeros", headers("traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01"), nil},
		{"a parent of zeros", headers(strings.Replace(traceparent, "00f067aa0ba902b7", "0000000000000000", 1)), nil},
		{"a short id", headers("traceparent: 00-4bf92f35-00f067aa0ba902b7-01"), nil},
		{"no hexadecimal digits", headers("traceparent: ---"), nil},
		{"both of the same trace: the W3C's parent",
			headers(append(datadog, "x-datadog-sampling-priority: 2", strings.Replace(traceparent, "02b7", "02b8", 1),
				"tracestate: a=1")...), traceOrigin{high, low, parent + 1, 2, "a=1", dm, "", "00f067aa0ba902b7"}},
		{"both, with different higher halves of the id: Datadog's",
			headers(append(datadog, strings.Replace(traceparent, "4bf9", "4bf8", 1))...),
			traceOrigin{high, low, parent, 1, "", dm, "", ""}},
		{"both, Datadog's with 64 bits", headers(datadog[0], datadog[1], traceparent),
			traceOrigin{high, low, parent, 1, "", nil, "", ""}},
		{"Datadog's with an origin", headers(append(datadog, "x-datadog-origin: rum")...),
			traceOrigin{high, low, parent, 1, "", dm, "rum", ""}},
		{"an origin that breaks a header", headers(append(datadog, "x-datadog-origin: r\num")...),
			traceOrigin{high, low, parent, 1, "", dm, "", ""}},
		{"an origin and a last parent in the state",
			headers(traceparent, "tracestate: dd=s:1;o:web~x;p:0000000000000123"),
			traceOrigin{high, low, parent, 1, "", nil, "web=x", "0000000000000123"}},
		{"invalid last parents", headers(traceparent,
			"tracestate: dd=p:123;p:000000000000000g;p:0000000000000000"),
			traceOrigin{high, low, parent, 1, "", nil, "", ""}},
		{"both, with the W3C's last parent",
			headers(append(datadog, strings.Replace(traceparent, "02b7", "02b8", 1),
				"tracestate: dd=s:1;o:rum;p:0000000000000123")...),
			traceOrigin{high, low, parent + 1, 1, "", dm, "rum", "0000000000000123"}},
		{"both of different traces: Datadog's",
			headers(append(datadog, strings.Replace(traceparent, "4736", "4737", 1))...),
			traceOrigin{high, low, parent, 1, "", dm, "", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := &Client{traces: &traceSender{}}
			assert.Equal(t, tt.want, client.extract(t.Context(), tt.header).Value(spanKey{}))
		})
	}
}

func TestInject(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		in, out http.Header
	}{
		{"a W3C trace", headers(
			"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			"tracestate: other=1,dd=t.usr.id:YQ~~",
		), headers(
			"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-0633a3eb0fb7aceb-01",
			"tracestate: dd=s:1;p:0633a3eb0fb7aceb;t.tid:4bf92f3577b34da6;t.usr.id:YQ~~,other=1",
			"x-datadog-trace-id: 11803532876627986230",
			"x-datadog-parent-id: 446881018016148715",
			"x-datadog-sampling-priority: 1",
			"x-datadog-tags: _dd.p.tid=4bf92f3577b34da6,_dd.p.usr.id=YQ==",
		)},
		{"an origin and a tag with characters of the state's own", headers(
			"x-datadog-trace-id: 7", "x-datadog-parent-id: 8", "x-datadog-origin: a=b;c~d,e",
			"x-datadog-tags: _dd.p.x=1;2",
		), headers(
			"traceparent: 00-00000000000000000000000000000007-0633a3eb0fb7aceb-01",
			"tracestate: dd=s:1;o:a~b_c_d_e;p:0633a3eb0fb7aceb;t.x:1_2",
			"x-datadog-trace-id: 7",
			"x-datadog-parent-id: 446881018016148715",
			"x-datadog-sampling-priority: 1",
			"x-datadog-origin: a=b;c~d,e",
			"x-datadog-tags: _dd.p.x=1;2",
		)},
		{"a Datadog trace of 64 bits that is dropped", headers(
			"x-datadog-trace-id: 7", "x-datadog-parent-id: 8", "x-datadog-sampling-priority: -1",
		), headers(
			"traceparent: 00-00000000000000000000000000000007-0633a3eb0fb7aceb-00",
			"tracestate: dd=s:-1;p:0633a3eb0fb7aceb",
			"x-datadog-trace-id: 7",
			"x-datadog-parent-id: 446881018016148715",
			"x-datadog-sampling-priority: -1",
		)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := &Client{traces: &traceSender{}}
			_, s := client.StartSpan(client.extract(t.Context(), tt.in), "step", "custom", "thing")
			s.id = 446881018016148715
			header := http.Header{}
			s.Inject(header)
			assert.Equal(t, tt.out, header)
		})
	}
}

// A trace context is enough to continue a trace with its priority, tags and state.
func TestTraceThatContinuesLater(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	for _, priority := range []int{-1, 0, 1, 2} {
		ctx := client.extract(t.Context(),
			headers("x-datadog-trace-id: 7", "x-datadog-parent-id: 8",
				"x-datadog-tags: _dd.p.dm=-4,_dd.p.tid=4bf92f3577b34da6",
				fmt.Sprintf("x-datadog-sampling-priority: %d", priority),
				"traceparent: 00-4bf92f3577b34da60000000000000007-0000000000000009-01", "tracestate: other=1"))
		_, before := client.StartSpan(ctx, "http.request", "web", "POST /items")
		kept := before.TraceContext()
		before.Finish()
		first := datadogtest.Receive(t, agent.Traces)[0]
		_, after := client.StartSpan(client.ContinueTrace(t.Context(), kept), "app.delivery", "custom", "delivery")
		after.Finish()
		span := datadogtest.Receive(t, agent.Traces)[0]
		assert.Equal(t, first.ID128(), span.ID128())
		assert.Equal(t, before.id, span.ParentID)
		assert.EqualValues(t, priority, span.Metrics["_sampling_priority_v1"])
		assert.Equal(t, "-4", span.Meta["_dd.p.dm"])
		assert.Equal(t, before.trace.state, after.trace.state)
	}
}

// The first span in this process has the origin and the last parent. A root of our own says that it is kept
// by default.
func TestOriginOnFirstSpan(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	for _, tt := range []struct {
		header                 http.Header
		origin, parent, reason string
	}{
		{headers("traceparent: 00-4bf92f3577b34da60000000000000007-0000000000000009-01",
			"tracestate: dd=s:1;o:rum;p:0000000000000123;t.dm:-4"), "rum", "0000000000000123", "-4"},
		{headers("x-datadog-trace-id: 7", "x-datadog-parent-id: 8", "x-datadog-origin: synthetics"), "synthetics", "",
			""},
		{headers(), "", "", "-0"},
	} {
		ctx, first := client.StartSpan(client.extract(t.Context(), tt.header), "http.request", "web", "GET /")
		_, second := client.StartSpan(ctx, "step", "custom", "thing")
		second.Finish()
		first.Finish()
		spans := datadogtest.Receive(t, agent.Traces)
		wanted := map[string]string{"_dd.origin": tt.origin, "_dd.parent_id": tt.parent, "_dd.p.dm": tt.reason}
		for name, want := range wanted {
			assert.Equal(t, want, spans[0].Meta[name], name)
			assert.NotContains(t, spans[1].Meta, name)
		}
	}
}

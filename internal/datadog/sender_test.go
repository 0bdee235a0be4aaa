package datadog

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
)

func TestTraceOnTheWire(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	settings := settingsFor(agent)
	settings.Tags = "team:core"
	client := start(t, settings)
	began := time.Now()
	ctx, root := client.StartSpan(t.Context(), "app.command", "custom", "GET /items")
	_, child := client.StartSpan(ctx, "step", "sql", "SELECT \"é\\\x00\n\xff\"")
	child.SetTag("key", "old")
	child.SetTag("key", "new")
	child.SetMetric("rows", 3)
	child.SetMetric("rows", 12)
	child.Finish()
	child.SetTag("key", "too late")
	child.Finish()
	root.Finish()

	spans := datadogtest.Receive(t, agent.Traces)
	require.Len(t, spans, 2)
	first, second := spans[0], spans[1]
	assert.Equal(t, root.traceID(), first.ID128())
	assert.Equal(t, fmt.Sprintf("%08x00000000", first.Start/int64(time.Second)), first.Meta["_dd.p.tid"],
		"the id begins with the time")
	assert.Zero(t, first.ParentID)
	assert.Equal(t, first.SpanID, second.ParentID)
	assert.Equal(t, began.Round(0).UnixNano(), min(began.UnixNano(), first.Start))
	assert.LessOrEqual(t, first.Start, second.Start)
	assert.LessOrEqual(t, second.Duration, first.Duration)
	assert.Equal(t, map[string]float64{"_sampling_priority_v1": 1}, first.Metrics)
	assert.Len(t, first.Meta["runtime-id"], 36)
	delete(first.Meta, "runtime-id")
	assert.Equal(t, "-0", first.Meta["_dd.p.dm"])
	delete(first.Meta, "_dd.p.tid")
	delete(first.Meta, "_dd.p.dm")
	assert.Equal(t, map[string]string{"env": "prod", "version": "1.2.3", "team": "core", "language": "go"}, first.Meta)
	assert.Equal(t, datadogtest.Span{
		Service: "shop", Name: "step", Type: "sql", Resource: "SELECT \"é\\\x00\n\ufffd\"",
		Meta:    map[string]string{"team": "core", "key": "new", "db.statement": "SELECT \"é\\\x00\n\ufffd\""},
		Metrics: map[string]float64{"rows": 12},
	}, plain(second))
}

// A span never waits for the agent: otherwise this test would not end.
func TestAgentThatHangs(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	agent.Hang()
	var log datadogtest.LogLines
	settings := settingsFor(agent)
	settings.DogStatsDURL, settings.Log, settings.timeout = "", logTo(&log), time.Hour
	client := start(t, settings)
	finish := func() {
		_, s := client.StartSpan(t.Context(), "step", "custom", "thing")
		s.Finish()
	}
	finish()
	datadogtest.Receive(t, agent.Calls)
	const spans = 20_000
	for range spans {
		finish()
	}
	waiting := client.traces.batch
	assert.InDelta(t, maxBatch, len(waiting.json), 1000, "size of the buffer")
	assert.Equal(t, spans-waiting.spans, client.traces.drops.spans)

	client.Close(0)
	assert.Equal(t, spans+1, dropped(&log, "spans")+client.traces.drops.spans,
		"logged, or within a minute after the last line")
}

func TestAgentThatTimesOut(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	agent.Hang()
	settings := settingsFor(agent)
	settings.timeout = 20 * time.Millisecond
	var log datadogtest.LogLines
	settings.Log = logTo(&log)
	client := start(t, settings)
	_, s := client.StartSpan(t.Context(), "step", "custom", "thing")
	s.Finish()
	assert.Contains(t, awaitDropped(t, &log, "spans")["reason"], "deadline exceeded")
	assert.LessOrEqual(t, len(agent.Calls), 1, "spans that the agent may have accepted are not resent")
}

func TestAgentThatDiesAndReturns(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	var log datadogtest.LogLines
	settings := settingsFor(agent)
	settings.Log = logTo(&log)
	client := start(t, settings)
	send := func(resource string) {
		_, s := client.StartSpan(t.Context(), "step", "custom", resource)
		s.Finish()
	}
	send("before")
	assert.Equal(t, "before", datadogtest.Receive(t, agent.Traces)[0].Resource)

	agent.Die()
	send("meanwhile")
	line := awaitDropped(t, &log, "spans")
	assert.Equal(t, "Datadog agent did not accept all data", line["message"])
	assert.Equal(t, "WARN", line["level"])
	assert.Positive(t, line["dropped_spans"]) // the response to the first request may be lost, too
	assert.Contains(t, line["reason"], "connection refused")

	agent.Listen(datadogtest.ListenTCP(t, agent.Address))
	send("after")
	assert.Equal(t, "after", datadogtest.Receive(t, agent.Traces)[0].Resource)
}

func TestAgentThatRejects(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		calls  int
	}{
		{"an invalid payload is sent once", http.StatusBadRequest, 1},
		{"an overloaded agent gets a second request", http.StatusTooManyRequests, 2},
		{"a failing agent gets a second request", http.StatusInternalServerError, 2},
		{"a redirect is not followed", http.StatusFound, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			agent.AnswerWith(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Location", "/login")
				http.Error(w, "no thanks", tt.status)
				return true
			})
			var log datadogtest.LogLines
			settings := settingsFor(agent)
			settings.Log = logTo(&log)
			client := start(t, settings)
			_, s := client.StartSpan(t.Context(), "step", "custom", "thing")
			s.Finish()
			assert.Contains(t, awaitDropped(t, &log, "spans")["reason"], "no thanks")
			assert.Len(t, agent.Calls, tt.calls)
		})
	}
}

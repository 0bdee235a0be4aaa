package datadog

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
)

func TestTraceOfManySpans(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	ctx, root := client.StartSpan(t.Context(), "step", "custom", "root")
	const children = maxChunk + 10
	for range children {
		_, child := client.StartSpan(ctx, "step", "custom", "child")
		child.Finish()
	}
	assert.Len(t, root.trace.finished, 10, "spans in memory")
	root.Finish()
	seen := 0
	for seen < children+1 {
		spans := datadogtest.Receive(t, agent.Traces)
		assert.Equal(t, root.traceID(), spans[0].ID128())
		seen += len(spans)
	}
}

func TestSpanThatOutlivesItsTrace(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	ctx, root := client.StartSpan(t.Context(), "step", "custom", "root")
	_, late := client.StartSpan(ctx, "step", "custom", "late")
	root.Finish()
	require.Len(t, datadogtest.Receive(t, agent.Traces), 1)
	late.Finish()
	spans := datadogtest.Receive(t, agent.Traces)
	require.Len(t, spans, 1)
	assert.Equal(t, root.traceID(), spans[0].ID128())
	assert.Equal(t, root.id, spans[0].ParentID)
}

func TestSpanThatFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		err      error
		message  string
		typeName string
	}{
		{"a plain error", errors.New("no luck"), "no luck", "*errors.errorString"},
		{"the type of a wrapped error", fmt.Errorf("item 7: %w", &net.DNSError{Err: "no such host"}),
			"item 7: lookup : no such host", "*net.DNSError"},
		{"a URL with a query", &url.Error{Op: "Get", URL: "https://h/p?token=secret", Err: io.EOF},
			`Get "https://h/p": EOF`, "*errors.errorString"},
		{"a constraint", &pgconn.PgError{Severity: "ERROR", Code: "23505",
			Message: `duplicate key value violates "uuid_key"`},
			`ERROR: duplicate key value violates "uuid_key" (SQLSTATE 23505)`, "*pgconn.PgError"},
		{"data that PostgreSQL quotes", fmt.Errorf("keep: %w",
			&pgconn.PgError{Severity: "ERROR", Code: "22P02", Message: `invalid input: "secret"`}),
			"keep: ERROR: invalid data (SQLSTATE 22P02)", "*pgconn.PgError"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			client := start(t, settingsFor(agent))
			_, s := client.StartSpan(t.Context(), "step", "custom", "thing")
			s.SetError(nil)
			s.SetError(tt.err)
			s.SetError(errors.New("a consequence"))
			s.Finish()
			got := datadogtest.Receive(t, agent.Traces)[0]
			assert.EqualValues(t, 1, got.Error)
			assert.Contains(t, got.Meta["error.stack"], "TestSpanThatFails")
			assert.Equal(t, map[string]string{"error.message": tt.message, "error.type": tt.typeName}, plain(got).Meta)
		})
	}
}

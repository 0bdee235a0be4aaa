package datadog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLogHandlerKeepsTheRules(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	handler := func(*testing.T) slog.Handler {
		out.Reset()
		return NewLogHandler(&out, slog.LevelInfo, Settings{Service: "shop", Env: "prod", Version: "1.2.3"})
	}
	slogtest.Run(t, handler, func(t *testing.T) map[string]any {
		var line map[string]any
		require.NoError(t, json.Unmarshal(out.Bytes(), &line))
		for ours, theirs := range map[string]string{"timestamp": slog.TimeKey, "message": slog.MessageKey} {
			if value, found := line[ours]; found {
				line[theirs] = value
			}
		}
		return line
	})
}

func TestLogLine(t *testing.T) {
	t.Parallel()
	client := &Client{traces: &traceSender{}}
	ctx, s := client.StartSpan(t.Context(), "step", "custom", "thing")
	span := map[string]any{"dd.trace_id": s.traceID(), "dd.span_id": strconv.FormatUint(s.id, 10)}
	for _, tt := range []struct {
		name string
		ctx  context.Context
		log  func(ctx context.Context, log *slog.Logger)
		want map[string]any
	}{
		{"attributes", t.Context(), func(ctx context.Context, log *slog.Logger) {
			log.InfoContext(ctx, "done", "duration", 1500*time.Microsecond, "error", errors.New("no luck"))
		}, map[string]any{"duration": 1.5e6, "error.message": "no luck"}},
		{"within a span", ctx, func(ctx context.Context, log *slog.Logger) {
			log.With("a", 1).InfoContext(ctx, "done", "b", 2)
		}, map[string]any{"a": 1.0, "b": 2.0}},
		{"in groups", t.Context(), func(ctx context.Context, log *slog.Logger) {
			log = log.With("a", 1).WithGroup("outer").With("b", 2)
			log.WithGroup("other") // changes nothing here
			log.WithGroup("inner").With("time", 3).InfoContext(ctx, "done", "error", "x")
		}, map[string]any{"a": 1.0, "outer": map[string]any{"b": 2.0,
			"inner": map[string]any{"time": 3.0, "error": "x"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			tt.log(tt.ctx, slog.New(NewLogHandler(&out, slog.LevelInfo,
				Settings{Service: "app", Env: "prod", Version: "1.2.3"})))
			var got map[string]any
			require.NoError(t, json.Unmarshal(out.Bytes(), &got))
			_, err := time.Parse(time.RFC3339Nano, got["timestamp"].(string))
			assert.NoError(t, err)
			delete(got, "timestamp")
			want := map[string]any{"level": "INFO", "message": "done", "dd.service": "app", "dd.env": "prod",
				"dd.version": "1.2.3"}
			for key, value := range tt.want {
				want[key] = value
			}
			if SpanFrom(tt.ctx) != nil {
				for key, value := range span {
					want[key] = value
				}
			}
			assert.Equal(t, want, got)
		})
	}
}

// BenchmarkLogHandler writes the line that the service logs for each request.
func BenchmarkLogHandler(b *testing.B) {
	client := &Client{traces: &traceSender{}}
	traced, _ := client.StartSpan(b.Context(), "http.request", "web", "GET /which")
	handler := NewLogHandler(io.Discard, slog.LevelInfo, Settings{Service: "shop", Env: "prod", Version: "1.2.3"})
	for name, ctx := range map[string]context.Context{"plain": b.Context(), "in a span": traced} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				line := slog.NewRecord(time.Now(), slog.LevelInfo, "request", 0)
				line.AddAttrs(
					slog.String("operation", "which"),
					slog.String("http.method", "GET"),
					slog.Int("http.status_code", 200),
					slog.Duration("duration", 25*time.Microsecond),
					slog.Duration("upstream_duration", 0),
					slog.String("http.request_id", "0d9f8e5c-7c1c-4f2e-9f51-0b9d7e3f1a2b"),
				)
				_ = handler.Handle(ctx, line)
			}
		})
	}
}

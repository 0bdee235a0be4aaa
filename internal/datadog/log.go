package datadog

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strconv"

	"app/internal/rawjson"
)

// NewLogHandler returns a handler that writes records of at least the level to w, as lines of JSON with the keys
// that Datadog recognizes: timestamp, level, message, error.message for an attribute "error", dd.service, dd.env,
// dd.version and, if the context carries a span, dd.trace_id and dd.span_id. An open group takes these two.
func NewLogHandler(w io.Writer, level slog.Leveler, settings Settings) slog.Handler {
	var attrs []slog.Attr
	for _, tag := range settings.identity() {
		if slices.Contains([]string{"service", "env", "version"}, tag.key) {
			attrs = append(attrs, slog.String("dd."+tag.key, tag.value))
		}
	}
	return &logHandler{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: renameForDatadog}).WithAttrs(attrs)}
}

// Shorten truncates a text or an error of a record, so that a line with an error and a stack has at most 4 kB.
func Shorten(attr slog.Attr) slog.Attr {
	most := 900
	if attr.Key == "error.stack" {
		most = 2200
	}
	isText := attr.Value.Kind() == slog.KindString
	if attr.Value.Kind() == slog.KindAny {
		_, isText = attr.Value.Any().(error)
	}
	if isText {
		attr.Value = slog.StringValue(rawjson.Cut(attr.Value.String(), most))
	}
	return attr
}

func renameForDatadog(groups []string, attr slog.Attr) slog.Attr {
	switch attr = Shorten(attr); {
	case len(groups) > 0:
	case attr.Key == slog.TimeKey:
		attr.Key = "timestamp"
	case attr.Key == slog.MessageKey:
		attr.Key = "message"
	case attr.Key == "error":
		attr.Key = "error.message"
	}
	return attr
}

// A logHandler is a JSONHandler that adds the ids of the span.
type logHandler struct{ slog.Handler }

func (h *logHandler) Handle(ctx context.Context, record slog.Record) error {
	if s := SpanFrom(ctx); s != nil {
		record = record.Clone()
		record.AddAttrs(slog.String("dd.trace_id", s.traceID()), slog.String("dd.span_id", strconv.FormatUint(s.id, 10)))
	}
	return h.Handler.Handle(ctx, record)
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.Handler.WithAttrs(attrs)}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.Handler.WithGroup(name)}
}

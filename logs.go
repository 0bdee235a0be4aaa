package main

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"
)

// newLogHandler returns a handler that writes lines as Datadog reads them: JSON with timestamp,
// level and message, and, always at the root, who logs (dd.service, dd.env, dd.version) and in
// which span (dd.trace_id, dd.span_id). For a terminal it writes plain text without those.
func newLogHandler(w io.Writer, terminal bool, level slog.Leveler, id identity) slog.Handler {
	if terminal {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: shortTime})
	}
	buffer, _ := w.(*logBuffer)
	root := slog.Handler(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: datadogName}))
	for _, tag := range []spanTag{{"dd.service", id.service}, {"dd.env", id.env}, {"dd.version", id.version}} {
		if tag.value != "" {
			root = root.WithAttrs([]slog.Attr{slog.String(tag.key, tag.value)})
		}
	}
	return &logHandler{root: root, buffer: buffer}
}

// datadogName renames the attributes of the root that Datadog knows by another name.
func datadogName(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return attr
	}
	switch attr.Key {
	case slog.TimeKey:
		attr.Key = "timestamp"
	case slog.MessageKey:
		attr.Key = "message"
	case "error":
		attr.Key = "error.message"
	}
	return attr
}

func shortTime(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) == 0 && attr.Key == slog.TimeKey && attr.Value.Kind() == slog.KindTime {
		attr.Value = slog.StringValue(attr.Value.Time().Format(time.TimeOnly))
	}
	return attr
}

// A logHandler adds the ids of the span. A group of the handler below would hold them, so it has
// none: this one keeps the groups itself.
type logHandler struct {
	root   slog.Handler
	buffer *logBuffer // behind root, or nil
	groups []logGroup // those open, the outermost first
}

type logGroup struct {
	name  string
	attrs []slog.Attr
}

func (h *logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.root.Enabled(ctx, level)
}

func (h *logHandler) Handle(ctx context.Context, record slog.Record) error {
	if len(h.groups) > 0 {
		record = h.nested(record)
	}
	if s := spanOf(ctx); s != nil {
		record = record.Clone()
		record.AddAttrs(
			slog.String("dd.trace_id", s.traceID()),
			slog.String("dd.span_id", strconv.FormatUint(s.id, 10)))
	}
	err := h.root.Handle(ctx, record)
	if h.buffer != nil && record.Level >= slog.LevelWarn {
		h.buffer.flush()
	}
	return err
}

// nested returns the record with its attributes in the open groups.
func (h *logHandler) nested(record slog.Record) slog.Record {
	var attrs []slog.Attr
	record.Attrs(func(attr slog.Attr) bool {
		attrs = append(attrs, attr)
		return true
	})
	for _, group := range slices.Backward(h.groups) {
		attrs = []slog.Attr{{Key: group.name, Value: slog.GroupValue(slices.Concat(group.attrs, attrs)...)}}
	}
	outer := slog.NewRecord(record.Time, record.Level, record.Message, record.PC)
	outer.AddAttrs(attrs...)
	return outer
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(h.groups) == 0 {
		return &logHandler{root: h.root.WithAttrs(attrs), buffer: h.buffer}
	}
	groups := slices.Clone(h.groups)
	last := &groups[len(groups)-1]
	last.attrs = slices.Concat(last.attrs, attrs)
	return &logHandler{h.root, h.buffer, groups}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &logHandler{h.root, h.buffer, append(slices.Clip(h.groups), logGroup{name: name})}
}

// A logBuffer gathers lines for a moment, because a system call for each costs as much as a quick
// request. What is worth a warning goes out at once, with what is before it.
type logBuffer struct {
	out io.Writer

	mu    sync.Mutex
	lines []byte
}

const (
	logDelay = 20 * time.Millisecond
	logSize  = 32 << 10
)

func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) == 0 {
		time.AfterFunc(logDelay, b.flush)
	}
	b.lines = append(b.lines, line...)
	if len(b.lines) >= logSize {
		b.flushLocked()
	}
	return len(line), nil
}

func (b *logBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flushLocked()
}

func (b *logBuffer) flushLocked() {
	if len(b.lines) > 0 {
		_, _ = b.out.Write(b.lines) // there is no better place to complain
		b.lines = b.lines[:0]
	}
}

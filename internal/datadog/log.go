package datadog

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"app/internal/rawjson"
)

// newLogHandler returns a handler that writes lines as Datadog reads them: JSON with timestamp,
// level and message, and, always at the root, who logs (dd.service, dd.env, dd.version) and in
// which span (dd.trace_id, dd.span_id). For a terminal it writes plain text without those.
func NewLogHandler(w io.Writer, terminal bool, level slog.Leveler, settings Settings) slog.Handler {
	id := settings.identity()
	if terminal {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: shortTime})
	}
	h := &logHandler{out: w, mu: &sync.Mutex{}, level: level}
	for _, tag := range []spanTag{{"dd.service", id.service}, {"dd.env", id.env}, {"dd.version", id.version}} {
		if tag.value != "" {
			h.root = appendAttr(h.root, slog.String(tag.key, tag.value))
		}
	}
	return h
}

func shortTime(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) == 0 && attr.Key == slog.TimeKey && attr.Value.Kind() == slog.KindTime {
		attr.Value = slog.StringValue(attr.Value.Time().Format(time.TimeOnly))
	}
	return attr
}

// A logHandler writes lines of JSON. That of package slog has other names for time and message, can
// keep nothing at the root once a group is open, and with ReplaceAttr for the names it would take a
// tenth of the time of a quick request.
type logHandler struct {
	out    io.Writer
	mu     *sync.Mutex // for out
	level  slog.Leveler
	root   []byte     // attributes behind the message, as JSON
	groups []logGroup // those open, the outermost first
}

type logGroup struct {
	name  string
	attrs []slog.Attr
}

// Enabled reports whether a line of the level is written.
func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

var logLinesSpare = sync.Pool{New: func() any { return new([1 << 10]byte) }}

// Handle writes a line.
func (h *logHandler) Handle(ctx context.Context, record slog.Record) error {
	spare := logLinesSpare.Get().(*[1 << 10]byte)
	defer logLinesSpare.Put(spare)
	line := append(spare[:0], '{')
	if !record.Time.IsZero() {
		line = record.Time.AppendFormat(append(line, `"timestamp":"`...), time.RFC3339Nano)
		line = append(line, `",`...)
	}
	line = append(append(append(line, `"level":"`...), record.Level.String()...), `","message":`...)
	line = append(rawjson.AppendQuoted(line, record.Message), h.root...)
	if len(h.groups) == 0 {
		record.Attrs(func(attr slog.Attr) bool {
			line = appendAttr(line, attr)
			return true
		})
	} else {
		line = appendAttr(line, h.nested(record))
	}
	if s := SpanFrom(ctx); s != nil {
		line = append(append(append(line, `,"dd.trace_id":"`...), s.traceID()...), `","dd.span_id":"`...)
		line = append(strconv.AppendUint(line, s.id, 10), '"')
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.out.Write(append(line, "}\n"...))
	if buffer, ok := h.out.(*LogBuffer); ok && record.Level >= slog.LevelWarn {
		buffer.Flush()
	}
	return err
}

// nested returns the outermost group with the record's attributes in the innermost.
func (h *logHandler) nested(record slog.Record) slog.Attr {
	var attrs []slog.Attr
	record.Attrs(func(attr slog.Attr) bool {
		attrs = append(attrs, attr)
		return true
	})
	for _, group := range slices.Backward(h.groups) {
		attrs = []slog.Attr{{Key: group.name, Value: slog.GroupValue(slices.Concat(group.attrs, attrs)...)}}
	}
	return attrs[0]
}

// appendAttr appends an attribute of the root as a member of a JSON object that has others.
func appendAttr(line []byte, attr slog.Attr) []byte {
	if attr.Key == "error" {
		attr.Key = "error.message"
	}
	return appendMember(line, attr)
}

// appendMember appends an attribute, with a comma where it is not the first.
func appendMember(line []byte, attr slog.Attr) []byte {
	attr.Value = attr.Value.Resolve()
	if attr.Equal(slog.Attr{}) {
		return line
	}
	isGroup := attr.Value.Kind() == slog.KindGroup
	if isGroup && attr.Key == "" {
		for _, inner := range attr.Value.Group() {
			line = appendMember(line, inner)
		}
		return line
	}
	before := len(line)
	if before == 0 || line[before-1] != '{' {
		line = append(line, ',')
	}
	line = append(rawjson.AppendQuoted(line, attr.Key), ':')
	switch v := attr.Value; v.Kind() {
	case slog.KindGroup:
		open := len(line)
		line = append(line, '{')
		for _, inner := range v.Group() {
			line = appendMember(line, inner)
		}
		if len(line) == open+1 {
			return line[:before] // an empty group is left out
		}
		return append(line, '}')
	case slog.KindString:
		return rawjson.AppendQuoted(line, v.String())
	case slog.KindInt64:
		return strconv.AppendInt(line, v.Int64(), 10)
	case slog.KindDuration:
		return strconv.AppendInt(line, v.Duration().Nanoseconds(), 10)
	case slog.KindBool:
		return strconv.AppendBool(line, v.Bool())
	case slog.KindUint64:
		return strconv.AppendUint(line, v.Uint64(), 10)
	case slog.KindTime:
		return append(v.Time().AppendFormat(append(line, '"'), time.RFC3339Nano), '"')
	default:
		if err, ok := v.Any().(error); ok {
			return rawjson.AppendQuoted(line, err.Error())
		}
		text, err := json.Marshal(v.Any())
		if err != nil {
			return rawjson.AppendQuoted(line, "!ERROR:"+err.Error())
		}
		return append(line, text...)
	}
}

// WithAttrs returns a handler whose lines have the attributes, too.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	if len(h.groups) == 0 {
		with.root = slices.Clip(h.root)
		for _, attr := range attrs {
			with.root = appendAttr(with.root, attr)
		}
		return &with
	}
	with.groups = slices.Clone(h.groups)
	last := &with.groups[len(with.groups)-1]
	last.attrs = slices.Concat(last.attrs, attrs)
	return &with
}

// WithGroup returns a handler that puts the attributes to come into a group.
func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	with := *h
	with.groups = append(slices.Clip(h.groups), logGroup{name: name})
	return &with
}

// A logBuffer gathers lines for a moment, because a system call for each costs as much as a quick
// request. What is worth a warning goes out at once, with what is before it.
type LogBuffer struct {
	Out io.Writer

	mu    sync.Mutex
	lines []byte
}

const (
	logDelay = 20 * time.Millisecond
	logSize  = 32 << 10
)

func (b *LogBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) == 0 {
		time.AfterFunc(logDelay, b.Flush)
	}
	b.lines = append(b.lines, line...)
	if len(b.lines) >= logSize {
		b.flushLocked()
	}
	return len(line), nil
}

func (b *LogBuffer) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flushLocked()
}

func (b *LogBuffer) flushLocked() {
	if len(b.lines) > 0 {
		_, _ = b.Out.Write(b.lines) // there is no better place to complain
		b.lines = b.lines[:0]
	}
}

package main

import (
	"cmp"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"

	"app/internal/rawjson"
)

// fieldOf returns what a column holds of a thing: its member of the name, or one further inside. The title of a
// report or an occurrence is made of its payload, on one line.
func fieldOf(thing json.RawMessage, column string) json.RawMessage {
	value := rawjson.Get(thing, strings.Split(column, ".")...)
	if column != "title" || !isNull(value) {
		return value
	}
	if data := rawjson.Get(thing, "data"); !isNull(data) {
		if title := strings.Join(strings.Fields(occurrenceTitle(data)), " "); title != "" {
			return rawjson.AppendQuoted(nil, title)
		}
	}
	return value
}

// lastName returns the name at the end of a column such as data.level.
func lastName(column string) string { return column[strings.LastIndexByte(column, '.')+1:] }

// timeOf returns the time that a column holds: RFC 3339, or Unix seconds where its name says so.
func timeOf(column string, value json.RawMessage) (time.Time, bool) {
	if at, err := time.Parse(time.RFC3339Nano, rawjson.Unquote(value)); err == nil {
		return at, lastName(column) != "title"
	}
	const year10000 = 253402300800
	seconds, err := strconv.ParseFloat(string(value), 64)
	isTime := err == nil && strings.HasSuffix(column, "timestamp") && seconds >= 0 && seconds < year10000
	return time.UnixMilli(int64(seconds * 1000)).UTC(), isTime
}

// writeCSV writes the columns of the list's elements as RFC 4180 has it, below their names.
func (l *List) writeCSV(w io.Writer, columns []string) error {
	line := strings.Join(columns, ",") + "\r\n"
	for row, err := range l.Rows {
		if err != nil {
			return err
		}
		fields := column(columns, func(column string) string { return csvField(column, fieldOf(row, column)) })
		if len(fields) == 1 && fields[0] == "" {
			fields[0] = `""` // an empty line is no record
		}
		if _, err := io.WriteString(w, line+strings.Join(fields, ",")+"\r\n"); err != nil {
			return err
		}
		line = ""
	}
	_, err := io.WriteString(w, line)
	return err
}

// csvField returns a value as a field of CSV. A text that a spreadsheet would run as a formula gets an
// apostrophe.
func csvField(column string, value json.RawMessage) string {
	text := string(value)
	switch at, isTime := timeOf(column, value); {
	case isNull(value):
		text = ""
	case value[0] == '"':
		if text = rawjson.Unquote(value); text != "" && strings.IndexByte("=+-@\t\r", text[0]) >= 0 {
			text = "'" + text
		}
	case isTime:
		text = at.Format(time.RFC3339Nano)
	}
	if strings.ContainsAny(text, "\",\r\n") {
		text = `"` + strings.ReplaceAll(text, `"`, `""`) + `"`
	}
	return text
}

// headings are those of columns in a table of text that differ from their names.
var headings = map[string]string{"last_occurrence_timestamp": "LAST_SEEN", "total_occurrences": "COUNT"}

func heading(column string) string {
	name := lastName(column)
	return cmp.Or(headings[name], strings.ToUpper(name))
}

// colours are the colours of levels and statuses, as terminals number them.
var colours = map[string]int{
	"critical": 35, "error": 31, "warning": 33, "info": 36, "debug": 90,
	"active": 33, "resolved": 32, "muted": 90, "archived": 90,
}

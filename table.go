package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"app/internal/rawjson"
)

// columnValue returns the value of a column for a thing: the member with that name, or a nested one. The title of a
// report or an occurrence comes from its payload, on one line.
func columnValue(thing json.RawMessage, column string) json.RawMessage {
	return columnValues([]string{column})(thing)[0]
}

// columnValues is columnValue for several columns, in one pass over each thing. Each call reuses the slice of the previous one.
func columnValues(columns []string) func(thing json.RawMessage) []json.RawMessage {
	outer := append(column(columns, func(column string) string { return strings.Split(column, ".")[0] }), "data")
	inner := column(columns, lastName)
	picker := rawjson.Picker{Names: outer, Within: "data", Inner: &rawjson.Picker{Names: inner}}
	return func(thing json.RawMessage) []json.RawMessage {
		picker.Pick(thing)
		values, inside := picker.Values, picker.Inner.Values
		data := values[len(columns)]
		for i, column := range columns {
			switch {
			case outer[i] != column && outer[i] == "data" && column[len("data."):] == inner[i]:
				values[i] = inside[i]
			case outer[i] != column:
				values[i] = rawjson.Get(values[i], strings.Split(column, ".")[1:]...)
			case column != "title" || !rawjson.IsNull(values[i]):
			case isOneLine(inside[i]):
				values[i] = inside[i]
			case !rawjson.IsNull(data):
				title := rawjson.Unquote(inside[i])
				if title == "" {
					title = occurrenceTitle(data)
				}
				if title = strings.Join(strings.Fields(title), " "); title != "" {
					values[i] = rawjson.AppendQuoted(nil, title)
				}
			}
		}
		return values[:len(columns)]
	}
}

// isOneLine reports whether the value is a text with no white space but ASCII's, and with no escapes but \".
func isOneLine(value json.RawMessage) bool {
	return len(value) > len(`""`) && value[0] == '"' && bytes.Count(value, []byte(`\`)) == bytes.Count(value, []byte(`\"`)) &&
		!bytes.ContainsFunc(value, func(r rune) bool { return r >= utf8.RuneSelf && unicode.IsSpace(r) })
}

// lastName returns the name at the end of a column such as data.level.
func lastName(column string) string { return column[strings.LastIndexByte(column, '.')+1:] }

// timeOf returns the time in a column: RFC 3339, or Unix seconds if the column's name says so.
func timeOf(column string, value json.RawMessage) (time.Time, bool) {
	if strings.HasSuffix(column, "timestamp") {
		if seconds, err := strconv.ParseFloat(string(value), 64); err == nil {
			return time.UnixMilli(int64(seconds * 1000)).UTC(), seconds >= 0 && seconds < year10000
		}
	}
	var at time.Time
	isTime := len(value) > 11 && value[11] == 'T' && at.UnmarshalJSON(value) == nil && lastName(column) != "title"
	return at, isTime
}

// writeCSV writes the columns of the list's elements as CSV (RFC 4180), below a header line.
func (l *List) writeCSV(w io.Writer, columns []string) error {
	line, read := strings.Join(columns, ",")+"\r\n", columnValues(columns)
	for row, err := range l.Rows {
		if err != nil {
			return err
		}
		fields := make([]string, len(columns))
		for i, value := range read(row) {
			fields[i] = csvField(columns[i], value)
		}
		if len(fields) == 1 && fields[0] == "" {
			fields[0] = `""` // an empty line would not be a record
		}
		if _, err := io.WriteString(w, line+strings.Join(fields, ",")+"\r\n"); err != nil {
			return err
		}
		line = ""
	}
	_, err := io.WriteString(w, line)
	return err
}

// csvField returns a value as a field of CSV. A text that a spreadsheet would run as a formula gets an apostrophe.
func csvField(column string, value json.RawMessage) string {
	text := string(value)
	switch at, isTime := timeOf(column, value); {
	case rawjson.IsNull(value):
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

// headings are the headings in text tables that differ from the column's name.
var headings = map[string]string{"last_occurrence_timestamp": "LAST_SEEN", "total_occurrences": "COUNT"}

func heading(column string) string {
	name := lastName(column)
	return cmp.Or(headings[name], strings.ToUpper(name))
}

// colours are the terminal's codes for the colours of levels and statuses.
var colours = map[string]int{
	"critical": 35, "error": 31, "warning": 33, "info": 36, "debug": 90,
	"active": 33, "resolved": 32, "muted": 90, "archived": 90,
}

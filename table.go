// table.go makes rows of things: the columns of a list, as CSV and as text whose columns are aligned.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

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
		return at, column != "title"
	}
	const year10000 = 253402300800
	seconds, err := strconv.ParseFloat(string(value), 64)
	isTime := err == nil && strings.HasSuffix(column, "timestamp") && seconds >= 0 && seconds < year10000
	return time.UnixMilli(int64(seconds * 1000)).UTC(), isTime
}

// writeCSV writes the columns of the list's elements as RFC 4180 has it, below their names.
func (l *List) writeCSV(w io.Writer, columns []string) error {
	line := strings.Join(columns, ",") + "\r\n"
	fields := make([]string, len(columns))
	for row, err := range l.Rows {
		if err != nil {
			return err
		}
		for i, column := range columns {
			fields[i] = csvField(column, fieldOf(row, column))
		}
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

// A textTable aligns the rows that are written to it, whose cells are separated by tabs.
type textTable struct {
	out        io.Writer
	width      int // of the terminal, where longer lines are cut; 0 for none
	isColoured bool
	rows       [][]string
}

func (t *textTable) Write(p []byte) (int, error) {
	for line := range strings.SplitSeq(strings.TrimSuffix(string(p), "\n"), "\n") {
		t.rows = append(t.rows, strings.Split(line, "\t"))
	}
	return len(p), nil
}

// Flush prints the rows and forgets them.
func (t *textTable) Flush() error {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], displayWidth(cell))
		}
	}
	var text strings.Builder
	for _, row := range t.rows {
		blanks, used := 0, 0
		for i, cell := range row {
			if t.width > 0 {
				cell = fit(cell, t.width-used)
			}
			if cell != "" {
				text.WriteString(strings.Repeat(" ", blanks) + t.coloured(cell))
				blanks = 0
			}
			blanks += widths[i] - displayWidth(cell) + 2
			used += widths[i] + 2
		}
		text.WriteByte('\n')
	}
	t.rows = nil
	_, err := io.WriteString(t.out, text.String())
	return err
}

// colours are the colours of levels and statuses, as terminals number them.
var colours = map[string]int{
	"critical": 35, "error": 31, "warning": 33, "info": 36, "debug": 90,
	"active": 33, "resolved": 32, "muted": 90, "archived": 90,
}

func (t *textTable) coloured(cell string) string {
	if colour := colours[cell]; t.isColoured && colour > 0 {
		return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, cell)
	}
	return cell
}

// fit cuts a text that is wider than the width.
func fit(text string, width int) string {
	if displayWidth(text) <= width {
		return text
	}
	if width < 1 {
		return ""
	}
	left := width - 1 // beside the ellipsis
	for i, r := range text {
		if left -= runeWidth(r); left < 0 {
			return text[:i] + "…"
		}
	}
	return text
}

// displayWidth returns how many columns of a terminal a text takes.
func displayWidth(text string) (width int) {
	for _, r := range text {
		width += runeWidth(r)
	}
	return width
}

func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case unicode.Is(wide, r) || strings.ContainsRune(wideSymbols, r):
		return 2
	}
	return 1
}

// wide and wideSymbols are what takes two columns of a terminal: the scripts of East Asia, and emoji.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{{0x1100, 0x115F, 1}, {0x2E80, 0x303E, 1}, {0x3041, 0xA4CF, 1}, {0xA960, 0xA97F, 1},
		{0xAC00, 0xD7A3, 1}, {0xF900, 0xFAFF, 1}, {0xFE30, 0xFE6F, 1}, {0xFF01, 0xFF60, 1}, {0xFFE0, 0xFFE6, 1}},
	R32: []unicode.Range32{{0x16FE0, 0x1B2FF, 1}, {0x1F18E, 0x1F320, 1}, {0x1F32D, 0x1F64F, 1}, {0x1F680, 0x1F6FF, 1},
		{0x1F7E0, 0x1F7EB, 1}, {0x1F90C, 0x1FAFF, 1}, {0x20000, 0x3FFFD, 1}},
}

const wideSymbols = "⌚⌛⏩⏪⏫⏬⏰⏳◽◾☔☕♈♉♊♋♌♍♎♏♐♑♒♓♿⚓⚡⚪⚫⚽⚾⛄⛅⛎⛔⛪⛲⛳⛵⛺⛽✅✊✋✨❌❎❓❔❕❗➕➖➗➰➿⬛⬜⭐⭕"

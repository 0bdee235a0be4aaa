// cli_output.go is where the command line meets a person or another program: tables, progress and questions.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
	"unsafe"

	"app/internal/rawjson"
)

// A console is what the command line reads and writes: the standard streams, and the .env file with settings.
type console struct {
	in       io.Reader
	out, err io.Writer
	envFile  string
}

// isTerminal reports whether the stream is a terminal.
func isTerminal(stream any) bool { return terminalWidth(stream) > 0 }

// terminalWidth returns the width of the terminal that the stream is, or 0 if it is none.
func terminalWidth(stream any) int {
	file, ok := stream.(*os.File)
	if !ok {
		return 0
	}
	var size struct{ rows, columns, x, y uint16 }
	_, _, failed := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	if failed != 0 {
		return 0
	}
	return cmp.Or(int(size.columns), 80)
}

// setFields takes the columns of a table or of CSV.
func (c *cli) setFields(text string) error {
	for name := range strings.SplitSeq(text, ",") {
		c.fields = append(c.fields, strings.TrimSpace(name))
	}
	if slices.Contains(c.fields, "") {
		return errors.New("must be names of members, separated by commas, such as id,title,data.level")
	}
	return nil
}

// checkOutput refuses an output format that the command does not have, and -fields where there are no columns.
func (c *cli) checkOutput(command *Command) error {
	switch {
	case c.output == "csv" && command.Columns == "":
		return fail(invalid, "-output csv is for lists: %s is none", command.Name)
	case c.fields != nil && c.output != "csv" && c.output != "table":
		return fail(invalid, "-fields chooses the columns of a table or of CSV: add -output table or -output csv")
	}
	return nil
}

// print writes a result in the output format.
func (c *cli) print(command *Command, value any) error {
	list, isList := value.(*List)
	_, isText := value.(Text)
	summary, isSummary := value.(Summary)
	if text, isRemote := value.(json.RawMessage); isRemote && command.Run.out == reflect.TypeFor[Summary]() {
		isSummary = json.Unmarshal(text, &summary) == nil
	}
	columns := c.fields
	if columns == nil {
		columns = strings.Fields(command.Columns)
	}
	var err error
	switch {
	case c.output == "table" && isSummary:
		return printSummary(c.table, summary)
	case c.output == "table" && isList:
		err = c.table.printRows(columns, list)
	case c.output == "table" && !isText:
		return c.printMembers(value)
	case c.output == "csv" && isList:
		err = list.writeCSV(c.std.out, columns)
	case c.output == "ndjson" && isList:
		return list.writeLines(c.std.out)
	default:
		return writeResult(c.std.out, value)
	}
	for name := range list.Next {
		fmt.Fprintf(c.stderr(), "next page: -%s %s\n", name, list.Next.Get(name))
	}
	return err
}

// alignedRows is the number of table rows that are aligned and written together, so that a long list appears
// while it is read.
const alignedRows = 200

// printRows prints the columns of a list.
func (t *textTable) printRows(columns []string, list *List) error {
	cells := make([]string, len(columns))
	for i, column := range columns {
		cells[i] = printable(heading(column))
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
	count := 0
	for row, err := range list.Rows {
		if err != nil {
			t.Flush()
			return err
		}
		for i, column := range columns {
			cells[i] = t.cell(column, fieldOf(row, column), false)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
		count++
		if count%alignedRows == 0 {
			t.Flush()
		}
	}
	return t.Flush()
}

// firstMembers are what people look for first in a thing. A dot goes deeper.
var firstMembers = strings.Fields(`id counter item_id title state level status data.level data.status environment
	data.environment total_occurrences data.total_occurrences first_seen first_occurrence_timestamp last_seen
	last_occurrence_timestamp timestamp uuid`)

// printMembers prints an object as a table with a row for each member, the first ones first.
func (c *cli) printMembers(value any) error {
	var text strings.Builder
	if err := writeResult(&text, value); err != nil {
		return err
	}
	thing := json.RawMessage(strings.TrimSpace(text.String()))
	names := c.fields
	if names == nil {
		names = slices.DeleteFunc(slices.Clone(firstMembers), func(name string) bool { return fieldOf(thing, name) == nil })
		for name := range rawjson.Members(thing) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for _, name := range names {
		fmt.Fprintf(c.table, "%s\t%s\n", printable(name), c.table.cell(name, fieldOf(thing, name), true))
	}
	return c.table.Flush()
}

// cellWidth is the number of columns after which a table cuts a value, unless the terminal is wider.
const cellWidth = 100

// cell returns a JSON value as one line, without characters that a terminal would take for commands. A time is
// an age, or both if it isExact.
func (t *textTable) cell(name string, value json.RawMessage, isExact bool) string {
	text := string(value)
	switch at, isTime := timeOf(name, value); {
	case value == nil:
		return ""
	case isNull(value):
		return "-"
	case isTime && isExact:
		return at.UTC().Format(time.RFC3339) + " (" + ago(time.Since(at)) + ")"
	case isTime:
		return ago(time.Since(at))
	case value[0] == '"':
		text = rawjson.Unquote(value)
	}
	return fit(printable(text), max(cellWidth, t.width))
}

// printable returns the text on one line, with blanks for what a terminal would not print.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// A terminalWriter writes to a terminal, which would obey the control and bidi characters that came from
// elsewhere: JSON has escapes for them, anything else blanks.
type terminalWriter struct {
	io.Writer
	json bool
}

func (w terminalWriter) Write(p []byte) (int, error) {
	text := make([]byte, 0, len(p))
	for _, r := range strings.ReplaceAll(string(p), "\r\n", "\n") {
		switch {
		case r == '\n' || !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r):
			text = utf8.AppendRune(text, r)
		case w.json:
			text = fmt.Appendf(text, `\u%04x`, r)
		default:
			text = append(text, ' ')
		}
	}
	_, err := w.Writer.Write(text)
	return len(p), err
}

// safe returns the stream, or a terminalWriter if it is a terminal.
func (c *cli) safe(stream io.Writer) io.Writer {
	if !isTerminal(stream) {
		return stream
	}
	return terminalWriter{stream, c.output == "json" || c.output == "ndjson"}
}

// confirm asks the operation's question and returns an error unless the answer is yes.
func (c *cli) confirm(ctx context.Context, command *Command) error {
	if !isTerminal(c.std.in) {
		return fail(invalid, "this needs confirmation, but standard input is not a terminal: add -yes")
	}
	about, err := c.about(ctx, command)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr(), "%s [y/N] ", command.ask(about, c.args))
	var answer string
	err = interruptible(ctx, func() error {
		answer, _ = bufio.NewReader(c.std.in).ReadString('\n')
		return nil // the end of the input means no
	})
	if err != nil {
		fmt.Fprintln(c.std.err)
		return err
	}
	if slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
		return nil
	}
	return fail(invalid, "not confirmed, so nothing was done")
}

// about reads what the question is about. It is nil where a server cannot tell.
func (c *cli) about(ctx context.Context, command *Command) (json.RawMessage, error) {
	about := command.About
	operation, err := about.Run.prepare(c.args)
	if err != nil || c.app == nil && about.Route == "" {
		return nil, err
	}
	value, err := c.runOperation(ctx, about, c.args, operation)
	text, _ := value.(json.RawMessage)
	return text, err
}

// interruptible runs something that may block for ever. When the context ends it returns without waiting for
// the end, which comes with that of the program.
func interruptible(ctx context.Context, run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A progressLine is a line of a terminal that is overwritten again and again.
type progressLine struct {
	out   io.Writer
	began time.Time

	mu    sync.Mutex
	shown bool // now
	ended bool
}

// show shows how much of what is done, of a total unless that is 0, how fast and until when.
func (p *progressLine) show(done, total int64, what string) {
	rate := float64(done) / time.Since(p.began).Seconds()
	text := fmt.Sprintf("%d %s, %.1f/s", done, what, rate)
	if total >= done && done > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		text = fmt.Sprintf("%d of %d %s, %.1f/s, %v left", done, total, what, rate, left.Round(time.Second))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.shown = true
		fmt.Fprint(p.out, "\r\x1b[K"+text)
	}
}

// end clears the line and shows nothing from then on.
func (p *progressLine) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	p.shown, p.ended = false, true
}

// A resultWriter writes to a terminal that shows a progressLine, which it ends first.
type resultWriter struct {
	io.Writer
	line *progressLine
}

func (w resultWriter) Write(p []byte) (int, error) {
	w.line.end()
	return w.Writer.Write(p)
}

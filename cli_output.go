// cli_output.go is where the command line meets a person or another program: tables, progress and
// questions.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"app/internal/rawjson"
)

// A console is what the command line reads and writes: the standard streams, and the .env file with
// settings.
type console struct {
	in       io.Reader
	out, err io.Writer
	envFile  string
}

// isTerminal reports whether the stream is a terminal.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a character device, too
	return err != nil || !os.SameFile(info, null)
}

// print writes a result in the output format.
func (c *cli) print(command *Command, value any) error {
	list, isList := value.(*List)
	_, isText := value.(Text)
	summary, isSummary := value.(Summary)
	if object, isRemote := value.(remoteObject); isRemote && command.Run.out == reflect.TypeFor[Summary]() {
		isSummary = json.Unmarshal(object.RawMessage, &summary) == nil
	}
	switch {
	case c.output == "table" && isSummary:
		return printSummary(c.std.out, summary)
	case c.output == "table" && isList:
		return c.printRows(strings.Fields(command.Columns), list)
	case c.output == "table" && !isText:
		return printMembers(c.std.out, value)
	case c.output == "ndjson" && isList:
		return list.writeLines(c.std.out)
	}
	return writeResult(c.std.out, value)
}

// alignedRows is the number of table rows that are aligned and written together, so that a long list
// appears while it is read.
const alignedRows = 200

// printRows prints a list as a table, and on standard error the flag that leads to the next page.
func (c *cli) printRows(columns []string, list *List) error {
	w := newTable(c.std.out)
	titles := make([]string, len(columns))
	for i, column := range columns {
		titles[i] = strings.ToUpper(column[strings.LastIndexByte(column, '.')+1:])
	}
	fmt.Fprintln(w, strings.Join(titles, "\t"))
	count := 0
	for row, err := range list.Rows {
		if err != nil {
			w.Flush()
			return err
		}
		cells := make([]string, len(columns))
		for i, column := range columns {
			cells[i] = cell(rawjson.Get(row, strings.Split(column, ".")...))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
		count++
		if count%alignedRows == 0 {
			w.Flush()
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for name := range list.Next {
		fmt.Fprintf(c.stderr(), "next page: -%s %s\n", name, list.Next.Get(name))
	}
	return nil
}

// printMembers prints an object as a table with a row for each member.
func printMembers(out io.Writer, value any) error {
	var text strings.Builder
	if err := writeResult(&text, value); err != nil {
		return err
	}
	w := newTable(out)
	for name, member := range rawjson.Members([]byte(strings.TrimSpace(text.String()))) {
		fmt.Fprintf(w, "%s\t%s\n", printable(name), cell(member))
	}
	return w.Flush()
}

// newTable returns a writer that aligns cells separated by tabs.
func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }

// cellWidth is the number of characters after which a table cuts a value.
const cellWidth = 100

// cell returns a JSON value as one line, without characters that a terminal would take for commands.
func cell(value []byte) string {
	if isNull(value) {
		return "-"
	}
	text := string(value)
	if value[0] == '"' {
		text = rawjson.Unquote(value)
	}
	text = printable(text)
	if runes := []rune(text); len(runes) > cellWidth {
		return string(runes[:cellWidth-1]) + "…"
	}
	return text
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
	for _, r := range string(p) {
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
func (c *cli) confirm(ctx context.Context, config *Config, in *invocation) error {
	if !isTerminal(c.std.in) {
		return fail(invalid, "this needs confirmation, but standard input is not a terminal: add -yes")
	}
	about, err := c.about(ctx, config, in)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr(), "%s [y/N] ", in.command.ask(about, in.args))
	answer, err := interruptible(ctx, func() ([]byte, error) {
		answer, _ := bufio.NewReader(c.std.in).ReadBytes('\n')
		return answer, nil // the end of the input means no
	})
	if err != nil {
		fmt.Fprintln(c.std.err)
		return err
	}
	switch strings.ToLower(strings.TrimSpace(string(answer))) {
	case "y", "yes":
		return nil
	}
	return fail(invalid, "not confirmed, so nothing was done")
}

// about reads what the question is about, at the server or here. It is nil where a server cannot tell.
func (c *cli) about(ctx context.Context, config *Config, in *invocation) (json.RawMessage, error) {
	var value any
	operation, err := in.command.About.Run.prepare(in.args)
	switch {
	case err != nil:
	case config.AppURL != "" && in.command.About.Route == "":
		return nil, nil
	case config.AppURL != "":
		value, err = askServer(ctx, config, in.command.About, in.args)
	default:
		var app *App
		if app, err = newApp(config, c.log(config), nil); err == nil {
			defer app.Close()
			value, err = operation(ctx, app)
		}
	}
	if remote, ok := value.(remoteObject); ok {
		return remote.RawMessage, err
	}
	text, _ := value.(json.RawMessage)
	return text, err
}

// interruptible runs a read that may block for ever. When the context ends it returns without waiting
// for the read, which ends with the program.
func interruptible(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	var text []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, err = read()
	}()
	select {
	case <-done:
		return text, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A progressLine is a line of a terminal that is overwritten again and again.
type progressLine struct {
	out io.Writer

	mu    sync.Mutex
	shown bool // now
	ended bool
}

func (p *progressLine) show(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.shown = true
		fmt.Fprintf(p.out, "\r\x1b[K"+format, args...)
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

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"app/internal/async"
	"app/internal/rawjson"
	"app/internal/terminal"
)

// A console is what the command line reads and writes: the standard streams, and the .env file with settings.
type console struct {
	in       io.Reader
	out, err io.Writer
	envFile  string
}

// setFields sets the columns of a table or of CSV.
func (c *cli) setFields(text string) error {
	c.fields = append(c.fields, column(strings.Split(text, ","), strings.TrimSpace)...)
	if slices.Contains(c.fields, "") {
		return errors.New("must be names of members, separated by commas, such as id,title,data.level")
	}
	return nil
}

// checkOutput refuses a format that the command does not support, and -fields with a format without columns.
func (c *cli) checkOutput(command *Command) error {
	switch {
	case c.output == "csv" && command.Columns == "":
		return fail(invalid, "-output csv is for lists: %s is not one", command.Name)
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
		isSummary = json.Unmarshal(text, &summary) == nil && len(summary.Days) > 0
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
		err = printRows(c.table, columns, list)
	case c.output == "table" && !isText:
		return c.printMembers(value)
	case c.output == "csv" && isList:
		err = list.writeCSV(c.std.out, columns)
	case c.output == "ndjson" && isList:
		err = list.writeLines(c.std.out)
	default:
		return writeResult(c.std.out, value)
	}
	for name := range list.Next {
		if err == nil {
			fmt.Fprintf(c.stderr(), "next page: -%s %s\n", name, list.Next.Get(name))
		}
	}
	return err
}

// alignedRows is the number of table rows that are aligned and written together, so that a long list appears
// as it is read.
const alignedRows = 200

// printRows prints the columns of a list.
func printRows(t *terminal.Table, columns []string, list *List) error {
	headings := column(columns, func(column string) string { return terminal.Printable(heading(column)) })
	fmt.Fprintln(t, strings.Join(headings, "\t"))
	count := 0
	for row, err := range list.Rows {
		if err != nil {
			t.Flush()
			return err
		}
		cells := column(columns, func(column string) string { return cell(t, column, columnValue(row, column), false) })
		fmt.Fprintln(t, strings.Join(cells, "\t"))
		if count++; count%alignedRows == 0 {
			t.Flush()
		}
	}
	return t.Flush()
}

// firstMembers are the members that people look for first. Dots lead to nested ones.
var firstMembers = strings.Fields(`id counter item_id title state level status data.level data.status environment
	data.environment total_occurrences data.total_occurrences first_seen first_occurrence_timestamp last_seen
	last_occurrence_timestamp timestamp uuid`)

// printMembers prints an object as a table with a row for each member, firstMembers on top.
func (c *cli) printMembers(value any) error {
	thing := asJSON(value)
	names := c.fields
	if names == nil {
		names = slices.DeleteFunc(slices.Clone(firstMembers), func(name string) bool { return columnValue(thing, name) == nil })
		for name := range rawjson.Members(thing) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for _, name := range names {
		fmt.Fprintf(c.table, "%s\t%s\n", terminal.Printable(name), cell(c.table, name, columnValue(thing, name), true))
	}
	return c.table.Flush()
}

// cell returns a JSON value as one line, without characters that a terminal would obey. A time is shown as its
// age, and with isExact also in full.
func cell(t *terminal.Table, name string, value json.RawMessage, isExact bool) string {
	text := string(value)
	switch at, isTime := timeOf(name, value); {
	case value == nil:
		return ""
	case rawjson.IsNull(value):
		return "-"
	case isTime && isExact:
		return at.UTC().Format(time.RFC3339) + " (" + ago(time.Since(at)) + ")"
	case isTime:
		return ago(time.Since(at))
	case value[0] == '"':
		text = rawjson.Unquote(value)
	}
	text = terminal.Printable(text)
	if t.Width > 0 {
		text = terminal.Fit(text, t.Width)
	}
	return text
}

// safe returns a writer to the stream that keeps control characters from a terminal.
func (c *cli) safe(stream io.Writer) io.Writer {
	if !terminal.Is(stream) {
		return stream
	}
	return terminal.Safe(stream, c.output == "json" || c.output == "ndjson")
}

// confirm asks the operation's question and returns an error unless the answer is yes.
func (c *cli) confirm(ctx context.Context, command *Command) error {
	if !terminal.Is(c.std.in) {
		return fail(invalid, "this needs confirmation, but standard input is not a terminal: add -yes")
	}
	about, err := c.about(ctx, command)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr(), "%s [y/N] ", command.ask(about, c.args))
	var answer string
	err = async.Interruptible(ctx, func() error {
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

// about reads the subject of the question. It is nil if the server cannot tell.
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

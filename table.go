// table.go shows results to people.
package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"unicode"

	"app/internal/rawjson"
)

// print writes a result in the format that was asked for: a table on a terminal, and else JSON.
func (c *cli) print(command *Command, value any) error {
	list, isList := value.(*List)
	switch {
	case c.output == "table" && isList:
		return c.printRows(strings.Fields(command.Columns), list)
	case c.output == "table":
		return printMembers(c.std.out, value)
	case c.output == "ndjson" && isList:
		return list.writeLines(c.std.out)
	}
	return writeResult(c.std.out, value)
}

// alignedRows is how many rows of a table are aligned together; a long list is shown as it comes.
const alignedRows = 200

// printRows prints the elements of a list as a table, and how to get to the next page.
func (c *cli) printRows(columns []string, list *List) error {
	w := tabwriter.NewWriter(c.std.out, 0, 8, 2, ' ', 0)
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
		if count++; count%alignedRows == 0 {
			w.Flush()
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for name, value := range firsts(list.Next) {
		fmt.Fprintf(c.std.err, "the next page: -%s %s\n", name, value)
	}
	return nil
}

// firsts are the first values.
func firsts(values url.Values) map[string]string {
	first := map[string]string{}
	for name := range values {
		first[name] = values.Get(name)
	}
	return first
}

// printMembers prints an object as one line for each member.
func printMembers(out io.Writer, value any) error {
	var text strings.Builder
	if err := writeResult(&text, value); err != nil {
		return err
	}
	if _, ok := value.(Text); ok {
		_, err := io.WriteString(out, text.String())
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for name, member := range rawjson.Members([]byte(strings.TrimSpace(text.String()))) {
		fmt.Fprintf(w, "%s\t%s\n", name, cell(member))
	}
	return w.Flush()
}

// cellWidth is how many characters of a value a table shows.
const cellWidth = 100

// cell is a value on one line, without anything that a terminal would take for a command.
func cell(value []byte) string {
	if isNull(value) {
		return "-"
	}
	text := string(value)
	if value[0] == '"' {
		text = rawjson.Unquote(value)
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > cellWidth {
		return string(runes[:cellWidth-1]) + "…"
	}
	return text
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/terminal"
)

func TestOutputFormats(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 12)
	f.sandbox.SetItem(f.sandbox.ItemIDs()[0], "title", "two\nlines \x1b[31m and "+strings.Repeat("more ", 40))
	ids := f.sandbox.ItemIDs()

	lines := strings.Split(strings.TrimSpace(f.run("items", "list", "-output", "ndjson", "-limit", "3").out), "\n")
	require.Len(t, lines, 3)
	assert.Equal(t, fmt.Sprint(ids[0]), string(rawjson.Get([]byte(lines[0]), "id")))

	table := f.run("items", "list", "-o", "table", "-limit", "3")
	rows := strings.Split(strings.TrimSpace(table.out), "\n")
	require.Len(t, rows, 4)
	assert.Equal(t, []string{"ID", "LEVEL", "STATUS", "LAST_SEEN", "COUNT", "TITLE"}, strings.Fields(rows[0]))
	assert.Contains(t, rows[1], "two lines  [31m and "+strings.Repeat("more ", 39)+"more", "there is no terminal")
	assert.Equal(t, "next page: -page 2\n", table.err)

	one := f.run("items", "get", fmt.Sprint(ids[1]), "-o", "table").out
	assert.Contains(t, one, "assigned_team_id")
	assert.Contains(t, one, "first_occurrence_id")
	assert.Regexp(t, `(?m)^status +active$`, one)
	assert.Equal(t, 1, strings.Count("\n"+one, "\nstatus "), "each member once")
}

// A long table appears as it is read, and the rows before a failure are printed.
func TestTableAppearsWhileItIsRead(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	rows := func(yield func(json.RawMessage, error) bool) {
		for range alignedRows {
			yield(json.RawMessage(`{"id":1}`), nil)
		}
		assert.Equal(t, 1+alignedRows, strings.Count(out.String(), "\n"))
		yield(json.RawMessage(`{"id":1}`), nil)
		yield(nil, io.ErrUnexpectedEOF)
	}
	assert.ErrorIs(t, printRows(&terminal.Table{Out: &out}, []string{"id"}, &List{Rows: rows}), io.ErrUnexpectedEOF)
	assert.Equal(t, "ID\n"+strings.Repeat("1\n", alignedRows+1), out.String())
}

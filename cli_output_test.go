package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
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
	assert.Equal(t, []string{"ID", "COUNTER", "LEVEL", "STATUS", "ENVIRONMENT", "TOTAL_OCCURRENCES", "TITLE"}, strings.Fields(rows[0]))
	assert.Contains(t, rows[1], "two lines  [31m and more")
	assert.Contains(t, rows[1], "…")
	assert.Equal(t, "next page: -page 2\n", table.err)

	one := f.run("items", "get", fmt.Sprint(ids[1]), "-o", "table").out
	assert.Contains(t, one, "assigned_team_id")
	assert.Contains(t, one, "first_occurrence_id")
	assert.Regexp(t, `(?m)^status +active$`, one)
}

// On a terminal that shows both, the result takes the place of the progress.
func TestProgressLine(t *testing.T) {
	t.Parallel()
	var screen strings.Builder
	line := &progressLine{out: &screen}
	result := resultWriter{&screen, line}
	line.show("%d items", 1)
	line.show("%d items", 2)
	fmt.Fprint(result, "ID\n")
	line.show("%d items", 3)
	fmt.Fprint(result, "17\n")
	line.end()
	assert.Equal(t, "\r\x1b[K1 items\r\x1b[K2 items\r\x1b[KID\n17\n", screen.String())
}

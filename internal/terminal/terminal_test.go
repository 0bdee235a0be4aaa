package terminal

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSafe(t *testing.T) {
	t.Parallel()
	const hostile = "a\x1b[31m\u202eb\r\nc\u009b\n"
	for json, want := range map[bool]string{
		true: `a\u001b[31m\u202eb` + "\nc" + `\u009b` + "\n", false: "a [31m b\nc \n",
	} {
		var out strings.Builder
		n, err := fmt.Fprint(Safe(&out, json), hostile)
		require.NoError(t, err)
		assert.Equal(t, len(hostile), n)
		assert.Equal(t, want, out.String())
	}
	assert.Equal(t, "a [31m b  c  ", Printable(hostile))
	assert.False(t, Is(&strings.Builder{}))
}

func TestTable(t *testing.T) {
	t.Parallel()
	rows := "ID\tLEVEL\tTITLE\n7\terror\tabcdefghijklmnop\n12\tdebug\t日本語日本語\n1\t-\te\u0301e\u0301\n"
	for _, tt := range []struct {
		width int
		want  string
	}{
		{0, "ID  LEVEL  TITLE\n7   error  abcdefghijklmnop\n12  debug  日本語日本語\n1   -      e\u0301e\u0301\n"},
		{23, "ID  LEVEL  TITLE\n7   error  abcdefghijk…\n12  debug  日本語日本語\n1   -      e\u0301e\u0301\n"},
		{22, "ID  LEVEL  TITLE\n7   error  abcdefghij…\n12  debug  日本語日本…\n1   -      e\u0301e\u0301\n"},
		{21, "ID  LEVEL  TITLE\n7   error  abcdefghi…\n12  debug  日本語日…\n1   -      e\u0301e\u0301\n"},
		{8, "ID  LEV…\n7   err…\n12  deb…\n1   -\n"},
	} {
		var out strings.Builder
		table := &Table{Out: &out, Width: tt.width}
		fmt.Fprint(table, rows)
		require.NoError(t, table.Flush())
		assert.Equal(t, tt.want, out.String(), tt.width)
	}
	assert.Equal(t, 7, TextWidth("🙂한✅✓e\u0301")-1, "a combining character has no width")
	assert.Equal(t, " ▁█", Sparkline([]int64{0, 1, 100}), "a small count is visible")
}

// On a terminal that shows both, the result replaces the progress.
func TestProgress(t *testing.T) {
	t.Parallel()
	var screen strings.Builder
	line := &Progress{Out: &screen, Began: time.Now().Add(-10 * time.Second)}
	result := line.Before(&screen)
	line.Show(10, 0, "items")
	line.Show(20, 100, "items")
	fmt.Fprint(result, "ID\n")
	line.Show(30, 0, "items")
	fmt.Fprint(result, "17\n")
	line.End()
	later := &Progress{Out: &screen, Began: time.Now()}
	later.Show(3, -1, "s")
	later.End()
	assert.Equal(t, "\r\x1b[K10 items, 1.0/s\r\x1b[K20 of 100 items, 2.0/s, 40s left\r\x1b[KID\n17\n"+
		"\r\x1b[K3 s\r\x1b[K", screen.String())
}

package main

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// occurrenceWith returns an occurrence with the members of its data.
func occurrenceWith(t testing.TB, id, item, at int64, data string) Occurrence {
	t.Helper()
	o, err := occurrenceOf(fmt.Appendf(nil, `{"id":%d,"item_id":%d,"timestamp":%d,"data":{%s}}`, id, item, at, data))
	require.NoError(t, err)
	return o
}

func TestArchive(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	first := occurrenceWith(t, 7, 1, 1_700_000_000, `"level":"error","environment":"prod"`)
	strange := occurrenceWith(t, 9_007_199_254_740_993, 1, -1, `"level":"fatal","environment":5,"n":1e400,"t":"\u0000\ud800"`)
	long := occurrenceWith(t, 8, 0, 1<<62, `"environment":"`+fmt.Sprintf("%0500d", 1)+`"`)
	stored, err := f.app.store.archive(t.Context(), []Occurrence{strange, long, first, first})
	require.NoError(t, err)
	assert.Equal(t, 3, stored)
	again := occurrenceWith(t, 7, 2, 1_800_000_000, `"level":"debug"`)
	stored, err = f.app.store.archive(t.Context(), []Occurrence{again, strange})
	require.NoError(t, err)
	assert.Zero(t, stored, "the first sight stays")
	assert.Equal(t, []string{
		`7|1|2023-11-14 22:13:20|prod|error|` + string(first.JSON),
		`8|-|now|` + fmt.Sprintf("%0255d", 0) + `||` + string(long.JSON),
		`9007199254740993|1|now|||{"id":9007199254740993,"item_id":1,"timestamp":-1,` +
			`"data":{"level":"fatal","environment":5,"n":1e400,"t":"\ufffd\ufffd"}}`,
	}, f.rows(`SELECT concat_ws('|', id, coalesce(item_id::text, '-'), CASE WHEN occurred_at > now() - interval '1 hour' THEN 'now'
		ELSE (occurred_at AT TIME ZONE 'UTC')::text END, environment, level, data) FROM occurrences ORDER BY id`))
	assert.True(t, json.Valid(strange.JSON))
}

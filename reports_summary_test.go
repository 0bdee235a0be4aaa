package main

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/sandbox"
)

// summary reads the summary.
func (f *fixture) summary(query string) (s Summary) {
	got := f.get("/reports/summary" + query)
	require.Equal(f.t, 200, got.status, got.body)
	require.NoError(f.t, json.Unmarshal([]byte(got.body), &s))
	return s
}

func TestSummary(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 12)
	empty := f.summary("")
	assert.Zero(t, empty.Items.Total)
	assert.Len(t, empty.Days, 29)
	assert.Contains(t, f.get("/reports/summary").body, `"top":[],"queue":{"queued":0,"oldest":null,"rejected":0}`)

	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	ids := f.sandbox.ItemIDs()
	for n, status := range []string{"muted", "resolved", "active"} { // one item changes three times, another once
		require.Equal(t, 200, f.do("PATCH", fmt.Sprintf("/items/%d", ids[0]),
			`{"title":"`+fmt.Sprint(n)+`","status":"`+status+`"}`).status)
	}
	require.Equal(t, 200, f.do("PATCH", fmt.Sprintf("/items/%d", ids[1]), `{"title":"other"}`).status)
	f.sandbox.SetItem(ids[2], "total_occurrences", int64(1_000_000))
	require.Equal(t, 200, f.get(fmt.Sprintf("/items/%d", ids[2])).status)
	f.sandbox.SetFault(sandbox.Down)
	require.Equal(t, 202, f.create(newUUID()).status)
	f.sandbox.SetFault(sandbox.None)
	// The first item was new yesterday, the second one long before; another has only superseded reports.
	f.exec(`UPDATE reports SET first_seen = now() - interval '1 day' WHERE id = (SELECT min(id) FROM reports WHERE ` +
		`item_id = ` + fmt.Sprint(ids[0]) + `)`)
	f.exec(`UPDATE reports SET first_seen = now() - interval '300 days' WHERE id = (SELECT min(id) FROM reports ` +
		`WHERE item_id = ` + fmt.Sprint(ids[1]) + `)`)
	f.exec(`INSERT INTO reports (uuid, item_id, state, first_seen, data)
		VALUES ('a', NULL, 'queued', now() - interval '1 hour', '{}'), ('b', NULL, 'rejected', now(), '{}'),
			('c', 5, 'delivered', now(), '{}'), ('d', 5, 'delivered', now(), '{}')`)
	f.exec(`INSERT INTO reports (item_id, state, data) SELECT 5, 'superseded', '{}' FROM generate_series(1, 2)`)

	s := f.summary("?since=1d")
	listed := int64(len(f.get("/reports?state=current&limit=1000").list("reports")))
	assert.Equal(t, listed, s.Items.Total)
	for _, counts := range []map[string]int64{s.Items.ByStatus, s.Items.ByLevel, s.Items.ByEnvironment} {
		total := int64(0)
		for _, count := range counts {
			total += count
		}
		assert.Equal(t, listed, total)
	}
	active := len(f.get("/reports?state=current&status=active&limit=1000").list("reports"))
	assert.EqualValues(t, active, s.Items.ByStatus["active"])
	failed := len(f.get("/reports?state=current&level=error&limit=1000").list("reports"))
	assert.EqualValues(t, failed, s.Items.ByLevel["error"])
	today := time.Now().UTC()
	assert.Equal(t, []DayCounts{
		{today.AddDate(0, 0, -1).Format(time.DateOnly), 1, 0},
		{today.Format(time.DateOnly), listed - 2 + 1, 3 + 1 + 1},
	}, s.Days)
	require.Len(t, s.Top, 10)
	assert.Equal(t, ids[2], s.Top[0].ItemID)
	assert.EqualValues(t, 1_000_000, s.Top[0].TotalOccurrences)
	for i, item := range s.Top[1:] {
		assert.LessOrEqual(t, item.TotalOccurrences, s.Top[i].TotalOccurrences)
	}
	assert.EqualValues(t, 2, s.Queue.Queued)
	assert.EqualValues(t, 1, s.Queue.Rejected)
	assert.WithinDuration(t, time.Now().Add(-time.Hour), *s.Queue.Oldest, time.Minute)

	table := f.run("reports", "summary", "-o", "table").out
	assert.Contains(t, table, "STATUS")
	assert.Contains(t, table, "█")
	assert.Contains(t, table, fmt.Sprint(ids[2]))
}

func TestSummaryRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	assert.Contains(t, f.get("/reports/summary?since=2999-01-01").requireProblem(400, "usage"),
		"must not be in the future")
	assert.Contains(t, f.get("/reports/summary?since=367d").requireProblem(400, "usage"), "at most 366 days back")
	assert.Len(t, f.summary("?since=366d").Days, 367)
}

// A summary holds only the most frequent environments.
func TestSummaryOfManyEnvironments(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 200, f.get("/reports").status)
	f.exec(`INSERT INTO reports (item_id, state, environment, total_occurrences, data)
		SELECT n, 'current', 'e' || lpad((n % 30)::text, 2, '0'), n, '{}' FROM generate_series(1, 65) AS n`)
	s := f.summary("")
	assert.EqualValues(t, 65, s.Items.Total)
	assert.Empty(t, s.Items.ByStatus, "they have none")
	assert.Equal(t, TopItem{ItemID: 65, TotalOccurrences: 65}, s.Top[0])
	assert.Len(t, s.Items.ByEnvironment, 20)
	assert.EqualValues(t, 3, s.Items.ByEnvironment["e05"])
	assert.Contains(t, s.Items.ByEnvironment, "e14")
	assert.NotContains(t, s.Items.ByEnvironment, "e20")
}

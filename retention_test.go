package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Retention deletes only what is too old, and nothing that waits for delivery, however old.
func TestRetention(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.ReportsKeep, c.OccurrencesKeep = 10*24*time.Hour, 5*24*time.Hour })
	addReports(t, f.app.store, 9000)
	addOccurrences(t, f.app.store, 3000)
	f.exec(`UPDATE reports SET last_seen = last_seen - interval '20 days', first_seen = first_seen - interval '20 ` +
		`days' WHERE id <= 6000`)
	f.exec(`UPDATE seen SET last_seen = last_seen - interval '20 days' WHERE report_id BETWEEN 101 AND 6000`)
	f.exec(`INSERT INTO reports (uuid, state, first_seen, last_seen, data)
		SELECT 'u' || g, 'queued', now() - interval '90 days', now() - interval '90 days', '{}'
		FROM generate_series(1, 9) AS g`)
	other := f.newApp().startBackground(t.Context(), true)
	defer other()
	stop := f.app.startBackground(t.Context(), true) // retention runs without deliveries, too
	defer stop()
	count := func(what string) string { return f.rows(`SELECT count(*)::text FROM ` + what)[0] }
	require.Eventually(t, func() bool {
		return count("occurrences") == count("occurrences WHERE occurred_at > now() - interval '5 days'") &&
			count("reports") == "3034"
	}, waitLimit, waitTick)
	assert.Equal(t, "9", count("reports WHERE state = 'queued'"))
	assert.Equal(t, "25", count("reports WHERE id <= 100"), "those that were seen again")
	assert.Equal(t, count("reports WHERE id % 4 = 0 AND state <> 'queued'"), count("seen"))
	assert.InDelta(t, 5*24*6*0.98, atoi(count("occurrences")), 30)
	assert.NotContains(t, f.log.String(), "some of what is too old")
	assert.Contains(t, f.log.String(), "deleted expired rows")
}

// One connection holds the lock while another deletes, however few there may be.
func TestRetentionWithFewConnections(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) {
		c.ReportsKeep, c.DatabaseURL = 24*time.Hour, c.DatabaseURL+"&pool_max_conns=1"
	})
	require.Equal(t, 201, f.create(newUUID()).status)
	f.app.store.deliveries.Flush(t.Context())
	_, err := f.app.store.exec(t.Context(), `
		UPDATE reports
		SET last_seen = now() - interval '2 days', first_seen = now() - interval '2 days'`, nil)
	require.NoError(t, err)
	require.Eventually(t, func() bool { // other tests take turns with this one
		reports, _, err := f.app.store.expire(t.Context(), f.app.retention)
		return assert.NoError(t, err) && reports == 1
	}, waitLimit, waitTick)
}

func TestRetentionIsOff(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	addOccurrences(t, f.app.store, 100)
	f.app.expire(t.Context()) // returns at once
	assert.Equal(t, "100", f.rows(`SELECT count(*)::text FROM occurrences`)[0])
}

// One replica deletes at a time, and skips locked rows.
func TestRetentionTakesTurns(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	addOccurrences(t, f.app.store, 300)
	other, err := pgx.Connect(t.Context(), f.config.DatabaseURL)
	require.NoError(t, err)
	defer other.Close(t.Context())
	_, err = other.Exec(t.Context(), fmt.Sprintf(`BEGIN; SELECT pg_advisory_xact_lock(%d)`, retentionLock))
	require.NoError(t, err)
	_, deleted, err := f.app.store.expire(t.Context(), retention{occurrences: time.Nanosecond})
	require.NoError(t, err)
	require.Zero(t, deleted)
	_, err = other.Exec(t.Context(), `ROLLBACK; BEGIN; SELECT id FROM occurrences WHERE id = 30 FOR UPDATE`)
	require.NoError(t, err)
	_, deleted, err = f.app.store.expire(t.Context(), retention{occurrences: time.Nanosecond})
	require.NoError(t, err)
	assert.EqualValues(t, 299, deleted)
	assert.Equal(t, []string{"30"}, f.rows(`SELECT id::text FROM occurrences`))
}

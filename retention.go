// retention.go deletes what is older than REPORTS_KEEP and OCCURRENCES_KEEP.
package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// A retention says how long reports and archived occurrences are kept; 0 is for ever.
type retention struct{ reports, occurrences time.Duration }

// expire deletes old reports and occurrences, now and then about every hour, until the context ends.
func (app *App) expire(ctx context.Context) {
	for app.retention != (retention{}) {
		for name, kept := range map[string]struct {
			age   time.Duration
			table expiring
		}{"reports": {app.retention.reports, oldReports}, "occurrences": {app.retention.occurrences, oldOccurrences}} {
			if kept.age == 0 {
				continue
			}
			deleted, err := app.store.expire(ctx, kept.table, time.Now().Add(-kept.age))
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && !errors.Is(err, errOtherExpires):
				app.log.WarnContext(ctx, "retention is late", "table", name, "deleted", deleted, "error", err)
			case deleted > 0:
				app.log.InfoContext(ctx, "retention", "table", name, "deleted", deleted)
			}
		}
		if !sleep(ctx, 54*time.Minute+rand.N(12*time.Minute)) {
			return
		}
	}
}

// An expiring table says how its rows that are older than @before are found, and deleted some at a time.
type expiring struct {
	find   string // the first ids, which may be those above @above
	delete string // those of the @ids that are still older
}

const oldReport = `state <> 'queued' AND greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = r.id)) < @before`

var oldReports = expiring{
	find: `
		SELECT id
		FROM reports r
		WHERE id > @above
		AND id < (SELECT max(block) + 1 FROM blocks WHERE first_seen < @before) * 4096
		AND ` + oldReport + `
		ORDER BY id
		LIMIT 10000`,
	delete: `
		WITH deleted AS (
			DELETE FROM reports
			WHERE id IN (SELECT id FROM reports r WHERE id = ANY(@ids) AND ` + oldReport + ` FOR UPDATE SKIP LOCKED)
			RETURNING id
		), forgotten AS (
			DELETE FROM seen
			WHERE report_id IN (SELECT id FROM deleted)
		)
		SELECT count(*) FROM deleted`,
}

var oldOccurrences = expiring{
	find: `
		SELECT id
		FROM occurrences
		WHERE ` + occurredOn + ` <= (@before::timestamptz AT TIME ZONE 'UTC')::date
		AND occurred_at < @before
		ORDER BY ` + occurredOn + `, id
		LIMIT 10000`,
	delete: `
		WITH deleted AS (
			DELETE FROM occurrences
			WHERE id IN (SELECT id FROM occurrences WHERE id = ANY(@ids) AND occurred_at < @before FOR UPDATE SKIP LOCKED)
			RETURNING id
		)
		SELECT count(*) FROM deleted`,
}

// errOtherExpires ends an expiry while another replica is at it.
var errOtherExpires = errors.New("another replica is at it")

// retentionLock is the advisory lock under which old rows are deleted.
const retentionLock = schemaLock + 1

// expire deletes the rows of the table that are older than the time, and returns how many. Each batch is a
// transaction of its own, as large as takes a moment.
func (s *Store) expire(ctx context.Context, table expiring, before time.Time) (deleted int64, err error) {
	args := pgx.NamedArgs{"before": before, "above": int64(0)}
	batch := 20
	for {
		var ids []int64
		err := s.writeSlowly(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			rows, err := conn.Query(ctx, table.find, replan, args)
			if err == nil {
				ids, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			}
			return err
		})
		if err != nil || len(ids) == 0 {
			return deleted, err
		}
		args["above"] = ids[len(ids)-1]
		deletedBefore := deleted
		for len(ids) > 0 {
			n := min(batch, len(ids))
			args["ids"] = ids[:n]
			count, took, err := s.deleteOld(ctx, table, args)
			if err != nil {
				return deleted, err
			}
			deleted, ids = deleted+count, ids[n:]
			switch {
			case took > 40*time.Millisecond:
				batch = max(1, batch/2)
			case took < 20*time.Millisecond:
				batch = min(1000, batch*2)
			}
		}
		if deleted == deletedBefore { // others have locked them all
			return deleted, nil
		}
	}
}

// deleteOld deletes a batch, and returns how long its locks were held.
func (s *Store) deleteOld(ctx context.Context, table expiring, args pgx.NamedArgs) (count int64, took time.Duration, err error) {
	err = s.writeSlowly(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		began := time.Now()
		defer func() { took = time.Since(began) }()
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			var isMine bool
			err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, retentionLock).Scan(&isMine)
			if err == nil && !isMine {
				err = errOtherExpires
			}
			if err != nil {
				return err
			}
			return tx.QueryRow(ctx, table.delete, replan, args).Scan(&count)
		})
	})
	return count, took, err
}

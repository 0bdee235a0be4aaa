package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/async"
)

// A retention says how long reports and archived occurrences are kept; 0 means forever.
type retention struct{ reports, occurrences time.Duration }

// retentionLock is the advisory lock that the deleting replica holds.
const retentionLock = schemaLock + 1

// expire deletes what is too old: at once, and then about every hour until the context ends.
func (app *App) expire(ctx context.Context) {
	for app.retention != (retention{}) {
		reports, occurrences, err := app.store.expire(ctx, app.retention)
		if err != nil && ctx.Err() == nil {
			app.log.WarnContext(ctx, "some expired rows were not deleted", "error", err)
		}
		if reports+occurrences > 0 {
			app.log.InfoContext(ctx, "deleted expired rows", "reports", reports, "occurrences", occurrences)
		}
		if !async.Sleep(ctx, 54*time.Minute+rand.N(12*time.Minute)) {
			return
		}
	}
}

// expire deletes what is too old, unless another replica is already doing so. A transaction that does nothing else
// holds the advisory lock meanwhile.
func (s *Store) expire(ctx context.Context, keep retention) (reports, occurrences int64, err error) {
	err = s.writeSlowly(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			var isMyTurn bool
			err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, retentionLock).Scan(&isMyTurn)
			if err != nil || !isMyTurn {
				return err
			}
			var other error
			reports, err = s.expireTable(ctx, oldReports, keep.reports)
			occurrences, other = s.expireTable(ctx, oldOccurrences, keep.occurrences)
			return errors.Join(err, other)
		})
	})
	return reports, occurrences, err
}

// An expiring says how a table's rows from before @before are found and deleted.
type expiring struct {
	find   string // selects the first such ids, possibly only those above @above
	delete string // deletes those of the @ids that are still old
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
		SELECT id FROM deleted`,
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
		DELETE FROM occurrences
		WHERE id IN (SELECT id FROM occurrences WHERE id = ANY(@ids) AND occurred_at < @before FOR UPDATE SKIP LOCKED)`,
}

// expireTable deletes the rows of the table that are older than the age, unless that is 0. Batches are small, so that
// their locks are short. Rows that others have locked stay until the next time.
func (s *Store) expireTable(ctx context.Context, table expiring, age time.Duration) (deleted int64, err error) {
	args := pgx.NamedArgs{"before": time.Now().Add(-age), "above": int64(0)}
	for before := int64(-1); age > 0 && deleted > before; {
		before = deleted
		var ids []int64
		err := s.writeSlowly(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
			ids, err = queryIDs(ctx, conn, table.find, args)
			return err
		})
		if err != nil || len(ids) == 0 {
			return deleted, err
		}
		args["above"] = ids[len(ids)-1]
		for batch := range slices.Chunk(ids, 50) {
			args["ids"] = batch
			n, err := s.exec(ctx, table.delete, args)
			if err != nil {
				return deleted, err
			}
			deleted += n
		}
	}
	return deleted, nil
}

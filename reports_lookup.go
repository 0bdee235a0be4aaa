package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/async"
)

// lookupWaits are the waits before each lookup. Rollbar usually knows the item within 5 s.
var lookupWaits = []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second, time.Minute, 5 * time.Minute}

// findItems looks up the items of delivered occurrences, each when it is due, until the context ends.
func (app *App) findItems(ctx context.Context) {
	if app.rollbar.require(scopeRead) != nil {
		return
	}
	for async.Sleep(ctx, max(app.outbox.pace, app.rollbar.limits[scopeRead].throttle())) {
		found, err := async.Protect(func() (bool, error) { return app.findItem(ctx) })
		switch {
		case err != nil && ctx.Err() == nil:
			app.log.WarnContext(ctx, "the item of a delivered occurrence could not be looked up", "error", err)
			async.Sleep(ctx, 5*app.outbox.backoff)
		case !found:
			async.Sleep(ctx, app.outbox.backoff)
		}
	}
}

// findItem looks up the item of one delivered occurrence, and reports whether a lookup was due.
func (app *App) findItem(ctx context.Context) (found bool, err error) {
	var id int64
	var uuid string
	var lookups int
	err = app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			UPDATE reports
			SET lookups = lookups + 1, next_lookup = now() + (@waits::interval[])[least(lookups + 2, cardinality(@waits))]
			WHERE id = (
				SELECT id
				FROM reports
				WHERE next_lookup <= now() OR next_lookup > now() + @longest
				ORDER BY next_lookup
				LIMIT 1
				FOR UPDATE SKIP LOCKED
			)
			RETURNING id, uuid, lookups`,
			pgx.NamedArgs{"waits": lookupWaits, "longest": longestPause}).Scan(&id, &uuid, &lookups)
	})
	if err != nil { // none is due, or PostgreSQL is down, which the queue logs
		return false, nil
	}
	item, err := app.rollbar.Item(withCall(ctx, &Call{}), "uuid", uuid)
	switch {
	case err == nil, isKind(err, invalid), isKind(err, notFound) && lookups >= len(lookupWaits): // the item may stay unknown
		_, err = app.store.exec(ctx, `
			UPDATE reports
			SET item_id = coalesce(nullif(@item, 0::bigint), item_id), next_lookup = NULL
			WHERE id = @id`,
			pgx.NamedArgs{"id": id, "item": item.ID})
	case isKind(err, notFound):
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("occurrence %s: %w", uuid, err)
	}
	return true, err
}

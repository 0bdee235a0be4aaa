// reports_lookup.go asks Rollbar which items delivered occurrences became.
package main

import (
	"context"
	"errors"
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
	for sleep(ctx, app.outbox.pace) {
		found, err := async.Protect(func() (bool, error) { return app.findItem(ctx) })
		switch {
		case err != nil && ctx.Err() == nil:
			app.log.WarnContext(ctx, "the item of a delivered occurrence is not known yet", "error", err)
			sleep(ctx, 5*app.outbox.backoff)
		case !found:
			sleep(ctx, app.outbox.backoff)
		}
	}
}

// findItem looks up the item of one delivered occurrence, and reports whether a lookup was due.
func (app *App) findItem(ctx context.Context) (found bool, err error) {
	id, uuid, lookups, err := app.store.claimLookup(ctx)
	if err != nil || id == 0 { // the queue says that PostgreSQL is down
		return false, nil
	}
	item, err := app.rollbar.Item(withCall(ctx, &Call{}), "uuid", uuid)
	switch {
	case err == nil:
		err = app.store.endLookups(ctx, id, item.ID)
	case isKind(err, invalid), isKind(err, notFound) && lookups >= len(lookupWaits):
		err = app.store.endLookups(ctx, id, 0)
	case isKind(err, notFound):
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("occurrence %s: %w", uuid, err)
	}
	return true, err
}

// claimLookup returns a delivered occurrence whose lookup is due, and sets the time of the next one. The id
// is 0 if there is none.
func (s *Store) claimLookup(ctx context.Context) (id int64, uuid string, lookups int, err error) {
	err = s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			UPDATE reports
			SET lookups = lookups + 1, next_lookup = now() + (@waits::interval[])[least(lookups + 2, cardinality(@waits))]
			WHERE id = (
				SELECT id
				FROM reports
				WHERE next_lookup <= now()
				ORDER BY next_lookup
				LIMIT 1
				FOR UPDATE SKIP LOCKED
			)
			RETURNING id, uuid, lookups`,
			pgx.NamedArgs{"waits": lookupWaits}).Scan(&id, &uuid, &lookups)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", 0, nil
	}
	return id, uuid, lookups, err
}

// endLookups records which item a delivered occurrence became, or, with 0, that it stays unknown.
func (s *Store) endLookups(ctx context.Context, id, item int64) error {
	_, err := s.exec(ctx, `
		UPDATE reports
		SET item_id = nullif(@item, 0::bigint), next_lookup = NULL
		WHERE id = @id`,
		pgx.NamedArgs{"id": id, "item": item})
	return err
}

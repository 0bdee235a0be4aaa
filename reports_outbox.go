// reports_outbox.go is the outbox: created occurrences on their way to Rollbar. A process works on an entry
// while it holds the lease; the lease of a dead process runs out. Untried entries come first, the oldest
// at the head. An entry that fails moves behind them, to the time of its next attempt.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/datadog"
	"app/internal/rawjson"
)

// longestPause bounds leases and waits. One that ends later than that from now counts as over: PostgreSQL's
// clock was set back.
const longestPause = 5 * time.Minute

// An entry is a created occurrence: a report that is queued, delivered or rejected.
type entry struct {
	id           int64
	uuid         string
	data         json.RawMessage
	traceContext string    // of the request that created it, or ""
	attempts     int       // of the outbox, the current one included
	lease        time.Time // its end by PostgreSQL's clock
	until        time.Time // its end by ours, or somewhat earlier

	isNew   bool // false if the uuid was there before
	state   string
	refusal int // the status with which Rollbar refused a rejected one
	reason  string
}

// lease is how long a process may work on an entry before others do.
func (o *outbox) lease() time.Duration {
	return min(o.app.rollbar.timeout+2*retryLimit, longestPause)
}

// enqueue stores the occurrence as queued, with a lease for the caller, unless its uuid is there already.
// Concurrent calls share a statement and its commit.
func (o *outbox) enqueue(ctx context.Context, uuid string, data json.RawMessage) (*entry, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	e, err := o.entries.Do(ctx, &entry{uuid: uuid, data: rawjson.Storable(data), traceContext: datadog.SpanFrom(ctx).TraceContext()})
	if err != nil {
		return nil, fmt.Errorf("enqueue: %w", databaseError(err))
	}
	return e, nil
}

func (o *outbox) enqueueAll(ctx context.Context, entries []*entry) ([]*entry, error) {
	stored, missing := map[string]*entry{}, slices.Clone(entries)
	collect := func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*entry, error) {
			var e entry
			return &e, row.Scan(&e.uuid, &e.id, &e.isNew, &e.lease, &e.state, &e.refusal, &e.reason)
		})
		for _, e := range found {
			stored[e.uuid] = e
		}
		missing = slices.DeleteFunc(missing, func(e *entry) bool { return stored[e.uuid] != nil })
		return err
	}
	err := o.app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		for len(missing) > 0 { // again if one was deleted between the statements
			if err := collect(o.insert(ctx, conn, missing)); err != nil || len(missing) == 0 {
				return err
			}
			o.app.store.deliveries.Flush(ctx)
			if err := collect(acknowledge(ctx, conn, missing)); err != nil {
				return err
			}
		}
		return nil
	})
	results := make([]*entry, len(entries))
	for i, e := range entries {
		results[i] = stored[e.uuid]
	}
	return results, err
}

// insert inserts the entries whose uuids are new.
func (o *outbox) insert(ctx context.Context, conn *pgx.Conn, entries []*entry) pgx.Rows {
	n := len(entries)
	uuids, data, traces := make([]string, n), make([]json.RawMessage, n), make([]string, n)
	levels, environments, words := make([]*string, n), make([]*string, n), make([]string, n)
	for i, e := range entries {
		b := bucketOf(e.data)
		uuids[i], data[i], traces[i] = e.uuid, e.data, e.traceContext
		levels[i], environments[i], words[i] = b.level, b.environment, strings.Join(titleWords(occurrenceTitle(e.data)), " ")
	}
	rows, _ := conn.Query(ctx, `
		INSERT INTO reports (uuid, state, level, environment, words, data, leased_until, traceparent)
		SELECT uuid, 'queued', level, environment, string_to_array(words, ' '), data, now() + @lease, nullif(trace, '')
		FROM unnest(@uuids::text[], @levels::text[], @environments::text[], @words::text[], @data::json[], @traces::text[])
		AS e (uuid, level, environment, words, data, trace)
		ORDER BY uuid
		ON CONFLICT (uuid) WHERE uuid IS NOT NULL DO NOTHING
		RETURNING uuid, id, TRUE, leased_until, state, 0, ''`,
		pgx.NamedArgs{
			"uuids": uuids, "levels": levels, "environments": environments, "words": words,
			"data": data, "traces": traces, "lease": o.lease(),
		})
	return rows // with the error
}

// acknowledge notes of stored entries that a further request for the same uuid is told of them.
func acknowledge(ctx context.Context, conn *pgx.Conn, entries []*entry) pgx.Rows {
	var uuids []string
	for _, e := range entries {
		uuids = append(uuids, e.uuid)
	}
	rows, _ := conn.Query(ctx, `
		WITH locked AS (
			SELECT id
			FROM reports
			WHERE uuid = ANY(@uuids)
			ORDER BY id
			FOR UPDATE
		)
		UPDATE reports r
		SET acknowledged = TRUE
		FROM locked
		WHERE r.id = locked.id
		RETURNING r.uuid, r.id, FALSE, now(), r.state, coalesce(r.refusal, 0), coalesce(r.reason, '')`,
		pgx.NamedArgs{"uuids": uuids})
	return rows
}

// created answers a repeated request for the uuid.
func (e *entry) created() (Created, error) {
	if e.state != "rejected" {
		return Created{e.uuid, e.state}, nil
	}
	kind := unprocessable
	switch e.refusal {
	case invalid.status:
		kind = invalid
	case tooLarge.status:
		kind = tooLarge
	}
	f := fail(kind, "create %s: %s", e.uuid, e.reason)
	f.upstream = e.refusal
	return Created{}, f
}

// claim leases the next entry that is due, or the one with the id, due or not. It returns nil if there is
// none, or another process works on it.
func (o *outbox) claim(ctx context.Context, id int64) (*entry, error) {
	wanted := "(next_attempt <= now() OR next_attempt > now() + @longest)"
	if id != 0 {
		wanted = "id = @id"
	}
	var e entry
	err := o.app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		e.until = time.Now().Add(o.lease())
		return conn.QueryRow(ctx, `
			UPDATE reports
			SET leased_until = now() + @lease, attempts = attempts + 1
			WHERE id = (
				SELECT id
				FROM reports
				WHERE state = 'queued' AND (leased_until <= now() OR leased_until > now() + @longest) AND `+wanted+`
				ORDER BY next_attempt, id
				LIMIT 1
				FOR UPDATE SKIP LOCKED
			)
			RETURNING id, uuid, data, coalesce(traceparent, ''), attempts, leased_until`,
			pgx.NamedArgs{"id": id, "lease": o.lease(), "longest": longestPause}).
			Scan(&e.id, &e.uuid, &e.data, &e.traceContext, &e.attempts, &e.lease)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// queued returns the ids of the queued entries, in the order of their turns.
func (o *outbox) queued(ctx context.Context) (ids []int64, err error) {
	err = o.app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		rows, _ := conn.Query(ctx, `
			SELECT id
			FROM reports
			WHERE state = 'queued'
			ORDER BY next_attempt, id`)
		ids, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	return ids, err
}

// complete marks entries as delivered. If that fails or is lost with the process, the outbox delivers them
// again and Rollbar drops the duplicates; so the commit does not wait for the disk.
func (o *outbox) complete(ctx context.Context, ids []int64) ([]struct{}, error) {
	_, err := o.app.store.exec(ctx, `
		WITH relaxed AS MATERIALIZED (
			SELECT set_config('synchronous_commit', 'off', TRUE)
		), locked AS (
			SELECT id
			FROM reports
			WHERE id = ANY(@ids) AND state = 'queued' AND EXISTS (SELECT FROM relaxed)
			ORDER BY id
			FOR UPDATE
		)
		UPDATE reports r
		SET state = 'delivered', last_seen = now(), next_lookup = now() + @lookup
		FROM locked
		WHERE r.id = locked.id`,
		pgx.NamedArgs{"ids": ids, "lookup": lookupWaits[0]})
	if err != nil {
		o.app.log.WarnContext(ctx, "occurrences could not be marked as delivered", "reports", ids, "error", err)
		return nil, err
	}
	o.app.telemetry.Count("app.queue.delivered", float64(len(ids)))
	return make([]struct{}, len(ids)), nil
}

// reject marks an entry as refused by Rollbar for good, and why.
func (o *outbox) reject(ctx context.Context, e *entry, why error) {
	f := failureOf(why)
	o.mark(ctx, e, "rejected", `
		UPDATE reports
		SET state = 'rejected', refusal = @status, reason = @reason, last_seen = now()
		WHERE id = @id AND state = 'queued'`,
		pgx.NamedArgs{"status": f.kind.status, "reason": rawjson.StorableText(f.detail)})
}

// makeAvailable hands a new entry over to the outbox. It is due at once, by any clock.
func (o *outbox) makeAvailable(ctx context.Context, e *entry) {
	o.mark(ctx, e, "queued", `
		UPDATE reports
		SET leased_until = '-infinity'
		WHERE id = @id AND state = 'queued' AND leased_until = @lease`, pgx.NamedArgs{})
	o.notify()
}

// reschedule ends the lease of an entry that is to be tried again after the wait.
func (o *outbox) reschedule(ctx context.Context, e *entry, wait time.Duration) {
	o.mark(ctx, e, "rescheduled", `
		UPDATE reports
		SET leased_until = '-infinity', next_attempt = now() + @wait
		WHERE id = @id AND state = 'queued' AND leased_until = @lease`, pgx.NamedArgs{"wait": wait})
}

// discard deletes an entry, unless a further request for the same uuid was told meanwhile that it is queued.
func (o *outbox) discard(ctx context.Context, e *entry) {
	o.mark(ctx, e, "discarded", `
		DELETE FROM reports
		WHERE id = @id AND state = 'queued' AND NOT acknowledged`, pgx.NamedArgs{})
}

// mark records what became of an entry, even if the context has ended. If that fails, the lease runs out and
// the outbox tries the entry again.
func (o *outbox) mark(ctx context.Context, e *entry, what, sql string, args pgx.NamedArgs) {
	args["id"], args["lease"] = e.id, e.lease
	if _, err := o.app.store.exec(context.WithoutCancel(ctx), sql, args); err != nil {
		o.app.log.WarnContext(ctx, "occurrence could not be marked as "+what, "report", e.id, "error", err)
		return
	}
	o.app.telemetry.Count("app.queue."+what, 1)
}

// makeAllAvailable makes all waiting entries due, behind those that are due already. It takes small batches:
// a trigger runs for each row.
func (o *outbox) makeAllAvailable(ctx context.Context) error {
	const batch = 500
	for {
		rows, err := o.app.store.exec(ctx, `
			WITH locked AS (
				SELECT id
				FROM reports
				WHERE state = 'queued' AND next_attempt > now()
				ORDER BY id
				LIMIT @batch
				FOR UPDATE SKIP LOCKED
			)
			UPDATE reports r
			SET next_attempt = now()
			FROM locked
			WHERE r.id = locked.id`, pgx.NamedArgs{"batch": batch})
		if err != nil || rows < batch {
			return err
		}
	}
}

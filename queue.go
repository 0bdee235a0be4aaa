// queue.go records created occurrences and delivers those that Rollbar did not take at once. A
// report that is queued is worked on by whoever holds its lease; a lease that a dead process held
// runs out.
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
	"github.com/jackc/pgx/v5/pgconn"

	"app/internal/datadog"
	"app/internal/rawjson"
)

// A record is what PostgreSQL knows of an occurrence that is to be created.
type record struct {
	id      int64
	fresh   bool      // recorded just now; otherwise the uuid was there before
	lease   time.Time // of a fresh one ends then, by PostgreSQL's clock
	state   string    // queued, delivered or rejected
	refusal int       // the status with which Rollbar refused a rejected one
	reason  string
}

// A recording is an occurrence to record.
type recording struct {
	uuid  string
	data  json.RawMessage
	lease time.Duration
	place string // of the request's span
}

// record stores the occurrence as queued, leased to the caller, unless its uuid is there already.
// Those that come at the same time share a statement and its commit.
func (s *Store) record(ctx context.Context, uuid string, data json.RawMessage, lease time.Duration) (record, error) {
	r, err := s.recordings.do(ctx, recording{uuid, rawjson.Storable(data), lease, datadog.SpanFrom(ctx).TraceContext()})
	if err != nil {
		if hasCode(err, undefinedTable) {
			s.current.Store(false)
		}
		return record{}, fmt.Errorf("record: %w", databaseError(err))
	}
	return r, nil
}

func (s *Store) recordAll(ctx context.Context, recordings []recording) ([]record, error) {
	conn, err := s.writer(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	records := make(map[string]record, len(recordings))
	left := slices.Clone(recordings)
	note := func(rows pgx.Rows, err error) error {
		if err != nil {
			return err
		}
		var uuid string
		var r record
		_, err = pgx.ForEachRow(rows, []any{&uuid, &r.id, &r.fresh, &r.lease, &r.state, &r.refusal, &r.reason}, func() error {
			records[uuid] = r
			return nil
		})
		left = slices.DeleteFunc(left, func(r recording) bool { return records[r.uuid].id > 0 })
		return err
	}
	for len(left) > 0 { // once more if one was deleted between the statements
		if err := note(insertQueued(ctx, conn.Conn(), left)); err != nil {
			return nil, err
		}
		if len(left) == 0 {
			break
		}
		s.deliveries.flush(ctx)
		if err := note(acknowledge(ctx, conn.Conn(), left)); err != nil {
			return nil, err
		}
	}
	results := make([]record, len(recordings))
	for i, r := range recordings {
		results[i] = records[r.uuid]
	}
	return results, nil
}

// insertQueued inserts the recordings whose uuids are not there.
func insertQueued(ctx context.Context, conn *pgx.Conn, recordings []recording) (pgx.Rows, error) {
	n := len(recordings)
	uuids, data, places := make([]string, n), make([]json.RawMessage, n), make([]string, n)
	levels, environments, words := make([]*string, n), make([]*string, n), make([]string, n)
	for i, r := range recordings {
		f := facetsOf(r.data)
		uuids[i], data[i], places[i] = r.uuid, r.data, r.place
		levels[i], environments[i], words[i] = f.level, f.environment, strings.Join(titleWords(occurrenceTitle(r.data)), " ")
	}
	return conn.Query(ctx, `
		INSERT INTO reports (uuid, state, level, environment, words, data, leased_until, traceparent)
		SELECT uuid, 'queued', level, environment, string_to_array(words, ' '), data, now() + $7, nullif(place, '')
		FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::json[], $6::text[])
		AS i (uuid, level, environment, words, data, place)
		ORDER BY uuid
		ON CONFLICT (uuid) WHERE uuid IS NOT NULL DO NOTHING
		RETURNING uuid, id, TRUE, leased_until, state, 0, ''`,
		uuids, levels, environments, words, data, places, recordings[0].lease)
}

// acknowledge notes that who asked for the recordings is told that they are there.
func acknowledge(ctx context.Context, conn *pgx.Conn, recordings []recording) (pgx.Rows, error) {
	var uuids []string
	for _, r := range recordings {
		uuids = append(uuids, r.uuid)
	}
	return conn.Query(ctx, `
		UPDATE reports
		SET acknowledged = TRUE
		WHERE uuid = ANY($1)
		RETURNING uuid, id, FALSE, now(), state, coalesce(refusal, 0), coalesce(reason, '')`, uuids)
}

// answer is what a repeated request for the uuid gets.
func (r record) answer(uuid string) (Created, error) {
	if r.state != "rejected" {
		return Created{uuid, r.state}, nil
	}
	kind := unprocessable
	switch r.refusal {
	case invalid.status:
		kind = invalid
	case tooLarge.status:
		kind = tooLarge
	}
	f := fail(kind, "create %s: %s", uuid, r.reason)
	f.upstream = r.refusal
	return Created{}, f
}

// settle records what became of an occurrence. When that fails, the lease runs out and the queue
// goes on with it.
func (app *App) settle(ctx context.Context, id int64, what string, update func(context.Context) error) {
	if err := update(ctx); err != nil {
		app.log.WarnContext(ctx, "occurrence could not be marked as "+what, "report", id, "error", err)
		return
	}
	app.telemetry.Count("app.queue."+what, 1)
}

// reject records that Rollbar refused an occurrence for good, and why.
func (app *App) reject(ctx context.Context, id int64, why error) {
	app.settle(ctx, id, "rejected", func(ctx context.Context) error {
		return app.store.rejected(ctx, id, failureOf(why))
	})
}

// markDelivered records deliveries. Should this fail, or be lost with the process, the queue delivers
// once more, and Rollbar drops that.
func (app *App) markDelivered(ctx context.Context, ids []int64) ([]struct{}, error) {
	if err := app.store.delivered(ctx, ids); err != nil {
		app.log.WarnContext(ctx, "occurrences could not be marked as delivered", "reports", ids, "error", err)
		return nil, err
	}
	app.telemetry.Count("app.queue.delivered", float64(len(ids)))
	return make([]struct{}, len(ids)), nil
}

// delivered records deliveries. It does not wait until that is on the disk.
func (s *Store) delivered(ctx context.Context, ids []int64) error {
	conn, err := s.writer(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	_, err = conn.Exec(ctx, `
		WITH lax AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', TRUE))
		UPDATE reports r
		SET state = 'delivered', last_seen = now(), next_lookup = now() + $2
		WHERE r.id = ANY($1) AND r.state = 'queued' AND EXISTS (SELECT FROM lax)`,
		ids, lookupWaits[0])
	return databaseError(err)
}

func (s *Store) rejected(ctx context.Context, id int64, refusal *Failure) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE reports
		SET state = 'rejected', refusal = @status, reason = @reason, last_seen = now()
		WHERE id = @id AND state = 'queued'`,
		pgx.NamedArgs{"id": id, "status": refusal.kind.status, "reason": rawjson.StorableText(refusal.detail)})
	return databaseError(err)
}

// release leaves an occurrence to the queue, whose workers hear of it at once. Only for this is
// there a notification: one in every insert would serialise the commits.
func (s *Store) release(ctx context.Context, r record) error {
	_, err := s.pool.Exec(ctx, `
		WITH released AS (
			UPDATE reports
			SET leased_until = now(), next_attempt = now()
			WHERE id = @id AND state = 'queued' AND leased_until = @lease
		)
		SELECT pg_notify(@channel, '')`,
		pgx.NamedArgs{"id": r.id, "lease": r.lease, "channel": queueChannel})
	return databaseError(err)
}

// postpone ends the lease of an occurrence that is to be tried again after the wait, behind the others
// if it is held.
func (s *Store) postpone(ctx context.Context, q *queued, held bool, wait time.Duration) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE reports
		SET leased_until = now(), next_attempt = now() + @wait, held = held OR @held
		WHERE id = @id AND state = 'queued' AND leased_until = @lease`,
		pgx.NamedArgs{"id": q.ID, "lease": q.lease, "held": held, "wait": wait})
	return databaseError(err)
}

// retryHeld has those tried soon that wait for the right token: we may just have got it.
func (s *Store) retryHeld(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, _ = s.pool.Exec(ctx, `
		UPDATE reports
		SET next_attempt = now()
		WHERE state = 'queued' AND held`) // without success, their time comes
}

// forget deletes an occurrence that is refused, unless a request for the same uuid was told
// meanwhile that it is queued.
func (s *Store) forget(ctx context.Context, id int64) error {
	_, err := s.pool.Exec(ctx, `
		DELETE FROM reports
		WHERE id = @id AND state = 'queued' AND NOT acknowledged`,
		pgx.NamedArgs{"id": id})
	return databaseError(err)
}

// A queued is an occurrence that waits for delivery.
type queued struct {
	ID       int64
	UUID     string
	Data     json.RawMessage
	Attempts int    // this one included
	Parent   string // the place of the span of the request that queued it, or ""

	lease   time.Time // ends then, by PostgreSQL's clock
	until   time.Time // and, by ours, not before this
	claimed time.Time // by PostgreSQL's clock
}

// wanted says which queued occurrence is to be claimed: of those that are held or of the others, the
// oldest, or the newest of those that were tried least; whether only if its time to be tried again has come; and,
// if it was tried, before which time, unless that is zero.
type wanted struct {
	held, leastTried, dueOnly bool
	before                    time.Time
}

// claim leases the queued occurrence that is wanted, if nobody works on it. It returns nil where there
// is none.
func (s *Store) claim(ctx context.Context, w wanted, lease time.Duration) (*queued, error) {
	order := "id"
	if w.leastTried {
		order = "attempts, id DESC"
	}
	var before *time.Time
	if !w.before.IsZero() {
		before = &w.before
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout) // nobody else ends it when a server vanishes
	defer cancel()
	conn, err := s.writer(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	rows, err := conn.Query(ctx, `
		UPDATE reports
		SET leased_until = now() + @lease, attempts = attempts + 1
		WHERE id = (
			SELECT id
			FROM reports
			WHERE state = 'queued' AND held = @held AND leased_until <= now() AND (next_attempt <= now() OR NOT @due_only)
			AND (leased_until < @before OR attempts = 0 OR @before IS NULL)
			ORDER BY `+order+`
			LIMIT 1
			FOR NO KEY UPDATE SKIP LOCKED
		)
		RETURNING id, uuid, data, attempts, coalesce(traceparent, ''), leased_until, now()`,
		pgx.NamedArgs{"held": w.held, "before": before, "due_only": w.dueOnly, "lease": lease})
	if err != nil {
		return nil, databaseError(err)
	}
	claimed, err := pgx.CollectOneRow(rows, func(row pgx.CollectableRow) (q queued, err error) {
		return q, row.Scan(&q.ID, &q.UUID, &q.Data, &q.Attempts, &q.Parent, &q.lease, &q.claimed)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, databaseError(err)
	}
	return &claimed, nil
}

// nextDue says in how long the first queued occurrence may be tried, at most the limit.
func (s *Store) nextDue(ctx context.Context, limit time.Duration) time.Duration {
	return s.nextTime(ctx, limit, `
		SELECT min(due) - now()
		FROM (
			SELECT greatest(next_attempt, leased_until) AS due
			FROM reports
			WHERE state = 'queued'
			ORDER BY held, id
			LIMIT 1000
		) AS waiting`)
}

// nextLookup says in how long the item of a delivered occurrence may be asked for, at most the limit.
func (s *Store) nextLookup(ctx context.Context, limit time.Duration) time.Duration {
	return s.nextTime(ctx, limit, `SELECT min(next_lookup) - now() FROM reports WHERE next_lookup IS NOT NULL`)
}

func (s *Store) nextTime(ctx context.Context, limit time.Duration, sql string) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var wait *time.Duration
	if err := s.pool.QueryRow(ctx, sql).Scan(&wait); err != nil || wait == nil {
		return limit
	}
	return max(0, min(*wait, limit))
}

// queueChannel is where workers hear of new work.
const queueChannel = "app_queue"

// awaitWork returns when something was left to the queue or may have been, or with an error. It
// does not wait for long: a server that vanished does not close its connections, and only LISTEN
// gets a sign of life.
func awaitWork(ctx context.Context, conn *pgx.Conn) error {
	listening, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if _, err := conn.Exec(listening, "LISTEN "+queueChannel); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, longestIdle)
	defer cancel()
	_, err := conn.WaitForNotification(waiting)
	if pgconn.Timeout(err) && ctx.Err() == nil {
		return nil
	}
	return err
}

// claimLookup takes a delivered occurrence whose item is to be asked for, and sets the time for the
// next try. The id is 0 where there is none.
func (s *Store) claimLookup(ctx context.Context) (id int64, uuid string, lookups int, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, `
		UPDATE reports
		SET lookups = lookups + 1, next_lookup = now() + (@waits::interval[])[least(lookups + 2, cardinality(@waits))]
		WHERE id = (
			SELECT id
			FROM reports
			WHERE next_lookup <= now()
			ORDER BY next_lookup
			LIMIT 1
			FOR NO KEY UPDATE SKIP LOCKED
		)
		RETURNING id, uuid, lookups`,
		pgx.NamedArgs{"waits": lookupWaits}).Scan(&id, &uuid, &lookups)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", 0, nil
	}
	return id, uuid, lookups, databaseError(err)
}

// found records which item a delivered occurrence became, or, for 0, that nobody will ask again.
func (s *Store) found(ctx context.Context, id, item int64) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := s.pool.Exec(ctx, `
		UPDATE reports
		SET item_id = nullif(@item, 0::bigint), next_lookup = NULL
		WHERE id = @id`,
		pgx.NamedArgs{"id": id, "item": item})
	return databaseError(err)
}

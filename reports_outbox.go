package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"app/internal/datadog"
	"app/internal/rawjson"
)

// longestPause bounds leases and waits. A lease or wait that ends later than that from now counts as over, since
// PostgreSQL's clock must have been set back.
const longestPause = 5 * time.Minute

// An entry is a created occurrence: a report that is queued, delivered or rejected. A process works on it while it
// holds the lease; the lease of a dead process expires. Untried entries come first, oldest first, and then the
// entries that have failed, by the time of their next attempt.
type entry struct {
	id           int64
	uuid         string
	data         json.RawMessage
	traceContext string    // of the request that created it, or ""
	attempts     int       // by the outbox, including the current one
	leased       bool      // the caller sends the entry if it is new
	lease        time.Time // when the lease ends by PostgreSQL's clock
	until        time.Time // when it ends by our clock, or somewhat earlier
	others       bool      // other entries are due, too

	isNew   bool // false if the uuid was already stored
	refused bool // because the queue is full
	state   string
	refusal int // the status with which Rollbar refused a rejected entry
	reason  string
}

func (e *entry) key() string { return e.uuid }

// lease returns how long a process may work on an entry before others may take it.
func (o *outbox) lease() time.Duration { return min(o.app.rollbar.timeout+2*retryLimit, longestPause) }

// enqueue stores the occurrence as queued, unless its uuid is already stored. If leased is set, the caller gets a
// lease to send it; otherwise it needs room, and is due at once. Concurrent calls share a statement and its commit.
func (o *outbox) enqueue(ctx context.Context, uuid string, data json.RawMessage, leased bool) (*entry, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	e, err := o.entries.Do(ctx, &entry{
		uuid: uuid, data: rawjson.Storable(data), leased: leased, traceContext: datadog.SpanFrom(ctx).TraceContext(),
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("enqueue: %w", databaseError(err))
	case e.refused:
		return nil, o.full()
	}
	return e, nil
}

func (o *outbox) enqueueAll(ctx context.Context, entries []*entry) ([]*entry, error) {
	stored, missing := map[string]*entry{}, slices.Clone(entries)
	run := func(statement func(context.Context, *pgx.Conn, []*entry) pgx.Rows) error {
		return o.app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			found, err := pgx.CollectRows(statement(ctx, conn, missing), func(row pgx.CollectableRow) (*entry, error) {
				var e entry
				return &e, row.Scan(&e.uuid, &e.id, &e.isNew, &e.lease, &e.state, &e.refusal, &e.reason)
			})
			for _, e := range found {
				stored[e.uuid] = e
			}
			missing = slices.DeleteFunc(missing, func(e *entry) bool { return stored[e.uuid] != nil })
			return err
		})
	}
	room, err := o.room(ctx, len(missing))
	if err == nil && room < len(missing) { // entries that are already stored need no room
		err = run(acknowledge)
		missing = slices.DeleteFunc(missing, func(e *entry) bool {
			room--
			if room < 0 && !e.leased {
				stored[e.uuid] = &entry{refused: true}
			}
			return stored[e.uuid] != nil
		})
	}
	for err == nil && len(missing) > 0 { // a second time if one was deleted between the statements
		err = run(o.insert)
		if err == nil && len(missing) > 0 {
			o.app.store.deliveries.Flush(ctx) // not within run, since it needs a connection, too
			err = run(acknowledge)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range stored {
		if err == nil && e.isNew {
			o.length++
		}
	}
	return column(entries, func(e *entry) *entry { return stored[e.uuid] }), err
}

// insert inserts the entries whose uuids are new.
func (o *outbox) insert(ctx context.Context, conn *pgx.Conn, entries []*entry) pgx.Rows {
	buckets := column(entries, func(e *entry) bucket { return bucketOf(e.data) })
	rows, _ := conn.Query(ctx, `
		INSERT INTO reports (uuid, state, client, level, environment, words, data, leased_until, traceparent)
		SELECT uuid, 'queued', client, level, environment, string_to_array(words, ' '), data,
			CASE WHEN leased THEN now() + @lease ELSE '-infinity' END, nullif(trace, '')
		FROM unnest(@uuids::text[], @clients::boolean[], @levels::text[], @environments::text[], @words::text[], @data::json[],
			@leased::boolean[], @traces::text[])
		AS e (uuid, client, level, environment, words, data, leased, trace)
		ORDER BY uuid
		ON CONFLICT (uuid) WHERE uuid IS NOT NULL DO NOTHING
		RETURNING uuid, id, TRUE, greatest(leased_until, now()), state, 0, ''`,
		pgx.NamedArgs{
			"uuids":        column(entries, (*entry).key),
			"clients":      column(entries, func(e *entry) bool { return postScope(e.data) == scopePostClient }),
			"levels":       column(buckets, func(b bucket) pgtype.Text { return b.level }),
			"environments": column(buckets, func(b bucket) pgtype.Text { return b.environment }),
			"words":        column(entries, func(e *entry) string { return strings.Join(titleWords(occurrenceTitle(e.data)), " ") }),
			"data":         column(entries, func(e *entry) json.RawMessage { return e.data }),
			"leased":       column(entries, func(e *entry) bool { return e.leased }),
			"traces":       column(entries, func(e *entry) string { return e.traceContext }),
			"lease":        o.lease(),
		})
	return rows // with the error
}

// acknowledge returns stored entries, and marks them as reported to another request with the same uuid.
func acknowledge(ctx context.Context, conn *pgx.Conn, entries []*entry) pgx.Rows {
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
		pgx.NamedArgs{"uuids": column(entries, (*entry).key)})
	return rows
}

// rejection returns the failure with which Rollbar refused the entry, or nil.
func (e *entry) rejection() error {
	if e.state != "rejected" {
		return nil
	}
	return &Failure{kind: cmp.Or(refusals[e.refusal], unprocessable), detail: e.reason, upstream: e.refusal}
}

// room returns how many more occurrences may be queued. It counts the queue only if it has to: a recent estimate
// that leaves room for n is good enough.
func (o *outbox) room(ctx context.Context, n int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.app.queueLimit-o.length < n || time.Since(o.counted) > time.Second {
		o.app.store.deliveries.Flush(ctx) // they do not wait any more
		err := o.app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM reports WHERE state = 'queued' LIMIT @most) AS queued`,
				replan, pgx.NamedArgs{"most": o.app.queueLimit + 1}).Scan(&o.length)
		})
		o.counted = time.Now() // even if that failed: callers that queue up here must not retry it one by one
		if err != nil {
			return 0, err
		}
	}
	return o.app.queueLimit - o.length, nil
}

// isOver reports whether more occurrences are queued than the limit allows.
func (o *outbox) isOver(ctx context.Context) bool {
	room, err := o.room(ctx, 0)
	return err == nil && room < 0 // a queue that cannot be counted has room
}

// full returns the failure of an occurrence that was not queued.
func (o *outbox) full() *Failure {
	o.app.telemetry.Count("app.queue.dropped", 1)
	detail := fmt.Sprintf("the queue is full, with %d occurrences: QUEUE_LIMIT allows no more", o.app.queueLimit)
	return &Failure{kind: queueFull, detail: detail, wait: 10 * time.Second}
}

// claim leases the lane's next entry that is due, or the one with the id, due or not. It returns nil if there is none.
func (l *lane) claim(ctx context.Context, id int64) (*entry, error) {
	o, wanted := l.outbox, "(next_attempt <= now() OR next_attempt > now() + @longest)"
	if id != 0 {
		wanted = "id = @id"
	}
	wanted = "state = 'queued' AND client = @client AND (leased_until <= now() OR leased_until > now() + @longest) AND " + wanted
	var e entry
	err := o.app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		e.until = time.Now().Add(o.lease())
		return conn.QueryRow(ctx, `
			UPDATE reports
			SET leased_until = now() + @lease, attempts = attempts + 1
			WHERE id = (
				SELECT id
				FROM reports
				WHERE `+wanted+`
				ORDER BY next_attempt, id
				LIMIT 1
				FOR UPDATE SKIP LOCKED
			)
			RETURNING id, uuid, data, coalesce(traceparent, ''), attempts, leased_until,
				1 < (SELECT count(*) FROM (SELECT FROM reports WHERE `+wanted+` ORDER BY next_attempt, id LIMIT 2) AS due)`,
			pgx.NamedArgs{"id": id, "client": l.scope == scopePostClient, "lease": o.lease(), "longest": longestPause}).
			Scan(&e.id, &e.uuid, &e.data, &e.traceContext, &e.attempts, &e.lease, &e.others)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// queued returns the ids of the lane's entries in the order of delivery.
func (l *lane) queued(ctx context.Context) (ids []int64, err error) {
	err = l.outbox.app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		ids, err = queryIDs(ctx, conn, `
			SELECT id
			FROM reports
			WHERE state = 'queued' AND client = @client
			ORDER BY next_attempt, id`, pgx.NamedArgs{"client": l.scope == scopePostClient})
		return err
	})
	return ids, err
}

// complete marks entries as delivered. If that fails or is lost in a crash, the outbox delivers them again and
// Rollbar drops the duplicates, so the commit need not wait for the disk.
func (o *outbox) complete(ctx context.Context, ids []int64) ([]struct{}, error) {
	_, err := o.app.store.exec(ctx, `
		WITH relaxed AS MATERIALIZED (
			SELECT set_config('synchronous_commit', 'off', TRUE)
		), locked AS MATERIALIZED ( -- one by one, since PostgreSQL would otherwise scan everything that was queued lately
			SELECT r.id, r.state
			FROM (SELECT unnest(@ids::bigint[]) AS id FROM relaxed ORDER BY 1) AS i
			CROSS JOIN LATERAL (SELECT id, state FROM reports WHERE id = i.id LIMIT 1 FOR UPDATE) AS r
		)
		UPDATE reports r
		SET state = 'delivered', last_seen = now(), next_lookup = now() + @lookup
		FROM locked
		WHERE r.id = locked.id AND locked.state = 'queued'`,
		pgx.NamedArgs{"ids": ids, "lookup": lookupWaits[0]})
	if err != nil {
		o.app.log.WarnContext(ctx, "occurrences could not be marked as delivered", "reports", ids, "error", err)
		return nil, err
	}
	o.app.telemetry.Count("app.queue.delivered", float64(len(ids)))
	return make([]struct{}, len(ids)), nil
}

// reject records that Rollbar refused an entry for good, and why.
func (o *outbox) reject(ctx context.Context, e *entry, why error) {
	f := failureOf(why)
	o.mark(ctx, e, "rejected", `
		UPDATE reports
		SET state = 'rejected', refusal = @status, reason = @reason, last_seen = now()
		WHERE id = @id AND state = 'queued'`,
		pgx.NamedArgs{"status": f.kind.status, "reason": rawjson.StorableText(f.detail)})
}

// makeAvailable hands a new entry over to the outbox. The entry is due at once, by any clock.
func (l *lane) makeAvailable(ctx context.Context, e *entry) {
	l.outbox.endLease(ctx, e, "queued", "next_attempt", pgx.NamedArgs{})
	l.notify()
}

// reschedule ends the lease of an entry that is to be tried again after the wait.
func (o *outbox) reschedule(ctx context.Context, e *entry, wait time.Duration) {
	o.endLease(ctx, e, "rescheduled", "now() + @wait", pgx.NamedArgs{"wait": wait})
}

func (o *outbox) endLease(ctx context.Context, e *entry, what, next string, args pgx.NamedArgs) {
	o.mark(ctx, e, what, `
		UPDATE reports
		SET leased_until = '-infinity', next_attempt = `+next+`
		WHERE id = @id AND state = 'queued' AND leased_until = @lease`, args)
}

// discard deletes an entry, unless another request with the same uuid has been told meanwhile that it is queued.
func (o *outbox) discard(ctx context.Context, e *entry) {
	o.mark(ctx, e, "discarded", `
		DELETE FROM reports
		WHERE id = @id AND state = 'queued' AND NOT acknowledged`, pgx.NamedArgs{})
}

// mark records what became of an entry, even if the context has ended. If that fails, the lease expires and the
// outbox tries the entry again.
func (o *outbox) mark(ctx context.Context, e *entry, what, sql string, args pgx.NamedArgs) {
	args["id"], args["lease"] = e.id, e.lease
	if _, err := o.app.store.exec(context.WithoutCancel(ctx), sql, args); err != nil {
		o.app.log.WarnContext(ctx, "occurrence could not be marked as "+what, "report", e.id, "error", err)
		return
	}
	o.app.telemetry.Count("app.queue."+what, 1)
}

// makeAllAvailable makes all waiting entries of the lane due, after those that are already due. It works in small
// batches, since a trigger processes each row.
func (l *lane) makeAllAvailable(ctx context.Context) error {
	const batch = 500
	for {
		rows, err := l.outbox.app.store.exec(ctx, `
			WITH locked AS (
				SELECT id
				FROM reports
				WHERE state = 'queued' AND client = @client AND next_attempt > now()
				ORDER BY id
				LIMIT @batch
				FOR UPDATE SKIP LOCKED
			)
			UPDATE reports r
			SET next_attempt = now()
			FROM locked
			WHERE r.id = locked.id`, pgx.NamedArgs{"batch": batch, "client": l.scope == scopePostClient})
		if err != nil || rows < batch {
			return err
		}
	}
}

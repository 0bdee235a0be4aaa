package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// The metrics of the service's own work:
//
//	app.operations, app.operations.latency            operation, surface, outcome
//	app.rollbar.calls, app.rollbar.latency            method, status_class
//	app.rollbar.retries                               method
//	app.rollbar.rate_limit_remaining                  scope
//	app.queue.length, app.queue.oldest                (seconds)
//	app.queue.delivered, .rejected, .released, .postponed, .held, .forgotten
//	app.reports.stored, .updated, .unchanged          (stored: seen for the first time, changed, or created)
//	app.pool.acquired, .idle, .total, .max, .waited   (waited: requests that had to wait, since the start)

// countOperation counts one operation that ended. Its outcome is ok or the kind of its failure.
func countOperation(t *telemetry, operation, surface string, outcome failureKind, took time.Duration) {
	if !t.measuring() {
		return
	}
	if operation == "" {
		operation = "none"
	}
	tags := []string{"operation:" + operation, "surface:" + surface, "outcome:" + outcome.name}
	t.count("app.operations", 1, tags...)
	t.latency("app.operations.latency", took, tags...)
}

// startCommand begins the span of a subcommand. The function that it returns ends it and counts
// the operation.
func startCommand(ctx context.Context, t *telemetry, c *Command) (context.Context, func(value any, err error)) {
	began := time.Now()
	ctx, span := t.startSpan(ctx, "app.command", "custom", c.Route)
	span.set("operation", c.Name)
	return ctx, func(value any, err error) {
		kind := failureKind{name: "ok"}
		switch {
		case err != nil:
			kind = failureOf(err).onCommandLine().kind
		case outcomeOf(value) == outage:
			kind, err = unavailable, statusError(outage.status)
		}
		countOperation(t, c.Name, "cli", kind, time.Since(began))
		span.fail(err)
		span.finish()
	}
}

// countReports counts what became of items that were seen.
func countReports(t *telemetry, items int, changes tally) {
	t.count("app.reports.stored", float64(changes.reports))
	t.count("app.reports.updated", float64(changes.updated))
	t.count("app.reports.unchanged", float64(items-changes.reports-changes.updated))
}

// observePool sets the gauges of the connections to PostgreSQL. Services on one agent are told apart by
// their containers, not by a tag that is another one after each start.
func observePool(t *telemetry, pool *pgxpool.Pool) {
	stat := pool.Stat()
	t.gauge("app.pool.acquired", float64(stat.AcquiredConns()))
	t.gauge("app.pool.idle", float64(stat.IdleConns()))
	t.gauge("app.pool.total", float64(stat.TotalConns()))
	t.gauge("app.pool.max", float64(stat.MaxConns()))
	t.gauge("app.pool.waited", float64(stat.EmptyAcquireCount()))
}

// watch sets the gauges of a service, those of the queue every few seconds, until the context ends.
func (app *App) watch(ctx context.Context) {
	if !app.telemetry.measuring() {
		return
	}
	app.telemetry.observe(app.telemetry.observeRuntime)
	app.telemetry.observe(func() { observePool(app.telemetry, app.store.pool) })
	for {
		if length, oldest, err := app.store.queueLength(ctx); err == nil {
			app.telemetry.gauge("app.queue.length", length)
			app.telemetry.gauge("app.queue.oldest", oldest)
		}
		if !sleep(ctx, 5*time.Second) {
			return
		}
	}
}

// queueLength counts what is queued, and says for how many seconds the oldest is.
func (s *Store) queueLength(ctx context.Context) (length, oldest float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, `
		SELECT count(*), coalesce(extract(epoch FROM now() - min(first_seen)), 0)
		FROM reports
		WHERE state = 'queued'`).Scan(&length, &oldest)
	return length, oldest, err
}

package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"app/internal/datadog"
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
func countOperation(t *datadog.Client, operation, surface string, outcome failureKind, took time.Duration) {
	if !t.MetricsEnabled() {
		return
	}
	if operation == "" {
		operation = "none"
	}
	tags := []string{"operation:" + operation, "surface:" + surface, "outcome:" + outcome.name}
	t.Count("app.operations", 1, tags...)
	t.Latency("app.operations.latency", took, tags...)
}

// startCommand begins the span of a subcommand. The function that it returns ends it and counts
// the operation.
func startCommand(ctx context.Context, t *datadog.Client, c *Command) (context.Context, func(value any, err error)) {
	began := time.Now()
	ctx, span := t.StartSpan(ctx, "app.command", "custom", c.Route)
	span.SetTag("operation", c.Name)
	return ctx, func(value any, err error) {
		kind := failureKind{name: "ok"}
		switch {
		case err != nil:
			kind = failureOf(err).onCommandLine().kind
		case outcomeOf(value) == outage:
			kind, err = unavailable, datadog.StatusError(outage.status)
		}
		countOperation(t, c.Name, "cli", kind, time.Since(began))
		span.SetError(err)
		span.Finish()
	}
}

// countReports counts what became of items that were seen.
func countReports(t *datadog.Client, items int, stats historyStats) {
	t.Count("app.reports.stored", float64(stats.reports))
	t.Count("app.reports.updated", float64(stats.updated))
	t.Count("app.reports.unchanged", float64(items-stats.reports-stats.updated))
}

// observePool sets the gauges of the connections to PostgreSQL. Services on one agent are told apart by
// their containers, not by a tag that is another one after each start.
func observePool(t *datadog.Client, pool *pgxpool.Pool) {
	stat := pool.Stat()
	t.Gauge("app.pool.acquired", float64(stat.AcquiredConns()))
	t.Gauge("app.pool.idle", float64(stat.IdleConns()))
	t.Gauge("app.pool.total", float64(stat.TotalConns()))
	t.Gauge("app.pool.max", float64(stat.MaxConns()))
	t.Gauge("app.pool.waited", float64(stat.EmptyAcquireCount()))
}

// watch sets the gauges of a service, those of the queue every few seconds, until the context ends.
func (app *App) watch(ctx context.Context) {
	if !app.telemetry.MetricsEnabled() {
		return
	}
	app.telemetry.OnFlush(app.telemetry.ObserveRuntime)
	app.telemetry.OnFlush(func() { observePool(app.telemetry, app.store.pool) })
	for {
		if length, oldest, err := app.store.queueLength(ctx); err == nil {
			app.telemetry.Gauge("app.queue.length", length)
			app.telemetry.Gauge("app.queue.oldest", oldest)
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

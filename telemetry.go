package main

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"app/internal/datadog"
)

// The metrics of the service, with their tags. A latency is a distribution in milliseconds.
//
//	app.operations                       count  operation, surface (http, cli, mcp), outcome (ok or the kind of failure)
//	app.operations.latency               ms     the same
//	app.rollbar.calls                    count  method, status_class (2xx to 5xx; error without a response)
//	app.rollbar.latency                  ms     the same
//	app.rollbar.retries                  count  method
//	app.rollbar.rate_limit_remaining     gauge  scope
//	app.queue.length                     gauge  queued occurrences
//	app.queue.oldest                     gauge  age of the oldest one in seconds
//	app.queue.delivered                  count  occurrences that Rollbar accepted
//	app.queue.rejected                   count  occurrences that Rollbar refused for good
//	app.queue.limit                      gauge  how many may be queued
//	app.queue.queued                     count  new occurrences left to the queue: an SDK's, or Rollbar did not accept them at once
//	app.queue.rescheduled                count  occurrences kept in the queue after a failed delivery
//	app.queue.discarded                  count  new occurrences removed because Rollbar refused the token, or the queue is full
//	app.queue.dropped                    count  new occurrences that were refused because the queue is full
//	app.reports.stored                   count  reports that are new, or new states of a known item
//	app.reports.updated                  count  reports whose counters changed
//	app.reports.unchanged                count  reports seen again without a change
//	app.pool.acquired, .idle, .total     gauge  connections to PostgreSQL: in use, idle, both
//	app.pool.max                         gauge  limit of connections
//	app.pool.waited                      gauge  waits for a connection since the start
//	runtime.go.*                         gauge  the Go runtime, as on Datadog's dashboard for Go

// newLogHandler returns the handler of the service's log, which writes short text on a terminal and JSON
// for Datadog otherwise.
func newLogHandler(w io.Writer, terminal bool, config *Config) slog.Handler {
	if !terminal {
		return datadog.NewLogHandler(w, config.LogLevel, config.telemetry)
	}
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: config.LogLevel, ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
		attr = datadog.Shorten(attr)
		if len(groups) == 0 && attr.Key == slog.TimeKey && attr.Value.Kind() == slog.KindTime {
			attr.Value = slog.StringValue(attr.Value.Time().Format(time.TimeOnly))
		}
		return attr
	}})
}

// countOperation counts an operation that ended. The outcome is ok or the kind of its failure.
func countOperation(client *datadog.Client, operation, surface string, outcome failureKind, took time.Duration) {
	if !client.MetricsEnabled() {
		return
	}
	if operation == "" {
		operation = "none"
	}
	tags := []string{"operation:" + operation, "surface:" + surface, "outcome:" + outcome.name}
	client.Count("app.operations", 1, tags...)
	client.Latency("app.operations.latency", took, tags...)
}

// startCommand starts the span of a subcommand or a tool. The returned function ends the span and counts
// the operation.
func startCommand(ctx context.Context, client *datadog.Client, c *Command, surface string) (context.Context, func(value any, err error)) {
	began := time.Now()
	ctx, span := client.StartSpan(ctx, "app.command", "custom", c.Route)
	span.SetTag("operation", c.Name)
	return ctx, func(value any, err error) {
		kind := failureKind{name: "ok"}
		switch {
		case err != nil:
			kind = failureOf(err).onCommandLine().kind
		case outcomeOf(value) == outage:
			kind, err = unavailable, datadog.StatusError(outage.status)
		}
		countOperation(client, c.Name, surface, kind, time.Since(began))
		span.SetError(err)
		span.Finish()
	}
}

// countReports counts the reports that were stored, updated or left alone for so many items.
func countReports(client *datadog.Client, items, stored, updated int) {
	client.Count("app.reports.stored", float64(stored))
	client.Count("app.reports.updated", float64(updated))
	client.Count("app.reports.unchanged", float64(items-stored-updated))
}

// observePool sets the gauges of the connections to PostgreSQL. Datadog distinguishes services on the same
// agent by their containers; a tag per process would create new series with each start.
func observePool(client *datadog.Client, pool *pgxpool.Pool) {
	stat := pool.Stat()
	client.Gauge("app.pool.acquired", float64(stat.AcquiredConns()))
	client.Gauge("app.pool.idle", float64(stat.IdleConns()))
	client.Gauge("app.pool.total", float64(stat.TotalConns()))
	client.Gauge("app.pool.max", float64(stat.MaxConns()))
	client.Gauge("app.pool.waited", float64(stat.EmptyAcquireCount()))
}

// watch sets the gauges of a service until the context ends. It asks PostgreSQL for those of the queue only
// every few seconds.
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
			app.telemetry.Gauge("app.queue.limit", float64(app.queueLimit))
		}
		if !sleep(ctx, 5*time.Second) {
			return
		}
	}
}

// queueLength returns the number of queued occurrences and the age of the oldest one in seconds.
func (s *Store) queueLength(ctx context.Context) (length, oldest float64, err error) {
	err = s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			SELECT count(*), coalesce(extract(epoch FROM now() - min(first_seen)), 0)
			FROM reports
			WHERE state = 'queued'`).Scan(&length, &oldest)
	})
	return length, oldest, err
}

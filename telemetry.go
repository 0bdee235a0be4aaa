package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/async"
	"app/internal/datadog"
)

// newLogHandler returns the handler of the service's log, which writes short text on a terminal and JSON for
// Datadog otherwise.
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

// countOperation counts a finished operation. The outcome is ok or the kind of its failure. docs/datadog.md
// describes all metrics.
func countOperation(client *datadog.Client, operation, surface string, outcome failureKind, took time.Duration) {
	if client == nil {
		return
	}
	tags := []string{"operation:" + cmp.Or(operation, "none"), "surface:" + surface, "outcome:" + outcome.name}
	client.Count("app.operations", 1, tags...)
	client.Latency("app.operations.latency", took, tags...)
}

// startCommand starts the span of a subcommand or a tool. The returned function ends it and counts the operation.
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
		if kind != interrupted {
			span.SetError(err)
		}
		span.Finish()
	}
}

// watch sets the gauges of a service every few seconds until the context ends. Datadog distinguishes services on
// the same agent by their containers; a tag per process would create new series with each start.
func (app *App) watch(ctx context.Context) {
	if app.telemetry == nil {
		return
	}
	for again := true; again; again = async.Sleep(ctx, 5*time.Second) {
		app.telemetry.ObserveRuntime()
		stat := app.store.pool.Stat()
		app.telemetry.Gauge("app.pool.acquired", float64(stat.AcquiredConns()))
		app.telemetry.Gauge("app.pool.idle", float64(stat.IdleConns()))
		app.telemetry.Gauge("app.pool.total", float64(stat.TotalConns()))
		app.telemetry.Gauge("app.pool.max", float64(stat.MaxConns()))
		app.telemetry.Gauge("app.pool.waited", float64(stat.EmptyAcquireCount()))
		if length, oldest, err := app.store.queueLength(ctx); err == nil {
			app.telemetry.Gauge("app.queue.length", length)
			app.telemetry.Gauge("app.queue.oldest", oldest)
			app.telemetry.Gauge("app.queue.limit", float64(app.queueLimit))
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

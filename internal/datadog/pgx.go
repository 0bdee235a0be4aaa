package datadog

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A pgxTracer records queries, COPY FROM, and waits of at least a millisecond for a connection of a pool as spans. It
// ignores what happens outside of traces, such as polling for work: traces of it would be of no interest.
//
// Spans contain statements with their placeholders, never with arguments. The agent replaces literals, such as
// a limit, so that statements that differ only in them are one resource.
type pgxTracer struct {
	client *Client
	tags   []spanTag // of every span
	port   uint16
}

// PgxTracer returns a tracer for connections with the configuration, or nil if tracing is off.
func (c *Client) PgxTracer(config *pgx.ConnConfig) pgx.QueryTracer {
	if !c.tracing() {
		return nil
	}
	return &pgxTracer{client: c, tags: []spanTag{
		{"span.kind", "client"},
		{"component", "jackc/pgx.v5"},
		{"db.system", "postgresql"},
		{"db.name", config.Database},
		{"db.user", config.User},
		{"network.destination.name", config.Host},
	}, port: config.Port}
}

// start starts the span of an operation. Statements have the kind "sql", the only one in which the agent hides literals.
func (p *pgxTracer) start(ctx context.Context, name, kind, operation, resource string) context.Context {
	if SpanFrom(ctx) == nil {
		return ctx
	}
	ctx, s := p.client.StartSpan(ctx, name, kind, resource)
	s.tags = append(append(s.tags, p.tags...), spanTag{"db.operation", operation})
	s.SetMetric("network.destination.port", int64(p.port))
	return ctx
}

func (p *pgxTracer) end(ctx context.Context, tag pgconn.CommandTag, err error) {
	s := SpanFrom(ctx)
	s.SetMetric("db.result.rows_affected", tag.RowsAffected())
	if ctx.Err() != context.Canceled { // the caller's decision
		s.SetError(err)
	}
	s.Finish()
}

func (p *pgxTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return p.start(ctx, "pgx.query", "sql", "Query", data.SQL)
}

func (p *pgxTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	p.end(ctx, data.CommandTag, data.Err)
}

func (p *pgxTracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromStartData) context.Context {
	return p.start(ctx, "pgx.copy_from", "sql", "Copy From", "COPY "+data.TableName.Sanitize()+" FROM STDIN")
}

func (p *pgxTracer) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromEndData) {
	p.end(ctx, data.CommandTag, data.Err)
}

// acquireKey is the key of the time at which a wait began.
type acquireKey struct{}

func (p *pgxTracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return context.WithValue(ctx, acquireKey{}, time.Now())
}

func (p *pgxTracer) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	began := ctx.Value(acquireKey{}).(time.Time)
	if SpanFrom(ctx) == nil || data.Err == nil && time.Since(began) < time.Millisecond {
		return
	}
	s := SpanFrom(p.start(ctx, "pgx.pool.acquire", "db", "Acquire", "Acquire"))
	s.start = began
	s.SetError(data.Err)
	s.Finish()
}

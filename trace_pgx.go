package main

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A pgxTracer makes spans of what pgx does within a trace. What happens outside of any, such as
// asking again and again for work, would make traces of no interest and gets none.
//
// Statements are shown with their placeholders, never with arguments.
type pgxTracer struct {
	telemetry            *telemetry
	host, database, user string
	port                 uint16
}

var _ interface {
	pgx.QueryTracer
	pgx.BatchTracer
	pgx.CopyFromTracer
	pgx.PrepareTracer
	pgx.ConnectTracer
	pgxpool.AcquireTracer
} = (*pgxTracer)(nil)

// pgxTracer returns the tracer for connections made with the settings, or nil where tracing is off.
func (t *telemetry) pgxTracer(config *pgx.ConnConfig) pgx.QueryTracer {
	if !t.tracing() {
		return nil
	}
	return &pgxTracer{t, config.Host, config.Database, config.User, config.Port}
}

// start begins a span for an operation, of the statement if it has one.
func (p *pgxTracer) start(ctx context.Context, name, operation, statement string) context.Context {
	if spanOf(ctx) == nil {
		return ctx
	}
	statement = withoutLimits(statement)
	kind, resource := "sql", statement
	if statement == "" {
		kind, resource = "db", operation // with the type sql, the agent would read it as SQL
	}
	ctx, s := p.telemetry.startSpan(ctx, name, kind, resource)
	s.set("span.kind", "client")
	s.set("component", "jackc/pgx.v5")
	s.set("db.system", "postgresql")
	s.set("db.operation", operation)
	s.set("db.name", p.database)
	s.set("db.user", p.user)
	s.set("network.destination.name", p.host)
	s.setNumber("network.destination.port", float64(p.port))
	if statement != "" {
		s.set("db.statement", statement)
	}
	return ctx
}

// withoutLimits puts placeholders where a statement has its limits and offsets, which are written into
// it for PostgreSQL to plan with.
func withoutLimits(statement string) string {
	for _, word := range []string{"LIMIT ", "OFFSET "} {
		before, after, found := strings.Cut(statement, word)
		if !found {
			continue
		}
		bare := make([]byte, 0, len(statement))
		for found {
			bare = append(append(bare, before...), word...)
			if rest := strings.TrimLeft(after, "0123456789"); len(rest) < len(after) {
				bare, after = append(bare, '?'), rest
			}
			before, after, found = strings.Cut(after, word)
		}
		statement = string(append(bare, before...))
	}
	return statement
}

// end ends the span that start began. No rows are an answer, not a failure.
func (p *pgxTracer) end(ctx context.Context, err error) {
	s := spanOf(ctx)
	if !errors.Is(err, pgx.ErrNoRows) {
		s.fail(err)
	}
	s.finish()
}

func (p *pgxTracer) endRows(ctx context.Context, rows int64, err error) {
	spanOf(ctx).setNumber("db.result.rows_affected", float64(rows))
	p.end(ctx, err)
}

func (p *pgxTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return p.start(ctx, "pgx.query", "Query", data.SQL)
}

func (p *pgxTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	p.endRows(ctx, data.CommandTag.RowsAffected(), data.Err)
}

func (p *pgxTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	ctx = p.start(ctx, "pgx.batch", "Batch", "")
	spanOf(ctx).setNumber("db.batch.num_queries", float64(data.Batch.Len()))
	return ctx
}

func (p *pgxTracer) TraceBatchQuery(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	ctx = p.start(ctx, "pgx.batch.query", "Query", data.SQL)
	if s := spanOf(ctx); s != nil && !data.ReadStartTime.IsZero() {
		s.start = data.ReadStartTime
	}
	p.endRows(ctx, data.CommandTag.RowsAffected(), data.Err)
}

func (p *pgxTracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	p.end(ctx, data.Err)
}

func (p *pgxTracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromStartData) context.Context {
	return p.start(ctx, "pgx.copy_from", "Copy From", "COPY "+data.TableName.Sanitize()+" FROM STDIN")
}

func (p *pgxTracer) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromEndData) {
	p.endRows(ctx, data.CommandTag.RowsAffected(), data.Err)
}

func (p *pgxTracer) TracePrepareStart(ctx context.Context, _ *pgx.Conn, data pgx.TracePrepareStartData) context.Context {
	return p.start(ctx, "pgx.prepare", "Prepare", data.SQL)
}

func (p *pgxTracer) TracePrepareEnd(ctx context.Context, _ *pgx.Conn, data pgx.TracePrepareEndData) {
	p.end(ctx, data.Err)
}

func (p *pgxTracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return p.start(ctx, "pgx.connect", "Connect", "")
}

func (p *pgxTracer) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	p.end(ctx, data.Err)
}

func (p *pgxTracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return p.start(ctx, "pgx.pool.acquire", "Acquire", "")
}

func (p *pgxTracer) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, data pgxpool.TraceAcquireEndData) {
	p.end(ctx, data.Err)
}

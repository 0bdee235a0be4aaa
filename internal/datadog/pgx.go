package datadog

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A pgxTracer makes spans of what pgx does within a trace. What happens outside of any, such as
// asking again and again for work, would make traces of no interest and gets none.
//
// Statements are shown with their placeholders, never with arguments.
type pgxTracer struct {
	telemetry *Client
	tags      []spanTag // of every span
	port      uint16

	mu    sync.Mutex
	shown map[string]string // statements as spans show them
}

const maxShown = 500 // of which most are there for their limits' sake

var _ interface {
	pgx.QueryTracer
	pgx.BatchTracer
	pgx.CopyFromTracer
	pgx.PrepareTracer
	pgx.ConnectTracer
	pgxpool.AcquireTracer
} = (*pgxTracer)(nil)

// pgxTracer returns the tracer for connections made with the settings, or nil where tracing is off.
func (t *Client) PgxTracer(config *pgx.ConnConfig) pgx.QueryTracer {
	if !t.tracing() {
		return nil
	}
	return &pgxTracer{telemetry: t, tags: []spanTag{
		{"span.kind", "client"},
		{"component", "jackc/pgx.v5"},
		{"db.system", "postgresql"},
		{"db.name", config.Database},
		{"db.user", config.User},
		{"network.destination.name", config.Host},
	}, port: config.Port, shown: map[string]string{}}
}

// start begins a span for an operation, of the statement if it has one.
func (p *pgxTracer) start(ctx context.Context, name, operation, statement string) context.Context {
	if SpanFrom(ctx) == nil {
		return ctx
	}
	statement = p.show(statement)
	kind, resource := "sql", statement
	if statement == "" {
		kind, resource = "db", operation // with the type sql, the agent would read it as SQL
	}
	ctx, s := p.telemetry.StartSpan(ctx, name, kind, resource)
	s.tags = append(make([]spanTag, 0, len(p.tags)+2), p.tags...)
	s.SetTag("db.operation", operation)
	s.SetMetric("network.destination.port", float64(p.port))
	if statement != "" {
		s.SetTag("db.statement", statement)
	}
	return ctx
}

// show returns a statement as spans show it.
func (p *pgxTracer) show(statement string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	shown, known := p.shown[statement]
	if !known {
		shown = withoutLimits(statement)
		if !strings.Contains(shown, "--") { // behind which a line end means something
			shown = strings.Join(strings.Fields(shown), " ")
		}
		if len(p.shown) < maxShown {
			p.shown[statement] = shown
		}
	}
	return shown
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
	s := SpanFrom(ctx)
	if !errors.Is(err, pgx.ErrNoRows) {
		s.SetError(err)
	}
	s.Finish()
}

func (p *pgxTracer) endRows(ctx context.Context, rows int64, err error) {
	SpanFrom(ctx).SetMetric("db.result.rows_affected", float64(rows))
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
	SpanFrom(ctx).SetMetric("db.batch.num_queries", float64(data.Batch.Len()))
	return ctx
}

func (p *pgxTracer) TraceBatchQuery(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	ctx = p.start(ctx, "pgx.batch.query", "Query", data.SQL)
	if s := SpanFrom(ctx); s != nil && !data.ReadStartTime.IsZero() {
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

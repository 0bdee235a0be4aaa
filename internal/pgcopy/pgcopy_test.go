package pgcopy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/devpg/devpgtest"
	"app/internal/pgcopy"
)

// A thing is a row of the table things.
type thing struct {
	Number pgtype.Int8
	Text   pgtype.Text
	Time   time.Time
	Texts  []string
	Data   []byte
}

var columns = []string{"number", "text", "time", "texts", "data"}

func copyThings(ctx context.Context, conn *pgx.Conn, things []thing) error {
	return pgcopy.From(ctx, conn, "things", columns, len(things), func(i int, row pgcopy.Row) pgcopy.Row {
		t := things[i]
		return row.Int8(t.Number).Text(t.Text).Timestamptz(t.Time).TextArray(t.Texts).JSON(t.Data)
	})
}

func newThings(t *testing.T) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), devpgtest.Start(t, "").URL)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	_, err = conn.Exec(t.Context(), `
		CREATE TABLE things (
			id     bigint GENERATED ALWAYS AS IDENTITY,
			number bigint UNIQUE,
			text   text,
			time   timestamptz,
			texts  text[],
			data   json
		)`)
	require.NoError(t, err)
	return conn
}

func TestFrom(t *testing.T) {
	t.Parallel()
	conn := newThings(t)
	number := func(n int64) pgtype.Int8 { return pgtype.Int8{Int64: n, Valid: true} }
	text := func(s string) pgtype.Text { return pgtype.Text{String: s, Valid: true} }
	long := strings.Repeat("ü", 100_000) // more than one message of the protocol
	things := []thing{
		{number(1), text("1"), time.UnixMicro(1_800_000_000_123_456), []string{"a", "", `"{},\ü`}, []byte(`{"n":1.1}`)},
		{number(-1 << 63), text(""), time.UnixMicro(-1), []string{}, []byte(`[]`)},
		{pgtype.Int8{}, pgtype.Text{}, time.UnixMicro(0), []string{long, long}, []byte(`"` + long + `"`)},
	}
	for n := range int64(10_000) {
		things = append(things, thing{number(10 + n), text("many"), time.UnixMicro(n), []string{"word"}, []byte(`{}`)})
	}
	require.NoError(t, copyThings(t.Context(), conn, things))
	require.NoError(t, copyThings(t.Context(), conn, nil))

	var first string
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT texts[1] FROM things WHERE id = 1`).Scan(&first))
	assert.Equal(t, "a", first)
	rows, _ := conn.Query(t.Context(), `SELECT number, text, time, texts, data FROM things ORDER BY id`)
	got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (got thing, err error) {
		return got, row.Scan(&got.Number, &got.Text, &got.Time, &got.Texts, &got.Data)
	})
	require.NoError(t, err)
	assert.Equal(t, things, got)
}

// A failed copy inserts nothing, returns PostgreSQL's error and leaves the connection usable.
func TestFailedCopy(t *testing.T) {
	t.Parallel()
	conn := newThings(t)
	one := thing{Number: pgtype.Int8{Int64: 1, Valid: true}, Data: []byte(`{}`)}
	var pgErr *pgconn.PgError
	require.ErrorAs(t, copyThings(t.Context(), conn, []thing{one, one}), &pgErr)
	assert.Equal(t, "23505", pgErr.Code)
	require.ErrorAs(t, copyThings(t.Context(), conn, []thing{one, {Data: []byte(`{`)}}), &pgErr)
	assert.Equal(t, "22P02", pgErr.Code)

	require.NoError(t, copyThings(t.Context(), conn, []thing{one}))
	var count int
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM things`).Scan(&count))
	assert.Equal(t, 1, count)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, copyThings(ctx, conn, []thing{one}), context.Canceled)
}

// A tracer of the connection sees the copy.
func TestTracedCopy(t *testing.T) {
	t.Parallel()
	var tracer traced
	plain := newThings(t)
	config := plain.Config()
	config.Tracer = &tracer
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, copyThings(t.Context(), conn, []thing{{Data: []byte(`1`)}, {Data: []byte(`2`)}}))
	assert.Equal(t, pgx.TraceCopyFromStartData{TableName: pgx.Identifier{"things"}, ColumnNames: columns}, tracer.start)
	assert.EqualValues(t, 2, tracer.end.CommandTag.RowsAffected())
	require.Error(t, copyThings(t.Context(), conn, []thing{{}}))
	assert.Error(t, tracer.end.Err)
}

type traced struct {
	start pgx.TraceCopyFromStartData
	end   pgx.TraceCopyFromEndData
}

func (t *traced) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromStartData) context.Context {
	t.start = data
	return ctx
}

func (t *traced) TraceCopyFromEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceCopyFromEndData) {
	t.end = data
}

func (t *traced) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (t *traced) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

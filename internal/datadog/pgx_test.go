package datadog

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/devpg/devpgtest"
)

// tracedPool returns a pool of traced connections to a test database.
func tracedPool(t testing.TB, client *Client) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(devpgtest.Schema(t))
	require.NoError(t, err)
	config.ConnConfig.Tracer = client.PgxTracer(config.ConnConfig)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func TestSQLSpans(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	pool := tracedPool(t, client)
	_, err := pool.Exec(t.Context(), "CREATE TABLE things (id integer PRIMARY KEY, name text)")
	require.NoError(t, err)

	ctx, root := client.StartSpan(t.Context(), "app.command", "custom", "things")
	_, err = pool.Exec(ctx, "INSERT INTO things VALUES ($1, $2), (2, 'b')", 1, "secret")
	require.NoError(t, err)
	var name string
	err = pool.QueryRow(ctx, "SELECT name FROM things WHERE id = @id", pgx.NamedArgs{"id": 3}).Scan(&name)
	require.ErrorIs(t, err, pgx.ErrNoRows)
	_, err = pool.Exec(ctx, "SELECT 1 / $1::integer", 0)
	require.Error(t, err)
	_, err = pool.CopyFrom(ctx, pgx.Identifier{"things"}, []string{"id"}, pgx.CopyFromRows([][]any{{7}, {8}}))
	require.NoError(t, err)
	cancelled, cancel := context.WithCancel(ctx)
	time.AfterFunc(100*time.Millisecond, cancel)
	_, err = pool.Exec(cancelled, "SELECT pg_sleep(60)")
	require.ErrorIs(t, err, context.Canceled)
	root.Finish()

	type seen struct {
		name, kind, resource, operation, message string
		rows                                     float64
	}
	var got []seen
	for _, s := range datadogtest.Receive(t, agent.Traces) {
		assert.NotContains(t, fmt.Sprint(s), "secret")
		if s.Name == "app.command" || s.Name == "pgx.pool.acquire" {
			continue
		}
		got = append(got, seen{s.Name, s.Type, s.Resource, s.Meta["db.operation"], s.Meta["error.message"],
			s.Metrics["db.result.rows_affected"]})
		assert.Equal(t, "postgresql", s.Meta["db.system"])
		assert.Equal(t, "client", s.Meta["span.kind"])
		assert.Equal(t, pool.Config().ConnConfig.Database, s.Meta["db.name"])
		assert.Equal(t, pool.Config().ConnConfig.User, s.Meta["db.user"])
		assert.Equal(t, pool.Config().ConnConfig.Host, s.Meta["network.destination.name"])
		assert.EqualValues(t, pool.Config().ConnConfig.Port, s.Metrics["network.destination.port"])
		if s.Type == "sql" && s.Name != "pgx.copy_from" {
			assert.Equal(t, s.Resource, s.Meta["db.statement"])
		}
	}
	got = slices.DeleteFunc(got, func(s seen) bool { return s.name == "pgx.connect" })
	assert.Equal(t, []seen{
		{"pgx.query", "sql", "INSERT INTO things VALUES ($1, $2), (2, 'b')", "Query", "", 2},
		{"pgx.query", "sql", "SELECT name FROM things WHERE id = @id", "Query", "", 0},
		{"pgx.query", "sql", "SELECT 1 / $1::integer", "Query", "ERROR: invalid data (SQLSTATE 22012)", 0},
		{"pgx.copy_from", "sql", `COPY "things" FROM STDIN`, "Copy From", "", 2},
		{"pgx.query", "sql", "SELECT pg_sleep(60)", "Query", "", 0}, // to cancel is the caller's decision
	}, got)
}

func TestConnectionSpans(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	pool := tracedPool(t, client)
	ctx, root := client.StartSpan(t.Context(), "app.command", "custom", "things")
	_, err := pool.Exec(ctx, "SELECT $1::integer", 1)
	require.NoError(t, err)
	pool.Close()
	root.Finish()
	var names []string
	for _, s := range datadogtest.Receive(t, agent.Traces) {
		names = append(names, s.Name+" "+s.Type)
	}
	assert.Subset(t, names, []string{"pgx.pool.acquire db", "pgx.query sql"})
}

func TestSQLOutsideOfTraces(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	_, err := tracedPool(t, client).Exec(t.Context(), "SELECT 1")
	require.NoError(t, err)
	client.Close(time.Minute)
	assert.Empty(t, agent.Traces)
}

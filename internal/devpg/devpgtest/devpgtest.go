// Package devpgtest gives tests a PostgreSQL server of their own, or a schema of their own on the server
// that all tests of a package share.
package devpgtest

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/devpg"
)

// A Server is a private PostgreSQL that ends with the test.
type Server struct {
	*devpg.Server
	t testing.TB
}

// Start starts a private PostgreSQL that ends with the test. An empty dir means a throwaway server.
func Start(t testing.TB, dir string, settings ...string) *Server {
	t.Helper()
	p, err := devpg.Start(t.Context(), dir, settings...)
	require.NoError(t, err)
	return endWith(t, p)
}

// NeedPrograms returns the first directory with all of the named PostgreSQL programs, or else skips the test. A server
// in Docker is not enough.
func NeedPrograms(t testing.TB, names ...string) (bin string) {
	t.Helper()
	if bin = devpg.FindPrograms(names...); bin == "" {
		t.Skip("NOT TESTED: no directory has all of ", names)
	}
	return bin
}

// StartPair starts a primary and its synchronous standby, which end with the test. It skips the test
// if their programs are missing.
func StartPair(t testing.TB) (primary, standby *Server) {
	t.Helper()
	p, s, err := devpg.StartPair(t.Context(), NeedPrograms(t, "initdb", "pg_ctl", "postgres", "pg_basebackup"))
	require.NoError(t, err)
	return endWith(t, p), endWith(t, s)
}

func endWith(t testing.TB, p *devpg.Server) *Server {
	t.Cleanup(func() { assert.NoError(t, p.Stop()) })
	return &Server{p, t}
}

// Halt stops the server until Resume, and waits until nothing answers: cleanly in the mode "fast", as
// in a crash in the mode "immediate".
func (p *Server) Halt(mode string) {
	p.t.Helper()
	require.NoError(p.t, p.Server.Halt(mode))
	RequireGone(p.t, p.URL)
}

// Resume starts the server again, at the same URL and with the same data.
func (p *Server) Resume() {
	p.t.Helper()
	require.NoError(p.t, p.Server.Resume(p.t.Context()))
}

// RequireGone waits until no server answers at the URL.
func RequireGone(t testing.TB, url string) {
	t.Helper()
	require.Eventually(t, func() bool {
		conn, err := pgx.Connect(t.Context(), url)
		if err == nil {
			conn.Close(t.Context())
		}
		return err != nil
	}, time.Minute, 10*time.Millisecond)
}

// Query runs one statement and returns each row as text. It can also be called when the test has ended.
func Query(t testing.TB, url, sql string) []string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	defer conn.Close(ctx)
	rows, _ := conn.Query(ctx, sql) // CollectRows returns its error
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return values
}

// sharedServer is the server at TEST_DATABASE_URL, or else a private one that ends with the process.
var sharedServer = sync.OnceValues(func() (string, error) {
	if url := os.Getenv("TEST_DATABASE_URL"); url != "" {
		return url, nil
	}
	p, err := devpg.Start(context.Background(), "")
	if err != nil {
		return "", err
	}
	return p.URL, nil
})

// Schema returns the URL of a schema of the test's own on the shared server.
func Schema(t testing.TB) string {
	t.Helper()
	server, err := sharedServer()
	require.NoError(t, err)
	name := "test_" + strings.ToLower(rand.Text())
	Query(t, server, "CREATE SCHEMA "+name)
	if os.Getenv("TEST_DATABASE_URL") != "" {
		t.Cleanup(func() { Query(t, server, "DROP SCHEMA "+name+" CASCADE") })
	}
	separator := "?"
	if strings.Contains(server, "?") {
		separator = "&"
	}
	return server + separator + "search_path=" + name
}

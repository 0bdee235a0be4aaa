package main

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// startTestPostgres starts a private PostgreSQL that ends with the test.
func startTestPostgres(t *testing.T, dir string, settings ...string) *privatePostgres {
	t.Helper()
	p, err := startPostgres(t.Context(), dir, settings...)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Stop()) })
	return p
}

// halt ends the server until resume: "fast" in good order, "immediate" like a crash.
func (p *privatePostgres) halt(t *testing.T, mode string) {
	t.Helper()
	_, err := io.WriteString(p.orders, "stop "+mode+"\n")
	require.NoError(t, err)
	requireGone(t, p.URL())
}

// resume starts the server again, at the same URL and with the same data.
func (p *privatePostgres) resume(t *testing.T) {
	t.Helper()
	_, err := io.WriteString(p.orders, "start\n")
	require.NoError(t, err)
	require.NoError(t, p.awaitConnection(t.Context()))
}

// requireGone waits until no server answers at the URL.
func requireGone(t *testing.T, url string) {
	t.Helper()
	answers := func() bool {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			return false
		}
		conn.Close(t.Context())
		return true
	}
	require.Eventually(t, func() bool { return !answers() }, time.Minute, 10*time.Millisecond)
}

// inPostgres runs one statement and returns its rows, one value each.
func inPostgres(t *testing.T, url, sql string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	rows, _ := conn.Query(t.Context(), sql) // CollectRows returns its error
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return values
}

// haveLocalPostgres tells whether the server runs from binaries: what is said about directories
// and their data does not hold for a container.
func haveLocalPostgres(t *testing.T) bool {
	t.Helper()
	bin, err := findPostgres(t.Context(), postgresDirs(), "docker")
	require.NoError(t, err)
	return bin != ""
}

func TestPrivatePostgresKeepsItsData(t *testing.T) {
	t.Parallel()
	if !haveLocalPostgres(t) {
		return
	}
	tests := []struct {
		name string
		dir  string
	}{
		{name: "plain directory", dir: "dev"},
		{name: "name that does not fit into a socket's address", dir: strings.Repeat("long", 50)},
		{name: "name with characters that mean something", dir: `a, 'b' & "$c"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			require.NoError(t, os.Chmod(filepath.Dir(parent), 0o755))
			dir := filepath.Join(parent, test.dir)

			first := startTestPostgres(t, dir)
			inPostgres(t, first.URL(), "CREATE TABLE kept (id int)")
			require.NoError(t, first.Stop())
			requireGone(t, first.URL())

			second := startTestPostgres(t, dir)
			assert.Equal(t, []string{"kept"}, inPostgres(t, second.URL(), "SELECT 'kept'::regclass::text"))
		})
	}
}

// Root's temporary directories are closed to the user who runs the server.
func TestPrivatePostgresInClosedDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	t.Cleanup(func() {
		elsewhere, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
		assert.NoError(t, err)
		assert.NoError(t, os.RemoveAll(elsewhere))
	})

	p := startTestPostgres(t, dir)

	assert.Equal(t, []string{"on"}, inPostgres(t, p.URL(), "SHOW fsync"))
}

func TestPrivatePostgresSettings(t *testing.T) {
	t.Parallel()

	p := startTestPostgres(t, "", "max_connections=5")

	assert.Equal(t, []string{"5"}, inPostgres(t, p.URL(), "SHOW max_connections"))
	assert.Equal(t, []string{"off"}, inPostgres(t, p.URL(), "SHOW fsync"))
}

func TestPrivatePostgresGoesAwayAndReturns(t *testing.T) {
	t.Parallel()
	p := startTestPostgres(t, "")
	inPostgres(t, p.URL(), "CREATE TABLE kept (id int)")

	for _, mode := range []string{"fast", "immediate"} {
		p.halt(t, mode)
		p.resume(t)
		assert.Equal(t, []string{"kept"}, inPostgres(t, p.URL(), "SELECT 'kept'::regclass::text"), mode)
	}

	p.halt(t, "fast") // and can be stopped for good as well
}

func TestPrivatePostgresIsInUse(t *testing.T) {
	t.Parallel()
	if !haveLocalPostgres(t) {
		return
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	p := startTestPostgres(t, dir)
	pid, err := os.ReadFile(filepath.Join(p.home, "data", "postmaster.pid"))
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(pid), "\n")

	_, err = startPostgres(t.Context(), dir)

	assert.EqualError(t, err, p.home+" is in use: pg_ctl: server is running (PID: "+first+")")
	assert.Equal(t, []string{"1"}, inPostgres(t, p.URL(), "SELECT '1'"), "the first server goes on")
}

func TestPrivatePostgresTellsWhyItEnded(t *testing.T) {
	t.Parallel()
	if !haveLocalPostgres(t) {
		return
	}

	_, err := startPostgres(t.Context(), "", "max_connections=many")

	assert.ErrorContains(t, err, `invalid value for parameter "max_connections": "many"`)
}

// The test runs itself once more, as the parent that is killed.
func TestPrivatePostgresEndsWithItsParent(t *testing.T) {
	const asParent = "TEST_POSTGRES_PARENT"
	if os.Getenv(asParent) != "" {
		p := startTestPostgres(t, "")
		fmt.Printf("url %s\n", p.URL())
		io.Copy(io.Discard, os.Stdin)
		return
	}
	t.Parallel()
	parent := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	parent.Env = append(os.Environ(), asParent+"=1")
	stdin, err := parent.StdinPipe()
	require.NoError(t, err)
	defer stdin.Close()
	stdout, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	var address string
	for lines := bufio.NewScanner(stdout); address == "" && lines.Scan(); {
		address, _ = strings.CutPrefix(lines.Text(), "url ")
	}
	require.Equal(t, []string{"1"}, inPostgres(t, address, "SELECT '1'"))

	require.NoError(t, parent.Process.Kill())
	parent.Wait() // says that it was killed

	requireGone(t, address)
	location, err := url.Parse(address)
	require.NoError(t, err)
	if home := location.Query().Get("host"); home != "" {
		require.Eventually(t, func() bool {
			_, err := os.Stat(home)
			return os.IsNotExist(err)
		}, time.Minute, 10*time.Millisecond, "the data go too")
	}
}

func TestFindPostgres(t *testing.T) {
	t.Parallel()
	programs := func(names ...string) string {
		dir := t.TempDir()
		for _, name := range names {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755))
		}
		return dir
	}
	client, server := programs("psql", "pg_ctl"), programs("initdb", "pg_ctl", "postgres")
	tests := []struct {
		name   string
		dirs   []string
		docker string
		want   string
	}{
		{name: "programs beside those of a client", dirs: []string{client, server}, docker: "false", want: server},
		{name: "programs and a Docker engine", dirs: []string{server}, docker: "true", want: server},
		{name: "only a Docker engine", dirs: []string{client}, docker: "true", want: ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			bin, err := findPostgres(t.Context(), test.dirs, test.docker)
			require.NoError(t, err)
			assert.Equal(t, test.want, bin)
		})
	}

	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		_, err := findPostgres(t.Context(), []string{client}, "false")
		assert.EqualError(t, err, "no PostgreSQL on this machine: install it (apt install postgresql, "+
			"brew install postgresql), or start Docker, or set DATABASE_URL")
	})
}

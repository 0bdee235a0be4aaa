package devpg_test

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"app/internal/devpg"
	"app/internal/devpg/devpgtest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestKeepsItsData(t *testing.T) {
	t.Parallel()
	devpgtest.NeedPrograms(t, "initdb")
	tests := []struct {
		name string
		dir  string
	}{
		{name: "plain directory", dir: "dev"},
		{name: "name too long for a socket's address", dir: strings.Repeat("long", 50)},
		{name: "name with special characters", dir: `a, 'b' & "$c"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			require.NoError(t, os.Chmod(filepath.Dir(parent), 0o755))
			dir := filepath.Join(parent, test.dir)

			first := devpgtest.Start(t, dir)
			devpgtest.Query(t, first.URL, "CREATE TABLE kept (id int)")
			require.NoError(t, first.Stop())
			devpgtest.RequireGone(t, first.URL)

			second := devpgtest.Start(t, dir)
			assert.Equal(t, []string{"kept"}, devpgtest.Query(t, second.URL, "SELECT 'kept'::regclass::text"))
		})
	}
}

// Root's temporary directories are closed to the user who runs the server.
func TestInClosedDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	t.Cleanup(func() {
		elsewhere, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
		assert.NoError(t, err)
		assert.NoError(t, os.RemoveAll(elsewhere))
	})

	p := devpgtest.Start(t, dir)

	assert.Equal(t, []string{"on"}, devpgtest.Query(t, p.URL, "SHOW fsync"))
}

func TestSettings(t *testing.T) {
	t.Parallel()

	p := devpgtest.Start(t, "", "max_connections=5")

	assert.Equal(t, []string{"5"}, devpgtest.Query(t, p.URL, "SHOW max_connections"))
	assert.Equal(t, []string{"off"}, devpgtest.Query(t, p.URL, "SHOW fsync"))
}

func TestGoesAwayAndReturns(t *testing.T) {
	t.Parallel()
	p := devpgtest.Start(t, "")
	devpgtest.Query(t, p.URL, "CREATE TABLE kept (id int)")

	for _, mode := range []string{"fast", "immediate"} {
		p.Halt(mode)
		p.Resume()
		assert.Equal(t, []string{"kept"}, devpgtest.Query(t, p.URL, "SELECT 'kept'::regclass::text"), mode)
	}

	p.Halt("fast") // the end of the test stops a halted server
}

func TestIsInUse(t *testing.T) {
	t.Parallel()
	devpgtest.NeedPrograms(t, "initdb")
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	p := devpgtest.Start(t, dir)
	pid, err := os.ReadFile(filepath.Join(p.Home, "data", "postmaster.pid"))
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(pid), "\n")

	_, err = devpg.Start(t.Context(), dir)

	assert.EqualError(t, err, p.Home+" is in use: pg_ctl: server is running (PID: "+first+")")
	assert.Equal(t, []string{"1"}, devpgtest.Query(t, p.URL, "SELECT '1'"), "the first server keeps running")
}

func TestTellsWhyItEnded(t *testing.T) {
	t.Parallel()
	devpgtest.NeedPrograms(t, "initdb")

	_, err := devpg.Start(t.Context(), "", "max_connections=many")

	assert.ErrorContains(t, err, `invalid value for parameter "max_connections": "many"`)
}

// The test runs itself a second time, as the parent that is killed.
func TestEndsWithItsParent(t *testing.T) {
	const asParent = "TEST_POSTGRES_PARENT"
	if os.Getenv(asParent) != "" {
		p := devpgtest.Start(t, "")
		fmt.Printf("url %s\n", p.URL)
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
	require.Equal(t, []string{"1"}, devpgtest.Query(t, address, "SELECT '1'"))

	require.NoError(t, parent.Process.Kill())
	parent.Wait() // reports that it was killed

	devpgtest.RequireGone(t, address)
	location, err := url.Parse(address)
	require.NoError(t, err)
	if home := location.Query().Get("host"); home != "" {
		require.Eventually(t, func() bool {
			_, err := os.Stat(home)
			return os.IsNotExist(err)
		}, time.Minute, 10*time.Millisecond, "the data are removed, too")
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
		{name: "a client's programs before a server's", dirs: []string{client, server}, docker: "false", want: server},
		{name: "programs and a Docker engine", dirs: []string{server}, docker: "true", want: server},
		{name: "only a Docker engine", dirs: []string{client}, docker: "true", want: ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			bin, err := devpg.FindPostgres(t.Context(), test.dirs, test.docker)
			require.NoError(t, err)
			assert.Equal(t, test.want, bin)
		})
	}

	t.Run("nothing", func(t *testing.T) {
		t.Parallel()
		_, err := devpg.FindPostgres(t.Context(), []string{client}, "false")
		assert.EqualError(t, err, "no PostgreSQL on this machine: install it (apt install postgresql, "+
			"brew install postgresql), or start Docker, or give -database-url")
	})
}

// In Docker, too, a server finds its data again, with their password. A throwaway server's volume has no name.
// The engine is a script that logs its arguments and starts nothing.
func TestKeepsItsVolume(t *testing.T) {
	bin, noted := t.TempDir(), filepath.Join(t.TempDir(), "noted")
	script := "#!/bin/sh\n[ \"$1\" != run ] || { echo \"$POSTGRES_PASSWORD $*\" >>" + noted + "; exit 1; }\n" +
		"[ \"$1\" != start ]\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "docker"), []byte(script), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	kept := t.TempDir()
	for _, dir := range []string{kept, kept, t.TempDir(), ""} {
		_, err := devpg.StartContainer(t.Context(), dir)
		require.ErrorContains(t, err, "PostgreSQL in ")
	}
	text, err := os.ReadFile(noted)
	require.NoError(t, err)
	volume := regexp.MustCompile(`(?m)^(\S+) run .* -v (app-postgres-\w+:/var/lib/postgresql/data) `)
	runs := volume.FindAllStringSubmatch(string(text), -1)
	require.Len(t, runs, 3, "%s", text)
	assert.Equal(t, 4, strings.Count(string(text), "\n"))
	assert.Equal(t, runs[0][1:], runs[1][1:])
	assert.NotEqual(t, runs[0][1:], runs[2][1:])
}

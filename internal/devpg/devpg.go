// Package devpg starts a private PostgreSQL server, from the binaries found on the machine or in Docker, for
// development and tests.
//
// The server does not outlive the program, even if the program is killed: a shell between them stops the server
// when the shell's standard input ends, a pipe that only the program holds open.
package devpg

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Server is a running PostgreSQL server.
type Server struct {
	URL  string // for pgx and for psql
	Home string // the directory for data, log and socket

	credential *syscall.Credential // of the user who runs the server; nil for the current user
	remove     []string            // directories to remove at the end
	orders     io.WriteCloser      // the shell's standard input
	ended      chan struct{}       // closed when the shell has ended
	err        error               // how it ended
}

//go:embed server.sh
var script string

// Start starts a private PostgreSQL that keeps its data in dir/postgres, and returns once it accepts connections.
// An empty dir means a throwaway server: fast instead of durable, with room for many connections, its data
// removed at the end. Settings look like "max_connections=5", without spaces.
//
// The server comes from the binaries found on the machine, or else from a Docker image. A container keeps its data
// in a volume that a file in dir/postgres identifies.
func Start(ctx context.Context, dir string, settings ...string) (*Server, error) {
	bin, err := findPostgres(ctx, postgresDirs(), "docker")
	if err != nil {
		return nil, err
	}
	if dir == "" {
		settings = append([]string{"fsync=off", "full_page_writes=off", "synchronous_commit=off",
			"shared_buffers=16MB", "max_connections=200"}, settings...)
	}
	return start(ctx, bin, dir, settings)
}

// start starts a server from the programs in bin, or in Docker if bin is empty.
func start(ctx context.Context, bin, dir string, settings []string, env ...string) (p *Server, err error) {
	p = &Server{ended: make(chan struct{})}
	if bin != "" && os.Geteuid() == 0 {
		if p.credential, err = unprivilegedUser(); err != nil {
			return nil, err
		}
	}
	if err := p.makeHome(dir); err != nil {
		return nil, err
	}
	if bin == "" {
		return p, p.startContainer(ctx, settings)
	}
	return p, p.startLocal(ctx, bin, settings, env)
}

// Stop shuts the server down cleanly and waits for its end. It may be called again.
func (p *Server) Stop() error {
	p.orders.Close()
	<-p.ended
	return p.err
}

// firstWith returns the first of dirs that has all of the named programs, or "".
func firstWith(names, dirs []string) string {
	for _, dir := range dirs {
		lacks := func(name string) bool { _, err := exec.LookPath(filepath.Join(dir, name)); return err != nil }
		if !slices.ContainsFunc(names, lacks) {
			return dir
		}
	}
	return ""
}

// findPostgres returns the first of dirs with PostgreSQL's programs, or "" if only Docker is available.
func findPostgres(ctx context.Context, dirs []string, docker string) (bin string, err error) {
	if bin := firstWith([]string{"initdb", "pg_ctl", "postgres"}, dirs); bin != "" {
		return filepath.Abs(bin)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if exec.CommandContext(ctx, docker, "version").Run() != nil {
		return "", errors.New("no PostgreSQL on this machine: install it (apt install postgresql, " +
			"brew install postgresql), or start Docker, or give -database-url")
	}
	return "", nil
}

// postgresDirs returns the directories that may hold PostgreSQL's programs: on PATH, then of packages, newest first.
func postgresDirs() []string {
	var dirs []string
	if initdb, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(initdb))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/[1-9][0-9]/bin",
		"/usr/pgsql-[1-9][0-9]/bin",
		"/opt/homebrew/opt/postgresql@[1-9][0-9]/bin",
		"/usr/local/opt/postgresql@[1-9][0-9]/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		"/usr/local/pgsql/bin",
	} {
		found, _ := filepath.Glob(pattern) // the patterns are well-formed
		slices.Reverse(found)
		dirs = append(dirs, found...)
	}
	return dirs
}

// unprivilegedUser returns the user who runs the server when we are root, since PostgreSQL refuses to run as root.
func unprivilegedUser() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "_postgres", "nobody"} {
		if account, err := user.Lookup(name); err == nil {
			var credential syscall.Credential
			_, err = fmt.Sscan(account.Uid+" "+account.Gid, &credential.Uid, &credential.Gid)
			return &credential, err
		}
	}
	return nil, errors.New("PostgreSQL does not run as root: add a user postgres, or give -database-url")
}

// makeHome makes the directory dir/postgres, or a temporary one if dir is empty. If the server's user may not enter
// dir, as in a project under /root, dir/postgres is a link to a directory in /var/tmp.
func (p *Server) makeHome(dir string) (err error) {
	if dir == "" {
		p.Home, err = p.temporary()
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	home := filepath.Join(dir, "postgres")
	if p.Home, err = filepath.EvalSymlinks(home); err == nil {
		if !p.mayEnter(p.Home) {
			return fmt.Errorf("%s belongs to another user: remove it, or give -database-url", p.Home)
		}
		return nil
	}
	os.Remove(home) // a dangling link
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if p.mayEnter(dir) {
		p.Home, err = p.own(home, os.Mkdir(home, 0o700))
		return err
	}
	if p.Home, err = p.own(os.MkdirTemp("/var/tmp", "app-postgres-")); err != nil {
		return err
	}
	return os.Symlink(p.Home, home)
}

// temporary makes a directory that is removed at the end.
func (p *Server) temporary() (dir string, err error) {
	dir, err = p.own(os.MkdirTemp("/tmp", "app-postgres-"))
	p.remove = append(p.remove, dir)
	return dir, err
}

// own makes the server's user the owner of a new directory.
func (p *Server) own(dir string, err error) (string, error) {
	if err == nil && p.credential != nil {
		err = os.Chown(dir, int(p.credential.Uid), int(p.credential.Gid))
	}
	return dir, err
}

// mayEnter reports whether the server's user may enter dir.
func (p *Server) mayEnter(dir string) bool {
	return p.command(context.Background(), "test", "-x", dir).Run() == nil
}

// command prepares a program to run as the server's user, in Home once there is one. Its own process group shields
// it from Ctrl-C in the terminal: we stop the server when we no longer need it.
func (p *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = cmp.Or(p.Home, "/")
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: p.credential}
	return cmd
}

// plainPath matches directories without characters to escape in a URL or a setting. With at most 85 bytes, such a
// directory leaves room for the socket's name within the 103 bytes that macOS allows.
var plainPath = regexp.MustCompile(`^[\w/.-]+$`)

// startLocal starts a server from the programs in bin, on a Unix socket that only its user can reach.
func (p *Server) startLocal(ctx context.Context, bin string, settings, env []string) error {
	sockets, err := p.Home, p.awaitUnused(ctx, bin)
	if err == nil && (len(sockets) > 85 || !plainPath.MatchString(sockets)) {
		sockets, err = p.temporary()
	}
	if err != nil {
		return err
	}
	p.URL = "postgres://postgres@:5432/postgres?host=" + sockets
	settings = append(settings, "listen_addresses=", "unix_socket_directories="+sockets)
	return p.supervise(ctx, "local", settings, append(env, "BIN="+bin)...)
}

// awaitUnused waits up to two seconds for another server that uses the data to end, and fails if it does not.
func (p *Server) awaitUnused(ctx context.Context, bin string) error {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := p.command(ctx, filepath.Join(bin, "pg_ctl"), "status", "-D", "data").Output()
		if err != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			line, _, _ := strings.Cut(string(out), "\n")
			return fmt.Errorf("%s is in use: %s", p.Home, line) // "pg_ctl: server is running (PID: 42)"
		}
	}
}

// startContainer starts a server in Docker, on a free port of the loopback interface.
func (p *Server) startContainer(ctx context.Context, settings []string) error {
	const image = "postgres:17"
	if exec.CommandContext(ctx, "docker", "image", "inspect", image).Run() != nil {
		slog.InfoContext(ctx, "pulling a Docker image", "image", image)
		if out, err := exec.CommandContext(ctx, "docker", "pull", "--quiet", image).CombinedOutput(); err != nil {
			return fmt.Errorf("docker pull %s: %w: %s", image, err, out)
		}
	}
	// If Docker chose the port, the URL would change with a restart.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	listener.Close()
	address, secret, volume := listener.Addr().String(), rand.Text(), ""
	if len(p.remove) == 0 { // the data are kept, and so is the password that they were made with
		file := filepath.Join(p.Home, "volume")
		if kept, err := os.ReadFile(file); err == nil {
			secret = string(kept)
		} else if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
			return err
		}
		volume = "-v app-postgres-" + strings.ToLower(secret) + ":/var/lib/postgresql/data"
	}
	p.URL = fmt.Sprintf("postgres://postgres:%s@%s/postgres?sslmode=disable", secret, address)
	return p.supervise(ctx, "docker", settings, "IMAGE="+image, "ADDRESS="+address, "VOLUME="+volume,
		"NAME=app-postgres-"+strings.ToLower(rand.Text()), "POSTGRES_PASSWORD="+secret)
}

// supervise starts the script with one kind of server, and returns once the server accepts connections.
func (p *Server) supervise(ctx context.Context, kind string, settings []string, env ...string) (err error) {
	// The shell is not bound to ctx, which may end long before the server.
	shell := p.command(context.Background(), "/bin/sh", append([]string{"-c", script, "sh", kind}, p.remove...)...)
	shell.Env = append(append(shell.Env, "OPTIONS=-c "+strings.Join(append(settings, "port=5432"), " -c ")), env...)
	if p.orders, err = shell.StdinPipe(); err != nil {
		return err
	}
	go func() { // ends with the shell, for which Stop waits
		if out, err := shell.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("PostgreSQL in %s: %w:\n%s", p.Home, err, bytes.TrimSpace(out))
		}
		close(p.ended)
	}()
	return p.awaitConnection(ctx)
}

// awaitConnection waits until the server accepts connections, and fails if it ends first.
func (p *Server) awaitConnection(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, p.URL)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-p.ended:
			return p.err
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("connect to PostgreSQL: %w: %w", ctx.Err(), err), p.Stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

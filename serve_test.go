package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"app/internal/async"
	"app/internal/devpg/devpgtest"
	"app/internal/sandbox"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A process is a run of the real program.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
	url string // of the service

	mu       sync.Mutex
	out, err bytes.Buffer
}

func (p *process) stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err.String()
}

func (p *process) stdout() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// program prepares a run of the program in an empty folder, with nothing in its environment but PATH,
// HOME and env.
func program(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := testBinary()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir}, env...)
	return cmd
}

// startServe starts the service as a process on a port of its own and waits until it listens.
func startServe(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: program(t, env, append([]string{"serve", "-addr", "127.0.0.1:0"}, args...)...)}
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = writerFunc(func(text []byte) (int, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err.Write(text)
	})
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	listening := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var line struct{ Msg, Message, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Address != "" {
				listening <- line.Address
			}
			p.mu.Lock()
			p.out.Write(append(lines.Bytes(), '\n'))
			p.mu.Unlock()
		}
		close(listening)
	}()
	select {
	case address := <-listening:
		require.NotEmpty(t, address, "it ended: %s", p.stderr())
		p.url = "http://" + address
	case <-time.After(waitLimit):
		t.Fatal("it does not listen")
	}
	return p
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// wait waits for the process and returns its exit code, or -1 if a signal ended it.
func (p *process) wait() int {
	p.t.Helper()
	ended := make(chan struct{})
	go func() { p.cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(waitLimit):
		p.t.Fatal("it does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// env returns the fixture's settings as an environment.
func (f *fixture) env() []string {
	return []string{
		"DATABASE_URL=" + f.config.DatabaseURL, "ROLLBAR_URL=" + f.config.RollbarURL,
		"ROLLBAR_READ_TOKEN=" + f.config.readToken, "ROLLBAR_WRITE_TOKEN=" + f.config.writeToken,
		"ROLLBAR_POST_TOKEN=" + f.config.postToken, "ROLLBAR_TIMEOUT=" + f.config.RollbarTimeout.String(),
	}
}

// at points the fixture at a process.
func (f *fixture) at(p *process) *fixture {
	other := *f
	other.url = p.url
	return &other
}

// await waits until the sandbox has seen a request that starts with the text.
func (f *fixture) await(request string) {
	f.t.Helper()
	require.Eventually(f.t, func() bool {
		for _, r := range f.sandbox.Requests() {
			if strings.HasPrefix(r, request) {
				return true
			}
		}
		return false
	}, waitLimit, waitTick)
}

// On a signal, the service finishes running requests, refuses new ones, and exits with 0.
func TestServeEndsInGoodOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		p := startServe(t, f.env())
		f.sandbox.SetFault(sandbox.Slow)
		answers := make(chan int, 1)
		go func() {
			res, err := http.Get(p.url + "/items")
			if err != nil {
				answers <- 0
				return
			}
			res.Body.Close()
			answers <- res.StatusCode
		}()
		seen := len(f.sandbox.Requests())
		require.Eventually(t, func() bool { return len(f.sandbox.Requests()) > seen }, waitLimit, waitTick)
		require.NoError(t, p.cmd.Process.Signal(signal))
		require.Eventually(t, func() bool {
			_, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			return err != nil
		}, waitLimit, waitTick, "new requests are refused")
		f.sandbox.SetFault(sandbox.None)
		assert.Equal(t, 200, <-answers)
		assert.Equal(t, 0, p.wait())
	}
}

func TestServeEndsAtOnceOnTheSecondSignal(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	p := startServe(t, f.env())
	f.sandbox.SetFault(sandbox.Slow)
	go http.Get(p.url + "/items")
	f.await("GET /items")
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return strings.Contains(p.out.String(), "stopping")
	}, waitLimit, waitTick)
	go func() { // again and again: on a busy machine the next one can come before the program lets it through
		for p.cmd.Process.Signal(os.Interrupt) == nil && async.Sleep(t.Context(), waitTick) {
		}
	}()
	assert.Equal(t, -1, p.wait())
}

// `serve | head -1` keeps running after head has exited.
func TestServeWithoutAReaderOfItsLog(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	cmd := program(t, f.env(), "serve", "-addr", "127.0.0.1:0")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	require.NoError(t, err)
	require.NoError(t, stdout.Close())
	var listening struct{ Address string }
	require.NoError(t, json.Unmarshal(line, &listening))
	service := &fixture{t: t, url: "http://" + listening.Address}
	for range 5 {
		service.get("/nowhere").requireProblem(404, "not-found")
		time.Sleep(30 * time.Millisecond) // longer than lines are kept
	}
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.NoError(t, cmd.Wait())
}

func TestServeOnATakenPort(t *testing.T) {
	t.Parallel()
	taken := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(taken.Close)
	address := strings.TrimPrefix(taken.URL, "http://")
	got := runShell(t, "", "serve", "-sandbox", "-database-url", "postgres:///x", "-addr", address)
	assert.Equal(t, shell{3, "", fmt.Sprintf("app: cannot serve on ADDR: listen tcp %s: bind: address already in "+
		"use; free that address, or set ADDR to another one such as 127.0.0.1:8081\n", address)}, got)
}

// The service starts without PostgreSQL, as KO, and creates its tables once PostgreSQL answers.
func TestServeBeforePostgreSQL(t *testing.T) {
	t.Parallel()
	postgres := devpgtest.Start(t, "")
	f := newFixture(t, 3, func(c *Config) { c.DatabaseURL = postgres.URL })
	postgres.Halt("fast")
	f = f.at(startServe(t, f.env()))
	assert.Equal(t, `{"status":"KO"}`+"\n", f.get("/check").body)
	f.get("/reports").requireProblem(503, "unavailable")
	f.do("POST", "/items/sync", "").requireProblem(503, "unavailable")
	list := f.get("/items")
	assert.Equal(t, 200, list.status)
	assert.Equal(t, "false", list.header.Get("Report-Stored"))
	assert.Contains(t, f.run("items", "list", "-app-url", f.url).err, "the server's PostgreSQL does not answer")

	postgres.Resume()
	require.Eventually(t, func() bool { return f.get("/check").status == 200 }, waitLimit, waitTick)
	require.Eventually(t, func() bool {
		return f.rows(`SELECT (to_regclass('reports') IS NOT NULL)::text`)[0] == "true"
	}, waitLimit, waitTick)
	assert.Empty(t, f.get("/items").header.Get("Report-Stored"))
	assert.Len(t, f.get("/reports").list("reports"), 3)
}

// `serve -dev` works on an empty machine, and prints how a second shell reaches it. The environment's
// database is not touched.
func TestServeDev(t *testing.T) {
	t.Parallel()
	ambient := devpgtest.Schema(t)
	p := startServe(t, []string{"DATABASE_URL=" + ambient, "API_TOKEN=mine"}, "-dev")
	var exports []string
	require.Eventually(t, func() bool {
		exports = regexp.MustCompile(`[A-Z_]+=\S+`).FindAllString(p.stderr(), -1)
		return len(exports) == 2
	}, waitLimit, waitTick)
	assert.Equal(t, "APP_URL="+p.url, exports[0])
	for i, export := range exports {
		exports[i] = strings.ReplaceAll(export, "'", "")
	}
	f := &fixture{t: t, url: p.url}
	overHTTP := f.do("GET", "/items?limit=5", "", "Authorization",
		"Bearer "+strings.TrimPrefix(exports[1], "API_TOKEN="))
	require.Equal(t, 200, overHTTP.status, overHTTP.body)
	assert.Equal(t, []string{"true"}, devpgtest.Query(t, ambient, `SELECT (to_regclass('reports') IS NULL)::text`))
	out, err := program(t, exports, "items", "list", "-limit", "5").Output()
	require.NoError(t, err)
	assert.Equal(t, overHTTP.body, string(out))
	out, err = program(t, exports, "reports", "list", "-o", "ndjson").Output()
	require.NoError(t, err)
	assert.Equal(t, 5, bytes.Count(out, []byte("\n")))
	lines := regexp.MustCompile(`(?m)^curl .*`).FindAllString(p.stderr(), -1)
	require.Len(t, lines, 2)
	for _, line := range lines {
		out, err := exec.Command("sh", "-c", "curl() { exec curl -sS \"$@\"; }\n"+line).CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Regexp(t, `^({"err":0,"result":{"id":null,"uuid":"[^"]+"}}|{"stored":true})\n$`, string(out), line)
	}
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	assert.Equal(t, 0, p.wait(), p.stderr())
}

// Another database is used only if the flag names it, and is printed.
func TestServeDevOnAnotherDatabase(t *testing.T) {
	t.Parallel()
	chosen := devpgtest.Schema(t)
	p := startServe(t, []string{"DATABASE_URL=postgres://app:hunter2@127.0.0.1:1/other"}, "-dev", "-database-url",
		chosen)
	service := &fixture{t: t, url: p.url}
	require.Equal(t, 200, service.get("/items?limit=5").status)
	assert.Equal(t, []string{"5"}, devpgtest.Query(t, chosen, `SELECT count(*)::text FROM reports`))
	assert.Regexp(t, `^using the database \w+ at \S+ of -database-url …\n`, p.stderr())
	assert.NotContains(t, p.stderr(), "hunter2")
}

// An error is one line on standard error, and standard output stays empty.
func TestBinary(t *testing.T) {
	t.Parallel()
	out, err := program(t, nil, "version").Output()
	require.NoError(t, err)
	assert.Equal(t, 1, bytes.Count(out, []byte("\n")))

	cmd := program(t, nil, "items", "list")
	require.NoError(t, os.WriteFile(cmd.Dir+"/.env", []byte("\nROLLBAR_TIMEOUT=hunter2\n"), 0o600))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	assert.Error(t, cmd.Run())
	assert.Equal(t, 3, cmd.ProcessState.ExitCode())
	assert.Empty(t, stdout.String())
	assert.Equal(t, "app: line 2 of .env: ROLLBAR_TIMEOUT must be a duration such as 10s or 1m30s\n", stderr.String())
}

// An interrupted subcommand exits with 130.
func TestInterruptedSubcommand(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.sandbox.SetFault(sandbox.Slow)
	cmd := program(t, f.env(), "items", "list")
	require.NoError(t, cmd.Start())
	f.await("GET /items")
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	cmd.Wait()
	assert.Equal(t, 130, cmd.ProcessState.ExitCode())

	cmd = program(t, f.env(), "items", "create", "-data", "-")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = stdin.Write(bytes.Repeat([]byte{' '}, 256<<10)) // more than a pipe holds: it is reading, and waits
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	cmd.Wait()
	assert.Equal(t, 130, cmd.ProcessState.ExitCode())
}

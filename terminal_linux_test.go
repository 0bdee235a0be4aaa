package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/sandbox"
	"app/internal/terminal"
)

// A pseudoTerminal is a terminal whose screen a test reads and whose keys it presses, opened as on Linux.
type pseudoTerminal struct {
	keys, stream *os.File // the test's side and the program's

	mu    sync.Mutex
	shown strings.Builder
}

func newTerminal(t *testing.T) *pseudoTerminal {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { keys.Close() })
	var number, locked uint32
	for request, value := range map[uintptr]*uint32{0x40045431: &locked, 0x80045430: &number} { // TIOCSPTLCK, TIOCGPTN
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, keys.Fd(), request, uintptr(unsafe.Pointer(value)))
		require.Zero(t, errno)
	}
	stream, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { stream.Close() })
	term := &pseudoTerminal{keys: keys, stream: stream}
	go io.Copy(writerFunc(func(p []byte) (int, error) {
		term.mu.Lock()
		defer term.mu.Unlock()
		return term.shown.Write(p)
	}), keys)
	return term
}

// screen returns what was shown so far.
func (term *pseudoTerminal) screen() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.shown.String()
}

// await waits until the text is shown.
func (term *pseudoTerminal) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(term.screen(), text) }, waitLimit, waitTick,
		"%q is not shown", text)
}

// The question before a deletion says what will be deleted. Ctrl-C is an answer, too.
func TestQuestions(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 6)
	f.sandbox.SetItem(f.sandbox.ItemIDs()[4], "title", "out of \x1b[31m paper")
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	const question = `all occurrences of item %d, "out of  [31m paper" (21 so far), from Rollbar?`
	item := fmt.Sprintf(question, f.sandbox.ItemIDs()[4])
	database := "-database-url=" + f.config.DatabaseURL
	for _, tt := range []struct{ args, want string }{
		{"items delete 5 -by counter", item},
		{"items delete 5 -by counter -app-url " + f.url, item},
		{"items delete 999", "app: item with the id 999: Rollbar answered 404"},
		{"reports clean", "Permanently delete 6 reports (all but queued ones)?"},
		{"reports clean -state current -before 2001-01-01", "0 reports (-before 2001-01-01 -state current)?"},
		{"reports clean -state current -app-url " + f.url, "Permanently delete the reports (-state current)?"},
	} {
		for answer, end := range map[string]string{"n\n": "not confirmed, so nothing was done",
			"": "app: interrupted\r\n"} {
			ctx, interrupt := context.WithCancel(t.Context())
			term := newTerminal(t)
			ended := make(chan int)
			go func() {
				args := append([]string{"-rollbar-url=" + f.config.RollbarURL,
					"-rollbar-read-token=" + sandbox.ReadToken,
					"-rollbar-write-token=" + sandbox.WriteToken, database}, strings.Fields(tt.args)...)
				ended <- run(ctx, args, console{term.stream, io.Discard, term.stream, ""})
			}()
			term.await(t, tt.want)
			if strings.HasPrefix(tt.want, "app:") {
				assert.Equal(t, 4, <-ended)
				interrupt()
				continue
			}
			term.await(t, "? [y/N] ")
			if answer == "" {
				interrupt()
				assert.Equal(t, 130, <-ended)
			} else {
				_, err := io.WriteString(term.keys, answer)
				require.NoError(t, err)
				assert.Equal(t, 2, <-ended)
			}
			term.await(t, end)
			interrupt()
		}
	}
	assert.NotContains(t, fmt.Sprint(f.sandbox.Requests()), "DELETE")

	_, err := f.app.store.archive(t.Context(), []Occurrence{
		occurrenceWith(t, 1, 5, 1, ""), occurrenceWith(t, 2, 6, 1, ""),
	})
	require.NoError(t, err)
	term := newTerminal(t)
	_, err = io.WriteString(term.keys, "Yes\n")
	require.NoError(t, err)
	args := []string{database, "occurrences", "clean", "-item-id", "5"}
	assert.Zero(t, run(t.Context(), args, console{term.stream, io.Discard, term.stream, ""}))
	term.await(t, "Permanently delete 1 archived occurrences (-item-id 5)? [y/N] ")
	assert.Equal(t, []string{"2"}, f.rows(`SELECT id::text FROM occurrences`))
}

// A terminal gets no foreign control and bidi characters: JSON escapes them, and all else has blanks.
// A pipe gets the original bytes.
func TestControlCharactersOnTerminal(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2)
	id := f.sandbox.ItemIDs()[1]
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, "x\x1b[31m\u202ey")
	}))
	defer stranger.Close()
	const evil = "a\u009bb\u202ec\x7fd"
	f.sandbox.SetItem(id, "title", evil)
	f.sandbox.SetItem(id, "na\u202eme", "x")
	get := fmt.Sprintf("items get %d -app-url %s -o ", id, f.url)
	assert.Contains(t, runShell(t, "", strings.Fields(get+"json")...).out, evil)
	for args, want := range map[string]string{
		get + "json":                             `"title":"a\u009bb\u202ec\u007fd"`,
		get + "table":                            "a b c d",
		"items list -o ndjson -app-url " + f.url: `"title":"a\u009bb\u202ec\u007fd"`,
		"which -app-url " + stranger.URL:         "x [31m y",
		"items create -data no\u202efile":        "open no file",
		"items create -o json -data no\u202ef":   `open no\u202ef`,
	} {
		term := newTerminal(t)
		run(t.Context(), strings.Fields(args), console{term.stream, term.stream, term.stream, ""})
		term.await(t, want)
		assert.NotContains(t, term.screen(), "\u202e", args)
		assert.NotContains(t, term.screen(), "\u009b", args)
	}
}

// resize sets the terminal's width.
func (term *pseudoTerminal) resize(t *testing.T, columns uint16) {
	t.Helper()
	size := [4]uint16{50, columns}
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, term.keys.Fd(), syscall.TIOCSWINSZ,
		uintptr(unsafe.Pointer(&size)))
	require.Zero(t, errno)
}

var escapes = regexp.MustCompile(`\x1b\[\d*[mK]`)

// A table fits the terminal and has colours, whatever NO_COLOR and TERM are outside of the test.
func TestTablesOnTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "") // restores the variable after the test
	os.Unsetenv("NO_COLOR")
	f := newFixture(t, 12)
	for i, id := range f.sandbox.ItemIDs() {
		f.sandbox.SetItem(id, "title", strings.Repeat("日本x", 10*i+10))
		f.sandbox.SetItem(id, "last_occurrence_timestamp", time.Now().Add(-3*time.Hour-time.Minute).Unix())
	}
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	show := func(columns uint16, args string) string {
		term := newTerminal(t)
		term.resize(t, columns)
		words := append(strings.Fields(args), "-app-url", f.url)
		require.Zero(t, run(t.Context(), words, console{term.stream, term.stream, term.stream, ""}))
		fmt.Fprint(term.stream, "END")
		term.await(t, "END")
		return strings.ReplaceAll(strings.TrimSuffix(term.screen(), "END"), "\r\n", "\n")
	}
	for _, columns := range []uint16{0, 40, 80, 120} {
		for _, args := range []string{"items list", "reports list", "occurrences list", "reports summary",
			fmt.Sprint("items get ", f.sandbox.ItemIDs()[3])} {
			longest := 0
			for line := range strings.Lines(escapes.ReplaceAllString(show(columns, args), "")) {
				longest = max(longest, terminal.TextWidth(strings.TrimSuffix(line, "\n")))
			}
			limit := int(columns)
			if limit == 0 {
				limit = 80
			}
			assert.LessOrEqual(t, longest, limit, args)
		}
	}
	items := show(80, "items list")
	assert.Regexp(t, `^ID +LEVEL +STATUS +LAST_SEEN +COUNT +TITLE\n`, items)
	assert.Regexp(t, `(?m)^\d+ +\x1b\[\d+m\w+\x1b\[0m +\x1b\[\d+m\w+\x1b\[0m +3h ago +\d+ +日本x`, items)
	reports := show(90, "reports list")
	assert.Regexp(t, `(?m)^\d+ +\d+ +current +just now +\x1b\[\d+m\w+\x1b\[0m +\S+ +\d+ +日本x.*…$`, reports)
	assert.Contains(t, show(80, "items list -fields data.x,id"), "X  ID\n")
	latest := time.Now().UTC().AddDate(0, 0, -48).Format("SINCE 2006-01-02 ")
	assert.Contains(t, show(80, "reports summary -since 366d"), latest)
	assert.Contains(t, show(80, "items list -o csv -fields id,level -limit 1"), "id,level\n1705000012,")
	one := show(120, fmt.Sprint("items get ", f.sandbox.ItemIDs()[3]))
	assert.Regexp(t, `^id +\d+\ncounter +\d+\ntitle +日本x.*\nlevel +\x1b\[.*\nstatus +\x1b\[`, one)
	assert.Regexp(t, `(?m)^last_occurrence_timestamp +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \(3h ago\)$`, one)

	colourless := func() {
		assert.NotContains(t, strings.ReplaceAll(show(80, "items list"), "\x1b[K", ""), "\x1b")
	}
	t.Setenv("TERM", "dumb")
	colourless()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "1")
	colourless()
	assert.NotContains(t, f.run("items", "list", "-o", "table").out, "\x1b")
}

// Long-running commands show their progress on a terminal, and nothing elsewhere.
func TestProgress(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 230)
	settings := []string{"-rollbar-url=" + f.config.RollbarURL, "-rollbar-read-token=" + sandbox.ReadToken,
		"-rollbar-write-token=" + sandbox.WriteToken, "-database-url", f.config.DatabaseURL}
	for args, want := range map[string]string{
		"items list -all":                   `200 of 218 items, [\d.]+/s, \d+s left`,
		"items sync":                        `218 of 218 items read, [\d.]+/s, 0s left`,
		"items sync -recent":                `100 items read, [\d.]+/s\r`,
		"items delete -by counter 5":        `5 of 5 occurrences deleted, [\d.]+/s, 0s left`,
		"occurrences sync -since 1h":        `\d+ occurrences read, [\d.]+/s\r`,
		"items list -all -app-url " + f.url: `200 of 218 items, [\d.]+/s, \d+s left`,
	} {
		term := newTerminal(t)
		words := append(strings.Fields(args), settings...)
		if strings.Contains(args, "delete") {
			words = append(words, "-yes")
		}
		require.Zero(t, run(t.Context(), words, console{nil, io.Discard, term.stream, ""}), args)
		fmt.Fprint(term.stream, "END")
		term.await(t, "END")
		assert.Regexp(t, want, term.screen(), args)
	}
	assert.Empty(t, f.run("items", "sync").err)
}

// The first Tab makes zsh load the completion from its fpath.
func TestCompletionFromFpath(t *testing.T) {
	t.Parallel()
	script, dir, term := runShell(t, "", "completion", "zsh").out, t.TempDir(), newTerminal(t)
	require.Regexp(t, "^#compdef app\n", script, "zsh looks for this line")
	if path, err := exec.LookPath("zsh"); err == nil {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "_app"), []byte(script), 0o600))
		cmd := exec.Command(path, "-f")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = term.stream, term.stream, term.stream
		cmd.Env, cmd.SysProcAttr = append(os.Environ(), "TERM=xterm"), &syscall.SysProcAttr{Setsid: true, Setctty: true}
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		fmt.Fprintf(term.keys, "fpath=(%s $fpath); autoload -U compinit; compinit -u -D; echo rea''dy\r", dir)
		term.await(t, "ready")
		fmt.Fprint(term.keys, "echo app_; app it\t")
		term.await(t, "app items")
	}
}

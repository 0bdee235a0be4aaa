package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/sandbox"
)

// A pseudoTerminal is one whose screen a test reads and whose keys it presses.
type pseudoTerminal struct {
	keys, stream *os.File // the test's side and the program's

	mu    sync.Mutex
	shown strings.Builder
}

func newTerminal(t *testing.T) *pseudoTerminal {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("pseudo-terminals are opened as Linux does")
	}
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

// screen returns what was shown up to now.
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

// Before something is deleted, the question says what that is. Ctrl-C is an answer.
func TestQuestions(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 6)
	f.sandbox.SetItem(f.sandbox.ItemIDs()[4], "title", "out of \x1b[31m paper")
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	const question = `all occurrences of item %d, "out of \x1b[31m paper" (21 so far), from Rollbar?`
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

// A terminal gets no control and bidi characters from elsewhere: JSON escapes them, all else has blanks.
// In a pipe the bytes stay.
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

// console.go is where the command line meets a person or another program.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// A console is where the command line reads and writes, and the .env file it takes settings from.
type console struct {
	in       io.Reader
	out, err io.Writer
	envFile  string
}

// isTerminal reports whether a person sits at the other end.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a character device, too
	return err != nil || !os.SameFile(info, null)
}

// confirm asks before something is deleted for good.
func (c *cli) confirm(ctx context.Context, question string) error {
	if !isTerminal(c.std.in) {
		return fail(invalid, "%s There is no terminal to ask at: say -yes", question)
	}
	fmt.Fprintf(c.std.err, "%s [y/N] ", question)
	answer, err := interruptible(ctx, func() (string, error) {
		answer, _ := bufio.NewReader(c.std.in).ReadString('\n') // none is no
		return answer, nil
	})
	if err != nil {
		fmt.Fprintln(c.std.err)
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return fail(invalid, "not confirmed: nothing was done")
	}
	return nil
}

// interruptible reads from a person or another program, who may take for ever. When the context ends,
// the read is left behind: so does the program.
func interruptible[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := read()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// A progressLine is a line on a terminal that is written over and over.
type progressLine struct {
	out io.Writer

	mu    sync.Mutex
	shown bool // now
	ended bool
}

func (p *progressLine) show(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.shown = true
		fmt.Fprintf(p.out, "\r\x1b[K"+format, args...)
	}
}

// end takes the line off the terminal, for good.
func (p *progressLine) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	p.shown, p.ended = false, true
}

// A resultWriter writes to the terminal that has the line. The result takes its place.
type resultWriter struct {
	io.Writer
	line *progressLine
}

func (w resultWriter) Write(p []byte) (int, error) {
	w.line.end()
	return w.Writer.Write(p)
}

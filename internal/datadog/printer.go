package datadog

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// A tracePrinter prints finished traces as trees, which show a developer where the time went:
//
//	trace 692347a200000000d1f0c2b1a3948576
//	    0.00 ms   12.31 ms  http.request GET /items/{id}
//	    0.21 ms    9.87 ms    http.request GET /item/{id}
//	   10.15 ms    1.02 ms    pgx.query SELECT id FROM reports WHERE item_id = $1
//
// The columns are the start and the duration of a span.
type tracePrinter struct {
	mu  sync.Mutex
	out io.Writer
}

// print prints spans of one trace, which must be in the order of their starts.
func (p *tracePrinter) print(chunk []*Span) {
	if p == nil {
		return
	}
	present := map[uint64]bool{}
	children := map[uint64][]*Span{}
	for _, s := range chunk {
		present[s.id] = true
		children[s.parent] = append(children[s.parent], s)
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "trace %s\n", chunk[0].traceID())
	var printTree func(s *Span, indent string)
	printTree = func(s *Span, indent string) {
		fmt.Fprintf(&text, "%8.2f ms %8.2f ms  %s%s\n", milliseconds(s.start.Sub(chunk[0].start)), milliseconds(s.duration), indent, s.summary())
		for _, child := range children[s.id] {
			printTree(child, indent+"  ")
		}
	}
	for _, s := range chunk {
		if !present[s.parent] {
			printTree(s, "")
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = p.out.Write(text.Bytes()) // a trace that cannot be printed is no error of the program
}

// summary returns the span in one line, without its times.
func (s *Span) summary() string {
	line := []rune(s.name + " " + strings.Join(strings.Fields(s.resource), " "))
	if len(line) > 100 {
		line = append(line[:99], '…')
	}
	text := string(line)
	for _, tag := range s.tags {
		switch tag.key {
		case "http.status_code":
			text += " " + tag.value
		case "error.message":
			text += fmt.Sprintf(" error: %q", tag.value)
		}
	}
	return text
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

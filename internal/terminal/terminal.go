// Package terminal writes to terminals: tables with aligned columns, progress, and untrusted texts without the
// characters that a terminal would obey.
package terminal

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
	"unsafe"
)

// Is reports whether the stream is a terminal.
func Is(stream any) bool { return Width(stream) > 0 }

// Width returns the width of the terminal, or 0 if the stream is not one.
func Width(stream any) int {
	file, _ := stream.(*os.File) // the descriptor of nil is invalid
	var size struct{ rows, columns, x, y uint16 }
	_, _, failed := syscall.Syscall(syscall.SYS_IOCTL, file.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	if failed != 0 {
		return 0
	}
	return cmp.Or(int(size.columns), 80)
}

// Printable returns the text on one line, with blanks for unprintable characters.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// Safe returns a writer to a terminal that does not let through the control and bidi characters that the terminal would
// obey. It escapes them in JSON and writes blanks for them in anything else.
func Safe(out io.Writer, json bool) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		text := make([]byte, 0, len(p))
		for _, r := range strings.ReplaceAll(string(p), "\r\n", "\n") {
			switch {
			case r == '\n' || !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r):
				text = utf8.AppendRune(text, r)
			case json:
				text = fmt.Appendf(text, `\u%04x`, r)
			default:
				text = append(text, ' ')
			}
		}
		_, err := out.Write(text)
		return len(p), err
	})
}

type writerFunc func(p []byte) (int, error)

func (write writerFunc) Write(p []byte) (int, error) { return write(p) }

// A Table aligns the columns of the rows that are written to it. Tabs separate the cells.
type Table struct {
	Out     io.Writer
	Width   int            // of the terminal, to which lines are truncated; 0 means no limit
	Colours map[string]int // of the cells with these texts, as SGR codes
	rows    [][]string
	widths  []int // of the columns
}

func (t *Table) Write(p []byte) (int, error) {
	for line := range strings.SplitSeq(strings.TrimSuffix(string(p), "\n"), "\n") {
		row := strings.Split(line, "\t")
		t.rows = append(t.rows, row)
		t.widths = append(t.widths, make([]int, max(0, len(row)-len(t.widths)))...)
		for i, cell := range row {
			t.widths[i] = max(t.widths[i], TextWidth(cell))
		}
	}
	return len(p), nil
}

// Flush prints the rows and forgets them. Later rows are aligned with them.
func (t *Table) Flush() error {
	var text strings.Builder
	for _, row := range t.rows {
		start, end := 0, 0 // of this column, and of the text so far
		for i, cell := range row {
			if t.Width > 0 {
				cell = Fit(cell, t.Width-start)
			}
			if cell != "" {
				text.WriteString(strings.Repeat(" ", start-end))
				end = start + TextWidth(cell)
			}
			start += t.widths[i] + 2
			if colour := t.Colours[cell]; colour > 0 {
				cell = fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, cell)
			}
			text.WriteString(cell)
		}
		text.WriteByte('\n')
	}
	t.rows = nil
	_, err := io.WriteString(t.Out, text.String())
	return err
}

// Fit truncates a text that is wider than the width.
func Fit(text string, width int) string {
	if TextWidth(text) <= width {
		return text
	}
	if width < 1 {
		return ""
	}
	left := width - 1 // next to the ellipsis
	for i, r := range text {
		if left -= runeWidth(r); left < 0 {
			return text[:i] + "…"
		}
	}
	return text
}

// TextWidth returns the number of columns that a text takes on a terminal.
func TextWidth(text string) (width int) {
	for _, r := range text {
		width += runeWidth(r)
	}
	return width
}

func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case unicode.Is(wide, r) || strings.ContainsRune(wideSymbols, r):
		return 2
	}
	return 1
}

// wide and wideSymbols are the characters that take two columns of a terminal: East Asian scripts and emoji.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{{0x1100, 0x115F, 1}, {0x2329, 0x232A, 1}, {0x2E80, 0x303E, 1}, {0x3041, 0xA4CF, 1}, {0xA960, 0xA97F, 1},
		{0xAC00, 0xD7A3, 1}, {0xF900, 0xFAFF, 1}, {0xFE10, 0xFE19, 1}, {0xFE30, 0xFE6F, 1}, {0xFF01, 0xFF60, 1}, {0xFFE0, 0xFFE6, 1}},
	R32: []unicode.Range32{{0x16FE0, 0x1B2FF, 1}, {0x1F004, 0x1F0CF, 0xCB}, {0x1F18E, 0x1F320, 1}, {0x1F32D, 0x1F64F, 1},
		{0x1F680, 0x1F6FF, 1}, {0x1F7E0, 0x1F7F0, 1}, {0x1F90C, 0x1FAFF, 1}, {0x20000, 0x3FFFD, 1}},
}

const wideSymbols = "⌚⌛⏩⏪⏫⏬⏰⏳◽◾☔☕♈♉♊♋♌♍♎♏♐♑♒♓♿⚓⚡⚪⚫⚽⚾⛄⛅⛎⛔⛪⛲⛳⛵⛺⛽✅✊✋✨❌❎❓❔❕❗➕➖➗➰➿⬛⬜⭐⭕"

// Sparkline draws counts as bars in one line of text.
func Sparkline(counts []int64) string {
	bars, most := []rune(" ▁▂▃▄▅▆▇█"), max(1, slices.Max(counts))
	line := make([]rune, len(counts))
	for i, count := range counts {
		line[i] = bars[(count*8+most-1)/most] // any count above 0 is at least one eighth
	}
	return string(line)
}

// A Progress is a line of a terminal that each update overwrites.
type Progress struct {
	Out   io.Writer
	Began time.Time

	mu    sync.Mutex
	shown bool
}

// Show shows the amount done and the rate. A positive total is shown with the time left; a negative one hides the rate.
func (p *Progress) Show(done, total int64, what string) {
	rate := float64(done) / time.Since(p.Began).Seconds()
	text := fmt.Sprintf("%d %s", done, what)
	switch {
	case total >= done && done > 0:
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		text = fmt.Sprintf("%d of %d %s, %.1f/s, %v left", done, total, what, rate, left.Round(time.Second))
	case total >= 0:
		text += fmt.Sprintf(", %.1f/s", rate)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown = true
	fmt.Fprint(p.Out, "\r\x1b[K"+text)
}

// End clears the line and shows nothing from then on.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.Out, "\r\x1b[K")
	}
	p.shown, p.Out = false, io.Discard
}

// Before returns a writer to result that ends the progress first.
func (p *Progress) Before(result io.Writer) io.Writer {
	return writerFunc(func(text []byte) (int, error) {
		p.End()
		return result.Write(text)
	})
}

// Package secrets masks secrets in what a program writes, in whatever form they appear: verbatim, in the other
// case, percent-encoded, escaped as in JSON, in base64, or truncated to their first characters.
package secrets

import (
	"bytes"
	"encoding/base64"
	"io"
	"strconv"
	"strings"
)

const (
	recognized = 8 // characters by which a secret is recognized; a shorter one is masked only as a whole word, in its own case
	minimum    = 4 // a secret with fewer characters is ignored, since masking it would mask every other word
)

// A Mask hides the secrets that it knows. A nil Mask knows none.
type Mask struct {
	forms  [1 << 8][]string // by the bytes that they can begin with
	begins [1 << 16]bool    // by the two bytes that a form can begin with, to skip most positions at once
}

// New returns a mask that knows the secrets.
func New(secrets ...string) *Mask {
	m := &Mask{}
	for _, secret := range secrets {
		if len(secret) < minimum {
			continue
		}
		m.add(secret)
		for skip := 0; skip < 3 && len(secret) >= recognized; skip++ { // what precedes it shifts the bits
			text := base64.RawStdEncoding.EncodeToString([]byte("::"[:skip] + secret))
			text = text[(skip*8+5)/6 : (skip+len(secret))*8/6] // the part that depends on nothing else
			m.add(text)
			m.add(strings.NewReplacer("+", "-", "/", "_").Replace(text))
		}
	}
	return m
}

func (m *Mask) add(form string) {
	for _, a := range append(cases(form[0]), '%', '\\') {
		m.forms[a] = append(m.forms[a], form)
		for _, b := range append(cases(form[1]), '%', '\\') {
			m.begins[int(a)<<8|int(b)] = true
		}
	}
	for _, next := range []byte(`"\/u0123456789abcdefABCDEF`) { // may follow in an escape
		m.begins['%'<<8|int(next)], m.begins['\\'<<8|int(next)] = true, true
	}
}

// Bytes returns a copy of the text or line of JSON with *** for each secret, or its argument if it contains none.
func (m *Mask) Bytes(text []byte) []byte {
	var masked []byte
	kept := 0
	for i := 0; m != nil && i+1 < len(text); i++ {
		if !m.begins[int(text[i])<<8|int(text[i+1])] {
			continue
		}
		n := 0
		for _, form := range m.forms[text[i]] {
			n = max(n, matched(text, i, form, false), matched(text, i, form, true))
		}
		if n == 0 {
			continue
		}
		from := i
		if before := text[kept:i]; (len(before)-len(bytes.TrimRight(before, `\`)))%2 == 1 {
			from-- // half an escape would be invalid JSON
		}
		masked = append(append(masked, text[kept:from]...), "***"...)
		i += n - 1
		kept = i + 1
	}
	if masked == nil {
		return text
	}
	return append(masked, text[kept:]...)
}

// matched returns how many bytes at the position match the form or its beginning, or 0 if the match is too short.
// In an escaped text, a \ of the form is never there as it is.
func matched(text []byte, from int, form string, escaped bool) int {
	i, k := from, 0
	for i < len(text) && k < len(form) {
		c, width := text[i], 1
		if (escaped || lower(c) != lower(form[k])) && (c == '%' || c == '\\') {
			c, width = decoded(text, i)
		}
		if c == '\\' && c != form[k] && i+width < len(text) { // escaped twice, as a quoted text in JSON
			inner, more := decoded(text, i+width)
			c, width = inner, width+more
		}
		if lower(c) != lower(form[k]) || len(form) < recognized && c != form[k] {
			break
		}
		i, k = i+width, k+1
	}
	isPart := len(form) < recognized && (from > 0 && isWord(text[from-1]) || i < len(text) && isWord(text[i]))
	if k < min(recognized, len(form)) || isPart {
		return 0
	}
	return i - from
}

// decoded returns the character at the position, which may be percent-encoded or escaped, and its encoded length.
func decoded(text []byte, i int) (c byte, width int) {
	rest := string(text[i:min(i+6, len(text))])
	for _, escape := range []string{"%", `\u00`} {
		if digits, found := strings.CutPrefix(rest, escape); found && len(digits) >= 2 {
			if n, err := strconv.ParseUint(digits[:2], 16, 8); err == nil {
				return byte(n), len(escape) + 2
			}
		}
	}
	if len(rest) >= 2 && rest[0] == '\\' && strings.IndexByte(`"\/`, rest[1]) >= 0 {
		return rest[1], 2
	}
	return text[i], 1
}

func cases(c byte) []byte { return []byte{lower(c), bytes.ToUpper([]byte{c})[0]} }

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

func isWord(c byte) bool {
	return 'a' <= lower(c) && lower(c) <= 'z' || '0' <= c && c <= '9' || c == '_' || c >= 0x80
}

// Writer returns a writer to out that masks secrets in each write, which should consist of whole lines.
func (m *Mask) Writer(out io.Writer) io.Writer { return writer{m, out} }

type writer struct {
	mask *Mask
	out  io.Writer
}

func (w writer) Write(part []byte) (int, error) {
	_, err := w.out.Write(w.mask.Bytes(part))
	return len(part), err
}

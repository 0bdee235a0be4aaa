// Package dotenv reads .env files in a subset of Docker Compose's format.
//
//	# a comment
//	NAME=value               # white space around a value is cut
//	export NAME='a $literal' # values in quotes may span several lines
//	NAME="a\tb"              # the escapes are \n, \r, \t, \" and \\
//
// Compose expands variables, and this package does not, so a $ is allowed in single quotes and comments only. A
// name without = is an error: Compose takes such a variable from the environment, but most are slips. Errors
// quote nothing of the file, since any part of it may be a secret.
package dotenv

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const maxSize = 1 << 20

// An Error is what is wrong with a line, or what set returned for it.
type Error struct {
	Line int // from 1
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Parse reads a file of at most 1 MiB and calls set for each name with its last value, unless that is empty. It
// calls set only if the whole file is valid, and stops at the first error that set returns. An error about a
// line is an *Error.
func Parse(r io.Reader, set func(name, value string) error) error {
	text, err := read(r)
	if err != nil {
		return err
	}
	values, lines := map[string]string{}, map[string]int{}
	for line := 1; text != ""; {
		if m := blank.FindString(text); m != "" { // or the end of the line before
			text, line = text[len(m):], line+1
			continue
		}
		m := start.FindStringSubmatch(text)
		if m == nil {
			return &Error{line, errors.New("must be NAME=value, a comment or blank")}
		}
		text = text[len(m[0]):]
		value, n, err := scan(text)
		values[m[1]], lines[m[1]] = value, line
		line += strings.Count(text[:n], "\n")
		if err != nil {
			return &Error{line, err}
		}
		text = text[n:]
	}
	maps.DeleteFunc(lines, func(name string, _ int) bool { return values[name] == "" })
	for _, name := range slices.SortedFunc(maps.Keys(lines), func(a, b string) int { return lines[a] - lines[b] }) {
		if err := set(name, values[name]); err != nil {
			return &Error{lines[name], err}
		}
	}
	return nil
}

// read returns the text without a byte order mark and with \n as the end of lines.
func read(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	switch {
	case err != nil:
		return "", err
	case len(text) > maxSize:
		return "", fmt.Errorf("the file is larger than %d bytes", maxSize)
	case bytes.HasPrefix(text, []byte("\xFF\xFE")), bytes.HasPrefix(text, []byte("\xFE\xFF")):
		return "", errors.New("the file is in UTF-16: save it as UTF-8")
	}
	for i, line := range bytes.Split(text, []byte("\n")) {
		if !utf8.Valid(line) || bytes.IndexByte(line, 0) >= 0 {
			return "", &Error{i + 1, errors.New("must be text in UTF-8, without NUL")}
		}
	}
	return strings.ReplaceAll(strings.TrimPrefix(string(text), "\uFEFF"), "\r\n", "\n"), nil
}

var (
	blank     = regexp.MustCompile(`^[^\S\n]*(?:#.*)?(?:\n|$)`)
	start     = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*`)
	quoted    = regexp.MustCompile(`^(?:'[^']*|"(?:[^"$\\]|\\[nrt"\\])*)`) // up to the closing quote or an error
	comment   = regexp.MustCompile(`\s#.*`)
	unescape  = strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\"`, `"`, `\\`, `\`)
	errDollar = errors.New("a $ begins a variable for Docker Compose: write the value in single quotes")
)

// scan returns the value at the start of the text and the length up to the end of its last line or to an error.
func scan(text string) (value string, n int, err error) {
	if value = quoted.FindString(text); value != "" {
		switch n = len(value); {
		case n == len(text):
			return "", 0, errors.New("a quote is not closed")
		case text[n] == '$':
			return "", n, errDollar
		case text[n] == '\\':
			return "", n, errors.New(`a \ in double quotes must begin \n, \r, \t, \" or \\: write the value in single quotes`)
		case value[0] == '"':
			value = unescape.Replace(value)
		}
		value, n = value[1:], n+1
	}
	rest, _, _ := strings.Cut(text[n:], "\n")
	bare := strings.TrimSpace(comment.ReplaceAllString(rest, ""))
	switch {
	case n > 0 && bare != "":
		return "", n, errors.New("there is something after the closing quote")
	case strings.HasPrefix(bare, "#"):
		return "", n, errors.New("a # directly after the = does not begin a comment for Docker Compose: write the value in quotes")
	case strings.Contains(bare, "$"):
		return "", n, errDollar
	}
	return value + bare, n + len(rest), nil
}

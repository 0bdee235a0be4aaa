// dotenv.go reads .env files as Docker Compose does, so that the same file works for both. The
// errors name lines by their numbers and quote nothing: any part of a line may be a secret.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// maxDotEnv bounds the size of a .env file.
const maxDotEnv = 1 << 20

// A dotenvError is what is wrong with a line of a .env file.
type dotenvError struct {
	Line int
	Err  error
}

func (e *dotenvError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *dotenvError) Unwrap() error { return e.Err }

// A dotenvPair is one setting of a .env file.
type dotenvPair struct {
	name, value string
	line        int
}

// parseDotEnv reads a .env file and calls set for each name with its last value, unless that is
// empty. It is an ff.ConfigFileParser; its errors are *dotenvError.
func parseDotEnv(r io.Reader, set func(name, value string) error) error {
	pairs, err := readDotEnv(r, os.LookupEnv)
	if err != nil {
		return err
	}
	last := map[string]int{}
	for i, pair := range pairs {
		last[pair.name] = i
	}
	for i, pair := range pairs {
		if last[pair.name] != i || pair.value == "" {
			continue
		}
		if err := set(pair.name, pair.value); err != nil {
			return &dotenvError{pair.line, err}
		}
	}
	return nil
}

// readDotEnv returns the pairs of a .env file in their order. Values refer to other variables as in
// a shell, ${NAME:-default}: to those that lookup knows, and else to earlier lines.
func readDotEnv(r io.Reader, lookup func(string) (string, bool)) ([]dotenvPair, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDotEnv+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxDotEnv {
		return nil, &dotenvError{1, fmt.Errorf("the file is larger than %d bytes", maxDotEnv)}
	}
	d := dotenvReader{
		rest:  strings.ReplaceAll(strings.TrimPrefix(string(text), "\uFEFF"), "\r\n", "\n"),
		line:  1,
		known: map[string]string{},
	}
	d.lookup = func(name string) (string, bool) {
		if value, ok := lookup(name); ok {
			return value, true
		}
		value, ok := d.known[name]
		return value, ok
	}
	for d.rest != "" {
		line := d.line
		pair, err := d.pair()
		if err != nil {
			return nil, &dotenvError{line, err}
		}
		if pair.name != "" {
			pair.line = line
			d.known[pair.name] = pair.value
			d.pairs = append(d.pairs, pair)
		}
	}
	return d.pairs, nil
}

// A dotenvReader is a place in a .env file.
type dotenvReader struct {
	rest   string // what is not read yet; it begins a line
	line   int
	known  map[string]string
	pairs  []dotenvPair
	lookup func(string) (string, bool)
}

// dotenvName matches the beginning of a line that sets something: its name, and what ends that.
var dotenvName = regexp.MustCompile(`^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.\-]*)[ \t]*([=:]|\n|$|#)[ \t]*`)

// take returns the next n bytes and goes behind them.
func (d *dotenvReader) take(n int) string {
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	d.line += strings.Count(taken, "\n")
	return taken
}

// takeLine returns the rest of the line, without its end.
func (d *dotenvReader) takeLine() string {
	n := strings.IndexByte(d.rest, '\n')
	if n < 0 {
		return d.take(len(d.rest))
	}
	return strings.TrimSuffix(d.take(n+1), "\n")
}

// pair reads one line, or several where a quoted value goes over them. The name is empty for a line
// that sets nothing.
func (d *dotenvReader) pair() (dotenvPair, error) {
	first, _, _ := strings.Cut(d.rest, "\n")
	if first = strings.TrimSpace(first); first == "" || first[0] == '#' {
		d.takeLine()
		return dotenvPair{}, nil
	}
	m := dotenvName.FindStringSubmatch(d.rest)
	if m == nil {
		return dotenvPair{}, errors.New("there is no name with = behind it")
	}
	pair := dotenvPair{name: m[1]}
	if m[2] != "=" && m[2] != ":" { // a name alone stands for the environment's value
		d.takeLine()
		return pair, nil
	}
	d.take(len(m[0]))
	var err error
	switch {
	case strings.HasPrefix(d.rest, "'"):
		pair.value, err = d.quoted('\'')
	case strings.HasPrefix(d.rest, `"`):
		if pair.value, err = d.quoted('"'); err == nil {
			pair.value, err = d.expand(unescapeDotEnv(pair.value))
		}
	default:
		value := dotenvComment.ReplaceAllString(d.takeLine(), "")
		pair.value, err = d.expand(strings.TrimSpace(value))
	}
	return pair, err
}

// dotenvComment matches a comment behind a value that has no quotes.
var dotenvComment = regexp.MustCompile(`[ \t]#.*`)

// quoted reads a value in quotes, which may go over several lines, and the rest of its last line,
// in which there can only be a comment.
func (d *dotenvReader) quoted(quote byte) (string, error) {
	for end := 1; end < len(d.rest); end++ {
		if d.rest[end] == '\\' && quote == '"' {
			end++
			continue
		}
		if d.rest[end] != quote {
			continue
		}
		value := d.take(end + 1)
		if rest := strings.TrimSpace(d.takeLine()); rest != "" && rest[0] != '#' {
			return "", errors.New("there is something behind the closing quote")
		}
		return value[1:end], nil
	}
	return "", errors.New("a quote is not closed")
}

// unescapeDotEnv replaces the escapes of a value in double quotes. A dollar sign keeps its
// backslash, for expand.
func unescapeDotEnv(value string) string {
	return strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\"`, `"`, `\\`, `\`).Replace(value)
}

// dotenvVariable matches the beginning of a reference to a variable: its name, and in braces what
// to do when it is not set.
var dotenvVariable = regexp.MustCompile(`^\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(:?[-?+]|\}))`)

// expand replaces references to variables: $NAME, ${NAME}, ${NAME:-default}, ${NAME:+instead},
// ${NAME:?error}, and the same without the colon, for which an empty value is one.
func (d *dotenvReader) expand(value string) (string, error) {
	var expanded strings.Builder
	for value != "" {
		if strings.HasPrefix(value, `\$`) || strings.HasPrefix(value, "$$") {
			expanded.WriteByte('$')
			value = value[2:]
			continue
		}
		m := dotenvVariable.FindStringSubmatch(value)
		if m == nil {
			expanded.WriteByte(value[0])
			value = value[1:]
			continue
		}
		word := ""
		value = value[len(m[0]):]
		if operator := m[3]; operator != "" && operator != "}" {
			end := closingBrace(value)
			if end < 0 {
				return "", errors.New("a brace is not closed")
			}
			word, value = value[:end], value[end+1:]
		}
		text, err := d.variable(m[1]+m[2], m[3], word)
		if err != nil {
			return "", err
		}
		expanded.WriteString(text)
	}
	return expanded.String(), nil
}

// variable is what one reference stands for.
func (d *dotenvReader) variable(name, operator, word string) (string, error) {
	value, set := d.lookup(name)
	operator, colon := strings.CutPrefix(operator, ":")
	if colon {
		set = value != ""
	}
	switch {
	case operator == "+" && set, operator == "-" && !set:
		return d.expand(word)
	case operator == "+":
		return "", nil
	case operator == "?" && !set:
		return "", errors.New("a variable that it requires is not set")
	}
	return value, nil
}

// closingBrace is where the brace closes that was opened before the text, or -1.
func closingBrace(text string) int {
	depth := 0
	for i, r := range text {
		switch {
		case r == '{':
			depth++
		case r == '}' && depth == 0:
			return i
		case r == '}':
			depth--
		}
	}
	return -1
}

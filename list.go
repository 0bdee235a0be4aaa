// list.go is the result of operations with many elements: they are written while they are read,
// so that no result is ever whole in memory.
package main

import (
	"encoding/json"
	"io"
	"iter"
	"net/url"

	"app/internal/rawjson"
)

// A List is a JSON object with an array of elements in it. Rows can be read once; Close releases
// what they hold and must be called also where they are not read.
type List struct {
	Name  string                            // of the member that holds the elements
	Rows  iter.Seq2[json.RawMessage, error] // compact JSON, valid until the next; an error is the last
	Rest  func() json.RawMessage            // the other members, as a compact object; called after the rows
	Prev  url.Values                        // what leads to the page before, nil if there is none
	Next  url.Values                        // what leads to the page behind, nil if there is none
	Late  bool                              // Next is known after the rows only: see Call.ahead
	Close func()                            // may be nil
}

func (l *List) close() {
	if l.Close != nil {
		l.Close()
	}
}

// sliceRows makes rows of elements that are in memory.
func sliceRows[T any](elements []T, text func(T) json.RawMessage) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		for _, e := range elements {
			if !yield(text(e), nil) {
				return
			}
		}
	}
}

// writeResult writes what an operation returned as the one line that both doors show: JSON, or the
// text that it is.
func writeResult(w io.Writer, value any) error {
	switch value := value.(type) {
	case Text:
		_, err := io.WriteString(w, string(value)+"\n")
		return err
	case json.RawMessage:
		_, err := w.Write(value)
		if err == nil {
			_, err = w.Write([]byte{'\n'})
		}
		return err
	case *List:
		return value.write(w)
	}
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// write writes the list as one JSON document.
func (l *List) write(w io.Writer) error {
	text := make([]byte, 0, 128) // around the rows
	text = append(rawjson.AppendQuoted(append(text, '{'), l.Name), ':', '[')
	for row, err := range l.Rows {
		if err == nil {
			_, err = w.Write(text)
		}
		if err == nil {
			_, err = w.Write(row)
		}
		if err != nil {
			return err
		}
		text = append(text[:0], ',')
	}
	if text[0] == ',' {
		text = text[:0]
	}
	text = append(text, ']')
	if rest := l.Rest(); len(rest) > len(`{}`) {
		text = append(text, ',')
		text = append(text, rest[1:]...)
	} else {
		text = append(text, '}')
	}
	_, err := w.Write(append(text, '\n'))
	return err
}

// writeLines writes the elements alone, one a line.
func (l *List) writeLines(w io.Writer) error {
	for row, err := range l.Rows {
		if err != nil {
			return err
		}
		if _, err := w.Write(append(row[:len(row):len(row)], '\n')); err != nil {
			return err
		}
	}
	return nil
}

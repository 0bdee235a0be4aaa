package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"app/internal/rawjson"
	"app/internal/spelling"
)

// A Command is one operation of the service: a route and a subcommand. It knows neither HTTP nor flags: surfaces turn
// their input into arguments, so that names, defaults, ranges and conversions are handled in one place.
type Command struct {
	Name    string    // "items.list", noun and verb, or one word such as "check"
	Route   string    // a net/http pattern: "GET /items/{id}"
	Also    string    // a second route to the same operation, or ""
	Short   string    // one line of help
	Long    string    // more help, or ""
	Confirm question  // asked before the command runs, on the command line and on pages; nil for none
	About   *Command  // reads the subject of the question, with the same arguments; without a Route, only in this process
	Columns string    // the members that a table shows, separated by spaces, with dots for nested ones
	Shape   any       // a value of the type of a list's elements or of a raw JSON result, for OpenAPI; nil if unknown
	Open    bool      // callers need no API token
	Changes bool      // it changes something at Rollbar, or deletes reports or archived occurrences
	Run     operation // made by typed
}

// A question returns the text to ask, given its subject, nil if unknown, and the filters as the caller wrote
// them.
type question func(about json.RawMessage, filters string) string

func (c *Command) ask(about json.RawMessage, args arguments) string {
	var filters []string
	for _, p := range c.paramsIn(inQuery) {
		for _, value := range args.values[p.name] {
			filters = append(filters, args.label(p), value.text)
		}
	}
	return c.Confirm(about, strings.Join(filters, " "))
}

// An operation is a typed function as the surfaces see it.
type operation struct {
	params   []*param
	out      reflect.Type                      // of its result
	outcomes func() []outcome                  // all ways to end without an error
	prepare  func(arguments) (prepared, error) // checks the arguments, and does nothing else
}

// prepared is an operation bound to its checked input.
type prepared func(context.Context, *App) (any, error)

// typed turns a function whose input is a struct with tags into an operation:
//
//	path:"id"        a field of the route, an argument on the command line
//	query:"status"   a query parameter, a flag
//	json:"level"     a member of the JSON body, a flag
//	flag:"all"       a flag only
//	default:"20"     the value when it is not given; without this tag it is required
//	enum:"a,b"       the values that are valid
//	min, max         the range of a number, or of a text's length in characters
//	unless:"data"    required, unless the named parameter is given, which excludes all others
//	file:"true"      the flag names a file that holds the JSON body
//	help:"…"         what it means
//
// A field is a string, int64, bool, []string, json.RawMessage (a JSON object), a type with UnmarshalText, or an
// Opt of these. An input's method check adds rules that tags cannot express. The result is a struct, json.RawMessage, Text or *List.
func typed[In, Out any](run func(context.Context, *App, In) (Out, error)) operation {
	params := paramsOf(reflect.TypeFor[In]())
	outcomes := func() []outcome { return []outcome{done} }
	var out Out
	if r, ok := any(out).(interface{ outcomes() []outcome }); ok {
		outcomes = r.outcomes
	}
	return operation{params, reflect.TypeFor[Out](), outcomes, func(args arguments) (prepared, error) {
		var in In
		if err := args.fill(params, reflect.ValueOf(&in).Elem()); err != nil {
			return nil, err
		}
		if c, ok := any(&in).(interface{ check() error }); ok {
			if err := c.check(); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context, app *App) (any, error) { return run(ctx, app, in) }, nil
	}}
}

func (c *Command) run(ctx context.Context, app *App, args arguments) (any, error) {
	operation, err := c.Run.prepare(args)
	if err != nil {
		return nil, err
	}
	return operation(ctx, app)
}

// An outcome is a way in which an operation ends without an error.
type outcome struct{ status, exit int }

var (
	done     = outcome{200, 0}
	created  = outcome{201, 0}
	accepted = outcome{202, 0}
	outage   = outcome{unavailable.status, unavailable.exit}
)

// outcomeOf returns how an operation ended: done, unless its result has a method outcome. The method outcomes lists them all.
func outcomeOf(value any) outcome {
	if r, ok := value.(interface{ outcome() outcome }); ok {
		return r.outcome()
	}
	return done
}

// Text is a result that is a line of text, not JSON.
type Text string

// A List is a result that is a JSON object with an array of elements in it. The elements are written as they are
// read, so that no list has to be in memory as a whole.
type List struct {
	Name string                            // of the array: "items"
	Rows iter.Seq2[json.RawMessage, error] // the elements as compact JSON, each valid until the next; readable once; an error comes last
	Rest json.RawMessage                   // the other members, as a compact object
	Prev url.Values                        // the parameters of the previous page, nil for none
	Next url.Values                        // the parameters of the next page, nil for none
}

// writeResult writes the result of an operation as one line of JSON or text.
func writeResult(w io.Writer, value any) error {
	switch value := value.(type) {
	case Text, json.RawMessage:
		_, err := fmt.Fprintf(w, "%s\n", value)
		return err
	case *List:
		return value.write(w)
	}
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// asJSON returns the result of an operation, other than a Text or a *List, as JSON.
func asJSON(value any) json.RawMessage {
	var text bytes.Buffer
	_ = writeResult(&text, value) // never fails: results are valid JSON
	return bytes.TrimSpace(text.Bytes())
}

// write writes the list as one JSON document.
func (l *List) write(w io.Writer) error {
	text := append(rawjson.AppendQuoted([]byte{'{'}, l.Name), ':', '[')
	for row, err := range l.Rows {
		if err != nil {
			return err
		}
		_, _ = w.Write(text) // if it fails, so does the next one
		if _, err := w.Write(row); err != nil {
			return err
		}
		text = append(text[:0], ',')
	}
	text = append(bytes.TrimPrefix(text, []byte{','}), ']', '}')
	if len(l.Rest) > len(`{}`) {
		text = append(append(text[:len(text)-1], ','), l.Rest[1:]...)
	}
	_, err := w.Write(append(text, '\n'))
	return err
}

// writeLines writes only the elements, one per line.
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

// restWithCursor returns the Rest of a list that is paged by cursors.
func restWithCursor(next url.Values) json.RawMessage {
	if next == nil {
		return json.RawMessage(`{"next":null}`)
	}
	return fmt.Appendf(nil, `{"next":%q}`, next.Get("cursor"))
}

// sliceRows yields elements from memory.
func sliceRows[T any](elements []T, text func(T) json.RawMessage) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		for _, e := range elements {
			if !yield(text(e), nil) {
				return
			}
		}
	}
}

// words returns the parts of the name, as they are typed on the command line.
func (c *Command) words() []string { return strings.Split(c.Name, ".") }

// routes returns the routes, the main one first.
func (c *Command) routes() []string { return []string{c.Route, c.Also}[:min(2, 1+len(c.Also))] }

// paramsIn returns the parameters in the places, in the order of the input's fields.
func (c *Command) paramsIn(in ...place) []*param {
	return slices.DeleteFunc(slices.Clone(c.Run.params), func(p *param) bool { return !slices.Contains(in, p.in) })
}

// names returns the names of the parameters in the places.
func (c *Command) names(in ...place) (names []string) {
	for _, p := range c.paramsIn(in...) {
		names = append(names, p.name)
	}
	return names
}

// has reports whether the place has a parameter with the name.
func (c *Command) has(in place, name string) bool {
	return slices.ContainsFunc(c.Run.params, func(p *param) bool { return p.in == in && p.name == name })
}

// hasFields reports whether the result is a list or an object, so that a table can show selected members.
func (c *Command) hasFields() bool {
	return c.Columns != "" || c.Run.out == reflect.TypeFor[json.RawMessage]()
}

// elements returns the name of a list's array: items for items.list, occurrences for items.occurrences.
func (c *Command) elements() string {
	noun, verb, _ := strings.Cut(c.Name, ".")
	if verb == "list" {
		return noun
	}
	return verb
}

// usage returns the route with its parameters: "GET /items?status=&level=".
func (c *Command) usage() string {
	usage := c.Route
	if c.Also != "" {
		method, _, _ := strings.Cut(c.Also, " ")
		usage = method + " or " + usage
	}
	if query := c.names(inQuery); len(query) > 0 {
		usage += "?" + strings.Join(query, "=&") + "="
	}
	if body := c.names(inBody); len(body) > 0 {
		usage += " {" + strings.Join(body, ", ") + "}"
	}
	return usage
}

// pathField matches a field in a route.
var pathField = regexp.MustCompile(`\{([a-z_]+)\}`)

// allowed returns the commands, without those that change something if readOnly is set.
func allowed(commands []*Command, readOnly bool) []*Command {
	return slices.DeleteFunc(slices.Clone(commands), func(c *Command) bool { return readOnly && c.Changes })
}

// checkNames refuses names that the command does not have in the places, and lists the valid ones once. what is
// the kind of name, such as "field". Names from the other place are reported as belonging there.
func (c *Command) checkNames(what string, given iter.Seq[string], other place, in ...place) error {
	valid := c.names(in...)
	names := slices.DeleteFunc(slices.Sorted(given), func(name string) bool { return slices.Contains(valid, name) })
	if len(names) == 0 {
		return nil
	}
	var wrong []fieldError
	hint := ""
	for _, name := range names[:min(len(names), maxFields)] {
		message := fmt.Sprintf("%q belongs in the %s", name, map[place]string{inBody: "JSON body", inQuery: "query"}[other])
		if !c.has(other, name) {
			message = fmt.Sprintf("unknown %s %q", what, cut(name)) + didYouMean(name, valid)
			hint = validNames(valid)
		}
		wrong = append(wrong, fieldError{cut(name), message})
	}
	f := invalidFields(append(wrong, make([]fieldError, len(names)-len(wrong))...)) // it counts the rest
	f.detail += hint
	return f
}

// validNames returns the end of a message about invalid names.
func validNames(names []string) string {
	if len(names) == 0 {
		return ": there are none here"
	}
	return " (valid: " + strings.Join(names, ", ") + ")"
}

// cut shortens a caller's text for messages.
func cut(text string) string { return shorten(text, 100) }

// shorten truncates a longer text to at most that many bytes and an ellipsis.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// unknown returns the message about an invalid name, with the nearest valid one. what is the kind of
// name: "flag", "query parameter".
func unknown(what, name string, valid []string) string {
	return fmt.Sprintf("unknown %s %q", what, cut(name)) + didYouMean(name, valid) + validNames(valid)
}

func didYouMean(name string, valid []string) string {
	if near := spelling.Nearest(cut(name), valid); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	return ""
}

// column returns one value of each row.
func column[Row, T any](rows []Row, value func(Row) T) []T {
	values := make([]T, len(rows))
	for i, row := range rows {
		values[i] = value(row)
	}
	return values
}

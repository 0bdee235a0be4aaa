// Package rawjson takes JSON apart and puts it together without changing a byte of its values: numbers keep all
// their digits, and unknown members keep their places. All functions that take JSON, except Compact, Parse and Object,
// expect it to be compact, as Compact returns it.
package rawjson

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Compact checks that the text is one JSON value and returns it without white space. It reuses the text's memory, so
// the caller must not use the text any more.
func Compact(text []byte) (json.RawMessage, error) {
	whole, err := Parse(text, 0)
	return whole.Value, err
}

// A Part is a value and, if it was taken apart, its members or elements.
type Part struct {
	Name, Value json.RawMessage // a member's name is in quotes, an element's is empty
	Parts       []Part
}

// Member returns the member with the name, or an empty part. If the name is repeated, the last member counts.
func (p Part) Member(name string) (member Part) {
	for _, part := range p.Parts {
		if len(part.Name) > 0 && string(nameOf(part.Name)) == name {
			member = part
		}
	}
	return member
}

const maxParts = 20_000 // each takes more memory than a short value

// Parse is like Compact, and takes the value apart to the given depth in the same pass. It refuses too many parts.
func Parse(text []byte, levels int) (whole Part, _ error) {
	text = bytes.TrimRight(text, " \n\r\t")
	c := compactor{text: text, compact: text[:0], levels: levels}
	if ok := c.space() && c.value(0, &whole); !ok || c.at < len(text) {
		if c.kept > 0 {
			text = append(append(c.compact, ' '), text[c.kept:]...) // there is room for the space
		}
		return Part{}, cmp.Or(json.Unmarshal(text, new(json.RawMessage)), fmt.Errorf("it has more than %d parts", maxParts))
	}
	if c.kept > 0 {
		c.compact = append(c.compact, text[c.kept:]...)
	}
	return whole, nil
}

// A compactor checks JSON by the rules of encoding/json, about twice as fast. Its methods skip what they are
// named after, and return false if that does not come next. The text before at has been checked; the text
// before kept has been copied to compact, without white space.
type compactor struct {
	text     []byte
	at, kept int
	compact  []byte
	levels   int // to take apart
	parts    int // so far
}

// end returns where the text before at ends, or will end, in compact.
func (c *compactor) end() int { return len(c.compact) + c.at - c.kept }

// space always returns true, since white space is optional.
func (c *compactor) space() bool {
	from := c.at
	for c.at < len(c.text) && (c.text[c.at] == ' ' || c.text[c.at] == '\n' || c.text[c.at] == '\r' || c.text[c.at] == '\t') {
		c.at++
	}
	if c.at > from {
		c.compact = append(c.compact, c.text[c.kept:from]...)
		c.kept = c.at
	}
	return true
}

func (c *compactor) next(b byte) bool {
	if c.at < len(c.text) && c.text[c.at] == b {
		c.at++
		return true
	}
	return false
}

// value also skips the white space after the value. It sets the value of the part unless that is nil.
func (c *compactor) value(depth int, part *Part) (ok bool) {
	if c.at == len(c.text) {
		return false
	}
	from := c.end()
	switch b := c.text[c.at]; b {
	case '"':
		ok = c.string()
	case '{', '[':
		ok = depth < 10_000 && c.nested(b, depth+1, part) // the limit of encoding/json
	default:
		ok = c.plain()
	}
	if part != nil {
		part.Value = c.text[from:c.end():c.end()] // where it will be in compact
	}
	return ok && c.space()
}

// nested skips an object or an array. In ASCII, a closing bracket is the second character after its opening one.
func (c *compactor) nested(opening byte, depth int, whole *Part) bool {
	c.at++
	if c.space() && c.next(opening+2) {
		return true
	}
	for more := true; more; more = c.parts <= maxParts && c.next(',') && c.space() {
		from := c.end()
		isNamed := opening == '[' || c.string() && c.space() && c.next(':') && c.space()
		var part *Part
		if whole != nil && depth <= c.levels {
			c.parts++
			whole.Parts = append(whole.Parts, Part{Name: c.text[from:max(from, c.end()-1)]})
			part = &whole.Parts[len(whole.Parts)-1]
		}
		if !isNamed || !c.value(depth, part) {
			return false
		}
	}
	return c.next(opening + 2)
}

func (c *compactor) string() bool {
	if !c.next('"') {
		return false
	}
	text := c.text
	for i := c.at; i < len(text); i++ {
		switch b := text[i]; {
		case b == '"':
			c.at = i + 1
			return true
		case b < ' ':
			return false
		case b == '\\':
			i += escapeLen(text[i:]) - 1
		}
	}
	return false
}

// escapeLen returns the length of the escape that the text begins with, or of the text if it is malformed.
func escapeLen(text []byte) int {
	switch {
	case len(text) > 1 && strings.IndexByte(`"\/bfnrt`, text[1]) >= 0:
		return 2
	case escapedRune(text) >= 0:
		return 6
	}
	return len(text)
}

// escapedRune returns the value of the escape, \u and four digits, that the text begins with, or -1.
func escapedRune(text []byte) rune {
	if len(text) >= 6 && text[0] == '\\' && text[1] == 'u' {
		if r, err := strconv.ParseUint(string(text[2:6]), 16, 16); err == nil {
			return rune(r)
		}
	}
	return -1
}

// plain skips a number or a word.
func (c *compactor) plain() bool {
	from, isNatural := c.at, true // without fraction and exponent, like most numbers
	for ; c.at < len(c.text) && !isDelimiter[c.text[c.at]]; c.at++ {
		isNatural = isNatural && '0' <= c.text[c.at] && c.text[c.at] <= '9'
	}
	value := c.text[from:c.at]
	isNatural = isNatural && len(value) > 0 && (value[0] != '0' || len(value) == 1)
	return isNatural || string(value) == "null" || json.Valid(value)
}

var isDelimiter = [256]bool{',': true, ']': true, '}': true, ' ': true, '\n': true, '\r': true, '\t': true}

// Members yields the names and values of a JSON object, in order, and nothing for any other value.
func Members(object []byte) iter.Seq2[string, json.RawMessage] {
	return func(yield func(string, json.RawMessage) bool) {
		RawMembers(object)(func(name, value json.RawMessage) bool { return yield(Unquote(name), value) })
	}
}

// RawMembers is Members with the names as they are written, in quotes.
func RawMembers(object []byte) iter.Seq2[json.RawMessage, json.RawMessage] { return parts(object, '{') }

// Elements returns the values of a JSON array, and nothing for any other value.
func Elements(array []byte) (elements []json.RawMessage) {
	for _, value := range parts(array, '[') {
		elements = append(elements, value)
	}
	return elements
}

// parts yields the members of an object or, without names, the elements of an array.
func parts(text []byte, opening byte) iter.Seq2[json.RawMessage, json.RawMessage] {
	return func(yield func(name, value json.RawMessage) bool) {
		rest, opens := bytes.CutPrefix(text, []byte{opening})
		for opens && len(rest) > 0 && (rest[0] == '"' || opening == '[' && rest[0] != ']') {
			var name json.RawMessage
			if opening == '{' {
				name = rest[:stringLen(rest)]
				rest = rest[len(name)+1:] // the colon
			}
			value, _ := measure(rest)
			if !yield(name, value) {
				return
			}
			rest = rest[len(value)+1:] // a comma or the end
		}
	}
}

// nameOf returns the name without its quotes and escapes.
func nameOf(raw json.RawMessage) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1]
	}
	return []byte(Unquote(raw))
}

// Get returns the value at the path of names, or nil. If a name is repeated, the last member counts.
func Get(object json.RawMessage, path ...string) json.RawMessage {
	for _, name := range path {
		object = Pick(object, name)[0]
	}
	return object
}

// Pick returns what Get returns for each of the names, but in one pass.
func Pick(object json.RawMessage, names ...string) []json.RawMessage {
	p := Picker{Names: names}
	p.Pick(object)
	return p.Values
}

// A Picker picks members from one object after another, and in the same pass those of one of its members, if that
// is an object. Its values are valid until it picks again.
type Picker struct {
	Names  []string
	Values []json.RawMessage // in the order of the names; nil for a missing member
	Within string            // the name of the member that Inner picks from
	Inner  *Picker           // may be nil
}

// Pick picks from the object that the text begins with, and returns the object's length.
func (p *Picker) Pick(text []byte) int {
	p.Values = append(p.Values[:0], make([]json.RawMessage, len(p.Names))...)
	if p.Inner != nil {
		p.Inner.Pick(nil)
	}
	if len(text) == 0 || text[0] != '{' {
		return 0
	}
	rest := text[1:]
	for rest[0] == '"' {
		raw := rest[:stringLen(rest)]
		is := nameOf(raw)
		rest = rest[len(raw)+1:] // the colon
		value := rest
		if p.Inner != nil && rest[0] == '{' && string(is) == p.Within {
			value = rest[:p.Inner.Pick(rest)]
		} else {
			value, _ = measure(rest)
		}
		for i, name := range p.Names {
			if string(is) == name {
				p.Values[i] = value
			}
		}
		rest = bytes.TrimPrefix(rest[len(value):], []byte{','})
	}
	return len(text) - len(rest) + 1
}

// Depth returns how deeply objects and arrays are nested in the value: 0 for a plain value.
func Depth(value json.RawMessage) int {
	_, deepest := measure(value)
	return deepest
}

// measure returns the value that the text begins with, up to a comma or a closing bracket, and its depth.
func measure(text []byte) (value json.RawMessage, deepest int) {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case !isSyntax[c]:
		case c == '"':
			i += stringLen(text[i:]) - 1
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case depth == 0 && (c == ',' || c == '}' || c == ']'):
			return text[:i], deepest
		case c == '}' || c == ']':
			depth--
		}
	}
	return text, deepest
}

// isSyntax says which bytes measure must look at.
var isSyntax = [256]bool{'"': true, ',': true, '{': true, '}': true, '[': true, ']': true}

// stringLen returns the length of the string that the text begins with, quotes included.
func stringLen(text []byte) int {
	for from := 1; ; {
		quote := bytes.IndexByte(text[from:], '"')
		if quote < 0 {
			return len(text)
		}
		end := from + quote
		escapes := 0
		for text[end-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return end + 1
		}
		from = end + 1
		for near := min(from+32, len(text)); from < near; from++ { // after an escaped quote, others are often near
			switch text[from] {
			case '"':
				return from + 1
			case '\\':
				from++
			}
		}
	}
}

// IsNull reports whether the value is null or missing.
func IsNull(value json.RawMessage) bool { return value == nil || string(value) == "null" }

// Unquote returns the text of a string, and "" for any other value.
func Unquote(value json.RawMessage) string {
	if len(value) < 2 || value[0] != '"' {
		return ""
	}
	plain := value[1 : len(value)-1]
	hasEscapes := bytes.IndexByte(plain, '\\') >= 0
	switch {
	case !utf8.Valid(plain) || hasEscapes && bytes.Contains(plain, []byte(`\u`)):
		var text string
		_ = json.Unmarshal(value, &text) // it is valid
		return text
	case hasEscapes:
		return unescaper.Replace(string(plain))
	}
	return string(plain)
}

// unescaper replaces the escapes other than \u, five times as fast as encoding/json.
var unescaper = strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\/`, `/`, `\b`, "\b", `\f`, "\f", `\n`, "\n", `\r`, "\r", `\t`, "\t")

// Equal reports whether two values mean the same. Numbers must agree digit for digit, and values of more than 64 kB
// byte for byte, since decoding takes thirty times their size.
func Equal(a, b json.RawMessage) bool {
	return bytes.Equal(a, b) || max(len(a), len(b)) <= 64<<10 && reflect.DeepEqual(Decode(a), Decode(b))
}

// Decode decodes the value as encoding/json does, with each number as a json.Number.
func Decode(text json.RawMessage) (value any) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	_ = decoder.Decode(&value) // it is valid
	return value
}

// Int returns the value as an integer, and false if it is not one.
func Int(value json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(string(value), 10, 64)
	return n, err == nil
}

// Set returns a copy of the object with the member changed or added at the end, or removed if the value is nil.
func Set(object json.RawMessage, name string, value json.RawMessage) json.RawMessage {
	changed := append(make(json.RawMessage, 0, len(object)+len(name)+len(value)+4), '{')
	found := false
	for n, v := range RawMembers(object) {
		if string(nameOf(n)) == name {
			found, v = true, value
		}
		changed = appendMember(changed, n, v)
	}
	if !found {
		changed = appendMember(changed, AppendQuoted(nil, name), value)
	}
	return append(changed, '}')
}

// appendMember appends a member, or an element if the name is nil, to an unclosed object or array, unless the value is nil.
func appendMember(object, name, value json.RawMessage) json.RawMessage {
	if value == nil {
		return object
	}
	if len(object) > 1 {
		object = append(object, ',')
	}
	if name != nil {
		object = append(append(object, name...), ':')
	}
	return append(object, value...)
}

// AppendQuoted appends the text as a JSON string.
func AppendQuoted(buf []byte, text string) []byte {
	quick, plain, isValid := append(buf, '"'), 0, utf8.ValidString(text)
	for i := range len(text) {
		if c := text[i]; ' ' <= c && c != '"' && c != '\\' && (c < utf8.RuneSelf || isValid && c != '\xe2') {
			continue // \xe2 begins U+2028, which has an escape
		}
		short := strings.IndexByte("\n\t\r\"\\", text[i])
		if short < 0 {
			var quoted bytes.Buffer
			encoder := json.NewEncoder(&quoted)
			encoder.SetEscapeHTML(false) // which would make six bytes of one
			_ = encoder.Encode(text)     // cannot fail for a string
			return append(buf, bytes.TrimSuffix(quoted.Bytes(), []byte("\n"))...)
		}
		quick = append(append(quick, text[plain:i]...), '\\', `ntr"\`[short])
		plain = i + 1
	}
	return append(append(quick, text[plain:]...), '"')
}

// Cut truncates the text to the given number of bytes as a JSON string, whichever encoder writes it.
func Cut(text string, most int) string {
	if len(text) <= most/6 {
		return text
	}
	for i, r := range text {
		most -= utf8.RuneLen(r)
		if r < ' ' || strings.ContainsRune("\"\\<>&\u007f\u2028\u2029\uFFFD", r) {
			most -= 5 // it may be escaped
		}
		if most < 0 {
			return text[:i] + "…"
		}
	}
	return text
}

// Purge returns the value without the members with the name, at any depth below the path.
func Purge(value json.RawMessage, name string, path ...string) json.RawMessage {
	if value[0] != '{' && (value[0] != '[' || len(path) > 0) {
		return value
	}
	purged := json.RawMessage{value[0]}
	for n, v := range parts(value, value[0]) {
		switch {
		case len(path) > 0 && string(nameOf(n)) == path[0]:
			v = Purge(v, name, path[1:]...)
		case len(path) == 0 && n != nil && string(nameOf(n)) == name:
			v = nil
		case len(path) == 0:
			v = Purge(v, name)
		}
		purged = appendMember(purged, n, v)
	}
	return append(purged, value[0]+2)
}

// StorableText replaces what PostgreSQL cannot store, NUL and invalid UTF-8, with U+FFFD.
func StorableText(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// Storable replaces what PostgreSQL's type json cannot store or query with U+FFFD: invalid UTF-8, \u0000 and lone
// surrogates. It returns its argument if there is nothing to replace.
func Storable(text json.RawMessage) json.RawMessage {
	if !utf8.Valid(text) {
		text = bytes.ToValidUTF8(text, []byte("\uFFFD"))
	}
	if !bytes.Contains(text, []byte(`\u`)) {
		return text
	}
	clean := make(json.RawMessage, 0, len(text))
	for at := bytes.IndexByte(text, '\\'); at >= 0; at = bytes.IndexByte(text, '\\') {
		clean, text = append(clean, text[:at]...), text[at:]
		part := text[:escapeLen(text)]
		switch r, next := escapedRune(text), escapedRune(text[len(part):]); {
		case utf16.DecodeRune(r, next) != utf8.RuneError:
			part = text[:12] // a pair of surrogates
		case r == 0 || utf16.IsSurrogate(r):
			part = json.RawMessage(`\ufffd`) // as long as what it replaces
		}
		clean, text = append(clean, part...), text[len(part):]
	}
	return append(clean, text...)
}

// Object parses a JSON object and returns its members. It refuses repeated names.
func Object(text []byte) (map[string]json.RawMessage, error) {
	compact, err := Compact(bytes.Clone(text))
	switch {
	case !utf8.Valid(text):
		return nil, errors.New("it is not UTF-8")
	case err != nil:
		return nil, fmt.Errorf("it is not JSON: %w", err)
	case compact[0] != '{':
		return nil, errors.New("it is not a JSON object")
	}
	object := map[string]json.RawMessage{}
	for name, value := range Members(compact) {
		if _, twice := object[name]; twice {
			return nil, fmt.Errorf("%q is given twice", name)
		}
		object[name] = value
	}
	return object, nil
}

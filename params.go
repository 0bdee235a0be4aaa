package main

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"app/internal/rawjson"
)

// A place is the part of a request that holds a parameter.
type place string

const (
	inPath  place = "path"
	inQuery place = "query"
	inBody  place = "json"
	inFlag  place = "flag" // in no part: only the command line has it
)

// A param is one parameter of an operation.
type param struct {
	name     string // as in queries and bodies: "code_version"
	in       place
	help     string
	value    string // the default, "" for none
	required bool
	unless   string // the parameter that replaces this required one and excludes all others, or ""
	enum     []string
	min, max int64 // bounds of a number or of a text's length
	file     bool  // the flag names a file that holds the JSON body
	kind     paramKind
	repeated bool
	nullable bool
	field    []int // its index in the input struct
}

// A paramKind is the type of a parameter's values.
type paramKind string

const (
	kindText   paramKind = "text"
	kindNumber paramKind = "number"
	kindBool   paramKind = "bool"
	kindObject paramKind = "object"
	kindOther  paramKind = "other" // a type with UnmarshalText
)

// An Opt is an optional parameter: absent, null (in a field with the tag null:"true") or a value.
type Opt[T any] struct {
	Set, Null bool
	Value     T
}

// IsZero reports whether it is absent, for omitzero.
func (o Opt[T]) IsZero() bool { return !o.Set }

// MarshalJSON writes null or the value.
func (o Opt[T]) MarshalJSON() ([]byte, error) {
	if o.Null {
		return []byte("null"), nil
	}
	return json.Marshal(o.Value)
}

func (o *Opt[T]) target() any { o.Set = true; return &o.Value }
func (o *Opt[T]) setNull()    { o.Set, o.Null = true, true }

type optional interface {
	target() any
	setNull()
}

// A literal is one value as it was given: text from a URL or a flag, or a piece of JSON.
type literal struct {
	text string
	json bool
}

// arguments are the values given for an operation's parameters, by name. The surface has already refused unknown names.
type arguments struct {
	values map[string][]literal
	label  func(*param) string // names a parameter in messages as the surface's users know it
}

// paramsOf reads the tags of an input struct.
func paramsOf(input reflect.Type) (params []*param) {
	for _, field := range reflect.VisibleFields(input) {
		if !field.Anonymous { // VisibleFields lists the fields of an embedded struct, too
			params = append(params, paramOf(field))
		}
	}
	return params
}

func paramOf(field reflect.StructField) *param {
	p := &param{
		help: field.Tag.Get("help"), value: field.Tag.Get("default"), min: math.MinInt64, max: math.MaxInt64,
		unless: field.Tag.Get("unless"), file: field.Tag.Get("file") == "true", nullable: field.Tag.Get("null") == "true",
		field: field.Index,
	}
	for _, in := range []place{inPath, inQuery, inBody, inFlag} {
		name, _, _ := strings.Cut(field.Tag.Get(string(in)), ",")
		if name != "" && name != "-" {
			p.name, p.in = name, in
		}
	}
	if enum := field.Tag.Get("enum"); enum != "" {
		p.enum = strings.Split(enum, ",")
	}
	for tag, bound := range map[string]*int64{"min": &p.min, "max": &p.max} {
		if text, ok := field.Tag.Lookup(tag); ok {
			*bound, _ = strconv.ParseInt(text, 10, 64)
		}
	}
	target := reflect.New(field.Type).Interface()
	o, isOptional := target.(optional)
	if isOptional {
		target = o.target()
	}
	switch target.(type) {
	case encoding.TextUnmarshaler:
		p.kind = kindOther
	case *string:
		p.kind = kindText
	case *[]string:
		p.kind, p.repeated = kindText, true
	case *int64:
		p.kind = kindNumber
	case *bool:
		p.kind = kindBool
	case *json.RawMessage:
		p.kind = kindObject
	}
	p.required = p.value == "" && !p.repeated && !isOptional
	return p
}

// fill checks the arguments and sets the fields of the input. Its error names everything that is wrong.
func (a arguments) fill(params []*param, input reflect.Value) error {
	var wrong []fieldError
	refuse := func(p *param, message string) { wrong = append(wrong, fieldError{p.name, a.label(p) + " " + message}) }
	for _, p := range params {
		given := a.values[p.name]
		switch {
		case len(given) == 0 && p.required:
			refuse(p, "is required: "+p.help)
		case len(given) == 0 && p.value != "":
			given = []literal{{text: p.value}}
		case len(given) > 1 && !p.repeated:
			refuse(p, fmt.Sprintf("is given %d times, but takes one value", len(given)))
			continue
		}
		for _, value := range given {
			if err := p.set(input.FieldByIndex(p.field).Addr().Interface(), value); err != nil {
				refuse(p, err.Error())
			}
		}
	}
	if len(wrong) > 0 {
		return invalidFields(wrong)
	}
	return nil
}

// set converts the literal and stores it in target, a pointer to a field of an input. Its errors are phrased to
// follow the parameter's name: "must be …".
func (p *param) set(target any, value literal) error {
	if o, ok := target.(optional); ok {
		if p.nullable && value.text == "null" {
			o.setNull()
			return nil
		}
		target = o.target()
	}
	var err error
	switch target := target.(type) {
	case *int64:
		*target, err = value.int()
		switch {
		case errors.Is(err, strconv.ErrRange) && p.max == math.MaxInt64:
			return fmt.Errorf("must be a whole number%s that fits in 64 bits%s", p.bounds(""), p.orNull())
		case err != nil || *target < p.min || *target > p.max:
			return fmt.Errorf("must be a whole number%s%s", p.bounds(""), p.orNull())
		}
	case *bool:
		*target = value.text == "true"
		if !*target && value.text != "false" {
			return fmt.Errorf("must be true or false%s", p.orNull())
		}
	case *json.RawMessage:
		*target, err = rawjson.Compact([]byte(value.text))
		if err != nil || (*target)[0] != '{' {
			return errors.New("must be a JSON object")
		}
	default:
		return p.setText(target, value)
	}
	return nil
}

// wholeNumber matches the only valid form of whole numbers outside JSON.
var wholeNumber = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

// int parses the literal as a whole number. In JSON, 5.0 and 5e0 are 5.
func (l literal) int() (int64, error) {
	text := l.text
	if near, err := strconv.ParseFloat(text, 64); l.json && len(text) < 30 && err == nil && math.Abs(near) < 1e19 {
		if exact, ok := new(big.Rat).SetString(text); ok && exact.IsInt() {
			text = exact.Num().String()
		}
	}
	if !wholeNumber.MatchString(text) {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(text, 10, 64)
}

// setText checks a text and stores it in target.
func (p *param) setText(target any, value literal) error {
	text := value.text
	switch {
	case !value.json && (!utf8.ValidString(text) || strings.ContainsRune(text, 0)):
		return errors.New("must be UTF-8 text without NUL")
	case value.json && !strings.HasPrefix(text, `"`):
		return fmt.Errorf("must be a string%s", p.orNull())
	case value.json:
		text = rawjson.Unquote([]byte(text))
	}
	n := int64(utf8.RuneCountInString(text))
	switch {
	case len(p.enum) > 0 && !slices.Contains(p.enum, text):
		return fmt.Errorf("must be one of %s", strings.Join(p.enum, ", "))
	case n == 0 && p.min == 1 && p.max == math.MaxInt64:
		return errors.New("must not be empty")
	case n < p.min || n > p.max:
		return fmt.Errorf("must be%s", p.bounds(" characters long"))
	}
	switch target := target.(type) {
	case *string:
		*target = text
	case *[]string:
		*target = append(*target, text)
	case encoding.TextUnmarshaler:
		return target.UnmarshalText([]byte(text))
	}
	return nil
}

// bounds puts the range into words: " from 1 to 5000".
func (p *param) bounds(unit string) string {
	switch {
	case p.min == math.MinInt64 && p.max == math.MaxInt64:
		return ""
	case p.max == math.MaxInt64:
		return fmt.Sprintf(" at least %d%s", p.min, unit)
	case p.min == math.MinInt64:
		return fmt.Sprintf(" at most %d%s", p.max, unit)
	}
	return fmt.Sprintf(" from %d to %d%s", p.min, p.max, unit)
}

func (p *param) orNull() string {
	if p.nullable {
		return ", or null"
	}
	return ""
}

// A Moment is a point in time, given as RFC 3339, a date (its beginning in UTC) or an age such as 36h.
type Moment struct{ time.Time }

var ageUnits = map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}

// longestAge is about the longest time that a time.Duration can hold.
const longestAge = 290 * 365 * 24 * time.Hour

// age parses a whole number of minutes, hours, days or weeks, capped at longestAge.
func age(text string) (time.Duration, error) {
	last := max(0, len(text)-1)
	n, err := literal{text: text[:last]}.int()
	unit := ageUnits[(text + " ")[last]]
	if err != nil || unit == 0 || n < 0 || n > math.MaxUint32 {
		return 0, strconv.ErrSyntax
	}
	return unit * min(time.Duration(n), longestAge/unit), nil
}

// momentForm rejects what time.Parse takes beyond RFC 3339: a one-digit hour, a comma, and offsets of 24 hours.
var momentForm = regexp.MustCompile(`T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):\d\d)$`)

// UnmarshalText parses these forms.
func (m *Moment) UnmarshalText(text []byte) (err error) {
	if ago, err := age(string(text)); err == nil {
		m.Time = time.Now().Add(-ago)
		return nil
	}
	if m.Time, err = time.Parse(time.DateOnly, string(text)); err == nil {
		return nil
	}
	// An unescaped plus sign in a URL arrives as a space.
	given := strings.ToUpper(strings.ReplaceAll(string(text), " ", "+"))
	if m.Time, err = time.Parse(time.RFC3339, given); err != nil || !momentForm.MatchString(given) {
		return errors.New("must be a time such as 2026-01-31T12:00:00Z, a date such as 2026-01-31 or an age such as 30m, 36h, 7d or 2w")
	}
	return nil
}

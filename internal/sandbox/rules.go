package sandbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"app/internal/rawjson"
)

// rules say which members of an object Rollbar accepts.
type rules []rule

// A rule applies to one or more members.
type rule struct {
	Names   string         // or paths, such as "exception.class"
	Kinds   string         // kinds that the value may have, the proper one first
	Form    *regexp.Regexp // matches the text of the value
	Members rules          // of the value, or of each element of an array
}

// accepted holds the rules for the data of "Create item" and for the members of a PATCH, which ignores other members.
// The documentation says nothing about null and empty values. It is a guess that null counts as missing in the data,
// except for level and uuid.
var accepted = parsed[struct{ Data, Patch rules }]("rules.json")

// refusals returns what Rollbar refuses about the data of a payload. Its wording is known for the body, for
// missing values and for values of the wrong kind.
func refusals(data json.RawMessage) []string {
	body := rawjson.Get(data, "body")
	contents := rawjson.Pick(body, "trace", "trace_chain", "message", "crash_report")
	missing := func(content json.RawMessage) bool { return content == nil }
	switch {
	case body == nil:
		return []string{"data.body must not be undefined. Instead, it should be an object with a 'message', 'trace', 'trace_chain', or 'crash_report' key."}
	case len(slices.DeleteFunc(contents, missing)) != 1:
		return []string{"data.body must have either a 'trace', 'trace_chain', 'message' or 'crash_report' property, (but not more than one)."}
	}
	return accepted().Data.refusals("data.", data)
}

// refusals returns what the rules refuse about an object. The path precedes the names of its members.
func (rs rules) refusals(path string, object json.RawMessage) (refused []string) {
	for _, r := range rs {
		for name := range strings.FieldsSeq(r.Names) {
			value := rawjson.Get(object, strings.Split(name, ".")...)
			kind, kinds, text := kindOf(value), strings.Fields(r.Kinds), string(value)
			if kind == "string" {
				text = rawjson.Unquote(value)
			}
			switch {
			case !slices.Contains(kinds, kind) && kind == "missing":
				refused = append(refused, path+name+" is missing and it is required.")
			case !slices.Contains(kinds, kind):
				refused = append(refused, path+name+" should be "+kinds[0]+".")
			case kind == "array":
				for i, element := range rawjson.Elements(value) {
					refused = append(refused, r.Members.refusals(fmt.Sprintf("%s%s[%d].", path, name, i), element)...)
				}
			case kind == "object":
				refused = append(refused, r.Members.refusals(path+name+".", value)...)
			case r.Form != nil && kind != "null" && kind != "missing" && !r.Form.MatchString(text):
				refused = append(refused, path+name+" is not valid.")
			}
		}
	}
	return refused
}

// kindOf returns the kind of a JSON value, or "missing". An integer fits into 64 bits; an empty array is "empty".
func kindOf(value json.RawMessage) string {
	_, isInteger := rawjson.Int(value)
	switch {
	case value == nil:
		return "missing"
	case isInteger:
		return "integer"
	case string(value) == "[]":
		return "empty"
	}
	first := map[byte]string{'n': "null", 't': "boolean", 'f': "boolean", '"': "string", '[': "array", '{': "object"}
	return cmp.Or(first[value[0]], "number")
}

// textAt returns the string at the path of names, or "".
func textAt(object json.RawMessage, names ...string) string {
	return rawjson.Unquote(rawjson.Get(object, names...))
}

package sandbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"app/internal/rawjson"
)

// rules say what Rollbar accepts as the members of an object.
type rules []rule

// A rule holds for some members.
type rule struct {
	names   string                // or paths, such as "exception.class"
	kinds   string                // those that the value may have, the proper one first
	form    func() *regexp.Regexp // matches the text of the value
	members rules                 // of the value, or of each element of an array
}

// matching returns the form of a value from an expression for its whole text. It is compiled at its first use,
// since most programs that contain the sandbox never use it.
func matching(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?s:` + expression + `)$`) })
}

// levels are from the least severe.
var levels = []string{"debug", "info", "warning", "error", "critical"}

var traceRules = rules{
	{names: "frames", kinds: "array empty"},
	{names: "exception.class", kinds: "string"},
}

// What "Create item" says about a payload. It says nothing about null and about empty values: that a null
// passes for a missing value, except as level and uuid, is a guess.
var dataRules = rules{
	{names: "environment", kinds: "string", form: matching(".{1,255}")},
	{names: "level", kinds: "string missing", form: matching(strings.Join(levels, "|"))},
	{names: "uuid", kinds: "string missing", form: matching(`[ -\x{ff}]{1,36}`)}, // Latin-1
	{names: "timestamp", kinds: "number integer null missing"},
	{names: "code_version", kinds: "string null missing", form: matching(".{0,40}")},
	{names: "title", kinds: "string null missing", form: matching(".{0,255}")},
	{names: "platform language framework context fingerprint", kinds: "string null missing"},
	{names: "request server client custom notifier", kinds: "object null missing"},
	{names: "person", kinds: "object null missing", members: rules{
		{names: "id", kinds: "string integer", form: matching(".{1,40}")},
		{names: "username email", kinds: "string null missing", form: matching(".{0,255}")},
	}},
	{names: "body", kinds: "object", members: rules{
		{names: "telemetry", kinds: "array empty null missing", members: rules{{names: "timestamp_ms", kinds: "number integer null missing"}}},
		{names: "message", kinds: "object missing", members: rules{{names: "body", kinds: "string"}}},
		{names: "crash_report", kinds: "object missing", members: rules{{names: "raw", kinds: "string"}}},
		{names: "trace", kinds: "object missing", members: traceRules},
		{names: "trace_chain", kinds: "array missing", members: traceRules},
	}},
}

// refusals returns what Rollbar refuses about the data of a payload. Its wording is known for the body, for
// what is missing and for what has the wrong kind.
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
	return dataRules.refusals("data.", data)
}

// refusals returns what the rules refuse about an object. The path precedes the names of its members.
func (rs rules) refusals(path string, object json.RawMessage) (refused []string) {
	for _, r := range rs {
		for name := range strings.FieldsSeq(r.names) {
			value := rawjson.Get(object, strings.Split(name, ".")...)
			kind, kinds, text := kindOf(value), strings.Fields(r.kinds), string(value)
			if kind == "string" {
				text = rawjson.Unquote(value)
			}
			switch {
			case !slices.Contains(kinds, kind) && kind == "missing":
				refused = append(refused, path+name+" is missing and it is required.")
			case !slices.Contains(kinds, kind):
				refused = append(refused, path+name+" should be "+kinds[0]+".")
			case kind == "array":
				for i, element := range slices.Collect(rawjson.Elements(value)) {
					refused = append(refused, r.members.refusals(fmt.Sprintf("%s%s[%d].", path, name, i), element)...)
				}
			case kind == "object":
				refused = append(refused, r.members.refusals(path+name+".", value)...)
			case r.form != nil && kind != "null" && kind != "missing" && !r.form().MatchString(text):
				refused = append(refused, path+name+" is not valid.")
			}
		}
	}
	return refused
}

// kindOf returns the kind of a JSON value, or "missing". An integer has 64 bits, an empty array is "empty".
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

// textAt returns the string to which the names lead in an object, or "".
func textAt(object json.RawMessage, names ...string) string {
	return rawjson.Unquote(rawjson.Get(object, names...))
}

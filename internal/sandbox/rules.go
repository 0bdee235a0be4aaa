package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// rules say what Rollbar accepts as the members of an object.
type rules []rule

// A rule holds for some members.
type rule struct {
	names    string // or paths, such as "exception.class"
	required bool
	kinds    string                // those that the value may have, the proper one first
	form     func() *regexp.Regexp // matches the text of the value
}

// matching returns the form of a value from an expression for its whole text. It is compiled at its first
// use, since most programs that contain the sandbox never use it.
func matching(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?s:` + expression + `)$`) })
}

// levels are from the least severe.
var levels = []string{"debug", "info", "warning", "error", "critical"}

// What "Create item" says about a payload. It says nothing about null and about empty values: that a
// null passes for a missing value, except as level and uuid, is a guess.
var (
	dataRules = rules{
		{"environment", true, "string", matching(".{1,255}")},
		{"body", true, "object", nil},
		{"body.telemetry", false, "array null", nil},
		{"level", false, "string", matching(strings.Join(levels, "|"))},
		{"uuid", false, "string", matching(`[ -\x{ff}]{1,36}`)}, // Latin-1
		{"timestamp", false, "number integer null", nil},
		{"code_version", false, "string null", matching(".{0,40}")},
		{"title", false, "string null", matching(".{0,255}")},
		{"platform language framework context fingerprint", false, "string null", nil},
		{"request person server client custom notifier", false, "object null", nil},
	}
	personRules = rules{
		{"id", true, "string integer", matching(".{1,40}")},
		{"username email", false, "string null", matching(".{0,255}")},
	}
	telemetryRules = rules{
		{"timestamp_ms", false, "number integer null", nil},
	}
	traceRules = rules{
		{"frames", true, "array", nil},
		{"exception.class", true, "string", nil},
	}
	bodyRules = map[string]rules{
		"message":      {{"body", true, "string", nil}},
		"crash_report": {{"raw", true, "string", nil}},
		"trace":        traceRules,
		"trace_chain":  nil, // holds traces
	}
)

// refusals returns what Rollbar refuses about the data of a payload. Its wording is known for the body,
// for what is missing and for what has the wrong kind.
func refusals(data any) []string {
	body, found := at(data, "body")
	if !found {
		return []string{"data.body must not be undefined. Instead, it should be an object with a 'message', 'trace', 'trace_chain', or 'crash_report' key."}
	}
	refused := dataRules.refusals("data.", data)
	if person, _ := at(data, "person"); kindOf(person) == "object" {
		refused = append(refused, personRules.refusals("data.person.", person)...)
	}
	telemetry, _ := at(body, "telemetry")
	entries, _ := telemetry.([]any)
	for i, entry := range entries {
		refused = append(refused, telemetryRules.refusals(fmt.Sprintf("data.body.telemetry[%d].", i), entry)...)
	}
	kinds := 0
	for kind, kindRules := range bodyRules {
		content, found := at(body, kind)
		if !found {
			continue
		}
		kinds++
		refused = append(refused, kindRules.refusals("data.body."+kind+".", content)...)
		if kind == "trace_chain" {
			traces, _ := content.([]any)
			if len(traces) == 0 {
				refused = append(refused, "data.body.trace_chain should be array.")
			}
			for i, trace := range traces {
				refused = append(refused, traceRules.refusals(fmt.Sprintf("data.body.trace_chain[%d].", i), trace)...)
			}
		}
	}
	if kinds != 1 {
		return []string{"data.body must have either a 'trace', 'trace_chain', 'message' or 'crash_report' property, (but not more than one)."}
	}
	return refused
}

// refusals returns what the rules refuse about an object. The path precedes the names of its members.
func (rs rules) refusals(path string, object any) (refused []string) {
	for _, r := range rs {
		for name := range strings.FieldsSeq(r.names) {
			value, found := at(object, strings.Split(name, ".")...)
			kinds := strings.Fields(r.kinds)
			switch {
			case !found && r.required:
				refused = append(refused, path+name+" is missing and it is required.")
			case found && !slices.Contains(kinds, kindOf(value)):
				refused = append(refused, path+name+" should be "+kinds[0]+".")
			case value != nil && r.form != nil && !r.form().MatchString(fmt.Sprint(value)):
				refused = append(refused, path+name+" is not valid.")
			}
		}
	}
	return refused
}

// kindOf returns the kind of a JSON value. An integer has 64 bits.
func kindOf(value any) string {
	switch value := value.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case json.Number:
		if _, err := value.Int64(); err == nil {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	}
	return "object"
}

// decode returns a JSON value with the numbers as they are written, or nil for a text that is not JSON.
func decode(text []byte) (value any) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if json.Valid(text) {
		_ = decoder.Decode(&value) // valid
	}
	return value
}

// at returns the value to which the names lead in an object.
func at(value any, names ...string) (_ any, found bool) {
	for _, name := range names {
		object, _ := value.(map[string]any)
		if value, found = object[name]; !found {
			return nil, false
		}
	}
	return value, true
}

// textAt returns the string to which the names lead, or "".
func textAt(value any, names ...string) string {
	value, _ = at(value, names...)
	text, _ := value.(string)
	return text
}

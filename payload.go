// payload.go checks and makes the data of an occurrence. What Rollbar is known to refuse is
// refused here, before anything is recorded, so that nothing is acknowledged that cannot arrive.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"app/internal/rawjson"
)

// newUUID returns a random UUID, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	text := hex.AppendEncode(make([]byte, 0, 36), b[:4])
	for _, part := range [][]byte{b[4:6], b[6:8], b[8:10], b[10:]} {
		text = hex.AppendEncode(append(text, '-'), part)
	}
	return string(text)
}

// bodyKinds are the members of data.body of which exactly one must be there.
var bodyKinds = []string{"trace", "trace_chain", "message", "crash_report"}

// levels are Rollbar's levels, from the least severe.
var levels = []string{"debug", "info", "warning", "error", "critical"}

// A payloadCheck gathers what is wrong with a payload.
type payloadCheck struct {
	within string // before the names of fields
	wrong  []fieldError
}

func (c *payloadCheck) refuse(field, format string, args ...any) {
	field = c.within + field
	c.wrong = append(c.wrong, fieldError{field, field + " " + fmt.Sprintf(format, args...)})
}

// largestPayload is how many bytes Rollbar takes as one occurrence: 1024 KB, says "Create item".
const largestPayload = 1 << 20

// checkSize reports data that are too large for Rollbar, with what Post puts around them.
func checkSize(data json.RawMessage) error {
	if n := len(data) + len(`{"data":}`); n > largestPayload {
		return fail(tooLarge, "the payload has %d bytes, of which Rollbar takes %d", n, largestPayload)
	}
	return nil
}

// checkPayload reports what Rollbar would refuse about the data of an occurrence, which is compact
// JSON, naming fields with what they are within. The rules and limits are those of Rollbar's page
// "Create item".
func checkPayload(data json.RawMessage, within string) error {
	c := payloadCheck{within: within}
	switch environment := rawjson.Get(data, "environment"); {
	case environment == nil:
		c.refuse("environment", "is required")
	case string(environment) == `""`:
		c.refuse("environment", "must not be empty")
	}
	if timestamp := rawjson.Get(data, "timestamp"); !isNull(timestamp) && timestamp[0] != '-' && (timestamp[0] < '0' || timestamp[0] > '9') {
		c.refuse("timestamp", "must be a number, Unix seconds")
	}
	for name, limit := range map[string]int{
		"environment": 255, "title": 255, "uuid": 36, "code_version": 40, "level": 0,
		"fingerprint": 0, "context": 0, "platform": 0, "language": 0, "framework": 0,
	} {
		c.text(name, rawjson.Get(data, name), limit)
	}
	for _, name := range []string{"request", "person", "server", "client", "custom", "notifier"} {
		if value := rawjson.Get(data, name); !isNull(value) && value[0] != '{' {
			c.refuse(name, "must be an object")
		}
	}
	if level := rawjson.Get(data, "level"); level != nil && (level[0] == '"' || isNull(level)) && !slices.Contains(levels, rawjson.Unquote(level)) {
		c.refuse("level", "must be one of %s", strings.Join(levels, ", "))
	}
	if uuid := rawjson.Get(data, "uuid"); uuid != nil {
		if text := rawjson.Unquote(uuid); text == "" || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > 0xFF }) {
			c.refuse("uuid", "must be a UUID, or another text of up to 36 Latin-1 characters")
		}
	}
	if person := rawjson.Get(data, "person"); len(person) > 0 && person[0] == '{' {
		c.person(person)
	}
	c.body(rawjson.Get(data, "body"))
	if len(c.wrong) == 0 {
		return nil
	}
	slices.SortFunc(c.wrong, func(a, b fieldError) int { return strings.Compare(a.Field, b.Field) })
	return invalidFields(c.wrong)
}

func isNull(value json.RawMessage) bool { return value == nil || string(value) == "null" }

// text checks an optional text of at most limit characters, or any number for 0. Null is accepted
// but for the environment, which is required.
func (c *payloadCheck) text(field string, value json.RawMessage, limit int) {
	switch {
	case isNull(value) && (value == nil || field != "environment"):
	case value[0] != '"':
		c.refuse(field, "must be a string")
	case limit > 0 && utf8.RuneCountInString(rawjson.Unquote(value)) > limit:
		c.refuse(field, "must be at most %d characters long", limit)
	}
}

func (c *payloadCheck) person(person json.RawMessage) {
	id := rawjson.Get(person, "id")
	if isNull(id) || string(id) == `""` {
		c.refuse("person.id", "is required in %sperson", c.within)
	} else if _, number := rawjson.Int(id); !number {
		c.text("person.id", id, 40)
	}
	c.text("person.username", rawjson.Get(person, "username"), 255)
	c.text("person.email", rawjson.Get(person, "email"), 255)
}

func (c *payloadCheck) body(body json.RawMessage) {
	if len(body) == 0 || body[0] != '{' {
		c.refuse("body", "must be an object with one of %s", strings.Join(bodyKinds, ", "))
		return
	}
	var kinds []string
	for _, kind := range bodyKinds {
		if rawjson.Get(body, kind) != nil {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) != 1 {
		c.refuse("body", "must have exactly one of %s", strings.Join(bodyKinds, ", "))
		return
	}
	if telemetry := rawjson.Get(body, "telemetry"); !isNull(telemetry) && telemetry[0] != '[' {
		c.refuse("body.telemetry", "must be an array")
	}
	content, field := rawjson.Get(body, kinds[0]), "body."+kinds[0]
	switch kinds[0] {
	case "message":
		c.required(field+".body", rawjson.Get(content, "body"), '"', "a string")
	case "crash_report":
		c.required(field+".raw", rawjson.Get(content, "raw"), '"', "a string")
	case "trace":
		c.trace(field, content)
	case "trace_chain":
		count := 0
		for trace := range rawjson.Elements(content) {
			c.trace(fmt.Sprintf("%s[%d]", field, count), trace)
			count++
		}
		if count == 0 {
			c.refuse(field, "must be an array of at least one trace")
		}
	}
}

func (c *payloadCheck) trace(field string, trace json.RawMessage) {
	c.required(field+".frames", rawjson.Get(trace, "frames"), '[', "an array")
	c.required(field+".exception.class", rawjson.Get(trace, "exception", "class"), '"', "a string")
}

// required checks a value that must be there and begin as its type does.
func (c *payloadCheck) required(field string, value json.RawMessage, begin byte, what string) {
	if len(value) == 0 || value[0] != begin {
		c.refuse(field, "is required and must be %s", what)
	}
}

// occurrenceTitle is the title that Rollbar would give an occurrence, as far as its payload says.
func occurrenceTitle(data json.RawMessage) string {
	if title := rawjson.Unquote(rawjson.Get(data, "title")); title != "" {
		return title
	}
	body := rawjson.Get(data, "body")
	if message := rawjson.Unquote(rawjson.Get(body, "message", "body")); message != "" {
		return message
	}
	if report, _, _ := strings.Cut(rawjson.Unquote(rawjson.Get(body, "crash_report", "raw")), "\n"); report != "" {
		return report
	}
	trace := rawjson.Get(body, "trace")
	for first := range rawjson.Elements(rawjson.Get(body, "trace_chain")) {
		trace = first
		break
	}
	exception := rawjson.Get(trace, "exception")
	return rawjson.Unquote(rawjson.Get(exception, "class")) + ": " + rawjson.Unquote(rawjson.Get(exception, "message"))
}

// items_create.go creates occurrences. An answer with success promises that the occurrence has reached
// Rollbar or is stored in PostgreSQL, from where the outbox delivers it. Each occurrence has a uuid before
// it is first sent, and Rollbar drops a second delivery of the same one. A payload that Rollbar is known to
// refuse is refused here, before it is stored, so that everything that is acknowledged can arrive.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"app/internal/rawjson"
)

var itemsCreateCmd = &Command{
	Name:    "items.create",
	Route:   "POST /items",
	Short:   "Create an occurrence, which Rollbar groups into an item",
	Long:    "Give either message, with any of the other parameters, or data, which is Rollbar's own payload.",
	Changes: true,
	Run:     typed(itemsCreate),
}

type itemsCreateInput struct {
	Data        Opt[json.RawMessage] `json:"data" file:"true" help:"Rollbar's own payload, {\"data\":{…}}, instead of all other parameters"`
	Message     Opt[string]          `json:"message" min:"1" help:"what happened (required without data)"`
	Level       Opt[string]          `json:"level" enum:"debug,info,warning,error,critical" help:"level (default error)"`
	Environment Opt[string]          `json:"environment" min:"1" max:"255" help:"environment in which it happened (default production)"`
	Title       Opt[string]          `json:"title" min:"1" max:"255" help:"title of the item (default the message)"`
	Fingerprint Opt[string]          `json:"fingerprint" min:"1" help:"occurrences with the same fingerprint are grouped into one item"`
	UUID        Opt[string]          `json:"uuid" min:"1" max:"36" help:"your own UUID; a second occurrence with the same one is not created"`
	CodeVersion Opt[string]          `json:"code_version" min:"1" max:"40" help:"version of the code in which it happened"`
	Custom      Opt[json.RawMessage] `json:"custom" help:"any other data, as a JSON object"`
}

// maxNesting bounds how deep a payload is nested: many programs that read JSON have a bound of their own.
const maxNesting = 200

func (in *itemsCreateInput) check() error {
	switch {
	case in.Data.Set && (in.Message.Set || len(in.flat()) > len(`{}`)):
		return invalidField("data", "is Rollbar's own payload: nothing else can be given with it")
	case !in.Data.Set && !in.Message.Set:
		return invalidField("message", "is required, unless data holds Rollbar's own payload")
	}
	within := ""
	if in.Data.Set {
		within = "data."
	}
	data := in.payload()
	if rawjson.Depth(data) > maxNesting {
		return fail(invalid, "the payload is nested more than %d levels deep", maxNesting)
	}
	return checkPayload(data, within)
}

// flat are the parameters as members of a payload, without the message.
func (in *itemsCreateInput) flat() json.RawMessage {
	flat := json.RawMessage(`{}`)
	for _, p := range []struct {
		name  string
		value Opt[string]
	}{
		{"level", in.Level}, {"environment", in.Environment}, {"title", in.Title},
		{"fingerprint", in.Fingerprint}, {"uuid", in.UUID}, {"code_version", in.CodeVersion},
	} {
		if p.value.Set {
			flat = rawjson.Set(flat, p.name, rawjson.AppendQuoted(nil, p.value.Value))
		}
	}
	if in.Custom.Set {
		flat = rawjson.Set(flat, "custom", in.Custom.Value)
	}
	return flat
}

// payload returns the data for Rollbar, with a uuid only if the caller chose one.
func (in *itemsCreateInput) payload() json.RawMessage {
	if in.Data.Set {
		return in.Data.Value
	}
	data := in.flat()
	if !in.Level.Set {
		data = rawjson.Set(data, "level", json.RawMessage(`"error"`))
	}
	if !in.Environment.Set {
		data = rawjson.Set(data, "environment", json.RawMessage(`"production"`))
	}
	body := fmt.Appendf(nil, `{"message":{"body":%s}}`, rawjson.AppendQuoted(nil, in.Message.Value))
	return rawjson.Set(data, "body", body)
}

// Created is what became of a new occurrence.
type Created struct {
	UUID  string `json:"uuid"`
	State string `json:"state"` // delivered or queued
}

func (c Created) outcome() outcome {
	if c.State == "queued" {
		return accepted
	}
	return created
}

func (Created) outcomes() []outcome { return []outcome{created, accepted} }

func itemsCreate(ctx context.Context, app *App, in itemsCreateInput) (Created, error) {
	if err := app.rollbar.require(scopePost); err != nil {
		return Created{}, err
	}
	data := in.payload()
	if isNull(rawjson.Get(data, "timestamp")) { // it may arrive hours later
		data = rawjson.Set(data, "timestamp", fmt.Appendf(nil, "%d", time.Now().Unix()))
	}
	uuid := rawjson.Unquote(rawjson.Get(data, "uuid"))
	if uuid == "" {
		uuid = newUUID()
		data = rawjson.Set(data, "uuid", rawjson.AppendQuoted(nil, uuid))
	}
	if err := checkSize(data); err != nil {
		return Created{}, err
	}
	if app.store == nil {
		callOf(ctx).notStored("DATABASE_URL is not set")
		if err := app.rollbar.Post(ctx, data); err != nil {
			return Created{}, fmt.Errorf("create %s: %w", uuid, err)
		}
		return Created{uuid, "delivered"}, nil
	}
	return app.create(ctx, uuid, data)
}

// create stores the occurrence, sends it and records what became of it.
func (app *App) create(ctx context.Context, uuid string, data json.RawMessage) (Created, error) {
	sending, cancel := context.WithTimeout(ctx, app.outbox.lease()) // until then nobody else sends it
	defer cancel()
	e, err := app.outbox.enqueue(ctx, uuid, data)
	switch {
	case err != nil && ctx.Err() != nil:
		return Created{}, fmt.Errorf("create %s: %w", uuid, ctx.Err())
	case err != nil:
		return app.createUnstored(sending, uuid, data, err)
	case !e.isNew:
		return e.created()
	}
	app.telemetry.Count("app.reports.stored", 1)
	err = app.rollbar.Post(sending, data)
	switch {
	case err == nil:
		app.store.deliveries.Put(ctx, e.id)
		app.outbox.succeeded()
		return Created{uuid, "delivered"}, nil
	case isFinal(err):
		app.outbox.reject(ctx, e, err)
	case isKind(err, rollbarAuth):
		app.outbox.discard(ctx, e)
	default:
		app.outbox.makeAvailable(ctx, e)
		if ctx.Err() == nil {
			return Created{uuid, "queued"}, nil
		}
	}
	return Created{}, fmt.Errorf("create %s: %w", uuid, err)
}

// createUnstored sends an occurrence that PostgreSQL does not take, for whatever reason. It is acknowledged
// only if Rollbar takes it.
func (app *App) createUnstored(ctx context.Context, uuid string, data json.RawMessage, why error) (Created, error) {
	app.log.WarnContext(ctx, "occurrence is not stored", "uuid", uuid, "error", why)
	callOf(ctx).notStored(why.Error())
	err := app.rollbar.Post(ctx, data)
	switch {
	case err == nil:
		return Created{uuid, "delivered"}, nil
	case isFinal(err), isKind(err, rollbarAuth), errors.Is(ctx.Err(), context.Canceled):
		return Created{}, fmt.Errorf("create %s: %w", uuid, err)
	}
	f := fail(unavailable, "create %s: neither PostgreSQL nor Rollbar accepts it: %w", uuid, err)
	f.upstream, f.wait = failureOf(err).upstream, failureOf(err).wait
	return Created{}, f
}

// isFinal reports whether Rollbar refused an occurrence for good.
func isFinal(err error) bool { return isKind(err, invalid, tooLarge, unprocessable) }

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
	if timestamp := rawjson.Get(data, "timestamp"); !isNull(timestamp) && !isNumber(timestamp) {
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

func isNumber(value json.RawMessage) bool {
	return value[0] == '-' || '0' <= value[0] && value[0] <= '9'
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
	telemetry := rawjson.Get(body, "telemetry")
	if !isNull(telemetry) && telemetry[0] != '[' {
		c.refuse("body.telemetry", "must be an array")
	}
	n := 0
	for entry := range rawjson.Elements(telemetry) {
		if at := rawjson.Get(entry, "timestamp_ms"); !isNull(at) && !isNumber(at) {
			c.refuse(fmt.Sprintf("body.telemetry[%d].timestamp_ms", n), "must be a number, Unix milliseconds")
		}
		n++
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

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"app/internal/rawjson"
)

var itemsCreateCmd = &Command{
	Name:    "items.create",
	Route:   "POST /items",
	Short:   "Create an occurrence in Rollbar, which groups it into an item",
	Long:    "Give either message, with any of the other parameters, or data, which is Rollbar's own payload.",
	Changes: true,
	Run:     typed(itemsCreate),
}

type itemsCreateInput struct {
	Data        Opt[json.RawMessage] `json:"data" file:"true" help:"Rollbar's own payload, the object in {\"data\":{…}}, instead of all other parameters"`
	Message     Opt[string]          `json:"message" unless:"data" min:"1" help:"what happened (required without data)"`
	Level       Opt[string]          `json:"level" enum:"debug,info,warning,error,critical" help:"level (default error)"`
	Environment Opt[string]          `json:"environment" min:"1" max:"255" help:"environment in which it happened (default production)"`
	Title       Opt[string]          `json:"title" min:"1" max:"255" help:"title of the item (default the message)"`
	Fingerprint Opt[string]          `json:"fingerprint" min:"1" help:"occurrences with the same fingerprint are grouped into one item"`
	UUID        Opt[string]          `json:"uuid" min:"1" max:"36" help:"your own UUID; a second occurrence with the same one is not created"`
	CodeVersion Opt[string]          `json:"code_version" min:"1" max:"40" help:"version of the code in which it happened"`
	Custom      Opt[json.RawMessage] `json:"custom" help:"any other data, as a JSON object"`
}

func (in *itemsCreateInput) check() error {
	within := ""
	switch {
	case in.Data.Set && !reflect.DeepEqual(*in, itemsCreateInput{Data: in.Data}):
		return invalidField("data", "is Rollbar's own payload: nothing else can be given with it")
	case in.Data.Set:
		within = "data."
	case !in.Message.Set:
		return invalidField("message", "is required, unless data holds Rollbar's own payload")
	}
	const deepest = 200 // levels; many JSON parsers have a limit
	data := in.payload()
	if rawjson.Depth(data) > deepest {
		return fail(invalid, "the payload is nested more than %d levels deep", deepest)
	}
	return checkPayload(data, within)
}

// payload returns the data for Rollbar, with a uuid only if the caller chose one.
func (in *itemsCreateInput) payload() json.RawMessage {
	if in.Data.Set {
		return in.Data.Value
	}
	data := json.RawMessage(`{}`)
	for _, p := range []struct{ name, value string }{
		{"level", cmp.Or(in.Level.Value, "error")}, {"environment", cmp.Or(in.Environment.Value, "production")},
		{"title", in.Title.Value}, {"fingerprint", in.Fingerprint.Value}, {"uuid", in.UUID.Value}, {"code_version", in.CodeVersion.Value},
	} {
		if p.value != "" {
			data = rawjson.Set(data, p.name, rawjson.AppendQuoted(nil, p.value))
		}
	}
	if in.Custom.Set {
		data = rawjson.Set(data, "custom", in.Custom.Value)
	}
	return rawjson.Set(data, "body", fmt.Appendf(nil, `{"message":{"body":%s}}`, rawjson.AppendQuoted(nil, in.Message.Value)))
}

// Created says what became of a new occurrence.
type Created struct {
	UUID  string `json:"uuid"`
	State string `json:"state" enum:"delivered,queued"`
}

func (c Created) outcome() outcome {
	return map[string]outcome{"delivered": created, "queued": accepted}[c.State]
}

func (Created) outcomes() []outcome { return []outcome{created, accepted} }

func itemsCreate(ctx context.Context, app *App, in itemsCreateInput) (Created, error) {
	data, uuid := identified(in.payload())
	if err := app.rollbar.require(postScope(data)); err != nil {
		return Created{}, err
	}
	const largest = 1 << 20 // bytes; Rollbar's page "Create item" allows 1024 KB for one occurrence
	if n := len(data) + len(`{"data":}`); n > largest {
		return Created{}, fail(tooLarge, "the payload has %d bytes, but Rollbar takes at most %d", n, largest)
	}
	state, err := app.create(ctx, uuid, data)
	if err != nil {
		return Created{}, fmt.Errorf("create %s: %w", uuid, err)
	}
	return Created{uuid, state}, nil
}

// identified returns the data with a uuid and, since it may reach Rollbar hours later, a timestamp.
func identified(data json.RawMessage) (json.RawMessage, string) {
	if rawjson.IsNull(rawjson.Get(data, "timestamp")) {
		data = rawjson.Set(data, "timestamp", fmt.Appendf(nil, "%d", time.Now().Unix()))
	}
	uuid := rawjson.Unquote(rawjson.Get(data, "uuid"))
	if uuid == "" {
		uuid = newUUID()
		data = rawjson.Set(data, "uuid", rawjson.AppendQuoted(nil, uuid))
	}
	return data, uuid
}

// create stores the occurrence, sends it, and records and returns its state. Success promises that Rollbar or
// PostgreSQL has it. It has a uuid before the first attempt, so Rollbar drops a repeated delivery.
func (app *App) create(ctx context.Context, uuid string, data json.RawMessage) (state string, err error) {
	if app.store == nil {
		callOf(ctx).notStored("DATABASE_URL is not set")
		return "delivered", app.rollbar.Post(ctx, data)
	}
	sending, cancel := context.WithTimeout(ctx, app.outbox.lease()) // nobody else sends it during the lease
	defer cancel()
	e, err := app.outbox.enqueue(ctx, uuid, data, true)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return "delivered", app.createUnstored(sending, uuid, data, err)
	case !e.isNew:
		return e.state, e.rejection()
	}
	app.telemetry.Count("app.reports.stored", 1)
	lane := app.outbox.lanes[postScope(data)]
	err = app.rollbar.Post(sending, data)
	switch {
	case err == nil:
		app.store.deliveries.Put(e.id)
		lane.succeeded()
		return "delivered", nil
	case isFinal(err):
		app.outbox.reject(ctx, e, err)
	case isKind(err, rollbarAuth):
		app.outbox.discard(ctx, e)
	case app.outbox.isOver(ctx):
		app.outbox.discard(ctx, e)
		f := app.outbox.full()
		f.err, f.upstream = err, failureOf(err).upstream
		err = f
	default:
		lane.makeAvailable(ctx, e)
		if ctx.Err() == nil {
			return "queued", nil
		}
	}
	return "", err
}

// createUnstored sends an occurrence that PostgreSQL did not store, for whatever reason. It succeeds only if Rollbar
// takes the occurrence.
func (app *App) createUnstored(ctx context.Context, uuid string, data json.RawMessage, why error) error {
	app.log.WarnContext(ctx, "occurrence is not stored", "uuid", uuid, "error", why)
	callOf(ctx).notStored(why.Error())
	err := app.rollbar.Post(ctx, data)
	if err == nil || isFinal(err) || isKind(err, rollbarAuth) || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	f := fail(unavailable, "neither PostgreSQL nor Rollbar accepts it: %w", err)
	f.upstream, f.wait = failureOf(err).upstream, failureOf(err).wait
	return f
}

// isFinal reports whether Rollbar refused an occurrence for good.
func isFinal(err error) bool { return isKind(err, invalid, tooLarge, unprocessable) }

// newUUID returns a random UUID, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// levels are Rollbar's levels, least severe first.
var levels = []string{"debug", "info", "warning", "error", "critical"}

// payloadFields are the kinds of the optional fields of a payload's data, by Rollbar's page "Create item". Null counts
// as missing. A text has at most limit characters; 0 means any number.
var payloadFields = []struct {
	names, kind string
	limit       int
}{
	{"environment title person.username person.email", "a string", 255},
	{"code_version", "a string", 40},
	{"fingerprint context platform language framework", "a string", 0},
	{"timestamp", "a number, Unix seconds", 0},
	{"request person server client custom notifier", "an object", 0},
	{"body.telemetry", "an array", 0},
}

var payloadUUID = regexp.MustCompile(`^[ -\x{FF}]+$`)

type payloadCheck struct {
	within string // the prefix of field names
	wrong  []fieldError
}

func (c *payloadCheck) refuse(field, format string, args ...any) {
	field = c.within + field
	c.wrong = append(c.wrong, fieldError{field, field + " " + fmt.Sprintf(format, args...)})
}

// optional checks the kind of a value and the length of a text. Null counts as missing.
func (c *payloadCheck) optional(field string, value json.RawMessage, kind string, limit int) {
	switch {
	case rawjson.IsNull(value):
	case !strings.HasPrefix(kind, jsonKind(value)):
		c.refuse(field, "must be %s", kind)
	case limit > 0 && utf8.RuneCountInString(rawjson.Unquote(value)) > limit:
		c.refuse(field, "must be at most %d characters long", limit)
	}
}

// required checks the kind of a value that must be present.
func (c *payloadCheck) required(field string, value json.RawMessage, kind string) {
	if rawjson.IsNull(value) {
		c.refuse(field, "is required and must be %s", kind)
	}
	c.optional(field, value, kind, 0)
}

var jsonKinds = map[byte]string{'"': "a string", '{': "an object", '[': "an array", 't': "a boolean", 'f': "a boolean"}

// jsonKind names the kind of a JSON value that is not null.
func jsonKind(value json.RawMessage) string { return cmp.Or(jsonKinds[value[0]], "a number") }

// checkPayload reports what Rollbar would refuse about an occurrence's data, which is compact JSON; within is the
// prefix of the field names. Every occurrence passes it before it is acknowledged, so that it can be delivered.
func checkPayload(data json.RawMessage, within string) error {
	c := payloadCheck{within: within}
	members := maps.Collect(rawjson.Members(data)) // of duplicate names the last wins, as in Get
	get := func(first string, path ...string) json.RawMessage { return rawjson.Get(members[first], path...) }
	for _, f := range payloadFields {
		for name := range strings.FieldsSeq(f.names) {
			first, rest, _ := strings.Cut(name, ".")
			c.optional(name, get(first, strings.Fields(rest)...), f.kind, f.limit)
		}
	}
	switch environment := get("environment"); {
	case rawjson.IsNull(environment):
		c.refuse("environment", "is required")
	case string(environment) == `""`:
		c.refuse("environment", "must not be empty")
	}
	if level := get("level"); level != nil && !slices.Contains(levels, rawjson.Unquote(level)) {
		c.refuse("level", "must be one of %s", strings.Join(levels, ", "))
	}
	uuid := rawjson.Unquote(get("uuid"))
	if !rawjson.IsNull(get("uuid")) && (!payloadUUID.MatchString(uuid) || utf8.RuneCountInString(uuid) > 36) {
		c.refuse("uuid", "must be a UUID, or another text of up to 36 Latin-1 characters")
	}
	id := get("person", "id")
	_, isInteger := rawjson.Int(id)
	switch person := get("person"); {
	case rawjson.IsNull(person) || jsonKind(person) != "an object" || isInteger:
	case rawjson.IsNull(id) || string(id) == `""`:
		c.refuse("person.id", "is required in %sperson", within)
	default:
		c.optional("person.id", id, "a string", 40)
	}
	c.body(get("body"))
	if len(c.wrong) == 0 {
		return nil
	}
	slices.SortFunc(c.wrong, func(a, b fieldError) int { return strings.Compare(a.Field, b.Field) })
	return invalidFields(c.wrong)
}

// body checks data.body, which must have exactly one of four members.
func (c *payloadCheck) body(body json.RawMessage) {
	parts := maps.Collect(rawjson.Members(body))
	trace, chain, message, report := parts["trace"], parts["trace_chain"], parts["message"], parts["crash_report"]
	given := slices.DeleteFunc([]json.RawMessage{trace, chain, message, report}, func(v json.RawMessage) bool { return v == nil })
	traces := rawjson.Elements(chain)
	switch {
	case len(given) != 1:
		c.refuse("body", "must be an object with exactly one of trace, trace_chain, message, crash_report")
	case message != nil:
		c.required("body.message.body", rawjson.Get(message, "body"), "a string")
	case report != nil:
		c.required("body.crash_report.raw", rawjson.Get(report, "raw"), "a string")
	case trace != nil:
		c.trace("body.trace", trace)
	case len(traces) == 0:
		c.refuse("body.trace_chain", "must be an array of at least one trace")
	}
	for i, trace := range traces {
		c.trace(fmt.Sprintf("body.trace_chain[%d]", i), trace)
	}
	for i, entry := range rawjson.Elements(parts["telemetry"]) {
		c.optional(fmt.Sprintf("body.telemetry[%d].timestamp_ms", i), rawjson.Get(entry, "timestamp_ms"), "a number, Unix milliseconds", 0)
	}
}

func (c *payloadCheck) trace(field string, trace json.RawMessage) {
	c.required(field+".frames", rawjson.Get(trace, "frames"), "an array")
	c.required(field+".exception.class", rawjson.Get(trace, "exception", "class"), "a string")
}

// occurrenceTitle returns the title that Rollbar would give an occurrence, as far as its payload shows.
func occurrenceTitle(data json.RawMessage) string {
	text := func(path ...string) string { return rawjson.Unquote(rawjson.Get(data, path...)) }
	report, _, _ := strings.Cut(text("body", "crash_report", "raw"), "\n")
	if title := cmp.Or(text("title"), text("body", "message", "body"), report); title != "" {
		return title
	}
	traces := append(rawjson.Elements(rawjson.Get(data, "body", "trace_chain")), rawjson.Get(data, "body", "trace"))
	exception := rawjson.Get(traces[0], "exception")
	parts := []string{rawjson.Unquote(rawjson.Get(exception, "class")), rawjson.Unquote(rawjson.Get(exception, "message"))}
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), ": ")
}

// create.go makes occurrences. The promise: what is answered with success has reached Rollbar or
// is recorded in PostgreSQL, from where queue.go delivers it. Each occurrence has a uuid before it
// is first sent, and Rollbar drops a second delivery of the same one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

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
	return checkPayload(in.payload(), within)
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

// payload is the data that Rollbar gets, but for a uuid that the caller did not choose.
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

// create records the occurrence, sends it and records what became of it.
func (app *App) create(ctx context.Context, uuid string, data json.RawMessage) (Created, error) {
	sending, cancel := context.WithTimeout(ctx, app.lease()) // until when nobody else does
	defer cancel()
	recording, cancel := context.WithTimeout(ctx, storeTimeout)
	record, err := app.store.record(recording, uuid, data, app.lease())
	cancel()
	switch {
	case err != nil && ctx.Err() != nil:
		return Created{}, fmt.Errorf("create %s: %w", uuid, ctx.Err())
	case err != nil:
		return app.createUnrecorded(sending, uuid, data, err)
	case !record.fresh:
		return record.answer(uuid)
	}
	app.telemetry.Count("app.reports.stored", 1)
	err = app.rollbar.Post(sending, data)
	if err == nil {
		app.store.deliveries.put(ctx, record.id)
		app.tookOne()
		return Created{uuid, "delivered"}, nil
	}
	settling, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	switch {
	case isFinal(err):
		app.reject(settling, record.id, err)
	case isKind(err, rollbarAuth):
		app.settle(settling, record.id, "forgotten", func(ctx context.Context) error { return app.store.forget(ctx, record.id) })
	case ctx.Err() == nil:
		app.settle(settling, record.id, "released", func(ctx context.Context) error { return app.store.release(ctx, record) })
		return Created{uuid, "queued"}, nil
	}
	return Created{}, fmt.Errorf("create %s: %w", uuid, err)
}

// createUnrecorded sends an occurrence that PostgreSQL does not take, for whatever reason. Only
// Rollbar's word can acknowledge it.
func (app *App) createUnrecorded(ctx context.Context, uuid string, data json.RawMessage, why error) (Created, error) {
	app.log.WarnContext(ctx, "occurrence is not recorded", "uuid", uuid, "error", why)
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

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"app/internal/rawjson"
)

// relayPaths are all spellings of the path that SDKs post to. A redirect would lose occurrences.
var relayPaths = []string{"/api/1/item/{$}", "/api/1/item", "/api/1/items/{$}", "/api/1/items"}

// serveRelay answers SDKs that post occurrences, and browsers' preflight requests: every origin is allowed. It speaks
// Rollbar's own protocol, so that an SDK whose endpoint is this service loses nothing while Rollbar is down: it
// acknowledges an occurrence as soon as PostgreSQL has it, and refuses only what Rollbar is known to refuse.
func (s *server) serveRelay(w *response, r *http.Request) {
	w.operation, w.refusal = "relay.item", relayRefusal
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	if r.Method == http.MethodPost {
		uuid, err := s.relay(w, r)
		w.answer(json.RawMessage(fmt.Appendf(nil, `{"err":0,"result":{"id":null,"uuid":%s}}`, rawjson.AppendQuoted(nil, uuid))), err)
		return
	}
	h.Set("Access-Control-Allow-Methods", http.MethodPost)
	h.Set("Access-Control-Max-Age", "86400")
	h.Add("Vary", "Access-Control-Request-Headers")
	if asked := strings.Join(r.Header.Values("Access-Control-Request-Headers"), ", "); asked != "" {
		h.Set("Access-Control-Allow-Headers", asked)
	}
	w.respond(json.RawMessage(`{"err":0}`))
}

// relayRefusal returns a failure in Rollbar's own form.
func relayRefusal(h http.Header, f *Failure) any {
	if f.kind == rateLimited {
		if f.limit > 0 {
			h.Set("X-Rate-Limit-Limit", strconv.Itoa(f.limit))
		}
		h.Set("X-Rate-Limit-Remaining", "0")
		h.Set("X-Rate-Limit-Remaining-Seconds", strconv.Itoa(f.retryAfter()))
		h.Set("X-Rate-Limit-Reset", strconv.FormatInt(time.Now().Add(f.wait).Unix(), 10))
	}
	return jsonObject{"err": 1, "message": f.detail}
}

// relay accepts the occurrence in a request and returns its uuid. The SDK's token goes no further.
func (s *server) relay(w *response, r *http.Request) (uuid string, err error) {
	token := r.Header.Get("X-Rollbar-Access-Token")
	var payload json.RawMessage
	if token == "" || isOneOf(token, s.config.relayTokens) {
		payload, err = s.relayPayload(w, r)
	}
	token = cmp.Or(token, rawjson.Unquote(rawjson.Get(payload, "access_token")))
	data := rawjson.Get(payload, "data")
	switch {
	case isKind(err, unavailable):
		return "", err
	case !isOneOf(token, s.config.relayTokens):
		return "", fail(forbidden, "invalid access token")
	case err != nil:
		return "", err
	case rawjson.IsNull(data) || jsonKind(data) != "an object":
		return "", fail(invalid, "data must be an object")
	}
	if len(token) >= 8 { // some SDKs report their settings; a shorter token may be an ordinary word
		data = bytes.ReplaceAll(data, rawjson.AppendQuoted(nil, token), []byte(`"***"`))
	}
	data = rawjson.Storable(withSender(data, senderOf(r)))
	if err := checkPayload(data, "data."); err != nil {
		return "", fail(unprocessable, "Invalid format. %w", err)
	}
	data, uuid = identified(data)
	return uuid, s.relayData(r, uuid, data)
}

// relayPayload reads the payload of a request: JSON, or a form with the field payload. It ignores the Content-Type,
// since some SDKs send none or a wrong one.
func (s *server) relayPayload(w *response, r *http.Request) (json.RawMessage, error) {
	text, err := s.readBody(w, r, maxBody)
	if err != nil {
		return nil, err
	}
	var form url.Values
	if text = bytes.TrimSpace(text); !bytes.HasPrefix(text, []byte("{")) {
		form, _ = url.ParseQuery(string(text)) // as far as it can be read
		text = []byte(form.Get("payload"))
	}
	payload, err := rawjson.Compact(text)
	switch {
	case len(text) == 0:
		return nil, fail(invalid, "the body is not JSON and not a form with the field payload")
	case err != nil || payload[0] != '{':
		return nil, fail(invalid, "the payload is not JSON: %w", cmp.Or(err, errors.New("it is not an object")))
	case form.Has("access_token"):
		payload = rawjson.Set(payload, "access_token", rawjson.AppendQuoted(nil, form.Get("access_token")))
	}
	return payload, nil
}

// relayData queues an occurrence. If PostgreSQL cannot store it, it is sent to Rollbar while the SDK waits.
func (s *server) relayData(r *http.Request, uuid string, data json.RawMessage) error {
	app, ctx := s.app, withCall(r.Context(), callWithoutRetries())
	lane := app.outbox.lanes[postScope(data)]
	e, err := app.outbox.enqueue(ctx, uuid, data, false)
	switch {
	case err == nil && e.isNew:
		app.telemetry.Count("app.reports.stored", 1)
		app.telemetry.Count("app.queue.queued", 1)
		lane.notify()
		if err := app.rollbar.require(lane.scope); err != nil {
			app.log.WarnContext(ctx, "occurrence is waiting for a Rollbar token", "uuid", uuid, "error", err)
		}
		return nil
	case err == nil || ctx.Err() != nil:
		return ctx.Err()
	case !isKind(err, queueFull):
		if err = app.createUnstored(ctx, uuid, data, err); err == nil || isFinal(err) {
			return err
		}
	}
	f := failureOf(err)
	switch {
	case f.kind == interrupted:
	case f.kind == queueFull:
		f.kind, f.limit = rateLimited, app.queueLimit
	case f.kind != rollbarAuth && f.upstream == rateLimited.status:
		f.kind = rateLimited
	default:
		f.kind = unavailable
	}
	return f
}

// withSender fills in the sender's address where an SDK leaves that to Rollbar, since Rollbar would take ours. The
// anonymous form clears the last 8 bits, or the last 80 of IPv6.
func withSender(data json.RawMessage, sender netip.Addr) json.RawMessage {
	bits := 24
	if sender.Is6() {
		bits = 48
	}
	network, _ := sender.Prefix(bits)
	addresses := map[string]netip.Addr{"$remote_ip": sender, "$remote_ip_anonymize": network.Addr()}
	for _, name := range []string{"request", "client"} {
		object := rawjson.Get(data, name)
		if address := addresses[rawjson.Unquote(rawjson.Get(object, "user_ip"))]; address.IsValid() {
			data = rawjson.Set(data, name, rawjson.Set(object, "user_ip", rawjson.AppendQuoted(nil, address.String())))
		}
	}
	return data
}

// senderOf returns the address of the peer or, if that is a proxy of ours, the one that the proxy names.
func senderOf(r *http.Request) netip.Addr {
	peer := addressOf(r.RemoteAddr)
	if peer.IsValid() && !peer.IsLoopback() && !peer.IsPrivate() {
		return peer
	}
	forwarded := strings.Join(r.Header.Values("X-Forwarded-For"), ",")
	last := forwarded[strings.LastIndexByte(forwarded, ',')+1:]
	return cmp.Or(addressOf(strings.TrimSpace(last)), peer)
}

// addressOf parses an address with or without a port.
func addressOf(text string) netip.Addr {
	address, _ := netip.ParseAddr(strings.Trim(text, "[]"))
	withPort, _ := netip.ParseAddrPort(text)
	return cmp.Or(address, withPort.Addr()).Unmap().WithZone("")
}

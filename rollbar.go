package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"app/internal/async"
	"app/internal/datadog"
	"app/internal/rawjson"
	"app/internal/secrets"
)

const (
	maxCalls = 32              // to Rollbar at the same time
	slotWait = 2 * time.Second // for one of them to end, before a request is refused
)

// A scope is a permission of a Rollbar token.
type scope string

const (
	scopeRead       scope = "read"
	scopeWrite      scope = "write"
	scopePost       scope = "post_server_item"
	scopePostClient scope = "post_client_item" // for clientPlatforms
)

// An accessToken is a Rollbar access token and the setting that it came from.
type accessToken struct{ value, setting string }

// Rollbar is a client for one project. It is safe for concurrent use. It passes on what Rollbar sends unchanged, and
// reads only what the service acts on.
type Rollbar struct {
	base      string // without a trailing slash
	tokens    map[scope]accessToken
	timeout   time.Duration // for one call
	backoff   time.Duration // before the first retry; it doubles
	client    *http.Client
	slots     chan struct{} // of calls that may run at the same time
	reads     async.Singleflight[reading]
	limits    map[scope]*rateLimit
	mask      *secrets.Mask // hides the tokens, which some of Rollbar's messages quote
	telemetry *datadog.Client
}

// newRollbar returns a client for the API at the base URL. The timeout applies to each attempt.
func newRollbar(base string, tokens map[scope]accessToken, timeout time.Duration, mask *secrets.Mask, telemetry *datadog.Client) *Rollbar {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = maxCalls
	return &Rollbar{
		base: strings.TrimRight(base, "/"), tokens: tokens, timeout: timeout, backoff: 200 * time.Millisecond,
		slots: make(chan struct{}, maxCalls), limits: newRateLimits(tokens), mask: mask, telemetry: telemetry,
		client: &http.Client{Transport: transport, CheckRedirect: refuseRedirects}, // a Location from Rollbar can hold the token
	}
}

func refuseRedirects(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

var idInPath = regexp.MustCompile(`/(item|instance)/[0-9]+`)

// callResource is the resource of a request's span: its method and path, with {id} for each id.
func callResource(r *http.Request) string {
	return r.Method + " " + idInPath.ReplaceAllString(r.URL.Path, "/$1/{id}")
}

// require returns a failure if no token is set for one of the scopes.
func (r *Rollbar) require(scopes ...scope) error {
	for _, s := range scopes {
		if t := r.tokens[s]; t.value == "" {
			return missingSetting(rollbarAuth, t.setting, fmt.Sprintf("a Rollbar token with the scope %s is needed here", s))
		}
	}
	return nil
}

type upstreamCall struct {
	scope        scope
	method, path string
	query        url.Values
	body         []byte
}

// A timing says when a request was sent to Rollbar, and when its answer had been received.
type timing struct{ sent, received time.Time }

// A reading is the member result of an answer. Callers may share it.
type reading struct {
	result rawjson.Part
	when   *timing
	page   func() (*ItemPage, error) // parses the result as a page of items, once for all callers
}

// do makes the call, retries it if that may help, and returns the member result of the response. Identical reads
// share one call.
func (r *Rollbar) do(ctx context.Context, call upstreamCall) (reading, error) {
	if err := r.require(call.scope); err != nil {
		return reading{}, err
	}
	defer callOf(ctx).upstream.start()()
	if call.method != http.MethodGet {
		defer r.reads.Forget() // later callers must not share a read from before the change
		return r.retry(ctx, call)
	}
	return r.reads.Do(ctx, call.path+"?"+call.query.Encode(), func() (reading, error) { return r.retry(ctx, call) })
}

// fetch makes a read call, and returns what of extracts from its result.
func fetch[T any](ctx context.Context, r *Rollbar, path string, query url.Values, of func(reading) (T, error)) (result T, err error) {
	read, err := r.do(ctx, upstreamCall{scope: scopeRead, method: http.MethodGet, path: path, query: query})
	if err != nil {
		return result, err
	}
	return of(read)
}

// retry makes the call until it succeeds or another attempt cannot help.
func (r *Rollbar) retry(ctx context.Context, call upstreamCall) (read reading, err error) {
	budget := &callOf(ctx).retries
	timeout, stop := r.timeout, func() {}
	for attempt := 0; ; attempt++ {
		next, failure := r.attempt(ctx, call, timeout)
		stop()
		if isKind(failure, upstreamTimeout) && timeout < r.timeout {
			return read, err // the budget cut this attempt short: the previous failure says more
		}
		read, err = next, failure
		wait, again := r.retryWait(err, attempt)
		if !again || !budget.sleep(ctx, wait) {
			return read, err
		}
		r.telemetry.Count("app.rollbar.retries", 1, "method:"+call.method)
		timeout, stop = min(r.timeout, budget.left()), budget.start()
	}
}

// attempt makes the call once.
func (r *Rollbar) attempt(ctx context.Context, call upstreamCall, timeout time.Duration) (none reading, err error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-time.After(slotWait):
		return none, &Failure{kind: unavailable, detail: "too many requests are waiting for Rollbar", wait: time.Second}
	case <-ctx.Done():
		return none, r.noResponse(ctx, ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, call.method, r.base+call.path, bytes.NewReader(call.body))
	if err != nil {
		return none, err
	}
	req.URL.RawQuery = call.query.Encode()
	req.Header.Set("X-Rollbar-Access-Token", r.tokens[call.scope].value)
	req.Header.Set("Accept", "application/json")
	if call.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	sent := time.Now()
	finish := r.telemetry.StartCall(req, "app.rollbar", callResource)
	res, err := r.client.Do(req)
	if err != nil {
		err = r.noResponse(ctx, err)
		finish(nil, err)
		return none, err
	}
	defer res.Body.Close()
	if left, known := r.limits[call.scope].read(res); known {
		r.telemetry.Gauge("app.rollbar.rate_limit_remaining", float64(left), "scope:"+string(call.scope))
	}
	text, err := r.readBody(ctx, res)
	finish(res, err)
	when := &timing{sent, time.Now()}
	if err != nil {
		return none, err
	}
	result, err := r.result(call, res, text)
	read := reading{result: result, when: when}
	read.page = sync.OnceValues(func() (*ItemPage, error) { return itemsOf(read) })
	return read, err
}

func (r *Rollbar) readBody(ctx context.Context, res *http.Response) (text []byte, err error) {
	if res.ContentLength <= maxResponse {
		text, err = memory.ReadAll(ctx, res.Body, int(max(res.ContentLength, 0)), maxResponse, 0)
	}
	switch {
	case err != nil:
		return nil, r.noResponse(ctx, err)
	case len(text) > maxResponse, res.ContentLength > maxResponse:
		return nil, fail(badGateway, "Rollbar's response is larger than %d MiB: ask for fewer with limit", maxResponse>>20)
	}
	if len(text) > largeResponse && debug.SetMemoryLimit(-1) == usualHeap {
		debug.SetMemoryLimit(heapLimit)
	}
	return text, nil
}

// noResponse returns the failure of a call that ended without a response.
func (r *Rollbar) noResponse(ctx context.Context, err error) error {
	if outer, is := errors.AsType[*url.Error](err); is { // it repeats the whole URL
		err = outer.Err
	}
	if errors.Is(err, context.Canceled) || isKind(err, unavailable) {
		return fmt.Errorf("while waiting for Rollbar: %w", err)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &Failure{kind: upstreamTimeout, detail: fmt.Sprintf("Rollbar did not answer within %v", r.timeout), transient: true, err: err}
	}
	return &Failure{kind: badGateway, detail: fmt.Sprintf("Rollbar does not answer: %v", err), transient: true, err: err}
}

// refusals maps Rollbar's statuses to kinds of failures. All others are badGateway.
var refusals = map[int]failureKind{
	400: invalid, 401: rollbarAuth, 403: rollbarAuth, 404: notFound, 413: tooLarge, 422: unprocessable, 429: rateLimited,
}

// result returns the member result of a response, or the failure that the response reports.
func (r *Rollbar) result(call upstreamCall, res *http.Response, text []byte) (none rawjson.Part, _ error) {
	status := res.StatusCode
	answer, err := rawjson.Parse(text, 3) // down to the items of a page
	failed, result := answer.Member("err").Value, answer.Member("result")
	switch {
	case status/100 == 2 && (string(failed) == "0" || failed == nil && result.Value != nil):
		return result, nil
	case failed == nil && status != tooLarge.status: // Rollbar's gateway sends 413 without JSON
		return none, &Failure{
			kind: badGateway, upstream: status, transient: true, err: err,
			detail: fmt.Sprintf("Rollbar answered %d %s without its JSON: the response was cut off, or came from a proxy or another server; if that lasts, check ROLLBAR_URL", status, http.StatusText(status)),
		}
	}
	return none, r.refusal(call, res, rawjson.Unquote(answer.Member("message").Value))
}

// refusal returns the failure that a response with a message reports.
func (r *Rollbar) refusal(call upstreamCall, res *http.Response, message string) *Failure {
	status := res.StatusCode
	message = cmp.Or(string(r.mask.Bytes([]byte(message))), http.StatusText(status))
	f := &Failure{
		kind: cmp.Or(refusals[status], badGateway), upstream: status, transient: status >= 500,
		detail: fmt.Sprintf("Rollbar answered %d: %s", status, message),
	}
	isSpent := res.Header.Get("X-Rate-Limit-Remaining") == "0"
	switch {
	case status == 400 && call.method != http.MethodPost && strings.Contains(message, "not found"):
		f.kind = notFound // Rollbar's reference: "400: item not found in this project"
	case status == 429 && !isSpent && strings.Contains(message, "deactivated"):
		f.kind = rollbarAuth // a deactivated account has calls left; a spent limit ends with its window
	case status == 429:
		seconds, err := strconv.Atoi(res.Header.Get("X-Rate-Limit-Remaining-Seconds"))
		if err != nil {
			seconds = 60 // the usual window
		}
		f.transient, f.wait = isSpent, time.Duration(min(max(1, seconds), math.MaxInt32))*time.Second
	}
	if f.kind == rollbarAuth {
		f.detail = fmt.Sprintf("Rollbar refused %s, which needs the scope %s: %s", r.tokens[call.scope].setting, call.scope, message)
	}
	return f
}

// unusable returns the failure of a response that reports success but lacks what it must hold.
func unusable(why string) *Failure { return &Failure{kind: badGateway, upstream: 200, detail: why} }

// An Item is one item as Rollbar sent it, in compact JSON.
type Item struct {
	ID   int64           `json:"id"`
	JSON json.RawMessage `json:"-"`
	when *timing         // nil for an item that the service put together
}

// An Occurrence is one occurrence as Rollbar sent it, in compact JSON, but without the access token that its
// metadata can hold.
type Occurrence struct {
	ID     int64           `json:"id"`
	ItemID int64           `json:"-"` // 0 if unknown
	JSON   json.RawMessage `json:"-"`
}

// occurrenceOf parses an occurrence in compact JSON, which must have an id.
func occurrenceOf(raw json.RawMessage) (Occurrence, error) {
	members := rawjson.Pick(raw, "id", "item_id")
	id, ok := rawjson.Int(members[0])
	if !ok {
		return Occurrence{}, unusable("Rollbar's response holds an occurrence without an id")
	}
	item, _ := rawjson.Int(members[1])
	purged := rawjson.Purge(raw, "access_token", "data", "metadata")
	memory.Own(purged) // a copy, since raw is an object
	return Occurrence{id, item, purged}, nil
}

const year10000 = 253_402_300_800 // Unix seconds

// time returns when it occurred, in UTC, or nil if its timestamp is not valid.
func (o Occurrence) time() *time.Time {
	seconds, ok := rawjson.Int(rawjson.Get(o.JSON, "timestamp"))
	if !ok || seconds < 0 || seconds >= year10000 {
		return nil
	}
	return new(time.Unix(seconds, 0).UTC())
}

func itemOf(raw json.RawMessage, when *timing) (Item, error) {
	for name, value := range rawjson.RawMembers(raw) {
		if string(name) == `"id"` {
			if id, ok := rawjson.Int(value); ok {
				return Item{id, raw, when}, nil
			}
		}
	}
	return Item{}, unusable("Rollbar's response holds an item without an id")
}

// An ItemPage is one page of the project's items. Callers that ask for it at the same time share it.
type ItemPage struct {
	Items []Item
	Total json.RawMessage // the number of items on all pages, or null where Rollbar does not count them

	observing sync.Once
	unstored  string // why it could not be stored, or ""
}

// Items reads one page of the items that match the filter, whose parameters are Rollbar's: status, level,
// environment, and so on. A page past the end is empty.
func (r *Rollbar) Items(ctx context.Context, filter url.Values) (*ItemPage, error) {
	return fetch(ctx, r, "/items/", filter, func(read reading) (*ItemPage, error) { return read.page() })
}

func itemsOf(read reading) (*ItemPage, error) {
	items, err := elementsOf(read.result, "items", func(raw json.RawMessage) (Item, error) { return itemOf(raw, read.when) })
	return &ItemPage{Items: items, Total: json.RawMessage(cmp.Or(string(read.result.Member("total_count").Value), "null"))}, err
}

// elementsOf returns the elements of the list that a result must hold: a missing list is not an empty one.
func elementsOf[T any](result rawjson.Part, name string, of func(json.RawMessage) (T, error)) (elements []T, err error) {
	list := result.Member(name)
	if !bytes.HasPrefix(list.Value, []byte("[")) {
		return nil, unusable("Rollbar's response does not hold a list of " + name)
	}
	for _, part := range list.Parts {
		element, err := of(part.Value)
		if err != nil {
			return nil, err
		}
		if len(elements) == maxElements {
			return nil, unusable(fmt.Sprintf("Rollbar's response holds more than %d %s", maxElements, name))
		}
		elements = append(elements, element)
	}
	return elements, nil
}

// Item reads the item with the system-wide id or the counter, or the item of the occurrence with the uuid. The key
// is id, counter or uuid.
func (r *Rollbar) Item(ctx context.Context, key, value string) (Item, error) {
	path, query := "/item/", url.Values{key: {value}}
	if key == "id" {
		path, query = "/item/"+value, nil
	}
	return fetch(ctx, r, path, query, func(read reading) (Item, error) { return itemOf(read.result.Value, read.when) })
}

// UpdateItem changes the item and returns the fields that Rollbar says it changed, not the whole item.
func (r *Rollbar) UpdateItem(ctx context.Context, id int64, changes json.RawMessage) (json.RawMessage, error) {
	read, err := r.do(ctx, upstreamCall{scope: scopeWrite, method: http.MethodPatch, path: fmt.Sprintf("/item/%d", id), body: changes})
	return read.result.Value, err
}

// Occurrences reads one page of the item's occurrences, or of the project's if item is 0, newest first. The last page
// has fewer than the limit, and pages shift as new occurrences arrive. Rollbar's lastId would skip some, since
// occurrences within a second are not in the order of ids.
func (r *Rollbar) Occurrences(ctx context.Context, item, page, limit int64) ([]Occurrence, error) {
	query := url.Values{"limit": {strconv.FormatInt(limit, 10)}}
	if page > 1 {
		query.Set("page", strconv.FormatInt(page, 10))
	}
	path := "/instances"
	if item > 0 {
		path = fmt.Sprintf("/item/%d/instances", item)
	}
	occurrences, err := fetch(ctx, r, path, query, func(read reading) ([]Occurrence, error) {
		return elementsOf(read.result, "instances", occurrenceOf)
	})
	for i := range occurrences {
		occurrences[i].ItemID = cmp.Or(occurrences[i].ItemID, item)
	}
	return occurrences, err
}

func (r *Rollbar) Occurrence(ctx context.Context, id int64) (Occurrence, error) {
	path := fmt.Sprintf("/instance/%d", id)
	return fetch(ctx, r, path, nil, func(read reading) (Occurrence, error) { return occurrenceOf(read.result.Value) })
}

// DeleteOccurrence deletes one occurrence and reports whether it was there. Rollbar's lists still show it for
// some seconds.
func (r *Rollbar) DeleteOccurrence(ctx context.Context, id int64) (bool, error) {
	_, err := r.do(ctx, upstreamCall{scope: scopeWrite, method: http.MethodDelete, path: fmt.Sprintf("/instance/%d", id)})
	switch {
	case isKind(err, notFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("occurrence %d: %w", id, err)
	}
	return true, nil
}

// Post sends the data of one occurrence, which must have a uuid: Rollbar drops a second delivery with the same uuid,
// so that a retry is harmless.
func (r *Rollbar) Post(ctx context.Context, data json.RawMessage) error {
	body := append(append([]byte(`{"data":`), data...), '}')
	_, err := r.do(ctx, upstreamCall{scope: postScope(data), method: http.MethodPost, path: "/item/", body: body})
	return err
}

// postScope is the scope that Rollbar demands for the data of an occurrence.
func postScope(data json.RawMessage) scope {
	if slices.Contains(clientPlatforms, rawjson.Unquote(rawjson.Get(data, "platform"))) {
		return scopePostClient
	}
	return scopePost
}

// clientPlatforms are the platforms whose occurrences need a token with the scope post_client_item.
var clientPlatforms = []string{"browser", "android", "ios", "flash", "client"}

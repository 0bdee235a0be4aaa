// Package sandbox is a fake of Rollbar's API in memory, for development and tests. A [Sandbox] is an [http.Handler] with
// one project of invented items. It imitates Rollbar's tokens, its rate limits, and the delay between accepting an
// occurrence and showing it. [Sandbox.Control] is for tests: it injects faults and looks inside.
//
// The fake follows Rollbar's documentation and published answers. Guesses at what neither shows are marked.
package sandbox

import (
	"bytes"
	"cmp"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The project's access tokens.
const (
	ReadToken       = "sandbox-read"
	WriteToken      = "sandbox-write"
	PostToken       = "sandbox-post"
	ClientPostToken = "sandbox-post-client"
	Token           = "sandbox" // an old token, which has several scopes
)

// scopes are the scopes of each token.
var scopes = map[string][]string{
	ReadToken:       {"read"},
	WriteToken:      {"write"},
	PostToken:       {"post_server_item"},
	ClientPostToken: {"post_client_item"},
	Token:           {"post_server_item", "read", "write"},
}

// A Sandbox is a Rollbar with one project. It is safe for concurrent use.
type Sandbox struct {
	mu          sync.Mutex
	settings    Settings
	items       map[int64]item
	occurrences map[int64]*occurrence
	byUUID      map[string]*occurrence
	posts       map[string]int // how often each uuid was posted
	pending     []func()       // accepted work that is not yet done
	lastOcc     int64
	skipped     int64 // counters, between those of invented items and those of new ones
	windows     map[string]window
	log         []string
	routes      map[string]route // by method and path
	failure
}

//go:embed rules.json seed.json
var files embed.FS

// parsed returns a function that returns the contents of a file. The first call parses them, since most programs that
// contain the sandbox never use it.
func parsed[T any](file string) func() T {
	return sync.OnceValue(func() (contents T) {
		text, _ := files.ReadFile(file)
		if err := json.Unmarshal(text, &contents); err != nil {
			panic(err)
		}
		return contents
	})
}

// A window counts the calls of one token in a minute.
type window struct {
	ends  time.Time
	calls int
}

// New returns a sandbox whose project has n invented items.
func New(n int) *Sandbox {
	s := &Sandbox{
		settings: Settings{Now: time.Now, LargeProject: 100_000, RateLimit: 50_000},
		items:    map[int64]item{}, occurrences: map[int64]*occurrence{}, byUUID: map[string]*occurrence{},
		posts: map[string]int{}, lastOcc: 402_859_036_592,
		windows: map[string]window{}, routes: routes,
		failure: failure{ended: make(chan struct{})},
	}
	for number := range n {
		s.addItem(number)
	}
	return s
}

// WithNewIDs makes new ids begin after those of any earlier sandbox that made fewer than a thousand a second.
func (s *Sandbox) WithNewIDs() *Sandbox {
	s.skipped = time.Since(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).Milliseconds()
	s.lastOcc += s.skipped
	return s
}

// A response is the status and the body of a response before it is written.
type response struct {
	status int
	text   []byte
}

func errorf(status int, format string, args ...any) response {
	return response{status, encode(map[string]any{"err": 1, "message": fmt.Sprintf(format, args...)})}
}

func result(value any) response {
	return response{200, encode(map[string]any{"err": 0, "result": value})}
}

// encode returns JSON in Rollbar's form: indented, without a final newline.
func encode(value any) []byte {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n"))
}

// ServeHTTP answers a request as Rollbar does, or fails in the way that Control has set.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	token := cmp.Or(r.Header.Get("X-Rollbar-Access-Token"), r.URL.Query().Get("access_token"))
	res, size := s.fail(&request{Request: r, header: w.Header(), query: r.URL.Query(), body: body, token: token})
	w.Header().Set("Content-Length", strconv.Itoa(len(res.text)))
	w.WriteHeader(res.status)
	w.Write(res.text[:size])
}

// A request is an HTTP request with the values on which the response depends.
type request struct {
	*http.Request
	header http.Header // of the response
	query  url.Values
	body   []byte
	token  string
	id     int64 // in the path
}

// A route answers the requests with one method and path. Their token needs the scope.
type route struct {
	scope   string
	respond func(s *Sandbox, r *request) response
}

var routes = map[string]route{
	"GET /items":               {"read", (*Sandbox).listItems},
	"GET /item":                {"read", (*Sandbox).findItem},
	"GET /item/{id}":           {"read", (*Sandbox).oneItem},
	"PATCH /item/{id}":         {"write", (*Sandbox).patchItem},
	"POST /item":               {"", (*Sandbox).postItem}, // the scope depends on the payload
	"GET /item/{id}/instances": {"read", (*Sandbox).listOccurrences},
	"GET /instances":           {"read", (*Sandbox).listOccurrences},
	"GET /instance/{id}":       {"read", (*Sandbox).oneOccurrence},
	"DELETE /instance/{id}":    {"write", (*Sandbox).deleteOccurrence},
}

// respond finds the route of a request, checks the token and counts the call before the route answers it.
func (s *Sandbox) respond(r *request) response {
	s.mu.Lock()
	defer s.mu.Unlock()
	path, inAPI := strings.CutPrefix(strings.TrimSuffix(r.URL.Path, "/"), "/api/1")
	r.id, _ = strconv.ParseInt(digits.FindString(path), 10, 64)
	route, known := s.routes[r.Method+" "+digits.ReplaceAllString(path, "{id}")]
	has, isToken := scopes[r.token]
	isPost := route.scope == ""
	switch {
	case !inAPI || !known:
		return errorf(404, "not found") // without rate headers
	case r.token == "" && isPost:
		return errorf(422, "Invalid format. access_token is missing and it is required.")
	case !isToken:
		return unknownToken(r)
	case !isPost && !slices.Contains(has, route.scope):
		return forbidden(route.scope, has)
	case s.countCall(r):
		return errorf(429, "Over rate limit. Access token: %s", r.token)
	}
	return route.respond(s, r)
}

// unknownToken answers a request with an unknown token or, as a guess, with none.
func unknownToken(r *request) response {
	if r.Method == http.MethodPost {
		return errorf(403, "access token not found: %s", r.token)
	}
	return errorf(403, "invalid access token")
}

// forbidden answers a request whose token lacks a scope. The wording is a guess.
func forbidden(needed string, has []string) response {
	return errorf(403, "insufficient privileges: %s scope is required but the access token only has %s.", needed, has[0])
}

// countCall counts a call of the token, sets the rate-limit headers and reports whether the call is over the limit.
// A window opens with the first call and does not slide.
func (s *Sandbox) countCall(r *request) (isOver bool) {
	now := s.settings.Now()
	w := s.windows[r.token]
	if !now.Before(w.ends) {
		w = window{ends: now.Add(time.Minute)}
	}
	w.calls++
	s.windows[r.token] = w
	s.showLimit(r.header, s.settings.RateLimit-w.calls, w.ends.Sub(now))
	return w.calls > s.settings.RateLimit
}

// showLimit sets the headers that say how many calls are left until the window ends.
func (s *Sandbox) showLimit(header http.Header, left int, ends time.Duration) {
	header.Set("X-Rate-Limit-Limit", strconv.Itoa(s.settings.RateLimit))
	header.Set("X-Rate-Limit-Remaining", strconv.Itoa(max(0, left)))
	header.Set("X-Rate-Limit-Remaining-Seconds", fmt.Sprintf("%.0f", ends.Seconds()))
	header.Set("X-Rate-Limit-Reset", strconv.FormatInt(s.settings.Now().Add(ends).Unix(), 10))
}

// page returns the number and bounds of the page that the query asks for. An invalid value counts as missing.
func (r *request) page(size, length int) (number, from, to int) {
	number, _ = strconv.Atoi(r.query.Get("page"))
	if limit, err := strconv.Atoi(r.query.Get("limit")); err == nil && limit > 0 {
		size = min(limit, 5000)
	}
	number = min(max(number, 1), math.MaxInt32)
	return number, min((number-1)*size, length), min(number*size, length)
}

// Package sandbox is a look-alike of Rollbar's API in memory, for development and tests. A [Sandbox]
// is an [http.Handler] with one project of invented items. It knows Rollbar's tokens, rate limits and
// redirects, and the delay between accepting an occurrence and showing it, so a client cannot tell it
// from Rollbar. [Sandbox.Control] is for tests: it makes the sandbox fail and looks inside.
//
// It follows Rollbar's documentation and published answers. A comment marks each answer that neither
// of them shows as a guess.
package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"regexp"
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

// Rollbar's scopes.
const (
	read       = "read"
	write      = "write"
	post       = "post_server_item"
	postClient = "post_client_item"
)

var scopes = map[string][]string{
	ReadToken:       {read},
	WriteToken:      {write},
	PostToken:       {post},
	ClientPostToken: {postClient},
	Token:           {post, read, write},
}

// A Sandbox is a Rollbar with one project. It is safe for concurrent use.
type Sandbox struct {
	mu       sync.Mutex
	settings Settings
	project
	windows map[string]*window
	log     []string
	failure
	bulk
}

// A window counts the calls of one token in a minute.
type window struct {
	ends  time.Time
	calls int
}

// New returns a Rollbar whose project has n invented items.
func New(n int) *Sandbox {
	s := &Sandbox{
		settings: Settings{Now: time.Now, LargeProject: 100_000, RateLimit: 50_000},
		project:  project{items: map[int64]item{}, occurrences: map[int64]*occurrence{}, byUUID: map[string]*occurrence{}, posts: map[string]int{}},
		windows:  map[string]*window{},
		failure:  failure{ended: make(chan struct{})},
	}
	for number := range n {
		s.addItem(number)
	}
	return s
}

// An answer is a response before it is written.
type answer struct {
	status int
	header map[string]string
	text   []byte
}

func errorf(status int, format string, args ...any) answer {
	return answer{status: status, text: encode(map[string]any{"err": 1, "message": fmt.Sprintf(format, args...)}, "")}
}

func result(value any) answer {
	return answer{status: 200, text: encode(map[string]any{"err": 0, "result": value}, "")}
}

// encode returns JSON in Rollbar's form: indented, without a final newline. The prefix begins each
// line but the first.
func encode(value any, prefix string) []byte {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent(prefix, "  ")
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n"))
}

// ServeHTTP answers a request as Rollbar does, or fails as Control told it to.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	fault, ended := s.begin(r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), "/api/1"))
	switch fault {
	case Down:
		panic(http.ErrAbortHandler)
	case Slow:
		select {
		case <-ended:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case BadGateway:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n")
		return
	}
	answer := s.answer(r, body, fault)
	if fault == Dropped {
		panic(http.ErrAbortHandler)
	}
	header := w.Header()
	header.Set("Content-Type", "application/json; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(len(answer.text)))
	for name, value := range answer.header {
		header.Set(name, value)
	}
	w.WriteHeader(answer.status)
	if fault == Truncated {
		answer.text = answer.text[:len(answer.text)/2]
	}
	w.Write(answer.text)
}

// A route is a method and a path, with the scope that it needs.
type route struct {
	pattern *regexp.Regexp
	scope   string
	answer  func(s *Sandbox, r *request) answer
}

// A request is a request on its route.
type request struct {
	*http.Request
	token string
	id    int64 // in the path
	body  []byte
}

var routes = []route{
	{regexp.MustCompile(`^GET /items$`), read, (*Sandbox).listItems},
	{regexp.MustCompile(`^GET /item$`), read, (*Sandbox).findItem},
	{regexp.MustCompile(`^GET /item/(\d+)$`), read, (*Sandbox).oneItem},
	{regexp.MustCompile(`^GET /item_by_counter/(\d+)$`), read, (*Sandbox).redirectToItem},
	{regexp.MustCompile(`^PATCH /item/(\d+)$`), write, (*Sandbox).patchItem},
	{regexp.MustCompile(`^POST /item$`), "", (*Sandbox).postItem}, // the scope depends on the payload
	{regexp.MustCompile(`^GET /item/(\d+)/instances$`), read, (*Sandbox).listOccurrences},
	{regexp.MustCompile(`^GET /instances$`), read, (*Sandbox).listOccurrences},
	{regexp.MustCompile(`^GET /instance/(\d+)$`), read, (*Sandbox).oneOccurrence},
	{regexp.MustCompile(`^DELETE /instance/(\d+)$`), write, (*Sandbox).deleteOccurrence},
}

// answer finds the route of a request and answers it there.
func (s *Sandbox) answer(r *http.Request, body []byte, fault Fault) answer {
	path, inAPI := strings.CutPrefix(strings.TrimSuffix(r.URL.Path, "/"), "/api/1")
	if inAPI && path == "/status/ping" {
		return answer{status: 200, header: map[string]string{"Content-Type": "text/plain"}, text: []byte("pong")}
	}
	for _, route := range routes {
		m := route.pattern.FindStringSubmatch(r.Method + " " + path)
		if m == nil || !inAPI {
			continue
		}
		request := &request{Request: r, token: r.Header.Get("X-Rollbar-Access-Token"), body: body}
		if request.token == "" {
			request.token = r.URL.Query().Get("access_token")
		}
		if len(m) > 1 {
			request.id, _ = strconv.ParseInt(m[1], 10, 64)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.authorized(route, request, fault)
	}
	return errorf(http.StatusNotFound, "not found") // without rate headers
}

// authorized checks the token of a request and counts the call before the route answers it.
func (s *Sandbox) authorized(route route, r *request, fault Fault) answer {
	has, known := scopes[r.token]
	isPost := route.scope == ""
	switch {
	case r.token == "" && isPost:
		return errorf(422, "Invalid format. access_token is missing and it is required.")
	case (!known || fault == Forbidden) && isPost:
		return errorf(403, "access token not found: %s", r.token)
	case !known || fault == Forbidden: // without a token: a guess
		return errorf(403, "invalid access token")
	case !isPost && !slices.Contains(has, route.scope):
		return forbidden(route.scope, has)
	}
	var a answer
	header := s.countCall(r.token, fault)
	switch {
	case fault == Deactivated:
		a = errorf(429, "This account has been deactivated. To reactivate it, log in to Rollbar and choose a plan. Access token: %s", r.token)
	case header["X-Rate-Limit-Remaining"] == "-1" || fault == LimitedNear || fault == LimitedFar:
		header["X-Rate-Limit-Remaining"] = "0"
		a = errorf(429, "Over rate limit. Access token: %s", r.token)
	case fault == Error:
		a = errorf(500, "internal error")
	default:
		a = route.answer(s, r)
	}
	maps.Copy(header, a.header)
	a.header = header
	return a
}

// forbidden answers a token that lacks a scope. Its wording is a guess.
func forbidden(needed string, has []string) answer {
	return errorf(403, "insufficient privileges: %s scope is required but the access token only has %s.", needed, has[0])
}

// countCall counts a call of the token and returns the headers that say what is left. A window
// opens with the first call and does not slide.
func (s *Sandbox) countCall(token string, fault Fault) map[string]string {
	now, limit := s.settings.Now(), s.settings.RateLimit
	w := s.windows[token]
	if w == nil || !now.Before(w.ends) {
		w = &window{ends: now.Add(time.Minute)}
		s.windows[token] = w
	}
	ends := w.ends
	switch fault {
	case LimitedNear:
		ends = now.Add(time.Second)
	case LimitedFar:
		ends = now.Add(18 * time.Hour)
	}
	w.calls++
	return map[string]string{
		"X-Rate-Limit-Limit":             strconv.Itoa(limit),
		"X-Rate-Limit-Remaining":         strconv.Itoa(max(-1, limit-w.calls)),
		"X-Rate-Limit-Remaining-Seconds": strconv.Itoa(int(ends.Sub(now).Round(time.Second).Seconds())),
		"X-Rate-Limit-Reset":             strconv.FormatInt(ends.Unix(), 10),
	}
}

// page reads page and limit from the query and returns the number of the page and its bounds. A
// value that makes no sense counts as missing.
func (r *request) page(size int) (number, from, to int) {
	number, _ = strconv.Atoi(r.URL.Query().Get("page"))
	if limit, err := strconv.Atoi(r.URL.Query().Get("limit")); err == nil && limit > 0 {
		size = min(limit, 5000)
	}
	number = min(max(number, 1), math.MaxInt32)
	from = (number - 1) * size
	return number, from, from + size
}

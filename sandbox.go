// sandbox.go is a look-alike of Rollbar's API in memory, for `serve -dev`, SANDBOX=true and the
// tests: good enough that a client cannot tell, faults included. This file is its HTTP surface,
// sandbox_items.go the project behind it, sandbox_data.go what is in it. Where it is not known how
// Rollbar answers, a comment says that the answer is a guess.
package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
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

// The sandbox's tokens.
const (
	sandboxReadToken       = "sandbox-read"
	sandboxWriteToken      = "sandbox-write"
	sandboxPostToken       = "sandbox-post"
	sandboxClientPostToken = "sandbox-post-client"
	sandboxToken           = "sandbox" // an old one, with several scopes
)

var sandboxScopes = map[string][]scope{
	sandboxReadToken:       {scopeRead},
	sandboxWriteToken:      {scopeWrite},
	sandboxPostToken:       {scopePost},
	sandboxClientPostToken: {scopePostClient},
	sandboxToken:           {scopePost, scopeRead, scopeWrite},
}

// A sandboxFault is a way in which Rollbar fails.
type sandboxFault string

const (
	faultNone        sandboxFault = ""
	faultDown        sandboxFault = "down"         // the connection is closed without an answer
	faultError       sandboxFault = "error"        // 500
	faultBadGateway  sandboxFault = "bad gateway"  // 502 with the gateway's HTML
	faultTruncated   sandboxFault = "truncated"    // the answer breaks off
	faultSlow        sandboxFault = "slow"         // no answer until the client gives up or the fault ends
	faultDropped     sandboxFault = "dropped"      // carried out, but the answer is lost
	faultLimitedNear sandboxFault = "limited near" // 429 for another second
	faultLimitedFar  sandboxFault = "limited far"  // 429 for hours
	faultDeactivated sandboxFault = "deactivated"  // 429 for an account that is not paid for
	faultForbidden   sandboxFault = "forbidden"    // 403 as for an unknown token
)

// A sandbox is Rollbar with one project. It is safe for concurrent use.
type sandbox struct {
	now          func() time.Time
	largeProject int // with more items than this, lists do not count them
	limit        int // calls a token has in a minute
	tokenInLink  bool
	manual       bool // posts and deletions are carried out by process alone
	sandboxFaults
	sandboxProject
	windows map[string]*sandboxWindow
	log     []string
}

// sandboxFaults says which requests fail.
type sandboxFaults struct {
	faultMu sync.Mutex
	fault   sandboxFault
	only    string        // the beginning of "METHOD /path" of those that fail
	left    int           // how many more fail; below 0 all
	ended   chan struct{} // closed when the fault ends
}

// A sandboxWindow counts the calls of one token in a minute.
type sandboxWindow struct {
	ends  time.Time
	calls int
}

// newSandbox returns a Rollbar whose project has n invented items.
func newSandbox(n int) *sandbox {
	s := &sandbox{now: time.Now, largeProject: 100_000, limit: 50_000, windows: map[string]*sandboxWindow{}}
	s.ended = make(chan struct{})
	s.items = map[int64]sandboxItem{}
	s.occurrences = map[int64]*sandboxOccurrence{}
	s.byUUID = map[string]*sandboxOccurrence{}
	s.posts = map[string]int{}
	s.addItems(n)
	return s
}

// setFault makes all requests fail so, until the next call.
func (s *sandbox) setFault(f sandboxFault) { s.failOnly("", -1, f) }

// failNext makes the next n requests fail so.
func (s *sandbox) failNext(n int, f sandboxFault) { s.failOnly("", n, f) }

// failOnly makes the next n requests that begin so, "DELETE /instance/", fail; all for n below 0.
func (s *sandbox) failOnly(only string, n int, f sandboxFault) {
	s.faultMu.Lock()
	defer s.faultMu.Unlock()
	close(s.ended)
	s.fault, s.only, s.left, s.ended = f, only, n, make(chan struct{})
}

// faultFor takes the fault of a request, and what is closed when it ends.
func (s *sandbox) faultFor(request string) (sandboxFault, chan struct{}) {
	s.faultMu.Lock()
	defer s.faultMu.Unlock()
	if s.left == 0 || !strings.HasPrefix(request, s.only) {
		return faultNone, nil
	}
	s.left--
	return s.fault, s.ended
}

// requests are "METHOD /path?query" of the last requests, without the API's prefix.
func (s *sandbox) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// A sandboxAnswer is an answer before it is written.
type sandboxAnswer struct {
	status int
	header map[string]string
	body   any
}

func sandboxError(status int, format string, args ...any) sandboxAnswer {
	return sandboxAnswer{status: status, body: map[string]any{"err": 1, "message": fmt.Sprintf(format, args...)}}
}

func sandboxResult(result any) sandboxAnswer {
	return sandboxAnswer{status: 200, body: map[string]any{"err": 0, "result": result}}
}

// ServeHTTP answers a request as Rollbar would, or fails as it was told to.
func (s *sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	path, inAPI := strings.CutPrefix(r.URL.Path, "/api/1")
	request := r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), "/api/1")
	fault, ended := s.faultFor(request)
	s.mu.Lock()
	s.log = append(s.log[max(0, len(s.log)-9_999):], request) // who sees it there may count on its fault
	s.mu.Unlock()

	switch fault {
	case faultDown:
		panic(http.ErrAbortHandler)
	case faultSlow:
		select {
		case <-ended:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case faultBadGateway:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n")
		return
	}
	answer := sandboxError(http.StatusNotFound, "not found")
	if inAPI {
		answer = s.answer(r, strings.TrimSuffix(path, "/"), body, fault)
	}
	if fault == faultDropped {
		panic(http.ErrAbortHandler)
	}
	writeSandboxAnswer(w, answer, fault == faultTruncated)
}

// writeSandboxAnswer writes JSON as Rollbar does: indented, without a newline at its end.
func writeSandboxAnswer(w http.ResponseWriter, answer sandboxAnswer, truncated bool) {
	if text, ok := answer.body.(string); ok {
		io.WriteString(w, text)
		return
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(answer.body); err != nil {
		panic(err)
	}
	text.Truncate(text.Len() - 1)
	for name, value := range answer.header {
		w.Header().Set(name, value)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	w.WriteHeader(answer.status)
	if truncated {
		text.Truncate(text.Len() / 2)
	}
	w.Write(text.Bytes())
}

// A sandboxRoute is a method and a path, with the scope that it needs.
type sandboxRoute struct {
	pattern *regexp.Regexp
	scope   scope
	answer  func(s *sandbox, r *sandboxRequest) sandboxAnswer
}

// A sandboxRequest is a request on its route.
type sandboxRequest struct {
	*http.Request
	token string
	id    int64 // in the path
	body  []byte
}

var sandboxRoutes = []sandboxRoute{
	{regexp.MustCompile(`^GET /items$`), scopeRead, (*sandbox).listItems},
	{regexp.MustCompile(`^GET /item$`), scopeRead, (*sandbox).findItem},
	{regexp.MustCompile(`^GET /item/(\d+)$`), scopeRead, (*sandbox).oneItem},
	{regexp.MustCompile(`^GET /item_by_counter/(\d+)$`), scopeRead, (*sandbox).redirectToItem},
	{regexp.MustCompile(`^PATCH /item/(\d+)$`), scopeWrite, (*sandbox).patchItem},
	{regexp.MustCompile(`^POST /item$`), "", (*sandbox).postItem}, // the scope depends on the payload
	{regexp.MustCompile(`^GET /item/(\d+)/instances$`), scopeRead, (*sandbox).listOccurrences},
	{regexp.MustCompile(`^GET /instances$`), scopeRead, (*sandbox).listOccurrences},
	{regexp.MustCompile(`^GET /instance/(\d+)$`), scopeRead, (*sandbox).oneOccurrence},
	{regexp.MustCompile(`^DELETE /instance/(\d+)$`), scopeWrite, (*sandbox).deleteOccurrence},
}

// answer finds the route, checks the token and counts the call.
func (s *sandbox) answer(r *http.Request, path string, body []byte, fault sandboxFault) sandboxAnswer {
	if path == "/status/ping" {
		return sandboxAnswer{status: 200, body: "pong"}
	}
	for _, route := range sandboxRoutes {
		m := route.pattern.FindStringSubmatch(r.Method + " " + path)
		if m == nil {
			continue
		}
		token := r.Header.Get("X-Rollbar-Access-Token")
		if token == "" {
			token = r.URL.Query().Get("access_token")
		}
		request := &sandboxRequest{Request: r, token: token, body: body}
		if len(m) > 1 {
			request.id, _ = strconv.ParseInt(m[1], 10, 64)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		answer := s.authorized(route, request, fault)
		return answer
	}
	return sandboxError(http.StatusNotFound, "not found") // without rate headers
}

func (s *sandbox) authorized(route sandboxRoute, r *sandboxRequest, fault sandboxFault) sandboxAnswer {
	scopes, known := sandboxScopes[r.token]
	isPost := route.scope == ""
	switch {
	case r.token == "" && isPost:
		return sandboxError(422, "Invalid format. access_token is missing and it is required.")
	case (!known || fault == faultForbidden) && isPost:
		return sandboxError(403, "access token not found: %s", r.token)
	case !known || fault == faultForbidden: // without a token: a guess
		return sandboxError(403, "invalid access token")
	case !isPost && !slices.Contains(scopes, route.scope): // the wording is a guess
		return sandboxError(403, "insufficient privileges: %s scope is required but the access token only has %s.", route.scope, scopes[0])
	}
	answer, header := sandboxAnswer{}, s.countCall(r.token, fault)
	switch {
	case fault == faultDeactivated:
		answer = sandboxError(429, "This account has been deactivated. To reactivate it, log in to Rollbar and choose a plan. Access token: %s", r.token)
	case header["X-Rate-Limit-Remaining"] == "-1" || fault == faultLimitedNear || fault == faultLimitedFar:
		header["X-Rate-Limit-Remaining"] = "0"
		answer = sandboxError(429, "Over rate limit. Access token: %s", r.token)
	case fault == faultError:
		answer = sandboxError(500, "internal error")
	default:
		answer = route.answer(s, r)
	}
	if answer.header == nil {
		answer.header = map[string]string{}
	}
	maps.Copy(answer.header, header)
	return answer
}

// countCall counts a call of the token and returns the headers that say what is left. A window
// opens with the first call and is fixed.
func (s *sandbox) countCall(token string, fault sandboxFault) map[string]string {
	now := s.now()
	window := s.windows[token]
	if window == nil || !now.Before(window.ends) {
		window = &sandboxWindow{ends: now.Add(time.Minute)}
		s.windows[token] = window
	}
	ends := window.ends
	switch fault {
	case faultLimitedNear:
		ends = now.Add(time.Second)
	case faultLimitedFar:
		ends = now.Add(18 * time.Hour)
	}
	window.calls++
	return map[string]string{
		"X-Rate-Limit-Limit":             strconv.Itoa(s.limit),
		"X-Rate-Limit-Remaining":         strconv.Itoa(max(-1, s.limit-window.calls)),
		"X-Rate-Limit-Remaining-Seconds": strconv.Itoa(int(ends.Sub(now).Round(time.Second).Seconds())),
		"X-Rate-Limit-Reset":             strconv.FormatInt(ends.Unix(), 10),
	}
}

// page reads page and limit from the query. What makes no sense counts as not given.
func (r *sandboxRequest) page(size int) (from, to int) {
	number, _ := strconv.Atoi(r.URL.Query().Get("page"))
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err == nil && limit > 0 {
		size = min(limit, 5000)
	}
	from = (min(max(number, 1), math.MaxInt32) - 1) * size
	return from, from + size
}

// sandboxHash is the fingerprint of texts: SHA-1, as Rollbar makes it.
func sandboxHash(texts ...string) string {
	sum := sha1.Sum([]byte(strings.Join(texts, "\n")))
	return hex.EncodeToString(sum[:])
}

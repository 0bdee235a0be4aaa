// handlers.go is HTTP in: it makes a route of every command, admits callers, and takes arguments out of
// requests.
package main

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"app/internal/datadog"
	"app/internal/rawjson"
)

// maxBody bounds the body of a request.
const maxBody = 1 << 20

// A server answers requests.
type server struct {
	app    *App
	mux    *http.ServeMux // ends with a route for all that no other route matches
	tokens []string       // that callers may send; without one, anybody on this machine may call
	origin *http.CrossOriginProtection

	document func() ([]byte, error) // that describes the routes

	// clientTimeout is how long a client may take to send its body, or to take a part of a response.
	clientTimeout time.Duration
}

// noRoute is the pattern of the route for all that no other route matches.
const noRoute = "/"

// newHandler returns the service as a handler. Callers must send one of the tokens, if there are any.
func newHandler(app *App, commands []*Command, tokens []string) http.Handler {
	s := &server{
		app: app, mux: http.NewServeMux(), tokens: tokens, origin: http.NewCrossOriginProtection(),
		clientTimeout: 30 * time.Second,
		document:      sync.OnceValues(func() ([]byte, error) { return openAPI(commands, len(tokens) > 0) }),
	}
	handle := func(pattern string, serve func(w *response, r *http.Request)) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { serve(w.(*response), r) })
	}
	for _, c := range commands {
		for _, route := range c.routes() {
			handle(route, func(w *response, r *http.Request) { s.serveCommand(w, r, c) })
		}
	}
	handle("GET "+openAPIPath, s.serveOpenAPI)
	handle(noRoute, s.serveNoRoute)
	return s
}

// ServeHTTP answers one request and logs it.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, span := s.app.telemetry.StartRequest(r)
	if span != nil {
		r = r.WithContext(ctx)
	}
	x := &response{ResponseWriter: w, request: r, id: requestID(r), timeout: s.clientTimeout}
	defer x.release()
	defer func() {
		defer s.finishRequest(x, r, span, began)
		if caught := recover(); caught != nil {
			s.recovered(x, r, caught)
		}
	}()
	if r.Body != http.NoBody { // also for a body that only net/http reads, to discard it
		_ = http.NewResponseController(w).SetReadDeadline(began.Add(s.clientTimeout))
	}
	h := w.Header()
	h["X-Content-Type-Options"] = noSniff
	h["Cache-Control"] = noStore
	h["X-Request-Id"] = []string{x.id}
	if isUnclean(r.URL.Path) {
		s.serveNoRoute(x, r)
	} else {
		s.mux.ServeHTTP(x, r)
	}
	x.finish()
}

// isUnclean reports whether a ServeMux would answer a path itself, in HTML and to anybody, or not at all.
func isUnclean(path string) bool {
	return !strings.HasPrefix(path, "/") || strings.Contains(path, "//") || strings.Contains(path, "/.")
}

// saneID matches the request ids that are taken over from callers.
var saneID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// requestID returns the caller's id of the request, or a new one.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); saneID.MatchString(id) {
		return id
	}
	return rand.Text()
}

// recovered answers a request whose handler panicked, unless it did so to cut off the response.
func (s *server) recovered(w *response, r *http.Request, caught any) {
	if caught == http.ErrAbortHandler {
		panic(caught)
	}
	s.app.log.ErrorContext(r.Context(), "panic", "request_id", w.id, "error", caught, "error.stack", string(debug.Stack()))
	datadog.SpanFrom(r.Context()).SetError(fmt.Errorf("panic: %v", caught))
	w.refuse(fail(internal, "internal error"))
	w.finish()
}

// finishRequest reports an answered request: a line in the log, metrics, and the end of its span.
func (s *server) finishRequest(w *response, r *http.Request, span *datadog.Span, began time.Time) {
	took := time.Since(began)
	s.logRequest(w, r, began, took)
	var err error
	outcome := failureKind{name: "ok"}
	switch {
	case w.failure != nil:
		outcome, err = w.failure.kind, w.failure
	case w.status >= 500:
		outcome = unavailable // of check
	}
	countOperation(s.app.telemetry, w.operation, "http", outcome, took)
	span.FinishRequest(r, strings.TrimPrefix(r.Pattern, noRoute), w.status, err)
}

// logRequest writes the line about a request. The line names no place in the program, which would take
// as long as all the rest.
func (s *server) logRequest(w *response, r *http.Request, began time.Time, took time.Duration) {
	level, log := slog.LevelInfo, s.app.log.Handler()
	if w.failure != nil && w.failure.kind == internal {
		level = slog.LevelError
	}
	if !log.Enabled(r.Context(), level) {
		return
	}
	line := slog.NewRecord(began.Add(took), level, "request", 0)
	line.AddAttrs(
		slog.String("operation", w.operation),
		slog.String("http.method", r.Method),
		slog.Int("http.status_code", w.status),
		slog.Duration("duration", took),
		slog.Duration("upstream_duration", w.call.upstream.total()),
		slog.String("http.request_id", w.id),
	)
	if f := w.failure; f != nil {
		line.AddAttrs(slog.String("error.kind", f.kind.name), slog.String("detail", f.detail))
		if f.err != nil {
			line.AddAttrs(slog.String("error", f.err.Error()))
		}
	}
	_ = log.Handle(r.Context(), line) // there is no better place to complain
}

// admit refuses a caller without a valid token. Without tokens anybody on this machine may call, but
// not a web page in a browser: neither across origins nor by a host name that leads here.
func (s *server) admit(r *http.Request, open bool) error {
	if len(s.tokens) == 0 {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !isLoopback(strings.Trim(host, "[]")) {
			return fail(wrongHost, "the Host header must be localhost or a loopback address, since no API_TOKEN is set")
		}
		if err := s.origin.Check(r); err != nil {
			return fail(crossOrigin, "requests from other origins must not change anything, since no API_TOKEN is set")
		}
		return nil
	}
	if open {
		return nil
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	valid := 0
	for _, token := range s.tokens {
		valid |= subtle.ConstantTimeCompare([]byte(given), []byte(token))
	}
	if !strings.EqualFold(scheme, "Bearer") || valid == 0 {
		return fail(unauthorized, "send one of the service's tokens: Authorization: Bearer …")
	}
	return nil
}

// methods are those that a route may have.
var methods = []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodPost, http.MethodPut}

// serveNoRoute refuses a request that no route matches: its path is unknown, or has other methods.
func (s *server) serveNoRoute(w *response, r *http.Request) {
	if err := s.admit(r, false); err != nil {
		w.refuse(err)
		return
	}
	other := r.Clone(r.Context())
	allow := slices.DeleteFunc(slices.Clone(methods), func(method string) bool {
		other.Method = method
		_, pattern := s.mux.Handler(other)
		return pattern == noRoute || isUnclean(r.URL.Path)
	})
	if len(allow) == 0 {
		w.refuse(fail(notFound, "there is no route %s %s", r.Method, r.URL.Path))
		return
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	w.refuse(fail(wrongMethod, "%s takes %s", r.URL.Path, strings.Join(allow, ", ")))
}

// serveCommand answers a request that the command's route matches.
func (s *server) serveCommand(w *response, r *http.Request, c *Command) {
	w.operation = c.Name
	result, err := s.run(w, r, c)
	if err != nil {
		w.refuse(err)
		return
	}
	w.respond(result)
}

// run runs the command with the arguments of the request.
func (s *server) run(w *response, r *http.Request, c *Command) (any, error) {
	if err := s.admit(r, c.Open); err != nil {
		return nil, err
	}
	args, err := s.arguments(w, r, c)
	if err != nil {
		return nil, err
	}
	operation, err := c.Run.prepare(args)
	if err != nil {
		return nil, err
	}
	w.call.stream = wantsLines(r)
	return operation(withCall(r.Context(), &w.call), s.app)
}

// paramName names a parameter as HTTP's users know it.
func paramName(p *param) string { return p.name }

// arguments takes the command's arguments out of the path, the query and the body.
func (s *server) arguments(w http.ResponseWriter, r *http.Request, c *Command) (arguments, error) {
	args := arguments{label: paramName}
	if len(c.Run.params) == 0 && r.URL.RawQuery == "" && r.Body == http.NoBody {
		return args, nil
	}
	args.values = map[string][]literal{}
	for _, p := range c.Run.params {
		if p.in == inPath {
			args.values[p.name] = []literal{{text: r.PathValue(p.name)}}
		}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return args, fail(invalid, "the query cannot be read: %w", err)
	}
	var wrong []fieldError
	for name, values := range query {
		if !c.has(inQuery, name) {
			wrong = append(wrong, fieldError{name, unknown("query parameter", name, c.names(inQuery))})
		}
		for _, value := range values {
			args.values[name] = append(args.values[name], literal{text: value})
		}
	}
	body, err := s.body(w, r)
	if err != nil {
		return args, err
	}
	for name, value := range body {
		if !c.has(inBody, name) {
			wrong = append(wrong, fieldError{name, unknown("field", name, c.names(inBody))})
		}
		args.values[name] = []literal{{text: string(value), json: true}}
	}
	if len(wrong) > 0 {
		slices.SortFunc(wrong, func(a, b fieldError) int { return strings.Compare(a.Field, b.Field) })
		return args, invalidFields(wrong)
	}
	return args, nil
}

// body reads the members of a request's JSON body. A body of no declared type is JSON, and so is
// one of the type that a plain `curl -d` declares.
func (s *server) body(w http.ResponseWriter, r *http.Request) (map[string]json.RawMessage, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Body == http.NoBody {
		return nil, nil
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, fail(tooLarge, "the body is larger than %d bytes", maxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fail(invalid, "the body did not come to its end within %v", s.clientTimeout)
	case err != nil:
		return nil, fail(invalid, "the body cannot be read: %w", err)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the work may take its time
	if len(text) == 0 {
		return nil, nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	declared := r.Header.Get("Content-Type") != ""
	if declared && (err != nil || kind != "application/json" && kind != "application/x-www-form-urlencoded") {
		return nil, fail(wrongMedia, "the body must be JSON, Content-Type: application/json, as `curl --json '{…}'` sends it")
	}
	object, err := rawjson.Object(text)
	if err != nil {
		return nil, fail(invalid, "the body cannot be used: %w", err)
	}
	return object, nil
}

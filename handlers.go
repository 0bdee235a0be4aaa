// handlers.go is the HTTP door: it makes a route of every command, takes arguments out of
// requests, and turns results and failures into answers. Nothing else knows HTTP.
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
	"strconv"
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
	mux    *http.ServeMux // the routes, and / for what none of them matches
	routes *http.ServeMux // the routes alone
	tokens []string       // what callers may send; none: anyone on this machine may call
	origin *http.CrossOriginProtection

	document func() ([]byte, error) // that describes the routes

	// clientTimeout is how long a client may take to send its body, or to take a part of an answer.
	clientTimeout time.Duration
}

// newHandler returns the service as a handler. Callers must send one of the tokens, if there are
// any.
func newHandler(app *App, commands []*Command, tokens []string) http.Handler {
	s := &server{
		app: app, mux: http.NewServeMux(), routes: http.NewServeMux(),
		tokens: tokens, origin: http.NewCrossOriginProtection(),
		clientTimeout: 30 * time.Second,

		document: sync.OnceValues(func() ([]byte, error) { return openAPI(commands, len(tokens) > 0) }),
	}
	handle := func(route string, serve func(x *exchange, r *http.Request)) {
		handler := func(w http.ResponseWriter, r *http.Request) { serve(w.(*exchange), r) }
		s.mux.HandleFunc(route, handler)
		s.routes.HandleFunc(route, handler)
	}
	for _, c := range commands {
		for _, route := range c.routes() {
			handle(route, func(x *exchange, r *http.Request) { s.serveCommand(x, r, c) })
		}
	}
	handle("GET "+openAPIPath, s.serveOpenAPI)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.serveNone(w.(*exchange), r) })
	return s
}

// An exchange is one request and its answer on the way through this file.
type exchange struct {
	statusWriter
	id        string
	operation string
	failure   *Failure
	call      Call
	timeout   time.Duration // for the client to take the beginning of the answer
}

// WriteHeader begins the answer, whoever gives it.
func (x *exchange) WriteHeader(status int) {
	_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Now().Add(x.timeout))
	x.statusWriter.WriteHeader(status)
}

func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	return x.statusWriter.Write(p)
}

// ServeHTTP answers one request and logs it.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	x := &exchange{statusWriter: statusWriter{ResponseWriter: w}, id: requestID(r), timeout: s.clientTimeout}
	ctx, span := s.app.telemetry.StartRequest(r)
	if span != nil {
		r = r.WithContext(ctx)
	}
	defer func() {
		defer s.finishRequest(x, r, span, began)
		if caught := recover(); caught != nil {
			s.recovered(x, r, caught)
		}
	}()
	if r.Body != http.NoBody { // also for a body that nobody reads but net/http, to throw it away
		_ = http.NewResponseController(w).SetReadDeadline(began.Add(s.clientTimeout))
	}
	h := w.Header()
	h["X-Content-Type-Options"] = noSniff
	h["Cache-Control"] = noStore
	h["X-Request-Id"] = []string{x.id}
	if isUnclean(r.URL.Path) {
		s.serveNone(x, r)
		return
	}
	s.mux.ServeHTTP(x, r)
}

// isUnclean reports whether a path is one that a ServeMux would answer itself, in HTML and whoever
// asks, or none at all.
func isUnclean(path string) bool {
	return !strings.HasPrefix(path, "/") || strings.Contains(path, "//") || strings.Contains(path, "/.")
}

// Headers of many answers.
var (
	noSniff   = []string{"nosniff"}
	noStore   = []string{"no-store"}
	jsonType  = []string{"application/json"}
	plainType = []string{"text/plain; charset=utf-8"}
)

// saneID matches the request ids that are taken over from callers.
var saneID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// requestID is the caller's id of the request, or a new one.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); saneID.MatchString(id) {
		return id
	}
	return rand.Text()
}

// recovered answers a request whose handler panicked, unless that is how it cut an answer off.
func (s *server) recovered(x *exchange, r *http.Request, caught any) {
	if caught == http.ErrAbortHandler {
		panic(caught)
	}
	s.app.log.ErrorContext(r.Context(), "panic", "request_id", x.id, "error", caught, "error.stack", string(debug.Stack()))
	datadog.SpanFrom(r.Context()).SetError(fmt.Errorf("panic: %v", caught))
	if x.status != 0 {
		panic(http.ErrAbortHandler) // half an answer must not look like a whole one
	}
	s.refuse(x, fail(internal, "internal error"))
}

// finishRequest tells of a request that was answered: a line in the log, metrics, and the end of its
// span.
func (s *server) finishRequest(x *exchange, r *http.Request, span *datadog.Span, began time.Time) {
	took := time.Since(began)
	s.logRequest(x, r, began, took)
	var err error
	outcome := failureKind{name: "ok"}
	switch {
	case x.failure != nil:
		outcome, err = x.failure.kind, x.failure
	case x.status >= 500:
		outcome = unavailable // of check
	}
	countOperation(s.app.telemetry, x.operation, "http", outcome, took)
	span.FinishRequest(r, strings.TrimPrefix(r.Pattern, "/"), x.status, err)
}

// logRequest writes the line about a request. It leaves out where in the program it was written, which
// would take as long as the line.
func (s *server) logRequest(x *exchange, r *http.Request, began time.Time, took time.Duration) {
	level, log := slog.LevelInfo, s.app.log.Handler()
	if x.failure != nil && x.failure.kind == internal {
		level = slog.LevelError
	}
	if !log.Enabled(r.Context(), level) {
		return
	}
	line := slog.NewRecord(began.Add(took), level, "request", 0)
	line.AddAttrs(
		slog.String("operation", x.operation),
		slog.String("http.method", r.Method),
		slog.Int("http.status_code", x.status),
		slog.Duration("duration", took),
		slog.Duration("upstream_duration", x.call.upstream.total()),
		slog.String("http.request_id", x.id),
	)
	if f := x.failure; f != nil {
		line.AddAttrs(slog.String("error.kind", f.kind.name), slog.String("detail", f.detail))
		if f.err != nil {
			line.AddAttrs(slog.String("error", f.err.Error()))
		}
	}
	_ = log.Handle(r.Context(), line) // there is no better place to complain
}

// admit says whether the caller may come in. Without tokens everybody on this machine may, but a
// web page that a browser shows may not: neither across origins nor by a name that leads here.
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

// serveNone refuses a request that no route matches: the path is unknown, or has other methods, which
// go to the Allow header.
func (s *server) serveNone(x *exchange, r *http.Request) {
	if err := s.admit(r, false); err != nil {
		s.refuse(x, err)
		return
	}
	probe := &statusWriter{ResponseWriter: discardWriter{http.Header{}}}
	if !isUnclean(r.URL.Path) {
		s.routes.ServeHTTP(probe, r.Clone(r.Context()))
	}
	if probe.status == http.StatusMethodNotAllowed {
		allow := probe.Header().Get("Allow")
		x.Header().Set("Allow", allow)
		s.refuse(x, fail(wrongMethod, "%s takes %s", r.URL.Path, allow))
		return
	}
	s.refuse(x, fail(notFound, "there is no route %s %s", r.Method, r.URL.Path))
}

// serveCommand answers a request that the command's route matches.
func (s *server) serveCommand(x *exchange, r *http.Request, c *Command) {
	x.operation = c.Name
	if err := s.admit(r, c.Open); err != nil {
		s.refuse(x, err)
		return
	}
	args, err := s.arguments(x, r, c)
	if err != nil {
		s.refuse(x, err)
		return
	}
	operation, err := c.Run.prepare(args)
	if err != nil {
		s.refuse(x, err)
		return
	}
	call, known := &x.call, knownVersions(r)
	call.lines, call.have = wantsLines(r), known
	if r.Method == http.MethodHead {
		call.have, call.ahead = []string{anyVersion}, true // the thing itself is not wanted
	}
	err = s.serveOperation(x, r, operation)
	if errors.Is(err, errLate) {
		call.ahead = true
		err = s.serveOperation(x, r, operation)
	}
	switch {
	case errors.Is(err, errUnchanged) && (slices.Contains(known, call.version) || slices.Contains(known, anyVersion)):
		x.WriteHeader(http.StatusNotModified)
	case errors.Is(err, errUnchanged):
		_ = s.respond(x, r, nil) // to a HEAD
	case err != nil:
		s.refuse(x, err)
	}
}

// serveOperation runs the operation and answers with its result, or returns the error.
func (s *server) serveOperation(x *exchange, r *http.Request, operation prepared) error {
	value, err := operation(withCall(r.Context(), &x.call), s.app)
	if x.call.version != "" {
		x.Header().Set("ETag", `W/"`+x.call.version+`"`)
	}
	if err != nil {
		return err
	}
	if x.call.unstored != "" {
		x.Header().Set("Report-Stored", "false")
	}
	list, isList := value.(*List)
	if isList {
		defer list.close()
	}
	if isList && x.call.lines {
		return s.respondLines(x, r, list)
	}
	return s.respond(x, r, value)
}

// refuse answers with a failure as problem details.
func (s *server) refuse(x *exchange, err error) {
	f := failureOf(err)
	x.failure = f
	h := x.Header()
	h.Set("Content-Type", "application/problem+json")
	if f.wait > 0 {
		h.Set("Retry-After", strconv.Itoa(f.retryAfter()))
	}
	if x.call.unstored != "" {
		h.Set("Report-Stored", "false")
	}
	if f.kind == unauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	x.WriteHeader(f.kind.status)
	_ = writeResult(x, f.problem(x.id)) // the caller may be gone
}

// setLinks sets the Link headers that lead to the neighbouring pages, if it is a list that is answered.
// It comes last before the header goes out.
func setLinks(h http.Header, page *url.URL, list *List) {
	if list == nil {
		return
	}
	for _, link := range []struct {
		rel     string
		changes url.Values
	}{{"prev", list.Prev}, {"next", list.Next}} {
		if link.changes == nil {
			continue
		}
		query := page.Query()
		for name, values := range link.changes {
			query[name] = values
		}
		target := page.EscapedPath()
		if text := query.Encode(); text != "" {
			target += "?" + text
		}
		h.Add("Link", "<"+target+`>; rel="`+link.rel+`"`)
	}
}

// paramName is how HTTP's users know a parameter.
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

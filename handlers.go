package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"app/internal/datadog"
	"app/internal/rawjson"
)

const (
	maxBody = 1 << 20 // bytes; the largest body of a request
	noRoute = "/"     // the catch-all route's pattern
)

type server struct {
	app    *App
	config *Config
	mux    *http.ServeMux // its last route is the catch-all
	origin *http.CrossOriginProtection
	paths  []string // patterns of the routes' paths

	commands []*Command
	document func() ([]byte, error) // returns the OpenAPI document

	frames     sync.Map // of the pages of lists
	framesMade atomic.Int64

	// clientTimeout is how long a client may take to send its body, or to read one part of a response.
	clientTimeout time.Duration
}

// newHandler returns the service as a handler. Callers must send one of the API tokens, if any are set.
func newHandler(app *App, commands []*Command, config *Config) http.Handler {
	s := &server{
		app: app, config: config, mux: http.NewServeMux(), origin: http.NewCrossOriginProtection(), commands: commands,
		clientTimeout: 30 * time.Second,
		document:      sync.OnceValues(func() ([]byte, error) { return openAPI(commands, config.asksForTokens()) }),
	}
	handle := func(pattern string, serve func(w *response, r *http.Request)) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { serve(w.(*response), r) })
	}
	for _, c := range commands {
		for _, route := range c.routes() {
			handle(route, func(w *response, r *http.Request) { s.serveCommand(w, r, c) })
			_, path, _ := strings.Cut(route, " ")
			s.paths = append(s.paths, path)
		}
	}
	if len(config.relayTokens) > 0 && !config.ReadOnly {
		for _, path := range relayPaths {
			handle("POST "+path, s.serveRelay)
			handle("OPTIONS "+path, s.serveRelay)
		}
	}
	if len(config.webhookTokens) > 0 {
		handle("POST /webhooks/rollbar", s.serveWebhook)
	}
	handle("GET "+openAPIPath, s.serveOpenAPI)
	handle("POST /mcp", s.serveMCP)
	handle("GET "+stylePath, serveStyle)
	handle(noRoute, s.serveNoRoute)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, span := s.app.telemetry.StartRequest(r)
	if span != nil {
		r = r.WithContext(ctx)
	}
	x := &response{ResponseWriter: w, request: r, id: requestID(r), mask: s.app.mask, timeout: s.clientTimeout}
	defer x.release()
	defer func() {
		defer s.finishRequest(x, r, span, began)
		if caught := recover(); caught != nil {
			s.recovered(x, r, caught)
		}
	}()
	if r.Body != http.NoBody { // also bounds a body that net/http reads only to discard it
		_ = http.NewResponseController(w).SetReadDeadline(began.Add(s.clientTimeout))
	}
	maps.Copy(w.Header(), commonHeader)
	w.Header()["X-Request-Id"] = []string{x.id}
	var err error
	if x.wanted = wantedType(r); x.wanted == htmlType {
		x.page = s.newPage(x, r)
		err = s.takeForm(x, r)
	}
	switch {
	case err != nil:
		x.refuse(err)
	case isUnclean(r.URL.Path):
		s.serveNoRoute(x, r)
	default:
		s.mux.ServeHTTP(x, r)
	}
	x.finish()
}

// isUnclean reports whether a ServeMux would answer the path itself (in HTML, without a token) or not at all.
func isUnclean(path string) bool {
	return !strings.HasPrefix(path, "/") || strings.Contains(path, "//") || strings.Contains(path, "/.")
}

// saneID matches a caller's request id. It has no {1,128}, since compiling that would add 0.2 ms to each start.
var saneID = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// requestID returns the caller's id for the request, or a new one.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); len(id) <= 128 && saneID.MatchString(id) {
		return id
	}
	return rand.Text()
}

// recovered answers a request whose handler panicked. It panics again if that was to cut off the response.
func (s *server) recovered(w *response, r *http.Request, caught any) {
	if caught == http.ErrAbortHandler {
		panic(caught)
	}
	s.app.log.ErrorContext(r.Context(), "panic", "request_id", w.id, "error", caught, "error.stack", string(debug.Stack()))
	datadog.SpanFrom(r.Context()).SetError(fmt.Errorf("panic: %v", caught))
	w.refuse(fail(internal, "internal error"))
	w.finish()
}

// finishRequest logs an answered request, counts it in the metrics and ends its span.
func (s *server) finishRequest(w *response, r *http.Request, span *datadog.Span, began time.Time) {
	took := time.Since(began)
	s.logRequest(w, r, began, took)
	var err error
	outcome := failureKind{name: "ok"}
	switch {
	case w.failure != nil:
		outcome, err = w.failure.kind, w.failure
	case w.status >= 500:
		outcome = unavailable // check answered KO
	}
	if !w.counted {
		countOperation(s.app.telemetry, w.operation, "http", outcome, took)
	}
	if w.operation != "" {
		span.SetTag("operation", w.operation)
	}
	span.FinishRequest(r, strings.TrimSuffix(strings.TrimPrefix(r.Pattern, noRoute), "{$}"), w.status, err)
}

// logRequest writes a request's log line. It leaves out the source position, which would double the cost.
func (s *server) logRequest(w *response, r *http.Request, began time.Time, took time.Duration) {
	level, log := slog.LevelInfo, s.app.log.Handler()
	switch {
	case w.failure != nil && w.failure.kind == internal:
		level = slog.LevelError
	case w.status >= 500:
		level = slog.LevelWarn
	case w.failure == nil && (w.operation == whichCmd.Name || w.operation == checkCmd.Name):
		level = slog.LevelDebug // monitors call these every few seconds
	}
	if !log.Enabled(r.Context(), level) {
		return
	}
	line := slog.NewRecord(began.Add(took), level, "request", 0)
	line.AddAttrs(
		slog.String("operation", w.operation),
		slog.String("http.method", r.Method),
		slog.String("http.url_details.path", r.URL.Path),
		slog.String("network.client.ip", withoutPort(r.RemoteAddr)), // possibly a proxy's
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

func withoutPort(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// admit refuses callers without a valid token. If no tokens are set, anyone on this machine may call, except web
// pages in a browser, whether cross-origin or by DNS rebinding. A browser sends its Basic password with requests
// from any page, so a change that is authenticated by Basic must also come from our own origin.
func (s *server) admit(r *http.Request) error {
	if !s.config.asksForTokens() {
		if !isLoopback(strings.Trim(withoutPort(r.Host), "[]")) {
			return fail(wrongHost, "the Host header must be localhost or a loopback address, since no API_TOKEN is set")
		}
		return s.checkOrigin(r, "since no API_TOKEN is set")
	}
	if given := tokenOf(r); !isOneOf(given, s.config.apiTokens) && !isOneOf(given, s.config.apiReadTokens) {
		return fail(unauthorized, "send one of the service's tokens: Authorization: Bearer …, or as the password of Basic")
	}
	if _, _, isBasic := r.BasicAuth(); isBasic {
		return s.checkOrigin(r, "while signed in with Basic")
	}
	return nil
}

// checkOrigin refuses a browser's cross-origin request, unless it only reads.
func (s *server) checkOrigin(r *http.Request, why string) error {
	if s.origin.Check(r) != nil {
		return fail(forbidden, "requests from other origins must not change anything, %s", why)
	}
	return nil
}

// mayChange reports whether an admitted caller may use commands that change something.
func (s *server) mayChange(r *http.Request) bool {
	return !s.config.asksForTokens() || isOneOf(tokenOf(r), s.config.apiTokens)
}

func refuseReadToken(c *Command) *Failure {
	return fail(forbidden, "%s needs one of the tokens in API_TOKEN: yours may not change anything", c.Name)
}

// tokenOf returns the caller's Bearer token, or the Basic password whatever the user name, or "".
func tokenOf(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// isOneOf reports whether the given token is one of the tokens. It compares them in constant time.
func isOneOf(given string, tokens []string) bool {
	valid := 0
	for _, token := range tokens {
		valid |= subtle.ConstantTimeCompare([]byte(given), []byte(token))
	}
	return valid == 1
}

// serveNoRoute refuses a request that no route matches: its path is unknown, or takes other methods.
func (s *server) serveNoRoute(w *response, r *http.Request) {
	if err := s.admit(r); err != nil {
		w.refuse(err)
		return
	}
	if w.page != nil && r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		w.page.redirect("/reports/summary")
		return
	}
	other := r.Clone(r.Context())
	allow := slices.DeleteFunc([]string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}, func(method string) bool {
		other.Method = method
		_, pattern := s.mux.Handler(other)
		return pattern == noRoute || isUnclean(r.URL.Path)
	})
	if len(allow) == 0 {
		w.refuse(fail(notFound, "there is no route %s %s%s", r.Method, cut(r.URL.Path), s.nearestPath(path.Clean(r.URL.Path))))
		return
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	w.refuse(fail(wrongMethod, "%s takes %s%s", r.URL.Path, strings.Join(allow, ", "), map[bool]string{true: " (READ_ONLY is set)"}[s.config.ReadOnly]))
}

// nearestPath returns the end of a message about an unknown path: a suggestion, if a route's path is similar, or "".
func (s *server) nearestPath(given string) string {
	segments := strings.Split(given, "/")
	var near []string
	for _, pattern := range s.paths {
		filled := strings.Split(pattern, "/")
		for i, segment := range segments[:min(len(segments), len(filled))] {
			if strings.HasPrefix(filled[i], "{") {
				filled[i] = segment
			}
		}
		near = append(near, strings.Join(filled, "/"))
	}
	return didYouMean(given, near)
}

// serveCommand answers a request that matches a route of the command.
func (s *server) serveCommand(w *response, r *http.Request, c *Command) {
	w.operation = c.Name
	if p := w.page; p != nil {
		p.command, p.given = c, r.URL.Query()
		maps.Copy(p.given, w.form)
	}
	result, err := s.run(w, r, c)
	if err == nil && w.page != nil && (w.form != nil || r.Method == http.MethodGet || r.Method == http.MethodHead) {
		w.page.respond(result)
		return
	}
	w.answer(result, err)
}

func (w *response) answer(result any, err error) {
	if err != nil {
		w.refuse(err)
		return
	}
	w.respond(result)
}

func (s *server) run(w *response, r *http.Request, c *Command) (any, error) {
	if err := s.admit(r); err != nil && !c.Open {
		return nil, err
	}
	if c.Changes && !s.mayChange(r) {
		return nil, refuseReadToken(c)
	}
	if w.columns = c.Columns; w.columns == "" && w.wanted == csvType && preference(r, "Accept", anyJSON...) == 0 {
		return nil, fail(notAcceptable, "only lists are available as %s: %s is not one", csvType, c.Name)
	}
	args, err := s.arguments(w, r, c)
	if err != nil {
		return nil, err
	}
	operation, err := c.Run.prepare(args)
	if err != nil {
		return nil, err
	}
	w.call.stream = w.wanted == ndjson
	ctx := r.Context()
	if c.Open { // net/http cancels the context when a monitor closes only its half of the connection
		ctx = context.WithoutCancel(ctx)
	}
	ctx = withCall(ctx, &w.call)
	if w.form != nil && c.Confirm != nil && w.form.Get(confirmField) != "yes" {
		thing, err := c.About.run(ctx, s.app, args)
		return confirmation{thing, args}, err
	}
	return operation(ctx, s.app)
}

// paramName returns the name by which HTTP clients know a parameter.
func paramName(p *param) string { return p.name }

// arguments takes the command's arguments from the path, the query and the body or form.
func (s *server) arguments(w *response, r *http.Request, c *Command) (arguments, error) {
	args := arguments{map[string][]literal{}, paramName}
	for _, name := range c.names(inPath) {
		args.values[name] = literals(r.PathValue(name))
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return args, fail(invalid, "the query cannot be read: %w", err)
	}
	for name, values := range query {
		args.values[name] = literals(values...)
	}
	if err := c.checkNames("query parameter", maps.Keys(query), inBody, inQuery); err != nil {
		return args, err
	}
	if w.form != nil {
		fields := maps.Clone(w.form)
		delete(fields, confirmField)
		for name, values := range fields {
			args.values[name] = append(args.values[name], literals(values...)...)
		}
		return args, c.checkNames("field", maps.Keys(fields), "", inQuery, inBody)
	}
	text, err := s.bodyText(w, r)
	if err != nil || len(text) == 0 {
		return args, err
	}
	body, err := rawjson.Object(text)
	if err != nil {
		return args, fail(invalid, "the body cannot be used: %w", err)
	}
	for name, value := range body {
		args.values[name] = []literal{{text: string(value), json: true}}
	}
	return args, c.checkNames("field", maps.Keys(body), inQuery, inBody)
}

func literals(texts ...string) []literal {
	return column(texts, func(text string) literal { return literal{text: text} })
}

// bodyText reads a request's body, which may be compressed, after it has checked the header. A body without a
// Content-Type counts as JSON, and so does the form type that a plain `curl -d` declares.
func (s *server) bodyText(w *response, r *http.Request) ([]byte, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Body == http.NoBody {
		return nil, nil
	}
	kind, _, err := mime.ParseMediaType(cmp.Or(r.Header.Get("Content-Type"), "application/json"))
	if err != nil || kind != "application/json" && kind != formType {
		return nil, fail(wrongMedia, "the body must be JSON, Content-Type: application/json, as `curl --json '{…}'` sends it")
	}
	return s.readBody(w, r, maxBody)
}

// readBody reads the body of a request, which may be compressed, up to the limit.
func (s *server) readBody(w *response, r *http.Request, limit int64) (text []byte, err error) {
	if r.ContentLength > limit {
		return nil, fail(tooLarge, "the body is larger than %d bytes", limit)
	}
	content := io.Reader(http.MaxBytesReader(w, r.Body, limit))
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
		if r.ContentLength > 0 {
			limit = r.ContentLength // so that it takes no more room than that
		}
	case "gzip", "x-gzip":
		content, err = gzip.NewReader(content)
	default:
		return nil, fail(wrongMedia, "the body's Content-Encoding must be gzip or absent, not %q", cut(encoding))
	}
	if err == nil {
		text, err = memory.ReadAll(r.Context(), content, 0, int(limit), 2)
		w.use(2 * len(text)) // for copies, until the response is over
	}
	switch {
	case errors.As(err, new(*http.MaxBytesError)), int64(len(text)) > limit:
		return nil, fail(tooLarge, "the body is larger than %d bytes", limit)
	case isKind(err, unavailable):
		return nil, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fail(invalid, "the body was not complete within %v", s.clientTimeout)
	case err != nil:
		return nil, fail(invalid, "the body cannot be read: %w", err)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // it was for the body alone
	return bytes.TrimPrefix(text, []byte("\uFEFF")), nil
}

package datadog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// startRequest begins the span of a request that we answer, within the caller's trace if it has one.
func (t *Client) StartRequest(r *http.Request) (context.Context, *Span) {
	if !t.tracing() {
		return r.Context(), nil
	}
	ctx, s := t.StartSpan(t.extract(r.Context(), r.Header), "http.request", "web", r.Method)
	s.SetTag("span.kind", "server")
	s.SetTag("component", "net/http")
	s.SetTag("http.method", r.Method)
	target := url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path}
	if r.TLS != nil {
		target.Scheme = "https"
	}
	s.SetTag("http.url", target.String()) // without the query
	s.SetTag("http.host", r.Host)
	s.SetTag("http.useragent", r.UserAgent())
	return ctx, s
}

// finishRequest ends the span of a request. The pattern is that of the mux, METHOD /path/{id}, or
// empty where there is none. A status from 500 makes it a failure; the error says why and may be
// nil.
func (s *Span) FinishRequest(r *http.Request, pattern string, status int, err error) {
	if s == nil {
		return
	}
	_, route, found := strings.Cut(pattern, " ")
	if found {
		s.SetResource(r.Method + " " + route)
		s.SetTag("http.route", route)
	} else {
		s.SetResource(r.Method + " (no route)")
	}
	s.SetTag("http.status_code", strconv.Itoa(status))
	if status >= 500 {
		if err == nil {
			err = StatusError(status)
		}
		s.SetError(err)
	}
	s.Finish()
}

// A statusError is the failure of a request of which nothing but its status is known.
type StatusError int

func (e StatusError) Error() string { return fmt.Sprintf("%d: %s", int(e), http.StatusText(int(e))) }

// transport returns a transport that makes a span of each request of ours, tells the server of it,
// and counts the responses: the metrics NAME.calls and NAME.latency. The resource must be one of few: no ids, no query.
func (t *Client) Transport(next http.RoundTripper, name string, resource func(*http.Request) string) http.RoundTripper {
	if t == nil {
		return next
	}
	return &tracingTransport{t, next, name, resource}
}

type tracingTransport struct {
	telemetry *Client
	next      http.RoundTripper
	name      string // of metrics
	resource  func(*http.Request) string
}

// RoundTrip makes the request. Its span ends when the answer's body is closed.
func (t *tracingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	ctx, s := t.telemetry.StartSpan(r.Context(), "http.request", "http", t.resource(r))
	r = r.Clone(ctx)
	s.Inject(r.Header)
	s.SetTag("span.kind", "client")
	s.SetTag("component", "net/http")
	s.SetTag("http.method", r.Method)
	target := url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path}
	s.SetTag("http.url", target.String()) // without user and query
	s.SetTag("network.destination.name", r.URL.Hostname())
	if port, err := net.LookupPort("tcp", cmp.Or(r.URL.Port(), r.URL.Scheme)); err == nil {
		s.SetMetric("network.destination.port", float64(port))
	}
	answer, err := t.next.RoundTrip(r)
	class := "error"
	if err == nil {
		class = strconv.Itoa(answer.StatusCode/100) + "xx"
	}
	t.telemetry.Count(t.name+".calls", 1, "method:"+r.Method, "status_class:"+class)
	t.telemetry.Latency(t.name+".latency", time.Since(began), "method:"+r.Method, "status_class:"+class)
	if err != nil {
		s.SetError(err)
		s.Finish()
		return nil, err
	}
	s.SetTag("http.status_code", strconv.Itoa(answer.StatusCode))
	if answer.StatusCode >= 400 && answer.StatusCode != http.StatusNotFound { // "not found" is an answer
		s.SetError(StatusError(answer.StatusCode))
	}
	answer.Body = &tracedBody{answer.Body, s}
	return answer, nil
}

// A tracedBody ends its span when it is closed.
type tracedBody struct {
	io.ReadCloser
	span *Span
}

func (b *tracedBody) Read(buf []byte) (int, error) {
	n, err := b.ReadCloser.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		b.span.SetError(err)
	}
	return n, err
}

func (b *tracedBody) Close() error {
	defer b.span.Finish()
	return b.ReadCloser.Close()
}

package main

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
func (t *telemetry) startRequest(r *http.Request) (context.Context, *span) {
	if !t.tracing() {
		return r.Context(), nil
	}
	ctx, s := t.startSpan(t.extract(r.Context(), r.Header), "http.request", "web", r.Method)
	s.set("span.kind", "server")
	s.set("component", "net/http")
	s.set("http.method", r.Method)
	target := url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path}
	if r.TLS != nil {
		target.Scheme = "https"
	}
	s.set("http.url", target.String()) // without the query
	s.set("http.host", r.Host)
	s.set("http.useragent", r.UserAgent())
	return ctx, s
}

// finishRequest ends the span of a request. The pattern is that of the mux, METHOD /path/{id}, or
// empty where there is none. A status from 500 makes it a failure; the error says why and may be
// nil.
func (s *span) finishRequest(r *http.Request, pattern string, status int, err error) {
	if s == nil {
		return
	}
	_, route, found := strings.Cut(pattern, " ")
	if found {
		s.setResource(r.Method + " " + route)
		s.set("http.route", route)
	} else {
		s.setResource(r.Method + " (no route)")
	}
	s.set("http.status_code", strconv.Itoa(status))
	if status >= 500 {
		if err == nil {
			err = statusError(status)
		}
		s.fail(err)
	}
	s.finish()
}

// A statusError is the failure of a request of which nothing but its status is known.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("%d: %s", int(e), http.StatusText(int(e))) }

// transport returns a transport that makes a span of each request of ours, tells the server of it,
// and counts the responses: the metrics NAME.calls and NAME.latency. The resource must be one of few: no ids, no query.
func (t *telemetry) transport(next http.RoundTripper, name string, resource func(*http.Request) string) http.RoundTripper {
	if t == nil {
		return next
	}
	return &tracingTransport{t, next, name, resource}
}

type tracingTransport struct {
	telemetry *telemetry
	next      http.RoundTripper
	name      string // of metrics
	resource  func(*http.Request) string
}

// RoundTrip makes the request. Its span ends when the answer's body is closed.
func (t *tracingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	ctx, s := t.telemetry.startSpan(r.Context(), "http.request", "http", t.resource(r))
	r = r.Clone(ctx)
	s.inject(r.Header)
	s.set("span.kind", "client")
	s.set("component", "net/http")
	s.set("http.method", r.Method)
	target := url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path}
	s.set("http.url", target.String()) // without user and query
	s.set("network.destination.name", r.URL.Hostname())
	if port, err := net.LookupPort("tcp", cmp.Or(r.URL.Port(), r.URL.Scheme)); err == nil {
		s.setNumber("network.destination.port", float64(port))
	}
	answer, err := t.next.RoundTrip(r)
	class := "error"
	if err == nil {
		class = strconv.Itoa(answer.StatusCode/100) + "xx"
	}
	t.telemetry.count(t.name+".calls", 1, "method:"+r.Method, "status_class:"+class)
	t.telemetry.latency(t.name+".latency", time.Since(began), "method:"+r.Method, "status_class:"+class)
	if err != nil {
		s.fail(err)
		s.finish()
		return nil, err
	}
	s.set("http.status_code", strconv.Itoa(answer.StatusCode))
	if answer.StatusCode >= 400 && answer.StatusCode != http.StatusNotFound { // "not found" is an answer
		s.fail(statusError(answer.StatusCode))
	}
	answer.Body = &tracedBody{answer.Body, s}
	return answer, nil
}

// A tracedBody ends its span when it is closed.
type tracedBody struct {
	io.ReadCloser
	span *span
}

func (b *tracedBody) Read(buf []byte) (int, error) {
	n, err := b.ReadCloser.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		b.span.fail(err)
	}
	return n, err
}

func (b *tracedBody) Close() error {
	defer b.span.finish()
	return b.ReadCloser.Close()
}

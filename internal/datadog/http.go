package datadog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// StartRequest starts the span of a request to this program, in the trace that the headers name, if any.
func (c *Client) StartRequest(r *http.Request) (context.Context, *Span) {
	if !c.tracing() {
		return r.Context(), nil
	}
	ctx, s := c.StartSpan(c.extract(r.Context(), r.Header), "http.request", "web", r.Method)
	s.setHTTPTags("server", r.Method, url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path},
		spanTag{"http.host", r.Host}, spanTag{"http.useragent", r.UserAgent()})
	return ctx, s
}

// setHTTPTags sets the tags that both ends of a request have, and more. The target has no user and no query.
func (s *Span) setHTTPTags(end, method string, target url.URL, more ...spanTag) {
	s.setTags(append(more, spanTag{"span.kind", end}, spanTag{"component", "net/http"}, spanTag{"http.method", method},
		spanTag{"http.url", target.String()})...)
}

// FinishRequest ends the span of a request. The pattern is the one of http.ServeMux, METHOD /path/{id}, or
// empty. A status of 500 or above marks the span as failed, with err unless it is nil.
func (s *Span) FinishRequest(r *http.Request, pattern string, status int, err error) {
	if s == nil {
		return
	}
	_, route, _ := strings.Cut(pattern, " ")
	s.change(func() { s.resource = r.Method + " " + cmp.Or(route, "(no route)") })
	s.setTags(given(spanTag{"http.route", route}, spanTag{"http.status_code", strconv.Itoa(status)})...)
	if status >= 500 {
		s.SetError(cmp.Or(err, error(StatusError(status))))
	}
	s.Finish()
}

// A StatusError is a failure of which only the HTTP status is known.
type StatusError int

func (e StatusError) Error() string { return fmt.Sprintf("%d: %s", int(e), http.StatusText(int(e))) }

// StartCall starts the span of a call to another program, and adds the trace to the call's headers. The caller
// passes the response, once it has been read, or nil to the returned function, which ends the span and counts the
// call as PREFIX.calls and PREFIX.latency with the tags method and status_class, such as "2xx", or "error" without
// a response. The resource is as for StartSpan.
func (c *Client) StartCall(r *http.Request, prefix string, resource func(*http.Request) string) func(*http.Response, error) {
	if c == nil {
		return func(*http.Response, error) {}
	}
	began := time.Now()
	_, s := c.StartSpan(r.Context(), "http.request", "http", resource(r))
	s.Inject(r.Header)
	s.setHTTPTags("client", r.Method, url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path},
		spanTag{"network.destination.name", r.URL.Hostname()})
	port, _ := net.LookupPort("tcp", cmp.Or(r.URL.Port(), r.URL.Scheme))
	s.SetMetric("network.destination.port", int64(port))
	return func(res *http.Response, err error) {
		class := "error"
		if res != nil {
			class = strconv.Itoa(res.StatusCode/100) + "xx"
			s.SetTag("http.status_code", strconv.Itoa(res.StatusCode))
			if res.StatusCode >= 400 && res.StatusCode != http.StatusNotFound { // 404 is a result, not a failure
				s.SetError(StatusError(res.StatusCode))
			}
		}
		if !errors.Is(err, context.Canceled) { // the caller's decision
			s.SetError(err)
		}
		s.Finish()
		tags := []string{"method:" + r.Method, "status_class:" + class}
		c.Count(prefix+".calls", 1, tags...)
		c.Latency(prefix+".latency", time.Since(began), tags...)
	}
}

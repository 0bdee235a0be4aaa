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

// StartRequest starts the span of a request to this program, in the trace that the headers name, if any.
func (c *Client) StartRequest(r *http.Request) (context.Context, *Span) {
	if !c.tracing() {
		return r.Context(), nil
	}
	ctx, s := c.StartSpan(c.extract(r.Context(), r.Header), "http.request", "web", r.Method)
	s.setHTTPTags("server", r.Method, url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path})
	s.SetTag("http.host", r.Host)
	s.SetTag("http.useragent", r.UserAgent())
	return ctx, s
}

// setHTTPTags sets the tags that both ends of a request have. The URL is without user and query.
func (s *Span) setHTTPTags(end, method string, target url.URL) {
	s.SetTag("span.kind", end)
	s.SetTag("component", "net/http")
	s.SetTag("http.method", method)
	s.SetTag("http.url", target.String())
}

// FinishRequest ends the span of a request. The pattern is the one of http.ServeMux, METHOD /path/{id}, or
// empty. The span has failed if the status is 500 or above, for the reason err, if that is not nil.
func (s *Span) FinishRequest(r *http.Request, pattern string, status int, err error) {
	if s == nil {
		return
	}
	_, route, found := strings.Cut(pattern, " ")
	if found {
		s.SetTag("http.route", route)
	}
	s.change(func() { s.resource = r.Method + " " + cmp.Or(route, "(no route)") })
	s.SetTag("http.status_code", strconv.Itoa(status))
	if status >= 500 {
		s.SetError(cmp.Or(err, error(StatusError(status))))
	}
	s.Finish()
}

// A StatusError is the error of a request that is known only by its status.
type StatusError int

func (e StatusError) Error() string { return fmt.Sprintf("%d: %s", int(e), http.StatusText(int(e))) }

// Transport returns a transport that records each request through next as a span, until the response body is
// closed, and sends its context in the headers.
//
// The metrics PREFIX.calls, a counter, and PREFIX.latency, a distribution, have the tags method and
// status_class ("2xx" … "5xx", or "error" if there is no response). The resource says what a request is about,
// in few different values, such as "GET /items/{id}".
func (c *Client) Transport(next http.RoundTripper, prefix string, resource func(*http.Request) string) http.RoundTripper {
	if c == nil {
		return next
	}
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		began := time.Now()
		ctx, s := c.StartSpan(r.Context(), "http.request", "http", resource(r))
		r = r.Clone(ctx)
		s.Inject(r.Header)
		s.setHTTPTags("client", r.Method, url.URL{Scheme: r.URL.Scheme, Host: r.URL.Host, Path: r.URL.Path})
		s.SetTag("network.destination.name", r.URL.Hostname())
		if port, err := net.LookupPort("tcp", cmp.Or(r.URL.Port(), r.URL.Scheme)); err == nil {
			s.SetMetric("network.destination.port", int64(port))
		}
		res, err := next.RoundTrip(r)
		class := "error"
		if err == nil {
			class = strconv.Itoa(res.StatusCode/100) + "xx"
		}
		tags := []string{"method:" + r.Method, "status_class:" + class}
		c.Count(prefix+".calls", 1, tags...)
		c.Latency(prefix+".latency", time.Since(began), tags...)
		if err != nil {
			s.SetError(err)
			s.Finish()
			return nil, err
		}
		s.SetTag("http.status_code", strconv.Itoa(res.StatusCode))
		if res.StatusCode >= 400 && res.StatusCode != http.StatusNotFound { // 404 is a result, not a failure
			s.SetError(StatusError(res.StatusCode))
		}
		res.Body = &tracedBody{res.Body, s}
		return res, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A tracedBody finishes its span when it is closed.
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

package datadog

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
)

func TestServerSpan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		method, pattern string
		status          int
		err             error
		resource, fail  string
	}{
		{"a route", "GET", "GET /items/{id}", 200, nil, "GET /items/{id}", ""},
		{"a HEAD request of a GET route", "HEAD", "GET /items/{id}", 200, nil, "HEAD /items/{id}", ""},
		{"no route", "GET", "", 404, errors.New("no such route"), "GET (no route)", ""},
		{"a failure with its reason", "GET", "GET /items/{id}", 502, errors.New("Rollbar is down"), "GET /items/{id}",
			"Rollbar is down"},
		{"a failure without a reason", "GET", "GET /items/{id}", 500, nil, "GET /items/{id}",
			"500: Internal Server Error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			client := start(t, settingsFor(agent))
			r := httptest.NewRequest(tt.method, "http://user@host:80/items/7?token=secret", nil)
			r.Header.Set("User-Agent", "test")
			r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
			_, s := client.StartRequest(r)
			s.FinishRequest(r, tt.pattern, tt.status, tt.err)
			got := datadogtest.Receive(t, agent.Traces)[0]
			assert.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", got.ID128())
			assert.EqualValues(t, 0x00f067aa0ba902b7, got.ParentID)
			want := datadogtest.Span{
				Service: "shop", Name: "http.request", Type: "web", Resource: tt.resource,
				Meta: map[string]string{
					"span.kind": "server", "component": "net/http", "http.method": tt.method,
					"http.url": "http://host:80/items/7", "http.host": "host:80", "http.useragent": "test",
					"http.status_code": fmt.Sprint(tt.status),
				},
				Metrics: map[string]float64{},
			}
			if tt.pattern != "" {
				want.Meta["http.route"] = "/items/{id}"
			}
			got = plain(got)
			if tt.fail != "" {
				want.Error = 1
				want.Meta["error.message"], want.Meta["error.type"] = tt.fail, got.Meta["error.type"]
			}
			assert.Equal(t, want, got)
		})
	}
}

func TestClientSpan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		class  string
		failed int
	}{
		{"success", 200, "2xx", 0},
		{"not found", 404, "4xx", 0},
		{"refused", 401, "4xx", 1},
		{"broken", 500, "5xx", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			agent := datadogtest.New(t)
			client := start(t, settingsFor(agent))
			var received http.Header
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				received = r.Header
				w.WriteHeader(tt.status)
			}))
			defer upstream.Close()
			ctx, root := client.StartSpan(t.Context(), "app.command", "custom", "GET /items/{id}")
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, upstream.URL+"/item/7?token=secret", nil)
			require.NoError(t, err)
			finish := client.StartCall(req, "app.rollbar",
				func(r *http.Request) string { return r.Method + " /item/{id}" })
			res, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			finish(res, nil)
			root.Finish()

			spans := datadogtest.Receive(t, agent.Traces)
			require.Len(t, spans, 2)
			assert.Equal(t, spans[0].SpanID, spans[1].ParentID)
			assert.Equal(t, fmt.Sprintf("00-%s-%s-01", root.traceID(), hex64(spans[1].SpanID)),
				received.Get("Traceparent"))
			port, err := strconv.ParseFloat(req.URL.Port(), 64)
			require.NoError(t, err)
			want := datadogtest.Span{
				Service: "shop", Name: "http.request", Type: "http", Resource: "GET /item/{id}",
				Error: int32(tt.failed),
				Meta: map[string]string{
					"span.kind": "client", "component": "net/http", "http.method": "GET",
					"http.url":                 upstream.URL + "/item/7",
					"network.destination.name": "127.0.0.1", "http.status_code": fmt.Sprint(tt.status),
				},
				Metrics: map[string]float64{"network.destination.port": port},
			}
			if tt.failed == 1 {
				want.Meta["error.message"] = fmt.Sprintf("%d: %s", tt.status, http.StatusText(tt.status))
				want.Meta["error.type"] = fmt.Sprintf("%T", StatusError(0))
			}
			assert.Equal(t, want, plain(spans[1]))
			wantTags := []string{"env:prod", "method:get", "service:shop", "status_class:" + tt.class, "version:1.2.3"}
			calls := agent.Metric("app.rollbar.calls")
			assert.Equal(t, wantTags, calls.Tags)
			assert.Equal(t, "c", calls.Kind)
		})
	}
}

func TestClientSpanWithoutResponse(t *testing.T) {
	t.Parallel()
	agent := datadogtest.New(t)
	client := start(t, settingsFor(agent))
	r := httptest.NewRequestWithContext(t.Context(), "GET", "http://host/items", nil)
	resource := func(*http.Request) string { return "GET /items" }
	client.StartCall(r, "app.rollbar", resource)(&http.Response{StatusCode: 200}, io.ErrUnexpectedEOF)
	assert.Equal(t, "unexpected EOF", datadogtest.Receive(t, agent.Traces)[0].Meta["error.message"],
		"a response that ends early")

	client.StartCall(r, "app.rollbar", resource)(nil, io.ErrUnexpectedEOF)
	span := datadogtest.Receive(t, agent.Traces)[0]
	assert.EqualValues(t, 1, span.Error, "no response")
	assert.NotContains(t, span.Meta, "http.status_code")
	agent.Metric("app.rollbar.calls", "status_class:error")
}

package datadog

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTracePrinter(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	client := start(t, Settings{Print: &out})
	ctx, root := client.StartSpan(t.Context(), "http.request", "web", "GET /items/{id}")
	upstream, call := client.StartSpan(ctx, "http.request", "http", "GET /item/{id}")
	_, inner := client.StartSpan(upstream, "step", "custom", "inner")
	inner.Finish()
	call.SetError(errors.New("no\nluck"))
	call.Finish()
	_, query := client.StartSpan(ctx, "pgx.query", "sql", "SELECT id\n\t\tFROM reports\n\t\tWHERE "+strings.Repeat("very ", 50)+"long")
	query.Finish()
	root.SetTag("http.status_code", "200")
	root.Finish()
	times := regexp.MustCompile(`(?m)^ +\d+\.\d\d ms +\d+\.\d\d ms  `)
	assert.Equal(t, "trace "+root.traceID()+`
GET /items/{id} 200
  GET /item/{id} error: "no\nluck"
    inner
  SELECT id FROM reports WHERE `+strings.Repeat("very ", 12)+"…\n",
		strings.NewReplacer("http.request ", "", "step ", "", "pgx.query ", "").Replace(times.ReplaceAllString(out.String(), "")))
}

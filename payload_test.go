package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/sandbox"
)

// The service refuses exactly the payloads that Rollbar refuses. The sandbox implements the rules independently, so
// a mistake in either shows, and gets payloads as the service would send them: valid ones with one member
// changed or removed.
func TestPayloadVerdicts(t *testing.T) {
	t.Parallel()
	rollbar := sandbox.New(0)
	var removed struct{}
	text := func(n int) string { return strings.Repeat("é", n) }
	values := []any{
		removed, nil, true, 0, -1.5, json.Number("1e400"), json.Number("123456789012345678901234567890"), "", "x", "✓",
		"\n", "error",
		text(36), text(37), text(40), text(41), text(255), text(256), []any{}, []any{nil}, map[string]any{},
		map[string]any{"id": "1"},
		[]any{map[string]any{"frames": []any{}, "exception": map[string]any{"class": "A"}}},
	}
	verdicts := map[bool]int{}
	compare := func(data []byte) {
		err, sent := checkPayload(data, "data."), json.RawMessage(data)
		if err == nil {
			sent, _ = identified(data)
		}
		r := httptest.NewRequest("POST", "/api/1/item/", strings.NewReader(fmt.Sprintf(`{"data":%s}`, sent)))
		r.Header.Set("X-Rollbar-Access-Token", sandbox.PostToken)
		w := httptest.NewRecorder()
		rollbar.ServeHTTP(w, r)
		assert.Equal(t, w.Code == 200, err == nil, "%s\nRollbar: %s\nthe service: %v", data, w.Body, err)
		verdicts[err == nil]++
	}
	for _, data := range []string{
		`null`, `[]`, `"a"`, `{"environment":"\ud800","body":{"message":{"body":"\u0000"}}}`,
		`{"environment":"a","level":"error","level":"bogus","body":{"message":{"body":"a"}}}`,
		`{"environment":"a","level":"bogus","level":"error","body":{"message":{"body":"a"}}}`,
		`{"environment":"a","body":{"message":{"body":1},"message":{"body":"a"}}}`,
		`{"environment":"a","body":{"message":{"body":"a"},"telemetry":[{"timestamp_ms":1},{"timestamp_ms":"1"}]}}`,
		`{"environment":"a","body":{"message":{"body":"a"},"telemetry":[{"timestamp_ms":null},{}]}}`,
	} {
		compare([]byte(data))
	}
	for _, body := range []string{
		`{"message":{"body":"a"}}`, `{"crash_report":{"raw":"a"}}`, `{"trace":{"frames":[],"exception":{"class":"A"}}}`,
		`{"trace_chain":[{"frames":[],"exception":{"class":"A"}}]}`,
	} {
		for path := range strings.FieldsSeq(`environment body level timestamp code_version platform language framework
			context request person person.id person.username person.email server client custom fingerprint title uuid
			notifier other
			body.message body.message.body body.crash_report body.crash_report.raw body.trace body.trace.frames
			body.trace.exception body.trace.exception.class body.trace_chain body.telemetry body.other`) {
			for _, value := range values {
				var data map[string]any
				require.NoError(t, json.Unmarshal(fmt.Appendf(nil,
					`{"environment":"a","level":"error","person":{"id":"1"},"body":%s}`, body), &data))
				object, name, names := data, "", strings.Split(path, ".")
				for name, names = names[0], names[1:]; len(names) > 0; name, names = names[0], names[1:] {
					inner, is := object[name].(map[string]any)
					if !is {
						inner = map[string]any{}
						object[name] = inner
					}
					object = inner
				}
				if object[name] = value; value == any(removed) {
					delete(object, name)
				}
				sent, err := json.Marshal(data)
				require.NoError(t, err)
				compare(sent)
			}
		}
	}
	assert.Greater(t, min(verdicts[true], verdicts[false]), 500)
}

// A message is checked in one pass, even if it is full of escaped quotes.
func TestPayloadOfEscapedQuotes(t *testing.T) {
	t.Parallel()
	fastest, valid := map[string]time.Duration{}, time.Hour
	for tries := 0; tries == 0 || tries < 50 && fastest[`\"`] >= fastest["xy"]+10*valid; tries++ {
		for _, part := range []string{"xy", `\"`} {
			data := json.RawMessage(`{"environment":"a","body":{"message":{"body":"` + strings.Repeat(part, 500_000) +
				`"}}}`)
			began := time.Now()
			require.NoError(t, checkPayload(data, ""))
			occurrenceTitle(data)
			fastest[part] = min(cmp.Or(fastest[part], time.Hour), time.Since(began))
			began = time.Now()
			require.True(t, json.Valid(data))
			valid = min(valid, time.Since(began))
		}
	}
	assert.Less(t, fastest[`\"`], fastest["xy"]+10*valid)
}

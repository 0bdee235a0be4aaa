package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

// answerAll has Rollbar answer all calls with the method in this way.
func (f *fixture) answerAll(method string, status int, body string) {
	next := f.app.rollbar.client.Transport
	f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method != method {
			return next.RoundTrip(r)
		}
		return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{},
			Request: r}, nil
	})
}

// Rollbar may leave out err when it is 0.
func TestAnswersWithoutErr(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.answerAll("GET", 200, `{"result":{"page":1,"total_count":0,"items":[]}}`)
	assert.Equal(t, 200, f.get("/items").status)
	f.answerAll("GET", 500, `{"result":{"page":1,"total_count":0,"items":[]}}`)
	f.get("/items").requireProblem(502, "unavailable")
}

// A final refusal is passed on in Rollbar's words. The same uuid again gets the same answer, without another
// call.
func TestCreateRejected(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, body, words string
		status            int
	}{
		{"bad request", `{"err":1,"message":"Bad Request"}`, "Rollbar answered 400: Bad Request", 400},
		{"too large", `{"err":1,"message":"too large"}`, "Rollbar answered 413: too large", 413},
		{"too large for its gateway", `<html>`, "Rollbar answered 413: Request Entity Too Large", 413},
		{"bad fields", `{"err":1,"message":"Invalid format. data.x should be y."}`,
			"Rollbar answered 422: Invalid format. data.x should be y.", 422},
		{"words that PostgreSQL cannot hold", `{"err":1,"message":"a\u0000b \\u0000 \\ud800 yyyyyyyyyy\\u"}`,
			"Rollbar answered 422: a\x00b \\u0000 \\ud800 yyyyyyyyyy\\u", 422},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			f.answerAll("POST", tt.status, tt.body)
			uuid := newUUID()
			detail := f.create(uuid).requireProblem(tt.status, "usage")
			assert.Equal(t, "create "+uuid+": "+tt.words, detail)
			assert.Equal(t, "rejected", f.state(uuid))

			f.answerAll("POST", 200, `{"err":0}`)
			again := f.create(uuid)
			assert.Equal(t, strings.ReplaceAll(detail, "\x00", "\uFFFD"), again.requireProblem(tt.status, "usage"))
			assert.Equal(t, fmt.Sprint(tt.status), again.at("upstream_status"))
		})
	}
}

// A refusal of a queued occurrence is final, too.
func TestDeliveryRejected(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.SetFault(sandbox.Down)
	uuid := newUUID()
	require.Equal(t, 202, f.create(uuid).status)
	f.answerAll("POST", 422, `{"err":1,"message":"yyyyy\\u"}`)
	assert.Equal(t, `{"delivered":0,"queued":0,"rejected":1}`+"\n", f.do("POST", "/reports/deliver", "").body)
	assert.Contains(t, f.create(uuid).requireProblem(422, "usage"), "Rollbar answered 422")
}

// A payload that is too large for Rollbar, together with what was added, is not stored, since it could never
// be delivered. Characters that are special in HTML are not escaped, which would lengthen it.
func TestCreateTooLarge(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 200, f.get("/reports").status)
	f.sandbox.SetFault(sandbox.Down)
	almost := `{"message":"` + strings.Repeat("x", maxBody-20) + `"}`
	assert.Contains(t, f.do("POST", "/items", almost).requireProblem(413, "usage"), "Rollbar takes at most 1048576")
	assert.Empty(t, f.rows(`SELECT uuid FROM reports`))

	f.sandbox.SetFault(sandbox.None)
	message := `"<` + strings.Repeat("<&>", 300_000)
	created := f.do("POST", "/items", `{"message":`+string(rawjson.AppendQuoted(nil, message))+`}`)
	require.Equal(t, 201, created.status, created.body)
	assert.Equal(t, message, rawjson.Unquote(rawjson.Get(f.sandbox.DataOf(rawjson.Unquote([]byte(created.at("uuid")))),
		"body", "message", "body")))
}

// Only a few words of a message as long as a book are indexed.
func TestCreateWithManyWords(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	var message strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&message, "word%d ", i)
	}
	require.Equal(t, 201, f.do("POST", "/items", `{"message":"`+message.String()+`"}`).status)
	assert.Equal(t, []string{"true"}, f.rows(`SELECT (cardinality(words) < 50)::text FROM reports`))
	assert.Len(t, f.get("/reports?q=word7").list("reports"), 1)
}

// If PostgreSQL cannot store an occurrence, Rollbar can still take it.
func TestCreateWithoutTables(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	require.Equal(t, 201, f.create(uuid).status)
	f.eventually(uuid, "delivered")
	f.exec(`DROP TABLE reports, schema_version CASCADE`)
	created := f.create(newUUID())
	assert.Equal(t, 201, created.status, created.body)
	assert.Equal(t, "false", created.header.Get("Report-Stored"))
	uuid = newUUID()
	assert.Empty(t, f.create(uuid).header.Get("Report-Stored"), "the tables are made anew")
	f.eventually(uuid, "delivered")
}

// A rate limit that ends soon is waited out, and nothing is queued.
func TestCreateLimitedForASecond(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.FailOnly("POST /item", 1, sandbox.LimitedNear)
	uuid := newUUID()
	assert.Equal(t, 201, f.create(uuid).status)
	assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid))
}

// A Rollbar that refuses connections is down, so the occurrence is queued.
func TestCreateWithoutRollbar(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.RollbarURL = "http://127.0.0.1:1/api/1" })
	uuid := newUUID()
	assert.Equal(t, 202, f.create(uuid).status)
	assert.Equal(t, "queued", f.state(uuid))
}

// The platform decides which token is used. An error names the setting and the scope of a bad one.
func TestCreateForABrowser(t *testing.T) {
	t.Parallel()
	const payload = `{"data":{"environment":"e","platform":"browser","body":{"message":{"body":"x"}}}}`
	for _, test := range []struct {
		name, token, any string
		want             string
	}{
		{"a token of its own", sandbox.ClientPostToken, "", ""},
		{"the wrong one", sandbox.PostToken, "",
			"Rollbar refused ROLLBAR_POST_CLIENT_TOKEN, which needs the scope post_client_item: "},
		{"the old one for everything", "", sandbox.Token,
			"Rollbar refused ROLLBAR_TOKEN, which needs the scope post_client_item: "},
		{"none", "", "", "ROLLBAR_POST_CLIENT_TOKEN is not set"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, func(c *Config) { c.postClientToken, c.token = test.token, test.any })
			got := f.do("POST", "/items", payload)
			if test.want == "" {
				assert.Equal(t, 201, got.status, got.body)
				return
			}
			assert.Contains(t, got.requireProblem(502, "rollbar-auth"), test.want)
			assert.Empty(t, f.rows(`SELECT uuid FROM reports`))
		})
	}
}

// Entries whose token Rollbar refuses wait without holding up others. They are tried again when the service
// starts, as it must to get a new token.
func TestCreatedForARefusedToken(t *testing.T) {
	t.Parallel()
	for _, fault := range []sandbox.Fault{sandbox.Forbidden, sandbox.Deactivated} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			refused := f.enqueue(2)
			f.sandbox.SetFault(fault)
			assert.Equal(t, `{"delivered":0,"queued":2,"rejected":0}`+"\n", f.do("POST", "/reports/deliver", "").body,
				"each is tried")
			assert.Len(t, f.rows(`SELECT uuid FROM reports WHERE attempts = 1 AND next_attempt > '-infinity'`), 2)
			third := f.enqueue(1)[0]
			assert.Equal(t, third, f.claim().uuid)

			f.sandbox.SetFault(sandbox.None)
			f.exec(`UPDATE reports SET next_attempt = now() + interval '4 minutes' WHERE attempts > 0`)
			f.deliver(f.newApp())
			f.eventually(refused[0], "delivered")
			f.eventually(refused[1], "delivered")
		})
	}
}

package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

const tokenHeader = "X-Rollbar-Access-Token"

// newRelay starts a service with a relay that accepts sdk-token and two others.
func newRelay(t *testing.T, change ...func(*Config)) *fixture {
	t.Helper()
	tokens := func(c *Config) { c.relayTokens = []string{"dev", "other", "sdk-token"} }
	return newFixture(t, 0, append([]func(*Config){tokens}, change...)...)
}

// relay posts the payload as most SDKs do.
func (f *fixture) relay(payload string, header ...string) *answer {
	f.t.Helper()
	return f.do("POST", "/api/1/item/", payload,
		append([]string{tokenHeader, "sdk-token", "Content-Type", "application/json"}, header...)...)
}

// sdkPayload returns a payload with more members in data.
func sdkPayload(uuid, more string) string {
	return fmt.Sprintf(`{"data":{"environment":"e","body":{"message":{"body":"x"}},"uuid":%q%s}}`, uuid, more)
}

// requireRelayed checks that the answer acknowledges an occurrence as Rollbar does, and returns the uuid.
func (a *answer) requireRelayed() string {
	a.t.Helper()
	require.Equal(a.t, 200, a.status, a.body)
	require.Equal(a.t, "application/json", a.header.Get("Content-Type"))
	require.Equal(a.t, "*", a.header.Get("Access-Control-Allow-Origin"))
	uuid := rawjson.Unquote([]byte(a.at("result", "uuid")))
	require.Equal(a.t, fmt.Sprintf(`{"err":0,"result":{"id":null,"uuid":%q}}`+"\n", uuid), a.body)
	return uuid
}

// requireRefused checks that the answer is a failure in Rollbar's form, and returns the message.
func (a *answer) requireRefused(status int) string {
	a.t.Helper()
	require.Equal(a.t, status, a.status, a.body)
	require.Equal(a.t, "application/json", a.header.Get("Content-Type"))
	require.Equal(a.t, "*", a.header.Get("Access-Control-Allow-Origin"))
	message := rawjson.Unquote([]byte(a.at("message")))
	require.NotEmpty(a.t, message)
	quoted, _ := json.Marshal(message)
	require.JSONEq(a.t, fmt.Sprintf(`{"err":1,"message":%s}`, quoted), a.body)
	return message
}

func zip(t *testing.T, text string) string {
	t.Helper()
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := w.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return zipped.String()
}

// Each SDK has its own way to post.
func TestRelay(t *testing.T) {
	t.Parallel()
	f := newRelay(t)
	f.deliver(f.app)
	const formType = "application/x-www-form-urlencoded"
	inBody := func(uuid string) string {
		return strings.Replace(sdkPayload(uuid, ""), "{", `{"access_token":"sdk-token",`, 1)
	}
	for _, test := range []struct {
		name, path string
		body       func(uuid string) string
		header     []string
	}{
		{"Go", "/api/1/item/", nil, []string{tokenHeader, "sdk-token", "Content-Type", "application/json"}},
		{"Java, compressed", "/api/1/item/", func(uuid string) string { return zip(t, sdkPayload(uuid, "")) },
			[]string{tokenHeader, "other", "Content-Type", "application/json; charset=UTF-8", "Content-Encoding",
				"gzip"}},
		{"PHP, which declares a form", "/api/1/item", nil,
			[]string{tokenHeader, "sdk-token", "Content-Type", formType}},
		{"Ruby with the token in the body", "/api/1/item/", inBody, []string{"Content-Type", formType}},
		{"the agent, which declares nothing", "/api/1/items/", inBody, []string{"Content-Type", ""}},
		{"Python with both", "/api/1/items", inBody,
			[]string{tokenHeader, "sdk-token", "Content-Type", "application/json"}},
		{"an old one with a form", "/api/1/item/",
			func(uuid string) string { return url.Values{"payload": {inBody(uuid)}}.Encode() },
			[]string{"Content-Type", formType}},
		{"white space first", "/api/1/item/", func(uuid string) string { return "\xEF\xBB\xBF\n " + inBody(uuid) },
			nil},
		{"the header counts", "/api/1/item/",
			func(uuid string) string { return strings.Replace(inBody(uuid), "sdk-token", "wrong", 1) },
			[]string{tokenHeader, "sdk-token"}},
		{"a page of another origin", "/api/1/item/", nil,
			[]string{tokenHeader, "sdk-token", "Origin", "https://shop.example.com", "Sec-Fetch-Site", "cross-site",
				"Host", "errors.example.com"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			uuid := newUUID()
			body := sdkPayload(uuid, "")
			if test.body != nil {
				body = test.body(uuid)
			}
			assert.Equal(t, uuid, f.do("POST", test.path, body, test.header...).requireRelayed())
			f.eventually(uuid, "delivered")
			assert.Equal(t, 1, f.sandbox.PostsOf(uuid))
			stored := f.rows(fmt.Sprintf(`SELECT data::text FROM reports WHERE uuid = '%s'`, uuid))[0]
			assert.Equal(t, stored, string(f.sandbox.DataOf(uuid)))
			assert.NotContains(t, stored, "token")
			stamped := rawjson.Get([]byte(sdkPayload(uuid,
				`,"timestamp":`+string(rawjson.Get([]byte(stored), "timestamp")))), "data")
			assert.Equal(t, string(stamped), stored, "but for the timestamp it is the SDK's")
		})
	}
	assert.NotContains(t, f.log.String(), "sdk-token")
}

func TestRelayRefuses(t *testing.T) {
	t.Parallel()
	f := newRelay(t)
	good := sdkPayload("u", "")
	fits := strings.Repeat(" ", maxBody-len(good)) + good
	with := func(token string, more ...string) []string { return append([]string{tokenHeader, token}, more...) }
	for _, test := range []struct {
		name, body string
		header     []string
		status     int
		want       string
	}{
		{"wrong token", good, with("wrong"), 403, "invalid access token"},
		{"no token", good, nil, 403, "invalid access token"},
		{"wrong token in the header, right one in the body", `{"access_token":"sdk-token",` + good[1:], with("wrong"),
			403, "invalid access token"},
		{"wrong token in the body", `{"access_token":"wrong",` + good[1:], nil, 403, "invalid access token"},
		{"token that is no text", `{"access_token":["sdk-token"],` + good[1:], nil, 403, "invalid access token"},
		{"token that cannot be read", `{"access_token":"sdk-token"`, nil, 403, "invalid access token"},
		{"no JSON", `{"data":`, with("sdk-token"), 400, "not JSON"},
		{"nothing", "", with("sdk-token"), 400, "not JSON"},
		{"form without a payload", "a=b&c", with("sdk-token"), 400, "not JSON"},
		{"form with another payload", "payload=5", with("sdk-token"), 400, "not JSON: it is not an object"},
		{"no data", `{"payload":{}}`, with("sdk-token"), 400, "data must be an object"},
		{"data that are null", `{"data":null}`, with("sdk-token"), 400, "data must be an object"},
		{"data that are a text", `{"data":"x"}`, with("sdk-token"), 400, "data must be an object"},
		{"what Rollbar refuses", `{"data":{"level":"bad","body":{}}}`, with("sdk-token"), 422,
			"Invalid format. data.body must be an object with exactly one of"},
		{"too large", " " + fits, with("sdk-token"), 413, "larger than 1048576 bytes"},
		{"too large when inflated", zip(t, " "+fits), with("sdk-token", "Content-Encoding", "gzip"), 413,
			"larger than 1048576 bytes"},
		{"not what it is said to be", good, with("sdk-token", "Content-Encoding", "gzip"), 400, "cannot be read"},
		{"unknown encoding", good, with("sdk-token", "Content-Encoding", "br"), 415, "must be gzip"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, path := range []string{"/api/1/item/", "/api/1/items"} {
				assert.Contains(t, f.do("POST", path, test.body, test.header...).requireRefused(test.status), test.want)
			}
		})
	}
	assert.Empty(t, f.rows(`SELECT uuid FROM reports`))
	f.relay(fits).requireRelayed()
}

// Each kind of token is valid for its own routes only.
func TestRelayTokens(t *testing.T) {
	t.Parallel()
	f := newRelay(t, func(c *Config) {
		c.apiTokens, c.apiReadTokens, c.webhookTokens = []string{"api"}, []string{"reader"}, []string{"hook"}
	})
	for _, token := range []string{"api", "reader", "hook", sandbox.PostToken} {
		f.do("POST", "/api/1/item/", sdkPayload("u", ""), tokenHeader, token, "Authorization",
			"Bearer "+token).requireRefused(403)
	}
	for _, path := range []string{"/items", "/nowhere", openAPIPath, "/api/1/item/"} {
		f.do("GET", path, "", "Authorization", "Bearer sdk-token").requireProblem(401, "auth")
	}
	f.relay(sdkPayload("u", "")).requireRelayed()
}

func TestRelayIsAbsent(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"without a token": func(c *Config) { c.relayTokens = nil },
		"when read-only":  func(c *Config) { c.ReadOnly = true },
	} {
		f := newRelay(t, change)
		for _, path := range []string{"/api/1/item/", "/api/1/item", "/api/1/items/", "/api/1/items"} {
			for _, method := range []string{"POST", "OPTIONS"} {
				assert.Equal(t, 404, f.do(method, path, sdkPayload("u", ""), tokenHeader, "sdk-token").status,
					"%s: %s %s", name, method, path)
			}
		}
	}
}

func TestRelayPreflight(t *testing.T) {
	t.Parallel()
	f := newRelay(t, func(c *Config) { c.apiTokens = []string{"api"} })
	for _, path := range []string{"/api/1/item/", "/api/1/item", "/api/1/items/", "/api/1/items"} {
		got := f.do("OPTIONS", path, "", "Origin", "https://shop.example.com", "Host", "errors.example.com",
			"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers",
			"content-type,signal,x-rollbar-access-token")
		assert.Equal(t, 200, got.status)
		assert.JSONEq(t, `{"err":0}`, got.body)
		assert.Equal(t, "*", got.header.Get("Access-Control-Allow-Origin"))
		assert.Equal(t, "POST", got.header.Get("Access-Control-Allow-Methods"))
		assert.Equal(t, "content-type,signal,x-rollbar-access-token", got.header.Get("Access-Control-Allow-Headers"))
		assert.Equal(t, "86400", got.header.Get("Access-Control-Max-Age"))
		assert.Empty(t, got.header.Get("Access-Control-Allow-Credentials"))
		assert.Contains(t, got.header.Values("Vary"), "Access-Control-Request-Headers")
	}
	allow := f.do("GET", "/api/1/item/", "", "Authorization", "Bearer api").header.Get("Allow")
	assert.Equal(t, "OPTIONS, POST", allow)
}

// Odd payloads are not refused if Rollbar takes them, and text that PostgreSQL cannot hold is replaced.
func TestRelayOfOddPayloads(t *testing.T) {
	t.Parallel()
	f := newRelay(t)
	f.deliver(f.app)
	deep := strings.Repeat(`{"a":`, 3000) + "1" + strings.Repeat("}", 3000)
	for name, test := range map[string]struct{ sent, want string }{
		"bytes that are not UTF-8": {"\"custom\":{\"x\":\"a\xffb\"}", `"custom":{"x":"a` + "\uFFFD" + `b"}`},
		"NUL":                      {`"custom":{"x":"a\u0000b"}`, `"custom":{"x":"a\ufffdb"}`},
		"half a character":         {`"custom":{"x":"\ud83d"}`, `"custom":{"x":"\ufffd"}`},
		"unknown members":          {`"nonsense":[1e400,12345678901234567890,null]`, ""},
		"nulls":                    {`"person":null,"context":null,"request":null`, ""},
		"its own time":             {`"timestamp":1500000000.25`, ""},
		"deep nesting":             {`"custom":` + deep, ""},
		"the SDK's token":          {`"custom":{"accessToken":"sdk-token"}`, `"custom":{"accessToken":"***"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			uuid := newUUID()
			f.relay(sdkPayload(uuid, ","+test.sent)).requireRelayed()
			until(t, "it is delivered", func() bool { return f.sandbox.PostsOf(uuid) > 0 })
			want := test.want
			if want == "" {
				want = test.sent
			}
			assert.Contains(t, string(f.sandbox.DataOf(uuid)), want)
		})
	}
	uuid := f.relay(`{"data":{"environment":"e","body":{"message":{"body":"x"}}}}`).requireRelayed()
	f.eventually(uuid, "delivered")
	assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid), "one without a uuid gets one")
	at, ok := rawjson.Int(rawjson.Get(f.sandbox.DataOf(uuid), "timestamp"))
	assert.True(t, ok)
	assert.InDelta(t, time.Now().Unix(), at, 60)
	word := `{"data":{"environment":"dev","body":{"message":{"body":"x"}}}}`
	uuid = f.relay(word, tokenHeader, "dev").requireRelayed()
	f.eventually(uuid, "delivered")
	assert.Equal(t, `"dev"`, string(rawjson.Get(f.sandbox.DataOf(uuid), "environment")), "a word, and also a token")
}

// An occurrence whose uuid is known is not sent again, whatever its state.
func TestRelayOfTheSameUUID(t *testing.T) {
	t.Parallel()
	f := newRelay(t)
	delivered, rejected, queued := newUUID(), newUUID(), newUUID()
	require.Equal(t, 201, f.create(delivered).status)
	f.relay(sdkPayload(rejected, `,"context":"x"`)).requireRelayed()
	f.rows(`UPDATE reports SET state = 'rejected' WHERE uuid = '` + rejected + `' RETURNING ''`)
	f.relay(sdkPayload(queued, "")).requireRelayed()
	for _, uuid := range []string{delivered, rejected, queued} {
		assert.Equal(t, uuid, f.relay(sdkPayload(uuid, "")).requireRelayed())
	}
	f.deliver(f.app)
	f.eventually(queued, "delivered")
	for uuid, posts := range map[string]int{delivered: 1, rejected: 0, queued: 1} {
		assert.Equal(t, posts, f.sandbox.PostsOf(uuid))
	}
}

// The SDK waits only for PostgreSQL, not for Rollbar.
func TestRelayWhileRollbarFails(t *testing.T) {
	t.Parallel()
	for _, fault := range []sandbox.Fault{sandbox.Slow, sandbox.Down, sandbox.Error, sandbox.LimitedFar,
		sandbox.Forbidden} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			f := newRelay(t)
			f.deliver(f.app)
			f.sandbox.SetFault(fault)
			server, client := newUUID(), newUUID()
			began := time.Now()
			f.relay(sdkPayload(server, "")).requireRelayed()
			f.relay(sdkPayload(client, `,"platform":"browser"`)).requireRelayed()
			assert.Less(t, time.Since(began), 9*time.Second) // and not Rollbar's ten
			assert.Equal(t, "queued", f.state(server))
			f.sandbox.SetFault(sandbox.None)
			until(t, "both are delivered", func() bool {
				f.do("POST", "/reports/deliver", "")
				return f.state(server) == "delivered" && f.state(client) == "delivered"
			})
		})
	}
}

// Without PostgreSQL, the SDK gets Rollbar's answer if it can handle that, and 503 otherwise.
func TestRelayWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		fault  sandbox.Fault
		more   string // members of data
		status int
	}{
		{"Rollbar takes it", sandbox.None, "", 200},
		{"and a browser's", sandbox.None, `,"platform":"browser"`, 200},
		{"Rollbar refuses it", sandbox.None, `,"refused":true`, 422},
		{"a near limit", sandbox.LimitedNear, "", 429},
		{"a far limit", sandbox.LimitedFar, "", 429},
		{"a deactivated account", sandbox.Deactivated, "", 503},
		{"a wrong token", sandbox.Forbidden, "", 503},
		{"an error", sandbox.Error, "", 503},
		{"down, too", sandbox.Down, "", 503},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newRelay(t, func(c *Config) { c.DatabaseURL = "postgres://app@127.0.0.1:1/app" })
			if strings.Contains(test.more, "refused") { // for a reason that the service does not check
				refusing := httptest.NewServer(refusal(422))
				t.Cleanup(refusing.Close)
				f.app.rollbar.base = refusing.URL
			}
			f.sandbox.SetFault(test.fault)
			uuid := newUUID()
			got := f.relay(sdkPayload(uuid, test.more))
			if test.status == 200 {
				assert.Equal(t, uuid, got.requireRelayed())
				assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid))
				return
			}
			got.requireRefused(test.status)
			if test.status == 429 {
				assert.Equal(t, "0", got.header.Get("X-Rate-Limit-Remaining"))
				assert.Positive(t, atoi(got.header.Get("X-Rate-Limit-Remaining-Seconds")))
			}
			assert.LessOrEqual(t, f.sandbox.PostsOf(uuid), 1)
		})
	}
}

func TestRelayIntoAFullQueue(t *testing.T) {
	t.Parallel()
	f := newRelay(t, func(c *Config) { c.QueueLimit = 2 })
	f.relay(sdkPayload("one", "")).requireRelayed()
	f.relay(sdkPayload("two", "")).requireRelayed()
	got := f.relay(sdkPayload("three", ""))
	assert.Contains(t, got.requireRefused(429), "QUEUE_LIMIT")
	assert.Equal(t, "2", got.header.Get("X-Rate-Limit-Limit"))
	assert.Equal(t, "0", got.header.Get("X-Rate-Limit-Remaining"))
	assert.Equal(t, "10", got.header.Get("X-Rate-Limit-Remaining-Seconds"))
	assert.InDelta(t, time.Now().Unix()+10, atoi(got.header.Get("X-Rate-Limit-Reset")), 5)
	f.relay(sdkPayload("two", "")).requireRelayed()
	assert.Zero(t, f.sandbox.PostsOf("three"))
}

func TestRelayOfTheSender(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, peer string
		forwarded  []string
		full, anon string
	}{
		{"a stranger", "203.0.113.7:4000", []string{"192.0.2.1"}, "203.0.113.7", "203.0.113.0"},
		{"a stranger by IPv6", "[2001:db8:1:2:3:4:5:6]:4000", nil, "2001:db8:1:2:3:4:5:6", "2001:db8:1::"},
		{"our proxy", "127.0.0.1:4000", []string{"198.51.100.9, 203.0.113.7"}, "203.0.113.7", "203.0.113.0"},
		{"our proxy, which adds a header", "[::1]:4000", []string{"198.51.100.9", "203.0.113.7"}, "203.0.113.7",
			"203.0.113.0"},
		{"a proxy in our network", "10.1.2.3:4000", []string{"2001:db8:1:2::5"}, "2001:db8:1:2::5", "2001:db8:1::"},
		{"a proxy that gives a port", "192.168.1.2:4000", []string{"[2001:db8:1:2::5]:99"}, "2001:db8:1:2::5",
			"2001:db8:1::"},
		{"an IPv4 address as IPv6", "[::ffff:10.1.2.3]:4000", []string{"203.0.113.7:99"}, "203.0.113.7", "203.0.113.0"},
		{"a colleague", "10.1.2.3:4000", nil, "10.1.2.3", "10.1.2.0"},
		{"nonsense from our proxy", "127.0.0.1:4000", []string{"unknown"}, "127.0.0.1", "127.0.0.0"},
		{"nobody", "@", nil, "$remote_ip", "$remote_ip_anonymize"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest("POST", "/api/1/item/", nil)
			r.RemoteAddr, r.Header["X-Forwarded-For"] = test.peer, test.forwarded
			const data = `{"request":{"user_ip":%q,"url":"/"},"client":{"user_ip":%q},` +
				`"custom":{"user_ip":"$remote_ip"}}`
			sent := fmt.Appendf(nil, data, "$remote_ip", "$remote_ip_anonymize")
			assert.Equal(t, fmt.Sprintf(data, test.full, test.anon), string(withSender(sent, senderOf(r))))
		})
	}
	for _, data := range []string{`{"request":{"user_ip":"192.0.2.1"}}`, `{"request":null,"client":"$remote_ip"}`,
		`{"request":{"user_ip":null}}`} {
		assert.Equal(t, data, string(withSender(json.RawMessage(data), addressOf("203.0.113.7"))))
	}
	f := newRelay(t)
	f.relay(sdkPayload("u", `,"request":{"user_ip":"$remote_ip"}`), "X-Forwarded-For", "203.0.113.7").requireRelayed()
	assert.Equal(t, []string{"203.0.113.7"}, f.rows(`SELECT data -> 'request' ->> 'user_ip' FROM reports`))
}

// An occurrence that waits for a missing token is stored, and the log says so.
func TestRelayWithoutAToken(t *testing.T) {
	t.Parallel()
	f := newRelay(t, func(c *Config) { c.postClientToken = "" })
	f.relay(sdkPayload("u", `,"platform":"android"`)).requireRelayed()
	assert.Equal(t, "queued", f.state("u"))
	assert.Contains(t, f.log.String(), "ROLLBAR_POST_CLIENT_TOKEN is not set")
}

func TestTelemetryOfTheRelay(t *testing.T) {
	t.Parallel()
	f, agent := newObserved(t, func(c *Config) { c.relayTokens, c.QueueLimit = []string{"sdk-token"}, 1 })
	f.relay(sdkPayload("one", "")).requireRelayed()
	root := agent.Trace("POST /api/1/item/")[0]
	assert.Equal(t, "relay.item", root.Meta["operation"])
	assert.Equal(t, "/api/1/item/", root.Meta["http.route"])
	agent.Metric("app.operations", "operation:relay.item", "surface:http", "outcome:ok")
	f.relay(sdkPayload("two", "")).requireRefused(429)
	agent.Metric("app.operations", "operation:relay.item", "outcome:rate-limited")
	f.relay(sdkPayload("three", "")).requireRefused(429)
	assert.Equal(t, []float64{1}, agent.Metric("app.queue.dropped").Values)
	assert.NotContains(t, f.log.String(), "sdk-token")
}

// refusal answers every request with the status, as Rollbar answers invalid ones.
func refusal(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, `{"err":1,"message":"Invalid format."}`)
	}
}

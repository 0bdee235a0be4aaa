package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/rawjson"
)

// brokenRollbar answers each request with the bytes that the function makes from its token.
func brokenRollbar(t *testing.T, answer func(token string) string) string {
	listener := datadogtest.ListenTCP(t, "127.0.0.1:0")
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				head := make([]byte, 4096)
				n, _ := conn.Read(head)
				_, token, _ := strings.Cut(string(head[:n]), "X-Rollbar-Access-Token: ")
				token, _, _ = strings.Cut(token, "\r\n")
				_, _ = io.WriteString(conn, answer(token))
			}()
		}
	}()
	return "http://" + listener.Addr().String() + "/api/1"
}

// However a response quotes the token, and even if it is not HTTP, the token reaches neither the caller nor
// the log nor Datadog.
func TestNobodySeesTheToken(t *testing.T) {
	t.Parallel()
	const secret = "s3cret+token/for=tests"
	json200 := func(header, body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n%s\r\n%s", header,
			body)
	}
	for name, answer := range map[string]func(token string) string{
		"a header without a colon": func(token string) string { return json200(token+"\r\n", "{}") },
		"a status":                 func(token string) string { return "HTTP/1.1 " + token + " OK\r\n\r\n" },
		"a length":                 func(token string) string { return json200("Content-Length: "+token+"\r\n", "{}") },
		"an encoding": func(token string) string {
			return json200("Transfer-Encoding: "+token+"\r\n",
				"{}")
		},
		"not HTTP": func(token string) string { return token },
		"a redirect to an invalid URL": func(token string) string {
			return "HTTP/1.1 301 Moved\r\nLocation: http://[x/?access_token=" + token + "\r\n\r\n"
		},
		"a redirect": func(token string) string {
			return "HTTP/1.1 301 Moved\r\nLocation: /api/1/items/?access_token=" + url.QueryEscape(token) +
				"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
		},
		"a message": func(token string) string { return json200("", `{"err":1,"message":"over limit: `+token+`"}`) },
		"a message with the token escaped": func(token string) string {
			return json200("", `{"err":1,"message":"at /?access_token=`+url.QueryEscape(token)+`"}`)
		},
		"a message with the token in many forms": func(token string) string {
			basic := base64.StdEncoding.EncodeToString([]byte("user:" + token))
			return json200("", fmt.Sprintf(`{"err":1,"message":"%s, %s, %s"}`, strings.ToUpper(token), token[:10],
				basic))
		},
		"a refusal": func(token string) string {
			return strings.Replace(json200("", `{"err":1,"message":"access token not found: `+token+`"}`), "200 OK",
				"403 Forbidden", 1)
		},
		"a trailer": func(token string) string {
			return json200("Transfer-Encoding: chunked\r\nTrailer: x\r\n", "2\r\n{}\r\n0\r\n"+token+"\r\n\r\n")
		},
		"invalid JSON": func(token string) string { return json200("", `{"err":0,"`+token) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, agent := newObserved(t, func(c *Config) {
				c.RollbarURL = brokenRollbar(t, answer)
				c.readToken, c.writeToken, c.postToken = secret, secret, secret
			})
			var seen strings.Builder
			for _, request := range []struct{ method, path, body string }{
				{"GET", "/items", ""}, {"GET", "/items/7", ""}, {"PATCH", "/items/7", `{"status":"muted"}`},
				{"POST", "/items", `{"message":"x"}`},
			} {
				got := f.call(request.method, request.path, request.body)
				fmt.Fprintln(&seen, got.status, got.header, got.body)
				resource := request.method + " " + strings.ReplaceAll(request.path, "7", "{id}")
				require.NoError(t, json.NewEncoder(&seen).Encode(agent.Trace(resource)))
			}
			for _, args := range []string{"items list", "items list -o json", "items create -message x"} {
				got := f.run(strings.Fields(args)...)
				fmt.Fprintln(&seen, got.out, got.err)
			}
			seen.WriteString(f.log.String())
			basic := base64.StdEncoding.EncodeToString([]byte("user:" + secret))
			for _, form := range []string{secret[:8], url.QueryEscape(secret)[:10], basic[8:20]} {
				assert.NotContains(t, strings.ToLower(seen.String()), strings.ToLower(form))
			}
		})
	}
}

// net/http logs the bytes that follow a response on an idle connection. The log hides the token in them.
func TestStandardLogger(t *testing.T) {
	t.Parallel()
	rollbar := brokenRollbar(t, func(token string) string {
		return "HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\n" + `{"err":0,"result":{"items":[]}}` + token + "\r\n"
	})
	f := newFixture(t, 0, func(c *Config) { c.readToken, c.RollbarURL = "s3cret-token-for-tests", rollbar })
	p := startServe(t, f.env())
	until(t, "net/http has printed", func() bool {
		f.at(p).get("/items")
		return strings.Contains(p.stdout(), "idle HTTP channel")
	})
	assert.NotContains(t, p.stdout()+p.stderr(), "s3cret")
	for line := range strings.Lines(p.stdout()) {
		assert.True(t, json.Valid([]byte(line)), line)
	}
	assert.Empty(t, p.stderr())
}

// A server at APP_URL cannot make the client print its credentials by echoing them.
func TestServerThatEchoes(t *testing.T) {
	t.Parallel()
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := r.Header.Get("Authorization")
		switch r.URL.Path {
		case "/which":
			w.Header().Set("Content-Type", "text/plain")
			fmt.Fprint(w, given)
		case "/items":
			w.Header().Set("Link", "<?page="+url.QueryEscape(given)+`>; rel="next"`)
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"items":[]}`)
		case "/reports":
			w.Header().Set("Location", "/?"+given)
			w.WriteHeader(http.StatusFound)
		default:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(fail(notFound, "%s", given).problem("id"))
		}
	}))
	defer echo.Close()
	for name, secret := range map[string]string{"api-token": "s3cret-token-for-tests", "app-url": "s3cret-password"} {
		server, settings := echo.URL, []string{}
		if name == "app-url" {
			server = strings.Replace(server, "//", "//caller:"+secret+"@", 1)
		} else {
			settings = []string{"-api-token", secret}
		}
		for _, args := range []string{"which", "items list -o table", "reports list", "reports get 7",
			"reports get 7 -o json"} {
			got := runShell(t, "", append(append(settings, "-app-url", server), strings.Fields(args)...)...)
			assert.NotContains(t, got.out+got.err, secret[:8], args)
			assert.NotContains(t, got.out+got.err, base64.StdEncoding.EncodeToString([]byte("caller:" + secret))[:16])
		}
	}
}

// Credentials in Rollbar's URL are hidden, even if they are only a user name.
func TestNobodySeesCredentialsInURLs(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"caller:s3cret-password", "s3cret-password"} {
		f, agent := newObserved(t, func(c *Config) {
			rollbar := brokenRollbar(t, func(string) string { return "HTTP/1.1 s3cret-password\r\n\r\n" })
			c.RollbarURL = strings.Replace(rollbar, "//", "//"+user+"@", 1)
		})
		var seen strings.Builder
		require.NoError(t, json.NewEncoder(&seen).Encode(f.call("GET", "/items", "").body))
		require.NoError(t, json.NewEncoder(&seen).Encode(agent.Trace("GET /items")))
		got := f.run("items", "list")
		assert.Contains(t, got.err, "***")
		assert.NotContains(t, seen.String()+got.out+got.err+f.log.String(), "s3cret-p")
	}
}

// All access tokens in an occurrence's metadata are removed, at any depth and in any spelling.
func TestAccessTokenIsRemoved(t *testing.T) {
	t.Parallel()
	for _, test := range [][2]string{
		{`{"id":1,"data":{"metadata":{"access_token":"T","x":1e3},"y":null}}`,
			`{"id":1,"data":{"metadata":{"x":1e3},"y":null}}`},
		{`{"data":{"metadata":{"access_token":"T"},"metadata":{}}}`, `{"data":{"metadata":{},"metadata":{}}}`},
		{`{"data":{"metadata":{"access\u005ftoken":"T","access_token":"T"}},"data":{"z":[1,2]}}`,
			`{"data":{"metadata":{}},"data":{"z":[1,2]}}`},
		{`{"data":{"metadata":{"a":[1,{"access_token":"T"},[]],"b":{"access_token":{},"c":{}}}}}`,
			`{"data":{"metadata":{"a":[1,{},[]],"b":{"c":{}}}}}`},
		{`{"access_token":1,"data":{"access_token":2,"metadata":"access_token"}}`,
			`{"access_token":1,"data":{"access_token":2,"metadata":"access_token"}}`},
		{`{"data":{"metadata":null}}`, `{"data":{"metadata":null}}`},
		{`{"data":"text"}`, `{"data":"text"}`},
		{`{}`, `{}`},
	} {
		assert.Equal(t, test[1], string(rawjson.Purge(json.RawMessage(test[0]), "access_token", "data", "metadata")))
	}
}

// No error and no log line contains the database's password.
func TestNobodySeesThePassword(t *testing.T) {
	t.Parallel()
	for _, database := range []string{
		"postgres://app:hunter2@127.0.0.1:1/app", "postgres://app@127.0.0.1:1/app?password=hunter2",
		"host=127.0.0.1 port=1 user=app password=hunter2",
		"postgres://app:hunter2@127.0.0.1:1,127.0.0.1:2/app?target_session_attrs=read-write",
	} {
		f := newFixture(t, 1, func(c *Config) { c.DatabaseURL = database })
		for _, args := range []string{"check", "items list", "items sync", "reports list -o json", "reports deliver"} {
			got := f.run(strings.Fields(args)...)
			assert.NotContains(t, got.out+got.err, "hunter2", args)
		}
		for _, path := range []string{"/check", "/items", "/reports"} {
			assert.NotContains(t, f.get(path).body, "hunter2", path)
		}
		assert.NotContains(t, f.log.String(), "hunter2")
	}
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	for _, server := range []string{strings.Replace(stranger.URL, "//", "//app:hunter2@", 1),
		"http://app:hunter2@127.0.0.1:1"} {
		got := runShell(t, "", "check", "-app-url", server)
		assert.NotContains(t, got.out+got.err, "hunter2")
		shown, err := url.Parse(server)
		require.NoError(t, err)
		assert.Contains(t, got.err, shown.Redacted())
	}
}

// rawResponses sends bytes and returns what comes until the service closes the connection.
func (f *fixture) rawResponses(text string) string {
	f.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	require.NoError(f.t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, text)
	require.NoError(f.t, err)
	answers, err := io.ReadAll(conn)
	require.NoError(f.t, err)
	return string(answers)
}

// Every token and every password among the settings is masked.
func TestEachTokenIsMasked(t *testing.T) {
	t.Parallel()
	config := &Config{}
	for _, s := range config.settings() {
		if strings.HasSuffix(s.name, "-token") {
			require.NoError(t, s.set("secret-of-"+s.name))
		}
	}
	config.AppURL, config.RollbarURL = "http://u:secret-of-app-url@host", "http://secret-of-rollbar-url@host"
	config.DatabaseURL = "postgres://u:secret-of-database-url@host/x"
	config.DatabaseReadURL = "host=host password=secret-of-database-read-url"
	for _, s := range config.settings() {
		isURL := strings.HasSuffix(s.name, "-url") && !strings.HasPrefix(s.name, "dd-")
		if strings.HasSuffix(s.name, "-token") || isURL {
			assert.Equal(t, "<***>", string(config.mask().Bytes([]byte("<secret-of-"+s.name+">"))))
		}
	}
}

package secrets

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMask(t *testing.T) {
	t.Parallel()
	const secret = `s3cret+token/"for=\tests?>`
	everywhere := strings.Builder{}
	for _, c := range []byte(secret) {
		everywhere.WriteString("%" + hex.EncodeToString([]byte{c}))
	}
	for name, form := range map[string]string{
		"verbatim":                  secret,
		"in the other case":         strings.ToUpper(secret),
		"the first 8 characters":    secret[:8],
		"the first 11 characters":   secret[:11],
		"in a query":                url.QueryEscape(secret),
		"in a path":                 url.PathEscape(secret),
		"in a query, in lower case": strings.ToLower(url.QueryEscape(secret)),
		"percent-encoded":           everywhere.String(),
		"cut and percent-encoded":   url.QueryEscape(secret[:11]),
		"in JSON":                   strings.Trim(strconv.Quote(secret), `"`),
		"in JSON within HTML":       strings.ReplaceAll(strings.Trim(strconv.Quote(secret), `"`), ">", `\u003e`),
		"quoted in JSON":            strings.Trim(strconv.Quote(strings.Trim(strconv.Quote(secret), `"`)), `"`),
	} {
		assert.Equal(t, "<***|***>", string(New("other", secret).Bytes([]byte("<"+form+"|"+form+">"))), name)
	}
	for _, encoding := range []*base64.Encoding{
		base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding,
	} {
		for _, before := range []string{"", "u", "me:", "user:", "token:"} {
			for _, secret := range []string{secret, "~~~???>>>~~~"} {
				got := string(New(secret).Bytes([]byte("<" + encoding.EncodeToString([]byte(before+secret)) + ">")))
				assert.Contains(t, got, "***")
				assert.Less(t, len(got), len("<***>")+4*len(before)/3+6)
			}
		}
	}
}

func TestMaskLeavesTheRest(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"hunter2":             "***",
		"hunter22 xhunter2":   "hunter22 xhunter2",
		"(hunter2) %68unter2": "(***) ***",
		"Hunter2":             "Hunter2",
		"an app, dev":         "an app, dev",
		"abcdefghi":           "***",
		"abcdefg abc%64":      "abcdefg abc%64",
		"100% abcdefghiz %":   "100% ***z %",
		"":                    "",
	} {
		given := []byte(text)
		assert.Equal(t, want, string(New("hunter2", "app", "", "abcdefghi").Bytes(given)))
		assert.Equal(t, text, string(given))
	}
	assert.Equal(t, "text", string((*Mask)(nil).Bytes([]byte("text"))))
}

// A line of JSON stays valid, even if a secret begins with what could be the end of an escape.
func TestMaskInJSON(t *testing.T) {
	t.Parallel()
	mask := New("nabcdefgh", `"quoted secret`, "tab and more")
	for _, text := range []string{"\nabcdefgh", "nabcdefgh", `\nabcdefgh`, `"quoted secret`, `\"quoted secret`,
		"\tab and more"} {
		line, err := json.Marshal(text)
		require.NoError(t, err)
		var got string
		require.NoError(t, json.Unmarshal(mask.Bytes(line), &got), text)
		assert.Equal(t, "***", strings.TrimLeft(got, `\`))
	}
}

func TestMaskWriter(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	n, err := New("abcdefghi").Writer(&out).Write([]byte("x abcdefghi y"))
	assert.NoError(t, err)
	assert.Equal(t, 13, n)
	assert.Equal(t, "x *** y", out.String())
}

func BenchmarkMask(b *testing.B) {
	mask := New("0a1b2c3d4e5f60718293a4b5c6d7e8f9", "ffeeddccbbaa99887766554433221100", "correct-horse")
	line := []byte(`{"timestamp":"2026-11-28T15:00:00.123456789Z","level":"INFO","dd.service":"app",` +
		`"message":"request","operation":"items.list","http.method":"GET","http.url_details.path":"/items",` +
		`"network.client.ip":"127.0.0.1","http.status_code":200,"duration":1234567,"upstream_duration":1234567,` +
		`"http.request_id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}`)
	for b.Loop() {
		mask.Bytes(line)
	}
}

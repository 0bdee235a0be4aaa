package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
)

// A sandboxClient talks to a sandbox without the service: no retries, no redirects.
type sandboxClient struct {
	t *testing.T
	*sandbox
	http *http.Client
	url  string
}

// newSandboxClient serves a sandbox with n items. The functions change it before it starts.
func newSandboxClient(t *testing.T, n int, change ...func(*sandbox)) *sandboxClient {
	t.Helper()
	s := newSandbox(n)
	for _, c := range change {
		c(s)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return &sandboxClient{t, s, &http.Client{
		// On a connection that was used before, Go sends a request that got no answer again.
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, server.URL + "/api/1"}
}

// try sends "METHOD /path" with a token and returns what came, even if it broke off.
func (c *sandboxClient) try(ctx context.Context, token, request, body string) (*answer, error) {
	c.t.Helper()
	method, path, _ := strings.Cut(request, " ")
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	require.NoError(c.t, err)
	req.Header.Set("X-Rollbar-Access-Token", token)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return &answer{c.t, req.URL, res.StatusCode, res.Header, string(text)}, err
}

func (c *sandboxClient) as(token, request, body string) *answer {
	c.t.Helper()
	got, err := c.try(c.t.Context(), token, request, body)
	require.NoError(c.t, err)
	return got
}

// do uses the token that the method needs.
func (c *sandboxClient) do(request, body string) *answer {
	c.t.Helper()
	token := map[string]string{"GET ": sandboxReadToken, "POST": sandboxPostToken}[request[:4]]
	return c.as(cmp.Or(token, sandboxWriteToken), request, body)
}

// get returns the result of a request that succeeds.
func (c *sandboxClient) get(path string) *answer {
	c.t.Helper()
	got := c.do("GET "+path, "")
	require.Equal(c.t, 200, got.status, "%s: %s", path, got.body)
	require.Equal(c.t, "0", got.at("err"))
	got.body = got.at("result")
	return got
}

// post creates an occurrence and returns its uuid.
func (c *sandboxClient) post(message string, more fields) string {
	c.t.Helper()
	got := c.do("POST /item/", payload(c.t, message, more))
	require.Equal(c.t, 200, got.status, got.body)
	require.Equal(c.t, "null", got.at("result", "id"))
	return rawjson.Unquote([]byte(got.at("result", "uuid")))
}

type fields map[string]any

// payload is a message with further fields of data.
func payload(t *testing.T, message string, more fields) string {
	data := fields{"environment": "production", "body": fields{"message": fields{"body": message}}}
	maps.Copy(data, more)
	return string(marshalJSON(t, fields{"data": data}))
}

// requireError checks that an answer is a failure as Rollbar words it.
func (a *answer) requireError(status int, message string) {
	a.t.Helper()
	require.Equal(a.t, status, a.status, a.body)
	require.Equal(a.t, "1", a.at("err"))
	require.Equal(a.t, message, rawjson.Unquote([]byte(a.at("message"))))
}

// values are the texts of a member of the elements of a list; null is "null".
func (a *answer) values(list, name string) []string {
	a.t.Helper()
	values := []string{}
	for _, element := range a.list(list) {
		value := rawjson.Get(element, name)
		values = append(values, cmp.Or(rawjson.Unquote(value), string(value)))
	}
	return values
}

func unique(values []string) []string { return slices.Compact(slices.Sorted(slices.Values(values))) }

func TestSandboxScopes(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 1)
	update, remove, post := fmt.Sprintf("PATCH /item/%d", c.itemIDs()[0]), "DELETE /instance/1", "POST /item/"
	server, browser := payload(t, "a", nil), payload(t, "a", fields{"platform": "browser"})
	for _, tt := range []struct{ token, request, body, has, needs string }{
		{sandboxReadToken, "GET /items", "", "", ""},
		{sandboxToken, "GET /items", "", "", ""},
		{"", "GET /items?access_token=" + sandboxReadToken, "", "", ""},
		{sandboxWriteToken, "GET /items", "", "write", "read"},
		{sandboxPostToken, "GET /instances", "", "post_server_item", "read"},
		{sandboxWriteToken, update, "{}", "", ""},
		{sandboxReadToken, update, "{}", "read", "write"},
		{sandboxReadToken, remove, "", "read", "write"},
		{sandboxPostToken, post, server, "", ""},
		{sandboxClientPostToken, post, browser, "", ""},
		{sandboxClientPostToken, post, server, "post_client_item", "post_server_item"},
		{sandboxPostToken, post, browser, "post_server_item", "post_client_item"},
		{sandboxReadToken, post, server, "read", "post_server_item"},
	} {
		got := c.as(tt.token, tt.request, tt.body)
		if tt.needs == "" {
			assert.Equal(t, 200, got.status, "%s with %s", tt.request, tt.token)
			continue
		}
		got.requireError(403, fmt.Sprintf("insufficient privileges: %s scope is required but the access token only has %s.", tt.needs, tt.has))
	}
	for _, request := range []string{"GET /items", update, remove} {
		c.as("nobody", request, "{}").requireError(403, "invalid access token")
		c.as("", request, "{}").requireError(403, "invalid access token")
	}
	c.as("nobody", post, server).requireError(403, "access token not found: nobody")
	c.as("", post, server).requireError(422, "Invalid format. access_token is missing and it is required.")
}

func TestSandboxForm(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 3)
	for _, path := range []string{"/items", "/items/", "/item/999", "/instances/?limit=1&q=ignored"} {
		got := c.do("GET "+path, "")
		assert.Equal(t, "application/json; charset=utf-8", got.header.Get("Content-Type"))
		assert.Regexp(t, `(?s)^{\n  "err": .*[^\n]\n}$`, got.body)
	}
	unknown := c.do("DELETE /item/1705000001", "")
	unknown.requireError(404, "not found")
	assert.Empty(t, unknown.header.Values("X-Rate-Limit-Remaining"))
	assert.Equal(t, "pong", c.as("", "GET /status/ping", "").body)
}

func TestSandboxPages(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 250, func(s *sandbox) { s.largeProject = 250 })
	total, _ := strconv.Atoi(c.get("/items").at("total_count"))
	require.Greater(t, total, 200)
	var ids []string
	for page, size := range []int{100, 100, total - 200, 0} {
		got := c.get(fmt.Sprintf("/items?page=%d", page+1))
		assert.Len(t, got.list("items"), size)
		assert.Equal(t, strconv.Itoa(page+1), got.at("page"))
		ids = append(ids, got.values("items", "id")...)
	}
	assert.Len(t, unique(ids), total, "each item is on one page")
	assert.Equal(t, ids[7:14], c.get("/items?limit=7&page=2").values("items", "id"))
	assert.Equal(t, ids, c.get("/items?limit=5000").values("items", "id"))
	assert.Equal(t, "[]", c.get("/items?page=99").at("items"))
	c.addItems(1)
	assert.Equal(t, "null", c.get("/items").at("total_count"), "of a large project")

	all := c.get("/instances?limit=5000").values("instances", "id")
	assert.Equal(t, all[:20], c.get("/instances").values("instances", "id"))
	assert.Equal(t, all[20:40], c.get("/instances?page=2").values("instances", "id"))
	assert.Equal(t, "[]", c.get("/instances?page=99").at("instances"))
	assert.Equal(t, "[]", c.get("/instances?page=9223372036854775807").at("instances"))
	of := fmt.Sprintf("/item/%d/instances", c.itemIDs()[4])
	one := c.get(of).values("instances", "id")
	require.Len(t, one, 5)
	assert.Equal(t, one[1:], c.get(of+"?page=2&lastId="+one[0]).values("instances", "id"), "the cursor overrides the page")
	assert.Equal(t, one[3:4], c.get(of+"?limit=1&last_id="+one[2]).values("instances", "id"))
	assert.Equal(t, one, c.get(of+"?lastId=None").values("instances", "id"))
}

func TestSandboxFilters(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 66)
	for name, values := range map[string][]string{
		"status": {"active", "resolved", "muted", "archived"}, "level": levels,
		"environment": {"production", "staging", "development", "qa-préprod"}, "framework": {"rails", "go"},
	} {
		for i, value := range values {
			two := []string{value, values[(i+1)%len(values)]}
			got := c.get("/items?" + url.Values{name: two}.Encode())
			assert.ElementsMatch(t, two, unique(got.values("items", name)))
			assert.Equal(t, strconv.Itoa(len(got.list("items"))), got.at("total_count"))
			assert.Equal(t, two[:1], unique(c.get("/items?"+url.Values{name: two[:1]}.Encode()).values("items", name)))
		}
		assert.Equal(t, "[]", c.get("/items?"+name+"="+values[0]+","+values[1]).at("items"), "commas do not separate")
	}
	both := c.get("/items?status=active&level=error&assigned_user=assigned")
	assert.NotEmpty(t, both.list("items"))
	assert.True(t, both.all("items", "status", `"active"`) && both.all("items", "level", `"error"`))
	assert.NotContains(t, both.values("items", "assigned_user_id"), "null")
	assert.Equal(t, []string{"5326"}, unique(c.get("/items?assigned_user=grace").values("items", "assigned_user_id")))
	hash := rawjson.Unquote([]byte(c.get("/item?counter=5").at("hash")))
	for query, want := range map[string][]string{
		"#4": {"4"}, "fingerprint:" + hash[:12]: {"5"}, `fingerprint:"` + hash + `"`: {"5"}, `fingerprint:"` + hash[:12] + `"`: {},
		"CHECKOUT timeouterror environment:prod": {"1", "65"}, "checkout nothing": {}, "注文を処理できません #7": {"7"}, "is:group": {"31"},
	} {
		assert.Equal(t, want, c.get("/items?query="+url.QueryEscape(query)).values("items", "counter"), query)
	}
}

func TestSandboxCreatesOnce(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 0, func(s *sandbox) { s.manual = true })
	uuid := newUUID()
	c.failOnly("POST /item", 1, faultDropped)
	assert.Equal(t, "[]", c.get("/items").at("items"), "other requests do not fail")
	_, err := c.try(t.Context(), sandboxPostToken, "POST /item/", payload(t, "the first wins", fields{"uuid": uuid}))
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, uuid, c.post("the second", fields{"uuid": uuid}))
	c.do("GET /item?uuid="+uuid, "").requireError(404, "UUID did not match any occurrence")
	c.process()
	c.post("the third", fields{"uuid": uuid})
	c.process()
	assert.Equal(t, `"the first wins"`, c.get("/item?uuid="+uuid).at("title"))
	assert.Equal(t, []string{"1"}, c.get("/items").values("items", "total_occurrences"))
	assert.Len(t, c.get("/instances").list("instances"), 1)
	assert.Equal(t, 1, c.occurrencesOf(uuid))
	assert.Equal(t, 3, c.postsOf(uuid))
	assert.Regexp(t, `^[0-9a-f]{32}$`, c.post("without a uuid", nil))

	wrongBody := "Invalid format. data.body must have either a 'trace', 'trace_chain', 'message' or 'crash_report' property, (but not more than one)."
	c.do("POST /item", payload(t, "a", fields{"body": fields{}})).requireError(422, wrongBody)
	assert.Equal(t, 400, c.do("POST /item", `{"data":`).status)
	assert.Equal(t, 413, c.do("POST /item", payload(t, strings.Repeat("x", 1<<20), nil)).status)
}

func TestSandboxGroups(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 0)
	long := strings.Repeat("f", 41)
	for _, tt := range []struct {
		message        string
		more           fields
		counter, total string // of its item
	}{
		{"order 17 failed", fields{"level": "warning"}, "1", "1"},
		{"order 4711 failed", fields{"level": "critical"}, "1", "2"},
		{"refund failed", nil, "2", "1"},
		{"order 17 failed", fields{"fingerprint": "pay"}, "3", "1"},
		{"refund failed", fields{"fingerprint": "pay"}, "3", "2"},
		{"refund failed", fields{"fingerprint": "pay", "environment": "staging"}, "4", "1"},
		{"refund failed", fields{"fingerprint": long}, "5", "1"},
		{"refund failed", fields{"fingerprint": sandboxHash(long)}, "5", "2"},
		{"order 18 failed", nil, "1", "3"},
	} {
		more := fields{"uuid": newUUID()}
		maps.Copy(more, tt.more)
		item := c.get("/item?uuid=" + c.post(tt.message, more))
		assert.Equal(t, []string{tt.counter, tt.total}, []string{item.at("counter"), item.at("total_occurrences")}, tt)
	}
	item := c.get("/item?counter=1")
	assert.Equal(t, `"warning"`, item.at("level"), "of the first occurrence")
	ids := c.get("/item/"+item.at("id")+"/instances").values("instances", "id")
	assert.Equal(t, []string{slices.Min(ids), slices.Max(ids)}, []string{item.at("first_occurrence_id"), item.at("last_occurrence_id")})
}

func TestSandboxReactivates(t *testing.T) {
	t.Parallel()
	for patch, want := range map[string][]string{
		`{"status":"resolved"}`:                                {`"active"`, "1"},
		`{"status":"resolved","resolved_in_version":"2.9.0"}`:  {`"active"`, "1"},
		`{"status":"resolved","resolved_in_version":"2.10.0"}`: {`"resolved"`, "3"},
		`{"status":"muted"}`:                                   {`"muted"`, "3"},
	} {
		c := newSandboxClient(t, 0)
		c.post("again", nil)
		c.post("again", nil)
		path := fmt.Sprintf("/item/%d", c.itemIDs()[0])
		require.Equal(t, 200, c.do("PATCH "+path, patch).status)
		c.post("again", fields{"code_version": "2.9.0"})
		got := c.get(path)
		assert.Equal(t, want, []string{got.at("status"), got.at("total_occurrences")}, patch)
		assert.Equal(t, want[1] == "1", got.at("activating_occurrence_id") == got.at("last_occurrence_id"), patch)
	}
}

func TestSandboxFindsItems(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 60, func(s *sandbox) { s.tokenInLink = true })
	path := fmt.Sprintf("/item/%d", c.itemIDs()[2])
	item, list := c.get(path), c.get("/items")
	assert.Equal(t, item.body, c.get("/item?counter=3").body)
	assert.Equal(t, item.body, c.get("/item/?uuid="+sandboxUUID(2, 1)).body)
	assert.True(t, item.at("snooze_status") != "" && list.at("items", "0", "snooze_status") == "", "in single answers alone")
	assert.True(t, item.at("title_lock") == "" && list.at("items", "0", "title_lock") != "", "in lists alone")

	redirect := c.do("GET /item_by_counter/3", "")
	assert.Equal(t, 301, redirect.status)
	assert.Equal(t, "/api/1"+path+"?access_token="+sandboxReadToken, redirect.header.Get("Location"))
	assert.Equal(t, item.at("id"), redirect.at("result", "itemId"))
	assert.Equal(t, `"/api/1`+path+`"`, redirect.at("result", "path"))

	for _, path := range []string{"/item/999", "/item?counter=999", "/item_by_counter/999"} {
		c.do("GET "+path, "").requireError(404, "Item not found in this project.")
	}
	c.do("GET /item?uuid=17", "").requireError(400, "Invalid UUID format")
	c.do("GET /item?uuid="+newUUID(), "").requireError(404, "UUID did not match any occurrence")

	group, merged := c.get("/item?counter=31"), c.get("/item?counter=32")
	assert.Equal(t, "2", group.at("group_status"))
	assert.Equal(t, "[]", c.get("/item/"+group.at("id")+"/instances").at("instances"), "of a group")
	assert.Equal(t, group.at("id"), merged.at("group_item_id"))
	assert.NotContains(t, list.values("items", "id"), merged.at("id"))
}

func TestSandboxPatches(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 2)
	path := fmt.Sprintf("/item/%d", c.itemIDs()[1])
	for _, sent := range []string{
		`{"status":"resolved","resolved_in_version":"4.2.0"}`,
		`{"title":"größer \"<neu>\"","level":"critical","assigned_user_id":null}`,
		`{"snooze_enabled":true,"snooze_expiration_in_seconds":3600}`,
	} {
		assert.JSONEq(t, sent, c.do("PATCH "+path, sent).at("result"), "what was sent, and no more")
	}
	one, list := c.get(path), c.get("/items?status=resolved")
	assert.NotEqual(t, "null", one.at("last_resolved_timestamp"))
	assert.Equal(t, `"active"`, one.at("snooze_status"))
	for name, want := range map[string]string{
		"resolved_in_version": `"4.2.0"`, "title": `"größer \"<neu>\""`, "title_lock": "1", "level": `"critical"`, "level_lock": "1", "assigned_user_id": "null",
	} {
		assert.Equal(t, want, list.at("items", "0", name), name)
	}
	for _, bad := range []string{`{"status":"gone"}`, `{"title":""}`, `{"level":"loud","status":"muted"}`, `{"assigned_user_id":"ada"}`} {
		assert.Equal(t, 422, c.do("PATCH "+path, bad).status, bad)
	}
	assert.Equal(t, one.body, c.get(path).body, "what is refused changes nothing")
	c.do("PATCH /item/999", `{"status":"muted"}`).requireError(400, "Item not found in this project.")
}

func TestSandboxDeletesLater(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 5, func(s *sandbox) { s.manual = true })
	path := fmt.Sprintf("/item/%d", c.itemIDs()[4])
	before, id := c.get(path), c.get(path+"/instances").at("instances", "0", "id")
	got := c.do("DELETE /instance/"+id, "")
	assert.JSONEq(t, `{"err":0,"message":"The instance has been deleted"}`, got.body)
	assert.Equal(t, id, c.get("/instance/"+id).at("id"), "for a while")
	c.process()
	c.do("GET /instance/"+id, "").requireError(404, "Not found")
	c.do("DELETE /instance/"+id, "").requireError(404, "Not found")
	assert.Len(t, c.get(path+"/instances").list("instances"), 4)
	assert.Equal(t, before.body, c.get(path).body, "the counts stay")
}

// requireRate checks the headers of the rate limit: limit, remaining, seconds, reset.
func (a *answer) requireRate(want ...int) {
	a.t.Helper()
	for i, name := range []string{"Limit", "Remaining", "Remaining-Seconds", "Reset"} {
		require.Equal(a.t, strconv.Itoa(want[i]), a.header.Get("X-Rate-Limit-"+name), name)
	}
	require.Empty(a.t, a.header.Values("Retry-After"))
}

func TestSandboxRateLimit(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 1, func(s *sandbox) { s.limit = 3 })
	at := func(seconds int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.now = func() time.Time { return time.Unix(seconds, 0) }
	}
	at(1000)
	c.do("GET /items", "").requireRate(3, 2, 60, 1060)
	at(1020)
	c.do("GET /item?uuid=17", "").requireRate(3, 1, 40, 1060)
	c.do("GET /item/999", "").requireRate(3, 0, 40, 1060)
	at(1059)
	over := c.do("GET /items", "")
	over.requireError(429, "Over rate limit. Access token: "+sandboxReadToken)
	over.requireRate(3, 0, 1, 1060)
	c.do("PATCH /item/999", "{}").requireRate(3, 2, 60, 1119) // with a token of its own
	at(1060)
	c.do("GET /items", "").requireRate(3, 2, 60, 1120)
}

func TestSandboxFaults(t *testing.T) {
	t.Parallel()
	over := "Over rate limit. Access token: " + sandboxReadToken
	for fault, want := range map[sandboxFault]struct {
		err    error
		status int
		text   string
		rate   []int
	}{
		faultDown:        {io.EOF, 0, "", nil},
		faultError:       {nil, 500, "internal error", []int{50_000, 49_999, 60, 1060}},
		faultBadGateway:  {nil, 502, "<h1>502 Bad Gateway</h1>", nil},
		faultTruncated:   {io.ErrUnexpectedEOF, 200, `"err": 0`, []int{50_000, 49_999, 60, 1060}},
		faultLimitedNear: {nil, 429, over, []int{50_000, 0, 1, 1001}},
		faultLimitedFar:  {nil, 429, over, []int{50_000, 0, 64_800, 65_800}},
		faultDeactivated: {nil, 429, "This account has been deactivated.", []int{50_000, 49_999, 60, 1060}},
		faultForbidden:   {nil, 403, "invalid access token", nil},
	} {
		c := newSandboxClient(t, 3, func(s *sandbox) { s.now = func() time.Time { return time.Unix(1000, 0) } })
		c.failNext(1, fault)
		got, err := c.try(t.Context(), sandboxReadToken, "GET /items", "")
		require.ErrorIs(t, err, want.err, fault)
		if got != nil {
			assert.Equal(t, want.status, got.status, fault)
			assert.Contains(t, got.body, want.text, fault)
			isJSON := fault != faultBadGateway && fault != faultTruncated
			assert.Equal(t, isJSON, json.Valid([]byte(got.body)), fault)
			assert.Equal(t, fault == faultBadGateway, got.header.Get("Content-Type") == "text/html", fault)
		}
		if want.rate != nil {
			got.requireRate(want.rate...)
		}
		assert.Equal(t, 200, c.do("GET /items", "").status, "after %s", fault)
	}
}

// A watchedContext tells when someone begins to wait for its end.
type watchedContext struct {
	context.Context
	waited func()
}

func (c watchedContext) Done() <-chan struct{} { c.waited(); return c.Context.Done() }

func TestSandboxIsSlow(t *testing.T) {
	t.Parallel()
	for want, end := range map[error]func(*sandbox, func()){
		context.Canceled: func(_ *sandbox, giveUp func()) { giveUp() },
		io.EOF:           func(s *sandbox, _ func()) { s.setFault(faultNone) },
	} {
		c := newSandboxClient(t, 1)
		ctx, giveUp := context.WithCancel(t.Context())
		left := make(chan any, 1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { left <- recover(); panic(http.ErrAbortHandler) }()
			c.ServeHTTP(w, r.WithContext(watchedContext{r.Context(), sync.OnceFunc(func() { end(c.sandbox, giveUp) })}))
		}))
		c.url = server.URL + "/api/1"
		c.failNext(1, faultSlow)
		_, err := c.try(ctx, sandboxReadToken, "GET /items", "")
		assert.ErrorIs(t, err, want)
		assert.Equal(t, http.ErrAbortHandler, <-left, "without an answer")
		giveUp()
		server.Close()
	}
}

func TestSandboxSeed(t *testing.T) {
	t.Parallel()
	c := newSandboxClient(t, 100)
	list, occurrences := c.get("/items"), c.get("/instances?limit=5000")
	for name, want := range map[string][]string{
		"status": {"active", "archived", "muted", "resolved"}, "level": slices.Sorted(slices.Values(levels)),
		"environment": {"development", "production", "qa-préprod", "staging"}, "assigned_user_id": {"5325", "5326", "null"},
		"resolved_in_version": {"4.1.7", "null"}, "unique_occurrences": {"1", "2", "3", "null"},
	} {
		assert.Equal(t, want, unique(list.values("items", name)), name)
	}
	titles := strings.Join(list.values("items", "title"), "|")
	for _, part := range []string{"„Müller & Söhne“", "注文を", "فشل الدفع", "🔥", `"<!DOCTYPE "`, `{"error":"quota"`, "heap space\n|", "\nDETAIL", "<script>alert('x')", "\t", strings.Repeat("very long ", 25)} {
		assert.Contains(t, titles, part)
	}
	assert.True(t, slices.ContainsFunc(occurrences.values("instances", "id"), func(id string) bool {
		n, err := strconv.ParseInt(id, 10, 64)
		require.NoError(t, err)
		return int64(float64(n)) != n && c.get("/instance/"+id).at("id") == id
	}), "ids that a float64 does not hold")
	for _, kind := range bodyKinds {
		assert.Contains(t, occurrences.body, `"body":{"`+kind+`":`)
	}
	assert.Equal(t, `"`+sandboxPostToken+`"`, occurrences.at("instances", "0", "data", "metadata", "access_token"))
	assert.Equal(t, `{"big":123456789012345678901234567890,"small":1e3,"price":1.10}`, occurrences.at("instances", "0", "data", "custom"))
}

func marshalJSON(t *testing.T, value any) []byte {
	text, err := json.Marshal(value)
	require.NoError(t, err)
	return text
}

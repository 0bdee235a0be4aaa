package sandbox_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/sandbox"
)

// A client talks to a sandbox without retries or redirects.
type client struct {
	t *testing.T
	*sandbox.Control
	http *http.Client
	url  string
}

// newClient serves a sandbox with n items. The functions change its settings.
func newClient(t *testing.T, n int, change ...func(*sandbox.Settings)) *client {
	t.Helper()
	s := sandbox.New(n).Control()
	for _, c := range change {
		s.Set(c)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return &client{t, s, &http.Client{
		// On a reused connection, Go retries a request that got no answer.
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, server.URL + "/api/1"}
}

// try sends "METHOD /path" with a token and returns the response, even if it was cut off.
func (c *client) try(ctx context.Context, token, request, body string) (*response, error) {
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
	return &response{c.t, res.StatusCode, res.Header, string(text)}, err
}

func (c *client) as(token, request, body string) *response {
	c.t.Helper()
	got, err := c.try(c.t.Context(), token, request, body)
	require.NoError(c.t, err)
	return got
}

// do sends a request with the token that its method needs.
func (c *client) do(request, body string) *response {
	c.t.Helper()
	token := map[string]string{"GET ": sandbox.ReadToken, "POST": sandbox.PostToken}[request[:4]]
	return c.as(cmp.Or(token, sandbox.WriteToken), request, body)
}

// get returns the result of a GET request, which must succeed.
func (c *client) get(path string) *response {
	c.t.Helper()
	got := c.do("GET "+path, "")
	require.Equal(c.t, 200, got.status, "%s: %s", path, got.body)
	require.Equal(c.t, "0", got.at("err"))
	got.body = got.at("result")
	return got
}

// A response is an answer of the sandbox.
type response struct {
	t      *testing.T
	status int
	header http.Header
	body   string
}

// at returns the JSON text of a member of the body, or "". A number is an index into an array.
func (r *response) at(path ...string) string {
	r.t.Helper()
	value := json.RawMessage(r.body)
	for _, name := range path {
		var object map[string]json.RawMessage
		var array []json.RawMessage
		if json.Unmarshal(value, &array) == nil {
			i, err := strconv.Atoi(name)
			require.NoError(r.t, err)
			value = array[i]
			continue
		}
		require.NoError(r.t, json.Unmarshal(value, &object), "%s", value)
		if value = object[name]; value == nil {
			return ""
		}
	}
	var text bytes.Buffer
	require.NoError(r.t, json.Compact(&text, value))
	return text.String()
}

// list returns the elements of the array with the name.
func (r *response) list(name string) (elements []json.RawMessage) {
	r.t.Helper()
	require.NoError(r.t, json.Unmarshal([]byte(r.at(name)), &elements))
	return elements
}

// values returns a member of each element of a list: a string as its text, anything else as JSON.
func (r *response) values(list, name string) []string {
	r.t.Helper()
	values := []string{}
	for _, element := range r.list(list) {
		values = append(values, unquote((&response{t: r.t, body: string(element)}).at(name)))
	}
	return values
}

// unquote returns the text of a JSON string, and any other JSON as it is.
func unquote(text string) string {
	_ = json.Unmarshal([]byte(text), &text) // fails for what is not a string
	return text
}

// post creates an occurrence and returns its uuid.
func (c *client) post(message string, more fields) string {
	c.t.Helper()
	got := c.do("POST /item/", payload(c.t, message, more))
	require.Equal(c.t, 200, got.status, got.body)
	require.Equal(c.t, "null", got.at("result", "id"))
	return unquote(got.at("result", "uuid"))
}

type fields map[string]any

// payload returns a payload with a message and further fields of data.
func payload(t *testing.T, message string, more fields) string {
	data := fields{"environment": "production", "body": fields{"message": fields{"body": message}}}
	maps.Copy(data, more)
	text, err := json.Marshal(fields{"data": data})
	require.NoError(t, err)
	return string(text)
}

// requireError checks that a response is a failure in Rollbar's words.
func (r *response) requireError(status int, message string) {
	r.t.Helper()
	require.Equal(r.t, status, r.status, r.body)
	require.Equal(r.t, "1", r.at("err"))
	require.Equal(r.t, message, unquote(r.at("message")))
}

// testUUID returns the nth UUID for tests.
func testUUID(n int) string { return fmt.Sprintf("0b9e1d54-0000-4000-8000-%012d", n) }

func unique(values []string) []string { return slices.Compact(slices.Sorted(slices.Values(values))) }

func TestScopes(t *testing.T) {
	t.Parallel()
	c := newClient(t, 1)
	update, remove, post := fmt.Sprintf("PATCH /item/%d", c.ItemIDs()[0]), "DELETE /instance/1", "POST /item/"
	server, browser := payload(t, "a", nil), payload(t, "a", fields{"platform": "browser"})
	for _, tt := range []struct{ token, request, body, has, needs string }{
		{sandbox.ReadToken, "GET /items", "", "", ""},
		{sandbox.Token, "GET /items", "", "", ""},
		{"", "GET /items?access_token=" + sandbox.ReadToken, "", "", ""},
		{sandbox.WriteToken, "GET /items", "", "write", "read"},
		{sandbox.PostToken, "GET /instances", "", "post_server_item", "read"},
		{sandbox.WriteToken, update, "{}", "", ""},
		{sandbox.ReadToken, update, "{}", "read", "write"},
		{sandbox.ReadToken, remove, "", "read", "write"},
		{sandbox.PostToken, post, server, "", ""},
		{sandbox.ClientPostToken, post, browser, "", ""},
		{sandbox.ClientPostToken, post, server, "post_client_item", "post_server_item"},
		{sandbox.PostToken, post, browser, "post_server_item", "post_client_item"},
		{sandbox.ReadToken, post, server, "read", "post_server_item"},
	} {
		got := c.as(tt.token, tt.request, tt.body)
		if tt.needs == "" {
			assert.Equal(t, 200, got.status, "%s with %s", tt.request, tt.token)
			continue
		}
		got.requireError(403, fmt.Sprintf("insufficient privileges: %s scope is required but the access token only "+
			"has %s.", tt.needs, tt.has))
	}
	for _, request := range []string{"GET /items", update, remove} {
		c.as("nobody", request, "{}").requireError(403, "invalid access token")
		c.as("", request, "{}").requireError(403, "invalid access token")
	}
	c.as("nobody", post, server).requireError(403, "access token not found: nobody")
	c.as("", post, server).requireError(422, "Invalid format. access_token is missing and it is required.")
}

func TestForm(t *testing.T) {
	t.Parallel()
	c := newClient(t, 3)
	for _, path := range []string{"/items", "/items/", "/item/999", "/instances/?limit=1&q=ignored"} {
		got := c.do("GET "+path, "")
		assert.Equal(t, "application/json; charset=utf-8", got.header.Get("Content-Type"))
		assert.Regexp(t, `(?s)^{\n  "err": .*[^\n]\n}$`, got.body)
	}
	unknown := c.do("DELETE /item/1705000001", "")
	unknown.requireError(404, "not found")
	assert.Empty(t, unknown.header.Values("X-Rate-Limit-Remaining"))
}

func TestPages(t *testing.T) {
	t.Parallel()
	c := newClient(t, 250, func(s *sandbox.Settings) { s.LargeProject = 250 })
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
	c.Set(func(s *sandbox.Settings) { s.LargeProject-- })
	assert.Equal(t, "null", c.get("/items").at("total_count"), "total_count of a large project")

	all := c.get("/instances?limit=5000").values("instances", "id")
	assert.Equal(t, all[:20], c.get("/instances").values("instances", "id"))
	assert.Equal(t, all[20:40], c.get("/instances?page=2").values("instances", "id"))
	assert.Equal(t, "[]", c.get("/instances?page=99").at("instances"))
	assert.Equal(t, "[]", c.get("/instances?page=9223372036854775807").at("instances"))
	of := fmt.Sprintf("/item/%d/instances", c.ItemIDs()[4])
	one := c.get(of).values("instances", "id")
	require.Len(t, one, 5)
	assert.Equal(t, one[1:], c.get(of+"?page=2&lastId="+one[0]).values("instances", "id"),
		"the cursor overrides the page")
	assert.Equal(t, one[3:4], c.get(of+"?limit=1&last_id="+one[2]).values("instances", "id"))
	assert.Equal(t, one, c.get(of+"?lastId=None").values("instances", "id"))
}

func TestFilters(t *testing.T) {
	t.Parallel()
	c := newClient(t, 66)
	for name, values := range map[string][]string{
		"status":      {"active", "resolved", "muted", "archived"},
		"level":       {"debug", "info", "warning", "error", "critical"},
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
	assert.Equal(t, [][]string{{"active"}, {"error"}},
		[][]string{unique(both.values("items", "status")), unique(both.values("items", "level"))})
	assert.NotContains(t, both.values("items", "assigned_user_id"), "null")
	assert.Equal(t, []string{"5326"}, unique(c.get("/items?assigned_user=grace").values("items", "assigned_user_id")))
	hash := unquote(c.get("/item?counter=5").at("hash"))
	for query, want := range map[string][]string{
		"#4": {"4"}, "fingerprint:" + hash[:12]: {"5"}, `fingerprint:"` + hash + `"`: {"5"},
		`fingerprint:"` + hash[:12] + `"`:        {},
		"CHECKOUT timeouterror environment:prod": {"1", "12", "45"}, "checkout nothing": {}, "注文を処理できません #7": {"7"},
		"is:group": {"31"}, "is 注文": {},
	} {
		assert.Equal(t, want, c.get("/items?query="+url.QueryEscape(query)).values("items", "counter"), query)
	}
}

func TestCreatesOnce(t *testing.T) {
	t.Parallel()
	c := newClient(t, 0, func(s *sandbox.Settings) { s.Manual = true })
	uuid := testUUID(1)
	c.FailOnly("POST /item", 1, sandbox.Dropped)
	assert.Equal(t, "[]", c.get("/items").at("items"), "other requests do not fail")
	_, err := c.try(t.Context(), sandbox.PostToken, "POST /item/", payload(t, "the first wins", fields{"uuid": uuid}))
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, uuid, c.post("the second", fields{"uuid": uuid}))
	c.do("GET /item?uuid="+uuid, "").requireError(404, "UUID did not match any occurrence")
	c.Process()
	c.post("the third", fields{"uuid": uuid})
	c.Process()
	assert.Equal(t, `"the first wins"`, c.get("/item?uuid="+uuid).at("title"))
	assert.Equal(t, []string{"1"}, c.get("/items").values("items", "total_occurrences"))
	assert.Len(t, c.get("/instances").list("instances"), 1)
	assert.Equal(t, 1, c.OccurrencesOf(uuid))
	assert.Equal(t, 3, c.PostsOf(uuid))
	assert.Regexp(t, `^[0-9a-f]{32}$`, c.post("without a uuid", nil))

	assert.Equal(t, 400, c.do("POST /item", `{"data":`).status)
	assert.Equal(t, 413, c.do("POST /item", payload(t, strings.Repeat("x", 1<<20), nil)).status)
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	c := newClient(t, 0)
	oneKind := "data.body must have either a 'trace', 'trace_chain', 'message' or 'crash_report' property, (but not " +
		"more than one)."
	missing := "data.body must not be undefined. Instead, it should be an object with a 'message', 'trace', " +
		"'trace_chain', or 'crash_report' key."
	for data, want := range map[string]string{
		`null`:                                   missing,
		`{"environment":"production"}`:           missing,
		`{"environment":"production","body":{}}`: oneKind,
		`{"environment":"production","body":{"message":{"body":"a"},"trace":{}}}`: oneKind,
		`{"environment":"production","body":{"trace":{}}}`: "data.body.trace.frames is missing and it is required. " +
			"data.body.trace.exception.class is missing and it is required.",
		`{"environment":"production","body":{"trace_chain":[]}}`: "data.body.trace_chain should be array.",
		`{"environment":"production","body":{"trace_chain":[{"frames":[]}]}}`: "data.body.trace_chain[0]." +
			"exception.class is missing and it is required.",
		`{"body":{"message":{"body":"a"}}}`: "data.environment is missing and it is required.",
		`{"environment":"","body":{"message":{"body":"a"},"telemetry":{}}}`: "data.environment is not valid. " +
			"data.body.telemetry should be array.",
		`{"environment":"a","level":10,"uuid":"✓","body":{"crash_report":{"raw":1}}}`: "data.level should be string. " +
			"data.uuid is not valid. data.body.crash_report.raw should be string.",
		`{"environment":"a","person":{"id":null},"body":{"message":{"body":""}}}`: "data.person.id should be string.",
	} {
		c.do("POST /item", `{"data":`+data+`}`).requireError(422, "Invalid format. "+want)
	}
	assert.Empty(t, c.ItemIDs())
	c.post("with null and numbers", fields{"title": nil, "person": fields{"id": 17}, "timestamp": 1.5,
		"unknown": []int{}})
}

func TestBulk(t *testing.T) {
	t.Parallel()
	c := newClient(t, 0)
	c.Bulk(250)
	var ids []string
	for page, size := range []int{100, 100, 50, 0} {
		got := c.get(fmt.Sprintf("/items?page=%d", page+1))
		assert.Len(t, got.list("items"), size)
		assert.Equal(t, []string{strconv.Itoa(page + 1), "250"}, []string{got.at("page"), got.at("total_count")})
		ids = append(ids, got.values("items", "id")...)
	}
	assert.Equal(t, ids[:3], []string{"1710000001", "1710000002", "1710000003"})
	assert.Len(t, unique(ids), 250)
	assert.Equal(t, 200, c.do("POST /item", "unread").status)
	var names [2][]string // a bulk item has the same form as any other
	for i, got := range []*response{newClient(t, 1).do("GET /items", ""), c.do("GET /items?limit=1", "")} {
		names[i] = regexp.MustCompile(`(?m)^ +("\w+": |[\]}])`).FindAllString(got.body, -1)
	}
	assert.Equal(t, names[0], names[1])
}

func TestGroups(t *testing.T) {
	t.Parallel()
	c := newClient(t, 0)
	long := strings.Repeat("f", 41)
	for i, tt := range []struct {
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
		{"refund failed", fields{"fingerprint": fmt.Sprintf("%x", sha1.Sum([]byte(long)))}, "5", "2"},
		{"order 18 failed", nil, "1", "3"},
	} {
		more := fields{"uuid": testUUID(i)}
		maps.Copy(more, tt.more)
		item := c.get("/item?uuid=" + c.post(tt.message, more))
		assert.Equal(t, []string{tt.counter, tt.total}, []string{item.at("counter"), item.at("total_occurrences")}, tt)
	}
	item := c.get("/item?counter=1")
	assert.Equal(t, `"warning"`, item.at("level"), "of the first occurrence")
	ids := c.get("/item/"+item.at("id")+"/instances").values("instances", "id")
	assert.Equal(t, []string{slices.Min(ids), slices.Max(ids)},
		[]string{item.at("first_occurrence_id"), item.at("last_occurrence_id")})
}

func TestReactivates(t *testing.T) {
	t.Parallel()
	for patch, want := range map[string][]string{
		`{"status":"resolved"}`:                                {`"active"`, "1"},
		`{"status":"resolved","resolved_in_version":"2.9.0"}`:  {`"active"`, "1"},
		`{"status":"resolved","resolved_in_version":"2.10.0"}`: {`"resolved"`, "3"},
		`{"status":"muted"}`:                                   {`"muted"`, "3"},
	} {
		c := newClient(t, 0)
		c.post("again", nil)
		c.post("again", nil)
		path := fmt.Sprintf("/item/%d", c.ItemIDs()[0])
		require.Equal(t, 200, c.do("PATCH "+path, patch).status)
		c.post("again", fields{"code_version": "2.9.0"})
		got := c.get(path)
		assert.Equal(t, want, []string{got.at("status"), got.at("total_occurrences")}, patch)
		assert.Equal(t, want[1] == "1", got.at("activating_occurrence_id") == got.at("last_occurrence_id"), patch)
	}
}

func TestFindsItems(t *testing.T) {
	t.Parallel()
	c := newClient(t, 60)
	path := fmt.Sprintf("/item/%d", c.ItemIDs()[2])
	item, list := c.get(path), c.get("/items")
	assert.Equal(t, item.body, c.get("/item?counter=3").body)
	assert.Equal(t, item.body, c.get("/item/?uuid="+c.UUID(2, 1)).body)
	assert.True(t, item.at("snooze_status") != "" && list.at("items", "0", "snooze_status") == "",
		"only in single answers")
	assert.True(t, item.at("title_lock") == "" && list.at("items", "0", "title_lock") != "", "only in lists")

	for _, path := range []string{"/item/999", "/item?counter=999"} {
		c.do("GET "+path, "").requireError(404, "Item not found in this project.")
	}
	c.do("GET /item?uuid=17", "").requireError(400, "Invalid UUID format")
	c.do("GET /item?uuid="+testUUID(1), "").requireError(404, "UUID did not match any occurrence")

	group, merged := c.get("/item?counter=31"), c.get("/item?counter=32")
	assert.Equal(t, "2", group.at("group_status"))
	assert.Equal(t, "[]", c.get("/item/"+group.at("id")+"/instances").at("instances"), "of a group")
	assert.Equal(t, group.at("id"), merged.at("group_item_id"))
	assert.NotContains(t, list.values("items", "id"), merged.at("id"))
}

func TestPatches(t *testing.T) {
	t.Parallel()
	c := newClient(t, 2)
	path := fmt.Sprintf("/item/%d", c.ItemIDs()[1])
	for _, sent := range []string{
		`{"status":"resolved","resolved_in_version":"4.2.0"}`,
		`{"title":"größer \"<neu>\"","level":"critical","assigned_user_id":null,"assigned_team_id":9007199254740993}`,
		`{"snooze_enabled":true,"snooze_expiration_in_seconds":3600}`,
	} {
		assert.JSONEq(t, sent, c.do("PATCH "+path, sent).at("result"), "what was sent, and no more")
	}
	one, list := c.get(path), c.get("/items?status=resolved")
	assert.NotEqual(t, "null", one.at("last_resolved_timestamp"))
	assert.Equal(t, `"active"`, one.at("snooze_status"))
	for name, want := range map[string]string{
		"resolved_in_version": `"4.2.0"`, "title": `"größer \"<neu>\""`, "title_lock": "1", "level": `"critical"`,
		"level_lock": "1", "assigned_user_id": "null", "assigned_team_id": "9007199254740993",
	} {
		assert.Equal(t, want, list.at("items", "0", name), name)
	}
	for _, bad := range []string{`{"status":"gone"}`, `{"title":""}`, `{"level":"loud","status":"muted"}`,
		`{"assigned_user_id":"ada"}`} {
		assert.Equal(t, 422, c.do("PATCH "+path, bad).status, bad)
	}
	assert.Equal(t, one.body, c.get(path).body, "a refused change changes nothing")
	c.do("PATCH /item/999", `{"status":"muted"}`).requireError(400, "Item not found in this project.")
}

func TestDeletesLater(t *testing.T) {
	t.Parallel()
	c := newClient(t, 5, func(s *sandbox.Settings) { s.Manual = true })
	path := fmt.Sprintf("/item/%d", c.ItemIDs()[4])
	before, id := c.get(path), c.get(path+"/instances").at("instances", "0", "id")
	got := c.do("DELETE /instance/"+id, "")
	assert.JSONEq(t, `{"err":0,"message":"The instance has been deleted"}`, got.body)
	assert.Equal(t, id, c.get("/instance/"+id).at("id"), "for a while")
	c.Process()
	c.do("GET /instance/"+id, "").requireError(404, "Not found")
	c.do("DELETE /instance/"+id, "").requireError(404, "Not found")
	assert.Len(t, c.get(path+"/instances").list("instances"), 4)
	assert.Equal(t, before.body, c.get(path).body, "the counts stay")
}

// requireRate checks the headers of the rate limit: limit, remaining, seconds, reset.
func (r *response) requireRate(want ...int) {
	r.t.Helper()
	for i, name := range []string{"Limit", "Remaining", "Remaining-Seconds", "Reset"} {
		require.Equal(r.t, strconv.Itoa(want[i]), r.header.Get("X-Rate-Limit-"+name), name)
	}
	require.Empty(r.t, r.header.Values("Retry-After"))
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	c := newClient(t, 1, func(s *sandbox.Settings) { s.RateLimit = 3 })
	at := func(seconds int64) {
		c.Set(func(s *sandbox.Settings) { s.Now = func() time.Time { return time.Unix(seconds, 0) } })
	}
	at(1000)
	c.do("GET /items", "").requireRate(3, 2, 60, 1060)
	at(1020)
	c.do("GET /item?uuid=17", "").requireRate(3, 1, 40, 1060)
	c.do("GET /item/999", "").requireRate(3, 0, 40, 1060)
	at(1059)
	over := c.do("GET /items", "")
	over.requireError(429, "Over rate limit. Access token: "+sandbox.ReadToken)
	over.requireRate(3, 0, 1, 1060)
	c.do("PATCH /item/999", "{}").requireRate(3, 2, 60, 1119) // another token has its own limit
	at(1060)
	c.do("GET /items", "").requireRate(3, 2, 60, 1120)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	over := "Over rate limit. Access token: " + sandbox.ReadToken
	for fault, want := range map[sandbox.Fault]struct {
		err    error
		status int
		text   string
		rate   []int
	}{
		sandbox.Down:        {io.EOF, 0, "", nil},
		sandbox.Error:       {nil, 500, "internal error", []int{50_000, 49_999, 60, 1060}},
		sandbox.BadGateway:  {nil, 502, "<h1>502 Bad Gateway</h1>", nil},
		sandbox.Truncated:   {io.ErrUnexpectedEOF, 200, `"err": 0`, []int{50_000, 49_999, 60, 1060}},
		sandbox.LimitedNear: {nil, 429, over, []int{50_000, 0, 1, 1001}},
		sandbox.LimitedFar:  {nil, 429, over, []int{50_000, 0, 64_800, 65_800}},
		sandbox.Deactivated: {nil, 429, "This account has been deactivated.", []int{50_000, 49_999, 60, 1060}},
		sandbox.Forbidden:   {nil, 403, "invalid access token", nil},
	} {
		c := newClient(t, 3, func(s *sandbox.Settings) { s.Now = func() time.Time { return time.Unix(1000, 0) } })
		c.FailNext(1, fault)
		got, err := c.try(t.Context(), sandbox.ReadToken, "GET /items", "")
		require.ErrorIs(t, err, want.err, fault)
		if got != nil {
			assert.Equal(t, want.status, got.status, fault)
			assert.Contains(t, got.body, want.text, fault)
			isJSON := fault != sandbox.BadGateway && fault != sandbox.Truncated
			assert.Equal(t, isJSON, json.Valid([]byte(got.body)), fault)
			assert.Equal(t, fault == sandbox.BadGateway, got.header.Get("Content-Type") == "text/html", fault)
		}
		if want.rate != nil {
			got.requireRate(want.rate...)
		}
		assert.Equal(t, 200, c.do("GET /items", "").status, "after %s", fault)
	}
}

// A watchedContext calls waited when someone begins to wait for its end.
type watchedContext struct {
	context.Context
	waited func()
}

func (c watchedContext) Done() <-chan struct{} { c.waited(); return c.Context.Done() }

func TestIsSlow(t *testing.T) {
	t.Parallel()
	for want, end := range map[error]func(*sandbox.Control, func()){
		context.Canceled: func(_ *sandbox.Control, giveUp func()) { giveUp() },
		io.EOF:           func(s *sandbox.Control, _ func()) { s.SetFault(sandbox.None) },
	} {
		c := newClient(t, 1)
		ctx, giveUp := context.WithCancel(t.Context())
		left := make(chan any, 1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { left <- recover(); panic(http.ErrAbortHandler) }()
			c.ServeHTTP(w, r.WithContext(watchedContext{r.Context(), sync.OnceFunc(func() { end(c.Control, giveUp) })}))
		}))
		c.url = server.URL + "/api/1"
		c.FailNext(1, sandbox.Slow)
		_, err := c.try(ctx, sandbox.ReadToken, "GET /items", "")
		assert.ErrorIs(t, err, want)
		assert.Equal(t, http.ErrAbortHandler, <-left, "without an answer")
		giveUp()
		server.Close()
	}
}

func TestSeed(t *testing.T) {
	t.Parallel()
	c := newClient(t, 100)
	list, occurrences := c.get("/items"), c.get("/instances?limit=5000")
	for name, want := range map[string][]string{
		"status":              {"active", "archived", "muted", "resolved"},
		"level":               {"critical", "debug", "error", "info", "warning"},
		"environment":         {"development", "production", "qa-préprod", "staging"},
		"assigned_user_id":    {"5325", "5326", "null"},
		"resolved_in_version": {"4.1.7", "null"}, "unique_occurrences": {"1", "2", "3", "null"},
	} {
		assert.Equal(t, want, unique(list.values("items", name)), name)
	}
	titles := strings.Join(list.values("items", "title"), "|")
	for _, part := range []string{"„Müller & Söhne“", "注文を", "فشل الدفع", "🔥", `"<!DOCTYPE "`, `{"error":"quota"`,
		"exists.\n|", "\nDETAIL", "<script>alert('x')", "\t", strings.Repeat("very long ", 25)} {
		assert.Contains(t, titles, part)
	}
	assert.True(t, slices.ContainsFunc(occurrences.values("instances", "id"), func(id string) bool {
		n, err := strconv.ParseInt(id, 10, 64)
		require.NoError(t, err)
		return int64(float64(n)) != n && c.get("/instance/"+id).at("id") == id
	}), "ids that a float64 cannot hold")
	for _, kind := range []string{"trace", "trace_chain", "message", "crash_report"} {
		assert.Contains(t, occurrences.body, `"body":{"`+kind+`":`)
	}
	assert.Equal(t, `"`+sandbox.PostToken+`"`, occurrences.at("instances", "0", "data", "metadata", "access_token"))
	assert.Equal(t, `{"big":123456789012345678901234567890,"small":1e3,"price":1.10}`,
		occurrences.at("instances", "0", "data", "custom"))
}

// Ids are not reused: the next sandbox has the same invented items, but gives new items other ids.
func TestIDsOfAnotherStart(t *testing.T) {
	t.Parallel()
	var invented, created [][]int64
	for range 2 {
		time.Sleep(2 * time.Millisecond) // a start takes longer
		s := sandbox.New(3).WithNewIDs().Control()
		invented = append(invented, s.ItemIDs())
		body := strings.NewReader(`{"data":{"environment":"e","body":{"message":{"body":"x"}}}}`)
		r := httptest.NewRequest("POST", "/api/1/item/", body)
		r.Header.Set("X-Rollbar-Access-Token", sandbox.PostToken)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		require.Equal(t, 200, w.Code, w.Body)
		isInvented := func(id int64) bool { return slices.Contains(invented[0], id) }
		created = append(created, slices.DeleteFunc(s.ItemIDs(), isInvented))
	}
	assert.Equal(t, invented[0], invented[1])
	assert.Len(t, created[0], 1)
	assert.Len(t, created[1], 1)
	assert.NotEqual(t, created[0], created[1])
}

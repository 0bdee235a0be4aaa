package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/sandbox"
)

// These tests are about the seams between two promises, each of which has a test of its own elsewhere.

// The largest page has a link back, as ndjson, too.
func TestWayBackOfTheLargestPage(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	addReports(t, f.app.store, 2500)
	var pages []string
	for path := range f.walk("/reports?limit=1000", "next") {
		pages = append(pages, path)
	}
	require.Len(t, pages, 3)
	back := 0
	for range f.walk(pages[2], "prev") {
		back++
	}
	assert.Equal(t, 3, back)
	cursor := base64.RawURLEncoding.EncodeToString([]byte("0.1"))
	lines := f.do("GET", "/reports?cursor="+cursor, "", "Accept", ndjson)
	assert.Equal(t, 1000, strings.Count(lines.body, "\n"))
	assert.NotEmpty(t, lines.link("prev"), "there are newer ones")
	assert.NotEmpty(t, lines.link("next"))
}

// While the standby does not answer, the primary does, and Rollbar is not needed.
func TestSilentStandby(t *testing.T) {
	t.Parallel()
	silent := datadogtest.ListenTCP(t, "127.0.0.1:0") // and never accepts a connection
	defer silent.Close()
	f := newFixture(t, 1, func(c *Config) {
		c.DatabaseReadURL = "postgres://u@" + silent.Addr().String() + "/d?sslmode=disable"
	})
	item := f.sandbox.ItemIDs()[0]
	require.Equal(t, 200, f.get(fmt.Sprintf("/items/%d/occurrences", item)).status)
	require.Equal(t, 200, f.get(fmt.Sprintf("/items/%d", item)).status)
	id := f.rows(`SELECT id::text FROM occurrences`)[0]
	f.sandbox.SetFault(sandbox.Forbidden)
	assert.Equal(t, 200, f.get("/occurrences/"+id).status)
	assert.Equal(t, 200, f.get(fmt.Sprintf("/items/%d?source=archive", item)).status)
	var readers sync.WaitGroup
	for range 3 * cap(f.app.store.readers) {
		readers.Go(func() { assert.Equal(t, 200, f.get("/reports").status, "however many ask at the same time") })
	}
	readers.Wait()
}

// A sync needs PostgreSQL even if Rollbar has nothing, and is refused before Rollbar is asked.
func TestSyncOfNothingWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL = "postgres://u@127.0.0.1:1/d?sslmode=disable" })
	for _, path := range []string{"/items/sync", "/occurrences/sync"} {
		got := f.do("POST", path, "").requireProblem(503, "unavailable")
		assert.Regexp(t, "^PostgreSQL at DATABASE_URL: ", got)
	}
	assert.Empty(t, f.sandbox.Requests())
}

// The page of an item claims nothing about what it cannot read.
func TestItemPageWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) { c.DatabaseURL = "postgres://u@127.0.0.1:1/d?sslmode=disable" })
	page := f.browse(fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0]))
	page.requirePage(200)
	assert.Contains(t, page.body, "PostgreSQL at DATABASE_URL")
	assert.NotContains(t, page.body, "No state of this item is stored")
}

// An update stores the item that it reads, and of Rollbar's echo only the fields that were sent.
func TestUpdateStoresWhatItReads(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	id := f.sandbox.ItemIDs()[0]
	next := f.app.rollbar.client.Transport
	f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		res, err := next.RoundTrip(r)
		if r.Method == http.MethodPatch && err == nil {
			res.Body = io.NopCloser(strings.NewReader(`{"err":0,"result":{"title":"after","level_lock":1,"foo":1}}`))
			res.ContentLength = -1
		}
		return res, err
	})
	f.sandbox.SetItem(id, "title", "before")
	require.Equal(t, 200, f.do("PATCH", "/items/1?by=counter", `{"title":"after"}`).status)
	assert.Equal(t, []string{"superseded before", "current after"}, f.history(id, "title"))
	current := f.rows(`SELECT data::text FROM reports WHERE state = 'current'`)
	assert.NotContains(t, current[0], "foo")
}

// A refused update counts as one of a missing item only if Rollbar says so.
func TestRefusedUpdate(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]int{"Item not found in this project.": 404, "Invalid assigned_user_id": 400} {
		f := newFixture(t, 1)
		f.answerAll("PATCH", 400, fmt.Sprintf(`{"err":1,"message":%q}`, message))
		path := fmt.Sprintf("/items/%d", f.sandbox.ItemIDs()[0])
		assert.Equal(t, want, f.do("PATCH", path, `{"assigned_user_id":5}`).status, message)
	}
}

// Short pages before this one do not make it the last.
func TestLastPageBehindShortOnes(t *testing.T) {
	t.Parallel()
	in := itemsListInput{}
	page := func(n int) *ItemPage { return &ItemPage{Items: make([]Item, n), Total: []byte("250")} }
	assert.False(t, in.isLast(page(100), 3), "pages of 100, 37 and 100 came before one of 13")
	assert.True(t, in.isLast(page(50), 3))
	assert.True(t, in.isLast(page(250), 1))
	assert.True(t, in.isLast(page(0), 4))
	in.Limit = Opt[int64]{Value: 125, Set: true}
	assert.True(t, in.isLast(page(125), 2))
	in.Limit.Value = 200
	assert.False(t, in.isLast(page(50), 2), "Rollbar may have given fewer than 200 before")
}

// Reading an occurrence tells which item a created one became, even long after the lookups were given up.
func TestArchiveNamesItems(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	require.Equal(t, 201, f.create(uuid).status)
	f.eventually(uuid, "delivered")
	f.exec(`UPDATE reports SET next_lookup = NULL, lookups = 9`)
	id := f.sandbox.ItemIDs()[0]
	require.Equal(t, 200, f.get(fmt.Sprintf("/items/%d/occurrences", id)).status)
	assert.Equal(t, []string{fmt.Sprint(id)}, f.rows(`SELECT item_id::text FROM reports WHERE uuid IS NOT NULL`))
}

// reports.deliver does not wait for minutes if Rollbar's limit leaves the queue only a few calls.
func TestReportsDeliverWithFewCallsLeft(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.Set(func(s *sandbox.Settings) { s.RateLimit = 12 })
	f.enqueue(6)
	require.Equal(t, 201, f.create(newUUID()).status, "now the limit of the post token is known")
	began := time.Now()
	got := f.do("POST", "/reports/deliver", "")
	require.Equal(t, 200, got.status)
	assert.NotEqual(t, "0", got.at("queued"))
	assert.Less(t, time.Since(began), 15*time.Second)
}

// Rollbar's clock tells windows apart, however long its answers take.
func TestSlowAnswersAreOfTheSameWindow(t *testing.T) {
	t.Parallel()
	l := &rateLimit{}
	answer := func(remaining, seconds, reset string) {
		l.read(&http.Response{StatusCode: 200, Header: http.Header{"X-Rate-Limit-Limit": {"60"},
			"X-Rate-Limit-Remaining": {remaining}, "X-Rate-Limit-Remaining-Seconds": {seconds},
			"X-Rate-Limit-Reset": {reset}}})
	}
	answer("60", "30", "1800000030")
	l.delivered = 7
	answer("50", "33", "1800000030")
	assert.Equal(t, 7, l.delivered)
	answer("59", "30", "1800000060")
	assert.Zero(t, l.delivered)
}

func TestSettingsThatOnlySeemToHaveAValue(t *testing.T) {
	for _, value := range []string{"host=h dbname= password=hunter2 user=u", "host=h connect_timeout= password=hunter2",
		"HOST=h password=hunter2", "host=h Password=hunter2"} {
		got := runShell(t, "", "reports", "list", "-database-url", value)
		assert.Equal(t, 2, got.exit, value)
		assert.NotContains(t, got.err, "hunter2")
	}
	for _, value := range []string{"host=h password=a=b", "host = h password = 'a =b'"} {
		_, err := parseDatabase(value)
		assert.NoError(t, err, value)
	}
	for _, value := range []string{"http://h?", "http://h#", "http://h/?x=1"} {
		_, err := parseURL(value)
		assert.Error(t, err, value)
	}
	address, err := parseAddress("localhost:http")
	assert.Equal(t, "localhost:80", address)
	assert.NoError(t, err)
	_, err = parseAddress("localhost:bogus")
	assert.Error(t, err)
	t.Setenv("ROLLBAR_TOKEN", " \t")
	t.Setenv("ROLLBAR_TOKN", "x")
	config, err := loadConfig(nil, writeEnv(t, "ROLLBAR_TOKEN=of-the-file\nROLLBAR_TOKN=y\n"))
	require.NoError(t, err)
	assert.Equal(t, "of-the-file", config.token)
	assert.Len(t, config.misspelt, 1)
	for _, text := range []string{"2026-11-28T0:00:00Z", "2026-11-28T00:00:00,5Z", "2026-11-28T00:00:00+24:00"} {
		assert.Error(t, new(Moment).UnmarshalText([]byte(text)), text)
	}
}

// If the caller of a check gives up, the check is interrupted, not failed.
func TestInterruptedCheck(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := check(ctx, f.app, struct{}{})
	assert.True(t, isKind(failureOf(err), interrupted), err)
}

// The token of an SDK may be a field of its form, next to the payload.
func TestRelayTokenInAForm(t *testing.T) {
	t.Parallel()
	f := newRelay(t)
	form := url.Values{"payload": {sdkPayload(newUUID(), "")}, "access_token": {"sdk-token"}}
	f.do("POST", "/api/1/item/", form.Encode(), "Content-Type", formType).requireRelayed()
	form.Set("access_token", "another")
	assert.Equal(t, 403, f.do("POST", "/api/1/item/", form.Encode(), "Content-Type", formType).status)
}

// Pages offer only what their reader may do.
func TestPagesOfThoseWhoMayNot(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, func(c *Config) {
		c.apiTokens, c.apiReadTokens = []string{"all-of-it"}, []string{"reads-only"}
	})
	reader, writer := basicAuth("reads-only"), basicAuth("all-of-it")
	refused := f.submit("POST", "/items", url.Values{"message": {"x"}}, "Authorization", reader)
	refused.requirePage(403)
	assert.NotContains(t, refused.body, "<form")
	open := f.browse("/check")
	open.requirePage(200)
	assert.NotContains(t, open.body, "reports")
	assert.Equal(t, 404, f.submit("POST", "/", nil, "Authorization", reader).status)
	form := url.Values{"_method": {"DELETE"}, "by": {"id"}}
	twice := f.submit("POST", "/items/1?by=counter", form, "Authorization", writer)
	twice.requirePage(400)
	f.sandbox.SetItem(f.sandbox.ItemIDs()[0], "title", " ")
	assert.Contains(t, f.browse("/items", "Authorization", writer).body, ">–</a>")
}

// A table stays aligned however long it is.
func TestLongTable(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 250)
	lines := strings.Split(f.run("items", "list", "-all", "-o", "table").out, "\n")
	at := strings.Index(lines[0], "TITLE")
	for _, line := range lines[1 : len(lines)-1] {
		assert.Equal(t, byte(' '), line[at-1], line)
		assert.NotEqual(t, byte(' '), line[at], line)
	}
}

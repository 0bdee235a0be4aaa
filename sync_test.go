package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A sync that was interrupted goes on where it was, and the one after it begins anew.
func TestSyncGoesOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 450)
	f.sandbox.failOnly("GET /items/?page=3", -1, faultError)
	f.do("POST", "/items/sync", "").requireProblem(502, "unavailable")
	f.sandbox.setFault(faultNone)
	before := len(f.sandbox.requests())
	rest := f.do("POST", "/items/sync", "")
	require.Equal(t, 200, rest.status, rest.body)
	assert.Equal(t, "GET /items/?page=2", f.sandbox.requests()[before], "the last that is stored")
	last := len(f.sandbox.requests()) - 1
	assert.NotContains(t, f.sandbox.requests()[before:last], "GET /items/?page=1")
	assert.Equal(t, "GET /items/?page=1", f.sandbox.requests()[last], "a look at the beginning")
	total := len(f.rows(`SELECT DISTINCT item_id::text FROM reports`))

	again := f.do("POST", "/items/sync", "")
	assert.Equal(t, fmt.Sprint(total), again.at("items"), "from the beginning")
	assert.Equal(t, "0", again.at("changed"))
	assert.Empty(t, f.rows(`SELECT filter FROM syncs`))
}

// What has changed meanwhile on pages that were stored already is not missed, nor is a list that has
// become shorter.
func TestSyncGoesOnAfterChanges(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 450)
	f.do("POST", "/items/sync", "")
	f.sandbox.failOnly("GET /items/?page=4", -1, faultError)
	f.do("POST", "/items/sync", "").requireProblem(502, "unavailable")
	f.sandbox.setFault(faultNone)
	for _, id := range f.sandbox.itemIDs() {
		f.sandbox.setItem(id, "title", fmt.Sprint("changed ", id))
	}
	changed := f.do("POST", "/items/sync", "")
	assert.Equal(t, f.rows(`SELECT count(DISTINCT item_id)::text FROM reports`)[0], changed.at("changed"), changed.body)

	f.exec(`INSERT INTO syncs (filter, pages) VALUES ('', 40)`)
	assert.Equal(t, "5", f.do("POST", "/items/sync", "").at("pages"), "all, from the first")
}

// When a filter does not choose some items of the stored pages any more, others move up to these.
func TestSyncGoesOnAfterItemsMovedUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 800)
	for _, id := range f.sandbox.itemIDs() {
		f.sandbox.setItem(id, "status", "active")
	}
	stopAt := func(page string) {
		f.sandbox.failOnly("GET /items/?page="+page, -1, faultError)
		f.do("POST", "/items/sync?status=active", "").requireProblem(502, "unavailable")
		f.sandbox.setFault(faultNone)
	}
	stopAt("4")
	stored := f.rows(`SELECT item_id::text FROM reports ORDER BY id`)
	for _, id := range stored[len(stored)/3:] {
		f.sandbox.setItem(int64(atoi(id)), "status", "resolved")
	}
	stopAt("5") // who goes on from here must know that, too
	require.Equal(t, 200, f.do("POST", "/items/sync?status=active", "").status)
	assert.Equal(t, "0", f.do("POST", "/items/sync?status=active", "").at("changed"), "nothing was left out")
}

// What was noted of a sync goes with its end, however many pages there are.
func TestSyncEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 100*chunkPages+100)
	total := func() int { return atoi(f.get("/items?status=active&limit=1").at("total_count")) }
	for _, id := range f.sandbox.itemIDs() {
		f.sandbox.setItem(id, "status", "active")
	}
	for _, id := range f.sandbox.itemIDs() {
		if total() == 100*chunkPages {
			break
		}
		f.sandbox.setItem(id, "status", "muted")
	}
	for range 2 {
		assert.Equal(t, fmt.Sprint(chunkPages), f.do("POST", "/items/sync?status=active", "").at("pages"))
		assert.Empty(t, f.rows(`SELECT filter FROM syncs`))
	}
}

func TestSyncOfOldDoesNotGoOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 150)
	f.do("POST", "/items/sync", "")
	f.exec(`INSERT INTO syncs (filter, pages, at) SELECT '', 1, now() - interval '61 minutes'`)
	assert.Equal(t, "2", f.do("POST", "/items/sync", "").at("pages"))
}

// Pages come in order, a bounded number of them ahead and at the same time, and nobody fetches any
// more when the taker has had enough.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	var running, most, started atomic.Int64
	fetch := func(ctx context.Context, n int64) (int64, error) {
		started.Add(1)
		for now := running.Add(1); ; {
			if was := most.Load(); now <= was || most.CompareAndSwap(was, now) {
				break
			}
		}
		defer running.Add(-1)
		time.Sleep(time.Duration(n%3) * time.Millisecond)
		return n, nil
	}
	var got []int64
	for n, err := range readAhead(t.Context(), 5, 8, 3, fetch) {
		require.NoError(t, err)
		if got = append(got, n); len(got) == 20 {
			break
		}
	}
	for i, n := range got {
		assert.EqualValues(t, 5+i, n)
	}
	assert.LessOrEqual(t, most.Load(), int64(3))
	assert.LessOrEqual(t, started.Load(), int64(20+8))
	assert.Zero(t, running.Load())

	failed := errors.New("no luck")
	for n, err := range readAhead(t.Context(), 1, 4, 2, func(_ context.Context, n int64) (int64, error) {
		if n == 3 {
			return 0, failed
		}
		return n, nil
	}) {
		if err != nil {
			assert.ErrorIs(t, err, failed)
			continue
		}
		assert.Less(t, n, int64(3))
	}
}

// With little of the rate limit left, many calls spread over what is left of its window.
func TestPoliteWait(t *testing.T) {
	t.Parallel()
	headers := func(limit, left, seconds string) http.Header {
		return http.Header{"X-Rate-Limit-Limit": {limit}, "X-Rate-Limit-Remaining": {left}, "X-Rate-Limit-Remaining-Seconds": {seconds}}
	}
	for _, tt := range []struct {
		name   string
		header http.Header
		want   time.Duration
	}{
		{"nothing known", http.Header{}, 0},
		{"plenty", headers("5000", "4000", "30"), 0},
		{"little", headers("5000", "1000", "50"), 50 * time.Millisecond},
		{"nothing for long", headers("5000", "0", "66988"), time.Second},
		{"window ended", headers("5000", "0", "0"), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var a allowances
			a.read(scopeRead, tt.header)
			assert.InDelta(t, tt.want, a.politeWait(scopeRead), float64(2*time.Millisecond))
			assert.Zero(t, a.politeWait(scopeWrite), "another token's")
		})
	}
}

// The same reads in flight are one call and one storing; a change in between is seen by who comes
// after it.
func TestReadsShareCalls(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.sandbox.setFault(faultSlow)
	var readers sync.WaitGroup
	for range 6 {
		readers.Go(func() { assert.Equal(t, 200, f.get("/items").status) })
	}
	f.await("GET /items/?page=1")
	f.sandbox.setFault(faultNone)
	readers.Wait()
	assert.Less(t, len(f.sandbox.requests()), 6)
	assert.Len(t, f.rows(`SELECT id::text FROM reports`), 3)

	id := f.sandbox.itemIDs()[0]
	path := fmt.Sprintf("/items/%d", id)
	require.Equal(t, 200, f.do("PATCH", path, `{"title":"first"}`).status)
	f.sandbox.failOnly(fmt.Sprintf("GET /item/%d", id), 1, faultSlow)
	readers.Go(func() { f.get(path) })
	f.await(fmt.Sprintf("GET /item/%d", id))
	changed := f.do("PATCH", path, `{"title":"second"}`)
	assert.Equal(t, `"second"`, changed.at("title"))
	assert.Equal(t, `"second"`, f.get(path).at("title"))
	f.sandbox.setFault(faultNone)
	readers.Wait()
}

// A reader that goes away does not take the others' answer along.
func TestFlightOfOneWhoLeft(t *testing.T) {
	t.Parallel()
	var f flights[json.RawMessage]
	leader, leave := newContext(t)
	reading := make(chan struct{})
	go func() {
		_, _ = f.join(leader, "key", func() (json.RawMessage, error) {
			close(reading)
			<-leader.Done()
			return nil, leader.Err()
		})
	}()
	<-reading
	answer := make(chan json.RawMessage)
	go func() {
		got, err := f.join(t.Context(), "key", func() (json.RawMessage, error) { return json.RawMessage(`1`), nil })
		assert.NoError(t, err)
		answer <- got
	}()
	leave()
	assert.Equal(t, json.RawMessage(`1`), <-answer)
}

package main

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"app/internal/sandbox"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestThrottle(t *testing.T) {
	t.Parallel()
	headers := func(limit, left, seconds string) http.Header {
		return http.Header{"X-Rate-Limit-Limit": {limit}, "X-Rate-Limit-Remaining": {left},
			"X-Rate-Limit-Remaining-Seconds": {seconds}}
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
			limits := newRateLimits(map[scope]accessToken{scopeRead: {}, scopeWrite: {}})
			limits[scopeRead].read(&http.Response{Header: tt.header})
			assert.InDelta(t, tt.want, limits[scopeRead].throttle(), float64(2*time.Millisecond))
			assert.Zero(t, limits[scopeWrite].throttle(), "another token's")
		})
	}
}

// Identical reads share one call and are stored once; a read after a change does not share a call that began
// before it.
func TestReadsShareCalls(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.sandbox.SetFault(sandbox.Slow)
	var readers sync.WaitGroup
	for range 6 {
		readers.Go(func() { assert.Equal(t, 200, f.get("/items").status) })
	}
	f.await("GET /items/?page=1")
	f.sandbox.SetFault(sandbox.None)
	readers.Wait()
	assert.Less(t, len(f.sandbox.Requests()), 6)
	assert.Len(t, f.rows(`SELECT id::text FROM reports`), 3)

	id := f.sandbox.ItemIDs()[0]
	path := fmt.Sprintf("/items/%d", id)
	require.Equal(t, 200, f.do("PATCH", path, `{"title":"first"}`).status)
	f.sandbox.FailOnly(fmt.Sprintf("GET /item/%d", id), 1, sandbox.Slow)
	readers.Go(func() { f.get(path) })
	f.await(fmt.Sprintf("GET /item/%d", id))
	changed := f.do("PATCH", path, `{"title":"second"}`)
	assert.Equal(t, `"second"`, changed.at("title"))
	assert.Equal(t, `"second"`, f.get(path).at("title"))
	f.sandbox.SetFault(sandbox.None)
	readers.Wait()
}

// A request waits for retries only as long as its budget lasts, over all its calls.
func TestRetryBudget(t *testing.T) {
	t.Parallel()
	spent := retryBudget{stopwatch{took: retryLimit - time.Second}}
	assert.Equal(t, time.Second, spent.left())
	assert.False(t, spent.sleep(t.Context(), time.Second))
	assert.True(t, spent.sleep(t.Context(), time.Millisecond))
	assert.Less(t, spent.left(), time.Second)
}

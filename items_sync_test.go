package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"app/internal/sandbox"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A sync that was interrupted begins again, and leaves nothing out.
func TestSyncBeginsAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 450)
	f.sandbox.FailOnly("GET /items/?page=3", -1, sandbox.Error)
	f.do("POST", "/items/sync", "").requireProblem(502, "unavailable")
	assert.Equal(t, "200", f.rows(`SELECT count(*)::text FROM reports`)[0], "what it read before is stored")
	f.sandbox.SetFault(sandbox.None)
	for _, id := range f.sandbox.ItemIDs() {
		f.sandbox.SetItem(id, "title", fmt.Sprint("changed ", id))
	}
	again := f.do("POST", "/items/sync", "")
	require.Equal(t, 200, again.status, again.body)
	assert.Equal(t, f.rows(`SELECT count(DISTINCT item_id)::text FROM reports`)[0], again.at("changed"), again.body)
	assert.Equal(t, "5", again.at("pages"))
	assert.Equal(t, "0", f.do("POST", "/items/sync", "").at("changed"))
}

// Results come in order, a bounded number of them is fetched at the same time, and the fetching ends
// with the loop.
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
	for n, err := range readAhead(t.Context(), 5, 3, fetch) {
		require.NoError(t, err)
		if got = append(got, n); len(got) == 20 {
			break
		}
	}
	for i, n := range got {
		assert.EqualValues(t, 5+i, n)
	}
	assert.LessOrEqual(t, most.Load(), int64(3))
	assert.LessOrEqual(t, started.Load(), int64(20+3))
	assert.Zero(t, running.Load())

	failed := errors.New("no luck")
	for n, err := range readAhead(t.Context(), 1, 2, func(_ context.Context, n int64) (int64, error) {
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

package main

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A gate is what a batcher runs: each batch waits until it is let through.
type gate struct {
	begun   chan []int
	through chan error
}

func newGate() (*gate, *batcher[int, string]) {
	g := &gate{make(chan []int), make(chan error)}
	return g, &batcher[int, string]{
		key: func(n int) string { return strconv.Itoa(n % 100) },
		run: func(_ context.Context, items []int) (results []string, err error) {
			g.begun <- items
			for _, n := range items {
				results = append(results, strconv.Itoa(n))
			}
			return results, <-g.through
		},
	}
}

// What comes while a batch is under way is the next one; items of the same key are never in one.
func TestBatcher(t *testing.T) {
	t.Parallel()
	g, b := newGate()
	first := b.put(t.Context(), 1)
	assert.Equal(t, []int{1}, <-g.begun)
	second, third, same := b.put(t.Context(), 2), b.put(t.Context(), 3), b.put(t.Context(), 102)
	g.through <- nil
	assert.Equal(t, []int{2, 3}, <-g.begun)
	<-first.done
	assert.Equal(t, "1", first.result)
	g.through <- nil
	assert.Equal(t, []int{102}, <-g.begun)
	<-third.done
	assert.Equal(t, []string{"2", "3"}, []string{second.result, third.result})
	g.through <- nil
	<-same.done
	assert.Equal(t, "102", same.result)
}

// flush waits for all that was put before it, and not longer than its context lasts.
func TestBatcherFlush(t *testing.T) {
	t.Parallel()
	g, b := newGate()
	b.flush(t.Context()) // nothing to wait for
	one := b.put(t.Context(), 1)
	<-g.begun
	two := b.put(t.Context(), 2)
	ended, end := context.WithCancel(t.Context())
	end()
	b.flush(ended)
	flushed := make(chan struct{})
	go func() { b.flush(t.Context()); close(flushed) }()
	g.through <- nil
	<-g.begun
	select {
	case <-flushed:
		t.Fatal("the second one is not done")
	default:
	}
	g.through <- nil
	<-flushed
	assert.Equal(t, []string{"1", "2"}, []string{one.result, two.result})
}

// When a batch fails for what one of its items is, the others are done all the same; when
// PostgreSQL is down, nothing is tried again.
func TestBatcherFailures(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err   error
		alone bool
	}{
		"one item":   {&pgconn.PgError{Code: "22P05"}, true},
		"PostgreSQL": {fail(unavailable, "down"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, b := newGate()
			b.put(t.Context(), 0)
			<-g.begun
			bad, good := b.put(t.Context(), 1), b.put(t.Context(), 2)
			g.through <- nil
			assert.Equal(t, []int{1, 2}, <-g.begun)
			g.through <- test.err
			if test.alone {
				assert.Equal(t, []int{1}, <-g.begun)
				g.through <- test.err
				assert.Equal(t, []int{2}, <-g.begun)
				g.through <- nil
			}
			<-good.done
			require.ErrorIs(t, bad.err, test.err)
			assert.Equal(t, test.alone, good.err == nil)
		})
	}
}

// What nobody waits for any more is not done, and who has little time left does not get more.
func TestBatcherAbandoned(t *testing.T) {
	t.Parallel()
	g, b := newGate()
	b.put(t.Context(), 1)
	<-g.begun
	left, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := b.do(left, 2)
		gone <- err
	}()
	require.Eventually(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.waiting) == 1 }, waitLimit, waitTick)
	leave()
	assert.ErrorIs(t, <-gone, context.Canceled)
	other := b.put(t.Context(), 3)
	g.through <- nil
	assert.Equal(t, []int{3}, <-g.begun)
	g.through <- nil
	<-other.done

	soon := time.Now().Add(waitLimit)
	var until time.Time
	b.run = func(ctx context.Context, items []int) ([]string, error) {
		until, _ = ctx.Deadline()
		return make([]string, len(items)), nil
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(storeTimeout/2))
	defer cancel()
	_, err := b.do(ctx, 4)
	require.NoError(t, err)
	assert.True(t, until.Before(soon))
	want, _ := ctx.Deadline()
	assert.Equal(t, want, until)
}

// A batch that panics is one that failed.
func TestBatcherPanics(t *testing.T) {
	t.Parallel()
	b := batcher[int, string]{key: strconv.Itoa, run: func(context.Context, []int) ([]string, error) { panic("oh no") }}
	_, err := b.do(t.Context(), 1)
	require.ErrorContains(t, err, "panic: oh no")
	assert.ErrorContains(t, err, "batch_test.go", "with the call stack")
}

// While PostgreSQL takes longer than it should, most are done in time all the same: those who have waited
// long do not shorten the time of those who have just come.
func TestBatcherThatIsSlow(t *testing.T) {
	for took, most := range map[time.Duration]int{storeTimeout / 4: 100, storeTimeout / 2: 70, storeTimeout * 11 / 20: 50, storeTimeout * 7 / 10: 30} {
		synctest.Test(t, func(t *testing.T) {
			b := batcher[int, string]{key: strconv.Itoa, run: func(ctx context.Context, items []int) ([]string, error) {
				if !sleep(ctx, took) {
					return nil, ctx.Err()
				}
				return make([]string, len(items)), nil
			}}
			const all = 1000
			var done atomic.Int64
			var clients sync.WaitGroup
			for n := range all {
				clients.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), storeTimeout)
					defer cancel()
					if _, err := b.do(ctx, n); err == nil {
						done.Add(1)
					}
				})
				time.Sleep(20 * time.Millisecond)
			}
			clients.Wait()
			assert.GreaterOrEqual(t, int(100*done.Load()/all), most, took)
		})
	}
}

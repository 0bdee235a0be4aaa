package async

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var errDown = errors.New("down")

// A gate holds each batch of its batcher until the test lets it through.
type gate struct {
	begun   chan []int
	through chan error
}

func newGate() (*gate, *Batcher[int, string]) {
	g := &gate{make(chan []int), make(chan error)}
	return g, &Batcher[int, string]{
		Limit: 2 * time.Second,
		Alone: func(err error) bool { return !errors.Is(err, errDown) },
		Key:   func(n int) string { return strconv.Itoa(n % 100) },
		Run: func(_ context.Context, items []int) (results []string, err error) {
			g.begun <- items
			for _, n := range items {
				results = append(results, strconv.Itoa(n))
			}
			return results, <-g.through
		},
	}
}

// Items that arrive while a batch runs form the next one. Items with the same key never share a batch.
func TestBatcher(t *testing.T) {
	t.Parallel()
	g, b := newGate()
	first := b.Put(1)
	assert.Equal(t, []int{1}, <-g.begun)
	second, third, same := b.Put(2), b.Put(3), b.Put(102)
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

// Flush waits for all earlier items, but no longer than its context lasts.
func TestBatcherFlush(t *testing.T) {
	t.Parallel()
	g, b := newGate()
	b.Flush(t.Context()) // nothing to wait for
	one := b.Put(1)
	<-g.begun
	two := b.Put(2)
	ended, end := context.WithCancel(t.Context())
	end()
	b.Flush(ended)
	flushed := make(chan struct{})
	go func() { b.Flush(t.Context()); close(flushed) }()
	g.through <- nil
	<-g.begun
	select {
	case <-flushed:
		t.Fatal("Flush returned before the second item was processed")
	default:
	}
	g.through <- nil
	<-flushed
	assert.Equal(t, []string{"1", "2"}, []string{one.result, two.result})
}

// Items that arrive in a pause form one batch. Flush ends the pause, and none follows a single item or a full batch.
func TestBatcherPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sizes := make(chan int) // of batches, which wait until they are read
		b := &Batcher[int, string]{
			Pause: time.Hour, Limit: 24 * time.Hour, Key: strconv.Itoa,
			Run: func(_ context.Context, items []int) ([]string, error) {
				sizes <- len(items)
				return make([]string, len(items)), nil
			},
		}
		began := time.Now()
		b.Put(0)
		synctest.Wait()
		b.Put(1)
		b.Put(2)
		assert.Equal(t, []int{1, 2}, []int{<-sizes, <-sizes})
		synctest.Wait()
		for n := range 250 {
			b.Put(n)
		}
		go b.Flush(t.Context())
		assert.Equal(t, []int{100, 100, 50}, []int{<-sizes, <-sizes, <-sizes})
		assert.Zero(t, time.Since(began))
		b.Put(1)
		b.Put(2)
		assert.Equal(t, 2, <-sizes)
		assert.Equal(t, time.Hour, time.Since(began)) // on the bubble's clock
		b.Flush(t.Context())                          // so that the worker ends
	})
}

// When one item makes its batch fail, the others are still processed. When PostgreSQL is down, nothing is retried.
func TestBatcherFailures(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err   error
		alone bool
	}{
		"one item":  {errors.New("unfit"), true},
		"all of it": {errDown, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, b := newGate()
			b.Put(0)
			<-g.begun
			bad, good := b.Put(1), b.Put(2)
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

// An item whose caller has given up is not processed, and a batch ends at its caller's deadline.
func TestBatcherAbandoned(t *testing.T) {
	t.Parallel()
	g, b := newGate()
	b.Put(1)
	<-g.begun
	left, leave := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := b.Do(left, 2)
		gone <- err
	}()
	require.Eventually(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.waiting) == 1 }, 20*time.Second,
		time.Millisecond)
	leave()
	assert.ErrorIs(t, <-gone, context.Canceled)
	other := b.Put(3) // needs no waiting caller
	g.through <- nil
	assert.Equal(t, []int{3}, <-g.begun)
	g.through <- nil
	<-other.done

	soon := time.Now().Add(20 * time.Second)
	var until time.Time
	b.Run = func(ctx context.Context, items []int) ([]string, error) {
		until, _ = ctx.Deadline()
		return make([]string, len(items)), nil
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(b.Limit/2))
	defer cancel()
	_, err := b.Do(ctx, 4)
	require.NoError(t, err)
	assert.True(t, until.Before(soon))
	want, _ := ctx.Deadline()
	assert.Equal(t, want, until)
}

// A panic fails the batch.
func TestBatcherPanics(t *testing.T) {
	t.Parallel()
	b := Batcher[int, string]{Limit: time.Second, Key: strconv.Itoa,
		Run: func(context.Context, []int) ([]string, error) { panic("oh no") }}
	_, err := b.Do(t.Context(), 1)
	require.ErrorContains(t, err, "panic: oh no")
	assert.ErrorContains(t, err, "async_test.go", "with the call stack")
}

// When batches are slow, many items are still processed in time: items that have waited long do not take
// time away from new ones.
func TestBatcherThatIsSlow(t *testing.T) {
	const limit = 2 * time.Second
	for took, most := range map[time.Duration]int{limit / 4: 100, limit / 2: 70, limit * 11 / 20: 50,
		limit * 7 / 10: 30} {
		synctest.Test(t, func(t *testing.T) {
			b := Batcher[int, string]{Limit: limit, Key: strconv.Itoa,
				Run: func(ctx context.Context, items []int) ([]string, error) {
					select {
					case <-time.After(took):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					return make([]string, len(items)), nil
				}}
			const all = 1000
			var done atomic.Int64
			var clients sync.WaitGroup
			for n := range all {
				clients.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					defer cancel()
					if _, err := b.Do(ctx, n); err == nil {
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

// A leader that is cancelled or panics does not fail its waiters, and a forgotten read is not shared.
func TestSingleflightOutlivesItsLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Singleflight[json.RawMessage]
		leader, leave := context.WithCancel(t.Context())
		lead := func(key string, end func()) {
			defer func() { _ = recover() }()
			_, _ = f.Do(leader, key, func() (json.RawMessage, error) {
				<-leader.Done()
				end()
				return nil, leader.Err()
			})
		}
		follow := func(key string) {
			got, err := f.Do(t.Context(), key, func() (json.RawMessage, error) { return json.RawMessage(`1`), nil })
			assert.NoError(t, err)
			assert.Equal(t, json.RawMessage(`1`), got)
		}
		go lead("forgotten", func() {})
		synctest.Wait()
		f.Forget()
		follow("forgotten")
		go lead("leaves", func() {})
		go lead("panics", func() { panic("oh no") })
		synctest.Wait()
		go follow("leaves")
		go follow("panics")
		synctest.Wait()
		leave()
		synctest.Wait()
	})
}

// Results come in order, a bounded number of fetches runs at the same time, and they end with the loop.
func TestReadAhead(t *testing.T) {
	synctest.Test(t, testReadAhead)
}

func testReadAhead(t *testing.T) {
	var running, most, started atomic.Int64
	fetch := func(ctx context.Context, n int64) (int64, error) {
		started.Add(1)
		for now := running.Add(1); ; {
			if was := most.Load(); now <= was || most.CompareAndSwap(was, now) {
				break
			}
		}
		defer running.Add(-1)
		if n > 24 {
			<-ctx.Done()
		}
		time.Sleep(time.Duration(n%3) * time.Millisecond)
		return n, nil
	}
	var got []int64
	for n, err := range ReadAhead(t.Context(), 5, 100, 3, fetch) {
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
	var last error
	for n, err := range ReadAhead(t.Context(), 1, 100, 2, func(_ context.Context, n int64) (int64, error) {
		if n == 3 {
			return 0, failed
		}
		return n, nil
	}) {
		if last = err; err == nil {
			assert.Less(t, n, int64(3))
		}
	}
	assert.ErrorIs(t, last, failed)
	for _, err := range ReadAhead(t.Context(), 1, 1, 1, func(context.Context, int64) (int, error) { panic("oh no") }) {
		last = err
	}
	assert.ErrorContains(t, last, "panic: oh no")
}

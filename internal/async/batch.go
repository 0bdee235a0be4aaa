// Package async coordinates goroutines: it processes their items in batches, shares identical reads, fetches
// results ahead, bounds the memory that they hold together, and turns panics into errors.
package async

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"app/internal/datadog"
)

// A Batcher processes the items of several goroutines in batches. Items that arrive while a batch runs, or in the
// pause after it, form the next one. Otherwise an item does not wait.
type Batcher[T, R any] struct {
	Run   func(ctx context.Context, items []T) ([]R, error) // results in the order of the items
	Key   func(T) string                                    // items with the same key are never in one batch
	Pause time.Duration                                     // after a batch of several items that was not full; a Flush ends it
	Limit time.Duration                                     // of one batch
	Alone func(error) bool                                  // reports whether one item may have caused the error, so that each runs alone

	mu       sync.Mutex
	waiting  []*batched[T, R]
	last     *batched[T, R] // the newest
	working  bool
	took     time.Duration   // of the last batch
	pause    context.Context // cancelled to end the pause after the running batch
	endPause func()
}

const largestBatch = 100

type batched[T, R any] struct {
	pending[R]
	ctx  context.Context
	item T
}

// Do processes the item in the next batch and waits. An item whose context has ended is not processed, unless
// its batch has begun.
func (b *Batcher[T, R]) Do(ctx context.Context, item T) (R, error) { return b.add(ctx, item).wait(ctx) }

// Put adds the item to the next batch, outside of any trace, and does not wait.
func (b *Batcher[T, R]) Put(item T) *batched[T, R] { return b.add(context.Background(), item) }

func (b *Batcher[T, R]) add(ctx context.Context, item T) *batched[T, R] {
	mine := &batched[T, R]{pending[R]{done: make(chan struct{})}, ctx, item}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = append(b.waiting, mine)
	b.last = mine
	if !b.working {
		b.working = true
		go b.work()
	}
	return mine
}

// Flush waits until all earlier items are processed, or the context ends.
func (b *Batcher[T, R]) Flush(ctx context.Context) {
	b.mu.Lock()
	last := b.last
	if b.endPause != nil {
		b.endPause()
	}
	b.mu.Unlock()
	if last != nil {
		_, _ = last.wait(ctx)
	}
}

func (b *Batcher[T, R]) work() {
	for batch := b.take(); len(batch) > 0; batch = b.take() {
		b.runBatch(batch)
		if 1 < len(batch) && len(batch) < largestBatch {
			Sleep(b.pause, b.Pause)
		}
	}
}

// take returns the next batch. If there is none, the work ends.
func (b *Batcher[T, R]) take() []*batched[T, R] {
	b.mu.Lock()
	defer b.mu.Unlock()
	var batch []*batched[T, R]
	keys := map[string]bool{}
	b.waiting = slices.DeleteFunc(b.waiting, func(one *batched[T, R]) bool {
		key := b.Key(one.item)
		deadline, ok := one.ctx.Deadline()
		// A batch ends at the earliest deadline of its items, so one with too little time left would cut it short.
		// A new item is never late, however long the last batch took.
		isLate := ok && time.Until(deadline) < min(b.took+b.took/4, b.Limit*3/4)
		switch {
		case one.ctx.Err() != nil || isLate:
			one.err = cmp.Or(one.ctx.Err(), context.DeadlineExceeded)
			close(one.done)
		case len(batch) == largestBatch || keys[key]:
			return false
		default:
			keys[key] = true
			batch = append(batch, one)
		}
		return true
	})
	b.working = len(batch) > 0
	b.pause, b.endPause = context.WithCancel(context.Background())
	return batch
}

// runBatch runs a batch. If that fails and one item may be the cause, it runs each item alone.
func (b *Batcher[T, R]) runBatch(batch []*batched[T, R]) {
	items := make([]T, len(batch))
	traced := batch[max(0, slices.IndexFunc(batch, func(b *batched[T, R]) bool { return datadog.SpanFrom(b.ctx) != nil }))]
	deadline := time.Now().Add(b.Limit)
	for i, one := range batch {
		items[i] = one.item
		if until, ok := one.ctx.Deadline(); ok && until.Before(deadline) {
			deadline = until // nothing is done for a caller that has given up
		}
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(traced.ctx), deadline)
	defer cancel()
	began := time.Now()
	results, err := Protect(func() ([]R, error) { return b.Run(ctx, items) })
	b.took = time.Since(began) // only this goroutine uses it
	if err != nil && len(batch) > 1 && b.Alone(err) {
		for _, one := range batch {
			b.runBatch([]*batched[T, R]{one})
		}
		return
	}
	for i, one := range batch {
		if one.err = err; err == nil {
			one.result = results[i]
		}
		close(one.done)
	}
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"app/internal/datadog"
)

// A batcher does together what several goroutines want done at the same time: while one batch is
// under way, the next one gathers. Who is alone does not wait.
type batcher[T, R any] struct {
	run   func(ctx context.Context, items []T) ([]R, error) // results in the order of the items
	key   func(T) string                                    // items of the same key are not done together
	pause time.Duration                                     // behind each batch of several: a crowd is quicker together

	mu      sync.Mutex
	waiting []*batched[T, R]
	last    *batched[T, R] // the newest of all
	working bool
	took    time.Duration // by the batch before
}

const batchSize = 100

type batched[T, R any] struct {
	ctx    context.Context
	item   T
	done   chan struct{}
	by     *datadog.Span // in whose trace it was done, once it is
	result R
	err    error
}

// do has the item done. When its deadline comes before that, it is not done, unless PostgreSQL has just
// come to its end with it; when its caller leaves, it is done if it was begun.
func (b *batcher[T, R]) do(ctx context.Context, item T) (R, error) {
	began := time.Now()
	mine := b.add(ctx, item)
	select {
	case <-mine.done:
		datadog.AddSharedSpan(ctx, "store.shared", began, mine.by)
		return mine.result, mine.err
	case <-ctx.Done():
		var none R
		return none, ctx.Err()
	}
}

// put leaves the item to be done soon, also if the context ends. The trace may be over by then.
func (b *batcher[T, R]) put(ctx context.Context, item T) *batched[T, R] {
	return b.add(context.WithoutCancel(datadog.WithoutSpan(ctx)), item)
}

func (b *batcher[T, R]) add(ctx context.Context, item T) *batched[T, R] {
	mine := &batched[T, R]{ctx: ctx, item: item, done: make(chan struct{})}
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

// flush waits until all is done that was put, or the context ends.
func (b *batcher[T, R]) flush(ctx context.Context) {
	b.mu.Lock()
	last := b.last
	b.mu.Unlock()
	if last == nil {
		return
	}
	select {
	case <-last.done:
	case <-ctx.Done():
	}
}

// work does batches until nobody waits.
func (b *batcher[T, R]) work() {
	for batch := b.take(); len(batch) > 0; batch = b.take() {
		b.doBatch(batch)
		if len(batch) > 1 {
			time.Sleep(b.pause)
		}
	}
}

// take takes the next batch; without one, the work ends.
func (b *batcher[T, R]) take() []*batched[T, R] {
	b.mu.Lock()
	defer b.mu.Unlock()
	var batch, rest []*batched[T, R]
	keys := map[string]bool{}
	for _, one := range b.waiting {
		key := b.key(one.item)
		switch {
		case one.ctx.Err() != nil, b.isLate(one):
			one.err = cmp.Or(one.ctx.Err(), context.DeadlineExceeded)
			close(one.done)
		case len(batch) == batchSize || keys[key]:
			rest = append(rest, one)
		default:
			keys[key] = true
			batch = append(batch, one)
		}
	}
	b.waiting = rest
	b.working = len(batch) > 0
	return batch
}

// isLate reports whether too little of an item's time is left: a batch lasts until the first deadline
// in it, and must not end before it is done for the sake of one. What has just come is tried in any
// case, however long the batch before has taken.
func (b *batcher[T, R]) isLate(one *batched[T, R]) bool {
	deadline, ok := one.ctx.Deadline()
	return ok && time.Until(deadline) < min(b.took+b.took/4, storeTimeout*3/4)
}

// doBatch does a batch, and should it fail for what one of the items is, each for itself.
func (b *batcher[T, R]) doBatch(batch []*batched[T, R]) {
	items := make([]T, len(batch))
	first := batch[0] // that has a trace, if one has
	deadline := time.Now().Add(storeTimeout)
	for i, one := range batch {
		items[i] = one.item
		if datadog.SpanFrom(first.ctx) == nil {
			first = one
		}
		if until, ok := one.ctx.Deadline(); ok && until.Before(deadline) {
			deadline = until // so that nothing is done behind the back of who has given up
		}
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(first.ctx), deadline)
	defer cancel()
	var results []R
	began := time.Now()
	err := protect(func() (err error) {
		results, err = b.run(ctx, items)
		return err
	})
	b.took = time.Since(began) // read by the same goroutine
	if err != nil && len(batch) > 1 && !isKind(databaseError(err), unavailable) {
		for _, one := range batch {
			b.doBatch([]*batched[T, R]{one})
		}
		return
	}
	for i, one := range batch {
		if one.err = err; err == nil {
			one.result = results[i]
		}
		one.by = datadog.SpanFrom(first.ctx)
		close(one.done)
	}
}

// protect runs the function on a goroutine that is not a request's own, and makes an error of its
// panic, with the call stack: the service goes on.
func protect(run func() error) (err error) {
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("panic: %v\n%s", caught, debug.Stack())
		}
	}()
	return run()
}

package async

import (
	"context"
	"errors"
	"sync"
	"time"

	"app/internal/datadog"
)

// A Singleflight makes reads that are the same once for all callers that want them at the same time.
type Singleflight[T any] struct {
	Span string // the name of the spans of waiters

	mu      sync.Mutex
	running map[string]*flight[T]
}

// A flight is one read in progress.
type flight[T any] struct {
	done   chan struct{}
	span   *datadog.Span // of the caller that reads, the leader
	result T
	err    error
}

// Do returns the result of the read with the key that is in progress, and reads itself where there is
// none. A waiter whose leader was cancelled retries the read itself.
func (f *Singleflight[T]) Do(ctx context.Context, key string, read func() (T, error)) (T, error) {
	for {
		f.mu.Lock()
		running := f.running[key]
		if running == nil {
			running = &flight[T]{done: make(chan struct{}), span: datadog.SpanFrom(ctx)}
			if f.running == nil {
				f.running = map[string]*flight[T]{}
			}
			f.running[key] = running
			f.mu.Unlock()
			return f.lead(key, running, read)
		}
		f.mu.Unlock()
		running.wait(ctx, f.Span)
		if err := ctx.Err(); err != nil {
			var none T
			return none, err
		}
		if !errors.Is(running.err, context.Canceled) {
			return running.result, running.err
		}
	}
}

// wait waits until the read is done or the context ends.
func (f *flight[T]) wait(ctx context.Context, name string) {
	began := time.Now()
	select {
	case <-f.done:
		datadog.AddSharedSpan(ctx, name, began, f.span)
	case <-ctx.Done():
	}
}

// lead reads on behalf of all waiters.
func (f *Singleflight[T]) lead(key string, mine *flight[T], read func() (T, error)) (T, error) {
	mine.err = context.Canceled // should read panic
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.running[key] == mine {
			delete(f.running, key)
		}
		close(mine.done)
	}()
	mine.result, mine.err = read()
	return mine.result, mine.err
}

// Forget keeps later callers from sharing the reads that are in progress now.
func (f *Singleflight[T]) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = nil
}

package async

import (
	"context"
	"errors"
	"sync"
	"time"

	"app/internal/datadog"
)

// A pending result is one that several may wait for.
type pending[T any] struct {
	done   chan struct{}
	by     *datadog.Span // in whose trace it comes about
	result T
	err    error
}

// wait waits until the result is there or the context ends. The name is that of the waiter's span.
func (p *pending[T]) wait(ctx context.Context, name string) (result T, err error) {
	began := time.Now()
	select {
	case <-p.done:
		datadog.AddSharedSpan(ctx, name, began, p.by)
		return p.result, p.err
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// A Singleflight makes reads that are the same once for all callers that want them at the same time.
type Singleflight[T any] struct {
	Span    string   // the name of the spans of waiters
	running sync.Map // the pending results, by their keys
}

// Do returns the result of the read with the key that is in progress, and reads itself where there is none. A
// waiter whose leader was cancelled retries the read itself.
func (f *Singleflight[T]) Do(ctx context.Context, key string, read func() (T, error)) (T, error) {
	mine := &pending[T]{done: make(chan struct{}), by: datadog.SpanFrom(ctx), err: context.Canceled} // should read panic
	for {
		running, isRunning := f.running.LoadOrStore(key, mine)
		if !isRunning {
			defer close(mine.done)
			defer f.running.CompareAndDelete(key, mine)
			mine.result, mine.err = read()
			return mine.result, mine.err
		}
		result, err := running.(*pending[T]).wait(ctx, f.Span)
		if ctx.Err() != nil || !errors.Is(err, context.Canceled) {
			return result, err
		}
	}
}

// Forget keeps later callers from sharing the reads that are in progress now.
func (f *Singleflight[T]) Forget() { f.running.Clear() }

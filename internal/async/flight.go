package async

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
	"time"
)

// A pending result is one that several may wait for.
type pending[T any] struct {
	done   chan struct{}
	result T
	err    error
}

// wait waits until the result is there or the context ends.
func (p *pending[T]) wait(ctx context.Context) (result T, err error) {
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// A Singleflight makes reads that are the same once for all callers that want them at the same time.
type Singleflight[T any] struct {
	running sync.Map // the pending results, by their keys
}

// Do returns the result of the read with the key that is in progress, and reads itself where there is none. A
// waiter whose leader was cancelled retries the read itself.
func (f *Singleflight[T]) Do(ctx context.Context, key string, read func() (T, error)) (T, error) {
	mine := &pending[T]{done: make(chan struct{}), err: context.Canceled} // should read panic
	for {
		running, isRunning := f.running.LoadOrStore(key, mine)
		if !isRunning {
			defer close(mine.done)
			defer f.running.CompareAndDelete(key, mine)
			mine.result, mine.err = read()
			return mine.result, mine.err
		}
		result, err := running.(*pending[T]).wait(ctx)
		if ctx.Err() != nil || !errors.Is(err, context.Canceled) {
			return result, err
		}
	}
}

// Forget keeps later callers from sharing the reads that are in progress now.
func (f *Singleflight[T]) Forget() { f.running.Clear() }

// ReadAhead yields what fetch returns for first to last, in this order, up to the first error, while up to
// ahead of them are fetched at the same time. The fetching ends with the loop.
func ReadAhead[T any](ctx context.Context, first, last int64, ahead int, fetch func(ctx context.Context, n int64) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var fetching sync.WaitGroup
		defer fetching.Wait()
		defer cancel()
		var results []*pending[T]
		for next := first; next <= last || len(results) > 0; {
			for ; next <= last && len(results) < ahead; next++ {
				n, r := next, &pending[T]{done: make(chan struct{})}
				results = append(results, r)
				fetching.Go(func() {
					defer close(r.done)
					r.result, r.err = Protect(func() (T, error) { return fetch(ctx, n) })
				})
			}
			r := results[0]
			results = results[1:]
			<-r.done
			if !yield(r.result, r.err) || r.err != nil {
				return
			}
		}
	}
}

// Protect runs the function on a goroutine outside of a request, and turns a panic into an error with the call
// stack, so that the service goes on.
func Protect[T any](run func() (T, error)) (result T, err error) {
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("panic: %v\n%s", caught, debug.Stack())
		}
	}()
	return run()
}

// Sleep waits and reports whether it was not interrupted.
func Sleep(ctx context.Context, wait time.Duration) bool {
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// Interruptible runs something that may block for ever. When the context ends it returns without waiting for
// the end, which comes with that of the program.
func Interruptible(ctx context.Context, run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

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

// A pending is a result that several goroutines may wait for.
type pending[T any] struct {
	done   chan struct{}
	result T
	err    error
}

// wait waits for the result or the end of the context.
func (p *pending[T]) wait(ctx context.Context) (result T, err error) {
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// A Singleflight shares one read among the callers that ask for the same key at the same time.
type Singleflight[T any] struct {
	running sync.Map // the pending results by key
}

// Do waits for the read of the key that is in flight, or leads a new one. A waiter whose leader was cancelled
// retries the read itself.
func (f *Singleflight[T]) Do(ctx context.Context, key string, read func() (T, error)) (T, error) {
	mine := &pending[T]{done: make(chan struct{}), err: context.Canceled} // in case read panics
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

// Forget keeps later callers from sharing the reads that are in flight now.
func (f *Singleflight[T]) Forget() { f.running.Clear() }

// ReadAhead yields the results of fetch for first to last, in order, up to the first error. Up to ahead fetches
// run at the same time, and they end with the loop.
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

// Protect runs a function and turns a panic into an error with the call stack. It is for goroutines outside of
// requests, where a panic would end the program.
func Protect[T any](run func() (T, error)) (result T, err error) {
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("panic: %v\n%s", caught, debug.Stack())
		}
	}()
	return run()
}

// Sleep waits and returns true, or returns false as soon as the context ends.
func Sleep(ctx context.Context, wait time.Duration) bool {
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// Interruptible runs a function that may block forever. When the context ends, it returns and abandons the
// function, which then may block until the program ends.
func Interruptible(ctx context.Context, run func() error) error {
	ran := &pending[any]{done: make(chan struct{})}
	go func() { ran.err = run(); close(ran.done) }()
	_, err := ran.wait(ctx)
	return err
}

package async

import (
	"context"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
)

// ReadAhead yields what fetch returns for first to last, in this order, up to the first error, while up to
// ahead of them are fetched at the same time. The fetching ends with the loop.
func ReadAhead[T any](ctx context.Context, first, last int64, ahead int, fetch func(ctx context.Context, n int64) (T, error)) iter.Seq2[T, error] {
	type result struct {
		value T
		err   error
	}
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var fetching sync.WaitGroup
		defer fetching.Wait()
		defer cancel()
		var results []chan result
		for next := first; next <= last || len(results) > 0; {
			for ; next <= last && len(results) < ahead; next++ {
				n, done := next, make(chan result, 1)
				results = append(results, done)
				fetching.Go(func() {
					var r result
					r.err = Protect(func() (err error) {
						r.value, err = fetch(ctx, n)
						return err
					})
					done <- r
				})
			}
			r := <-results[0]
			results = results[1:]
			if !yield(r.value, r.err) || r.err != nil {
				return
			}
		}
	}
}

// Protect runs the function on a goroutine outside of a request, and turns a panic into an error with the call
// stack, so that the service goes on.
func Protect(run func() error) (err error) {
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("panic: %v\n%s", caught, debug.Stack())
		}
	}()
	return run()
}

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

package async

import (
	"context"
	"fmt"
	"iter"
	"runtime/debug"
	"sync"
)

// ReadAhead yields what fetch returns for first, first+1, and so on, in this order, while up to ahead
// of them are fetched at the same time. The fetching ends with the loop.
func ReadAhead[T any](ctx context.Context, first int64, ahead int, fetch func(ctx context.Context, n int64) (T, error)) iter.Seq2[T, error] {
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
		for n := first; ; n++ {
			for len(results) < ahead {
				next, number := make(chan result, 1), n+int64(len(results))
				results = append(results, next)
				fetching.Go(func() {
					var r result
					r.err = Protect(func() (err error) {
						r.value, err = fetch(ctx, number)
						return err
					})
					next <- r
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

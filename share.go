// share.go makes work common: reads that are the same are made once, and Rollbar's rate limit is
// shared with those who read more than a page.
package main

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"strconv"
	"sync"
	"time"

	"app/internal/datadog"
)

// flights are reads under way.
type flights[T any] struct {
	mu      sync.Mutex
	running map[string]*flight[T]
}

// A flight is one read under way, for all who want it.
type flight[T any] struct {
	done   chan struct{}
	by     *datadog.Span // of who reads
	answer T
	err    error
}

// join returns what the read with the key gives, if one is under way, and else reads. Who waits for
// another's read does not share its end: when that is given up, another takes over.
func (f *flights[T]) join(ctx context.Context, key string, read func() (T, error)) (T, error) {
	for {
		f.mu.Lock()
		running := f.running[key]
		if running == nil {
			running = &flight[T]{done: make(chan struct{}), by: datadog.SpanFrom(ctx)}
			if f.running == nil {
				f.running = map[string]*flight[T]{}
			}
			f.running[key] = running
			f.mu.Unlock()
			return f.lead(key, running, read)
		}
		f.mu.Unlock()
		running.wait(ctx)
		if err := ctx.Err(); err != nil {
			var none T
			return none, err
		}
		if !errors.Is(running.err, context.Canceled) {
			return running.answer, running.err
		}
	}
}

// wait waits until the read is done or the context ends. To the one who waits that is time of
// Rollbar's as well.
func (f *flight[T]) wait(ctx context.Context) {
	began := time.Now()
	defer callOf(ctx).upstream.start()()
	select {
	case <-f.done:
		datadog.AddSharedSpan(ctx, "rollbar.shared", began, f.by)
	case <-ctx.Done():
	}
}

// lead reads for all who wait.
func (f *flights[T]) lead(key string, mine *flight[T], read func() (T, error)) (T, error) {
	mine.err = context.Canceled // should read panic
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.running[key] == mine {
			delete(f.running, key)
		}
		close(mine.done)
	}()
	mine.answer, mine.err = read()
	return mine.answer, mine.err
}

// forget leaves what is under way to those who wait for it already.
func (f *flights[T]) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = nil
}

// allowances are what Rollbar's rate limits leave, by the scope of the token that they belong to.
type allowances struct {
	mu   sync.Mutex
	left map[scope]allowance
}

// An allowance is what is left of a limit until its window ends.
type allowance struct {
	limit, left int
	ends        time.Time
}

// read takes the allowance from the headers of an answer and returns how many calls are left.
func (a *allowances) read(s scope, header http.Header) (left int, known bool) {
	limit, _ := strconv.Atoi(header.Get("X-Rate-Limit-Limit"))
	left, err := strconv.Atoi(header.Get("X-Rate-Limit-Remaining"))
	seconds, _ := strconv.Atoi(header.Get("X-Rate-Limit-Remaining-Seconds"))
	if err != nil {
		return 0, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left == nil {
		a.left = map[scope]allowance{}
	}
	a.left[s] = allowance{limit, left, time.Now().Add(time.Duration(seconds) * time.Second)}
	return left, true
}

// politeWait is how long one of many calls waits before it is made: not at all while there is
// plenty, and when less than a quarter of the limit is left, so that the rest lasts until the window
// ends, but at most a second.
func (a *allowances) politeWait(s scope) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	is := a.left[s]
	if is.left >= is.limit/4 {
		return 0
	}
	return max(0, min(time.Second, time.Until(is.ends)/time.Duration(max(is.left, 1))))
}

// readAhead yields what fetch gives for first, first+1, and so on, in this order, while it fetches
// the next few: up to ahead of them wait to be taken, and up to calls are fetched at the same time.
// Who stops taking stops the fetching.
func readAhead[T any](ctx context.Context, first int64, ahead, calls int, fetch func(ctx context.Context, n int64) (T, error)) iter.Seq2[T, error] {
	type result struct {
		value T
		err   error
	}
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var fetching sync.WaitGroup
		defer fetching.Wait()
		defer cancel()
		slots := make(chan struct{}, calls)
		var results []chan result
		for n := first; ; n++ {
			for len(results) < ahead {
				next, number := make(chan result, 1), n+int64(len(results))
				results = append(results, next)
				fetching.Go(func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					var r result
					r.err = protect(func() (err error) {
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

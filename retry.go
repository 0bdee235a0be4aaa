// retry.go decides what is tried again and for how long: beside the calls themselves, one request
// spends at most retryLimit on repetitions and the waits before them.
package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	retryLimit  = 5 * time.Second
	maxAttempts = 4
)

// A retryBudget is the time that one request has left for repetitions, over all its calls. Those at
// the same time cost it once. It is spent while the stopwatch runs.
type retryBudget struct{ stopwatch }

func (b *retryBudget) left() time.Duration { return retryLimit - b.total() }

// sleep waits, at the budget's cost, and reports whether there is time for another try.
func (b *retryBudget) sleep(ctx context.Context, wait time.Duration) bool {
	if wait >= b.left() {
		return false
	}
	defer b.start()()
	return sleep(ctx, wait)
}

// retryWait says how long to wait before the call is tried again after the error, if at all.
// Waits double, and spread so that clients who failed together do not return together.
func (r *Rollbar) retryWait(err error, attempt int) (time.Duration, bool) {
	var f *Failure
	if !errors.As(err, &f) || !f.transient || attempt+1 >= maxAttempts {
		return 0, false
	}
	backoff := r.backoff << attempt
	jitter := rand.N(backoff/2 + 1)
	if f.kind == rateLimited {
		return f.wait + jitter/2, true
	}
	return backoff/2 + jitter, true
}

// A stopwatch measures how long at least one of several things goes on.
type stopwatch struct {
	mu      sync.Mutex
	running int
	since   time.Time
	took    time.Duration // until all stopped last
}

// start begins one of the things and returns what ends it.
func (w *stopwatch) start() (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running++; w.running == 1 {
		w.since = time.Now()
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.running--; w.running == 0 {
			w.took += time.Since(w.since)
		}
	}
}

func (w *stopwatch) total() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running > 0 {
		return w.took + time.Since(w.since)
	}
	return w.took
}

// A Call is one request as an operation sees it, whichever door it came through: what it may
// spend, and what it has to say beside its result.
type Call struct {
	retries  retryBudget
	upstream stopwatch                        // runs while calls of Rollbar do
	lines    bool                             // a list is wanted one element a line
	ahead    bool                             // a list must know before its rows what comes behind them
	progress func(format string, args ...any) // shows how far long work has come; may be nil

	have []string // versions of the one thing asked for that the caller has already

	mu       sync.Mutex
	version  string // of that thing
	unstored string // why nothing was stored, or ""
}

// anyVersion among the versions that the caller has stands for any.
const anyVersion = "*"

// errUnchanged is the error of a read of which the caller has the version.
var errUnchanged = errors.New("unchanged")

type callKey struct{}

// withCall returns a context whose operations report to the call.
func withCall(ctx context.Context, call *Call) context.Context {
	return context.WithValue(ctx, callKey{}, call)
}

// callOf returns the call that the context belongs to, and a new one outside of any.
func callOf(ctx context.Context) *Call {
	if call, ok := ctx.Value(callKey{}).(*Call); ok {
		return call
	}
	return &Call{}
}

// notStored notes that what the caller is answered could not be stored, and why.
func (c *Call) notStored(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unstored = why
}

// report shows progress where someone looks at it.
func (c *Call) report(format string, args ...any) {
	if c.progress != nil {
		c.progress(format, args...)
	}
}

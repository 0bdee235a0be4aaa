package main

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"app/internal/async"
)

const (
	retryLimit  = 5 * time.Second // how long one request may spend on retries and the waits before them
	maxAttempts = 4               // of one call, including the first
	trusted     = 5 * time.Minute // how long a rate limit is trusted: it may have been lifted
)

// The limits of the process's memory depend on each other. The first one is also Compose's mem_limit.
const (
	memoryLimit = 256 << 20            // resident
	heapLimit   = memoryLimit - 48<<20 // GOMEMLIMIT; the rest is for the program itself
	heldLimit   = heapLimit / 4        // for responses, bodies and pages, which are copied while they are processed
	maxResponse = 32 << 20             // of one response from Rollbar: 5000 items are about 7 MB, and occurrences are larger
	maxElements = 10_000               // of a list from Rollbar: twice what Rollbar sends

	usualHeap     = 44 << 20 // GOMEMLIMIT until the first large response: the service shares its machine with others
	largeResponse = 4 << 20
)

// memory is the budget that all requests share. Large pages of slow clients leave its reserve to small requests.
var memory = &async.Budget{
	Bytes: heldLimit, Reserve: 8 << 20, Small: 512 << 10, Wait: retryLimit,
	Full: &Failure{kind: unavailable, detail: "too many large requests and responses are in progress", wait: time.Second},
}

// A retryBudget is the time that one request has for retries, over all its calls. It is spent while its stopwatch
// runs, so that concurrent retries count once.
type retryBudget struct{ stopwatch }

func (b *retryBudget) left() time.Duration { return retryLimit - b.total() }

// sleep waits, and takes that from the budget. It returns false if too little is left, or the context ends.
func (b *retryBudget) sleep(ctx context.Context, wait time.Duration) bool {
	if wait >= b.left() {
		return false
	}
	defer b.start()()
	return async.Sleep(ctx, wait)
}

// retryWait returns how long to wait before the call is retried after err, which may be nil, and false if a retry
// cannot help. The backoff is exponential with jitter, so that clients that failed together do not return together.
func (r *Rollbar) retryWait(err error, attempt int) (time.Duration, bool) {
	f, is := errors.AsType[*Failure](err)
	if !is || !f.transient || attempt+1 >= maxAttempts {
		return 0, false
	}
	backoff := r.backoff << attempt
	jitter := rand.N(backoff/2 + 1)
	if f.kind == rateLimited {
		return f.wait + jitter/2, true
	}
	return backoff/2 + jitter, true
}

// A stopwatch measures for how long at least one of several activities is running.
type stopwatch struct {
	mu      sync.Mutex
	running int
	since   time.Time     // of the last change
	took    time.Duration // until then
}

// start begins an activity and returns the function that ends it.
func (w *stopwatch) start() (stop func()) {
	w.add(1)
	return func() { w.add(-1) }
}

func (w *stopwatch) total() time.Duration { return w.add(0) }

// add changes how many activities are running, and returns the time that was measured so far.
func (w *stopwatch) add(activities int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.running > 0 {
		w.took += now.Sub(w.since)
	}
	w.running, w.since = w.running+activities, now
	return w.took
}

// newRateLimits returns the limit of each scope's token. Scopes with the same token share a limit.
func newRateLimits(tokens map[scope]accessToken) map[scope]*rateLimit {
	limits, ofToken := map[scope]*rateLimit{}, map[string]*rateLimit{}
	for s, token := range tokens {
		value := cmp.Or(token.value, string(s))
		limits[s] = cmp.Or(ofToken[value], &rateLimit{})
		ofToken[value] = limits[s]
	}
	return limits
}

// A rateLimit is the number of calls that are left for a token until a window ends, as Rollbar's last response gave it.
type rateLimit struct {
	mu          sync.Mutex
	limit, left int
	ends        time.Time
	window      time.Time // when it ends by Rollbar's clock, to tell windows apart
	known       time.Time // when it was read; zero after a call over the limit: then each lane of the queue rests on its own
	delivery    time.Time // when the queue's last delivery began
	delivered   int       // by the queue in this window
}

// read takes the limit from the headers of a response and returns how many calls are left.
func (l *rateLimit) read(res *http.Response) (left int, known bool) {
	limit, _ := strconv.Atoi(res.Header.Get("X-Rate-Limit-Limit"))
	left, err := strconv.Atoi(res.Header.Get("X-Rate-Limit-Remaining"))
	seconds, _ := strconv.Atoi(res.Header.Get("X-Rate-Limit-Remaining-Seconds"))
	if err != nil {
		return 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	ends := now.Add(time.Duration(seconds) * time.Second)
	window := ends
	if reset, err := strconv.ParseInt(res.Header.Get("X-Rate-Limit-Reset"), 10, 64); err == nil {
		window = time.Unix(reset, 0) // by our clock, a slow answer would move the end
	}
	if now.After(l.ends) || window.Sub(l.window).Abs() > 2*time.Second { // whole seconds are inexact
		l.delivered = 0
	}
	l.limit, l.left, l.ends, l.window, l.known = limit, left, ends, window, now
	if res.StatusCode == http.StatusTooManyRequests {
		l.known = time.Time{}
	}
	return left, true
}

// throttle returns how long each of many calls should wait: not at all while a quarter of the limit is left, and then
// long enough for the rest to last until the window ends, but at most a second.
func (l *rateLimit) throttle() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left >= l.limit/4 {
		return 0
	}
	return max(0, min(time.Second, time.Until(l.ends)/time.Duration(max(l.left, 1))))
}

// share returns how many calls the queue may still make, which is half of what others leave, and how long they must
// last: 0 if nothing is known.
func (l *rateLimit) share() (calls int, lasting time.Duration) {
	if time.Since(l.known) >= trusted {
		return 0, 0
	}
	return (l.left+l.delivered)/2 - l.delivered, max(0, time.Until(l.ends))
}

// rest returns how long the queue must not deliver anything because no call is left for it.
func (l *rateLimit) rest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if calls, lasting := l.share(); calls <= 0 {
		return lasting
	}
	return 0
}

// turn returns how long the queue must wait before its next delivery. If that is 0 or less, the delivery must begin
// now. Deliveries are spread over the window, or keep the pace if nothing is known. The slowdown multiplies the time
// between two; 0 means no wait.
func (l *rateLimit) turn(pace time.Duration, slowdown int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if calls, lasting := l.share(); calls > 0 && lasting > 0 {
		pace = lasting / time.Duration(calls)
	}
	wait := time.Until(l.delivery.Add(pace * time.Duration(slowdown)))
	if wait <= 0 {
		l.delivery = time.Now()
		l.delivered++
	}
	return wait
}

// giveBack undoes the count of a turn in which there was nothing to deliver.
func (l *rateLimit) giveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivered = max(0, l.delivered-1) // a new window may have begun
}

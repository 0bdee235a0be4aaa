package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"app/internal/async"
)

const (
	deliveryPace    = time.Second / 20 // 1200 a minute: a backlog must not eat the project's quota
	deliveryWorkers = maxCalls / 4     // for each of two lanes, since some may hang
	firstBackoff    = time.Second
	outageAfter     = 100 // failures in a row; each further hundred adds the pace to the time between deliveries
	longestSlowdown = 20  // times the pace, which is a second
)

var reportsDeliverCmd = &Command{
	Name:    "reports.deliver",
	Route:   "POST /reports/deliver",
	Short:   "Deliver queued occurrences to Rollbar now, as serve does by itself",
	Changes: true,
	Run:     typed(reportsDeliver),
}

// Delivery counts the entries that were delivered or rejected, and those that are queued afterwards.
type Delivery struct {
	Delivered int64 `json:"delivered"`
	Queued    int64 `json:"queued"`
	Rejected  int64 `json:"rejected"`
}

// reportsDeliver tries each currently queued entry once, due or not, until it hits Rollbar's rate limit.
func reportsDeliver(ctx context.Context, app *App, _ struct{}) (Delivery, error) {
	if app.store == nil {
		return Delivery{}, noDatabase()
	}
	if err := app.rollbar.require(scopePost); err != nil && app.rollbar.require(scopePostClient) != nil {
		return Delivery{}, err
	}
	var total Delivery
	for _, l := range app.outbox.lanes {
		if app.rollbar.require(l.scope) == nil {
			d, err := l.deliverOnce(ctx)
			if err != nil {
				return Delivery{}, fmt.Errorf("deliver: %w", err)
			}
			total.Delivered += d.delivered.Load()
			total.Rejected += d.rejected.Load()
		}
	}
	app.store.deliveries.Flush(ctx)
	queued, _, err := app.store.queueLength(ctx)
	total.Queued = int64(queued)
	return total, err
}

// deliverOnce tries each entry that is currently in the lane, until it hits Rollbar's rate limit.
func (l *lane) deliverOnce(ctx context.Context) (*drain, error) {
	ids, err := l.queued(ctx)
	d := newDrain(l)
	claim := func(ctx context.Context) (*entry, error) {
		for len(ids) > 0 && !d.limited.Load() {
			id := ids[0]
			ids = ids[1:]
			if e, err := l.claim(ctx, id); e != nil || err != nil {
				return e, err
			}
		}
		return nil, nil
	}
	for e := new(entry); e != nil && err == nil && l.outbox.app.rollbar.limits[l.scope].rest() == 0; {
		e, err = d.next(ctx, claim, true, retryLimit)
	}
	d.workers.Wait()
	return d, err
}

// deliverQueue delivers what is queued until the context ends.
func (app *App) deliverQueue(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { app.findItems(ctx) })
	for _, l := range app.outbox.lanes {
		work.Go(func() { l.deliver(ctx) })
	}
}

// deliver delivers the lane's entries until the context ends. Its own process notifies it of new entries; it polls
// for those of other processes every second. An entry that arrives while none is due is sent at once.
func (l *lane) deliver(ctx context.Context) {
	o := l.outbox
	if err := o.app.rollbar.require(l.scope); err != nil {
		if ids, _ := l.queued(ctx); len(ids) > 0 {
			o.app.log.WarnContext(ctx, "occurrences are waiting for a Rollbar token", "occurrences", len(ids), "error", err)
		}
		return
	}
	d := newDrain(l)
	defer d.workers.Wait()
	for wait := true; ctx.Err() == nil; {
		if limit := l.limit(); limit > 0 {
			l.await(ctx, min(limit, time.Second)) // the limit may be better known by then
			continue
		}
		e, err := d.next(ctx, l.claimDue, wait, math.MaxInt64)
		wait = e != nil && e.others
		switch {
		case err != nil && ctx.Err() == nil:
			o.app.log.WarnContext(ctx, "the queue waits for PostgreSQL", "error", err)
			async.Sleep(ctx, 5*o.backoff)
		case e == nil:
			l.await(ctx, o.backoff)
		}
	}
}

// claimDue claims the next entry that is due. After an outage, all entries are due.
func (l *lane) claimDue(ctx context.Context) (*entry, error) {
	if l.recovered.Swap(false) {
		if err := l.makeAllAvailable(ctx); err != nil {
			l.recovered.Store(true)
			return nil, err
		}
	}
	return l.claim(ctx, 0)
}

// A drain delivers a lane's entries, several at a time. Its owner waits for the workers. An entry is given up only
// when Rollbar refuses it for good, and a failing entry does not hold up others: in an outage, the entries still take
// turns, only more slowly, and the first success makes all of them due.
type drain struct {
	lane                *lane
	slots               chan struct{} // held by workers
	workers             sync.WaitGroup
	delivered, rejected atomic.Int64
	limited             atomic.Bool // Rollbar's rate limit was hit
}

func newDrain(l *lane) *drain { return &drain{lane: l, slots: make(chan struct{}, deliveryWorkers)} }

// next claims an entry, after waiting for a turn if wait is set, and starts to deliver it. It returns nil if
// there is none, or no turn in time.
func (d *drain) next(ctx context.Context, claim func(context.Context) (*entry, error), wait bool, most time.Duration) (_ *entry, err error) {
	d.slots <- struct{}{}
	var e *entry
	if d.lane.turn(ctx, wait, most) {
		if e, err = claim(ctx); e == nil {
			d.lane.outbox.app.rollbar.limits[d.lane.scope].giveBack()
		}
	}
	if e == nil {
		<-d.slots
		return nil, err
	}
	d.workers.Go(func() {
		defer func() { <-d.slots }()
		if _, err := async.Protect(func() (any, error) { d.deliver(ctx, e); return nil, nil }); err != nil {
			d.lane.outbox.app.log.ErrorContext(ctx, "panic", "uuid", e.uuid, "error", err)
		}
	})
	return e, nil
}

// deliver sends an entry once and records what became of it.
func (d *drain) deliver(ctx context.Context, e *entry) {
	l, app := d.lane, d.lane.outbox.app
	ctx, cancel := finishing(ctx, e.until)
	defer cancel()
	ctx, span := app.telemetry.StartSpan(app.telemetry.ContinueTrace(ctx, e.traceContext), "queue.deliver", "custom", "queue.deliver")
	defer span.Finish()
	span.SetMetric("attempts", int64(e.attempts))
	err := app.rollbar.Post(withCall(ctx, callWithoutRetries()), e.data)
	span.SetError(err)
	switch {
	case err == nil:
		app.store.deliveries.Put(e.id)
		d.delivered.Add(1)
		l.succeeded()
	case isFinal(err):
		l.outbox.reject(ctx, e, err)
		d.rejected.Add(1)
		l.succeeded()
	default:
		app.log.WarnContext(ctx, "occurrence stays queued", "uuid", e.uuid, "attempts", e.attempts, "error", err)
		if isKind(err, rateLimited) {
			d.limited.Store(true)
		}
		l.failed(e.attempts, err)
		l.outbox.reschedule(ctx, e, l.outbox.pause(e.attempts))
	}
}

// finishing returns a context for finishing work in progress: it ends at until, or shutdownLimit after its parent.
func finishing(ctx context.Context, until time.Time) (context.Context, context.CancelFunc) {
	finish, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(shutdownLimit, cancel) })
	return finish, func() { stop(); cancel() }
}

// An outbox enqueues created occurrences and delivers them.
type outbox struct {
	app     *App
	entries async.Batcher[*entry, *entry] // to be enqueued
	pace    time.Duration                 // between two deliveries, while Rollbar's rate limit is unknown
	backoff time.Duration                 // before the second attempt; it doubles
	lanes   map[scope]*lane               // by the scope of the token

	mu      sync.Mutex
	length  int       // of the queue when it was counted, plus the entries enqueued since
	counted time.Time // zero if it has never been counted
}

// A lane is the queue of occurrences that are sent with one of Rollbar's tokens; other tokens do not hold it up. It
// also tracks the outage that its process sees: a run of failures that ends with the first success, even a create's.
type lane struct {
	outbox    *outbox
	scope     scope // of the token
	notified  chan struct{}
	recovered atomic.Bool // all waiting entries are to be made available

	mu           sync.Mutex
	failures     int       // in a row
	fresh        bool      // one of them was an entry's first attempt
	limitedUntil time.Time // Rollbar's rate limit lasts until then
}

// newOutbox returns an outbox that soon tries all entries: the service may have been restarted with a new token.
func newOutbox(app *App) *outbox {
	o := &outbox{app: app, pace: deliveryPace, backoff: firstBackoff, lanes: map[scope]*lane{}}
	for _, s := range []scope{scopePost, scopePostClient} {
		o.lanes[s] = &lane{outbox: o, scope: s, notified: make(chan struct{}, 1), fresh: true}
		o.lanes[s].recovered.Store(true)
	}
	o.entries.Run, o.entries.Key = o.enqueueAll, (*entry).key
	o.entries.Limit, o.entries.Alone = storeTimeout, itemAtFault
	d := &app.store.deliveries
	d.Run, d.Key = o.complete, func(id int64) string { return strconv.FormatInt(id, 10) }
	d.Limit, d.Alone, d.Pause = storeTimeout, itemAtFault, 50*time.Millisecond // reads end the pause
	return o
}

// failed records a failed attempt. attempts counts those of the entry so far.
func (l *lane) failed(attempts int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures++
	l.fresh = l.fresh || attempts == 1
	if isKind(err, rateLimited) {
		l.limitedUntil = time.Now().Add(min(failureOf(err).wait, longestPause)) // it may be lifted earlier
	}
}

// succeeded records that Rollbar accepted or refused an occurrence, which ends an outage. If only entries failed
// that had failed before, there was no outage, and they keep their pauses.
func (l *lane) succeeded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failures == 0 {
		return
	}
	if l.fresh {
		l.recovered.Store(true)
	}
	l.failures, l.fresh, l.limitedUntil = 0, false, time.Time{}
	l.notify()
}

// turn waits until another delivery may begin, at the pace that Rollbar allows. Unless wait is set, it may begin at
// once while nothing fails. turn returns false if the context ends, or if the wait would be longer than most.
func (l *lane) turn(ctx context.Context, wait bool, most time.Duration) bool {
	for ctx.Err() == nil {
		l.mu.Lock()
		slowdown := max(1, min(l.failures/outageAfter, longestSlowdown))
		if !wait && l.failures == 0 {
			slowdown = 0
		}
		l.mu.Unlock()
		left := l.outbox.app.rollbar.limits[l.scope].turn(l.outbox.pace, slowdown)
		switch {
		case left <= 0:
			return true
		case left > most:
			return false
		}
		async.Sleep(ctx, min(left, time.Second)) // the limit may be better known by then
	}
	return false
}

// limit returns how much longer Rollbar's rate limit lasts.
func (l *lane) limit() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(time.Until(l.limitedUntil), l.outbox.app.rollbar.limits[l.scope].rest())
}

// pause returns the time between an attempt and the next one: an exponential backoff with jitter.
func (o *outbox) pause(attempts int) time.Duration {
	pause := min(o.backoff<<min(attempts-1, 20), longestPause)
	return pause/2 + rand.N(pause/2)
}

// notify tells deliver that there may be something to deliver.
func (l *lane) notify() {
	select {
	case l.notified <- struct{}{}:
	default: // already notified
	}
}

// await waits for a notification, for at most atMost.
func (l *lane) await(ctx context.Context, atMost time.Duration) {
	select {
	case <-l.notified:
	case <-time.After(atMost):
	case <-ctx.Done():
	}
}

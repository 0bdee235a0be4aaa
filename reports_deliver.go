package main

import (
	"context"
	"errors"
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
	deliveryWorkers = 16               // half of maxCalls: some may hang
	firstBackoff    = time.Second
	outageAfter     = 100 // failures in a row; each further hundred adds the pace to the time between deliveries
	longestSlowdown = 20  // times the pace: a second
)

var reportsDeliverCmd = &Command{
	Name:    "reports.deliver",
	Route:   "POST /reports/deliver",
	Short:   "Deliver queued occurrences to Rollbar now, as serve does by itself",
	Changes: true,
	Run:     typed(reportsDeliver),
}

// Delivery counts what became of the entries, and what is queued afterwards.
type Delivery struct {
	Delivered int64 `json:"delivered"`
	Queued    int64 `json:"queued"`
	Rejected  int64 `json:"rejected"`
}

// reportsDeliver tries each entry that is queued now once, due or not, until Rollbar limits us.
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
		app.store.deliveries.Flush(ctx)
		ids, err := l.queued(ctx)
		if err != nil {
			return Delivery{}, err
		}
		total.Queued += int64(len(ids))
	}
	return total, nil
}

// deliverOnce tries what is in the lane now, until Rollbar limits us.
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
	if err == errLater {
		return d, nil
	}
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

// deliver delivers what is in the lane until the context ends. It learns at once of entries from its own
// process, and looks for those of others every second. An entry that comes while none is due begins at once.
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
			l.await(ctx, limit)
			continue
		}
		e, err := d.next(ctx, l.claimDue, wait, math.MaxInt64)
		switch {
		case err != nil && ctx.Err() == nil:
			o.app.log.WarnContext(ctx, "the queue waits for PostgreSQL", "error", err)
			async.Sleep(ctx, 5*o.backoff)
		case e != nil:
			wait = e.others
		default:
			wait = !l.await(ctx, o.backoff)
		}
	}
}

// claimDue claims the next entry that is due. After an outage all are.
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
// when Rollbar refuses it for good. One that fails does not hold up others: in an outage, one after the other is
// tried, only more slowly, and the first success makes all of them due.
type drain struct {
	lane                *lane
	slots               chan struct{} // taken by workers
	workers             sync.WaitGroup
	delivered, rejected atomic.Int64
	limited             atomic.Bool // Rollbar's rate limit was hit
}

func newDrain(l *lane) *drain { return &drain{lane: l, slots: make(chan struct{}, deliveryWorkers)} }

// next claims an entry, in its turn if it is to wait, and starts to deliver it. It returns nil for none.
func (d *drain) next(ctx context.Context, claim func(context.Context) (*entry, error), wait bool, most time.Duration) (*entry, error) {
	d.slots <- struct{}{}
	var e *entry
	err := d.lane.turn(ctx, wait, most)
	if err == nil {
		e, err = claim(ctx)
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

// finishing returns a context that ends at the time, or shutdownLimit after its parent, to finish what began.
func finishing(ctx context.Context, until time.Time) (context.Context, context.CancelFunc) {
	finish, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(shutdownLimit, cancel) })
	return finish, func() { stop(); cancel() }
}

// An outbox enqueues and delivers.
type outbox struct {
	app     *App
	entries async.Batcher[*entry, *entry] // to be enqueued
	pace    time.Duration                 // between two deliveries, where Rollbar's rate limit is not known
	backoff time.Duration                 // before the second attempt; it doubles
	lanes   map[scope]*lane               // by the scope of the token

	mu      sync.Mutex
	length  int       // of the queue, when it was counted, and what has come since
	counted time.Time // or zero
}

// A lane is the occurrences that are sent with one of Rollbar's tokens, and held up by nothing else. It also tracks
// the outage that its process sees: a run of failures that ends with the first success, including that of a request.
type lane struct {
	outbox    *outbox
	scope     scope // of the token
	notified  chan struct{}
	recovered atomic.Bool // all waiting entries are to be made available

	mu           sync.Mutex
	failures     int       // in a row
	fresh        bool      // one of them was an entry's first
	limitedUntil time.Time // Rollbar's rate limit lasts until then
}

// newOutbox returns an outbox that tries all entries soon: the service may have been started for a new token.
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
	d.Limit, d.Alone, d.Pause = storeTimeout, itemAtFault, 10*time.Millisecond // reads end the pause
	return o
}

// failed records a failure. The attempts are those of the entry so far.
func (l *lane) failed(attempts int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures++
	l.fresh = l.fresh || attempts == 1
	if isKind(err, rateLimited) {
		l.limitedUntil = time.Now().Add(min(failureOf(err).wait, longestPause)) // it may be lifted before
	}
}

// succeeded records that Rollbar took or refused an occurrence, which ends an outage. If only entries failed
// that had failed before, there was none, and they keep their pauses.
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

// errLater is that a delivery may not begin soon enough.
var errLater = errors.New("later")

// turn waits until another delivery may begin, at the pace that Rollbar allows. Unless it is to wait, it may begin at
// once while all is well. Its error is the context's, or errLater for a turn that is further away than most.
func (l *lane) turn(ctx context.Context, wait bool, most time.Duration) error {
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
			return nil
		case left > most:
			return errLater
		}
		async.Sleep(ctx, min(left, time.Second)) // more may be known by then
	}
	return ctx.Err()
}

// limit is how long Rollbar's rate limit still lasts.
func (l *lane) limit() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(time.Until(l.limitedUntil), l.outbox.app.rollbar.limits[l.scope].rest())
}

// pause is the time between an attempt and the next one. It doubles, with jitter.
func (o *outbox) pause(attempts int) time.Duration {
	pause := min(o.backoff<<min(attempts-1, 20), longestPause)
	return pause/2 + rand.N(pause/2)
}

// notify says that there may be something to deliver.
func (l *lane) notify() {
	select {
	case l.notified <- struct{}{}:
	default: // already notified
	}
}

// await waits for a notification, but not longer than atMost. It reports whether there was one.
func (l *lane) await(ctx context.Context, atMost time.Duration) bool {
	select {
	case <-l.notified:
		return true
	case <-time.After(atMost):
	case <-ctx.Done():
	}
	return false
}

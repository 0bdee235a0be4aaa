// reports_deliver.go empties the outbox: serve all the time, reports.deliver once. An entry is given up only
// on Rollbar's final word; age is no reason. Failures hold up nothing: in an outage, entry after entry is
// tried all the same, only more slowly, and the first success makes all of them due.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"app/internal/async"
)

const (
	deliveryPace    = time.Second / 20 // 1200 a minute: a backlog must not eat the project's quota
	deliveryWorkers = 8
	firstBackoff    = time.Second
	outageAfter     = 100 // failures in a row; each further hundred adds the pace to the time between deliveries
	longestSlowdown = 20  // times the pace: a second
)

var reportsDeliverCmd = &Command{
	Name:    "reports.deliver",
	Route:   "POST /reports/deliver",
	Short:   "Deliver queued occurrences now, as serve does by itself",
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
	store, err := app.database()
	if err != nil {
		return Delivery{}, err
	}
	if err := app.rollbar.require(scopePost); err != nil {
		return Delivery{}, err
	}
	ids, err := app.outbox.queued(ctx)
	d := newDrain(app.outbox)
	claim := func(ctx context.Context) (*entry, error) {
		for len(ids) > 0 && !d.limited.Load() {
			id := ids[0]
			ids = ids[1:]
			if e, err := app.outbox.claim(ctx, id); e != nil || err != nil {
				return e, err
			}
		}
		return nil, nil
	}
	for found := true; found && err == nil; {
		found, err = d.next(ctx, claim)
	}
	d.workers.Wait()
	if err != nil {
		return Delivery{}, fmt.Errorf("deliver: %w", err)
	}
	store.deliveries.Flush(ctx)
	ids, err = app.outbox.queued(ctx)
	return Delivery{d.delivered.Load(), int64(len(ids)), d.rejected.Load()}, err
}

// deliverQueue delivers what is queued until the context ends. It learns at once of entries from its own
// process, and looks for those of others every second.
func (app *App) deliverQueue(ctx context.Context) {
	o := app.outbox
	d := newDrain(o)
	defer d.workers.Wait()
	d.workers.Go(func() { app.findItems(ctx) })
	for ctx.Err() == nil {
		if limit := o.limit(); limit > 0 {
			o.await(ctx, limit)
			continue
		}
		found, err := d.next(ctx, o.claimDue)
		switch {
		case err != nil && ctx.Err() == nil:
			app.log.WarnContext(ctx, "the queue waits for PostgreSQL", "error", err)
			sleep(ctx, 5*o.backoff)
		case !found:
			o.await(ctx, o.backoff)
		}
	}
}

// claimDue claims the next entry that is due. After an outage all are.
func (o *outbox) claimDue(ctx context.Context) (*entry, error) {
	if o.recovered.Swap(false) {
		if err := o.makeAllAvailable(ctx); err != nil {
			o.recovered.Store(true)
			return nil, err
		}
	}
	return o.claim(ctx, 0)
}

// A drain delivers entries, several at a time, and counts the results. Its owner waits for the workers.
type drain struct {
	outbox              *outbox
	slots               chan struct{} // taken by workers
	workers             sync.WaitGroup
	delivered, rejected atomic.Int64
	limited             atomic.Bool // Rollbar's rate limit was hit
}

func newDrain(o *outbox) *drain {
	return &drain{outbox: o, slots: make(chan struct{}, deliveryWorkers)}
}

// next waits until another delivery may begin, claims an entry and starts to deliver it. It reports whether
// there was one.
func (d *drain) next(ctx context.Context, claim func(context.Context) (*entry, error)) (bool, error) {
	d.slots <- struct{}{}
	var e *entry
	err := d.outbox.turn(ctx)
	if err == nil {
		e, err = claim(ctx)
	}
	if e == nil {
		<-d.slots
		return false, err
	}
	d.workers.Go(func() {
		defer func() { <-d.slots }()
		if err := async.Protect(func() error { d.deliver(ctx, e); return nil }); err != nil {
			d.outbox.app.log.ErrorContext(ctx, "panic", "uuid", e.uuid, "error", err)
		}
	})
	return true, nil
}

// deliver sends an entry once and records what became of it.
func (d *drain) deliver(ctx context.Context, e *entry) {
	o, app := d.outbox, d.outbox.app
	ctx, cancel := finishing(ctx, e.until)
	defer cancel()
	ctx, span := app.telemetry.StartSpan(app.telemetry.ContinueTrace(ctx, e.traceContext), "queue.deliver", "custom", "queue.deliver")
	defer span.Finish()
	span.SetMetric("attempts", int64(e.attempts))
	err := app.rollbar.Post(withCall(ctx, callWithoutRetries()), e.data)
	span.SetError(err)
	switch {
	case err == nil:
		app.store.deliveries.Put(ctx, e.id)
		d.delivered.Add(1)
		o.succeeded()
	case isFinal(err):
		o.reject(ctx, e, err)
		d.rejected.Add(1)
		o.succeeded()
	default:
		app.log.WarnContext(ctx, "occurrence stays queued", "uuid", e.uuid, "attempts", e.attempts, "error", err)
		if isKind(err, rateLimited) {
			d.limited.Store(true)
		}
		o.failed(e.attempts, err)
		o.reschedule(ctx, e, o.pause(e.attempts))
	}
}

// finishing returns a context that ends at the time, or shutdownLimit after its parent, so that the service
// finishes what it has begun.
func finishing(ctx context.Context, until time.Time) (context.Context, context.CancelFunc) {
	finish, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(shutdownLimit, cancel) })
	return finish, func() { stop(); cancel() }
}

// An outbox enqueues and delivers. It also tracks the outage that its process sees: a run of failures that
// ends with the first success, including that of a request.
type outbox struct {
	app       *App
	entries   async.Batcher[*entry, *entry] // to be enqueued
	pace      time.Duration                 // between two deliveries
	backoff   time.Duration                 // before the second attempt; it doubles
	notified  chan struct{}
	recovered atomic.Bool // all waiting entries are to be made available

	mu           sync.Mutex
	next         time.Time // the next delivery's turn
	failures     int       // in a row
	fresh        bool      // one of them was an entry's first
	limitedUntil time.Time // Rollbar's rate limit lasts until then
}

// newOutbox returns an outbox that tries all entries soon: the service may have been started for a new token.
func newOutbox(app *App) *outbox {
	o := &outbox{app: app, pace: deliveryPace, backoff: firstBackoff, notified: make(chan struct{}, 1), fresh: true}
	o.entries.Run, o.entries.Key = o.enqueueAll, func(e *entry) string { return e.uuid }
	o.entries.Pause = 200 * time.Microsecond
	o.entries.Limit, o.entries.Alone, o.entries.Span = storeTimeout, itemAtFault, "store.shared"
	app.store.deliveries.Run = o.complete
	o.recovered.Store(true)
	return o
}

// failed records a failure. The attempts are those of the entry so far.
func (o *outbox) failed(attempts int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failures++
	o.fresh = o.fresh || attempts == 1
	var f *Failure
	if errors.As(err, &f) && f.kind == rateLimited {
		o.limitedUntil = time.Now().Add(min(f.wait, longestPause)) // it may be lifted before
	}
}

// succeeded records that Rollbar took or refused an occurrence, which ends an outage. If only entries failed
// that had failed before, there was none, and they keep their pauses.
func (o *outbox) succeeded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures == 0 {
		return
	}
	if o.fresh {
		o.recovered.Store(true)
	}
	o.failures, o.fresh, o.limitedUntil = 0, false, time.Time{}
	o.notify()
}

// turn waits until another delivery may begin. Its error is the context's.
func (o *outbox) turn(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o.mu.Lock()
	wait := max(0, time.Until(o.next))
	slowdown := max(1, min(o.failures/outageAfter, longestSlowdown))
	o.next = time.Now().Add(wait + o.pace*time.Duration(slowdown))
	o.mu.Unlock()
	sleep(ctx, wait)
	return ctx.Err()
}

// limit is how long Rollbar's rate limit still lasts.
func (o *outbox) limit() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Until(o.limitedUntil)
}

// pause is the time between an attempt and the next one. It doubles, with jitter.
func (o *outbox) pause(attempts int) time.Duration {
	pause := min(o.backoff<<min(attempts-1, 20), longestPause)
	return pause/2 + rand.N(pause/2)
}

// notify says that there may be something to deliver.
func (o *outbox) notify() {
	select {
	case o.notified <- struct{}{}:
	default: // already notified
	}
}

// await waits for a notification, but not longer than atMost.
func (o *outbox) await(ctx context.Context, atMost time.Duration) {
	select {
	case <-o.notified:
	case <-time.After(atMost):
	case <-ctx.Done():
	}
}

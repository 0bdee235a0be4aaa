// deliver.go empties the queue: in rounds of serve's own, and once for reports.deliver. An
// occurrence is given up only on Rollbar's final word; age is no reason.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	deliveryWorkers = 4
	deliveryPace    = time.Second / 20 // 1200 a minute: a backlog must not eat the project's quota
	longestBackoff  = 5 * time.Minute
	longestPause    = time.Hour // limits can be lifted before their time
	longestIdle     = 5 * time.Second
	outageAfter     = 2 * deliveryWorkers // occurrences that fail
)

var reportsDeliverCmd = &Command{
	Name:    "reports.deliver",
	Route:   "POST /reports/deliver",
	Short:   "Deliver queued occurrences now, as serve does by itself",
	Changes: true,
	Run:     typed(reportsDeliver),
}

// Delivery counts what a round of delivery did, and what is queued after it.
type Delivery struct {
	Delivered int64 `json:"delivered"`
	Queued    int64 `json:"queued"`
	Rejected  int64 `json:"rejected"`
}

func reportsDeliver(ctx context.Context, app *App, _ struct{}) (Delivery, error) {
	store, err := app.database()
	if err != nil {
		return Delivery{}, err
	}
	if err := app.rollbar.require(scopePost); err != nil {
		return Delivery{}, err
	}
	round := deliveryRound{app: app}
	if err := round.run(ctx); err != nil {
		return Delivery{}, fmt.Errorf("deliver: %w", err)
	}
	store.deliveries.flush(ctx)
	err = store.pool.QueryRow(ctx, `SELECT count(*) FROM reports WHERE state = 'queued'`).Scan(&round.done.Queued)
	return round.done, databaseError(err)
}

// A deliveryRound tries each queued occurrence once, oldest first, several at a time, and behind all
// others those that are held: for want of the right token, or because Rollbar failed on them while it
// took others. It ends early when Rollbar limits us or is down. A failure may be that one's fault, so
// those that were tried least come next, the newest first, until one is taken: those on which Rollbar fails
// hold up nothing else.
type deliveryRound struct {
	app       *App
	dueOnly   bool
	recovered bool           // Rollbar has just taken something
	failing   map[int64]bool // since Rollbar last took something: outageAfter of them are an outage

	mu       sync.Mutex
	began    time.Time // by PostgreSQL's clock, the zero time before the first is claimed
	done     Delivery
	outage   error // of the last delivery, if it failed
	failedAt time.Time
	limited  bool  // by Rollbar, or the service ends
	recovers bool  // something was taken behind some that failed
	err      error // of PostgreSQL
}

// isDown reports whether Rollbar is down or limits us.
func (r *deliveryRound) isDown() bool {
	return r.limited || r.outage != nil && len(r.failing) >= outageAfter
}

// run runs the round. Its error is one of PostgreSQL.
func (r *deliveryRound) run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range deliveryWorkers {
		workers.Go(func() {
			for r.app.pace.wait(ctx) {
				q := r.claim(ctx)
				if q == nil {
					return
				}
				err := protect(func() error { r.deliver(ctx, q); return nil })
				if err != nil {
					r.app.log.ErrorContext(ctx, "panic", "uuid", q.UUID, "error", err)
				}
			}
		})
	}
	workers.Wait()
	return r.err
}

// claim takes the next occurrence, or returns nil when the round is over.
func (r *deliveryRound) claim(ctx context.Context) *queued {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, held := range []bool{false, true} {
		if r.err != nil || r.isDown() {
			return nil
		}
		wanted := wanted{held: held, before: r.began, dueOnly: r.dueOnly || held && r.recovered, leastTried: r.outage != nil}
		began := time.Now()
		var q *queued
		if q, r.err = r.app.store.claim(ctx, wanted, r.app.lease()); q != nil {
			q.until = began.Add(r.app.lease())
			if r.began.IsZero() {
				r.began = q.claimed
			}
			return q
		}
	}
	return nil
}

// lease is how long one delivery may take before another process takes it over.
func (app *App) lease() time.Duration { return app.rollbar.timeout + 2*retryLimit }

// deliver sends one occurrence and records what became of it.
func (r *deliveryRound) deliver(ctx context.Context, q *queued) {
	ctx, cancel := finishing(ctx, q.until)
	defer cancel()
	ctx, span := r.app.telemetry.StartSpan(r.app.telemetry.ContinueTrace(ctx, q.Parent), "queue.deliver", "custom", "queue.deliver")
	defer span.Finish()
	span.SetMetric("attempts", float64(q.Attempts))
	began := time.Now()
	err := r.app.rollbar.Post(withCall(ctx, &Call{}), q.Data)
	span.SetError(err)
	hold := r.count(q, began, err)
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), storeTimeout) // also when all other time is over
	defer cancel()
	switch {
	case err == nil:
		_, _ = r.app.store.deliveries.do(ctx, q.ID) // markDelivered tells of an error
	case isFinal(err):
		r.app.reject(ctx, q.ID, err)
	default:
		what := "postponed"
		if hold {
			what = "held"
		}
		r.app.log.WarnContext(ctx, "occurrence stays queued", "uuid", q.UUID, "attempts", q.Attempts, "error", err)
		r.app.settle(ctx, q.ID, what, func(ctx context.Context) error {
			return r.app.store.postpone(ctx, q, hold, backoff(q.Attempts))
		})
	}
}

// count counts what a delivery came to that began then, and reports whether the occurrence is to be
// held.
func (r *deliveryRound) count(q *queued, began time.Time, err error) (hold bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil || isFinal(err):
		if err == nil {
			r.done.Delivered++
			r.app.tookOne()
		} else {
			r.done.Rejected++
		}
		r.recovers = r.recovers || len(r.failing) > 0
		r.outage = nil
		clear(r.failing)
		return false
	case isKind(err, rollbarAuth):
		return true
	case !isKind(err, badGateway, unavailable, upstreamTimeout):
		r.limited = true
	case r.app.tookOneSince(began): // Rollbar is not down
		return true
	default:
		if r.failing == nil {
			r.failing = map[int64]bool{}
		}
		r.failing[q.ID] = true
		hold = r.recovered
	}
	r.outage, r.failedAt = err, time.Now()
	return hold
}

// tookOne notes that Rollbar has taken an occurrence: a queue that has seen it down goes on.
func (app *App) tookOne() {
	app.taken.Store(time.Now().UnixNano())
	app.recovery.now()
}

func (app *App) tookOneSince(then time.Time) bool { return app.taken.Load() >= then.UnixNano() }

// finishing returns a context for what is to be finished also when the service ends, though not for
// longer than that may take, and in any case until then.
func finishing(ctx context.Context, until time.Time) (context.Context, context.CancelFunc) {
	finish, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(shutdownLimit, cancel) })
	return finish, func() { stop(); cancel() }
}

// backoff is the wait before the next try after so many: it doubles from a second, and spreads.
func backoff(attempts int) time.Duration {
	wait := min(time.Second<<min(attempts-1, 20), longestBackoff)
	return wait/2 + rand.N(wait/2)
}

// A pacer spaces out what several goroutines do.
type pacer struct {
	turn chan struct{} // held by whose turn is next
	next time.Time
}

func newPacer() *pacer { return &pacer{turn: make(chan struct{}, 1)} }

// wait returns true when it is the caller's turn, and false once the context has ended.
func (p *pacer) wait(ctx context.Context) bool {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return false
	}
	if !sleep(ctx, time.Until(p.next)) {
		return false
	}
	p.next = time.Now().Add(deliveryPace)
	return true
}

// sleep waits and reports whether it was not interrupted.
func sleep(ctx context.Context, wait time.Duration) bool {
	select {
	case <-time.After(wait):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// deliverQueue delivers what is queued until the context ends: at once when something comes, and
// again when its time has come. While Rollbar is down or limits us, it rests. As soon as Rollbar takes
// something, from whomever, all that waits is tried at once.
func (app *App) deliverQueue(ctx context.Context) {
	var helpers sync.WaitGroup
	defer helpers.Wait()
	helpers.Go(func() { app.listenForWork(ctx) })
	helpers.Go(func() { app.findItems(ctx) })
	app.store.retryHeld(ctx)
	var down time.Time // when Rollbar last failed, unless it has taken something since
	failing := map[int64]bool{}
	failures, recovered := 0, false
	for ctx.Err() == nil {
		round := deliveryRound{app: app, dueOnly: !recovered, recovered: recovered, failing: failing}
		err := round.run(ctx)
		switch {
		case err != nil:
			app.log.WarnContext(ctx, "the queue waits for PostgreSQL", "error", err)
		case round.outage != nil:
			down = round.failedAt
		case recovered || round.done != Delivery{}:
			recovered = !recovered && (round.recovers || !down.IsZero())
			if failures, down = 0, (time.Time{}); recovered {
				continue
			}
		}
		resting := err != nil || round.isDown()
		var wait time.Duration
		if resting {
			failures++
			wait = pauseAfter(round.outage, failures)
		} else {
			wait = app.store.nextDue(ctx, longestIdle)
		}
		if recovered = app.await(ctx, wait, resting, down); recovered {
			failures = 0
			clear(failing)
		}
	}
}

// pauseAfter is how long the queue rests after so many rounds that an outage of Rollbar's ended: as
// long as its limit says, or else a time that doubles. Without one it was PostgreSQL, which does not
// tell when it is back.
func pauseAfter(outage error, failures int) time.Duration {
	var f *Failure
	switch {
	case errors.As(outage, &f) && f.kind == rateLimited:
		return min(f.wait, longestPause)
	case outage == nil:
		return min(backoff(failures), longestIdle)
	}
	return min(backoff(failures), time.Minute)
}

// A wake tells the queue that there may be something to do.
type wake chan struct{}

func (w wake) now() {
	select {
	case w <- struct{}{}:
	default: // it has been told
	}
}

// await waits for some time, or, unless the queue rests, for work. It reports whether it ended because
// Rollbar, which was down, took something since then.
func (app *App) await(ctx context.Context, wait time.Duration, resting bool, down time.Time) (recovered bool) {
	work, recovery := app.work, app.recovery
	if resting {
		work = nil
	}
	if down.IsZero() {
		recovery = nil
	}
	over := time.After(wait)
	for {
		select {
		case <-work:
			return false
		case <-recovery:
			if app.tookOneSince(down) {
				return true
			}
		case <-over:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// listenForWork wakes the queue when PostgreSQL says that something was left to it.
func (app *App) listenForWork(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := app.store.writer(ctx)
		if err == nil {
			app.work.now() // for what came while nobody listened
			for err == nil {
				err = awaitWork(ctx, conn.Conn())
				app.work.now()
			}
			conn.Conn().Close(context.WithoutCancel(ctx)) // it may still listen
			conn.Release()
		}
		sleep(ctx, time.Second)
	}
}

// lookupWaits are the waits before Rollbar is asked which item a delivered occurrence became. It
// usually knows within 5 s.
var lookupWaits = []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second, time.Minute, 5 * time.Minute}

// findItems asks for the items of delivered occurrences, each when it is time, until the context ends.
func (app *App) findItems(ctx context.Context) {
	if app.rollbar.require(scopeRead) != nil {
		return
	}
	for app.pace.wait(ctx) {
		var found bool
		err := protect(func() (err error) {
			found, err = app.findItem(ctx)
			return err
		})
		switch {
		case err != nil && ctx.Err() == nil:
			app.log.WarnContext(ctx, "the item of a delivered occurrence is not known yet", "error", err)
			sleep(ctx, longestIdle)
		case !found:
			sleep(ctx, app.store.nextLookup(ctx, longestIdle))
		}
	}
}

// findItem asks for the item of one delivered occurrence, and reports whether there was one to ask
// for.
func (app *App) findItem(ctx context.Context) (found bool, err error) {
	id, uuid, lookups, err := app.store.claimLookup(ctx)
	if err != nil || id == 0 { // the queue says that PostgreSQL is down
		return false, nil
	}
	item, err := app.rollbar.ItemBy(withCall(ctx, &Call{}), "uuid", uuid)
	switch {
	case err == nil:
		err = app.store.found(ctx, id, item.ID)
	case isKind(err, invalid), isKind(err, notFound) && lookups >= len(lookupWaits):
		err = app.store.found(ctx, id, 0)
	case isKind(err, notFound):
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("occurrence %s: %w", uuid, err)
	}
	return true, err
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

// tried reports whether the queue has tried something in vain.
func (f *fixture) tried() bool {
	return len(f.rows(`SELECT '' FROM reports WHERE state = 'queued' AND attempts > 0 AND leased_until <= now()`)) > 0
}

// A limit for posting does not keep the queue from asking for items.
func TestItemsOfDeliveredDuringAPause(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.create(newUUID()).status)
	f.sandbox.FailOnly("POST /item", -1, sandbox.LimitedFar)
	require.Equal(t, 202, f.create(newUUID()).status)
	f.deliver(f.app)
	require.Eventually(t, f.tried, waitLimit, waitTick, "and now the queue rests for long")
	f.rows(`UPDATE reports SET next_lookup = now() WHERE next_lookup IS NOT NULL RETURNING ''`)
	require.Eventually(t, func() bool { return f.rows(`SELECT count(item_id)::text FROM reports`)[0] == "1" }, waitLimit, waitTick)
}

// failOn makes Rollbar always answer 500 to the bad occurrences. It counts the posts until Rollbar has taken all
// good ones, and then closes done.
func (f *fixture) failOn(bad []string, good int) (posts *atomic.Int64, done chan struct{}) {
	posts, done = &atomic.Int64{}, make(chan struct{})
	var taken atomic.Int64
	next := f.app.rollbar.client.Transport
	f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method != http.MethodPost {
			return next.RoundTrip(r)
		}
		body, err := io.ReadAll(r.Body)
		require.NoError(f.t, err)
		if taken.Load() < int64(good) {
			posts.Add(1)
		}
		if slices.Contains(bad, rawjson.Unquote(rawjson.Get(body, "data", "uuid"))) {
			return &http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader("{}")), Header: http.Header{}, Request: r}, nil
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		res, err := next.RoundTrip(r)
		if err == nil && res.StatusCode == 200 && taken.Add(1) == int64(good) {
			close(done)
		}
		return res, err
	})
	return posts, done
}

// Wherever the failing occurrences are in the queue, the others arrive in at most two and a half times the time
// that they need alone.
func TestDeliveryOfTheFailing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		queued int
		fails  func(n int) bool
		outage bool // all are tried while Rollbar is down
	}{
		{"at both ends", 300, func(n int) bool { return n < 8 || n >= 292 }, false},
		{"at the head", 200, func(n int) bool { return n < 60 }, false},
		{"at the tail", 200, func(n int) bool { return n >= 140 }, false},
		{"spread", 200, func(n int) bool { return n%3 == 0 }, false},
		{"at the head, after an outage", 200, func(n int) bool { return n < 60 }, true},
		{"spread, after an outage", 200, func(n int) bool { return n%3 == 0 }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			var bad []string
			for n, uuid := range f.enqueue(test.queued) {
				if test.fails(n) {
					bad = append(bad, uuid)
				}
			}
			good := test.queued - len(bad)
			posts, done := f.failOn(bad, good)
			if test.outage {
				f.sandbox.SetFault(sandbox.Down)
			}
			f.deliver(f.app)
			if test.outage {
				until(t, "all are tried", func() bool { return f.rows(`SELECT min(attempts)::text FROM reports`)[0] != "0" })
				f.sandbox.SetFault(sandbox.None)
				posts.Store(0)
			}
			<-done
			assert.LessOrEqual(t, float64(posts.Load())/float64(good), 2.5)
			until(t, "all good ones are delivered", func() bool {
				return f.rows(`SELECT count(*)::text FROM reports WHERE state = 'delivered'`)[0] == fmt.Sprint(good)
			})
		})
	}
}

// Hundreds of untried ones that fail look like an outage, in which the next are tried all the same.
func TestDeliveryBehindManyThatFail(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.app.outbox.pace = 100 * time.Microsecond
	uuids := f.enqueue(803)
	posts, done := f.failOn(uuids[:800], 3)
	f.deliver(f.app)
	<-done
	assert.Less(t, posts.Load(), int64(1600))
}

// The longer an outage lasts, the more rest Rollbar gets, up to a second between two deliveries.
func TestDeliverySlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(&App{store: &Store{}})
		began := time.Now()
		fail := func(times int) {
			for range times {
				assert.NoError(t, o.turn(t.Context()))
				o.failed(1, errors.New("500"))
			}
		}
		fail(199)
		assert.Equal(t, 198*deliveryPace, time.Since(began))
		fail(601)
		assert.Less(t, time.Since(began), 3*time.Minute, "untried ones that fail do not hold up others for longer")
		fail(10_000)
		began = time.Now()
		fail(10)
		assert.Equal(t, 10*time.Second, time.Since(began))
		o.succeeded()
		assert.NoError(t, o.turn(t.Context()))
		began = time.Now()
		assert.NoError(t, o.turn(t.Context()))
		assert.Equal(t, deliveryPace, time.Since(began))
	})
}

// While all is well, the oldest is delivered first, and so it is after an outage.
func TestDeliveryInOrder(t *testing.T) {
	t.Parallel()
	for _, outage := range []bool{false, true} {
		f := newFixture(t, 0)
		uuids := f.enqueue(20)
		if outage {
			f.exec(`UPDATE reports SET attempts = 3, next_attempt = now() + random() * interval '4 minutes'`)
		}
		var mu sync.Mutex
		var order []string
		next := f.app.rollbar.client.Transport
		f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, rawjson.Unquote(rawjson.Get(body, "data", "uuid")))
			r.Body = io.NopCloser(bytes.NewReader(body))
			return next.RoundTrip(r)
		})
		d := newDrain(f.app.outbox)
		for range uuids {
			found, err := d.next(t.Context(), f.app.outbox.claimDue)
			require.NoError(t, err)
			require.True(t, found)
			d.workers.Wait()
		}
		assert.Equal(t, uuids, order)
	}
}

// An outage ends when Rollbar takes something after the first failure of an entry. Entries that always fail make
// no outage.
func TestDeliveryDuringAnOutage(t *testing.T) {
	t.Parallel()
	o := newOutbox(&App{store: &Store{}})
	assert.True(t, o.recovered.Swap(false), "all are tried when the service starts")
	down := fail(badGateway, "500")
	for _, step := range []struct {
		attempts []int // of those that fail
		ended    bool
	}{{nil, false}, {[]int{2}, true}, {[]int{2, 3}, false}, {[]int{5, 1}, true}, {[]int{6, 2}, false}} {
		for _, attempts := range step.attempts {
			o.failed(attempts, down)
		}
		o.succeeded()
		assert.Equal(t, step.ended, o.recovered.Swap(false), step)
	}
}

func TestDeliveryPauses(t *testing.T) {
	t.Parallel()
	o := newOutbox(&App{store: &Store{}})
	for attempts, longest := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 50: longestPause, 5000: longestPause} {
		for range 20 {
			assert.LessOrEqual(t, o.pause(attempts), longest)
			assert.GreaterOrEqual(t, o.pause(attempts), longest/2)
		}
	}
	assert.LessOrEqual(t, o.limit(), time.Duration(0))
	for wait, longest := range map[time.Duration]time.Duration{40 * time.Second: 40 * time.Second, 48 * time.Hour: longestPause} {
		o.failed(1, fmt.Errorf("x: %w", &Failure{kind: rateLimited, wait: wait}))
		assert.InDelta(t, longest, o.limit(), float64(time.Second))
	}
	o.succeeded()
	assert.LessOrEqual(t, o.limit(), time.Duration(0))
}

// Lookups take no turns from deliveries, nor wait for them.
func TestDeliveryTurnsAreNotForLookups(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.create(newUUID()).status)
	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	next := time.Now().Add(time.Hour)
	f.app.outbox.next = next
	ctx, stop := newContext(t)
	done := make(chan struct{})
	go func() { f.app.findItems(ctx); close(done) }()
	until(t, "the item is known", func() bool { return f.rows(`SELECT count(item_id)::text FROM reports`)[0] == "1" })
	stop()
	<-done
	assert.Equal(t, next, f.app.outbox.next)
}

// While Rollbar limits us, reports.deliver does not try the rest.
func TestReportsDeliverWhileLimited(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.enqueue(100)
	f.sandbox.SetFault(sandbox.LimitedFar)
	assert.Equal(t, `{"delivered":0,"queued":100,"rejected":0}`+"\n", f.do("POST", "/reports/deliver", "").body)
	assert.Less(t, len(f.rows(`SELECT '' FROM reports WHERE attempts > 0`)), 100)
}

// reports.deliver tries each entry once, whatever fails and whenever it is due.
func TestReportsDeliverTriesEachOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.app.outbox.backoff = time.Nanosecond * 2
	uuids := f.enqueue(150)
	f.exec(`UPDATE reports SET next_attempt = now() + interval '4 minutes' WHERE id % 2 = 0`)
	f.failOn(uuids[:120], 30)
	assert.Equal(t, `{"delivered":30,"queued":120,"rejected":0}`+"\n", f.do("POST", "/reports/deliver", "").body)
	assert.Equal(t, []string{"1 1"}, f.rows(`SELECT min(attempts) || ' ' || max(attempts) FROM reports`))
}

// What reports.deliver delivers ends the pause of the queue.
func TestPauseEndsWithADelivery(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.deliver(f.app)
	f.sandbox.SetFault(sandbox.LimitedFar)
	first, second := newUUID(), newUUID()
	require.Equal(t, 202, f.create(first).status)
	require.Eventually(t, f.tried, waitLimit, waitTick, "and now the queue rests for long")
	f.sandbox.SetFault(sandbox.None)
	require.Contains(t, f.do("POST", "/reports/deliver", "").body, `{"delivered":1,`)
	f.sandbox.FailOnly("POST /item", 1, sandbox.LimitedFar)
	require.Equal(t, 202, f.create(second).status)
	f.eventually(second, "delivered")
}

// While Rollbar limits us for hours, or is down, the queue rests. It goes on as soon as Rollbar takes
// something, also with what is to wait for long.
func TestQueueRestsAndRecovers(t *testing.T) {
	t.Parallel()
	for _, fault := range []sandbox.Fault{sandbox.LimitedFar, sandbox.Down} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			f.sandbox.SetFault(fault)
			first, second := newUUID(), newUUID()
			require.Equal(t, 202, f.create(first).status)
			require.Equal(t, 202, f.create(second).status)
			f.deliver(f.app)
			require.Eventually(t, func() bool {
				return len(f.rows(`UPDATE reports SET next_attempt = now() + interval '4 minutes' WHERE attempts > 0 AND leased_until <= now() RETURNING ''`)) > 0
			}, waitLimit, waitTick)
			f.sandbox.SetFault(sandbox.None)
			require.Equal(t, 201, f.create(newUUID()).status)
			f.eventually(first, "delivered")
			f.eventually(second, "delivered")
		})
	}
}

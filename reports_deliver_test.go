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

// newLane returns the server lane of an outbox without a database.
func newLane() *lane {
	limits := newRateLimits(map[scope]accessToken{scopePost: {}, scopePostClient: {}})
	return newOutbox(&App{store: &Store{}, rollbar: &Rollbar{limits: limits}}).lanes[scopePost]
}

// tried reports whether the queue has tried an entry and failed.
func (f *fixture) tried() bool {
	return len(f.rows(`SELECT '' FROM reports WHERE state = 'queued' AND attempts > 0 AND leased_until <= now()`)) > 0
}

// A rate limit on posts does not keep the queue from looking up items.
func TestItemsOfDeliveredDuringAPause(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.create(newUUID()).status)
	f.sandbox.FailOnly("POST /item", -1, sandbox.LimitedFar)
	require.Equal(t, 202, f.create(newUUID()).status)
	f.deliver(f.app)
	require.Eventually(t, f.tried, waitLimit, waitTick, "and now the queue rests for long")
	f.rows(`UPDATE reports SET next_lookup = now() WHERE next_lookup IS NOT NULL RETURNING ''`)
	require.Eventually(t, func() bool { return f.rows(`SELECT count(item_id)::text FROM reports`)[0] == "1" },
		waitLimit, waitTick)
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
			return &http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader("{}")), Header: http.Header{},
				Request: r}, nil
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
		outage bool // all entries are tried while Rollbar is down
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
				until(t, "all are tried",
					func() bool { return f.rows(`SELECT min(attempts)::text FROM reports`)[0] != "0" })
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

// Hundreds of untried entries that fail look like an outage, but the next ones are tried all the same.
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
		o := newLane()
		began := time.Now()
		fail := func(times int) {
			for range times {
				assert.True(t, o.turn(t.Context(), true, time.Hour))
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
		assert.True(t, o.turn(t.Context(), true, time.Hour))
		began = time.Now()
		assert.True(t, o.turn(t.Context(), true, time.Hour))
		assert.Equal(t, deliveryPace, time.Since(began))
	})
}

// The oldest occurrence is delivered first, while all is well and after an outage.
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
		d := newDrain(f.app.outbox.lanes[scopePost])
		for range uuids {
			e, err := d.next(t.Context(), d.lane.claimDue, true, time.Hour)
			require.NoError(t, err)
			require.NotNil(t, e)
			d.workers.Wait()
		}
		assert.Equal(t, uuids, order)
	}
}

// An outage ends when Rollbar takes something after the first failure of an entry. Entries that always fail make
// no outage.
func TestDeliveryDuringAnOutage(t *testing.T) {
	t.Parallel()
	o := newLane()
	assert.True(t, o.recovered.Swap(false), "all are tried when the service starts")
	down := fail(badGateway, "500")
	for _, step := range []struct {
		attempts []int // of the entries that fail
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
	o := newLane()
	for attempts, longest := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second,
		50: longestPause, 5000: longestPause} {
		for range 20 {
			assert.LessOrEqual(t, o.outbox.pause(attempts), longest)
			assert.GreaterOrEqual(t, o.outbox.pause(attempts), longest/2)
		}
	}
	assert.LessOrEqual(t, o.limit(), time.Duration(0))
	for wait, longest := range map[time.Duration]time.Duration{40 * time.Second: 40 * time.Second,
		48 * time.Hour: longestPause} {
		o.failed(1, fmt.Errorf("x: %w", &Failure{kind: rateLimited, wait: wait}))
		assert.InDelta(t, longest, o.limit(), float64(time.Second))
	}
	o.succeeded()
	assert.LessOrEqual(t, o.limit(), time.Duration(0))
}

// Lookups neither take turns from deliveries nor wait for them.
func TestDeliveryTurnsAreNotForLookups(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.create(newUUID()).status)
	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	next := time.Now().Add(time.Hour)
	limit := f.app.rollbar.limits[scopePost]
	limit.delivery = next
	ctx, stop := newContext(t)
	done := make(chan struct{})
	go func() { f.app.findItems(ctx); close(done) }()
	until(t, "the item is known", func() bool { return f.rows(`SELECT count(item_id)::text FROM reports`)[0] == "1" })
	stop()
	<-done
	assert.Equal(t, next, limit.delivery)
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

// A delivery by reports.deliver ends the pause of the queue.
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
	f.sandbox.FailOnly("POST /item", 4, sandbox.Error) // all attempts of the create
	require.Equal(t, 202, f.create(second).status)
	f.eventually(second, "delivered")
}

// While Rollbar limits us for hours, or is down, the queue rests. As soon as Rollbar accepts something, it
// goes on, even with entries that would have to wait for long.
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
				return len(f.rows(`UPDATE reports SET next_attempt = now() + interval '4 minutes' WHERE attempts > 0 `+
					`AND leased_until <= now() RETURNING ''`)) > 0
			}, waitLimit, waitTick)
			f.sandbox.SetFault(sandbox.None)
			require.Equal(t, 201, f.create(newUUID()).status)
			f.eventually(first, "delivered")
			f.eventually(second, "delivered")
		})
	}
}

// calls is a response with the status that says how many calls are left for how many seconds.
func calls(status int, left, seconds string) *http.Response {
	return &http.Response{StatusCode: status,
		Header: http.Header{"X-Rate-Limit-Remaining": {left}, "X-Rate-Limit-Remaining-Seconds": {seconds}}}
}

// The queue makes at most half of the calls that Rollbar's limit leaves, spread over the rest of the window.
func TestDeliveryPace(t *testing.T) {
	for _, tt := range []struct {
		name       string
		res        *http.Response
		pace, rest time.Duration
	}{
		{"nothing known", &http.Response{StatusCode: 200}, deliveryPace, 0},
		{"plenty", calls(200, "48000", "60"), 2500 * time.Microsecond, 0},
		{"little", calls(200, "10", "600"), 100 * time.Second, 0},
		{"odd number", calls(422, "3", "30"), 15 * time.Second, 0},
		{"one", calls(200, "1", "30"), 30 * time.Second, 30 * time.Second},
		{"nothing for long", calls(200, "0", "66988"), trusted, trusted},
		{"window ended", calls(200, "0", "0"), deliveryPace, 0},
		{"over the limit", calls(429, "0", "66988"), deliveryPace, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLane()
				require.True(t, l.turn(t.Context(), true, time.Hour))
				l.outbox.app.rollbar.limits[scopePost].read(tt.res)
				began := time.Now()
				for rest := l.limit(); rest > 0; rest = l.limit() {
					time.Sleep(min(rest, time.Second))
				}
				assert.Equal(t, tt.rest, time.Since(began))
				require.True(t, l.turn(t.Context(), true, time.Hour))
				assert.InDelta(t, tt.pace, time.Since(began), float64(tt.pace)/100)
				began = time.Now()
				require.True(t, l.outbox.lanes[scopePostClient].turn(t.Context(), true, time.Hour))
				assert.Zero(t, time.Since(began), "another token's")
			})
		})
	}
}

// Half of a window's calls are left to others.
func TestDeliveryPaceOfAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLane()
		began, left := time.Now(), 1000
		for ; time.Since(began) < 59*time.Second; left-- {
			seconds := fmt.Sprintf("%.0f", (time.Minute - time.Since(began)).Seconds())
			l.outbox.app.rollbar.limits[scopePost].read(calls(200, fmt.Sprint(left), seconds))
			time.Sleep(l.limit())
			require.True(t, l.turn(t.Context(), true, time.Hour))
		}
		assert.InDelta(t, 500, left, 10)
	})
}

// A token that serves both lanes has one pace.
func TestDeliveryPaceOfASharedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newLane().outbox
		o.app.rollbar.limits = newRateLimits(map[scope]accessToken{
			scopePost: {value: "x"}, scopePostClient: {value: "x"},
		})
		began := time.Now()
		for n := range 10 {
			require.True(t, o.lanes[[]scope{scopePost, scopePostClient}[n%2]].turn(t.Context(), true, time.Hour))
		}
		assert.Equal(t, 9*deliveryPace, time.Since(began))
	})
}

// An occurrence that arrives at an empty queue is tried at once, unless Rollbar fails.
func TestDeliveryBeginsAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.relayTokens = []string{"sdk"} })
	f.app.outbox.pace, f.app.outbox.backoff = time.Hour, time.Hour
	f.deliver(f.app)
	for range 3 {
		uuid := newUUID()
		body := fmt.Sprintf(`{"access_token":"sdk","data":%s}`, occurrence(uuid))
		require.Equal(t, 200, f.do("POST", "/api/1/item/", body).status)
		f.eventually(uuid, "delivered")
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLane()
		l.failed(1, errors.New("500"))
		began := time.Now()
		for range 3 {
			require.True(t, l.turn(t.Context(), false, time.Hour))
		}
		assert.Equal(t, 2*deliveryPace, time.Since(began))
	})
}

// The queue does not wait for its next turn while it is empty, and its looks into it are no deliveries.
func TestEmptyQueueTakesNoTurns(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	limit := f.app.rollbar.limits[scopePost]
	limit.read(calls(200, "10", "66988"))
	latest := func() time.Time {
		limit.mu.Lock()
		defer limit.mu.Unlock()
		return limit.delivery
	}
	f.deliver(f.app)
	for range 3 {
		before := latest()
		until(t, "the queue looks again", func() bool { return latest().After(before) })
	}
	limit.mu.Lock()
	assert.LessOrEqual(t, limit.delivered, 1, "a look may be in progress")
	limit.mu.Unlock()
	f.eventually(f.enqueue(1)[0], "delivered")
}

// The queue rests no longer than it trusts what it knows of Rollbar's limit.
func TestLimitIsNotTrustedForever(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	limit := f.app.rollbar.limits[scopePost]
	limit.read(calls(200, "0", "66988"))
	f.deliver(f.app)
	uuid := f.enqueue(1)[0]
	limit.mu.Lock()
	limit.known = time.Now().Add(-trusted)
	limit.mu.Unlock()
	f.eventually(uuid, "delivered")
}

// However many deliveries hang, others find a slot for their calls.
func TestHangingDeliveriesLeaveSlots(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	f.sandbox.FailOnly("POST /item/", -1, sandbox.Slow)
	f.enqueue(2 * maxCalls)
	f.exec(`UPDATE reports SET client = id % 2 = 0`)
	f.deliver(f.app)
	until(t, "all workers deliver", func() bool { return len(f.app.rollbar.slots) == 2*deliveryWorkers })
	id := f.sandbox.ItemIDs()[0]
	assert.Equal(t, 200, f.get(fmt.Sprintf("/items/%d?source=live", id)).status)
}

// Whatever is wrong with one token, the occurrences for the other token are delivered.
func TestTokensHoldUpTheirOwn(t *testing.T) {
	t.Parallel()
	of := map[string]string{"server": "", "client": `,"platform":"ios"`}
	for _, test := range []struct{ name, post, client, good string }{
		{"no token for clients", sandbox.PostToken, "", "server"},
		{"no token for servers", "", sandbox.ClientPostToken, "client"},
		{"a wrong token for clients", sandbox.PostToken, "wrong", "server"},
		{"a wrong token for servers", "wrong", sandbox.ClientPostToken, "client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, func(c *Config) { c.postToken, c.postClientToken = test.post, test.client })
			queue := func(kind string) (uuids []string) {
				for range 30 {
					uuid := newUUID()
					data := fmt.Appendf(nil, `{"environment":"e","body":{"message":{"body":"x"}},"uuid":%q%s}`, uuid,
						of[kind])
					_, err := f.app.outbox.enqueue(t.Context(), uuid, data, false)
					require.NoError(t, err)
					uuids = append(uuids, uuid)
				}
				return uuids
			}
			bad := "client"
			if test.good == bad {
				bad = "server"
			}
			held, first := queue(bad), queue(test.good)
			assert.Equal(t, `{"delivered":30,"queued":30,"rejected":0}`+"\n", f.do("POST", "/reports/deliver", "").body)
			second := queue(test.good)
			stop := f.deliver(f.app)
			for _, uuid := range append(first, second...) {
				f.eventually(uuid, "delivered")
			}
			assert.Equal(t, []string{"30"}, f.rows(`SELECT count(*)::text FROM reports WHERE state = 'queued'`))
			if test.post == "" || test.client == "" {
				until(t, "it is said", func() bool {
					return strings.Contains(f.log.String(),
						"occurrences are waiting for a Rollbar token")
				})
				assert.Equal(t, []string{"0"},
					f.rows(`SELECT max(attempts)::text FROM reports WHERE uuid = '`+held[0]+`'`))
			}
			stop()
			f.config.postToken, f.config.postClientToken = sandbox.PostToken, sandbox.ClientPostToken
			f.deliver(f.newApp())
			f.eventually(held[29], "delivered")
		})
	}
}

// A full queue refuses only the occurrences that would have to wait.
func TestQueueLimit(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.QueueLimit = 3 })
	full := func(got *answer) {
		t.Helper()
		assert.Contains(t, got.requireProblem(503, "unavailable"), "QUEUE_LIMIT")
		assert.Equal(t, "10", got.header.Get("Retry-After"))
	}
	f.sandbox.SetFault(sandbox.Down)
	for _, uuid := range []string{"one", "two", "three"} {
		require.Equal(t, 202, f.create(uuid).status)
	}
	full(f.create("four"))
	assert.Equal(t, 202, f.create("two").status, "it is there already")
	_, err := f.app.outbox.enqueue(t.Context(), "five", occurrence("five"), false)
	assert.True(t, isKind(err, queueFull), err)
	e, err := f.app.outbox.enqueue(t.Context(), "three", occurrence("three"), false)
	require.NoError(t, err)
	assert.False(t, e.isNew)
	assert.Equal(t, 7, f.run("items", "create", "-message", "x", "-queue-limit", "3").exit)
	assert.Equal(t, []string{"one", "three", "two"}, f.rows(`SELECT uuid FROM reports ORDER BY uuid`))

	f.sandbox.SetFault(sandbox.None)
	assert.Equal(t, 201, f.create("six").status, "it need not wait")
	f.do("POST", "/reports/deliver", "")
	e, err = f.app.outbox.enqueue(t.Context(), "seven", occurrence("seven"), false)
	require.NoError(t, err)
	assert.True(t, e.isNew)
}

// Occurrences that were delivered a moment ago take up no room.
func TestQueueLimitBesideDeliveries(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.QueueLimit = 1 })
	for range 20 {
		require.Equal(t, 201, f.create(newUUID()).status)
		e, err := f.app.outbox.enqueue(t.Context(), "one", occurrence("one"), false)
		require.NoError(t, err)
		assert.True(t, e.isNew)
		f.app.outbox.discard(t.Context(), e)
	}
}

// Of many concurrent occurrences, as many are queued as there is room for.
func TestQueueLimitOfMany(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.QueueLimit = 25 })
	var queued atomic.Int64
	var callers sync.WaitGroup
	for range 100 {
		callers.Go(func() {
			uuid := newUUID()
			if _, err := f.app.outbox.enqueue(t.Context(), uuid, occurrence(uuid), false); err == nil {
				queued.Add(1)
			}
		})
	}
	callers.Wait()
	assert.Equal(t, int64(25), queued.Load())
	assert.Equal(t, []string{"25"}, f.rows(`SELECT count(*)::text FROM reports`))
}

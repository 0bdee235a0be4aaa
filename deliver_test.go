package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
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

// Occurrences on which Rollbar fails, while it takes others, hold up nothing.
func TestOccurrencesOnWhichRollbarFails(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"before the others", "on both sides", "while Rollbar takes direct ones"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			f.sandbox.SetFault(sandbox.Down)
			create := func(n int) (uuids []string) {
				for range n {
					uuids = append(uuids, newUUID())
					require.Equal(t, 202, f.create(uuids[len(uuids)-1]).status)
				}
				return uuids
			}
			bad, good := create(3*outageAfter), create(3)
			if where == "on both sides" {
				bad = append(bad, create(3*outageAfter)...)
			}
			next := f.app.rollbar.client.Transport
			f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				body, err := io.ReadAll(r.Body)
				require.NoError(t, err)
				if slices.Contains(bad, rawjson.Unquote(rawjson.Get(body, "data", "uuid"))) {
					return &http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader("{}")), Header: http.Header{}, Request: r}, nil
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
				return next.RoundTrip(r)
			})
			f.sandbox.SetFault(sandbox.None)
			switch where {
			case "before the others":
				assert.Contains(t, f.do("POST", "/reports/deliver", "").body, `{"delivered":3,`)
				return
			case "on both sides":
				for range 2 * len(bad) / outageAfter {
					f.do("POST", "/reports/deliver", "")
				}
				assert.Equal(t, fmt.Sprint(len(good)), f.rows(`SELECT count(*)::text FROM reports WHERE state = 'delivered'`)[0])
				return
			}
			f.deliver(f.app)
			for _, uuid := range good {
				require.Eventually(t, func() bool {
					assert.Equal(t, 201, f.create(newUUID()).status)
					return f.state(uuid) == "delivered"
				}, waitLimit, waitTick)
			}
			require.Eventually(t, func() bool {
				f.create(newUUID())
				return len(f.rows(`SELECT '' FROM reports WHERE state = 'queued' AND held`)) == len(bad)
			}, waitLimit, waitTick, "they come behind the others from now on")
		})
	}
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

// While Rollbar is down, a round ends with the first few that notice.
func TestRoundEndsEarly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.SetFault(sandbox.Down)
	for range 2 * outageAfter {
		require.Equal(t, 202, f.create(newUUID()).status)
	}
	for _, held := range []string{"FALSE", "TRUE"} {
		f.rows(`UPDATE reports SET attempts = 0, held = ` + held + ` RETURNING ''`)
		assert.Equal(t, 200, f.do("POST", "/reports/deliver", "").status)
		tried := len(f.rows(`SELECT '' FROM reports WHERE attempts > 0`))
		assert.GreaterOrEqual(t, tried, outageAfter)
		assert.Less(t, tried, outageAfter+deliveryWorkers)
	}
}

// One that fails is no outage, for which the queue would rest; several are, and a limit.
func TestOutage(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	round := deliveryRound{app: f.app}
	for id := range int64(outageAfter) {
		assert.False(t, round.isDown())
		for range outageAfter {
			assert.False(t, round.count(&queued{ID: id}, time.Now(), fail(badGateway, "500")))
		}
	}
	assert.True(t, round.isDown())
	assert.False(t, round.count(&queued{ID: 4711}, time.Now(), nil))
	assert.False(t, round.isDown())
	assert.True(t, round.recovers)
	assert.True(t, round.count(&queued{ID: 1}, time.Now().Add(-time.Second), fail(badGateway, "500")), "another was taken meanwhile")
	assert.False(t, round.count(&queued{ID: 2}, time.Now(), fail(rateLimited, "429")))
	assert.True(t, round.isDown())
}

func TestPauseAfter(t *testing.T) {
	t.Parallel()
	limited := func(wait time.Duration) error {
		return fmt.Errorf("x: %w", &Failure{kind: rateLimited, wait: wait})
	}
	assert.Equal(t, 40*time.Second, pauseAfter(limited(40*time.Second), 1))
	assert.Equal(t, time.Hour, pauseAfter(limited(48*time.Hour), 1))
	for failures, longest := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 50: time.Minute, 5000: time.Minute} {
		for range 20 {
			pause := pauseAfter(fail(badGateway, "down"), failures)
			assert.LessOrEqual(t, pause, longest)
			assert.GreaterOrEqual(t, pause, min(longest/2, 30*time.Second))
			assert.LessOrEqual(t, pauseAfter(nil, failures), longestIdle, "PostgreSQL's end is looked for")
		}
	}
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
				return len(f.rows(`UPDATE reports SET next_attempt = now() + interval '1 hour' WHERE attempts > 0 AND leased_until <= now() RETURNING ''`)) > 0
			}, waitLimit, waitTick)
			f.sandbox.SetFault(sandbox.None)
			require.Equal(t, 201, f.create(newUUID()).status)
			f.eventually(first, "delivered")
			f.eventually(second, "delivered")
		})
	}
}

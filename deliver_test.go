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
)

// A limit for posting does not keep the queue from asking for items.
func TestItemsOfDeliveredDuringAPause(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.create(newUUID()).status)
	f.sandbox.failOnly("POST /item", -1, faultLimitedFar)
	require.Equal(t, 202, f.create(newUUID()).status)
	f.deliver(f.app)
	require.Eventually(t, func() bool { return f.rows(`SELECT max(attempts)::text FROM reports`)[0] != "0" }, waitLimit, waitTick, "and now the queue rests for long")
	f.rows(`UPDATE reports SET next_lookup = now() WHERE next_lookup IS NOT NULL RETURNING ''`)
	require.Eventually(t, func() bool { return f.rows(`SELECT count(item_id)::text FROM reports`)[0] == "1" }, waitLimit, waitTick)
}

// Occurrences on which Rollbar fails, while it takes others, hold up nothing.
func TestOccurrencesOnWhichRollbarFails(t *testing.T) {
	t.Parallel()
	for _, takes := range []string{"nothing else", "direct ones meanwhile"} {
		t.Run(takes, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			f.sandbox.setFault(faultDown)
			var bad []string
			for range 3 * outageAfter {
				bad = append(bad, newUUID())
				require.Equal(t, 202, f.create(bad[len(bad)-1]).status)
			}
			good := []string{newUUID(), newUUID(), newUUID()}
			for _, uuid := range good {
				require.Equal(t, 202, f.create(uuid).status)
			}
			next := f.app.rollbar.client.Transport
			f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				body, err := io.ReadAll(r.Body)
				require.NoError(t, err)
				if slices.Contains(bad, unquoteJSON(member(body, "data", "uuid"))) {
					return &http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader("{}")), Header: http.Header{}, Request: r}, nil
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
				return next.RoundTrip(r)
			})
			f.sandbox.setFault(faultNone)
			if takes == "nothing else" {
				assert.Contains(t, f.do("POST", "/reports/deliver", "").body, `{"delivered":3,`)
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
	f.sandbox.setFault(faultLimitedFar)
	first, second := newUUID(), newUUID()
	require.Equal(t, 202, f.create(first).status)
	tried := func() bool { return f.rows(`SELECT max(attempts)::text FROM reports`)[0] != "0" }
	require.Eventually(t, tried, waitLimit, waitTick, "and now the queue rests for long")
	f.sandbox.setFault(faultNone)
	f.passTime() // the queue's lease
	require.Contains(t, f.do("POST", "/reports/deliver", "").body, `{"delivered":1,`)
	f.sandbox.failOnly("POST /item", 1, faultLimitedFar)
	require.Equal(t, 202, f.create(second).status)
	f.eventually(second, "delivered")
}

// While Rollbar is down, a round ends with the first few that notice.
func TestRoundEndsEarly(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.setFault(faultDown)
	for range 2 * outageAfter {
		require.Equal(t, 202, f.create(newUUID()).status)
	}
	f.rows(`UPDATE reports SET attempts = 0 RETURNING ''`)
	assert.Equal(t, 200, f.do("POST", "/reports/deliver", "").status)
	tried := len(f.rows(`SELECT '' FROM reports WHERE attempts > 0`))
	assert.GreaterOrEqual(t, tried, outageAfter)
	assert.Less(t, tried, outageAfter+deliveryWorkers)
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
	for _, fault := range []sandboxFault{faultLimitedFar, faultDown} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			f.sandbox.setFault(fault)
			first, second := newUUID(), newUUID()
			require.Equal(t, 202, f.create(first).status)
			require.Equal(t, 202, f.create(second).status)
			f.deliver(f.app)
			require.Eventually(t, func() bool {
				return len(f.rows(`UPDATE reports SET next_attempt = now() + interval '1 hour' WHERE attempts > 0 AND leased_until <= now() RETURNING ''`)) > 0
			}, waitLimit, waitTick)
			f.sandbox.setFault(faultNone)
			require.Equal(t, 201, f.create(newUUID()).status)
			f.eventually(first, "delivered")
			f.eventually(second, "delivered")
		})
	}
}

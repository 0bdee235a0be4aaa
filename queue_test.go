package main

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"app/internal/devpg/devpgtest"
	"app/internal/sandbox"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// state returns the state of the report with the uuid, or "" where there is none.
func (f *fixture) state(uuid string) string {
	f.t.Helper()
	rows := f.rows(fmt.Sprintf(`SELECT state FROM reports WHERE uuid = '%s'`, uuid))
	if len(rows) == 0 {
		return ""
	}
	return rows[0]
}

// eventually waits until the report with the uuid is in the state.
func (f *fixture) eventually(uuid, state string) {
	f.t.Helper()
	require.Eventually(f.t, func() bool { return f.state(uuid) == state }, waitLimit, waitTick)
}

// create posts a flat occurrence with the uuid.
func (f *fixture) create(uuid string) *answer {
	f.t.Helper()
	return f.do("POST", "/items", fmt.Sprintf(`{"message":"x","uuid":%q}`, uuid))
}

// deliver runs the queue's worker for the rest of the test.
func (f *fixture) deliver(app *App) {
	done := make(chan struct{})
	ctx, stop := newContext(f.t)
	go func() { app.deliverQueue(ctx); close(done) }()
	f.t.Cleanup(func() { stop(); <-done })
}

func TestCreateWhileRollbarFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		fault  sandbox.Fault
		status int
		state  string
	}{
		{sandbox.None, 201, "delivered"},
		{sandbox.Down, 202, "queued"},
		{sandbox.Error, 202, "queued"},
		{sandbox.BadGateway, 202, "queued"},
		{sandbox.Truncated, 202, "queued"},
		{sandbox.Slow, 202, "queued"},
		{sandbox.Dropped, 202, "queued"},
		{sandbox.LimitedFar, 202, "queued"},
		{sandbox.Forbidden, 502, ""},
		{sandbox.Deactivated, 502, ""},
	}
	for _, test := range tests {
		t.Run(string(test.fault), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, withTimeout(200*time.Millisecond))
			f.sandbox.SetFault(test.fault)
			const uuid = "0d6c5a39-8a6c-4f0e-9d9b-4cf8f26a2c11"
			got := f.create(uuid)
			require.Equal(t, test.status, got.status, got.body)
			assert.Equal(t, test.state, f.state(uuid))
			if test.state == "" {
				got.requireProblem(502, "rollbar-auth")
				assert.NotContains(t, got.body, sandbox.PostToken)
				return
			}
			assert.Equal(t, fmt.Sprintf(`{"uuid":%q,"state":%q}`+"\n", uuid, test.state), got.body)
			assert.Equal(t, got.body, f.create(uuid).body, "the same again")

			f.sandbox.SetFault(sandbox.None)
			f.deliver(f.app)
			f.eventually(uuid, "delivered")
			assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid))
			assert.Equal(t, 201, f.create(uuid).status, "answered by what the report says now")
		})
	}
}

// What one failed attempt leaves open, a repetition settles at once.
func TestCreateIsRepeated(t *testing.T) {
	t.Parallel()
	for _, fault := range []sandbox.Fault{sandbox.Down, sandbox.Error, sandbox.BadGateway, sandbox.Truncated, sandbox.Dropped} {
		f := newFixture(t, 0)
		f.sandbox.FailNext(1, fault)
		uuid := newUUID()
		assert.Equal(t, 201, f.create(uuid).status, fault)
		assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid), fault)
		assert.Equal(t, "delivered", f.state(uuid), fault)
	}
}

// The answer does not wait until the report is marked, but who asks next does.
func TestDeliveredReadsAsDelivered(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 5 {
				uuid := newUUID()
				assert.Equal(t, 201, f.create(uuid).status)
				assert.Contains(t, f.get("/reports?state=delivered&limit=1000").body, uuid)
				again := f.create(uuid)
				assert.Equal(t, 201, again.status, again.body)
				assert.Equal(t, 1, f.sandbox.PostsOf(uuid))
			}
		})
	}
	clients.Wait()
}

// A subcommand does not end before the report is marked.
func TestDeliveredByASubcommand(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	require.Zero(t, f.run("items", "create", "-message", "x", "-uuid", uuid).exit)
	assert.Equal(t, []string{"delivered"}, f.rows(`SELECT state FROM reports`))
}

func TestDeliveryOfTheRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.SetFault(sandbox.Down)
	first, second := newUUID(), newUUID()
	require.Equal(t, 202, f.do("POST", "/items", fmt.Sprintf(`{"data":{"environment":"e","platform":"browser","uuid":%q,"body":{"message":{"body":"x"}}}}`, first)).status)
	require.Equal(t, 202, f.create(second).status)
	f.sandbox.SetFault(sandbox.None)
	f.deliver(f.app)
	f.eventually(second, "delivered")
	assert.Equal(t, "queued", f.state(first), "it waits for the right token, and holds up nothing else")
	assert.Zero(t, f.sandbox.OccurrencesOf(first))
}

// A round on the command line delivers what it can, and counts.
func TestReportsDeliver(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.SetFault(sandbox.Down)
	for range 5 {
		require.Equal(t, 202, f.create(newUUID()).status)
	}
	assert.Equal(t, `{"delivered":0,"queued":5,"rejected":0}`+"\n", f.run("reports", "deliver").out)
	f.sandbox.SetFault(sandbox.None)
	assert.Equal(t, `{"delivered":5,"queued":0,"rejected":0}`+"\n", f.run("reports", "deliver").out)
	assert.Equal(t, `{"delivered":0,"queued":0,"rejected":0}`+"\n", f.do("POST", "/reports/deliver", "").body)
}

// Cleaning keeps what is queued.
func TestCleanKeepsTheQueue(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	require.Equal(t, 200, f.get("/items").status)
	require.Equal(t, 201, f.create(newUUID()).status)
	f.sandbox.SetFault(sandbox.Down)
	require.Equal(t, 202, f.create(newUUID()).status)
	assert.Equal(t, `{"deleted":1,"kept_queued":1}`+"\n", f.do("DELETE", "/reports?state=delivered", "").body)
	assert.Equal(t, `{"deleted":3,"kept_queued":1}`+"\n", f.do("DELETE", "/reports", "").body)
	assert.Equal(t, []string{"queued"}, f.rows(`SELECT state FROM reports`))
}

// While a create is under way, no worker takes it: its lease does not end before.
func TestWorkersLeaveWhatIsBeingSent(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	f.sandbox.FailOnly("POST /item", 1, sandbox.Slow)
	answers := make(chan *answer)
	go func() { answers <- f.create(uuid) }()
	f.await("POST /item")
	assert.Equal(t, `{"delivered":0,"queued":1,"rejected":0}`+"\n", f.run("reports", "deliver").out)
	f.sandbox.SetFault(sandbox.None)
	assert.Equal(t, 201, (<-answers).status)
	assert.Equal(t, 1, f.sandbox.PostsOf(uuid))
}

// A claim that a dead process held is taken over when it runs out.
func TestLeaseOfTheDead(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	_, err := f.app.store.record(t.Context(), uuid, []byte(`{"environment":"e","body":{"message":{"body":"x"}},"uuid":"`+uuid+`"}`), time.Hour)
	require.NoError(t, err)
	assert.Equal(t, `{"delivered":0,"queued":1,"rejected":0}`+"\n", f.run("reports", "deliver").out)
	f.rows(`UPDATE reports SET leased_until = now() RETURNING ''`)
	f.deliver(f.app)
	f.eventually(uuid, "delivered")
}

// Several workers, as of several replicas, deliver each occurrence once.
func TestReplicasShareTheQueue(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.SetFault(sandbox.Down)
	var uuids []string
	for range 30 {
		uuids = append(uuids, newUUID())
		require.Equal(t, 202, f.create(uuids[len(uuids)-1]).status)
	}
	f.sandbox.SetFault(sandbox.None)
	before := map[string]int{}
	for _, uuid := range uuids {
		before[uuid] = f.sandbox.PostsOf(uuid)
	}
	f.deliver(f.app)
	f.deliver(f.newApp())
	for _, uuid := range uuids {
		f.eventually(uuid, "delivered")
		assert.Equal(t, before[uuid]+1, f.sandbox.PostsOf(uuid))
	}
}

// New work is delivered at once, also from another process.
func TestQueueIsWoken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.deliver(f.newApp())
	require.Eventually(t, func() bool {
		return len(f.rows(`SELECT '' FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND application_name = 'app'`)) > 0
	}, waitLimit, waitTick)
	f.sandbox.FailNext(maxAttempts, sandbox.Error)
	uuid := newUUID()
	require.Equal(t, 202, f.create(uuid).status)
	f.eventually(uuid, "delivered")
}

func (f *fixture) findItem() {
	f.t.Helper()
	found, err := f.app.findItem(f.t.Context())
	require.NoError(f.t, err)
	require.True(f.t, found, "it is time")
}

// Rollbar is asked which item an occurrence became; sightings stay reports of their own.
func TestItemsOfDelivered(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.Set(func(s *sandbox.Settings) { s.Manual = true })
	uuid := newUUID()
	require.Equal(t, 201, f.create(uuid).status)
	soon := func() { f.rows(`UPDATE reports SET next_lookup = now() WHERE next_lookup IS NOT NULL RETURNING ''`) }
	soon()
	f.findItem()
	assert.Equal(t, []string{"1 true"}, f.rows(`SELECT lookups || ' ' || (item_id IS NULL) FROM reports`))
	f.sandbox.Process()
	soon()
	f.findItem()
	id := f.sandbox.ItemIDs()[0]
	assert.Equal(t, []string{fmt.Sprintf("delivered %d true", id)}, f.rows(`SELECT state || ' ' || item_id || ' ' || (next_lookup IS NULL) FROM reports`))
	require.Equal(t, 200, f.get("/items").status)
	assert.Equal(t, []string{"delivered", "current"}, f.rows(fmt.Sprintf(`SELECT state FROM reports WHERE item_id = %d ORDER BY id`, id)))
}

func TestItemsOfDeliveredAreGivenUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.Set(func(s *sandbox.Settings) { s.Manual = true })
	require.Equal(t, 201, f.create(newUUID()).status)
	wait := func() (seconds float64) {
		_, err := fmt.Sscan(f.rows(`SELECT extract(epoch FROM next_lookup - now())::text FROM reports`)[0], &seconds)
		require.NoError(t, err)
		return seconds
	}
	for i := range len(lookupWaits) {
		assert.InDelta(t, lookupWaits[i].Seconds(), wait(), 1, "the waits grow")
		f.rows(`UPDATE reports SET next_lookup = now() WHERE next_lookup IS NOT NULL RETURNING ''`)
		f.findItem()
	}
	assert.Equal(t, []string{"true"}, f.rows(`SELECT (next_lookup IS NULL AND item_id IS NULL)::text FROM reports`))

	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	f.sandbox.SetFault(sandbox.Down)
	_, err := f.app.findItem(t.Context())
	assert.Error(t, err)
	assert.Equal(t, []string{"false"}, f.rows(`SELECT (next_lookup IS NULL)::text FROM reports`), "but only where Rollbar answers")
}

// A text that is no UUID is taken by Rollbar, but cannot be looked up.
func TestItemsOfOtherUUIDs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.create("order-4711").status)
	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	f.findItem()
	assert.Equal(t, []string{"true"}, f.rows(`SELECT (next_lookup IS NULL)::text FROM reports`))
}

// The worst race: a request that Rollbar's refusal of the token will undo has already answered
// another one with the same uuid.
func TestForgottenNotWhenAcknowledged(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	f.sandbox.FailOnly("POST /item", 1, sandbox.Slow)
	answers := make(chan *answer)
	go func() { answers <- f.create(uuid) }()
	f.await("POST /item")
	require.Equal(t, 202, f.create(uuid).status)
	f.sandbox.SetFault(sandbox.Forbidden)
	(<-answers).requireProblem(502, "rollbar-auth")
	assert.Equal(t, "queued", f.state(uuid))
}

func TestCreateWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	postgres := devpgtest.Start(t, "")
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL = postgres.URL() })
	require.Equal(t, 200, f.get("/reports").status)
	postgres.Halt("immediate")
	uuid := newUUID()
	got := f.create(uuid)
	assert.Equal(t, 201, got.status, got.body)
	assert.Equal(t, "false", got.header.Get("Report-Stored"))
	assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid))
	onShell := f.run("items", "create", "-message", "x")
	assert.Equal(t, 0, onShell.exit)
	assert.Contains(t, onShell.err, "app: nothing is stored: ")

	f.sandbox.SetFault(sandbox.LimitedFar)
	both := f.create(newUUID())
	both.requireProblem(503, "unavailable")
	assert.NotEmpty(t, both.header.Get("Retry-After"))
	f.sandbox.SetFault(sandbox.Down)
	f.create(newUUID()).requireProblem(503, "unavailable")

	f.sandbox.SetFault(sandbox.None)
	postgres.Resume()
	require.Eventually(t, func() bool { return f.create(newUUID()).header.Get("Report-Stored") == "" }, waitLimit, waitTick)
}

// Who delivers takes turns, at a pace that leaves others some of Rollbar's limit. A turn that somebody
// waits for in vain is not lost.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer()
		began := time.Now()
		var workers sync.WaitGroup
		for range deliveryWorkers {
			workers.Go(func() {
				for range 25 {
					assert.True(t, p.wait(t.Context()))
				}
			})
		}
		workers.Wait()
		assert.Equal(t, (25*deliveryWorkers-1)*deliveryPace, time.Since(began))

		began = time.Now()
		left, leave := context.WithCancel(t.Context())
		leave()
		for range 1000 {
			assert.False(t, p.wait(left))
		}
		assert.True(t, p.wait(t.Context()))
		assert.LessOrEqual(t, time.Since(began), deliveryPace)
	})
}

// A delivery that has begun is finished when the service ends, unless that takes too long.
func TestFinishing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, end := context.WithCancel(t.Context())
		long, cancelLong := finishing(parent, time.Now().Add(time.Hour))
		defer cancelLong()
		short, cancelShort := finishing(parent, time.Now().Add(time.Second))
		defer cancelShort()
		end()
		began := time.Now()
		assert.NoError(t, long.Err())
		<-short.Done()
		assert.Equal(t, time.Second, time.Since(began))
		<-long.Done()
		assert.Equal(t, shutdownLimit, time.Since(began))
	})
}

// The oldest comes first; what another transaction is just claiming is passed over.
func TestClaim(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.SetFault(sandbox.Down)
	var uuids []string
	for range 3 {
		uuids = append(uuids, newUUID())
		require.Equal(t, 202, f.create(uuids[len(uuids)-1]).status)
	}
	claim := func() *queued {
		q, err := f.app.store.claim(t.Context(), wanted{dueOnly: true}, time.Hour)
		require.NoError(t, err)
		return q
	}
	other, err := pgx.Connect(t.Context(), f.config.DatabaseURL)
	require.NoError(t, err)
	defer other.Close(context.Background())
	_, err = other.Exec(t.Context(), `BEGIN; SELECT FROM reports WHERE uuid = '`+uuids[0]+`' FOR NO KEY UPDATE`)
	require.NoError(t, err)
	assert.Equal(t, uuids[1], claim().UUID)
	_, err = other.Exec(t.Context(), `ROLLBACK`)
	require.NoError(t, err)
	assert.Equal(t, uuids[0], claim().UUID)
	assert.Equal(t, uuids[2], claim().UUID)
	assert.Nil(t, claim(), "all are leased")
}

// Only what is left to the queue is notified of, once.
func TestQueueNotifies(t *testing.T) {
	t.Parallel()
	postgres := devpgtest.Start(t, "") // of its own: whoever listens hears everybody
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL = postgres.URL() })
	conn, err := pgx.Connect(t.Context(), postgres.URL())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "LISTEN "+queueChannel)
	require.NoError(t, err)
	for range 3 {
		require.Equal(t, 201, f.create(newUUID()).status)
	}
	f.sandbox.SetFault(sandbox.Down)
	require.Equal(t, 202, f.create(newUUID()).status)
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	_, err = conn.WaitForNotification(ctx)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "SELECT 1") // brings what has come meanwhile
	require.NoError(t, err)
	ended, end := context.WithCancel(t.Context())
	end()
	_, err = conn.WaitForNotification(ended)
	assert.Error(t, err, "there is no other")
}

// Without a token to read with, nobody waits for the time to ask for items.
func TestQueueWithoutReadToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.readToken = "" })
	require.Equal(t, 201, f.create(newUUID()).status)
	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	assert.Zero(t, f.app.store.nextLookup(t.Context(), time.Minute))
	f.app.findItems(t.Context()) // returns at once
	assert.Equal(t, time.Minute, f.app.store.nextDue(t.Context(), time.Minute))
}

// A backend that PostgreSQL ends in the middle of its work is as good as a PostgreSQL that is down.
func TestBackendsThatDie(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 100)
	stop := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for {
			select {
			case <-stop:
				return
			default:
				f.rows(`SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE application_name = 'app' AND query LIKE '%reports%'
					AND query LIKE '%' || current_schema || '%' OR pid IN (SELECT l.pid FROM pg_locks l WHERE l.relation = to_regclass('reports'))`)
			}
		}
	}()
	for range 20 {
		assert.Equal(t, 200, f.get("/items").status)
		uuid := newUUID()
		assert.Equal(t, 201, f.create(uuid).status)
		assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid))
	}
	close(stop)
	<-killed
	require.Eventually(t, func() bool { return f.get("/items").header.Get("Report-Stored") == "" }, waitLimit, waitTick)
	assert.Equal(t, []string{"true"}, f.rows(`SELECT (count(*) = count(DISTINCT item_id))::text FROM reports WHERE state = 'current'`))
}

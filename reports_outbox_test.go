package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
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

// occurrence is the data of a message.
func occurrence(uuid string) json.RawMessage {
	return fmt.Appendf(nil, `{"environment":"e","body":{"message":{"body":"x"}},"uuid":%q}`, uuid)
}

// enqueue queues n occurrences that nobody has tried and returns their uuids, oldest first.
func (f *fixture) enqueue(n int) (uuids []string) {
	f.t.Helper()
	var entries []*entry
	for range n {
		uuid := fmt.Sprintf("%08d-%s", len(uuids), newUUID()[9:])
		uuids = append(uuids, uuid)
		entries = append(entries, &entry{uuid: uuid, data: occurrence(uuid)})
	}
	_, err := f.app.outbox.enqueueAll(f.t.Context(), entries)
	require.NoError(f.t, err)
	f.rows(fmt.Sprintf(`UPDATE reports SET leased_until = '-infinity' WHERE uuid BETWEEN '%s' AND '%s' RETURNING ''`,
		uuids[0], uuids[n-1]))
	return uuids
}

// claim claims the entry that is due next, or returns nil.
func (f *fixture) claim() *entry {
	f.t.Helper()
	e, err := f.app.outbox.lanes[scopePost].claim(f.t.Context(), 0)
	require.NoError(f.t, err)
	return e
}

// connect opens a further connection to the fixture's database.
func (f *fixture) connect() *pgx.Conn {
	f.t.Helper()
	conn, err := pgx.Connect(f.t.Context(), f.config.DatabaseURL)
	require.NoError(f.t, err)
	f.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// begin ends the connection's transaction and begins another one with the statement.
func begin(t *testing.T, conn *pgx.Conn, statement string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), `ROLLBACK; BEGIN; `+statement)
	require.NoError(t, err)
}

// deliver runs the queue's worker until stop is called, or to the end of the test.
func (f *fixture) deliver(app *App) (stop func()) {
	done := make(chan struct{})
	ctx, cancel := newContext(f.t)
	go func() { app.deliverQueue(ctx); close(done) }()
	stop = func() { cancel(); <-done }
	f.t.Cleanup(stop)
	return stop
}

// A count of the queue that fails is not retried at once: callers that wait for it would time out one by one.
func TestRoomWhilePostgreSQLHangs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	begin(t, f.connect(), `LOCK TABLE reports IN ACCESS EXCLUSIVE MODE`)
	_, err := f.app.outbox.room(t.Context(), 1)
	require.True(t, isKind(err, unavailable), err)
	room, err := f.app.outbox.room(t.Context(), 1)
	require.NoError(t, err)
	assert.Equal(t, f.app.queueLimit, room)
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

// A create whose first attempt fails is retried at once.
func TestCreateIsRepeated(t *testing.T) {
	t.Parallel()
	for _, fault := range []sandbox.Fault{sandbox.Down, sandbox.Error, sandbox.BadGateway, sandbox.Truncated,
		sandbox.Dropped} {
		f := newFixture(t, 0)
		f.sandbox.FailNext(1, fault)
		uuid := newUUID()
		assert.Equal(t, 201, f.create(uuid).status, fault)
		assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid), fault)
		assert.Equal(t, "delivered", f.state(uuid), fault)
	}
}

// A create does not wait until its report is marked as delivered, but the next read does.
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

// A subcommand does not end before the report is marked as delivered.
func TestDeliveredByASubcommand(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	require.Zero(t, f.run("items", "create", "-message", "x", "-uuid", uuid).exit)
	assert.Equal(t, []string{"delivered"}, f.rows(`SELECT state FROM reports`))
}

func TestDeliveryOfTheRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.postClientToken = sandbox.PostToken })
	f.sandbox.SetFault(sandbox.Down)
	first, second := newUUID(), newUUID()
	require.Equal(t, 202, f.do("POST", "/items",
		fmt.Sprintf(`{"data":{"environment":"e","platform":"browser","uuid":%q,"body":{"message":{"body":"x"}}}}`,
			first)).status)
	require.Equal(t, 202, f.create(second).status)
	f.sandbox.SetFault(sandbox.None)
	f.deliver(f.app)
	f.eventually(second, "delivered")
	assert.Equal(t, "queued", f.state(first), "it waits for the right token, and holds up nothing else")
	assert.Zero(t, f.sandbox.OccurrencesOf(first))
}

// reports.deliver delivers what it can, and counts the results.
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

// Occurrences that were delivered a moment ago are cleaned, even if marking them and cleaning share a connection.
func TestCleanAfterDeliveries(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL += "&pool_max_conns=1" })
	for range 5 {
		var creates sync.WaitGroup
		for range 8 {
			creates.Go(func() { assert.Equal(t, 201, f.create(newUUID()).status) })
		}
		creates.Wait()
		assert.JSONEq(t, `{"deleted":8,"kept_queued":0}`, f.do("DELETE", "/reports", "").body)
	}
}

// A repeat of an occurrence that was delivered a moment ago is told so, even if the queue is full.
func TestRepeatOfTheDelivered(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 1000} {
		f := newFixture(t, 0, func(c *Config) { c.QueueLimit = limit })
		var clients sync.WaitGroup
		for range min(limit, 4) { // with several, deliveries wait to be marked together
			clients.Go(func() {
				for range 20 {
					uuid := newUUID()
					assert.Equal(t, 201, f.create(uuid).status)
					assert.JSONEq(t, fmt.Sprintf(`{"uuid":%q,"state":"delivered"}`, uuid), f.create(uuid).body)
				}
			})
		}
		clients.Wait()
	}
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

// While a create is in flight, no worker takes its entry: the lease lasts longer.
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

// The lease of a dead process is taken over when it expires.
func TestLeaseOfTheDead(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuid := newUUID()
	_, err := f.app.outbox.enqueue(t.Context(), uuid, occurrence(uuid), true)
	require.NoError(t, err)
	assert.Equal(t, `{"delivered":0,"queued":1,"rejected":0}`+"\n", f.run("reports", "deliver").out)
	f.deliver(f.app)
	f.rows(`UPDATE reports SET leased_until = now() RETURNING ''`)
	f.eventually(uuid, "delivered")
}

// Workers of several replicas deliver each occurrence once.
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

// New occurrences are delivered soon, even those from another process.
func TestQueueHearsOfNewWork(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.deliver(f.newApp())
	f.sandbox.FailNext(maxAttempts, sandbox.Error)
	uuid := newUUID()
	require.Equal(t, 202, f.create(uuid).status)
	f.eventually(uuid, "delivered")

	patient := f.newApp()
	patient.outbox.backoff = 24 * time.Hour // it does not poll
	f.deliver(patient)
	f.app = patient
	f.serve(newHandler(patient, commands, f.config))
	f.sandbox.FailNext(maxAttempts, sandbox.Error)
	uuid = newUUID()
	require.Equal(t, 202, f.create(uuid).status)
	f.eventually(uuid, "delivered")
}

func (f *fixture) findItem() {
	f.t.Helper()
	found, err := f.app.findItem(f.t.Context())
	require.NoError(f.t, err)
	require.True(f.t, found, "it is time")
}

// Rollbar is asked which item an occurrence became; observations of the item stay reports of their own.
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
	f.exec(`UPDATE reports SET next_lookup = now() + interval '1 hour'`) // PostgreSQL's clock was set back
	f.findItem()
	id := f.sandbox.ItemIDs()[0]
	assert.Equal(t, []string{fmt.Sprintf("delivered %d true", id)},
		f.rows(`SELECT state || ' ' || item_id || ' ' || (next_lookup IS NULL) FROM reports`))
	require.Equal(t, 200, f.get("/items").status)
	assert.Equal(t, []string{"delivered", "current"},
		f.rows(fmt.Sprintf(`SELECT state FROM reports WHERE item_id = %d ORDER BY id`, id)))
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

	f.rows(`UPDATE reports SET next_lookup = now(), item_id = 5 RETURNING ''`)
	f.findItem()
	assert.Equal(t, []string{"5"}, f.rows(`SELECT item_id::text FROM reports`), "it was named meanwhile")

	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	f.sandbox.SetFault(sandbox.Down)
	_, err := f.app.findItem(t.Context())
	assert.Error(t, err)
	assert.Equal(t, []string{"false"}, f.rows(`SELECT (next_lookup IS NULL)::text FROM reports`),
		"but only where Rollbar answers")
}

// Rollbar accepts a uuid that is not a UUID, but cannot look it up.
func TestItemsOfOtherUUIDs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	require.Equal(t, 201, f.create("order-4711").status)
	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	f.findItem()
	assert.Equal(t, []string{"true"}, f.rows(`SELECT (next_lookup IS NULL)::text FROM reports`))
}

// The worst race: an entry that will be discarded because Rollbar refuses the token has already been
// acknowledged to another request with the same uuid.
func TestCreateIsNotDiscardedWhenAcknowledged(t *testing.T) {
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
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL = postgres.URL })
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
	require.Eventually(t, func() bool { return f.create(newUUID()).header.Get("Report-Stored") == "" }, waitLimit,
		waitTick)
}

// Deliveries take turns, at a pace that leaves others a part of Rollbar's limit.
func TestDeliveriesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newLane()
		began := time.Now()
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				for range 25 {
					assert.True(t, o.turn(t.Context(), true, time.Hour))
				}
			})
		}
		workers.Wait()
		assert.Equal(t, 99*deliveryPace, time.Since(began))

		began = time.Now()
		left, leave := context.WithCancel(t.Context())
		leave()
		for range 1000 {
			assert.False(t, o.turn(left, true, time.Hour))
		}
		assert.True(t, o.turn(t.Context(), true, time.Hour))
		assert.LessOrEqual(t, time.Since(began), deliveryPace)
	})
}

// When the service ends, it finishes deliveries in flight unless that takes too long.
func TestDeliveryIsFinished(t *testing.T) {
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

// The oldest entry comes first; an entry that another transaction is claiming is skipped.
func TestOutboxClaims(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuids := f.enqueue(3)
	other := f.connect()
	begin(t, other, `SELECT FROM reports WHERE uuid = '`+uuids[0]+`' FOR NO KEY UPDATE`)
	assert.Equal(t, uuids[1], f.claim().uuid)
	begin(t, other, `SELECT`)
	assert.Equal(t, uuids[0], f.claim().uuid)
	last := f.claim()
	assert.Equal(t, uuids[2], last.uuid)
	assert.Equal(t, []string{"true"}, f.rows(fmt.Sprintf(`SELECT (leased_until >= '%s')::text
		FROM reports WHERE id = %d`, last.until.Format(time.RFC3339Nano), last.id)),
		"nobody else takes it before we have given up")
	assert.Nil(t, f.claim(), "all are leased")
}

// An entry that fails comes after the others, and a process that has lost the lease does not change that.
func TestOutboxReschedules(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuids := f.enqueue(2)
	first := f.claim()
	f.app.outbox.reschedule(t.Context(), first, -time.Second)
	assert.Equal(t, uuids[1], f.claim().uuid, "which has not been tried")
	again := f.claim()
	assert.Equal(t, uuids[0], again.uuid)
	assert.Equal(t, 2, again.attempts)
	f.app.outbox.reschedule(t.Context(), first, -time.Second)
	assert.Nil(t, f.claim(), "the first lease is over")
	f.app.outbox.reschedule(t.Context(), again, time.Minute)
	assert.Nil(t, f.claim(), "its time has not come")
	require.NoError(t, f.app.outbox.lanes[scopePost].makeAllAvailable(t.Context()))
	assert.Equal(t, uuids[0], f.claim().uuid)
}

// Only queued entries become delivered, not those that were refused meanwhile or delivered before.
func TestOutboxCompletesTheQueued(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.enqueue(3)
	refused, before, queued := f.claim(), f.claim(), f.claim()
	f.app.outbox.reject(t.Context(), refused, fail(invalid, "no"))
	f.exec(fmt.Sprintf(`UPDATE reports SET state = 'delivered' WHERE id = %d`, before.id))
	_, err := f.app.outbox.complete(t.Context(), []int64{queued.id, 12345, before.id, refused.id})
	require.NoError(t, err)
	assert.Equal(t, []string{"rejected false", "delivered false", "delivered true"},
		f.rows(`SELECT state || ' ' || (next_lookup IS NOT NULL)::text FROM reports ORDER BY id`))
}

// After an outage, waiting entries become due, oldest first, after those that are already due.
func TestOutboxMakesAllAvailable(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuids := f.enqueue(1002)
	f.exec(`UPDATE reports
		SET attempts = 1, next_attempt = now() + interval '5 minutes' - id * interval '1 millisecond'`)
	f.exec(`UPDATE reports SET attempts = 1, next_attempt = now() WHERE uuid = '` + uuids[1001] + `'`)
	f.exec(`UPDATE reports SET leased_until = now() + interval '1 minute' WHERE uuid = '` + uuids[1] + `'`)
	require.NoError(t, f.app.outbox.lanes[scopePost].makeAllAvailable(t.Context()))
	for _, n := range []int{1001, 0, 2, 3} {
		assert.Equal(t, uuids[n], f.claim().uuid)
	}
	assert.Empty(t, f.rows(`SELECT uuid FROM reports WHERE next_attempt > now()`))
}

// After PostgreSQL's clock was set back by ten minutes, leases and waits that are impossibly long are over.
func TestOutboxAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	uuids := f.enqueue(4)
	setBack := func(column, uuid string) {
		f.exec(`UPDATE reports SET ` + column + ` = greatest(` + column +
			`, now()) + interval '10 minutes' WHERE uuid = '` + uuid + `'`)
	}
	setBack("leased_until", uuids[0])
	setBack("next_attempt", uuids[1])
	f.exec(`UPDATE reports SET next_attempt = now() + interval '4 minutes' WHERE uuid = '` + uuids[2] + `'`)
	f.exec(`UPDATE reports SET leased_until = now() + interval '4 minutes' WHERE uuid = '` + uuids[3] + `'`)
	assert.Equal(t, uuids[0], f.claim().uuid)
	assert.Equal(t, uuids[1], f.claim().uuid)
	assert.Nil(t, f.claim(), "the others wait for less than five minutes")

	uuid := newUUID()
	e, err := f.app.outbox.enqueue(t.Context(), uuid, occurrence(uuid), true)
	require.NoError(t, err)
	f.app.outbox.lanes[scopePost].makeAvailable(t.Context(), e)
	assert.Equal(t, []string{"-infinity -infinity"},
		f.rows(`SELECT leased_until || ' ' || next_attempt FROM reports WHERE uuid = '`+uuid+`'`), "due by any clock")
	assert.LessOrEqual(t, f.app.outbox.lease(), longestPause)
}

// Each statement of the outbox locks rows in the order of their ids.
func TestOutboxLocksInOrder(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]func(*fixture, []*entry){
		"complete": func(f *fixture, e []*entry) {
			_, err := f.app.outbox.complete(f.t.Context(), []int64{e[1].id, e[0].id})
			assert.NoError(f.t, err)
		},
		"acknowledge": func(f *fixture, e []*entry) {
			_, err := f.app.outbox.enqueueAll(f.t.Context(), []*entry{e[1], e[0]})
			assert.NoError(f.t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			f.enqueue(2)
			entries := []*entry{f.claim(), f.claim()}
			other := f.connect()
			begin(t, other, fmt.Sprintf(`SELECT FROM reports WHERE id = %d FOR UPDATE`, entries[0].id))
			done := make(chan struct{})
			go func() { defer close(done); statement(f, entries) }()
			until(t, "it waits", func() bool {
				return len(f.rows(`SELECT '' FROM pg_locks l JOIN pg_locks mine ON mine.pid = l.pid WHERE NOT `+
					`l.granted AND mine.relation = to_regclass('reports')`)) > 0
			})
			_, err := other.Exec(t.Context(), `SELECT FROM reports WHERE id = $1 FOR UPDATE NOWAIT`, entries[1].id)
			assert.NoError(t, err)
			begin(t, other, `SELECT`)
			<-done
		})
	}
}

// Statements that PostgreSQL ends because of concurrent ones are retried.
func TestOutboxRepeatsStatements(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"40P01", "40001"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0)
			require.Equal(t, 200, f.get("/reports").status)
			f.exec(`
				CREATE SEQUENCE statements;
				CREATE FUNCTION fail_first() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN
					IF nextval('statements') % 2 = 1 THEN
						RAISE EXCEPTION 'because of another' USING ERRCODE = '` + code + `';
					END IF;
					RETURN NULL;
				END $$;
				CREATE TRIGGER fail_first BEFORE INSERT OR UPDATE OR DELETE ON reports EXECUTE FUNCTION fail_first()`)
			uuid := newUUID()
			assert.Empty(t, f.create(uuid).header.Get("Report-Stored"))
			assert.Equal(t, "delivered", f.state(uuid))
			assert.Equal(t, 201, f.create(uuid).status)
			f.exec(`
				ALTER TABLE reports DISABLE TRIGGER fail_first;
				UPDATE reports SET next_lookup = now();
				ALTER TABLE reports ENABLE TRIGGER fail_first`)
			f.findItem()

			f.sandbox.SetFault(sandbox.Down)
			queued, rejected, discarded := newUUID(), newUUID(), newUUID()
			require.Equal(t, 202, f.create(queued).status)
			assert.Contains(t, f.do("POST", "/reports/deliver", "").body, `"queued":1`)
			require.NoError(t, f.app.outbox.lanes[scopePost].makeAllAvailable(t.Context()))
			f.sandbox.SetFault(sandbox.Forbidden)
			require.Equal(t, 502, f.create(discarded).status)
			assert.Empty(t, f.state(discarded))
			f.sandbox.SetFault(sandbox.None)
			assert.Contains(t, f.do("POST", "/reports/deliver", "").body, `{"delivered":1,"queued":0`)
			f.answerAll("POST", 422, `{"err":1}`)
			require.Equal(t, 422, f.create(rejected).status)
			assert.Equal(t, "rejected", f.state(rejected))
			assert.Contains(t, f.do("DELETE", "/reports?state=rejected", "").body, `{"deleted":1,`)
		})
	}
}

// Cleans that run concurrently with each other and with creates all succeed.
func TestOutboxBesideCleans(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.deliver(f.app)
	until(t, "everything succeeds and something is deleted", func() bool {
		var clients sync.WaitGroup
		var deleted atomic.Int64
		for range 4 {
			clients.Go(func() {
				for range 20 {
					assert.Equal(t, 201, f.create(newUUID()).status)
				}
			})
			for _, filter := range []string{"", "?state=delivered"} {
				clients.Go(func() {
					got := f.do("DELETE", "/reports"+filter, "")
					assert.Equal(t, 200, got.status, got.body)
					deleted.Add(int64(atoi(got.at("deleted"))))
				})
			}
		}
		clients.Wait()
		return deleted.Load() > 0
	})
}

// A database of an earlier release gets the index that the outbox reads by.
func TestOutboxOfAnEarlierRelease(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	f.sandbox.SetFault(sandbox.Down)
	require.Equal(t, 202, f.create("first").status)
	f.exec(`
		ALTER TABLE reports DROP COLUMN client; -- with its index
		ALTER TABLE reports ADD COLUMN held boolean NOT NULL DEFAULT FALSE;
		CREATE INDEX reports_waiting ON reports (held, id) WHERE state = 'queued';
		UPDATE schema_version SET digest = 'an earlier one'`)
	app := f.newApp()
	f.sandbox.SetFault(sandbox.None)
	f.deliver(app)
	f.eventually("first", "delivered")
	assert.Equal(t, []string{"reports_turn"}, f.rows(`
		SELECT indexname FROM pg_indexes
		WHERE schemaname = current_schema AND indexname IN ('reports_turn', 'reports_waiting')`))
}

// Without a token for reading, no lookups are waited for.
func TestQueueWithoutReadToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, func(c *Config) { c.readToken = "" })
	require.Equal(t, 201, f.create(newUUID()).status)
	f.rows(`UPDATE reports SET next_lookup = now() RETURNING ''`)
	f.app.findItems(t.Context()) // returns at once
}

// No caller notices when all connections in the pool have died, as after a restart of PostgreSQL.
func TestConnectionsThatDied(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 5, func(c *Config) { c.DatabaseURL += "&application_name=mortal" })
	for name, request := range map[string]func(){
		"read":   func() { assert.Equal(t, 200, f.get("/reports").status) },
		"sync":   func() { assert.Equal(t, 200, f.do("POST", "/items/sync", "").status) },
		"store":  func() { assert.Empty(t, f.get("/items").header.Get("Report-Stored")) },
		"check":  func() { assert.Equal(t, 200, f.get("/check").status) },
		"create": func() { assert.Empty(t, f.create(newUUID()).header.Get("Report-Stored")) },
	} {
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() { f.get("/reports") })
		}
		readers.Wait()
		assert.NotEmpty(t, f.rows(`
			SELECT pg_terminate_backend(pid)::text
			FROM pg_stat_activity
			WHERE application_name = 'mortal' AND pid <> pg_backend_pid()`), name)
		request()
	}
}

// A backend that is terminated in the middle of its work counts as PostgreSQL being down.
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
				f.rows(`SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
					WHERE application_name = 'app'
						AND query LIKE '%reports%' AND query LIKE '%' || current_schema || '%'
						OR pid IN (SELECT l.pid FROM pg_locks l WHERE l.relation = to_regclass('reports'))`)
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
	assert.Equal(t, []string{"true"}, f.rows(`SELECT (count(*) = count(DISTINCT item_id))::text FROM reports WHERE `+
		`state = 'current'`))
}

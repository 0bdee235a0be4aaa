package main

import (
	"cmp"
	"context"
	"flag"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// addReports inserts n made-up reports, a second apart, the last of which was seen just now. A third of the
// titles has the word alpha, a third beta and a third gamma, each with its own status and environment. Every
// tenth report is superseded, and each title has a word of its own.
func addReports(t testing.TB, store *Store, n int) {
	t.Helper()
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), `
		INSERT INTO reports (item_id, state, first_seen, last_seen, status, level, environment, words, data)
		SELECT CASE WHEN g % 10 = 0 THEN g - 1 ELSE g END, CASE WHEN g % 10 = 0 THEN 'superseded' ELSE 'current' END,
			now() - (@n - g) * interval '1 second', now() - (@n - g) * interval '1 second',
			(ARRAY['active', 'resolved', 'muted'])[1 + g % 3],
			(ARRAY['critical', 'error', 'warning', 'info', 'debug'])[1 + g % 5],
			(ARRAY['production', 'staging', 'development'])[1 + g % 3],
			ARRAY['cannot', 'property', 'read', (ARRAY['alpha', 'beta', 'gamma'])[1 + g % 3], 'w' || g],
			format('{"id":%s}', g)::json
		FROM generate_series(1, @n) AS g`, pgx.NamedArgs{"n": n})
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `INSERT INTO seen SELECT id, last_seen + interval '1 second' FROM reports WHERE `+
		`id % 4 = 0`)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `VACUUM ANALYZE reports, seen, blocks`)
	require.NoError(t, err)
}

// plainIDs finds a page's reports in the obvious way, regardless of cost.
func plainIDs(ctx context.Context, conn *pgx.Conn, in reportsListInput) ([]int64, error) {
	order, limit := "DESC", in.Limit.Value
	if in.Cursor.Value.from > 0 {
		order, limit = "ASC", in.Limit.Value+1
	}
	given := func(value Opt[string]) *string {
		if !value.Set {
			return nil
		}
		return &value.Value
	}
	rows, err := conn.Query(ctx, `
		SELECT id
		FROM reports r
		WHERE id >= @from AND id < @before
		AND (item_id = @item_id OR @item_id = 0)
		AND (status = @status OR @status IS NULL)
		AND (level = @level OR @level IS NULL)
		AND (environment = @environment OR @environment IS NULL)
		AND (state = @state OR @state IS NULL)
		AND (state <> 'superseded' OR NOT @latest)
		AND words @> @words
		AND (first_seen <= @until OR @no_until)
		AND greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = r.id)) >= @since
		ORDER BY id `+order+`
		LIMIT @limit`, pgx.NamedArgs{
		"from": in.Cursor.Value.from, "before": in.Cursor.Value.newest(), "item_id": in.ItemID.Value,
		"status": given(in.Status), "level": given(in.Level), "environment": given(in.Environment),
		"state":  given(in.State),
		"latest": in.Latest, "words": append([]string{}, titleWords(in.Q.Value)...), "limit": limit,
		"until": in.Until.Value.Time, "no_until": in.Until.IsZero(), "since": in.Since.Value.Time,
	})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// Whatever the filters, the cursor and the history of the rows, find returns the same ids as a plain
// statement.
func TestFindIsRight(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	addReports(t, store, 14_000)
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	for _, sql := range []string{
		`INSERT INTO seen SELECT id, now() - id % 50 * interval '1 minute' FROM reports WHERE id % 14 = 7`,
		`UPDATE reports SET level = 'error', words = words || '{changed,6,7,8,9,10,11,12,13,behind}' WHERE id % 11 = 0`,
		`DELETE FROM reports WHERE id BETWEEN 4000 AND 9000`,
		`INSERT INTO reports (uuid, state, level, first_seen, last_seen, words, data)
			SELECT 'u' || g, 'queued', 'error', now() - g * interval '1 minute', now() - g * interval '1 minute',
				'{late,alpha}', '{}'
			FROM generate_series(1, 100) AS g`,
		`UPDATE reports SET state = 'delivered', last_seen = now() WHERE state = 'queued' AND id % 3 = 0`,
		`UPDATE reports SET state = 'superseded' WHERE state = 'current' AND id % 14 = 7 AND id % 9 = 0`,
		`INSERT INTO seen SELECT id, now() + interval '1 hour' FROM reports WHERE id % 261 = 7
			ON CONFLICT (report_id) DO UPDATE SET last_seen = excluded.last_seen`,
		`UPDATE reports SET state = 'superseded' WHERE state = 'current' AND id % 261 = 7`,
		`UPDATE reports SET first_seen = first_seen - interval '4 hours' WHERE id % 261 = 9`,
		`UPDATE seen SET last_seen = now() + interval '1 hour' WHERE report_id % 42 = 7 AND report_id % 9 = 0`,
		`UPDATE reports SET environment = NULL, status = NULL WHERE id % 23 = 0`,
	} {
		_, err := conn.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	assert.Greater(t, requireFindIsRight(t, store, 700, time.Minute), 2500)
}

// requireFindIsRight compares lists with random filters and cursors with those of plainIDs, and returns how
// many reports they held. The times in the filters go back by up to 350 units.
func requireFindIsRight(t *testing.T, store *Store, lists int, unit time.Duration) (found int) {
	t.Helper()
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	var last int64
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT max(id) FROM reports`).Scan(&last))
	rows, err := conn.Query(t.Context(), `SELECT item_id FROM reports WHERE item_id IS NOT NULL ORDER BY id`)
	require.NoError(t, err)
	items, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)

	random := rand.New(rand.NewPCG(1, 2))
	one := func(values ...string) string { return values[random.IntN(len(values))] }
	maybe := func(values ...string) Opt[string] {
		if random.IntN(3) > 0 {
			return Opt[string]{}
		}
		return Opt[string]{Set: true, Value: one(values...)}
	}
	moment := func() (m Opt[Moment]) {
		if random.IntN(4) == 0 {
			m.Set, m.Value.Time = true, time.Now().Add(time.Duration(50-random.IntN(400))*unit)
		}
		return m
	}
	for range lists {
		in := reportsListInput{
			Status:      maybe("active", "resolved", "archived"),
			Level:       maybe("error", "info"),
			Environment: maybe("production", "staging", "nowhere"),
			State:       maybe("current", "superseded", "superseded", "queued", "delivered"),
			Q:           maybe("", "", "", "alpha", "w3000", "alpha beta", "Changed behind", "late", "nothing"),
			Since:       moment(),
			Until:       moment(),
			Latest:      random.IntN(4) == 0,
			Limit:       Opt[int64]{Set: true, Value: 1 + random.Int64N(30)},
		}
		switch random.IntN(6) {
		case 0:
			in.Cursor.Value.before = 1 + random.Int64N(last+10)
		case 1:
			in.Cursor.Value.from = 1 + random.Int64N(last+10)
		case 2:
			in.ItemID = Opt[int64]{Set: true, Value: items[random.IntN(len(items))]}
		}
		want, err := plainIDs(t.Context(), conn.Conn(), in)
		require.NoError(t, err)
		got, err := in.find(t.Context(), conn.Conn(), in.Cursor.Value, int(in.Limit.Value))
		require.NoError(t, err)
		require.Equal(t, want, got, "%+v", in)
		found += len(got)
	}
	return found
}

// A report that one transaction marks as seen again while another supersedes it is found by the time that the
// first one wrote.
func TestFindWhatIsSeenWhileItIsSuperseded(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	observe := func(title string) {
		_, err := store.observe(t.Context(),
			column([]Item{mustItem(t, `{"id":1,"title":"`+title+`","level":"error"}`)}, observationOf))
		assert.NoError(t, err)
	}
	observe("before")
	store.query(t, `
		WITH aged AS (UPDATE reports
				SET first_seen = now() - interval '2 hours', last_seen = now() - interval '2 hours'),
			forgotten AS (DELETE FROM blocks)
		SELECT ''`)
	tx, err := store.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO seen SELECT id, now() FROM reports`)
	require.NoError(t, err)
	var superseding sync.WaitGroup
	superseding.Go(func() { observe("after") })
	require.Eventually(t, func() bool {
		return store.query(t, `SELECT count(*)::text FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'
			AND $1 = ANY(pg_blocking_pids(pid))`, tx.Conn().PgConn().PID()) == "1"
	}, waitLimit, waitTick)
	require.NoError(t, tx.Commit(t.Context()))
	superseding.Wait()
	in := reportsListInput{
		State: Opt[string]{Set: true, Value: "superseded"},
		Since: Opt[Moment]{Set: true, Value: Moment{time.Now().Add(-time.Hour)}}, Limit: Opt[int64]{Value: 20},
	}
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	got, err := in.find(t.Context(), conn.Conn(), in.Cursor.Value, int(in.Limit.Value))
	require.NoError(t, err)
	assert.Equal(t, []int64{1}, got)
}

// filters are the documented filters of lists. Each matches nearly all, some, few or no reports.
var filters = []string{
	"item_id=4711", "item_id=999999999", "status=active", "status=archived", "level=error", "environment=production",
	"environment=nowhere", "state=current", "state=superseded", "state=queued", "q=read", "q=alpha", "q=w4711",
	"q=nowhere", "q=alpha+beta", "q=cannot+read+alpha", "since=300d", "since=1m", "since=2100-01-01T00:00:00Z",
	"since=LATE",
	"until=2100-01-01T00:00:00Z", "until=300d", "until=EARLY",
}

// filterPairs are the filters, alone and in pairs, without and with latest.
func filterPairs() (queries []string) {
	for i, a := range filters {
		queries = append(queries, a, a+"&latest=true")
		for _, b := range filters[i+1:] {
			if name, _, _ := strings.Cut(a, "="); !strings.HasPrefix(b, name+"=") {
				queries = append(queries, a+"&"+b, a+"&"+b+"&latest=true")
			}
		}
	}
	return queries
}

var manyReports = flag.Int("reports", 60_000, "how many reports TestFindIsServedByIndexes lists")

// No filter and no pair of filters is served by a sequential scan, and none makes PostgreSQL look at
// more than a few pages, whether it matches nearly all, some, few or no reports.
func TestFindIsServedByIndexes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	addReports(t, f.app.store, *manyReports)
	// As a sync does, which does not see superseded ones.
	f.exec(`INSERT INTO seen SELECT id, now() FROM reports WHERE state = 'current' AND status <> 'resolved'
		ON CONFLICT (report_id) DO UPDATE SET last_seen = excluded.last_seen`)
	var plans []string
	config, err := pgxpool.ParseConfig(f.config.DatabaseURL + "&pool_max_conns=1")
	require.NoError(t, err)
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { plans = append(plans, notice.Message) }
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `
			LOAD 'auto_explain';
			SET auto_explain.log_min_duration = 0;
			SET auto_explain.log_analyze = true;
			SET auto_explain.log_buffers = true;
			SET auto_explain.log_timing = false;
			SET auto_explain.log_level = notice;
			SET jit = off`)
		return err
	}
	f.app.store.standby, err = pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	early := time.Now().Add(-time.Duration(*manyReports) * 2 / 3 * time.Second).UTC().Format(time.RFC3339)
	late := time.Now().Add(-time.Duration(*manyReports) / 3 * time.Second).UTC().Format(time.RFC3339)
	worst, took := map[string]int{}, map[string]time.Duration{}
	for _, query := range filterPairs() {
		query = strings.NewReplacer("EARLY", early, "LATE", late).Replace(query)
		plans = nil
		began := time.Now()
		answer := f.get("/reports?" + query)
		took[query] = time.Since(began)
		require.Equal(t, 200, answer.status, query+answer.body)
		require.NotEmpty(t, plans)
		pages := 0
		for _, plan := range plans {
			assert.NotRegexp(t, `Seq Scan on (reports|seen)`, plan, query)
			pages += pagesOf(plan)
		}
		assert.Less(t, pages, 3000+*manyReports/50, query)
		worst[query] = pages
	}
	for _, query := range slices.SortedFunc(maps.Keys(worst),
		func(a, b string) int { return worst[b] - worst[a] })[:10] {
		t.Log(worst[query], "pages for", query)
	}
	slowest := slices.SortedFunc(maps.Keys(took), func(a, b string) int { return cmp.Compare(took[b], took[a]) })
	for _, query := range slowest[:10] {
		t.Log(took[query], "for", query)
	}
	t.Log(took[slowest[len(slowest)/2]], "at the median of", len(slowest))
}

// With statistics from when there was one block, a list does not read the times of all blocks for each block.
func TestFindWithOldStatistics(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	addReports(t, store, 500) // and analyzes the tables
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), `
		INSERT INTO blocks
		SELECT block, 'current', 'active', 'error', 'e' || n, n, now(), now()
		FROM generate_series(1, 300) AS block, generate_series(1, 90) AS n`)
	require.NoError(t, err)
	rows, err := conn.Query(t.Context(), `
		EXPLAIN SELECT b.count
		FROM generate_series(1, 300) AS e (block)
		CROSS JOIN LATERAL (SELECT count(*) FROM blocks WHERE block = e.block AND last_seen > now()) AS b`, replan)
	require.NoError(t, err)
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	assert.NotContains(t, strings.Join(plan, "\n"), "Seq Scan on blocks")
}

var buffers = regexp.MustCompile(`(?m)Buffers: shared hit=(\d+)(?: read=(\d+))?`)

// pagesOf returns how many pages a statement read: the first figure in its plan is the total.
func pagesOf(plan string) int {
	parts := buffers.FindStringSubmatch(plan)
	if parts == nil {
		return 0
	}
	hit, _ := strconv.Atoi(parts[1])
	read, _ := strconv.Atoi(parts[2])
	return hit + read
}

package main

import (
	"context"
	"flag"
	"fmt"
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

// addReports inserts n invented reports, a second apart, the last of which was seen just now. A third
// of the titles has the word alpha, another beta, and another gamma, which go with status and
// environment; every tenth is superseded, and each has a word of its own.
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
			json_build_object('id', g)
		FROM generate_series(1, @n) AS g`, pgx.NamedArgs{"n": n})
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `INSERT INTO seen SELECT id, last_seen + interval '1 second' FROM reports WHERE id % 4 = 0`)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `VACUUM ANALYZE reports, segments, spots, seen, facets`)
	require.NoError(t, err)
}

// obviousIDs finds a page's reports as one would without thinking of cost.
func obviousIDs(ctx context.Context, conn *pgx.Conn, in reportsListInput) ([]int64, error) {
	where, order, limit := idFilter+" AND "+in.rowFilter()+" AND "+in.facetFilter(), "DESC", in.Limit.Value
	if in.ItemID.Set {
		where += " AND item_id = @item_id"
	}
	if in.Cursor.after > 0 {
		order, limit = "ASC", in.Limit.Value+1
	}
	return queryIDs(ctx, conn, `SELECT id FROM reports r WHERE `+where+` ORDER BY id `+order+` LIMIT @limit`, pgx.NamedArgs{
		"item_id": in.ItemID.Value, "status": in.Status.Value, "level": in.Level.Value,
		"environment": in.Environment.Value, "state": in.State.Value, "words": titleWords(in.Q),
		"since": in.Since.Time, "until": in.Until.Time,
		"before": in.Cursor.newest(), "after": in.Cursor.after, "limit": limit,
	})
}

// Whatever the filters, the cursor and the history of the rows: the ids are those that a plain
// statement finds.
func TestFindIsRight(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	addReports(t, store, 5000)
	store.query(t, `
		WITH seen AS (INSERT INTO seen SELECT id, now() - id % 50 * interval '1 minute' FROM reports WHERE id % 14 = 7),
			changed AS (UPDATE reports SET level = 'error', words = words || '{changed}' WHERE id % 11 = 0),
			gone AS (DELETE FROM reports WHERE id BETWEEN 1500 AND 2700)
		SELECT ''`)
	store.query(t, `
		WITH more AS (INSERT INTO reports (uuid, state, level, first_seen, last_seen, words, data)
			SELECT 'u' || g, 'queued', 'error', now() - g * interval '1 minute', now() - g * interval '1 minute', '{late,alpha}', '{}'
			FROM generate_series(1, 100) AS g)
		SELECT ''`)
	store.query(t, `WITH done AS (UPDATE reports SET state = 'delivered', last_seen = now() WHERE state = 'queued' AND id % 3 = 0) SELECT ''`)
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	var last int64
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT max(id) FROM reports`).Scan(&last))

	random := rand.New(rand.NewPCG(1, 2))
	one := func(values ...string) string { return values[random.IntN(len(values))] }
	maybe := func(values ...string) Opt[string] {
		if random.IntN(3) > 0 {
			return Opt[string]{}
		}
		return Opt[string]{Set: true, Value: one(values...)}
	}
	moment := func() (m Moment) {
		if random.IntN(4) == 0 {
			m.Time = time.Now().Add(-time.Duration(random.IntN(100)) * time.Minute)
		}
		return m
	}
	found := 0
	for range 600 {
		in := reportsListInput{
			Status:      maybe("active", "resolved", "archived"),
			Level:       maybe("error", "info"),
			Environment: maybe("production", "staging", "nowhere"),
			State:       maybe("current", "superseded", "queued", "delivered"),
			Q:           one("", "", "", "alpha", "w4000", "alpha beta", "Read changed", "late", "nothing"),
			Since:       moment(),
			Until:       moment(),
			Latest:      random.IntN(4) == 0,
			Limit:       Opt[int64]{Set: true, Value: 1 + random.Int64N(30)},
		}
		switch random.IntN(6) {
		case 0:
			in.Cursor.before = 1 + random.Int64N(last+10)
		case 1:
			in.Cursor.after = 1 + random.Int64N(last+10)
		case 2:
			in.ItemID = Opt[int64]{Set: true, Value: random.Int64N(5000)}
		}
		if !in.isFiltered() {
			continue
		}
		want, err := obviousIDs(t.Context(), conn.Conn(), in)
		require.NoError(t, err)
		got, err := in.find(t.Context(), conn.Conn())
		require.NoError(t, err)
		require.ElementsMatch(t, want, got, "%+v", in)
		found += len(got)
	}
	assert.Greater(t, found, 1000)
}

// What was cleaned leaves nothing behind that lists would look at, and what is written meanwhile is
// found.
func TestCleanPrunes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	addReports(t, f.app.store, 9000)
	counts := func() (segments, spots, seen int) {
		require.NoError(t, f.app.store.pool.QueryRow(t.Context(), `
			SELECT (SELECT count(DISTINCT block) FROM segments), (SELECT count(DISTINCT block) FROM spots), (SELECT count(*) FROM seen)`).
			Scan(&segments, &spots, &seen))
		return segments, spots, seen
	}
	segments, spots, seen := counts()
	require.Equal(t, []int{9, 9, 2250}, []int{segments, spots, seen})

	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for n := range 20 {
				item := mustItem(t, fmt.Sprintf(`{"id":%d,"title":"late %d","level":"error","total_occurrences":%d}`, 1_000_000+w, n/2, n))
				_, err := f.app.store.observe(t.Context(), observationsOf([]Item{item}))
				assert.NoError(t, err)
			}
		})
	}
	for _, query := range []string{"state=superseded", "before=2h", "before=1h"} {
		assert.Equal(t, 200, f.do("DELETE", "/reports?"+query, "").status)
	}
	writers.Wait()
	assert.Equal(t, 200, f.do("DELETE", "/reports?item_id=1000000", "").status)

	segments, spots, seen = counts()
	assert.Equal(t, []int{4, 4}, []int{segments, spots}, "an hour of a report a second, and what came then")
	assert.Less(t, seen, 1000)
	conn, err := f.app.store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	for _, in := range []reportsListInput{{Q: "late"}, {Since: Moment{time.Now().Add(-time.Minute)}}, {Q: "late 9", Latest: true}} {
		in.Limit.Value = 1000
		want, err := obviousIDs(t.Context(), conn.Conn(), in)
		require.NoError(t, err)
		got, err := in.find(t.Context(), conn.Conn())
		require.NoError(t, err)
		assert.ElementsMatch(t, want, got, "%+v", in)
		assert.NotEmpty(t, got)
	}
}

// filters are the documented filters of lists, each matching nearly all, some, few or no reports.
var filters = []string{
	"item_id=4711", "item_id=999999999", "status=active", "status=archived", "level=error", "environment=production",
	"environment=nowhere", "state=current", "state=superseded", "state=queued", "q=read", "q=alpha", "q=w4711",
	"q=nowhere", "q=cannot+read+alpha", "since=300d", "since=1m", "since=2100-01-01T00:00:00Z", "since=LATE",
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
	worst := map[string]int{}
	for _, query := range filterPairs() {
		query = strings.NewReplacer("EARLY", early, "LATE", late).Replace(query)
		plans = nil
		answer := f.get("/reports?" + query)
		require.Equal(t, 200, answer.status, query+answer.body)
		require.NotEmpty(t, plans)
		pages := 0
		for _, plan := range plans {
			assert.NotRegexp(t, `Seq Scan on (reports|segments|spots|seen)`, plan, query)
			pages += pagesOf(plan)
		}
		assert.Less(t, pages, 3000, query)
		worst[query] = pages
	}
	queries := slices.SortedFunc(maps.Keys(worst), func(a, b string) int { return worst[b] - worst[a] })
	for _, query := range queries[:10] {
		t.Log(worst[query], "pages for", query)
	}
}

var buffers = regexp.MustCompile(`(?m)Buffers: shared hit=(\d+)(?: read=(\d+))?`)

// pagesOf is how many pages a statement looked at: the first figure in its plan is that of the whole.
func pagesOf(plan string) int {
	parts := buffers.FindStringSubmatch(plan)
	if parts == nil {
		return 0
	}
	hit, _ := strconv.Atoi(parts[1])
	read, _ := strconv.Atoi(parts[2])
	return hit + read
}

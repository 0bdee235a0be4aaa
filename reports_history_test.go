package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"app/internal/devpg/devpgtest"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newTestStore returns a store on a database of the test's own.
func newTestStore(t testing.TB) *Store {
	t.Helper()
	store, err := openStore(devpgtest.Schema(t), "", nil)
	require.NoError(t, err)
	t.Cleanup(store.Close)
	return store
}

func (s *Store) query(t testing.TB, sql string, args ...any) string {
	t.Helper()
	var text *string
	require.NoError(t, s.pool.QueryRow(t.Context(), sql, args...).Scan(&text))
	if text == nil {
		return "NULL"
	}
	return *text
}

func mustItem(t testing.TB, text string) Item {
	t.Helper()
	item, err := itemOf(json.RawMessage(text), nil)
	require.NoError(t, err)
	return item
}

func TestKeep(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		seen []string // successive observations of the item with the id 7
		want []string // the reports' states and data, oldest first
	}{
		{
			name: "seen for the first time",
			seen: []string{`{"id":7,"status":"active"}`},
			want: []string{`current {"id":7,"status":"active"}`},
		},
		{
			name: "seen again unchanged",
			seen: []string{`{"id":7,"status":"active"}`, `{"id":7,"status":"active"}`},
			want: []string{`current {"id":7,"status":"active"}`},
		},
		{
			name: "fields in another order, nested ones too",
			seen: []string{`{"id":7,"x":{"a":1,"b":2}}`, `{"x":{"b":2,"a":1},"id":7}`},
			want: []string{`current {"id":7,"x":{"a":1,"b":2}}`},
		},
		{
			name: "only counters changed",
			seen: []string{
				`{"id":7,"total_occurrences":1,"unique_occurrences":null,"last_occurrence_id":1,` +
					`"last_occurrence_timestamp":5,"title":"x"}`,
				`{"id":7,"total_occurrences":2,"unique_occurrences":1,"last_occurrence_id":9,` +
					`"last_occurrence_timestamp":6,"title":"x"}`,
			},
			want: []string{`current {"id":7,"total_occurrences":2,"unique_occurrences":1,"last_occurrence_id":9,` +
				`"last_occurrence_timestamp":6,"title":"x"}`},
		},
		{
			name: "a counter that goes back",
			seen: []string{`{"id":7,"total_occurrences":1}`, `{"id":7,"total_occurrences":2}`,
				`{"id":7,"total_occurrences":1}`},
			want: []string{`current {"id":7,"total_occurrences":1}`},
		},
		{
			name: "a change",
			seen: []string{`{"id":7,"status":"active"}`, `{"id":7,"status":"resolved"}`},
			want: []string{`superseded {"id":7,"status":"active"}`, `current {"id":7,"status":"resolved"}`},
		},
		{
			name: "a change and back",
			seen: []string{`{"id":7,"a":1}`, `{"id":7,"a":2}`, `{"id":7,"a":1}`},
			want: []string{`superseded {"id":7,"a":1}`, `superseded {"id":7,"a":2}`, `current {"id":7,"a":1}`},
		},
		{
			name: "the list and the single answer lack fields of each other",
			seen: []string{`{"id":7,"list":1}`, `{"id":7,"one":null}`, `{"id":7,"list":1}`, `{"id":7,"one":null}`},
			want: []string{`current {"id":7,"list":1,"one":null}`},
		},
		{
			name: "a counter that only one answer has",
			seen: []string{`{"id":7,"total_occurrences":1,"unique_occurrences":4}`, `{"id":7,"total_occurrences":2}`},
			want: []string{`current {"id":7,"total_occurrences":2,"unique_occurrences":4}`},
		},
		{
			name: "a new report begins with the fields of the answer that showed the change",
			seen: []string{`{"id":7,"a":1,"list":1}`, `{"id":7,"a":2}`},
			want: []string{`superseded {"id":7,"a":1,"list":1}`, `current {"id":7,"a":2}`},
		},
		{
			name: "null is not absent",
			seen: []string{`{"id":7,"a":null}`, `{"id":7,"a":1}`},
			want: []string{`superseded {"id":7,"a":null}`, `current {"id":7,"a":1}`},
		},
		{
			name: "numbers digit for digit",
			seen: []string{`{"id":7,"x":[1e3,1.10,123456789012345678901234567890,-0.0]}`},
			want: []string{`current {"id":7,"x":[1e3,1.10,123456789012345678901234567890,-0.0]}`},
		},
		{
			name: "text that PostgreSQL cannot hold",
			seen: []string{`{"id":7,"title":"a\u0000b\ud800c` + "\xff" + `","\u0000":1,"ok":"\ud83d\ude00\\u0000"}`},
			want: []string{`current {"id":7,"title":"a\ufffdb\ufffdc` + "\uFFFD" +
				`","\ufffd":1,"ok":"\ud83d\ude00\\u0000"}`},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			store := newTestStore(t)
			for _, seen := range test.seen {
				_, err := store.observe(t.Context(), column([]Item{mustItem(t, seen)}, observationOf))
				require.NoError(t, err)
			}
			var got []string
			for n := range len(test.want) {
				got = append(got, store.query(t,
					`SELECT state || ' ' || data::text FROM reports ORDER BY id OFFSET $1 LIMIT 1`, n))
			}
			assert.Equal(t, test.want, got)
			assert.Equal(t, fmt.Sprint(len(test.want)), store.query(t, `SELECT count(*)::text FROM reports`))
		})
	}
}

// Answers arrive in a different order from their requests.
func TestKeepOlderAnswers(t *testing.T) {
	t.Parallel()
	const unit, update = time.Second / 2, -1
	type answer struct {
		sent, received time.Duration // in units since the beginning; update for an update's own answer
		data           string
	}
	tests := []struct {
		name string
		seen []answer
		want []string // the reports' states and data, oldest first
	}{
		{
			name: "an older state that is known",
			seen: []answer{{1, 2, `{"id":7,"a":1}`}, {3, 4, `{"id":7,"a":2}`}, {0, 5, `{"id":7,"a":1}`}},
			want: []string{`superseded {"id":7,"a":1}`, `current {"id":7,"a":2}`},
		},
		{
			name: "an older state with other counters and fields",
			seen: []answer{{3, 4, `{"id":7,"total_occurrences":9}`}, {0, 5, `{"id":7,"total_occurrences":8,"list":1}`}},
			want: []string{`current {"id":7,"total_occurrences":9}`},
		},
		{
			name: "an older state that is new, twice",
			seen: []answer{{3, 4, `{"id":7,"a":2}`}, {0, 5, `{"id":7,"a":1}`}, {1, 5, `{"id":7,"a":1,"b":1}`}},
			want: []string{`current {"id":7,"a":2}`, `superseded {"id":7,"a":1}`},
		},
		{
			name: "requests at the same time, of which the one that was answered last saw more",
			seen: []answer{{1, 3, `{"id":7,"a":1}`}, {2, 4, `{"id":7,"a":2}`}, {5, 6, `{"id":7,"a":2,"b":1}`}},
			want: []string{`superseded {"id":7,"a":1}`, `current {"id":7,"a":2,"b":1}`},
		},
		{
			name: "a state that came back after an older one",
			seen: []answer{{0, 1, `{"id":7,"a":1}`}, {2, 3, `{"id":7,"a":2}`}, {4, 5, `{"id":7,"a":1}`}},
			want: []string{`superseded {"id":7,"a":1}`, `superseded {"id":7,"a":2}`, `current {"id":7,"a":1}`},
		},
		{
			name: "a first request that was answered before the second was sent, but stored after it",
			seen: []answer{{2, 3, `{"id":7,"a":2}`}, {0, 1, `{"id":7,"a":1}`}},
			want: []string{`current {"id":7,"a":2}`, `superseded {"id":7,"a":1}`},
		},
		{
			name: "an update",
			seen: []answer{{0, 1, `{"id":7,"a":1}`}, {update, update, `{"id":7,"a":2}`}, {2, 3, `{"id":7,"a":3}`}},
			want: []string{`superseded {"id":7,"a":1}`, `current {"id":7,"a":2}`, `superseded {"id":7,"a":3}`},
		},
		{
			name: "an update that changes nothing",
			seen: []answer{{0, 1, `{"id":7,"a":1}`}, {update, update, `{"id":7,"a":1}`}, {2, 3, `{"id":7,"a":3}`}},
			want: []string{`current {"id":7,"a":1}`, `superseded {"id":7,"a":3}`},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			store := newTestStore(t)
			began := time.Now().Add(-4 * time.Second)
			for _, seen := range test.seen {
				item := mustItem(t, seen.data)
				if seen.sent != update {
					item.when = &timing{began.Add(seen.sent * unit), began.Add(seen.received * unit)}
				}
				_, err := store.observe(t.Context(), column([]Item{item}, observationOf))
				require.NoError(t, err)
			}
			var got []string
			for n := range len(test.want) {
				got = append(got, store.query(t,
					`SELECT state || ' ' || data::text FROM reports ORDER BY id OFFSET $1 LIMIT 1`, n))
			}
			assert.Equal(t, test.want, got)
			assert.Equal(t, fmt.Sprint(len(test.want)), store.query(t, `SELECT count(*)::text FROM reports`))
		})
	}
}

// Times from before PostgreSQL's clock was set back do not make an answer stale.
func TestKeepAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	for n := range 2 {
		item := mustItem(t, fmt.Sprintf(`{"id":7,"a":%d}`, n))
		item.when = &timing{time.Now().Add(-time.Second), time.Now()}
		_, err := store.observe(t.Context(), column([]Item{item}, observationOf))
		require.NoError(t, err)
		store.query(t, `UPDATE reports SET last_seen = last_seen + interval '10 minutes' RETURNING ''`)
	}
	assert.Equal(t, `{"id":7,"a":1}`, store.query(t, `SELECT data::text FROM reports WHERE state = 'current'`))
}

func TestKeepTakesTheBucketOutOfTheData(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	_, err := store.observe(t.Context(), []observation{observationOf(mustItem(t,
		`{"id":7,"status":"active","level":"error","environment":"a\u0000","title":"Über: foo.bar(x) foo"}`))})
	require.NoError(t, err)
	assert.Equal(t, "active error a\uFFFD {bar,foo,x,über}",
		store.query(t, `SELECT status || ' ' || level || ' ' || environment || ' ' || words::text FROM reports`))
}

func TestKeepWritesNothingWithinAMinute(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	now := &timing{time.Now(), time.Now()}
	items := []Item{{7, json.RawMessage(`{"id":7,"total_occurrences":1}`), now}, {8, json.RawMessage(`{"id":8}`), now}}
	version := func() string {
		return store.query(t, `SELECT string_agg(xmin || ' ' || ctid, ',' ORDER BY item_id) FROM reports`)
	}
	keep := func() historyStats {
		changes, err := store.observe(t.Context(), column(items, observationOf))
		require.NoError(t, err)
		return changes
	}
	assert.Equal(t, historyStats{reports: 2}, keep())
	before := version()
	assert.Equal(t, historyStats{}, keep())
	assert.Equal(t, before, version())

	store.query(t, `UPDATE reports SET last_seen = last_seen - interval '2 minutes', first_seen = first_seen - `+
		`interval '1 hour' WHERE item_id = 7 RETURNING ''`)
	before = version()
	assert.Equal(t, historyStats{}, keep())
	assert.Equal(t, before, version(), "a time is written, and not the report")
	assert.Equal(t, "true", store.query(t, `SELECT (s.last_seen > now() - interval '1 minute' AND first_seen < now() `+
		`- interval '1 hour')::text FROM reports r JOIN seen s ON s.report_id = r.id WHERE item_id = 7`))
}

// Writers that see the same items in different states and orders neither fail nor lose what they saw: each
// item ends with one current report, and all others are superseded.
func TestKeepWithManyWriters(t *testing.T) {
	t.Parallel()
	const writers, rounds, items = 5, 5, 30
	store := newTestStore(t)
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(w)))
			for round := range rounds {
				var page []Item
				for _, n := range random.Perm(items) {
					page = append(page, mustItem(t,
						fmt.Sprintf(`{"id":%d,"title":"writer %d, round %d"}`, n+1, w, round)))
				}
				_, err := store.observe(context.Background(), column(page, observationOf))
				assert.NoError(t, err)
			}
		})
	}
	group.Wait()
	assert.Equal(t, fmt.Sprint(items), store.query(t, `SELECT count(*)::text FROM reports WHERE state = 'current'`))
	assert.Equal(t, fmt.Sprint(writers*rounds*items),
		store.query(t, `SELECT count(DISTINCT (item_id, data::text))::text FROM reports`))
	assert.Equal(t, fmt.Sprint(items), store.query(t, `SELECT count(*)::text FROM reports r WHERE state = 'current' `+
		`AND id = (SELECT max(id) FROM reports WHERE item_id = r.item_id)`),
		"the current report is the newest")
}

// A database that an earlier version created is brought up to date, and keeps its rows.
func TestSchemaFromAnEarlierVersion(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	conn, err := store.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), `
		CREATE TABLE reports (
			id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			item_id bigint,
			uuid text,
			state text NOT NULL CHECK (state IN ('current', 'superseded', 'queued', 'delivered', 'rejected')),
			first_seen timestamptz NOT NULL DEFAULT now(),
			last_seen timestamptz NOT NULL DEFAULT now(),
			status text,
			level text,
			environment text,
			words text[] NOT NULL DEFAULT '{}',
			digests text NOT NULL DEFAULT '',
			data json NOT NULL
		);
		CREATE TABLE schema_version (digest text NOT NULL);
		INSERT INTO schema_version VALUES ('an earlier one');
		INSERT INTO reports (item_id, state, data) VALUES (7, 'current', '{"id":7,"title":"old"}')`)
	require.NoError(t, err)

	changed := observationOf(mustItem(t, `{"id":7,"title":"new"}`))
	changes, err := store.observe(t.Context(), []observation{changed})
	require.NoError(t, err)
	assert.Equal(t, historyStats{reports: 1}, changes)
	assert.Equal(t, "superseded", store.query(t, `SELECT state FROM reports WHERE data ->> 'title' = 'old'`))
	assert.Equal(t, "4", store.query(t, `SELECT count(*)::text FROM information_schema.columns
		WHERE table_schema = current_schema AND table_name = 'reports'
			AND column_name IN ('leased_until', 'acknowledged', 'refusal', 'reason')`))
}

// Many programs can start on an empty database at the same time.
func TestSchemaByManyAtOnce(t *testing.T) {
	t.Parallel()
	url := devpgtest.Schema(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			store, err := openStore(url, "", nil)
			assert.NoError(t, err)
			defer store.Close()
			_, err = store.observe(context.Background(),
				column([]Item{{ID: 7, JSON: json.RawMessage(`{"id":7}`)}}, observationOf))
			assert.NoError(t, err)
		})
	}
	group.Wait()
}

// A program that waited while another one applied the schema does not apply it again: its locks would keep
// readers waiting, above all those on a standby.
func TestSchemaIsAppliedOnce(t *testing.T) {
	t.Parallel()
	url := devpgtest.Schema(t)
	first, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer first.Close(t.Context())
	second, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer second.Close(t.Context())
	applied := make(chan error, 1)
	require.NoError(t, pgx.BeginFunc(t.Context(), first, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, schemaLock)
		require.NoError(t, err)
		go func() { applied <- applySchema(t.Context(), second, schema) }()
		require.Eventually(t, func() bool {
			return devpgtest.Query(t, url, fmt.Sprintf(`SELECT count(*)::text FROM pg_locks WHERE pid = %d AND NOT `+
				`granted`, second.PgConn().PID()))[0] == "1"
		}, waitLimit, waitTick)
		_, err = tx.Exec(t.Context(), schema+fmt.Sprintf(`;INSERT INTO schema_version (digest) VALUES ('%x')`,
			sha256.Sum256([]byte(schema))))
		return err
	}))
	require.NoError(t, <-applied)
	assert.Equal(t, devpgtest.Query(t, url, `SELECT xmin::text FROM pg_class WHERE oid = 'schema_version'::regclass`),
		devpgtest.Query(t, url, `SELECT xmin::text FROM schema_version`))
}

// Every column has a comment, and every table a primary key.
func TestSchemaIsWhole(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	conn.Release()
	assert.Equal(t, "NULL", store.query(t, `
		SELECT string_agg(table_name || '.' || column_name, ', ')
		FROM information_schema.columns
		WHERE table_schema = current_schema
		AND col_description(format('%I.%I', table_schema, table_name)::regclass, ordinal_position) IS NULL`),
		"columns without a comment")
	assert.Equal(t, "NULL", store.query(t, `
		SELECT string_agg(relname, ', ')
		FROM pg_class c
		WHERE relnamespace = current_schema::regnamespace AND relkind = 'r'
		AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)`), "tables without a primary key")
}

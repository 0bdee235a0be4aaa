package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

// occurrenceWith returns an occurrence with the given members of its data.
func occurrenceWith(t testing.TB, id, item, at int64, data string) Occurrence {
	t.Helper()
	o, err := occurrenceOf(fmt.Appendf(nil, `{"id":%d,"item_id":%d,"timestamp":%d,"data":{%s}}`, id, item, at, data))
	require.NoError(t, err)
	return o
}

// An archived occurrence stays as it was first seen, whatever its contents.
func TestArchive(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	first := occurrenceWith(t, 7, 1, 1_700_000_000, `"level":"error","environment":"prod"`)
	strange := occurrenceWith(t, 9_007_199_254_740_993, 1, -1,
		`"level":"fatal","environment":5,"n":1e400,"t":"\u0000\ud800"`)
	long := occurrenceWith(t, 8, 0, 1<<62, `"environment":"`+strings.Repeat("é", 3000)+`"`)
	stored, err := f.app.store.archive(t.Context(), []Occurrence{strange, long, first, first})
	require.NoError(t, err)
	assert.Equal(t, 3, stored)
	again := occurrenceWith(t, 7, 2, 1_800_000_000, `"level":"debug"`)
	stored, err = f.app.store.archive(t.Context(), []Occurrence{again, strange})
	require.NoError(t, err)
	assert.Zero(t, stored)
	assert.Equal(t, []string{
		`7|1|2023-11-14 22:13:20|prod|error`, `8|-|now|` + strings.Repeat("é", 255) + `|`, `9007199254740993|1|now||`,
	}, f.rows(`SELECT concat_ws('|', id, coalesce(item_id::text, '-'),
		CASE WHEN occurred_at > now() - interval '1 hour' THEN 'now'
		ELSE (occurred_at AT TIME ZONE 'UTC')::text END, environment, level) FROM occurrences ORDER BY id`))
	var shown []string
	for _, o := range f.get("/occurrences").list("occurrences") {
		shown = append(shown, string(o))
	}
	assert.Equal(t, []string{strings.ReplaceAll(string(strange.JSON), `\u0000\ud800`, `\ufffd\ufffd`),
		string(long.JSON), string(first.JSON)}, shown)
	assert.Len(t, f.get("/occurrences?environment="+strings.Repeat("%C3%A9", 3000)).list("occurrences"), 1)
}

// Every operation that reads an occurrence archives it, once, without the access token in its metadata.
func TestOccurrencesAreArchived(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 10)
	item := f.sandbox.ItemIDs()[4]
	page := f.get(fmt.Sprintf("/items/%d/occurrences?limit=2", item)).list("occurrences")
	require.Len(t, page, 2)
	id, other := string(rawjson.Get(page[0], "id")), string(rawjson.Get(page[1], "id"))
	assert.Equal(t, []string{id, other}, f.rows(`SELECT id::text FROM occurrences ORDER BY id DESC`))
	assert.Equal(t, fmt.Sprint(item), f.rows(`SELECT DISTINCT item_id::text FROM occurrences`)[0])

	f.sandbox.SetFault(sandbox.Down)
	got := f.get("/occurrences/" + id)
	assert.Equal(t, string(page[0])+"\n", got.body, "an archived one needs no Rollbar")
	assert.NotContains(t, got.body, "access_token")
	assert.Equal(t, 304, f.do("GET", "/occurrences/"+id, "", "If-None-Match", got.header.Get("ETag")).status)
	third := fmt.Sprint(atoi(other) - 1)
	f.get("/occurrences/"+third).requireProblem(502, "unavailable")

	f.sandbox.SetFault(sandbox.None)
	shown := f.get("/occurrences/" + third)
	require.Equal(t, 200, shown.status, shown.body)
	assert.NotContains(t, shown.body, "access_token")
	assert.Contains(t, f.rows(`SELECT id::text FROM occurrences`), third)
	assert.Contains(t, f.get("/occurrences/5").requireProblem(404, "not-found"), "occurrence 5")
	f.get("/occurrences/x").requireProblem(400, "usage")

	require.Equal(t, 200, f.do("DELETE", fmt.Sprintf("/items/%d", item), "").status)
	assert.Empty(t, f.get(fmt.Sprintf("/items/%d/occurrences", item)).list("occurrences"), "Rollbar has forgotten them")
	assert.Len(t, f.get(fmt.Sprintf("/occurrences?item_id=%d", item)).list("occurrences"), 5)
	trace := f.run("occurrences", "get", id)
	assert.Equal(t, string(page[0])+"\n", trace.out)
}

// While PostgreSQL is down, reads from Rollbar are answered, and nothing is deleted that must be stored first.
func TestOccurrencesWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 6)
	item := f.sandbox.ItemIDs()[4]
	f.exec(`ALTER TABLE occurrences RENAME TO elsewhere`)
	for range 2 {
		list := f.get(fmt.Sprintf("/items/%d/occurrences", item))
		require.Len(t, list.list("occurrences"), 5)
		one := f.get("/occurrences/" + list.at("occurrences", "0", "id"))
		assert.Equal(t, list.at("occurrences", "0"), strings.TrimSpace(one.body))
		assert.Equal(t, []string{"false", "false"},
			[]string{list.header.Get("Report-Stored"), one.header.Get("Report-Stored")})
	}
	for _, request := range []string{
		"GET /occurrences", "GET /occurrences/7", "POST /occurrences/sync", "DELETE /occurrences",
		fmt.Sprintf("DELETE /items/%d", item),
	} {
		method, path, _ := strings.Cut(request, " ")
		f.do(method, path, "").requireProblem(503, "unavailable")
	}
	assert.NotContains(t, fmt.Sprint(f.sandbox.Requests()), "DELETE")
}

func TestOccurrencesWithoutDatabase(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 6, func(c *Config) { c.DatabaseURL = "" })
	id := f.get(fmt.Sprintf("/items/%d/occurrences", f.sandbox.ItemIDs()[4])).at("occurrences", "0", "id")
	got := f.run("occurrences", "get", id)
	assert.Equal(t, 0, got.exit, got.err)
	assert.Equal(t, "app: nothing is stored: DATABASE_URL is not set\n", got.err)
	for _, args := range []string{"list", "sync", "clean -yes"} {
		got := f.run(append([]string{"occurrences"}, strings.Fields(args)...)...)
		assert.Equal(t, 3, got.exit, args)
		assert.Contains(t, got.err, "DATABASE_URL is not set")
	}
}

// addOccurrences archives n made-up occurrences, ten minutes apart, up to now. Some are out of order.
func addOccurrences(t testing.TB, store *Store, n int) {
	t.Helper()
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), `
		INSERT INTO occurrences (id, item_id, occurred_at, environment, level, data)
		SELECT 3 * g, nullif(g % 7, 0), now() - (@n - g) * interval '10 minutes'
				- CASE WHEN g % 50 = 0 THEN interval '3 days' ELSE '0' END,
			(ARRAY['production', 'staging', ''])[1 + g % 3],
			(ARRAY['critical', 'error', 'warning', 'info', 'debug', ''])[1 + g % 6],
			json_build_object('id', 3 * g)
		FROM generate_series(1, @n) AS g`, pgx.NamedArgs{"n": n})
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `VACUUM ANALYZE occurrences`)
	require.NoError(t, err)
}

// obviousOccurrences finds a page in the obvious way, regardless of cost.
func obviousOccurrences(ctx context.Context, conn *pgx.Conn, in occurrencesListInput) ([]int64, error) {
	order, limit := "DESC", in.Limit.Value
	if in.Cursor.Value.from > 0 {
		order, limit = "ASC", limit+1
	}
	rows, err := conn.Query(ctx, `
		SELECT id
		FROM occurrences
		WHERE id >= @from AND id < @before
		AND (item_id = @item_id OR @item_id = 0)
		AND (level = @level OR @level = '')
		AND (environment = @environment OR @environment = '')
		AND (occurred_at >= @since)
		AND (occurred_at <= @until OR @no_until)
		ORDER BY id `+order+`
		LIMIT @limit`, pgx.NamedArgs{
		"from": in.Cursor.Value.from, "before": in.Cursor.Value.newest(), "item_id": in.ItemID.Value,
		"level":       in.Level.Value,
		"environment": in.Environment.Value, "since": in.Since.Value.Time, "until": in.Until.Value.Time,
		"no_until": in.Until.IsZero(),
		"limit":    limit,
	})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

func TestFindOccurrencesIsRight(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	addOccurrences(t, store, 3000)
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	random := rand.New(rand.NewPCG(1, 2))
	maybe := func(values ...string) Opt[string] {
		if random.IntN(2) > 0 {
			return Opt[string]{}
		}
		return Opt[string]{Set: true, Value: values[random.IntN(len(values))]}
	}
	moment := func() (m Opt[Moment]) {
		if random.IntN(3) == 0 {
			m.Set, m.Value.Time = true, time.Now().Add(time.Duration(50-random.IntN(40_000))*time.Minute)
		}
		return m
	}
	found := 0
	for range 500 {
		in := occurrencesListInput{
			Level: maybe("error", "info"), Environment: maybe("production", "staging", "nowhere"), Since: moment(),
			Until: moment(),
			Limit: Opt[int64]{Set: true, Value: 1 + random.Int64N(30)},
		}
		switch random.IntN(5) {
		case 0:
			in.Cursor.Value.before = 1 + random.Int64N(9010)
		case 1:
			in.Cursor.Value.from = 1 + random.Int64N(9010)
		case 2:
			in.ItemID = Opt[int64]{Set: true, Value: 1 + random.Int64N(8)}
		}
		want, err := obviousOccurrences(t.Context(), conn.Conn(), in)
		require.NoError(t, err)
		got, err := in.find(t.Context(), conn.Conn(), in.Cursor.Value, int(in.Limit.Value))
		require.NoError(t, err)
		require.Equal(t, want, got, "%+v", in)
		found += len(got)
	}
	assert.Greater(t, found, 2000)
}

// Pages lead to each other in both directions, and ndjson has no end but that of the archive.
func TestOccurrencesList(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	addOccurrences(t, f.app.store, 2500)
	var down, up []string
	var last string
	for path, page := range f.walk("/occurrences?level=error&limit=100", "next") {
		for _, o := range page.list("occurrences") {
			down = append(down, string(rawjson.Get(o, "id")))
		}
		assert.Equal(t, page.link("next") == "", page.at("next") == "null")
		last = path
	}
	assert.Len(t, down, 417)
	assert.Equal(t, "7491", down[0])
	for path, page := range f.walk(last, "prev") {
		assert.Equal(t, page.link("prev") == "",
			!strings.Contains(path, "cursor") || atoi(page.at("occurrences", "0", "id")) == 7491)
		up = append([]string{page.at("occurrences", "0", "id")}, up...)
	}
	assert.Equal(t, []string{down[0], down[100], down[200], down[300], down[400]}, up)

	assert.Len(t, f.get("/occurrences").list("occurrences"), 20)
	lines := f.do("GET", "/occurrences", "", "Accept", ndjson)
	assert.Len(t, strings.Split(lines.body, "\n"), 2501)
	assert.Len(t, strings.Split(f.run("occurrences", "list", "-level", "error", "-o", "ndjson").out, "\n"), 418)
	f.get("/occurrences?level=fatal").requireProblem(400, "usage")
	f.get("/occurrences?limit=1001").requireProblem(400, "usage")
	f.get("/occurrences?cursor=x").requireProblem(400, "usage")
}

// A sync reads up to the first page with an occurrence that is too old, whatever the order of the others, and
// stores those that are missing.
func TestOccurrencesSync(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 250)
	for range 130 { // within a second or two, so that they are not in the order of ids
		f.sandbox.Touch(f.sandbox.ItemIDs()[0])
	}
	got := f.do("POST", "/occurrences/sync?since=1d", "")
	require.Equal(t, 200, got.status, got.body)
	assert.Equal(t, "2", got.at("pages"), got.body)
	assert.Equal(t, "200", got.at("occurrences"))
	assert.Equal(t, "200", got.at("stored"))
	assert.Equal(t, "131", f.rows(`SELECT count(*)::text FROM occurrences WHERE occurred_at > now() - interval '1 ` +
		`minute'`)[0])

	f.exec(`DELETE FROM occurrences WHERE id % 2 = 0`)
	all := f.do("POST", "/occurrences/sync?since=1000d", "")
	require.Equal(t, 200, all.status, all.body)
	n := f.rows(`SELECT count(*)::text FROM occurrences`)[0]
	assert.Equal(t, n, all.at("occurrences"))
	assert.Less(t, atoi(all.at("stored")), atoi(n), "half of the first ones were there")
	assert.Equal(t, strconv.Itoa((atoi(n)+99)/100), all.at("pages"))
	assert.Equal(t, `{"occurrences":100,"stored":0,"pages":1}`+"\n",
		f.do("POST", "/occurrences/sync?since=2040-01-01T00:00:00Z", "").body)

	f.sandbox.SetFault(sandbox.Down)
	f.do("POST", "/occurrences/sync", "").requireProblem(502, "unavailable")
}

func TestOccurrencesClean(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	addOccurrences(t, f.app.store, 700)
	assert.Equal(t, `{"deleted":100}`+"\n", f.do("DELETE", "/occurrences?item_id=3", "").body)
	assert.Equal(t, 2, f.run("occurrences", "clean", "-before", "2d").exit, "it asks")
	before := f.run("occurrences", "clean", "-before", "2d", "-yes")
	require.Equal(t, 0, before.exit, before.err)
	assert.Equal(t, "0", f.rows(`SELECT count(*)::text FROM occurrences
		WHERE occurred_at < now() - interval '2 days'`)[0])
	assert.NotEqual(t, "0", f.rows(`SELECT count(*)::text FROM occurrences`)[0])
	require.Equal(t, 200, f.do("DELETE", "/occurrences", "").status)
	assert.Equal(t, "0", f.rows(`SELECT count(*)::text FROM occurrences`)[0])
	readOnly := f.run("occurrences", "clean", "-yes", "-read-only")
	assert.Equal(t, 2, readOnly.exit)
}

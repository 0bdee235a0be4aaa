// reports_history.go turns observations of items into reports. The rules:
//
//   - An item that is observed again unchanged moves last_seen, at most once a minute.
//   - Where only the running counters changed, the report is updated in place.
//   - Any other change makes a new report, and supersedes the one before.
//   - Rollbar's list and its single responses have different fields. A field that one of them lacks
//     is no change, and the report keeps what either said.
//
// A report remembers digests of the responses that it holds, so that a page that is observed again
// costs one statement, which writes nothing. Differences are worked out here and written by a second
// statement, on condition that nobody else has changed the report meanwhile; an item that fails the
// condition is compared again.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"

	"app/internal/rawjson"
)

// counters are the fields of an item that change with each occurrence.
var counters = []string{"total_occurrences", "unique_occurrences", "last_occurrence_id", "last_occurrence_timestamp"}

// An observation is an item as Rollbar sent it once.
type observation struct {
	itemID int64
	digest string
	data   json.RawMessage // as PostgreSQL can hold it
}

func observationOf(item Item) observation {
	data := rawjson.Storable(item.JSON)
	sum := sha256.Sum256(data)
	return observation{item.ID, hex.EncodeToString(sum[:8]), data}
}

func observationsOf(items []Item) []observation { return column(items, observationOf) }

// historyStats count what became of observations.
type historyStats struct {
	reports int // new ones
	updated int // reports whose counters changed in place
}

func (t *historyStats) add(other historyStats) {
	t.reports += other.reports
	t.updated += other.updated
}

// observe stores the items as reports. If that fails, the call is marked as not stored, and the
// operation goes on.
func (app *App) observe(ctx context.Context, items ...Item) {
	if why := app.tryToObserve(ctx, items); why != "" {
		callOf(ctx).notStored(why)
	}
}

// observePage is observe for a page, once for all callers that share it.
func (app *App) observePage(ctx context.Context, page *ItemPage) {
	page.observing.Do(func() { page.unstored = app.tryToObserve(ctx, page.Items) })
	if page.unstored != "" {
		callOf(ctx).notStored(page.unstored)
	}
}

// tryToObserve stores the items, or returns why it could not.
func (app *App) tryToObserve(ctx context.Context, items []Item) (unstored string) {
	if app.store == nil {
		return "DATABASE_URL is not set"
	}
	stats, err := app.store.observe(context.WithoutCancel(ctx), observationsOf(items))
	if err != nil {
		app.log.WarnContext(ctx, "items not stored", "items", len(items), "error", err)
		return err.Error()
	}
	countReports(app.telemetry, len(items), stats.reports, stats.updated)
	return ""
}

// observe stores the observations, in any order; of an item that is there twice, the last one. What
// is not done within storeTimeout has failed.
func (s *Store) observe(ctx context.Context, seen []observation) (historyStats, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	pending := make(map[int64]observation, len(seen))
	for _, o := range seen {
		pending[o.itemID] = o
	}
	var stats historyStats
	for len(pending) > 0 {
		seen := slices.SortedFunc(maps.Values(pending), func(a, b observation) int { return cmp.Compare(a.itemID, b.itemID) })
		err := s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			done, err := observeOnce(ctx, conn, seen, &stats)
			for _, id := range done {
				delete(pending, id)
			}
			return err
		})
		if err != nil && !hasCode(err, uniqueViolation) { // somebody else stored a first report meanwhile
			return stats, fmt.Errorf("store items: %w", err)
		}
	}
	return stats, nil
}

// observeOnce compares the observations with the reports and writes the differences. It returns the
// items that are done; somebody else changed the reports of the others meanwhile.
func observeOnce(ctx context.Context, conn *pgx.Conn, seen []observation, stats *historyStats) (done []int64, err error) {
	differences, err := compare(ctx, conn, seen)
	if err != nil {
		return nil, err
	}
	open := map[int64]*difference{}
	for i := range differences {
		open[differences[i].itemID] = &differences[i]
	}
	for _, o := range seen {
		if open[o.itemID] == nil {
			done = append(done, o.itemID)
		}
	}
	if len(differences) == 0 {
		return done, nil
	}
	written, err := writeDifferences(ctx, conn, differences)
	for _, id := range written {
		switch open[id].change {
		case changed:
			stats.reports++
		case counted:
			stats.updated++
		}
	}
	return append(done, written...), err
}

// A difference is what an observation changes about an item's report.
type difference struct {
	itemID   int64
	reportID *int64          // the current report, nil where there is none
	before   string          // its digests when it was compared
	after    string          // and then
	change   change          // changed makes a new report
	data     json.RawMessage // nil for a report whose data stay as they are
}

// replan has PostgreSQL plan a statement for the tables as they are now. A plan that a connection keeps
// from when they were small would read all of them.
const replan = pgx.QueryExecModeCacheDescribe

// compare returns the differences between the observations and the current reports. The LIMIT keeps
// PostgreSQL from reading all reports, which seems cheap as long as they are few.
func compare(ctx context.Context, conn *pgx.Conn, seen []observation) ([]difference, error) {
	rows, err := conn.Query(ctx, `
		SELECT s.n, r.id, coalesce(r.digests, ''), CASE WHEN strpos(r.digests, s.digest) = 0 THEN r.data END
		FROM unnest(@ids::bigint[], @digests::text[]) WITH ORDINALITY AS s (item_id, digest, n)
		LEFT JOIN LATERAL (
			SELECT r.id, r.digests, r.data,
				greatest(r.last_seen, (SELECT last_seen FROM seen WHERE report_id = r.id)) AS last_seen
			FROM reports r
			WHERE r.item_id = s.item_id AND r.state = 'current'
			LIMIT 1
		) AS r ON TRUE
		WHERE r.id IS NULL
		OR strpos(r.digests, s.digest) = 0
		OR r.last_seen < now() - interval '1 minute'`,
		replan, pgx.NamedArgs{
			"ids":     column(seen, func(o observation) int64 { return o.itemID }),
			"digests": column(seen, func(o observation) string { return o.digest }),
		})
	if err != nil {
		return nil, err
	}
	var n int64
	var id *int64
	var known string
	var stored json.RawMessage
	var differences []difference
	_, err = pgx.ForEachRow(rows, []any{&n, &id, &known, &stored}, func() error {
		differences = append(differences, differ(seen[n-1], id, known, stored))
		return nil
	})
	return differences, err
}

// differ works out one difference. stored is nil where the digest is known already.
func differ(seen observation, reportID *int64, known string, stored json.RawMessage) difference {
	d := difference{itemID: seen.itemID, reportID: reportID, before: known, after: known}
	if reportID == nil {
		d.change, d.data, d.after = changed, seen.data, seen.digest
		return d
	}
	if stored == nil {
		return d
	}
	var merged json.RawMessage
	merged, d.change = mergeItem(stored, seen.data)
	switch d.change {
	case changed:
		d.data, d.after = seen.data, seen.digest
	case counted:
		d.data, d.after = merged, seen.digest
	case completed:
		d.data, d.after = merged, remember(known, seen.digest)
	case unchanged:
		d.after = remember(known, seen.digest)
	}
	return d
}

// remember adds a digest to the known ones, of which the last few are kept: the list and the
// single answer need one each.
func remember(known, digest string) string {
	digests := append(strings.Fields(known), digest)
	return strings.Join(digests[max(0, len(digests)-4):], " ")
}

// A change is how an observation differs from a report.
type change int

const (
	unchanged change = iota
	completed        // fields came that the report lacked
	counted          // counters changed
	changed          // anything else changed
)

// mergeItem compares an item as it was seen with the report's data and returns both merged: the
// seen values, and the fields that only the report has. When more than counters changed, there
// is nothing to merge.
func mergeItem(stored, seen json.RawMessage) (json.RawMessage, change) {
	now := maps.Collect(rawjson.Members(seen))
	merged, result := stored, unchanged
	for name, was := range rawjson.Members(stored) {
		is, there := now[name]
		delete(now, name)
		switch {
		case !there || equalJSON(was, is):
		case slices.Contains(counters, name):
			merged, result = rawjson.Set(merged, name, is), counted
		default:
			return nil, changed
		}
	}
	for name, is := range rawjson.Members(seen) {
		if _, fresh := now[name]; fresh {
			merged, result = rawjson.Set(merged, name, is), max(result, completed)
		}
	}
	return merged, result
}

// equalJSON reports whether two values mean the same. Numbers must agree digit for digit.
func equalJSON(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	decode := func(text json.RawMessage) (value any) {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		_ = decoder.Decode(&value) // it is valid
		return value
	}
	return reflect.DeepEqual(decode(a), decode(b))
}

// writeDifferences writes the differences, which are in the order of their items, and returns the
// items for which the condition held: the report is as it was when it was compared.
func writeDifferences(ctx context.Context, conn *pgx.Conn, differences []difference) ([]int64, error) {
	var first, others []difference
	for _, d := range differences {
		if d.reportID == nil {
			first = append(first, d)
		} else {
			others = append(others, d)
		}
	}
	done, err := writeFirst(ctx, conn, first)
	if err != nil || len(others) == 0 {
		return done, err
	}
	written, err := writeOthers(ctx, conn, others)
	return append(done, written...), err
}

// writeFirst inserts the first reports of items: all, or none where somebody else has inserted one of
// them meanwhile.
func writeFirst(ctx context.Context, conn *pgx.Conn, differences []difference) ([]int64, error) {
	if len(differences) == 0 {
		return nil, nil
	}
	done := make([]int64, 0, len(differences))
	_, err := conn.CopyFrom(ctx, pgx.Identifier{"reports"},
		[]string{"item_id", "state", "status", "level", "environment", "words", "digests", "data"},
		pgx.CopyFromFunc(func() ([]any, error) {
			if len(done) == len(differences) {
				return nil, nil
			}
			d := differences[len(done)]
			done = append(done, d.itemID)
			b := bucketOf(d.data)
			return []any{d.itemID, "current", b.status, b.level, b.environment, append([]string{}, b.words...), d.after, d.data}, nil
		}))
	if err != nil {
		return nil, err
	}
	return done, nil
}

// writeOthers writes what changes about items that have reports. Rows are locked in the order of the
// items, so that writers of the same page wait for each other in turn.
func writeOthers(ctx context.Context, conn *pgx.Conn, differences []difference) ([]int64, error) {
	buckets := column(differences, func(d difference) bucket { return bucketOf(d.data) })
	rows, err := conn.Query(ctx, `
		WITH input AS (
			SELECT *
			FROM unnest(@items::bigint[], @reports::bigint[], @before::text[], @after::text[], @fresh::boolean[],
				@status::text[], @level::text[], @environment::text[], @title::text[], @data::json[])
			AS i (item_id, report_id, before, after, fresh, status, level, environment, title, data)
		), locked AS MATERIALIZED (
			SELECT r.id
			FROM reports r
			JOIN input i ON r.id = i.report_id
			WHERE r.state = 'current' AND r.digests = i.before AND (i.data IS NOT NULL OR i.after <> i.before)
			ORDER BY r.item_id
			FOR NO KEY UPDATE OF r
		), touched AS (
			INSERT INTO seen (report_id, last_seen)
			SELECT report_id, now()
			FROM input
			WHERE data IS NULL AND after = before
			ORDER BY report_id
			ON CONFLICT (report_id) DO UPDATE SET last_seen = greatest(seen.last_seen, excluded.last_seen)
		), updated AS (
			UPDATE reports r
			SET last_seen = now(), digests = i.after, data = coalesce(i.data, r.data),
				status = coalesce(i.status, r.status), level = coalesce(i.level, r.level),
				environment = coalesce(i.environment, r.environment),
				words = CASE WHEN i.data IS NULL THEN r.words ELSE string_to_array(i.title, ' ') END
			FROM input i
			JOIN locked l ON l.id = i.report_id
			WHERE r.id = l.id AND NOT i.fresh
			RETURNING r.item_id
		), superseded AS (
			UPDATE reports r
			SET state = 'superseded'
			FROM input i
			JOIN locked l ON l.id = i.report_id
			WHERE r.id = l.id AND i.fresh
			RETURNING r.item_id, r.id, r.last_seen
		), noted AS ( -- waits for a concurrent write to seen, which saw the report while it was current
			INSERT INTO seen (report_id, last_seen)
			SELECT id, last_seen
			FROM superseded
			ORDER BY id
			ON CONFLICT (report_id) DO UPDATE SET last_seen = greatest(seen.last_seen, excluded.last_seen)
		), inserted AS (
			INSERT INTO reports (item_id, state, status, level, environment, words, digests, data)
			SELECT item_id, 'current', status, level, environment, string_to_array(title, ' '), after, data
			FROM input
			WHERE item_id IN (SELECT item_id FROM superseded)
			ORDER BY item_id
			ON CONFLICT (item_id) WHERE state = 'current' DO NOTHING
			RETURNING item_id
		)
		SELECT item_id FROM input WHERE data IS NULL AND after = before
		UNION ALL
		SELECT item_id FROM updated
		UNION ALL
		SELECT item_id FROM inserted`,
		replan, pgx.NamedArgs{
			"items":   column(differences, func(d difference) int64 { return d.itemID }),
			"reports": column(differences, func(d difference) *int64 { return d.reportID }),
			"before":  column(differences, func(d difference) string { return d.before }),
			"after":   column(differences, func(d difference) string { return d.after }),
			"fresh":   column(differences, func(d difference) bool { return d.change == changed }),
			"data":    column(differences, func(d difference) json.RawMessage { return d.data }),

			"status":      column(buckets, func(b bucket) *string { return b.status }),
			"level":       column(buckets, func(b bucket) *string { return b.level }),
			"environment": column(buckets, func(b bucket) *string { return b.environment }),
			"title":       column(buckets, func(b bucket) string { return strings.Join(b.words, " ") }),
		})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// column returns one value of each row, as an array parameter.
func column[Row, T any](rows []Row, value func(Row) T) []T {
	values := make([]T, len(rows))
	for i, row := range rows {
		values[i] = value(row)
	}
	return values
}

// A bucket is the values that reports are filtered by; nil for one that the data lack.
type bucket struct {
	status, level, environment *string
	words                      []string // of the title
}

// bucketOf returns the bucket of the data of an item or of a created occurrence.
func bucketOf(data json.RawMessage) bucket {
	var b bucket
	for name, value := range rawjson.RawMembers(data) {
		if value[0] != '"' {
			continue
		}
		var column **string
		switch string(name) {
		case `"status"`:
			column = &b.status
		case `"level"`:
			column = &b.level
		case `"environment"`:
			column = &b.environment
		case `"title"`:
			b.words = titleWords(rawjson.Unquote(value))
			continue
		default:
			continue
		}
		text := rawjson.Unquote(value)
		*column = &text
	}
	return b
}

// maxTitle is how many characters of a title count, as with Rollbar: a message without a title can
// be as long as a book.
const maxTitle = 255

// titleWords are the different words of a title, or of a search in titles: runs of letters and
// digits, in lower case.
func titleWords(title string) []string {
	if len(title) > maxTitle {
		count := 0
		for i := range title {
			count++
			if count > maxTitle {
				title = title[:i]
				break
			}
		}
	}
	words := strings.FieldsFunc(strings.ToLower(title), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	slices.Sort(words)
	return slices.Compact(words)
}

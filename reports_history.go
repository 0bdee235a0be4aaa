package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"app/internal/pgcopy"
	"app/internal/rawjson"
)

// The rules by which observations of items become reports:
//
//   - An item that is observed again unchanged only updates last_seen, at most once a minute.
//   - If only the running counters changed, the report is updated in place.
//   - Any other change makes a new report, which supersedes the previous one.
//   - An answer is stale if its request was sent before the current report was last seen. A stale
//     answer changes nothing if its state is in the item's history. Otherwise it makes a report that
//     is superseded from the start, and becomes current if the next answer shows it.
//   - Rollbar's lists and its single responses have different fields. A field that one of them lacks
//     is not a change, and the report keeps the fields of both.
//
// The times of a request are compared as ages, so that only PostgreSQL's clock counts. A report remembers digests of
// the responses that it holds, so that observing a page again costs one statement, which writes nothing. Differences
// are computed here and written by a second statement, on the condition that nobody else has changed the report
// meanwhile; an item that fails the condition is compared again.

// counters are the fields of an item that change with each occurrence.
var counters = []string{"total_occurrences", "unique_occurrences", "last_occurrence_id", "last_occurrence_timestamp"}

// An observation is an item as Rollbar sent it in one answer.
type observation struct {
	itemID int64
	digest string
	data   json.RawMessage // in a form that PostgreSQL can store
	when   *timing         // nil for an update's own answer and for an event, which count as observed now

	isEvent bool // it is from a webhook: it may come late, and must not undo anything newer
}

func observationOf(item Item) observation {
	data := rawjson.Storable(item.JSON)
	sum := sha256.Sum256(data)
	return observation{itemID: item.ID, digest: hex.EncodeToString(sum[:8]), data: data, when: item.when}
}

// historyStats counts what observations changed.
type historyStats struct {
	reports int // new ones
	updated int // reports whose counters changed in place
}

// observe stores the items as reports. If that fails, it marks the call as not stored and returns why, and the
// operation goes on.
func (app *App) observe(ctx context.Context, items ...Item) (unstored string) {
	return app.tryToStore(ctx, "items", len(items), func(ctx context.Context) error {
		_, err := app.store.observe(ctx, column(items, observationOf))
		return err
	})
}

// tryToStore runs store for n things, even if the context ends. If that fails, it marks the call as not stored and
// returns why. After a failure, nothing else in the call is tried.
func (app *App) tryToStore(ctx context.Context, things string, n int, store func(context.Context) error) (unstored string) {
	defer func() { callOf(ctx).notStored(unstored) }()
	if app.store == nil {
		return "DATABASE_URL is not set"
	}
	if why := callOf(ctx).unstored.Load(); why != nil {
		return *why
	}
	if err := store(context.WithoutCancel(ctx)); err != nil {
		app.log.WarnContext(ctx, things+" not stored", things, n, "error", err)
		return err.Error()
	}
	return ""
}

// observe stores the observations, which may be in any order; the last observation of an item counts. It fails if it
// takes longer than storeTimeout.
func (s *Store) observe(ctx context.Context, seen []observation) (historyStats, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	pending := make(map[int64]*observation, len(seen))
	for i := range seen {
		pending[seen[i].itemID] = &seen[i]
	}
	var stats historyStats
	for len(pending) > 0 {
		seen := slices.SortedFunc(maps.Values(pending), func(a, b *observation) int { return cmp.Compare(a.itemID, b.itemID) })
		err := s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			open, err := observeOnce(ctx, conn, seen, &stats)
			if err == nil {
				maps.DeleteFunc(pending, func(id int64, _ *observation) bool { return open[id] == nil })
			}
			return err
		})
		if err != nil && !hasCode(err, uniqueViolation) { // somebody else stored a first report meanwhile
			return stats, fmt.Errorf("store items: %w", err)
		}
	}
	s.telemetry.Count("app.reports.stored", float64(stats.reports))
	s.telemetry.Count("app.reports.updated", float64(stats.updated))
	s.telemetry.Count("app.reports.unchanged", float64(len(seen)-stats.reports-stats.updated))
	return stats, nil
}

// observeOnce compares the observations with the reports and writes the differences. It returns, by item, those that
// are still open because somebody else has changed the report meanwhile.
func observeOnce(ctx context.Context, conn *pgx.Conn, seen []*observation, stats *historyStats) (map[int64]*difference, error) {
	differences, err := compare(ctx, conn, seen)
	for tries := 1; tries < 5 && slices.ContainsFunc(differences, func(d difference) bool { return d.isUnsure }); tries++ {
		differences, err = compare(ctx, conn, seen)
	}
	if err == nil {
		err = lookBack(ctx, conn, differences)
	}
	if err != nil {
		return nil, err
	}
	differences = slices.DeleteFunc(differences, func(d difference) bool { return d.isStale && d.target != nil })
	open := make(map[int64]*difference, len(differences))
	for i := range differences {
		open[differences[i].itemID] = &differences[i]
	}
	written, err := writeDifferences(ctx, conn, differences)
	for _, id := range written {
		switch open[id].change {
		case changed:
			stats.reports++
		case counted:
			stats.updated++
		}
		delete(open, id)
	}
	return open, err
}

// A difference is what an observation changes about an item's reports.
type difference struct {
	itemID   int64
	reportID *int64          // the current report, nil where there is none
	version  *string         // of its row when it was compared
	target   *int64          // the report to change, nil for a new one
	isStale  bool            // the answer is stale
	isUnsure bool            // isStale may be wrong: asking for PostgreSQL's time took too long
	seen     time.Time       // by PostgreSQL's clock
	digests  string          // the target's new digests; "" if they stay as they are
	change   change          // changed makes a new report
	data     json.RawMessage // nil if the report's data stay as they are
}

// compare returns the differences between the observations and the current reports. The LIMIT keeps PostgreSQL
// from scanning all reports, which seems cheap while they are few.
func compare(ctx context.Context, conn *pgx.Conn, seen []*observation) ([]difference, error) {
	asked := time.Now()
	rows, _ := conn.Query(ctx, `
		SELECT s.n, r.id, r.version::text, coalesce(r.digests, ''), CASE WHEN strpos(r.digests, s.digest) = 0 THEN r.data END,
			r.last_seen, clock_timestamp()
		FROM unnest(@ids::bigint[], @digests::text[]) WITH ORDINALITY AS s (item_id, digest, n)
		LEFT JOIN LATERAL (
			SELECT r.id, r.xmin AS version, r.digests, r.data,
				greatest(r.last_seen, (SELECT last_seen FROM seen WHERE report_id = r.id)) AS last_seen
			FROM reports r
			WHERE r.item_id = s.item_id AND r.state = 'current'
			LIMIT 1
		) AS r ON TRUE
		WHERE r.id IS NULL
		OR strpos(r.digests, s.digest) = 0
		OR r.last_seen < now() - interval '1 minute'
		OR @exact`,
		replan, pgx.NamedArgs{
			"ids":     column(seen, func(o *observation) int64 { return o.itemID }),
			"digests": column(seen, func(o *observation) string { return o.digest }),
			"exact":   seen[0].when == nil, // an update or an event has only one item
		})
	var n int64
	var row difference
	var known string
	var stored json.RawMessage
	var lastSeen *time.Time
	var clock time.Time
	differences := make([]difference, 0, len(seen))
	_, err := pgx.ForEachRow(rows, []any{&n, &row.reportID, &row.version, &known, &stored, &lastSeen, &clock}, func() error {
		if o := seen[n-1]; o.isEvent && isOlder(o.data, stored) {
			return nil
		}
		d := row
		d.itemID, d.target = seen[n-1].itemID, d.reportID
		d.date(seen[n-1].when, lastSeen, clock, asked)
		d.differ(seen[n-1], known, stored)
		differences = append(differences, d)
		return nil
	})
	return differences, err
}

// date computes when the answer was seen, and whether it is stale. clock was PostgreSQL's time at some moment between
// asked and now. A report last seen in the future is from before that clock was set back. An answer that waited long
// to be stored counts as seen later than it was, so that clients that follow new reports do not miss it.
func (d *difference) date(when *timing, lastSeen *time.Time, clock, asked time.Time) {
	if d.seen = clock; when == nil {
		return
	}
	age := asked.Sub(when.received)
	if lastSeen != nil && !lastSeen.After(clock) {
		ago := clock.Sub(*lastSeen)
		d.isStale = time.Since(when.sent) > ago
		d.isUnsure = d.isStale && asked.Sub(when.sent) <= ago
	}
	if d.isStale {
		age = asked.Sub(when.sent)
	}
	d.seen = clock.Add(-min(age, 10*time.Second))
}

// differ computes how the observation differs from the current report. stored is nil if the digest is already known.
func (d *difference) differ(seen *observation, known string, stored json.RawMessage) {
	var merged json.RawMessage
	switch {
	case d.reportID == nil:
		d.change = changed
	case stored == nil:
		return
	default:
		merged, d.change = mergeItem(stored, seen.data)
	}
	switch d.change {
	case changed:
		d.target, d.data, d.digests = nil, seen.data, seen.digest
	case counted:
		d.data, d.digests = merged, seen.digest
	case completed:
		d.data, d.digests = merged, remember(known, seen.digest)
	case unchanged:
		d.digests = remember(known, seen.digest)
	}
}

// lookBack looks for the changed states in the history of their items: a stale answer may show a state known there,
// and a newer answer one that only stale answers have shown since the current report. Such a report is the target.
func lookBack(ctx context.Context, conn *pgx.Conn, differences []difference) error {
	var news []*difference
	for i := range differences {
		if d := &differences[i]; d.change == changed && d.reportID != nil {
			news = append(news, d)
		}
	}
	if len(news) == 0 {
		return nil
	}
	rows, _ := conn.Query(ctx, `
		SELECT i.n, r.id, r.data
		FROM unnest(@items::bigint[], @reports::bigint[], @old::boolean[]) WITH ORDINALITY AS i (item_id, report_id, is_stale, n)
		JOIN reports r ON r.item_id = i.item_id AND r.state = 'superseded' AND (i.is_stale OR r.id > i.report_id)`,
		replan, pgx.NamedArgs{
			"items":   column(news, func(d *difference) int64 { return d.itemID }),
			"reports": column(news, func(d *difference) *int64 { return d.reportID }),
			"old":     column(news, func(d *difference) bool { return d.isStale }),
		})
	var n int64
	var id *int64
	var stored json.RawMessage
	_, err := pgx.ForEachRow(rows, []any{&n, &id, &stored}, func() error {
		d := news[n-1]
		if merged, change := mergeItem(stored, d.data); change != changed {
			d.target, d.data, d.change = id, merged, counted
		}
		return nil
	})
	return err
}

// remember adds a digest to the known ones and keeps the last few, since lists and single answers need one each.
func remember(known, digest string) string {
	digests := append(strings.Fields(known), digest)
	return strings.Join(digests[max(0, len(digests)-4):], " ")
}

// A change is how an observation differs from a report.
type change int

const (
	unchanged change = iota
	completed        // there are fields that the report lacked
	counted          // counters changed
	changed          // anything else changed
)

// mergeItem compares an observed item with the report's data and merges them: the observed values, and the fields
// that only the report has. It merges nothing if more than counters changed.
func mergeItem(stored, seen json.RawMessage) (json.RawMessage, change) {
	now := maps.Collect(rawjson.Members(seen))
	merged, result := stored, unchanged
	for name, was := range rawjson.Members(stored) {
		is, there := now[name]
		delete(now, name)
		switch {
		case !there || rawjson.Equal(was, is) || name == "integrations_data" && isNothing(was) && isNothing(is):
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

// isNothing reports whether a value is one of the two that Rollbar uses for no integrations.
func isNothing(value json.RawMessage) bool { return string(value) == "null" || string(value) == "{}" }

// isOlder reports whether an event is older than a report. The first field that both have and that differs decides;
// null is older than any time.
func isOlder(event, report json.RawMessage) bool {
	for _, name := range []string{"last_occurrence_timestamp", "last_activated_timestamp", "last_resolved_timestamp", "total_occurrences"} {
		is, was := rawjson.Get(event, name), rawjson.Get(report, name)
		n, _ := strconv.ParseFloat(string(is), 64)
		m, _ := strconv.ParseFloat(string(was), 64)
		if is != nil && was != nil && n != m {
			return n < m
		}
	}
	return false
}

// writeDifferences writes the differences, which are in the order of their items, and returns the items whose
// reports had not changed since they were compared. It writes all first reports of items, or none if somebody else
// has inserted one of them meanwhile.
func writeDifferences(ctx context.Context, conn *pgx.Conn, differences []difference) (done []int64, _ error) {
	var first, others []*difference
	for i := range differences {
		if d := &differences[i]; d.reportID == nil {
			first = append(first, d)
		} else {
			others = append(others, d)
		}
	}
	if len(first) > 0 {
		text := func(s string) pgtype.Text { return pgtype.Text{String: s, Valid: true} }
		err := pgcopy.From(ctx, conn, "reports",
			strings.Fields("item_id state first_seen last_seen status level environment words total_occurrences digests data"),
			len(first), func(i int, row pgcopy.Row) pgcopy.Row {
				d, b := first[i], bucketOf(first[i].data)
				row = row.Int8(pgtype.Int8{Int64: d.itemID, Valid: true}).Text(text("current")).Timestamptz(d.seen).Timestamptz(d.seen)
				row = row.Text(b.status).Text(b.level).Text(b.environment).TextArray(b.words).Int8(b.total)
				return row.Text(text(d.digests)).JSON(d.data)
			})
		if err != nil {
			return nil, err
		}
		done = column(first, func(d *difference) int64 { return d.itemID })
	}
	if len(others) == 0 {
		return done, nil
	}
	written, err := writeOthers(ctx, conn, others)
	return append(done, written...), err
}

// writeOthers writes the differences of items that have reports. It first locks the current reports, even for a
// stale answer, and those that become current again, in the order of ids, so that writers of the same items do not
// deadlock.
func writeOthers(ctx context.Context, conn *pgx.Conn, differences []*difference) ([]int64, error) {
	buckets := column(differences, func(d *difference) bucket { return bucketOf(d.data) })
	return queryIDs(ctx, conn, `
		WITH input AS (
			SELECT *
			FROM unnest(@items::bigint[], @reports::bigint[], @versions::text[], @targets::bigint[], @old::boolean[], @seen::timestamptz[],
				@digests::text[], @status::text[], @level::text[], @environment::text[], @title::text[], @total::bigint[], @data::json[])
			AS i (item_id, report_id, version, target, is_stale, seen, digests, status, level, environment, title, total, data)
		), locked AS MATERIALIZED (
			SELECT r.id
			FROM reports r
			JOIN (
				SELECT report_id AS id, version FROM input WHERE digests <> ''
				UNION ALL
				SELECT target, NULL FROM input WHERE target <> report_id
			) AS i ON r.id = i.id
			WHERE i.version IS NULL OR r.state = 'current' AND r.xmin::text = i.version
			ORDER BY r.id
			FOR NO KEY UPDATE OF r
		), superseded AS ( -- a stale answer rewrites the row unchanged, which gives it a new version
			UPDATE reports r
			SET state = CASE WHEN i.is_stale THEN 'current' ELSE 'superseded' END
			FROM input i
			JOIN locked l ON l.id = i.report_id
			WHERE r.id = l.id AND i.target IS DISTINCT FROM i.report_id
			RETURNING r.item_id, r.id, r.last_seen
		), updated AS (
			UPDATE reports r
			SET state = 'current', last_seen = greatest(r.last_seen, i.seen), digests = i.digests, data = coalesce(i.data, r.data),
				status = coalesce(i.status, r.status), level = coalesce(i.level, r.level),
				environment = coalesce(i.environment, r.environment), total_occurrences = coalesce(i.total, r.total_occurrences),
				words = CASE WHEN i.data IS NULL THEN r.words ELSE string_to_array(i.title, ' ') END
			FROM input i
			JOIN locked l ON l.id = i.report_id
			WHERE r.id = i.target AND (i.target = i.report_id OR i.item_id IN (SELECT item_id FROM superseded))
			RETURNING r.item_id
		), inserted AS (
			INSERT INTO reports (item_id, state, first_seen, last_seen, status, level, environment, words, total_occurrences, digests, data)
			SELECT item_id, CASE WHEN is_stale THEN 'superseded' ELSE 'current' END, seen, seen,
				status, level, environment, string_to_array(title, ' '), total, digests, data
			FROM input
			WHERE target IS NULL AND item_id IN (SELECT item_id FROM superseded)
			ORDER BY item_id
			ON CONFLICT (item_id) WHERE state = 'current' DO NOTHING
			RETURNING item_id
		), sighted AS ( -- superseded reports, too: this waits for a concurrent writer that saw the report while it was current
			INSERT INTO seen (report_id, last_seen)
			SELECT id, last_seen
			FROM (SELECT report_id AS id, seen AS last_seen FROM input WHERE digests = '' UNION ALL SELECT id, last_seen FROM superseded) AS s
			ORDER BY id
			ON CONFLICT (report_id) DO UPDATE SET last_seen = greatest(seen.last_seen, excluded.last_seen)
		)
		SELECT item_id FROM input WHERE digests = ''
		UNION ALL
		SELECT item_id FROM updated
		UNION ALL
		SELECT item_id FROM inserted`,
		pgx.NamedArgs{
			"items":    column(differences, func(d *difference) int64 { return d.itemID }),
			"reports":  column(differences, func(d *difference) *int64 { return d.reportID }),
			"versions": column(differences, func(d *difference) *string { return d.version }),
			"targets":  column(differences, func(d *difference) *int64 { return d.target }),
			"old":      column(differences, func(d *difference) bool { return d.isStale }),
			"seen":     column(differences, func(d *difference) time.Time { return d.seen }),
			"digests":  column(differences, func(d *difference) string { return d.digests }),
			"data":     column(differences, func(d *difference) json.RawMessage { return d.data }),

			"status":      column(buckets, func(b bucket) pgtype.Text { return b.status }),
			"level":       column(buckets, func(b bucket) pgtype.Text { return b.level }),
			"environment": column(buckets, func(b bucket) pgtype.Text { return b.environment }),
			"title":       column(buckets, func(b bucket) string { return strings.Join(b.words, " ") }),
			"total":       column(buckets, func(b bucket) pgtype.Int8 { return b.total }),
		})
}

// A bucket holds the values by which reports are filtered and counted; a value that the data lack is null.
type bucket struct {
	status, level, environment pgtype.Text
	words                      []string    // of the title, never nil
	total                      pgtype.Int8 // occurrences
}

// bucketOf returns the bucket of the data of an item or of a created occurrence.
func bucketOf(data json.RawMessage) bucket {
	b := bucket{words: []string{}}
	text := func(value json.RawMessage) pgtype.Text {
		return pgtype.Text{String: rawjson.Unquote(value), Valid: value[0] == '"'}
	}
	for name, value := range rawjson.RawMembers(data) {
		switch string(name) {
		case `"status"`:
			b.status = text(value)
		case `"level"`:
			b.level = text(value)
		case `"environment"`:
			b.environment = text(value)
		case `"title"`:
			b.words = titleWords(rawjson.Unquote(value))
		case `"total_occurrences"`:
			b.total.Int64, b.total.Valid = rawjson.Int(value)
		}
	}
	return b
}

// maxTitle is how many characters of a title count, as with Rollbar: a message can be very long.
const maxTitle = 255

// titleWords returns the distinct words of a title or a search: runs of letters and digits, in lower case.
func titleWords(title string) []string {
	if len(title) > maxTitle {
		runes := []rune(title[:min(len(title), maxTitle*utf8.UTFMax)])
		title = string(runes[:min(len(runes), maxTitle)])
	}
	words := strings.FieldsFunc(strings.ToLower(title), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	slices.Sort(words)
	return slices.Compact(words)
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

var reportsSummaryCmd = &Command{
	Name:  "reports.summary",
	Route: "GET /reports/summary",
	Short: "Count stored items by status, level, environment and day",
	Long:  "Does not ask Rollbar. Days begin at midnight UTC.",
	Run:   typed(reportsSummary),
}

type reportsSummaryInput struct {
	Since Moment `query:"since" default:"28d" help:"first day: a time (RFC 3339), a date or an age such as 4w, at most 366 days back"`
}

func (in *reportsSummaryInput) check() error {
	switch ago := time.Since(in.Since.Time); {
	case ago < 0:
		return invalidField("since", "must not be in the future")
	case ago.Truncate(time.Minute) > 366*24*time.Hour: // an age was subtracted a moment ago
		return invalidField("since", "must be at most 366 days back")
	}
	return nil
}

// A Summary is what the reports say about the project.
type Summary struct {
	Since time.Time    `json:"since"`
	Items ItemCounts   `json:"items"`
	Days  []DayCounts  `json:"days"`
	Top   []TopItem    `json:"top"`
	Queue QueueSummary `json:"queue"`
}

// ItemCounts counts the current reports of items. ByEnvironment has only the 20 most frequent environments.
type ItemCounts struct {
	Total         int64            `json:"total"`
	ByStatus      map[string]int64 `json:"by_status"`
	ByLevel       map[string]int64 `json:"by_level"`
	ByEnvironment map[string]int64 `json:"by_environment"`
}

// DayCounts counts a day's reports of items: in New those that are the oldest of their items, in Changed the others.
type DayCounts struct {
	Date    string `json:"date"`
	New     int64  `json:"new"`
	Changed int64  `json:"changed"`
}

// A TopItem is an item with many occurrences.
type TopItem struct {
	ItemID           int64  `json:"item_id"`
	Title            string `json:"title"`
	Level            string `json:"level"`
	Status           string `json:"status"`
	TotalOccurrences int64  `json:"total_occurrences"`
}

// A QueueSummary counts created occurrences that wait for delivery, or that Rollbar refused for good.
type QueueSummary struct {
	Queued   int64      `json:"queued"`
	Oldest   *time.Time `json:"oldest"`
	Rejected int64      `json:"rejected"`
}

func reportsSummary(ctx context.Context, app *App, in reportsSummaryInput) (summary Summary, err error) {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = app.store.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginTxFunc(ctx, conn, snapshot, func(tx pgx.Tx) error {
			summary = newSummary(in.Since.UTC().Truncate(time.Second))
			return cmp.Or(summary.readItems(ctx, tx), summary.readHistory(ctx, tx), summary.readTop(ctx, tx), summary.readQueue(ctx, tx))
		})
	})
	if err != nil {
		return Summary{}, fmt.Errorf("summary: %w", err)
	}
	summary.Items.keepFrequentEnvironments()
	return summary, nil
}

// newSummary returns a summary without figures, with all days since the time.
func newSummary(since time.Time) Summary {
	s := Summary{Since: since, Days: []DayCounts{}, Top: []TopItem{}}
	s.Items = ItemCounts{ByStatus: map[string]int64{}, ByLevel: map[string]int64{}, ByEnvironment: map[string]int64{}}
	for day := since.Truncate(24 * time.Hour); !day.After(time.Now()); day = day.AddDate(0, 0, 1) {
		s.Days = append(s.Days, DayCounts{Date: day.Format(time.DateOnly)})
	}
	return s
}

// day returns the counts of a day for the caller to change. Counts of a day outside the summary are discarded.
func (s *Summary) day(date time.Time) *DayCounts {
	number := int(date.Sub(s.Since.Truncate(24*time.Hour)) / (24 * time.Hour))
	if date.Before(s.Since.Truncate(24*time.Hour)) || number >= len(s.Days) { // the latter if midnight has passed
		return &DayCounts{}
	}
	return &s.Days[number]
}

// dayOf is a report's day as an SQL expression. Without statistics on it, PostgreSQL would not count in parallel.
const dayOf = "(first_seen AT TIME ZONE 'UTC')::date"

// readItems counts current reports as if each were the first of its item. It reads nothing but an index.
func (s *Summary) readItems(ctx context.Context, tx pgx.Tx) error {
	rows, _ := tx.Query(ctx, `
		SELECT coalesce(status, ''), coalesce(level, ''), coalesce(environment, ''), `+dayOf+`, count(*)
		FROM reports
		WHERE state = 'current'
		GROUP BY status, level, environment, 4`, replan)
	var status, level, environment string
	var day time.Time
	var count int64
	_, err := pgx.ForEachRow(rows, []any{&status, &level, &environment, &day, &count}, func() error {
		s.Items.Total += count
		s.Items.ByStatus[status] += count
		s.Items.ByLevel[level] += count
		s.Items.ByEnvironment[environment] += count
		s.day(day).New += count
		return nil
	})
	return err
}

// readHistory counts the reports of items that have more than one, or only superseded ones.
func (s *Summary) readHistory(ctx context.Context, tx pgx.Tx) error {
	rows, _ := tx.Query(ctx, `
		WITH past AS (
			SELECT item_id, first_seen, FALSE AS is_current
			FROM reports
			WHERE state = 'superseded' AND item_id IS NOT NULL
		), history AS (
			SELECT first_seen, is_current, row_number() OVER (PARTITION BY item_id ORDER BY first_seen, is_current) = 1 AS is_first
			FROM (
				SELECT * FROM past
				UNION ALL
				SELECT item_id, first_seen, TRUE
				FROM reports
				WHERE state = 'current' AND item_id IN (SELECT item_id FROM past)
			) AS r
		)
		SELECT `+dayOf+`, is_current, is_first, count(*)
		FROM history
		GROUP BY 1, 2, 3`, replan)
	var day time.Time
	var isCurrent, isFirst bool
	var count int64
	_, err := pgx.ForEachRow(rows, []any{&day, &isCurrent, &isFirst, &count}, func() error {
		if isCurrent { // readItems counted it as new
			s.day(day).New -= count
		}
		if isFirst {
			s.day(day).New += count
		} else {
			s.day(day).Changed += count
		}
		return nil
	})
	return err
}

// keepFrequentEnvironments keeps the 20 most frequent environments, and drops the counts of items without a value.
func (c *ItemCounts) keepFrequentEnvironments() {
	for _, counts := range []map[string]int64{c.ByStatus, c.ByLevel, c.ByEnvironment} {
		delete(counts, "")
	}
	names := byCount(c.ByEnvironment)
	for _, name := range names[min(20, len(names)):] {
		delete(c.ByEnvironment, name)
	}
}

// byCount returns the names with the highest counts first.
func byCount(counts map[string]int64) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}

func (s *Summary) readTop(ctx context.Context, tx pgx.Tx) (err error) {
	rows, _ := tx.Query(ctx, `
		SELECT r.item_id, coalesce(r.data ->> 'title', ''), coalesce(r.level, ''), coalesce(r.status, ''), t.total_occurrences
		FROM (
			SELECT item_id, total_occurrences
			FROM reports
			WHERE state = 'current' AND total_occurrences IS NOT NULL
			ORDER BY total_occurrences DESC, item_id DESC
			LIMIT 10
		) AS t
		JOIN reports r ON r.item_id = t.item_id AND r.state = 'current'
		ORDER BY t.total_occurrences DESC, t.item_id DESC`, replan)
	s.Top, err = pgx.CollectRows(rows, pgx.RowToStructByPos[TopItem])
	return err
}

func (s *Summary) readQueue(ctx context.Context, tx pgx.Tx) error {
	return tx.QueryRow(ctx, `
		SELECT count(*), min(first_seen), (SELECT count(*) FROM reports WHERE state = 'rejected')
		FROM reports
		WHERE state = 'queued'`).Scan(&s.Queue.Queued, &s.Queue.Oldest, &s.Queue.Rejected)
}

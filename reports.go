package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

var reportsListCmd = &Command{
	Name:    "reports.list",
	Route:   "GET /reports",
	Short:   "List stored reports, newest first, without asking Rollbar",
	Long:    "A report is one state of an item, kept in PostgreSQL. With latest, superseded states are left out.",
	Columns: "id item_id state last_seen data.level data.status data.total_occurrences title",
	Shape:   Report{},
	Run:     typed(reportsList),
}

type reportsListInput struct {
	ItemID      Opt[int64]     `query:"item_id" min:"1" help:"only reports of the item with this id"`
	Status      Opt[string]    `query:"status" enum:"active,resolved,muted,archived" help:"only items with this status"`
	Level       Opt[string]    `query:"level" enum:"debug,info,warning,error,critical" help:"only items with this level"`
	Environment Opt[string]    `query:"environment" min:"1" help:"only items in this environment"`
	State       Opt[string]    `query:"state" enum:"current,superseded,queued,delivered,rejected" help:"only reports in this state"`
	Q           Opt[string]    `query:"q" min:"1" help:"only titles that contain all of these words"`
	Since       Opt[Moment]    `query:"since" help:"only reports seen since this time (RFC 3339 or a date) or within this age (36h, 7d)"`
	Until       Opt[Moment]    `query:"until" help:"only reports seen until this time, or longer ago than this age"`
	Latest      bool           `query:"latest" default:"false" help:"only the latest state of each item"`
	Limit       Opt[int64]     `query:"limit" min:"1" max:"1000" help:"reports per page (default 20; all with ndjson)"`
	Cursor      Opt[rowCursor] `query:"cursor" help:"cursor of the page, from next or a Link header"`
}

func (in *reportsListInput) check() error {
	if in.Q.Set && len(titleWords(in.Q.Value)) == 0 {
		return invalidField("q", "must contain a word of letters or digits")
	}
	return nil
}

func reportsList(ctx context.Context, app *App, in reportsListInput) (*List, error) {
	return app.listRows(ctx, in.Limit, rowPage{
		table: "reports", query: selectReports, append: appendReport,
		find: in.find, isFiltered: in.isFiltered(), cursor: in.Cursor.Value,
	})
}

const (
	partBytes   = 1 << 20 // of rows that are read at a time, give or take one row
	partRows    = 100     // in the first part, while the size of a row is unknown
	endlessPage = 1000    // rows of a page when all rows are wanted
)

// A rowPage is a page of rows that is read in parts, so that neither a large page nor a slow client holds a
// connection or much memory. When all rows are wanted, one page follows another.
type rowPage struct {
	table      string
	query      func(ids string) string               // the statement that reads rows, with ids first, by a condition on the ids
	append     func(buf []byte, row [][]byte) []byte // appends a row as callers see it
	isFiltered bool                                  // the list leaves out some rows
	cursor     rowCursor
	// find returns the ids of a page, and one more when it pages towards newer rows.
	find func(ctx context.Context, conn *pgx.Conn, at rowCursor, limit int) ([]int64, error)

	store   *Store
	limit   int
	endless bool

	ids    []int64 // the rows that are still to be read, newest first
	newest int64   // the id of the first row, 0 for none
	oldest int64   // the id of the last row that was read
	last   int64   // the id of the page's last row
	isFull bool    // the page has limit rows, so more may follow
	prev   url.Values
	next   url.Values

	*rowPart
	held int // bytes of the memory budget
}

// A rowPart holds the rows that are in memory.
type rowPart struct {
	text []byte // rows as JSON, one after the other
	ends []int  // where each row in text ends
}

// spareParts are reused, since growing new ones takes as long as all the rest of a list.
var spareParts = sync.Pool{New: func() any { return &rowPart{} }}

// listRows lists a page of rows, or all of them.
func (app *App) listRows(ctx context.Context, limit Opt[int64], p rowPage) (*List, error) {
	p.store, p.rowPart, p.limit = app.store, spareParts.Get().(*rowPart), int(cmp.Or(limit.Value, 20))
	if callOf(ctx).stream && !limit.Set {
		p.endless, p.limit = p.cursor.from == 0, endlessPage // paging towards newer rows gives one page with links
	}
	if err := p.read(ctx, (*rowPage).begin); err != nil {
		p.release()
		return nil, err
	}
	return &List{Name: p.table, Rows: p.rows(ctx), Rest: restWithCursor(p.next), Prev: p.prev, Next: p.next}, nil
}

// read runs one step of reading. A step may run twice, so it works on a copy.
func (p *rowPage) read(ctx context.Context, step func(*rowPage, context.Context, *pgx.Conn) error) error {
	memory.Add(-p.held)
	p.held = 0
	size := min(partBytes, p.limit<<12)
	err := memory.Take(ctx, size)
	if err == nil {
		err = p.store.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			after := *p
			err := step(&after, ctx, conn)
			if err == nil {
				*p = after
			}
			return err
		})
		p.held = cap(p.text)
		memory.Add(p.held - size)
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", p.table, err)
	}
	return nil
}

// begin finds the page, reads its first part and works out the neighbouring pages. Without filters it reads the
// first part before it finds the rest of the page.
func (p *rowPage) begin(ctx context.Context, conn *pgx.Conn) (err error) {
	at, left := p.cursor, p.limit
	hasPrev, isEnd := at.before > 0, false
	p.ids, p.newest, p.oldest = nil, 0, 0
	if at.from == 0 && !p.isFiltered {
		// The limit is a literal: PostgreSQL estimates a parameter as a tenth of all rows.
		n := p.portion(left)
		more, err := p.fill(conn.Query(ctx, p.query("< $1 ORDER BY id DESC LIMIT "+strconv.Itoa(n)), at.newest()))
		if err != nil {
			return err
		}
		isEnd = len(p.ends) < n && !more
		at.before, left = p.oldest, left-len(p.ends)
	}
	if left > 0 && !isEnd {
		if p.ids, err = p.find(ctx, conn, at, left); err != nil {
			return err
		}
		slices.SortFunc(p.ids, func(a, b int64) int { return cmp.Compare(b, a) })
		if len(p.ids) > left { // the newest one belongs to the previous page
			hasPrev, p.ids = true, p.ids[1:]
		}
	}
	p.isFull, p.last = len(p.ids) == left, p.oldest
	if n := len(p.ids); n > 0 {
		p.last = p.ids[n-1]
	}
	if left == p.limit {
		if err := p.readPart(ctx, conn); err != nil {
			return err
		}
	}
	if hasPrev {
		p.prev = cursorTo(rowCursor{from: cmp.Or(p.newest, p.cursor.before-1) + 1})
	}
	if !p.endless && (p.isFull || p.cursor.from > 0) {
		p.next = cursorTo(rowCursor{before: cmp.Or(p.last, p.cursor.from)})
	}
	return nil
}

// readPart reads the rows that were found until the part is full or the page ends.
func (p *rowPage) readPart(ctx context.Context, conn *pgx.Conn) error {
	n := p.portion(len(p.ids))
	more, err := p.fill(conn.Query(ctx, p.query("= ANY($1) ORDER BY id DESC"), p.ids[:n]))
	if more {
		n = slices.Index(p.ids, p.oldest) + 1
	}
	p.ids = p.ids[n:]
	return err
}

// portion returns how many of the rows fill a part, if they are about as large as those of the previous part.
func (p *rowPage) portion(of int) int {
	n := partRows
	if read := len(p.ends); read > 0 {
		n = max(1, partBytes*read/max(1, p.ends[read-1]))
	}
	return min(n, of)
}

// fill reads rows until the part is full, and reports whether there are more.
func (p *rowPage) fill(rows pgx.Rows, _ error) (more bool, err error) { // the rows have the error, too
	p.text, p.ends = p.text[:0], p.ends[:0]
	for more = rows.Next(); more && len(p.text) < partBytes; more = rows.Next() {
		row := rows.RawValues()
		id := int64(binary.BigEndian.Uint64(row[0]))
		p.text = p.append(p.text, row)
		p.ends = append(p.ends, len(p.text))
		p.newest, p.oldest = cmp.Or(p.newest, id), id
	}
	rows.Close()
	return more, rows.Err()
}

// selectReports returns the statement that reads reports by a condition on their ids. Both tables are read in the
// order of ids, so that joining them costs little.
func selectReports(ids string) string {
	return `
		SELECT id, coalesce(r.item_id::text, 'null'), coalesce(to_json(r.uuid)::text, 'null'), r.state, r.first_seen,
			greatest(r.last_seen, s.last_seen), r.data
		FROM (SELECT id, item_id, uuid, state, first_seen, last_seen, data FROM reports WHERE id ` + ids + `) AS r
		LEFT JOIN (SELECT report_id AS id, last_seen FROM seen WHERE report_id ` + ids + `) AS s USING (id)
		ORDER BY id DESC`
}

// rows yields the rows of the page as JSON and, when all rows are wanted, those of the later pages.
func (p *rowPage) rows(ctx context.Context) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		defer p.release()
		for {
			begin := 0
			for _, end := range p.ends {
				if !yield(p.text[begin:end:end], nil) {
					return
				}
				begin = end
			}
			step := (*rowPage).readPart
			if len(p.ids) == 0 {
				if !p.endless || !p.isFull {
					return
				}
				p.cursor, step = rowCursor{before: p.last}, (*rowPage).begin
			}
			if err := p.read(ctx, step); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// release gives back the memory, and makes the part available to other pages unless it is large.
func (p *rowPage) release() {
	memory.Add(-p.held)
	if cap(p.text) <= 2*partBytes {
		p.ends = p.ends[:0]
		spareParts.Put(p.rowPart)
	}
}

func cursorTo(c rowCursor) url.Values { return url.Values{"cursor": {c.String()}} }

// A Report is a report as callers see it, and as appendReport writes it.
type Report struct {
	ID        int64           `json:"id"`
	ItemID    *int64          `json:"item_id"`
	UUID      *string         `json:"uuid"`
	State     string          `json:"state" enum:"current,superseded,queued,delivered,rejected"`
	FirstSeen time.Time       `json:"first_seen"`
	LastSeen  time.Time       `json:"last_seen"`
	Data      json.RawMessage `json:"data"`
}

// appendReport appends the report in a row of selectReports.
func appendReport(buf []byte, row [][]byte) []byte {
	buf = strconv.AppendUint(append(buf, `{"id":`...), binary.BigEndian.Uint64(row[0]), 10)
	buf = append(append(buf, `,"item_id":`...), row[1]...)
	buf = append(append(buf, `,"uuid":`...), row[2]...)
	buf = append(append(buf, `,"state":"`...), row[3]...)
	buf = binaryTime(row[4]).AppendFormat(append(buf, `","first_seen":"`...), time.RFC3339Nano)
	buf = binaryTime(row[5]).AppendFormat(append(buf, `","last_seen":"`...), time.RFC3339Nano)
	return append(append(append(buf, `","data":`...), row[6]...), '}')
}

// binaryTime reads a time in PostgreSQL's binary format, microseconds since 2000.
func binaryTime(raw []byte) time.Time {
	return time.UnixMicro(int64(binary.BigEndian.Uint64(raw)) + 946_684_800_000_000).UTC()
}

var reportsGetCmd = &Command{
	Name:  "reports.get",
	Route: "GET /reports/{id}",
	Short: "Show one stored report, without asking Rollbar",
	Shape: Report{},
	Run:   typed(reportsGet),
}

type reportsGetInput struct {
	ID int64 `path:"id" min:"1" help:"the report's id"`
}

func reportsGet(ctx context.Context, app *App, in reportsGetInput) (report json.RawMessage, err error) {
	err = app.store.read(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		rows, _ := conn.Query(ctx, selectReports("= $1"), in.ID)
		report, err = pgx.CollectOneRow(rows, func(row pgx.CollectableRow) (json.RawMessage, error) {
			return appendReport(nil, row.RawValues()), nil
		})
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fail(notFound, "there is no report %d", in.ID)
	case err != nil:
		return nil, fmt.Errorf("report %d: %w", in.ID, err)
	}
	return report, nil
}

// A rowCursor is the page of reports older than an id, or of those from an id on. Callers treat it as opaque.
type rowCursor struct{ before, from int64 }

// newest returns the id below which the page begins.
func (c rowCursor) newest() int64 { return cmp.Or(c.before, math.MaxInt64) }

func (c rowCursor) String() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d", c.before, c.from))
}

// UnmarshalText reads what String wrote.
func (c *rowCursor) UnmarshalText(text []byte) error {
	raw, err := base64.RawURLEncoding.DecodeString(string(text))
	first, second, _ := strings.Cut(string(raw), ".")
	before, errBefore := literal{text: first}.int()
	from, errFrom := literal{text: second}.int()
	if err != nil || errBefore != nil || errFrom != nil || before < 0 || from < 0 {
		return errors.New("must be a cursor that an earlier page gave as next")
	}
	*c = rowCursor{before, from}
	return nil
}

var reportsCleanCmd = &Command{
	Name:  "reports.clean",
	Route: "DELETE /reports",
	Short: "Delete stored reports, except queued ones",
	Confirm: func(count json.RawMessage, filters string) string {
		return fmt.Sprintf("Permanently delete %s reports (%s)?", cmp.Or(string(count), "the"), cmp.Or(filters, "all but queued ones"))
	},
	About:   &Command{Run: typed(reportsChosen)},
	Changes: true,
	Run:     typed(reportsClean),
}

type reportsCleanInput struct {
	Before Opt[Moment] `query:"before" help:"only reports last seen before this time (RFC 3339 or a date) or longer ago than this age (36h, 7d)"`
	ItemID Opt[int64]  `query:"item_id" min:"1" help:"only reports of the item with this id"`
	State  Opt[string] `query:"state" enum:"current,superseded,delivered,rejected" help:"only reports in this state"`
}

// Cleaned counts the reports that were deleted, and those that match the filters other than state but were kept
// because they still wait for delivery.
type Cleaned struct {
	Deleted    int64 `json:"deleted"`
	KeptQueued int64 `json:"kept_queued"`
}

// conditions returns the condition of the filters other than state, the one on the state, and the arguments of both.
func (in *reportsCleanInput) conditions() (chosen, state string, args pgx.NamedArgs) {
	chosen, state = "TRUE"+and(map[string]bool{
		"item_id = @item_id": in.ItemID.Set,
		"greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = id)) < @before": in.Before.Set,
	}), "state <> 'queued'"
	if in.State.Set {
		state = "state = @state"
	}
	return chosen, state, pgx.NamedArgs{"before": in.Before.Value.Time, "item_id": in.ItemID.Value, "state": in.State.Value}
}

// and returns the conditions whose value is true, each preceded by AND.
func and(conditions map[string]bool) (sql string) {
	for _, condition := range slices.Sorted(maps.Keys(conditions)) {
		if conditions[condition] {
			sql += " AND " + condition
		}
	}
	return sql
}

// reportsChosen counts the reports that reportsClean would delete.
func reportsChosen(ctx context.Context, app *App, in reportsCleanInput) (json.RawMessage, error) {
	chosen, state, args := in.conditions()
	return app.countRows(ctx, "reports", chosen+" AND "+state, args)
}

func (app *App) countRows(ctx context.Context, table, condition string, args pgx.NamedArgs) (count json.RawMessage, err error) {
	err = app.store.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(*)::text FROM `+table+` WHERE `+condition, args).Scan((*[]byte)(&count))
	})
	if err != nil {
		return nil, fmt.Errorf("count %s: %w", table, err)
	}
	return count, nil
}

func reportsClean(ctx context.Context, app *App, in reportsCleanInput) (cleaned Cleaned, err error) {
	if app.store == nil {
		return Cleaned{}, noDatabase()
	}
	app.store.deliveries.Flush(ctx)
	chosen, state, args := in.conditions()
	err = app.store.writeSlowly(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			WITH chosen AS MATERIALIZED (
				SELECT id
				FROM reports
				WHERE `+chosen+` AND `+state+`
				ORDER BY id
				FOR UPDATE
			), deleted AS (
				DELETE FROM reports
				WHERE id IN (SELECT id FROM chosen)
				RETURNING id
			), sighted AS MATERIALIZED (
				SELECT report_id
				FROM seen
				WHERE report_id IN (SELECT id FROM deleted)
				ORDER BY report_id
				FOR UPDATE
			), forgotten AS (
				DELETE FROM seen
				WHERE report_id IN (SELECT report_id FROM sighted)
			)
			SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM reports WHERE `+chosen+` AND state = 'queued')`,
			args).Scan(&cleaned.Deleted, &cleaned.KeptQueued)
	})
	if err != nil {
		return Cleaned{}, fmt.Errorf("clean reports: %w", err)
	}
	return cleaned, nil
}

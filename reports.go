// reports.go lists, shows and deletes reports. They come from reports_history.go and
// reports_outbox.go; reports_filter.go finds those that a list's filters choose.
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
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/rawjson"
)

var reportsListCmd = &Command{
	Name:  "reports.list",
	Route: "GET /reports",
	Short: "List stored reports, newest first",
	Long: "A report is one state of an item, read from PostgreSQL without a call to Rollbar. With latest, each item is there\n" +
		"once, as Rollbar last showed it.",
	Columns: "id item_id state last_seen data.level data.status data.total_occurrences title",
	Shape:   Report{},
	Run:     typed(reportsList),
}

type reportsListInput struct {
	ItemID      Opt[int64]        `query:"item_id" min:"1" help:"only reports of the item with this id"`
	Status      Opt[string]       `query:"status" enum:"active,resolved,muted,archived" help:"only items with this status"`
	Level       Opt[string]       `query:"level" enum:"debug,info,warning,error,critical" help:"only items with this level"`
	Environment Opt[string]       `query:"environment" min:"1" help:"only items in this environment"`
	State       Opt[string]       `query:"state" enum:"current,superseded,queued,delivered,rejected" help:"only reports in this state"`
	Q           Opt[string]       `query:"q" min:"1" help:"only titles that contain all of these words"`
	Since       Opt[Moment]       `query:"since" help:"only reports seen since this time (RFC 3339 or a date) or within this age (36h, 7d)"`
	Until       Opt[Moment]       `query:"until" help:"only reports seen until this time, or longer ago than this age"`
	Latest      bool              `query:"latest" default:"false" help:"only the latest state of each item"`
	Limit       Opt[int64]        `query:"limit" min:"1" max:"1000" help:"reports per page (default 20; all with ndjson)"`
	Cursor      Opt[reportCursor] `query:"cursor" help:"cursor of the page, from next or a Link header"`
}

func (in *reportsListInput) check() error {
	if in.Q.Set && len(titleWords(in.Q.Value)) == 0 {
		return invalidField("q", "must contain a word of letters or digits")
	}
	return nil
}

func reportsList(ctx context.Context, app *App, in reportsListInput) (*List, error) {
	store, err := app.database()
	if err != nil {
		return nil, err
	}
	return listRows(ctx, store, "reports", &in)
}

// A rowFilter is the input of a list of reports or archived occurrences.
type rowFilter interface {
	page() (limit *Opt[int64], cursor *reportCursor)
	// isFiltered reports whether the list is of some rows only.
	isFiltered() bool
	// find returns the ids of the page in any order, and one more on the way up.
	find(ctx context.Context, conn *pgx.Conn) ([]int64, error)
	// query asks for the rows with the ids, or, where those are nil, for the first rows below an id.
	query(ctx context.Context, conn *pgx.Conn, ids []int64, below, limit int64) (pgx.Rows, error)
	// scanner returns a function that appends the row as callers see it and returns its id.
	scanner(rows pgx.Rows) func(buf []byte) ([]byte, int64, error)
}

// listRows lists what the input chooses of the table: a page, or all.
func listRows(ctx context.Context, store *Store, table string, in rowFilter) (*List, error) {
	limit, cursor := in.page()
	page := &rowPage{in: in, cursor: cursor, table: table, store: store, rowPart: spareParts.Get().(*rowPart)}
	page.endless = callOf(ctx).stream && !limit.Set
	page.limit = cmp.Or(limit.Value, 20)
	if page.endless {
		page.limit = endlessPage
	}
	limit.Value = page.limit
	if err := page.read(ctx, (*rowPage).begin); err != nil {
		page.release()
		return nil, fmt.Errorf("list %s: %w", table, err)
	}
	return &List{Name: table, Rows: page.rows(ctx), Rest: restWithCursor(page.next), Prev: page.prev, Next: page.next}, nil
}

func (in *reportsListInput) page() (*Opt[int64], *reportCursor) { return &in.Limit, &in.Cursor.Value }

const (
	partBytes   = 1 << 20 // of rows that are read at a time, give or take one row
	partRows    = 100     // of the first part, when their size is not known
	endlessPage = 1000    // rows of a page where all are wanted
)

// A rowPage is a page of rows that is read in parts: neither a large page nor a slow client holds much
// memory, or a connection. Where all rows are wanted, one page follows another.
type rowPage struct {
	in      rowFilter
	cursor  *reportCursor // of in
	table   string
	store   *Store
	limit   int64
	endless bool

	ids    []int64 // the rows to read, newest first; nil for those below oldest
	left   int64   // how many rows are still to be read
	newest int64   // the id of the first row, 0 for none
	oldest int64   // the id of the last one that was read
	isFull bool    // the page has limit rows, so others may follow
	prev   url.Values
	next   url.Values

	*rowPart
	held int // bytes of the memory
}

// A rowPart is the rows that are in memory.
type rowPart struct {
	text []byte // rows as JSON, one behind the other
	ends []int  // of the rows in text
}

// spareParts are used again: to grow new ones takes as long as all the rest.
var spareParts = sync.Pool{New: func() any { return &rowPart{} }}

// read takes a step of reading. A step may run twice, so it works on a copy.
func (p *rowPage) read(ctx context.Context, step func(*rowPage, context.Context, *pgx.Conn) error) error {
	memory.Add(-p.held)
	p.held = 0
	size := min(partBytes, int(p.limit)<<12)
	if err := memory.Take(ctx, size); err != nil {
		return err
	}
	err := p.store.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		after := *p
		err := step(&after, ctx, conn)
		if err == nil {
			*p = after
		}
		return err
	})
	p.held = cap(p.text)
	memory.Add(p.held - size)
	return err
}

// begin finds the page, reads its first part and works out the neighbouring pages.
func (p *rowPage) begin(ctx context.Context, conn *pgx.Conn) error {
	cursor := *p.cursor
	p.left, p.newest, p.oldest = p.limit, 0, cursor.newest()
	hasPrev := cursor.before > 0
	if cursor.from > 0 || p.in.isFiltered() {
		ids, err := p.in.find(ctx, conn)
		if err != nil {
			return err
		}
		slices.SortFunc(ids, func(a, b int64) int { return cmp.Compare(b, a) })
		if int64(len(ids)) > p.limit { // the newest one belongs to the page before
			hasPrev, ids = true, ids[1:]
		}
		p.ids, p.left = append([]int64{}, ids...), int64(len(ids))
	}
	if err := p.readPart(ctx, conn); err != nil {
		return err
	}
	last, err := p.lastID(ctx, conn)
	if err != nil {
		return err
	}
	p.isFull = last > 0
	switch {
	case hasPrev && p.newest > 0:
		p.prev = cursorTo(reportCursor{from: p.newest + 1})
	case hasPrev: // of an empty page
		p.prev = cursorTo(reportCursor{from: cursor.before})
	}
	switch {
	case p.endless:
	case last > 0:
		p.next = cursorTo(reportCursor{before: last})
	case cursor.from > 0 && p.newest == 0: // of an empty page
		p.next = cursorTo(reportCursor{before: cursor.from})
	}
	return nil
}

// lastID returns the id of the page's last report, or 0 where no report can follow.
func (p *rowPage) lastID(ctx context.Context, conn *pgx.Conn) (id int64, err error) {
	read := int64(len(p.ends))
	switch {
	case p.ids == nil && p.left == 0 && read == p.limit:
		return p.oldest, nil
	case p.ids == nil && p.left > 0:
		err = conn.QueryRow(ctx, `
			SELECT id
			FROM `+p.table+`
			WHERE id < @oldest
			ORDER BY id DESC
			LIMIT 1 OFFSET @left::bigint - 1`,
			pgx.NamedArgs{"oldest": p.oldest, "left": p.left}).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		return id, err
	case p.ids != nil && p.newest > 0 && (read+p.left == p.limit || p.cursor.from > 0):
		if p.left > 0 {
			return p.ids[p.left-1], nil
		}
		return p.oldest, nil
	}
	return 0, nil
}

// reportSelect begins a statement that reads reports. reportRow.scan knows its columns.
const reportSelect = `
	SELECT r.id, r.item_id, r.uuid, r.state, r.first_seen, greatest(r.last_seen, s.last_seen), r.data`

// readPart reads rows until the part is full or the page ends.
func (p *rowPage) readPart(ctx context.Context, conn *pgx.Conn) error {
	rowsWanted := int64(partRows)
	if n := len(p.ends); n > 0 { // of about the size of the part before
		rowsWanted = int64(max(1, partBytes*n/max(1, p.ends[n-1])))
	}
	rowsWanted = min(p.left, rowsWanted)
	p.text, p.ends = p.text[:0], p.ends[:0]
	if rowsWanted == 0 {
		return nil
	}
	rows, err := p.in.query(ctx, conn, p.ids[:min(int64(len(p.ids)), rowsWanted)], p.oldest, rowsWanted)
	if err != nil {
		return err
	}
	defer rows.Close()
	var more bool
	scan := p.in.scanner(rows)
	for more = rows.Next(); more && len(p.text) < partBytes; more = rows.Next() {
		var id int64
		if p.text, id, err = scan(p.text); err != nil {
			return err
		}
		p.ends = append(p.ends, len(p.text))
		p.newest, p.oldest = cmp.Or(p.newest, id), id
	}
	rows.Close()
	switch {
	case p.ids != nil && more: // the part is full
		p.ids = p.ids[slices.Index(p.ids, p.oldest)+1:]
		p.left = int64(len(p.ids))
	case p.ids != nil:
		p.ids = p.ids[rowsWanted:]
		p.left = int64(len(p.ids))
	case !more && int64(len(p.ends)) < rowsWanted: // there are no others
		p.left = 0
	default:
		p.left -= int64(len(p.ends))
	}
	return rows.Err()
}

func (in *reportsListInput) query(ctx context.Context, conn *pgx.Conn, ids []int64, below, limit int64) (pgx.Rows, error) {
	if ids != nil {
		return conn.Query(ctx, reportSelect+`
			FROM reports r
			LEFT JOIN seen s ON s.report_id = r.id
			WHERE r.id = ANY($1)
			ORDER BY r.id DESC`, ids)
	}
	// The limits are written into the statement, since PostgreSQL takes an unknown one for a tenth of
	// all rows. The rows of both tables come in the order of ids, so that joining them costs little.
	n := strconv.FormatInt(limit, 10)
	return conn.Query(ctx, reportSelect+`
		FROM (
			SELECT id, item_id, uuid, state, first_seen, last_seen, data
			FROM reports
			WHERE id < $1
			ORDER BY id DESC
			LIMIT `+n+`
		) AS r
		LEFT JOIN (
			SELECT report_id, last_seen
			FROM seen
			WHERE report_id < $1
			ORDER BY report_id DESC
			LIMIT `+n+`
		) AS s ON s.report_id = r.id
		ORDER BY r.id DESC`, below)
}

func (in *reportsListInput) scanner(rows pgx.Rows) func(buf []byte) ([]byte, int64, error) {
	var row reportRow
	return func(buf []byte) ([]byte, int64, error) {
		if err := row.scan(rows); err != nil {
			return buf, 0, err
		}
		return row.appendJSON(buf), row.id, nil
	}
}

// rows yields the rows of the page as JSON, and where all are wanted those of the pages behind it.
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
			if p.left == 0 {
				if !p.endless || !p.isFull {
					return
				}
				*p.cursor, step = reportCursor{before: p.oldest}, (*rowPage).begin
			}
			if err := p.read(ctx, step); err != nil {
				yield(nil, fmt.Errorf("list %s: %w", p.table, err))
				return
			}
		}
	}
}

// release makes the part available to other pages, unless it is a large one.
func (p *rowPage) release() {
	memory.Add(-p.held)
	if cap(p.text) <= 2*partBytes {
		p.ends = p.ends[:0]
		spareParts.Put(p.rowPart)
	}
}

func cursorTo(c reportCursor) url.Values { return url.Values{"cursor": {c.String()}} }

// A Report is a report as callers see it, and as reportRow writes it.
type Report struct {
	ID        int64           `json:"id"`
	ItemID    *int64          `json:"item_id"`
	UUID      *string         `json:"uuid"`
	State     string          `json:"state" enum:"current,superseded,queued,delivered,rejected"`
	FirstSeen time.Time       `json:"first_seen"`
	LastSeen  time.Time       `json:"last_seen"`
	Data      json.RawMessage `json:"data"`
}

// A reportRow is one report as a statement that begins with reportSelect returns it. Its texts are
// valid until the next row.
type reportRow struct {
	id                  int64
	itemID              int64 // 0 for none
	uuid                []byte
	state               []byte
	firstSeen, lastSeen time.Time
	data                []byte

	times [2]timeText // of the row before
}

// A timeText is a time as text. Rows that came together have the same times, and to write those takes
// as long as all the rest.
type timeText struct {
	at    time.Time
	text  []byte
	space [len(time.RFC3339Nano)]byte
}

func (t *timeText) append(buf []byte, at time.Time) []byte {
	if t.text == nil || !t.at.Equal(at) {
		t.at, t.text = at, at.UTC().AppendFormat(t.space[:0], time.RFC3339Nano)
	}
	return append(buf, t.text...)
}

// scan reads the row. Rows in PostgreSQL's binary format are read as they came, without a copy; as text
// they come through a pooler that knows only PostgreSQL's simple protocol.
func (r *reportRow) scan(rows pgx.Rows) error {
	if rows.FieldDescriptions()[0].Format == pgx.TextFormatCode {
		var itemID *int64
		err := rows.Scan(&r.id, &itemID, &r.uuid, &r.state, &r.firstSeen, &r.lastSeen, &r.data)
		r.itemID = 0
		if itemID != nil {
			r.itemID = *itemID
		}
		return err
	}
	raw := rows.RawValues()
	r.id, r.itemID = binaryInt(raw[0]), binaryInt(raw[1])
	r.uuid, r.state, r.data = raw[2], raw[3], raw[6]
	r.firstSeen, r.lastSeen = binaryTime(raw[4]), binaryTime(raw[5])
	return nil
}

// binaryInt is the value of a bigint in PostgreSQL's binary format, 0 for NULL.
func binaryInt(raw []byte) int64 {
	if raw == nil {
		return 0
	}
	return int64(binary.BigEndian.Uint64(raw))
}

// binaryTime is the value of a timestamptz in PostgreSQL's binary format: microseconds since 2000.
func binaryTime(raw []byte) time.Time {
	const since1970 = 946_684_800_000_000
	return time.UnixMicro(since1970 + binaryInt(raw)).UTC()
}

// appendJSON appends the report as callers see it.
func (r *reportRow) appendJSON(buf []byte) []byte {
	buf = strconv.AppendInt(append(buf, `{"id":`...), r.id, 10)
	buf = append(buf, `,"item_id":`...)
	if r.itemID > 0 {
		buf = strconv.AppendInt(buf, r.itemID, 10)
	} else {
		buf = append(buf, `null`...)
	}
	buf = append(buf, `,"uuid":`...)
	if r.uuid != nil {
		buf = rawjson.AppendQuoted(buf, string(r.uuid))
	} else {
		buf = append(buf, `null`...)
	}
	buf = append(append(buf, `,"state":"`...), r.state...)
	buf = r.times[0].append(append(buf, `","first_seen":"`...), r.firstSeen)
	buf = r.times[1].append(append(buf, `","last_seen":"`...), r.lastSeen)
	return append(append(append(buf, `","data":`...), r.data...), '}')
}

var reportsGetCmd = &Command{
	Name:  "reports.get",
	Route: "GET /reports/{id}",
	Short: "Show one report",
	Shape: Report{},
	Run:   typed(reportsGet),
}

type reportsGetInput struct {
	ID int64 `path:"id" min:"1" help:"the report's id"`
}

func reportsGet(ctx context.Context, app *App, in reportsGetInput) (report json.RawMessage, err error) {
	store, err := app.database()
	if err != nil {
		return nil, err
	}
	err = store.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, reportSelect+`
			FROM reports r
			LEFT JOIN seen s ON s.report_id = r.id
			WHERE r.id = $1`, in.ID)
		if err != nil {
			return err
		}
		defer rows.Close()
		if !rows.Next() {
			return cmp.Or(rows.Err(), pgx.ErrNoRows)
		}
		var row reportRow
		if err := row.scan(rows); err != nil {
			return err
		}
		report = row.appendJSON(nil)
		return nil
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fail(notFound, "there is no report %d", in.ID)
	case err != nil:
		return nil, fmt.Errorf("report %d: %w", in.ID, err)
	}
	return report, nil
}

// A reportCursor is a place in the reports: the page of older ones before an id, or of newer ones from an
// id on. Callers do not look inside.
type reportCursor struct{ before, from int64 }

// newest returns the id below which the page begins.
func (c reportCursor) newest() int64 {
	if c.before == 0 {
		return math.MaxInt64
	}
	return c.before
}

func (c reportCursor) String() string {
	var space [40]byte
	text := append(strconv.AppendInt(space[:0], c.before, 10), '.')
	return base64.RawURLEncoding.EncodeToString(strconv.AppendInt(text, c.from, 10))
}

// UnmarshalText reads what String wrote.
func (c *reportCursor) UnmarshalText(text []byte) (err error) {
	c.before, c.from, err = cursorNumbers(text)
	return err
}

// cursorNumbers reads the two numbers of which a cursor is made.
func cursorNumbers(text []byte) (a, b int64, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(string(text))
	first, second, _ := strings.Cut(string(raw), ".")
	a, errA := literal{text: first}.int()
	b, errB := literal{text: second}.int()
	if err != nil || errA != nil || errB != nil || a < 0 || b < 0 {
		return 0, 0, errors.New("must be a cursor that an earlier page gave as next")
	}
	return a, b, nil
}

var reportsCleanCmd = &Command{
	Name:  "reports.clean",
	Route: "DELETE /reports",
	Short: "Delete reports, except queued ones",
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

// Cleaned says how many reports were deleted and how many the filters other than state chose, but
// were kept because they still wait for delivery.
type Cleaned struct {
	Deleted    int64 `json:"deleted"`
	KeptQueued int64 `json:"kept_queued"`
}

// conditions returns what the filters other than state choose, which states, and the arguments of both.
func (in *reportsCleanInput) conditions() (chosen, state string, args pgx.NamedArgs) {
	args = pgx.NamedArgs{"before": in.Before.Value.Time, "item_id": in.ItemID.Value, "state": in.State.Value}
	chosen, state = "TRUE", "state <> 'queued'"
	if in.Before.Set {
		chosen += " AND greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = id)) < @before"
	}
	if in.ItemID.Set {
		chosen += " AND item_id = @item_id"
	}
	if in.State.Set {
		state = "state = @state"
	}
	return chosen, state, args
}

// reportsChosen counts the reports that reportsClean would delete.
func reportsChosen(ctx context.Context, app *App, in reportsCleanInput) (json.RawMessage, error) {
	chosen, state, args := in.conditions()
	return app.countRows(ctx, "reports", chosen+" AND "+state, args)
}

func (app *App) countRows(ctx context.Context, table, condition string, args pgx.NamedArgs) (count json.RawMessage, err error) {
	store, err := app.database()
	if err != nil {
		return nil, err
	}
	err = store.read(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(*)::text FROM `+table+` WHERE `+condition, args).Scan((*[]byte)(&count))
	})
	if err != nil {
		return nil, fmt.Errorf("count %s: %w", table, err)
	}
	return count, nil
}

func reportsClean(ctx context.Context, app *App, in reportsCleanInput) (Cleaned, error) {
	store, err := app.database()
	if err != nil {
		return Cleaned{}, err
	}
	store.deliveries.Flush(ctx)
	chosen, state, args := in.conditions()
	var cleaned Cleaned
	err = store.writeSlowly(ctx, func(ctx context.Context, conn *pgx.Conn) error {
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

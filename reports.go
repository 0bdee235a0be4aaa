// reports.go reads and deletes reports. How they come about: sightings.go and queue.go.
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
	"github.com/jackc/pgx/v5/pgxpool"

	"app/internal/rawjson"
)

var reportsListCmd = &Command{
	Name:    "reports.list",
	Route:   "GET /reports",
	Short:   "List the stored reports, newest first",
	Columns: "id item_id state last_seen data.level data.environment data.status data.title",
	Run:     typed(reportsList),
}

type reportsListInput struct {
	ItemID      Opt[int64]  `query:"item_id" min:"1" help:"only reports of the item with this id"`
	Status      Opt[string] `query:"status" enum:"active,resolved,muted,archived" help:"only items in this status"`
	Level       Opt[string] `query:"level" enum:"debug,info,warning,error,critical" help:"only this level"`
	Environment Opt[string] `query:"environment" min:"1" help:"only this environment"`
	State       Opt[string] `query:"state" enum:"current,superseded,queued,delivered,rejected" help:"only reports in this state"`
	Q           string      `query:"q" default:"" min:"1" help:"only titles with all of these words"`
	Since       Moment      `query:"since" default:"" help:"only what was seen at or after this time (RFC 3339) or within this age (36h, 7d)"`
	Until       Moment      `query:"until" default:"" help:"only what was seen at or before this time or age"`
	Latest      bool        `query:"latest" default:"false" help:"only the newest state of each item"`
	Limit       Opt[int64]  `query:"limit" min:"1" max:"1000" help:"reports a page; 20 if none is given, and as ndjson all"`
	Cursor      cursor      `query:"cursor" default:"" help:"the page that next or a Link led to"`
}

func (in *reportsListInput) check() error {
	if in.Q != "" && len(titleWords(in.Q)) == 0 {
		return invalidField("q", "must hold a word: letters or digits")
	}
	return nil
}

func reportsList(ctx context.Context, app *App, in reportsListInput) (*List, error) {
	store, err := app.database()
	if err != nil {
		return nil, err
	}
	conn, err := store.reader(ctx)
	if err != nil {
		return nil, err
	}
	all := callOf(ctx).lines && !in.Limit.Set
	switch {
	case all:
		in.Limit.Value = pageOfAll
	case !in.Limit.Set:
		in.Limit.Value = 20
	}
	page, err := in.open(ctx, conn.Conn, store.readTimeout)
	if err != nil {
		conn.Release()
		return nil, fmt.Errorf("list reports: %w", databaseError(store.noticed(err)))
	}
	list := &List{
		Name: "reports",
		Rest: page.rest,
		Prev: page.prev, Next: page.next,
		Close: sync.OnceFunc(func() { page.close(); conn.Release() }),
	}
	rows := page.all
	if all {
		rows, list.Next = in.everything(ctx, conn.Conn, store.readTimeout, page), nil
	} else {
		list.Late = !page.known
	}
	list.Rows = func(yield func(json.RawMessage, error) bool) {
		rows(yield)
		if list.Late {
			list.Next = page.next
		}
		list.Close() // others need the connection while the client takes the end of the answer
	}
	return list, nil
}

// pageOfAll is how many reports are read at a time where all are wanted.
const pageOfAll = 1000

// everything yields the reports of the page and of all behind it. It reads page after page, so that
// PostgreSQL neither sorts nor keeps more than that.
func (in *reportsListInput) everything(ctx context.Context, conn *pgxpool.Conn, timeout time.Duration, page *reportPage) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		for {
			for row, err := range page.all {
				if !yield(row, err) || err != nil {
					return
				}
			}
			if page.next == nil {
				return
			}
			in.Cursor = cursor{before: page.last}
			next, err := in.open(ctx, conn, timeout)
			if err != nil {
				yield(nil, fmt.Errorf("list reports: %w", databaseError(err)))
				return
			}
			*page = *next
		}
	}
}

// A cursor is a place in the reports: the page before or behind an id. Callers do not look inside.
type cursor struct{ before, after int64 }

// newest is the id below which the page begins.
func (c cursor) newest() int64 {
	if c.before == 0 {
		return math.MaxInt64
	}
	return c.before
}

func (c cursor) String() string {
	var space [40]byte
	text := append(strconv.AppendInt(space[:0], c.before, 10), '.')
	return base64.RawURLEncoding.EncodeToString(strconv.AppendInt(text, c.after, 10))
}

// UnmarshalText reads what String wrote.
func (c *cursor) UnmarshalText(text []byte) (err error) {
	c.before, c.after, err = cursorNumbers(text)
	return err
}

// cursorNumbers reads the two numbers of which a cursor is made.
func cursorNumbers(text []byte) (a, b int64, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(string(text))
	first, second, _ := strings.Cut(string(raw), ".")
	a, errA := strconv.ParseInt(first, 10, 64)
	b, errB := strconv.ParseInt(second, 10, 64)
	if err != nil || errA != nil || errB != nil || a < 0 || b < 0 {
		return 0, 0, errors.New("must be a cursor that an earlier page gave as next")
	}
	return a, b, nil
}

// A reportPage is one page of reports while it is read.
type reportPage struct {
	cancel context.CancelFunc
	rows   pgx.Rows
	row    reportRow // the first one, until it is yielded, then the latest
	any    bool      // there is a first one
	limit  int64
	count  int64 // of the rows that were yielded
	known  bool  // last and next are
	last   int64 // the id at the end of a full page
	next   url.Values
	prev   url.Values
}

// endsAt notes the id at the end of the page, 0 for one that is not full.
func (p *reportPage) endsAt(id int64) {
	p.known = true
	if id > 0 {
		p.last, p.next = id, url.Values{"cursor": {cursor{before: id}.String()}}
	}
}

// open begins to read the page, within the timeout, and works out its neighbours, but for that behind
// a short page of all reports.
func (in *reportsListInput) open(ctx context.Context, conn *pgxpool.Conn, timeout time.Duration) (*reportPage, error) {
	page := &reportPage{limit: in.Limit.Value}
	ctx, page.cancel = context.WithCancel(ctx) // the rows are read long after the timeout
	late := time.AfterFunc(timeout, page.cancel)
	begin := in.openNewest
	if in.Cursor.after > 0 || in.isFiltered() {
		begin = in.openFound
	}
	err := begin(ctx, conn, page)
	if !late.Stop() {
		err = context.DeadlineExceeded
	}
	if err != nil {
		page.close()
		return nil, err
	}
	return page, nil
}

// shortPage is how many reports most likely fit into an answer that is held back until its Links are
// known, so that its end need not be looked up beforehand.
const shortPage = 100

// openNewest is open for a page of all reports. The rows of both tables come in the order of ids, so
// that joining them costs next to nothing.
//
// Limits are written into the statements, here and in find.go, because plans are made for any
// parameters, and PostgreSQL takes an unknown limit for a tenth of all rows.
func (in *reportsListInput) openNewest(ctx context.Context, conn *pgxpool.Conn, page *reportPage) error {
	limit, before := strconv.FormatInt(page.limit, 10), in.Cursor.newest()
	ahead, last := page.limit > shortPage || callOf(ctx).ahead, "NULL::bigint"
	if ahead {
		last = `(
				SELECT id
				FROM reports
				WHERE id < $1
				ORDER BY id DESC
				LIMIT 1 OFFSET ` + limit + ` - 1
			)`
	}
	err := page.begin(ctx, conn, before, `
		SELECT r.id, r.item_id, r.uuid, r.state, r.first_seen, greatest(r.last_seen, s.last_seen), r.data, `+last+`
		FROM (
			SELECT id, item_id, uuid, state, first_seen, last_seen, data
			FROM reports
			WHERE id < $1
			ORDER BY id DESC
			LIMIT `+limit+`
		) AS r
		LEFT JOIN (
			SELECT report_id, last_seen
			FROM seen
			WHERE report_id < $1
			ORDER BY report_id DESC
			LIMIT `+limit+`
		) AS s ON s.report_id = r.id
		ORDER BY r.id DESC`)
	if err != nil {
		return err
	}
	if ahead || !page.any {
		page.endsAt(page.row.last)
	}
	switch {
	case in.Cursor.before == 0:
	case page.any:
		page.prev = url.Values{"cursor": {cursor{after: page.row.id}.String()}}
	default:
		page.prev = url.Values{"cursor": {cursor{after: before - 1}.String()}}
	}
	return nil
}

// openFound is open for a page whose reports must be found first.
func (in *reportsListInput) openFound(ctx context.Context, conn *pgxpool.Conn, page *reportPage) error {
	ids, err := in.find(ctx, conn.Conn())
	if err != nil {
		return err
	}
	slices.Sort(ids)
	first, last := in.Cursor.before-1, in.Cursor.after+1 // of an empty page: what is beside it
	before, behind := in.Cursor.before > 0, int64(len(ids)) >= page.limit || in.Cursor.after > 0
	if int64(len(ids)) > page.limit { // the newest belongs to the page before
		before, ids = true, ids[:page.limit]
	}
	if len(ids) > 0 {
		first, last = ids[len(ids)-1], ids[0]
	}
	if before {
		page.prev = url.Values{"cursor": {cursor{after: first}.String()}}
	}
	if !behind {
		last = 0
	}
	page.endsAt(last)
	return page.begin(ctx, conn, ids, `
		SELECT r.id, r.item_id, r.uuid, r.state, r.first_seen, greatest(r.last_seen, s.last_seen), r.data, NULL::bigint AS last
		FROM reports r
		LEFT JOIN seen s ON s.report_id = r.id
		WHERE r.id = ANY($1)
		ORDER BY r.id DESC`)
}

// begin runs the statement with its argument and reads the first row.
func (p *reportPage) begin(ctx context.Context, conn *pgxpool.Conn, arg any, sql string) (err error) {
	if p.rows, err = conn.Query(ctx, sql, arg); err != nil {
		return err
	}
	if p.any = p.rows.Next(); p.any {
		err = p.row.scan(p.rows)
	}
	return cmp.Or(err, p.rows.Err())
}

// close ends the reading.
func (p *reportPage) close() {
	if p.rows != nil {
		p.rows.Close()
	}
	p.cancel()
}

// A reportRow is one row of the statement for a page. Its texts are valid until the next row.
type reportRow struct {
	id                  int64
	itemID              int64 // 0 for none
	uuid                []byte
	state               []byte
	firstSeen, lastSeen time.Time
	data                []byte
	last                int64 // the id at the end of the page, 0 if that is not full or not looked up

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

// isText reports whether rows come as text, which pgx must read for us: they do through a pooler that
// knows only PostgreSQL's simple protocol. Else they are read as they came, without a copy.
func isText(rows pgx.Rows) bool { return rows.FieldDescriptions()[0].Format == pgx.TextFormatCode }

// scan reads the row.
func (r *reportRow) scan(rows pgx.Rows) error {
	if isText(rows) {
		var itemID, last *int64
		err := rows.Scan(&r.id, &itemID, &r.uuid, &r.state, &r.firstSeen, &r.lastSeen, &r.data, &last)
		r.itemID, r.last = valueOf(itemID), valueOf(last)
		return err
	}
	raw := rows.RawValues()
	r.id, r.itemID, r.last = binaryInt(raw[0]), binaryInt(raw[1]), binaryInt(raw[7])
	r.uuid, r.state, r.data = raw[2], raw[3], raw[6]
	r.firstSeen, r.lastSeen = binaryTime(raw[4]), binaryTime(raw[5])
	return nil
}

func valueOf(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
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

// all yields the page's reports as JSON.
func (p *reportPage) all(yield func(json.RawMessage, error) bool) {
	buf := make([]byte, 0, 2<<10) // more than most take
	for more := p.any; more; more = p.rows.Next() {
		if p.count > 0 {
			if err := p.row.scan(p.rows); err != nil {
				yield(nil, err)
				return
			}
		}
		buf = p.row.appendJSON(buf[:0])
		p.count++
		if !yield(buf, nil) {
			return
		}
	}
	p.close()
	if err := p.rows.Err(); err != nil {
		yield(nil, fmt.Errorf("list reports: %w", databaseError(err)))
		return
	}
	if !p.known && p.count == p.limit {
		p.endsAt(p.row.id)
	}
	p.known = true
}

func (p *reportPage) rest() json.RawMessage {
	if p.next == nil {
		return json.RawMessage(`{"next":null}`)
	}
	return json.RawMessage(`{"next":"` + p.next.Get("cursor") + `"}`)
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
	Short: "Show one stored report",
	Run:   typed(reportsGet),
}

type reportsGetInput struct {
	ID int64 `path:"id" min:"1" help:"the report's id"`
}

func reportsGet(ctx context.Context, app *App, in reportsGetInput) (json.RawMessage, error) {
	store, err := app.database()
	if err != nil {
		return nil, err
	}
	conn, err := store.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	ctx, cancel := context.WithTimeout(ctx, store.readTimeout)
	defer cancel()
	// Whatever changes a row gives it another xmin.
	call := callOf(ctx)
	var row reportRow
	var itemID *int64
	err = conn.QueryRow(ctx, `
		SELECT r.id, r.item_id, r.uuid, r.state, r.first_seen, greatest(r.last_seen, s.last_seen),
			v.version, CASE WHEN $2::text[] && ARRAY[v.version, '*'] THEN NULL ELSE r.data END
		FROM reports r
		LEFT JOIN seen s ON s.report_id = r.id,
		LATERAL (SELECT concat_ws('-', r.id, r.xmin, s.xmin)) AS v (version)
		WHERE r.id = $1`, in.ID, call.have).
		Scan(&row.id, &itemID, &row.uuid, &row.state, &row.firstSeen, &row.lastSeen, &call.version, &row.data)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fail(notFound, "there is no report %d", in.ID)
	case err != nil:
		return nil, fmt.Errorf("report %d: %w", in.ID, databaseError(store.noticed(err)))
	case row.data == nil:
		return nil, errUnchanged
	}
	row.itemID = valueOf(itemID)
	return row.appendJSON(nil), nil
}

var reportsCleanCmd = &Command{
	Name:    "reports.clean",
	Route:   "DELETE /reports",
	Short:   "Delete stored reports, but none that is still queued",
	Confirm: "Delete the reports for good?",
	Changes: true,
	Run:     typed(reportsClean),
}

type reportsCleanInput struct {
	Before Moment      `query:"before" default:"" help:"only reports last seen before this time (RFC 3339) or age (36h, 7d)"`
	ItemID Opt[int64]  `query:"item_id" min:"1" help:"only reports of the item with this id"`
	State  Opt[string] `query:"state" enum:"current,superseded,delivered,rejected" help:"only reports in this state"`
}

// Cleaned says how many reports were deleted and how many the filters other than state chose, but
// were kept because they still wait for delivery.
type Cleaned struct {
	Deleted    int64 `json:"deleted"`
	KeptQueued int64 `json:"kept_queued"`
}

func reportsClean(ctx context.Context, app *App, in reportsCleanInput) (Cleaned, error) {
	store, err := app.database()
	if err != nil {
		return Cleaned{}, err
	}
	store.deliveries.flush(ctx)
	conn, err := store.writer(ctx)
	if err != nil {
		return Cleaned{}, err
	}
	defer conn.Release()
	chosen := "TRUE"
	if !in.Before.IsZero() {
		chosen += " AND greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = id)) < @before"
	}
	if in.ItemID.Set {
		chosen += " AND item_id = @item_id"
	}
	state := "state <> 'queued'"
	if in.State.Set {
		state = "state = @state"
	}
	var cleaned Cleaned
	err = conn.QueryRow(ctx, `
		WITH deleted AS (
			DELETE FROM reports
			WHERE `+chosen+` AND `+state+`
			RETURNING id
		), forgotten AS (
			DELETE FROM seen
			WHERE report_id IN (SELECT id FROM deleted)
		)
		SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM reports WHERE `+chosen+` AND state = 'queued')`,
		pgx.NamedArgs{"before": in.Before.Time, "item_id": in.ItemID.Value, "state": in.State.Value}).
		Scan(&cleaned.Deleted, &cleaned.KeptQueued)
	if err != nil {
		return Cleaned{}, fmt.Errorf("clean reports: %w", databaseError(err))
	}
	if cleaned.Deleted > 0 {
		if err := prune(ctx, conn.Conn()); err != nil { // lists cost more until the next time, and that is all
			app.log.WarnContext(ctx, "what lists skip by was not pruned", "error", err)
		}
	}
	return cleaned, nil
}

// reports.go reads and deletes reports. How they come about: sightings.go and queue.go.
package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
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
	Environment Opt[string] `query:"environment" help:"only this environment"`
	State       Opt[string] `query:"state" enum:"current,superseded,queued,delivered,rejected" help:"only reports in this state"`
	Q           string      `query:"q" default:"" help:"only titles with all of these words"`
	Since       Moment      `query:"since" default:"" help:"only what was seen at or after this time (RFC 3339) or within this age (36h, 7d)"`
	Until       Moment      `query:"until" default:"" help:"only what was seen at or before this time or age"`
	Latest      bool        `query:"latest" default:"false" help:"only the newest state of each item"`
	Limit       int64       `query:"limit" default:"20" min:"1" max:"1000" help:"reports a page"`
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
	page, err := in.open(ctx, conn)
	if err != nil {
		conn.Release()
		return nil, fmt.Errorf("list reports: %w", databaseError(err))
	}
	return &List{
		Name: "reports",
		Rows: page.all,
		Rest: page.rest,
		Prev: page.prev, Next: page.next,
		Close: func() { page.rows.Close(); conn.Release() },
	}, nil
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
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%d", c.before, c.after))
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
	rows pgx.Rows
	row  reportRow // the first one, until it is yielded
	any  bool      // there is a first one
	next url.Values
	prev url.Values
}

// open chooses the reports of the page, works out its neighbours, because Links go out before the
// rows, and begins to read.
func (in *reportsListInput) open(ctx context.Context, conn *pgxpool.Conn) (*reportPage, error) {
	choice, ids := `
		SELECT id
		FROM reports
		WHERE id < @before
		ORDER BY id DESC
		LIMIT @limit`, []int64(nil)
	if in.Cursor.after > 0 || in.isFiltered() {
		var err error
		if ids, err = in.find(ctx, conn.Conn()); err != nil {
			return nil, err
		}
		choice = `SELECT unnest(@ids::bigint[])`
	}
	rows, err := conn.Query(ctx, `
		WITH page (id) AS MATERIALIZED (`+choice+`)
		SELECT r.id, r.item_id, r.uuid, r.state, r.first_seen, greatest(r.last_seen, s.last_seen), r.data,
			(SELECT min(id) FROM page), (SELECT count(*) FROM page)
		FROM page
		JOIN reports r USING (id)
		LEFT JOIN seen s ON s.report_id = r.id
		ORDER BY id DESC`,
		pgx.NamedArgs{"ids": ids, "before": in.Cursor.newest(), "limit": in.Limit})
	if err != nil {
		return nil, err
	}
	page := &reportPage{rows: rows}
	if page.any = rows.Next(); page.any {
		err = page.row.scan(rows)
	} else {
		// as if the rows on both sides of the cursor were the page
		page.row.id, page.row.last = in.Cursor.before-1, in.Cursor.after+1
	}
	before := in.Cursor.before > 0
	if page.row.length > in.Limit { // the first row belongs to the page before
		before = true
		rows.Next()
		err = cmp.Or(err, page.row.scan(rows))
	}
	if err = cmp.Or(err, rows.Err()); err != nil {
		rows.Close()
		return nil, err
	}
	if before {
		page.prev = url.Values{"cursor": {cursor{after: page.row.id}.String()}}
	}
	if page.row.length >= in.Limit || in.Cursor.after > 0 {
		page.next = url.Values{"cursor": {cursor{before: page.row.last}.String()}}
	}
	return page, nil
}

// A reportRow is one row of the statement for a page.
type reportRow struct {
	id                  int64
	itemID              *int64
	uuid                *string
	state               string
	firstSeen, lastSeen time.Time
	data                json.RawMessage
	last, length        int64 // of the page
}

func (r *reportRow) scan(rows pgx.Rows) error {
	return rows.Scan(&r.id, &r.itemID, &r.uuid, &r.state, &r.firstSeen, &r.lastSeen, &r.data, &r.last, &r.length)
}

// all yields the page's reports as JSON.
func (p *reportPage) all(yield func(json.RawMessage, error) bool) {
	var buf []byte
	for more := p.any; more; more = p.rows.Next() {
		if buf != nil {
			if err := p.row.scan(p.rows); err != nil {
				yield(nil, err)
				return
			}
		}
		buf = p.row.appendJSON(buf[:0])
		if !yield(buf, nil) {
			return
		}
	}
	if err := p.rows.Err(); err != nil {
		yield(nil, fmt.Errorf("list reports: %w", databaseError(err)))
	}
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
	if r.itemID != nil {
		buf = strconv.AppendInt(buf, *r.itemID, 10)
	} else {
		buf = append(buf, `null`...)
	}
	buf = append(buf, `,"uuid":`...)
	if r.uuid != nil {
		buf = appendString(buf, *r.uuid)
	} else {
		buf = append(buf, `null`...)
	}
	buf = append(append(buf, `,"state":"`...), r.state...)
	buf = r.firstSeen.UTC().AppendFormat(append(buf, `","first_seen":"`...), time.RFC3339Nano)
	buf = r.lastSeen.UTC().AppendFormat(append(buf, `","last_seen":"`...), time.RFC3339Nano)
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
	var r reportRow
	err = conn.QueryRow(ctx, `
		SELECT r.id, r.item_id, r.uuid, r.state, r.first_seen, greatest(r.last_seen, s.last_seen), r.data
		FROM reports r
		LEFT JOIN seen s ON s.report_id = r.id
		WHERE r.id = @id`,
		pgx.NamedArgs{"id": in.ID}).
		Scan(&r.id, &r.itemID, &r.uuid, &r.state, &r.firstSeen, &r.lastSeen, &r.data)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fail(notFound, "there is no report %d", in.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("report %d: %w", in.ID, databaseError(err))
	}
	return r.appendJSON(nil), nil
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
			RETURNING 1
		)
		SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM reports WHERE `+chosen+` AND state = 'queued')`,
		pgx.NamedArgs{"before": in.Before.Time, "item_id": in.ItemID.Value, "state": in.State.Value}).
		Scan(&cleaned.Deleted, &cleaned.KeptQueued)
	if err != nil {
		return Cleaned{}, fmt.Errorf("clean reports: %w", databaseError(err))
	}
	return cleaned, nil
}

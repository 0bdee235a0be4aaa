// reports.go reads and deletes reports. How they come about: sightings.go and queue.go.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
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
	rows, err := conn.Query(ctx, in.query(), in.args())
	page := &reportPage{}
	if err == nil {
		err = page.begin(rows, in)
	}
	if err != nil {
		conn.Release()
		return nil, fmt.Errorf("list reports: %w", databaseError(err))
	}
	return &List{
		Name: "reports",
		Rows: page.rows(rows),
		Rest: page.rest,
		Prev: page.prev, Next: page.next,
		Close: func() { rows.Close(); conn.Release() },
	}, nil
}

// query is the statement for one page. Each row also says where the whole page ends and how long it
// is, because Links go out before the rows.
func (in *reportsListInput) query() string {
	order, limit, where := "DESC", "@limit", in.conditions()
	switch {
	case in.Cursor.after > 0: // one more, to see whether there is a page before this one
		order, limit, where = "ASC", "@limit + 1", append(where, "id > @after")
	case in.Cursor.before > 0:
		where = append(where, "id < @before")
	}
	text := "TRUE"
	if len(where) > 0 {
		text = strings.Join(where, " AND ")
	}
	return `
		SELECT id, item_id, uuid, state, first_seen, last_seen, data,
			min(id) OVER () AS last, count(*) OVER () AS length
		FROM (
			SELECT id, item_id, uuid, state, first_seen, last_seen, data
			FROM reports
			WHERE ` + text + `
			ORDER BY id ` + order + `
			LIMIT ` + limit + `
		) AS page
		ORDER BY id DESC`
}

func (in *reportsListInput) conditions() []string {
	var where []string
	add := func(given bool, condition string) {
		if given {
			where = append(where, condition)
		}
	}
	add(in.ItemID.Set, "item_id = @item_id")
	add(in.Status.Set, "status = @status")
	add(in.Level.Set, "level = @level")
	add(in.Environment.Set, "environment = @environment")
	add(in.State.Set, "state = @state")
	add(in.Q != "", "words @> @words")
	add(!in.Since.IsZero(), "last_seen >= @since")
	add(!in.Until.IsZero(), "first_seen <= @until")
	add(in.Latest, "state <> 'superseded'")
	return where
}

func (in *reportsListInput) args() pgx.NamedArgs {
	return pgx.NamedArgs{
		"item_id": in.ItemID.Value, "status": in.Status.Value, "level": in.Level.Value,
		"environment": in.Environment.Value, "state": in.State.Value, "words": titleWords(in.Q),
		"since": in.Since.Time, "until": in.Until.Time, "limit": in.Limit,
		"before": in.Cursor.before, "after": in.Cursor.after,
	}
}

// A cursor is a place in the reports: the page before or behind an id. Callers do not look inside.
type cursor struct{ before, after int64 }

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
	first reportRow
	empty bool
	next  url.Values
	prev  url.Values
}

// A reportRow is one row of the statement for a page.
type reportRow struct {
	id                  int64
	itemID              *int64
	uuid                *string
	state               string
	firstSeen, lastSeen time.Time
	data                json.RawMessage
	last, length        int64
}

func (r *reportRow) scan(rows pgx.Rows) error {
	return rows.Scan(&r.id, &r.itemID, &r.uuid, &r.state, &r.firstSeen, &r.lastSeen, &r.data, &r.last, &r.length)
}

// begin reads the first row, if there is one, and works out the neighbouring pages. A page that is
// shorter than the limit is the last.
func (p *reportPage) begin(rows pgx.Rows, in reportsListInput) error {
	if p.empty = !rows.Next(); p.empty {
		// as if the rows on both sides of the cursor were the page
		p.first.id, p.first.last = in.Cursor.before-1, in.Cursor.after+1
	} else if err := p.first.scan(rows); err != nil {
		rows.Close()
		return err
	}
	before := in.Cursor.before > 0
	if p.first.length > in.Limit { // the first row belongs to the page before
		before = true
		rows.Next()
		if err := p.first.scan(rows); err != nil {
			rows.Close()
			return err
		}
	}
	if before {
		p.prev = url.Values{"cursor": {cursor{after: p.first.id}.String()}}
	}
	if p.first.length >= in.Limit || in.Cursor.after > 0 {
		p.next = url.Values{"cursor": {cursor{before: p.first.last}.String()}}
	}
	return rows.Err()
}

// rows yields the page's reports as JSON.
func (p *reportPage) rows(rows pgx.Rows) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		if p.empty {
			return
		}
		buf := p.first.appendJSON(nil)
		if !yield(buf, nil) {
			return
		}
		var row reportRow
		for rows.Next() {
			err := row.scan(rows)
			buf = row.appendJSON(buf[:0])
			if !yield(buf, err) || err != nil {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, fmt.Errorf("list reports: %w", databaseError(err)))
		}
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
		SELECT id, item_id, uuid, state, first_seen, last_seen, data
		FROM reports
		WHERE id = @id`,
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
		chosen += " AND last_seen < @before"
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

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/async"
	"app/internal/rawjson"
)

const occurrenceColumns = "id item_id timestamp data.level data.environment title"

var occurrencesListCmd = &Command{
	Name:    "occurrences.list",
	Route:   "GET /occurrences",
	Short:   "List archived occurrences, newest first, without asking Rollbar",
	Columns: occurrenceColumns,
	Shape:   Occurrence{},
	Run:     typed(occurrencesList),
}

type occurrencesListInput struct {
	ItemID      Opt[int64]     `query:"item_id" min:"1" help:"only occurrences of the item with this id"`
	Environment Opt[string]    `query:"environment" min:"1" help:"only occurrences in this environment"`
	Level       Opt[string]    `query:"level" enum:"debug,info,warning,error,critical" help:"only occurrences with this level"`
	Since       Opt[Moment]    `query:"since" help:"only occurrences since this time (RFC 3339 or a date) or within this age (36h, 7d)"`
	Until       Opt[Moment]    `query:"until" help:"only occurrences until this time, or longer ago than this age"`
	Limit       Opt[int64]     `query:"limit" min:"1" max:"1000" help:"occurrences per page (default 20; all with ndjson)"`
	Cursor      Opt[rowCursor] `query:"cursor" help:"cursor of the page, from next or a Link header"`
}

func occurrencesList(ctx context.Context, app *App, in occurrencesListInput) (*List, error) {
	return app.listRows(ctx, in.Limit, rowPage{
		table: "occurrences", append: appendOccurrence,
		query: func(ids string) string { return `SELECT id, data FROM occurrences WHERE id ` + ids },
		find:  in.find, isFiltered: true, cursor: in.Cursor.Value, // rows are too large to read more than are shown
	})
}

func appendOccurrence(buf []byte, row [][]byte) []byte { return append(buf, row[1]...) }

// find returns the ids of the page in any order, and one more when it pages towards newer occurrences.
func (in *occurrencesListInput) find(ctx context.Context, conn *pgx.Conn, at rowCursor, limit int) ([]int64, error) {
	args := pgx.NamedArgs{
		"item_id": in.ItemID.Value, "environment": in.Environment.Value, "levels": append([]string{""}, levels...),
		"since": in.Since.Value.Time, "until": in.Until.Value.Time,
		"before": at.newest(), "from": at.from,
	}
	conditions, order := "id < @before", "DESC"
	if at.from > 0 {
		conditions, order, limit = "id >= @from", "ASC", limit+1
	}
	end := " ORDER BY id " + order + " LIMIT " + strconv.Itoa(limit)
	if in.Since.Set || in.Until.Set {
		oldest, newest, err := occurrencesWithin(ctx, conn, in.Since, in.Until)
		if err != nil {
			return nil, err
		}
		args["oldest"], args["newest"] = oldest, newest
		conditions += " AND id BETWEEN @oldest AND @newest"
	}
	conditions += and(map[string]bool{
		"occurred_at >= @since": in.Since.Set, "occurred_at <= @until": in.Until.Set,
		"item_id = @item_id": in.ItemID.Set, "environment = left(@environment, 255)": in.Environment.Set,
	})
	if in.Level.Set {
		args["levels"] = []string{in.Level.Value}
	}
	statement := "SELECT id FROM occurrences WHERE " + conditions + end
	if in.ItemID.Set || in.Environment.Set || in.Level.Set { // all indexes except the primary key have the level before the id
		statement = `
			SELECT o.id
			FROM unnest(@levels::text[]) AS l (level)
			CROSS JOIN LATERAL (
				SELECT id FROM occurrences WHERE level = l.level AND ` + conditions + end + `
			) AS o` + end
	}
	return queryIDs(ctx, conn, statement, args)
}

// occurredOn is the day of an occurrence, as it is indexed.
const occurredOn = "(occurred_at AT TIME ZONE 'UTC')::date"

// occurrencesWithin returns the lowest and the highest id of the occurrences within a range of time, or 0 if there
// are none. It looks at one day after another; the time matters only on the first and the last day.
func occurrencesWithin(ctx context.Context, conn *pgx.Conn, since, until Opt[Moment]) (oldest, newest int64, err error) {
	end := cmp.Or(until.Value.Time, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))
	err = conn.QueryRow(ctx, `
		WITH RECURSIVE days AS (
			SELECT min(`+occurredOn+`) AS day
			FROM occurrences
			WHERE `+occurredOn+` >= (@since::timestamptz AT TIME ZONE 'UTC')::date
			UNION ALL
			SELECT (SELECT min(`+occurredOn+`) FROM occurrences WHERE `+occurredOn+` > days.day)
			FROM days
			WHERE days.day < (@until::timestamptz AT TIME ZONE 'UTC')::date
		)
		SELECT coalesce(min(oldest), 0), coalesce(max(newest), 0)
		FROM days
		CROSS JOIN LATERAL (
			SELECT min(id) AS oldest, max(id) AS newest
			FROM occurrences
			WHERE `+occurredOn+` = days.day AND occurred_at BETWEEN @since AND @until
		) AS o`,
		replan, pgx.NamedArgs{"since": since.Value.Time, "until": end}).Scan(&oldest, &newest)
	return oldest, newest, err
}

var occurrencesGetCmd = &Command{
	Name:  "occurrences.get",
	Route: "GET /occurrences/{id}",
	Short: "Show one occurrence, from the archive or else from Rollbar",
	Shape: Occurrence{},
	Run:   typed(occurrencesGet),
}

type occurrencesGetInput struct {
	ID int64 `path:"id" min:"1" help:"the occurrence's id"`
}

func occurrencesGet(ctx context.Context, app *App, in occurrencesGetInput) (json.RawMessage, error) {
	kept, unread := app.archived(ctx, in.ID)
	if kept != nil {
		return kept, nil
	}
	o, err := app.rollbar.Occurrence(ctx, in.ID)
	switch {
	case isKind(err, notFound) && unread != nil:
		return nil, fmt.Errorf("occurrence %d is unknown to Rollbar, and the archive cannot be read: %w", in.ID, unread)
	case err != nil:
		return nil, fmt.Errorf("occurrence %d: %w", in.ID, err)
	case unread != nil:
		callOf(ctx).notStored(unread.Error())
	default:
		app.archive(ctx, o)
	}
	return o.JSON, nil
}

// archived returns the archived occurrence or nil. It does not wait long, since Rollbar can answer as well.
func (app *App) archived(ctx context.Context, id int64) (occurrence json.RawMessage, err error) {
	if app.store == nil {
		return nil, nil
	}
	err = app.store.readWithin(ctx, storeTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT data FROM occurrences WHERE id = $1`, id).Scan((*[]byte)(&occurrence))
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return occurrence, err
}

var occurrencesSyncCmd = &Command{
	Name:  "occurrences.sync",
	Route: "POST /occurrences/sync",
	Short: "Store Rollbar's recent occurrences in the archive",
	Long:  "Reads Rollbar's list, newest first, up to the first page with an occurrence older than since.",
	Run:   typed(occurrencesSync),
}

type occurrencesSyncInput struct {
	Since Moment `query:"since" default:"7d" help:"how far back to read: to this time (RFC 3339 or a date) or age (36h, 7d)"`
}

// SyncedOccurrences counts what a sync read: the occurrences, those that were new, and the pages that held any.
type SyncedOccurrences struct {
	Occurrences int64 `json:"occurrences"`
	Stored      int64 `json:"stored"`
	Pages       int64 `json:"pages"`
}

func occurrencesSync(ctx context.Context, app *App, in occurrencesSyncInput) (SyncedOccurrences, error) {
	const pageSize = 100
	if err := app.maySync(ctx); err != nil {
		return SyncedOccurrences{}, err
	}
	var total SyncedOccurrences
	var before map[int64]bool // the previous page, parts of which move into this one when new occurrences arrive
	for isOlder := false; !isOlder; {
		if !async.Sleep(ctx, app.rollbar.limits[scopeRead].throttle()) {
			return SyncedOccurrences{}, ctx.Err()
		}
		page, err := app.rollbar.Occurrences(ctx, 0, total.Pages+1, pageSize)
		if err != nil {
			return SyncedOccurrences{}, fmt.Errorf("page %d of the occurrences: %w", total.Pages+1, err)
		}
		if len(page) == 0 {
			break
		}
		stored, err := app.store.archive(ctx, page)
		if err != nil {
			return SyncedOccurrences{}, fmt.Errorf("store occurrences: %w", err)
		}
		total.Pages++
		total.Stored += int64(stored)
		seen := map[int64]bool{}
		for _, o := range page {
			seen[o.ID] = true
			if !before[o.ID] {
				total.Occurrences++
			}
			at := o.time()
			isOlder = isOlder || at != nil && at.Before(in.Since.Time)
		}
		before = seen
		callOf(ctx).report(total.Occurrences, 0, "occurrences read")
	}
	return total, nil
}

var occurrencesCleanCmd = &Command{
	Name:  "occurrences.clean",
	Route: "DELETE /occurrences",
	Short: "Delete archived occurrences",
	Confirm: func(count json.RawMessage, filters string) string {
		return fmt.Sprintf("Permanently delete %s archived occurrences (%s)?", cmp.Or(string(count), "the"), cmp.Or(filters, "all"))
	},
	About:   &Command{Run: typed(occurrencesChosen)},
	Changes: true,
	Run:     typed(occurrencesClean),
}

type occurrencesCleanInput struct {
	Before Opt[Moment] `query:"before" help:"only occurrences before this time (RFC 3339 or a date) or longer ago than this age (36h, 7d)"`
	ItemID Opt[int64]  `query:"item_id" min:"1" help:"only occurrences of the item with this id"`
}

// condition returns the condition on the occurrences to delete, and its arguments.
func (in *occurrencesCleanInput) condition() (string, pgx.NamedArgs) {
	return "TRUE" + and(map[string]bool{"occurred_at < @before": in.Before.Set, "item_id = @item_id": in.ItemID.Set}),
		pgx.NamedArgs{"before": in.Before.Value.Time, "item_id": in.ItemID.Value}
}

// occurrencesChosen counts the occurrences that occurrencesClean would delete.
func occurrencesChosen(ctx context.Context, app *App, in occurrencesCleanInput) (json.RawMessage, error) {
	chosen, args := in.condition()
	return app.countRows(ctx, "occurrences", chosen, args)
}

// CleanedOccurrences says how many occurrences were deleted.
type CleanedOccurrences struct {
	Deleted int64 `json:"deleted"`
}

func occurrencesClean(ctx context.Context, app *App, in occurrencesCleanInput) (cleaned CleanedOccurrences, err error) {
	chosen, args := in.condition()
	err = app.store.writeSlowly(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `DELETE FROM occurrences WHERE `+chosen, args)
		cleaned.Deleted = tag.RowsAffected()
		return err
	})
	if err != nil {
		return CleanedOccurrences{}, fmt.Errorf("clean occurrences: %w", err)
	}
	return cleaned, nil
}

// archive stores the occurrences. If that fails, it marks the call as not stored and returns why, and the operation
// goes on.
func (app *App) archive(ctx context.Context, seen ...Occurrence) (unstored string) {
	return app.tryToStore(ctx, "occurrences", len(seen), func(ctx context.Context) error {
		_, err := app.store.archive(ctx, seen)
		return err
	})
}

// archive stores the occurrences, which may be in any order, and returns how many were new. An occurrence that is
// already stored stays as it was first seen. archive fails if it takes longer than storeTimeout.
func (s *Store) archive(ctx context.Context, seen []Occurrence) (stored int, err error) {
	if len(seen) == 0 {
		return 0, nil
	}
	err = s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		known, err := queryIDs(ctx, conn, `SELECT id FROM occurrences WHERE id = ANY(@ids)`,
			pgx.NamedArgs{"ids": column(seen, func(o Occurrence) int64 { return o.ID })})
		if err != nil {
			return err
		}
		fresh := slices.DeleteFunc(slices.Clone(seen), func(o Occurrence) bool { return slices.Contains(known, o.ID) })
		for len(fresh) > 0 {
			n := 0
			for size := 0; n < len(fresh) && size < partBytes; n++ {
				size += len(fresh[n].JSON)
			}
			inserted, err := insertOccurrences(ctx, conn, fresh[:n])
			if err != nil {
				return err
			}
			stored += int(inserted)
			fresh = fresh[n:]
		}
		return nameItems(ctx, conn, seen)
	})
	return stored, err
}

// nameItems notes in the reports of created occurrences which items these became.
func nameItems(ctx context.Context, conn *pgx.Conn, seen []Occurrence) error {
	_, err := conn.Exec(ctx, `
		WITH named AS (
			SELECT r.id, o.item_id
			FROM unnest(@uuids::text[], @items::bigint[]) AS o (uuid, item_id)
			JOIN reports r ON r.uuid = o.uuid AND r.state = 'delivered' AND r.item_id IS NULL
			WHERE o.item_id > 0
			ORDER BY r.id
			FOR UPDATE OF r
		)
		UPDATE reports r
		SET item_id = named.item_id, next_lookup = NULL
		FROM named
		WHERE r.id = named.id`,
		pgx.NamedArgs{
			"uuids": column(seen, func(o Occurrence) string { return textOf(o, "uuid") }),
			"items": column(seen, func(o Occurrence) int64 { return o.ItemID }),
		})
	return err
}

// textOf returns a text in an occurrence's data, in a form that PostgreSQL can store, or "".
func textOf(o Occurrence, name string) string {
	return rawjson.StorableText(rawjson.Unquote(rawjson.Get(o.JSON, "data", name)))
}

// insertOccurrences inserts in the order of ids, so that writers of the same occurrences do not deadlock.
func insertOccurrences(ctx context.Context, conn *pgx.Conn, seen []Occurrence) (inserted int64, err error) {
	text := func(name string) []string { return column(seen, func(o Occurrence) string { return textOf(o, name) }) }
	tag, err := conn.Exec(ctx, `
		INSERT INTO occurrences (id, item_id, occurred_at, environment, level, data)
		SELECT id, nullif(item_id, 0), coalesce(at, now()), left(environment, 255),
			CASE WHEN level = ANY(@levels) THEN level ELSE '' END, data
		FROM unnest(@ids::bigint[], @items::bigint[], @times::timestamptz[], @environments::text[], @given::text[], @data::json[])
		AS o (id, item_id, at, environment, level, data)
		ORDER BY id
		ON CONFLICT (id) DO NOTHING`,
		pgx.NamedArgs{
			"ids":          column(seen, func(o Occurrence) int64 { return o.ID }),
			"items":        column(seen, func(o Occurrence) int64 { return o.ItemID }),
			"times":        column(seen, Occurrence.time),
			"environments": text("environment"), "given": text("level"), "levels": levels,
			"data": column(seen, func(o Occurrence) json.RawMessage { return rawjson.Storable(o.JSON) }),
		})
	return tag.RowsAffected(), err
}

// occurrences.go is the archive: occurrences are kept as they were first seen, so that their stack traces
// outlive Rollbar.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/rawjson"
)

// archive stores the occurrences, in any order, and returns how many were new. One that is there already
// stays as it is. What is not done within storeTimeout has failed.
func (s *Store) archive(ctx context.Context, seen []Occurrence) (stored int, err error) {
	if len(seen) == 0 {
		return 0, nil
	}
	seen = slices.SortedFunc(slices.Values(seen), func(a, b Occurrence) int { return cmp.Compare(a.ID, b.ID) })
	err = s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT id FROM occurrences WHERE id = ANY($1)`,
			replan, column(seen, func(o Occurrence) int64 { return o.ID }))
		if err != nil {
			return err
		}
		known, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		slices.Sort(known)
		fresh := slices.DeleteFunc(slices.Clone(seen), func(o Occurrence) bool {
			_, isKnown := slices.BinarySearch(known, o.ID)
			return isKnown
		})
		for len(fresh) > 0 {
			size, n := 0, 0
			for n < len(fresh) && size < partBytes {
				size, n = size+len(fresh[n].JSON), n+1
			}
			inserted, err := insertOccurrences(ctx, conn, column(fresh[:n], archivedOf))
			if err != nil {
				return err
			}
			stored, fresh = stored+inserted, fresh[n:]
		}
		return nil
	})
	return stored, err
}

// An archived occurrence is a row of the archive.
type archived struct {
	id, itemID         int64
	at                 *time.Time // nil for an occurrence without a time
	environment, level string
	data               json.RawMessage
}

func archivedOf(o Occurrence) archived {
	const year10000 = 253_402_300_800
	data := rawjson.Storable(o.JSON)
	row := archived{id: o.ID, itemID: o.ItemID, data: data}
	if seconds, ok := rawjson.Int(rawjson.Get(data, "timestamp")); ok && 0 <= seconds && seconds < year10000 {
		at := time.Unix(seconds, 0)
		row.at = &at
	}
	payload := rawjson.Get(data, "data")
	row.environment = cutTitle(rawjson.Unquote(rawjson.Get(payload, "environment"))) // as long at Rollbar
	if level := rawjson.Unquote(rawjson.Get(payload, "level")); slices.Contains(levels, level) {
		row.level = level
	}
	return row
}

// insertOccurrences inserts rows in the order of their ids, so that writers of the same ones wait for each
// other in turn.
func insertOccurrences(ctx context.Context, conn *pgx.Conn, rows []archived) (int, error) {
	tag, err := conn.Exec(ctx, `
		INSERT INTO occurrences (id, item_id, occurred_at, environment, level, data)
		SELECT id, nullif(item_id, 0), coalesce(at, now()), environment, level, data
		FROM unnest(@ids::bigint[], @items::bigint[], @times::timestamptz[], @environments::text[], @levels::text[], @data::json[])
		AS o (id, item_id, at, environment, level, data)
		ORDER BY id
		ON CONFLICT (id) DO NOTHING`,
		pgx.NamedArgs{
			"ids":          column(rows, func(r archived) int64 { return r.id }),
			"items":        column(rows, func(r archived) int64 { return r.itemID }),
			"times":        column(rows, func(r archived) *time.Time { return r.at }),
			"environments": column(rows, func(r archived) string { return r.environment }),
			"levels":       column(rows, func(r archived) string { return r.level }),
			"data":         column(rows, func(r archived) json.RawMessage { return r.data }),
		})
	return int(tag.RowsAffected()), err
}

// find.go finds the reports that a list's filters choose, so that a page costs about the same
// whatever the filters choose, nearly all reports or none, and however many there are:
//
//   - Reports of one facet (state, status, level, environment) are in an index in the order of
//     their ids. The first of several facets are the first of the first of each.
//   - Times and words are looked up by blocks of ids: segments and spots know which blocks can hold
//     what is wanted. Of the facets' blocks the nearest are looked into, and if that is not enough,
//     more of them.
package main

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// blockSize is how many ids are a block in schema.sql.
const blockSize = 1024

// isFiltered reports whether the list is of some reports only.
func (in *reportsListInput) isFiltered() bool {
	return in.ItemID.Set || in.facetFilter() != "TRUE" || in.Q != "" || !in.Since.IsZero() || !in.Until.IsZero()
}

// facetFilter is the condition on facets.
func (in *reportsListInput) facetFilter() string {
	var where []string
	add := func(given bool, condition string) {
		if given {
			where = append(where, condition)
		}
	}
	add(in.Status.Set, "status = @status")
	add(in.Level.Set, "level = @level")
	add(in.Environment.Set, "environment = @environment")
	add(in.State.Set, "state = @state")
	add(in.Latest, "state <> 'superseded'")
	return cmp.Or(strings.Join(where, " AND "), "TRUE")
}

// idFilter is the condition on reports r that the cursor makes.
const idFilter = "r.id > @after AND r.id < @before"

// rowFilter is the condition on reports r of the facets and blocks.
func (in *reportsListInput) rowFilter() string {
	filter := "TRUE"
	if in.Q != "" {
		filter += " AND r.words @> @words"
	}
	if !in.Until.IsZero() {
		filter += " AND r.first_seen <= @until"
	}
	if !in.Since.IsZero() {
		filter += " AND greatest(r.last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = r.id)) >= @since"
	}
	return filter
}

// segmentFilter is the condition on segments that may hold reports of the times.
func (in *reportsListInput) segmentFilter() string {
	filter := "TRUE"
	if !in.Since.IsZero() {
		filter += " AND last_seen >= @since"
	}
	if !in.Until.IsZero() {
		filter += " AND first_seen <= @until"
	}
	return filter
}

// A direction is the way through the ids: down from the newest, or up, to the page before.
type direction struct{ order, nearest, farthest, within string }

var (
	down = direction{"DESC", "max", "min", ">="}
	up   = direction{"ASC", "min", "max", "<="}
)

// find returns the ids of the page, and one more on the way up, to see whether there is a page
// before that.
func (in *reportsListInput) find(ctx context.Context, conn *pgx.Conn) ([]int64, error) {
	way, limit := down, in.Limit.Value
	if in.Cursor.after > 0 {
		way, limit = up, in.Limit.Value+1
	}
	args := pgx.NamedArgs{
		"item_id": in.ItemID.Value, "status": in.Status.Value, "level": in.Level.Value,
		"environment": in.Environment.Value, "state": in.State.Value, "words": titleWords(in.Q),
		"since": in.Since.Time, "until": in.Until.Time,
		"before": in.Cursor.newest(), "after": in.Cursor.after,
	}
	switch {
	case in.ItemID.Set:
		return in.findOfItem(ctx, conn, way, limit, args)
	case in.Q == "" && in.Since.IsZero() && in.Until.IsZero():
		return in.findByFacet(ctx, conn, way, limit, args)
	}
	return in.findByBlock(ctx, conn, way, limit, args)
}

func queryIDs(ctx context.Context, conn *pgx.Conn, sql string, args pgx.NamedArgs) ([]int64, error) {
	rows, err := conn.Query(ctx, sql, args)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

func (in *reportsListInput) findOfItem(ctx context.Context, conn *pgx.Conn, way direction, limit int64, args pgx.NamedArgs) ([]int64, error) {
	filter := idFilter + " AND " + in.rowFilter() + " AND " + in.facetFilter()
	return queryIDs(ctx, conn, `
		SELECT id
		FROM (
			SELECT r.id
			FROM reports r
			WHERE r.item_id = @item_id AND r.state = 'current' AND `+filter+`
			UNION ALL
			SELECT r.id
			FROM reports r
			WHERE r.item_id = @item_id AND r.state <> 'current' AND `+filter+`
		) AS of_item
		ORDER BY id `+way.order+`
		LIMIT `+strconv.FormatInt(limit, 10), args)
}

// The order by block and id, here and below, is that of the index reports_place alone: by the primary
// key, PostgreSQL would pass over all other facets' rows.
func (in *reportsListInput) findByFacet(ctx context.Context, conn *pgx.Conn, way direction, limit int64, args pgx.NamedArgs) ([]int64, error) {
	return queryIDs(ctx, conn, `
		SELECT nearest.id
		FROM facets f, LATERAL (
			SELECT r.id
			FROM reports r
			WHERE r.facet = f.facet AND r.id / 1024 BETWEEN @after::bigint / 1024 AND @before::bigint / 1024
			AND `+idFilter+` AND `+in.rowFilter()+`
			ORDER BY r.id / 1024 `+way.order+`, r.id `+way.order+`
			LIMIT `+strconv.FormatInt(limit, 10)+`
		) AS nearest
		WHERE `+in.facetFilter()+`
		ORDER BY nearest.id `+way.order+`
		LIMIT `+strconv.FormatInt(limit, 10), args)
}

// findByBlock looks into the nearest block of each facet that may hold something, then into the
// nearest four of the rest, and so on. As far as all facets' blocks have been looked into, what was
// found is all there is.
func (in *reportsListInput) findByBlock(ctx context.Context, conn *pgx.Conn, way direction, limit int64, args pgx.NamedArgs) ([]int64, error) {
	first, last, few, err := in.blocks(ctx, conn, way, args)
	if err != nil || first > last {
		return nil, err
	}
	source := `segments c WHERE ` + in.segmentFilter()
	if in.Q != "" {
		word, err := rarest(ctx, conn, args)
		if err != nil || word == "" {
			return nil, err
		}
		args["word"] = word
		source = `spots c WHERE c.word = hashtextextended(@word, 0)
			AND EXISTS (SELECT FROM segments WHERE facet = c.facet AND block = c.block AND ` + in.segmentFilter() + `)`
	}
	var ids []int64
	if len(few) > 0 {
		args["few"] = few
		source += ` AND c.block = ANY(@few::bigint[])`
	}
	for count := int64(1); first <= last && int64(len(ids)) < limit; count *= 4 {
		args["first"], args["last"] = first, last
		var reached int64
		var found []int64
		err := conn.QueryRow(ctx, `
			WITH candidates AS MATERIALIZED (
				SELECT nearest.facet, nearest.block
				FROM facets f, LATERAL (
					SELECT DISTINCT c.facet, c.block
					FROM `+source+` AND c.facet = f.facet AND c.block BETWEEN @first AND @last
					ORDER BY c.block `+way.order+`
					LIMIT `+strconv.FormatInt(count, 10)+`
				) AS nearest
				WHERE `+in.facetFilter()+`
			), reached AS MATERIALIZED (
				SELECT coalesce(`+way.nearest+`(block), CASE '`+way.order+`' WHEN 'DESC' THEN @first::bigint ELSE @last::bigint END) AS block
				FROM (
					SELECT `+way.farthest+`(block) AS block
					FROM candidates
					GROUP BY facet
					HAVING count(*) = `+strconv.FormatInt(count, 10)+`
				) AS of_facet
			)
			SELECT (SELECT block FROM reached), ARRAY(
				SELECT found.id
				FROM candidates c, LATERAL (
					SELECT r.id
					FROM reports r
					WHERE r.facet = c.facet AND r.id / 1024 = c.block
					AND `+idFilter+` AND `+in.rowFilter()+`
					ORDER BY r.id / 1024 `+way.order+`, r.id `+way.order+`
					LIMIT `+strconv.FormatInt(limit, 10)+`
				) AS found
				WHERE c.block `+way.within+` (SELECT block FROM reached)
				ORDER BY found.id `+way.order+`
				LIMIT `+strconv.FormatInt(limit, 10)+`
			)`, args).Scan(&reached, &found)
		if err != nil {
			return nil, err
		}
		ids = append(ids, found...)
		if way == down {
			last = reached - 1
		} else {
			first = reached + 1
		}
	}
	return ids[:min(int64(len(ids)), limit)], nil
}

// fewBlocks are so few that they are named one by one.
const fewBlocks = 50

// blocks returns the first and the last block that can hold reports of the page, by the cursor and
// by the times when they were seen, and all of them if they are few; the first is behind the last
// where there is none.
func (in *reportsListInput) blocks(ctx context.Context, conn *pgx.Conn, way direction, args pgx.NamedArgs) (first, last int64, few []int64, err error) {
	first, last = in.Cursor.after/blockSize, in.Cursor.newest()/blockSize
	args["first"], args["last"] = first, last
	near, err := queryIDs(ctx, conn, `
		SELECT block
		FROM segments
		WHERE facet = 0 AND block BETWEEN @first AND @last AND `+in.segmentFilter()+`
		ORDER BY block `+way.order+`
		LIMIT `+strconv.Itoa(fewBlocks+1), args)
	switch {
	case err != nil || len(near) == 0:
		return 1, 0, nil, err
	case len(near) <= fewBlocks:
		return slices.Min(near), slices.Max(near), near, nil
	case way == down:
		last = near[0]
	default:
		first = near[0]
	}
	return first, last, nil, nil
}

// rarest returns the word that is in the fewest blocks, or "" if one of them is nowhere.
func rarest(ctx context.Context, conn *pgx.Conn, args pgx.NamedArgs) (word string, err error) {
	var places int
	err = conn.QueryRow(ctx, `
		SELECT word, places
		FROM unnest(@words::text[]) AS w (word), LATERAL (
			SELECT count(*)
			FROM (
				SELECT
				FROM spots s
				WHERE s.word = hashtextextended(w.word, 0)
				LIMIT 500
			) AS found
		) AS n (places)
		ORDER BY places
		LIMIT 1`, args).Scan(&word, &places)
	if places == 0 {
		return "", err
	}
	return word, err
}

// prune takes out of the facets, segments and spots what is true of no report any more. Writers wait
// for the first part: a row that they are just writing is seen by nobody else, and must not lose its
// segment. No row will ever be written into an empty block behind the newest, so that the spots, of
// which there are many, need no such care.
func prune(ctx context.Context, conn *pgx.Conn) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			SET LOCAL lock_timeout = '500ms';
			LOCK TABLE reports IN SHARE ROW EXCLUSIVE MODE;
			DELETE FROM segments s
			WHERE facet <> 0
			AND NOT EXISTS (SELECT FROM reports r WHERE r.facet = s.facet AND r.id / 1024 = s.block);
			DELETE FROM segments s
			WHERE facet = 0
			AND block < (SELECT max(block) FROM segments WHERE facet = 0)
			AND NOT EXISTS (SELECT FROM reports WHERE id BETWEEN s.block * 1024 AND s.block * 1024 + 1023);
			DELETE FROM facets f
			WHERE NOT EXISTS (SELECT FROM segments s WHERE s.facet = f.facet)`)
		return err
	})
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			SET LOCAL enable_seqscan = on;
			DELETE FROM spots
			WHERE block < (SELECT max(block) FROM segments WHERE facet = 0)
			AND block NOT IN (SELECT block FROM segments WHERE facet = 0)`)
		return err
	})
}

// reports_filter.go finds the reports that a list's filters choose, however many there are and
// however many match: it looks into one block of ids after another until the page is full. A block
// without a match costs some microseconds. schema.sql says what is known of a block.
package main

import (
	"context"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// isFiltered reports whether the list is of some reports only.
func (in *reportsListInput) isFiltered() bool {
	return in.ItemID.Set || in.Status.Set || in.Level.Set || in.Environment.Set || in.State.Set ||
		in.Q != "" || !in.Since.IsZero() || !in.Until.IsZero() || in.Latest
}

// find returns the ids of the page, and one more on the way up, to see whether there is a page
// before that.
func (in *reportsListInput) find(ctx context.Context, conn *pgx.Conn) ([]int64, error) {
	terms, bucket := titleWords(in.Q), "TRUE"
	args := pgx.NamedArgs{
		"item_id": in.ItemID.Value, "words": titleWords(in.Q), "since": in.Since.Time, "until": in.Until.Time,
		"before": in.Cursor.newest(), "after": in.Cursor.after,
	}
	for _, filter := range []struct {
		column string
		value  Opt[string]
	}{{"state", in.State}, {"status", in.Status}, {"level", in.Level}, {"environment", in.Environment}} {
		if filter.value.Set {
			args[filter.column] = filter.value.Value
			terms = append(terms, filter.column+"="+filter.value.Value)
			bucket += " AND " + filter.column + " = @" + filter.column
		}
	}
	if in.Latest {
		terms, bucket = append(terms, "latest=true"), bucket+" AND state <> 'superseded'"
	}
	args["terms"] = terms

	times, row := bucket, bucket
	if in.Q != "" {
		row += " AND words @> @words"
	}
	if !in.Until.IsZero() {
		times, row = times+" AND first_seen <= @until", row+" AND first_seen <= @until"
	}
	late := "" // comes last because it takes another look at seen for each row
	if !in.Since.IsZero() {
		times += " AND last_seen >= @since"
		late = " AND greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = id)) >= @since"
	}

	const rowTerms = "report_terms(id / 4096, words, state, status, level, environment)"
	buckets, within := "", rowTerms+" @> report_terms(e.block, @terms)"
	if times != bucket {
		chosen := "array_agg(term)"
		if len(terms) > 0 { // many buckets take longer to look up than they save
			chosen = "CASE WHEN count(*) <= 16 THEN array_agg(term) ELSE (report_terms(e.block, @terms))[:1] END"
			within += " AND "
		} else {
			within = ""
		}
		within += rowTerms + " && b.terms"
		buckets = `CROSS JOIN LATERAL (
			SELECT ` + chosen + ` AS terms
			FROM blocks
			WHERE block = e.block AND ` + times + `
			HAVING count(*) > 0
		) AS b`
	}
	const oldest, newest = "(SELECT min(id) / 4096 FROM reports)", "(SELECT max(id) / 4096 FROM reports)"
	blocks, beyond, order, limit := "generate_series(least(@before::bigint / 4096, "+newest+"), "+oldest+", -1)", "id < @before", "DESC", in.Limit.Value
	if in.Cursor.after > 0 {
		blocks, beyond, order, limit = "generate_series(greatest(@after::bigint / 4096, "+oldest+"), "+newest+")", "id > @after", "ASC", in.Limit.Value+1
	}
	switch {
	case in.ItemID.Set:
		blocks, buckets = "generate_series(0, 0)", ""
		within = "(item_id = @item_id AND state = 'current' OR item_id = @item_id AND state <> 'current')"
	case !in.isFiltered():
		within = "id BETWEEN e.block * 4096 AND e.block * 4096 + 4095"
	}
	limited := "LIMIT " + strconv.FormatInt(limit, 10)
	// The statement is planned anew for each page, with the limit, because a plan from when the table was
	// small would read all of it. MATERIALIZED keeps PostgreSQL from walking along the primary key in the
	// hope of an early match.
	rows, err := conn.Query(ctx, `
		SELECT found.id
		FROM `+blocks+` AS e (block)
		`+buckets+`
		CROSS JOIN LATERAL (
			WITH matching AS MATERIALIZED (
				SELECT id, last_seen
				FROM reports
				WHERE `+within+` AND coalesce(`+row+`, FALSE)
				ORDER BY id `+order+`
			)
			SELECT id
			FROM matching
			WHERE `+beyond+late+`
			`+limited+`
		) AS found
		`+limited, replan, args)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

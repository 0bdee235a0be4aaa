package main

import (
	"context"
	"strconv"

	"github.com/jackc/pgx/v5"
)

// isFiltered reports whether any filter is set.
func (in *reportsListInput) isFiltered() bool {
	return *in != (reportsListInput{Limit: in.Limit, Cursor: in.Cursor})
}

// A reportSearch holds a list's filters and its position among the ids, as pieces of SQL.
type reportSearch struct {
	args     pgx.NamedArgs
	hasWords bool
	bucket   string // the condition on state, status, level and environment, or ""
	times    string // the condition on the times of a bucket, or ""
	row      string // the condition on a report, except for since
	since    string // the condition for since, or ""; it comes last because it reads another table

	beyond string // the cursor's condition on ids
	order  string // of the ids
	limit  int    // of the page; towards newer reports one more, to see whether there is a previous page
}

// find returns the ids of the page in any order, and one more when it pages towards newer reports. It stays fast
// however many reports there are and however many match: it reads the nearest reports first, which usually fill the
// page, and then one block of 4096 ids after another. A block without a match costs some microseconds; see schema.sql.
func (in *reportsListInput) find(ctx context.Context, conn *pgx.Conn, at rowCursor, limit int) ([]int64, error) {
	s := in.search(at, limit)
	if in.ItemID.Set {
		return s.among(ctx, conn, "item_id = @item_id AND state = 'current' OR item_id = @item_id AND state <> 'current'", "")
	}
	near, err := s.among(ctx, conn, "TRUE", "LIMIT "+strconv.Itoa(endlessPage+1))
	if err != nil || len(near) == s.limit || !in.isFiltered() {
		return near, err
	}
	return s.byBlock(ctx, conn)
}

// search puts the filters into SQL.
func (in *reportsListInput) search(at rowCursor, limit int) *reportSearch {
	s := &reportSearch{
		hasWords: in.Q.Set, beyond: "id < @before", order: "DESC", limit: limit,
		bucket: and(map[string]bool{
			"state = @state": in.State.Set, "status = @status": in.Status.Set, "level = @level": in.Level.Set,
			"environment = @environment": in.Environment.Set, "state <> 'superseded'": in.Latest,
		}),
		times: and(map[string]bool{"first_seen <= @until": in.Until.Set, "last_seen >= @since": in.Since.Set}),
		since: and(map[string]bool{
			"greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = id)) >= @since": in.Since.Set,
		}),
	}
	s.row = "TRUE" + s.bucket + and(map[string]bool{"words @> @words": in.Q.Set, "first_seen <= @until": in.Until.Set})
	if at.from > 0 {
		s.beyond, s.order, s.limit = "id >= @from", "ASC", limit+1
	}
	s.args = pgx.NamedArgs{
		"item_id": in.ItemID.Value, "words": titleWords(in.Q.Value), "since": in.Since.Value.Time, "until": in.Until.Value.Time,
		"state": in.State.Value, "status": in.Status.Value, "level": in.Level.Value, "environment": in.Environment.Value,
		"before": at.newest(), "from": at.from,
	}
	return s
}

// among finds the page among the reports that match the condition chosen, or only among the nearest of them.
func (s *reportSearch) among(ctx context.Context, conn *pgx.Conn, chosen, nearest string) ([]int64, error) {
	return s.query(ctx, conn, `
		SELECT id
		FROM (
			SELECT id, state, status, level, environment, words, first_seen, last_seen
			FROM reports
			WHERE (`+chosen+`) AND `+s.beyond+`
			ORDER BY id `+s.order+`
			`+nearest+`
		) AS r
		WHERE coalesce(`+s.row+`, FALSE)`+s.since+`
		ORDER BY id `+s.order)
}

// byBlock finds the page by searching one block after another: by the index of terms, or along the primary key if
// only times are given. MATERIALIZED makes PostgreSQL use the index of terms.
func (s *reportSearch) byBlock(ctx context.Context, conn *pgx.Conn) ([]int64, error) {
	const rowTerms = "report_terms(id / 4096, words, state, status, level, environment)"
	oldest, newest := "(SELECT min(id) / 4096 FROM reports)", "(SELECT max(id) / 4096 FROM reports)"
	if s.times != "" {
		bounded := " FROM blocks WHERE TRUE" + s.bucket + s.times + ")"
		oldest, newest = "(SELECT min(block)"+bounded, "(SELECT max(block)"+bounded
	}
	blocks := "generate_series(least(@before::bigint / 4096, " + newest + "), " + oldest + ", -1)"
	if s.order == "ASC" {
		blocks = "generate_series(greatest(@from::bigint / 4096, " + oldest + "), " + newest + ")"
	}
	buckets, materialized, within := "", "MATERIALIZED", "TRUE"
	if s.hasWords {
		within = rowTerms + " @> report_terms(e.block, @words)"
	}
	if s.bucket+s.times != "" {
		terms := "array_agg(term) FILTER (WHERE matches)"
		switch {
		case s.hasWords: // looking up all buckets, or many, costs more than it saves
			terms = "CASE WHEN bool_and(matches) OR count(*) FILTER (WHERE matches) > 64 " +
				"THEN (report_terms(e.block, @words))[:1] ELSE " + terms + " END"
			fallthrough
		case s.bucket != "":
			within += " AND " + rowTerms + " && b.terms"
		default:
			materialized, within = "NOT MATERIALIZED", "id BETWEEN e.block * 4096 AND e.block * 4096 + 4095"
		}
		buckets = `CROSS JOIN LATERAL (
			SELECT ` + terms + ` AS terms
			FROM (SELECT term, TRUE` + s.bucket + s.times + ` AS matches FROM blocks WHERE block = e.block) AS k
			HAVING bool_or(matches)
		) AS b`
	}
	return s.query(ctx, conn, `
		SELECT found.id
		FROM `+blocks+` AS e (block)
		`+buckets+`
		CROSS JOIN LATERAL (
			WITH matching AS `+materialized+` (
				SELECT id, last_seen
				FROM reports
				WHERE `+within+` AND coalesce(`+s.row+`, FALSE)
				ORDER BY id `+s.order+`
			)
			SELECT id
			FROM matching
			WHERE `+s.beyond+s.since+`
			LIMIT `+strconv.Itoa(s.limit)+`
		) AS found`)
}

// query returns the ids that the statement yields. The limit is a literal so that PostgreSQL plans for it.
func (s *reportSearch) query(ctx context.Context, conn *pgx.Conn, statement string) ([]int64, error) {
	return queryIDs(ctx, conn, statement+`
		LIMIT `+strconv.Itoa(s.limit), s.args)
}

-- The service's tables. The service runs this file when it starts, under an advisory lock, unless
-- this version of it was the last one applied. It can be run again at any time: each statement is
-- idempotent. A new column is an ALTER TABLE … ADD COLUMN IF NOT EXISTS at the end of its table,
-- with a default that the previous release can live with.

CREATE TABLE IF NOT EXISTS reports (
	id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	item_id     bigint,
	uuid        text,
	state       text        NOT NULL CHECK (state IN ('current', 'superseded', 'queued', 'delivered', 'rejected')),
	first_seen  timestamptz NOT NULL DEFAULT now(),
	last_seen   timestamptz NOT NULL DEFAULT now(),
	status      text,
	level       text,
	environment text,
	words       text[]      NOT NULL DEFAULT '{}',
	digests     text        NOT NULL DEFAULT '',
	data        json        NOT NULL
);

COMMENT ON TABLE  reports             IS 'One row for each observed state of a Rollbar item, and for each occurrence that was created here.';
COMMENT ON COLUMN reports.id          IS 'Increases with time: the newest report has the highest id.';
COMMENT ON COLUMN reports.item_id     IS 'Rollbar''s system-wide id of the item; null for a created occurrence until Rollbar says which item it became.';
COMMENT ON COLUMN reports.uuid        IS 'The uuid of a created occurrence, unique in the project; null for an observed item.';
COMMENT ON COLUMN reports.state       IS 'current or superseded for an observed item; queued, delivered or rejected for a created occurrence.';
COMMENT ON COLUMN reports.first_seen  IS 'When this state was first seen, or the occurrence created.';
COMMENT ON COLUMN reports.last_seen   IS 'When this state was last seen, accurate to a minute.';
COMMENT ON COLUMN reports.status      IS 'The item''s status, copied from data for filters; null for a created occurrence.';
COMMENT ON COLUMN reports.level       IS 'The level, copied from data for filters.';
COMMENT ON COLUMN reports.environment IS 'The environment, copied from data for filters.';
COMMENT ON COLUMN reports.words       IS 'The words of the title in lower case, for searches.';
COMMENT ON COLUMN reports.digests     IS 'Digests of Rollbar''s responses that data already holds, so that the same response need not be compared again.';
COMMENT ON COLUMN reports.data        IS 'What Rollbar sent, or what was created, digit for digit. It is json and not jsonb, which would rewrite numbers.';

-- Each created occurrence is stored once.
CREATE UNIQUE INDEX IF NOT EXISTS reports_uuid ON reports (uuid) WHERE uuid IS NOT NULL;

DROP INDEX IF EXISTS reports_item, reports_facet, reports_state, reports_status, reports_level, reports_environment, reports_last_seen, reports_words;

-- A report that is seen again unchanged gets a row here, so that a sync of everything rewrites a
-- few bytes for each report, and not the report itself.
CREATE TABLE IF NOT EXISTS seen (
	report_id bigint      PRIMARY KEY,
	last_seen timestamptz NOT NULL
) WITH (fillfactor = 80);

COMMENT ON TABLE  seen           IS 'When reports were seen again. The later of this last_seen and that of the report counts.';
COMMENT ON COLUMN seen.report_id IS 'The report. There is no foreign key, which would cost more than the row; rows of deleted reports are never read.';
COMMENT ON COLUMN seen.last_seen IS 'When it was last seen, accurate to a minute.';

-- Lists search one block of reports after another; a block has 4096 ids. A term is a word of a title,
-- or a bucket: a combination of state, status, level and environment. The index holds terms as
-- numbers, with the block in the upper half. New rows wait in the index's pending list, to be indexed
-- some hundreds at a time; each search of a block reads that list, so it is kept short.
CREATE OR REPLACE FUNCTION word_terms(block bigint, words text[]) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1 AS $$
DECLARE
	terms bigint[] := '{}';
BEGIN
	FOR n IN 1..cardinality(words) LOOP
		terms := terms || ((block << 32) + hashtext(words[n]));
	END LOOP;
	RETURN terms;
END $$;

-- PostgreSQL inlines the function's expression, which takes half the time of a loop. Few titles have more than
-- twelve distinct words.
CREATE OR REPLACE FUNCTION report_terms(block bigint, words text[], state text DEFAULT NULL, status text DEFAULT NULL,
	level text DEFAULT NULL, environment text DEFAULT NULL) RETURNS bigint[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN array_remove(ARRAY[
	(block << 32) + hashtext(state || '/' || coalesce(status, '') || '/' || coalesce(level, '') || '/' || coalesce(environment, '')),
	(block << 32) + hashtext(words[1]),  (block << 32) + hashtext(words[2]),  (block << 32) + hashtext(words[3]),
	(block << 32) + hashtext(words[4]),  (block << 32) + hashtext(words[5]),  (block << 32) + hashtext(words[6]),
	(block << 32) + hashtext(words[7]),  (block << 32) + hashtext(words[8]),  (block << 32) + hashtext(words[9]),
	(block << 32) + hashtext(words[10]), (block << 32) + hashtext(words[11]), (block << 32) + hashtext(words[12])
], NULL) || CASE WHEN cardinality(words) > 12 THEN word_terms(block, words[13:]) END;

CREATE INDEX IF NOT EXISTS reports_terms ON reports
USING gin (report_terms(id / 4096, words, state, status, level, environment)) WITH (gin_pending_list_limit = 64);

-- No plan needs to know how frequent a term, a word or a digest is, and finding out takes PostgreSQL half a second.
ALTER INDEX reports_terms ALTER COLUMN 1 SET STATISTICS 0;
ALTER TABLE reports ALTER COLUMN words SET STATISTICS 0, ALTER COLUMN digests SET STATISTICS 0, ALTER COLUMN data SET STATISTICS 0;

-- When the reports of each bucket were seen, so that lists skip blocks that are too old or too new.
-- Triggers widen the times and never narrow them; the only cost is that a block is searched in vain.
CREATE TABLE IF NOT EXISTS blocks (
	block       bigint,
	state       text,
	status      text,
	level       text,
	environment text,
	term        bigint      NOT NULL,
	first_seen  timestamptz NOT NULL,
	last_seen   timestamptz NOT NULL,
	PRIMARY KEY (block, state, status, level, environment)
) WITH (fillfactor = 80);

-- With statistics from when there were few blocks, a list would read all of them for each block.
ALTER TABLE blocks ALTER COLUMN block SET STATISTICS 0;

COMMENT ON TABLE  blocks             IS 'The buckets of each block of reports.';
COMMENT ON COLUMN blocks.block       IS 'The ids of its reports, divided by 4096.';
COMMENT ON COLUMN blocks.state       IS 'As in reports.';
COMMENT ON COLUMN blocks.status      IS 'As in reports; empty for null.';
COMMENT ON COLUMN blocks.level       IS 'As in reports; empty for null.';
COMMENT ON COLUMN blocks.environment IS 'As in reports; empty for null.';
COMMENT ON COLUMN blocks.term        IS 'The bucket''s term in the index reports_terms.';
COMMENT ON COLUMN blocks.first_seen  IS 'No report of the bucket was first seen before this.';
COMMENT ON COLUMN blocks.last_seen   IS 'No report of the bucket was last seen after this.';

-- widen_blocks makes the times of buckets wide enough for reports. They are half a second wider than
-- necessary, and written only when they are too narrow: creating one report after another must not wait
-- for the previous commit. Writers take turns, since the triggers of one statement would lock blocks in
-- another order than those of the next.
CREATE OR REPLACE FUNCTION widen_blocks(buckets blocks[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO blocks AS b
	SELECT block, state, status, level, environment, (report_terms(block, '{}', state, status, level, environment))[1],
		first_seen, last_seen + interval '0.5 seconds'
	FROM (
		SELECT block, state, coalesce(status, '') AS status, coalesce(level, '') AS level,
			coalesce(environment, '') AS environment, min(first_seen) AS first_seen, max(last_seen) AS last_seen
		FROM unnest(buckets)
		GROUP BY 1, 2, 3, 4, 5
		ORDER BY 1, 2, 3, 4, 5
	) AS n
	WHERE CASE WHEN (
		SELECT o.first_seen <= n.first_seen AND o.last_seen >= n.last_seen
		FROM blocks o
		WHERE (o.block, o.state, o.status, o.level, o.environment) = (n.block, n.state, n.status, n.level, n.environment)
	) THEN FALSE ELSE (SELECT pg_advisory_xact_lock('blocks'::regclass::oid::bigint)::text = '') END
	ON CONFLICT (block, state, status, level, environment) DO UPDATE
	SET first_seen = least(b.first_seen, excluded.first_seen), last_seen = greatest(b.last_seen, excluded.last_seen);
END $$;

-- search_path is set because that of a restore is empty, and the other settings because plans may have been cached
-- while the tables were empty.
CREATE OR REPLACE FUNCTION reports_inserted() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
	PERFORM widen_blocks(array_agg((block, state, status, level, environment, 0, first_seen, last_seen)::blocks))
	FROM (
		SELECT id / 4096 AS block, state, coalesce(status, '') AS status, coalesce(level, '') AS level,
			coalesce(environment, '') AS environment, min(first_seen) AS first_seen, max(last_seen) AS last_seen
		FROM written
		GROUP BY 1, 2, 3, 4, 5
	) AS n
	WHERE (
		SELECT o.first_seen <= n.first_seen AND o.last_seen >= n.last_seen
		FROM blocks o
		WHERE (o.block, o.state, o.status, o.level, o.environment) = (n.block, n.state, n.status, n.level, n.environment)
	) IS NOT TRUE
	HAVING count(*) > 0; -- the times are often wide enough, and widen_blocks would take longer to find out
	RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION reports_updated() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
	PERFORM widen_blocks(ARRAY(
		SELECT (id / 4096, state, status, level, environment, 0, first_seen,
			greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = id)))::blocks
		FROM written));
	RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION seen_written() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
	PERFORM widen_blocks(ARRAY(
		SELECT (id / 4096, state, status, level, environment, 0, first_seen, w.last_seen)::blocks
		FROM written w
		JOIN reports ON id = report_id));
	RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER blocks_on_insert AFTER INSERT ON reports REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION reports_inserted();
CREATE OR REPLACE TRIGGER blocks_on_update AFTER UPDATE ON reports REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION reports_updated();
CREATE OR REPLACE TRIGGER blocks_on_insert AFTER INSERT ON seen REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION seen_written();
CREATE OR REPLACE TRIGGER blocks_on_update AFTER UPDATE ON seen REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION seen_written();

DROP FUNCTION IF EXISTS widen_blocks(bigint[]), reports_written();

SELECT widen_blocks(array_agg((id / 4096, state, status, level, environment, 0, first_seen, greatest(r.last_seen, s.last_seen))::blocks))
FROM reports r LEFT JOIN seen s ON report_id = id
WHERE NOT EXISTS (SELECT FROM blocks)
GROUP BY id / 4096;

-- Drops what earlier versions used instead. In other databases, tables with these names belong to another program.
DO $$ BEGIN
	IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'reports'::regclass AND attname = 'facet') THEN
		DROP FUNCTION IF EXISTS index_reports, index_seen CASCADE;
		DROP TABLE IF EXISTS facets, segments, spots;
		ALTER TABLE reports DROP COLUMN facet;
	END IF;
END $$;

-- Columns for the delivery of created occurrences.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS leased_until timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE reports ADD COLUMN IF NOT EXISTS next_attempt timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE reports ADD COLUMN IF NOT EXISTS attempts     integer     NOT NULL DEFAULT 0;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS acknowledged boolean     NOT NULL DEFAULT FALSE;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS refusal      smallint;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS reason       text;

COMMENT ON COLUMN reports.leased_until IS 'When the lease of the process that delivers a queued occurrence ends.';
COMMENT ON COLUMN reports.next_attempt IS 'When a queued occurrence is to be tried again; -infinity if it has not been tried. The earliest comes first.';
COMMENT ON COLUMN reports.attempts     IS 'How often the queue has tried to deliver it.';
COMMENT ON COLUMN reports.acknowledged IS 'Whether another request with the same uuid was answered from this row, which must therefore stay.';
COMMENT ON COLUMN reports.refusal      IS 'The HTTP status with which Rollbar refused a rejected occurrence for good: 400, 413 or 422.';
COMMENT ON COLUMN reports.reason       IS 'Rollbar''s message about the refusal.';

-- Columns for looking up which items delivered occurrences became.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS next_lookup timestamptz;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS lookups     integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN reports.next_lookup IS 'When Rollbar is to be asked for the item of a delivered occurrence; null when it is known or given up.';
COMMENT ON COLUMN reports.lookups     IS 'How often Rollbar was asked for the item.';

-- A column for showing the delivery in the trace of the request that queued it.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS traceparent text;

COMMENT ON COLUMN reports.traceparent IS 'The span in which it was created, as in the W3C headers traceparent and tracestate, separated by a space.';

-- This also drops an index on the column.
ALTER TABLE reports DROP COLUMN IF EXISTS held;

-- The occurrences of servers and those of clients are sent with different tokens.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS client boolean NOT NULL DEFAULT FALSE;

COMMENT ON COLUMN reports.client IS 'Whether its platform is one of those for which Rollbar requires a client token.';

CREATE INDEX IF NOT EXISTS reports_turn   ON reports (client, next_attempt, id) WHERE state = 'queued';
CREATE INDEX IF NOT EXISTS reports_lookup ON reports (next_lookup)              WHERE next_lookup IS NOT NULL;

DROP INDEX IF EXISTS reports_queue, reports_waiting;

-- Each item has one current report. Summaries read nothing but these indexes; PostgreSQL reads them in
-- parallel only if it knows how many days there are.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS total_occurrences bigint;

COMMENT ON COLUMN reports.total_occurrences IS 'Copied from data for summaries; null for a created occurrence.';

UPDATE reports
SET total_occurrences = (data ->> 'total_occurrences')::bigint
WHERE state = 'current' AND total_occurrences IS NULL AND data ->> 'total_occurrences' ~ '^[0-9]{1,18}$';

CREATE UNIQUE INDEX IF NOT EXISTS reports_of_items ON reports (item_id)
INCLUDE (status, level, environment, first_seen, total_occurrences) WHERE state = 'current';
CREATE INDEX IF NOT EXISTS reports_before ON reports (item_id, id)
INCLUDE (state, first_seen) WHERE state <> 'current' AND item_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS reports_rejected ON reports (id) WHERE state = 'rejected';

CREATE STATISTICS IF NOT EXISTS reports_days ON ((first_seen AT TIME ZONE 'UTC')::date) FROM reports;

DROP INDEX IF EXISTS reports_current, reports_past;

-- The archive: occurrences as Rollbar showed them, kept longer than Rollbar keeps them.
CREATE TABLE IF NOT EXISTS occurrences (
	id          bigint      PRIMARY KEY,
	item_id     bigint,
	occurred_at timestamptz NOT NULL,
	environment text        NOT NULL,
	level       text        NOT NULL,
	data        json        NOT NULL
);

COMMENT ON TABLE  occurrences             IS 'One row for each occurrence that was seen. It is written once.';
COMMENT ON COLUMN occurrences.id          IS 'Rollbar''s id of the occurrence, which increases with time, more or less.';
COMMENT ON COLUMN occurrences.item_id     IS 'Rollbar''s system-wide id of the item.';
COMMENT ON COLUMN occurrences.occurred_at IS 'The occurrence''s timestamp, or when it was stored if it has none.';
COMMENT ON COLUMN occurrences.environment IS 'The environment for filters, at most 255 characters; empty if there is none.';
COMMENT ON COLUMN occurrences.level       IS 'The level for filters; empty if it is not one of the five.';
COMMENT ON COLUMN occurrences.data        IS 'The whole occurrence as Rollbar sent it, digit for digit, without access tokens.';

-- Lists search each level separately, in the order of ids. Times are found by day, in UTC.
CREATE INDEX IF NOT EXISTS occurrences_item        ON occurrences (item_id, level, id)     INCLUDE (environment, occurred_at);
CREATE INDEX IF NOT EXISTS occurrences_environment ON occurrences (environment, level, id) INCLUDE (occurred_at);
CREATE INDEX IF NOT EXISTS occurrences_level       ON occurrences (level, id)              INCLUDE (occurred_at);
CREATE INDEX IF NOT EXISTS occurrences_day         ON occurrences (((occurred_at AT TIME ZONE 'UTC')::date), id, occurred_at);

-- The version of this file that was applied last.
CREATE TABLE IF NOT EXISTS schema_version (
	digest text NOT NULL
);

ALTER TABLE schema_version DROP CONSTRAINT IF EXISTS schema_version_pkey, ADD PRIMARY KEY (digest);

COMMENT ON TABLE  schema_version        IS 'One row: the version of schema.sql that was applied last.';
COMMENT ON COLUMN schema_version.digest IS 'SHA-256 of schema.sql, in hexadecimal digits.';

-- A version replaces the previous one, even in a data-only restore.
CREATE OR REPLACE FUNCTION schema_version_written() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
	DELETE FROM schema_version;
	RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER version_on_insert BEFORE INSERT ON schema_version
FOR EACH ROW EXECUTE FUNCTION schema_version_written();

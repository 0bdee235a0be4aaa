-- The service's tables. The service runs this file when it starts, under an advisory lock, if the
-- database was last brought up to date by another version of it. It can be run again at any time:
-- each statement does nothing where its work is done. A new column is an ALTER TABLE … ADD COLUMN
-- IF NOT EXISTS at the end of its table, with a default that the release before can live with.

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

COMMENT ON TABLE  reports             IS 'One row for each state of a Rollbar item that was seen, and for each occurrence that was created here.';
COMMENT ON COLUMN reports.id          IS 'Grows with time: the newest report has the largest.';
COMMENT ON COLUMN reports.item_id     IS 'Rollbar''s system-wide id of the item; null for a created one until Rollbar says which item it became.';
COMMENT ON COLUMN reports.uuid        IS 'Of a created occurrence, unique in the project; null for what was seen.';
COMMENT ON COLUMN reports.state       IS 'current or superseded for what was seen; queued, delivered or rejected for what was created.';
COMMENT ON COLUMN reports.first_seen  IS 'When this state was first seen, or created.';
COMMENT ON COLUMN reports.last_seen   IS 'When this state was last seen, exact to a minute.';
COMMENT ON COLUMN reports.status      IS 'The item''s status, taken out of data for filters; null for what was created.';
COMMENT ON COLUMN reports.level       IS 'The level, taken out of data for filters.';
COMMENT ON COLUMN reports.environment IS 'The environment, taken out of data for filters.';
COMMENT ON COLUMN reports.words       IS 'The words of the title in lower case, for searches.';
COMMENT ON COLUMN reports.digests     IS 'Digests of the answers of Rollbar that data already holds, so that the same answer need not be compared again.';
COMMENT ON COLUMN reports.data        IS 'What Rollbar sent, or what was created, digit for digit. It is json and not jsonb, which would rewrite numbers.';

-- A row is about one of few combinations of what lists are filtered by: its facet.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS facet bigint GENERATED ALWAYS AS (hashtextextended(
	state || chr(1) || coalesce(status, '') || chr(1) || coalesce(level, '') || chr(1) || coalesce(environment, ''), 0)) STORED;

COMMENT ON COLUMN reports.facet IS 'A number for the combination of state, status, level and environment.';

-- Each item has one current report; each created occurrence is there once.
CREATE UNIQUE INDEX IF NOT EXISTS reports_current ON reports (item_id)     WHERE state = 'current';
CREATE        INDEX IF NOT EXISTS reports_past    ON reports (item_id, id) WHERE state <> 'current' AND item_id IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS reports_uuid    ON reports (uuid)        WHERE uuid IS NOT NULL;
CREATE        INDEX IF NOT EXISTS reports_place   ON reports (facet, (id / 1024), id);

DROP INDEX IF EXISTS reports_item, reports_facet, reports_state, reports_status, reports_level, reports_environment, reports_last_seen, reports_words;

-- A report that is seen again unchanged gets a row here, so that a sync over everything rewrites
-- some bytes for each report and not the report.
CREATE TABLE IF NOT EXISTS seen (
	report_id bigint      PRIMARY KEY,
	last_seen timestamptz NOT NULL
) WITH (fillfactor = 80);

COMMENT ON TABLE  seen           IS 'When reports were seen again. The later of this last_seen and that of the report counts.';
COMMENT ON COLUMN seen.report_id IS 'The report. There is no foreign key, which would cost more than the row; nobody asks for the rows of deleted reports.';
COMMENT ON COLUMN seen.last_seen IS 'When it was last seen, exact to a minute.';

-- What lists skip by. Reports whose ids agree in id / 1024 are a block. Triggers keep these tables
-- up to date; what was true of a block once stays in them, which costs a list a look at a block in
-- vain and nothing else.
CREATE TABLE IF NOT EXISTS facets (
	facet       bigint PRIMARY KEY,
	state       text   NOT NULL,
	status      text,
	level       text,
	environment text
);

COMMENT ON TABLE  facets             IS 'The facets that there are.';
COMMENT ON COLUMN facets.facet       IS 'As in reports.';
COMMENT ON COLUMN facets.state       IS 'As in reports.';
COMMENT ON COLUMN facets.status      IS 'As in reports.';
COMMENT ON COLUMN facets.level       IS 'As in reports.';
COMMENT ON COLUMN facets.environment IS 'As in reports.';

CREATE TABLE IF NOT EXISTS segments (
	facet      bigint,
	block      bigint,
	first_seen timestamptz NOT NULL,
	last_seen  timestamptz NOT NULL,
	PRIMARY KEY (facet, block)
) WITH (fillfactor = 80);

COMMENT ON TABLE  segments            IS 'When the reports of a block were seen: of one facet, and of all together.';
COMMENT ON COLUMN segments.facet      IS 'As in reports; 0 for all facets.';
COMMENT ON COLUMN segments.block      IS 'The block: id / 1024.';
COMMENT ON COLUMN segments.first_seen IS 'No report was first seen before this.';
COMMENT ON COLUMN segments.last_seen  IS 'No report was last seen after this.';

CREATE TABLE IF NOT EXISTS spots (
	word  bigint NOT NULL,
	facet bigint NOT NULL,
	block bigint NOT NULL
);

CREATE INDEX IF NOT EXISTS spots_word ON spots (word, facet, block);

COMMENT ON TABLE  spots       IS 'In which blocks and facets there are titles with a word; now and then one is there twice.';
COMMENT ON COLUMN spots.word  IS 'The word, as hashtextextended(word, 0).';
COMMENT ON COLUMN spots.facet IS 'As in reports.';
COMMENT ON COLUMN spots.block IS 'The block: id / 1024.';

-- A segment is widened by a second more than need be, and only where need be: who creates one report
-- after the other must not wait for the commit of the one before. A new facet has a new segment. Where
-- many rows come, their words are not looked up first.
-- The plans are made when the tables may be empty and kept while they grow, hence the settings.
CREATE OR REPLACE FUNCTION index_reports() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
	rows bigint := (SELECT count(*) FROM written);
BEGIN
	IF rows = 0 THEN
		RETURN NULL;
	END IF;

	INSERT INTO spots
	SELECT n.word, n.facet, n.block
	FROM (
		SELECT hashtextextended(w.word, 0) AS word, facet, id / 1024 AS block
		FROM written, unnest(words) AS w (word)
		GROUP BY 1, 2, 3
	) AS n
	WHERE rows > 512
	OR (SELECT TRUE FROM spots s WHERE s.word = n.word AND s.facet = n.facet AND s.block = n.block LIMIT 1) IS NULL
	ORDER BY 1, 2, 3;

	INSERT INTO segments AS s
	SELECT n.facet, n.block, n.first_seen, n.last_seen + interval '1 second'
	FROM (
		SELECT coalesce(facet, 0) AS facet, id / 1024 AS block, min(first_seen) AS first_seen, max(last_seen) AS last_seen
		FROM written
		GROUP BY GROUPING SETS ((facet, id / 1024), (id / 1024))
	) AS n
	LEFT JOIN segments o ON o.facet = n.facet AND o.block = n.block
	WHERE o.facet IS NULL OR o.first_seen > n.first_seen OR o.last_seen < n.last_seen
	ORDER BY n.facet, n.block
	ON CONFLICT (facet, block) DO UPDATE
	SET first_seen = least(s.first_seen, excluded.first_seen), last_seen = greatest(s.last_seen, excluded.last_seen);

	IF FOUND THEN
		INSERT INTO facets
		SELECT facet, state, status, level, environment
		FROM (
			SELECT DISTINCT facet, state, status, level, environment
			FROM written
		) AS n
		WHERE NOT EXISTS (SELECT FROM facets f WHERE f.facet = n.facet)
		ORDER BY facet
		ON CONFLICT DO NOTHING;
	END IF;
	RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION index_seen() RETURNS trigger LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
	INSERT INTO segments AS s
	SELECT n.facet, n.block, o.first_seen, n.last_seen + interval '1 second'
	FROM (
		SELECT coalesce(r.facet, 0) AS facet, r.id / 1024 AS block, max(t.last_seen) AS last_seen
		FROM written t
		JOIN reports r ON r.id = t.report_id
		GROUP BY GROUPING SETS ((r.facet, r.id / 1024), (r.id / 1024))
	) AS n
	JOIN segments o ON o.facet = n.facet AND o.block = n.block
	WHERE o.last_seen < n.last_seen
	ORDER BY n.facet, n.block
	ON CONFLICT (facet, block) DO UPDATE
	SET last_seen = greatest(s.last_seen, excluded.last_seen);
	RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER reports_inserted AFTER INSERT ON reports REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION index_reports();
CREATE OR REPLACE TRIGGER reports_updated AFTER UPDATE ON reports REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION index_reports();
CREATE OR REPLACE TRIGGER seen_inserted AFTER INSERT ON seen REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION index_seen();
CREATE OR REPLACE TRIGGER seen_updated AFTER UPDATE ON seen REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION index_seen();

-- Of a database from before these tables.
INSERT INTO facets
SELECT DISTINCT facet, state, status, level, environment FROM reports WHERE NOT EXISTS (SELECT FROM facets)
ON CONFLICT DO NOTHING;
INSERT INTO spots
SELECT DISTINCT hashtextextended(w.word, 0), facet, id / 1024 FROM reports, unnest(words) AS w (word) WHERE NOT EXISTS (SELECT FROM segments);
INSERT INTO segments
SELECT coalesce(facet, 0), id / 1024, min(first_seen), max(last_seen) FROM reports WHERE NOT EXISTS (SELECT FROM segments)
GROUP BY GROUPING SETS ((facet, id / 1024), (id / 1024))
ON CONFLICT DO NOTHING;

-- What the delivery of a created occurrence needs.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS leased_until timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE reports ADD COLUMN IF NOT EXISTS next_attempt timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE reports ADD COLUMN IF NOT EXISTS attempts     integer     NOT NULL DEFAULT 0;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS acknowledged boolean     NOT NULL DEFAULT FALSE;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS refusal      smallint;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS reason       text;

COMMENT ON COLUMN reports.leased_until IS 'Until when a process is at work on the delivery of a queued one.';
COMMENT ON COLUMN reports.next_attempt IS 'When a queued one is to be tried again; -infinity if it has not been tried. The earliest comes first.';
COMMENT ON COLUMN reports.attempts     IS 'How often the queue has tried to deliver it.';
COMMENT ON COLUMN reports.acknowledged IS 'A further request for the same uuid was answered by this row, which therefore must stay.';
COMMENT ON COLUMN reports.refusal      IS 'The HTTP status with which Rollbar refused a rejected one for good: 400, 413 or 422.';
COMMENT ON COLUMN reports.reason       IS 'Rollbar''s words about the refusal.';

-- What was delivered is asked for the item that it became.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS next_lookup timestamptz;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS lookups     integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN reports.next_lookup IS 'When Rollbar is to be asked for the item of a delivered one; null when it is known or given up.';
COMMENT ON COLUMN reports.lookups     IS 'How often Rollbar was asked for the item.';

-- What it takes to show the delivery in the trace of the request that queued it.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS traceparent text;

COMMENT ON COLUMN reports.traceparent IS 'The span in which it was created, as the W3C''s headers traceparent and tracestate have it, with a space between.';

-- The column went with an index that had the name of the next one.
ALTER TABLE reports DROP COLUMN IF EXISTS held;

CREATE INDEX IF NOT EXISTS reports_waiting ON reports (next_attempt, id) WHERE state = 'queued';
CREATE INDEX IF NOT EXISTS reports_lookup  ON reports (next_lookup)      WHERE next_lookup IS NOT NULL;

DROP INDEX IF EXISTS reports_queue;

DROP TABLE IF EXISTS syncs;

-- Which version of this file the database was last brought up to date by.
CREATE TABLE IF NOT EXISTS schema_version (
	digest text NOT NULL
);

COMMENT ON TABLE  schema_version        IS 'One row: the version of schema.sql that was applied last.';
COMMENT ON COLUMN schema_version.digest IS 'SHA-256 of schema.sql, in hexadecimal digits.';

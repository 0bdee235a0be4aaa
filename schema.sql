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

-- Each item has one current report; each created occurrence is there once.
CREATE UNIQUE INDEX IF NOT EXISTS reports_current ON reports (item_id) WHERE state = 'current';
CREATE UNIQUE INDEX IF NOT EXISTS reports_uuid    ON reports (uuid)    WHERE uuid IS NOT NULL;

-- Filters of lists, newest first.
CREATE INDEX IF NOT EXISTS reports_item        ON reports (item_id, id);
CREATE INDEX IF NOT EXISTS reports_state       ON reports (state, id);
CREATE INDEX IF NOT EXISTS reports_status      ON reports (status, id);
CREATE INDEX IF NOT EXISTS reports_level       ON reports (level, id);
CREATE INDEX IF NOT EXISTS reports_environment ON reports (environment, id);
CREATE INDEX IF NOT EXISTS reports_last_seen   ON reports (last_seen);
CREATE INDEX IF NOT EXISTS reports_words       ON reports USING gin (words);

-- What the delivery of a created occurrence needs.
ALTER TABLE reports ADD COLUMN IF NOT EXISTS leased_until timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE reports ADD COLUMN IF NOT EXISTS next_attempt timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE reports ADD COLUMN IF NOT EXISTS attempts     integer     NOT NULL DEFAULT 0;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS acknowledged boolean     NOT NULL DEFAULT FALSE;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS refusal      smallint;
ALTER TABLE reports ADD COLUMN IF NOT EXISTS reason       text;

COMMENT ON COLUMN reports.leased_until IS 'Until when somebody is at work on the delivery of a queued one.';
COMMENT ON COLUMN reports.next_attempt IS 'When a queued one is to be tried again.';
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

COMMENT ON COLUMN reports.traceparent IS 'The span in which it was created, as the W3C''s header of that name has it.';

CREATE INDEX IF NOT EXISTS reports_queue  ON reports (id)          WHERE state = 'queued';
CREATE INDEX IF NOT EXISTS reports_lookup ON reports (next_lookup) WHERE next_lookup IS NOT NULL;

-- Which version of this file the database was last brought up to date by.
CREATE TABLE IF NOT EXISTS schema_version (
	digest text NOT NULL
);

COMMENT ON TABLE  schema_version        IS 'One row: the version of schema.sql that was applied last.';
COMMENT ON COLUMN schema_version.digest IS 'SHA-256 of schema.sql, in hexadecimal digits.';

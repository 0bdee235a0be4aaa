package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"app/internal/async"
	"app/internal/datadog"
)

//go:embed schema.sql
var schema string

const (
	storeTimeout = 2 * time.Second  // how long a request waits for PostgreSQL before it goes on without it
	readTimeout  = 30 * time.Second // how long a read waits for its first row: PostgreSQL may have vanished, or a lock is held
)

// Store keeps the reports. It is safe for concurrent use. A nil Store means that the service has no database: reads
// and writes fail.
type Store struct {
	pool    *pgxpool.Pool // of the primary
	standby *pgxpool.Pool // where reports are read; nil if there is none

	telemetry *datadog.Client

	deliveries async.Batcher[int64, struct{}] // reports that Rollbar took, to be marked as delivered; newOutbox sets it up

	readTimeout time.Duration

	readers    chan struct{} // slots for reads, fewer than there are connections
	schemaTurn chan struct{} // held by the goroutine that brings the schema up to date
	current    atomic.Bool   // the database has this program's schema
	writable   atomic.Bool   // writing worked when it was last tried
	tryDue     atomic.Bool   // check should try writing again
}

// openStore returns a store for one or two connection URLs. It does not connect: PostgreSQL may start later.
func openStore(primary, standby string, telemetry *datadog.Client) (*Store, error) {
	pool, err := newPool(primary, telemetry)
	if err != nil {
		return nil, err
	}
	s := &Store{
		pool: pool, telemetry: telemetry, readTimeout: readTimeout,
		readers:    make(chan struct{}, max(1, pool.Config().MaxConns*3/4)),
		schemaTurn: make(chan struct{}, 1),
	}
	if standby != "" {
		if s.standby, err = newPool(standby, telemetry); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newPool(url string, telemetry *datadog.Client) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fail(misconfigured, "DATABASE_URL must be valid") // loadConfig has checked it
	}
	if !strings.Contains(url, "pool_max_conns") {
		config.MaxConns = 16 // concurrent commits share an fsync
	}
	config.MaxConns = max(2, config.MaxConns) // retention holds a lock on one and deletes on another
	connect := config.ConnConfig
	connect.ConnectTimeout = min(cmp.Or(connect.ConnectTimeout, storeTimeout), storeTimeout)
	connect.RuntimeParams["application_name"] = cmp.Or(connect.RuntimeParams["application_name"], "app")
	connect.Tracer = telemetry.PgxTracer(connect)
	if connect.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		suitPooler(config)
	} else { // the other modes are for poolers; this one suits all of them, and returns binary values
		connect.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	return pgxpool.NewWithConfig(context.Background(), config)
}

// errPooled ends a connection that was made before a pooler was noticed. The caller acquires another one.
var errPooled = errors.New("a pooler answers")

// suitPooler has statements prepared without names behind a pooler, which may run each transaction on another
// connection that does not know the names. Without a pooler the names stay, since reads would take three times as
// long without them. A pooler is recognised by its process id, which is not PostgreSQL's.
func suitPooler(config *pgxpool.Config) {
	var pooled atomic.Bool
	config.BeforeConnect = func(_ context.Context, connect *pgx.ConnConfig) error {
		if pooled.Load() {
			connect.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		}
		return nil
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if conn.Config().DefaultQueryExecMode == pgx.QueryExecModeCacheDescribe {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		results, err := conn.PgConn().Exec(ctx, `SELECT pg_backend_pid()`).ReadAll()
		if err != nil || string(results[0].Rows[0][0]) == strconv.FormatUint(uint64(conn.PgConn().PID()), 10) {
			return err
		}
		pooled.Store(true)
		return errPooled
	}
}

// Close waits for running statements and closes the connections.
func (s *Store) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	s.deliveries.Flush(ctx)
	s.pool.Close()
	if s.standby != nil {
		s.standby.Close()
	}
}

// check returns an error unless the primary answers within a second and accepts what creates write. While writing
// works, it is tried at most ten times a second.
func (s *Store) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if s.writable.Load() && !s.tryDue.CompareAndSwap(true, false) && s.pool.Ping(ctx) == nil {
		return nil
	}
	// This statement needs the privileges of a create and of the archive, and writes no row.
	_, err := s.exec(ctx, `
		WITH inserted AS (
			INSERT INTO reports (state, data) SELECT 'queued', '{}' WHERE FALSE
		), deleted AS (
			DELETE FROM reports WHERE FALSE
		), archived AS (
			INSERT INTO occurrences (id, data) SELECT 0, '{}' WHERE FALSE
		)
		UPDATE reports SET state = state WHERE FALSE`, nil)
	s.writable.Store(err == nil)
	time.AfterFunc(100*time.Millisecond, func() { s.tryDue.Store(true) })
	return err
}

// write runs do on a connection to the primary, with the schema up to date. It fails if that takes longer than
// storeTimeout. do is retried after a serialization failure or a deadlock.
func (s *Store) write(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return s.writeSlowly(ctx, do)
}

// exec is write for one statement. It returns how many rows the statement changed.
func (s *Store) exec(ctx context.Context, sql string, args pgx.NamedArgs) (rows int64, err error) {
	err = s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, sql, args)
		rows = tag.RowsAffected()
		return err
	})
	return rows, err
}

// writeSlowly is write without a time limit of its own, for work that takes longer the more rows there are.
func (s *Store) writeSlowly(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	for {
		err := s.onPrimary(ctx, do)
		if !hasCode(err, serializationFailure, deadlockDetected) || ctx.Err() != nil {
			return err
		}
	}
}

// read runs do on the standby, if there is one that answers and has the tables, and otherwise on the primary; do may
// run twice. Occurrences that this process has delivered read as delivered. Reads of the primary share a limited
// number of slots, so that writes always find a connection.
func (s *Store) read(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	return s.readWithin(ctx, 0, do)
}

// readWithin is read with a time limit for the primary, or 0 for the usual one.
func (s *Store) readWithin(ctx context.Context, limit time.Duration, do func(context.Context, *pgx.Conn) error) error {
	if s == nil {
		return noDatabase()
	}
	s.deliveries.Flush(ctx)
	if s.standby != nil {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		err := onPool(ctx, s.standby, do)
		if err == nil || errors.Is(err, pgx.ErrNoRows) {
			return err
		}
	}
	select {
	case s.readers <- struct{}{}:
		defer func() { <-s.readers }()
	case <-time.After(storeTimeout):
		return errCrowded(nil)
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(limit, s.readTimeout))
	defer cancel()
	return s.onPrimary(ctx, do)
}

// onPrimary runs do on the primary, with the schema up to date, and translates PostgreSQL's errors.
func (s *Store) onPrimary(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	if s == nil {
		return noDatabase()
	}
	err := onPool(ctx, s.pool, func(ctx context.Context, conn *pgx.Conn) error {
		if err := s.updateSchema(ctx, conn); err != nil {
			return err
		}
		return do(ctx, conn)
	})
	if hasCode(err, undefinedTable) { // this is not, or is no longer, the database that was brought up to date
		s.current.Store(false)
	}
	return databaseError(err)
}

// onPool runs do on a connection. If the connection turns out to be dead, as all in the pool are after a restart of
// PostgreSQL, it retries do once on a new one.
func onPool(ctx context.Context, pool *pgxpool.Pool, do func(context.Context, *pgx.Conn) error) error {
	isDead, err := onConn(ctx, pool, do)
	if isDead {
		pool.Reset()
		_, err = onConn(ctx, pool, do)
	}
	return err
}

// onConn runs do on a connection, for which it waits at most storeTimeout.
func onConn(ctx context.Context, pool *pgxpool.Pool, do func(context.Context, *pgx.Conn) error) (isDead bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	conn, err := pool.Acquire(waiting)
	for errors.Is(err, errPooled) {
		conn, err = pool.Acquire(waiting)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded) && pool.Stat().AcquiredConns() == pool.Config().MaxConns:
		return false, errCrowded(err)
	case err != nil:
		return false, databaseError(err)
	}
	defer conn.Release()
	err = do(ctx, conn.Conn())
	return err != nil && ctx.Err() == nil && conn.Conn().IsClosed(), err
}

// replan makes PostgreSQL plan a statement for the tables as they are now. A plan cached on a connection while they
// were small would scan all of their rows.
const replan = pgx.QueryExecModeCacheDescribe

// queryIDs returns the ids that a statement yields. The statement is planned anew.
func queryIDs(ctx context.Context, conn *pgx.Conn, sql string, args pgx.NamedArgs) ([]int64, error) {
	rows, _ := conn.Query(ctx, sql, replan, args)
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

func noDatabase() error {
	return missingSetting(unavailable, "DATABASE_URL", "reports are stored in PostgreSQL, at a URL such as postgres://user:password@host:5432/database")
}

func errCrowded(err error) error {
	return &Failure{kind: unavailable, detail: "too many requests are already waiting for PostgreSQL", wait: time.Second, err: err}
}

// schemaLock is the advisory lock under which the schema is changed.
const schemaLock = 7_665_544

// updateSchema brings the database up to date, unless this program already knows that it is.
func (s *Store) updateSchema(ctx context.Context, conn *pgx.Conn) (err error) {
	if s.current.Load() {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	select {
	case s.schemaTurn <- struct{}{}:
		defer func() { <-s.schemaTurn }()
	case <-waiting.Done():
		return databaseError(waiting.Err())
	}
	if s.current.Load() {
		return nil
	}
	for range 3 {
		err = applySchema(ctx, conn, schema)
		if !hasCode(err, lockNotAvailable) || !async.Sleep(ctx, time.Second) { // others can pass meanwhile
			break
		}
	}
	switch {
	case err == nil:
		s.current.Store(true)
		return nil
	case hasCode(err, "42", "3F"):
		return fail(unavailable, "PostgreSQL at DATABASE_URL does not let the service create its tables: %w; a privilege is missing, or a name is "+
			"taken by another program: use a schema of its own (CREATE SCHEMA app, and ?search_path=app in the URL)", quoted{err})
	}
	return fmt.Errorf("schema: %w", databaseError(err))
}

// applySchema runs the schema in one transaction, unless it is the one that was applied last. Concurrent programs
// take turns. It waits at most half a second for a lock.
func applySchema(ctx context.Context, conn *pgx.Conn, schema string) error {
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(schema)))
	isApplied := func(ctx context.Context) (is bool, err error) {
		// to_regclass would miss a table that was created while the transaction waited for the lock.
		err = conn.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'schema_version' AND pg_table_is_visible(oid))`).Scan(&is)
		if is {
			err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM schema_version WHERE digest = $1)`, digest).Scan(&is)
		}
		return is, err
	}
	asking, cancel := context.WithTimeout(ctx, storeTimeout) // applying the schema may take longer
	defer cancel()
	if is, err := isApplied(asking); is || err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, schemaLock); err != nil {
			return err
		}
		if is, err := isApplied(ctx); is || err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '500ms'; `+schema); err != nil { // others queue behind a waiting lock
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO schema_version (digest) VALUES ($1)`, digest)
		return err
	})
}

// databaseError turns an error of PostgreSQL into a failure if it means that PostgreSQL does not answer or cannot
// work now. The error of a wrong statement is a bug, and is returned unchanged.
func databaseError(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, pgx.ErrNoRows), errors.As(err, new(*Failure)):
		return err
	case errors.As(err, new(*pgconn.PgError)) && !hasCode(err, outages...) && !errors.As(err, new(*pgconn.ConnectError)):
		return err
	}
	return fail(unavailable, "PostgreSQL at DATABASE_URL: %w", quoted{err})
}

// A quoted error has as its text what PostgreSQL, the network or the driver said, without repetitions.
type quoted struct{ error }

func (q quoted) Unwrap() error { return q.error }

func (q quoted) Error() string {
	var words []string
	for errs := []error{q.error}; len(errs) > 0; errs = errs[1:] {
		text := errs[0].Error()
		switch err := errs[0].(type) {
		case interface{ Unwrap() []error }: // one for each host, with and without TLS
			errs, text = append(errs, err.Unwrap()...), ""
		case *pgconn.PgError:
			text = err.Message + " (SQLSTATE " + err.Code + ")"
		case *net.OpError: // its text has the address
		default:
			if inner := errors.Unwrap(err); inner != nil {
				errs, text = append(errs, inner), ""
			}
		}
		if errs[0] == context.DeadlineExceeded {
			text = "no answer in time"
		}
		if text != "" && !slices.Contains(words, text) {
			words = append(words, text)
		}
	}
	return strings.Join(words, "; ")
}

// outages are the SQLSTATEs about the server's condition, not about the statement: connection, resources, locks,
// operator intervention, system errors, start-up, read-only, missing privileges, and tables that somebody has dropped.
var outages = []string{"08", "53", "55", "57", "58", "XX", "28", "3D", "25006", "42501", undefinedTable}

// SQLSTATEs that the service acts on.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	uniqueViolation      = "23505"
	undefinedTable       = "42P01"
	lockNotAvailable     = "55P03"
)

// itemAtFault reports whether a batch may have failed because of one of its items.
func itemAtFault(err error) bool { return !isKind(databaseError(err), unavailable) }

// hasCode reports whether PostgreSQL answered with one of the SQLSTATEs, which may be a class: its first two characters.
func hasCode(err error, codes ...string) bool {
	pgErr, is := errors.AsType[*pgconn.PgError](err)
	return is && slices.ContainsFunc(codes, func(code string) bool { return strings.HasPrefix(pgErr.Code, code) })
}

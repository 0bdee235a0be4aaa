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
	storeTimeout = 2 * time.Second  // that a request waits for PostgreSQL before it goes on without
	readTimeout  = 30 * time.Second // that a read waits for its first row: PostgreSQL may have vanished, or a lock is held
)

// Store keeps the reports. It is safe for concurrent use. A nil one is that of a service without a database: to read
// from it or to write to it fails.
type Store struct {
	pool    *pgxpool.Pool // of the primary
	standby *pgxpool.Pool // where reports are read; nil without one

	telemetry *datadog.Client

	deliveries async.Batcher[int64, struct{}] // reports that Rollbar took, to be marked as delivered; newOutbox sets it up

	readTimeout time.Duration

	readers    chan struct{} // slots for reads, fewer than there are connections
	schemaTurn chan struct{} // held by the goroutine that brings the schema up to date
	current    atomic.Bool   // the database has this program's schema
	writable   atomic.Bool   // writing worked when it was last tried
	tryDue     atomic.Bool   // check is to try writing again
}

// openStore makes a store of one or two connection URLs. It does not connect: PostgreSQL may come later.
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
		return nil, fail(misconfigured, "DATABASE_URL must be valid") // as loadConfig made sure
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
	}
	return pgxpool.NewWithConfig(context.Background(), config)
}

// errPooled ends a connection that was made before a pooler was noticed. Another one is wanted.
var errPooled = errors.New("a pooler answers")

// suitPooler has statements prepared without names where a pooler answers: it may run each transaction on
// another connection, which does not know the names. Elsewhere names stay, since reads would take three times
// as long. The process id of a pooler's connection is not that of PostgreSQL.
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

// check returns an error unless the primary answers within a second and takes what creates write, which it tries ten
// times a second at most while that works.
func (s *Store) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if s.writable.Load() && !s.tryDue.CompareAndSwap(true, false) && s.pool.Ping(ctx) == nil {
		return nil
	}
	err := s.onPrimary(ctx, tryWriting)
	s.writable.Store(err == nil)
	time.AfterFunc(100*time.Millisecond, func() { s.tryDue.Store(true) })
	return databaseError(err)
}

// tryWriting runs a statement that needs the rights of a create and of the archive, and writes no row.
func tryWriting(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `
		WITH inserted AS (
			INSERT INTO reports (state, data) SELECT 'queued', '{}' WHERE FALSE
		), deleted AS (
			DELETE FROM reports WHERE FALSE
		), archived AS (
			INSERT INTO occurrences (id, data) SELECT 0, '{}' WHERE FALSE
		)
		UPDATE reports SET state = state WHERE FALSE`)
	return err
}

// write runs do on a connection to the primary whose schema is up to date. What is not done within storeTimeout
// has failed. do runs again where PostgreSQL asks for that.
func (s *Store) write(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return s.writeSlowly(ctx, do)
}

// exec is write for one statement. It returns how many rows that changed.
func (s *Store) exec(ctx context.Context, sql string, args pgx.NamedArgs) (rows int64, err error) {
	err = s.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, sql, args)
		rows = tag.RowsAffected()
		return err
	})
	return rows, err
}

// writeSlowly is write without a time limit of its own, for work that takes as long as there are rows.
func (s *Store) writeSlowly(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	for {
		err := s.onPrimary(ctx, do)
		if !hasCode(err, serializationFailure, deadlockDetected) || ctx.Err() != nil {
			return err
		}
	}
}

// read runs do on a connection to the standby, if there is one that answers and has the tables, and else to the
// primary; do may run twice. What this process delivered reads as delivered. Reads share a limited number of
// slots, so that writes always find a connection.
func (s *Store) read(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	return s.readWithin(ctx, 0, do)
}

// readWithin is read with a time limit for the primary, or 0 for the usual one.
func (s *Store) readWithin(ctx context.Context, limit time.Duration, do func(context.Context, *pgx.Conn) error) error {
	if s == nil {
		return noDatabase()
	}
	waiting := time.NewTimer(storeTimeout)
	defer waiting.Stop()
	select {
	case s.readers <- struct{}{}:
		defer func() { <-s.readers }()
	case <-waiting.C:
		return errCrowded(nil)
	case <-ctx.Done():
		return ctx.Err()
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
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(limit, s.readTimeout))
	defer cancel()
	return s.onPrimary(ctx, do)
}

// onPrimary runs do on the primary, with the schema up to date, and says what PostgreSQL's errors mean.
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
	if hasCode(err, undefinedTable) { // it is not, or no longer, the database that was brought up to date
		s.current.Store(false)
	}
	return databaseError(err)
}

// onPool runs do on a connection. If that turns out to be dead, as all in the pool are after a restart of PostgreSQL,
// it runs do once more, on a new one.
func onPool(ctx context.Context, pool *pgxpool.Pool, do func(context.Context, *pgx.Conn) error) error {
	isDead, err := onConn(ctx, pool, do)
	if isDead {
		pool.Reset()
		_, err = onConn(ctx, pool, do)
	}
	return err
}

// onConn runs do on a connection, for which it waits, but not longer than storeTimeout.
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

// replan has PostgreSQL plan a statement for the tables as they are now. A plan that a connection keeps from
// when they were small would read all of them.
const replan = pgx.QueryExecModeCacheDescribe

// queryIDs returns the ids that a statement yields, which is planned anew.
func queryIDs(ctx context.Context, conn *pgx.Conn, sql string, args pgx.NamedArgs) ([]int64, error) {
	rows, _ := conn.Query(ctx, sql, replan, args)
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

func noDatabase() error {
	return missingSetting(unavailable, "DATABASE_URL", "reports are stored in PostgreSQL, such as postgres://user:password@host:5432/database")
}

func errCrowded(err error) error {
	return &Failure{kind: unavailable, detail: "too many requests are already waiting for PostgreSQL", wait: time.Second, err: err}
}

// schemaLock is the advisory lock under which the schema is changed.
const schemaLock = 7_665_544

// updateSchema brings the database up to date, unless this program already knows it to be.
func (s *Store) updateSchema(ctx context.Context, conn *pgx.Conn) error {
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
	var err error
	for range 3 {
		err = applySchema(ctx, conn, schema)
		if !hasCode(err, lockNotAvailable) || !async.Sleep(ctx, time.Second) { // others pass meanwhile
			break
		}
	}
	var answer *pgconn.PgError
	switch {
	case err == nil:
		s.current.Store(true)
		return nil
	case errors.As(err, &answer) && (answer.Code[:2] == "42" || answer.Code[:2] == "3F"):
		return fail(unavailable, "PostgreSQL at DATABASE_URL does not let the service create its tables: %w; a right is missing, or a name is "+
			"taken by another program: use a schema of its own (CREATE SCHEMA app, and ?search_path=app in the URL)", quoted{err})
	}
	return fmt.Errorf("schema: %w", databaseError(err))
}

// applySchema runs the schema in one transaction, unless it is the one that was run last. Concurrent programs
// take turns. It waits for locks of others for half a second.
func applySchema(ctx context.Context, conn *pgx.Conn, schema string) error {
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(schema)))
	isApplied := func(ctx context.Context) (is bool, err error) {
		// to_regclass would miss a table that came while the transaction waited for the lock.
		err = conn.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'schema_version' AND pg_table_is_visible(oid))`).Scan(&is)
		if is {
			err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM schema_version WHERE digest = $1)`, digest).Scan(&is)
		}
		return is, err
	}
	asking, cancel := context.WithTimeout(ctx, storeTimeout) // bringing it up to date may take longer
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
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '500ms'; `+schema); err != nil { // others wait for us
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO schema_version (digest) VALUES ($1)`, digest)
		return err
	})
}

// databaseError turns an error of PostgreSQL into a failure if it means that PostgreSQL does not answer or
// cannot work now. The error of a wrong statement is returned as it is: it is a bug.
func databaseError(err error) error {
	var connect *pgconn.ConnectError
	var answer *pgconn.PgError
	var known *Failure
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, pgx.ErrNoRows), errors.As(err, &known):
		return err
	case errors.As(err, &answer) && !isOutage(answer.Code) && !errors.As(err, &connect):
		return err
	}
	return fail(unavailable, "PostgreSQL at DATABASE_URL: %w", quoted{err})
}

// A quoted error has the words of PostgreSQL, the network or the driver as its text, each once.
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
		case *net.OpError: // with the address
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

// isOutage reports whether an SQLSTATE is about the server's condition, not about the statement: connection,
// resources, locks, operator intervention, system errors, read-only, start-up, missing rights, and tables that
// somebody has taken away.
func isOutage(code string) bool {
	return slices.Contains(strings.Fields("08 53 55 57 58 XX 28 3D"), code[:2]) ||
		slices.Contains([]string{"25006", "42501", undefinedTable}, code)
}

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

// hasCode reports whether PostgreSQL answered with one of the SQLSTATEs.
func hasCode(err error, codes ...string) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && slices.Contains(codes, answer.Code)
}

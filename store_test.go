package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/devpg"
	"app/internal/devpg/devpgtest"
	"app/internal/sandbox"
)

// startPooler starts a pooler in transaction mode with two connections to PostgreSQL, and returns its URL. Each
// transaction gets the connection that has been idle longer.
func startPooler(t testing.TB, database string) string {
	servers := make(chan *pgproto3.Frontend, 2)
	for range cap(servers) {
		conn, err := pgconn.Connect(t.Context(), database)
		require.NoError(t, err)
		hijacked, err := conn.Hijack()
		require.NoError(t, err)
		t.Cleanup(func() { hijacked.Conn.Close() })
		servers <- hijacked.Frontend
	}
	listener := datadogtest.ListenTCP(t, "127.0.0.1:0")
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				_ = pool(pgproto3.NewBackend(client, client), servers)
			}()
		}
	}()
	return "postgres://postgres@" + listener.Addr().String() + "/postgres?sslmode=disable"
}

// pool serves one client until an error.
func pool(client *pgproto3.Backend, servers chan *pgproto3.Frontend) error {
	if _, err := client.ReceiveStartupMessage(); err != nil {
		return err
	}
	client.Send(&pgproto3.AuthenticationOk{})
	client.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
	client.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"})
	client.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte("key!")})
	client.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	var server *pgproto3.Frontend
	for {
		if err := client.Flush(); err != nil {
			return err
		}
		message, err := client.Receive()
		if err != nil {
			return err
		}
		if _, ends := message.(*pgproto3.Terminate); ends {
			return nil
		}
		if server == nil {
			server = <-servers
		}
		server.Send(message)
		switch message.(type) {
		case *pgproto3.Query, *pgproto3.Sync, *pgproto3.CopyDone, *pgproto3.CopyFail:
		default:
			continue
		}
		if err := server.Flush(); err != nil {
			return err
		}
		for isAnswering := true; isAnswering; {
			answer, err := server.Receive()
			if err != nil {
				return err
			}
			client.Send(answer)
			switch answer := answer.(type) {
			case *pgproto3.CopyInResponse:
				isAnswering = false
			case *pgproto3.ReadyForQuery:
				isAnswering = false
				if answer.TxStatus == 'I' {
					servers <- server
					server = nil
				}
			}
		}
	}
}

// A pooler in transaction mode needs no parameter in the URL, and no setting sticks to its connections.
func TestPooler(t *testing.T) {
	t.Parallel()
	database := devpgtest.Schema(t)
	pooler := startPooler(t, database)
	f := newFixture(t, 5, func(c *Config) { c.DatabaseURL = pooler })
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	report := "/reports/" + f.get("/reports").at("reports", "0", "id")
	occurrences := fmt.Sprintf("/items/%d/occurrences", f.sandbox.ItemIDs()[4])
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 5 {
				for _, path := range []string{"/check", "/items", "/reports", "/reports?level=error", report,
					occurrences, "/occurrences?level=error&since=1d"} {
					got := f.get(path)
					assert.Equal(t, 200, got.status, got.body)
					assert.Empty(t, got.header.Get("Report-Stored"), path)
				}
				got := f.create(newUUID())
				assert.Equal(t, 201, got.status, got.body)
				assert.Empty(t, got.header.Get("Report-Stored"))
				assert.Equal(t, 200, f.do("POST", "/items/sync", "").status)
			}
		})
	}
	clients.Wait()
	f.app.store.deliveries.Flush(t.Context())
	conn, err := pgx.Connect(t.Context(), pooler)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	for range 2 {
		var set string
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT coalesce(string_agg(name, ' '), '') FROM pg_settings
			WHERE source = 'session' AND name NOT IN ('search_path', 'client_encoding')`,
			pgx.QueryExecModeSimpleProtocol).Scan(&set))
		assert.Empty(t, set)
	}
}

// Without a pooler, statements keep their names and plans.
func TestNoPooler(t *testing.T) {
	t.Parallel()
	store := newTestStore(t)
	conn, err := store.writer(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	assert.Equal(t, pgx.QueryExecModeCacheStatement, conn.Conn().Config().DefaultQueryExecMode)
}

// Rows are read in PostgreSQL's binary format, whatever the mode that the URL asks for.
func TestExecModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 0, func(c *Config) { c.DatabaseURL += "&default_query_exec_mode=" + mode })
			before := time.Now().Truncate(time.Microsecond)
			require.Equal(t, 201, f.create(newUUID()).status)
			var list struct{ Reports []Report }
			require.NoError(t, json.Unmarshal([]byte(f.get("/reports").body), &list))
			require.Len(t, list.Reports, 1)
			assert.Equal(t, int64(1), list.Reports[0].ID)
			assert.WithinRange(t, list.Reports[0].FirstSeen, before, time.Now())
			assert.WithinRange(t, list.Reports[0].LastSeen, list.Reports[0].FirstSeen, time.Now())
			assert.Equal(t, 200, f.get("/reports/1").status)
			assert.Equal(t, 200, f.get("/reports?level=error").status)
		})
	}
}

// newRole returns a fixture with a database of its own on the server, where its role owns nothing yet. The
// statements in change run before the service starts.
func newRole(t *testing.T, server *devpgtest.Server, change string) *fixture {
	t.Helper()
	name := "of" + strings.ReplaceAll(newUUID(), "-", "")
	devpgtest.Query(t, server.URL, `CREATE DATABASE `+name)
	admin := strings.Replace(server.URL, "/postgres?", "/"+name+"?", 1)
	for sql := range strings.SplitSeq(strings.ReplaceAll(change, "OURS", name), ";") {
		devpgtest.Query(t, admin, sql)
	}
	f := newFixture(t, 3, func(c *Config) { c.DatabaseURL = strings.Replace(admin, "postgres@", "app@", 1) })
	f.admin = admin
	return f
}

func startWithRole(t *testing.T) *devpgtest.Server {
	server := devpgtest.Start(t, "")
	devpgtest.Query(t, server.URL, `CREATE ROLE app LOGIN`)
	return server
}

// If PostgreSQL does not let us create or write our tables, its own message says why, and /check is KO.
func TestDatabaseThatIsNotOurs(t *testing.T) {
	t.Parallel()
	const taken = "a name is taken by another program: use a schema of its own " +
		"(CREATE SCHEMA app, and ?search_path=app in the URL)"
	const owned = `; ALTER TABLE reports OWNER TO app`
	const grant = `GRANT ALL ON SCHEMA public TO app`
	server := startWithRole(t)
	for name, test := range map[string]struct{ before, after, want string }{
		"no right to create tables": {`REVOKE ALL ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO app`,
			``,
			"permission denied for schema public (SQLSTATE 42501)"},
		"no schema": {`DROP SCHEMA public`, ``, "no schema has been selected to create in (SQLSTATE 3F000)"},
		"read only": {grant + `; ALTER DATABASE OURS SET default_transaction_read_only = on`, ``,
			"in a read-only transaction (SQLSTATE 25006)"},
		"no right to write": {grant, `REASSIGN OWNED BY app TO postgres; GRANT SELECT ON ALL TABLES IN SCHEMA public ` +
			`TO app`,
			"permission denied for table reports (SQLSTATE 42501)"},
		"no right to write what a trigger does": {grant, `ALTER TABLE blocks OWNER TO postgres`,
			"permission denied for table blocks (SQLSTATE 42501)"},
		"somebody's reports":        {grant + `; CREATE TABLE reports (id uuid, title text)` + owned, ``, taken},
		"somebody else's reports":   {grant + `; CREATE TABLE reports (id uuid)`, ``, taken},
		"a view":                    {grant + `; CREATE VIEW reports AS SELECT 1 AS id` + owned, ``, taken},
		"somebody's schema_version": {grant + `; CREATE TABLE schema_version (n int)`, ``, taken},
		"somebody's occurrences":    {grant + `; CREATE TABLE occurrences (id uuid)`, ``, taken},
		"somebody's seen":           {grant + `; CREATE TABLE seen (n int); ALTER TABLE seen OWNER TO app`, ``, taken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newRole(t, server, test.before)
			if test.after != "" {
				require.Equal(t, 200, f.get("/check").status)
				for sql := range strings.SplitSeq(test.after, ";") {
					f.exec(sql)
				}
				f.do("DELETE", "/reports", "") // opens what prepared statements hold
			}
			require.Eventually(t, func() bool { return f.get("/check").status == 503 }, waitLimit, waitTick)
			assert.Equal(t, "{\"status\":\"KO\"}\n", f.get("/check").body)
			detail := f.do("POST", "/items/sync", "").requireProblem(503, "unavailable")
			assert.Contains(t, detail, test.want)
			assert.Contains(t, detail, "PostgreSQL at DATABASE_URL")
			uuid := newUUID()
			assert.Equal(t, "false", f.create(uuid).header.Get("Report-Stored"))
			check := f.run("check")
			assert.Equal(t, 7, check.exit)
			assert.Contains(t, check.err, test.want)
			assert.Equal(t, 1, strings.Count(check.err, test.want))
		})
	}
}

// Tables of other programs stay as they are, even if ours once had their names.
func TestTablesOfOthersStay(t *testing.T) {
	t.Parallel()
	f := newRole(t, startWithRole(t), `GRANT ALL ON SCHEMA public TO app; CREATE TABLE syncs (n int);
		CREATE TABLE spots (n int); ALTER TABLE syncs OWNER TO app; ALTER TABLE spots OWNER TO app`)
	require.Equal(t, 200, f.get("/check").status)
	f.rows(`SELECT n::text FROM syncs UNION SELECT n::text FROM spots`)
}

// A schema of its own lets the service live next to another program's tables.
func TestSchemaOfOnesOwn(t *testing.T) {
	t.Parallel()
	database := devpgtest.Schema(t)
	devpgtest.Query(t, database, `CREATE TABLE reports (id uuid)`)
	own := database[strings.LastIndex(database, "=")+1:] + "_own"
	devpgtest.Query(t, database, `CREATE SCHEMA `+own)
	f := newFixture(t, 1, func(c *Config) { c.DatabaseURL = database + "_own" })
	assert.Equal(t, 200, f.get("/check").status)
	assert.Empty(t, f.create(newUUID()).header.Get("Report-Stored"))
}

// If PostgreSQL refuses the connection, the failure is not a bug of ours, and its reason is given once.
func TestRefusedConnection(t *testing.T) {
	t.Parallel()
	database := devpgtest.Schema(t)
	for parameter, want := range map[string]string{
		"pasword=x":                    `unrecognized configuration parameter "pasword" (SQLSTATE 42704)`,
		"gssencmode=disable":           `unrecognized configuration parameter "gssencmode" (SQLSTATE 42704)`,
		"schema=x":                     `unrecognized configuration parameter "schema" (SQLSTATE 42704)`,
		"statement_timeout=soon":       `invalid value for parameter "statement_timeout": "soon" (SQLSTATE 22023)`,
		"dbname=nowhere&sslmode=allow": `database "nowhere" does not exist (SQLSTATE 3D000)`,
	} {
		f := newFixture(t, 1, func(c *Config) { c.DatabaseURL = database + "&" + parameter })
		assert.Equal(t, 503, f.get("/check").status, parameter)
		want = "list reports: PostgreSQL at DATABASE_URL: " + want
		assert.Equal(t, want, f.get("/reports").requireProblem(503, "unavailable"))
		assert.Equal(t, "false", f.get("/items").header.Get("Report-Stored"))
		onShell := runShell(t, "", "reports", "list", "-database-url", f.config.DatabaseURL)
		assert.Equal(t, shell{7, "", "app: " + want + "\n"}, onShell)
	}
}

// A publication of all tables requires a primary key on each of them.
func TestPublicationOfAllTables(t *testing.T) {
	t.Parallel()
	postgres := devpgtest.Start(t, "", "wal_level=logical")
	devpgtest.Query(t, postgres.URL, `CREATE PUBLICATION p FOR ALL TABLES`)
	f := newFixture(t, 3, func(c *Config) { c.DatabaseURL = postgres.URL })
	assert.Equal(t, 200, f.get("/check").status)
	uuid := newUUID()
	assert.Empty(t, f.create(uuid).header.Get("Report-Stored"))
	assert.Equal(t, "delivered", f.state(uuid))
	assert.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	assert.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	assert.Equal(t, 200, f.do("DELETE", "/reports", "").status)

	f.exec(`ALTER TABLE reports DROP CONSTRAINT reports_pkey`)
	require.Eventually(t, func() bool { return f.get("/check").status == 503 }, waitLimit, waitTick)
}

// The settings of a database or a role change nothing about what is read and written.
func TestSettingsOfDatabases(t *testing.T) {
	t.Parallel()
	server := startWithRole(t)
	for _, settings := range []string{
		`DateStyle = 'SQL, DMY'; TimeZone = 'Pacific/Apia'; IntervalStyle = 'sql_standard'; client_encoding = 'LATIN1';
			standard_conforming_strings = off; default_transaction_isolation = 'serializable';
			quote_all_identifiers = on`,
		`DateStyle = 'German'; TimeZone = 'America/St_Johns'; IntervalStyle = 'iso_8601'; bytea_output = 'escape';
			default_transaction_isolation = 'repeatable read'; array_nulls = off; transform_null_equals = on;
			extra_float_digits = -15; plan_cache_mode = force_generic_plan; row_security = off;
			check_function_bodies = off; default_transaction_deferrable = on; search_path = public, pg_catalog`,
	} {
		t.Run(settings[:20], func(t *testing.T) {
			t.Parallel()
			change := `GRANT ALL ON SCHEMA public TO app`
			for setting := range strings.SplitSeq(settings, ";") {
				change += `; ALTER DATABASE OURS SET ` + setting
			}
			f := newRole(t, server, change)
			require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
			created := f.do("POST", "/items", `{"message":"it's \\ \"ü€😀","environment":"über"}`)
			require.Equal(t, 201, created.status, created.body)
			require.Empty(t, created.header.Get("Report-Stored"))
			id := f.sandbox.ItemIDs()[0]
			update := f.do("PATCH", fmt.Sprintf("/items/%d", id), `{"status":"resolved","title":"äö"}`)
			require.Equal(t, 200, update.status)
			require.Empty(t, update.header.Get("Report-Stored"))

			found := f.get("/reports?environment=%C3%BCber&since=1h").list("reports")
			require.Len(t, found, 1)
			body := &answer{t: t, body: string(found[0])}
			assert.Contains(t, body.at("data", "body", "message", "body"), `\\`)
			assert.Contains(t, body.body, `it's \\ \"ü€😀`)
			seen, err := time.Parse(`"`+time.RFC3339Nano+`"`, body.at("last_seen"))
			require.NoError(t, err)
			assert.WithinDuration(t, time.Now(), seen, time.Minute)
			assert.Equal(t, 1, len(f.get(fmt.Sprintf("/reports?item_id=%d&state=superseded", id)).list("reports")))
			later := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
			assert.Equal(t, 1, len(f.get("/reports?q=%C3%84%C3%96&until="+later).list("reports")))
			assert.Equal(t, 0, len(f.get("/reports?until=1h").list("reports")))
			f.sandbox.SetFault(sandbox.Down)
			waiting := newUUID()
			require.Equal(t, 202, f.create(waiting).status)
			f.sandbox.SetFault(sandbox.None)
			f.passTime()
			assert.Equal(t, 200, f.do("POST", "/reports/deliver", "").status)
			assert.Equal(t, "delivered", f.state(waiting))
		})
	}
}

// Dumps can be restored, even data-only ones.
func TestDumps(t *testing.T) {
	t.Parallel()
	bin := devpg.FindPrograms("pg_dump", "psql")
	devpgtest.NeedPrograms(t, "pg_dump", "psql")
	from := devpgtest.Start(t, "")
	f := newFixture(t, 3, func(c *Config) { c.DatabaseURL = from.URL })
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	require.Empty(t, f.create(newUUID()).header.Get("Report-Stored"))
	want := f.get("/reports?level=error").body
	for _, steps := range [][][]string{
		{{}},
		{{"--schema-only"}, {"--data-only"}},
		{{"--schema-only"}, {"--data-only", "--inserts"}},
		{{"--data-only"}},
	} {
		to := devpgtest.Start(t, "")
		if len(steps[0]) > 0 && steps[0][0] == "--data-only" { // into tables that the service has created
			newFixture(t, 0, func(c *Config) { c.DatabaseURL = to.URL })
		}
		for _, options := range steps {
			dump, err := exec.Command(bin+"/pg_dump", append(options, from.URL)...).Output()
			require.NoError(t, err)
			restore := exec.Command(bin+"/psql", "-qv", "ON_ERROR_STOP=1", to.URL)
			restore.Stdin = strings.NewReader(string(dump))
			out, err := restore.CombinedOutput()
			require.NoError(t, err, "%v %s", options, out)
		}
		restored := newFixture(t, 0, func(c *Config) { c.DatabaseURL = to.URL })
		assert.Equal(t, want, restored.get("/reports?level=error").body, steps)
		assert.Empty(t, restored.create(newUUID()).header.Get("Report-Stored"))
	}
}

// A schema change waits half a second for a lock, and then lets the statements pass that queue behind it.
func TestSchemaLetsOthersPass(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	require.Equal(t, 200, f.get("/items").status)
	f.exec(`UPDATE schema_version SET digest = 'an earlier one'`)
	reader := f.connect()
	begin(t, reader, `SELECT FROM reports`)
	next := f.newApp()
	ctx, stop := newContext(t)
	defer stop()
	update := func() error {
		return next.store.writeSlowly(ctx, func(context.Context, *pgx.Conn) error { return nil })
	}
	updated := make(chan error, 1)
	go func() {
		err := update()
		for isKind(err, unavailable) {
			err = update()
		}
		updated <- err
	}()
	for range 3 {
		require.Eventually(t, func() bool {
			return f.rows(`SELECT count(*)::text FROM pg_locks l JOIN pg_class c ON c.oid = relation
				WHERE NOT granted AND relnamespace = current_schema::regnamespace`)[0] != "0"
		}, waitLimit, waitTick)
		assert.Empty(t, f.create(newUUID()).header.Get("Report-Stored"), "nobody waits for longer than a request may")
	}
	require.NoError(t, reader.Close(t.Context()))
	select {
	case err := <-updated:
		require.NoError(t, err)
	case <-time.After(waitLimit):
		require.Fail(t, "the schema is not applied")
	}
}

package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/datadog"
)

// writeEnv writes a .env file and returns its path.
func writeEnv(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), ".env")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestConfigDefaults(t *testing.T) {
	config, err := loadConfig(nil, filepath.Join(t.TempDir(), "missing"))
	require.NoError(t, err)
	assert.Equal(t, &Config{
		Addr: "127.0.0.1:8080", RollbarURL: "https://api.rollbar.com/api/1", RollbarTimeout: 10 * time.Second,
		QueueLimit: 100_000, LogLevel: slog.LevelInfo,
		telemetry: datadog.Settings{TraceEnabled: true, DefaultService: "app", DefaultVersion: buildVersion()},
	}, config)
}

// A flag beats the environment, which beats .env; an empty value counts as not set.
func TestConfigPrecedence(t *testing.T) {
	env := writeEnv(t, "ADDR=:1\nAPI_TOKEN=file\nROLLBAR_TIMEOUT=1s\nLOG_LEVEL=\nSANDBOX=true\n"+
		"ROLLBAR_TOKEN=old\nUNKNOWN=x\n")
	t.Setenv("ADDR", ":2")
	t.Setenv("API_TOKEN", "environment")
	t.Setenv("ROLLBAR_TIMEOUT", "")
	config, err := loadConfig([]string{"-addr=:3"}, env)
	require.NoError(t, err)
	assert.Equal(t, ":3", config.Addr)
	assert.Equal(t, []string{"environment"}, config.apiTokens)
	assert.Equal(t, time.Second, config.RollbarTimeout)
	assert.Equal(t, slog.LevelInfo, config.LogLevel)
	assert.True(t, config.Sandbox)
	assert.Equal(t, accessToken{"old", "ROLLBAR_TOKEN"}, config.tokens()[scopeRead])
}

// Tokens are separated by commas; white space around them is ignored.
func TestTokens(t *testing.T) {
	t.Setenv("API_TOKEN", " first-token,\tsecond ,, third\n")
	t.Setenv("ROLLBAR_READ_TOKEN", "read\n")
	config, err := loadConfig(nil, "")
	require.NoError(t, err)
	assert.Equal(t, []string{"first-token", "second", "third"}, config.apiTokens)
	assert.Equal(t, "read", config.readToken)
}

// READ_ONLY is found even if other settings are invalid, and a flag beats the environment.
func TestLookAhead(t *testing.T) {
	for _, tt := range []struct {
		env, args string
		want      bool
	}{
		{"", "items list", false},
		{"true", "items list", true},
		{"1", "", true},
		{"true", "-read-only=false items list", false},
		{"true", "items create -message x -read-only=false", false},
		{"", "-read-only", true},
		{"", "items -read-only=1 delete", true},
		{"false", "items delete --read-only=TRUE", true},
		{"", "-read-only=soon", false}, // refused later
	} {
		t.Setenv("READ_ONLY", tt.env)
		t.Setenv("LOG_LEVEL", "loud")
		readOnly, _ := lookAhead(strings.Fields(tt.args), "")
		assert.Equal(t, tt.want, readOnly, tt)
	}
}

// Only settings come from the environment, never an operation's parameters.
func TestEnvironmentSetsNoParameters(t *testing.T) {
	for _, name := range []string{"LEVEL", "ENVIRONMENT", "STATUS", "YES", "OUTPUT", "O", "LIMIT", "DEV"} {
		t.Setenv(name, "nonsense")
	}
	f := newFixture(t, 3)
	got := f.run("items", "list")
	assert.Equal(t, 0, got.exit, got.err)
	assert.Equal(t, 2, f.run("reports", "clean").exit, "-yes is still wanted")
}

// serve starts with these settings; TestMissingSettings has those that it refuses.
func TestServeSettings(t *testing.T) {
	t.Parallel()
	for _, flags := range []string{"-sandbox -addr=localhost:0", "-rollbar-post-client-token=x -addr=[::1]:0",
		"-sandbox -api-token=" + placeholderToken + " -addr=:0", "-rollbar-write-token=x -api-read-token=y -addr=:0"} {
		config, err := loadConfig(append(strings.Fields(flags), "-database-url=postgres:///x"), "")
		require.NoError(t, err)
		assert.NoError(t, config.checkServe(), flags)
	}
	config := &Config{relayTokens: []string{"own"}}
	config.useDev()
	assert.Equal(t, []string{"own"}, config.relayTokens)
	assert.Equal(t, []string{devToken}, config.webhookTokens)
}

func TestBadSettings(t *testing.T) {
	tests := []struct{ name, env, file, want string }{
		{"in the environment", "soon", "", "ROLLBAR_TIMEOUT must be a duration such as 10s or 1m30s"},
		{"in the file", "", "# x\n\nROLLBAR_TIMEOUT=s3cret\n",
			"line 3 of .env: ROLLBAR_TIMEOUT must be a duration such as 10s or 1m30s"},
		{"a token with a space", "", "ROLLBAR_READ_TOKEN=s3cret s3cret",
			"line 1 of .env: ROLLBAR_READ_TOKEN must be a token: printable ASCII characters without spaces"},
		{"a token with a control character", "", "API_TOKEN=\"one,s3\\tcret\"",
			"line 1 of .env: API_TOKEN must be a token: printable ASCII characters without spaces"},
		{"a list without a token", "", "API_TOKEN=' , '", "line 1 of .env: API_TOKEN must contain at least one token"},
		{"an SDK's endpoint", "", "ROLLBAR_URL=https://host/api/1/item/",
			"line 1 of .env: ROLLBAR_URL must be the base of Rollbar's API, such as https://api.rollbar.com/api/1, " +
				"without the path of a call"},
		{"line without a name", "", "A=b\ns3cret\n=s3cret\n", "line 2 of .env: must be NAME=value, a comment or blank"},
		{"variable", "", "A=b\nAPI_TOKEN=$s3cret\n",
			"line 2 of .env: a $ begins a variable for Docker Compose: write the value in single quotes"},
		{"quotes that were passed on", "'5s'", "", "ROLLBAR_TIMEOUT must not have quotes around it"},
		{"quotes in quotes", "", "DD_ENV='\"s3cret\"'", "line 1 of .env: DD_ENV must not have quotes around it"},
		{"no time", "0s", "", "ROLLBAR_TIMEOUT must be a duration such as 10s or 1m30s"},
		{"no age", "", "REPORTS_KEEP=0d", "line 1 of .env: REPORTS_KEEP must be an age such as 36h, 400d or 52w"},
		{"no count", "", "QUEUE_LIMIT=0", "line 1 of .env: QUEUE_LIMIT must be a whole number at least 1"},
		{"a count with a sign", "", "QUEUE_LIMIT=+5", "line 1 of .env: QUEUE_LIMIT must be a whole number at least 1"},
		{"no level", "", "LOG_LEVEL=loud", "line 1 of .env: LOG_LEVEL must be debug, info, warn or error"},
		{"no switch", "", "READ_ONLY=maybe", "line 1 of .env: READ_ONLY must be true or false"},
		{"no address", "", "ADDR=8080", "line 1 of .env: ADDR must be an address such as 127.0.0.1:8080 or :8080"},
		{"no URL", "", "APP_URL=host:80",
			"line 1 of .env: APP_URL must be a URL such as https://host/path, without ? and #"},
		{"a URL with a query", "", "APP_URL=http://host/?x",
			"line 1 of .env: APP_URL must be a URL such as https://host/path, without ? and #"},
		{"UTF-16", "", "\xFF\xFEA\x00", ".env: the file is in UTF-16: save it as UTF-8"},
		{"quote that is not closed", "", "A=b\nAPI_TOKEN=\"s3cret\n\n", "line 2 of .env: a quote is not closed"},
		{"something behind a quote", "", "API_TOKEN='s3cret' s3cret",
			"line 1 of .env: there is something after the closing quote"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("ROLLBAR_TIMEOUT", test.env)
			_, err := loadConfig(nil, writeEnv(t, test.file))
			assert.True(t, isKind(err, misconfigured))
			assert.EqualError(t, err, test.want)
		})
	}
}

// A value that pgx would misread is refused and not quoted. What pgx itself refuses is reported in its words.
func TestDatabaseURL(t *testing.T) {
	const usage = "must be a PostgreSQL URL such as postgres://user:password@host:5432/database, " +
		"with %40 for an @ in the password"
	const tls = "cannot be used: failed to configure TLS ("
	for value, want := range map[string]string{
		"jdbc:postgresql://h/db?user=app&password=hunter2":  usage,
		"postgresql+asyncpg://app:hunter2@h/db":             usage,
		"postgresql+asyncpg://app:hunter2@h/db?ssl=require": usage,
		"mysql://app:hunter2@h/db?sslmode=disable":          usage,
		"'postgres://app:hunter2@h/db?sslmode=disable'":     "must not have quotes around it",
		"Postgres://app:hunter2@h/db?sslmode=disable":       usage,
		"?password=hunter2":                                 usage,
		"hunter2":                                           usage,
		"x=hunter2":                                         usage,
		"host=h user=app pasword=hunter2":                   usage,
		"host=h password=hunter2 x y=z":                     usage,
		"postgres://app:hun@ter2@h/db":                      usage,
		"postgres://app:hun/ter2@h/db":                      usage,
		"postgres://app:12/hunter2@h/db":                    usage,
		"postgres://app:12?hunter2@h/db":                    usage,
		"postgres://app:12?a=hunter2@h/db":                  usage,
		"postgres://app:hunter2%zz@h/db":                    usage,
		"postgres://app:hunter2@h:port/db":                  "cannot be used: invalid port",
		"postgres://app:hunter2@h/db?sslmode=bad":           tls + "sslmode is invalid)",
		"postgres://app:hunter2@h/db?target_session_attrs=x": "cannot be used: unknown " +
			"target_session_attrs value: x",
		"postgres://app:hunter2@h/db?connect_timeout=x":                "cannot be used: invalid connect_timeout (",
		"postgres://app:hunter2@h/db?pool_max_conns=x":                 "cannot be used: cannot parse pool_max_conns (",
		"postgres://app:hunter2@h/db?sslmode=verify-ca&sslrootcert=/x": tls + "unable to read CA file: open /x:",
		"postgres://app:hunter2@h/db?service=x":                        "cannot be used: failed to read service (",
	} {
		for _, name := range []string{"DATABASE_URL", "DATABASE_READ_URL"} {
			t.Setenv("DATABASE_URL", "")
			t.Setenv(name, value)
			_, err := loadConfig(nil, "")
			require.True(t, isKind(err, misconfigured), value)
			assert.Contains(t, err.Error(), name+" "+want, value)
			got := runShell(t, "", "check")
			assert.Equal(t, shell{3, "", "app: " + err.Error() + "\n"}, got)
			flag := runShell(t, "", "check", "-"+strings.ToLower(strings.ReplaceAll(name, "_", "-")), value)
			assert.Equal(t, 2, flag.exit)
			assert.NotRegexp(t, "hun|ter2", got.err+flag.err, value)
			t.Setenv(name, "")
		}
	}
	for value, want := range map[string]string{
		" postgres://app:hun%40ter2@h/db\n":  "hun@ter2",
		"postgresql://h/db?password=hunter2": "hunter2",
		"host=h password=hun\\ ter2":         "hun ter2",
		"host=h password='hun@ter2' search_path=app pool_max_conns=3 statement_timeout=5s": "hun@ter2",
		"postgres://app:hunter2@h1:1,h2:2/db?target_session_attrs=any&search_path=app":     "hunter2",
		"postgres:///db?host=/tmp&user=app&password=hunter2":                               "hunter2",
	} {
		t.Setenv("DATABASE_URL", value)
		config, err := loadConfig(nil, "")
		require.NoError(t, err, value)
		pool, err := newPool(config.DatabaseURL, nil)
		require.NoError(t, err, value)
		assert.Equal(t, want, pool.Config().ConnConfig.Password)
		pool.Close()
	}
}

// Only a regular file is opened, since reading a pipe would block. Settings from elsewhere still apply.
func TestDotEnvIsRegularFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), ".env")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, path := range []string{pipe, t.TempDir(), os.DevNull} {
		config, err := loadConfig([]string{"-read-only"}, path)
		assert.True(t, isKind(err, misconfigured))
		assert.EqualError(t, err, ".env must be a regular file")
		assert.True(t, config.ReadOnly)
	}
}

// White space around a value, such as a line end from a secret store, is ignored.
func TestSpaceAroundSettings(t *testing.T) {
	t.Setenv("DATABASE_URL", " postgres://app@db/app\n")
	t.Setenv("DD_ENV", "\t\n")
	t.Setenv("SANDBOX", "true\r\n")
	config, err := loadConfig([]string{"-addr= :81 "}, writeEnv(t, "LOG_LEVEL=\"\ndebug\n\"\n"))
	require.NoError(t, err)
	assert.Equal(t, "postgres://app@db/app", config.DatabaseURL)
	assert.Equal(t, ":81", config.Addr)
	assert.Equal(t, slog.LevelDebug, config.LogLevel)
	assert.Empty(t, config.telemetry.Env)
	assert.True(t, config.Sandbox)
}

// A name that looks like a misspelt setting is reported once, without its value.
func TestMisspeltSettings(t *testing.T) {
	for _, name := range []string{"READONLY", "read_only", "PORT", "POSTGRES_PASSWORD", "DD_DOGSTATSD_HOST", "HOST"} {
		t.Setenv(name, "s3cret")
	}
	var stderr bytes.Buffer
	env := writeEnv(t, "ROLLBAR_RAED_TOKEN=s3cret\nAPI_TOKENS=\nDD_API_KEY=s3cret\nLOG_LEVEL=info\n"+
		"rollbar-read-token=s3cret\n")
	exit := run(t.Context(), []string{"which"}, console{nil, io.Discard, &stderr, env})
	assert.Equal(t, 0, exit)
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	assert.ElementsMatch(t, []string{
		"app: READONLY is not a setting, did you mean READ_ONLY?",
		"app: read_only is not a setting, did you mean READ_ONLY?",
		"app: ROLLBAR_RAED_TOKEN is not a setting, did you mean ROLLBAR_READ_TOKEN?",
		"app: rollbar-read-token is not a setting, did you mean ROLLBAR_READ_TOKEN?",
	}, lines)

	config, err := loadConfig(nil, writeEnv(t, "sandbox=true\nlog-level=loud\n"))
	require.NoError(t, err)
	assert.False(t, config.Sandbox, "the name of a flag sets nothing in a file")

	config, err = loadConfig(nil, ".env.example")
	require.NoError(t, err)
	assert.Len(t, config.misspelt, 2, "the environment's alone")
}

// A bad flag exits with 2, a bad setting elsewhere with 3, both at once with 2.
func TestBadFlagAndBadSetting(t *testing.T) {
	t.Setenv("ROLLBAR_TIMEOUT", "soon")
	assert.Equal(t, 3, runShell(t, "", "items", "list").exit)
	assert.Equal(t, 2, runShell(t, "", "items", "list", "-limit", "0").exit)
	assert.Equal(t, 2, runShell(t, "", "items", "list", "-addr", "x").exit)
	assert.Equal(t, 2, runShell(t, "", "items", "list", "-all", "-as-curl").exit)
	assert.Equal(t, 0, runShell(t, "", "items", "list", "-h").exit)
}

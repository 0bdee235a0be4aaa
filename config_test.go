package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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
		Addr: "127.0.0.1:8080", RollbarURL: "https://api.rollbar.com/api/1", RollbarTimeout: 10 * time.Second, LogLevel: slog.LevelInfo,
		telemetry: datadog.Settings{TraceEnabled: true, DefaultService: "app", DefaultVersion: buildVersion()},
	}, config)
}

// A flag beats the environment, which beats .env; an empty value counts as not set.
func TestConfigPrecedence(t *testing.T) {
	env := writeEnv(t, "ADDR=:1\nAPI_TOKEN=file\nROLLBAR_TIMEOUT=1s\nLOG_LEVEL=\nSANDBOX=true\nROLLBAR_TOKEN=old\nUNKNOWN=x\n")
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

// Tokens are separated by commas; white space around them is none of theirs.
func TestTokens(t *testing.T) {
	t.Setenv("API_TOKEN", " first-token,\tsecond ,, third\n")
	t.Setenv("ROLLBAR_READ_TOKEN", "read\n")
	config, err := loadConfig(nil, "")
	require.NoError(t, err)
	assert.Equal(t, []string{"first-token", "second", "third"}, config.apiTokens)
	assert.Equal(t, "read", config.readToken)
}

// READ_ONLY is found out whatever else is wrong, and a flag beats the environment.
func TestIsReadOnly(t *testing.T) {
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
		{"", "-read-only=soon", false}, // is refused anyhow
	} {
		t.Setenv("READ_ONLY", tt.env)
		t.Setenv("LOG_LEVEL", "loud")
		assert.Equal(t, tt.want, isReadOnly(strings.Fields(tt.args), ""), tt)
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

func TestBadSettings(t *testing.T) {
	tests := []struct{ name, env, file, want string }{
		{"in the environment", "soon", "", "ROLLBAR_TIMEOUT must be a duration such as 10s or 1m30s"},
		{"in the file", "", "# x\n\nROLLBAR_TIMEOUT=s3cret\n", "line 3 of .env: ROLLBAR_TIMEOUT must be a duration such as 10s or 1m30s"},
		{"a token with a space", "", "ROLLBAR_READ_TOKEN=s3cret s3cret", "line 1 of .env: ROLLBAR_READ_TOKEN must be a token: letters, digits and signs, without spaces"},
		{"a token with a control character", "", "API_TOKEN=\"one,s3\\tcret\"", "line 1 of .env: API_TOKEN must be a token: letters, digits and signs, without spaces"},
		{"a list without a token", "", "API_TOKEN=' , '", "line 1 of .env: API_TOKEN must hold a token"},
		{"line without a name", "", "A=b\ns3cret\n=s3cret\n", "line 3 of .env: there is no name with = behind it"},
		{"quote that is not closed", "", "A=b\nAPI_TOKEN=\"s3cret\n\n", "line 2 of .env: a quote is not closed"},
		{"something behind a quote", "", "API_TOKEN='s3cret' s3cret", "line 1 of .env: there is something behind the closing quote"},
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

// A bad flag exits with 2, a bad setting elsewhere with 3, both at once with 2.
func TestBadFlagAndBadSetting(t *testing.T) {
	t.Setenv("ROLLBAR_TIMEOUT", "soon")
	assert.Equal(t, 3, runShell(t, "", "items", "list").exit)
	assert.Equal(t, 2, runShell(t, "", "items", "list", "-limit", "0").exit)
	assert.Equal(t, 2, runShell(t, "", "items", "list", "-addr", "x").exit)
	assert.Equal(t, 0, runShell(t, "", "items", "list", "-h").exit)
}

// What Docker Compose reads in a file is what this program reads.
func TestReadDotEnv(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"plain", "A=b\nC=d", "A=b C=d"},
		{"empty value", "A=\nB=''\nC=\"\"", "A= B= C="},
		{"name alone", "A\nB=c", "A= B=c"},
		{"blank lines, comments, white space", "\n # x\n\t\n  A = b \n", "A=b"},
		{"windows line ends and a byte order mark", "\uFEFFA=b\r\nC='d'\r\n", "A=b C=d"},
		{"export", "export A=b\nexport\tC=d", "A=b C=d"},
		{"colon", "A: b", "A=b"},
		{"comment behind a value", "A=b # c\nB=b#c\nC='d' # e\nD=\"e#f\"#g\nE= # f", "A=b B=b#c C=d D=e#f E=# f"},
		{"quotes inside a value", `A=it's "fine"`, `A=it's "fine"`},
		{"single quotes are literal", `A='$X \n ${Y}'`, `A=$X \n ${Y}`},
		{"double quotes have escapes", `A="a\tb\"c\\d"`, "A=a\tb\"c\\d"},
		{"several lines", "A='b\nc'\nD=\"e\nf\"\nG=h", "A=b\nc D=e\nf G=h"},
		{"equals sign in a value", "A=postgres://u@h/d?x=y", "A=postgres://u@h/d?x=y"},
		{"variables", "A=${SET}-$SET\nB=\"${SET}\"\nC=${UNSET}", "A=s-s B=s C="},
		{"earlier lines", "A=x\nB=${A}y\nSET=z\nC=$SET", "A=x B=xy SET=z C=s"},
		{"defaults", "A=${UNSET:-d}\nB=${UNSET-d}\nC=${EMPTY:-d}\nD=${EMPTY-d}\nE=${SET:-d}", "A=d B=d C=d D= E=s"},
		{"defaults in defaults", "A=${UNSET:-${EMPTY:-${SET}}}!", "A=s!"},
		{"alternatives", "A=${SET:+x}\nB=${UNSET:+x}\nC=${EMPTY+x}\nD=${EMPTY:+x}", "A=x B= C=x D="},
		{"dollar signs", `A=$$SET` + "\n" + `B=5$` + "\n" + `C="\$SET"`, "A=$SET B=5$ C=$SET"},
	}
	environment := map[string]string{"SET": "s", "EMPTY": ""}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pairs, err := readDotEnv(strings.NewReader(test.text), func(name string) (string, bool) {
				value, ok := environment[name]
				return value, ok
			})
			require.NoError(t, err)
			var got []string
			for _, pair := range pairs {
				got = append(got, pair.name+"="+pair.value)
			}
			assert.Equal(t, test.want, strings.Join(got, " "))
		})
	}
}

func TestParseDotEnvTakesTheLastLine(t *testing.T) {
	t.Parallel()
	var got []string
	err := parseDotEnv(strings.NewReader("A=1\nB=2\nA=3\nB=\n"), func(name, value string) error {
		got = append(got, name+"="+value)
		return nil
	})
	require.NoError(t, err)
	assert.Equal(t, []string{"A=3"}, got)
}

func TestParseDotEnvBoundsTheFile(t *testing.T) {
	t.Parallel()
	err := parseDotEnv(strings.NewReader(strings.Repeat("#\n", maxDotEnv)), nil)
	assert.EqualError(t, err, "line 1: the file is larger than 1048576 bytes")
}

func TestDotEnvErrorsQuoteNothing(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"hunter2 hunter2", "hunter2='hunter2", "A=${hunter2:?hunter2}", "=hunter2", "A='b'hunter2", "1hunter2=x", "A=${B:-hunter2"} {
		_, err := readDotEnv(strings.NewReader("OK=1\n"+text), func(string) (string, bool) { return "", false })
		var line *dotenvError
		require.True(t, errors.As(err, &line), text)
		assert.Equal(t, 2, line.Line)
		assert.NotContains(t, err.Error(), "hunter2")
	}
}

func FuzzDotEnv(f *testing.F) {
	for _, seed := range []string{"A=b", "A='b'", `A="b\n"`, "A=${B:-c}", "export A=b # c", "A='", "\uFEFF=", "A=$"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pairs, err := readDotEnv(strings.NewReader(text), func(string) (string, bool) { return "", false })
		for _, pair := range pairs {
			require.NotEmpty(t, pair.name)
			require.Positive(t, pair.line)
		}
		if err == nil { // a value in single quotes is read as it was
			quoted := fmt.Sprintf("A='%s'", strings.NewReplacer("'", "", "\r\n", "\n", "\uFEFF", "").Replace(text))
			pairs, err := readDotEnv(strings.NewReader(quoted), nil)
			require.NoError(t, err)
			require.Equal(t, quoted, "A='"+pairs[0].value+"'")
		}
	})
}

// config.go holds the settings. Each is one thing with three spellings: the flag -database-url,
// the environment variable DATABASE_URL and a line of .env; flag beats environment beats .env, and
// an empty value counts as not set. Nothing else reads the environment.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/peterbourgon/ff/v3"

	"app/internal/datadog"
	"app/internal/dotenv"
	"app/internal/sandbox"
)

// Config is the settings in force.
type Config struct {
	Addr            string
	DatabaseURL     string
	DatabaseReadURL string
	RollbarURL      string
	RollbarTimeout  time.Duration
	ReadOnly        bool
	AppURL          string
	LogLevel        slog.Level
	Sandbox         bool

	token, readToken, writeToken, postToken string

	apiTokens []string // what callers may send; none means that anyone on this machine may call

	telemetry datadog.Settings
}

// placeholderToken is the API_TOKEN of .env.example. Everybody knows it, so it is valid for the
// sandbox only.
const placeholderToken = "change-me"

// A setting is one line of the table of settings.
type setting struct {
	name    string // of the flag: "database-url"
	help    string
	preset  string // the default, as it is shown
	boolean bool
	set     func(value string) error // errors go on after the name: "must be …"
}

// env is the setting's name in the environment and in .env.
func (s setting) env() string { return strings.ToUpper(strings.ReplaceAll(s.name, "-", "_")) }

// settings are all there are. Setting one changes the Config.
func (c *Config) settings() []setting {
	return []setting{
		{"addr", "where serve listens", "127.0.0.1:8080", false, checkedText(&c.Addr, isAddress)},
		{"database-url", "PostgreSQL, which keeps the reports", "", false, checkedText(&c.DatabaseURL, isDatabase)},
		{"database-read-url", "where reports are read: a standby; default DATABASE_URL", "", false, checkedText(&c.DatabaseReadURL, isDatabase)},
		{"rollbar-url", "Rollbar's API", "https://api.rollbar.com/api/1", false, checkedText(&c.RollbarURL, isURL)},
		{"rollbar-token", "a Rollbar token with all scopes, for projects that still have one", "", false, secret(&c.token)},
		{"rollbar-read-token", "the token with the scope read; default ROLLBAR_TOKEN", "", false, secret(&c.readToken)},
		{"rollbar-write-token", "the token with the scope write; default ROLLBAR_TOKEN", "", false, secret(&c.writeToken)},
		{"rollbar-post-token", "the token with the scope post_server_item; default ROLLBAR_TOKEN", "", false, secret(&c.postToken)},
		{"rollbar-timeout", "how long one call of Rollbar may take", "10s", false, duration(&c.RollbarTimeout)},
		{"api-token", "what callers of serve must send; several are separated by commas", "", false, secrets(&c.apiTokens)},
		{"read-only", "leave out the operations that change Rollbar or delete reports", "false", true, boolean(&c.ReadOnly)},
		{"app-url", "the server that the command line asks, instead of doing the work itself", "", false, checkedText(&c.AppURL, isURL)},
		{"log-level", "debug, info, warn or error", "info", false, level(&c.LogLevel)},
		{"sandbox", "talk to a built-in Rollbar look-alike", "false", true, boolean(&c.Sandbox)},
		{"dd-agent-host", "the host of a Datadog agent, for traces and metrics", "", false, text(&c.telemetry.AgentHost)},
		{"dd-trace-agent-url", "where the agent takes traces, http://host:port or unix:///path", "", false, text(&c.telemetry.TraceAgentURL)},
		{"dd-trace-agent-port", "the agent's port for traces, 8126 if none is given", "", false, text(&c.telemetry.TraceAgentPort)},
		{"dd-dogstatsd-url", "where the agent takes metrics, udp://host:port or unix:///path", "", false, text(&c.telemetry.DogStatsDURL)},
		{"dd-dogstatsd-port", "the agent's port for metrics, 8125 if none is given", "", false, text(&c.telemetry.DogStatsDPort)},
		{"dd-service", "the service's name at Datadog, app if none is given", "", false, text(&c.telemetry.Service)},
		{"dd-env", "the environment at Datadog", "", false, text(&c.telemetry.Env)},
		{"dd-version", "the version at Datadog; by default the program's", "", false, text(&c.telemetry.Version)},
		{"dd-tags", "further tags of metrics and spans, such as team:core,tier:backend", "", false, text(&c.telemetry.Tags)},
		{"dd-trace-enabled", "false switches traces off", "true", true, boolean(&c.telemetry.TraceEnabled)},
	}
}

func text(target *string) func(string) error {
	return func(value string) error { *target = value; return nil }
}

func checkedText(target *string, check func(string) error) func(string) error {
	return func(value string) error {
		*target = value
		return check(value)
	}
}

// secret is the setting of a token, which goes into a header.
func secret(target *string) func(string) error {
	return func(value string) error {
		*target = strings.TrimSpace(value)
		return isToken(*target)
	}
}

// secrets is the setting of tokens that are separated by commas.
func secrets(target *[]string) func(string) error {
	return func(value string) error {
		*target = nil
		for one := range strings.SplitSeq(value, ",") {
			if one = strings.TrimSpace(one); one == "" {
				continue
			}
			if err := isToken(one); err != nil {
				return err
			}
			*target = append(*target, one)
		}
		if len(*target) == 0 {
			return errors.New("must hold a token")
		}
		return nil
	}
}

func isToken(value string) error {
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("must be a token: letters, digits and signs, without spaces")
	}
	return nil
}

func duration(target *time.Duration) func(string) error {
	return func(value string) (err error) {
		if *target, err = time.ParseDuration(value); err != nil || *target <= 0 {
			return errors.New("must be a duration such as 10s or 1m30s")
		}
		return nil
	}
}

func boolean(target *bool) func(string) error {
	return func(value string) (err error) {
		if *target, err = strconv.ParseBool(value); err != nil {
			return errors.New("must be true or false")
		}
		return nil
	}
}

func level(target *slog.Level) func(string) error {
	return func(value string) error {
		if target.UnmarshalText([]byte(value)) != nil {
			return errors.New("must be debug, info, warn or error")
		}
		return nil
	}
}

func isAddress(value string) error {
	if _, _, err := net.SplitHostPort(value); err != nil {
		return errors.New("must be an address such as 127.0.0.1:8080 or :8080")
	}
	return nil
}

func isDatabase(value string) error {
	if _, err := pgxpool.ParseConfig(value); err != nil { // its text can hold the password
		return errors.New("must be a PostgreSQL URL such as postgres://user:password@host:5432/database")
	}
	return nil
}

func isURL(value string) error {
	u, err := url.Parse(value)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("must be a URL such as https://host/path")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("must be a URL such as https://host/path, without ? and #")
	}
	return nil
}

// A settingFlag is a setting as a flag. An empty value counts as not given.
type settingFlag struct {
	setting
	take func(value string) error
}

func (f *settingFlag) String() string   { return "" }
func (f *settingFlag) IsBoolFlag() bool { return f.boolean }

func (f *settingFlag) Set(value string) error {
	if value == "" {
		return nil
	}
	return f.take(value)
}

// A settingError is a bad setting. It quotes nothing of the value, which may be a secret.
type settingError struct {
	setting string
	err     error
}

func (e *settingError) Error() string { return e.setting + " " + e.err.Error() }

// loadConfig gathers the settings from the flags that were given (-name=value), the environment and the .env
// file, which may be missing.
func loadConfig(args []string, envFile string) (*Config, error) {
	config, err := loadSettings(args, envFile, "")
	if err != nil {
		return nil, err
	}
	return config, nil
}

// loadSettings is loadConfig for one setting only, or for all. With an error, too, it returns what it
// has gathered.
func loadSettings(args []string, envFile, only string) (*Config, error) {
	config := &Config{telemetry: datadog.Settings{DefaultService: "app", DefaultVersion: buildVersion()}}
	fs := flag.NewFlagSet("settings", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for _, s := range config.settings() {
		if only != "" && s.name != only {
			continue
		}
		if s.preset != "" {
			if err := s.set(s.preset); err != nil {
				return config, fmt.Errorf("the default of %s: %w", s.name, err)
			}
		}
		fs.Var(&settingFlag{s, func(value string) error {
			if err := s.set(value); err != nil {
				return &settingError{s.env(), err}
			}
			return nil
		}}, s.name, s.help)
	}
	irregular := false
	if info, err := os.Stat(envFile); err == nil && !info.Mode().IsRegular() { // reading a pipe could block
		envFile, irregular = "", true
	}
	err := ff.Parse(fs, args,
		ff.WithEnvVars(),
		ff.WithConfigFile(envFile),
		ff.WithConfigFileParser(dotenv.Parse),
		ff.WithAllowMissingConfigFile(true),
		ff.WithIgnoreUndefined(true),
	)
	var bad *settingError
	var line *dotenv.Error
	var file *os.PathError
	switch {
	case errors.As(err, &line) && errors.As(err, &bad):
		return config, fail(misconfigured, "line %d of .env: %w", line.Line, bad)
	case errors.As(err, &line):
		return config, fail(misconfigured, "line %d of .env: %w", line.Line, line.Err)
	case errors.As(err, &bad):
		return config, fail(misconfigured, "%w", bad)
	case irregular:
		return config, fail(misconfigured, ".env must be a regular file")
	case errors.As(err, &file):
		return config, fail(misconfigured, ".env cannot be read: %w", file.Err)
	case err != nil:
		return config, fail(misconfigured, ".env: %w", err)
	}
	return config, nil
}

// startTelemetry starts what the settings ask for: nil if that is nothing.
func (c *Config) startTelemetry() (*datadog.Client, error) {
	t, err := datadog.Start(c.telemetry)
	if err != nil {
		return nil, fail(misconfigured, "%w", err)
	}
	return t, nil
}

// tokens are Rollbar's tokens by what they allow.
func (c *Config) tokens() map[scope]accessToken {
	either := func(value, setting string) accessToken {
		if value == "" && c.token != "" {
			return accessToken{c.token, "ROLLBAR_TOKEN"}
		}
		return accessToken{value, setting}
	}
	return map[scope]accessToken{
		scopeRead:  either(c.readToken, "ROLLBAR_READ_TOKEN"),
		scopeWrite: either(c.writeToken, "ROLLBAR_WRITE_TOKEN"),
		scopePost:  either(c.postToken, "ROLLBAR_POST_TOKEN"),
	}
}

// useSandbox points the settings at a sandbox that listens at the URL.
func (c *Config) useSandbox(base string) {
	c.RollbarURL = base
	c.token = ""
	c.readToken, c.writeToken, c.postToken = sandbox.ReadToken, sandbox.WriteToken, sandbox.PostToken
}

// forServe reports the first setting that serve cannot do without or that would be unsafe.
func (c *Config) forServe() error {
	host, _, _ := net.SplitHostPort(c.Addr)
	hasToken := cmp.Or(c.token, c.readToken, c.writeToken, c.postToken) != ""
	switch {
	case c.DatabaseURL == "":
		return missingSetting(misconfigured, "DATABASE_URL", "serve keeps its reports in PostgreSQL, postgres://user:password@host:5432/database; or try `app serve -dev`, which brings its own")
	case !hasToken && !c.Sandbox:
		return missingSetting(misconfigured, "ROLLBAR_TOKEN", "serve wants one Rollbar token at least: ROLLBAR_READ_TOKEN, ROLLBAR_WRITE_TOKEN, ROLLBAR_POST_TOKEN or ROLLBAR_TOKEN; or SANDBOX=true for a look-alike")
	case len(c.apiTokens) == 0 && !isLoopback(host):
		return missingSetting(misconfigured, "API_TOKEN", fmt.Sprintf("without it serve listens on a loopback address only, and ADDR is %s", c.Addr))
	case slices.Contains(c.apiTokens, placeholderToken) && !c.Sandbox:
		return fail(misconfigured, "API_TOKEN is still the placeholder of .env.example, which everybody knows: set one of your own, such as the output of `openssl rand -hex 32`")
	}
	return nil
}

// isLoopback reports whether a host name or address is this machine's own. An empty one is not: it
// stands for all addresses.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

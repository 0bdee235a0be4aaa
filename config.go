package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/peterbourgon/ff/v3"

	"app/internal/datadog"
	"app/internal/dotenv"
	"app/internal/sandbox"
	"app/internal/secrets"
	"app/internal/spelling"
)

// Config holds the settings. Each can be given as a flag (-database-url), as an environment variable (DATABASE_URL)
// or as a line of .env, in this order of precedence. An empty value counts as not set.
type Config struct {
	Addr, AppURL, RollbarURL     string
	DatabaseURL, DatabaseReadURL string
	ReadOnly, Sandbox            bool
	QueueLimit                   int
	LogLevel                     slog.Level
	RollbarTimeout               time.Duration
	ReportsKeep, OccurrencesKeep time.Duration // 0: forever

	token, readToken, writeToken, postToken, postClientToken string

	apiTokens     []string // callers must send one of them; if there are none, anyone on this machine may call
	apiReadTokens []string // for callers who may change nothing
	relayTokens   []string // for Rollbar's SDKs; if there are none, there is no relay
	webhookTokens []string // for the URL of Rollbar's webhooks; if there are none, webhooks are not accepted

	telemetry datadog.Settings

	misspelt []string // remarks on names in the environment and in .env that look like misspelt settings
}

// placeholderToken is the API_TOKEN in .env.example. Everybody knows it, so only the sandbox accepts it.
const placeholderToken = "change-me"

// A setting is one line of the table of settings.
type setting struct {
	name   string // of the flag: "database-url"
	help   string
	preset string                   // the default as text, or ""
	set    func(value string) error // its errors follow the name: "must be …"
}

// parse sets the setting to the given value, unless it is blank. Quotes around a value are never intended, but
// parsers without shell syntax, such as docker's --env-file, pass them on.
func (s setting) parse(value string) error {
	switch value = strings.TrimSpace(value); {
	case value == "":
		return nil
	case len(value) > 1 && value[0] == value[len(value)-1] && (value[0] == '"' || value[0] == '\''):
		return errors.New("must not have quotes around it")
	}
	return s.set(value)
}

func (s setting) isSwitch() bool { return s.preset == "true" || s.preset == "false" }

// env is the setting's name in the environment and in .env.
func (s setting) env() string { return strings.ToUpper(strings.ReplaceAll(s.name, "-", "_")) }

// settings returns all settings. Each one sets its field of the Config.
func (c *Config) settings() []setting {
	return []setting{
		{"addr", "address on which serve listens", "127.0.0.1:8080", parsed(&c.Addr, parseAddress)},
		{"database-url", "PostgreSQL database in which reports are stored", "", parsed(&c.DatabaseURL, parseDatabase)},
		{"database-read-url", "PostgreSQL standby from which reports are read (default DATABASE_URL)", "", parsed(&c.DatabaseReadURL, parseDatabase)},
		{"rollbar-url", "base URL of Rollbar's API", "https://api.rollbar.com/api/1", parsed(&c.RollbarURL, parseRollbarURL)},
		{"rollbar-token", "Rollbar access token with all scopes, for projects that still have one", "", parsed(&c.token, parseToken)},
		{"rollbar-read-token", "Rollbar access token with the scope read (default ROLLBAR_TOKEN)", "", parsed(&c.readToken, parseToken)},
		{"rollbar-write-token", "Rollbar access token with the scope write (default ROLLBAR_TOKEN)", "", parsed(&c.writeToken, parseToken)},
		{"rollbar-post-token", "Rollbar access token with the scope post_server_item (default ROLLBAR_TOKEN)", "", parsed(&c.postToken, parseToken)},
		{"rollbar-post-client-token", "Rollbar access token with the scope post_client_item, for occurrences of browsers and apps (default ROLLBAR_TOKEN)", "", parsed(&c.postClientToken, parseToken)},
		{"rollbar-timeout", "time limit for one call to Rollbar", "10s", parsed(&c.RollbarTimeout, parseTimeout)},
		{"api-token", "token that callers of the service must send; several are separated by commas", "", parsed(&c.apiTokens, parseTokens)},
		{"api-read-token", "token of callers who may use only what read-only leaves enabled; several are separated by commas", "", parsed(&c.apiReadTokens, parseTokens)},
		{"relay-token", "token that Rollbar's SDKs send to /api/1/item/, which delivers what they report; several are separated by commas", "", parsed(&c.relayTokens, parseTokens)},
		{"webhook-token", "token in the URL of Rollbar's webhooks, /webhooks/rollbar?token=…; several are separated by commas", "", parsed(&c.webhookTokens, parseTokens)},
		{"queue-limit", "how many occurrences may wait for delivery", "100000", parsed(&c.QueueLimit, parseCount)},
		{"read-only", "disable the operations that change Rollbar or delete reports or occurrences", "false", parsed(&c.ReadOnly, parseBool)},
		{"reports-keep", "delete reports that were last seen longer ago than this, such as 400d (serve; default: never)", "", parsed(&c.ReportsKeep, parseAge)},
		{"occurrences-keep", "delete archived occurrences that are older than this, such as 400d (serve; default: never)", "", parsed(&c.OccurrencesKeep, parseAge)},
		{"app-url", "URL of a server that runs the command line's operations instead of this program", "", parsed(&c.AppURL, parseURL)},
		{"log-level", "lowest level to log: debug, info, warn or error", "info", parsed(&c.LogLevel, parseLevel)},
		{"sandbox", "use a built-in fake Rollbar", "false", parsed(&c.Sandbox, parseBool)},
		{"dd-agent-host", "host of the Datadog Agent, to send traces and metrics", "", parsed(&c.telemetry.AgentHost, parseText)},
		{"dd-trace-agent-url", "URL of the Agent for traces, http://host:port or unix:///path", "", parsed(&c.telemetry.TraceAgentURL, parseText)},
		{"dd-trace-agent-port", "port of the Agent for traces (default 8126)", "", parsed(&c.telemetry.TraceAgentPort, parseText)},
		{"dd-dogstatsd-url", "URL of the Agent for metrics, udp://host:port or unix:///path", "", parsed(&c.telemetry.DogStatsDURL, parseText)},
		{"dd-dogstatsd-port", "port of the Agent for metrics (default 8125)", "", parsed(&c.telemetry.DogStatsDPort, parseText)},
		{"dd-service", "name of the service in Datadog (default app)", "", parsed(&c.telemetry.Service, parseText)},
		{"dd-env", "name of the environment in Datadog", "", parsed(&c.telemetry.Env, parseText)},
		{"dd-version", "version in Datadog (default the program's version)", "", parsed(&c.telemetry.Version, parseText)},
		{"dd-tags", "more tags for traces and metrics, such as team:core,tier:backend", "", parsed(&c.telemetry.Tags, parseText)},
		{"dd-trace-enabled", "send traces", "true", parsed(&c.telemetry.TraceEnabled, parseBool)},
	}
}

// parsed returns a function that sets the target to the parsed value.
func parsed[T any](target *T, parse func(string) (T, error)) func(string) error {
	return func(value string) (err error) {
		*target, err = parse(value)
		return err
	}
}

func parseText(value string) (string, error) { return value, nil }

func parseAddress(value string) (string, error) {
	host, port, err := net.SplitHostPort(value)
	number, unknown := net.LookupPort("tcp", port)
	if err != nil || unknown != nil {
		return value, errors.New("must be an address such as 127.0.0.1:8080 or :8080")
	}
	return net.JoinHostPort(host, strconv.Itoa(number)), nil
}

// databaseValue matches a URL whose only @ follows the password, or known keywords, each with a value. pgx would
// mistake part of a password for the host, other text for keywords, and a keyword for the missing value before it.
var databaseValue = regexp.MustCompile(`^postgres(ql)?://([^@/?]*@)?[^@]*$|^((host|port|dbname|database|user|password|passfile|service` +
	`|servicefile|ssl\w+|target_session_attrs|channel_binding|require_auth|krb\w+|\w+_protocol_version|\w+_timeout|application_name` +
	`|client_encoding|options|search_path|timezone|pool_\w+|default_query_exec_mode|\w+_cache_capacity)\s*=(\s*'(\\.|[^\\'])*'|(\\.|[^\\\s'])+|\s+(\\.|[^\\\s'=])+)\s*)*$`)

// parseDatabase returns the value, or an error that quotes no part of a password.
func parseDatabase(value string) (string, error) {
	_, err := pgxpool.ParseConfig(value)
	words := ""
	if refused := (*pgconn.ParseConfigError)(nil); errors.As(err, &refused) {
		refused.ConnString = ""
		words = strings.TrimPrefix(err.Error(), "cannot parse ``: ")
	}
	switch {
	case !databaseValue.MatchString(value) || strings.HasPrefix(words, "failed to parse"):
		return "", errors.New("must be a PostgreSQL URL such as postgres://user:password@host:5432/database, with %40 for an @ in the password, or keywords with values, such as host=localhost dbname=database")
	case err != nil:
		return "", errors.New("cannot be used: " + words)
	}
	return value, nil
}

func parseURL(value string) (string, error) {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsAny(value, "?#") {
		return value, errors.New("must be a URL such as https://host/path, without ? and #")
	}
	return value, nil
}

// parseRollbarURL refuses the URL of an endpoint, as SDKs are given it, since the setting is the API's base URL.
func parseRollbarURL(value string) (string, error) {
	if base := strings.TrimRight(value, "/"); strings.HasSuffix(base, "/item") || strings.HasSuffix(base, "/items") {
		return value, errors.New("must be the base of Rollbar's API, such as https://api.rollbar.com/api/1, without the path of a call")
	}
	return parseURL(value)
}

// parseToken parses a token, which becomes part of a header.
func parseToken(value string) (string, error) {
	value = strings.TrimSpace(value)
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("must be a token: printable ASCII characters without spaces")
	}
	return value, nil
}

func parseTokens(value string) (tokens []string, err error) {
	tokens = slices.DeleteFunc(strings.Split(value, ","), func(part string) bool { return strings.TrimSpace(part) == "" })
	for i, part := range tokens {
		if tokens[i], err = parseToken(part); err != nil {
			return nil, err
		}
	}
	if len(tokens) == 0 {
		return nil, errors.New("must contain at least one token")
	}
	return tokens, nil
}

var (
	parseTimeout = checked(time.ParseDuration, func(d time.Duration) bool { return d > 0 }, "must be a duration such as 10s or 1m30s")
	parseAge     = checked(age, func(d time.Duration) bool { return d > 0 }, "must be an age such as 36h, 400d or 52w")
	parseBool    = checked(strconv.ParseBool, func(bool) bool { return true }, "must be true or false")
	parseLevel   = checked(func(text string) (level slog.Level, err error) {
		err = level.UnmarshalText([]byte(text))
		return level, err
	}, func(slog.Level) bool { return true }, "must be debug, info, warn or error")
	parseCount = checked(func(text string) (int, error) {
		n, err := literal{text: text}.int() // by the same rules as parameters
		return int(n), err
	}, func(n int) bool { return n > 0 }, "must be a whole number at least 1")
)

// checked returns a function that parses a value and refuses an invalid one with the message.
func checked[T any](parse func(string) (T, error), isValid func(T) bool, message string) func(string) (T, error) {
	return func(value string) (T, error) {
		v, err := parse(value)
		if err != nil || !isValid(v) {
			return v, errors.New(message)
		}
		return v, nil
	}
}

// loadConfig reads the settings, or only those that are named, from flags (-name=value), the environment and
// the .env file, which may be missing. With an error, the Config holds what was read until then.
func loadConfig(flags []string, envFile string, only ...string) (*Config, error) {
	config := &Config{telemetry: datadog.Settings{DefaultService: "app", DefaultVersion: buildVersion()}}
	fs := flag.NewFlagSet("settings", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for _, s := range config.settings() {
		if len(only) > 0 && !slices.Contains(only, s.name) {
			continue
		}
		_ = s.set(s.preset) // defaults are valid
		if strings.TrimSpace(os.Getenv(s.env())) == "" {
			os.Unsetenv(s.env()) // otherwise a blank value would hide the file's
		}
		define := fs.Func
		if s.isSwitch() {
			define = fs.BoolFunc
		}
		define(s.name, s.help, func(value string) error {
			if err := s.parse(value); err != nil {
				return fail(misconfigured, "%s %w", s.env(), err)
			}
			return nil
		})
	}
	names := os.Environ() // misspelt cuts them at the equals sign
	parse := func(r io.Reader, set func(name, value string) error) error {
		return dotenv.Parse(r, func(name, value string) error {
			if names = append(names, name); name != strings.ToUpper(name) { // it may be the name of a flag, which ff would accept
				return nil
			}
			return set(name, value)
		})
	}
	info, statErr := os.Stat(envFile)
	irregular := statErr == nil && !info.Mode().IsRegular() // reading a pipe could block
	if irregular {
		envFile = ""
	}
	err := ff.Parse(fs, flags, ff.WithEnvVars(), ff.WithConfigFile(envFile), ff.WithConfigFileParser(parse),
		ff.WithAllowMissingConfigFile(true), ff.WithIgnoreUndefined(true))
	var bad *Failure // wrapped in the parser's error, which quotes the value
	var line *dotenv.Error
	var file *os.PathError
	switch {
	case errors.As(err, &line) && errors.As(err, &bad):
		return config, fail(misconfigured, "line %d of .env: %w", line.Line, bad)
	case errors.As(err, &line):
		return config, fail(misconfigured, "line %d of .env: %w", line.Line, line.Err)
	case errors.As(err, &bad):
		return config, bad
	case irregular:
		return config, fail(misconfigured, ".env must be a regular file")
	case errors.As(err, &file):
		return config, fail(misconfigured, "cannot read .env: %w", file.Err)
	case err != nil:
		return config, fail(misconfigured, ".env: %w", err)
	}
	if len(only) == 0 {
		config.misspelt = misspelt(names)
	}
	return config, nil
}

// misspelt returns remarks on names that look like misspelt settings. A name may come with a value, as in NAME=value.
func misspelt(names []string) (remarks []string) {
	valid := column(new(Config).settings(), func(s setting) string { return strings.ToLower(s.env()) })
	for _, name := range names {
		name, _, _ = strings.Cut(name, "=")
		if near := strings.ToUpper(spelling.Slip(strings.ReplaceAll(name, "-", "_"), valid)); near != "" && near != name {
			remarks = append(remarks, fmt.Sprintf("%s is not a setting, did you mean %s?", cut(name), near))
		}
	}
	slices.Sort(remarks)
	return slices.Compact(remarks)
}

// mask returns a mask for the secrets among the settings. A database password equal to the user name is not one.
func (c *Config) mask() *secrets.Mask {
	known := slices.Concat([]string{c.token, c.readToken, c.writeToken, c.postToken, c.postClientToken}, c.apiTokens, c.apiReadTokens, c.relayTokens, c.webhookTokens)
	for _, address := range []string{c.RollbarURL, c.AppURL} {
		if u, err := url.Parse(address); err == nil {
			password, isSet := u.User.Password()
			if !isSet {
				password = u.User.Username()
			}
			known = append(known, password)
		}
	}
	for _, database := range []string{c.DatabaseURL, c.DatabaseReadURL} {
		if d, err := pgconn.ParseConfig(database); database != "" && err == nil && d.Password != d.User {
			known = append(known, d.Password)
		}
	}
	return secrets.New(known...)
}

// startTelemetry returns a client of the Datadog Agent, or nil if no agent is set.
func (c *Config) startTelemetry(log *slog.Logger) (*datadog.Client, error) {
	c.telemetry.Mask, c.telemetry.Log = c.mask(), log
	client, err := datadog.Start(c.telemetry)
	if err != nil {
		return nil, fail(misconfigured, "%w", err)
	}
	return client, nil
}

// tokens returns Rollbar's access tokens by scope.
func (c *Config) tokens() map[scope]accessToken {
	either := func(value, setting string) accessToken {
		if value == "" && c.token != "" {
			return accessToken{c.token, "ROLLBAR_TOKEN"}
		}
		return accessToken{value, setting}
	}
	return map[scope]accessToken{
		scopeRead:       either(c.readToken, "ROLLBAR_READ_TOKEN"),
		scopeWrite:      either(c.writeToken, "ROLLBAR_WRITE_TOKEN"),
		scopePost:       either(c.postToken, "ROLLBAR_POST_TOKEN"),
		scopePostClient: either(c.postClientToken, "ROLLBAR_POST_CLIENT_TOKEN"),
	}
}

// asksForTokens reports whether callers must send a token.
func (c *Config) asksForTokens() bool { return len(c.apiTokens)+len(c.apiReadTokens) > 0 }

// ownTokens returns the tokens of which the command line sends the first, and the setting they came from.
func (c *Config) ownTokens() (tokens []string, setting string) {
	if len(c.apiTokens) > 0 {
		return c.apiTokens, "API_TOKEN"
	}
	return c.apiReadTokens, "API_READ_TOKEN"
}

// startSandbox starts a fake Rollbar for the rest of the program, if the settings ask for one.
func (c *Config) startSandbox() error {
	if !c.Sandbox {
		return nil
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	go http.Serve(listener, sandbox.New(250).WithNewIDs())
	c.useSandbox("http://" + listener.Addr().String() + "/api/1")
	return nil
}

// devToken is the token for SDKs and webhooks in serve -dev, unless others are set.
const devToken = "dev"

// useDev turns on what serve -dev provides: the sandbox, the relay and webhooks.
func (c *Config) useDev() {
	c.Sandbox = true
	for _, tokens := range []*[]string{&c.relayTokens, &c.webhookTokens} {
		if len(*tokens) == 0 {
			*tokens = []string{devToken}
		}
	}
}

// useSandbox sets the URL and the tokens of a sandbox.
func (c *Config) useSandbox(base string) {
	c.RollbarURL, c.token = base, ""
	c.readToken, c.writeToken = sandbox.ReadToken, sandbox.WriteToken
	c.postToken, c.postClientToken = sandbox.PostToken, sandbox.ClientPostToken
}

// checkServe returns an error if serve lacks a setting or would be unsafe.
func (c *Config) checkServe() error {
	host, _, _ := net.SplitHostPort(c.Addr)
	switch {
	case c.DatabaseURL == "":
		return missingSetting(misconfigured, "DATABASE_URL", "serve stores reports in PostgreSQL, at a URL such as postgres://user:password@host:5432/database (`app serve -dev` starts its own)")
	case cmp.Or(c.token, c.readToken, c.writeToken, c.postToken, c.postClientToken) == "" && !c.Sandbox:
		return missingSetting(misconfigured, "ROLLBAR_TOKEN", "serve needs at least one of ROLLBAR_READ_TOKEN, ROLLBAR_WRITE_TOKEN, ROLLBAR_POST_TOKEN, ROLLBAR_POST_CLIENT_TOKEN and ROLLBAR_TOKEN, or SANDBOX=true for a fake Rollbar")
	case !c.asksForTokens() && !isLoopback(host):
		return missingSetting(misconfigured, "API_TOKEN", fmt.Sprintf("without it serve listens on loopback addresses only, and ADDR is %s", c.Addr))
	case slices.Contains(slices.Concat(c.apiTokens, c.apiReadTokens), placeholderToken) && !c.Sandbox:
		return fail(misconfigured, "API_TOKEN or API_READ_TOKEN is still the placeholder of .env.example, which everybody knows: set your own, such as the output of `openssl rand -hex 32`")
	}
	return nil
}

// isLoopback reports whether a host is a loopback address. An empty host is not: it means all addresses.
func isLoopback(host string) bool {
	return strings.EqualFold(host, "localhost") || net.ParseIP(host).IsLoopback()
}

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

// go test -update runs only the tests that rewrite the golden files.
var update = flag.Bool("update", false, "rewrite the golden files")

const goldenTests = "^(TestHelp|TestMCPExchanges|TestMCPExchangesOverHTTP|TestMCPTools|TestOpenAPI|" +
	"TestPages|TestReference)$"

// requireGolden compares the text with a file in testdata.
func requireGolden(t *testing.T, name, got string) {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	require.Regexp(t, goldenTests, test, "-update must find it")
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "go test -update writes it")
	require.Equal(t, string(want), got)
}

// Every operation gives the same JSON on all surfaces, and a status and an exit code that match.
func TestParity(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 120)
	id, gone := fmt.Sprint(f.sandbox.ItemIDs()[1]), fmt.Sprint(f.sandbox.ItemIDs()[4])
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	require.Equal(t, 200, f.do("POST", "/occurrences/sync", "").status)
	require.Equal(t, 200, f.do("DELETE", "/items/"+gone, "").status)
	const uuid = "7f1d3c52-55a0-4a38-9a35-0a6a2f1d9c11"
	lastWeek := time.Now().AddDate(0, 0, -7).Format(time.DateOnly)
	tests := []struct {
		name, method, path, body string
		args                     string
		status, exit             int
	}{
		{"which", "GET", "/which", "", "which", 200, 0},
		{"check", "GET", "/check", "", "check", 200, 0},
		{"items.list", "GET", "/items?limit=3&status=active&status=muted", "",
			"items list -limit 3 -status active -status=muted", 200, 0},
		{"items.list", "GET", "/items?page=99", "", "items list -page 99", 200, 0},
		{"items.get", "GET", "/items/" + id, "", "items get " + id, 200, 0},
		{"items.get", "GET", "/items/7?by=counter", "", "items get 7 -by counter", 200, 0},
		{"items.get", "GET", "/items/999", "", "items get 999", 404, 4},
		{"occurrences.sync", "POST", "/occurrences/sync?since=1m", "", "occurrences sync -since 1m", 200, 0},
		{"items.create", "POST", "/items", `{"message":"x","uuid":"` + uuid + `"}`,
			"items create -message x -uuid " + uuid, 201, 0},
		{"items.create", "POST", "/items", `{"data":{"environment":"e","body":{}}}`, "items create -data -", 400, 2},
		{"items.update", "PATCH", "/items/" + id, `{"status":"muted","assigned_user_id":null}`,
			"items update -status muted " + id + " -assigned-user-id null", 200, 0},
		{"items.update", "PUT", "/items/" + id, `{"title":"new \"title\""}`,
			`items update ` + id + ` -title new~"title"`, 200, 0},
		{"items.update", "PATCH", "/items/999", `{"level":"info"}`, "items update 999 -level info", 404, 4},
		{"items.delete", "DELETE", "/items/" + gone, "", "items delete -yes " + gone, 200, 0},
		{"items.delete", "DELETE", "/items/" + fmt.Sprint(f.sandbox.ItemIDs()[30]), "",
			"items delete -yes " + fmt.Sprint(f.sandbox.ItemIDs()[30]), 409, 8},
		{"items.occurrences", "GET", "/items/" + id + "/occurrences?limit=1", "",
			"items occurrences " + id + " -limit 1", 200, 0},
		{"items.sync", "POST", "/items/sync?recent=true&level=debug", "", "items sync -recent -level debug", 200, 0},
		{"reports.list", "GET", "/reports?latest=true&level=error&limit=5", "",
			"reports list -latest -level error -limit 5", 200, 0},
		{"reports.get", "GET", "/reports/1", "", "reports get 1", 200, 0},
		{"reports.get", "GET", "/reports/999999", "", "reports get 999999", 404, 4},
		{"reports.clean", "DELETE", "/reports?before=52w", "", "reports clean -before 52w -yes", 200, 0},
		{"reports.deliver", "POST", "/reports/deliver", "", "reports deliver", 200, 0},
		{"reports.summary", "GET", "/reports/summary?since=" + lastWeek, "", "reports summary -since " + lastWeek, 200,
			0},
		{"occurrences.list", "GET", "/occurrences?level=error&since=1w", "", "occurrences list -level error -since 1w",
			200, 0},
		{"occurrences.get", "GET", "/occurrences/7", "", "occurrences get 7", 404, 4},
		{"occurrences.clean", "DELETE", "/occurrences?before=52w", "", "occurrences clean -before 52w -yes", 200, 0},
	}
	tried := map[string]bool{}
	for _, test := range tests {
		t.Run(test.name+" "+test.path, func(t *testing.T) {
			tried[test.name] = true
			args := strings.Fields(test.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "~", " ")
			}
			http := f.do(test.method, test.path, test.body)
			shell := f.runWith(test.body, append(args, "-output", "json")...)
			assert.Equal(t, test.status, http.status, http.body)
			assert.Equal(t, test.exit, shell.exit, shell.err)
			call := callOfRequest(t, test.name, test.path, test.body)
			results := []string{shell.out}
			for _, answer := range []string{f.do("POST", "/mcp", call).body, f.runWith(call, "mcp").out} {
				texts, failed := toolResult(t, answer)
				assert.Len(t, texts, 1)
				assert.Equal(t, test.exit != 0, failed, texts)
				results = append(results, texts[0])
			}
			if test.exit == 0 {
				assert.Equal(t, []string{http.body, http.body, http.body}, results)
				assert.Empty(t, shell.err)
				return
			}
			assert.Empty(t, shell.out)
			results[0] = shell.err
			var want problem
			require.NoError(t, json.Unmarshal([]byte(http.body), &want))
			want.RequestID = ""
			for _, result := range results {
				var got problem
				require.NoError(t, json.Unmarshal([]byte(result), &got))
				got.RequestID = ""
				assert.Equal(t, want, got)
			}
		})
	}
	for _, c := range commands {
		assert.True(t, tried[c.Name], "%s is not tried", c.Name)
	}
}

// callOfRequest returns the message that calls a tool with the arguments of a request.
func callOfRequest(t *testing.T, name, path, body string) string {
	t.Helper()
	c := commands[slices.IndexFunc(commands, func(c *Command) bool { return c.Name == name })]
	given := json.RawMessage(cmp.Or(body, `{}`))
	target, err := url.Parse(path)
	require.NoError(t, err)
	_, pattern, _ := strings.Cut(c.Route, " ")
	segments := strings.Split(target.Path, "/")
	for i, segment := range strings.Split(pattern, "/") {
		if field, isField := strings.CutPrefix(segment, "{"); isField {
			given = rawjson.Set(given, strings.TrimSuffix(field, "}"), json.RawMessage(segments[i]))
		}
	}
	for name, values := range target.Query() {
		value, err := json.Marshal(values[0])
		if len(values) > 1 {
			value, err = json.Marshal(values)
		}
		require.NoError(t, err)
		given = rawjson.Set(given, name, value)
	}
	return callTool(c, string(given))
}

// Help needs no settings, and names the route.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"", "items", "reports", "occurrences", "serve", "mcp", "version", "completion"} {
		got := runShell(t, "", append(strings.Fields(args), "-h")...)
		assert.Equal(t, 0, got.exit)
		assert.Empty(t, got.err)
		requireGolden(t, strings.TrimSuffix("help_app_"+args, "_")+".txt", got.out)
	}
	for _, c := range commands {
		got := runShell(t, "", append(c.words(), "--help")...)
		assert.Equal(t, 0, got.exit)
		lines := strings.Split(strings.TrimSpace(got.out), "\n")
		assert.Contains(t, lines[len(lines)-1], strings.SplitN(c.Route, " ", 2)[1])
		requireGolden(t, "help_app_"+strings.Join(c.words(), "_")+".txt", got.out)
	}
}

// Other programs' conventions for help and version work, too.
func TestCustomaryWords(t *testing.T) {
	t.Parallel()
	for custom, own := range map[string]string{
		"help": "-h", "help items": "items -h", "help items list": "items list -h", "-version": "version",
		"--version": "version",
	} {
		want := runShell(t, "", strings.Fields(own)...)
		require.Equal(t, 0, want.exit, want.err)
		assert.Equal(t, want, runShell(t, "", strings.Fields(custom)...), custom)
	}
}

// Output that cannot be written is a failure.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	full := writerFunc(func([]byte) (int, error) { // as an *os.File does
		return 0, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
	})
	for _, args := range []string{"-h", "items list -h", "help", "version", "completion bash", "which"} {
		var stderr bytes.Buffer
		assert.Equal(t, 1, run(t.Context(), strings.Fields(args), console{nil, full, &stderr, ""}), args)
		assert.Equal(t, "app: cannot write the result: no space left on device\n", stderr.String(), args)
	}
}

func TestHelpOfGroupsAlone(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"items"}, {"reports"}, {"completion"}} {
		alone, help := runShell(t, "", args...), runShell(t, "", append(args, "-h")...)
		assert.Equal(t, shell{2, "", help.out}, alone)
	}
}

func TestCommandLineRefused(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, args, want string }{
		{"typo in a command", "itmes list", `unknown command "itmes", did you mean "items"? (valid: which, check, ` +
			`items, reports, occurrences, serve, mcp, version, completion)`},
		{"typo in a subcommand", "items lst", `unknown command "lst", did you mean "list"?`},
		{"typo in a flag", "items list -stauts active", `unknown flag "-stauts", did you mean "-status"?`},
		{"typo in a flag behind an argument", "items get 5 --bye id", `unknown flag "-bye", did you mean "-by"?`},
		{"typo in a setting", "items list -databse-url x",
			`unknown flag "-databse-url", did you mean "-database-url"?`},
		{"flag without its value", "items list -level",
			"the flag -level needs a value: only items with this level (repeatable)"},
		{"bad value", "items list -level fatal", "-level must be one of debug, info, warning, error, critical"},
		{"argument missing", "items get", "ID is required: the item's id, counter or uuid (see by)"},
		{"argument too many", "items get 5 6", `unexpected argument "6"`},
		{"argument that looks like a flag", "items get -- -5", "id must be a whole number at least 1"},
		{"bad setting", "which -rollbar-timeout soon", "-rollbar-timeout must be a duration such as 10s or 1m30s"},
		{"bad setting that is a secret", "which -database-url postgres://u:hunter2@:x/",
			"-database-url cannot be used: invalid port"},
		{"bad value of a flag that is no parameter", "items list -as-curl=maybe", "-as-curl must be true or false"},
		{"two mistakes", "items list -output xml -stauts active", `unknown flag "-stauts"`},
		{"left out by READ_ONLY", "items update 5 -status muted -read-only",
			"items update is left out by READ_ONLY, since it changes something"},
		{"unknown beside what READ_ONLY leaves out", "items updaet 5 -read-only", `unknown command "updaet"`},
		{"unknown format", "which -o xml", "-output must be one of table, json, ndjson, csv"},
		{"deletion without a terminal", "items delete 5", "standard input is not a terminal: add -yes"},
		{"cleaning without a terminal", "reports clean", "standard input is not a terminal: add -yes"},
		{"file that is not there", "items create -data nowhere.json",
			"cannot read the file with the JSON body: open nowhere.json"},
		{"argument for serve", "serve now", `unexpected argument "now"`},
		{"argument for mcp", "mcp now", `unexpected argument "now"`},
		{"argument for version", "version now", `unexpected argument "now"`},
		{"URL that is more than a place", "which -app-url http://x/?key=hunter2",
			"-app-url must be a URL such as https://host/path, without ? and #"},
		{"own uuid that is none", "items create -message x -uuid €",
			"uuid must be a UUID, or another text of up to 36 Latin-1 characters"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := runShell(t, "", strings.Fields(test.args)...)
			assert.Equal(t, 2, got.exit)
			assert.Empty(t, got.out)
			assert.Contains(t, got.err, test.want)
			assert.Equal(t, 1, strings.Count(got.err, "\n"), "one line")
			assert.NotContains(t, got.err, "hunter2")
		})
	}
}

func TestErrorsAsJSON(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "ndjson"} {
		got := runShell(t, "", "items", "get", "x", "-o", format)
		assert.Equal(t, 2, got.exit)
		var p problem
		require.NoError(t, json.Unmarshal([]byte(got.err), &p), got.err)
		assert.Equal(t, "/problems/usage", p.Type)
		assert.Equal(t, 400, p.Status)
		assert.NotEmpty(t, p.RequestID)
	}
	for _, args := range []string{"items list -o json -foo", "items list -foo -output=ndjson", "items foo -o json"} {
		got := runShell(t, "", strings.Fields(args)...)
		assert.Equal(t, 2, got.exit)
		assert.True(t, json.Valid([]byte(got.err)), got.err)
	}
}

func TestMissingSettings(t *testing.T) {
	t.Parallel()
	const placeholder = "API_TOKEN or API_READ_TOKEN is still the placeholder"
	for args, want := range map[string]string{
		"items list": "ROLLBAR_READ_TOKEN is not set: a Rollbar token with the scope read is " +
			"needed here; set it in the environment or in .env",
		"items get 5":                       "ROLLBAR_READ_TOKEN is not set",
		"items create -message x":           "ROLLBAR_POST_TOKEN is not set",
		"items update 5 -level info":        "ROLLBAR_WRITE_TOKEN is not set",
		"reports list":                      "DATABASE_URL is not set",
		"reports get 1":                     "DATABASE_URL is not set",
		"reports clean -yes":                "DATABASE_URL is not set",
		"reports deliver":                   "DATABASE_URL is not set",
		"items sync":                        "DATABASE_URL is not set",
		"check":                             "DATABASE_URL is not set",
		"serve":                             "DATABASE_URL is not set",
		"serve -database-url postgres:///x": "ROLLBAR_TOKEN is not set",
		"serve -database-url postgres:///x -sandbox -addr :0":                                   "API_TOKEN is not set",
		"serve -database-url postgres:///x -rollbar-token x -addr :0 -api-read-token change-me": placeholder,
		"serve -database-url postgres:///x -rollbar-token x -api-token change-me":               placeholder,
	} {
		got := runShell(t, "", strings.Fields(args)...)
		assert.Equal(t, 3, got.exit, args)
		assert.Contains(t, got.err, want, args)
		assert.Equal(t, 1, strings.Count(got.err, "\n"), "one line")
	}
}

// Without a database, operations on items work and say that nothing is stored.
func TestItemsWithoutDatabase(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.config.DatabaseURL = ""
	id := fmt.Sprint(f.sandbox.ItemIDs()[0])
	for _, args := range []string{"items list", "items get " + id, "items create -message x",
		"items update -level info " + id, "items delete -yes " + id} {
		got := f.run(strings.Fields(args)...)
		assert.Equal(t, 0, got.exit, got.err)
		assert.Equal(t, "app: nothing is stored: DATABASE_URL is not set\n", got.err, args)
		assert.True(t, json.Valid([]byte(got.out)), got.out)
	}
}

func TestListAll(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 250)
	got := f.run("items", "list", "-all", "-limit", "60")
	require.Equal(t, 0, got.exit, got.err)
	seen := map[string]bool{}
	for _, item := range rawjson.Elements(rawjson.Get([]byte(got.out), "items")) {
		seen[string(rawjson.Get(item, "id"))] = true
	}
	assert.Equal(t, string(rawjson.Get([]byte(got.out), "total_count")), fmt.Sprint(len(seen)))
	assert.Equal(t, "1", string(rawjson.Get([]byte(got.out), "page")))
	assert.Equal(t, []string{fmt.Sprint(len(seen))}, f.rows(`SELECT count(*)::text FROM reports`))

	f.sandbox.FailOnly("GET /items", -1, sandbox.None)
	// without a total_count, pages are read until an empty one
	f.sandbox.Set(func(s *sandbox.Settings) { s.LargeProject = 10 })
	assert.Len(t, strings.Split(f.run("items", "list", "-all", "-o", "ndjson").out, "\n"), len(seen)+1)
}

func TestPayloadFromFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	const payload = `{"data":{"environment":"e","uuid":"my-own","body":{"message":{"body":"x"}},"custom":{"n":1e3}}}`
	file := filepath.Join(t.TempDir(), "payload.json")
	require.NoError(t, os.WriteFile(file, []byte(payload), 0o600))
	assert.Equal(t, `{"uuid":"my-own","state":"delivered"}`+"\n", f.run("items", "create", "-data", file).out)
	assert.Equal(t, `{"uuid":"my-own","state":"delivered"}`+"\n",
		f.runWith(payload, "items", "create", "-data", "-").out)
	assert.Equal(t, []string{"1e3"}, f.rows(`SELECT data -> 'custom' ->> 'n' FROM reports`))

	typo := f.runWith(`{"date":{}}`, "items", "create", "-data", "-")
	assert.Equal(t, 2, typo.exit)
	assert.Contains(t, typo.err, `standard input: unknown field "date", did you mean "data"?`)
	both := f.runWith(payload, "items", "create", "-data", "-", "-level", "info")
	assert.Equal(t, 2, both.exit)
	assert.Contains(t, both.err, "nothing else can be given with it")
}

// Unlike a server's caller, the user of the command line is told why PostgreSQL does not answer.
func TestReasonOnTheCommandLine(t *testing.T) {
	t.Parallel()
	got := runShell(t, "", "reports", "list", "-database-url", "postgres://app:hunter2@127.0.0.1:1/app")
	assert.Equal(t, 7, got.exit)
	assert.Regexp(t, `^app: list reports: PostgreSQL at DATABASE_URL: [^;]*connection refused\n$`, got.err)
	assert.NotContains(t, got.err, "hunter2")
}

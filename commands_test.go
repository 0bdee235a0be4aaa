package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type testInput struct {
	ID     int64                `path:"id" min:"1" help:"an id"`
	Level  []string             `query:"level" enum:"error,info" help:"levels"`
	Size   int64                `query:"size" default:"20" min:"1" max:"50" help:"a size"`
	Since  Opt[Moment]          `query:"since" help:"a time"`
	Deep   bool                 `query:"deep" default:"false" help:"a switch"`
	Title  Opt[string]          `json:"title" min:"1" max:"3" help:"a title"`
	User   Opt[int64]           `json:"user" null:"true" help:"a user"`
	Custom Opt[json.RawMessage] `json:"custom" help:"an object"`
}

func (in *testInput) check() error {
	if in.Deep && in.Size > 30 {
		return invalidField("size", "must be at most 30 with deep")
	}
	return nil
}

// fillTestInput passes values to an operation as a surface would.
func fillTestInput(values map[string][]literal) (testInput, error) {
	var got testInput
	op := typed(func(_ context.Context, _ *App, in testInput) (any, error) { got = in; return nil, nil })
	run, err := op.prepare(arguments{values, func(p *param) string { return p.name }})
	if err != nil {
		return got, err
	}
	_, err = run(context.Background(), nil)
	return got, err
}

func given(texts ...string) []literal {
	var values []literal
	for _, text := range texts {
		values = append(values, literal{text: text})
	}
	return values
}

func inJSON(text string) []literal { return []literal{{text: text, json: true}} }

func TestArguments(t *testing.T) {
	t.Parallel()
	got, err := fillTestInput(map[string][]literal{
		"id": given("9007199254740993"), "level": given("error", "info"), "deep": given("true"),
		"title": inJSON(`"äöü"`), "user": inJSON("null"), "custom": inJSON(`{"n": 1.10}`),
	})
	require.NoError(t, err)
	assert.Equal(t, testInput{
		ID: 9007199254740993, Level: []string{"error", "info"}, Size: 20, Deep: true,
		Title: Opt[string]{Set: true, Value: "äöü"}, User: Opt[int64]{Set: true, Null: true},
		Custom: Opt[json.RawMessage]{Set: true, Value: json.RawMessage(`{"n":1.10}`)},
	}, got)
}

func TestArgumentsRefused(t *testing.T) {
	t.Parallel()
	const notATime = "since must be a time such as 2026-01-31T12:00:00Z, a date such as 2026-01-31 " +
		"or an age such as 30m, 36h, 7d or 2w"
	tests := []struct {
		name  string
		field string
		value []literal
		want  string
	}{
		{"required", "id", nil, "id is required: an id"},
		{"not a number", "id", given("x"), "id must be a whole number at least 1"},
		{"number with a fraction", "size", given("1.0"), "size must be a whole number from 1 to 50"},
		{"below the minimum", "size", given("0"), "size must be a whole number from 1 to 50"},
		{"above the maximum", "size", given("51"), "size must be a whole number from 1 to 50"},
		{"number that is too large", "user", given("9223372036854775808"),
			"user must be a whole number that fits in 64 bits, or null"},
		{"number that is a string", "user", inJSON(`"5"`), "user must be a whole number, or null"},
		{"twice what takes one", "size", given("1", "2"), "size is given 2 times, but takes one value"},
		{"not of the enum", "level", given("error", "fatal"), "level must be one of error, info"},
		{"not a switch", "deep", given("yes"), "deep must be true or false"},
		{"not a time", "since", given("yesterday"), notATime},
		{"age with a sign", "since", given("-7d"), notATime},
		{"age with a leading zero", "since", given("07d"), notATime},
		{"date that no calendar has", "since", given("2026-02-30"), notATime},
		{"age with a fraction", "since", given("1.5h"), notATime},
		{"age beyond all bounds", "since", given("5000000000w"), notATime},
		{"too long", "title", inJSON(`"abcd"`), "title must be from 1 to 3 characters long"},
		{"empty", "title", inJSON(`""`), "title must be from 1 to 3 characters long"},
		{"null where it means nothing", "title", inJSON(`null`), "title must be a string"},
		{"number where a text belongs", "title", inJSON(`1`), "title must be a string"},
		{"NUL in a text", "level", given("a\x00"), "level must be UTF-8 text without NUL"},
		{"no UTF-8", "level", given("\xff"), "level must be UTF-8 text without NUL"},
		{"not an object", "custom", inJSON(`[1]`), "custom must be a JSON object"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			values := map[string][]literal{"id": given("1")}
			values[test.field] = test.value
			_, err := fillTestInput(values)
			var f *Failure
			require.True(t, errors.As(err, &f), "%v", err)
			assert.Equal(t, invalid, f.kind)
			assert.Equal(t, []fieldError{{test.field, test.want}}, f.fields)
		})
	}
}

func TestArgumentsReportAllThatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := fillTestInput(map[string][]literal{"size": given("x"), "deep": given("x")})
	assert.EqualError(t, err, "id is required: an id; size must be a whole number from 1 to 50; deep must be true or "+
		"false")
}

func TestArgumentsWithRulesOfTheirOwn(t *testing.T) {
	t.Parallel()
	_, err := fillTestInput(map[string][]literal{"id": given("1"), "size": given("31"), "deep": given("true")})
	assert.EqualError(t, err, "size must be at most 30 with deep")
}

// In JSON, a whole number may have a fraction or an exponent. Elsewhere it is only digits.
func TestWholeNumbers(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"5": 5, "-5": -5, "5.0": 5, "5e0": 5, "0.5E1": 5, "50e-1": 5, "9007199254740993.0": 9007199254740993,
	} {
		got, err := fillTestInput(map[string][]literal{"id": given("1"), "user": inJSON(text)})
		require.NoError(t, err, text)
		assert.Equal(t, want, got.User.Value, text)
	}
	for _, text := range []string{"5.0", "5e0", "+5", "007", "1_000", "0x5", " 5", "-0", ""} {
		_, err := fillTestInput(map[string][]literal{"id": given("1"), "user": given(text)})
		assert.ErrorContains(t, err, "user must be a whole number, or null", "%q", text)
	}
}

func TestMoment(t *testing.T) {
	t.Parallel()
	for text, age := range map[string]time.Duration{"0m": 0, "90m": 90 * time.Minute, "36h": 36 * time.Hour,
		"7d": 168 * time.Hour, "2w": 336 * time.Hour} {
		var m Moment
		require.NoError(t, m.UnmarshalText([]byte(text)))
		assert.WithinDuration(t, time.Now().Add(-age), m.Time, time.Minute, text)
	}
	for _, text := range []string{"4000000000w", "200000d", "1500-01-01T00:00:00Z"} { // very old, but not the zero time
		var m Moment
		require.NoError(t, m.UnmarshalText([]byte(text)))
		assert.False(t, m.IsZero(), text)
		assert.LessOrEqual(t, m.Year(), 1800, text)
	}
	var lower Moment
	require.NoError(t, lower.UnmarshalText([]byte("2026-01-31t12:00:00z")))
	assert.Equal(t, "2026-01-31T12:00:00Z", lower.Format(time.RFC3339))
	var m Moment
	require.NoError(t, m.UnmarshalText([]byte("2026-01-31T12:00:00 01:00"))) // the plus sign arrived as a space
	assert.Equal(t, "2026-01-31T11:00:00Z", m.UTC().Format(time.RFC3339))
	require.NoError(t, m.UnmarshalText([]byte("2026-01-31")))
	assert.Equal(t, time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC), m.Time)
}

func TestUnknownNamesTheNearest(t *testing.T) {
	t.Parallel()
	valid := []string{"status", "level", "assigned_user"}
	for name, want := range map[string]string{
		"stauts": `unknown field "stauts", did you mean "status"? (valid: status, level, assigned_user)`,
		"Level":  `unknown field "Level", did you mean "level"? (valid: status, level, assigned_user)`,
		"assigned-user": `unknown field "assigned-user", did you mean "assigned_user"? (valid: status, level, ` +
			`assigned_user)`,
		"zzz": `unknown field "zzz" (valid: status, level, assigned_user)`,
		"":    `unknown field "" (valid: status, level, assigned_user)`,
	} {
		assert.Equal(t, want, unknown("field", name, valid))
	}
	assert.Equal(t, `unknown field "x": there are none here`, unknown("field", "x", nil))
}

// The registry is correct where the compiler cannot check it: names, routes, and the tags of inputs.
func TestRegistry(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	once := func(name string) {
		assert.False(t, seen[name], "%s is there twice", name)
		seen[name] = true
	}
	for _, c := range commands {
		once(c.Name)
		assert.Regexp(t, `^[a-z]+(\.[a-z]+)?$`, c.Name)
		assert.NotEmpty(t, c.Short, c.Name)
		for _, route := range c.routes() {
			once(route)
			assert.Regexp(t, `^(GET|POST|PUT|PATCH|DELETE) /`, route)
			var fields []string
			for _, match := range pathField.FindAllStringSubmatch(route, -1) {
				fields = append(fields, match[1])
			}
			assert.Equal(t, c.names(inPath), fields, route)
			assert.False(t, strings.HasPrefix(route, "GET ") && len(c.names(inBody)) > 0,
				"a GET has no body: %s", route)
		}
		for _, p := range c.Run.params {
			once(c.Name + " " + p.name)
			assert.NotEmpty(t, p.name, "a field of %s has no place", c.Name)
			assert.NotEmpty(t, p.help, "%s %s", c.Name, p.name)
			assert.NotEmpty(t, p.kind, "%s %s has a type that no parameter has", c.Name, p.name)
			assert.LessOrEqual(t, p.min, p.max, "%s %s", c.Name, p.name)
		}
		_, err := c.Run.prepare(arguments{nil, paramName})
		assert.NotContains(t, fmt.Sprint(err), "must be", "the defaults of %s are valid", c.Name)
		assert.Equal(t, c.Confirm == nil, c.About == nil, "a question of %s is about something", c.Name)
		if c.About != nil {
			assert.Equal(t, reflect.TypeFor[json.RawMessage](), c.About.Run.out, c.Name)
			assert.False(t, c.About.Changes, "%s changes something before it asks", c.Name)
			assert.True(t, c.About.Route != "" || slices.Equal(c.names(inQuery), c.About.names(inQuery)), c.Name)
			for _, p := range c.About.Run.params { // it gets the same arguments
				assert.True(t, c.has(p.in, p.name) || !p.required, "%s has no %s to ask about", c.Name, p.name)
			}
		}
	}
	sources, err := filepath.Glob("*.go")
	require.NoError(t, err)
	bounds := regexp.MustCompile(`\b(?:min|max):"(.*?)"`)
	for _, name := range sources {
		for _, bound := range bounds.FindAllStringSubmatch(readDocument(t, name), -1) {
			_, err := strconv.ParseInt(bound[1], 10, 64)
			assert.NoError(t, err, "%s: a bound of a parameter", name)
		}
	}
}

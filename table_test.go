package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// listOf returns a list of the elements, which are JSON.
func listOf(elements ...string) *List {
	return &List{Rows: sliceRows(elements, func(e string) json.RawMessage { return json.RawMessage(e) })}
}

func TestCSV(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, columns, element, want string }{
		{"plain", "id title", `{"id":17,"title":"x"}`, "17,x"},
		{"to be quoted", "title", `{"title":"a, \"b\"\nc"}`, "\"a, \"\"b\"\"\nc\""},
		{"carriage return", "title", `{"title":"a\rb"}`, "\"a\rb\""},
		{"null and missing", "id a b", `{"id":1,"a":null}`, "1,,"},
		{"an empty line is no record", "a", `{"a":null}`, `""`},
		{"object and array", "a b", `{"a":{"x":[1,2]},"b":[]}`, `"{""x"":[1,2]}",[]`},
		{"digit for digit", "a b", `{"a":12345678901234567890,"b":1.50}`, "12345678901234567890,1.50"},
		{"boolean", "a", `{"a":true}`, "true"},
		{"long", "title", `{"title":"` + strings.Repeat("x", 5000) + `"}`, strings.Repeat("x", 5000)},
		{"wide", "title", `{"title":"日本"}`, "日本"},
		{"RFC 3339", "last_seen", `{"last_seen":"2026-11-28T16:00:00.5+01:00"}`, "2026-11-28T16:00:00.5+01:00"},
		{"seconds", "data.last_timestamp", `{"data":{"last_timestamp":1700000000}}`, "2023-11-14T22:13:20Z"},
		{"parts of a second", "timestamp", `{"timestamp":1700000000.25}`, "2023-11-14T22:13:20.25Z"},
		{"a time that is none", "timestamp a", `{"timestamp":null,"a":1700000000}`, ",1700000000"},
		{"no time of ours", "timestamp", `{"timestamp":1700000000000}`, "1700000000000"},
		{"formula", "title", `{"title":"=HYPERLINK(\"x\")"}`, `"'=HYPERLINK(""x"")"`},
		{"formula with plus", "title", `{"title":"+1"}`, "'+1"},
		{"formula with minus", "title", `{"title":"-1"}`, "'-1"},
		{"formula with at", "title", `{"title":"@SUM(1)"}`, "'@SUM(1)"},
		{"formula behind a tab", "title", `{"title":"\t=1"}`, "'\t=1"},
		{"formula behind a carriage return", "title", `{"title":"\r=1"}`, "\"'\r=1\""},
		{"a number is no formula", "a", `{"a":-1}`, "-1"},
	} {
		var out strings.Builder
		require.NoError(t, listOf(tt.element).writeCSV(&out, strings.Fields(tt.columns)))
		assert.Equal(t, strings.Join(strings.Fields(tt.columns), ",")+"\r\n"+tt.want+"\r\n", out.String(), tt.name)
	}
	var out strings.Builder
	require.NoError(t, listOf().writeCSV(&out, []string{"id", "title"}))
	assert.Equal(t, "id,title\r\n", out.String(), "no elements")
}

func TestTitles(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ thing, want string }{
		{`{"title":"of an item"}`, "of an item"},
		{`{"id":1}`, ""},
		{`{"data":null}`, ""},
		{`{"data":{"title":"given\n here","body":{"message":{"body":"x"}}}}`, "given here"},
		{`{"data":{"title":"as  it came"}}`, "as  it came"},
		{`{"data":{"title":"two lines"}}`, "two lines"},
		{`{"data":{"title":null,"body":{"message":{"body":"one\n\ttwo"}}}}`, "one two"},
		{`{"data":{"body":{"trace":{"exception":{"class":"E","message":"m\nn"}}}}}`, "E: m n"},
		{`{"data":{"body":{"trace":{"exception":{"class":"E"}}}}}`, "E"},
		{`{"data":{"body":{"trace":{"exception":{"message":"m"}}}}}`, "m"},
		{`{"data":{"body":{"trace_chain":[{"exception":{"class":"A","message":"a"}},{}]}}}`, "A: a"},
		{`{"data":{"body":{"crash_report":{"raw":"first\nsecond"}}}}`, "first"},
		{`{"data":{"body":{}}}`, ""},
	} {
		text := string(columnValue(json.RawMessage(tt.thing), "title"))
		if tt.want != "" {
			tt.want = fmt.Sprintf("%q", tt.want)
		}
		assert.Equal(t, tt.want, text, tt.thing)
	}
}

// A list as CSV is the same over HTTP and in the shell, with and without a server.
func TestCSVOnAllSurfaces(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 12)
	id := f.sandbox.ItemIDs()[0]
	title := "=1+1, \"" + strings.Repeat("long ", 60) + "\"\nend"
	f.sandbox.SetItem(id, "title", title)
	created := f.do("POST", "/items", `{"message":"created\nhere"}`)
	require.Equal(t, 201, created.status, created.body)
	for _, tt := range []struct{ path, args, columns string }{
		{"/items?page=1", "items list -page 1", "id,level,status,last_occurrence_timestamp,total_occurrences,title"},
		{fmt.Sprintf("/items/%d/occurrences", id), fmt.Sprintf("items occurrences %d", id),
			"id,item_id,timestamp,data.level,data.environment,title"},
		{"/reports?limit=3", "reports list -limit 3",
			"id,item_id,state,last_seen,data.level,data.status,data.total_occurrences,title"},
		{"/occurrences", "occurrences list", "id,item_id,timestamp,data.level,data.environment,title"},
	} {
		answer := f.do("GET", tt.path, "", "Accept", csvType)
		require.Equal(t, 200, answer.status, answer.body)
		assert.Equal(t, "text/csv; charset=utf-8", answer.header.Get("Content-Type"))
		assert.Contains(t, answer.header.Values("Vary"), "Accept")
		assert.Equal(t, f.get(tt.path).header.Get("Link"), answer.header.Get("Link"))
		assert.True(t, strings.HasPrefix(answer.body, tt.columns+"\r\n"), answer.body)
		rows, err := csv.NewReader(strings.NewReader(answer.body)).ReadAll()
		require.NoError(t, err)
		assert.Greater(t, len(rows), 1, tt.path)
		for name := range map[string]bool{"last_seen": true, "timestamp": true, "last_occurrence_timestamp": true} {
			for i, column := range rows[0] {
				if column == name {
					_, err := time.Parse(time.RFC3339, rows[1][i])
					assert.NoError(t, err)
				}
			}
		}
		assert.Equal(t, answer.body, f.run(append(strings.Fields(tt.args), "-output", "csv")...).out, tt.path)
		remote := runShell(t, "", append(strings.Fields(tt.args), "-o", "csv", "-app-url", f.url)...)
		assert.Equal(t, answer.body, remote.out, tt.path)
		head := f.do("HEAD", tt.path, "", "Accept", csvType)
		assert.Equal(t, "text/csv; charset=utf-8", head.header.Get("Content-Type"))
	}
	rows, err := csv.NewReader(strings.NewReader(f.do("GET", "/items", "", "Accept", csvType).body)).ReadAll()
	require.NoError(t, err)
	assert.Contains(t, fmt.Sprint(rows), "'"+title)
	created = f.do("GET", "/reports?state=delivered", "", "Accept", csvType)
	assert.Contains(t, created.body, ",delivered,")
	assert.Contains(t, created.body, ",created here\r\n")
	curl := f.run("reports", "list", "-o", "csv", "-as-curl").out
	assert.Contains(t, curl, "-H 'Accept: text/csv'")
}

// Only a list can be CSV. A request for anything else as CSV is refused before anything happens.
func TestNoCSV(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	id := f.sandbox.ItemIDs()[0]
	for request, args := range map[string]string{
		"GET /which": "which", "GET /check": "check", fmt.Sprintf("GET /items/%d", id): fmt.Sprintf("items get %d", id),
		`POST /items {"message":"x"}`:       "items create -message x",
		fmt.Sprintf("DELETE /items/%d", id): fmt.Sprintf("items delete -yes %d", id),
		"POST /items/sync":                  "items sync", "GET /reports/summary": "reports summary",
	} {
		words := append(strings.Fields(request), "")
		f.do(words[0], words[1], words[2], "Accept", csvType).requireProblem(406, "usage")
		got := f.run(append(strings.Fields(args), "-output", "csv")...)
		assert.Equal(t, 2, got.exit, args)
		assert.Contains(t, got.err, "-output csv is for lists")
		assert.Empty(t, got.out)
	}
	assert.Empty(t, f.sandbox.Requests())
	answer := f.do("GET", "/check", "", "Accept", "text/csv, */*;q=0.1")
	assert.Equal(t, `{"status":"OK"}`+"\n", answer.body, "JSON is welcome, too")
	f.do("GET", "/reports?limit=0", "", "Accept", csvType).requireProblem(400, "usage")
}

func TestWantedType(t *testing.T) {
	t.Parallel()
	const jsonType = "application/json"
	for accept, want := range map[string]string{
		"": jsonType, "*/*": jsonType, "text/*": jsonType, "text/csv": csvType, "Text/CSV; charset=utf-8": csvType,
		"text/csv;q=0": jsonType, "text/csv, */*": csvType, "text/csv;q=0.5, */*": jsonType,
		"text/csv, application/json": csvType, "text/csv;q=0.8, application/json": jsonType,
		"text/csv, text/html": csvType, "text/csv;q=0.8, text/html": htmlType, "text/csv, text/html;q=0.9": csvType,
		"text/csv, application/x-ndjson;q=0.9": csvType, "text/csv;q=0.9, application/x-ndjson": ndjson,
		browserAccept: htmlType, "text/html, application/json": jsonType,
	} {
		r := httptest.NewRequest("GET", "/reports", nil)
		r.Header.Set("Accept", accept)
		assert.Equal(t, want, wantedType(r), accept)
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	f.sandbox.SetItem(f.sandbox.ItemIDs()[0], "title", "first")
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	id := f.sandbox.ItemIDs()[0]
	got := f.run("reports", "list", "-o", "csv", "-fields", "item_id, data.title,title,data.none,data.id")
	assert.Contains(t, got.out, "item_id,data.title,title,data.none,data.id\r\n")
	assert.Contains(t, got.out, fmt.Sprintf("%d,first,first,,%d\r\n", id, id))
	got = f.run("items", "list", "-fields", "title,none,id", "-o", "table")
	assert.Regexp(t, fmt.Sprintf(`^TITLE +NONE +ID\n(?s:.*)(?m:^first +%d$)`, id), got.out)
	got = f.run("items", "get", fmt.Sprint(id), "-fields", "title,id", "-o", "table")
	assert.Equal(t, fmt.Sprintf("title  first\nid     %d\n", id), got.out)

	f.sandbox.Requests()
	for args, want := range map[string]string{
		"items list -fields id":                 "-fields chooses the columns of a table or of CSV: add -output table",
		"items list -fields id -o json":         "-fields chooses the columns",
		"items list -fields id -o ndjson":       "-fields chooses the columns",
		"items list -fields id,,title -o csv":   "-fields must be names of members",
		"items list -fields= -o csv":            "-fields must be names of members",
		"items list -fields id -o csv -as-curl": "-as-curl cannot show -fields",
		"which -fields id -o table":             `unknown flag "-fields"`,
	} {
		got := f.run(strings.Fields(args)...)
		assert.Equal(t, 2, got.exit, args)
		assert.Contains(t, got.err, want, args)
		assert.Empty(t, got.out, args)
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
)

// Whatever a request says, its arguments are taken or refused, and never more.
func FuzzArguments(f *testing.F) {
	f.Add("status=active&level=error&page=2", `{"message":"x","custom":{"n":1e3}}`)
	f.Add("since=7d&until=2026-01-31T12:00:00Z&q=a+b&cursor=MTIuMA", `{"data":{"environment":"e","body":{"trace_chain":[{}]}}}`)
	f.Add("limit=-1&limit=%00", `{"status":"resolved","assigned_user_id":null}`)
	f.Add("=&;&%", `{"a":{"b":[}]}`)
	s := newHandler(&App{}, commands, nil).(*server)
	f.Fuzz(func(t *testing.T, query, body string) {
		for _, c := range commands {
			method, path, _ := strings.Cut(c.Route, " ")
			r := httptest.NewRequest(method, strings.Replace(path, "{id}", "5", 1), strings.NewReader(body))
			r.URL.RawQuery = query
			r.SetPathValue("id", "5")
			args, err := s.arguments(httptest.NewRecorder(), r, c)
			if err == nil {
				_, err = c.Run.prepare(args)
			}
			if err != nil {
				require.True(t, isKind(err, invalid, tooLarge), "%s: %v", c.Name, err)
				require.True(t, utf8.ValidString(err.Error()) || !utf8.ValidString(query+body))
			}
		}
	})
}

func FuzzCursor(f *testing.F) {
	f.Add(reportCursor{before: 12}.String())
	f.Add(occurrenceCursor{occurrencePlace{page: 3, before: 1 << 60}}.String())
	f.Add("MS4tMQ")
	f.Add("\x00")
	f.Fuzz(func(t *testing.T, text string) {
		var c, again reportCursor
		if c.UnmarshalText([]byte(text)) != nil {
			return
		}
		require.NoError(t, again.UnmarshalText([]byte(c.String())))
		require.Equal(t, c, again)
		require.GreaterOrEqual(t, min(c.before, c.after), int64(0))
	})
}

// Whatever Rollbar sends, what is taken out of it and what is stored is JSON again.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"err": 0, "result": {"items": [{"id": 7, "title": "a\u0000\ud800"}], "page": 1}}`))
	f.Add([]byte("{\"a\":\"\xff\\\\u0000\",\"a\":[1e3,-0.0,{}],\"\\u0062\":null}"))
	f.Add([]byte(`[[],{},"",[{"x":"\"]}"}]]`))
	f.Add([]byte(`"\ud83d\ude00\ud83d\u0041"`))
	f.Add([]byte(`[2` + strings.Repeat("0", 310) + `]`))
	f.Add([]byte(`<html>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		answer, err := rawjson.Compact(text)
		if err != nil {
			return
		}
		require.Equal(t, len(answer), rawjson.ValueLen(answer))
		var names []string
		for name, value := range rawjson.Members(answer) {
			require.True(t, json.Valid(value))
			names = append(names, name)
		}
		for value := range rawjson.Elements(answer) {
			require.True(t, json.Valid(value))
		}
		stored := rawjson.Storable(answer)
		require.True(t, json.Valid(stored))
		require.True(t, utf8.Valid(stored))
		require.Equal(t, stored, rawjson.Storable(stored))
		var decoded any
		decoder := json.NewDecoder(bytes.NewReader(stored))
		decoder.UseNumber() // some do not fit a float64
		require.NoError(t, decoder.Decode(&decoded))
		require.NotContains(t, string(mustMarshal(t, decoded)), `\u0000`, "decoded: %q", stored)
		if answer[0] != '{' {
			return
		}
		_, change := mergeItem(stored, stored)
		if len(names) == len(uniqueNames(names)) {
			require.Equal(t, unchanged, change)
		}
		changed := rawjson.Set(stored, "\"new\n", json.RawMessage("1"))
		require.True(t, json.Valid(changed))
		require.Equal(t, "1", string(rawjson.Get(changed, "\"new\n")))
		require.True(t, json.Valid(rawjson.Set(changed, "\"new\n", nil)))
	})
}

func mustMarshal(t *testing.T, value any) []byte {
	var text bytes.Buffer
	require.NoError(t, json.NewEncoder(&text).Encode(value))
	return bytes.ReplaceAll(text.Bytes(), []byte(`\\`), nil)
}

func uniqueNames(names []string) map[string]bool {
	unique := map[string]bool{}
	for _, name := range names {
		unique[strings.ToValidUTF8(name, "\uFFFD")] = true
	}
	return unique
}

// Links keep the query as it was, but for what leads to the other page.
func FuzzLinks(f *testing.F) {
	f.Add("status=active&status=muted&page=2", "a b&c")
	f.Fuzz(func(t *testing.T, query, cursor string) {
		header := httptest.NewRecorder().Header()
		setLinks(header, &url.URL{Path: "/reports", RawQuery: query}, &List{Next: url.Values{"cursor": {cursor}}})
		target, _ := strings.CutSuffix(header.Get("Link"), `>; rel="next"`)
		parsed, err := url.Parse(strings.TrimPrefix(target, "<"))
		require.NoError(t, err)
		require.Equal(t, cursor, parsed.Query().Get("cursor"))
	})
}

// FuzzCompactJSON: what encoding/json accepts is accepted, with the same result, and nothing else.
func FuzzCompactJSON(f *testing.F) {
	for _, seed := range []string{
		``, ` `, `null`, ` {"a" : [1, -0.5e+3 , "x\u00e9\n", true,false,null ] , "b":{}} `, `[]`, `[ ]`, `{}x`, `[1,]`, `{"a":1,}`,
		`01`, `-`, `1.`, `1e`, `.5`, `+1`, `"\x"`, `"\u12G4"`, "\"\x01\"", "\"\xff\"", `"`, `"\`, `"\u12`, `nul`, `nullx`, `{"a"}`, `{1:2}`, `[1 2]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var want bytes.Buffer
		wantErr := json.Compact(&want, text)
		got, err := rawjson.Compact(bytes.Clone(text))
		require.Equal(t, wantErr == nil, err == nil, "%q: %v, %v", text, wantErr, err)
		if err == nil {
			require.Equal(t, want.String(), string(got))
		}
	})
}

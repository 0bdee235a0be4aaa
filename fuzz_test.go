package main

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
)

// Whatever a request contains, its arguments are either accepted or refused as invalid or too large.
func FuzzArguments(f *testing.F) {
	f.Add("status=active&level=error&page=2", `{"message":"x","custom":{"n":1e3}}`)
	f.Add("since=7d&until=2026-01-31T12:00:00Z&q=a+b&cursor=MTIuMA",
		`{"data":{"environment":"e","body":{"trace_chain":[{}]}}}`)
	f.Add("limit=-1&limit=%00", `{"status":"resolved","assigned_user_id":null}`)
	f.Add("=&;&%", `{"a":{"b":[}]}`)
	s := newHandler(&App{}, commands, &Config{}).(*server)
	f.Fuzz(func(t *testing.T, query, body string) {
		for _, c := range commands {
			method, path, _ := strings.Cut(c.Route, " ")
			r := httptest.NewRequest(method, strings.Replace(path, "{id}", "5", 1), strings.NewReader(body))
			r.URL.RawQuery = query
			r.SetPathValue("id", "5")
			args, err := s.arguments(&response{ResponseWriter: httptest.NewRecorder(), request: r}, r, c)
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
	f.Add(rowCursor{before: 12}.String())
	f.Add(occurrencePlace{page: 3, last: 1 << 60}.String())
	f.Add("MS4tMQ")
	f.Add("\x00")
	f.Fuzz(func(t *testing.T, text string) {
		var c, again rowCursor
		if c.UnmarshalText([]byte(text)) != nil {
			return
		}
		require.NoError(t, again.UnmarshalText([]byte(c.String())))
		require.Equal(t, c, again)
		require.GreaterOrEqual(t, min(c.before, c.from), int64(0))
	})
}

// An item that is observed again is unchanged, whatever Rollbar sends.
func FuzzMergeItem(f *testing.F) {
	f.Add([]byte(`{"id": 7, "title": "a\u0000\ud800", "total_occurrences": 1e3}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		item, err := rawjson.Object(text)
		if err != nil || len(item) == 0 {
			return
		}
		compact, err := rawjson.Compact(text)
		require.NoError(t, err)
		stored := rawjson.Storable(compact)
		names := map[string]bool{}
		for name := range rawjson.Members(stored) {
			if names[name] {
				return // Storable has made two names equal
			}
			names[name] = true
		}
		_, change := mergeItem(stored, stored)
		require.Equal(t, unchanged, change)
	})
}

// A link keeps the query, except for the parameters of the other page.
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

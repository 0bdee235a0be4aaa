package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"app/internal/rawjson"
	"app/internal/sandbox"
)

// pageOf returns a page of items as Rollbar returns it.
func pageOf(rollbar http.Handler, page, limit int) []byte {
	r := httptest.NewRequest("GET", fmt.Sprintf("/api/1/items/?page=%d&limit=%d", page, limit), nil)
	r.Header.Set("X-Rollbar-Access-Token", sandbox.ReadToken)
	w := httptest.NewRecorder()
	rollbar.ServeHTTP(w, r)
	return w.Body.Bytes()
}

// bulkItems returns a page of n invented items as the client reads them.
func bulkItems(t testing.TB, page, n int) []Item {
	rollbar := sandbox.New(0).Control()
	rollbar.Bulk(page * n)
	answer, err := rawjson.Parse(pageOf(rollbar, page, n), 3)
	require.NoError(t, err)
	items, err := itemsOf(reading{result: answer.Member("result"), when: &timing{time.Now(), time.Now()}})
	require.NoError(t, err)
	require.Len(t, items.Items, n)
	return items.Items
}

func BenchmarkDecodePage(b *testing.B) {
	rollbar := sandbox.New(0).Control()
	rollbar.Bulk(100)
	page := pageOf(rollbar, 1, 100)
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	for b.Loop() {
		answer, err := rawjson.Parse(bytes.Clone(page), 3)
		require.NoError(b, err)
		items, err := itemsOf(reading{result: answer.Member("result")})
		require.NoError(b, err)
		require.Len(b, items.Items, 100)
	}
}

func BenchmarkDigest(b *testing.B) {
	item := bulkItems(b, 1, 1)[0]
	b.SetBytes(int64(len(item.JSON)))
	b.ReportAllocs()
	for b.Loop() {
		observationOf(item)
	}
}

func BenchmarkBucket(b *testing.B) {
	item := bulkItems(b, 1, 1)[0]
	b.ReportAllocs()
	for b.Loop() {
		bucketOf(item.JSON)
	}
}

func BenchmarkStorePage(b *testing.B) {
	b.Run("new", func(b *testing.B) {
		store := newTestStore(b)
		b.ReportAllocs()
		for page := 1; b.Loop(); page++ {
			_, err := store.observe(b.Context(), column(bulkItems(b, page, 100), observationOf))
			require.NoError(b, err)
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		store := newTestStore(b)
		items := bulkItems(b, 1, 100)
		_, err := store.observe(b.Context(), column(items, observationOf))
		require.NoError(b, err)
		b.ReportAllocs()
		for b.Loop() {
			_, err := store.observe(b.Context(), column(items, observationOf))
			require.NoError(b, err)
		}
	})
}

// BenchmarkHandler measures requests to the whole service, without a network.
func BenchmarkHandler(b *testing.B) {
	f := newFixture(b, 1)
	_, err := f.app.store.observe(b.Context(), column(bulkItems(b, 1, 1000), observationOf))
	require.NoError(b, err)
	f.app.log = slog.New(slog.NewJSONHandler(io.Discard, nil))
	handler := newHandler(f.app, commands, &Config{})
	for _, of := range []string{"/which", "/check", "/reports?limit=20", "/reports?limit=20 text/html",
		"/reports?limit=100", "/reports?level=error&status=active", "/reports/17"} {
		b.Run(of, func(b *testing.B) {
			path, accept, _ := strings.Cut(of, " ")
			b.ReportAllocs()
			for b.Loop() {
				w := &benchWriter{header: http.Header{}}
				r := httptest.NewRequest("GET", path, nil)
				r.Host = "localhost"
				r.Header.Set("Accept", cmp.Or(accept, "*/*"))
				handler.ServeHTTP(w, r)
				require.Equal(b, 200, w.status)
			}
		})
	}
}

// A benchWriter discards a response and keeps its status.
type benchWriter struct {
	header http.Header
	status int
}

func (w *benchWriter) Header() http.Header         { return w.header }
func (w *benchWriter) WriteHeader(status int)      { w.status = status }
func (w *benchWriter) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkMerge(b *testing.B) {
	stored := json.RawMessage(bulkItems(b, 1, 1)[0].JSON)
	seen := rawjson.Set(stored, "total_occurrences", json.RawMessage("123456"))
	b.ReportAllocs()
	for b.Loop() {
		_, change := mergeItem(stored, seen)
		require.Equal(b, counted, change)
	}
}

// BenchmarkBatch compares three ways to write a thousand items into a table: as arrays, by COPY into a
// temporary table, and by COPY into the table itself.
func BenchmarkBatch(b *testing.B) {
	items := bulkItems(b, 1, 1000)
	ids, data := make([]int64, len(items)), make([]json.RawMessage, len(items))
	for i, item := range items {
		ids[i], data[i] = item.ID, item.JSON
	}
	store := newTestStore(b)
	conn, err := store.writer(b.Context())
	require.NoError(b, err)
	defer conn.Release()
	exec := func(sql string, args ...any) {
		_, err := conn.Exec(b.Context(), sql, args...)
		require.NoError(b, err)
	}
	copyInto := func(table string) {
		_, err := conn.Conn().CopyFrom(b.Context(), pgx.Identifier{table}, []string{"id", "data"},
			pgx.CopyFromSlice(len(ids), func(i int) ([]any, error) { return []any{ids[i], data[i]}, nil }))
		require.NoError(b, err)
	}
	exec(`CREATE TABLE target (id bigint, data json)`)
	exec(`CREATE TEMPORARY TABLE staging (id bigint, data json)`)
	b.Run("arrays", func(b *testing.B) {
		for b.Loop() {
			exec(`INSERT INTO target SELECT id, data FROM unnest($1::bigint[], $2::json[]) AS i (id, data)`, ids, data)
		}
	})
	b.Run("staging", func(b *testing.B) {
		for b.Loop() {
			copyInto("staging")
			exec(`INSERT INTO target SELECT id, data FROM staging`)
			exec(`TRUNCATE staging`)
		}
	})
	b.Run("copy", func(b *testing.B) {
		for b.Loop() {
			copyInto("target")
		}
	})
}

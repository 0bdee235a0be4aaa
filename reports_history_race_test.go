package main

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"app/internal/datadog/datadogtest"
	"app/internal/devpg/devpgtest"
	"app/internal/rawjson"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// replica returns another service on the same sandbox and database.
func (f *fixture) replica() *fixture {
	other := *f
	other.app = f.newApp()
	other.serve(newHandler(other.app, commands, other.config))
	return &other
}

// holdNext holds back Rollbar's next answer to a request that begins with the prefix. It returns a channel
// that is closed when the answer has arrived, and the function that releases it.
func (f *fixture) holdNext(prefix string) (held chan struct{}, release func()) {
	held, gate := make(chan struct{}), make(chan struct{})
	next := f.app.rollbar.client.Transport
	var done atomic.Bool
	f.app.rollbar.client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		res, err := next.RoundTrip(r)
		request := r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), "/api/1")
		if strings.HasPrefix(request, prefix) && done.CompareAndSwap(false, true) {
			close(held)
			<-gate
		}
		return res, err
	})
	return held, sync.OnceFunc(func() { close(gate) })
}

// history returns the reports of an item, oldest first: the state and a member of the data.
func (f *fixture) history(id int64, member string) []string {
	return f.rows(fmt.Sprintf(`
		SELECT state || ' ' || (data ->> '%s') FROM reports WHERE item_id = %d ORDER BY id`, member, id))
}

// An answer that Rollbar gave before a change does not replace the change when it arrives after it.
func TestOlderAnswerNeverBecomesCurrent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, held, method, path string // of the request that is answered late
		change                   func(f *fixture, path string)
		want                     []string
	}{
		{
			name: "a list beside an update", held: "GET /items/", method: "GET", path: "/items",
			change: func(f *fixture, path string) { f.do("PATCH", path, `{"status":"resolved"}`) },
			want:   []string{"superseded active", "current resolved"},
		},
		{
			name: "a list with a state that nobody else saw", held: "GET /items/", method: "GET", path: "/items?page=1",
			change: func(f *fixture, path string) {
				f.exec(`DELETE FROM reports`)
				f.do("PATCH", path, `{"status":"resolved"}`)
			},
			want: []string{"current resolved", "superseded active"},
		},
		{
			name: "a list beside an update that changes nothing", held: "GET /items/", method: "GET", path: "/items",
			change: func(f *fixture, path string) {
				f.exec(`UPDATE reports SET data = replace(data::text, '"active"', '"muted"')::json, digests = ''`)
				f.sandbox.SetItem(f.sandbox.ItemIDs()[0], "status", "muted")
				f.do("PATCH", path, `{"status":"muted"}`)
			},
			want: []string{"current muted", "superseded active"},
		},
		{
			name: "a sync beside an update", held: "GET /items/", method: "POST", path: "/items/sync",
			change: func(f *fixture, path string) { f.do("PATCH", path, `{"status":"resolved"}`) },
			want:   []string{"superseded active", "current resolved"},
		},
		{
			name: "a read beside another one", held: "GET /item/", method: "GET", path: "ITEM",
			change: func(f *fixture, path string) {
				f.sandbox.SetItem(f.sandbox.ItemIDs()[0], "status", "resolved")
				f.replica().get(path)
			},
			want: []string{"superseded active", "current resolved"},
		},
		{
			name: "an update's own answer beside a read that came before its end",
			held: "GET /item/", method: "PATCH", path: "ITEM",
			change: func(f *fixture, path string) {
				f.sandbox.SetItem(f.sandbox.ItemIDs()[0], "status", "resolved")
				f.replica().get(path)
			},
			want: []string{"superseded active", "superseded resolved", "current active"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 1)
			id := f.sandbox.ItemIDs()[0]
			path := fmt.Sprintf("/items/%d", id)
			f.sandbox.SetItem(id, "status", "active")
			require.Equal(t, 200, f.get(path).status)
			held, release := f.holdNext(test.held)
			t.Cleanup(release)
			body := ""
			if test.method == "PATCH" {
				body = `{"level":"warning"}`
			}
			var late sync.WaitGroup
			late.Go(func() {
				assert.Equal(t, 200, f.do(test.method, strings.Replace(test.path, "ITEM", path, 1), body).status)
			})
			<-held
			test.change(f, path)
			release()
			late.Wait()
			assert.Equal(t, test.want, f.history(id, "status"))
		})
	}
}

// However many clients read an item while it changes, each of its states is one report, in the order of the
// changes.
func TestHistoryWithManyReaders(t *testing.T) {
	t.Parallel()
	const changes, readers = 60, 8
	f := newFixture(t, 1)
	replicas := []*fixture{f, f.replica()}
	id := f.sandbox.ItemIDs()[0]
	f.sandbox.SetItem(id, "title", "title 000") // before anybody sees an earlier title
	var reads, over atomic.Int64
	var group sync.WaitGroup
	for n := range readers {
		group.Go(func() {
			for over.Load() == 0 {
				assert.Equal(t, 200, replicas[n%2].get(fmt.Sprintf("/items/%d", id)).status)
				reads.Add(1)
			}
		})
	}
	var want []string
	for n := range changes + 1 {
		title := fmt.Sprintf("title %03d", n)
		want = append(want, "superseded "+title)
		f.sandbox.SetItem(id, "title", title)
		// Of two reads of the same reader, the second may share a call that began before the change.
		enough := reads.Load() + 2*readers + 1
		require.Eventually(t, func() bool { return reads.Load() >= enough }, waitLimit, waitTick)
	}
	over.Store(1)
	group.Wait()
	want[changes] = fmt.Sprintf("current title %03d", changes)
	assert.Equal(t, want, f.history(id, "title"))
}

var historyTime = flag.Duration("history.time", 3*time.Second, "how long TestHistoryOfConcurrentWriters goes on")

// While two replicas sync, list, update and clean, and items change at Rollbar, nothing fails, no updated item
// ends with an older state, and lists find what is stored.
func TestHistoryOfConcurrentWriters(t *testing.T) {
	t.Parallel()
	postgres := devpgtest.Start(t, "")
	f := newFixture(t, 1500, func(c *Config) { c.DatabaseURL = postgres.URL })
	replicas := []*fixture{f, f.replica()}
	ids := f.sandbox.ItemIDs()
	updated, changed := map[*fixture][]int64{f: ids[:10], replicas[1]: ids[10:20]}, ids[20:]
	f.do("POST", "/items/sync", "")
	ends := time.Now().Add(*historyTime)
	var group sync.WaitGroup
	repeat := func(do func(f *fixture, random *rand.Rand, n int)) {
		for r, replica := range replicas {
			group.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(r)))
				for n := 0; time.Now().Before(ends); n++ {
					do(replica, random, n)
				}
			})
		}
	}
	ok := func(got *answer) { assert.Equal(t, 200, got.status, got.body) }
	repeat(func(f *fixture, _ *rand.Rand, _ int) { ok(f.do("POST", "/items/sync", "")) })
	repeat(func(f *fixture, random *rand.Rand, _ int) { ok(f.get(fmt.Sprint("/items?page=", 1+random.IntN(16)))) })
	repeat(func(f *fixture, random *rand.Rand, n int) {
		id := updated[f][random.IntN(10)]
		title := fmt.Sprint("update ", n, " of ", random.Int64())
		ok(f.do("PATCH", fmt.Sprint("/items/", id), `{"title":"`+title+`"}`))
		assert.Contains(t, f.history(id, "title"), "current "+title)
	})
	repeat(func(f *fixture, random *rand.Rand, n int) {
		for range 100 {
			level := []string{"error", "info", "warning"}[random.IntN(3)]
			f.sandbox.SetItem(changed[random.IntN(len(changed))], "level", level)
		}
		ok(f.get(fmt.Sprint("/items/", changed[random.IntN(len(changed))])))
		const age = `
			WITH chosen AS (
				SELECT %[2]s AS id
				FROM %[1]s
				WHERE %[2]s IN (SELECT id FROM reports WHERE id %% 16 = %[3]d AND item_id >= %[4]d)
				ORDER BY 1
				FOR NO KEY UPDATE
			)
			UPDATE %[1]s SET last_seen = last_seen - interval '2 minutes' WHERE %[2]s IN (SELECT id FROM chosen)`
		f.exec(fmt.Sprintf(age, "reports", "id", n%16, changed[0]))
		f.exec(fmt.Sprintf(age, "seen", "report_id", n%16, changed[0]))
	})
	repeat(func(f *fixture, random *rand.Rand, n int) {
		ok(f.do("DELETE", fmt.Sprint("/reports?state=superseded&item_id=", changed[random.IntN(len(changed))]), ""))
		if n%40 == 20 {
			ok(f.do("DELETE", "/reports?before=10m", ""))
		}
	})
	group.Wait()
	const deadlocks = `SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()`
	t.Log("deadlocks, which PostgreSQL ended after a second each:", f.rows(deadlocks))
	requireFindIsRight(t, f.app.store, 1000, time.Second)
}

// The script in docs/operations.md prints every report exactly once, whoever writes meanwhile.
func TestFollowNewReports(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 300)
	replicas := []*fixture{f, f.replica()}
	_, script, _ := strings.Cut(readDocument(t, "docs/operations.md"), "```bash\nset -o pipefail\n")
	script, _, _ = strings.Cut(script, "```")
	cmd := program(t, nil)
	require.NoError(t, os.Symlink(cmd.Path, filepath.Join(cmd.Dir, "app")))
	follower := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-c",
		"sleep() { command sleep 0.1; }\n"+script)
	var printed datadogtest.LogLines
	follower.Dir, follower.Env = cmd.Dir, append(cmd.Env, "APP_URL="+f.url)
	follower.Stdout, follower.Stderr = &printed, os.Stderr
	require.NoError(t, follower.Start())
	t.Cleanup(func() { follower.Process.Kill(); follower.Wait() })
	require.Eventually(t, func() bool { return strings.Contains(f.log.String(), "reports.list") }, waitLimit, waitTick)

	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	var group sync.WaitGroup
	for n := range 8 {
		group.Go(func() {
			for i := range 40 {
				id := f.sandbox.ItemIDs()[i+100*(n%3)]
				f.sandbox.SetItem(id, "title", fmt.Sprint("title ", n, i))
				switch replica := replicas[n%2]; {
				case n < 2 && i%8 == 0:
					got := replica.do("POST", "/items/sync", "").status
					assert.Contains(t, []int{200, 503}, got, "503 on a machine too busy to store in time")
				case n < 5:
					assert.Equal(t, 200, replica.do("PATCH", fmt.Sprint("/items/", id), `{"level":"info"}`).status)
				default:
					assert.Equal(t, 201, replica.create(newUUID()).status)
				}
			}
		})
	}
	group.Wait()
	want := f.rows(`SELECT id::text FROM reports ORDER BY reports.id`)
	require.Greater(t, len(want), 500)
	var got []string
	require.Eventually(t, func() bool {
		got = nil
		for _, line := range strings.SplitAfter(printed.String(), "\n") {
			if strings.HasSuffix(line, "\n") {
				got = append(got, string(rawjson.Get([]byte(line), "id")))
			}
		}
		return len(got) >= len(want)
	}, waitLimit, 20*waitTick)
	slices.SortFunc(got, func(a, b string) int { return cmp.Compare(atoi(a), atoi(b)) })
	assert.Equal(t, want, got)
}

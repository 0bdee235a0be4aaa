package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/async"
	"app/internal/devpg/devpgtest"
	"app/internal/rawjson"
	"app/internal/sandbox"
)

// The primary of two PostgreSQL servers is lost under load and the synchronous standby promoted. Two replicas
// of the service go on without a restart. All occurrences that they acknowledged arrive at Rollbar, and all
// but those marked as not stored are in the reports.
func TestFailover(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *devpgtest.Server){"killed": kill, "frozen": freeze} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary, standby := devpgtest.StartPair(t)
			f := newFixture(t, 3, withTimeout(time.Second), func(c *Config) {
				hosts := primary.Home + "," + standby.Home
				c.DatabaseURL = strings.Replace(primary.URL, primary.Home, hosts, 1) +
					"&target_session_attrs=read-write"
			})
			env := append(f.env(), "DATABASE_READ_URL="+standby.URL)
			replicas := []*fixture{f.at(startServe(t, env)), f.at(startServe(t, env))}
			all := func(is func(*fixture) bool) func() bool {
				return func() bool { return is(replicas[0]) && is(replicas[1]) }
			}
			healthy := all(func(r *fixture) bool { return r.get("/check").status == 200 })
			until(t, "/check is OK", healthy)
			requireReadsFromStandby(t, replicas, primary, standby)

			load := startLoad(t, replicas)
			until(t, "creates", func() bool { return load.count(attempt.isStored) > 50 })
			f.sandbox.SetFault(sandbox.Down)
			until(t, "a queue", func() bool { return load.count(attempt.isQueued) > 30 })

			lose(t, primary)
			lost := time.Now()
			until(t, "/check is KO", all(func(r *fixture) bool { return r.get("/check").status == 503 }))
			until(t, "nobody takes creates",
				all(func(r *fixture) bool { return load.first(attempt.isRefused, r, lost) > 0 }))
			f.sandbox.SetFault(sandbox.None)
			until(t, "Rollbar alone takes creates",
				all(func(r *fixture) bool { return load.first(attempt.isUnstored, r, lost) > 0 }))

			promoted := time.Now()
			require.Equal(t, []string{"true"}, devpgtest.Query(t, standby.URL, `SELECT pg_promote()::text`))
			until(t, "/check is OK again", healthy)
			t.Logf("/check was OK on both %v after the promotion", time.Since(promoted))
			until(t, "creates are stored again",
				all(func(r *fixture) bool { return load.first(attempt.isStored, r, promoted) > 0 }))
			for _, r := range replicas {
				t.Logf("no create was stored for %v, %v of it after the promotion",
					load.first(attempt.isStored, r, lost), load.first(attempt.isStored, r, promoted))
			}
			before := load.count(attempt.isStored)
			until(t, "many are", func() bool { return load.count(attempt.isStored) > before+50 })
			load.end()
			ended := time.Now()
			devpgtest.Query(t, standby.URL, timePasses)
			for left := math.MaxInt; left > 0; { // how long this takes depends on the pace of deliveries
				until(t, "the queue shrinks", func() bool {
					was := left
					left = atoi(devpgtest.Query(t, standby.URL,
						`SELECT count(*)::text FROM reports WHERE state = 'queued'`)[0])
					return left < was
				})
			}
			t.Logf("the queue was empty %v after the load", time.Since(ended))

			delivered, posts, states := 0, 0, replicas[0].reportStates()
			for _, a := range load.those(attempt.isAcknowledged) {
				delivered += f.sandbox.OccurrencesOf(a.uuid)
				posts += f.sandbox.PostsOf(a.uuid)
				assert.Equal(t, 1, f.sandbox.OccurrencesOf(a.uuid), "%+v", a)
				assert.True(t, a.isUnstored() || states[a.uuid] == "delivered", "%+v is %s", a, states[a.uuid])
			}
			assert.Zero(t, load.count(attempt.isUnread), "the standby answers all the while")
			t.Logf("creates: %d acknowledged as stored (%d as queued), %d as not stored, %d refused; %d delivered in "+
				"%d posts; %d reads",
				load.count(attempt.isStored), load.count(attempt.isQueued), load.count(attempt.isUnstored),
				load.count(attempt.isRefused), delivered, posts, load.count(attempt.isRead))
		})
	}
}

// requireReadsFromStandby proves that reports are read from the standby, and from the primary while
// the standby is down.
func requireReadsFromStandby(t *testing.T, replicas []*fixture, primary, standby *devpgtest.Server) {
	t.Helper()
	until(t, "the standby has the tables", func() bool {
		return devpgtest.Query(t, standby.URL, `SELECT (to_regclass('reports') IS NOT NULL)::text`)[0] == "true"
	})
	devpgtest.Query(t, standby.URL, `SELECT '' FROM pg_wal_replay_pause()`)
	until(t, "the standby falls behind", func() bool {
		return devpgtest.Query(t, standby.URL, `SELECT pg_get_wal_replay_pause_state()`)[0] == "paused"
	})
	uuid := newUUID()
	require.Equal(t, 201, replicas[0].create(uuid).status)
	path := "/reports/" + devpgtest.Query(t, primary.URL,
		fmt.Sprintf(`SELECT id::text FROM reports WHERE uuid = '%s'`, uuid))[0]
	for _, r := range replicas {
		require.NotContains(t, r.reportStates(), uuid, "the standby does not have it yet")
		require.Equal(t, 404, r.get(path).status)
	}
	standby.Halt("fast")
	for _, r := range replicas {
		until(t, "the primary is read", func() bool { return r.get(path).status == 200 }) // connections may end late
		require.Contains(t, r.reportStates(), uuid)
	}
	standby.Resume()
	until(t, "the standby is synchronous again", func() bool {
		return devpgtest.Query(t, primary.URL,
			`SELECT coalesce(max(sync_state), '') FROM pg_stat_replication`)[0] == "sync"
	})
}

// reportStates returns the states of the reports by uuid, as GET /reports shows them.
func (f *fixture) reportStates() map[string]string {
	f.t.Helper()
	states := map[string]string{}
	for _, page := range f.walk("/reports?limit=1000", "next") {
		for _, report := range page.list("reports") {
			states[rawjson.Unquote(rawjson.Get(report, "uuid"))] = rawjson.Unquote(rawjson.Get(report, "state"))
		}
	}
	return states
}

func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, waitLimit, waitTick, what)
}

// A load is the clients that create and read on several replicas, and the answers that they got.
type load struct {
	clients sync.WaitGroup
	end     func() // stops the clients and waits for them

	mu       sync.Mutex
	attempts []attempt // in the order in which they ended
}

// An attempt is one create, or one read, as its client saw it.
type attempt struct {
	url          string
	uuid         string // of a create
	began, ended time.Time
	status       int // 0 if there was no answer
	unstored     bool
}

func (a attempt) isAcknowledged() bool { return a.status == 201 || a.status == 202 }
func (a attempt) isStored() bool       { return a.isAcknowledged() && !a.unstored }
func (a attempt) isUnstored() bool     { return a.status == 201 && a.unstored }
func (a attempt) isQueued() bool       { return a.status == 202 }
func (a attempt) isRefused() bool      { return a.status == 503 }
func (a attempt) isRead() bool         { return a.status == 200 && a.uuid == "" }
func (a attempt) isUnread() bool       { return a.status != 200 && a.uuid == "" }

// startLoad starts eight clients that create and one that reads for each replica.
func startLoad(t *testing.T, replicas []*fixture) *load {
	ctx, stop := newContext(t)
	l := &load{}
	l.end = func() { stop(); l.clients.Wait() }
	t.Cleanup(l.end)
	repeat := func(request func()) {
		l.clients.Go(func() {
			for async.Sleep(ctx, 50*time.Millisecond) {
				request()
			}
		})
	}
	note := func(a attempt, res *http.Response, err error) {
		a.ended = time.Now()
		if err == nil {
			a.status, a.unstored = res.StatusCode, res.Header.Get("Report-Stored") == "false"
			res.Body.Close()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.attempts = append(l.attempts, a)
	}
	for _, r := range replicas {
		for range 8 {
			repeat(func() {
				a := attempt{url: r.url, uuid: newUUID(), began: time.Now()}
				res, err := http.Post(r.url+"/items", "application/json",
					strings.NewReader(fmt.Sprintf(`{"message":"%s","uuid":"%[1]s"}`, a.uuid)))
				note(a, res, err)
			})
		}
		repeat(func() {
			a := attempt{url: r.url, began: time.Now()}
			res, err := http.Get(r.url + "/reports?limit=5")
			note(a, res, err)
		})
	}
	return l
}

func (l *load) count(is func(attempt) bool) int { return len(l.those(is)) }

func (l *load) those(are func(attempt) bool) (found []attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.attempts {
		if are(a) {
			found = append(found, a)
		}
	}
	return found
}

// first returns how long after since the replica first answered a later request in this way, or 0.
func (l *load) first(is func(attempt) bool, r *fixture, since time.Time) time.Duration {
	for _, a := range l.those(is) {
		if a.url == r.url && a.began.After(since) {
			return a.ended.Sub(since)
		}
	}
	return 0
}

// kill ends the server with kill -9. The next start removes what is left in shared memory.
func kill(t *testing.T, p *devpgtest.Server) {
	send(t, "-KILL", devpgtest.Query(t, p.URL, postmaster)[0])
	t.Cleanup(func() {
		assert.NoError(t, os.Remove(filepath.Join(p.Home, "data", "postmaster.pid"))) // its process may be a zombie
		assert.NoError(t, p.Server.Resume(context.Background()))
	})
	devpgtest.RequireGone(t, p.URL)
}

// freeze stops all of the server's processes, as if its machine had vanished: connections are neither closed
// nor answered.
func freeze(t *testing.T, p *devpgtest.Server) {
	parent := devpgtest.Query(t, p.URL, postmaster)[0]
	send(t, "-STOP", parent) // there will be no new ones
	children, err := exec.CommandContext(t.Context(), "pgrep", "-P", parent).Output()
	require.NoError(t, err)
	all := append(strings.Fields(string(children)), parent)
	t.Cleanup(func() { send(t, "-CONT", all...) })
	send(t, "-STOP", all...)
}

const postmaster = `SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)`

// send sends a signal to processes.
func send(t *testing.T, signal string, pids ...string) {
	t.Helper()
	require.NoError(t, exec.Command("/bin/sh", append([]string{"-c", `kill "$@"`, "sh", signal}, pids...)...).Run())
}

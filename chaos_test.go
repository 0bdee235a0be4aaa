package main

import (
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/devpg/devpgtest"
	"app/internal/sandbox"
)

// Beyond some seconds, a randomised run also stops a replica for longer than a lease, and fills the disk
// if PostgreSQL has one of its own. .ci/attack gives it both.
var (
	chaosSeed = flag.Uint64("chaos.seed", 1, "seed of the randomised run")
	chaosTime = flag.Duration("chaos.time", 4*time.Second, "how long the randomised run goes on")
	chaosDisk = flag.String("chaos.disk", "",
		"a directory on a small file system, for PostgreSQL, which the run fills up")
)

// A chaos is the state of TestChaos.
type chaos struct {
	*testing.T
	fixture  *fixture
	random   *rand.Rand
	postgres *devpgtest.Server
	stop     chan struct{}
	clients  sync.WaitGroup

	mu           sync.Mutex
	replicas     [2]*process
	acknowledged []string
	stored       map[string]bool
}

// A randomised run mixes creates, some with the same uuid, on two replicas with everything that can fail: Rollbar
// fails in all its ways, PostgreSQL and the replicas are stopped or killed and restarted, and slow clients read the
// reports. In the end, every acknowledged create has been delivered as exactly one occurrence, and is in the reports
// unless the answer said otherwise.
func TestChaos(t *testing.T) {
	t.Parallel()
	c := &chaos{T: t, random: rand.New(rand.NewPCG(*chaosSeed, 0)), stop: make(chan struct{}),
		stored: map[string]bool{}}
	c.postgres = devpgtest.Start(t, *chaosDisk, "fsync=on", "synchronous_commit=on", "max_wal_size=64MB")
	c.fixture = newFixture(t, 0, withTimeout(300*time.Millisecond),
		func(config *Config) { config.DatabaseURL = c.postgres.URL })
	for n := range c.replicas {
		c.replicas[n] = startServe(t, c.fixture.env())
	}
	for n := range 8 {
		c.clients.Go(func() { c.create(n) })
		c.clients.Go(func() { c.readSlowly(n) })
	}
	harms := []func(){c.crashDatabase, c.endReplica, c.failRollbar, c.failRollbar, c.failRollbar, c.createAtOnce}
	if *chaosTime > time.Minute {
		harms = append(harms, c.stopReplica)
	}
	if *chaosDisk != "" {
		harms = append(harms, c.fillDisk)
	}
	for end := time.Now().Add(*chaosTime); time.Now().Before(end); {
		harms[c.random.IntN(len(harms))]()
	}
	close(c.stop)
	c.clients.Wait()
	c.fixture.sandbox.SetFault(sandbox.None)
	c.fixture.passTime()
	for _, p := range c.replicas { // a successful delivery ends the pause
		require.Eventually(t, func() bool { ok, _ := tryCreate(p.url, newUUID()); return ok }, waitLimit, waitTick)
	}
	t.Logf("%d acknowledged", len(c.acknowledged))
	require.NotEmpty(t, c.acknowledged)
	for _, uuid := range c.acknowledged {
		require.Eventually(t, func() bool { return c.fixture.sandbox.OccurrencesOf(uuid) == 1 }, waitLimit, waitTick)
		if c.stored[uuid] {
			c.fixture.eventually(uuid, "delivered")
		}
	}
}

// replica returns the nth replica, as it is now.
func (c *chaos) replica(n int) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.replicas[n%2]
}

// tick waits, and returns false once the run is over.
func (c *chaos) tick(wait time.Duration) bool {
	select {
	case <-c.stop:
		return false
	case <-time.After(wait):
		return true
	}
}

// post creates an occurrence and notes what the service promised.
func (c *chaos) post(p *process, uuid string) {
	ok, stored := tryCreate(p.url, uuid)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		c.acknowledged = append(c.acknowledged, uuid)
	}
	c.stored[uuid] = c.stored[uuid] || stored
}

func (c *chaos) create(n int) {
	uuid := ""
	for i := 0; c.tick(30 * time.Millisecond); i++ {
		if i%10 != 9 { // otherwise the previous one again
			uuid = newUUID()
		}
		c.post(c.replica(n+i), uuid)
	}
}

// readSlowly reads all reports, a few bytes at a time.
func (c *chaos) readSlowly(n int) {
	for i := n; c.tick(30 * time.Millisecond); i++ {
		req, err := http.NewRequestWithContext(c.Context(), "GET", c.replica(i).url+"/reports", nil)
		assert.NoError(c, err)
		req.Header.Set("Accept", ndjson)
		res, err := http.DefaultClient.Do(req)
		for err == nil && c.tick(time.Millisecond) {
			_, err = io.CopyN(io.Discard, res.Body, 512)
		}
		if res != nil {
			res.Body.Close()
		}
	}
}

func (c *chaos) pause(most time.Duration) { <-time.After(time.Duration(c.random.Int64N(int64(most)))) }

func (c *chaos) crashDatabase() {
	c.postgres.Halt([]string{"fast", "immediate"}[c.random.IntN(2)])
	c.pause(500 * time.Millisecond)
	c.postgres.Resume()
}

func (c *chaos) endReplica() {
	n := c.random.IntN(2)
	old := c.replica(n)
	old.cmd.Process.Signal([]os.Signal{syscall.SIGKILL, syscall.SIGTERM}[c.random.IntN(2)])
	old.wait()
	p := startServe(c, c.fixture.env())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replicas[n] = p
}

func (c *chaos) failRollbar() {
	faults := []sandbox.Fault{
		sandbox.None, sandbox.None, sandbox.None, sandbox.Down, sandbox.Error, sandbox.BadGateway, sandbox.Truncated,
		sandbox.Slow,
		sandbox.Dropped, sandbox.LimitedNear, sandbox.LimitedFar, sandbox.Forbidden, sandbox.Deactivated,
	}
	c.fixture.sandbox.SetFault(faults[c.random.IntN(len(faults))])
	c.pause(500 * time.Millisecond)
}

// createAtOnce has 50 clients create the same occurrence.
func (c *chaos) createAtOnce() {
	uuid := newUUID()
	var clients sync.WaitGroup
	for n := range 50 {
		clients.Go(func() { c.post(c.replica(n), uuid) })
	}
	clients.Wait()
}

// stopReplica stops a replica for longer than its leases last.
func (c *chaos) stopReplica() {
	process := c.replica(c.random.IntN(2)).cmd.Process
	require.NoError(c, process.Signal(syscall.SIGSTOP))
	<-time.After(c.fixture.app.outbox.lease() + 2*time.Second)
	require.NoError(c, process.Signal(syscall.SIGCONT))
}

// fillDisk leaves PostgreSQL no space for some seconds, and then restarts it, since it may not survive that.
func (c *chaos) fillDisk() {
	ballast := filepath.Join(*chaosDisk, "ballast")
	file, err := os.Create(ballast)
	require.NoError(c, err)
	_, err = io.Copy(file, zeros{})
	require.True(c, errors.Is(err, syscall.ENOSPC), err)
	c.pause(4 * time.Second)
	require.NoError(c, errors.Join(file.Close(), os.Remove(ballast)))
	c.postgres.Halt("immediate")
	c.postgres.Resume()
}

// zeros is a file without an end.
type zeros struct{}

func (zeros) Read(buf []byte) (int, error) { clear(buf); return len(buf), nil }

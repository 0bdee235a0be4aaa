//go:build sdk

package main

import (
	"bufio"
	"flag"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"app/internal/devpg/devpgtest"
	"app/internal/rawjson"
	"app/internal/sandbox"
)

// Rollbar's own SDKs report through the relay, in the programs of .ci/clients, which runs this test.
var (
	sdkPrograms = flag.String("sdk", "",
		"programs for TestSDKs, separated by semicolons, that report to ENDPOINT with TOKEN and print UUIDs sent")
	sdkOutage = flag.Duration("sdk.outage", 20*time.Second, "how long Rollbar is down in TestSDKs")
)

// An sdkRun is the state of a program that reports until its standard input ends.
type sdkRun struct {
	name string
	cmd  *exec.Cmd
	end  func() error

	mu   sync.Mutex
	sent []string // the UUIDs of occurrences that were answered with 200
}

func (r *sdkRun) uuids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent
}

func startSDK(t *testing.T, program, url string) *sdkRun {
	r := &sdkRun{name: program}
	words := append(strings.Fields(program), url+"/api/1/item/", "sdk-token")
	r.cmd = exec.CommandContext(t.Context(), words[0], words[1:]...)
	r.cmd.Stderr = os.Stderr
	stdin, err := r.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := r.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			r.mu.Lock()
			r.sent = append(r.sent, lines.Text())
			r.mu.Unlock()
		}
	}()
	r.end = func() error {
		_ = stdin.Close()
		<-read
		return r.cmd.Wait()
	}
	return r
}

// awaitMore waits until the program has sent more.
func (r *sdkRun) awaitMore(t *testing.T) {
	t.Helper()
	before := len(r.uuids())
	require.Eventually(t, func() bool { return len(r.uuids()) > before+10 }, waitLimit, waitTick, r.name)
}

// Rollbar fails in several ways, and meanwhile the service is killed and restarted. Every occurrence that was
// acknowledged to the SDKs reaches Rollbar exactly once, and is archived with its stack trace.
func TestSDKs(t *testing.T) {
	require.NotEmpty(t, *sdkPrograms, "-sdk")
	postgres := devpgtest.Start(t, "", "fsync=on", "synchronous_commit=on")
	f := newFixture(t, 0, func(c *Config) { c.DatabaseURL = postgres.URL })
	env := append(f.env(), "RELAY_TOKEN=sdk-token")
	p := startServe(t, env)
	address := strings.TrimPrefix(p.url, "http://")
	var runs []*sdkRun
	for program := range strings.SplitSeq(*sdkPrograms, ";") {
		runs = append(runs, startSDK(t, program, p.url))
	}
	awaitMore := func() {
		t.Helper()
		for _, r := range runs {
			r.awaitMore(t)
		}
	}

	awaitMore()
	for i, fault := range []sandbox.Fault{sandbox.Down, sandbox.Slow, sandbox.BadGateway, sandbox.LimitedNear} {
		f.sandbox.SetFault(fault)
		<-time.After(*sdkOutage / 4)
		awaitMore()
		if i == 1 {
			p.cmd.Process.Kill()
			p.wait()
			p = startServe(t, env, "-addr", address)
		}
	}
	f.sandbox.SetFault(sandbox.None)
	awaitMore()
	for _, r := range runs {
		require.NoError(t, r.end(), r.name)
	}

	service := f.at(p)
	require.Eventually(t, func() bool {
		return service.get("/reports?state=queued").at("reports") == "[]"
	}, *sdkOutage+time.Minute, 100*time.Millisecond)
	synced := service.do("POST", "/occurrences/sync", "")
	require.Equal(t, 200, synced.status, synced.body)
	f.sandbox.SetFault(sandbox.Down) // the archive does not need Rollbar
	reports, archived := map[string]int{}, map[string]int{}
	traces := map[string]bool{}
	for _, page := range service.walk("/reports?state=delivered&limit=1000", "next") {
		for _, report := range page.list("reports") {
			reports[rawjson.Unquote(rawjson.Get(report, "uuid"))]++
		}
	}
	for _, page := range service.walk("/occurrences?limit=1000", "next") {
		for _, o := range page.list("occurrences") {
			uuid := rawjson.Unquote(at(o, "data", "uuid"))
			archived[uuid]++
			traces[uuid] = strings.Contains(string(at(o, "data", "body")), `"frames":[{`)
		}
	}
	for _, r := range runs {
		withTrace := 0
		for _, uuid := range r.uuids() {
			assert.Equal(t, 1, f.sandbox.OccurrencesOf(uuid), "%s reported %s", r.name, uuid)
			assert.Equal(t, 1, reports[uuid], "%s reported %s", r.name, uuid)
			assert.Equal(t, 1, archived[uuid], "%s reported %s", r.name, uuid)
			if traces[uuid] {
				withTrace++
			}
		}
		assert.NotZero(t, withTrace, r.name)
		t.Logf("%s was told that %d are sent, %d with a stack trace: each came once and is archived",
			r.name, len(r.uuids()), withTrace)
	}
}

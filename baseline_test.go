//go:build baseline

package main

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"app/internal/datadog/datadogtest"
	"app/internal/rawjson"
	"app/internal/sandbox"
)

// TestBaseline compares the service with a baseline, a program that does the least work for the same responses:
//
//	go test -tags baseline -run TestBaseline -timeout 2h -v -baseline PROGRAM -baseline.database URL
//
// The baseline listens at ADDR, reads its table bench_reports at DATABASE_URL and calls the Rollbar at
// UPSTREAM. `items sync` fills the service's own database, which is created next to it, from the sandbox.
// wrk makes the load.
var (
	baseline         = flag.String("baseline", "", "the program to compare with in TestBaseline")
	baselineDatabase = flag.String("baseline.database", "", "the URL of its database")
	baselineReports  = flag.Int("baseline.reports", 1_000_000, "the number of reports at the end")
	baselineRounds   = flag.Int("baseline.rounds", 3, "how often each figure is measured")
	baselineTime     = flag.String("baseline.time", "5s", "how long each load lasts")
)

// A comparison is the state of TestBaseline.
type comparison struct {
	*testing.T
	rollbar  *sandbox.Control
	items    int // that Rollbar has
	upstream string
	database string // the service's
	conn     *pgx.Conn
	baseline string   // its URL
	answers  sync.Map // the sandbox's, by URL
}

func TestBaseline(t *testing.T) {
	require.NotEmpty(t, *baseline, "-baseline")
	c := newComparison(t)
	fmt.Println("| work | service ÷ baseline | goal | figures |\n| --- | --- | --- | --- |")
	c.start()
	c.compareSync(min(100_000, *baselineReports))
	var growth []string
	for n := 10_000; n <= *baselineReports; n *= 10 {
		growth = append(growth, c.grow(n))
	}
	p := c.serve()
	for _, row := range []struct {
		path string
		goal float64
	}{{"/which", .6}, {"/check", .8}, {"/reports?limit=20", .85}, {"/reports?limit=100", .9},
		{"/items?limit=100", .4}} {
		c.compareLoad("GET "+row.path, p.url+row.path, c.baseline+row.path, row.goal)
	}
	c.surfaces(p) // before the next line adds reports that are smaller
	c.compareLoad("POST /items", p.url+"/items", c.baseline+"/items", .4, "-s", c.script())
	c.memory(p)
	c.telemetry()
	c.relay()
	fmt.Println("\n| reports | first page | far page ÷ first | slowest filter ÷ first | sync, items/s | again, " +
		"items/s | memory of sync |\n| --- | --- | --- | --- | --- | --- | --- |")
	fmt.Println(strings.Join(growth, "\n"))
}

func newComparison(t *testing.T) *comparison {
	c := &comparison{T: t, rollbar: sandbox.New(0).Control()}
	c.rollbar.Set(func(s *sandbox.Settings) { s.RateLimit = math.MaxInt })
	upstream := httptest.NewServer(http.HandlerFunc(c.replay))
	t.Cleanup(upstream.Close)
	c.upstream = upstream.URL + "/api/1"
	server, err := pgx.Connect(t.Context(), *baselineDatabase)
	require.NoError(t, err)
	defer server.Close(t.Context())
	for _, sql := range []string{`DROP DATABASE IF EXISTS app_baseline`, `CREATE DATABASE app_baseline`,
		`SELECT 1 FROM bench_reports LIMIT 1`} {
		_, err := server.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	own, err := url.Parse(*baselineDatabase)
	require.NoError(t, err)
	own.Path = "/app_baseline"
	c.database = own.String()
	c.conn, err = pgx.Connect(t.Context(), c.database)
	require.NoError(t, err)
	listener := datadogtest.ListenTCP(t, "127.0.0.1:0")
	address := listener.Addr().String()
	listener.Close()
	cmd := exec.CommandContext(t.Context(), *baseline)
	cmd.Env = append(os.Environ(), "ADDR="+address, "DATABASE_URL="+*baselineDatabase, "UPSTREAM="+c.upstream,
		"ROLLBAR_READ_TOKEN="+sandbox.ReadToken)
	require.NoError(t, cmd.Start())
	c.baseline = "http://" + address
	c.await(c.baseline + "/which")
	return c
}

// replay answers as the sandbox does, but keeps its answers to lists of items and to creates: the sandbox shares the
// service's cores, and would take most of the time of a sync and a sixth of that of a create.
func (c *comparison) replay(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // it is only cut off when the service stops
	r.Body = io.NopCloser(bytes.NewReader(body))
	uuid := rawjson.Get(body, "data", "uuid")
	if uuid == nil && r.URL.Path != "/api/1/items/" {
		c.rollbar.ServeHTTP(w, r)
		return
	}
	kept, found := c.answers.Load(r.URL.String())
	if !found {
		recorder := httptest.NewRecorder()
		c.rollbar.ServeHTTP(recorder, r)
		kept = keptAnswer{recorder, uuid}
		if recorder.Code == 200 {
			c.answers.Store(r.URL.String(), kept)
		}
	}
	a := kept.(keptAnswer)
	maps.Copy(w.Header(), a.Header())
	text := a.Body.Bytes()
	if uuid != nil {
		text = bytes.Replace(text, a.uuid, uuid, 1)
	}
	_, _ = w.Write(text)
}

// A keptAnswer is an answer of the sandbox with, for a create, the occurrence's uuid, a JSON string.
type keptAnswer struct {
	*httptest.ResponseRecorder
	uuid []byte
}

func (c *comparison) env(more ...string) []string {
	return append(more, "DATABASE_URL="+c.database, "ROLLBAR_URL="+c.upstream, "ROLLBAR_TOKEN="+sandbox.Token)
}

// serve starts the service. Its log goes nowhere: reading it would be part of the measurement.
func (c *comparison) serve(more ...string) *process {
	listener := datadogtest.ListenTCP(c, "127.0.0.1:0")
	address := listener.Addr().String()
	listener.Close()
	p := &process{t: c, cmd: program(c, c.env(append(more, "ADDR="+address)...), "serve"), url: "http://" + address}
	require.NoError(c, p.cmd.Start())
	c.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	c.await(p.url + "/check")
	return p
}

// await waits until something answers.
func (c *comparison) await(target string) {
	require.Eventually(c, func() bool {
		res, err := http.Get(target)
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == 200
	}, waitLimit, waitTick)
}

func (c *comparison) exec(sql ...string) {
	for _, statement := range sql {
		_, err := c.conn.Exec(c.Context(), statement)
		require.NoError(c, err, statement)
	}
}

// row prints a line of the table.
func (c *comparison) row(work string, ratio float64, sign string, goal float64, figures string) {
	fmt.Printf("| %s | %.2f | %s %.2f | %s |\n", work, ratio, sign, goal, figures)
}

// A sample is several measurements of the same thing.
type sample []float64

func (s sample) median() float64 {
	slices.Sort(s)
	return s[len(s)/2]
}

func (s sample) String() string {
	return fmt.Sprintf("%.0f (%.0f–%.0f)", s.median(), slices.Min(s), slices.Max(s))
}

var wrkFigure = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)

// load puts load on a URL and returns the requests per second.
func (c *comparison) load(target string, args ...string) float64 {
	out, err := exec.Command("wrk", append(append([]string{"-t1", "-c16", "-d" + *baselineTime, "--latency"}, args...),
		target)...).CombinedOutput()
	require.NoError(c, err, "wrk, from the package of that name: %s", out)
	require.NotContains(c, string(out), "Non-2xx", target)
	figure, err := strconv.ParseFloat(wrkFigure.FindStringSubmatch(string(out))[1], 64)
	require.NoError(c, err)
	return figure
}

// compareLoad puts load on both programs, in turn.
func (c *comparison) compareLoad(work, ours, theirs string, goal float64, args ...string) {
	var a, b sample
	for range *baselineRounds {
		if len(args) > 0 {
			c.exec("CHECKPOINT")
		}
		b = append(b, c.load(theirs, args...))
		a = append(a, c.load(ours, args...))
	}
	c.row(work, a.median()/b.median(), "≥", goal, fmt.Sprintf("%v ÷ %v requests/s", a, b))
}

// script returns the path of wrk's script for creating items.
func (c *comparison) script() string {
	path := c.TempDir() + "/create.lua"
	require.NoError(c, os.WriteFile(path, []byte(`wrk.method = "POST"
wrk.body = '{"message":"checkout is closed","level":"critical"}'
wrk.headers["Content-Type"] = "application/json"`), 0o600))
	return path
}

// sync runs `items sync` and returns its items per second and its peak memory.
func (c *comparison) sync() (rate, mebibytes float64) {
	c.exec("CHECKPOINT")
	var out bytes.Buffer
	cmd := program(c, c.env(), "items", "sync")
	cmd.Stdout = &out
	began := time.Now()
	require.NoError(c, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for running := true; running; {
		select {
		case err := <-done:
			require.NoError(c, err)
			running = false
		case <-time.After(20 * time.Millisecond): // a process that has ended has no such figure
			mebibytes = max(mebibytes, memoryOf(cmd.Process.Pid, "VmHWM:"))
		}
	}
	took := time.Since(began).Seconds()
	items, _ := rawjson.Int(rawjson.Get(bytes.TrimSpace(out.Bytes()), "items"))
	require.EqualValues(c, c.items, items)
	return float64(items) / took, mebibytes
}

// list makes Rollbar list n items.
func (c *comparison) list(n int) {
	c.items = n
	c.rollbar.Bulk(n)
	c.answers.Clear()
	c.exec("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
	c.sync() // fills answers
	c.exec("TRUNCATE reports, seen, blocks RESTART IDENTITY")
}

// itemsFile writes the JSON of n items, a multiple of 100, into a file for psql's \copy.
func (c *comparison) itemsFile(n int) (path string) {
	var lines []byte
	for _, item := range bulkItems(c, 1, 100) {
		lines = append(append(lines, bytes.ReplaceAll(item.JSON, []byte(`\`), []byte(`\\`))...), '\n')
	}
	path = c.TempDir() + "/items"
	require.NoError(c, os.WriteFile(path, bytes.Repeat(lines, n/100), 0o600))
	return path
}

// copy copies n items from a file into a table and returns the items per second.
func (c *comparison) copy(path string, n int) float64 {
	c.exec("DROP TABLE IF EXISTS copied", "CREATE TABLE copied (data json NOT NULL)", "CHECKPOINT")
	began := time.Now()
	out, err := exec.Command("psql", "-qX", c.database, "-c", `\copy copied FROM '`+path+`'`).CombinedOutput()
	require.NoError(c, err, "psql: %s", out)
	return float64(n) / time.Since(began).Seconds()
}

func (c *comparison) compareSync(n int) {
	c.list(n)
	path := c.itemsFile(n)
	var first, again, copied sample
	for range *baselineRounds {
		copied = append(copied, c.copy(path, n))
		c.exec("TRUNCATE reports, seen, blocks RESTART IDENTITY")
		rate, _ := c.sync()
		first = append(first, rate)
		rate, _ = c.sync()
		again = append(again, rate)
	}
	c.row(fmt.Sprintf("sync of %d new items", n), first.median()/copied.median(), "≥", .3,
		fmt.Sprintf("%v ÷ %v items/s", first, copied))
	c.row("… and again, unchanged", again.median()/copied.median(), "≥", .6,
		fmt.Sprintf("%v ÷ %v items/s", again, copied))
	began := time.Now()
	for page := 1; page <= n/100; page++ {
		pageOf(http.HandlerFunc(c.replay), page, 100)
	}
	fmt.Printf("| (the fake Rollbar alone) | | | %.0f items/s |\n", float64(n)/time.Since(began).Seconds())
}

// grow brings the reports to n and returns a line of the table of growth. The last call also prints lines of
// the table of ratios.
func (c *comparison) grow(n int) string {
	c.list(n)
	rate, memory := c.sync()
	again, _ := c.sync()
	c.exec("VACUUM ANALYZE")
	p := c.serve()
	firstPage := c.latency(p.url + "/reports?limit=20")
	farPage := c.latency(p.url + "/reports?limit=20&cursor=" + rowCursor{before: 30}.String())
	var bounds [2]time.Time
	require.NoError(c, c.conn.QueryRow(c.Context(), `
		SELECT max(first_seen) FILTER (WHERE id <= $1), max(first_seen) FILTER (WHERE id <= 2 * $1)
		FROM reports`, n/3).Scan(&bounds[0], &bounds[1]))
	var slowest time.Duration
	var filter string
	for _, query := range filterPairs() {
		query = strings.NewReplacer("EARLY", bounds[0].UTC().Format(time.RFC3339Nano), "LATE",
			bounds[1].UTC().Format(time.RFC3339Nano),
			"q=alpha", "q=job", "q=w4711", "q=10004711").Replace(query)
		if took := c.latency(p.url + "/reports?" + query); took > slowest {
			slowest, filter = took, query
		}
	}
	require.NoError(c, p.cmd.Process.Signal(syscall.SIGTERM))
	p.wait()
	far, slow := float64(farPage)/float64(firstPage), float64(slowest)/float64(firstPage)
	if n == *baselineReports {
		c.row(fmt.Sprintf("the far end of %d reports ÷ the first page", n), far, "≤", 1.2,
			fmt.Sprintf("%v ÷ %v", farPage, firstPage))
		c.row("the slowest filter or pair, ms", float64(slowest.Microseconds())/1000, "≤", 100, "`"+filter+"`")
		c.row("memory of a sync of all, MiB", memory, "≤", 64, "")
	}
	return fmt.Sprintf("| %d | %v | %.2f | %.1f | %.0f | %.0f | %.0f MiB |", n, firstPage, far, slow, rate, again,
		memory)
}

// latency returns the median time of requests that are sent one after another.
func (c *comparison) latency(target string, header ...string) time.Duration {
	var took []time.Duration
	for range 15 {
		req, err := http.NewRequest("GET", target, nil)
		require.NoError(c, err)
		for pair := range slices.Chunk(header, 2) {
			req.Header.Set(pair[0], pair[1])
		}
		began := time.Now()
		res, err := http.DefaultClient.Do(req)
		require.NoError(c, err)
		_, err = io.Copy(io.Discard, res.Body)
		require.NoError(c, err)
		res.Body.Close()
		require.Equal(c, 200, res.StatusCode, target)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2].Round(time.Microsecond)
}

func (c *comparison) rss(p *process) float64 { return memoryOf(p.cmd.Process.Pid, "VmRSS:") }

func (c *comparison) memory(busy *process) {
	idle := c.serve()
	time.Sleep(3 * time.Second) // idle memory is what is measured
	c.row("memory, idle, MiB", c.rss(idle), "≤", 20, "")
	most := 0.0
	done := make(chan struct{})
	go func() { defer close(done); c.load(busy.url + "/reports?limit=1000") }()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		case <-time.After(50 * time.Millisecond):
			most = max(most, c.rss(busy))
		}
	}
	c.row("memory, pages of 1000 to 16 clients, MiB", most, "≤", 64, "")
}

// telemetry compares the service with and without an agent that gets all its telemetry.
func (c *comparison) telemetry() {
	agent := datadogtest.New(c)
	agent.AnswerWith(func(w http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{}`)
		return true
	})
	on := c.serve("DD_TRACE_AGENT_URL=http://"+agent.Address,
		"DD_DOGSTATSD_URL=udp://"+agent.Packets.LocalAddr().String())
	off := c.serve()
	var a, b sample
	for range *baselineRounds {
		b = append(b, c.load(off.url+"/reports?limit=20"))
		a = append(a, c.load(on.url+"/reports?limit=20"))
	}
	c.row("GET /reports?limit=20 with Datadog ÷ without", a.median()/b.median(), "≥", .9,
		fmt.Sprintf("%v ÷ %v requests/s", a, b))
}

// surfaces measures the other readers of the reports.
func (c *comparison) surfaces(p *process) {
	var pages sample
	for range *baselineRounds {
		html := c.latency(p.url+"/reports?limit=20", "Accept", htmlType)
		pages = append(pages, float64(html)/float64(c.latency(p.url+"/reports?limit=20")))
	}
	c.row("an HTML page ÷ its JSON", pages.median(), "≤", 1.5, "")
	c.row("GET /reports/summary, ms", float64(c.latency(p.url+"/reports/summary").Microseconds())/1000, "≤", 1000, "")
	var first sample
	for range 20 {
		cmd := program(c, c.env(), "mcp")
		cmd.Stdin = strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}` + "\n")
		began := time.Now()
		require.NoError(c, cmd.Run())
		first = append(first, float64(time.Since(began).Microseconds())/1000)
	}
	c.row("app mcp to the end of its first answer, ms", first.median(), "≤", 30, "")
}

// relay measures how long SDKs wait while Rollbar hangs, at 500 occurrences a second and at full load.
func (c *comparison) relay() {
	c.rollbar.SetFault(sandbox.Slow)
	defer c.rollbar.SetFault(sandbox.None)
	p := c.serve("RELAY_TOKEN=sdk", "QUEUE_LIMIT=10000000")
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512}}
	const body = `{"data":{"environment":"production","level":"error",` +
		`"body":{"message":{"body":"checkout is closed"}}}}`
	post := func() float64 {
		began := time.Now()
		req, err := http.NewRequest("POST", p.url+"/api/1/item/", strings.NewReader(body))
		require.NoError(c, err)
		req.Header.Set("X-Rollbar-Access-Token", "sdk")
		res, err := client.Do(req)
		require.NoError(c, err)
		res.Body.Close()
		require.Equal(c, 200, res.StatusCode)
		return float64(time.Since(began).Microseconds()) / 1000
	}
	const n = 5000
	took := make(sample, n)
	var all sync.WaitGroup
	for i, began := 0, time.Now(); i < n; i++ {
		time.Sleep(time.Until(began.Add(time.Duration(i) * 2 * time.Millisecond)))
		all.Go(func() { took[i] = post() })
	}
	all.Wait()
	half := took.median() // sorts
	c.row("relay at 500/s, p99 in ms", took[n*99/100], "≤", 50, fmt.Sprintf("median %.1f ms", half))
	path := c.TempDir() + "/relay.lua"
	script := "wrk.method = 'POST'\nwrk.body = '" + body + "'\nwrk.headers['X-Rollbar-Access-Token'] = 'sdk'\n"
	require.NoError(c, os.WriteFile(path, []byte(script), 0o600))
	c.compareLoad("relay, durable", p.url+"/api/1/item/", c.baseline+"/items", .4, "-s", path)
}

// start measures `app which`.
func (c *comparison) start() {
	var took sample
	for range 20 {
		cmd := program(c, c.env(), "which")
		began := time.Now()
		require.NoError(c, cmd.Run())
		took = append(took, float64(time.Since(began).Microseconds())/1000)
	}
	c.row("app which, ms", cmp.Or(took.median(), 0), "≤", 10, "")
}

package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Control is a Sandbox with what tests need and Rollbar does not offer: it injects faults, changes settings and
// items behind the API's back, and shows what the sandbox has received.
type Control struct{ *Sandbox }

// Control returns the control of the sandbox.
func (s *Sandbox) Control() *Control { return &Control{s} }

// Settings are the properties of Rollbar and its project that a test can change.
type Settings struct {
	Now          func() time.Time
	LargeProject int  // a list of more items than this has no total_count
	RateLimit    int  // calls per token and minute
	Manual       bool // posts and deletions, once accepted, wait for Process
}

// Set changes the settings.
func (c *Control) Set(change func(*Settings)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.settings)
}

// A Fault is a way in which Rollbar fails.
type Fault string

const (
	None        Fault = ""
	Down        Fault = "down"         // closes the connection without a response
	Error       Fault = "error"        // 500
	BadGateway  Fault = "bad gateway"  // 502 with the gateway's HTML
	Truncated   Fault = "truncated"    // cuts the response off in the middle
	Slow        Fault = "slow"         // gives no response until the client gives up or the fault ends
	Dropped     Fault = "dropped"      // does the work but loses the response
	LimitedNear Fault = "limited near" // 429 for another second
	LimitedFar  Fault = "limited far"  // 429 for hours
	Deactivated Fault = "deactivated"  // 429 for an account that is not paid for
	Forbidden   Fault = "forbidden"    // 403 as for an unknown token
)

// A failure says which requests fail, and how.
type failure struct {
	fault Fault
	only  string        // the beginning of their "METHOD /path"
	left  int           // how many more fail; all if negative
	ended chan struct{} // closed when the fault ends
}

// SetFault makes all requests fail until the fault is changed. None ends it.
func (c *Control) SetFault(f Fault) { c.FailOnly("", -1, f) }

// FailNext makes the next n requests fail.
func (c *Control) FailNext(n int, f Fault) { c.FailOnly("", n, f) }

// FailOnly fails the next n requests that begin with only, such as "DELETE /instance/", or all of them if n is
// negative.
func (c *Control) FailOnly(only string, n int, f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.ended)
	c.failure = failure{f, only, n, make(chan struct{})}
}

// fail answers a request, or fails it if it has a fault. It returns how many bytes of the response to send.
func (s *Sandbox) fail(r *request) (res response, size int) {
	fault, ended := s.begin(r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), "/api/1"))
	switch fault {
	case Slow:
		select {
		case <-ended:
		case <-r.Context().Done():
		}
		fallthrough
	case Down:
		panic(http.ErrAbortHandler)
	case BadGateway:
		r.header.Set("Content-Type", "text/html")
		res = response{502, []byte("<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n" +
			"<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n")}
		return res, len(res.text)
	case None, Truncated, Dropped:
		res = s.respond(r)
	default:
		res = s.refuse(r, fault)
	}
	switch fault {
	case Dropped:
		panic(http.ErrAbortHandler)
	case Truncated:
		return res, len(res.text) / 2
	}
	return res, len(res.text)
}

// refuse answers with a failure in Rollbar's own format.
func (s *Sandbox) refuse(r *request, fault Fault) response {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fault == Forbidden {
		return unknownToken(r)
	}
	s.countCall(r)
	switch fault {
	case LimitedNear:
		s.showLimit(r.header, 0, time.Second)
	case LimitedFar:
		s.showLimit(r.header, 0, 18*time.Hour)
	case Deactivated:
		return errorf(429, "This account has been deactivated. To reactivate it, log in to Rollbar and choose a plan. "+
			"Access token: %s", r.token)
	case Error:
		return errorf(500, "internal error")
	}
	return errorf(429, "Over rate limit. Access token: %s", r.token)
}

// begin logs a request and returns its fault, with the channel that is closed when the fault ends.
func (s *Sandbox) begin(request string) (Fault, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log[max(0, len(s.log)-9_999):], request)
	if s.left == 0 || !strings.HasPrefix(request, s.only) {
		return None, nil
	}
	s.left--
	return s.fault, s.ended
}

// Requests returns "METHOD /path?query" of the last 10 000 requests, without the API's prefix.
func (c *Control) Requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.log)
}

// Process carries out the posts and deletions that wait because of Settings.Manual.
func (c *Control) Process() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, work := range c.pending {
		work()
	}
	c.pending = nil
}

// OccurrencesOf returns how many occurrences have the uuid, which is never more than one.
func (c *Control) OccurrencesOf(uuid string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.byUUID[uuid]; o != nil && c.occurrences[o.id] != nil {
		return 1
	}
	return 0
}

// PostsOf returns how often the uuid was posted.
func (c *Control) PostsOf(uuid string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.posts[uuid]
}

// DataOf returns the data that were first posted with the uuid, without white space.
func (c *Control) DataOf(uuid string) json.RawMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.byUUID[uuid]; o != nil {
		return o.data
	}
	return nil
}

// ItemIDs returns the ids of all items in the order of their counters.
func (c *Control) ItemIDs() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.items))
}

// UUID returns the uuid of the nth occurrence of an invented item; both count from 0.
func (c *Control) UUID(item, n int) string { return seedUUID(item, n) }

// Touch gives an item one more occurrence.
func (c *Control) Touch(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[id]
	c.invent(newUUID(), c.settings.Now().Unix(), fmt.Sprintf(
		`"environment":%q,"fingerprint":%q,"level":"error","body":{"message":{"body":"again"}}`, it["environment"], it["hash"]))
}

// SetItem changes a field of an item.
func (c *Control) SetItem(id int64, field string, value any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.items[id][field] = value
}

// bulkNumber is the placeholder for an item's number in a sample.
const bulkNumber = 12345678

// Bulk makes GET /items list n items, up to 90 million, for measurements. They are rendered in advance, so a page
// costs next to nothing. No other request knows them, and no filter applies. Posts are accepted unread.
func (c *Control) Bulk(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var samples [][][]byte // each item, split where its number belongs
	invented := New(30)
	for _, id := range slices.Sorted(maps.Keys(invented.items)) {
		it := invented.items[id]
		for _, name := range []string{"id", "controlling_id", "last_occurrence_timestamp", "first_occurrence_id", "last_occurrence_id"} {
			it[name] = int64(17e8 + bulkNumber)
		}
		it["counter"] = bulkNumber
		it["title"] = fmt.Sprintf("%.230s in job %d", it["title"], bulkNumber)
		it["hash"] = fmt.Sprintf("%.32s%d", it["hash"], bulkNumber)
		sample := bytes.ReplaceAll(encode(it.without(seed().SingleFields)), []byte("\n"), []byte("\n      "))
		samples = append(samples, bytes.Split(sample, []byte(strconv.Itoa(bulkNumber))))
	}
	c.routes = maps.Clone(routes)
	c.routes["POST /item"] = route{"", func(*Sandbox, *request) response { return result(map[string]any{"id": nil, "uuid": nil}) }}
	c.routes["GET /items"] = route{"read", func(s *Sandbox, r *request) response {
		number, from, to := r.page(100, n)
		page := s.itemPage([]item{}, number, n)
		page.text = fill(page.text, samples, from, to)
		return page
	}}
}

// fill puts a range of Bulk's items into the empty list of a page.
func fill(page []byte, samples [][][]byte, from, to int) []byte {
	before, after, _ := bytes.Cut(page, []byte("[]"))
	text := append(append(make([]byte, 0, 1500*max(1, to-from)), before...), '[')
	separator := "\n      "
	for n := from; n < to; n++ {
		text = append(text, separator...)
		for i, part := range samples[n%len(samples)] {
			if i > 0 {
				text = strconv.AppendInt(text, int64(10_000_001+n), 10)
			}
			text = append(text, part...)
		}
		separator = ",\n      "
	}
	return append(append(text, "\n    ]"...), after...)
}

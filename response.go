package main

import (
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"app/internal/secrets"
)

// Media types other than JSON.
const (
	ndjson   = "application/x-ndjson"
	csvType  = "text/csv"
	htmlType = "text/html"
	formType = "application/x-www-form-urlencoded" // what a page's form sends
)

// anyJSON are the media ranges that include JSON.
var anyJSON = []string{"application/json", "application/*", "*/*"}

const (
	heldBack    = 256 << 10 // bytes; the most of a body that is held back
	worthZip    = 4 << 10   // bytes; compressing less costs more time than it saves
	shortEnough = 1 << 10   // bytes; net/http sets the length of a shorter body itself
	zipperSize  = 1 << 20   // bytes that a gzip.Writer takes, roughly
)

// Headers that many responses share.
var (
	commonHeader = http.Header{"X-Content-Type-Options": {"nosniff"}, "Cache-Control": {"no-store"}, "Vary": {"Accept", "Accept-Encoding"}}
	jsonType     = []string{"application/json"}
	problemType  = []string{"application/problem+json"}
)

// spareBodies and zippers are pools of parts of responses.
var (
	spareBodies = sync.Pool{New: func() any { return new([heldBack]byte) }}
	zippers     = sync.Pool{New: func() any {
		zipper, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
		return zipper
	}}
)

// A response is the response to one request, with what is known about the request so far. It holds the body back
// until it is complete or larger than heldBack, and compresses it if the caller accepts that and it is worth it.
type response struct {
	http.ResponseWriter // net/http's own
	request             *http.Request
	id, operation       string // id is the request's
	counted             bool   // another surface has counted the operation
	call                Call
	wanted, columns     string // the media type, and a list's columns in CSV
	mask                *secrets.Mask
	failure             *Failure
	page                *page                           // nil for a caller who does not prefer pages
	form                url.Values                      // the fields of a page's form; nil without one
	refusal             func(http.Header, *Failure) any // makes the body of a failure; nil for problem details
	timeout             time.Duration                   // for the client to take each part of the body

	status   int          // 0 until it is known
	started  bool         // the header has gone out
	body     []byte       // the part that is held back
	zipper   *gzip.Writer // nil for a body that is not compressed
	writeErr error        // why writing to the client failed
	held     int          // bytes taken from the memory budget
}

// Unwrap returns net/http's own ResponseWriter, for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader sets the status. The header goes out with the first part of the body.
func (w *response) WriteHeader(status int) { w.status = status }

func (w *response) Write(p []byte) (int, error) {
	if w.body == nil {
		w.body = spareBodies.Get().(*[heldBack]byte)[:0]
		w.use(heldBack)
	}
	all := len(p)
	for n := heldBack - len(w.body); n < len(p); n = heldBack {
		if err := w.send(append(w.body, p[:n]...)); err != nil {
			return 0, err
		}
		w.body, p = w.body[:0], p[n:]
	}
	w.body = append(w.body, p...)
	return all, nil
}

// send sends a part of the body, with the header before the first one, and extends the client's deadline.
func (w *response) send(part []byte) error {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.timeout))
	if !w.started {
		w.started = true
		if len(part) >= worthZip && preference(w.request, "Accept-Encoding", "gzip", "*") > 0 {
			h := w.Header()
			h.Set("Content-Encoding", "gzip")
			h.Del("Content-Length")
			w.zipper = zippers.Get().(*gzip.Writer)
			w.use(zipperSize)
			w.zipper.Reset(w.ResponseWriter)
		}
		w.ResponseWriter.WriteHeader(w.status)
	}
	switch {
	case len(part) == 0:
	case w.zipper != nil:
		_, w.writeErr = w.zipper.Write(part)
	default:
		_, w.writeErr = w.ResponseWriter.Write(part)
	}
	return w.writeErr
}

// finish sends the rest of the body. A body that was held back entirely gets a Content-Length.
func (w *response) finish() {
	if !w.started && len(w.body) > shortEnough {
		w.Header().Set("Content-Length", strconv.Itoa(len(w.body)))
	}
	err := w.send(w.body)
	if err == nil && w.zipper != nil {
		err = w.zipper.Close()
	}
	if err != nil {
		w.interrupt()
	}
}

// use counts memory as in use until the response is over.
func (w *response) use(n int) {
	memory.Add(n)
	w.held += n
}

// release returns the response's memory to the budget and its parts to their pools.
func (w *response) release() {
	memory.Add(-w.held)
	if w.body != nil {
		spareBodies.Put((*[heldBack]byte)(w.body[:heldBack]))
	}
	if w.zipper != nil {
		zippers.Put(w.zipper)
	}
}

// interrupt cuts off the response to a client that went away.
func (w *response) interrupt() {
	w.failure = &Failure{kind: interrupted, detail: "the client went away", err: w.writeErr}
	w.status = interrupted.status
	panic(http.ErrAbortHandler)
}

// respond sends an operation's result. A list that fails halfway is cut off, so that a truncated response cannot
// pass for a complete one.
func (w *response) respond(result any) {
	w.note()
	w.WriteHeader(outcomeOf(result).status)
	h := w.Header()
	h["Content-Type"] = jsonType
	write := func() error { return writeResult(w, result) }
	switch value := result.(type) {
	case Text:
		h.Set("Content-Type", "text/plain; charset=utf-8")
	case json.RawMessage:
		if w.isKnown(value) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	case *List:
		setLinks(h, w.request.URL, value)
		switch w.wanted {
		case ndjson:
			h["Content-Type"], write = []string{ndjson}, func() error { return w.respondLines(value) }
		case csvType:
			h["Content-Type"], write = []string{csvType + "; charset=utf-8"}, func() error { return value.writeCSV(w, strings.Fields(w.columns)) }
		}
		if w.request.Method == http.MethodHead {
			for range value.Rows { // releases what they hold
				return
			}
			return
		}
	}
	if err := write(); w.writeErr != nil {
		w.interrupt()
	} else if err != nil {
		w.refuse(err)
	}
}

// respondLines writes a list's elements, one per line. A failure after the first element becomes the last line.
func (w *response) respondLines(list *List) error {
	err := list.writeLines(w)
	if err == nil || len(w.body) == 0 && !w.started {
		return err
	}
	w.failure = failureOf(err)
	return writeResult(w.mask.Writer(w), map[string]any{"error": w.failure.problem(w.id)})
}

// refuse responds with a failure. A body that is held back is dropped; a response that has started is cut off.
func (w *response) refuse(err error) {
	w.failure = failureOf(err)
	if w.started {
		panic(http.ErrAbortHandler)
	}
	w.note()
	w.body = w.body[:0]
	h := w.Header()
	h["Content-Type"] = problemType
	h.Del("Link") // left by a list that failed before anything was sent
	if w.failure.wait > 0 {
		h.Set("Retry-After", strconv.Itoa(w.failure.retryAfter()))
	}
	switch {
	case w.failure.kind == unauthorized && w.page != nil:
		h.Set("WWW-Authenticate", `Basic realm="app", charset="UTF-8"`) // makes a browser ask for a password
	case w.failure.kind == unauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	}
	body := any(w.failure.problem(w.id))
	if w.refusal != nil {
		h["Content-Type"], body = jsonType, w.refusal(h, w.failure)
	}
	if w.request.Header.Get("Expect") == "" { // many clients send the whole body before they read the answer
		_, _ = io.CopyN(io.Discard, w.request.Body, 16<<20)
	}
	w.WriteHeader(w.failure.kind.status)
	if w.page != nil && w.refusal == nil {
		w.page.fail(w.failure)
		return
	}
	_ = writeResult(w.mask.Writer(w), body) // never fails: it is short enough to be held back
}

// note sets the headers that say that the result was not stored, or that it comes from the archive.
func (w *response) note() {
	h := w.Header()
	if w.call.unstored.Load() != nil {
		h.Set("Report-Stored", "false")
	}
	if w.call.lastSeen.Load() != nil {
		h.Set("Report-Source", "archive")
		h.Set("Age", strconv.FormatInt(int64(w.call.age().Seconds()), 10))
	}
}

// isKnown sets the ETag of a single thing that is read, and reports whether the caller already has that version.
func (w *response) isKnown(thing json.RawMessage) bool {
	if w.request.Method != http.MethodGet && w.request.Method != http.MethodHead {
		return false
	}
	sum := sha256.Sum256(thing)
	tag := `"` + hex.EncodeToString(sum[:12]) + `"`
	w.Header().Set("ETag", "W/"+tag)
	for known := range strings.SplitSeq(strings.Join(w.request.Header["If-None-Match"], ","), ",") {
		known = strings.TrimPrefix(strings.TrimSpace(known), "W/")
		if known == tag || known == "*" {
			return true
		}
	}
	return false
}

// setLinks sets the links to the neighbouring pages. They hold only a query, so they work behind any path prefix.
func setLinks(h http.Header, page *url.URL, list *List) {
	add := func(rel, url string) {
		if url != "" {
			h.Add("Link", "<"+url+`>; rel="`+rel+`"`)
		}
	}
	add("prev", neighbour(page, list.Prev))
	add("next", neighbour(page, list.Next))
}

// neighbour returns a relative URL of the page with the parameters changed, or "" if there are no changes.
func neighbour(page *url.URL, changes url.Values) string {
	if changes == nil {
		return ""
	}
	query := page.Query()
	maps.Copy(query, changes)
	return "?" + query.Encode()
}

// wantedType returns the media type that the caller prefers. On a tie, ndjson and CSV win over JSON, but a page
// wins only if JSON is accepted by a wildcard alone.
func wantedType(r *http.Request) string {
	if len(r.Header["Accept"]) == 0 {
		return jsonType[0]
	}
	quality := func(names ...string) float64 { return preference(r, "Accept", names...) }
	lines, rows, page := quality(ndjson), quality(csvType), quality(htmlType)
	switch {
	case page > max(quality(jsonType[0]), lines, rows) && page >= quality("application/*", "*/*"):
		return htmlType
	case lines > 0 && lines >= max(rows, quality(anyJSON...)):
		return ndjson
	case rows > 0 && rows >= quality(anyJSON...):
		return csvType
	}
	return jsonType[0]
}

var qualityForm = regexp.MustCompile(`^(0(\.\d{0,3})?|1(\.0{0,3})?)$`)

// preference returns the quality, from 0 to 1, that a header such as Accept gives to the first of the names that
// it lists, or 0 if it lists none of them. A name whose quality is invalid counts as not listed.
func preference(r *http.Request, header string, names ...string) float64 {
	for _, name := range names {
		for one := range strings.SplitSeq(strings.Join(r.Header[header], ","), ",") {
			named, parameters, err := mime.ParseMediaType(one)
			quality := cmp.Or(parameters["q"], "1")
			if err == nil && named == name && qualityForm.MatchString(quality) {
				q, _ := strconv.ParseFloat(quality, 64) // valid
				return q
			}
		}
	}
	return 0
}

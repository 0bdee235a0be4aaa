package main

import (
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
	formType = "application/x-www-form-urlencoded" // of the body that a page's form sends
)

// anyJSON are the names by which a caller accepts JSON.
var anyJSON = []string{"application/json", "application/*", "*/*"}

const (
	heldBack    = 256 << 10 // bytes of a body that are held back at most
	worthZip    = 4 << 10   // bytes; compressing less costs more time than it saves
	shortEnough = 1 << 10   // bytes; net/http sets the length of such a body itself
	zipperSize  = 1 << 20   // bytes of a gzip.Writer, about
)

// What the headers of many responses have.
var (
	commonHeader = http.Header{"X-Content-Type-Options": {"nosniff"}, "Cache-Control": {"no-store"}, "Vary": {"Accept"}}
	jsonType     = []string{"application/json"}
	problemType  = []string{"application/problem+json"}
)

// spareBodies and zippers are parts of responses that are used again.
var (
	spareBodies = sync.Pool{New: func() any { return new([heldBack]byte) }}
	zippers     = sync.Pool{New: func() any {
		zipper, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
		return zipper
	}}
)

// A response is the response to one request, and what is known of the request by then. It holds the body back until
// that is complete or too large, and compresses it where the caller accepts that.
type response struct {
	http.ResponseWriter // net/http's own
	request             *http.Request
	id, operation       string // id is the request's
	counted             bool   // the operation, by another surface
	call                Call
	wanted, columns     string // the media type, and what a list has as CSV
	mask                *secrets.Mask
	failure             *Failure
	page                *page                           // nil for a caller who does not prefer pages
	form                url.Values                      // what the form of a page gave; nil without one
	refusal             func(http.Header, *Failure) any // makes the body of a failure; nil for problem details
	timeout             time.Duration                   // for the client to take each part of the body

	status  int          // 0 until it is known
	started bool         // the header has gone out
	body    []byte       // that is held back
	zipper  *gzip.Writer // nil for a body that is not compressed
	lost    error        // why the client gets no more
	held    int          // bytes of the memory
}

// Unwrap returns net/http's own ResponseWriter, for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader sets the status. The header goes out with the beginning of the body.
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

// send sends a part of the body, the first one after the header, and moves the client's deadline on.
func (w *response) send(part []byte) error {
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.timeout))
	if !w.started {
		w.started = true
		if len(part) >= worthZip && w.request.Method != http.MethodHead && preference(w.request, "Accept-Encoding", "gzip", "*") > 0 {
			h := w.Header()
			h.Set("Content-Encoding", "gzip")
			h.Add("Vary", "Accept-Encoding")
			h.Del("Content-Length")
			w.zipper = zippers.Get().(*gzip.Writer)
			w.use(zipperSize)
			w.zipper.Reset(w.ResponseWriter)
		}
		w.ResponseWriter.WriteHeader(w.status)
	}
	switch {
	case len(part) == 0 || w.request.Method == http.MethodHead:
	case w.zipper != nil:
		_, w.lost = w.zipper.Write(part)
	default:
		_, w.lost = w.ResponseWriter.Write(part)
	}
	return w.lost
}

// finish sends what is left. A response that was held back to its end gets its length.
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

// release makes the parts of the response available to others.
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
	w.failure = &Failure{kind: interrupted, detail: "the client went away", err: w.lost}
	w.status = interrupted.status
	panic(http.ErrAbortHandler)
}

// respond makes the response of an operation's result. A list that fails half way is cut off, so that
// a truncated response cannot pass for a complete one.
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
			for range value.Rows { // which lets go of them
				return
			}
			return
		}
	}
	if err := write(); w.lost != nil {
		w.interrupt()
	} else if err != nil {
		w.refuse(err)
	}
}

// respondLines writes the elements of a list one a line. A failure after the first one is the last line.
func (w *response) respondLines(list *List) error {
	err := list.writeLines(w)
	if err == nil || len(w.body) == 0 && !w.started {
		return err
	}
	w.failure = failureOf(err)
	line, _ := json.Marshal(map[string]any{"error": w.failure.problem(w.id)}) // texts and numbers
	_, err = w.Write(w.mask.Bytes(append(line, '\n')))
	return err
}

// refuse makes the response of a failure. What is held back is dropped; a response that has started is cut off.
func (w *response) refuse(err error) {
	w.failure = failureOf(err)
	if w.started {
		panic(http.ErrAbortHandler)
	}
	w.note()
	w.body = w.body[:0]
	h := w.Header()
	h["Content-Type"] = problemType
	h.Del("Link") // of a list that fails at its beginning
	if w.failure.wait > 0 {
		h.Set("Retry-After", strconv.Itoa(w.failure.retryAfter()))
	}
	switch {
	case w.failure.kind == unauthorized && w.page != nil:
		h.Set("WWW-Authenticate", `Basic realm="app", charset="UTF-8"`) // a browser asks for it
	case w.failure.kind == unauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	}
	body := any(w.failure.problem(w.id))
	if w.refusal != nil {
		h["Content-Type"], body = jsonType, w.refusal(h, w.failure)
	}
	w.WriteHeader(w.failure.kind.status)
	if w.page != nil && w.refusal == nil {
		w.page.fail(w.failure)
		return
	}
	_ = writeResult(w.mask.Writer(w), body) // fits what is held back
}

// note says what the call left to say besides the result.
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

// isKnown sets the ETag of a single thing that is read, and reports whether the caller already has it.
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

// setLinks sets the links to the neighbouring pages: the query alone, which is right below any prefix of the path.
func setLinks(h http.Header, page *url.URL, list *List) {
	add := func(rel, url string) {
		if url != "" {
			h.Add("Link", "<"+url+`>; rel="`+rel+`"`)
		}
	}
	add("prev", neighbour(page, list.Prev))
	add("next", neighbour(page, list.Next))
}

// neighbour returns the URL of a page with changed parameters, or "" for nil.
func neighbour(page *url.URL, changes url.Values) string {
	if changes == nil {
		return ""
	}
	query := page.Query()
	maps.Copy(query, changes)
	return "?" + query.Encode()
}

// wantedType returns the media type that the caller prefers. JSON yields to another one that is named
// and wanted as much, but for a page only where JSON is not named.
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

// preference returns how much the caller wants a value that a header such as Accept names, by the first of
// its names that is there: from 0, not at all or not named, to 1. What has no valid quality is not there.
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

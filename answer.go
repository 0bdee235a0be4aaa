// answer.go is how answers go out: held back until they are complete or too large for that, compressed
// where that pays, and as lines where the caller wants them so.
package main

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const ndjson = "application/x-ndjson"

// wantsLines reports whether the caller asks for lists one element a line.
func wantsLines(r *http.Request) bool {
	lines := preference(r, "Accept", ndjson)
	return lines > 0 && lines >= preference(r, "Accept", "application/json")
}

// preference is how much the caller wants a value that a header such as Accept offers to choose, from
// 0, not at all or not named, to 1.
func preference(r *http.Request, header, value string) float64 {
	for _, accepted := range r.Header[header] {
		for one := range strings.SplitSeq(accepted, ",") {
			one, parameters, _ := strings.Cut(one, ";")
			if !strings.EqualFold(strings.TrimSpace(one), value) {
				continue
			}
			if quality, found := strings.CutPrefix(strings.ReplaceAll(strings.ToLower(parameters), " ", ""), "q="); found {
				q, _ := strconv.ParseFloat(quality, 64) // what is none wants nothing
				return q
			}
			return 1
		}
	}
	return 0
}

// knownVersions are the versions of a thing that the caller has, by If-None-Match.
func knownVersions(r *http.Request) (versions []string) {
	for _, header := range r.Header["If-None-Match"] {
		for tag := range strings.SplitSeq(header, ",") {
			versions = append(versions, strings.Trim(strings.TrimPrefix(strings.TrimSpace(tag), "W/"), `"`))
		}
	}
	return versions
}

// errLate is the error of an answer that must begin to go out, but whose Links are not known yet.
var errLate = errors.New("the links are not known yet")

// respond writes a result. One that fits the buffer goes out whole; from a longer one that fails half
// way the connection is cut, so that nobody takes a torso for an answer. Its error is errLate: nothing
// has gone out, and the caller has another try with Call.ahead.
func (s *server) respond(x *exchange, r *http.Request, value any) error {
	x.Header()["Content-Type"] = jsonType
	if _, ok := value.(Text); ok {
		x.Header()["Content-Type"] = plainType
	}
	list, _ := value.(*List)
	if r.Method == http.MethodHead {
		setLinks(x.Header(), r.URL, list)
		x.WriteHeader(outcomeOf(value).status)
		return nil
	}
	buffer := s.newAnswerBuffer(x, r, outcomeOf(value).status, list)
	defer buffer.release()
	err := writeResult(buffer, value)
	switch {
	case err == nil:
		err = buffer.finish()
	case errors.Is(err, errLate):
		return err
	case !buffer.begun:
		s.refuse(x, err)
		return nil
	}
	if err != nil {
		x.failure = failureOf(err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// respondLines writes a list one element a line, for as long as it takes. A failure after the first
// line is the last line. Its error is respond's.
func (s *server) respondLines(x *exchange, r *http.Request, list *List) error {
	x.Header().Set("Content-Type", ndjson)
	if r.Method == http.MethodHead {
		setLinks(x.Header(), r.URL, list)
		x.WriteHeader(http.StatusOK)
		return nil
	}
	buffer := s.newAnswerBuffer(x, r, http.StatusOK, list)
	defer buffer.release()
	err := list.writeLines(buffer)
	switch {
	case errors.Is(err, errLate):
		return err
	case err != nil && !buffer.begun && len(buffer.text) == 0:
		s.refuse(x, err)
		return nil
	case err != nil && buffer.lost == nil:
		f := failureOf(err)
		x.failure = f
		line, _ := json.Marshal(map[string]any{"error": f.problem(x.id)}) // texts and numbers
		_, err = buffer.Write(append(line, '\n'))
	}
	if err == nil {
		err = buffer.finish()
	}
	if err != nil { // of the client
		x.failure = failureOf(err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// An answerBuffer holds an answer back until it is complete or too large to be held.
type answerBuffer struct {
	w       http.ResponseWriter
	page    *url.URL
	list    *List // that is answered, or nil
	status  int
	timeout time.Duration // for each part but the first
	zip     bool          // the caller takes gzip
	zipper  *gzip.Writer  // nil if the answer is not compressed
	begun   bool          // something has gone out
	lost    error         // why the caller gets no more
	text    []byte
}

const (
	answerBufferSize = 256 << 10
	worthZipping     = 4 << 10 // bytes; below, it costs more time than it saves
	shortAnswer      = 1 << 10 // bytes; net/http holds a few times that back until the handler returns
)

// answerTexts and zippers are spare parts of answerBuffers.
var (
	answerTexts = sync.Pool{New: func() any { return new([answerBufferSize]byte) }}
	zippers     = sync.Pool{New: func() any {
		zipper, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
		return zipper
	}}
)

func (s *server) newAnswerBuffer(w http.ResponseWriter, r *http.Request, status int, list *List) *answerBuffer {
	return &answerBuffer{
		w: w, page: r.URL, list: list, status: status, timeout: s.clientTimeout,
		zip:  preference(r, "Accept-Encoding", "gzip") > 0,
		text: answerTexts.Get().(*[answerBufferSize]byte)[:0],
	}
}

// release gives the parts to the next answer.
func (b *answerBuffer) release() {
	answerTexts.Put((*[answerBufferSize]byte)(b.text[:answerBufferSize]))
	if b.zipper != nil {
		zippers.Put(b.zipper)
	}
}

func (b *answerBuffer) Write(p []byte) (int, error) {
	if len(b.text)+len(p) > cap(b.text) {
		if !b.begun && b.list != nil && b.list.Late {
			return 0, errLate
		}
		if err := b.flush(); err != nil {
			return 0, err
		}
		if len(p) > cap(b.text) {
			return len(p), b.send(p)
		}
	}
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *answerBuffer) flush() error {
	err := b.send(b.text)
	b.text = b.text[:0]
	return err
}

// send sends a part of the answer.
func (b *answerBuffer) send(part []byte) error {
	if !b.begun {
		b.begun = true
		setLinks(b.w.Header(), b.page, b.list)
		if h := b.w.Header(); b.zip && len(part) >= worthZipping {
			h.Set("Content-Encoding", "gzip")
			h.Set("Vary", "Accept-Encoding")
			h.Del("Content-Length")
			b.zipper = zippers.Get().(*gzip.Writer)
			b.zipper.Reset(b.w)
		}
		b.w.WriteHeader(b.status)
	} else { // the deadline moves on with the work
		_ = http.NewResponseController(b.w).SetWriteDeadline(time.Now().Add(b.timeout))
	}
	if b.zipper != nil {
		_, b.lost = b.zipper.Write(part)
	} else {
		_, b.lost = b.w.Write(part)
	}
	return b.lost
}

// finish sends what is left; an answer that was never cut gets its length, a short one from net/http.
func (b *answerBuffer) finish() error {
	if !b.begun && len(b.text) > shortAnswer {
		b.w.Header().Set("Content-Length", strconv.Itoa(len(b.text)))
	}
	err := b.flush()
	if err == nil && b.zipper != nil {
		err = b.zipper.Close()
	}
	return err
}

// A statusWriter remembers which status went out.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A discardWriter is a ResponseWriter that nobody reads.
type discardWriter struct{ header http.Header }

func (w discardWriter) Header() http.Header         { return w.header }
func (w discardWriter) WriteHeader(int)             {}
func (w discardWriter) Write(p []byte) (int, error) { return len(p), nil }

var _ io.Writer = (*answerBuffer)(nil)

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"app/internal/rawjson"
)

// A failureKind is one row of the table of failures, which alone decides how a surface reports a failure.
type failureKind struct {
	name   string // the problem's type is /problems/NAME
	status int    // over HTTP
	exit   int    // on the command line
	title  string
}

var (
	internal        = row("internal", 500, 1, "Internal error")
	invalid         = row("usage", 400, 2, "Invalid request")
	wrongMethod     = row("usage", 405, 2, "Method not allowed")
	notAcceptable   = row("usage", 406, 2, "Not acceptable")
	tooLarge        = row("usage", 413, 2, "Too large")
	wrongMedia      = row("usage", 415, 2, "Not JSON")
	unprocessable   = row("usage", 422, 2, "Refused as invalid")
	misconfigured   = row("config", 500, 3, "Missing or bad setting")
	notFound        = row("not-found", 404, 4, "Not found")
	unauthorized    = row("auth", 401, 5, "Not authorized")
	forbidden       = row("auth", 403, 5, "Not allowed")
	wrongHost       = row("auth", 421, 5, "Not a local host name")
	rollbarAuth     = row("rollbar-auth", 502, 5, "Rollbar refused the service's token")
	rateLimited     = row("rate-limited", 429, 6, "Rollbar's rate limit is reached")
	badGateway      = row("unavailable", 502, 7, "Rollbar does not answer as it should")
	unavailable     = row("unavailable", 503, 7, "Not available now")
	queueFull       = row("unavailable", 503, 7, "The queue is full")
	upstreamTimeout = row("unavailable", 504, 7, "Rollbar did not answer in time")
	conflict        = row("conflict", 409, 8, "Conflict")
	interrupted     = row("interrupted", 499, 130, "Interrupted")
)

// failureKinds holds all rows of the table, for kindOf.
var failureKinds []failureKind

func row(name string, status, exit int, title string) failureKind {
	failureKinds = append(failureKinds, failureKind{name, status, exit, title})
	return failureKinds[len(failureKinds)-1]
}

// kindOf returns the row for a problem's type and status, if there is one.
func kindOf(problemType string, status int) (failureKind, bool) {
	for _, k := range failureKinds {
		if problemType == "/problems/"+k.name && status == k.status {
			return k, true
		}
	}
	return failureKind{}, false
}

// A Failure is an error that a caller can act on. Its detail is shown to the caller: it says what is wrong and
// what is valid, and never holds a secret.
type Failure struct {
	kind      failureKind
	detail    string
	fields    []fieldError  // one for each refused parameter
	upstream  int           // the status of Rollbar's response, or 0
	wait      time.Duration // before another attempt, or 0
	limit     int           // the limit that was reached, if a caller is told; or 0
	setting   string        // the setting that is missing, or ""
	requestID string        // of the server at APP_URL that failed, or ""
	transient bool          // another attempt may succeed
	err       error         // the cause, for logs; may be nil
}

// A fieldError says what is wrong with one parameter.
type fieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

func (f *Failure) Error() string { return f.detail }
func (f *Failure) Unwrap() error { return f.err }

// fail returns a failure whose detail is the formatted text. A %w in the format is its cause.
func fail(kind failureKind, format string, args ...any) *Failure {
	err := fmt.Errorf(format, args...)
	return &Failure{kind: kind, detail: err.Error(), err: errors.Unwrap(err)}
}

// maxFields is how many refused parameters a failure names.
const maxFields = 8

// invalidFields returns the failure for refused parameters.
func invalidFields(fields []fieldError) *Failure {
	more := max(0, len(fields)-maxFields)
	fields = fields[:len(fields)-more]
	messages := column(fields, func(f fieldError) string { return f.Message })
	if more > 0 {
		messages = append(messages, fmt.Sprintf("and %d more", more))
	}
	return &Failure{kind: invalid, detail: strings.Join(messages, "; "), fields: fields}
}

// invalidField returns the failure for one parameter. The message follows its name: "must be …".
func invalidField(name, message string) *Failure {
	return invalidFields([]fieldError{{name, name + " " + message}})
}

// missingSetting returns the failure of an operation that needs a setting. On the command line its kind is
// misconfigured, whatever it is over HTTP.
func missingSetting(kind failureKind, name, why string) *Failure {
	f := fail(kind, "%s is not set: %s; set it in the environment or in .env", name, why)
	f.setting = name
	return f
}

// failureOf converts an error to the failure that its caller is shown, in less than 16 kB. An unforeseen error
// becomes internal, and its text is not shown.
func failureOf(err error) *Failure {
	if f, ok := errors.AsType[*Failure](err); ok {
		detailed := *f
		detailed.detail = rawjson.Cut(err.Error(), 6<<10) // includes the context that callers added
		detailed.fields = column(f.fields, func(field fieldError) fieldError {
			return fieldError{rawjson.Cut(field.Field, 200), rawjson.Cut(field.Message, 800)}
		})
		return &detailed
	}
	if errors.Is(err, context.Canceled) {
		return &Failure{kind: interrupted, detail: "interrupted", err: err}
	}
	return &Failure{kind: internal, detail: "internal error", err: err}
}

// onCommandLine returns the failure as the command line reports it: misconfigured if a setting is missing.
func (f *Failure) onCommandLine() *Failure {
	if f.setting != "" {
		f.kind = misconfigured
	}
	return f
}

// isKind reports whether the error is a failure of one of the kinds.
func isKind(err error, kinds ...failureKind) bool {
	f, ok := errors.AsType[*Failure](err)
	return ok && slices.Contains(kinds, f.kind)
}

// A problem is a failure as RFC 9457 problem details.
type problem struct {
	Type           string       `json:"type"`
	Title          string       `json:"title"`
	Status         int          `json:"status"`
	Detail         string       `json:"detail"`
	RequestID      string       `json:"request_id"`
	UpstreamStatus int          `json:"upstream_status,omitempty"`
	Errors         []fieldError `json:"errors,omitempty"`
}

func (f *Failure) problem(requestID string) problem {
	return problem{
		Type: "/problems/" + f.kind.name, Title: f.kind.title, Status: f.kind.status, Detail: f.detail,
		RequestID: cmp.Or(f.requestID, requestID), UpstreamStatus: f.upstream, Errors: f.fields,
	}
}

// retryAfter returns the wait in whole seconds, rounded up, for the header Retry-After.
func (f *Failure) retryAfter() int { return int(math.Ceil(f.wait.Seconds())) }

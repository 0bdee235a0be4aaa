package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// A Call is one run of an operation, from any surface: its retry budget, the caller's options
// besides the input, and remarks to add to the result.
type Call struct {
	retries  retryBudget                          // for retries of calls to Rollbar
	upstream stopwatch                            // runs during calls to Rollbar
	stream   bool                                 // the caller reads a list element by element, so it may be endless
	progress func(done, total int64, what string) // shows the progress of long work; may be nil
	unstored atomic.Pointer[string]               // why the result was not stored; nil if it was
	lastSeen atomic.Pointer[time.Time]            // when Rollbar last showed an archived result; nil for any other result
}

type callKey struct{}

// callWithoutRetries returns a Call whose budget is spent.
func callWithoutRetries() *Call { return &Call{retries: retryBudget{stopwatch{took: retryLimit}}} }

// withCall returns a context within which operations find the call.
func withCall(ctx context.Context, call *Call) context.Context {
	return context.WithValue(ctx, callKey{}, call)
}

// callOf returns the context's call, or a new one if it has none.
func callOf(ctx context.Context) *Call {
	if call, ok := ctx.Value(callKey{}).(*Call); ok {
		return call
	}
	return &Call{}
}

// notStored records why the result could not be stored. "" records nothing.
func (c *Call) notStored(why string) {
	if why != "" {
		c.unstored.Store(&why)
	}
}

// fromArchive records that the result comes from the archive, and when Rollbar last showed it.
func (c *Call) fromArchive(lastSeen time.Time) { c.lastSeen.Store(&lastSeen) }

// age returns how long ago a result from the archive was last seen.
func (c *Call) age() time.Duration {
	return max(0, time.Since(*c.lastSeen.Load())).Truncate(time.Second)
}

// remarks returns what a person should know besides the result.
func (c *Call) remarks() (remarks []string) {
	if why := c.unstored.Load(); why != nil {
		remarks = append(remarks, "nothing is stored: "+*why)
	}
	if c.lastSeen.Load() != nil {
		remarks = append(remarks, fmt.Sprintf("this is from the archive, as it was last seen %v ago", c.age()))
	}
	return remarks
}

// report shows progress, if anyone is watching, as done of total. A total of 0 is unknown; -1 also omits the speed.
func (c *Call) report(done, total int64, what string) {
	if c.progress != nil {
		c.progress(done, total, what)
	}
}

package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// A Call is one run of an operation, whichever surface it came from: what the run may spend, what the
// caller wants of it besides the input, and what there is to say besides the result.
type Call struct {
	retries  retryBudget                          // for retries of calls to Rollbar
	upstream stopwatch                            // runs during calls to Rollbar
	stream   bool                                 // the caller reads a list element by element, so it may be endless
	progress func(done, total int64, what string) // shows how far long work has come; may be nil
	unstored atomic.Pointer[string]               // why the result was not stored; nil if it was
	lastSeen atomic.Pointer[time.Time]            // when Rollbar last showed a result from the archive; nil for another
}

type callKey struct{}

// callWithoutRetries returns a Call whose budget is spent.
func callWithoutRetries() *Call { return &Call{retries: retryBudget{stopwatch{took: retryLimit}}} }

// withCall returns a context within which operations find the call.
func withCall(ctx context.Context, call *Call) context.Context {
	return context.WithValue(ctx, callKey{}, call)
}

// callOf returns the call that the context belongs to, and a new one outside of any.
func callOf(ctx context.Context) *Call {
	if call, ok := ctx.Value(callKey{}).(*Call); ok {
		return call
	}
	return &Call{}
}

// notStored notes that the result could not be stored, and why, unless that is "".
func (c *Call) notStored(why string) {
	if why != "" {
		c.unstored.Store(&why)
	}
}

// fromArchive notes that the result does not come from Rollbar, which showed it last at that time.
func (c *Call) fromArchive(lastSeen time.Time) { c.lastSeen.Store(&lastSeen) }

// age returns how long ago a result from the archive was last seen.
func (c *Call) age() time.Duration {
	return max(0, time.Since(*c.lastSeen.Load())).Truncate(time.Second)
}

// remarks returns what there is to say besides the result, for a person.
func (c *Call) remarks() (remarks []string) {
	if why := c.unstored.Load(); why != nil {
		remarks = append(remarks, "nothing is stored: "+*why)
	}
	if c.lastSeen.Load() != nil {
		remarks = append(remarks, fmt.Sprintf("this is from the archive, as it was last seen %v ago", c.age()))
	}
	return remarks
}

// report shows progress if someone watches: how much of what is done out of a total, 0 if unknown, -1 to omit the speed.
func (c *Call) report(done, total int64, what string) {
	if c.progress != nil {
		c.progress(done, total, what)
	}
}

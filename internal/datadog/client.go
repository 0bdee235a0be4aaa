// Package datadog is a client of the Datadog agent for traces, metrics and logs, without Datadog's libraries.
//
// A program pays nothing while Datadog is off: without the address of an agent, Start returns a nil *Client, and
// the methods of a nil *Client and of a nil *Span do nothing.
//
// A missing, slow or failing agent does not slow down the program. Spans go into a bounded buffer and metrics are
// aggregated; one goroutine for each sends them. Data that do not fit or cannot be sent are dropped, and the log
// states how many and why: at once for the first time, then at most once a minute.
package datadog

import (
	"cmp"
	"context"
	"log/slog"
	"net/url"
	"sync"
	"time"
)

// A Client sends spans and metrics to the agent. It is safe for concurrent use.
type Client struct {
	traces  *traceSender  // nil if traces are not sent
	metrics *metricSender // nil if metrics are not sent

	senders sync.WaitGroup
	stop    context.CancelFunc // tells the senders to send what they have and to end
	abort   context.CancelFunc // tells them to stop waiting for the agent
}

// Start starts a client, or returns nil if the settings contain no address of an agent. An error names the
// invalid variable and says what is valid.
func Start(settings Settings) (*Client, error) {
	var traceURL *url.URL
	metricURL, err := settings.agentURL("DD_DOGSTATSD", settings.DogStatsDURL, settings.DogStatsDPort, "8125", "udp", "unix", "unixgram", "unixstream")
	if err == nil && settings.TraceEnabled {
		traceURL, err = settings.agentURL("DD_TRACE_AGENT", settings.TraceAgentURL, settings.TraceAgentPort, "8126", "http", "https", "unix")
	}
	if err != nil || traceURL == nil && metricURL == nil {
		return nil, err
	}
	settings.Interval = cmp.Or(settings.Interval, 2*time.Second)
	settings.timeout = cmp.Or(settings.timeout, 5*time.Second)
	stopping, stop := context.WithCancel(context.Background())
	sending, abort := context.WithCancel(context.Background())
	c := &Client{stop: stop, abort: abort}
	drops := &drops{log: cmp.Or(settings.Log, slog.New(slog.DiscardHandler))}
	run := func(full <-chan struct{}, flush func()) {
		c.senders.Go(func() {
			for last := false; !last; drops.report() {
				select {
				case <-full:
				case <-time.After(settings.Interval):
				case <-stopping.Done():
					last = true
				}
				flush()
			}
		})
	}
	if traceURL != nil {
		c.traces = newTraceSender(traceURL, settings, drops)
		run(c.traces.full, func() { c.traces.flush(sending, stopping) })
	}
	if metricURL != nil {
		c.metrics = newMetricSender(metricURL, settings, drops)
		run(nil, func() { c.metrics.flush(sending) })
	}
	return c, nil
}

// Close sends the spans and metrics that the client still has. After the limit it drops them.
func (c *Client) Close(limit time.Duration) {
	if c == nil {
		return
	}
	c.stop()
	defer time.AfterFunc(limit, c.abort).Stop()
	c.senders.Wait()
}

// drops counts the data that could not be sent and logs the counts.
type drops struct {
	log *slog.Logger

	mu             sync.Mutex
	logged         time.Time
	spans, packets int   // since the last log line
	reason         error // the latest one
}

const quietTime = time.Minute // between two log lines, at least

func (d *drops) add(spans, packets int, reason error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spans, d.packets, d.reason = d.spans+spans, d.packets+packets, reason
}

// report logs the drops since the last line, unless there are none or that line is too recent.
func (d *drops) report() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.spans+d.packets == 0 || time.Since(d.logged) < quietTime {
		return
	}
	d.log.Warn("Datadog agent did not accept all data", "dropped_spans", d.spans, "dropped_packets", d.packets, "reason", d.reason)
	d.spans, d.packets, d.logged = 0, 0, time.Now()
}

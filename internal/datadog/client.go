// telemetry.go sends traces and metrics to a Datadog agent, in the agent's own formats and without
// Datadog's libraries. Its rules:
//
//   - Off means off. Without an agent's address startTelemetry returns nil, and the methods of a nil
//     *telemetry, and of the nil *span that it gives, do nothing.
//   - On never hurts. A request only adds to bounded buffers in memory; one goroutine for traces and
//     one for metrics talk to the agent. What does not fit or cannot be sent is dropped and counted,
//     and a line in the log says so: the first at once, then at most one a minute for both.
package datadog

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// telemetrySettings are Datadog's variables as they were read, and where the rest goes.
type Settings struct {
	AgentHost      string // DD_AGENT_HOST
	TraceAgentURL  string // DD_TRACE_AGENT_URL
	TraceAgentPort string // DD_TRACE_AGENT_PORT
	DogStatsDURL   string // DD_DOGSTATSD_URL
	DogStatsDPort  string // DD_DOGSTATSD_PORT
	Service        string // DD_SERVICE
	Env            string // DD_ENV
	Version        string // DD_VERSION
	Tags           string // DD_TAGS
	TraceEnabled   bool   // DD_TRACE_ENABLED

	DefaultService, DefaultVersion string // used where neither their variable nor DD_TAGS gives one

	Print io.Writer    // where finished traces are printed as trees; nil: nowhere
	Log   *slog.Logger // hears of an agent that takes nothing

	// Zero values stand for the defaults.
	Interval time.Duration // between two sendings of traces, and of metrics: 2 s
	Timeout  time.Duration // for the agent to take a payload of traces: 5 s
	Quiet    time.Duration // between two lines about the same trouble: 1 min
}

// telemetry is where spans and metrics go. It is safe for concurrent use.
type Client struct {
	traces  *traceSender  // nil: traces are not sent
	printer *tracePrinter // nil: traces are not printed
	metrics *metricSender // nil: metrics are off

	senders sync.WaitGroup
	stop    context.CancelFunc // the senders send what they have and end
	abort   context.CancelFunc // they give up waiting for the agent
}

// startTelemetry starts sending to the agent. It returns nil where no address of an agent is set
// and nobody wants to see traces. An error names the variable that is wrong and what is valid.
func Start(settings Settings) (*Client, error) {
	traceURL, socket, err := settings.traceAddress()
	if err != nil {
		return nil, err
	}
	network, address, err := settings.metricAddress()
	if err != nil {
		return nil, err
	}
	if traceURL == "" && address == "" && settings.Print == nil {
		return nil, nil
	}
	stopping, stop := context.WithCancel(context.Background())
	sending, abort := context.WithCancel(context.Background())
	t := &Client{stop: stop, abort: abort}
	if settings.Log == nil {
		settings.Log = slog.New(slog.DiscardHandler)
	}
	identity := settings.identity()
	interval := cmp.Or(settings.Interval, 2*time.Second)
	log := &lossLog{log: settings.Log, quiet: cmp.Or(settings.Quiet, time.Minute)}
	if settings.Print != nil {
		t.printer = &tracePrinter{out: settings.Print}
	}
	if traceURL != "" {
		t.traces = newTraceSender(traceURL, socket, cmp.Or(settings.Timeout, 5*time.Second), identity, log.losses("spans"))
		t.senders.Go(func() { t.traces.run(stopping, sending, interval) })
	}
	if address != "" {
		t.metrics = newMetricSender(network, address, identity, log.losses("packets"))
		t.senders.Go(func() { t.metrics.run(stopping, sending, interval) })
	}
	return t, nil
}

// Close sends the rest and gives up after the limit.
func (t *Client) Close(limit time.Duration) {
	if t == nil {
		return
	}
	t.stop()
	defer time.AfterFunc(limit, t.abort).Stop()
	t.senders.Wait()
	t.abort()
}

// An identity is what Datadog tells services and their instances apart by.
type identity struct {
	service, env, version string
	runtimeID             string // of this process
	tags                  []spanTag
}

// identity reads DD_SERVICE, DD_ENV, DD_VERSION and DD_TAGS. The first three may also be among the
// tags, where they count less. Of a tag that is there twice, the last counts.
func (s Settings) identity() identity {
	id := identity{service: s.Service, env: s.Env, version: s.Version, runtimeID: newRuntimeID()}
	separators := ","
	if !strings.Contains(s.Tags, ",") {
		separators = " "
	}
	for tag := range strings.SplitSeq(s.Tags, separators) {
		if tag = strings.TrimSpace(tag); tag == "" {
			continue
		}
		key, value, _ := strings.Cut(tag, ":")
		switch key {
		case "", "language", "runtime-id": // ours
		case "service":
			id.service = cmp.Or(id.service, value)
		case "env":
			id.env = cmp.Or(id.env, value)
		case "version":
			id.version = cmp.Or(id.version, value)
		default:
			id.tags = slices.DeleteFunc(id.tags, func(t spanTag) bool { return t.key == key })
			id.tags = append(id.tags, spanTag{key, value})
		}
	}
	id.service = cmp.Or(id.service, s.DefaultService)
	id.version = cmp.Or(id.version, s.DefaultVersion)
	return id
}

// newRuntimeID returns a random UUID, version 4, as Datadog's own clients name a process.
func newRuntimeID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// unified returns the tags that belong on everything, without empty ones. The service is not among
// them: spans have a field for it.
func (id identity) unified() []spanTag {
	tags := slices.Clip(id.tags)
	if id.env != "" {
		tags = append(tags, spanTag{"env", id.env})
	}
	if id.version != "" {
		tags = append(tags, spanTag{"version", id.version})
	}
	return tags
}

// traceAddress returns the URL that traces are posted to, empty for none, and the unix socket that
// leads there, if one does.
func (s Settings) traceAddress() (target, socket string, err error) {
	const path = "/v0.4/traces"
	switch {
	case !s.TraceEnabled:
		return "", "", nil
	case s.TraceAgentURL != "":
		u, err := url.Parse(s.TraceAgentURL)
		switch {
		case err != nil:
		case isUnixSocket(u):
			return "http://localhost" + path, u.Path, nil
		case (u.Scheme == "http" || u.Scheme == "https") && hasAddress(u):
			return u.JoinPath(path).String(), "", nil
		}
		return "", "", errors.New("DD_TRACE_AGENT_URL must be like http://host:8126, https://host:8126 or unix:///path")
	case s.AgentHost != "" || s.TraceAgentPort != "":
		address, err := s.hostPort("DD_TRACE_AGENT_PORT", cmp.Or(s.TraceAgentPort, "8126"))
		u := url.URL{Scheme: "http", Host: address, Path: path}
		return u.String(), "", err
	}
	return "", "", nil
}

// metricAddress returns where metrics go as net.Dial takes it, or an empty address.
func (s Settings) metricAddress() (network, address string, err error) {
	switch {
	case s.DogStatsDURL != "":
		u, err := url.Parse(s.DogStatsDURL)
		switch {
		case err != nil:
		case isUnixSocket(u):
			return "unixgram", u.Path, nil
		case u.Scheme == "udp" && hasAddress(u):
			return "udp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "8125")), nil
		}
		return "", "", errors.New("DD_DOGSTATSD_URL must be like udp://host:8125 or unix:///path")
	case s.AgentHost != "" || s.DogStatsDPort != "":
		address, err := s.hostPort("DD_DOGSTATSD_PORT", cmp.Or(s.DogStatsDPort, "8125"))
		return "udp", address, err
	}
	return "", "", nil
}

func isUnixSocket(u *url.URL) bool { return u.Scheme == "unix" && u.Host == "" && u.Path != "" }

func hasAddress(u *url.URL) bool {
	return u.Hostname() != "" && (u.Port() == "" || isPort(u.Port()))
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// hostPort joins DD_AGENT_HOST, or localhost, and the port that the variable gave.
func (s Settings) hostPort(variable, port string) (string, error) {
	host := cmp.Or(strings.Trim(s.AgentHost, "[]"), "localhost")
	if _, err := netip.ParseAddr(host); err != nil && strings.ContainsAny(host, ":/@?# ") {
		return "", errors.New("DD_AGENT_HOST must be a host name or an IP address, without scheme and port")
	}
	if !isPort(port) {
		return "", fmt.Errorf("%s must be a port from 1 to 65535", variable)
	}
	return net.JoinHostPort(host, port), nil
}

// A lossLog counts what was dropped and says so now and then.
type lossLog struct {
	log   *slog.Logger
	quiet time.Duration

	mu   sync.Mutex
	told time.Time
	of   []*losses
}

// losses are what one sender dropped since the last line.
type losses struct {
	*lossLog
	unit  string
	count int64
	err   error // the latest reason
}

func (l *lossLog) losses(unit string) *losses {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := &losses{lossLog: l, unit: unit}
	l.of = append(l.of, of)
	return of
}

func (l *losses) add(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count += int64(n)
}

// because notes the reason.
func (l *losses) because(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *losses) dropped() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// tell logs what was dropped, unless there is nothing new or the last line is too fresh.
func (l *lossLog) tell() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.told) < l.quiet {
		return
	}
	var dropped []any
	var reasons []string
	for _, of := range l.of {
		if of.count == 0 {
			continue
		}
		dropped = append(dropped, "dropped_"+of.unit, of.count)
		if of.err != nil {
			reasons = append(reasons, of.err.Error())
		} else {
			reasons = append(reasons, "more "+of.unit+" than the agent takes in time")
		}
		of.count, of.err = 0, nil
	}
	if dropped == nil {
		return
	}
	l.log.Warn("Datadog agent did not accept all data", append(dropped, "reason", strings.Join(reasons, "; "))...)
	l.told = time.Now()
}

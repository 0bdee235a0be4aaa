package datadog

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"app/internal/secrets"
)

// Settings hold the values of Datadog's environment variables, and what else a Client needs.
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

	DefaultService, DefaultVersion string // used if neither their variable nor DD_TAGS has a value

	Mask *secrets.Mask // hides secrets in everything that is sent

	Log      *slog.Logger  // receives warnings about dropped data; nil discards them
	Interval time.Duration // between two flushes to the agent; 0 means 2 s

	timeout time.Duration // of one request to the agent; 0 means 5 s
}

// identity returns the tags of everything that is sent, the service first. DD_SERVICE, DD_ENV and DD_VERSION
// take precedence over the same tags in DD_TAGS.
func (s Settings) identity() []spanTag {
	tags := append([]spanTag{{"service", ""}}, given(spanTag{"version", s.DefaultVersion})...)
	separator := ","
	if !strings.Contains(s.Tags, separator) {
		separator = " "
	}
	for tag := range strings.SplitSeq(s.Tags, separator) {
		key, value, _ := strings.Cut(strings.TrimSpace(tag), ":")
		switch key {
		case "", "language", "runtime-id": // set by the client
		case "service", "env":
			tags = withTag(tags, key, normalTag(value))
		default:
			tags = withTag(tags, key, value)
		}
	}
	for _, own := range given(spanTag{"service", normalTag(s.Service)}, spanTag{"env", normalTag(s.Env)}, spanTag{"version", s.Version}) {
		tags = withTag(tags, own.key, own.value)
	}
	tags[0].value = cmp.Or(tags[0].value, s.DefaultService)
	return tags
}

// given returns the tags that have a value.
func given(tags ...spanTag) []spanTag {
	return slices.DeleteFunc(tags, func(tag spanTag) bool { return tag.value == "" })
}

// runtimeID is a random UUID (version 4) that identifies the process, as in Datadog's own clients.
var runtimeID = fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x",
	rand.Uint32(), rand.N(1<<16), rand.N(1<<12), rand.N(1<<12), rand.Int64N(1<<48))

// agentURL returns the target, which must be a URL with one of the schemes, or else a URL with the agent's host
// and the port, or nil if nothing is set. The names of both variables begin with the prefix.
func (s Settings) agentURL(prefix, target, port, defaultPort string, schemes ...string) (*url.URL, error) {
	if target != "" {
		u, err := url.Parse(target)
		switch {
		case err != nil || !slices.Contains(schemes, u.Scheme):
		case strings.HasPrefix(u.Scheme, "unix") && u.Host == "" && u.Path != "",
			!strings.HasPrefix(u.Scheme, "unix") && u.Hostname() != "" && isPort(cmp.Or(u.Port(), defaultPort)):
			return u, nil
		}
		return nil, fmt.Errorf("%s_URL must be like %s://host:%s or unix:///path", prefix, schemes[0], defaultPort)
	}
	if s.AgentHost == "" && port == "" {
		return nil, nil
	}
	host := cmp.Or(strings.Trim(s.AgentHost, "[]"), "localhost")
	if _, err := netip.ParseAddr(host); err != nil && strings.ContainsAny(host, ":/@?# ") {
		return nil, errors.New("DD_AGENT_HOST must be a host name or an IP address, without scheme and port")
	}
	port = cmp.Or(port, defaultPort)
	if !isPort(port) {
		return nil, fmt.Errorf("%s_PORT must be a port from 1 to 65535", prefix)
	}
	return &url.URL{Scheme: schemes[0], Host: net.JoinHostPort(host, port)}, nil
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

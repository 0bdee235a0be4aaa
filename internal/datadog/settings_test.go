package datadog

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		settings         Settings
		traces           string
		network, metrics string
	}{
		{name: "nothing set"},
		{name: "the host switches on both", settings: Settings{AgentHost: "agent"},
			traces: "http://agent:8126/v0.4/traces", network: "udp4", metrics: "agent:8125"},
		{name: "an IPv6 host", settings: Settings{AgentHost: "fd00::7"},
			traces: "http://[fd00::7]:8126/v0.4/traces", network: "udp4", metrics: "[fd00::7]:8125"},
		{name: "an IPv6 host in brackets", settings: Settings{AgentHost: "[fd00::7]", DogStatsDPort: "9125"},
			traces: "http://[fd00::7]:8126/v0.4/traces", network: "udp4", metrics: "[fd00::7]:9125"},
		{name: "a port of traces only", settings: Settings{TraceAgentPort: "9126"},
			traces: "http://localhost:9126/v0.4/traces"},
		{name: "a port of metrics only", settings: Settings{DogStatsDPort: "9125"},
			network: "udp4", metrics: "localhost:9125"},
		{name: "a URL of traces only", settings: Settings{TraceAgentURL: "https://agent:443"},
			traces: "https://agent:443/v0.4/traces"},
		{name: "a URL of metrics only", settings: Settings{DogStatsDURL: "udp://agent"},
			network: "udp4", metrics: "agent:8125"},
		{name: "URLs override host and port",
			settings: Settings{AgentHost: "other", TraceAgentPort: "1", DogStatsDPort: "1",
				TraceAgentURL: "http://[fd00::7]:81/", DogStatsDURL: "udp://[fd00::7]:82"},
			traces: "http://[fd00::7]:81/v0.4/traces", network: "udp4", metrics: "[fd00::7]:82"},
		{name: "unix sockets",
			settings: Settings{TraceAgentURL: "unix:///run/apm.socket", DogStatsDURL: "unix:///run/dsd.socket"},
			traces:   "http://localhost/v0.4/traces", network: "unixgram", metrics: "/run/dsd.socket"},
		{name: "a unix socket for datagrams", settings: Settings{DogStatsDURL: "unixgram:///run/dsd.socket"},
			network: "unixgram", metrics: "/run/dsd.socket"},
		{name: "a unix socket for a stream", settings: Settings{DogStatsDURL: "unixstream:///run/dsd.socket"},
			network: "unix", metrics: "/run/dsd.socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.settings.TraceEnabled = true
			client := start(t, tt.settings)
			if tt.traces == "" {
				assert.False(t, client.tracing())
			} else {
				assert.Equal(t, tt.traces, client.traces.url)
			}
			if tt.metrics == "" {
				assert.True(t, client == nil || client.metrics == nil)
			} else {
				assert.Equal(t, []string{tt.network, tt.metrics},
					[]string{client.metrics.network, client.metrics.address})
			}

			tt.settings.TraceEnabled = false
			assert.False(t, start(t, tt.settings).tracing(), "with DD_TRACE_ENABLED=false")
		})
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings Settings
		want     string
	}{
		{"a URL as host", Settings{AgentHost: "http://agent"},
			"DD_AGENT_HOST must be a host name or an IP address, without scheme and port"},
		{"a port at the host", Settings{AgentHost: "agent:8126"},
			"DD_AGENT_HOST must be a host name or an IP address, without scheme and port"},
		{"a port of traces that is a word", Settings{TraceAgentPort: "apm"},
			"DD_TRACE_AGENT_PORT must be a port from 1 to 65535"},
		{"a port of metrics above the highest", Settings{DogStatsDPort: "65536"},
			"DD_DOGSTATSD_PORT must be a port from 1 to 65535"},
		{"a host as URL of traces", Settings{TraceAgentURL: "agent:8126"},
			"DD_TRACE_AGENT_URL must be like http://host:8126 or unix:///path"},
		{"a relative unix socket", Settings{TraceAgentURL: "unix://run/apm.socket"},
			"DD_TRACE_AGENT_URL must be like http://host:8126 or unix:///path"},
		{"a relative socket for a stream", Settings{DogStatsDURL: "unixstream://run/dsd.socket"},
			"DD_DOGSTATSD_URL must be like udp://host:8125 or unix:///path"},
		{"port 0 in a URL", Settings{TraceAgentURL: "http://agent:0"},
			"DD_TRACE_AGENT_URL must be like http://host:8126 or unix:///path"},
		{"metrics over HTTP", Settings{DogStatsDURL: "http://agent:8125"},
			"DD_DOGSTATSD_URL must be like udp://host:8125 or unix:///path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.settings.TraceEnabled = true
			_, err := Start(tt.settings)
			assert.EqualError(t, err, tt.want)
		})
	}
	_, err := Start(Settings{TraceAgentURL: "agent:8126"})
	assert.NoError(t, err, "with DD_TRACE_ENABLED=false")
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	service, version := spanTag{"service", "app"}, spanTag{"version", "1.2"}
	for _, tt := range []struct {
		name     string
		settings Settings
		want     []spanTag
	}{
		{"nothing set", Settings{}, []spanTag{service, version}},
		{"variables before tags", Settings{Env: "prod", Tags: "env:test,service:shop,version:2"},
			[]spanTag{{"service", "shop"}, {"version", "2"}, {"env", "prod"}}},
		{"tags with commas", Settings{Tags: "team:core team, url:http://x ,"},
			[]spanTag{service, version, {"team", "core team"}, {"url", "http://x"}}},
		{"odd tags", Settings{Tags: "team:a,core,team:b,:x,runtime-id:7,service:"},
			[]spanTag{service, version, {"team", "b"}, {"core", ""}}},
		{"names that Datadog would rewrite", Settings{Service: "My Service! X", Env: "Prod East"},
			[]spanTag{{"service", "my_service_x"}, version, {"env", "prod_east"}}},
		{"names in tags that Datadog would rewrite", Settings{Tags: "service:Shop!,env:Prod"},
			[]spanTag{{"service", "shop"}, version, {"env", "prod"}}},
		{"tags with spaces", Settings{Tags: "team:core  tier:web"},
			[]spanTag{service, version, {"team", "core"}, {"tier", "web"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.settings.DefaultService, tt.settings.DefaultVersion = "app", "1.2"
			assert.Equal(t, tt.want, tt.settings.identity())
		})
	}
}

package main

import (
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// loaded writes a configuration and loads it.
func loaded(t *testing.T, text string) (*config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dtcpd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return (&flags{config: path}).load()
}

// tomlKeys are the keys of a configuration, as its type has them.
func tomlKeys(t reflect.Type, prefix string) (keys []string) {
	for i := range t.NumField() {
		name := t.Field(i).Tag.Get("toml")
		if name == "" {
			continue
		}
		kind := t.Field(i).Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		keys = append(keys, prefix+name)
		if kind.Kind() == reflect.Struct {
			keys = append(keys, tomlKeys(kind, prefix+name+".")...)
		}
	}
	return keys
}

// TestExample: what is printed as an example is a whole configuration, has every
// key, and what it shows as a default is one.
func TestExample(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3kr1t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loaded(t, strings.ReplaceAll(example, "/etc/dtcp/secret", secret))
	if err != nil {
		t.Fatal(err)
	}
	want, got := tomlKeys(reflect.TypeFor[config](), ""), knownKeys()
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("keys of the example (-want +got):\n%s", diff)
	}
	if len(want) < 35 {
		t.Errorf("the configuration has %d keys: are they found?", len(want))
	}
	// The defaults, as they are and as they are shown.
	if want := (relay.Limits{}); c.rules.Limits != want {
		t.Errorf("limits %+v, want the zero value", c.rules.Limits)
	}
	shown := new(config)
	if err := shown.parse([]byte(uncommented(example))); err != nil {
		t.Fatal(err)
	}
	switch {
	case !slices.Equal(c.rules.Allow, []jid.JID{jid.MustParse("example.org")}) || !slices.Equal(shown.Relay.AllowDomains, []string{"example.org"}):
		t.Errorf("allowed by default: %v, shown: %v", c.rules.Allow, shown.Relay.AllowDomains)
	case c.Relay.Drain != shown.Relay.Drain:
		t.Errorf("drains %v, shown: %v", time.Duration(c.Relay.Drain), time.Duration(shown.Relay.Drain))
	case shown.Limits.Connections != defaultConnections:
		t.Errorf("connections: %d", shown.Limits.Connections)
	case shown.Component.Server != defaultComponentServer || *shown.Metrics.Listen != defaultMetricsListen ||
		!slices.Equal(shown.Relay.Listen, []string{defaultRelayListen}) || !slices.Equal(shown.Standalone.Listen, []string{defaultStandaloneListen}):
		t.Error("an address is not the default")
	}
}

func TestConfig(t *testing.T) {
	c, err := loaded(t, `
		[standalone]
		domain = "Example.org"
		[relay]
		allow_domains = []
		allow_jids = ["Romeo@example.net"]
		deny = ["tybalt@example.org", "evil.example"]
		drain = "90s"
		[limits]
		connections = 100
		[limits.address]
		rate = "10 MB"
		handshakes = "none"
		[limits.owner]
		bytes_per_day = "1.5GiB"
		streams = 7
		[metrics]
		listen = ""`)
	if err != nil {
		t.Fatal(err)
	}
	want := relay.Rules{
		Access: relay.Access{
			Allow: []jid.JID{jid.MustParse("romeo@example.net")},
			Deny:  []jid.JID{jid.MustParse("tybalt@example.org"), jid.MustParse("evil.example")},
		},
		Limits: relay.Limits{
			PerAddress: relay.Quota{Rate: 10e6, Handshakes: -1}, PerOwner: relay.Quota{BytesPerDay: 3 << 29, Streams: 7}, Connections: 100,
		},
	}
	if diff := cmp.Diff(want, c.rules, cmp.Comparer(func(a, b jid.JID) bool { return a == b })); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if c.domain != jid.MustParse("relay.example.org") || c.Relay.Drain != duration(90*time.Second) || *c.Metrics.Listen != "" {
		t.Errorf("%+v", c)
	}
}

func TestConfigRefused(t *testing.T) {
	const standalone = "[standalone]\ndomain = \"example.org\"\n"
	for _, tt := range []struct{ text, want string }{
		{"", "component.domain is missing"},
		{"[component]\ndomain = \"a@b\"", "component.domain: \"a@b\" is not a domain"},
		{"[component]\ndomain = \"b\"\nsecret_file = \"/nonexistent\"", "component.secret_file: open /nonexistent"},
		{"[component]\ndomain = 3", "line 2"},
		{standalone + "relay = \"example.org\"", "standalone.relay must be another domain"},
		{standalone + "public = \"x\"", "standalone.public: \"x\" is not HOST:PORT"},
		{standalone + "[relay]\npublic = [\"a:1\",\"a:2\",\"a:3\"]\npublic_tls = [\"a:4\",\"a:5\"]", "5 addresses, more than 4"},
		{standalone + "[relay]\npublic = [\"a:0\"]", "is not HOST:PORT"},
		{standalone + "[relay]\ncertificate = \"x\"", "go together"},
		{standalone + "[relay]\ndrain = \"soon\"", "\"soon\" is not a time"},
		{standalone + "[relay]\ndrain = \"-1s\"", "less than nothing"},
		{standalone + "[relay]\ndeny = [\"@\"]", "relay.deny"},
		{standalone + "[limits]\nconnections = 0", "0 is not an amount"},
		{standalone + "[limits]\nconnections = -1", "-1 is not an amount"},
		{standalone + "[limits]\nconnections = \"MB\"", "is not an amount"},
		{standalone + "[limits]\nconnections = \"NaN\"", "is not an amount"},
		{standalone + "[limits]\nconnections = \"1e30\"", "is not an amount"},
		{standalone + "[metrics]\nlisten = 1", "line 4"},
	} {
		if _, err := loaded(t, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{
		"relay.lisen": "relay.listen", "listen": "relay.listen", "relay.blur": "usage.blur", "frobnicate": "", "metric": "metrics",
	} {
		if got := nearest(word, []string{"metrics", "relay.listen", "usage.blur"}); got != want {
			t.Errorf("nearest to %q: %q, want %q", word, got, want)
		}
	}
}

// TestReachable: what peers are told of a port that is open on all addresses.
func TestReachable(t *testing.T) {
	private, public, six := netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::5")
	useless := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("169.254.0.1")}
	for _, tt := range []struct {
		at   string
		own  []netip.Addr
		want string
	}{
		{"[::]:5280", append(useless, private, public, six), "[203.0.113.5:5280 [2001:db8::5]:5280]"},
		{"[::]:5280", append(useless, private), "[192.168.1.2:5280]"},
		{"0.0.0.0:5280", append(useless, public, six), "[203.0.113.5:5280]"},
		{"[::]:5280", useless, "[]"},
		{"127.0.0.1:5280", append(useless, public), "[127.0.0.1:5280]"},
	} {
		at := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.at))
		got := []string{}
		for _, a := range reachable(at, tt.own) {
			got = append(got, a.String())
		}
		if s := "[" + strings.Join(got, " ") + "]"; s != tt.want {
			t.Errorf("%s with %v: %s, want %s", tt.at, tt.own, s, tt.want)
		}
	}
}

func TestAmountOfUnits(t *testing.T) {
	for text, want := range map[string]amount{"1": 1, "10 kB": 10000, "1KiB": 1024, "2 MiB": 2 << 20, "1 TB": 1e12, "3 B": 3, "none": -1} {
		var a amount
		if err := a.UnmarshalTOML(text); err != nil || a != want {
			t.Errorf("%q: %d, %v, want %d", text, a, err, want)
		}
	}
	if n := amount(math.MaxInt64 / 4).int(); n != math.MaxInt32 {
		t.Errorf("a number of things too many: %d", n)
	}
}

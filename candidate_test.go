package dtcp

import (
	"errors"
	"net/netip"
	"testing"
)

// TestDialRules is Section 4 of protocol.md: what is never dialed.
func TestDialRules(t *testing.T) {
	own := netip.MustParseAddrPort("192.168.1.5:40000")
	ownRelay := Candidate{Type: Relay, Addr: netip.MustParseAddrPort("127.0.0.1:80")}
	friend := dialRules{
		private: true,
		own:     func(a netip.AddrPort) bool { return a == own },
		lent:    func(c Candidate) bool { return c == Candidate{Type: c.Type, Addr: ownRelay.Addr} },
	}
	stranger, demo, direct, relayed := friend, friend, friend, friend
	stranger.private, demo.loopback, direct.policy, relayed.policy = false, true, DirectOnly, RelayOnly
	at := func(s string) Candidate { return Candidate{Type: Host, Addr: netip.MustParseAddrPort(s)} }
	relay := Candidate{Type: Relay, Name: "relay.example.org", Port: 5280}
	lowRelay := Candidate{Type: Relay, Name: "relay.example.org", Port: 25}
	tests := []struct {
		rules dialRules
		c     Candidate
		want  error
	}{
		{friend, at("203.0.113.7:40000"), nil},
		{friend, at("[2001:db8::1]:40000"), nil},
		{friend, at("192.168.1.6:40000"), nil},
		{friend, at("[fd00::1]:40000"), nil},
		{friend, at("203.0.113.7:443"), nil},
		{friend, relay, nil},
		{friend, at("203.0.113.7:1023"), errPort},
		{friend, at("203.0.113.7:22"), errPort},
		{friend, lowRelay, errPort},
		{friend, at("0.0.0.0:40000"), errUnusable},
		{friend, at("0.1.2.3:40000"), errUnusable},
		{friend, at("[::]:40000"), errUnusable},
		{friend, at("224.0.0.1:40000"), errUnusable},
		{friend, at("[ff02::1]:40000"), errUnusable},
		{friend, at("255.255.255.255:40000"), errUnusable},
		{friend, at("240.0.0.1:40000"), errUnusable},
		{friend, at("169.254.1.1:40000"), errUnusable},
		{friend, at("[fe80::1]:40000"), errUnusable},
		{friend, at("127.0.0.1:40000"), errLoopback},
		{friend, at("127.9.9.9:40000"), errLoopback},
		{friend, at("[::1]:40000"), errLoopback},
		{demo, at("127.0.0.1:40000"), nil},
		{demo, at("[::1]:40000"), nil},
		{friend, Candidate{Type: Host, Addr: own}, errOwnAddress},
		{stranger, at("192.168.1.6:40000"), errPrivate},
		{stranger, at("10.0.0.1:40000"), errPrivate},
		{stranger, at("100.64.0.1:40000"), errPrivate},
		{stranger, at("[fd00::1]:40000"), errPrivate},
		{stranger, at("203.0.113.7:40000"), nil},
		{direct, relay, errPolicy},
		{direct, at("203.0.113.7:40000"), nil},
		{relayed, relay, errOtherRelay},
		{relayed, ownRelay, nil},
		{stranger, ownRelay, nil},
		{direct, ownRelay, errPolicy},
		{relayed, Candidate{Type: Host, Addr: ownRelay.Addr}, errPolicy},
		{friend, Candidate{Type: Host, Addr: ownRelay.Addr}, errPort},
		{relayed, at("203.0.113.7:40000"), errPolicy},
		{friend, Candidate{Type: Proxy, Addr: netip.MustParseAddrPort("203.0.113.7:7777")}, nil},
		{friend, Candidate{Type: Proxy, Addr: netip.MustParseAddrPort("127.0.0.1:7777")}, errLoopback},
		{relayed, Candidate{Type: Proxy, Addr: netip.MustParseAddrPort("203.0.113.7:7777")}, errOtherRelay},
	}
	for _, tt := range tests {
		if got := tt.rules.check(tt.c); !errors.Is(got, tt.want) {
			t.Errorf("policy %d, loopback %t, private %t: %v: %v, want %v", tt.rules.policy, tt.rules.loopback, tt.rules.private, tt.c, got, tt.want)
		}
	}
}

// TestListenerKind: the dialer knows which candidate it dialed, the listener
// must come to the same word.
func TestListenerKind(t *testing.T) {
	ap := netip.MustParseAddrPort
	host := Candidate{Type: Host, Addr: ap("192.168.1.5:40000")}
	global := Candidate{Type: Host, Addr: ap("198.51.100.1:40000")}
	mapped := Candidate{Type: Mapped, Addr: ap("203.0.113.9:40000")}
	tests := []struct {
		name          string
		offered       []Candidate
		local, remote string
		want          CandidateType
	}{
		{"no mapping offered", []Candidate{host}, "192.168.1.5:40000", "203.0.113.7:1", Host},
		{"from the same network", []Candidate{host, mapped}, "192.168.1.5:40000", "192.168.1.6:1", Host},
		{"from outside to a private address", []Candidate{host, mapped}, "192.168.1.5:40000", "203.0.113.7:1", Mapped},
		{"from outside to a global address", []Candidate{global, mapped}, "198.51.100.1:40000", "203.0.113.7:1", Host},
		{"at an address that was not offered", []Candidate{host, mapped}, "10.0.0.1:40000", "192.168.1.6:1", Mapped},
	}
	for _, tt := range tests {
		if got := listenerKind(tt.offered, ap(tt.local), ap(tt.remote)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

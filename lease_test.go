package dtcp

import (
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const leasePin = "AB:CD:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:01"

func leaseOf(t *testing.T, attributes, hosts string) (*lease, error) {
	t.Helper()
	e, err := stanza.Parse("<lease xmlns='urn:x-dtcp:relay:0' " + attributes + ">" + hosts + "</lease>")
	if err != nil {
		t.Fatal(err)
	}
	return parseLease(e, jid.MustParse("relay.example.org"), time.Unix(1795000000, 0))
}

const goodLease = "id='AQ-_z' secret='MDEyMzQ1Njc4OWFiY2RlZg' expires='3600' time='1795000060'"

// TestParseLease is Section 3 of protocol.md, "Lease".
func TestParseLease(t *testing.T) {
	l, err := leaseOf(t, goodLease, "<host addr='relay.example.org' port='5280'/><host addr='198.51.100.7' port='5280'/>"+
		"<host addr='198.51.100.7' port='443' tls='1' fingerprint='"+leasePin+"'/>")
	if err != nil {
		t.Fatal(err)
	}
	if l.life != time.Hour || l.skew != time.Minute || len(l.hosts) != 3 || string(l.secret) != "0123456789abcdef" {
		t.Errorf("read %+v", l)
	}
	var offered, ways []string
	for _, c := range l.candidates() {
		offered = append(offered, c.String())
	}
	for _, w := range l.ways() {
		s := w.host.address()
		if w.tls {
			s += " in TLS"
		}
		ways = append(ways, s)
	}
	if got, want := strings.Join(offered, ", "), "relay relay.example.org:5280, relay 198.51.100.7:5280, relay 198.51.100.7:443"; got != want {
		t.Errorf("offered: %s; want %s", got, want)
	}
	if got, want := strings.Join(ways, ", "), "relay.example.org:5280, 198.51.100.7:5280, 198.51.100.7:443, 198.51.100.7:443 in TLS"; got != want {
		t.Errorf("ways to reach it: %s; want %s", got, want)
	}
	if a, ok := l.literal(); !ok || a.String() != "198.51.100.7:5280" {
		t.Errorf("for stock peers: %v", a)
	}
	claim, err := wire.ParseClaim(l.claim(wire.Serve, "key", time.Unix(1795000000, 0)))
	if err != nil || claim.Seconds != 1795000060 || !claim.Verify(l.secret, time.Unix(1795000060, 0)) {
		t.Errorf("a claim says %+v, %v; want it by the relay's clock", claim, err)
	}
	for _, tt := range []struct {
		c    Candidate
		want bool
	}{
		{Candidate{Type: Relay, Name: "RELAY.example.org", Port: 5280}, true},
		{Candidate{Type: Relay, Name: "relay.example.org", Port: 443}, false},
		{Candidate{Type: Relay, Addr: l.hosts[1].Addr}, true},
		{Candidate{Type: Relay, Addr: l.hosts[2].Addr}, true},
		{Candidate{Type: Relay, Name: "relay.example.net", Port: 5280}, false},
	} {
		if got := l.lends(tt.c); got != tt.want {
			t.Errorf("the lease lends %v: %v, want %v", tt.c, got, tt.want)
		}
	}
}

// TestParseLeaseBounds: what a relay may not say, and what is passed over.
func TestParseLeaseBounds(t *testing.T) {
	const host = "<host addr='198.51.100.7' port='5280'/>"
	for _, tt := range []struct{ attributes, hosts, why string }{
		{strings.Replace(goodLease, "AQ-_z", "", 1), host, "no id"},
		{strings.Replace(goodLease, "AQ-_z", strings.Repeat("A", wire.MaxLease+1), 1), host, "an id that fits in no line"},
		{strings.Replace(goodLease, "AQ-_z", "A B", 1), host, "an id that would make two words of a claim"},
		{strings.Replace(goodLease, "AQ-_z", "A&#10;B", 1), host, "an id that would make two lines of a claim"},
		{strings.Replace(goodLease, "MDEyMzQ1Njc4OWFiY2RlZg", "MDEy", 1), host, "a short secret"},
		{strings.Replace(goodLease, "MDEyMzQ1Njc4OWFiY2RlZg", "%", 1), host, "a secret that is none"},
		{strings.Replace(goodLease, "3600", "", 1), host, "no end"},
		{goodLease, "", "no host"},
		{goodLease, "<host addr='fe80::1%eth0' port='1'/><host addr='x' port='0'/><host addr='1.2.3' port='5'/><host addr='198.51.100.7' port='443' tls='1'/>", "no host that can be used"},
	} {
		if l, err := leaseOf(t, tt.attributes, tt.hosts); err == nil {
			t.Errorf("%s: read %+v", tt.why, l)
		}
	}
	l, err := leaseOf(t, strings.Replace(goodLease, "3600", "999999999", 1), strings.Repeat(host, 9))
	if err != nil || l.life != maxLeaseLife || len(l.hosts) != maxLeaseHosts || len(l.candidates()) != 1 {
		t.Errorf("a long lease with nine hosts, all the same: %+v, %v", l, err)
	}
	if l, err = leaseOf(t, strings.Replace(goodLease, "3600", "1", 1), host); err != nil || l.life != minLeaseLife {
		t.Errorf("a short lease: %+v, %v", l, err)
	}
}

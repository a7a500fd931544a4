package dtcp_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
)

// place is a kind of network that a host can be in.
type place struct {
	name string
	nat  memnet.NATKind // of the gateway, if there is one
	gate bool
	wall memnet.Firewall // what a SYN gets that nobody asked for, at the gateway or else at the host
}

// accepts reports whether everybody can connect to a host there, at its own
// address or at its punch port.
func (p place) accepts() bool {
	return !p.gate && p.wall == memnet.Open || p.gate && p.nat == memnet.FullCone
}

// holes reports whether a hole to somebody there can be punched: the other end
// knows what port its dials come from.
func (p place) holes() bool { return !p.gate || p.nat <= memnet.PortRestricted }

var places = []place{
	{name: "open"},
	{name: "full cone", nat: memnet.FullCone, gate: true, wall: memnet.Drop},
	{name: "port restricted", nat: memnet.PortRestricted, gate: true, wall: memnet.Drop},
	{name: "port restricted, refusing", nat: memnet.PortRestricted, gate: true, wall: memnet.Reject},
	{name: "symmetric", nat: memnet.Symmetric, gate: true, wall: memnet.Drop},
	{name: "symmetric, refusing", nat: memnet.Symmetric, gate: true, wall: memnet.Reject},
	{name: "firewall", wall: memnet.Drop},
	{name: "firewall, refusing", wall: memnet.Reject},
}

// settle moves a peer's host to a place.
func (p *peer) settle(at place, outside, inside netip.Addr) {
	if !at.gate {
		p.host.Firewall(at.wall)
		return
	}
	r := p.w.net.NAT(p.host.Name()+"'s gateway", outside, at.nat)
	r.Unsolicited(at.wall)
	p.host.Move(r, inside)
}

// among places A and B.
func among(a, b place) func(*world) {
	return func(w *world) {
		w.a.settle(a, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("192.168.1.5"))
		w.b.settle(b, netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("192.168.2.5"))
	}
}

// TestPlaces: every place against every other, asked from either side. The
// route is direct wherever one side can accept or a hole can be punched, by way
// of the relay otherwise, and does not depend on who asks.
func TestPlaces(t *testing.T) {
	routes := map[dtcp.CandidateType]int{}
	for _, a := range places {
		for _, b := range places {
			for _, asks := range []string{"A", "B"} {
				t.Run(fmt.Sprintf("%s to %s, %s asks", a.name, b.name, asks), func(t *testing.T) {
					o := &relayOptions{a: 60 * time.Millisecond, b: 80 * time.Millisecond, addresses: 2}
					story(t, options{link: links[0], relay: o, place: among(a, b), noServer: true}, func(w *world) {
						req, res := w.a, w.b
						if asks == "B" {
							req, res = w.b, w.a
						}
						near, far, _ := req.stream(res)
						got := near.Path().Kind
						if far.Path().Kind != got {
							t.Errorf("kinds %v and %v", got, far.Path().Kind)
						}
						want := []dtcp.CandidateType{dtcp.Relay}
						if a.accepts() || b.accepts() || a.holes() && b.holes() {
							want = []dtcp.CandidateType{dtcp.Host, dtcp.Reflexive}
						}
						if got != want[0] && got != want[len(want)-1] {
							t.Errorf("%+v, want one of %v", near.Path(), want)
						}
						routes[got]++
						w.wantTransfer(near, far)
						if n := w.iqs.Load(); n != 2 {
							t.Errorf("%d iqs between the peers, want a question and an answer", n)
						}
					})
				})
			}
		}
	}
	t.Logf("routes: %v", routes)
	if n := routes[dtcp.Host] + routes[dtcp.Reflexive] + routes[dtcp.Relay]; n != 2*len(places)*len(places) {
		t.Errorf("%d routes, want %d", n, 2*len(places)*len(places))
	}
}

// TestForetold: a NAT that takes another port for every destination, but in
// order, is punched through by aiming at the port that it will take next, if the
// other end keeps its own. Whoever asks.
func TestForetold(t *testing.T) {
	ordered := place{name: "in sequence", nat: memnet.SymmetricSequential, gate: true, wall: memnet.Drop}
	told := 0
	for _, other := range places[2:] {
		for i := range 2 * len(links) {
			asks, l := "AB"[i%2:i%2+1], links[i/2]
			t.Run(fmt.Sprintf("%s, signal %v, trip %v, %s asks", other.name, l.signal, l.trip, asks), func(t *testing.T) {
				o := &relayOptions{a: l.trip, b: l.trip, addresses: 2}
				story(t, options{link: l, relay: o, place: among(ordered, other)}, func(w *world) {
					told++
					req, res := w.a, w.b
					if asks == "B" {
						req, res = w.b, w.a
					}
					near, far, _ := req.stream(res)
					want := dtcp.Reflexive
					if !other.holes() {
						want = dtcp.Relay
					}
					if near.Path().Kind != want || far.Path().Kind != want {
						t.Errorf("%+v, want %v", near.Path(), want)
					}
					w.wantTransfer(near, far)
				})
			})
		}
	}
	if told != 36 {
		t.Errorf("%d stories told, want 36", told)
	}
}

// TestReport: what is found out about each kind of network, in the words of RFC
// 4787.
func TestReport(t *testing.T) {
	for _, tt := range []struct {
		at      place
		mapping string
		keeps   bool // punching is worth trying
	}{
		{places[0], "none", true},
		{places[1], "endpoint-independent", true},
		{places[2], "endpoint-independent", true},
		{places[4], "address-and-port-dependent", false},
		{places[6], "none", true},
	} {
		t.Run(tt.at.name, func(t *testing.T) {
			o := &relayOptions{addresses: 2}
			story(t, options{link: links[0], relay: o, place: among(tt.at, places[0])}, func(w *world) {
				r := w.a.Report()
				if r.NAT.Mapping != tt.mapping || r.NAT.Punchable != tt.keeps || len(r.NAT.Observed) != 2 {
					t.Errorf("NAT %+v, want mapping %s", r.NAT, tt.mapping)
				}
				types := map[dtcp.CandidateType]int{}
				for _, c := range r.Candidates {
					types[c.Type]++
				}
				if r.Relay != relayJID || r.RelayErr != nil || types[dtcp.Relay] != 2 || types[dtcp.Host] != 1 || (types[dtcp.Reflexive] == 1) != tt.keeps {
					t.Errorf("relay %v, %v, candidates %v", r.Relay, r.RelayErr, r.Candidates)
				}
				if len(r.Gateways) != 0 {
					t.Errorf("gateways were asked, which nobody allowed: %+v", r.Gateways)
				}
			})
		})
	}
}

// TestTwoPortsOfOneRelay: a relay that has one address, and two ports there, is
// enough to tell that a NAT gives every port another; then no hole is offered. It
// is not enough to tell that one does not.
func TestTwoPortsOfOneRelay(t *testing.T) {
	for _, tt := range []struct {
		at      place
		mapping string
		holes   int
	}{
		{places[2], "unknown", 1},
		{places[4], "address-and-port-dependent", 0},
	} {
		t.Run(tt.at.name, func(t *testing.T) {
			second := netip.AddrPortFrom(relayAddr.Addr(), 443)
			bent := newBentRelay(relayAddr.String())
			bent.addrs = append(bent.addrs, second.String())
			place := func(w *world) {
				among(tt.at, places[0])(w)
				l, err := w.relay.Listen(w.t.Context(), second)
				w.check(err)
				w.t.Cleanup(func() { _ = l.Close() })
				go func() { _ = bent.Serve(l) }()
			}
			story(t, options{link: links[0], relay: &relayOptions{run: bent}, place: place}, func(w *world) {
				r := w.a.Report()
				holes := 0
				for _, c := range r.Candidates {
					if c.Type == dtcp.Reflexive {
						holes++
					}
				}
				if r.NAT.Mapping != tt.mapping || holes != tt.holes || len(r.NAT.Observed) != 2 {
					t.Errorf("NAT %+v, %d reflexive candidates; want %s and %d", r.NAT, holes, tt.mapping, tt.holes)
				}
			})
		})
	}
}

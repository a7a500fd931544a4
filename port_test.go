package dtcp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// TestOffersDoNotWait: the relay lends an address, and then nobody reaches its
// port any more. Offers name what there is, and wait for nothing: the table of
// Section 4 of protocol.md holds, for the requester and for the responder.
func TestOffersDoNotWait(t *testing.T) {
	o := &relayOptions{a: 20 * time.Millisecond, b: 20 * time.Millisecond}
	fromTheStart := func(w *world) { w.relay.Firewall(memnet.Drop) }
	for name, place := range map[string]func(*world){"from the start": fromTheStart, "later": nil} {
		t.Run(name, func(t *testing.T) {
			story(t, options{link: links[0], relay: o, place: place}, func(w *world) {
				w.relay.Silence(true)
				<-time.After(10 * time.Minute) // the ports that were there are found to be lost
				near, far, after := w.a.stream(w.b)
				if want := 290 * time.Millisecond; after != want || near.Path().Kind != dtcp.Host {
					t.Errorf("the responder has its stream after %v, want %v; path %+v", after, want, near.Path())
				}
				w.wantTransfer(near, far)
			})
		})
	}
}

// TestRefilled: a port that is taken, or lost, is replaced at once.
func TestRefilled(t *testing.T) {
	home := places[2]
	o := &relayOptions{a: 20 * time.Millisecond, b: 20 * time.Millisecond}
	story(t, options{link: links[0], relay: o, place: among(home, home)}, func(w *world) {
		for i := range 10 {
			near, far, after := w.a.stream(w.b)
			if want := 290 * time.Millisecond; after != want || near.Path().Kind != dtcp.Reflexive {
				t.Fatalf("stream %d after %v, want %v; path %+v", i, after, want, near.Path())
			}
			defer near.Close()
			defer far.Close()
			<-time.After(100 * time.Millisecond)
		}
		for _, c := range w.relay.Conns() {
			c.Reset()
		}
		<-time.After(26 * time.Second) // for the next question
		for range 2 {
			near, far, after := w.a.stream(w.b)
			if want := 290 * time.Millisecond; after != want || near.Path().Kind != dtcp.Reflexive {
				t.Errorf("when both ends have lost their ports: after %v, want %v; path %+v", after, want, near.Path())
			}
			defer near.Close()
			defer far.Close()
		}
	})
}

// TestRelayKeepsFew: of the connections that ask how they are seen the relay
// keeps one for each port and family: it allows a lease only four, and sessions
// need some, too.
func TestRelayKeepsFew(t *testing.T) {
	home := places[2]
	o := &relayOptions{a: 20 * time.Millisecond, b: 20 * time.Millisecond, addresses: 2}
	story(t, options{link: links[0], relay: o, place: among(home, places[0])}, func(w *world) {
		<-time.After(time.Minute)
		if n := len(w.relay.Conns()); n != 4 { // two of A's, two of B's
			t.Errorf("%d connections to the relay, want two from each end", n)
		}
	})
}

// reflexive returns what an end offers to be punched at.
func reflexive(p *peer) (found []netip.AddrPort) {
	for _, c := range p.Report().Candidates {
		if c.Type == dtcp.Reflexive {
			found = append(found, c.Addr)
		}
	}
	return found
}

// TestWitnessLies: what no peer could dial is not offered, whatever a witness says;
// and when what it sees changes, the port is given up for another.
func TestWitnessLies(t *testing.T) {
	home := among(places[2], places[0])
	for _, lie := range []string{"203.0.113.1:0", "[fe80::1%eth0]:4000", "[2001:db8::1]:4000", "nothing", ""} {
		r := newBentRelay(relayAddr.String())
		r.observe = func(netip.AddrPort, net.Addr) string { return lie }
		story(t, options{link: links[0], relay: &relayOptions{run: r}, place: home}, func(w *world) {
			if found := reflexive(w.a); len(found) != 0 {
				t.Errorf("it sees %q, and %v is offered", lie, found)
			}
		})
	}
	r := newBentRelay(relayAddr.String())
	var moved atomic.Bool
	r.observe = func(remote netip.AddrPort, _ net.Addr) string {
		if moved.Load() {
			remote = netip.AddrPortFrom(netip.MustParseAddr("203.0.113.99"), remote.Port())
		}
		return remote.String()
	}
	story(t, options{link: links[0], relay: &relayOptions{run: r}, place: home}, func(w *world) {
		moved.Store(true)
		<-time.After(time.Minute)
		if found := reflexive(w.a); len(found) != 1 || found[0].Addr().String() != "203.0.113.99" {
			t.Errorf("%v is offered, want the new address", found)
		}
	})
}

// TestMisjudged: a NAT that seemed to take another port for every destination, in
// order, is found not to, and a session takes a port of those that are ready.
func TestMisjudged(t *testing.T) {
	r := newBentRelay(relayAddr.String())
	r.addrs = append(r.addrs, relayAddr2.String())
	var right atomic.Bool
	r.observe = func(remote netip.AddrPort, at net.Addr) string {
		if !right.Load() && at.String() == relayAddr2.String() {
			remote = netip.AddrPortFrom(remote.Addr(), remote.Port()+1)
		}
		return remote.String()
	}
	only := func(p *peer) { p.config.NoRelay = p.host.Name() != "A" }
	var offered []int
	count := func(kind string, q *query) {
		n := 0
		for _, c := range q.candidates {
			if c.Type == dtcp.Reflexive {
				n++
			}
		}
		if kind == stanza.Set {
			offered = append(offered, n)
		}
	}
	o := options{link: links[0], relay: &relayOptions{a: 60 * time.Millisecond, run: r}, place: among(places[2], places[0]), config: only, intercept: lying(count)}
	story(t, o, func(w *world) {
		for range 2 {
			near, far, _ := w.a.stream(w.b)
			w.wantTransfer(near, far)
			right.Store(true)
		}
		<-time.After(time.Second)
		near, far, after := w.a.stream(w.b)
		w.wantTransfer(near, far)
		if want := 290 * time.Millisecond; after != want {
			t.Errorf("the third stream after %v, want %v: its port was not ready", after, want)
		}
		if got, want := fmt.Sprint(offered), "[2 1 1]"; got != want { // the second finds it out
			t.Errorf("reflexive candidates of three offers: %s, want %s", got, want)
		}
		if n := w.a.Report().NAT.Mapping; n != "endpoint-independent" {
			t.Errorf("NAT %s", n)
		}
	})
}

// TestFewClaims: of the two connections of a port that is kept ready one alone is
// claimed, though there are two addresses to compare.
func TestFewClaims(t *testing.T) {
	r := newBentRelay(relayAddr.String())
	r.addrs = append(r.addrs, relayAddr2.String())
	only := func(p *peer) { p.config.NoRelay = p.host.Name() != "A" }
	story(t, options{link: links[0], relay: &relayOptions{run: r}, place: among(places[2], places[0]), config: only}, func(w *world) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.claims != 2 {
			t.Errorf("%d claims to be observed, want one for each of two ports", r.claims)
		}
	})
}

// TestDialCancelledWhilePortIsSought: no port is ready, and nobody says how the
// outside sees another one. A Dial that nobody wants any more ends at once all
// the same, and so does one when the Endpoint is closed.
func TestDialCancelledWhilePortIsSought(t *testing.T) {
	home := places[2]
	o := &relayOptions{a: 20 * time.Millisecond, b: 20 * time.Millisecond}
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed %t", closed), func(t *testing.T) {
			story(t, options{link: links[0], relay: o, place: among(home, home)}, func(w *world) {
				w.relay.Silence(true)
				ctx, cancel := context.WithCancel(w.patience())
				defer cancel()
				results := []<-chan dialed{}
				for range 4 { // two ports are ready
					results = append(results, w.a.dial(ctx, w.b))
				}
				<-time.After(10 * time.Millisecond)
				want := context.Canceled
				if closed {
					want = dtcp.ErrClosed
					w.check(w.a.Close())
				} else {
					cancel()
				}
				for _, r := range results {
					if d := <-r; !errors.Is(d.err, want) || d.after > 20*time.Millisecond {
						t.Errorf("Dial: %v after %v, want %v", d.err, d.after, want)
					}
				}
			})
		})
	}
}

package dtcp_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
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
		reflexive := func() (n int) {
			for _, c := range w.a.Report().Candidates {
				if c.Type == dtcp.Reflexive {
					n++
				}
			}
			return n
		}
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
		<-time.After(30 * time.Second) // for the next question
		if reflexive() != 1 {
			t.Errorf("candidates %v: want a reflexive one", w.a.Report().Candidates)
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

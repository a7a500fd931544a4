package dtcp_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
)

// punchSeeds is small enough for every run; the lab asks for 1,000.
var punchSeeds = flag.Int("punch.seeds", 4, "how many distances and gaps TestPunchSeeds tries for each pair of places")

// TestPunchSeeds: between any two places to which holes can be punched, at
// whatever distance, with whatever signalling, a hole is punched: always where
// gateways drop what nobody asked for, and nearly always where they refuse it,
// for then the two ends' SYNs have to cross.
func TestPunchSeeds(t *testing.T) {
	var holed []place
	for _, p := range places {
		if p.holes() && !p.accepts() {
			holed = append(holed, p)
		}
	}
	if len(holed) != 4 {
		t.Fatalf("%d places to punch between, want 4", len(holed))
	}
	for _, a := range holed {
		for _, b := range holed {
			t.Run(a.name+" to "+b.name, func(t *testing.T) {
				t.Parallel()
				missed := 0
				for seed := range *punchSeeds {
					if got := punched(t, a, b, uint64(seed)); got != dtcp.Reflexive {
						missed++
						t.Logf("seed %d: %v", seed, got)
					}
				}
				allowed := 0
				if a.wall == memnet.Reject && b.wall == memnet.Reject {
					allowed = (*punchSeeds*2 + 99) / 100
				}
				if missed > allowed {
					t.Errorf("%d of %d missed, want at most %d", missed, *punchSeeds, allowed)
				}
			})
		}
	}
}

// punched tells the story of one seed, and returns the kind of path.
func punched(t *testing.T, a, b place, seed uint64) (kind dtcp.CandidateType) {
	random := rand.New(rand.NewPCG(seed, 46))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(random.Int64N(int64(most-least+1)))
	}
	// The way through the relay is no shortcut; if it were, it would be right to
	// take it.
	o := &relayOptions{a: between(time.Millisecond, 150*time.Millisecond), b: between(time.Millisecond, 150*time.Millisecond), addresses: 2}
	l := link{signal: between(time.Millisecond, 150*time.Millisecond), trip: between(time.Millisecond, o.a+o.b)}
	var mu sync.Mutex
	story(t, options{link: l, relay: o, place: among(a, b), noServer: true}, func(w *world) {
		for _, p := range []*peer{w.a, w.b} {
			dtcp.SetGap(p.Endpoint, func(least, most time.Duration) time.Duration {
				mu.Lock()
				defer mu.Unlock()
				return between(least, most)
			})
		}
		req, res := w.a, w.b
		if seed%2 == 1 {
			req, res = w.b, w.a
		}
		near, far, _ := req.stream(res)
		kind = near.Path().Kind
		if far.Path().Kind != kind {
			t.Errorf("seed %d: kinds %v and %v", seed, kind, far.Path().Kind)
		}
		w.wantTransfer(near, far)
	})
	return kind
}

// TestTimesPunched is the table of Section 4 of protocol.md, to the millisecond:
// both are behind NATs, the responder's first SYN opens its own, and the
// requester's first SYN comes through.
func TestTimesPunched(t *testing.T) {
	home := places[2]
	if home.name != "port restricted" {
		t.Fatalf("place %q", home.name)
	}
	for _, l := range links {
		for _, asks := range []string{"A", "B"} {
			t.Run(fmt.Sprintf("signal %v, trip %v, %s asks", l.signal, l.trip, asks), func(t *testing.T) {
				o := &relayOptions{a: l.trip, b: l.trip, addresses: 2}
				story(t, options{link: l, relay: o, place: among(home, home)}, func(w *world) {
					req, res := w.a, w.b
					if asks == "B" {
						req, res = w.b, w.a
					}
					near, far, after := req.stream(res)
					if want := 2*l.signal + l.trip*5/2; after != want {
						t.Errorf("the responder has its stream after %v, want %v", after, want)
					}
					for _, p := range []dtcp.Path{near.Path(), far.Path()} {
						if p.Kind != dtcp.Reflexive || !p.Dialed {
							t.Errorf("path %+v, want a crossing of two dials", p)
						}
					}
					w.wantTransfer(near, far)
					if n := w.iqs.Load(); n != 2 {
						t.Errorf("%d iqs between the peers, want a question and an answer", n)
					}
				})
			})
		}
	}
}

// TestManyPunched: more streams at once than ports are ready, and streams both
// ways at once, all of them punched; a port carries one of them.
func TestManyPunched(t *testing.T) {
	const each = 10
	home := places[2]
	o := &relayOptions{a: links[0].trip, b: links[0].trip, addresses: 2}
	story(t, options{link: links[0], relay: o, place: among(home, home)}, func(w *world) {
		var results []<-chan dialed
		for range each {
			results = append(results, w.a.dial(w.patience(), w.b), w.b.dial(w.patience(), w.a))
		}
		type pair struct{ local, remote string }
		used := map[pair]bool{}
		var far []*dtcp.Conn
		for range each {
			for _, p := range []*peer{w.a, w.b} {
				c, err := p.Accept(w.patience())
				w.check(err)
				far = append(far, c)
			}
		}
		for _, r := range results {
			d := <-r
			w.check(d.err)
			p := d.conn.Path()
			if p.Kind != dtcp.Reflexive {
				t.Errorf("path %+v", p)
			}
			ends := pair{p.Local.String(), p.Remote.String()}
			if used[ends] {
				t.Errorf("two streams between %v", ends)
			}
			used[ends] = true
			_, err := d.conn.Write([]byte("x"))
			w.check(err)
			defer d.conn.Close()
		}
		for _, c := range far {
			var b [1]byte
			if n, err := c.Read(b[:]); n != 1 {
				t.Errorf("read %d bytes, %v", n, err)
			}
			w.check(c.Close())
		}
		if len(used) != 2*each {
			t.Errorf("%d streams, want %d", len(used), 2*each)
		}
	})
}

// TestHolesForWhatWasObserved: of a peer's many addresses the two that are dialed
// from the punch port are those that were observed, and a mapping, whose gateway
// may not be the last, takes no place of theirs.
func TestHolesForWhatWasObserved(t *testing.T) {
	home := places[2]
	o := &relayOptions{a: links[0].trip, b: links[0].trip, addresses: 2}
	more := func(_ string, q *query) {
		q.candidates = append([]dtcp.Candidate{
			{Type: dtcp.Mapped, Addr: netip.MustParseAddrPort("203.0.113.77:4000")},
			{Type: dtcp.Mapped, Addr: netip.MustParseAddrPort("203.0.113.78:4000")},
		}, q.candidates...)
	}
	story(t, options{link: links[0], relay: o, place: among(home, home), intercept: lying(more)}, func(w *world) {
		near, far, after := w.a.stream(w.b)
		if near.Path().Kind != dtcp.Reflexive || after != 290*time.Millisecond {
			t.Errorf("path %+v after %v", near.Path(), after)
		}
		w.wantTransfer(near, far)
	})
}

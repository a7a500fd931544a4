package dtcp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
)

const attemptTime = 30 * time.Second // Section 4 of protocol.md

// TestNobodyCanAccept is the last row of the table that TestTimes begins: who
// asks, what becomes of the packets, and when and how the Dial says so.
func TestNobodyCanAccept(t *testing.T) {
	worlds := []struct {
		name string
		a, b memnet.Firewall
	}{
		{"both drop", memnet.Drop, memnet.Drop},
		{"A drops, B rejects", memnet.Drop, memnet.Reject},
		{"A rejects, B drops", memnet.Reject, memnet.Drop},
		{"both reject", memnet.Reject, memnet.Reject},
	}
	told := 0
	for _, tt := range worlds {
		for _, asks := range []string{"A", "B"} {
			for _, l := range links {
				t.Run(tt.name+", "+asks+" asks", func(t *testing.T) {
					story(t, options{link: l, noServer: true}, func(w *world) {
						w.a.host.Firewall(tt.a)
						w.b.host.Firewall(tt.b)
						req, res := w.peer(asks), w.b
						if asks == "B" {
							res = w.a
						}
						want := 2*l.signal + attemptTime
						if tt.a == memnet.Reject && tt.b == memnet.Reject {
							// Refused after a round trip, and the responder's word of it is
							// here when the requester knows of its own.
							want = 2*l.signal + l.trip
						}
						d := w.wantDialed(req.dial(w.patience(), res), want)
						became := d.noPath(t)
						theirs, ours := res.listening().String(), "+"+req.listening().String()
						if len(became) != 2 || became[theirs] == nil || became[ours] == nil {
							t.Errorf("%v; want what became of %s and %s", d.err, theirs, ours)
						}
						res.wantNothing()
						w.wantGone("nobody has a stream")
						told++
					})
				})
			}
		}
	}
	if told != len(worlds)*2*len(links) {
		t.Errorf("%d stories came to their end", told)
	}
}

// TestSilentListener: somebody who accepts and then says nothing delays nobody,
// and is named when there is nobody else.
func TestSilentListener(t *testing.T) {
	l := links[0]
	hole := at("203.0.113.1:4000")
	for _, asks := range []string{"A", "B"} {
		for _, accepts := range []string{"A", "B"} {
			t.Run(asks+" asks, "+accepts+" accepts, behind a silent candidate", func(t *testing.T) {
				lie := func(_ string, q *query) { q.candidates = append([]dtcp.Candidate{hole}, q.candidates...) }
				story(t, options{link: l, intercept: lying(lie), noServer: true}, func(w *world) {
					silent := w.stranger("hole", "203.0.113.1")
					count := silent.acceptAll()
					req, res, want := w.a, w.b, 2*l.signal+l.trip*5/2
					if asks == "B" {
						req, res = w.b, w.a
					}
					w.a.host.Firewall(memnet.Drop)
					w.b.host.Firewall(memnet.Drop)
					w.peer(accepts).host.Firewall(memnet.Open)
					if asks == accepts {
						want = max(2*l.signal, l.signal+l.trip*3/2) + l.trip*3/2
					}
					near, far, after := req.stream(res)
					if after != want || count() != 2 {
						t.Errorf("the responder has its stream after %v, want %v; %d connections to the silent one, want 2", after, want, count())
					}
					w.wantTransfer(near, far)
				})
			})
		}
	}
	for name, givesUp := range map[string]bool{"alone, and the peer dials no more": true, "alone": false} {
		t.Run(name, func(t *testing.T) {
			story(t, options{link: l, noServer: true}, func(w *world) {
				b := w.b.instead()
				count := b.acceptAll()
				result := w.a.dial(w.patience(), w.b)
				iq, q := b.asked()
				b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Host, Addr: b.addr}))
				want := 2*l.signal + attemptTime
				if givesUp {
					b.giveUp(w.a.jid(), q.key)
					want = 2*l.signal + l.trip + 10*time.Second
				}
				became := w.wantDialed(result, want).noPath(t)
				if got := became[b.addr.String()]; got == nil || !strings.Contains(got.Error(), "nothing came for 10s") || count() != 1 {
					t.Errorf("of the silent listener: %v; %d connections", got, count())
				}
				b.wantGiveUp()
			})
		})
	}
}

// TestBothWin: both paths are proven at the same instant, and one is taken, the
// same at both ends.
func TestBothWin(t *testing.T) {
	l := link{50 * time.Millisecond, 100 * time.Millisecond}
	for range 8 { // goroutines that run at the same instant do so in any order
		ready := map[string]*atomic.Int64{"A": {}, "B": {}}
		var at [2]time.Time
		config := func(p *peer) {
			p.config.Trace = &dtcp.Trace{Ready: func(string, dtcp.Path) {
				if n := ready[p.host.Name()].Add(1); p.host.Name() == "A" && n <= 2 {
					at[n-1] = time.Now()
				}
			}}
		}
		story(t, options{link: l, config: config, noServer: true}, func(w *world) {
			near, far, after := w.a.stream(w.b)
			if ready["A"].Load() != 2 || at[0] != at[1] {
				t.Fatalf("%d paths are ready, at %v; want two at once", ready["A"].Load(), at)
			}
			if want := 2*l.signal + l.trip*5/2; after != want {
				t.Errorf("the responder has its stream after %v, want %v", after, want)
			}
			if near.Path().Local != far.Path().Remote {
				t.Errorf("two paths: %+v, %+v", near.Path(), far.Path())
			}
			w.wantTransfer(near, far)
			w.b.wantNothing()
			w.wantGone("the stream is closed")
		})
	}
}

// TestBothAsk: A and B ask each other at the same instant. These are two
// sessions and become two streams, on two connections.
func TestBothAsk(t *testing.T) {
	for _, l := range links {
		story(t, options{link: l, noServer: true}, func(w *world) {
			fromA, fromB := w.a.dial(w.patience(), w.b), w.b.dial(w.patience(), w.a)
			atB, err := w.b.Accept(w.patience())
			w.check(err)
			atA, err := w.a.Accept(w.patience())
			w.check(err)
			a, b := <-fromA, <-fromB
			w.check(errors.Join(a.err, b.err))
			if a.conn.Path().Local == atA.Path().Local && a.conn.Path().Remote == atA.Path().Remote {
				t.Errorf("two streams on one connection: %+v", a.conn.Path())
			}
			w.wantTransfer(a.conn, atB)
			w.wantTransfer(b.conn, atA)
			<-time.After(attemptTime)
			w.wantGone("both streams are closed")
		})
	}
}

// TestWinnerDies: the connection that A has nominated dies before B hears of
// it, and the other one carries the stream.
func TestWinnerDies(t *testing.T) {
	l := links[0]
	story(t, options{link: l, noServer: true}, func(w *world) {
		began := time.Now()
		result := w.a.dial(w.patience(), w.b)
		// A's own connection is proven first, and nominated at once; the one that
		// B dialed is proven before B's reset has reached A.
		<-time.After(2*l.signal + 2*l.trip + l.trip/4)
		killed := 0
		for _, c := range w.b.host.Conns() {
			if c.LocalAddr().(*net.TCPAddr).AddrPort() == w.b.listening() {
				c.Reset()
				killed++
			}
		}
		far, err := w.b.Accept(w.patience())
		w.check(err)
		want := 2*l.signal + 2*l.trip + l.trip/4 + l.trip/2 + l.trip/2
		if after := time.Since(began); after != want || killed != 1 {
			t.Errorf("the responder has its stream after %v, want %v; %d connections killed", after, want, killed)
		}
		d := w.wantDialed(result, want+l.trip/2)
		w.check(d.err)
		if d.conn.Path().Dialed {
			t.Errorf("the stream is on the path that died: %+v", d.conn.Path())
		}
		w.wantTransfer(d.conn, far)
	})
}

// TestOkIsLost: B has taken a path, and its ok does not arrive. After 5 s A
// nominates the other path, and is told that it is too late: a Dial never
// returns a stream that the peer does not hold.
func TestOkIsLost(t *testing.T) {
	l := links[0]
	for name, discards := range map[string]bool{"resets keep what has arrived": false, "resets discard it": true} {
		t.Run(name, func(t *testing.T) {
			config := func(p *peer) {
				if p.host.Name() == "B" {
					p.config.Network = mute{p.host}
				}
			}
			story(t, options{link: l, config: config, noServer: true}, func(w *world) {
				w.net.ResetDiscards(discards)
				result := w.a.dial(w.patience(), w.b)
				far, err := w.b.Accept(w.patience())
				w.check(err)
				d := w.wantDialed(result, 2*l.signal+2*l.trip+5*time.Second+l.trip)
				var refused *dtcp.PeerError
				if !errors.As(d.err, &refused) || !strings.Contains(d.err.Error(), "declined") {
					t.Errorf("Dial: %v, want a PeerError that says declined", d.err)
				}
				if got, err := io.ReadAll(far); len(got) > 0 || err != io.ErrUnexpectedEOF {
					t.Errorf("B reads %q, %v; want %v", got, err, io.ErrUnexpectedEOF)
				}
				_ = far.Close()
				w.b.wantNothing()
				w.wantGone("the Dial has failed")
			})
		})
	}
}

// mute is the network of a host of which accepted connections bring one flight
// of TLS out, and then nothing more.
type mute struct{ *memnet.Host }

func (m mute) Listen(ctx context.Context, local netip.AddrPort) (net.Listener, error) {
	l, err := m.Host.Listen(ctx, local)
	return muteListener{l}, err
}

type muteListener struct{ net.Listener }

func (l muteListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &muteConn{Conn: c.(*memnet.Conn)}, nil
}

type muteConn struct {
	*memnet.Conn
	wrote bool
}

func (c *muteConn) Write(p []byte) (int, error) {
	if c.wrote {
		return len(p), nil
	}
	c.wrote = true
	return c.Conn.Write(p)
}

package dtcp_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// TestForwarder: M has an account of its own. A wants a stream with M, and M
// passes key, fingerprint and addresses on to B as its own, and B's back to A.
// A and B then meet on one connection, with the certificates they expect, and
// find that they do not mean one another (Section 2 of protocol.md, 4).
func TestForwarder(t *testing.T) {
	l := links[0]
	for _, accepts := range []string{"A", "B", "AB"} {
		for _, service := range []string{"test", "other"} {
			t.Run(fmt.Sprintf("%s can accept, service %s", accepts, service), func(t *testing.T) {
				ready := map[string]*atomic.Int64{"A": {}, "B": {}}
				config := func(p *peer) {
					p.config.Trace = &dtcp.Trace{Ready: func(string, dtcp.Path) { ready[p.host.Name()].Add(1) }}
				}
				story(t, options{link: l, config: config, noServer: true}, func(w *world) {
					m := w.stranger("mallory", "203.0.113.66")
					for _, p := range []*peer{w.a, w.b} {
						if !strings.Contains(accepts, p.host.Name()) {
							p.host.Firewall(memnet.Drop)
						}
					}
					result := make(chan dialed, 1)
					began := time.Now()
					go func() { // ends with the Dial; waited for below
						c, err := w.a.Dial(w.patience(), m.jid(), "test")
						result <- dialed{c, err, time.Since(began)}
					}()
					iq, q := m.asked()
					q.service = service
					back, err := m.ask(w.b.jid(), q)
					w.check(err)
					m.answer(iq, back)
					d := <-result
					var refused *dtcp.PeerError
					if !errors.As(d.err, &refused) || !strings.Contains(d.err.Error(), "declined") {
						t.Errorf("Dial: %v, %v; want a PeerError that says declined", d.conn, d.err)
					}
					w.b.wantNothing()
					if ready["A"].Load() == 0 || ready["B"].Load() == 0 {
						t.Error("A and B have not met: the story proves nothing")
					}
					w.wantGone("nobody may have a stream")
				})
			})
		}
	}
}

// TestLyingServer: what a server between can change, and what comes of it.
func TestLyingServer(t *testing.T) {
	l := links[0]
	evil := dtcp.FingerprintOf([]byte("a certificate of the server's own"))
	only := func(which string, change func(q *query)) func(string, *query) {
		return func(kind string, q *query) {
			if kind == which {
				change(q)
			}
		}
	}
	printed := func(q *query) { q.print = evil }
	stripped := func(q *query) { q.print = dtcp.Fingerprint{} }
	elsewhere := func(q *query) {
		q.candidates, q.hosts = []dtcp.Candidate{at("203.0.113.66:4000")}, []string{"203.0.113.66:4000"}
	}
	var own dtcp.Fingerprint // A's
	told := 0
	for _, tt := range []struct {
		name  string
		lie   func(kind string, q *query)
		want  func(err error) bool
		after time.Duration // 0: it does not matter
	}{
		{"it changes the service", only(stanza.Set, func(q *query) { q.service = "admin" }), isPeerError("declined"), 2*l.signal + 3*l.trip},
		{"it changes the requester's key", only(stanza.Set, func(q *query) { q.key = "another" }), isPeerError("declined"), 0},
		{"it changes the responder's key", only(stanza.Result, func(q *query) { q.key = "another" }), isPeerError("declined"), 0},
		{"it changes the requester's fingerprint", only(stanza.Set, printed), isNoPath("refused this end's certificate"), 0},
		{"it changes the responder's fingerprint", only(stanza.Result, printed), isNoPath(dtcp.ErrFingerprint.Error()), 0},
		{"it changes both fingerprints", func(_ string, q *query) { printed(q) }, isNoPath(dtcp.ErrFingerprint.Error()), 0},
		{"it reflects the requester's own fingerprint", func(kind string, q *query) {
			if kind == stanza.Set {
				own = q.print
			} else {
				q.print = own
			}
		}, func(err error) bool { return errors.Is(err, dtcp.ErrOwnFingerprint) }, 2 * l.signal},
		{"it strips the extension from the request", only(stanza.Set, stripped), isRefused(stanza.Forbidden), 2 * l.signal},
		{"it strips the extension from the answer", only(stanza.Result, stripped), isPlain, 2 * l.signal},
		{"it strips the extension from both", func(_ string, q *query) { stripped(q) }, isRefused(stanza.Forbidden), 2 * l.signal},
		{"it names another host for the responder", only(stanza.Result, elsewhere), nil, 0},
		{"it names another host for the requester", only(stanza.Set, elsewhere), nil, 0},
		{"it names another host for both", func(_ string, q *query) { elsewhere(q) }, isNoPath("does not know this session"), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			story(t, options{link: l, intercept: lying(tt.lie), noServer: true}, func(w *world) {
				told++
				thief := w.stranger("mallory", "203.0.113.66") // listens where the server points
				go thief.rejectKeys()
				result := w.a.dial(w.patience(), w.b)
				if tt.want == nil { // the lie does not matter: the other way is open
					far, err := w.b.Accept(w.patience())
					w.check(err)
					d := <-result
					w.check(d.err)
					w.wantTransfer(d.conn, far)
					return
				}
				d := <-result
				if d.err == nil || !tt.want(d.err) {
					t.Errorf("Dial: %v, %v", d.conn, d.err)
				}
				if tt.after > 0 && d.after != tt.after {
					t.Errorf("Dial returns after %v, want %v", d.after, tt.after)
				}
				w.b.wantNothing()
				w.wantGone("nobody may have a stream")
			})
		})
	}
	if told != 13 {
		t.Errorf("%d stories told, want 13", told)
	}
}

// TestHalfStripped: both allow plain streams, and a server makes B alone look
// stock. A stock listener that is the requester has no way to hear that the
// other does not go along (XEP-0046, "The handshake"), but it hears of no end.
func TestHalfStripped(t *testing.T) {
	lie := func(kind string, q *query) {
		if kind == stanza.Result {
			strip(kind, q)
		}
	}
	story(t, options{link: links[0], config: plain, intercept: lying(lie), noServer: true}, func(w *world) {
		d := <-w.a.dial(w.patience(), w.b)
		w.check(d.err)
		if p := d.conn.Path(); p.Kind != dtcp.Stock || p.Encrypted {
			t.Errorf("path %+v", p)
		}
		if got, err := io.ReadAll(d.conn); len(got) > 0 || err != io.ErrUnexpectedEOF {
			t.Errorf("A reads %q, %v; want %v", got, err, io.ErrUnexpectedEOF)
		}
		_ = d.conn.Close()
		w.b.wantNothing()
		w.wantGone("B never had a stream")
	})
}

func isPlain(err error) bool { return errors.Is(err, dtcp.ErrPlain) }

func isRefused(condition string) func(error) bool {
	return func(err error) bool {
		var refused *dtcp.RefusedError
		return errors.As(err, &refused) && refusedFor(err, condition)
	}
}

func isPeerError(text string) func(error) bool {
	return func(err error) bool {
		var refused *dtcp.PeerError
		return errors.As(err, &refused) && strings.Contains(err.Error(), text)
	}
}

func isNoPath(text string) func(error) bool {
	return func(err error) bool {
		var e *dtcp.NoPathError
		return errors.As(err, &e) && strings.Contains(err.Error(), text)
	}
}

// rejectKeys answers every line by an error, as a listener does that has never
// heard of the session, until the listener is closed.
func (m *actor) rejectKeys() {
	for {
		c, err := m.listener.Accept()
		if err != nil {
			return
		}
		k := newRaw(m.w.t, c)
		if k.hear() != "" {
			_, _ = k.Write([]byte("error\n"))
		}
		_ = k.Close()
	}
}

// TestNeverStockAgain: a peer that was seen with the extension once is refused
// without it from then on, though plain streams are allowed with it.
func TestNeverStockAgain(t *testing.T) {
	for _, tt := range []struct {
		name string
		seen string // who asks while the server is honest
		asks string // who asks when it is not
		want func(error) bool
	}{
		{"seen asking, asks", "A", "A", isRefused(stanza.Forbidden)},
		{"seen asking, is asked", "A", "B", isPlain},
		{"seen answering, asks", "B", "A", isRefused(stanza.Forbidden)},
		{"seen answering, is asked", "B", "B", isPlain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var lies atomic.Bool
			// B's server strips what B gets to see, so that A looks stock to B.
			lie := func(kind string, q *query) {
				if lies.Load() && (kind == stanza.Set) == (tt.asks == "A") {
					strip(kind, q)
				}
			}
			story(t, options{link: links[0], config: plain, intercept: lying(lie), noServer: true}, func(w *world) {
				req, res := w.a, w.b
				if tt.seen == "B" {
					req, res = w.b, w.a
				}
				near, far, _ := req.stream(res)
				w.wantTransfer(near, far)
				lies.Store(true)
				req, res = w.a, w.b
				if tt.asks == "B" {
					req, res = w.b, w.a
				}
				d := <-req.dial(w.patience(), res)
				if d.err == nil || !tt.want(d.err) {
					t.Errorf("Dial: %v, %v", d.conn, d.err)
				}
				res.wantNothing()
			})
		})
	}
}

// TestVerifyPeer: who remembers fingerprints refuses the wrong one, at either
// end, is asked once per stream, and tells the other what it did not like.
func TestVerifyPeer(t *testing.T) {
	l := links[0]
	errStranger := errors.New("this is not the certificate I know")
	for _, who := range []string{"A", "B", "B, and resets discard what has arrived,"} {
		t.Run(who+" refuses", func(t *testing.T) {
			discards := len(who) > 1
			who := who[:1]
			asked := map[string]*atomic.Int64{"A": {}, "B": {}}
			prints := map[string]dtcp.Fingerprint{}
			config := func(p *peer) {
				p.config.VerifyPeer = func(other dtcp.Peer) error {
					asked[p.host.Name()].Add(1)
					prints[p.host.Name()] = other.Fingerprint
					if !other.Ephemeral || other.Certificate == nil || dtcp.FingerprintOf(other.Certificate.Raw) != other.Fingerprint {
						t.Errorf("%s is asked about %+v", p.name, other)
					}
					if p.host.Name() == who {
						return errStranger
					}
					return nil
				}
			}
			story(t, options{link: l, config: config, noServer: true}, func(w *world) {
				w.net.ResetDiscards(discards)
				d := <-w.a.dial(w.patience(), w.b)
				switch {
				case who == "A" && (!isPeerError("not the certificate")(d.err) || !errors.Is(d.err, errStranger)):
					t.Errorf("Dial: %v, want a PeerError with %v", d.err, errStranger)
				case who == "B" && !isNoPath("refused this end's certificate")(d.err):
					t.Errorf("Dial: %v, want it to say that the certificate was refused", d.err)
				}
				if d.after > 2*l.signal+4*l.trip {
					t.Errorf("Dial returns after %v", d.after)
				}
				if n := asked[who].Load(); n != 1 {
					t.Errorf("%s was asked %d times", who, n)
				}
				f, _ := w.peer("A").Fingerprint()
				if who == "B" && prints["B"] != f {
					t.Errorf("B was asked about %v, want %v", prints["B"], f)
				}
				w.b.wantNothing()
				w.wantGone("a certificate was refused")
			})
		})
	}
}

// TestOwnCertificate: two Endpoints with one certificate are one person, or
// somebody who reflects.
func TestOwnCertificate(t *testing.T) {
	var mine *tls.Certificate
	config := func(p *peer) {
		if mine == nil {
			c, err := dtcp.NewCertificate()
			p.w.check(err)
			mine = &c
		}
		p.config.Certificate = mine
	}
	story(t, options{link: links[0], config: config, noServer: true}, func(w *world) {
		d := <-w.a.dial(w.patience(), w.b)
		if !isRefused(stanza.NotAcceptable)(d.err) {
			t.Errorf("Dial: %v, want %s", d.err, stanza.NotAcceptable)
		}
		w.b.wantNothing()
	})
}

// TestGiveUpOfOthers: only the peer itself can say that it dials no more, and
// only of this session.
func TestGiveUpOfOthers(t *testing.T) {
	l := links[0]
	story(t, options{link: l, noServer: true}, func(w *world) {
		b, m := w.b.instead(), w.stranger("mallory", "203.0.113.66")
		w.b.host.Firewall(memnet.Reject)
		result := w.a.dial(w.patience(), w.b)
		iq, q := b.asked()
		m.giveUp(w.a.jid(), q.key)
		b.giveUp(w.a.jid(), "another")
		b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Host, Addr: b.addr}))
		m.giveUp(w.a.jid(), q.key)
		b.giveUp(w.a.jid(), b.key) // the wrong one of the two
		b.wantGiveUp()
		select {
		case d := <-result:
			t.Fatalf("Dial ends by the word of others: %v after %v", d.err, d.after)
		case <-time.After(10 * time.Second):
		}
		sent := time.Now()
		b.giveUp(w.a.jid(), q.key)
		d := <-result
		if after := time.Since(sent); after != l.signal || !isNoPath("nothing is left to try")(d.err) {
			t.Errorf("Dial: %v, %v after the peer's word, want %v", d.err, after, l.signal)
		}
	})
}

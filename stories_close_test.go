package dtcp_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// moments are those of a negotiation over links[0] in which A asks and both can
// be reached, before, at and after everything that happens.
func moments() (all []time.Duration) {
	l := links[0]
	for _, from := range []time.Duration{l.signal, 2 * l.signal} { // the dials of B, and of A
		for n := range 8 {
			at := from + time.Duration(n)*l.trip/2
			all = append(all, at-time.Millisecond, at, at+time.Millisecond)
		}
	}
	return all
}

// wantKeyUnknown checks that the listener of p answers a key by an error and
// stays open for another command.
func (p *peer) wantKeyUnknown(key string) {
	p.w.t.Helper()
	c, err := p.host.Dial(p.w.patience(), netip.AddrPort{}, p.listening())
	p.w.check(err)
	k := newRaw(p.w.t, c)
	k.say("key:" + key + "\n")
	k.want("error\n")
	k.say("key:" + key + "\n")
	k.want("error\n")
	_ = k.Close()
}

// TestCancelDial: a Dial whose context ends returns at once, whatever it is
// doing; its key is answered error from then on, nothing of it remains, and if
// the peer had a stream already it reads no end.
func TestCancelDial(t *testing.T) {
	cancelled, formed := 0, 0
	for _, at := range moments() {
		var key string
		watch := func(kind string, q *query) {
			if kind == stanza.Set {
				key = q.key
			}
		}
		story(t, options{link: links[0], intercept: lying(watch), noServer: true}, func(w *world) {
			ctx, cancel := context.WithTimeout(w.patience(), at)
			defer cancel()
			result := w.a.dial(ctx, w.b)
			accepted := make(chan *dtcp.Conn, 1)
			go func() { // ends with the Endpoint of B; waited for below
				c, _ := w.b.Accept(context.Background())
				accepted <- c
			}()
			d := <-result
			switch {
			case d.err == nil:
				formed++
				w.wantTransfer(d.conn, <-accepted)
				return
			case d.after != at:
				t.Errorf("cancelled at %v, Dial returns %v at %v", at, d.err, d.after)
			case !errors.Is(d.err, context.DeadlineExceeded):
				t.Errorf("cancelled at %v, Dial returns %v", at, d.err)
			}
			cancelled++
			w.a.wantKeyUnknown(key)
			<-time.After(attemptTime + 2*links[0].trip)
			select {
			case c := <-accepted:
				if got, err := io.ReadAll(c); len(got) > 0 || err != io.ErrUnexpectedEOF {
					t.Errorf("cancelled at %v: B reads %q, %v", at, got, err)
				}
				_ = c.Close()
			default:
				w.check(w.b.Close())
				<-accepted
			}
			w.wantGone("the Dial was cancelled")
		})
	}
	if cancelled < 30 || formed < 2 {
		t.Errorf("%d Dials were cancelled and %d came to a stream", cancelled, formed)
	}
}

// TestCloseEndpoint: Close ends a negotiation at once, at either side and
// whatever it is doing, and the other side does not wait for the end of its
// 30 s.
func TestCloseEndpoint(t *testing.T) {
	l := links[0]
	for _, closes := range []string{"A", "B"} {
		t.Run(closes+" closes", func(t *testing.T) {
			failed, formed := 0, 0
			for _, at := range moments() {
				story(t, options{link: l, noServer: true}, func(w *world) {
					p := w.peer(closes)
					result := w.a.dial(w.patience(), w.b)
					<-time.After(at)
					if after := took(func() { w.check(p.Close()) }); after != 0 {
						t.Errorf("closed at %v: Close takes %v", at, after)
					}
					d := <-result
					if d.err == nil {
						formed++
						if closes == "B" { // whose user has not accepted it
							if got, err := io.ReadAll(d.conn); len(got) > 0 || err != io.ErrUnexpectedEOF {
								t.Errorf("closed at %v: A reads %q, %v", at, got, err)
							}
						}
						_ = d.conn.Close()
						return
					}
					failed++
					switch {
					case closes == "A" && (d.after != at || !errors.Is(d.err, dtcp.ErrClosed)):
						t.Errorf("closed at %v: Dial returns %v after %v, want %v at once", at, d.err, d.after, dtcp.ErrClosed)
					case closes == "B" && d.after > max(at, 2*l.signal)+2*l.trip:
						t.Errorf("closed at %v: Dial returns %v after %v", at, d.err, d.after)
					}
					<-time.After(attemptTime)
					w.wantGone("an Endpoint was closed")
				})
			}
			if failed < 20 || formed < 2 {
				t.Errorf("%d Dials failed, %d came to a stream", failed, formed)
			}
		})
	}
	t.Run("while Allow is asked", func(t *testing.T) {
		config := func(p *peer) {
			p.config.Allow = func(ctx context.Context, _ *dtcp.Request) error {
				<-ctx.Done()
				return ctx.Err()
			}
		}
		story(t, options{link: l, config: config, noServer: true}, func(w *world) {
			result := w.a.dial(w.patience(), w.b)
			<-time.After(time.Second)
			w.check(w.b.Close())
			d := w.wantDialed(result, time.Second+l.signal)
			var refused *dtcp.RefusedError
			if !errors.As(d.err, &refused) {
				t.Errorf("Dial: %v, want a refusal", d.err)
			}
		})
	})
	t.Run("while connections say nothing", func(t *testing.T) {
		story(t, options{link: l, noServer: true}, func(w *world) {
			m := w.stranger("mallory", "203.0.113.66")
			k := m.dial(w.a.listening())
			k.say("key:")
			synctest.Wait()
			w.check(w.a.Close())
			k.wantEnd(0)
		})
	})
}

// TestLateAnswer: B's user takes a minute to allow what A has waited ten
// seconds for. Nothing comes of it, and nothing remains.
func TestLateAnswer(t *testing.T) {
	l := links[0]
	config := func(p *peer) {
		p.config.Allow = func(context.Context, *dtcp.Request) error {
			<-time.After(time.Minute)
			return nil
		}
	}
	story(t, options{link: l, config: config, noServer: true}, func(w *world) {
		ctx, cancel := context.WithTimeout(w.patience(), 10*time.Second)
		defer cancel()
		result := w.a.dial(ctx, w.b)
		if d := w.wantDialed(result, 10*time.Second); !errors.Is(d.err, context.DeadlineExceeded) {
			t.Errorf("Dial: %v", d.err)
		}
		opens := w.opens()
		<-time.After(2 * time.Minute)
		if n := opens(w.a.listening()); n != 1 {
			t.Errorf("B dialed A %d times, want once", n)
		}
		w.b.wantNothing()
		w.wantGone("the answer came late")
	})
}

// TestStrangerAnswers: an answer with our id counts only from whom we asked.
func TestStrangerAnswers(t *testing.T) {
	mallory := jid.MustParse("mallory@example.org/test")
	for name, late := range map[string]bool{"before the peer": false, "after the peer": true} {
		t.Run(name, func(t *testing.T) {
			answers := 0
			lie := func(from jid.JID, e stanza.Element) []stanza.Element {
				kind := stanza.Set
				if late {
					kind = stanza.Result
				}
				if e.Child(dtcp.NSStock, "query").IsZero() || e.Attr("type") != kind {
					return []stanza.Element{e}
				}
				answers++
				asker := from
				if late {
					asker = jid.MustParse(e.Attr("to"))
				}
				forged := stanza.IQ{
					Header: stanza.Header{To: asker, From: mallory, ID: e.Attr("id")}, Type: stanza.Result,
					Payload: query{key: "stranger", hosts: []string{"203.0.113.66:4000"}}.element(),
				}.Element(stanza.NSClient)
				if late {
					return []stanza.Element{e, forged}
				}
				return []stanza.Element{forged, e}
			}
			story(t, options{link: links[0], intercept: lie}, func(w *world) {
				opens := w.opens()
				near, far, _ := w.a.stream(w.b)
				if near.Peer() != w.b.jid() || answers != 1 {
					t.Errorf("the stream is with %v; %d forged answers", near.Peer(), answers)
				}
				w.wantTransfer(near, far)
				if n := opens(at("203.0.113.66:4000").Addr); n != 0 {
					t.Errorf("the stranger was dialed %d times", n)
				}
			})
		})
	}
}

// TestHeld: a dialer that comes long before the iq-result is held, and has its
// stream as soon as that is there.
func TestHeld(t *testing.T) {
	l := link{trip: 100 * time.Millisecond}
	for _, delay := range []time.Duration{time.Second, 15 * time.Second, 29 * time.Second} {
		t.Run(delay.String(), func(t *testing.T) {
			slow := lying(func(kind string, _ *query) {
				if kind == stanza.Result {
					<-time.After(delay)
				}
			})
			story(t, options{link: l, intercept: slow, noServer: true}, func(w *world) {
				w.b.host.Firewall(memnet.Drop)
				near, far, after := w.a.stream(w.b)
				if want := delay + l.trip*3/2; after != want {
					t.Errorf("the responder has its stream after %v, want %v", after, want)
				}
				w.wantTransfer(near, far)
			})
		})
	}
}

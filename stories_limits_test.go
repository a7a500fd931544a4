package dtcp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// refusedFor reports whether an iq was answered by an error of this condition.
func refusedFor(err error, condition string) bool {
	var e *stanza.Error
	return errors.As(err, &e) && e.Condition == condition
}

// TestWaitingStreams: 128 streams wait for Accept, and the next one is refused,
// before or after its connection is there, but never given and taken away.
func TestWaitingStreams(t *testing.T) {
	story(t, options{link: links[0], noServer: true}, func(w *world) {
		var mu sync.Mutex
		var near []*dtcp.Conn
		dialMany := func(n int) (failed []error) {
			var all sync.WaitGroup
			for range n {
				all.Go(func() {
					c, err := w.a.Dial(w.patience(), w.b.jid(), "test")
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						failed = append(failed, err)
						return
					}
					near = append(near, c)
				})
			}
			all.Wait()
			return failed
		}
		if failed := dialMany(126); failed != nil {
			t.Fatal(failed)
		}
		// Two places are left for ten.
		failed := dialMany(10)
		if len(failed) != 8 {
			t.Errorf("%d of ten Dials fail at the limit, want 8", len(failed))
		}
		for _, err := range failed {
			var declined *dtcp.PeerError
			if !errors.As(err, &declined) && !refusedFor(err, stanza.ResourceConstraint) {
				t.Errorf("at the limit: %v", err)
			}
		}
		if failed := dialMany(1); len(failed) != 1 || !refusedFor(failed[0], stanza.ResourceConstraint) {
			t.Errorf("the 129th: %v, want %s", failed, stanza.ResourceConstraint)
		}
		// Whatever A was given B holds.
		for range near {
			far, err := w.b.Accept(w.patience())
			w.check(err)
			_, err = far.Write([]byte("x"))
			w.check(err)
			defer far.Abort()
		}
		for i, c := range near {
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
			defer c.Abort()
		}
		if failed := dialMany(1); failed != nil || len(near) != 129 {
			t.Errorf("with room again: %v; %d streams", failed, len(near))
		}
	})
}

// TestSessionsAtOnce: a peer may have 32 negotiations under way, by all of its
// resources, and a stranger two; then they are refused, and others are not.
func TestSessionsAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name     string
		stranger bool
		limit    int
	}{{"of an allowed peer", false, 32}, {"of a stranger", true, 2}} {
		t.Run(tt.name, func(t *testing.T) {
			config := func(p *peer) {
				p.config.Allow = func(_ context.Context, r *dtcp.Request) error {
					r.Stranger = tt.stranger
					return nil
				}
			}
			story(t, options{config: config, noServer: true}, func(w *world) {
				m, other := w.stranger("mallory", "203.0.113.66"), w.stranger("olivia", "203.0.113.67")
				second := *m
				second.session = w.board.user("mallory@example.org/second")
				dead := query{key: m.key, print: m.print, service: "test", candidates: []dtcp.Candidate{at("203.0.113.99:4000")}}
				for i := range tt.limit {
					if _, err := m.ask(w.b.jid(), dead); err != nil {
						t.Fatalf("request %d: %v", i+1, err)
					}
				}
				for _, one := range []*actor{m, &second} {
					if _, err := one.ask(w.b.jid(), dead); !refusedFor(err, stanza.ResourceConstraint) {
						t.Errorf("request %d, from %v: %v", tt.limit+1, one.jid(), err)
					}
				}
				if _, err := other.ask(w.b.jid(), dead); err != nil {
					t.Errorf("another peer: %v", err)
				}
				<-time.After(attemptTime + time.Second)
				if _, err := second.ask(w.b.jid(), dead); err != nil {
					t.Errorf("when the others are over: %v", err)
				}
				<-time.After(attemptTime + time.Second)
				for range cap(m.gaveUp) { // the sessions end in silence but for this
					select {
					case <-m.gaveUp:
					default:
					}
				}
			})
		})
	}
}

// TestUnfinishedConnections: who has the key can open 32 connections that prove
// nothing; then the oldest is dropped. It costs whom it is not meant for
// nothing.
func TestUnfinishedConnections(t *testing.T) {
	wantOldestDropped := func(w *world, all []*raw) {
		w.t.Helper()
		if dropped := ended(all); !slices.Equal(dropped, []int{0}) {
			w.t.Errorf("of %d connections these were dropped: %v, want the first", len(all), dropped)
		}
	}
	crowd := func(w *world, m *actor, to dtcp.Candidate, key string) (all []*raw) {
		for range 33 {
			k := m.dial(to.Addr)
			k.say("key:" + key + "\n")
			synctest.Wait()
			all = append(all, k)
		}
		return all
	}
	t.Run("in their handshake", func(t *testing.T) {
		story(t, options{link: links[0], noServer: true}, func(w *world) {
			m, thief := w.a.instead(), w.stranger("mallory", "203.0.113.66")
			q, err := m.ask(w.b.jid(), query{key: m.key, print: m.print, service: "test"})
			w.check(err)
			wantOldestDropped(w, crowd(w, thief, q.candidates[0], q.key))
			k := m.dial(q.candidates[0].Addr)
			k.say("key:" + q.key + "\n")
			s, err := k.client(m.tls())
			w.check(err)
			s.say("ok:" + s.proof(meant(m.jid(), w.b.jid(), m.key, q.key, "test")) + "\n")
			s.want("ok\n")
			far, err := w.b.Accept(w.patience())
			w.check(err)
			_ = far.Abort()
		})
	})
	t.Run("held until the iq-result", func(t *testing.T) {
		story(t, options{link: links[0], noServer: true}, func(w *world) {
			b, thief := w.b.instead(), w.stranger("mallory", "203.0.113.66")
			result := w.a.dial(w.patience(), w.b)
			iq, q := b.asked()
			wantOldestDropped(w, crowd(w, thief, q.candidates[0], q.key))
			b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Host, Addr: b.addr}))
			k := b.accept()
			k.want("key:" + b.key + "\n")
			s, err := k.server(b.tls())
			w.check(err)
			s.want("ok:" + s.proof(meant(w.a.jid(), b.jid(), q.key, b.key, "test")) + "\n")
			s.say("ok\n")
			d := <-result
			w.check(d.err)
			_ = d.conn.Abort()
		})
	})
}

// ended returns which of the connections the other end has ended.
func ended(all []*raw) (which []int) {
	for i, k := range all {
		_ = k.SetReadDeadline(time.Now().Add(time.Nanosecond))
		var timeout net.Error
		if _, err := k.r.Peek(1); err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
			which = append(which, i)
		}
	}
	return which
}

// TestGreetings: 256 connections may say nothing; then the oldest is dropped,
// and the rest when their 10 s are over.
func TestGreetings(t *testing.T) {
	story(t, options{link: links[0], noServer: true}, func(w *world) {
		m := w.stranger("mallory", "203.0.113.66")
		var all []*raw
		for range 256 {
			all = append(all, m.dial(w.b.listening()))
		}
		synctest.Wait()
		began := time.Now()
		if gone := ended(all); len(gone) > 0 {
			t.Errorf("of 256 connections these were dropped: %v", gone)
		}
		all = append(all, m.dial(w.b.listening()))
		synctest.Wait()
		if gone := ended(all); !slices.Equal(gone, []int{0}) {
			t.Errorf("of 257 connections these were dropped: %v, want the first", gone)
		}
		near, far, _ := w.a.stream(w.b) // in all that crowd
		w.wantTransfer(near, far)
		if gone := ended(all); !slices.Equal(gone, []int{0, 1}) {
			t.Errorf("for one more connection these were dropped: %v, want the first of them", gone)
		}
		all[255].wantEnd(10*time.Second - time.Since(began))
		if gone := ended(all[:256]); len(gone) != 256 {
			t.Errorf("after 10 s %d connections are alive", 256-len(gone))
		}
	})
}

// TestProvenIsNotPushedOut: 32 key lines of somebody who saw the key on the wire
// do not cost the peer the path on which it has proven itself.
func TestProvenIsNotPushedOut(t *testing.T) {
	story(t, options{link: links[0]}, func(w *world) {
		b := w.b.instead()
		m := w.stranger("mallory", "203.0.113.66")
		q, err := b.ask(w.a.jid(), query{key: b.key, print: b.print, service: "test"})
		w.check(err)
		k := b.dial(w.a.listening())
		k.say("key:" + q.key + "\n")
		s, err := k.client(b.tls())
		w.check(err)
		<-time.After(time.Second) // proven at A
		for range 32 {
			m.dial(w.a.listening()).say("key:" + q.key + "\n")
		}
		<-time.After(time.Second)
		s.say("ok:" + s.proof(meant(b.jid(), w.a.jid(), b.key, q.key, "test")) + "\n")
		if got := s.hear(); got != "ok\n" {
			w.t.Errorf("the nomination of a proven path is answered %q", got)
		}
	})
}

// TestGetIsAnswered: an iq of type get is answered, as every question must be
// (RFC 6120, 8.2.3).
func TestGetIsAnswered(t *testing.T) {
	story(t, options{link: links[0]}, func(w *world) {
		b := w.b.instead()
		_, err := b.session.RoundTrip(w.patience(), stanza.IQ{Header: stanza.Header{To: w.a.jid()}, Type: stanza.Get, Payload: query{key: "k"}.element()})
		var e *stanza.Error
		if !errors.As(err, &e) || e.Condition != stanza.FeatureNotImplemented {
			w.t.Errorf("a get is answered %v", err)
		}
	})
}

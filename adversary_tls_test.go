package dtcp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/wire"
)

// TestWrongDialers: who dials B with the right key and then does anything but
// what Section 2 of protocol.md says gets nowhere, and the peer that the
// session is with has its stream all the same.
func TestWrongDialers(t *testing.T) {
	change := func(f func(*tls.Config)) func(m *actor, k *raw) {
		return func(m *actor, k *raw) {
			c := m.tls()
			f(c)
			if s, err := k.client(c); err == nil { // B may have ended it by now
				_, _ = s.Write([]byte("ok:" + strings.Repeat("A", 43) + "\n"))
			}
		}
	}
	say := func(s string) func(m *actor, k *raw) { return func(_ *actor, k *raw) { k.say(s) } }
	told := 0
	for _, tt := range []struct {
		name  string
		thief bool // somebody else who has learned the key; otherwise the peer itself
		do    func(m *actor, k *raw)
	}{
		{"another certificate", true, change(func(*tls.Config) {})},
		{"no certificate", false, change(func(c *tls.Config) { c.Certificates = nil })},
		{"no ALPN", false, change(func(c *tls.Config) { c.NextProtos = nil })},
		{"another ALPN", false, change(func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} })},
		{"TLS 1.2", false, change(func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 })},
		{"a stock ok", true, say("ok\n")},
		{"starttls", true, say("starttls\n")},
		{"the key again", true, say("key:again\n")},
		{"plain data", true, say("hello\n")},
		{"HTTP", true, say("GET / HTTP/1.1\r\n\r\n")},
		{"SSH", true, say("SSH-2.0-OpenSSH_9.6\r\n")},
		{"an alert", true, say("\x15\x03\x01\x00\x02\x02\x28")},
		{"a nomination outside of TLS", true, say("ok:" + strings.Repeat("A", 43) + "\n")},
		{"a reset", true, func(_ *actor, k *raw) { k.Conn.(*memnet.Conn).Reset() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			story(t, options{noServer: true}, func(w *world) {
				told++
				a := w.a.instead()
				thief := a
				if tt.thief {
					thief = w.stranger("mallory", "203.0.113.66")
				}
				q, err := a.ask(w.b.jid(), query{key: a.key, print: a.print, service: "test"})
				w.check(err)
				k := thief.dial(q.candidates[0].Addr)
				k.say("key:" + q.key + "\n")
				began := time.Now()
				tt.do(thief, k)
				_, _ = io.Copy(io.Discard, k)
				if after := time.Since(began); after != 0 {
					t.Errorf("B ends it after %v, want at once", after)
				}
				a.wantStream(w.b, q)
			})
		})
	}
	if told != 14 {
		t.Errorf("%d stories told, want 14", told)
	}
}

// wantStream checks that the actor, as the requester it is, can form the stream
// that p has answered by q, and that p has no other.
func (m *actor) wantStream(p *peer, q query) {
	m.w.t.Helper()
	k := m.dial(q.candidates[0].Addr)
	k.say("key:" + q.key + "\n")
	s, err := k.client(m.tls())
	m.w.check(err)
	s.say("ok:" + s.proof(meant(m.jid(), p.jid(), m.key, q.key, "test")) + "\n")
	s.want("ok\n")
	far, err := p.Accept(m.w.patience())
	m.w.check(err)
	s.say("it is me\n")
	got := make([]byte, 9)
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "it is me\n" {
		m.w.t.Errorf("the stream brings %q, %v", got, err)
	}
	_ = s.Close()
	_ = far.Close()
	p.wantNothing()
}

// TestWrongNominations: inside TLS, with the right certificate, only the proof
// of this session on this connection counts. Anything else is answered error,
// and the connection is closed; the session is not.
func TestWrongNominations(t *testing.T) {
	type scene struct {
		key           string // of the first of two sessions, at B
		right, other  wire.Session
		first, second *secured // connections of the first session
	}
	said := 0
	for _, tt := range []struct {
		name string
		line func(c scene) string
	}{
		{"no proof", func(scene) string { return "ok" }},
		{"an empty proof", func(scene) string { return "ok:" }},
		{"a random proof", func(scene) string { return "ok:" + strings.Repeat("A", 43) }},
		{"half of the proof", func(c scene) string { return "ok:" + c.second.proof(c.right)[:21] }},
		{"the proof and a letter", func(c scene) string { return "ok:" + c.second.proof(c.right) + "A" }},
		{"a word before the proof", func(c scene) string { return "ok:move=1 " + c.second.proof(c.right) }},
		{"the proof of another connection", func(c scene) string { return "ok:" + c.first.proof(c.right) }},
		{"the proof of another session", func(c scene) string { return "ok:" + c.second.proof(c.other) }},
		{"a proof with the keys swapped", func(c scene) string {
			s := c.right
			s.RequesterKey, s.ResponderKey = s.ResponderKey, s.RequesterKey
			return "ok:" + c.second.proof(s)
		}},
		{"a proof with the addresses swapped", func(c scene) string {
			s := c.right
			s.Requester, s.Responder = s.Responder, s.Requester
			return "ok:" + c.second.proof(s)
		}},
		{"a proof for another service", func(c scene) string {
			s := c.right
			s.Service = "admin"
			return "ok:" + c.second.proof(s)
		}},
		{"a proof for another resource", func(c scene) string {
			s := c.right
			s.Requester += "2"
			return "ok:" + c.second.proof(s)
		}},
		{"a proof with a feature that B does not know", func(c scene) string {
			s := c.right
			s.Features = []string{"move"}
			return "ok:" + c.second.proof(s)
		}},
		{"the key", func(c scene) string { return "key:" + c.key }},
		{"starttls", func(scene) string { return "starttls" }},
		{"move", func(scene) string { return "move:s1" }},
		{"an unknown command", func(scene) string { return "hello" }},
		{"error", func(scene) string { return "error" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			story(t, options{noServer: true}, func(w *world) {
				said++
				a := w.a.instead()
				keys := []string{a.key, wire.NewKey()}
				var answers []query
				var sessions []wire.Session
				for _, key := range keys {
					q, err := a.ask(w.b.jid(), query{key: key, print: a.print, service: "test"})
					w.check(err)
					answers = append(answers, q)
					sessions = append(sessions, meant(a.jid(), w.b.jid(), key, q.key, "test"))
				}
				c := scene{key: answers[0].key, right: sessions[0], other: sessions[1]}
				for _, s := range []**secured{&c.first, &c.second} {
					k := a.dial(answers[0].candidates[0].Addr)
					k.say("key:" + c.key + "\n")
					var err error
					*s, err = k.client(a.tls())
					w.check(err)
				}
				line := tt.line(c)
				c.second.say(line + "\n")
				if strings.HasPrefix(line, "move:") { // reserved for later versions
					c.second.want("error:gone\n")
				} else {
					c.second.want("error\n")
				}
				c.second.wantEnd(0)
				_ = c.second.Close()
				a.wantStream(w.b, answers[0])
			})
		})
	}
	if said != 18 {
		t.Errorf("%d nominations, want 18", said)
	}
}

// TestWrongListeners: what may answer where A dials, and what its Dial then
// says of that candidate.
func TestWrongListeners(t *testing.T) {
	say := func(s string) func(b *actor, k *raw, q query) { return func(_ *actor, k *raw, _ query) { k.say(s) } }
	change := func(f func(*tls.Config)) func(b *actor, k *raw, q query) {
		return func(b *actor, k *raw, _ query) {
			c := b.tls()
			f(c)
			if s, err := k.server(c); err == nil { // A may have ended it by now
				_, _ = s.Write([]byte("ok\n"))
			}
			_ = k.Close()
		}
	}
	after := func(line string) func(b *actor, k *raw, q query) {
		return func(b *actor, k *raw, _ query) {
			s, err := k.server(b.tls())
			b.w.check(err)
			s.hear()
			s.say(line)
		}
	}
	told := 0
	for _, tt := range []struct {
		name   string
		do     func(b *actor, k *raw, q query)
		reason string
	}{
		{"error", say("error\n"), "does not know this session"},
		{"error and a text", say("error:not here\n"), "does not know this session"},
		{"a stock ok", say("ok:abc\n"), "something other than DTCP"},
		{"starttls", say("starttls\n"), "something other than DTCP"},
		{"HTTP", say("HTTP/1.1 400 Bad Request\r\n\r\n"), "something other than DTCP"},
		{"SSH", say("SSH-2.0-OpenSSH_9.6\r\n"), "something other than DTCP"},
		{"an application record", say("\x17\x03\x03\x00\x10aaaaaaaaaaaaaaaa"), "something other than DTCP"},
		{"a key that is not ours", say("key:abc\n"), "wrong key"},
		{"a key without end", say("key:" + strings.Repeat("a", 600)), "longer than"},
		{"an alert", say("\x15\x03\x01\x00\x02\x02\x28"), "handshake failure"},
		{"the end", func(_ *actor, k *raw, _ query) { _ = k.Close() }, "closed the connection"},
		{"a reset", func(_ *actor, k *raw, _ query) { k.Conn.(*memnet.Conn).Reset() }, "reset"},
		{"another certificate", change(func(c *tls.Config) {
			other, err := dtcp.NewCertificate()
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{other}
		}), dtcp.ErrFingerprint.Error()},
		{"TLS 1.2", change(func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 }), "protocol version"},
		{"no ALPN", change(func(c *tls.Config) { c.NextProtos = nil }), "did not agree to speak DTCP"},
		{"another ALPN", change(func(c *tls.Config) { c.NextProtos = []string{"h2"} }), "no application protocol"},
		{"inside TLS, nonsense", after("hello\n"), "something other than DTCP"},
		{"inside TLS, a line without end", after(strings.Repeat("a", 600)), "longer than"},
		{"inside TLS, bytes", after("\x00\x01\x02\n"), "bytes outside of printable"},
		{"inside TLS, the end", func(b *actor, k *raw, _ query) {
			s, err := k.server(b.tls())
			b.w.check(err)
			s.hear()
			b.w.check(s.tls.Close())
		}, "closed the connection"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			story(t, options{noServer: true}, func(w *world) {
				told++
				b := w.b.instead()
				result := w.a.dial(w.patience(), w.b)
				iq, q := b.asked()
				b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Host, Addr: b.addr}))
				b.giveUp(w.a.jid(), q.key)
				k := b.accept()
				k.want("key:" + b.key + "\n")
				tt.do(b, k, q)
				d := w.wantDialed(result, 0)
				if got := d.noPath(t)[b.addr.String()]; got == nil || !strings.Contains(got.Error(), tt.reason) {
					t.Errorf("of the listener: %v; want it to say %q", got, tt.reason)
				}
				b.wantGiveUp()
			})
		})
	}
	if told != 20 {
		t.Errorf("%d stories told, want 20", told)
	}
}

// TestCrossing: a connection on which both ends are dialers, as simultaneous
// open makes it: A skips one line, which must name its own key.
func TestCrossing(t *testing.T) {
	story(t, options{link: links[0], noServer: true}, func(w *world) {
		b := w.b.instead()
		result := w.a.dial(w.patience(), w.b)
		iq, q := b.asked()
		b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Host, Addr: b.addr}))
		k := b.accept()
		k.say("key:" + q.key + "\n")
		k.want("key:" + b.key + "\n")
		s, err := k.server(b.tls())
		w.check(err)
		s.want("ok:" + s.proof(meant(w.a.jid(), b.jid(), q.key, b.key, "test")) + "\n")
		s.say("ok\n")
		d := <-result
		w.check(d.err)
		_ = d.conn.Abort()
	})
}

// TestForgedRecords: what a peer can do inside TLS when the stream is there.
// Nothing but close_notify reads as an end, nothing costs memory without bound.
func TestForgedRecords(t *testing.T) {
	const userCanceled, closeNotify, internalError = 90, 0, 80
	told := 0
	for _, tt := range []struct {
		name string
		do   func(f *forger)
		got  string // what A reads
		want error  // and then
	}{
		{"close_notify", func(f *forger) { f.alert(1, closeNotify) }, "", nil},
		{"data and close_notify", func(f *forger) { f.data("hello"); f.alert(1, closeNotify) }, "hello", nil},
		{"a key update", func(f *forger) { f.data("he"); f.keyUpdate(0); f.data("llo"); f.alert(1, closeNotify) }, "hello", nil},
		{"a key update that asks for ours", func(f *forger) { f.data("he"); f.keyUpdate(1); f.data("llo"); f.alert(1, closeNotify) }, "hello", nil},
		{"a ticket", func(f *forger) {
			f.handshake(4, "\x00\x00\x0e\x10\x00\x00\x00\x00\x01n\x00\x04tick\x00\x00")
			f.alert(1, closeNotify)
		}, "", nil},
		{"a fatal alert", func(f *forger) { f.data("hello"); f.alert(2, internalError) }, "hello", io.ErrUnexpectedEOF},
		{"an alert that is no close_notify", func(f *forger) { f.alert(1, internalError) }, "", io.ErrUnexpectedEOF},
		{"half an alert", func(f *forger) { f.record(21, []byte{1}) }, "", io.ErrUnexpectedEOF},
		{"user_canceled without end", func(f *forger) {
			for range 100 {
				f.alert(1, userCanceled)
			}
		}, "", io.ErrUnexpectedEOF},
		{"empty records without end", func(f *forger) {
			for range 100 {
				f.data("")
			}
		}, "", io.ErrUnexpectedEOF},
		{"key updates without end", func(f *forger) {
			for range 100 {
				f.keyUpdate(1)
			}
		}, "", io.ErrUnexpectedEOF},
		{"a record that was sealed twice", func(f *forger) { f.data("hello"); f.n--; f.data("hello") }, "hello", io.ErrUnexpectedEOF},
		{"a record that is left out", func(f *forger) { f.data("hello"); f.n++; f.data("world") }, "hello", io.ErrUnexpectedEOF},
		{"a record in clear", func(f *forger) { f.raw([]byte("\x17\x03\x03\x00\x05hello")) }, "", io.ErrUnexpectedEOF},
		{"a record of 64 KiB", func(f *forger) { f.raw(append([]byte("\x17\x03\x03\xff\xff"), make([]byte, 0xffff)...)) }, "", io.ErrUnexpectedEOF},
		{"change_cipher_spec", func(f *forger) { f.raw([]byte("\x14\x03\x03\x00\x01\x01")) }, "", io.ErrUnexpectedEOF},
		{"another handshake", func(f *forger) { f.handshake(1, "hello") }, "", io.ErrUnexpectedEOF},
		{"a request for a certificate", func(f *forger) { f.handshake(13, "\x00\x00\x00") }, "", io.ErrUnexpectedEOF},
		{"HTTP", func(f *forger) { f.raw([]byte("GET / HTTP/1.1\r\n\r\n")) }, "", io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			story(t, options{noServer: true}, func(w *world) {
				told++
				conn, f, s := w.forged()
				if f == nil {
					return
				}
				tt.do(f)
				w.check(f.to.(*memnet.Conn).CloseWrite())
				got, err := io.ReadAll(conn)
				if string(got) != tt.got || !errors.Is(err, tt.want) {
					t.Errorf("A reads %q, %v; want %q, %v", got, err, tt.got, tt.want)
				}
				_ = s.Close()
				_ = conn.Close()
			})
		})
	}
	if told != 19 {
		t.Errorf("%d stories told, want 19", told)
	}
}

// forged makes a stream from A to an actor in B's place, who has its keys.
func (w *world) forged() (near *dtcp.Conn, f *forger, s *secured) {
	w.t.Helper()
	b := w.b.instead()
	result := w.a.dial(w.patience(), w.b)
	iq, q := b.asked()
	b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Host, Addr: b.addr}))
	k := b.accept()
	k.want("key:" + b.key + "\n")
	var log secrets
	c := b.tls()
	c.KeyLogWriter = &log
	s, err := k.server(c)
	w.check(err)
	s.want("ok:" + s.proof(meant(w.a.jid(), b.jid(), q.key, b.key, "test")) + "\n")
	s.say("ok\n")
	d := <-result
	w.check(d.err)
	return d.conn, log.forger(s, k.Conn, "SERVER_TRAFFIC_SECRET_0", 1), s
}

// TestKeyUpdates: a peer that asks for our key updates among its data while we
// do not write fills no memory: the stream fails. One that asks now and then
// gets them.
func TestKeyUpdates(t *testing.T) {
	t.Run("of a peer that asks for ever", func(t *testing.T) {
		story(t, options{noServer: true}, func(w *world) {
			near, f, s := w.forged()
			if f == nil {
				return
			}
			const n = 1000
			asked := ending(func() error {
				for range n {
					f.keyUpdate(1)
					f.data("x")
				}
				return nil
			})
			if got, err := io.ReadAll(io.LimitReader(near, n)); err != io.ErrUnexpectedEOF {
				t.Errorf("A reads %d bytes, %v; want %v", len(got), err, io.ErrUnexpectedEOF)
			}
			<-asked
			if _, err := near.Write([]byte("x")); err == nil {
				t.Error("A has answered a thousand key updates")
			}
			_ = near.Close()
			if _, err := io.ReadAll(s); err == nil {
				t.Error("the peer reads an end")
			}
			_ = s.Close()
		})
	})
	t.Run("of a peer that listens", func(t *testing.T) {
		story(t, options{noServer: true}, func(w *world) {
			near, f, s := w.forged()
			if f == nil {
				return
			}
			for range 100 {
				f.keyUpdate(1)
				f.data("x")
				if _, err := io.ReadFull(near, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				if _, err := near.Write([]byte("y\n")); err != nil {
					t.Fatal(err)
				}
				s.want("y\n")
			}
			f.alert(1, 0)
			if rest, err := io.ReadAll(near); len(rest) > 0 || err != nil {
				t.Errorf("and then %q, %v", rest, err)
			}
			_ = s.Close()
			_ = near.Close()
		})
	})
}

// TestVerifyPeerComesAfterProof: a certificate is public, and whoever shows one
// without having its key is nobody that VerifyPeer should hear of.
func TestVerifyPeerComesAfterProof(t *testing.T) {
	for _, asks := range []string{"the impostor asks", "A asks"} {
		t.Run(asks, func(t *testing.T) {
			var asked atomic.Int64
			config := func(p *peer) {
				p.config.VerifyPeer = func(dtcp.Peer) error { asked.Add(1); return nil }
			}
			story(t, options{link: links[0], config: config}, func(w *world) {
				b := w.b.instead()
				victim, err := dtcp.NewCertificate()
				w.check(err)
				b.cert = tls.Certificate{Certificate: victim.Certificate, PrivateKey: b.cert.PrivateKey}
				b.print = dtcp.FingerprintOf(victim.Certificate[0])
				if asks == "A asks" {
					ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
					defer cancel()
					result := w.a.dial(ctx, w.b)
					iq, _ := b.asked()
					b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Host, Addr: b.addr}))
					k := b.accept()
					k.hear()
					if _, err := k.server(b.tls()); err == nil {
						w.t.Error("the handshake succeeds without the key")
					}
					if d := <-result; d.err == nil {
						w.t.Error("Dial succeeds")
					}
					return
				}
				q, err := b.ask(w.a.jid(), query{key: b.key, print: b.print, service: "test"})
				w.check(err)
				k := b.dial(w.a.listening())
				k.say("key:" + q.key + "\n")
				s, err := k.client(b.tls())
				if err == nil {
					_, err = io.ReadAll(s)
				}
				if err == nil {
					w.t.Error("the handshake succeeds without the key")
				}
			})
			if n := asked.Load(); n != 0 {
				t.Errorf("VerifyPeer was asked %d times about a certificate that nobody proved to hold", n)
			}
		})
	}
}

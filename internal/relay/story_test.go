package relay_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func TestListenerFirst(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		listener := s.serves("k", s.lend(alice))
		s.want(4*ownersWay, "the leg is there: a round trip to dial, one to be told")
		s.wait(119 * time.Second)
		if got := s.Stats(); got.Waiting != 1 || got.Streams != 0 {
			t.Errorf("waiting: %+v", got)
		}
		s.start = time.Now()
		dialer := s.says(s.dialer, "key:k\n\x16and what follows")
		listener.hears("key:k\n\x16and what follows")
		s.want(2*dialersWay+dialersWay+ownersWay, "the key line at the listener")
		listener.says("an answer")
		dialer.hears("an answer")
		s.want(3*dialersWay+ownersWay+ownersWay+dialersWay, "the answer at the dialer")
		if got := s.Stats(); got.Streams != 1 || got.BytesIn != 32 || got.BytesOut != 32 || got.LeaseStreams != 1 || got.Waiting != 0 {
			t.Errorf("joined: %+v", got)
		}
		s.wait(time.Hour)
		dialer.says("still there")
		listener.hears("still there")
	})
}

func TestDialerFirst(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		dialer := s.says(s.dialer, "key:k\nahead")
		s.wait(9900 * time.Millisecond)
		if got := s.Stats(); got.Held != 1 {
			t.Errorf("held: %+v", got)
		}
		listener := s.serves("k", l)
		listener.hears("key:k\nahead")
		listener.says("and back")
		dialer.hears("and back")
	})
}

// TestSplit: all that is said may come in single bytes.
func TestSplit(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		s.net.SplitBytes(true)
		l := s.lend(alice)
		bytewise := func(p *peer, text string) *peer {
			for _, b := range []byte(text) {
				p.says(string(b))
				s.wait(time.Millisecond)
			}
			return p
		}
		listener := bytewise(s.from(s.owner), l.claim("k"))
		listener.hears("ok:" + listener.address() + "\n")
		dialer := bytewise(s.from(s.dialer), "starttls\nkey:k\nrest")
		dialer.hears("error\n")
		listener.hears("key:k\nrest")
		listener.says("answer")
		dialer.hears("answer")
	})
}

// TestTimes: who is not joined in time is let go, to the millisecond.
func TestTimes(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		for _, c := range []struct {
			what, heard string
			lasts       time.Duration
			opens       func() *peer
		}{
			{"silence", "", 10*time.Second + 2*dialersWay, func() *peer { return s.from(s.dialer) }},
			{"an unserved key", "error\n", 10*time.Second + 2*dialersWay, func() *peer { return s.says(s.dialer, "key:k\n") }},
			{"starttls and silence", "error\n", 10*time.Second + 2*dialersWay, func() *peer { return s.says(s.dialer, "starttls\n") }},
			{"half a SOCKS5 handshake", "\x05\x00", 10*time.Second + 2*dialersWay, func() *peer { return s.says(s.dialer, "\x05\x01\x00\x05") }},
			{"a leg that waits", "", 120 * time.Second, func() *peer { return s.serves("x", l) }},
		} {
			p := c.opens()
			s.start = time.Now()
			p.hears(c.heard).ends()
			s.want(c.lasts, c.what)
		}
		slow := s.from(s.dialer)
		s.start = time.Now()
		for range 9 {
			slow.says("k")
			s.wait(1100 * time.Millisecond)
		}
		slow.ends()
		s.want(10*time.Second+2*dialersWay, "a line that comes slowly")
		s.wantRefused("silent", "unserved", "silent", "silent")
	})
}

// TestRefusals: each is told in the words of the protocol, and reported.
func TestRefusals(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		refuses := func(what, text, want string, reported ...string) {
			t.Helper()
			c := s.says(s.owner, text)
			got, err := io.ReadAll(c.r)
			if string(got) != want || err != nil && !errors.Is(err, syscall.ECONNRESET) { // of what was not read any more
				t.Errorf("%s: %q, %v; want %q", what, got, err, want)
			}
			s.wantRefused(reported...)
		}
		l, other := s.lend(alice), s.lend(bob)
		foreign := lease{l.id, []byte("another secret")}
		serving := s.serves("k", l)
		refuses("another owner's key", other.claim("k"), "error:in-use\n", "in-use bob")
		refuses("a wrong mac", foreign.claim("x"), "error:bad-lease\n", "bad-lease")
		refuses("a lease of nobody", lease{"nonsense", nil}.claim("x"), "error:bad-lease\n", "bad-lease")
		refuses("a mac for another key", strings.Replace(l.claim("x"), ":x", ":y", 1), "error:bad-lease\n", "bad-lease")
		refuses("a clock that is slow", l.claimAt("x", time.Now().Add(-302*time.Second)), "error:bad-lease\n", "bad-lease")
		refuses("a clock that is fast", l.claimAt("x", time.Now().Add(302*time.Second)), "error:bad-lease\n", "bad-lease")
		refuses("no line", strings.Repeat("x", wire.MaxLine), "error\n", "unknown")
		refuses("HTTP", "GET / HTTP/1.1\n", "error\n", "unknown")
		refuses("a line of CR", "key:k\r\n", "error\n", "unknown")
		refuses("TLS where there is none", "\x16\x03\x01", "", "unknown")
		refuses("no protocol", "\x00", "", "unknown")
		for _, skew := range []time.Duration{-299 * time.Second, 299 * time.Second} {
			p := s.says(s.owner, l.claimAt("x", time.Now().Add(skew)))
			p.hears("ok:" + p.address() + "\n").Close()
		}
		serving.Close()
		s.wait(time.Minute)
		s.Reload(relay.Rules{Access: relay.Access{Allow: []jid.JID{bob}}})
		refuses("who is not allowed any more", l.claim("x"), "error:denied\n", "denied alice")
		s.wait(time.Hour)
		refuses("a lease that is over", other.claim("x"), "error:expired\n", "expired bob")
		if got := s.Stats(); got.Refused["unknown"] != 5 || got.Refused["bad-lease"] != 5 || len(got.Refused) != len(relay.Reasons()) {
			t.Errorf("counted: %v", got.Refused)
		}
	})
}

// TestWaitingIsWatched: a leg that its owner closes joins nobody, and a byte
// that it sends before it is joined is not lost.
func TestWaitingIsWatched(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		s.serves("k", l).Close()
		s.serves("k", l).cut()
		s.wait(time.Second)
		if got := s.Stats(); got.Waiting != 0 {
			t.Errorf("%d wait", got.Waiting)
		}
		listener := s.serves("k", l)
		listener.says("early")
		s.wait(time.Second)
		dialer := s.says(s.dialer, "key:k\n")
		listener.hears("key:k\n")
		dialer.hears("early")
	})
}

func TestHalfClose(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		for _, first := range []string{"listener", "dialer"} {
			listener, dialer := s.pair("k", l)
			a, b := listener, dialer
			if first == "dialer" {
				a, b = dialer, listener
			}
			a.says("the last")
			if err := a.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			b.hears("the last").ends()
			s.wait(time.Minute)
			b.says("but not the other's").Close()
			a.hears("but not the other's").ends()
			u := relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: listener.at(), Dialer: dialer.at(), Why: relay.EndedClosed}
			u.ToDialer, u.ToListener = 8, 6+19
			if first == "dialer" {
				u.ToDialer, u.ToListener = 19, 6+8
			}
			s.wantUsage(u)
		}
	})
}

// TestLegDies: what was read of a leg that fails is delivered, then the other is
// cut, never ended.
func TestLegDies(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		text := strings.Repeat("0123456789abcdef", 4<<10)
		listener, dialer := s.pair("k", l)
		listener.says(text).cut()
		dialer.wantCut(text)
		u := relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: listener.at(), Dialer: dialer.at(), ToDialer: int64(len(text)), ToListener: 6}
		u.Why = relay.EndedListener
		s.wantUsage(u)

		listener, dialer = s.pair("k", l)
		dialer.says(text).cut()
		listener.wantCut(text)
		u = relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: listener.at(), Dialer: dialer.at(), ToListener: int64(len(text)) + 6}
		u.Why = relay.EndedDialer
		s.wantUsage(u)
	})
}

// TestEightLegs: the owner can keep further legs for a key, and they are joined
// one for one.
func TestEightLegs(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		var listeners, dialers []*peer
		for range 8 {
			listeners = append(listeners, s.serves("k", l))
		}
		for i := range 8 {
			dialers = append(dialers, s.says(s.dialer, "key:k\n"))
			listeners[i].hears("key:k\n")
		}
		ninth := s.serves("k", l)
		held := s.says(s.dialer, "key:k\n")
		s.wait(time.Second)
		if got := s.Stats(); got.Streams != 8 || got.Held != 1 || got.Waiting != 1 {
			t.Errorf("%+v", got)
		}
		dialers[3].cut()
		ninth.hears("key:k\n").says("you are next")
		held.hears("you are next")
	})
}

// TestHeldIsNotRead: what a held dialer sends stays on its side but for what
// fits into the sockets between.
func TestHeldIsNotRead(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		s.net.SetWindow(1 << 10)
		l := s.lend(alice)
		dialer := s.from(s.dialer)
		if err := dialer.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		text := "key:k\n" + strings.Repeat("x", 4<<10)
		n, err := io.WriteString(dialer, text)
		if n > len("key:k\n")+1<<10 || err == nil {
			t.Errorf("%d bytes were taken from a held dialer, %v", n, err)
		}
		listener := s.serves("k", l)
		listener.hears(text[:n])
	})
}

func TestObserve(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		nat := s.net.NAT("nat", netip.MustParseAddr("203.0.113.7"), memnet.FullCone)
		nat.Forward(4711, netip.MustParseAddrPort("10.0.0.2:40000"))
		inside := nat.Host("inside", netip.MustParseAddr("10.0.0.2"))
		c, err := inside.Dial(context.Background(), netip.MustParseAddrPort("10.0.0.2:40000"), relayAt)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		quick := &peer{c.(*memnet.Conn), s, bufio.NewReader(c)}
		began := time.Now()
		quick.says("observe\n").hears("ok:203.0.113.7:4711\n")
		quick.says("observe\n").hears("ok:203.0.113.7:4711\n")
		quick.ends()
		if d := time.Since(began).Round(time.Second); d != 10*time.Second {
			t.Errorf("observe without a claim lasted %v", d)
		}

		l := s.lend(alice)
		kept := s.says(s.owner, l.claim(""))
		for range 20 {
			kept.hears("ok:" + kept.address() + "\n")
			s.wait(25 * time.Second)
			if got := s.Stats(); got.Observing != 1 {
				t.Fatalf("%d are observed", got.Observing)
			}
			kept.says("observe\n")
		}
		kept.hears("ok:" + kept.address() + "\n")
		began = time.Now()
		kept.ends()
		if d := time.Since(began); d != 60*time.Second {
			t.Errorf("an observed connection that falls silent lasted %v", d)
		}
	})
}

func TestDrain(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		listener, dialer := s.pair("k", l)
		waiting := s.serves("k", l)
		held := s.says(s.dialer, "key:other\n")
		s.wait(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s.start = time.Now()
		if n := s.Drain(ctx); n != 1 {
			t.Errorf("%d streams are left, want 1", n)
		}
		s.want(time.Minute, "as long as it may take")
		waiting.hears("error:shutdown\n").ends()
		held.hears("error\n").ends()
		s.says(s.owner, l.claim("k")).hears("error:shutdown\n").ends()
		s.says(s.dialer, "key:k\n").hears("error\n").ends()
		if got := s.Stats(); !got.Draining || got.Streams != 1 {
			t.Errorf("draining: %+v", got)
		}
		drained := make(chan int, 1)
		go func() { drained <- s.Drain(context.Background()) }()
		listener.says("to the end")
		dialer.hears("to the end").Close()
		listener.ends().Close()
		if n := <-drained; n != 0 {
			t.Errorf("%d streams are left, want none", n)
		}
		s.wantUsage(relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: listener.at(), Dialer: dialer.at(), ToDialer: 10, ToListener: 6, Why: relay.EndedClosed})
	})
}

// TestClose: everybody is let go, in whatever state.
func TestClose(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l := s.lend(alice)
		listener, dialer := s.pair("k", l)
		fresh := s.from(s.dialer)
		waiting := s.serves("k", l)
		held := s.says(s.dialer, "key:other\n")
		observed := s.says(s.owner, l.claim(""))
		observed.hears("ok:" + observed.address() + "\n")
		asks := s.says(s.dialer, "\x05\x01\x00").hears("\x05\x00")
		s.start = time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		s.want(0, "Close")
		listener.wantCut("")
		dialer.wantCut("")
		fresh.ends()
		waiting.hears("error:shutdown\n").ends()
		held.hears("error\n").ends()
		observed.hears("error:shutdown\n").ends()
		asks.ends()
		s.wantUsage(relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: listener.at(), Dialer: dialer.at(), ToListener: 6, Why: relay.EndedShutdown})
		l2, err := s.host.Listen(context.Background(), netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Serve(l2); err != nil {
			t.Errorf("Serve after Close: %v", err)
		}
		if _, err := l2.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener that nobody serves: %v", err)
		}
	})
}

package relay_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// shells are the ways to serve a listener of the system. What is told of sockets
// is told of each.
var shells = []struct {
	name string
	wrap func(net.Listener) net.Listener
}{
	{"front", func(l net.Listener) net.Listener { return l }}, // where there is one
	{"portable", func(l net.Listener) net.Listener { return plain{l} }},
}

// plain is a listener that is not to be known for the system's.
type plain struct{ net.Listener }

// street is a relay that listens on loopback, in real time.
type street struct {
	*testing.T
	*relay.Relay
	addr    string
	mu      sync.Mutex
	usage   []relay.Usage
	refused []string // reasons
}

// onSockets tells a story of each shell. In the end the relay is closed, and no
// goroutine and no descriptor may be left.
func onSockets(t *testing.T, config relay.Config, story func(s *street)) {
	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) {
			goroutines, open := runtime.NumGoroutine(), openFiles(t)
			s := &street{T: t}
			c := config
			c.Domain, c.Keys, c.Node = jid.MustParse("relay.example.org"), keys, "a"
			if c.Hosts == nil {
				c.Hosts = []relay.Host{{Addr: "127.0.0.1", Port: 5280}}
			}
			c.Rules.Allow = []jid.JID{jid.MustParse("example.org")}
			c.Usage = func(u relay.Usage) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.usage = append(s.usage, u)
			}
			c.Refused = func(reason string, _ netip.AddrPort, _ jid.JID) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.refused = append(s.refused, reason)
			}
			r, err := relay.New(c)
			if err != nil {
				t.Fatal(err)
			}
			s.Relay = r
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s.addr = l.Addr().String()
			served := s.serve(shell.wrap(l))
			t.Cleanup(func() { // after the callers have gone
				for range 200 { // a goroutine that has done all may need a moment to be gone
					if runtime.NumGoroutine() <= goroutines {
						break
					}
					<-time.After(5 * time.Millisecond)
				}
				if n := runtime.NumGoroutine(); n > goroutines {
					t.Errorf("%d goroutines are left", n-goroutines)
				}
				if now := openFiles(t); now > open {
					t.Errorf("%d descriptors are left", now-open)
				}
			})
			t.Cleanup(func() {
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				if err := <-served; err != nil {
					t.Errorf("Serve: %v", err)
				}
				if got := s.Stats(); got.Fresh+got.Waiting+got.Held+got.Observing+got.Streams > 0 {
					t.Errorf("after Close: %+v", got)
				}
			})
			story(s)
		})
	}
}

func (s *street) serve(l net.Listener) (served chan error) {
	served = make(chan error, 1)
	// Owned by the street, ended by Close, awaited by served.
	go func() { served <- s.Serve(l) }()
	return served
}

// openFiles counts descriptors, where that can be told.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	}
	return len(list)
}

// caller is one end of a connection to the relay.
type caller struct {
	*net.TCPConn
	s *street
	r *bufio.Reader
}

// says connects and sends text.
func (s *street) says(text string) *caller { return s.saysTo(s.addr, text) }

func (s *street) saysTo(addr, text string) *caller {
	s.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.Fatal(err)
	}
	return (&caller{c.(*net.TCPConn), s, bufio.NewReader(c)}).says(text)
}

func (c *caller) says(text string) *caller {
	c.s.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.s.Fatal(err)
	}
	return c
}

func (c *caller) hears(text string) *caller {
	c.s.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c.r, got); err != nil || string(got) != text {
		c.s.Fatalf("heard %q, %v; want %q", got[:n], err, text)
	}
	return c
}

func (c *caller) ends() *caller {
	c.s.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.s.Fatalf("heard %q, %v; want the end", rest, err)
	}
	return c
}

// endsSomehow is ends where the relay did not read all that was said to it: on
// some systems and shells that is a reset.
func (c *caller) endsSomehow() *caller {
	c.s.Helper()
	if rest, err := io.ReadAll(c.r); err != nil && !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
		c.s.Fatalf("heard %q, %v; want the end", rest, err)
	}
	return c
}

// isCut reads text and then a reset.
func (c *caller) isCut(text string) {
	c.s.Helper()
	if got, err := io.ReadAll(c.r); string(got) != text || !errors.Is(err, syscall.ECONNRESET) {
		c.s.Errorf("heard %d bytes, %v; want %d and a reset", len(got), err, len(text))
	}
}

func (c *caller) cut() {
	_ = c.SetLinger(0) // fails only if it is closed
	c.Close()
}

func (c *caller) address() string { return c.LocalAddr().String() }

// until waits for what comes by itself.
func (s *street) until(what string, is func(relay.Stats) bool) {
	s.Helper()
	for range 2000 {
		if is(s.Stats()) {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	s.Fatalf("%s: never; %+v", what, s.Stats())
}

func (s *street) lend(owner jid.JID) lease {
	s.Helper()
	answer := s.Answer(stanza.IQ{
		Header:  stanza.Header{From: owner, To: jid.MustParse("relay.example.org"), ID: "1"},
		Type:    stanza.Get,
		Payload: stanza.New("urn:x-dtcp:relay:0", "lease"),
	})
	if answer.Error != nil {
		s.Fatalf("a lease for %v: %v", owner, answer.Error)
	}
	secret, err := base64.RawURLEncoding.DecodeString(answer.Payload.Attr("secret"))
	if err != nil {
		s.Fatal(err)
	}
	return lease{answer.Payload.Attr("id"), secret}
}

func (s *street) serves(key string, l lease) *caller {
	s.Helper()
	c := s.says(l.claim(key))
	return c.hears("ok:" + c.address() + "\n")
}

func (s *street) pair(key string, l lease) (listener, dialer *caller) {
	s.Helper()
	listener = s.serves(key, l)
	dialer = s.says("key:" + key + "\n")
	listener.hears("key:" + key + "\n")
	return listener, dialer
}

// ended waits for the record of a stream.
func (s *street) ended(why string, toDialer, toListener int64) {
	s.Helper()
	var got []relay.Usage
	s.until("a record of the stream", func(relay.Stats) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		got, s.usage = append(got, s.usage...), nil
		return len(got) > 0
	})
	if len(got) != 1 || got[0].Why != why || got[0].ToDialer != toDialer || got[0].ToListener != toListener {
		s.Errorf("usage %+v; want %s, %d and %d bytes", got, why, toDialer, toListener)
	}
}

// wasRefused checks for what was refused so far, and forgets it.
func (s *street) wasRefused(want ...string) {
	s.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.refused, want) {
		s.Errorf("refused %q, want %q", s.refused, want)
	}
	s.refused = nil
}

func TestSocketOrders(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		l := s.lend(alice)
		for _, order := range []string{"listener first", "dialer first", "in pieces"} {
			var listener, dialer *caller
			switch order {
			case "listener first":
				listener = s.serves("k", l)
				listener.says("early, ")
				dialer = s.says("key:k\nbehind the line, ")
			case "dialer first":
				dialer = s.says("key:k\nbehind the line, ")
				s.until("held", func(got relay.Stats) bool { return got.Held == 1 })
				listener = s.serves("k", l)
				listener.says("early, ")
			case "in pieces":
				pieces := func(text string) *caller {
					c := s.says(text[:1])
					for _, b := range text[1:] {
						runtime.Gosched()
						c.says(string(b))
					}
					return c
				}
				listener = pieces(l.claim("k"))
				listener.hears("ok:" + listener.address() + "\n")
				dialer = pieces("key:k\nbehind the line, ")
				listener.says("early, ")
			}
			listener.hears("key:k\nbehind the line, ")
			dialer.hears("early, ")
			long := strings.Repeat("0123456789", 300_000)
			go dialer.Write([]byte(long)) // ends when it is heard
			listener.hears(long).says("the last")
			if err := listener.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			dialer.hears("the last").ends().says("but not mine").Close()
			listener.hears("but not mine").ends()
			s.ended(relay.EndedClosed, 15, int64(len("key:k\nbehind the line, ")+len(long)+len("but not mine")))
		}
		if got := s.Stats(); got.LeaseStreams != 3 || got.Accepted != 6 {
			t.Errorf("%+v", got)
		}
	})
}

// TestSocketLines: several lines may come at once, and what is refused is told
// so though more has come than was read.
func TestSocketLines(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		l, other := s.lend(alice), s.lend(bob)
		serving := s.serves("k", l)
		serving.says("not to be read yet")
		c := s.says("starttls\nkey:k\n\x16\x03")
		c.hears("error\nnot to be read yet")
		serving.hears("key:k\n\x16\x03")

		c = s.says(strings.Repeat("observe\n", 5))
		c.hears(strings.Repeat("ok:"+c.address()+"\n", 5))
		kept := s.says(l.claim(""))
		kept.hears("ok:" + kept.address() + "\n").says(strings.Repeat("observe\n", 40))
		kept.hears(strings.Repeat("ok:"+kept.address()+"\n", 40))
		s.until("observed", func(got relay.Stats) bool { return got.Observing == 1 })
		c.Close()
		kept.Close()
		s.until("gone", func(got relay.Stats) bool { return got.Observing+got.Fresh == 0 })

		for _, r := range []struct{ text, want, reason string }{
			{other.claim("k"), "error:in-use\n", "in-use"},
			{lease{l.id, []byte("x")}.claim("x"), "error:bad-lease\n", "bad-lease"},
			{strings.Repeat("x", 2000), "error\n", "unknown"},
			{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "error\n", "unknown"},
			{"observe\nfoo\n" + strings.Repeat("y", 2000), "error\n", "unknown"},
			{"\x16\x03\x01\x02\x00", "", "unknown"},
			{"\x00\x00", "", "unknown"},
		} {
			c := s.says(r.text)
			if strings.HasPrefix(r.text, "observe") {
				c.hears("ok:" + c.address() + "\n")
			}
			c.hears(r.want).endsSomehow()
			s.wasRefused(r.reason)
		}
	})
}

// TestSocketsGone: who leaves before he is joined is forgotten.
func TestSocketsGone(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		l := s.lend(alice)
		s.serves("k", l).Close()
		s.serves("k", l).cut()
		s.says("serve:half a li").Close()
		s.says("observe\n").hears("ok:").cut()
		s.until("all are gone", func(got relay.Stats) bool { return got.Waiting+got.Fresh == 0 })
		// An end behind the key line is no reason to let go of a dialer.
		dialer := s.says("key:k\nall there is")
		if err := dialer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		s.until("held", func(got relay.Stats) bool { return got.Held == 1 })
		listener := s.serves("k", l).hears("key:k\nall there is").ends().says("thanks")
		listener.Close()
		dialer.hears("thanks").ends()
	})
}

// TestSocketDies: what a leg had sent before it failed is delivered.
func TestSocketDies(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		l := s.lend(alice)
		text := strings.Repeat("0123456789abcdef", 2<<10)
		listener, dialer := s.pair("k", l)
		listener.says(text)
		s.until("it was read", func(got relay.Stats) bool { return got.BytesIn >= int64(len(text)) })
		listener.cut()
		dialer.isCut(text)
		s.ended(relay.EndedListener, int64(len(text)), 6)
		listener, dialer = s.pair("k", l)
		dialer.says("x")
		listener.hears("x")
		dialer.cut()
		listener.isCut("")
		s.ended(relay.EndedDialer, 0, 7)
	})
}

// TestSocketHolds: a held dialer is not read, and the oldest gives way.
func TestSocketHolds(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		var held []*caller
		for i := range 17 {
			held = append(held, s.says("key:k"+string(rune('a'+i))+"\nstays here"))
			s.until("held", func(got relay.Stats) bool { return got.Held == min(i+1, 16) })
		}
		held[0].hears("error\n").endsSomehow()
		s.wasRefused("held")
		if got := s.Stats(); got.BytesIn != 0 {
			t.Errorf("%d bytes were read", got.BytesIn)
		}
		s.serves("kq", s.lend(alice)).hears("key:kq\nstays here")
	})
}

func TestSocketShutdown(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		l := s.lend(alice)
		listener, dialer := s.pair("k", l)
		fresh := s.says("k")
		waiting := s.serves("k", l)
		held := s.says("key:other\nand more\n")
		observed := s.says(l.claim(""))
		observed.hears("ok:" + observed.address() + "\n")
		asks := s.says("\x05\x01\x00").hears("\x05\x00")
		s.until("all are there", func(got relay.Stats) bool {
			return got.Fresh == 2 && got.Waiting == 1 && got.Held == 1 && got.Observing == 1
		})
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		listener.isCut("")
		dialer.isCut("")
		waiting.hears("error:shutdown\n").ends()
		held.hears("error\n").endsSomehow()
		observed.hears("error:shutdown\n").ends()
		fresh.endsSomehow()
		asks.endsSomehow()
		s.ended(relay.EndedShutdown, 0, 6)
	})
}

// TestSocketCrossing: the two legs may come to two listeners, whatever serves
// them.
func TestSocketCrossing(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		addrs := []string{s.addr}
		for _, shell := range shells {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addrs = append(addrs, l.Addr().String())
			served := s.serve(shell.wrap(l))
			defer func() {
				s.Close()
				if err := <-served; err != nil {
					t.Error(err)
				}
			}()
		}
		l := s.lend(alice)
		for _, one := range addrs {
			for _, other := range addrs {
				listener := s.saysTo(one, l.claim("k"))
				listener.hears("ok:" + listener.address() + "\n")
				dialer := s.saysTo(other, "key:k\nahead")
				listener.hears("key:k\nahead").says("answer").Close()
				dialer.hears("answer").ends().Close()
				s.ended(relay.EndedClosed, 6, 11)
			}
		}
	})
}

// TestSocketTLS: legs inside TLS and others meet, and each end is passed on.
func TestSocketTLS(t *testing.T) {
	config := relay.Config{Hosts: []relay.Host{{Addr: "127.0.0.1", Port: 5280, TLS: certificate(t)}}}
	onSockets(t, config, func(s *street) {
		l := s.lend(alice)
		long := strings.Repeat("0123456789", 100_000)
		for i := range 4 {
			inside := func(by int, c *caller) net.Conn {
				if i&by == 0 {
					return c
				}
				return tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"dtcp-relay"}})
			}
			p, q := s.says(""), s.says("")
			listener, dialer := inside(1, p), inside(2, q)
			say := func(c net.Conn, text string) {
				s.Helper()
				if _, err := io.WriteString(c, text); err != nil {
					s.Fatal(err)
				}
			}
			hear := func(c net.Conn, text string) {
				s.Helper()
				got := make([]byte, len(text))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
					s.Fatalf("%d: heard %d bytes, %v; want %d", i, len(got), err, len(text))
				}
			}
			say(listener, l.claim("k"))
			hear(listener, "ok:"+p.address()+"\n")
			say(dialer, "key:k\nahead")
			hear(listener, "key:k\nahead")
			go io.WriteString(listener, long) // ends when it is heard
			hear(dialer, long)
			if err := dialer.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				s.Fatal(err)
			}
			if rest, err := io.ReadAll(listener); err != nil || len(rest) > 0 {
				s.Errorf("%d: heard %q, %v; want the end", i, rest, err)
			}
			say(listener, "later")
			listener.Close()
			hear(dialer, "later")
			dialer.Close()
			s.ended(relay.EndedClosed, int64(len(long)+5), 11)
		}
	})
}

package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/internal/socks5"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// The two ends of the streams below. Only the requester's domain may use the
// proxy.
var (
	requester = jid.MustParse("juliet@example.org/balcony")
	target    = jid.MustParse("romeo@example.net/orchard")
)

// proxyStory is a relay that listens, for stories of its proxy.
type proxyStory struct {
	*testing.T
	relay *relay.Relay
	dial  func() (net.Conn, error)
	usage chan relay.Usage
}

// proxyStories tells a story over the sockets of the system, of each shell, and
// over memory in virtual time.
func proxyStories(t *testing.T, story func(s *proxyStory)) {
	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			tell(t, shell.wrap(l), func() (net.Conn, error) { return net.Dial("tcp4", l.Addr().String()) }, story)
		})
	}
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := memnet.New()
			host := n.Host("relay", netip.MustParseAddr("192.0.2.1"))
			client := n.Host("client", netip.MustParseAddr("192.0.2.2"))
			n.SetLatency(host, client, 10*time.Millisecond)
			l, err := host.Listen(context.Background(), netip.MustParseAddrPort("192.0.2.1:5280"))
			if err != nil {
				t.Fatal(err)
			}
			tell(t, l, func() (net.Conn, error) {
				return client.Dial(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort("192.0.2.1:5280"))
			}, story)
		})
	})
}

func tell(t *testing.T, l net.Listener, dial func() (net.Conn, error), story func(s *proxyStory)) {
	t.Helper()
	s := &proxyStory{T: t, dial: dial, usage: make(chan relay.Usage, 16)}
	r, err := relay.New(relay.Config{
		Domain: jid.MustParse("relay.example.org"),
		Keys:   relay.NewKeyring(),
		Node:   "a",
		Hosts:  []relay.Host{{Addr: "192.0.2.1", Port: 5280}},
		Rules:  relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}}},
		Usage:  func(u relay.Usage) { s.usage <- u },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.relay = r
	served := make(chan error, 1)
	// Owned by this function, ended by Close, awaited by served.
	go func() { served <- r.Serve(l) }()
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	story(s)
}

// connect dials the relay; the connection is closed with the test.
func (s *proxyStory) connect() net.Conn {
	s.Helper()
	c, err := s.dial()
	if err != nil {
		s.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Minute)) // fails only if c is closed
	s.Cleanup(func() { c.Close() })
	return c
}

// asks connects and asks for a stream, which is granted.
func (s *proxyStory) asks(sid string) net.Conn {
	s.Helper()
	c := s.connect()
	if err := socks5.Connect(c, dstAddr(sid)); err != nil {
		s.Fatalf("stream %s: %v", sid, err)
	}
	return c
}

func dstAddr(sid string) string { return socks5.DstAddr(sid, requester.String(), target.String()) }

// activates asks for the activation of a stream and returns the condition of
// the error, "" if there is none.
func (s *proxyStory) activates(who jid.JID, sid string, whom jid.JID) string {
	const space = "http://jabber.org/protocol/bytestreams"
	answer := s.relay.Answer(stanza.IQ{
		Header:  stanza.Header{From: who, To: jid.MustParse("relay.example.org"), ID: "1"},
		Type:    stanza.Set,
		Payload: stanza.New(space, "query", stanza.New(space, "activate", stanza.Text(whom.String()))).With("sid", sid),
	})
	if answer.Error != nil {
		return answer.Error.Condition
	}
	return ""
}

func (s *proxyStory) activated(sid string) {
	s.Helper()
	if got := s.activates(requester, sid, target); got != "" {
		s.Fatalf("stream %s: activation is refused: %s", sid, got)
	}
}

// passes sends text from one end and closes that direction; the other end must
// get it, and the end.
func (s *proxyStory) passes(from, to net.Conn, text string) {
	s.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		s.Fatal(err)
	}
	if err := from.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		s.Fatal(err)
	}
	got, err := io.ReadAll(to)
	if err != nil || string(got) != text {
		s.Errorf("got %q, %v; want %q", got, err, text)
	}
}

// TestProxyCarries: either of the two may come first, each direction ends by
// itself, and the stream counts for who has activated it.
func TestProxyCarries(t *testing.T) {
	proxyStories(t, func(s *proxyStory) {
		for _, order := range []string{"target first", "requester first"} {
			first, second := s.asks(order), s.asks(order)
			if got := s.relay.Stats(); got.Waiting != 2 || got.Streams != 0 {
				s.Errorf("%s: %d wait in %d streams, want 2 in none", order, got.Waiting, got.Streams)
			}
			s.activated(order)
			to, from := first, second
			if order == "requester first" {
				to, from = second, first
			}
			s.passes(from, to, "from the requester, who then only listens")
			s.passes(to, from, "and back")
			u := <-s.usage
			for s.relay.Stats().Streams > 0 { // the record comes first
				<-time.After(time.Millisecond)
			}
			if u.Owner != requester.Bare() || u.Kind != relay.KindProxy || u.Why != relay.EndedClosed || u.ToDialer+u.ToListener != 49 {
				s.Errorf("%s: usage %+v; want 49 bytes of %v, closed", order, u, requester.Bare())
			}
			if first.LocalAddr().String() != u.Listener.String() || second.LocalAddr().String() != u.Dialer.String() {
				s.Errorf("%s: usage of %v and %v, want %v and %v", order, u.Listener, u.Dialer, first.LocalAddr(), second.LocalAddr())
			}
		}
		if got := s.relay.Stats(); got.ProxyStreams != 2 || got.LeaseStreams != 0 {
			s.Errorf("%d streams of the proxy and %d of leases, want 2 and 0", got.ProxyStreams, got.LeaseStreams)
		}
	})
}

// TestProxyPieces: the handshake may come in single bytes or all at once, with
// the stream behind it; the stream waits for its activation.
func TestProxyPieces(t *testing.T) {
	handshake := func(sid string) []byte {
		return append(append([]byte{5, 1, 0, 5, 1, 0, 3, 40}, dstAddr(sid)...), 0, 0)
	}
	proxyStories(t, func(s *proxyStory) {
		granted := append(append([]byte{5, 0, 5, 0, 0, 3, 40}, dstAddr("s")...), 0, 0)
		var ends []net.Conn
		for _, send := range []func(c net.Conn) error{
			func(c net.Conn) error {
				for _, b := range handshake("s") {
					if _, err := c.Write([]byte{b}); err != nil {
						return err
					}
				}
				return nil
			},
			func(c net.Conn) error {
				_, err := c.Write(append(handshake("s"), "ahead of activation; "...))
				return err
			},
		} {
			c := s.connect()
			if err := send(c); err != nil {
				s.Fatal(err)
			}
			got := make([]byte, len(granted))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, granted) {
				s.Fatalf("answered %x, %v; want %x", got, err, granted)
			}
			ends = append(ends, c)
		}
		s.activated("s")
		if _, err := io.WriteString(ends[1], "after it"); err != nil {
			s.Fatal(err)
		}
		const want = "ahead of activation; after it"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(ends[0], got); err != nil || string(got) != want {
			s.Errorf("got %q, %v; want %q", got, err, want)
		}
	})
}

// TestProxyRefuses: who activates must be the requester, and both must be there.
func TestProxyRefuses(t *testing.T) {
	proxyStories(t, func(s *proxyStory) {
		expect := func(sentence, want, got string) {
			s.Helper()
			if got != want {
				s.Errorf("%s: %q, want %q", sentence, got, want)
			}
		}
		other := jid.MustParse("nurse@example.org/kitchen")
		expect("before anybody is there", stanza.ItemNotFound, s.activates(requester, "s", target))
		a := s.asks("s")
		expect("before both are there", stanza.NotAllowed, s.activates(requester, "s", target))
		s.asks("another")
		expect("when the second is there for another stream", stanza.NotAllowed, s.activates(requester, "s", target))
		b := s.asks("s")
		expect("by a third party", stanza.ItemNotFound, s.activates(other, "s", target))
		expect("by a third party that names the requester as target", stanza.ItemNotFound, s.activates(other, "s", requester))
		expect("by the target, whom the operator does not know", stanza.Forbidden, s.activates(target, "s", requester))
		expect("with another sid", stanza.ItemNotFound, s.activates(requester, "S", target))

		c := s.connect()
		var refused *socks5.ReplyError
		if err := socks5.Connect(c, dstAddr("s")); !errors.As(err, &refused) || refused.Reply != socks5.NotAllowed {
			s.Errorf("a third connection: %v, want that it is not allowed", err)
		}
		if _, err := io.ReadAll(c); err != nil {
			s.Errorf("a third connection: %v, want an end", err)
		}
		s.activated("s")
		expect("once more", stanza.ItemNotFound, s.activates(requester, "s", target))
		s.passes(a, b, "none of that did any harm")
	})
}

// TestProxyLetsGo: who leaves makes room, and who speaks something else is sent
// away.
func TestProxyLetsGo(t *testing.T) {
	proxyStories(t, func(s *proxyStory) {
		for _, nonsense := range []string{"\x05\x01\x02", "\x05\x01\x00\x05\x01\x00\x03\x0Bexample.org\x00\x50", "\x05\x01\x00\x04\x01\x00\x00\x00"} {
			c := s.connect()
			if _, err := io.WriteString(c, nonsense); err != nil {
				s.Fatal(err)
			}
			if answer, err := io.ReadAll(c); err != nil && len(answer) == 0 {
				s.Errorf("%q: %q, %v; want an end", nonsense, answer, err)
			}
		}
		left, stays := s.asks("s"), s.asks("s")
		left.Close()
		for tries := 0; s.relay.Stats().Waiting != 1; tries++ {
			if tries == 5000 {
				s.Fatal("who left is still counted")
			}
			<-time.After(time.Millisecond)
		}
		comes := s.asks("s")
		s.activated("s")
		s.passes(comes, stays, "in the place of the other")
		if got := s.relay.Stats(); got.Refused[relay.RefusedUnknown] != 3 || got.Waiting != 0 || got.Streams != 1 {
			s.Errorf("refused %d, %d wait, %d streams; want 3, none and 1", got.Refused[relay.RefusedUnknown], got.Waiting, got.Streams)
		}
	})
}

// TestProxyWaits: a connection whose stream is never activated is closed in the
// end, as is one that does not finish its handshake; and all when the relay is.
func TestProxyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		host := n.Host("relay", netip.MustParseAddr("192.0.2.1"))
		l, err := host.Listen(context.Background(), netip.MustParseAddrPort("192.0.2.1:5280"))
		if err != nil {
			t.Fatal(err)
		}
		tell(t, l, func() (net.Conn, error) {
			return host.Dial(context.Background(), netip.AddrPort{}, netip.MustParseAddrPort("192.0.2.1:5280"))
		}, func(s *proxyStory) {
			slow := s.connect()
			if _, err := slow.Write([]byte{5, 1}); err != nil {
				t.Fatal(err)
			}
			ends := map[string]net.Conn{"handshake": slow, "stream": s.asks("s")}
			took := map[string]time.Duration{}
			start := time.Now()
			var mu sync.Mutex
			var all sync.WaitGroup
			for what, c := range ends {
				// Owned by this story, ends when the relay closes, awaited by all.
				all.Go(func() {
					_, _ = io.ReadAll(c) // how it ends is not the question
					mu.Lock()
					defer mu.Unlock()
					took[what] = time.Since(start)
				})
			}
			all.Wait()
			if got := fmt.Sprint(took); got != "map[handshake:10s stream:2m0s]" {
				t.Errorf("closed after %s; want 10 s and 2 min", got)
			}
			if s.relay.Stats().Waiting != 0 {
				t.Error("still counted")
			}
			s.asks("another") // which Close finds
		})
	})
}

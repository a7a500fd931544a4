package dtcp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// twoFamilies is the network of a host that resolves the relay's name to an IPv6
// address first, and then to an IPv4 one.
type twoFamilies struct{ *memnet.Host }

const relayName = "relay.example.org"

func (twoFamilies) LookupNetIP(_ context.Context, _, name string) ([]netip.Addr, error) {
	if name != relayName {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return []netip.Addr{netip.MustParseAddr("2001:db8:9::9"), relayAddr.Addr()}, nil
}

// TestRelayByName: the relay is known by a name that means an address of either
// family, of which its users reach one: who has only IPv4, or only IPv6. Both to
// listen there and to dial.
func TestRelayByName(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		for _, asks := range []string{"A", "B"} {
			t.Run(fmt.Sprintf("IPv6 %t, %s asks", ipv6, asks), func(t *testing.T) {
				run := newBentRelay(net.JoinHostPort(relayName, "5280"))
				only := relayed("A")
				config := func(p *peer) {
					only(p)
					p.config.Network = twoFamilies{p.host}
				}
				o := options{link: links[0], relay: &relayOptions{a: 60 * time.Millisecond, b: 80 * time.Millisecond, run: run}, ipv6: ipv6, config: config}
				story(t, o, func(w *world) {
					req, res := w.a, w.b
					if asks == "B" {
						req, res = w.b, w.a
					}
					near, far, after := req.stream(res)
					if p := near.Path(); p.Kind != dtcp.Relay || p.Remote.Addr().Is6() != ipv6 || p.Relay != net.JoinHostPort(relayName, "5280") {
						t.Errorf("path %+v", p)
					}
					if after > time.Second {
						t.Errorf("the responder has its stream after %v", after)
					}
					w.wantTransfer(near, far)
				})
			})
		}
	}
}

// crowd is the network of a host that resolves every name to many addresses.
type crowd struct{ *memnet.Host }

func (crowd) LookupNetIP(context.Context, string, string) (all []netip.Addr, err error) {
	for _, a := range []string{"127.0.0.1", "203.0.113.1", "203.0.113.2", "203.0.113.3"} {
		all = append(all, netip.MustParseAddr(a))
	}
	return all, nil
}

// TestPeersRelayByName: a name that a peer gives has us dial one address of each
// family, none that we would not dial by itself; and a proxy of the network's is
// not to look the name up once more.
func TestPeersRelayByName(t *testing.T) {
	config := func(p *peer) {
		p.config.Network = crowd{p.host}
		p.config.DialRelay = func(_ context.Context, _, address string) (net.Conn, error) {
			if address != "203.0.113.1:4000" {
				t.Errorf("the proxy is to dial %s", address)
			}
			return nil, errors.New("no")
		}
	}
	story(t, options{link: links[0], config: config, noServer: true}, func(w *world) {
		b := w.b.instead()
		opens := w.opens()
		result := w.a.dial(w.patience(), w.b)
		iq, _ := b.asked()
		b.answer(iq, b.offer(dtcp.Candidate{Type: dtcp.Relay, Name: "relay.example", Port: 4000}))
		if d := <-result; d.err == nil {
			t.Error("a stream with nobody")
		}
		b.wantGiveUp()
		for addr, want := range map[string]bool{"127.0.0.1:4000": false, "203.0.113.1:4000": true, "203.0.113.2:4000": false} {
			if n := opens(netip.MustParseAddrPort(addr)); (n > 0) != want {
				t.Errorf("%s was dialed %d times", addr, n)
			}
		}
	})
}

// onlyTLS is a network in which connections to the relay are cut that do not
// begin like TLS.
type onlyTLS struct{ *memnet.Host }

func (n onlyTLS) Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error) {
	c, err := n.Host.Dial(ctx, local, remote)
	if err != nil || remote != relayAddr {
		return c, err
	}
	return &inspected{Conn: c.(*memnet.Conn)}, nil
}

type inspected struct {
	*memnet.Conn
	seen bool
}

func (c *inspected) Write(b []byte) (int, error) {
	if !c.seen && len(b) > 0 && b[0] != 0x16 {
		c.Conn.Reset()
		return 0, net.ErrClosed
	}
	c.seen = true
	return c.Conn.Write(b)
}

// TestRelayInTLS: where the network of whose relay it is lets nothing but TLS
// pass, a leg is served inside TLS, on the host that is leased for it, and carries
// a stream like any other.
func TestRelayInTLS(t *testing.T) {
	own, err := dtcp.NewCertificate()
	if err != nil {
		t.Fatal(err)
	}
	for _, asks := range []string{"A", "B"} {
		t.Run(asks+" asks", func(t *testing.T) {
			r, err := relay.New(relay.Config{
				Domain: relayJID, Keys: relay.NewKeyring(),
				Hosts: []relay.Host{{Addr: relayAddr.Addr().String(), Port: relayAddr.Port(), TLS: &own}},
				Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			only := relayed("A")
			config := func(p *peer) {
				if only(p); p.host.Name() == "A" {
					p.config.Network = onlyTLS{p.host}
				}
			}
			o := options{link: links[0], relay: &relayOptions{a: 60 * time.Millisecond, b: 80 * time.Millisecond, run: r}, config: config}
			story(t, o, func(w *world) {
				defer func() { w.check(r.Close()) }()
				req, res := w.a, w.b
				if asks == "B" {
					req, res = w.b, w.a
				}
				near, far, _ := req.stream(res)
				w.wantTransfer(near, far)
				near, far, _ = req.stream(res)
				w.check(near.Abort())
				if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("Read of what was cut: %v", err)
				}
				_ = far.Close()
			})
		})
	}
}

// TestRelayIsPinned: whoever sits between and ends the TLS to the relay is not
// spoken to, for the lease has named another certificate.
func TestRelayIsPinned(t *testing.T) {
	own, err := dtcp.NewCertificate()
	if err != nil {
		t.Fatal(err)
	}
	other, err := dtcp.NewCertificate()
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan []byte, 64)
	run := pinned{dtcp.FingerprintOf(own.Certificate[0]), &other, said}
	only := relayed("A")
	config := func(p *peer) {
		if only(p); p.host.Name() == "A" {
			p.config.Network = onlyTLS{p.host}
		}
	}
	story(t, options{link: links[0], relay: &relayOptions{run: run}, config: config}, func(w *world) {
		d := <-w.a.dial(w.patience(), w.b)
		if !errors.Is(d.err, dtcp.ErrFingerprint) {
			t.Errorf("Dial: %v, want %v", d.err, dtcp.ErrFingerprint)
		}
		close(said)
		for b := range said {
			t.Errorf("it was told %q", b)
		}
	})
}

// pinned is a relay that speaks TLS, with a certificate other than the one leased.
type pinned struct {
	leased dtcp.Fingerprint
	own    *tls.Certificate
	said   chan<- []byte
}

func (p pinned) Answer(q stanza.IQ) stanza.IQ {
	a := newBentRelay(relayAddr.String()).Answer(q)
	if q.Payload.Is("urn:x-dtcp:relay:0", "lease") {
		a.Payload.Children[0] = a.Payload.Children[0].With("tls", "1").With("fingerprint", p.leased.String())
	}
	return a
}

func (p pinned) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*p.own}, NextProtos: []string{"dtcp-relay"}, MinVersion: tls.VersionTLS13})
		b := make([]byte, 100)
		if n, err := s.Read(b); err == nil {
			p.said <- b[:n]
		}
		_ = c.Close()
	}
}

// TestRelayOnlyIsNotFound: a peer that guesses our address, and names the right
// key there, learns no more than who does not know it: under relay-only we are
// reached by way of the relay and no other.
func TestRelayOnlyIsNotFound(t *testing.T) {
	var own string
	guess := func(_ string, q *query) {
		if q.print.IsZero() {
			return
		}
		q.candidates = append([]dtcp.Candidate{at(own)}, q.candidates...)
	}
	for _, asks := range []string{"A", "B"} {
		t.Run(asks+" asks", func(t *testing.T) {
			o := &relayOptions{a: 60 * time.Millisecond, b: 80 * time.Millisecond}
			intercept := func(from jid.JID, e stanza.Element) []stanza.Element {
				if from.Local() != "alice" {
					return []stanza.Element{e}
				}
				return lying(guess)(from, e)
			}
			story(t, options{link: links[0], relay: o, config: relayed("A"), intercept: intercept}, func(w *world) {
				own = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), w.a.Addr().Port()).String()
				req, res := w.a, w.b
				if asks == "B" {
					req, res = w.b, w.a
				}
				near, far, _ := req.stream(res)
				if near.Path().Kind != dtcp.Relay || far.Path().Kind != dtcp.Relay {
					t.Errorf("paths %+v, %+v", near.Path(), far.Path())
				}
				w.wantTransfer(near, far)
			})
		})
	}
}

// TestRelayOnlySaysNothing: nor does who looks for us at our address, with no key,
// learn that a stream is about to be made, though it might be a stock one.
func TestRelayOnlySaysNothing(t *testing.T) {
	only := relayed("A")
	config := func(p *peer) {
		only(p)
		p.config.AllowPlain = func(jid.JID) bool { return true }
	}
	story(t, options{link: links[0], relay: &relayOptions{}, config: config}, func(w *world) {
		b := w.b.instead()
		ctx, cancel := context.WithCancel(w.patience())
		result := w.a.dial(ctx, w.b)
		b.asked()
		c, err := w.b.host.DialContext(w.patience(), "tcp", net.JoinHostPort("192.0.2.1", fmt.Sprint(w.a.Addr().Port())))
		w.check(err)
		_, err = io.WriteString(c, "starttls\n")
		w.check(err)
		got := make([]byte, 6)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "error\n" {
			t.Errorf("it says %q, %v; want an error", got, err)
		}
		w.check(c.Close())
		cancel()
		<-result
	})
}

// TestSilentLegs: a relay joins legs, and then nothing comes. Whoever ends the
// session does not wait for it.
func TestSilentLegs(t *testing.T) {
	for name, says := range map[string]string{"nothing": "", "a part of a line": "ke", "the key line": "key:"} {
		t.Run(name, func(t *testing.T) {
			joins := &joining{say: func(key string) string {
				if says == "key:" {
					return "key:" + key + "\n"
				}
				return says
			}}
			story(t, options{link: links[0], relay: &relayOptions{run: joins}, config: relayed("A")}, func(w *world) {
				ctx, cancel := context.WithCancel(w.patience())
				result := w.a.dial(ctx, w.b)
				<-time.After(2 * time.Second)
				cancel()
				<-result
				began := time.Now()
				w.check(w.a.Close())
				if d := time.Since(began); d > 100*time.Millisecond {
					t.Errorf("Close took %v", d)
				}
				if n := joins.served(); n == 0 || n > 8 {
					t.Errorf("%d legs, want 1 to 8", n)
				}
			})
		})
	}
}

// TestLegsAreBounded: who has the key and joins leg after leg, to drop it at
// once, has us open some, and then a few each second.
func TestLegsAreBounded(t *testing.T) {
	joins := &joining{say: func(key string) string { return "key:" + key + "\n" }, drop: true}
	story(t, options{link: links[0], relay: &relayOptions{run: joins}, config: relayed("A")}, func(w *world) {
		ctx, cancel := context.WithTimeout(w.patience(), 10*time.Second)
		defer cancel()
		d := <-w.a.dial(ctx, w.b)
		if d.err == nil {
			t.Fatal("a stream without a peer")
		}
		if n := joins.served(); n < 20 || n > 8+16*10+1 {
			t.Errorf("%d legs in 10 s, want 8 and then 16 a second at most", n)
		}
	})
}

// joining is a relay that joins each leg at once with nobody.
type joining struct {
	say  func(key string) string
	drop bool // and then drops it

	mu   sync.Mutex
	legs []net.Conn
}

func (j *joining) served() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.legs)
}

func (*joining) Answer(q stanza.IQ) stanza.IQ { return newBentRelay(relayAddr.String()).Answer(q) }

func (j *joining) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			j.mu.Lock()
			defer j.mu.Unlock()
			for _, c := range j.legs {
				_ = c.Close()
			}
			return err
		}
		line := make([]byte, 512)
		n, err := c.Read(line)
		key, ok := strings.CutPrefix(string(line[:n]), wire.Serve+":")
		if err != nil || !ok { // it observes, or dials
			defer c.Close()
			continue
		}
		key, _, _ = strings.Cut(key, " ")
		_, _ = c.Write([]byte("ok:192.0.2.1:1\n" + j.say(key)))
		j.mu.Lock()
		j.legs = append(j.legs, c)
		j.mu.Unlock()
		if j.drop {
			_ = c.Close()
		}
	}
}

// TestRelayIsWanting: what the error says when only relayed streams are wanted and
// there is no relay is what is the case.
func TestRelayIsWanting(t *testing.T) {
	only := func(p *peer) {
		p.config.Paths = func(jid.JID) dtcp.PathPolicy { return dtcp.RelayOnly }
	}
	t.Run("none is to be looked for", func(t *testing.T) {
		story(t, options{link: links[0], config: only}, func(w *world) {
			for _, p := range []*peer{w.a, w.b} {
				p.config.NoRelay = true
			}
			d := <-w.a.dial(w.patience(), w.b)
			_, err := w.a.AwaitRelay(w.patience())
			for _, err := range []error{d.err, err} {
				if err == nil || strings.Contains(err.Error(), "server") || !strings.Contains(err.Error(), "NoRelay") {
					t.Errorf("%v; want it to say that none is looked for", err)
				}
			}
		})
	})
	t.Run("the search is not over", func(t *testing.T) {
		lost := func(from jid.JID, e stanza.Element) []stanza.Element { return nil }
		config := func(p *peer) {
			only(p)
			p.config.NoRelay = false
		}
		story(t, options{link: links[0], config: config, intercept: lost}, func(w *world) {
			ctx, cancel := context.WithTimeout(w.patience(), time.Second)
			defer cancel()
			d := <-w.a.dial(ctx, w.b)
			if !errors.Is(d.err, context.DeadlineExceeded) {
				t.Errorf("Dial: %v, want %v", d.err, context.DeadlineExceeded)
			}
		})
	})
}

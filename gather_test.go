package dtcp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// barred is a network that lets nothing out to the relay.
type barred struct {
	*memnet.Host
	tried *atomic.Int64
}

func (b barred) Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error) {
	if remote == relayAddr {
		b.tried.Add(1)
		return nil, &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}
	}
	return b.Host.Dial(ctx, local, remote)
}

// TestDialRelay: where the network lets nothing out to relays, ours is reached by
// the way that the configuration knows, to listen and to dial; and nobody else is.
func TestDialRelay(t *testing.T) {
	for _, asks := range []string{"A", "B"} {
		t.Run(asks+" asks", func(t *testing.T) {
			var tried, proxied atomic.Int64
			o := &relayOptions{a: 20 * time.Millisecond, b: 20 * time.Millisecond}
			config := func(p *peer) {
				p.config.Paths = func(jid.JID) dtcp.PathPolicy { return dtcp.RelayOnly }
				p.config.Network = barred{p.host, &tried}
				p.config.DialRelay = func(ctx context.Context, network, address string) (net.Conn, error) {
					if address != relayAddr.String() {
						t.Errorf("%s is to be dialed by the proxy", address)
					}
					proxied.Add(1)
					return p.host.DialContext(ctx, network, address)
				}
			}
			story(t, options{link: links[0], relay: o, config: config}, func(w *world) {
				req, res := w.a, w.b
				if asks == "B" {
					req, res = w.b, w.a
				}
				near, far, _ := req.stream(res)
				if near.Path().Kind != dtcp.Relay {
					t.Errorf("path %+v", near.Path())
				}
				w.wantTransfer(near, far)
				if tried.Load() == 0 || proxied.Load() < 2 {
					t.Errorf("%d dials barred, %d by the proxy; want the one first, and then the other at either end", tried.Load(), proxied.Load())
				}
			})
		})
	}
}

var (
	stunAddr  = netip.MustParseAddrPort("198.51.100.20:3478")
	stunAddr2 = netip.MustParseAddrPort("198.51.100.21:3478")
)

// serveSTUN answers Binding requests over TCP (RFC 8489, 6.2.2 and 14.2).
func serveSTUN(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for {
				var q [20]byte
				if _, err := io.ReadFull(c, q[:]); err != nil {
					return
				}
				if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(q[2:]))); err != nil {
					return
				}
				from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
				var a bytes.Buffer
				a.Write([]byte{0x01, 0x01, 0, 12})
				a.Write(q[4:20])
				a.Write([]byte{0, 0x20, 0, 8, 0, 1})
				_ = binary.Write(&a, binary.BigEndian, from.Port()^0x2112)
				for i, b := range from.Addr().Unmap().As4() {
					a.WriteByte(b ^ []byte{0x21, 0x12, 0xA4, 0x42}[i])
				}
				if _, err := c.Write(a.Bytes()); err != nil {
					return
				}
			}
		}()
	}
}

// TestSTUN: where there is no relay, the STUN servers that our server knows
// (XEP-0215) say how they see us, and holes are punched all the same.
func TestSTUN(t *testing.T) {
	services := func(from jid.JID, e stanza.Element) []stanza.Element {
		q, err := stanza.ParseIQ(e)
		if err != nil || q.Type != stanza.Get || !q.Payload.Is("urn:xmpp:extdisco:2", "services") {
			return []stanza.Element{e}
		}
		q.From = from
		list := stanza.New("urn:xmpp:extdisco:2", "services",
			stanza.New("urn:xmpp:extdisco:2", "service").With("type", "stun").With("transport", "udp").With("host", "198.51.100.22").With("port", "1"))
		for _, a := range []netip.AddrPort{stunAddr, stunAddr2} {
			list.Children = append(list.Children, stanza.New("urn:xmpp:extdisco:2", "service").With("type", "stun").With("transport", "tcp").
				With("host", a.Addr().String()).With("port", "3478"))
		}
		answer := q.Result(list)
		answer.From = jid.MustParse("example.org")
		return []stanza.Element{answer.Element(stanza.NSClient)}
	}
	config := func(p *peer) { p.config.NoRelay = false }
	home := places[2]
	place := func(w *world) {
		among(home, home)(w)
		h := w.net.Host("STUN", stunAddr.Addr(), stunAddr2.Addr())
		l, err := h.Listen(w.t.Context(), netip.AddrPortFrom(netip.Addr{}, stunAddr.Port()))
		w.check(err)
		w.t.Cleanup(func() { _ = l.Close() })
		go serveSTUN(l)
	}
	story(t, options{link: links[0], place: place, config: config, intercept: services}, func(w *world) {
		r := w.a.Report()
		if r.NAT.Mapping != "endpoint-independent" || len(r.NAT.Observed) != 2 || r.NAT.Observed[0].Server.Port() != 3478 {
			t.Errorf("NAT %+v", r.NAT)
		}
		<-time.After(2 * time.Minute) // they are asked again and again
		near, far, _ := w.a.stream(w.b)
		if near.Path().Kind != dtcp.Reflexive {
			t.Errorf("path %+v", near.Path())
		}
		w.wantTransfer(near, far)
	})
}

// TestIPv6Firewalls: between two hosts that have nothing but IPv6, and firewalls
// that let nothing in, holes are punched, though nobody observes them.
func TestIPv6Firewalls(t *testing.T) {
	for _, wall := range []memnet.Firewall{memnet.Drop, memnet.Reject} {
		config := func(p *peer) { p.config.NoRelay = false }
		story(t, options{link: links[0], ipv6: true, config: config}, func(w *world) {
			w.a.host.Firewall(wall)
			w.b.host.Firewall(wall)
			near, far, after := w.a.stream(w.b)
			if p := near.Path(); p.Kind != dtcp.Reflexive || !p.Remote.Addr().Is6() {
				t.Errorf("path %+v", p)
			}
			if after > time.Second {
				t.Errorf("after %v", after)
			}
			w.wantTransfer(near, far)
		})
	}
}

// TestClosedWhileGathering: an Endpoint that is closed before anybody has
// answered leaves nothing behind, and says so to who waits.
func TestClosedWhileGathering(t *testing.T) {
	o := &relayOptions{a: time.Second, b: time.Second}
	story(t, options{link: links[0], relay: o}, func(w *world) {
		e, err := dtcp.NewEndpoint(w.a.session, &w.a.config)
		w.check(err)
		result := make(chan error, 1)
		go func() {
			_, err := e.Dial(w.patience(), w.b.jid(), "test")
			result <- err
		}()
		<-time.After(10 * time.Millisecond)
		w.check(e.Close())
		if err := <-result; !errors.Is(err, dtcp.ErrClosed) {
			t.Errorf("Dial: %v, want %v", err, dtcp.ErrClosed)
		}
	})
}

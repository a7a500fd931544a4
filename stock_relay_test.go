package dtcp_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// behindRelay gives E of a stock story a relay, and a firewall that lets nobody
// in.
func behindRelay(t *testing.T, f func(e *dtcp.Endpoint, s *stockPeer)) {
	config := dtcp.Config{Relays: []jid.JID{relayJID}}
	place := func(n *memnet.Net, board *switchboard, host *memnet.Host) (stop func()) {
		host.Firewall(memnet.Drop)
		r, err := relay.New(relay.Config{
			Domain: relayJID, Keys: relay.NewKeyring(), Hosts: []relay.Host{{Addr: relayAddr.Addr().String(), Port: relayAddr.Port()}},
			Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{extendedAddress.Bare()}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		board.services[relayJID] = r.Answer
		l, err := n.Host("R", relayAddr.Addr()).Listen(context.Background(), netip.AddrPortFrom(netip.Addr{}, relayAddr.Port()))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- r.Serve(l) }()
		return func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			<-served
		}
	}
	stockStoryAt(t, config, place, func(_ *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
		<-e.Ready()
		s.hosts = nil
		f(e, s)
	})
}

// TestStockThroughRelay: a stock peer, which knows nothing of relays, finds ours
// as the last of the hosts, and is told there that it cannot have TLS: no key
// has been named yet.
func TestStockThroughRelay(t *testing.T) {
	for name, starttls := range map[string]bool{"starttls first": true, "key at once": false} {
		t.Run("the stock peer asks, "+name, func(t *testing.T) {
			behindRelay(t, func(e *dtcp.Endpoint, s *stockPeer) {
				key, hosts, err := s.ask()
				if err != nil || len(hosts) != 2 || hosts[1] != relayAddr.String() {
					t.Fatal(hosts, err)
				}
				k := s.dial(hosts[1])
				if starttls {
					k.say("starttls")
					k.want("error")
				}
				k.say("key:" + key)
				k.want("ok:" + s.key)
				k.say("ok")
				c, err := e.Accept(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if p := c.Path(); p.Relay != relayAddr.String() {
					t.Errorf("path %+v, want it to name the relay", p)
				}
				k.wantStream(c, false)
			})
		})
		t.Run("ours asks, "+name, func(t *testing.T) {
			behindRelay(t, func(e *dtcp.Endpoint, s *stockPeer) {
				result := make(chan dialed, 1)
				go func() {
					c, err := e.Dial(context.Background(), s.user.address, "test")
					result <- dialed{conn: c, err: err}
				}()
				q := <-s.asked
				key, hosts := s.read(q.Payload)
				last := hosts[len(hosts)-1]
				if len(hosts) > 3 || last != relayAddr.String() {
					t.Fatal(hosts)
				}
				if err := s.user.Send(context.Background(), q.Result(s.query())); err != nil {
					t.Fatal(err)
				}
				k := s.dial(last)
				if starttls {
					k.say("starttls")
					k.want("error")
				}
				k.say("key:" + key)
				k.want("ok:" + s.key)
				d := <-result
				if d.err != nil {
					t.Fatal(d.err)
				}
				k.wantStream(d.conn, false)
			})
		})
	}
}

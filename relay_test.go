package dtcp_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// relayOptions give a world a relay, which its server lists.
type relayOptions struct {
	a, b      time.Duration  // round trips between A, B and the relay
	run       relayingServer // nil: internal/relay
	addresses int            // of that, 1 or 2; 0 is 1
	limits    relay.Limits   // of that
}

// relayingServer is a relay, ours or one of the tests'.
type relayingServer interface {
	Answer(stanza.IQ) stanza.IQ
	Serve(net.Listener) error
}

// Where the relay is.
var (
	relayJID   = jid.MustParse("relay.example.org")
	relayAddr  = netip.MustParseAddrPort("198.51.100.9:5280")
	relayAddr2 = netip.MustParseAddrPort("198.51.100.10:5280")
)

// placeRelay gives the relay its place in the world.
func (w *world) placeRelay(o *relayOptions) {
	w.relay = w.net.Host("relay", relayAddr.Addr(), relayAddr2.Addr(), netip.MustParseAddr("2001:db8:9::9"))
	w.net.SetLatency(w.a.host, w.relay, o.a/2)
	w.net.SetLatency(w.b.host, w.relay, o.b/2)
}

// serveRelay runs the relay.
func (w *world) serveRelay(o *relayOptions) (stop func()) {
	w.t.Helper()
	run := o.run
	if run == nil {
		hosts := []relay.Host{{Addr: relayAddr.Addr().String(), Port: relayAddr.Port()}}
		if o.addresses == 2 {
			hosts = append(hosts, relay.Host{Addr: relayAddr2.Addr().String(), Port: relayAddr2.Port()})
		}
		r, err := relay.New(relay.Config{
			Domain: relayJID, Keys: relay.NewKeyring(), Node: "r", Hosts: hosts,
			Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}}, Limits: o.limits},
		})
		w.check(err)
		defer func() {
			closeListener := stop
			stop = func() {
				w.check(r.Close())
				closeListener()
			}
		}()
		run = r
	}
	l, err := w.relay.Listen(w.t.Context(), netip.AddrPortFrom(netip.Addr{}, relayAddr.Port()))
	w.check(err)
	if w.board != nil {
		w.board.list(relayJID, run.Answer)
	} else {
		_, err = w.server.Attach(relayJID.String(), run.Answer)
		w.check(err)
	}
	served := make(chan error, 1)
	go func() { served <- run.Serve(l) }()
	return func() {
		_ = l.Close() // the relay may have done so
		<-served
	}
}

// relayed has the peer called name use the relay, and nothing else.
func relayed(name string) func(*peer) {
	return func(p *peer) {
		p.config.NoRelay = p.host.Name() != name
		if p.host.Name() == name {
			p.config.Paths = func(jid.JID) dtcp.PathPolicy { return dtcp.RelayOnly }
		}
	}
}

// TestTimesRelayed is the table of Section 4 of protocol.md, to the
// millisecond: whose relay it is, who asks, and when the responder has its
// stream. No path but the relay's is there to wait for.
func TestTimesRelayed(t *testing.T) {
	relays := []struct{ a, b time.Duration }{
		{60 * time.Millisecond, 80 * time.Millisecond},
		{20 * time.Millisecond, 30 * time.Millisecond},
		{40 * time.Millisecond, 40 * time.Millisecond},
	}
	wants := map[string][]time.Duration{ // milliseconds
		"the requester's": {380, 275, 250},
		"the responder's": {320, 295, 260},
	}
	told := 0
	for whose, want := range wants {
		for i, l := range links {
			for _, asks := range []string{"A", "B"} {
				t.Run(whose+" relay, "+asks+" asks", func(t *testing.T) {
					o := &relayOptions{a: relays[i].a, b: relays[i].b}
					owner := asks
					if whose == "the responder's" {
						owner = map[string]string{"A": "B", "B": "A"}[asks]
					}
					if asks == "B" { // the table's A is the requester's
						o.a, o.b = o.b, o.a
					}
					story(t, options{link: l, relay: o, config: relayed(owner)}, func(w *world) {
						told++
						req, res := w.a, w.b
						if asks == "B" {
							req, res = w.b, w.a
						}
						near, far, after := req.stream(res)
						if after != want[i]*time.Millisecond {
							t.Errorf("signal %v, trips %v and %v: the responder has its stream after %v, want %v", l.signal, o.a, o.b, after, want[i]*time.Millisecond)
						}
						for _, c := range []*dtcp.Conn{near, far} {
							if p := c.Path(); p.Kind != dtcp.Relay || p.Relay != relayAddr.String() || p.Remote != relayAddr {
								t.Errorf("path %+v", p)
							}
						}
						if near.Path().Dialed == far.Path().Dialed || near.Path().Dialed == (owner == asks) {
							t.Errorf("whose relay it is does not listen: %+v, %+v", near.Path(), far.Path())
						}
						w.wantTransfer(near, far)
					})
				})
			}
		}
	}
	if told != 12 {
		t.Errorf("%d stories told, want 12", told)
	}
}

// TestRelayWhenNothingElseWorks: both are behind firewalls that let nothing in,
// and the relay waits a little for direct paths, and no longer.
func TestRelayWhenNothingElseWorks(t *testing.T) {
	for _, tt := range []struct {
		wall memnet.Firewall
		name string
	}{{memnet.Drop, "dropping"}, {memnet.Reject, "refusing"}} {
		for _, asks := range []string{"A", "B"} {
			t.Run(tt.name+" firewalls, "+asks+" asks", func(t *testing.T) {
				o := &relayOptions{a: 60 * time.Millisecond, b: 80 * time.Millisecond}
				story(t, options{link: links[0], relay: o, config: func(p *peer) { p.config.Network = noPunching{p.host} }}, func(w *world) {
					w.a.host.Firewall(tt.wall)
					w.b.host.Firewall(tt.wall)
					req, res := w.a, w.b
					if asks == "B" {
						req, res = w.b, w.a
					}
					near, far, after := req.stream(res)
					if near.Path().Kind != dtcp.Relay || far.Path().Kind != dtcp.Relay {
						t.Errorf("paths %+v, %+v", near.Path(), far.Path())
					}
					// The responder's relay is first, and alone would have taken 320 or,
					// asked from the other side, 330 ms. The rule adds twice the time of the
					// TLS handshake: 140 ms, and 10 that the dialer was held if A asks.
					want := 620 * time.Millisecond
					if asks == "B" {
						want = 610 * time.Millisecond
					}
					if after != want {
						t.Errorf("the responder has its stream after %v, want %v", after, want)
					}
					w.wantTransfer(near, far)
					if n := w.iqs.Load(); n != 2 {
						t.Errorf("%d iqs between the peers, want a question and an answer", n)
					}
				})
			})
		}
	}
}

// noPunching is a Network whose ports cannot be shared.
type noPunching struct{ dtcp.Network }

// TestRelayIsNotTakenWhereADirectPathIs: it is there, and nearer, and loses.
func TestRelayIsNotTakenWhereADirectPathIs(t *testing.T) {
	o := &relayOptions{a: 2 * time.Millisecond, b: 2 * time.Millisecond}
	story(t, options{link: links[0], relay: o}, func(w *world) {
		w.a.host.Firewall(memnet.Drop)
		near, far, after := w.a.stream(w.b)
		if near.Path().Kind != dtcp.Host || far.Path().Kind != dtcp.Host || after != 290*time.Millisecond {
			t.Errorf("after %v: paths %+v, %+v", after, near.Path(), far.Path())
		}
		w.wantTransfer(near, far)
	})
}

// TestRelayOnly: nothing of ours is revealed but the relay, and nothing that the
// peer names is dialed but our relay.
func TestRelayOnly(t *testing.T) {
	dialed := map[string]int{}
	config := func(p *peer) {
		p.config.Paths = func(jid.JID) dtcp.PathPolicy { return dtcp.RelayOnly }
	}
	story(t, options{link: links[0], relay: &relayOptions{}, config: config}, func(w *world) {
		defer w.net.Tap(func(p memnet.Packet) {
			if p.Opens() {
				dialed[p.Sender+" to "+p.To.String()]++
			}
		})()
		ports := fmt.Sprint(reflexive(w.a), reflexive(w.b))
		near, far, _ := w.a.stream(w.b)
		if near.Path().Kind != dtcp.Relay || far.Path().Kind != dtcp.Relay {
			t.Errorf("paths %+v, %+v", near.Path(), far.Path())
		}
		w.wantTransfer(near, far)
		if now := fmt.Sprint(reflexive(w.a), reflexive(w.b)); now != ports {
			t.Errorf("punch ports were %s and are %s: somebody has taken one", ports, now)
		}
		for who := range dialed {
			if !strings.HasSuffix(who, " to "+relayAddr.String()) {
				t.Errorf("%s was dialed", who)
			}
		}
		if len(dialed) != 2 {
			t.Errorf("dials: %v, want both to the relay", dialed)
		}
	})
}

// TestDirectOnly: no leg is served, no relay is named, and none is dialed, though
// there is no other way.
func TestDirectOnly(t *testing.T) {
	config := func(p *peer) {
		p.config.Paths = func(jid.JID) dtcp.PathPolicy { return dtcp.DirectOnly }
		p.config.Network = noPunching{p.host}
	}
	story(t, options{link: links[0], relay: &relayOptions{}, config: config}, func(w *world) {
		w.a.host.Firewall(memnet.Drop)
		w.b.host.Firewall(memnet.Drop)
		opens := w.opens()
		d := <-w.a.dial(w.patience(), w.b)
		var none *dtcp.NoPathError
		if !errors.As(d.err, &none) || strings.Contains(d.err.Error(), "relay") || opens(relayAddr) != 0 {
			t.Errorf("Dial: %v; %d connections to the relay", d.err, opens(relayAddr))
		}
	})
}

// TestRelayOnlyWithoutRelay: the error says that there is none, or why it lends
// nothing.
func TestRelayOnlyWithoutRelay(t *testing.T) {
	for name, tt := range map[string]struct {
		relay *relayOptions
		named []jid.JID
		want  string
	}{
		"none":             {nil, nil, "no relay"},
		"refuses":          {&relayOptions{run: denying{}}, nil, "not for you"},
		"named, refuses":   {&relayOptions{run: denying{}}, []jid.JID{relayJID}, "not for you"},
		"named, is none":   {nil, []jid.JID{jid.MustParse("example.org")}, "example.org: neither a relay nor a proxy"},
		"named, not there": {nil, []jid.JID{jid.MustParse("gone.example.net")}, "gone.example.net: remote-server-not-found"},
	} {
		t.Run(name, func(t *testing.T) {
			config := func(p *peer) {
				p.config.NoRelay, p.config.Relays = false, tt.named
				p.config.Paths = func(jid.JID) dtcp.PathPolicy { return dtcp.RelayOnly }
			}
			story(t, options{link: links[0], relay: tt.relay, config: config}, func(w *world) {
				r := <-w.a.dial(w.patience(), w.b)
				if _, err := w.a.AwaitRelay(w.patience()); err == nil || tt.named != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("AwaitRelay: %v; want it to say %q", err, tt.want)
				}
				if !errors.Is(r.err, dtcp.ErrPolicy) || !strings.Contains(r.err.Error(), tt.want) {
					t.Errorf("Dial: %v; want it to say %q", r.err, tt.want)
				}
			})
		})
	}
}

// denying is a relay that lends nothing to anybody.
type denying struct{}

func (denying) Answer(q stanza.IQ) stanza.IQ {
	if a := newBentRelay("").Answer(q); !q.Payload.Is("urn:x-dtcp:relay:0", "lease") {
		return a
	}
	return q.Fail(stanza.NewError(stanza.Forbidden, "not for you"))
}

func (denying) Serve(l net.Listener) error {
	_, err := l.Accept()
	return err
}

// TestRelayHasRoomAgain: what a relay refuses for the moment is asked for again.
func TestRelayHasRoomAgain(t *testing.T) {
	bent := newBentRelay(relayAddr.String())
	bent.refuse = "full"
	story(t, options{link: links[0], relay: &relayOptions{run: bent}, config: relayed("A")}, func(w *world) {
		time.AfterFunc(500*time.Millisecond, func() {
			bent.mu.Lock()
			defer bent.mu.Unlock()
			bent.refuse = ""
		})
		near, far, after := w.a.stream(w.b)
		if after > 2*time.Second {
			t.Errorf("the responder has its stream after %v", after)
		}
		w.wantTransfer(near, far)
	})
}

// TestRelayRefusesToServe: the error of a Dial that fails says why.
func TestRelayRefusesToServe(t *testing.T) {
	bent := newBentRelay(relayAddr.String())
	bent.refuse = "quota"
	o := &relayOptions{run: bent}
	story(t, options{link: links[0], relay: o, config: relayed("A")}, func(w *world) {
		r := <-w.a.dial(w.patience(), w.b)
		if r.err == nil || !strings.Contains(r.err.Error(), "used up") || !strings.Contains(r.err.Error(), "relay 198.51.100.9:5280") {
			t.Errorf("Dial: %v; want it to name the relay and its reason", r.err)
		}
	})
}

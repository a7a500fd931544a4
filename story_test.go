package dtcp_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// world is a small internet in virtual time: an XMPP server and two users, A
// and B, each with a host, a login and an Endpoint.
type world struct {
	t      *testing.T
	net    *memnet.Net
	server *rendezvous.Server
	at     netip.AddrPort // of the server
	roots  *x509.CertPool // of the server
	board  *switchboard   // in place of a server
	a, b   *peer
	iqs    atomic.Int64 // iqs from one user to the other
	relay  *memnet.Host // where the relay runs
}

type peer struct {
	w       *world
	name    string
	host    *memnet.Host
	session login
	*dtcp.Endpoint
	config dtcp.Config
}

// login is how a user of a world signals.
type login interface {
	dtcp.Signaling
	Close() error
}

// Close makes a user of a switchboard a login.
func (u *user) Close() error { return nil }

// link says how far A, B and the server are from one another. signal is one way
// from user to user through the server, trip a round trip between the users.
type link struct{ signal, trip time.Duration }

// options change a world before its users log in.
type options struct {
	link
	ipv6      bool                                                  // nobody has an IPv4 address
	config    func(*peer)                                           // changes the configuration of an Endpoint
	intercept func(from jid.JID, e stanza.Element) []stanza.Element // has the server lie
	place     func(w *world)                                        // moves the hosts
	relay     *relayOptions                                         // nil: there is no relay
	noServer  bool                                                  // a switchboard in its place, for what is told often
}

const password = "correct horse"

// story runs f in a world of its own, in virtual time, and checks at the end
// that nothing is left behind: synctest fails a test whose goroutines remain.
func story(t *testing.T, o options, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: memnet.New()}
		addresses := []string{"198.51.100.1", "192.0.2.1", "192.0.2.2"}
		if o.ipv6 {
			addresses = []string{"2001:db8:5::1", "2001:db8:1::1", "2001:db8:2::1"}
		}
		w.at = netip.AddrPortFrom(netip.MustParseAddr(addresses[0]), 5222)
		w.a = &peer{w: w, name: "alice", host: w.net.Host("A", netip.MustParseAddr(addresses[1]))}
		w.b = &peer{w: w, name: "bob", host: w.net.Host("B", netip.MustParseAddr(addresses[2]))}
		w.net.SetLatency(w.a.host, w.b.host, o.trip/2)
		if o.relay != nil {
			w.placeRelay(o.relay)
		}
		if o.place != nil {
			o.place(w)
		}
		if o.noServer {
			w.board = newSwitchboard()
			w.board.delay, w.board.intercept = o.signal, w.counting(o.intercept)
		} else {
			defer w.serve(o)()
		}
		if o.relay != nil {
			defer w.serveRelay(o.relay)()
		}
		for _, p := range []*peer{w.a, w.b} {
			p.session = w.login(p.name, p.host)
			defer p.session.Close()
			p.config = dtcp.Config{
				Network: p.host,
				Allow:   func(context.Context, *dtcp.Request) error { return nil },
				NoRelay: o.relay == nil,
			}
			if o.config != nil {
				o.config(p)
			}
			var err error
			p.Endpoint, err = dtcp.NewEndpoint(p.session, &p.config)
			w.check(err)
			defer func() {
				if err := p.Endpoint.Close(); err != nil && !errors.Is(err, dtcp.ErrClosed) {
					t.Errorf("closing %s: %v", p.name, err)
				}
			}()
		}
		<-w.a.Ready()
		<-w.b.Ready()
		synctest.Wait()
		f(w)
	})
}

// serve runs the XMPP server.
func (w *world) serve(o options) (stop func()) {
	w.t.Helper()
	host := w.net.Host("server", w.at.Addr())
	w.net.SetLatency(w.a.host, host, o.signal/2)
	w.net.SetLatency(w.b.host, host, o.signal/2)
	certificate, err := rendezvous.SelfSigned("example.org", time.Now())
	w.check(err)
	w.server, err = rendezvous.New(rendezvous.Config{
		Domain: "example.org", Certificate: certificate, Iterations: 4096,
		Intercept: w.counting(o.intercept),
	})
	w.check(err)
	listener, err := host.Listen(w.t.Context(), w.at)
	w.check(err)
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(listener) }()
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	w.check(err)
	w.roots = x509.NewCertPool()
	w.roots.AddCert(leaf)
	// Whatever fails, nothing that would keep the bubble alive may remain.
	return func() {
		w.check(w.server.Close())
		<-served
	}
}

// counting counts the iqs from user to user, before anybody lies about them.
func (w *world) counting(intercept func(jid.JID, stanza.Element) []stanza.Element) func(jid.JID, stanza.Element) []stanza.Element {
	return func(from jid.JID, e stanza.Element) []stanza.Element {
		if to, err := jid.Parse(e.Attr("to")); err == nil && to.IsFull() && e.Name.Local == "iq" {
			w.iqs.Add(1)
		}
		if intercept != nil {
			return intercept(from, e)
		}
		return []stanza.Element{e}
	}
}

// login logs a user in from a host, after making the account.
func (w *world) login(name string, host *memnet.Host) login {
	w.t.Helper()
	if w.board != nil {
		return w.board.user(name + "@example.org/test")
	}
	w.check(w.server.SetAccount(name, password))
	s, err := xmpp.Connect(w.t.Context(), &xmpp.Config{
		JID: jid.MustParse(name + "@example.org/test"), Password: password, Server: w.at.String(),
		RootCAs: w.roots, Dial: host.DialContext, Priority: -1, NoReconnect: true,
	})
	w.check(err)
	return s
}

// patience is longer than anything in a story takes, so that one that goes
// wrong ends: keepalives would let virtual time run on for ever.
func (w *world) patience() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) peer(name string) *peer {
	if name == "A" {
		return w.a
	}
	return w.b
}

func (p *peer) jid() jid.JID { return p.session.LocalAddr() }

// dialed is what came of a Dial.
type dialed struct {
	conn  *dtcp.Conn
	err   error
	after time.Duration // since the call
}

// dial has p dial other, in a goroutine that the receiver waits for.
func (p *peer) dial(ctx context.Context, other *peer) <-chan dialed {
	result := make(chan dialed, 1)
	began := time.Now()
	go func() {
		c, err := p.Dial(ctx, other.jid(), "test")
		result <- dialed{c, err, time.Since(began)}
	}()
	return result
}

// stream makes a stream from p to other and returns both ends, and when the
// responder had it.
func (p *peer) stream(other *peer) (near, far *dtcp.Conn, after time.Duration) {
	p.w.t.Helper()
	began := time.Now()
	result := p.dial(p.w.patience(), other)
	far, err := other.Accept(p.w.patience())
	p.w.check(err)
	after = time.Since(began)
	d := <-result
	p.w.check(d.err)
	return d.conn, far, after
}

// wantTransfer sends bytes both ways and half-closes both ways.
func (w *world) wantTransfer(near, far *dtcp.Conn) {
	w.t.Helper()
	for _, d := range []struct{ from, to *dtcp.Conn }{{near, far}, {far, near}} {
		sent := make(chan error, 1)
		go func() {
			_, err := d.from.Write([]byte("hello, " + d.from.Service()))
			sent <- errors.Join(err, d.from.CloseWrite())
		}()
		got, err := io.ReadAll(d.to)
		if err != nil || string(got) != "hello, "+d.from.Service() {
			w.t.Errorf("got %q, %v", got, err)
		}
		w.check(<-sent)
	}
	w.check(near.Close())
	w.check(far.Close())
}

// links are those of the table of Section 4 of protocol.md.
var links = []link{
	{20 * time.Millisecond, 100 * time.Millisecond},
	{100 * time.Millisecond, 10 * time.Millisecond},
	{50 * time.Millisecond, 50 * time.Millisecond},
}

// TestTimes is the table of Section 4 of protocol.md, to the millisecond: who
// can be reached, who asks, and when the responder has its stream.
func TestTimes(t *testing.T) {
	reachable := map[string]string{"only A": "A", "only B": "B", "both": "AB"}
	for name, open := range reachable {
		for _, asks := range []string{"A", "B"} {
			for _, l := range links {
				t.Run(name+" can accept, "+asks+" asks", func(t *testing.T) {
					story(t, options{link: l}, func(w *world) {
						for _, p := range []string{"A", "B"} {
							if open != p && open != "AB" {
								w.peer(p).host.Firewall(memnet.Drop)
							}
						}
						req, res := w.peer(asks), w.b
						if asks == "B" {
							res = w.a
						}
						byResponder := max(2*l.signal, l.signal+l.trip*3/2) + l.trip*3/2
						byRequester := 2*l.signal + l.trip*5/2
						want := byRequester
						switch open {
						case asks:
							want = byResponder
						case "AB":
							want = min(byRequester, byResponder)
						}
						near, far, after := req.stream(res)
						if after != want {
							t.Errorf("signal %v, trip %v: the responder has its stream after %v, want %v", l.signal, l.trip, after, want)
						}
						if near.Path().Kind != dtcp.Host || far.Path().Kind != dtcp.Host {
							t.Errorf("kinds of path: %q, %q", near.Path().Kind, far.Path().Kind)
						}
						if near.Path().Dialed == far.Path().Dialed || near.Path().Local != far.Path().Remote {
							t.Errorf("paths do not fit: %+v, %+v", near.Path(), far.Path())
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
}

// TestIPv6Only: nobody has an IPv4 address, and nothing is missing.
func TestIPv6Only(t *testing.T) {
	for _, asks := range []string{"A", "B"} {
		t.Run(asks+" asks", func(t *testing.T) {
			story(t, options{link: links[0], ipv6: true}, func(w *world) {
				w.b.host.Firewall(memnet.Drop)
				req, res := w.a, w.b
				if asks == "B" {
					req, res = w.b, w.a
				}
				near, far, _ := req.stream(res)
				if p := near.Path(); !p.Remote.Addr().Is6() || p.Kind != dtcp.Host {
					t.Errorf("path %+v", p)
				}
				w.wantTransfer(near, far)
			})
		})
	}
}

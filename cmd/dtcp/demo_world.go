package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/internal/transfer"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// demoWorld is the XMPP server of the demonstration, and its relay.
type demoWorld struct {
	server       *rendezvous.Server
	address      netip.AddrPort
	roots        *x509.CertPool
	password     string // of every account
	relay        *relay.Relay
	relayAddress netip.AddrPort
	tap          *tap // on the relay
	served       chan struct{}
}

// startDemoWorld starts both, which listen on loopback; the relay's connections
// are looked at.
func startDemoWorld(marker string, accounts ...string) (_ *demoWorld, err error) {
	certificate, err := rendezvous.SelfSigned(demoDomain, time.Now())
	if err != nil {
		return nil, err
	}
	w := &demoWorld{
		roots: x509.NewCertPool(), password: rand.Text(), tap: &tap{marker: []byte(marker)}, served: make(chan struct{}, 2),
	}
	w.roots.AddCert(certificate.Leaf)
	if w.server, err = rendezvous.New(rendezvous.Config{Domain: demoDomain, Certificate: certificate}); err != nil {
		return nil, err
	}
	for _, name := range accounts {
		if err := w.server.SetAccount(name, w.password); err != nil {
			return nil, err
		}
	}
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
	}
	w.address, w.relayAddress = addrPort(listeners[0]), addrPort(listeners[1])
	domain, err := jid.Parse(demoDomain)
	if err != nil {
		return nil, err
	}
	component, err := jid.Parse(demoRelay)
	if err != nil {
		return nil, err
	}
	w.relay, err = relay.New(relay.Config{
		Domain: component, Keys: relay.NewKeyring(),
		Hosts: []relay.Host{{Addr: w.relayAddress.Addr().String(), Port: w.relayAddress.Port()}},
		Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{domain}}},
	})
	if err != nil {
		return nil, err
	}
	if _, err := w.server.Attach(demoRelay, w.relay.Answer); err != nil {
		return nil, err
	}
	// Owned by the world; close ends both and waits for them.
	go func() {
		w.server.Serve(listeners[0])
		w.served <- struct{}{}
	}()
	go func() {
		w.relay.Serve(&tappedListener{listeners[1], w.tap})
		w.served <- struct{}{}
	}()
	return w, nil
}

func addrPort(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

func (w *demoWorld) close() {
	w.relay.Close()
	w.server.Close()
	<-w.served
	<-w.served
}

// demoPeer is an account that is logged in, with an endpoint for each transfer.
type demoPeer struct {
	session     *xmpp.Session
	certificate tls.Certificate
	endpoint    *dtcp.Endpoint
}

func (t *tool) demoLogin(ctx context.Context, w *demoWorld, name string) (*demoPeer, error) {
	who, err := jid.New(name, demoDomain, "dtcp.demo")
	if err != nil {
		return nil, err
	}
	p := &demoPeer{}
	if p.certificate, err = dtcp.NewCertificate(); err != nil {
		return nil, err
	}
	p.session, err = connect(ctx, &xmpp.Config{
		JID: who, Password: w.password, Server: w.address.String(), RootCAs: w.roots,
		Priority: priority, NoReconnect: true, Trace: t.loginTrace(),
	})
	if err != nil {
		return nil, err
	}
	t.out.say("%v is logged in, with a new certificate: %v", p.session.LocalAddr(), p.fingerprint())
	return p, nil
}

// demoOpen gives a peer an endpoint, at which from alone is let in.
func (t *tool) demoOpen(p, from *demoPeer, config *dtcp.Config) (err error) {
	c := *config
	c.Listen, c.Certificate, c.Trace = "127.0.0.1:0", &p.certificate, t.streamTrace()
	c.Allow = func(_ context.Context, r *dtcp.Request) error {
		if r.From != from.session.LocalAddr() || r.Service != fileService {
			return stanza.NewError(stanza.Forbidden, "")
		}
		return nil
	}
	p.endpoint, err = dtcp.NewEndpoint(p.session, &c)
	return err
}

func (p *demoPeer) fingerprint() dtcp.Fingerprint {
	return dtcp.FingerprintOf(p.certificate.Certificate[0])
}

// receive takes one stream, and the file that comes over it.
func (p *demoPeer) receive(ctx context.Context, folder *transfer.Folder) (*transfer.Result, error) {
	conn, err := p.endpoint.Accept(ctx)
	if err != nil {
		return &transfer.Result{}, err
	}
	r := transfer.Receiver{
		From: conn.Peer().Bare().String(), Folder: folder,
		Accept: func(context.Context, *transfer.Offer) error { return nil },
	}
	return r.Receive(ctx, conn)
}

// walledNetwork is a network where all that is dialed is lost, as behind
// firewalls that answer nothing, but for what goes to the relay.
type walledNetwork struct{ relay netip.AddrPort }

func (walledNetwork) Listen(ctx context.Context, local netip.AddrPort) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", local.String())
}

func (n walledNetwork) Dial(ctx context.Context, _, remote netip.AddrPort) (net.Conn, error) {
	if remote != n.relay {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return new(net.Dialer).DialContext(ctx, "tcp", remote.String())
}

// Addrs returns none: the endpoint listens at one address, and offers that.
func (walledNetwork) Addrs() ([]netip.Addr, error) { return nil, nil }

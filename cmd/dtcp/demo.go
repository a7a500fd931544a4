package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// What the demonstration uses.
const (
	demoDomain  = "demo.example"
	demoService = "demo"
	demoBytes   = 64 << 20
	demoTime    = 30 * time.Second // for all of it
)

func (t *tool) demoCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a stream between two accounts, all in this process",
		Long: `demo starts a small XMPP server and two peers with an account each, all in this
process and on 127.0.0.1 only. One asks the other for a stream and sends it 64 MiB
of random bytes; both compute the SHA-256. It needs no network and no account, and
leaves nothing behind.`,
		Args: t.positional(0),
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return t.demo(c.Context()) }
	return c
}

func (t *tool) demo(ctx context.Context) error {
	if err := t.checkPaths(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	server, err := startDemoServer("romeo", "juliet")
	if err != nil {
		return err
	}
	defer server.close()
	t.out.say("an XMPP server for the domain %s listens on %v", demoDomain, server.address)

	romeo, err := t.demoPeer(ctx, server, "romeo", nil)
	if err != nil {
		return err
	}
	defer romeo.close()
	juliet, err := t.demoPeer(ctx, server, "juliet", func(_ context.Context, r *dtcp.Request) error {
		if r.From != romeo.session.LocalAddr() || r.Service != demoService {
			return stanza.NewError(stanza.Forbidden, "")
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer juliet.close()
	return t.demoStream(ctx, romeo, juliet)
}

// demoStream sends bytes from one peer to the other.
func (t *tool) demoStream(ctx context.Context, romeo, juliet *demoPeer) error {
	received := make(chan receipt, 1)
	// Owned by this call, which waits for it; it ends with the stream, or by ctx.
	go func() { received <- juliet.receive(ctx) }()

	to := juliet.session.LocalAddr()
	t.out.say("%v asks %v for a stream", romeo.session.LocalAddr(), to)
	conn, err := romeo.endpoint.Dial(ctx, to, demoService)
	if err != nil {
		return &dialError{peer: to, service: demoService, own: romeo.session.LocalAddr(), err: because(ctx, err)}
	}
	stop := context.AfterFunc(ctx, func() { conn.Abort() })
	defer stop()
	t.out.took(conn, true)
	if path := conn.Path(); path.Fingerprint != juliet.fingerprint() {
		conn.Abort()
		return fmt.Errorf("the peer's fingerprint is %v, not %v", path.Fingerprint, juliet.fingerprint())
	}
	t.out.say("each end has proven the key of the certificate that it announced over XMPP")

	t.out.say("sending %d MiB of random bytes", demoBytes>>20)
	began := time.Now()
	sent, err := sendRandom(conn)
	if err != nil {
		conn.Abort()
		<-received
		return because(ctx, &cutError{err})
	}
	got := <-received
	took := time.Since(began)
	if got.err != nil {
		conn.Abort()
		return because(ctx, &cutError{got.err})
	}
	if err := conn.Close(); err != nil {
		return &cutError{err}
	}
	t.out.say("%d bytes in %.2f s: %.0f MB/s, both ends and their hashing on this machine", got.bytes, took.Seconds(), float64(got.bytes)/1e6/took.Seconds())
	t.out.say("SHA-256 sent:     %s", sent)
	t.out.say("SHA-256 received: %s", got.sum)
	if got.sum != sent || got.bytes != demoBytes {
		return errors.New("what was received is not what was sent")
	}
	t.out.say("the same on both ends: the stream works")
	t.out.ended(got.bytes, took, got.sum)
	return nil
}

// sendRandom sends the bytes and ends its direction.
func sendRandom(conn *dtcp.Conn) (sum string, err error) {
	var seed [32]byte
	rand.Read(seed[:])
	hash := sha256.New()
	source := io.TeeReader(io.LimitReader(mathrand.NewChaCha8(seed), demoBytes), hash)
	if _, err := io.Copy(conn, source); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), conn.CloseWrite()
}

// receipt is what came over a stream.
type receipt struct {
	bytes int64
	sum   string
	err   error
}

// demoServer is the XMPP server of the demonstration.
type demoServer struct {
	*rendezvous.Server
	address  net.Addr
	roots    *x509.CertPool
	password string
	served   chan struct{}
}

func startDemoServer(accounts ...string) (*demoServer, error) {
	certificate, err := rendezvous.SelfSigned(demoDomain, time.Now())
	if err != nil {
		return nil, err
	}
	s := &demoServer{roots: x509.NewCertPool(), password: rand.Text(), served: make(chan struct{})}
	s.roots.AddCert(certificate.Leaf)
	if s.Server, err = rendezvous.New(rendezvous.Config{Domain: demoDomain, Certificate: certificate}); err != nil {
		return nil, err
	}
	for _, name := range accounts {
		if err := s.SetAccount(name, s.password); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.address = listener.Addr()
	// Owned by the server; close ends it and waits for it.
	go func() {
		defer close(s.served)
		s.Serve(listener)
	}()
	return s, nil
}

func (s *demoServer) close() {
	s.Server.Close()
	<-s.served
}

// demoPeer is an account that is logged in, with an endpoint on loopback.
type demoPeer struct {
	session  *xmpp.Session
	endpoint *dtcp.Endpoint
}

func (t *tool) demoPeer(ctx context.Context, s *demoServer, name string, allow func(context.Context, *dtcp.Request) error) (*demoPeer, error) {
	who, err := jid.New(name, demoDomain, "dtcp."+demoService)
	if err != nil {
		return nil, err
	}
	session, err := connect(ctx, &xmpp.Config{
		JID: who, Password: s.password, Server: s.address.String(), RootCAs: s.roots,
		Priority: priority, NoReconnect: true, Trace: t.loginTrace(),
	})
	if err != nil {
		return nil, err
	}
	endpoint, err := dtcp.NewEndpoint(session, &dtcp.Config{Allow: allow, Listen: "127.0.0.1:0", Trace: t.streamTrace()})
	if err != nil {
		session.Close()
		return nil, err
	}
	p := &demoPeer{session, endpoint}
	t.out.say("%v is logged in, with a new certificate: %v", session.LocalAddr(), p.fingerprint())
	return p, nil
}

func (p *demoPeer) fingerprint() dtcp.Fingerprint {
	f, _ := p.endpoint.Fingerprint()
	return f
}

// receive takes one stream and reads it to its end.
func (p *demoPeer) receive(ctx context.Context) receipt {
	conn, err := p.endpoint.Accept(ctx)
	if err != nil {
		return receipt{err: err}
	}
	stop := context.AfterFunc(ctx, func() { conn.Abort() })
	defer stop()
	hash := sha256.New()
	n, err := io.Copy(hash, conn)
	if err != nil {
		conn.Abort()
		return receipt{err: err}
	}
	return receipt{n, hex.EncodeToString(hash.Sum(nil)), conn.Close()}
}

func (p *demoPeer) close() {
	p.endpoint.Close()
	p.session.Close()
}

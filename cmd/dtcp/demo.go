package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/internal/transfer"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// What the demonstration uses.
const (
	demoDomain = "demo.example"
	demoName   = "demo.bin"
	demoBytes  = 64 << 20
	demoTime   = 30 * time.Second // for all of it
)

func (t *tool) demoCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a file on its way between two accounts, all in this process",
		Long: `demo starts a small XMPP server and two peers with an account each, all in this
process and on 127.0.0.1 only. One sends the other a file of 64 MiB of random bytes,
which is stored in a temporary folder; both compute the SHA-256. It needs no network
and no account, and leaves nothing behind.`,
		Args: t.positional(0),
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return t.demo(c.Context()) }
	return c
}

func (t *tool) demo(ctx context.Context) error {
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
		if r.From != romeo.session.LocalAddr() || r.Service != fileService {
			return stanza.NewError(stanza.Forbidden, "")
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer juliet.close()
	return t.demoFile(ctx, romeo, juliet)
}

// demoFile sends a file from one peer to the other.
func (t *tool) demoFile(ctx context.Context, romeo, juliet *demoPeer) error {
	dir, err := os.MkdirTemp("", "dtcp-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	folder, err := transfer.OpenFolder(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // without a stream, the receiver would wait on
	type receipt struct {
		result *transfer.Result
		err    error
	}
	received := make(chan receipt, 1)
	// Owned by this call, which waits for it; it ends with the stream, or by ctx.
	go func() {
		result, err := juliet.receive(ctx, folder)
		received <- receipt{result, err}
	}()

	t.out.say("%v sends %v a file of %d MiB of random bytes", romeo.session.LocalAddr(), juliet.session.LocalAddr(), demoBytes>>20)
	meter := newMeter(t.out).gauge()
	defer meter.end()
	sender := transfer.Sender{
		Dial:     func(ctx context.Context) (io.ReadWriteCloser, error) { return t.demoDial(ctx, romeo, juliet) },
		Progress: meter.show,
	}
	var seed [32]byte
	rand.Read(seed[:])
	sent, err := sender.Send(ctx, transfer.Blob(demoName, demoBytes, time.Now(), func() (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(mathrand.NewChaCha8(seed), demoBytes)), nil
	}))
	meter.end()
	if err != nil {
		cancel()
		<-received
		return because(ctx, err)
	}
	got := <-received
	if got.err != nil {
		return because(ctx, got.err)
	}
	seconds := sent.Elapsed.Seconds()
	t.out.say("%d bytes in %.2f s: %.0f MB/s, both ends, their hashing and the disk on this machine", got.result.Bytes, seconds, float64(got.result.Bytes)/1e6/seconds)
	t.out.say("SHA-256 sent:     %s", sent.SHA256)
	t.out.say("SHA-256 received: %s", got.result.SHA256)
	if got.result.SHA256 != sent.SHA256 || got.result.Bytes != demoBytes {
		return errors.New("what was received is not what was sent")
	}
	t.out.say("the same on both ends: the stream works; the file is removed again")
	t.out.done(got.result, sent.Elapsed)
	return nil
}

// demoDial gets the stream.
func (t *tool) demoDial(ctx context.Context, romeo, juliet *demoPeer) (io.ReadWriteCloser, error) {
	to := juliet.session.LocalAddr()
	conn, err := romeo.endpoint.DialSummary(ctx, to, fileService, 1, demoBytes)
	if err != nil {
		return nil, &dialError{peer: to, service: fileService, own: romeo.session.LocalAddr(), err: because(ctx, err)}
	}
	t.out.took(conn, true)
	if path := conn.Path(); path.Fingerprint != juliet.fingerprint() {
		conn.Abort()
		return nil, fmt.Errorf("the peer's fingerprint is %v, not %v", path.Fingerprint, juliet.fingerprint())
	}
	t.out.say("each end has proven the key of the certificate that it announced over XMPP")
	return conn, nil
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
	who, err := jid.New(name, demoDomain, "dtcp.demo")
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

func (p *demoPeer) close() {
	p.endpoint.Close()
	p.session.Close()
}

package dtcp_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// send logs in, asks a peer for a stream, and sends it a greeting.
func send(ctx context.Context, login *xmpp.Config, config *dtcp.Config, peer jid.JID) error {
	session, err := xmpp.Connect(ctx, login)
	if err != nil {
		return err
	}
	defer session.Close()
	endpoint, err := dtcp.NewEndpoint(session, config)
	if err != nil {
		return err
	}
	defer endpoint.Close()
	conn, err := endpoint.Dial(ctx, peer, "greeting")
	if err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "good morrow"); err != nil {
		conn.Abort() // so that the peer does not take a part for the whole
		return err
	}
	return conn.Close()
}

// receive takes a stream and reads it to its end.
func receive(ctx context.Context, endpoint *dtcp.Endpoint) (string, error) {
	conn, err := endpoint.Accept(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	greeting, err := io.ReadAll(conn) // err is nil only if the peer ended the stream
	return fmt.Sprintf("%v says %s", conn.Peer().Bare(), greeting), err
}

// Two endpoints over an XMPP server in this process, all on 127.0.0.1. With an
// account elsewhere, leave Server and RootCAs empty, and Listen as well, for any
// address of the machine.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	server, login := startServer("juliet", "romeo")
	defer server.Close()

	juliet, romeo := login, login
	juliet.JID, romeo.JID = jid.MustParse("juliet@example.org/balcony"), jid.MustParse("romeo@example.org/orchard")
	session, err := xmpp.Connect(ctx, &juliet)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	endpoint, err := dtcp.NewEndpoint(session, &dtcp.Config{
		Listen: "127.0.0.1:0",
		Allow: func(_ context.Context, r *dtcp.Request) error {
			if r.From.Bare() != romeo.JID.Bare() {
				return stanza.NewError(stanza.Forbidden, "")
			}
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer endpoint.Close()

	sent := make(chan error, 1)
	go func() { sent <- send(ctx, &romeo, &dtcp.Config{Listen: "127.0.0.1:0"}, juliet.JID) }()
	fmt.Println(receive(ctx, endpoint))
	fmt.Println(<-sent)
	// Output:
	// romeo@example.org says good morrow <nil>
	// <nil>
}

// startServer runs an XMPP server with some accounts and returns what it takes
// to log in to one of them.
func startServer(accounts ...string) (*rendezvous.Server, xmpp.Config) {
	certificate, err := rendezvous.SelfSigned("example.org", time.Now())
	if err != nil {
		log.Fatal(err)
	}
	server, err := rendezvous.New(rendezvous.Config{Domain: "example.org", Certificate: certificate})
	if err != nil {
		log.Fatal(err)
	}
	login := xmpp.Config{Password: "wherefore", RootCAs: x509.NewCertPool(), Priority: -1}
	login.RootCAs.AddCert(certificate.Leaf)
	for _, name := range accounts {
		if err := server.SetAccount(name, login.Password); err != nil {
			log.Fatal(err)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	login.Server = listener.Addr().String()
	go func() { _ = server.Serve(listener) }() // ends with Close, which waits for it
	return server, login
}

package rendezvous_test

import (
	"context"
	"crypto/x509"
	"encoding/xml"
	"net"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// BenchmarkRoundTrip is one iq and its answer between two sessions of package
// xmpp over loopback and TLS: four stanzas written and read.
func BenchmarkRoundTrip(b *testing.B) {
	cert, err := rendezvous.SelfSigned("localhost", time.Now())
	if err != nil {
		b.Fatal(err)
	}
	s, err := rendezvous.New(rendezvous.Config{Domain: "localhost", Certificate: cert, Iterations: 4096})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	// Ends when the server is closed at the end of the benchmark.
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Close()
		<-served
	}()
	if err := s.SetAccount("juliet", "secret"); err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	login := func(resource string) *xmpp.Session {
		session, err := xmpp.Connect(b.Context(), &xmpp.Config{JID: jid.MustParse("juliet@localhost/" + resource), Password: "secret", Server: l.Addr().String(), RootCAs: roots, NoReconnect: true})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { session.Close() })
		return session
	}
	from, to := login("balcony"), login("chamber")
	answers := make(chan stanza.IQ)
	defer close(answers)
	// Ends when answers is closed.
	go func() {
		for a := range answers {
			to.Send(context.Background(), a)
		}
	}()
	to.HandleIQ(xml.Name{Space: "u:q", Local: "question"}, func(q stanza.IQ) { answers <- q.Result(stanza.New("u:q", "answer")) })
	question := stanza.IQ{Header: stanza.Header{To: to.LocalAddr()}, Type: stanza.Get, Payload: stanza.New("u:q", "question")}
	for b.Loop() {
		if _, err := from.RoundTrip(b.Context(), question); err != nil {
			b.Fatal(err)
		}
	}
}

package wire_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// tlsPair returns the states of both ends of one TLS connection.
func tlsPair(t *testing.T) (client, server tls.ConnectionState) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c := tls.Client(a, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true})
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }() // ends with the handshake; waited for below
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState(), s.ConnectionState()
}

// TestProof: equal on both ends of one connection, and of no use on another
// connection or for a session that differs in anything.
func TestProof(t *testing.T) {
	session := wire.Session{RequesterKey: "k1", ResponderKey: "k2", Requester: "a@x/1", Responder: "b@x/2", Service: "pipe"}
	client, server := tlsPair(t)
	proof, err := session.Proof(client)
	if err != nil {
		t.Fatal(err)
	}
	if len(proof) != 43 || !session.Verify(server, proof) || !session.Verify(server, proof+" later=1") {
		t.Errorf("the responder does not accept the proof %q", proof)
	}
	_, otherServer := tlsPair(t)
	if session.Verify(otherServer, proof) {
		t.Error("a proof counts on another connection")
	}
	changed := []wire.Session{
		{RequesterKey: "k2", ResponderKey: "k1", Requester: "a@x/1", Responder: "b@x/2", Service: "pipe"},
		{RequesterKey: "k1", ResponderKey: "k2", Requester: "b@x/2", Responder: "a@x/1", Service: "pipe"},
		{RequesterKey: "k1", ResponderKey: "k2", Requester: "a@x/3", Responder: "b@x/2", Service: "pipe"},
		{RequesterKey: "k1", ResponderKey: "k2", Requester: "a@x/1", Responder: "b@x/2", Service: "file"},
		{RequesterKey: "k1", ResponderKey: "k2", Requester: "a@x/1", Responder: "b@x/2", Service: "pipe", Features: []string{"move"}},
		{RequesterKey: "k1", ResponderKey: "k2", Requester: "a@x/1", Responder: "b@x/2"},
	}
	for _, c := range changed {
		if c.Verify(server, proof) {
			t.Errorf("the proof counts for %+v", c)
		}
	}
	for _, bad := range []string{"", " " + proof, proof[1:], proof + "A", "x"} {
		if session.Verify(server, bad) {
			t.Errorf("%q counts as a proof", bad)
		}
	}
}

func TestContext(t *testing.T) {
	s := wire.Session{RequesterKey: "k1", ResponderKey: "k2", Requester: "a@x/1", Responder: "b@x/2", Service: "pipe"}
	if got, want := string(s.Context()), "k1\x00k2\x00a@x/1\x00b@x/2\x00pipe"; got != want {
		t.Errorf("context %q, want %q", got, want)
	}
	s.Features = []string{"z", "a"}
	if got, want := string(s.Context()), "k1\x00k2\x00a@x/1\x00b@x/2\x00pipe\x00a z"; got != want {
		t.Errorf("context with features %q, want %q", got, want)
	}
}

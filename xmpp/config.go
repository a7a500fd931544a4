// Package xmpp logs in to an XMPP server, as a client (RFC 6120, RFC 6121) or
// as a component (XEP-0114), and stays logged in: the signalling that two
// machines, or they and a relay, need to find each other. It holds what this
// project needs, and no chat.
//
//	s, err := xmpp.Connect(ctx, &xmpp.Config{JID: account, Password: password})
//	…
//	defer s.Close()
//	answer, err := s.RoundTrip(ctx, stanza.IQ{Header: stanza.Header{To: peer}, Type: stanza.Get, Payload: question})
//
//	c, err := xmpp.NewComponent(&xmpp.ComponentConfig{Domain: domain, Secret: secret, Server: "127.0.0.1:5347"})
//
// # Security
//
// Nothing but a request for TLS is ever sent in clear. The server's certificate
// must be valid for the domain of the account, whatever address DNS or the user
// named, or must be the one that is pinned. The password itself is sent only
// inside TLS, and only to a server that offers no SCRAM; with SCRAM (RFC 5802,
// RFC 7677) both sides prove that they know it, bound to the TLS connection
// where the server says how (XEP-0440), so that nobody in the middle can
// use what he sees. An answer to an iq counts only from the address that was
// asked (RFC 6120, 8.1.2.1). The connection of a component is in clear; it
// proves the secret without sending it, and the server proves nothing.
//
// # Limits
//
// A stanza may have [MaxStanza] bytes; of one that is deeper or has more nodes
// than package stanza allows only the addresses are read. Each address gets 5 s to accept the connection and 20 s
// from there to the end of the login. A server that sends nothing for 60 s is
// asked for a sign of life and has 20 s to give it.
package xmpp

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// MaxStanza is the limit in bytes of one stanza from the server. A stanza that
// is too large ends the login, and strangers can send some; so it is more than
// servers let through (512 KiB), were each byte of that written as an entity. A
// roster is one stanza, too.
const MaxStanza = 4 << 20

// Timings of a session. They are not configurable: servers of every kind get
// along with them.
const (
	dialTimeout   = 5 * time.Second  // TCP, one address
	lookupTimeout = 10 * time.Second // both SRV questions
	loginTimeout  = 20 * time.Second // from the TCP connection to the end of the bind
	writeTimeout  = 20 * time.Second // one stanza
	closeTimeout  = 2 * time.Second  // from our closing tag to the server's

	idleTimeout = 60 * time.Second // without a stanza from the server: ping
	pongTimeout = 20 * time.Second // for any stanza after the ping
	probeTime   = 5 * time.Second  // the same, after the ping of Probe
	settleWait  = 5 * time.Second  // for the ping by which Resources knows that presences came

	// After a login, servers that serve each resource by itself tell of them
	// one by one, and not before the answer to a ping that came later
	// (ejabberd).
	presenceWait  = time.Second            // for the first presence of a contact
	presenceQuiet = 100 * time.Millisecond // without news, for the rest of them

	backoffMin   = time.Second
	backoffMax   = 2 * time.Minute
	backoffReset = time.Minute // a login that lived so long starts again at backoffMin
)

// Config says how to log in. It is read by [Connect] and must not be changed
// while that runs; afterwards it is of no more use to the Session.
type Config struct {
	// JID is the account. With a resourcepart, that resource is asked for;
	// without, the server picks one at each login.
	JID jid.JID
	// Password of the account.
	Password string
	// Server is a "host:port" to connect to. Whether it speaks TLS at once or
	// wants STARTTLS is found out. If empty, the SRV records _xmpps-client and
	// _xmpp-client of the domain say (RFC 6120, 3.2; XEP-0368); without
	// records, port 5222 of the domain.
	Server string
	// RootCAs are the authorities that may certify the server. A self-signed
	// certificate of the server may be among them. If nil, the system's.
	RootCAs *x509.CertPool
	// Pin is "sha256:" and the SHA-256 of the server's certificate in
	// hexadecimal, with or without colons. If not empty, this alone decides:
	// names, dates and issuers do not matter.
	Pin string
	// Dial opens TCP connections. If nil, a [net.Dialer] does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolver answers SRV questions. If nil, [net.DefaultResolver].
	Resolver Resolver
	// Features are announced by service discovery (XEP-0030) besides those of
	// this package.
	Features []string
	// Priority of the presence that is sent after login. Below 0, no chat
	// messages are routed to this resource (RFC 6121, 8.5.2.1.1).
	Priority int8
	// NoPresence leaves the presence to the first [Session.SendPresence], so
	// that a program can install its handlers before anybody knows of it.
	NoPresence bool
	// NoReconnect ends the Session with its first connection.
	NoReconnect bool
	// Trace is told what happens. If nil, nobody is.
	Trace *Trace

	hooks *hooks
}

// Resolver is the part of [net.Resolver] that is needed.
type Resolver interface {
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Trace holds hooks, each of which may be nil. They are called from several
// goroutines, must not block, and must not call [Session.Close].
type Trace struct {
	// Connected is called after each login with the address it gave.
	Connected func(addr jid.JID)
	// Disconnected is called when a login was lost, or closed.
	Disconnected func(err error)
	// Retrying is called before each wait for the next attempt to log in.
	Retrying func(err error, in time.Duration)
	// Element is called with each element sent or received, and the stream
	// headers, as XML. What SASL carries is blanked.
	Element func(sent bool, xml string)
}

func (t *Trace) connected(addr jid.JID) {
	if t != nil && t.Connected != nil {
		t.Connected(addr)
	}
}

func (t *Trace) disconnected(err error) {
	if t != nil && t.Disconnected != nil {
		t.Disconnected(err)
	}
}

func (t *Trace) retrying(err error, in time.Duration) {
	if t != nil && t.Retrying != nil {
		t.Retrying(err, in)
	}
}

// hooks replace what is random, so that a recorded session can be replayed.
type hooks struct {
	nonce func() string                // of SCRAM
	id    func() string                // of iqs
	wrap  func(conn net.Conn) net.Conn // around TCP, then around TLS
}

// check returns the pin of c, or nil, and says what is wrong with c.
func (c *Config) check() (pin []byte, err error) {
	if c.JID.Local() == "" {
		return nil, fmt.Errorf("%q is no account: an address like name@example.org is needed", c.JID)
	}
	if c.Pin == "" {
		return nil, nil
	}
	pin, err = parsePin(c.Pin)
	if err != nil {
		return nil, fmt.Errorf("certificate pin %.120q: %w", c.Pin, err)
	}
	return pin, nil
}

func parsePin(s string) ([]byte, error) {
	const prefix = "sha256:"
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return nil, errors.New("no sha256: at its beginning")
	}
	pin, err := hex.DecodeString(strings.ReplaceAll(s[len(prefix):], ":", ""))
	if err != nil {
		return nil, errors.New("is not hexadecimal")
	}
	if len(pin) != sha256.Size {
		return nil, fmt.Errorf("has %d bytes, a SHA-256 has %d", len(pin), sha256.Size)
	}
	return pin, nil
}

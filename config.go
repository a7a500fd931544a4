package dtcp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"net"
	"net/netip"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Signaling is what an [Endpoint] needs of an XMPP login: any XMPP library
// will do; this module's xmpp.Session is one that does. Its methods are called
// from several goroutines at once. If it also has a method Probe(), that is called
// when the machine may have come into another network, and must not block.
type Signaling interface {
	// LocalAddr returns the full JID of the newest login.
	LocalAddr() jid.JID

	// RoundTrip sends a question of type get or set, under an id of its own
	// making, and returns the answer. Only an answer from the address asked
	// counts (RFC 6120, 8.1.2.1). An answer of type error is returned as a
	// [*stanza.Error]. Other errors may be temporary: the login comes back.
	RoundTrip(context.Context, stanza.IQ) (stanza.IQ, error)

	// Send sends an iq that expects no answer: a result, or an error.
	Send(context.Context, stanza.IQ) error

	// HandleIQ has h called with every iq whose payload has this name and that
	// is no answer to a RoundTrip, errors among them, across logins, until stop.
	// h must not block.
	HandleIQ(payload xml.Name, h func(stanza.IQ)) (stop func())
}

// Config tells an [Endpoint] how to behave. The zero value works: it dials, by
// direct paths, and refuses everything incoming. A Config must not be changed
// once an Endpoint has it. The functions are called from several goroutines.
type Config struct {
	// Allow is asked about each incoming request, before any address of ours is
	// revealed and before any of the peer's is dialed (Section 5 of protocol.md).
	// nil lets the stream come about; an error refuses it. A [*stanza.Error] is
	// answered as it stands, any other as <forbidden/>. It may take its time,
	// to ask a user say: ctx ends after 3 minutes, or when the Endpoint is closed,
	// which waits for it. Up to 1,024 requests are asked about at once; who asks a
	// user should let few strangers wait. If nil, everything is refused.
	Allow func(ctx context.Context, r *Request) error

	// Paths says which paths may be taken to a peer. If nil, [Any].
	Paths func(peer jid.JID) PathPolicy

	// Certificate is presented to every peer, and its fingerprint announced. If
	// nil, one is made for the life of the Endpoint and announced as ephemeral.
	Certificate *tls.Certificate

	// VerifyPeer decides whether a peer, which has just proven that it holds the
	// key of the certificate whose fingerprint it announced, is the right one. It
	// is called once per stream, before the nomination, for which the other end
	// waits 30 s at the most. An error ends the attempt, and the peer is told that its
	// certificate was refused. If nil, the fingerprint signalled over XMPP is good
	// enough, that is, the XMPP servers are trusted.
	VerifyPeer func(Peer) error

	// Listen is the address to accept connections at, "host:port" with an IP
	// literal or nothing for the host. If empty, ":0": any address, any port.
	// With a loopback address, loopback addresses of peers are dialed, too.
	Listen string

	// Public is an address "ip:port" to advertise besides those found, such as
	// that of a port forwarded by hand. Port 0 means the listening port.
	Public string

	// Gateway has the gateways of the network asked to let peers in at the
	// listening port, by PCP, NAT-PMP and UPnP, for as long as the Endpoint lives.
	// If false, no packet is sent to any. Nor is one when Listen is a loopback
	// address, or Public says that somebody has seen to it.
	Gateway bool

	// DialRelay opens connections to relays where Network cannot, through a proxy
	// of the network's say; address is "host:port", as relays are named. It is
	// tried when a dial of Network's has failed, or has not succeeded for 300 ms.
	// It returns when ctx ends. Of a peer's relay address is an IP literal, which
	// may be dialed. If nil, there is no other way. Peers are never dialed by it.
	DialRelay func(ctx context.Context, network, address string) (net.Conn, error)

	// Relays are the relays, or XEP-0065 proxies, to ask for a lease, the best
	// first. If nil, those that the user's own server lists are found.
	Relays []jid.JID

	// NoRelay keeps the Endpoint from looking for relays, and from punching holes,
	// for which it needs them. Relays of peers are still dialed.
	NoRelay bool

	// AllowPlain says whether a peer that knows only XEP-0046 may have a stream,
	// which is encrypted at best and never authenticated. If nil, none may. A
	// peer that was ever seen to know more is not asked about, but refused.
	AllowPlain func(peer jid.JID) bool

	// Network opens the sockets. If nil, package net does.
	Network Network

	// Trace is told what happens. If nil, nobody is.
	Trace *Trace
}

// PathPolicy says which kinds of path may be taken to a peer.
type PathPolicy int

const (
	Any        PathPolicy = iota // the best there is
	DirectOnly                   // never through a relay
	RelayOnly                    // through a relay of ours alone: reveal no address of ours, dial none of the peer's
)

// Request is an incoming wish for a stream, as [Config].Allow sees it.
type Request struct {
	From    jid.JID // as the XMPP server stamped it
	Service string  // what the peer wants; "" from a stock peer
	Stock   bool    // the peer knows XEP-0046 only: no authentication, encryption at best

	Files int64 // number of files, -1 if the peer did not say
	Bytes int64 // their size, -1 if the peer did not say

	Fingerprint Fingerprint // of the certificate that the peer will present
	Ephemeral   bool        // that certificate is made for one process

	// Stranger may be set by Allow when it lets in somebody whom it does not
	// know: such a peer gets 2 sessions at once in place of 32, and none of its
	// private addresses is dialed.
	Stranger bool
}

// Peer is the other end of a stream, as [Config].VerifyPeer sees it.
type Peer struct {
	JID         jid.JID
	Fingerprint Fingerprint
	Ephemeral   bool
	Certificate *x509.Certificate // the leaf, whose hash is Fingerprint; nothing else of it was checked
}

// Network opens sockets. Its connections should have the methods CloseWrite
// and SetLinger of [*net.TCPConn]. A Network that has the method LookupNetIP of
// [*net.Resolver] is asked for the addresses of relays, else
// [net.DefaultResolver] is. Methods are called from several goroutines.
type Network interface {
	// Listen accepts connections at local. The zero Addr stands for all of the
	// host's addresses of both families, port 0 for any free one.
	Listen(ctx context.Context, local netip.AddrPort) (net.Listener, error)

	// Dial connects to remote, from local if that is valid.
	Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error)

	// Addrs returns the addresses of the host that are worth offering to a peer,
	// best first.
	Addrs() ([]netip.Addr, error)
}

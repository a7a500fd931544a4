// Package dtcp makes reliable, encrypted byte streams between two XMPP
// addresses. One iq round trip between the peers says where each can be
// reached; then both dial at once, and the first connection over which the two
// have proven themselves to each other becomes a [net.Conn].
//
//	endpoint, err := dtcp.NewEndpoint(session, &dtcp.Config{})
//	…
//	conn, err := endpoint.Dial(ctx, peer, "pipe")
//
// and at the other end
//
//	endpoint, err := dtcp.NewEndpoint(session, &dtcp.Config{Allow: allow})
//	…
//	conn, err := endpoint.Accept(ctx)
//
// It does not matter who asks and who can be reached: one side that can accept
// a connection is enough. The wire protocol is DTCP (XEP-0046) with a session
// extension; doc/protocol.md describes both, and comments here refer to its
// sections.
//
// # Security
//
// A stream between two peers that know the extension runs in TLS 1.3 from end
// to end. Each presents the certificate whose SHA-256 fingerprint it announced
// over XMPP; the nomination that begins the stream proves that both mean the
// same addresses, keys and service, on this very connection. So nobody on the
// network, and nobody who forwards the signalling of others, can read or alter
// a stream or take part in one. The XMPP servers of the two users can: they
// could announce fingerprints of their own at the first contact. Who does not
// trust them remembers fingerprints in [Config].VerifyPeer, and compares a
// [Phrase] by voice.
//
// Nothing incoming is accepted unless [Config].Allow says so, which is asked
// before any address of this end is revealed. Peers that know only XEP-0046
// are refused unless [Config].AllowPlain says otherwise: such streams are
// encrypted at best and never authenticated.
//
// # Limits
//
// An attempt to form a stream ends after 30 s. At most 32 negotiations with one
// peer and 1,024 in all are under way at once, and 128 streams wait for
// [Endpoint.Accept]. This version forms direct paths only.
package dtcp

package dtcp

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// CandidateType says where an address comes from (Section 2 of protocol.md).
type CandidateType string

const (
	Host      CandidateType = "host"      // an interface of the machine
	Mapped    CandidateType = "mapped"    // opened on a gateway, by protocol or by hand
	Reflexive CandidateType = "reflexive" // a port as the outside sees it
	Relay     CandidateType = "relay"     // a DTCP relay
	Proxy     CandidateType = "proxy"     // an XEP-0065 proxy
	Stock     CandidateType = "stock"     // a <host/> of XEP-0046: no more is known
)

// direct reports whether a connection to the candidate ends at the peer.
func (t CandidateType) direct() bool { return t != Relay && t != Proxy }

// Candidate is an address at which a peer may be reached.
type Candidate struct {
	Type CandidateType
	Addr netip.AddrPort // not valid when Name is set
	Name string         // DNS name of a relay or proxy, else ""
	Port uint16         // with Name
	JID  jid.JID        // of a proxy
	SID  string         // of a proxy
}

// String returns type and address, "host 192.0.2.1:5000".
func (c Candidate) String() string { return string(c.Type) + " " + c.address() }

func (c Candidate) address() string {
	if c.Name != "" {
		return net.JoinHostPort(c.Name, strconv.Itoa(int(c.Port)))
	}
	return c.Addr.String()
}

// Path is a connection over which the peer has proven itself.
type Path struct {
	Kind        CandidateType  // type of the listener's candidate, the same word on both ends
	Dialed      bool           // this end opened the connection
	Local       netip.AddrPort // of the socket
	Remote      netip.AddrPort // of the socket
	Relay       string         // the relay's address, "" on a direct path
	Fingerprint Fingerprint    // of the peer's certificate; zero on a stock path
	Encrypted   bool           // false only on a stock path without starttls
	Setup       time.Duration  // from the iq-set sent or received to the stream
}

// Reasons for which a candidate of the peer's is not dialed.
var (
	errUnusable   = errors.New("not dialed: no address of one host")
	errLoopback   = errors.New("not dialed: a loopback address")
	errOwnAddress = errors.New("not dialed: the address at which this end listens")
	errPort       = errors.New("not dialed: a port below 1024 other than 443")
	errPrivate    = errors.New("not dialed: a private address of a stranger")
	errPolicy     = errors.New("not dialed: the path policy forbids it")
	errOtherRelay = errors.New("not dialed: only relayed streams are wanted, and this relay is the peer's, which could run it to learn our address")
)

// dialRules decide which of a peer's candidates may be dialed (Section 4 of
// protocol.md, last but one item): a peer must not be able to point us at
// services of our own, of our network or of a third party.
type dialRules struct {
	policy   PathPolicy
	loopback bool                      // loopback addresses are allowed: we listen at one
	private  bool                      // private ranges are allowed: the peer is no stranger
	own      func(netip.AddrPort) bool // reports the listening addresses of this end
	lent     func(Candidate) bool      // reports the addresses of relays of our own; nil: there are none
}

// ours reports whether c is a relay of our own, which no peer has chosen.
func (r dialRules) ours(c Candidate) bool {
	return !c.Type.direct() && r.lent != nil && r.lent(c)
}

// check returns nil if c may be dialed, else the reason why not. What a name
// means is for checkAddr, unless the relay is our own.
func (r dialRules) check(c Candidate) error {
	switch {
	case r.policy == RelayOnly && c.Type.direct(), r.policy == DirectOnly && !c.Type.direct():
		return errPolicy
	case r.policy == RelayOnly && !r.ours(c):
		return errOtherRelay
	}
	port := c.Port
	if c.Name == "" {
		port = c.Addr.Port()
	}
	switch {
	case r.ours(c):
		return nil
	case port < 1024 && port != 443:
		return errPort
	case c.Name != "":
		return nil
	}
	return r.checkAddr(c.Addr)
}

func (r dialRules) checkAddr(at netip.AddrPort) error {
	addr := at.Addr()
	switch {
	case addr.IsUnspecified(), addr.IsMulticast(), addr.IsLinkLocalUnicast(), !addr.IsValid(),
		thisNetwork.Contains(addr), reserved.Contains(addr):
		return errUnusable
	case addr.IsLoopback() && !r.loopback:
		return errLoopback
	case r.own(at):
		return errOwnAddress
	case !r.private && private(addr):
		return errPrivate
	}
	return nil
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")     // RFC 6890: "this host on this network"
	reserved    = netip.MustParsePrefix("240.0.0.0/4")   // RFC 6890, with the broadcast address
	shared      = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: carriers' NATs
)

// private reports whether addr belongs to somebody's own network.
func private(addr netip.Addr) bool { return addr.IsPrivate() || shared.Contains(addr) }

// listenerKind returns the type of the candidate, of those that this end
// offered, by which a connection from remote came in at local. The dialer knows
// it; the listener infers: a connection from the outside to a private address
// was mapped, if a mapping was offered, for a private address cannot be dialed
// from there.
func listenerKind(offered []Candidate, local, remote netip.AddrPort) CandidateType {
	mapped := slices.IndexFunc(offered, func(c Candidate) bool { return c.Type == Mapped }) >= 0
	outside := !private(remote.Addr()) && !remote.Addr().IsLoopback()
	host := slices.IndexFunc(offered, func(c Candidate) bool { return c.Type == Host && c.Addr == local }) >= 0
	if mapped && (!host || (outside && private(local.Addr()))) {
		return Mapped
	}
	return Host
}

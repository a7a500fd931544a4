package main

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/dtcp-relay/dtcp"
)

// carriers is the range of addresses behind carriers' NATs (RFC 6598).
var carriers = netip.MustParsePrefix("100.64.0.0/10")

// isPublic reports whether a candidate is an address of this machine's own that
// belongs to the Internet.
func isPublic(c dtcp.Candidate) bool {
	addr := c.Addr.Addr()
	return c.Type == dtcp.Host && addr.IsGlobalUnicast() && !addr.IsPrivate() && !carriers.Contains(addr)
}

// prospect says in one sentence how peers can reach this machine.
func prospect(r dtcp.Report, o *options) string {
	offers := func(kinds ...dtcp.CandidateType) bool {
		return slices.ContainsFunc(r.Candidates, func(c dtcp.Candidate) bool { return slices.Contains(kinds, c.Type) })
	}
	relayed := offers(dtcp.Relay, dtcp.Proxy)
	public := slices.ContainsFunc(r.Candidates, isPublic)
	behind := slices.ContainsFunc(r.Gateways, func(g dtcp.Gateway) bool { return g.Private })
	switch {
	case o.relayOnly:
		return "peers reach this machine through the relay alone, because of --relay-only"
	case offers(dtcp.Mapped) && !behind:
		return "peers can dial this machine at the address that its gateway opens, or that --public names"
	case public:
		return "peers can dial this machine, unless a firewall is in between"
	case offers(dtcp.Reflexive) && relayed:
		return "peers can reach this machine through a hole in its NAT where their own allows that, and through the relay"
	case offers(dtcp.Reflexive):
		return "peers can reach this machine through a hole in its NAT where their own allows that; with a relay, all could"
	case relayed:
		return "peers that cannot be dialed themselves reach this machine through the relay, or from its own network"
	}
	return "only peers that can be dialed, or have a relay, are reached from here, and those of the same network; " + howToOpen(r, o)
}

// howToOpen says what would let peers in here.
func howToOpen(r dtcp.Report, o *options) string {
	works := slices.ContainsFunc(r.Gateways, func(g dtcp.Gateway) bool { return g.State == "works" && !g.Private })
	behind := r.NAT.DoubleNAT || slices.ContainsFunc(r.Gateways, func(g dtcp.Gateway) bool { return g.Private })
	switch {
	case behind:
		return "the router here is itself behind a NAT, of the carrier perhaps, so that what it opens is not reached from outside: IPv6, or an address of one's own, would help"
	case len(r.Gateways) == 0 && !o.gateway() && !o.relayOnly:
		return "leave out --no-gateway, so that the router is asked to let peers in"
	case works:
		return "the router here lets peers in, but they do not get that far: a firewall may be in between"
	}
	return "enable PCP or UPnP on the router here, or forward a TCP port by hand and name it by --port and --public"
}

// advice says in one sentence what would make a better path than the one that
// was taken to a peer that offered candidates of these types; "" if it is direct.
func advice(r dtcp.Report, kind dtcp.CandidateType, theirs map[dtcp.CandidateType]bool, o *options) string {
	if kind != dtcp.Relay && kind != dtcp.Proxy {
		return ""
	}
	random := !r.NAT.Punchable && strings.HasPrefix(r.NAT.Mapping, "address")
	known := theirs[dtcp.Reflexive] || theirs[dtcp.Mapped]
	direct := known || theirs[dtcp.Host]
	switch {
	case o.relayOnly:
		return "the path is a relay because of --relay-only"
	case !direct:
		return "the peer offers a relay alone, as with --relay-only, or towards strangers"
	case random && !known:
		return "both NATs choose random ports; enable PCP or UPnP on one router"
	case random:
		return "the NAT here chooses random ports: " + howToOpen(r, o)
	case !known && r.NAT.Mapping != "unknown":
		return "the NAT of the peer chooses random ports, or nobody there could see how: enable PCP or UPnP on its router"
	case !known:
		return "neither side knows how its NAT looks from outside: " + howToOpen(r, o)
	}
	if r.NAT.Mapping != "none" {
		return "nothing gets in at the ports that were seen from outside, as where a NAT chooses random ones: " + howToOpen(r, o)
	}
	return "a firewall between the two lets neither in: open a TCP port at one end, and name it by --port"
}

// filtering says what is known of what a NAT or firewall lets in here, in the words
// of RFC 4787, 5, and RFC 5382, 4.3. It takes a peer that dials: path is what came of
// that, nil if nothing did.
func filtering(r dtcp.Report, path *dtcp.Path, o *options) string {
	if path != nil && !path.Dialed && path.Kind == dtcp.Host && !path.Remote.Addr().IsPrivate() && !path.Remote.Addr().IsLoopback() {
		return "endpoint-independent" // nothing was ever sent from there
	}
	public := slices.ContainsFunc(r.Candidates, isPublic)
	if public && !o.relayOnly && (path == nil || path.Relay != "") {
		return "address-dependent, or address and port-dependent" // the peer could have dialed, and did not get through
	}
	return "unknown"
}

package dtcp

import (
	"net/netip"

	"github.com/dtcp-relay/dtcp/internal/gather"
	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Report is what an Endpoint has found out about the network that it is in, for
// people who want to know why a path was taken. It is a copy.
type Report struct {
	// Candidates are what is offered to peers, best first. The reflexive ones are
	// those of the punch ports that wait for a session.
	Candidates []Candidate

	// Relay is the relay that lends us an address, or the XEP-0065 proxy that we
	// use in its place; zero if there is none, and then RelayErr may say why.
	Relay    jid.JID
	Proxy    bool // Relay knows XEP-0065 alone
	RelayErr error

	NAT      NAT
	Gateways []Gateway // what became of the ways to ask a gateway, in order of preference; none if it was not asked
}

// NAT is what stands between this machine and the Internet, for IPv4, as far as
// relays and STUN servers could tell.
type NAT struct {
	// Mapping is how external ports are chosen, in the words of RFC 4787, 4.1, and
	// RFC 5382, 4.1: endpoint-independent, address-dependent or
	// address-and-port-dependent; none if there is no NAT, unknown if too little
	// was seen.
	Mapping string

	PortPreserving bool // the external port is the local one
	Step           int  // between ports assigned one after the other; 0: they have no order
	DoubleNAT      bool // a gateway gave us an address that is not the one seen from outside
	Punchable      bool // a peer can know the port that our dials come from

	Observed []Observation
}

// Observation is how one server saw a connection of ours.
type Observation struct {
	Local  netip.AddrPort
	Server netip.AddrPort
	Seen   netip.AddrPort
}

// Gateway is what became of one way to ask a gateway for a mapping.
type Gateway struct {
	Method   string         // "PCP", "NAT-PMP", "UPnP" or "pinhole", the last for IPv6
	State    string         // "works", "failed", "pending", or "unneeded" when another one works
	Addr     netip.Addr     // of the gateway
	External netip.AddrPort // where peers can dial, when it works
	Private  bool           // that is no address on the Internet: there is a further NAT
	Detail   string         // what kind of gateway; may be empty. It has no control characters
	Err      error          // why it failed
}

// Report returns what is known at this moment; see [Endpoint.Ready].
func (e *Endpoint) Report() Report {
	known := e.relays.current()
	r := Report{Candidates: e.candidates(Any, known, e.punching.waiting(), ""), RelayErr: known.err}
	switch {
	case known.lease != nil:
		r.Relay = known.lease.relay
	case known.proxy != nil:
		r.Relay, r.Proxy = known.proxy.jid, true
	}
	var external netip.Addr
	if e.mapper != nil {
		report, _ := e.mapper.Report()
		for _, m := range report.Results {
			r.Gateways = append(r.Gateways, Gateway{
				Method: m.Method.String(), State: m.State.String(), Addr: m.Gateway, External: m.External,
				Private: m.DoubleNAT(), Detail: m.Detail, Err: m.Err,
			})
			if m.State == portmap.Works && m.External.Addr().Is4() && !external.IsValid() {
				external = m.External.Addr()
			}
		}
	}
	r.NAT = e.punching.nature(external)
	return r
}

// waiting returns the port that a session would get now; nil if none is ready.
func (p *punchPorts) waiting() *punchPort {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return nil
	}
	return p.free[len(p.free)-1]
}

// nature returns what was learned of the NAT; external is what a gateway calls
// our address, or invalid.
func (p *punchPorts) nature(external netip.Addr) NAT {
	n := NAT{Mapping: gather.MappingUnknown.String()}
	if p == nil {
		return n
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.seen {
		n.Observed = append(n.Observed, Observation(o))
	}
	if len(p.seen) > 0 {
		b := gather.Classify(p.seen, external)
		n.Mapping, n.PortPreserving, n.Step = b.Mapping.String(), b.PortPreserving, b.Step
		n.DoubleNAT, n.Punchable = b.DoubleNAT, b.Punchable()
	}
	return n
}

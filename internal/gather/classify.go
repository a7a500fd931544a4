package gather

import (
	"net/netip"
	"slices"
)

// Mapping is how a NAT chooses the external port of a local one, in the words of
// RFC 4787, 4.1, which RFC 5382 takes over for TCP.
type Mapping uint8

// The mapping behaviours, from what is easiest to reach to what is hardest.
const (
	MappingUnknown          Mapping = iota // too little was observed
	NoMapping                              // addresses and ports are not changed: no NAT
	EndpointIndependent                    // one external port for all peers
	AddressDependent                       // another for each peer's address
	AddressAndPortDependent                // another for each peer's address and port
)

// String is the RFC's word.
func (m Mapping) String() string {
	return [...]string{"unknown", "none", "endpoint-independent", "address-dependent", "address-and-port-dependent"}[m]
}

// An Observation is what one server saw of a connection that we made to it.
type Observation struct {
	Local  netip.AddrPort // ours, as the connection has it
	Server netip.AddrPort
	Seen   netip.AddrPort // ours, as the server saw it
}

// Behaviour is what stands between this machine and the Internet, for one
// address family.
type Behaviour struct {
	Mapping Mapping
	// PortPreserving: the external port is the local one wherever observed.
	PortPreserving bool
	// SeveralAddresses: the NAT has more than one external address, and does not
	// stay with one (RFC 4787, 4.1, "arbitrary" pooling).
	SeveralAddresses bool
	// Step is the distance of the ports that it assigns one after the other;
	// zero if no order is seen. See [Predict].
	Step int
	// DoubleNAT: the gateway's external address is not the one that servers see.
	DoubleNAT bool
}

// Punchable reports whether a peer can know the external port ahead.
func (b Behaviour) Punchable() bool {
	return b.Mapping == NoMapping || b.Mapping == EndpointIndependent || b.Step != 0
}

// Classify says what observations, in the order in which the connections were
// made, and all of one address family, tell about the NAT. To tell its mapping
// behaviour takes one local port that two servers of different addresses saw;
// to tell the two dependent kinds apart, a server that saw it at two of its own
// ports. Where that is missing, the worse is assumed: it matters to nobody who
// has one address. The gateway is the external address that a gateway mapping
// has, or invalid.
//
// How the NAT filters what comes in (RFC 4787, 5) cannot be observed this way:
// no server of ours dials.
func Classify(seen []Observation, gateway netip.Addr) Behaviour {
	if len(seen) == 0 {
		return Behaviour{}
	}
	b := Behaviour{PortPreserving: true}
	var ports []uint16
	unchanged := true
	for i, o := range seen {
		unchanged = unchanged && o.Seen == o.Local
		b.PortPreserving = b.PortPreserving && o.Seen.Port() == o.Local.Port()
		b.SeveralAddresses = b.SeveralAddresses || o.Seen.Addr() != seen[0].Seen.Addr()
		b.DoubleNAT = b.DoubleNAT || gateway.IsValid() && o.Seen.Addr() != gateway
		if !slices.Contains(ports, o.Seen.Port()) {
			ports = append(ports, o.Seen.Port())
		}
		for _, p := range seen[:i] {
			b.Mapping = max(b.Mapping, compare(p, o))
		}
	}
	if b.Mapping == AddressDependent && !askedTwoPorts(seen) {
		b.Mapping = AddressAndPortDependent
	}
	if unchanged {
		return Behaviour{Mapping: NoMapping, PortPreserving: true}
	}
	if !b.PortPreserving {
		b.Step = step(ports)
	}
	return b
}

// compare says what two observations show together: the least that is possible.
func compare(a, b Observation) Mapping {
	switch {
	case a.Local != b.Local || a.Server == b.Server:
		return MappingUnknown
	case a.Server.Addr() == b.Server.Addr() && a.Seen == b.Seen:
		return MappingUnknown // anything but address-and-port-dependent
	case a.Server.Addr() == b.Server.Addr():
		return AddressAndPortDependent
	case a.Seen == b.Seen:
		return EndpointIndependent
	}
	return AddressDependent
}

// askedTwoPorts reports whether one local port was seen by one server at two of
// the server's own.
func askedTwoPorts(seen []Observation) bool {
	for i, o := range seen {
		for _, p := range seen[:i] {
			if o.Local == p.Local && o.Server.Addr() == p.Server.Addr() && o.Server != p.Server {
				return true
			}
		}
	}
	return false
}

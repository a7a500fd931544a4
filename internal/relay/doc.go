// Package relay lends peers an address at which they can be dialed (Section 3
// of protocol.md). It is also the XEP-0065 proxy of its domain, on the same
// port.
//
//	r, err := relay.New(relay.Config{Domain: domain, Keys: keys, Node: "a", Hosts: hosts, Rules: rules})
//	go r.Serve(listener)             // legs and proxy connections
//	answer := r.Answer(iq)           // leases, disco, activation: iqs to the component
//	remaining := r.Drain(ctx)        // let streams end
//	r.Close()
//
// A listener's leg arrives and says serve: with a claim to a lease, a dialer's
// says key:, in either order. When both are there for one key they are joined:
// every byte of the dialer from its key line on is passed on, and from then on
// the relay copies. It never dials anyone.
//
// # Security
//
// Who may have a lease is decided by [Access]; with the zero value nobody. The
// lease is sealed and its owner proves with every leg that he knows its secret,
// so no state is shared between the component and the ports, or between nodes.
// A dialer proves nothing but that he knows the key. The relay sees addresses,
// times and amounts; peers encrypt between themselves, and what it could do to a
// stream is cut it.
//
// # Limits
//
// Everything that strangers can cause is bounded by [Limits]: for each address
// (an IPv4 address, or an IPv6 /64), for each owner (a bare JID), and in total.
// A leg is bounded in time until it is joined. What a limit refuses has a reason,
// which is told to the peer, to [Config].Refused and in [Stats].
package relay

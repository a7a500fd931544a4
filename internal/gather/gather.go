// Package gather finds what a machine can offer to be dialed at, and says what
// stands between it and its peers.
//
// [System] and [HostAddrs] give the addresses of its interfaces, and a [Watcher]
// says when they may have changed. What a NAT makes of a port is observed by a
// relay or by a STUN server (package stun); [Classify] names it, and [Predict]
// says which port is next. Package portmap asks gateways for mappings.
//
// This package sends nothing: [System] asks the operating system, the rest is
// pure.
package gather

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Interface is a network interface as far as gathering cares.
type Interface struct {
	Name     string
	Up       bool
	Loopback bool
	Addrs    []Addr
}

// Addr is an address of an interface.
type Addr struct {
	netip.Addr

	// Temporary addresses change by the day, so that their owner cannot be
	// followed by them (RFC 8981).
	Temporary bool
	// Deprecated addresses are still valid, but not for what is new: they were
	// replaced, or their network is about to go (RFC 4862, 5.5.4).
	Deprecated bool
	// Unusable addresses are not known to be unique yet, or known not to be.
	Unusable bool
}

// HostAddrs picks the addresses worth offering, best first: IPv6 global, IPv4
// public, IPv4 private, IPv6 of a private network (Section 2 of protocol.md).
// Left out are loopback and link-local addresses, interfaces that are down, and
// the bridges that containers and virtual machines live behind: no peer can
// reach those, and their addresses are the same on every machine.
//
// Where an interface has temporary addresses in a network, its stable ones of
// that network are left out (RFC 8445, 5.1.1.1, for the sake of privacy). That
// is also what works: the system dials from the temporary address (RFC 6724,
// section 5, rule 7), so that is the one for which a firewall lets the peer in.
// A temporary address is valid for days after it was replaced, longer than an
// offer. Deprecated addresses are left out where the interface has another of
// the same kind (rule 3).
func HostAddrs(interfaces []Interface) []netip.Addr {
	var found []netip.Addr
	for _, i := range interfaces {
		if !i.Up || i.Loopback || bridge(i.Name) {
			continue
		}
		for _, a := range i.Addrs {
			if plain := a.plain(); a.offered(i.Addrs) && !slices.Contains(found, plain) {
				found = append(found, plain)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b netip.Addr) int { return rank(a) - rank(b) })
	return found
}

// plain returns the address as a peer is told it.
func (a Addr) plain() netip.Addr { return a.Unmap().WithZone("") }

// offered reports whether an address is to be offered, given all of its
// interface.
func (a Addr) offered(all []Addr) bool {
	plain := a.plain()
	if a.Unusable || !plain.IsGlobalUnicast() || translation.Contains(plain) {
		return false
	}
	better := func(b Addr) bool {
		if b.Unusable || b.Deprecated || b.Is4() != a.Is4() {
			return false
		}
		sameNetwork := network(b.Addr) == network(a.Addr)
		return a.Deprecated && rank(b.plain()) == rank(plain) || b.Temporary && !a.Temporary && sameNetwork
	}
	return !slices.ContainsFunc(all, better)
}

// network returns the IPv6 network of an address, whose interfaces have 64 bits
// (RFC 4291, 2.5.1).
func network(a netip.Addr) netip.Prefix {
	p, _ := a.WithZone("").Prefix(64) // fails for IPv4, which has no temporary addresses
	return p
}

// translation is the range for what turns IPv4 into IPv6 within one machine (RFC
// 7335).
var translation = netip.MustParsePrefix("192.0.0.0/29")

// rank orders addresses by how likely a peer anywhere can use them.
func rank(a netip.Addr) int {
	switch {
	case a.Is6() && !a.IsPrivate():
		return 0
	case a.Is4() && !a.IsPrivate() && !shared.Contains(a):
		return 1
	case a.Is4():
		return 2
	default:
		return 3
	}
}

// shared is the range of carriers' NATs (RFC 6598), which overlay networks use,
// too.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// bridges are the prefixes of the names that container and virtual machine
// software gives to bridges on the host and to the legs that lead there.
var bridges = []string{"docker", "br-", "veth", "virbr", "vnet", "vmnet", "vboxnet", "lxcbr", "lxdbr", "cni", "flannel", "podman", "cali"}

func bridge(name string) bool {
	return slices.ContainsFunc(bridges, func(p string) bool { return strings.HasPrefix(name, p) })
}

// System returns the interfaces of this machine, and sends nothing.
func System() ([]Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("gather: listing the network interfaces: %w", err)
	}
	var found []Interface
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		in := Interface{Name: i.Name, Up: i.Flags&net.FlagUp != 0, Loopback: i.Flags&net.FlagLoopback != 0}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				in.Addrs = append(in.Addrs, Addr{Addr: prefix.Addr()})
			}
		}
		found = append(found, in)
	}
	markIPv6(found)
	return found, nil
}

// Package gather finds what a machine can offer to be dialed at: the addresses
// of its interfaces. (Gateway mappings and punch ports will join them here.)
//
// [HostAddrs] is pure; [System] asks the operating system and sends nothing.
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
	Addrs    []netip.Addr
}

// HostAddrs picks the addresses worth offering, best first: IPv6 global, IPv4
// public, IPv4 private, IPv6 of a private network (Section 2 of protocol.md).
// Left out are loopback and link-local addresses, interfaces that are down, and
// the bridges that containers and virtual machines live behind: no peer can
// reach those, and their addresses are the same on every machine.
func HostAddrs(interfaces []Interface) []netip.Addr {
	var found []netip.Addr
	for _, i := range interfaces {
		if !i.Up || i.Loopback || bridge(i.Name) {
			continue
		}
		for _, a := range i.Addrs {
			a = a.Unmap().WithZone("")
			if a.IsGlobalUnicast() && !slices.Contains(found, a) {
				found = append(found, a)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b netip.Addr) int { return rank(a) - rank(b) })
	return found
}

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

// System returns the interfaces of this machine.
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
				in.Addrs = append(in.Addrs, prefix.Addr())
			}
		}
		found = append(found, in)
	}
	return found, nil
}

//go:build !linux

package gather

import (
	"net"
	"net/netip"
)

// somewhere is an address on the Internet, that of a root name server. Nothing
// is sent there.
var somewhere = netip.MustParseAddrPort("[2001:503:ba3e::2:30]:53")

// markIPv6 marks as temporary the address that the system would dial from. It
// chooses by RFC 6724, among temporary and deprecated ones, too, and tells its
// choice to whoever connects a UDP socket, which sends nothing. The others of
// that network are then left out.
func markIPv6(interfaces []Interface) {
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(somewhere))
	if err != nil {
		return // no IPv6
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return
	}
	for _, i := range interfaces {
		for n := range i.Addrs {
			i.Addrs[n].Temporary = i.Addrs[n].WithZone("") == local.AddrPort().Addr().WithZone("")
		}
	}
}

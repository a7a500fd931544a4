package portmap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/libp2p/go-netroute"
)

// A Gateway is where the default route of one address family leads. Two that
// are equal are the same network, as far as can be told from here.
type Gateway struct {
	Addr   netip.Addr     // of the gateway; an IPv6 address may have a zone
	Source netip.Addr     // ours, towards the Internet, of the same family
	PCP    netip.AddrPort // where PCP and NAT-PMP are asked

	// Search is where UPnP devices are searched; invalid ones are left out.
	Search [2]netip.AddrPort
	// Announce is the multicast group at which the gateway says that it has
	// restarted (RFC 6887, 14.1; RFC 6886, 3.2.1). If invalid, nobody listens.
	Announce netip.AddrPort
}

// The fixed addresses of the protocols.
const (
	portServer = 5351 // RFC 6886, 8; RFC 6887, 19.1
	portClient = 5350
	portSSDP   = 1900
)

var (
	groupSSDP   = netip.MustParseAddr("239.255.255.250") // UPnP Device Architecture, 1.3.2
	groupHosts4 = netip.MustParseAddr("224.0.0.1")
	groupHosts6 = netip.MustParseAddr("ff02::1")
)

// somewhere are addresses on the Internet, those of a root name server. The
// routes to them are looked up; nothing is sent there.
var somewhere = []netip.Addr{netip.MustParseAddr("198.41.0.4"), netip.MustParseAddr("2001:503:ba3e::2:30")}

// DefaultGateways asks the operating system for the gateways of IPv4 and IPv6,
// and sends nothing. One that is missing is left out. The error says why there
// is none at all.
func DefaultGateways() ([]Gateway, error) {
	router, err := netroute.New()
	if err != nil {
		return nil, fmt.Errorf("reading the routing table: %w", err)
	}
	var found []Gateway
	for _, destination := range somewhere {
		link, via, from, routeErr := router.Route(net.IP(destination.AsSlice()))
		gateway, ok := netip.AddrFromSlice(via)
		source, sourceOK := netip.AddrFromSlice(from)
		if routeErr != nil || !ok || !sourceOK || gateway.IsUnspecified() {
			err = errors.Join(err, routeErr)
			continue
		}
		zone := ""
		if link != nil {
			zone = link.Name
		}
		found = append(found, newGateway(gateway.Unmap(), source.Unmap(), zone))
	}
	if len(found) == 0 {
		return nil, errors.Join(errors.New("there is no default gateway"), err)
	}
	return found, nil
}

// newGateway fills in where a gateway is asked. The zone is the network
// interface it is on.
func newGateway(gateway, source netip.Addr, zone string) Gateway {
	announce := groupHosts4
	if gateway.Is6() {
		announce = groupHosts6.WithZone(zone)
		if gateway.IsLinkLocalUnicast() {
			gateway = gateway.WithZone(zone)
		}
	}
	g := Gateway{
		Addr: gateway, Source: source,
		PCP:      netip.AddrPortFrom(gateway, portServer),
		Announce: netip.AddrPortFrom(announce, portClient),
	}
	if gateway.Is4() {
		// Version 1.1 of the architecture knows a search by unicast, whose
		// answer passes firewalls that drop the answer to a multicast.
		g.Search = [2]netip.AddrPort{netip.AddrPortFrom(groupSSDP, portSSDP), netip.AddrPortFrom(gateway, portSSDP)}
	}
	return g
}

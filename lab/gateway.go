//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Mapping is what a gateway makes of the source addresses of IPv4 (RFC 5382,
// Section 4.1).
type Mapping int

const (
	Routed   Mapping = iota // nothing: its hosts have public addresses
	Preserve                // its own address, the port kept: endpoint-independent
	Random                  // its own address, a random port for each connection: address and port-dependent
	Sequence                // its own address, the next port for each connection
)

// Rules are what a gateway does. The zero value routes, and drops what nobody
// behind it has asked for: a stateful firewall.
type Rules struct {
	Mapping  Mapping
	Refuse   bool     // answer an RST to what is not let in
	Open     bool     // let everything in over IPv4; a gateway that maps passes it to its first host
	Open6    bool     // let everything in over IPv6
	Hairpin  bool     // its hosts reach each other at the public ports that they have (RFC 5382, REQ-8); needs Preserve
	Isolated bool     // its hosts do not reach each other at their own addresses
	Carrier  bool     // its hosts are gateways, on addresses shared by many (RFC 6598)
	Forward  []uint16 // public ports that are passed to its first host
	Out      string   // what is let out: an expression of nft, "tcp dport 443"; empty: everything
	UPnP     bool     // with [Gateway.MiniUPnPD]: hosts may ask for mappings
}

// A Gateway stands between the internet, or another gateway, and its hosts. Its
// interfaces are wan and lan.
type Gateway struct {
	Namespace
	V4, V6 netip.Addr // of wan; V6 is invalid behind another gateway
	LAN    netip.Addr // of lan, IPv4

	internet *Internet
	rules    Rules
	lan6     netip.Addr
	members  []netip.Addr // of IPv4
	cables   int
	last     netip.Addr // address given out, of IPv4
	last6    netip.Addr
}

// Gateway puts a gateway on the internet.
func (i *Internet) Gateway(name string, rules Rules) *Gateway {
	g := &Gateway{}
	var cable int
	i.node(&g.Namespace, name)
	g.V4, g.V6, cable = i.attach(&g.Namespace, "wan", Dual)
	network := netip.AddrFrom4([4]byte{11, 1, byte(cable), 0})
	network6 := netip.MustParseAddr(fmt.Sprintf("2a11:1:%x::", cable))
	fmt.Fprintf(&i.lines, "route add %s/64 via %s\n", network6, g.V6)
	if rules.Mapping == Routed {
		fmt.Fprintf(&i.lines, "route add %s/24 via %s\n", network, g.V4)
	}
	g.init(i, rules, network, network6)
	return g
}

// Gateway puts a gateway behind another. It speaks IPv4 only.
func (g *Gateway) Gateway(name string, rules Rules) *Gateway {
	inner := &Gateway{}
	g.internet.node(&inner.Namespace, name)
	inner.V4, _ = g.attach(&inner.Namespace, "wan", V4)
	inner.init(g.internet, rules, netip.Addr{}, netip.Addr{})
	return inner
}

// Host puts a host behind the gateway.
func (g *Gateway) Host(name string, family Family) *Host {
	h := &Host{Gate: g}
	g.internet.node(&h.Namespace, name)
	h.V4, h.V6 = g.attach(&h.Namespace, "eth0", family)
	return h
}

// init gives the gateway its network and rules. The private addresses are the
// same in every home, as they are outside of laboratories.
func (g *Gateway) init(i *Internet, rules Rules, network, network6 netip.Addr) {
	g.internet, g.rules, g.route = i, rules, true
	switch {
	case rules.Carrier:
		network = netip.AddrFrom4([4]byte{100, 64, 0, 0})
	case rules.Mapping != Routed:
		network = netip.AddrFrom4([4]byte{192, 168, 1, 0})
	}
	g.LAN = network.Next()
	g.last = g.LAN
	fmt.Fprintf(&g.lines, "link add lan type bridge forward_delay 0 mcast_snooping 0\nlink set lan up\naddr add %s/24 dev lan\n", g.LAN)
	if network6.IsValid() {
		g.lan6 = network6.Next()
		g.last6 = g.lan6
		fmt.Fprintf(&g.lines, "addr add %s/64 dev lan nodad\n", g.lan6)
	}
}

// attach lays a cable from the gateway's lan to an interface of n, and returns
// the addresses at its far end.
func (g *Gateway) attach(n *Namespace, device string, family Family) (v4, v6 netip.Addr) {
	g.cables++
	port := fmt.Sprintf("p%d", g.cables)
	fmt.Fprintf(&g.internet.cables, "link add %s netns %s type veth peer name %s netns %s\n", device, n.Name, port, g.Name)
	fmt.Fprintf(&g.lines, "link set %s master lan up\n", port)
	if g.rules.Isolated {
		fmt.Fprintf(&g.lines, "link set dev %s type bridge_slave isolated on\n", port)
	}
	fmt.Fprintf(&n.lines, "link set %s up\n", device)
	if family&V4 != 0 {
		g.last = g.last.Next()
		v4 = g.last
		g.members = append(g.members, v4)
		fmt.Fprintf(&n.lines, "addr add %s/24 dev %s\nroute add default via %s\n", v4, device, g.LAN)
	}
	if family&V6 != 0 {
		g.last6 = g.last6.Next()
		v6 = g.last6
		fmt.Fprintf(&n.lines, "addr add %s/64 dev %s nodad\nroute add default via %s\n", v6, device, g.lan6)
	}
	g.nft = g.ruleset()
	return v4, v6
}

// ruleset is the gateway's rules as nft takes them. They are made anew for each
// of its hosts.
func (g *Gateway) ruleset() string {
	r := g.rules
	var dstnat, srcnat, input, forward, more []string
	deny := []string{"drop"}
	if r.Refuse {
		deny = []string{"meta l4proto tcp reject with tcp reset", "drop"}
	}
	denied := func(match string) (lines []string) {
		for _, d := range deny {
			lines = append(lines, match+" "+d)
		}
		return lines
	}

	switch r.Mapping {
	case Preserve:
		srcnat = append(srcnat, `oifname "wan" meta nfproto ipv4 masquerade`)
	case Random:
		srcnat = append(srcnat, `oifname "wan" meta nfproto ipv4 masquerade fully-random`)
	case Sequence:
		srcnat = append(srcnat, fmt.Sprintf(`oifname "wan" meta l4proto tcp snat ip to %s : numgen inc mod %d map { %s }`,
			g.V4, sequenceLength, sequence()), `oifname "wan" meta nfproto ipv4 masquerade`)
	}
	first := netip.Addr{}
	if len(g.members) > 0 {
		first = g.members[0]
	}
	outside := `iifname "wan" `
	if r.Hairpin {
		outside = ""
	}
	if first.IsValid() {
		for _, port := range r.Forward {
			dstnat = append(dstnat, fmt.Sprintf(`%sip daddr %s tcp dport %d dnat ip to %s`, outside, g.V4, port, first))
		}
		if r.Open && r.Mapping != Routed {
			dstnat = append(dstnat, fmt.Sprintf(`iifname "wan" ip daddr %s dnat ip to %s`, g.V4, first))
		}
	}
	if r.Hairpin {
		more = append(more, "map ports { type inet_service : ipv4_addr; flags dynamic,timeout; timeout 5m; }",
			`chain note { type filter hook forward priority filter - 5; iifname "lan" oifname "wan" tcp flags syn update @ports { tcp sport : ip saddr }; }`)
		dstnat = append(dstnat, fmt.Sprintf(`iifname "lan" ip daddr %s dnat ip to tcp dport map @ports`, g.V4))
		srcnat = append(srcnat, fmt.Sprintf(`iifname "lan" oifname "lan" ct status dnat snat ip to %s`, g.V4))
	}
	if r.UPnP {
		dstnat = append(dstnat, "jump prerouting_miniupnpd")
		srcnat = append(srcnat, "jump postrouting_miniupnpd")
		forward = append(forward, "jump miniupnpd")
		more = append(more, "chain miniupnpd { }", "chain prerouting_miniupnpd { }", "chain postrouting_miniupnpd { }")
	}

	// ICMPv6 is how neighbours find each other.
	input = append(input, "ct state established,related accept", "meta l4proto ipv6-icmp accept")
	input = append(input, denied(`iifname "wan"`)...)
	if r.Mapping != Routed {
		input = append(input, fmt.Sprintf(`iifname "lan" ip daddr %s drop`, g.V4))
	}
	forward = append(forward, "ct state established,related accept", "ct status dnat accept")
	if r.Out != "" {
		forward = append(forward, `iifname "lan" oifname "wan" `+r.Out+` accept`, `iifname "lan" oifname "wan" drop`)
	}
	if r.Open {
		forward = append(forward, `iifname "wan" meta nfproto ipv4 accept`)
	}
	if r.Open6 {
		forward = append(forward, `iifname "wan" meta nfproto ipv6 accept`)
	}
	forward = append(forward, denied(`iifname "wan"`)...)

	chain := func(name, hook string, lines []string) string {
		return fmt.Sprintf("chain %s { type %s;\n%s\n}\n", name, hook, strings.Join(lines, "\n"))
	}
	return "table inet gate {\n" + strings.Join(more, "\n") + "\n" +
		chain("dstnat", "nat hook prerouting priority dstnat", dstnat) +
		chain("srcnat", "nat hook postrouting priority srcnat", srcnat) +
		chain("input", "filter hook input priority filter", input) +
		chain("forward", "filter hook forward priority filter", forward) + "}\n"
}

// The ports of [Sequence]: so many, after which they begin again.
const (
	sequenceStart  = 20_000
	sequenceLength = 2048
)

// sequence is the elements of a map from numbers to ports.
func sequence() string {
	var b strings.Builder
	for n := range sequenceLength {
		fmt.Fprintf(&b, "%d : %d, ", n, sequenceStart+n)
	}
	return strings.TrimSuffix(b.String(), ", ")
}

// MiniUPnPD starts a miniupnpd on a gateway that has UPnP in its rules: IGD 2,
// NAT-PMP and PCP, asked for from its lan. The further lines are added to its
// configuration. The internet must have started.
func (g *Gateway) MiniUPnPD(tb testing.TB, lines ...string) *Process {
	tb.Helper()
	if !g.rules.UPnP {
		tb.Fatalf("lab: %s has no UPnP in its rules", g.Name)
	}
	const port = 5000
	dir := tb.TempDir()
	config := filepath.Join(dir, "miniupnpd.conf")
	writeFile(tb, config, []byte(strings.Join(append([]string{
		"ext_ifname=wan", "listening_ip=lan", fmt.Sprintf("http_port=%d", port),
		"enable_natpmp=yes", "enable_upnp=yes", "system_uptime=yes", "min_lifetime=120", "max_lifetime=86400",
		"upnp_table_name=gate", "upnp_nat_table_name=gate", "upnp_forward_chain=miniupnpd",
		"upnp_nat_chain=prerouting_miniupnpd", "upnp_nat_postrouting_chain=postrouting_miniupnpd",
		"uuid=00000000-0000-4000-8000-000000000001",
		"allow 1024-65535 192.168.0.0/16 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535", "",
	}, lines...), "\n")+"\n"))
	log := &logBuffer{}
	showOnFailure(tb, "miniupnpd on "+g.Name, log.String)
	command := g.Command(path(tb, "miniupnpd"), "-d", "-f", config, "-P", filepath.Join(dir, "pid"))
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	p := Launch(tb, "miniupnpd", cmd)
	// It may overlook a SIGTERM for as long as nothing else happens.
	tb.Cleanup(func() { _ = p.Signal(syscall.SIGKILL) })
	g.AwaitPort(tb, p, netip.AddrPortFrom(g.LAN, port))
	return p
}

// AwaitPort returns when something in the namespace accepts connections at addr.
// It fails the test when p ends before that, or after a minute.
func (n *Namespace) AwaitPort(tb testing.TB, p *Process, addr netip.AddrPort) {
	tb.Helper()
	deadline := time.Now().Add(startLimit)
	for {
		c, err := n.Dial(netip.AddrPort{}, addr, time.Second)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("lab: %s does not accept on %s: %v", p.Name, addr, err)
		}
		select {
		case <-p.Done():
			tb.Fatalf("lab: %s ended (%v) before it accepted on %s", p.Name, p.err, addr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

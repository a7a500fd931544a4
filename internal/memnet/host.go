package memnet

import (
	"cmp"
	"context"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
)

// A Firewall is what becomes of a SYN that nobody asked for. A SYN is asked for
// when it crosses one of the host's own to the same address and port.
type Firewall int

// What a firewall does.
const (
	Open   Firewall = iota // let it in
	Drop                   // say nothing
	Reject                 // answer with a reset
)

// Ephemeral ports, as IANA has them.
const (
	firstEphemeral = 49152
	lastEphemeral  = 65535
)

// A Host is a machine with addresses, on which programs listen and dial. Make
// one with [Net.Host] or [Router.Host]. Besides its addresses it has 127.0.0.1
// and ::1, which are its own. What it sends to itself takes no time.
type Host struct {
	net    *Net
	name   string
	serial int
	router *Router // nil on the open internet
	addrs  []address

	listeners map[uint16][]*Listener
	conns     map[flow]*Conn
	ports     map[uint16]int // how many of conns have a local port
	nextPort  uint16

	silent   bool
	firewall Firewall
}

// An address is one of a host, and the realm in which it is valid.
type address struct {
	netip.Addr
	realm *realm
}

func (n *Net) newHost(name string, r *Router, addrs []netip.Addr) *Host {
	h := &Host{
		net: n, name: name, serial: len(n.hosts), router: r,
		listeners: make(map[uint16][]*Listener),
		conns:     make(map[flow]*Conn),
		ports:     make(map[uint16]int),
		nextPort:  firstEphemeral,
	}
	n.hosts = append(n.hosts, h)
	h.settle(r, addrs)
	return h
}

// settle gives the host its place and addresses.
func (h *Host) settle(r *Router, addrs []netip.Addr) {
	for _, a := range h.addrs {
		delete(a.realm.nodes, a.Addr)
	}
	h.router, h.addrs = r, nil
	home := h.net.internet
	if r != nil {
		home = r.inside
	}
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		q := home.holder(a)
		q.claim(a, h)
		h.addrs = append(h.addrs, address{a, q})
	}
}

// Name returns the name of the host.
func (h *Host) Name() string { return h.name }

// behind reports whether h is inside r, or inside a router inside r.
func (h *Host) behind(r *Router) bool {
	for at := h.router; at != nil; at = at.outer.router {
		if at == r {
			return true
		}
	}
	return false
}

// realmOf returns where an address of the host is valid, or nil if the host
// does not have it.
func (h *Host) realmOf(addr netip.Addr) *realm {
	for _, a := range h.addrs {
		if a.Addr == addr {
			return a.realm
		}
	}
	return nil
}

// local reports whether what is sent to addr stays on the host.
func (h *Host) local(addr netip.Addr) bool {
	return addr.IsLoopback() || h.realmOf(addr) != nil
}

// Addrs returns the addresses of the host without loopback: global IPv6
// addresses first, then the others as they were given. The error is always
// nil.
func (h *Host) Addrs() ([]netip.Addr, error) {
	h.net.lock()
	defer h.net.unlock()
	var global, others []netip.Addr
	for _, a := range h.addrs {
		if a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate() {
			global = append(global, a.Addr)
		} else {
			others = append(others, a.Addr)
		}
	}
	return append(global, others...), nil
}

// Conns returns the connections of the host that have been made and are not
// reset or wholly closed, oldest first. Those that nobody has accepted yet are
// among them.
func (h *Host) Conns() []*Conn {
	h.net.lock()
	defer h.net.unlock()
	return slices.DeleteFunc(h.ordered(), func(c *Conn) bool { return c.state != established })
}

// ordered returns all connections of the host, oldest first, so that what is
// done to all of them happens in the same order in each run.
func (h *Host) ordered() []*Conn {
	return slices.SortedFunc(maps.Values(h.conns), func(a, b *Conn) int { return cmp.Compare(a.id, b.id) })
}

// Listen accepts connections to local. An unspecified or zero address means
// all addresses of the host, of both families, those it gets later included;
// port 0 means a free one. ctx is only looked at when Listen is called. The
// error is a [*net.OpError] around EADDRINUSE if another listener has the port,
// or EADDRNOTAVAIL if the host does not have the address.
func (h *Host) Listen(ctx context.Context, local netip.AddrPort) (net.Listener, error) {
	local = clean(local)
	if !local.Addr().IsValid() {
		local = netip.AddrPortFrom(netip.IPv6Unspecified(), local.Port())
	}
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(local), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	h.net.lock()
	defer h.net.unlock()
	if !local.Addr().IsUnspecified() && !h.local(local.Addr()) {
		return fail(os.NewSyscallError("bind", syscall.EADDRNOTAVAIL))
	}
	if local.Port() == 0 {
		port, ok := h.freePort()
		if !ok {
			return fail(os.NewSyscallError("bind", syscall.EADDRINUSE))
		}
		local = netip.AddrPortFrom(local.Addr(), port)
	}
	for _, other := range h.listeners[local.Port()] {
		if other.addr == local || other.addr.Addr().IsUnspecified() || local.Addr().IsUnspecified() {
			return fail(os.NewSyscallError("bind", syscall.EADDRINUSE))
		}
	}
	l := &Listener{host: h, addr: local}
	h.listeners[local.Port()] = append(h.listeners[local.Port()], l)
	return l, nil
}

// ListenShared is Listen: ports can always be shared with dials.
func (h *Host) ListenShared(ctx context.Context, local netip.AddrPort) (net.Listener, error) {
	return h.Listen(ctx, local)
}

// Dial connects to remote. A zero local address means the one that suits
// remote, port 0 an ephemeral one. Several connections, and a listener, may
// share a local port, as with SO_REUSEADDR and SO_REUSEPORT, if their remote
// ends differ; otherwise the error is EADDRNOTAVAIL, as on Linux.
//
// Errors are a [*net.OpError] around ECONNREFUSED, ETIMEDOUT, ENETUNREACH (no
// address of that family) or the like, or around the error of ctx. A
// connection that is ready when ctx ends is returned. ctx does not bound its
// later life.
func (h *Host) Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error) {
	local, remote = clean(local), clean(remote)
	fail := func(err error) (net.Conn, error) {
		e := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(remote), Err: err}
		if local.IsValid() {
			e.Source = net.TCPAddrFromAddrPort(local)
		}
		return nil, e
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	c, err := h.connect(local, remote)
	if err != nil {
		return fail(err)
	}
	select {
	case <-c.settled:
	case <-ctx.Done():
	}
	h.net.lock()
	defer h.net.unlock()
	switch {
	case c.dialErr != nil:
		return fail(os.NewSyscallError("connect", c.dialErr))
	case c.state != established:
		c.abandon()
		return fail(ctx.Err())
	}
	return c, nil
}

// connect sends the SYN of a new connection.
func (h *Host) connect(local, remote netip.AddrPort) (*Conn, error) {
	h.net.lock()
	defer h.net.unlock()
	if remote.Addr().IsUnspecified() { // this host, says Linux
		loopback := netip.IPv6Loopback()
		if remote.Addr().Is4() {
			loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		remote = netip.AddrPortFrom(loopback, remote.Port())
	}
	addr := local.Addr()
	switch {
	case !remote.Addr().IsValid():
		return nil, os.NewSyscallError("connect", syscall.EINVAL)
	case !addr.IsValid() || addr.IsUnspecified():
		var ok bool
		if addr, ok = h.source(remote.Addr()); !ok {
			return nil, os.NewSyscallError("connect", syscall.ENETUNREACH)
		}
	case !h.local(addr):
		return nil, os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)
	case addr.Is4() != remote.Addr().Is4(), addr.IsLoopback() && !h.local(remote.Addr()):
		return nil, os.NewSyscallError("connect", syscall.EINVAL)
	}
	port := local.Port()
	if port == 0 {
		var ok bool
		if port, ok = h.freePort(); !ok {
			return nil, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
		}
	}
	ends := flow{netip.AddrPortFrom(addr, port), remote}
	if h.conns[ends] != nil {
		return nil, os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)
	}
	c := h.newConn(ends)
	c.settled = make(chan struct{})
	c.state = synSent
	c.sendSYN()
	return c, nil
}

// source chooses the local address for a destination: the destination itself
// if it is on the host, then one on the same network, then any of the family.
func (h *Host) source(dst netip.Addr) (netip.Addr, bool) {
	if h.local(dst) {
		return dst, true
	}
	var found netip.Addr
	for _, a := range h.addrs {
		if a.Is4() != dst.Is4() {
			continue
		}
		if a.realm.nodes[dst] != nil {
			return a.Addr, true
		}
		if !found.IsValid() {
			found = a.Addr
		}
	}
	return found, found.IsValid()
}

// freePort returns an ephemeral port that nothing on the host uses.
func (h *Host) freePort() (uint16, bool) {
	for range lastEphemeral - firstEphemeral + 1 {
		port := h.nextPort
		if h.nextPort++; h.nextPort == 0 {
			h.nextPort = firstEphemeral
		}
		if h.ports[port] == 0 && len(h.listeners[port]) == 0 {
			return port, true
		}
	}
	return 0, false
}

// clean gives addresses the form in which they are compared.
func clean(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// DialContext is [Host.Dial] in the form of [net.Dialer.DialContext]. network
// is tcp, tcp4 or tcp6. The host is an IP literal, localhost or a name given to
// [Net.AddName], whose addresses are tried in their order; the port is a
// number.
func (h *Host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	host, service, err := net.SplitHostPort(addr)
	if err != nil {
		return fail(err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return fail(&net.AddrError{Err: "port is not a number", Addr: addr})
	}
	var first error
	for _, a := range h.net.lookup(host) {
		if network == "tcp4" && !a.Is4() || network == "tcp6" && !a.Is6() {
			continue
		}
		c, err := h.Dial(ctx, netip.AddrPort{}, netip.AddrPortFrom(a, uint16(port)))
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		return fail(&net.DNSError{Err: "no such host", Name: host, IsNotFound: true})
	}
	return nil, first
}

// lookup returns the addresses of a name.
func (n *Net) lookup(name string) []netip.Addr {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}
	}
	if name == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	n.lock()
	defer n.unlock()
	return slices.Clone(n.names[name])
}

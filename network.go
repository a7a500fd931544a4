package dtcp

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather"
)

// systemNetwork is the [Network] of the operating system.
type systemNetwork struct{}

func (systemNetwork) Listen(ctx context.Context, local netip.AddrPort) (net.Listener, error) {
	c := net.ListenConfig{KeepAliveConfig: keepAlive}
	return c.Listen(ctx, "tcp", listenAddress(local))
}

// ListenShared is for punch ports. An ordinary listener does not share its port:
// two programs that want the same one are to be told.
func (systemNetwork) ListenShared(ctx context.Context, local netip.AddrPort) (net.Listener, error) {
	c := net.ListenConfig{KeepAliveConfig: keepAlive, Control: sharePort}
	return c.Listen(ctx, "tcp", listenAddress(local))
}

func (systemNetwork) Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	}
	if local.Port() != 0 {
		d.Control = sharePort
	}
	return d.DialContext(ctx, "tcp", remote.String())
}

// keepAlive has an idle stream notice within two minutes that its peer's
// machine went away.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6}

func (systemNetwork) Addrs() ([]netip.Addr, error) {
	interfaces, err := gather.System()
	if err != nil {
		return nil, err
	}
	return gather.HostAddrs(interfaces), nil
}

// listenAddress returns local for package net, which calls "all addresses of
// both families" by an empty host.
func listenAddress(local netip.AddrPort) string {
	if !local.Addr().IsValid() {
		return ":" + strconv.Itoa(int(local.Port()))
	}
	return local.String()
}

// addrPort returns the address of a TCP socket.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return unmap(t.AddrPort())
	}
	parsed, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return unmap(parsed)
}

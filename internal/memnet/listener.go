package memnet

import (
	"net"
	"net/netip"
	"slices"
)

// backlog is how many connections may wait for Accept. Linux has the same
// default. Further SYNs are dropped.
const backlog = 4096

// A Listener is what [Host.Listen] returns.
type Listener struct {
	host    *Host
	addr    netip.AddrPort
	queue   []*Conn // established, not yet accepted
	opening int     // SYN received, not yet established
	closed  bool
	changed signal
}

var _ net.Listener = (*Listener)(nil)

// listener finds who listens on an address of the host.
func (h *Host) listener(at netip.AddrPort) *Listener {
	var wildcard *Listener
	for _, l := range h.listeners[at.Port()] {
		switch {
		case l.addr == at:
			return l
		case l.addr.Addr().IsUnspecified():
			wildcard = l
		}
	}
	return wildcard
}

// Accept waits for a connection whose handshake is complete. Its dynamic type
// is [*Conn].
func (l *Listener) Accept() (net.Conn, error) {
	n := l.host.net
	n.lock()
	defer n.unlock()
	for {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		}
		if len(l.queue) > 0 {
			c := l.queue[0]
			l.queue = l.queue[1:]
			c.listener = nil
			return c, nil
		}
		n.await(l.changed.wait())
	}
}

// Close ends the listening. Connections that nobody has accepted are reset.
func (l *Listener) Close() error {
	n := l.host.net
	n.lock()
	defer n.unlock()
	if l.closed {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closed = true
	port := l.addr.Port()
	l.host.listeners[port] = slices.DeleteFunc(l.host.listeners[port], func(other *Listener) bool { return other == l })
	for _, c := range l.host.ordered() {
		if c.listener == l {
			c.abort()
		}
	}
	l.queue = nil
	l.changed.wake()
	return nil
}

// Addr returns the address given to [Host.Listen], with the port that was
// chosen. Its dynamic type is [*net.TCPAddr].
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

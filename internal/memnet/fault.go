package memnet

import (
	"net/netip"
	"syscall"
)

// Firewall chooses what becomes of connections to the host that it did not ask
// for. What the host sends to itself is not affected.
func (h *Host) Firewall(f Firewall) {
	h.net.lock()
	defer h.net.unlock()
	h.firewall = f
}

// Silence makes all packets to and from the host vanish, or ends that.
// Connections stay, and go on when what was lost is sent again; see the package
// comment for the times. What the host sends to itself is not affected.
func (h *Host) Silence(on bool) {
	h.net.lock()
	defer h.net.unlock()
	h.silent = on
}

// Cut makes all packets between the two hosts vanish, those on their way
// included, until [Host.Mend] or [Net.Heal].
func (h *Host) Cut(peer *Host) {
	h.net.lock()
	defer h.net.unlock()
	h.net.cuts[pairOf(h, peer)] = true
}

// Mend undoes [Host.Cut].
func (h *Host) Mend(peer *Host) {
	h.net.lock()
	defer h.net.unlock()
	delete(h.net.cuts, pairOf(h, peer))
}

// Crash stops all programs of the host and starts it again at once. Its
// listeners are closed. Its connections are gone without a word, and fail with
// ECONNABORTED for whoever still holds them; what others send to them is
// answered with a reset. The host can listen and dial again.
func (h *Host) Crash() {
	h.net.lock()
	defer h.net.unlock()
	for _, ls := range h.listeners {
		for _, l := range ls {
			l.closed = true
			l.queue = nil
			l.changed.wake()
		}
	}
	clear(h.listeners)
	for _, c := range h.ordered() {
		c.received = nil
		c.fail(syscall.ECONNABORTED)
	}
}

// SetAddrs gives the host other addresses in its network, as when a lease
// ends. Connections from the old ones are not told: their packets vanish, and
// in the end they fail with ETIMEDOUT.
func (h *Host) SetAddrs(addrs ...netip.Addr) {
	h.net.lock()
	defer h.net.unlock()
	h.settle(h.router, addrs)
}

// Move takes the host to another network, behind a router or, if that is nil,
// on the open internet. Otherwise it is as [Host.SetAddrs].
func (h *Host) Move(behind *Router, addrs ...netip.Addr) {
	h.net.lock()
	defer h.net.unlock()
	h.settle(behind, addrs)
}

// Reset ends the connection as a forged RST does: both ends fail, this one at
// once and the other when the packet has come.
func (c *Conn) Reset() {
	c.host.net.lock()
	defer c.host.net.unlock()
	if c.gone {
		return
	}
	c.send(&packet{flags: RST | ACK})
	c.reset()
}

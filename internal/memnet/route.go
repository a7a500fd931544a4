package memnet

import (
	"fmt"
	"net/netip"
	"time"
)

// A realm is a network in which addresses are unique: the internet, or the
// inside of a NAT.
type realm struct {
	router *Router // the way out; nil for the internet
	nodes  map[netip.Addr]node
}

// A node is a [*Host] or a [*Router].
type node interface{ label() string }

func (h *Host) label() string   { return h.name }
func (r *Router) label() string { return r.name }

func newRealm(r *Router) *realm {
	return &realm{router: r, nodes: make(map[netip.Addr]node)}
}

// claim gives an address to a node.
func (q *realm) claim(addr netip.Addr, by node) {
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
		panic(fmt.Sprintf("memnet: %s cannot have the address %v", by.label(), addr))
	}
	if other, taken := q.nodes[addr]; taken {
		panic(fmt.Sprintf("memnet: %s and %s have the same address %v", other.label(), by.label(), addr))
	}
	q.nodes[addr] = by
}

// holder is the realm in which an address of a host in q lives. NATs translate
// the family of their outside address and route the other, so that an IPv6
// address behind an IPv4 NAT is part of the internet.
func (q *realm) holder(addr netip.Addr) *realm {
	for q.router != nil && q.router.public.Is4() != addr.Is4() {
		q = q.router.outer
	}
	return q
}

// transmit sends a packet from a host.
func (n *Net) transmit(h *Host, p *packet) {
	p.origin, p.sent = h, time.Now()
	n.tapSent(p, h.name)
	if h.local(p.dst.Addr()) {
		n.at(p.sent, func() { h.receive(p) })
		return
	}
	if h.silent {
		n.lose(p, h.name+" is silenced")
		return
	}
	q := h.realmOf(p.src.Addr())
	if q == nil {
		n.lose(p, h.name+" has lost its address")
		return
	}
	n.launch(q, p)
}

// launch sends a packet from a node in realm q to where its destination is.
func (n *Net) launch(q *realm, p *packet) {
	target := n.leave(q, p)
	if target == nil {
		return
	}
	host := resolve(p, target)
	if host != nil && n.cut(p, host) {
		n.lose(p, "cut off from "+host.name)
		return
	}
	switch {
	case p.origin == nil: // a router's reset takes as long as what it answers
	case host != nil:
		p.delay = n.oneWay(p.origin, host)
	default:
		p.delay = n.distance(p.origin, target.(*Router))
	}
	arrival := p.sent.Add(p.delay)
	if p.conn != nil {
		// A stream keeps its order even if the latency has just been lowered.
		if arrival.Before(p.conn.lastArrival) {
			arrival = p.conn.lastArrival
		}
		p.conn.lastArrival = arrival
	}
	n.at(arrival, func() { n.arrive(target, p) })
}

// leave finds the node with the destination of a packet, from realm q
// outwards, and translates the packet on the way. It returns nil if the packet
// is lost.
func (n *Net) leave(q *realm, p *packet) node {
	for {
		if target := q.nodes[p.dst.Addr()]; target != nil {
			return target
		}
		r := q.router
		if r == nil {
			n.lose(p, "nobody has this address")
			return nil
		}
		if p.dst.Addr() == r.public && !r.hairpin {
			r.refuse(q, p)
			return nil
		}
		if !r.outbound(p) {
			n.lose(p, r.name+" has no port for it")
			return nil
		}
		q = r.outer
	}
}

// resolve finds the host that would get p from target now, without changing
// anything. It returns nil if none would.
func resolve(p *packet, target node) *Host {
	dst := p.dst
	for {
		r, ok := target.(*Router)
		if !ok {
			h, _ := target.(*Host)
			return h
		}
		inside, ok := r.lookup(dst.Port(), p.src)
		if !ok {
			return nil
		}
		dst, target = inside, r.inside.nodes[inside.Addr()]
	}
}

// arrive hands a packet to a node, and on to the host behind it.
func (n *Net) arrive(target node, p *packet) {
	for {
		r, ok := target.(*Router)
		if !ok {
			break
		}
		if n.cutFromAll(p, r) {
			n.lose(p, "cut off from all behind "+r.name)
			return
		}
		if !r.inbound(p) {
			return
		}
		target = r.inside.nodes[p.dst.Addr()]
	}
	if target == nil {
		n.lose(p, "nobody has this address")
		return
	}
	host := target.(*Host)
	// The host can be farther away than its router was taken to be.
	if p.origin != nil {
		if rest := n.oneWay(p.origin, host) - p.delay; rest > 0 && p.sent.Add(p.delay+rest).After(time.Now()) {
			p.delay += rest
			n.at(p.sent.Add(p.delay), func() { n.arrive(host, p) })
			return
		}
	}
	switch {
	case host.silent:
		n.lose(p, host.name+" is silenced")
	case n.cut(p, host):
		n.lose(p, "cut off from "+host.name)
	case host.realmOf(p.dst.Addr()) == nil:
		n.lose(p, host.name+" has lost its address")
	default:
		host.receive(p)
	}
}

// cut reports whether the sender of p is cut off from h.
func (n *Net) cut(p *packet, h *Host) bool {
	return p.origin != nil && n.cuts[pairOf(p.origin, h)]
}

// cutFromAll reports whether the sender of p is cut off from every host behind
// r. So a router does not answer for hosts that cannot be reached.
func (n *Net) cutFromAll(p *packet, r *Router) bool {
	found := false
	for _, h := range n.hosts {
		if h.behind(r) {
			if !n.cut(p, h) {
				return false
			}
			found = true
		}
	}
	return found
}

// lose drops a packet. What matters is repeated by those who wait for an
// acknowledgement, except the news that a closed window has opened: if it is
// lost, TCP has the writer probe the window. Here the reader repeats it, so
// that a writer who is held up needs no timer.
func (n *Net) lose(p *packet, why string) {
	n.tapLost(p, why)
	if p.grants {
		p.conn.grantLost = true
		p.conn.armRepeat()
	}
}

package memnet

import (
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"time"
)

// NATKind says how a NAT chooses outside ports and whom it lets in, in the
// terms of RFC 4787 and RFC 5382.
type NATKind int

const (
	// FullCone maps an inside address and port to one outside port for all
	// destinations, and lets everybody in through it.
	FullCone NATKind = iota
	// PortRestricted maps as FullCone does, and lets in only those remote
	// addresses and ports to which a packet has been sent. A reset, in either
	// direction, shuts the way again.
	PortRestricted
	// Symmetric takes a new outside port, at random, for each destination
	// address and port, and lets in only that destination. After a reset the
	// next connection gets another port.
	Symmetric
	// SymmetricSequential is Symmetric with ports that count upwards.
	SymmetricSequential
)

// String returns the name of the constant.
func (k NATKind) String() string {
	switch k {
	case FullCone:
		return "FullCone"
	case PortRestricted:
		return "PortRestricted"
	case Symmetric:
		return "Symmetric"
	case SymmetricSequential:
		return "SymmetricSequential"
	}
	return "NATKind?"
}

// firstNATPort is the first outside port of a router that counts upwards.
const firstNATPort = 20001

// A flow is a pair of addresses as one of the two ends sees it.
type flow struct{ local, remote netip.AddrPort }

// A Router is a NAT. Make one with [Net.NAT] or [Router.NAT]. At first it drops
// what nobody asked for, has no hairpin, and does not preserve ports.
type Router struct {
	net    *Net
	name   string
	public netip.Addr
	kind   NATKind
	outer  *realm
	inside *realm

	// sessions are the ways through the router: from an inside and a remote
	// address to the outside port; holes are the same backwards, with the
	// outside address as local.
	sessions map[flow]uint16
	holes    map[flow]netip.AddrPort

	// mappings are those of the endpoint-independent kinds and of Forward;
	// owners are the same backwards.
	mappings map[netip.AddrPort]uint16
	owners   map[uint16]netip.AddrPort
	forwards map[uint16]netip.AddrPort

	inUse    map[uint16]int // how many sessions or mappings hold an outside port
	nextPort uint16
	random   *rand.Rand

	unsolicited Firewall
	hairpin     bool
	preserve    bool
}

func (n *Net) newRouter(name string, outer *realm, public netip.Addr, kind NATKind) *Router {
	// Random ports differ between routers, and are the same in each run.
	seed := fnv.New64a()
	seed.Write([]byte(name))
	r := &Router{
		net: n, name: name, public: public.Unmap(), kind: kind, outer: outer,
		forwards: make(map[uint16]netip.AddrPort),
		nextPort: firstNATPort,
		random:   rand.New(rand.NewPCG(seed.Sum64(), uint64(len(name)))),
	}
	r.unsolicited = Drop
	r.forget()
	r.inside = newRealm(r)
	outer.claim(r.public, r)
	return r
}

// forget empties the tables, except for the static forwards.
func (r *Router) forget() {
	r.sessions = make(map[flow]uint16)
	r.holes = make(map[flow]netip.AddrPort)
	r.mappings = make(map[netip.AddrPort]uint16)
	r.owners = make(map[uint16]netip.AddrPort)
	r.inUse = make(map[uint16]int)
	for port, to := range r.forwards {
		r.bind(to, port)
	}
}

func (r *Router) bind(inside netip.AddrPort, port uint16) {
	r.mappings[inside] = port
	r.owners[port] = inside
	r.inUse[port]++
}

// Host adds a host behind the router. Addresses of the family of the router's
// outside address are inside the NAT; the others are on the network outside
// it. It panics if an address is taken there.
func (r *Router) Host(name string, addrs ...netip.Addr) *Host {
	r.net.lock()
	defer r.net.unlock()
	return r.net.newHost(name, r, addrs)
}

// NAT adds a router behind this one.
func (r *Router) NAT(name string, outside netip.Addr, kind NATKind) *Router {
	r.net.lock()
	defer r.net.unlock()
	return r.net.newRouter(name, r.inside, outside, kind)
}

// Public returns the outside address of the router.
func (r *Router) Public() netip.Addr { return r.public }

// Forward sends whatever comes to an outside port to an address inside, as a
// static port mapping does. Connections that this inside address and port
// makes leave from that outside port, unless the router is symmetric.
func (r *Router) Forward(publicPort uint16, to netip.AddrPort) {
	r.net.lock()
	defer r.net.unlock()
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	r.forwards[publicPort] = to
	r.bind(to, publicPort)
}

// Unsolicited chooses what a SYN gets that came from outside and belongs to
// nobody inside: Drop, which is the default, or Reject, a reset.
func (r *Router) Unsolicited(f Firewall) {
	r.net.lock()
	defer r.net.unlock()
	r.unsolicited = f
}

// Hairpin chooses whether hosts behind the router reach each other by its
// outside address.
func (r *Router) Hairpin(on bool) {
	r.net.lock()
	defer r.net.unlock()
	r.hairpin = on
}

// PreservePorts makes an endpoint-independent router use the inside port as
// the outside port while that is free, as Linux does.
func (r *Router) PreservePorts(on bool) {
	r.net.lock()
	defer r.net.unlock()
	r.preserve = on
}

// Reboot makes the router forget all connections and mappings except those of
// [Router.Forward].
func (r *Router) Reboot() {
	r.net.lock()
	defer r.net.unlock()
	r.forget()
}

// outbound translates a packet from inside. It reports whether it could.
func (r *Router) outbound(p *packet) bool {
	way := flow{p.src, p.dst}
	port, ok := r.sessions[way]
	if !ok && !r.symmetric() {
		port, ok = r.mappings[p.src]
	}
	reset := p.flags.Has(RST)
	if !ok && !reset {
		port, ok = r.assign(p.src)
	}
	if !ok {
		return false
	}
	if reset {
		r.shut(way)
	} else {
		r.open(way, port)
	}
	p.src = netip.AddrPortFrom(r.public, port)
	return true
}

func (r *Router) symmetric() bool { return r.kind == Symmetric || r.kind == SymmetricSequential }

// inbound translates a packet from outside. It reports whether it goes on.
func (r *Router) inbound(p *packet) bool {
	inside, ok := r.lookup(p.dst.Port(), p.src)
	if !ok {
		r.refuse(r.outer, p)
		return false
	}
	way := flow{inside, p.src}
	if p.flags.Has(RST) {
		r.shut(way)
	} else {
		r.open(way, p.dst.Port())
	}
	p.dst = inside
	return true
}

// lookup finds who inside gets what remote sends to an outside port.
func (r *Router) lookup(port uint16, remote netip.AddrPort) (netip.AddrPort, bool) {
	if inside, ok := r.holes[flow{netip.AddrPortFrom(r.public, port), remote}]; ok {
		return inside, true
	}
	if inside, ok := r.forwards[port]; ok {
		return inside, true
	}
	if r.kind == FullCone {
		inside, ok := r.owners[port]
		return inside, ok
	}
	return netip.AddrPort{}, false
}

// refuse drops or rejects a packet that came from realm q.
func (r *Router) refuse(q *realm, p *packet) {
	r.net.lose(p, r.name+" lets nobody in there")
	if r.unsolicited != Reject || p.flags.Has(RST) {
		return
	}
	answer := p.reset()
	answer.sent, answer.delay = time.Now(), p.delay
	r.net.tapSent(answer, r.name)
	r.net.launch(q, answer)
}

// open makes a way through the router, if there is none.
func (r *Router) open(way flow, port uint16) {
	if _, ok := r.sessions[way]; ok {
		return
	}
	r.sessions[way] = port
	r.holes[flow{netip.AddrPortFrom(r.public, port), way.remote}] = way.local
	r.inUse[port]++
}

// shut closes a way through the router, if there is one.
func (r *Router) shut(way flow) {
	port, ok := r.sessions[way]
	if !ok {
		return
	}
	delete(r.sessions, way)
	delete(r.holes, flow{netip.AddrPortFrom(r.public, port), way.remote})
	if r.inUse[port]--; r.inUse[port] == 0 {
		delete(r.inUse, port)
	}
}

// assign chooses an outside port for a new mapping or session.
func (r *Router) assign(inside netip.AddrPort) (port uint16, ok bool) {
	for try := range 1 << 16 {
		switch {
		case r.kind == Symmetric:
			port = 1024 + uint16(r.random.UintN(1<<16-1024))
		case !r.symmetric() && r.preserve && try == 0:
			port = inside.Port()
		default:
			port = r.nextPort
			if r.nextPort++; r.nextPort == 0 {
				r.nextPort = firstNATPort
			}
		}
		if r.inUse[port] > 0 {
			continue
		}
		if !r.symmetric() {
			r.bind(inside, port)
		}
		return port, true
	}
	return 0, false
}

package dtcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather"
)

// This file is what hole punching needs (Section 4 of protocol.md): local ports
// at which we listen, from which we dial, and whose address as the outside sees
// it is known, because a connection to our relay is kept alive from each.

const (
	punchPool   = 2                // ports kept observed ahead of sessions
	hurriedTake = time.Second      // that an offer waits for a port when none is ready
	punchRetry  = 10 * time.Second // before what could not be observed is tried again
)

// sharedListener is a [Network] whose listeners can share their port with dials.
// One that is not does not punch holes.
type sharedListener interface {
	// ListenShared is as Listen, and dials may leave from the port as well.
	ListenShared(ctx context.Context, local netip.AddrPort) (net.Listener, error)
}

// punchPort is one such port. A session has it to itself, and no other session
// ever gets it: so two connections that cross on it are of one session.
type punchPort struct {
	listener net.Listener
	port     uint16
	seen     []netip.AddrPort // from outside: one address for each family, or what a NAT is likely to take next
	foretold bool             // seen is that, so that no other dial may come between
	stop     context.CancelFunc
	lost     <-chan struct{} // closed when it is no longer observed
}

// local returns the address to dial remote from.
func (p *punchPort) local(remote netip.AddrPort) netip.AddrPort {
	from := addrPort(p.listener.Addr()).Addr()
	switch {
	case from.IsValid() && !from.IsUnspecified():
	case remote.Addr().Is4():
		from = netip.IPv4Unspecified()
	default:
		from = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(from, p.port)
}

// candidates returns what a session that has the port offers.
func (p *punchPort) candidates() []Candidate {
	if p == nil {
		return nil
	}
	var found []Candidate
	for _, a := range p.seen {
		found = append(found, Candidate{Type: Reflexive, Addr: a})
	}
	return found
}

// close ends the listening and the observing. A connection that the port
// carries goes on.
func (p *punchPort) close() {
	p.stop()
	_ = p.listener.Close()
}

// punchPorts keeps an Endpoint's ports.
type punchPorts struct {
	e      *Endpoint
	shared sharedListener
	refill chan struct{} // capacity 1: fewer are free than should be
	filled chan struct{} // closed when it was tried for the first time

	mu        sync.Mutex
	free      []*punchPort
	seen      []gather.Observation // by which nat was told
	pointless bool                 // the IPv4 NAT shows every destination another port
	ordered   bool                 // and these seem to have an order
	answered  bool                 // when last asked, some witness had a word for us: it may be worth waiting for
}

func newPunchPorts(e *Endpoint) *punchPorts {
	shared, ok := e.network.(sharedListener)
	if !ok || e.Addr().Addr().IsLoopback() { // which no NAT is in front of
		return nil
	}
	return &punchPorts{e: e, shared: shared, refill: make(chan struct{}, 1), filled: make(chan struct{})}
}

// run keeps the pool filled until ctx, that of the Endpoint, ends. Ports do so, too.
func (p *punchPorts) run(ctx context.Context) {
	known := p.e.relays.await(ctx)
	for first := true; ; first = false {
		pause := observeEvery
		if err := p.fill(ctx, known); err != nil {
			pause = punchRetry
		}
		if first {
			close(p.filled)
		}
		select {
		case <-p.refill:
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		known = p.e.relays.current()
	}
}

// forget drops what was learned of a network that we may have left.
func (p *punchPorts) forget() {
	if p == nil {
		return
	}
	p.mu.Lock()
	for _, port := range p.free {
		port.close()
	}
	p.free, p.pointless, p.ordered, p.seen = nil, false, false, nil
	p.mu.Unlock()
	p.wantMore()
}

// wantMore has run fill the pool soon.
func (p *punchPorts) wantMore() {
	select {
	case p.refill <- struct{}{}:
	default:
	}
}

// fill opens ports until enough are free.
func (p *punchPorts) fill(ctx context.Context, known relaying) error {
	p.mu.Lock()
	p.free = live(p.free)
	missing, pointless := punchPool-len(p.free), p.pointless
	p.mu.Unlock()
	if pointless && p.ownIPv6(0) == nil {
		return nil
	}
	failed := make([]error, max(missing, 0))
	var all sync.WaitGroup
	for i := range failed {
		// Owned and waited for by this call; its own deadline ends it.
		all.Go(func() {
			var port *punchPort
			if port, failed[i] = p.open(ctx, known, keeping, false); failed[i] == nil {
				p.mu.Lock()
				p.free = append(p.free, port)
				p.mu.Unlock()
			}
		})
	}
	all.Wait()
	return errors.Join(failed...)
}

// live returns the ports that are still observed, and closes the others.
func live(ports []*punchPort) []*punchPort {
	var alive []*punchPort
	for _, p := range ports {
		select {
		case <-p.lost:
			p.close()
		default:
			alive = append(alive, p)
		}
	}
	return alive
}

// take returns a port for one session, which closes it, or nil if there is none
// to be had. When more sessions begin at once than ports are ready, it waits a
// moment. leg says that a leg to the relay will be opened before the session dials.
func (p *punchPorts) take(ctx context.Context, leg bool) *punchPort {
	if p == nil {
		return nil
	}
	defer p.wantMore()
	p.mu.Lock()
	p.free = live(p.free)
	w, known := hurrying, p.e.relays.current()
	if p.pointless && p.ordered {
		w = foretelling
	} else if n := len(p.free); n > 0 {
		port := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return port
	}
	if !p.answered {
		known = relaying{} // nobody would tell us in time
	}
	pointless := p.pointless && !p.ordered
	p.mu.Unlock()
	if pointless && p.ownIPv6(0) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hurriedTake)
	defer cancel()
	port, err := p.open(ctx, known, w, leg)
	if err != nil {
		return nil // the others race on
	}
	return port
}

// errNothingSeen is why a port is of no use.
var errNothingSeen = errors.New("nobody can say how the outside sees it")

// want is what a port is opened for.
type want uint8

const (
	keeping     want = iota // for the pool: the relay is asked to keep the connection for long, of which it allows only a few
	hurrying                // for a session that waits
	foretelling             // for a session that waits, behind a NAT that assigns ports in order
)

// open binds a port and has others observe it.
func (p *punchPorts) open(ctx context.Context, known relaying, w want, leg bool) (*punchPort, error) {
	if known.lease == nil && len(known.stun) == 0 && p.ownIPv6(0) == nil {
		return nil, errNothingSeen
	}
	var at netip.Addr
	if a := p.e.Addr().Addr(); !a.IsUnspecified() {
		at = a // as the configuration wants it
	}
	listener, err := p.shared.ListenShared(ctx, netip.AddrPortFrom(at, 0))
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(p.e.ctx)
	port := &punchPort{listener: listener, port: addrPort(listener.Addr()).Port(), stop: stop}
	observers := p.observeAll(ctx, port, known, w)
	var v4, v6 []netip.AddrPort // what was seen
	for _, o := range observers {
		if o.seen.Addr().Is4() {
			v4 = append(v4, o.seen)
		} else {
			v6 = append(v6, o.seen)
		}
	}
	if len(v6) == 0 { // there is no NAT, as a rule, but there may be a firewall
		v6 = p.ownIPv6(port.port)
	}
	port.seen = v6[:min(len(v6), 1)]
	switch independent := p.judge(observers); {
	case independent:
		port.seen = append(port.seen, v4[0])
	case w == foretelling:
		if next := foretell(v4, leg); next != nil {
			port.seen, port.foretold = next, true
		}
	}
	if w == keeping {
		observers = oneOfEach(observers)
	}
	lost := make(chan struct{})
	port.lost = lost
	if len(port.seen) == 0 {
		err = errNothingSeen
	} else if !p.e.inBackground(func(context.Context) {
		defer p.wantMore()
		defer close(lost)
		keepObserved(life, observers)
		_ = listener.Close()
	}) {
		err = ErrClosed
	}
	if err != nil {
		port.close()
		for _, o := range observers {
			_ = abort(o.conn)
		}
		return nil, err
	}
	p.e.inBackground(func(context.Context) { p.e.acceptLoop(listener, port) }) // if it is closed by now, so is the port
	return port, nil
}

// foretell returns the addresses that the next dials from a port will probably
// seem to come from, the likeliest first, nil if the ports seen have no order. If
// a leg to the relay is opened it takes the first.
func foretell(seen []netip.AddrPort, leg bool) []netip.AddrPort {
	var ports []uint16
	for _, s := range seen {
		ports = append(ports, s.Port())
	}
	next := gather.Predict(ports, maxPunched+1)
	if len(next) == 0 {
		return nil
	}
	if leg {
		next = next[1:]
	}
	addr := seen[len(seen)-1].Addr()
	var found []netip.AddrPort
	for _, port := range next[:maxPunched] {
		found = append(found, netip.AddrPortFrom(addr, port))
	}
	return found
}

// ownIPv6 returns the best global IPv6 address of this host with the port.
func (p *punchPorts) ownIPv6(port uint16) []netip.AddrPort {
	addrs, err := p.e.network.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if a.Is6() && !private(a) {
			return []netip.AddrPort{netip.AddrPortFrom(a, port)}
		}
	}
	return nil
}

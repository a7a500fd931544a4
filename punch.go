package dtcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// This file is what hole punching needs (Section 4 of protocol.md): local ports
// at which we listen, from which we dial, and whose address as the outside sees
// it is known, because a connection to our relay is kept alive from each.

const (
	punchPool    = 2                // ports kept observed ahead of sessions
	observeEvery = 25 * time.Second // a NAT may forget an idle mapping
	observeTime  = 5 * time.Second  // for an answer
	punchTime    = 5 * time.Second  // of dialing again
	maxPunched   = 2                // candidates that are dialed from the punch port
	hurriedTake  = time.Second      // that an offer waits for a port when none is ready
	punchRetry   = 10 * time.Second // before what could not be observed is tried again
	hostFirst    = time.Millisecond // head start of a port that is open to all, where there may be no need for a hole
)

// sharedListener is a [Network] whose listeners can share their port with dials.
// One that is not does not punch holes.
type sharedListener interface {
	// ListenShared is as Listen, and dials may leave from the port as well.
	ListenShared(ctx context.Context, local netip.AddrPort) (net.Listener, error)
}

// punchPort is one such port. A session has it to itself.
type punchPort struct {
	listener net.Listener
	port     uint16
	seen     []netip.AddrPort // from outside: one address for each family at the most
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
	pointless error // the NAT shows every destination another port
	closed    bool
}

func newPunchPorts(e *Endpoint) *punchPorts {
	shared, ok := e.network.(sharedListener)
	if !ok || e.Addr().Addr().IsLoopback() { // which no NAT is in front of
		return nil
	}
	return &punchPorts{e: e, shared: shared, refill: make(chan struct{}, 1), filled: make(chan struct{})}
}

// errPointless is why no reflexive candidate is offered behind such a NAT.
var errPointless = errors.New("the NAT takes another port for every destination, so that a hole cannot be punched from here")

// run keeps the pool filled until ctx ends.
func (p *punchPorts) run(ctx context.Context) {
	defer p.drain()
	l := p.e.relays.await(ctx).lease
	for first := true; ; first = false {
		pause := observeEvery
		if err := p.fill(ctx, l); err != nil {
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
		l = p.e.relays.current().lease
	}
}

// drain closes what is free, when the Endpoint is closed.
func (p *punchPorts) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, port := range p.free {
		port.close()
	}
	p.free = nil
}

// fill opens ports until enough are free.
func (p *punchPorts) fill(ctx context.Context, l *lease) error {
	p.mu.Lock()
	p.free = live(p.free)
	missing := punchPool - len(p.free)
	if p.pointless != nil {
		missing = 0
	}
	p.mu.Unlock()
	failed := make([]error, max(missing, 0))
	var all sync.WaitGroup
	for i := range failed {
		// Owned and waited for by this call; its own deadline ends it.
		all.Go(func() {
			var port *punchPort
			if port, failed[i] = p.open(ctx, l, true); failed[i] == nil {
				p.give(port)
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

// take returns a port for one session, or nil if there is none to be had. When
// more sessions begin at once than ports are ready, it waits a moment.
func (p *punchPorts) take(ctx context.Context, l *lease) *punchPort {
	if p == nil {
		return nil
	}
	select {
	case p.refill <- struct{}{}:
	default:
	}
	p.mu.Lock()
	p.free = live(p.free)
	pointless := p.pointless != nil || p.closed
	if n := len(p.free); n > 0 && !pointless {
		port := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return port
	}
	p.mu.Unlock()
	if pointless {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hurriedTake)
	defer cancel()
	port, err := p.open(ctx, l, false)
	if err != nil {
		return nil // the others race on
	}
	return port
}

// give puts a port into the pool that carries nothing, or closes it if there
// are enough.
func (p *punchPorts) give(port *punchPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.free) >= punchPool {
		port.close()
		return
	}
	p.free = append(p.free, port)
}

// errNothingSeen is why a port is of no use.
var errNothingSeen = errors.New("nobody can say how the outside sees it")

// open binds a port and has the relay observe it. If kept, the relay is asked to
// keep the connection for as long as we do, of which it allows only a few.
func (p *punchPorts) open(ctx context.Context, l *lease, kept bool) (*punchPort, error) {
	if l == nil && p.ownIPv6(0) == nil {
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
	observers := p.observeAll(ctx, port, l, kept)
	var v4, v6 []netip.AddrPort // what was seen
	for _, o := range observers {
		if o.seen.Addr().Is4() {
			v4 = append(v4, o.seen)
		} else {
			v6 = append(v6, o.seen)
		}
	}
	if len(v4) > 1 && v4[0] != v4[1] {
		p.mu.Lock()
		p.pointless = errPointless
		p.mu.Unlock()
		v4 = nil
	}
	if len(v6) == 0 { // there is no NAT, as a rule, but there may be a firewall
		v6 = p.ownIPv6(port.port)
	}
	for _, seen := range [][]netip.AddrPort{v6, v4} {
		if len(seen) > 0 {
			port.seen = append(port.seen, seen[0])
		}
	}
	if len(port.seen) == 0 {
		stop()
		_ = listener.Close()
		for _, o := range observers {
			_ = abort(o.conn)
		}
		return nil, errNothingSeen
	}
	lost := make(chan struct{})
	port.lost = lost
	p.e.tasks.Add(2)
	// Owned by the Endpoint, ended by the closing of the port or of the Endpoint,
	// waited for by Close.
	go func() {
		defer p.e.tasks.Done()
		p.e.acceptLoop(listener, port)
	}()
	go func() {
		defer p.e.tasks.Done()
		defer close(lost)
		keepObserved(life, observers)
		_ = listener.Close()
	}()
	return port, nil
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

// observers returns the addresses of the relay that are asked how they see us:
// two of IPv4, whose answers are compared, and one of IPv6.
func (l *lease) observers() []netip.AddrPort {
	var v4, v6 []netip.AddrPort
	for _, h := range l.hosts {
		for _, at := range h.at {
			switch {
			case at.Addr().Is6():
				v6 = append(v6, at)
			case len(v4) == 0 || v4[0].Addr() != at.Addr():
				v4 = append(v4, at)
			}
		}
	}
	return append(v4[:min(len(v4), 2)], v6[:min(len(v6), 1)]...)
}

// observer is a connection to the relay over which it says how it sees us.
type observer struct {
	conn net.Conn
	t    *transport
	seen netip.AddrPort
}

// observeAll connects to the relay's addresses from a port, and returns those
// connections that have said how they see us.
func (p *punchPorts) observeAll(ctx context.Context, port *punchPort, l *lease, kept bool) []*observer {
	if l == nil {
		return nil
	}
	asked := l.observers()
	found := make([]*observer, len(asked))
	var all sync.WaitGroup
	for i, at := range asked {
		// Owned and waited for by this call; its own deadline ends it.
		all.Go(func() { found[i], _ = p.observe(ctx, port, l, at, kept) })
	}
	all.Wait()
	return slices.DeleteFunc(found, func(o *observer) bool { return o == nil })
}

// observe connects to the relay from a port and asks.
func (p *punchPorts) observe(ctx context.Context, port *punchPort, l *lease, at netip.AddrPort, kept bool) (*observer, error) {
	ctx, cancel := context.WithTimeout(ctx, observeTime)
	defer cancel()
	c, err := p.e.network.Dial(ctx, port.local(at), at)
	if err != nil {
		return nil, err
	}
	o := &observer{conn: c, t: newTransport(c)}
	line := wire.Line{Command: wire.Observe}
	if kept {
		line = l.claim(wire.Observe, "", time.Now())
	}
	stop := o.t.interrupt(ctx)
	err = o.ask(line)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = abort(c)
		return nil, err
	}
	return o, nil
}

// ask says line, and reads how we are seen.
func (o *observer) ask(line wire.Line) error {
	if err := o.conn.SetDeadline(time.Now().Add(observeTime)); err != nil {
		return err
	}
	if err := o.t.send(line.Command, line.Argument); err != nil {
		return err
	}
	answer, err := o.t.line()
	if err != nil {
		return err
	}
	if answer.Command != wire.OK {
		return fmt.Errorf("the relay does not observe: %s", answer.Argument)
	}
	seen, err := netip.ParseAddrPort(answer.Argument)
	if err != nil {
		return err
	}
	seen = unmap(seen)
	if o.seen.IsValid() && o.seen != seen {
		return errors.New("the address has changed")
	}
	o.seen = seen
	return nil
}

// keepObserved asks again and again, so that the mapping stays, until life ends
// or one of them fails.
func keepObserved(life context.Context, observers []*observer) {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	defer func() {
		for _, o := range observers {
			_ = abort(o.conn)
		}
	}()
	for {
		select {
		case <-ticker.C:
		case <-life.Done():
			return
		}
		for _, o := range observers {
			stop := o.t.interrupt(life)
			err := o.ask(wire.Line{Command: wire.Observe})
			if !stop() || err != nil {
				return
			}
		}
	}
}

// errCrossed says that a connection between the same two ports exists already.
var errCrossed = errors.New("the peer's own connection got there first")

// punch dials remote from the session's punch port, and again whenever it is
// refused, for a while: a pinhole is open from our SYN until its reset returns,
// so dialing again at the refusal keeps it open, and the two ends' SYNs cross in
// the end (Section 4 of protocol.md, "Punching"). The gap is drawn anew each
// time, or two ends could stay out of step for ever.
func (a *attempt) punch(remote netip.AddrPort) (net.Conn, error) {
	local := a.s.port.local(remote)
	if a.s.hostAt(remote.Addr()) {
		if err := a.pause(hostFirst); err != nil {
			return nil, err
		}
	}
	for began := time.Now(); ; {
		dialed := time.Now()
		c, err := a.s.e.network.Dial(a.ctx, local, remote)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EADDRINUSE):
			return nil, errCrossed
		case !turnedAway(err) || time.Since(began) >= punchTime:
			return nil, err
		}
		if err := a.pause(time.Until(dialed.Add(a.s.e.gap(punchGap(dialed.Sub(began)))))); err != nil {
			return nil, err
		}
	}
}

// hostAt reports whether we also dial the peer at a listening port of its own at
// the same address: there is no NAT, but perhaps a firewall.
func (s *session) hostAt(addr netip.Addr) bool {
	return slices.ContainsFunc(s.targets, func(c Candidate) bool { return c.Type == Host && c.Addr.Addr() == addr })
}

// pause waits, or returns why the attempt is over.
func (a *attempt) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

// turnedAway reports whether a dial was answered by somebody who refuses it, and
// may not do so the next time.
func turnedAway(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EHOSTUNREACH)
}

// punchGap returns the bounds of the time between two dials, so long after the
// first.
func punchGap(since time.Duration) (least, most time.Duration) {
	if since < 2*time.Second {
		return 10 * time.Millisecond, 30 * time.Millisecond
	}
	return 50 * time.Millisecond, 150 * time.Millisecond
}

package dtcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather"
	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// This file is what an Endpoint offers to be dialed at, and how it comes by it.

// gatherTime is how long the first offer waits for relay and witnesses (design.md,
// "Traps"); for gateways see [portmap.Report.Awaited].
const gatherTime = time.Second

// gather begins to look for what else can be offered than our own addresses.
func (e *Endpoint) gather() {
	if !e.config.NoRelay {
		e.relays = newRelays(e.signaling, e.config.Relays)
		e.relays.resolve = e.resolve
		e.inBackground(e.relays.run)
		if e.punching = newPunchPorts(e); e.punching != nil {
			e.inBackground(e.punching.run)
		}
	}
	outside := !e.Addr().Addr().IsLoopback()
	if e.config.Gateway && outside && !e.public.IsValid() {
		e.mapper = portmap.New(portmap.Config{Methods: portmap.All, Port: e.Addr().Port()})
	}
	if outside && e.config.Network == nil {
		e.inBackground(e.watch)
	}
	e.inBackground(e.awaitGathered)
}

// inBackground runs f in a goroutine that is owned by the Endpoint, ended by its
// context, and waited for by Close. It reports whether it did so: not once the
// Endpoint is closed.
func (e *Endpoint) inBackground(f func(context.Context)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.tasks.Add(1)
	go func() { // see above
		defer e.tasks.Done()
		f(e.ctx)
	}()
	return true
}

// awaitGathered closes ready when there is nothing to wait for any more.
func (e *Endpoint) awaitGathered(ctx context.Context) {
	defer close(e.ready)
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	e.relays.await(bounded)
	if e.punching != nil {
		select {
		case <-e.punching.filled:
		case <-bounded.Done():
		}
	}
	for e.mapper != nil && ctx.Err() == nil {
		report, changed := e.mapper.Report()
		if !report.Awaited(time.Since(began)) {
			return
		}
		select {
		case <-changed:
		case <-time.After(gatherTime / 10): // its answer changes with time, too
		case <-ctx.Done():
		}
	}
}

// watch has everything that was learned of the network looked at anew when the
// machine may have come into another.
func (e *Endpoint) watch(ctx context.Context) {
	w := gather.Watch()
	defer w.Close()
	for {
		select {
		case <-w.Changed():
		case <-ctx.Done():
			return
		}
		if s, ok := e.signaling.(interface{ Probe() }); ok {
			s.Probe() // its connection may be of the network that was left
		}
		e.relays.forget()
		e.punching.forget()
		if e.mapper != nil {
			e.mapper.Refresh()
		}
	}
}

// drawGap draws a time at random.
func drawGap(least, most time.Duration) time.Duration { return least + rand.N(most-least+1) }

// Ready returns a channel that is closed when all that can be offered has been
// gathered, or a second after [NewEndpoint]; up to three if UPnP is the one way
// left to ask a gateway. Dial and the answers to requests wait for it.
func (e *Endpoint) Ready() <-chan struct{} { return e.ready }

// AwaitRelay waits until the search for a relay that [NewEndpoint] has begun is
// over, 10 s at most. It returns the address of the relay, or XEP-0065 proxy, that
// lends this end an address at this moment, or why none does: a [*stanza.Error] is
// a refusal.
func (e *Endpoint) AwaitRelay(ctx context.Context) (jid.JID, error) {
	switch known := e.relays.await(ctx); {
	case known.lease != nil:
		return known.lease.relay, nil
	case known.proxy != nil:
		return known.proxy.jid, nil
	case known.err != nil:
		return jid.JID{}, fmt.Errorf("dtcp: %w", known.err)
	case ctx.Err() != nil:
		return jid.JID{}, ctx.Err()
	}
	return jid.JID{}, fmt.Errorf("dtcp: %w", e.noRelay())
}

// noRelay returns why there is no lease where nobody was named.
func (e *Endpoint) noRelay() error {
	if e.relays == nil {
		return errors.New("the configuration (NoRelay) has none looked for")
	}
	return errors.New("the server lists neither a relay nor a proxy")
}

// Candidates returns what the Endpoint offers at this moment, best first; of a
// relay only an address that a lease is there for.
func (e *Endpoint) Candidates() []Candidate {
	return e.candidates(Any, e.relays.current(), nil, "")
}

// candidates returns what is offered under a policy, of relays what is known of
// them, to a session with this key and, unless it is nil, a punch port.
func (e *Endpoint) candidates(p PathPolicy, known relaying, port *punchPort, key string) []Candidate {
	var relayed, direct []Candidate
	if p != DirectOnly {
		relayed = append(known.lease.candidates(), known.proxy.candidates(key)...)
	}
	if p != RelayOnly {
		direct = e.direct()
		punched := port.candidates()
		direct = append(direct[:min(len(direct), maxCandidates-len(relayed)-len(punched))], punched...)
	}
	return append(direct, relayed...)
}

// direct returns the addresses at which we can be dialed ourselves.
func (e *Endpoint) direct() []Candidate {
	local := e.Addr()
	var found []Candidate
	if addr := local.Addr(); addr.IsValid() && !addr.IsUnspecified() {
		found = append(found, Candidate{Type: Host, Addr: local})
	} else {
		addrs, err := e.network.Addrs()
		if err != nil {
			addrs = nil // then we can only dial
		}
		for _, a := range addrs {
			found = append(found, Candidate{Type: Host, Addr: netip.AddrPortFrom(a, local.Port())})
		}
	}
	for i, mapped := range e.mapped() {
		known := slices.ContainsFunc(found, func(c Candidate) bool { return c.Addr == mapped })
		if !known {
			found = slices.Insert(found, min(1+i, len(found)), Candidate{Type: Mapped, Addr: mapped})
		}
	}
	return found
}

// mapped returns the addresses from which a gateway leads to the listening port:
// the one configured, or those that gateways have told.
func (e *Endpoint) mapped() []netip.AddrPort {
	switch {
	case e.public.IsValid() && e.public.Port() == 0:
		return []netip.AddrPort{netip.AddrPortFrom(e.public.Addr(), e.Addr().Port())}
	case e.public.IsValid():
		return []netip.AddrPort{e.public}
	case e.mapper == nil:
		return nil
	}
	report, _ := e.mapper.Report()
	external := report.External()
	return external[:min(len(external), maxPunched)]
}

// offer makes our half of a negotiation. session is nil if the peer is a stock
// one. ctx ends the wait for a punch port, if there is one.
func (e *Endpoint) offer(ctx context.Context, s *session, p PathPolicy, session *sessionOffer) offer {
	if p != DirectOnly {
		s.lent = e.relays.current()
	}
	if session == nil {
		s.lent.proxy = nil // of which stock peers know nothing
	}
	if p != RelayOnly && session != nil {
		ctx, cancel := context.WithCancel(ctx)
		defer context.AfterFunc(e.ctx, cancel)()
		s.port = e.punching.take(ctx, s.lent.lease != nil)
		cancel()
	}
	s.hidden = p == RelayOnly
	candidates := e.candidates(p, s.lent, s.port, s.key)
	o := offer{key: s.key, session: session}
	s.indirect = true
	for _, c := range candidates {
		if c.Type.direct() {
			s.indirect = false
			if len(o.hosts) < maxHosts-1 {
				o.hosts = append(o.hosts, c.Addr) // the best two
			}
		}
	}
	if relay, ok := s.lent.lease.literal(); ok {
		o.hosts = append(o.hosts, relay)
	}
	if session != nil {
		session.fingerprint, session.ephemeral, session.candidates = e.fingerprint, e.ephemeral, candidates
	}
	return o
}

// awaitOffer waits until there is what to offer under a policy.
func (e *Endpoint) awaitOffer(ctx context.Context, policy PathPolicy) error {
	select {
	case <-e.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if policy != RelayOnly {
		return nil
	}
	known := e.relays.await(ctx)
	switch {
	case known.lease != nil, known.proxy != nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case known.err != nil:
		return fmt.Errorf("%w: only relayed streams are wanted, and our relay lends us nothing: %w", ErrPolicy, known.err)
	}
	return fmt.Errorf("%w: only relayed streams are wanted, and there is no relay: %w", ErrPolicy, e.noRelay())
}

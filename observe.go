package dtcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather"
	"github.com/dtcp-relay/dtcp/internal/gather/stun"
	"github.com/dtcp-relay/dtcp/internal/wire"
)

// This file asks others how they see a punch port (Section 3 of protocol.md,
// "Observe"): our relay, and STUN servers (RFC 8489).

const (
	observeEvery = 25 * time.Second // a NAT may forget an idle mapping
	observeTime  = 5 * time.Second  // for an answer
)

// witness is a server that is asked how it sees us.
type witness struct {
	at   netip.AddrPort
	stun bool // it speaks STUN; otherwise it is the relay
}

// maxWitnesses of each family are asked: the answers of two are compared.
const maxWitnesses = 2

// witnesses returns the addresses of the relay, and those of STUN servers where
// they do not suffice.
func (p *punchPorts) witnesses(ctx context.Context, known relaying) []witness {
	var v4, v6 []witness
	add := func(w witness) {
		list := &v6
		if w.at.Addr().Is4() {
			list = &v4
		}
		same := slices.ContainsFunc(*list, func(o witness) bool { return o.at.Addr() == w.at.Addr() })
		if len(*list) < maxWitnesses && !same {
			*list = append(*list, w)
		}
	}
	if known.lease != nil {
		for _, h := range known.lease.hosts {
			for _, at := range h.at {
				add(witness{at: at})
			}
		}
	}
	if len(v4) < maxWitnesses {
		for _, c := range known.stun {
			at := []netip.AddrPort{c.Addr}
			if c.Name != "" {
				at, _ = p.e.resolve(ctx, c) // one less to be asked
			}
			for _, a := range at {
				add(witness{a, true})
			}
		}
	}
	if known.lease != nil && len(v4) == 1 {
		// Another port of the one address shows less, and better than nothing.
		for _, h := range known.lease.hosts {
			for _, at := range h.at {
				if at.Addr() == v4[0].at.Addr() && at != v4[0].at && len(v4) < maxWitnesses {
					v4 = append(v4, witness{at: at})
				}
			}
		}
	}
	return append(v4, v6[:min(len(v6), 1)]...) // there are hardly NATs to compare in IPv6
}

// observer is a connection to a witness.
type observer struct {
	witness
	conn  net.Conn
	t     *transport // to a relay
	lease *lease     // of that
	seen  netip.AddrPort
}

// observeAll connects to the witnesses from a port, and returns those connections
// over which they have said how they see us.
func (p *punchPorts) observeAll(ctx context.Context, port *punchPort, known relaying, w want) []*observer {
	ctx, cancel := context.WithTimeout(ctx, observeTime)
	defer cancel()
	asked := p.witnesses(ctx, known)
	found := make([]*observer, len(asked))
	failed := make([]error, len(asked))
	var all sync.WaitGroup
	for i, witness := range asked {
		// The relay keeps a few of our connections for long: one of a port and family.
		kept := w == keeping && (i == 0 || asked[i-1].at.Addr().Is4() != witness.at.Addr().Is4())
		// Owned and waited for by this call; ctx ends it.
		all.Go(func() { found[i], failed[i] = p.observe(ctx, port, known.lease, witness, kept) })
		if w == foretelling {
			all.Wait() // their order is what matters
		}
	}
	all.Wait()
	found = slices.DeleteFunc(found, func(o *observer) bool { return o == nil })
	if len(asked) > 0 {
		var refused *RelayError // which is a word, too
		p.mu.Lock()
		p.answered = len(found) > 0 || errors.As(errors.Join(failed...), &refused)
		p.mu.Unlock()
	}
	return found
}

// oneOfEach returns the first observer of each family, which is enough to keep a
// NAT's mapping, and ends the others.
func oneOfEach(observers []*observer) []*observer {
	var kept []*observer
	for i, o := range observers {
		if i == 0 || observers[i-1].at.Addr().Is4() != o.at.Addr().Is4() {
			kept = append(kept, o)
		} else {
			_ = abort(o.conn)
		}
	}
	return kept
}

// observe connects to a witness from a port and asks.
func (p *punchPorts) observe(ctx context.Context, port *punchPort, l *lease, w witness, kept bool) (*observer, error) {
	c, err := p.e.network.Dial(ctx, port.local(w.at), w.at)
	if err != nil {
		return nil, err
	}
	o := &observer{witness: w, conn: c, t: newTransport(c), lease: l}
	line := wire.Line{Command: wire.Observe}
	if kept && !w.stun {
		line = l.claim(wire.Observe, "", time.Now())
	}
	if err := o.ask(ctx, line); err != nil {
		_ = abort(c)
		return nil, err
	}
	return o, nil
}

// ask asks how we are seen, a relay by line, and fails when that has changed.
func (o *observer) ask(ctx context.Context, line wire.Line) error {
	seen, err := o.answer(ctx, line)
	if err != nil {
		return err
	}
	switch seen = unmap(seen); {
	case seen.Port() == 0, seen.Addr().Zone() != "", seen.Addr().Is4() != o.at.Addr().Is4():
		return errNotAnAddress
	case o.seen.IsValid() && o.seen != seen:
		return errors.New("the address has changed")
	}
	o.seen = seen
	return nil
}

// errNotAnAddress is why a witness is not believed.
var errNotAnAddress = errors.New("it says that it sees what is no address of ours")

func (o *observer) answer(ctx context.Context, line wire.Line) (netip.AddrPort, error) {
	if o.stun {
		return stun.Ask(ctx, o.conn)
	}
	stop := o.t.interrupt(ctx)
	defer stop()
	if err := o.conn.SetDeadline(time.Now().Add(observeTime)); err != nil {
		return netip.AddrPort{}, err
	}
	if err := o.t.send(line.Command, line.Argument); err != nil {
		return netip.AddrPort{}, err
	}
	answer, err := o.t.line()
	switch {
	case err != nil:
		return netip.AddrPort{}, err
	case ctx.Err() != nil:
		return netip.AddrPort{}, ctx.Err()
	case answer.Command != wire.OK:
		return netip.AddrPort{}, refusedBy(o.lease, answer)
	}
	return netip.ParseAddrPort(answer.Argument)
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
			if o.ask(life, wire.Line{Command: wire.Observe}) != nil {
				return
			}
		}
	}
}

// maxStep is how far apart the ports of two dials may be that a NAT has assigned
// one after the other, while others behind it dial, too.
const maxStep = 16

// judge learns from what was seen of one port what the NAT does, and reports
// whether an observed IPv4 port is the one that peers would see.
func (p *punchPorts) judge(observers []*observer) bool {
	var seen []gather.Observation
	for _, o := range observers {
		if o.seen.Addr().Is4() {
			seen = append(seen, gather.Observation{Local: addrPort(o.conn.LocalAddr()), Server: o.at, Seen: o.seen})
		}
	}
	if len(seen) == 0 {
		return false
	}
	nat := gather.Classify(seen, netip.Addr{})
	p.mu.Lock()
	defer p.mu.Unlock()
	if nat.Mapping != gather.MappingUnknown || p.seen == nil {
		p.seen = seen
	}
	if nat.Mapping == gather.AddressDependent || nat.Mapping == gather.AddressAndPortDependent {
		first, last := int(seen[0].Seen.Port()), int(seen[len(seen)-1].Seen.Port())
		p.pointless, p.ordered = true, max(first-last, last-first) <= maxStep
		return false
	}
	if nat.Mapping != gather.MappingUnknown {
		p.pointless = false // a misjudgement, or another NAT
	}
	return true
}

package relay

import (
	"net/netip"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// This file has what can happen to a leg, for [pairing].

// arrive takes in a connection. Unless it is refused at once, the leg is fresh.
func (p *pairing) arrive(out []action, l *leg, from netip.AddrPort, now time.Time) []action {
	p.accepted++
	l.from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	l.addr = p.addresses.account(origin(from.Addr()), now)
	if !l.addr.handshake(now) {
		l.late = RefusedAddressHandshakes
	}
	if p.closed {
		return p.release(out, l, now)
	}
	if l.addr.halfOpen >= l.addr.quota.HalfOpen {
		return p.refuse(out, l, refusal(RefusedAddressHalfOpen), RefusedAddressHalfOpen, now)
	}
	if p.connections() >= p.limits.Connections+p.limits.Connections/16 {
		// Who means well has said something by now, unless he came in the last
		// moment; so the oldest is somebody who does harm.
		oldest := p.queues[fresh].head()
		if oldest == nil {
			return p.refuse(out, l, refusal(RefusedFull), RefusedFull, now)
		}
		out = p.refuse(out, oldest, "", RefusedFull, now)
	}
	p.become(l, fresh, now)
	return out
}

// refuse ends a leg with a text.
func (p *pairing) refuse(out []action, l *leg, text, reason string, now time.Time) []action {
	p.refused[reason]++
	a := action{do: end, leg: l, text: text, reason: reason}
	if l.owner != nil {
		a.owner = l.owner.name
	}
	p.become(l, over, now)
	return append(out, a)
}

// line tells what a leg has said: a line without its LF, or what is too long to
// be one. Only the lines of legs that are fresh or observing are to be read.
func (p *pairing) line(out []action, l *leg, text []byte, now time.Time) []action {
	if l.state != fresh && l.state != observing {
		return out // it has been told to end, and does not know yet
	}
	line, err := wire.Parse(text)
	if err != nil || len(text) >= wire.MaxLine {
		return p.refuse(out, l, plain, RefusedUnknown, now)
	}
	if l.lines++; l.lines > 1 && !l.addr.handshake(now) {
		l.late = RefusedAddressHandshakes
	}
	claims := line.Command == wire.Serve || line.Command == wire.Observe
	switch {
	case l.late != "" && claims:
		return p.refuse(out, l, refusal(l.late), l.late, now)
	case l.late != "":
		return p.refuse(out, l, plain, l.late, now)
	case l.state == observing && line.Command != wire.Observe:
	case l.state == fresh && l.lines > wire.MaxCommands:
	case line.Command == wire.Observe:
		return p.observe(out, l, line, now)
	case line.Command == wire.Serve:
		return p.serve(out, l, line, now)
	case line.Command == wire.Key && wire.ValidKey(line.Argument):
		return p.dial(out, l, line.Argument, now)
	case line.Command == wire.StartTLS && l.lines == 1:
		// A stock dialer. It goes on without (Section 3 of protocol.md).
		return append(out, action{do: say, leg: l, text: plain})
	}
	return p.refuse(out, l, plain, RefusedUnknown, now)
}

// open tells that a leg does not begin with a line, and whether that is spoken
// here: TLS, inside of which lines follow, or SOCKS5, after which propose does.
// Nothing is said to who is refused, who would not understand it.
func (p *pairing) open(out []action, l *leg, spoken bool, now time.Time) []action {
	switch {
	case l.state != fresh: // it has been told to end, and does not know yet
		return out
	case !spoken:
		return p.refuse(out, l, "", RefusedUnknown, now)
	case l.late != "":
		return p.refuse(out, l, "", l.late, now)
	}
	l.shake.leave()
	p.opening.push(l, &l.shake)
	if p.opening.n > maxOpening {
		return p.refuse(out, p.opening.head(), "", RefusedHeld, now)
	}
	return out
}

// claim looks at a claim, and makes its owner the owner of the leg. It returns
// why that cannot be.
func (p *pairing) claim(l *leg, line wire.Line, now time.Time) (c wire.Claim, owner jid.JID, reason string) {
	if p.draining {
		return c, owner, RefusedShutdown
	}
	c, err := wire.ParseClaim(line)
	if err != nil {
		return c, owner, RefusedBadLease
	}
	lease, reason := p.judge(c, now)
	if reason != "" {
		return c, lease.owner, reason
	}
	a := p.owners.account(lease.owner, now)
	a.own = lease.quota
	a.limit(p.owners.quota.least(a.own), now)
	switch {
	case l.owner != nil && l.owner != a: // one connection, two owners
		reason = RefusedBadLease
	case !a.handshake(now):
		reason = RefusedOwnerHandshakes
	case l.owner == nil && a.halfOpen >= a.quota.HalfOpen:
		reason = RefusedOwnerHalfOpen
	case l.owner == nil:
		l.owner = a
		a.halfOpen++ // from here on it is counted by become
	}
	p.owners.settle(a, now)
	return c, lease.owner, reason
}

// serve takes in a listener's leg (Section 3 of protocol.md).
func (p *pairing) serve(out []action, l *leg, line wire.Line, now time.Time) []action {
	c, owner, reason := p.claim(l, line, now)
	if reason == "" {
		reason = p.unservable(l, c.Key, now)
	}
	if reason != "" {
		out = p.refuse(out, l, refusal(reason), reason, now)
		out[len(out)-1].owner = owner
		return out
	}
	l.name = strings.Clone(c.Key) // without the rest of the line, for as long as a stream lasts
	p.become(l, waiting, now)
	out = append(out, action{do: say, leg: l, text: observedLine(l)})
	return p.match(out, l.name, now)
}

// unservable returns why a leg whose claim is good cannot serve a key.
func (p *pairing) unservable(l *leg, key string, now time.Time) string {
	k := p.keys[key]
	switch {
	case k != nil && k.owner != nil && k.owner != l.owner:
		return RefusedInUse
	case k != nil && len(k.waiting) >= maxWaiting:
		return RefusedWaiting
	case l.owner.streams >= l.owner.quota.Streams:
		return RefusedOwnerStreams
	case l.addr.streams >= l.addr.quota.Streams:
		return RefusedAddressStreams
	case l.owner.bytes.exhausted(now):
		return RefusedOwnerBytes
	case l.addr.bytes.exhausted(now):
		return RefusedAddressBytes
	case p.full() && (k == nil || len(k.held) == 0 || k.joined >= maxJoined):
		return RefusedFull
	}
	return ""
}

// dial takes in a dialer's leg. The text of every refusal is the same: to the
// dialer the relay is the peer, which gives no reasons.
func (p *pairing) dial(out []action, l *leg, key string, now time.Time) []action {
	reason := ""
	k := p.keys[key]
	switch {
	case p.draining:
		reason = RefusedShutdown
	case l.addr.streams >= l.addr.quota.Streams:
		reason = RefusedAddressStreams
	case l.addr.bytes.exhausted(now):
		reason = RefusedAddressBytes
	case p.full() && (k == nil || len(k.waiting) == 0 || k.joined >= maxJoined):
		reason = RefusedFull
	}
	if reason != "" {
		return p.refuse(out, l, plain, reason, now)
	}
	l.name = key
	p.become(l, held, now)
	if out = p.match(out, key, now); l.state != held {
		return out
	}
	return p.crowd(out, l, l.addr.held > maxHeldPerAddress, maxHeld, plain, now)
}

// crowd makes room where strangers wait: if there are too many in the state of
// l, of its address or in all, the oldest of them ends with a text.
func (p *pairing) crowd(out []action, l *leg, ofAddress bool, most int, text string, now time.Time) []action {
	n := p.queues[l.state].first
	for ofAddress && n.of.addr != l.addr {
		n = n.next
	}
	if ofAddress || p.queues[l.state].n > most {
		return p.refuse(out, n.of, text, RefusedHeld, now)
	}
	return out
}

// match joins whoever waits for a key to the dialers that are held for it.
func (p *pairing) match(out []action, key string, now time.Time) []action {
	for k := p.keys[key]; k != nil && len(k.waiting) > 0 && len(k.held) > 0 && k.joined < maxJoined; {
		listener, dialer := k.waiting[0], k.held[0]
		k.joined++ // first, so that the key stays
		out = p.join(out, KindLease, listener, dialer, now)
	}
	return out
}

func (p *pairing) join(out []action, kind string, listener, dialer *leg, now time.Time) []action {
	p.become(listener, joined, now)
	p.become(dialer, joined, now)
	p.joined[kind]++
	s := &stream{kind: kind, listener: listener, dialer: dialer, start: now}
	p.streams.push(s, &s.queue)
	return append(out, action{do: join, leg: listener, stream: s})
}

// ended tells that a stream is over, and its connections closed.
func (p *pairing) ended(out []action, s *stream, now time.Time) []action {
	key := s.listener.name
	s.queue.leave()
	p.become(s.listener, over, now)
	p.become(s.dialer, over, now)
	if s.kind == KindProxy {
		return out
	}
	k := p.keys[key]
	k.joined--
	p.tidy(key, k)
	return p.match(out, key, now)
}

// observe answers what address the leg comes from (Section 3 of protocol.md):
// without a claim for as long as it may be fresh, with one for as long as it
// goes on asking, with or without.
func (p *pairing) observe(out []action, l *leg, line wire.Line, now time.Time) []action {
	answer := action{do: say, leg: l, text: observedLine(l)}
	if line.Argument == "" {
		if l.state == observing {
			p.become(l, observing, now)
		}
		return append(out, answer)
	}
	c, owner, reason := p.claim(l, line, now)
	switch {
	case reason != "":
	case c.Lease != l.name && p.observed[c.Lease] >= maxObserved:
		reason = RefusedObserved
	case l.state == fresh && p.full():
		reason = RefusedFull
	}
	if reason != "" {
		out = p.refuse(out, l, refusal(reason), reason, now)
		out[len(out)-1].owner = owner
		return out
	}
	if l.state == observing { // perhaps by an older lease of the same owner
		p.become(l, fresh, now)
	}
	l.name = c.Lease
	p.become(l, observing, now)
	return append(out, answer)
}

// observedLine is the answer to observe and serve.
func observedLine(l *leg) string { return wire.OK + ":" + l.from.String() + "\n" }

// gone tells that the connection of a leg has ended or failed. It reports
// whether that was news: if not, the shell has been told, or is about to be
// told, what becomes of the leg.
func (p *pairing) gone(l *leg, now time.Time) bool {
	if !l.state.halfOpen() {
		return false
	}
	p.become(l, over, now)
	return true
}

// next returns when expire has something to do; zero is never.
func (p *pairing) next() (t time.Time) {
	earliest := func(u time.Time) {
		if !u.IsZero() && (t.IsZero() || u.Before(t)) {
			t = u
		}
	}
	for i := range p.queues {
		if l := p.queues[i].head(); l != nil {
			earliest(l.due)
		}
	}
	earliest(p.addresses.next())
	earliest(p.owners.next())
	return t
}

// expire ends what has had its time.
func (p *pairing) expire(out []action, now time.Time) []action {
	for s := range p.queues {
		for l := p.queues[s].head(); l != nil && !now.Before(l.due); l = p.queues[s].head() {
			switch {
			case l.state == fresh && l.lines == 0:
				out = p.refuse(out, l, "", RefusedSilent, now)
			case l.state == held:
				out = p.refuse(out, l, plain, RefusedUnserved, now)
			case l.state == proposed:
				out = p.refuse(out, l, "", RefusedUnserved, now)
			default:
				out = p.release(out, l, now)
			}
		}
	}
	p.addresses.forget(now)
	p.owners.forget(now)
	return out
}

// release ends a leg without a word and without reproach.
func (p *pairing) release(out []action, l *leg, now time.Time) []action {
	p.become(l, over, now)
	return append(out, action{do: end, leg: l})
}

// deny ends all legs, and has all streams cut, whose owner is not allowed any
// more. Dialers have no owner, nor those who wait for the proxy.
func (p *pairing) deny(out []action, who admission, now time.Time) []action {
	for _, s := range []state{waiting, observing} {
		for n := p.queues[s].first; n != nil; {
			l := n.of
			n = n.next // before l leaves
			if !who.allows(l.owner.name) {
				out = p.refuse(out, l, refusal(RefusedDenied), RefusedDenied, now)
			}
		}
	}
	for n := p.streams.first; n != nil; n = n.next {
		if l := n.of.listener; !who.allows(l.owner.name) {
			p.refused[RefusedDenied]++
			out = append(out, action{do: cut, leg: l, stream: n.of, reason: RefusedDenied, owner: l.owner.name})
		}
	}
	return out
}

// ask reports whether owner may be lent something, as far as handshakes go.
func (p *pairing) ask(owner jid.JID, now time.Time) bool {
	a := p.owners.account(owner, now)
	defer p.owners.settle(a, now)
	return a.handshake(now)
}

// drain ends all that wait for somebody, and has all refused that come from now
// on. Streams go on.
func (p *pairing) drain(out []action, now time.Time) []action {
	p.draining = true
	for s, text := range [numStates]string{waiting: refusal(RefusedShutdown), observing: refusal(RefusedShutdown), held: plain} {
		if !state(s).halfOpen() || state(s) == fresh {
			continue
		}
		for l := p.queues[s].head(); l != nil; l = p.queues[s].head() {
			out = p.refuse(out, l, text, RefusedShutdown, now)
		}
	}
	return out
}

// shut is drain, and also ends those that have said nothing, and at once all that
// come from now on.
func (p *pairing) shut(out []action, now time.Time) []action {
	p.closed = true
	out = p.drain(out, now)
	for l := p.queues[fresh].head(); l != nil; l = p.queues[fresh].head() {
		out = p.release(out, l, now)
	}
	return out
}

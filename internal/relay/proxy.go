package relay

import (
	"io"
	"time"

	"github.com/dtcp-relay/dtcp/internal/socks5"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// This file is the XEP-0065 proxy: what becomes of connections that begin with
// SOCKS5. Two that propose the same stream wait until its requester activates it
// by an iq, and are then joined like any pair of legs.

// readProposal does the handshake on a connection whose first byte, not taken
// yet, is that of SOCKS5, up to and with the request. It takes no byte beyond,
// for what a client sends ahead of activation belongs to the stream. What it
// refuses it has answered; [pairing.propose] has the rest. How long it may take
// is for the core to say, which has the leg closed.
func readProposal(c io.ReadWriter) (socks5.Request, error) { return socks5.Read(c) }

// propose tells what came of [readProposal]. Of one stream there can be two
// legs, for nobody could tell which of three is not meant.
func (p *pairing) propose(out []action, l *leg, q socks5.Request, err error, now time.Time) []action {
	if l.state != fresh {
		return out // it has been told to end, and does not know yet
	}
	if err != nil {
		return p.refuse(out, l, "", RefusedUnknown, now)
	}
	reason, others := l.late, len(p.proposals[q.Addr])
	switch {
	case reason != "":
	case p.draining:
		reason = RefusedShutdown
	case others == 2:
		reason = RefusedInUse
	case l.addr.streams >= l.addr.quota.Streams:
		reason = RefusedAddressStreams
	case l.addr.bytes.exhausted(now):
		reason = RefusedAddressBytes
	case p.full() && others == 0:
		reason = RefusedFull
	}
	if reason != "" {
		return p.refuse(out, l, string(q.Answer(socks5.NotAllowed)), reason, now)
	}
	l.name = q.Addr
	p.become(l, proposed, now)
	out = append(out, action{do: say, leg: l, text: string(q.Answer(socks5.Succeeded))})
	return p.crowd(out, l, l.addr.proposed > maxProposedPerAddress, maxProposed, "", now)
}

// activate joins the two legs that have proposed a stream, which counts for
// owner, a bare JID, from then on; or it returns why not, RefusedUnserved if the
// two are not there. Then whoever is there stays.
func (p *pairing) activate(out []action, name string, owner jid.JID, now time.Time) (_ []action, reason string) {
	legs := p.proposals[name]
	a := p.owners.account(owner, now)
	switch {
	case p.draining:
		reason = RefusedShutdown
	case !a.handshake(now):
		reason = RefusedOwnerHandshakes
	case len(legs) < 2: // there can be no more
		reason = RefusedUnserved
	case a.streams >= a.quota.Streams:
		reason = RefusedOwnerStreams
	case a.bytes.exhausted(now):
		reason = RefusedOwnerBytes
	case legs[0].addr.bytes.exhausted(now), legs[1].addr.bytes.exhausted(now):
		reason = RefusedAddressBytes
	}
	if reason != "" {
		p.owners.settle(a, now)
		return out, reason
	}
	// Counted like any leg that waits, until it is joined.
	first, second := legs[0], legs[1]
	first.owner = a
	a.halfOpen++
	a.streams++
	return p.join(out, KindProxy, first, second, now), ""
}

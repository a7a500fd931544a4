package relay

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Times and numbers of Section 3 of protocol.md.
const (
	lineTime    = 10 * time.Second  // from arrival until it is said what is wanted
	waitTime    = 120 * time.Second // a listener's leg; also a connection to the proxy
	holdTime    = 10 * time.Second  // a dialer
	observeTime = 60 * time.Second  // between the lines of an observed connection

	maxHeld               = 1024
	maxHeldPerAddress     = 16
	maxProposed           = 1024 // connections that wait for the proxy: both ends of streams may come from one address
	maxProposedPerAddress = 64
	maxOpening            = 512 // connections in a handshake: one of TLS can hold 128 KiB
	maxJoined             = 8   // streams of a key at a time
	maxWaiting            = 8   // legs that wait for a key
	maxObserved           = 4   // observed connections of a lease
)

// state is where a leg stands. See [pairing] for the ways between them.
type state uint8

const (
	over      state = iota // closed, or about to be; and before it arrives
	joined                 // one end of a stream
	fresh                  // has not said what it wants, or may say more
	waiting                // serves a key, and was told ok
	held                   // a dialer whose key nobody serves yet; it must not be read
	observing              // an owner's, kept by the lines it says
	proposed               // has asked the proxy for a stream that nobody has activated yet
	numStates
)

// lifetimes says which states end by themselves, and when.
var lifetimes = [numStates]time.Duration{
	fresh: lineTime, waiting: waitTime, held: holdTime, observing: observeTime, proposed: waitTime,
}

// halfOpen reports whether a leg in this state is on its way.
func (s state) halfOpen() bool { return s > joined }

// takesStream reports whether a leg in this state has its place among streams,
// so that those who have been told to wait can be joined whenever that may be.
func (s state) takesStream() bool {
	return s == joined || s == waiting || s == held || s == proposed
}

// leg is one connection, as the core knows it. The zero leg, with a hand, is for
// [pairing.arrive]. Its shell may read the state, under the lock by which it
// uses the core.
type leg struct {
	hand hand // the core does not touch it

	state state
	lines uint8          // said so far
	late  string         // the reason for which what it says first will be refused, or ""
	from  netip.AddrPort // where the connection comes from
	name  string         // the key that it serves or names, the lease that it is observed by, or the stream that it has proposed
	addr  *account[netip.Addr]
	owner *account[jid.JID] // nil until a claim or an activation names one
	queue node[leg]         // by state, in the order of due
	due   time.Time         // when the state ends by itself
	shake node[leg]         // among those that began a handshake, while it is fresh
}

// hand is a leg's shell, as others see it. Its methods may be called from any
// goroutine, without the lock of the core.
type hand interface {
	// do has an action done that came of another leg's event, or of time. It may
	// arrive before what came of an event of the leg itself, and before, has been
	// done; that comes first. It does not wait.
	do(a action)
	// give is called once on a dialer that is joined, with the action that its
	// listener was told, by that one's shell: the connection is handed over, with
	// the key line still to be read from it, and without a deadline. It may wait
	// for the dialer's shell to let go, which does so at once.
	give(a action) net.Conn
}

// verb is what the shell is to do.
type verb uint8

const (
	say  verb = iota // write the text to leg, which goes on in its state
	end              // write the text, which may be empty, to leg, and close it: the core has forgotten it
	join             // copy between leg, the listener's, and dialer, and tell ended when that is over
	cut              // reset the stream, whose owner is denied now, and tell ended when that is over
)

// action is what the shell is to do. What concerns one leg is to be done in
// order, and end and join are the last that its hand is told; cut is for the
// relay, and may come before the join is done.
type action struct {
	do     verb
	leg    *leg
	text   string  // whole lines, or an answer of SOCKS5
	stream *stream // with join and cut; its listener is leg

	reason string  // why something was refused, for Config.Refused; "" if nothing was
	owner  jid.JID // with a reason: who, if that is known
}

// served is a key that somebody serves or names.
type served struct {
	owner   *account[jid.JID] // nil while there are only dialers
	waiting []*leg            // oldest first
	held    []*leg            // oldest first
	joined  int               // streams
}

// pairing is the core of the relay: which legs are there, what each is told,
// and who is joined to whom. It does no I/O, knows no clock and starts no
// goroutine: what happens is told to it by its methods, with the time, and they
// append to out what is to be done. It has no lock either: calls follow one
// another.
//
// A shell makes a leg and calls arrive; then, while the leg is fresh or
// observing, line for each line that it reads. A leg that is waiting or proposed
// is watched for its end; one that is held is left alone, so that what follows
// the key line stays in its socket. When a connection is no more, the shell says
// gone; when a stream is, ended. It calls expire whenever next has come.
//
//	fresh ──┬─ key, and somebody waits ───────────────────────┐
//	        ├─ key ───▶ held ──── serve ──────────────────────┤
//	        ├─ serve ─▶ waiting ─ key ────────────────────────┼─▶ joined ─ ended ─▶ over
//	        ├─ SOCKS5 ▶ proposed ─ the other, and activate ───┘
//	        └─ observe with a claim ─▶ observing
//	 each but joined: refused, out of time, or gone ─▶ over
//
// Every leg is joined once at most, and over in the end.
type pairing struct {
	judge  judge
	limits Limits // filled

	addresses *ledger[netip.Addr]
	owners    *ledger[jid.JID]
	keys      map[string]*served
	proposals map[string][]*leg     // by the name of the stream: two at most
	observed  map[string]int        // by lease
	queues    [numStates]queue[leg] // of the states that end by themselves
	opening   queue[leg]            // those of fresh that have begun a handshake
	draining  bool
	closed    bool

	streams  queue[stream] // joined now
	accepted int64
	joined   map[string]int64 // streams so far, by kind
	refused  map[string]int64 // by reason
}

// judge returns the lease to which a claim is made, or why it is refused: a word
// of package wire. It is pure.
type judge func(c wire.Claim, now time.Time) (l lease, reason string)

func newPairing(limits Limits, j judge) *pairing {
	p := &pairing{
		judge:     j,
		limits:    limits.filled(),
		keys:      map[string]*served{},
		proposals: map[string][]*leg{},
		observed:  map[string]int{},
		joined:    map[string]int64{},
		refused:   map[string]int64{},
	}
	p.addresses = newLedger[netip.Addr](p.limits.PerAddress)
	p.owners = newLedger[jid.JID](p.limits.PerOwner)
	return p
}

// reload makes limits those that hold from now on. Legs that are there stay; deny
// ends those whose owner may not be here any more.
func (p *pairing) reload(limits Limits, now time.Time) {
	p.limits = limits.filled()
	p.addresses.limit(p.limits.PerAddress, now)
	p.owners.limit(p.limits.PerOwner, now)
}

// connections is how many there are.
func (p *pairing) connections() int {
	n := 2 * p.streams.n
	for i := range p.queues {
		n += p.queues[i].n
	}
	return n
}

// full reports whether nobody may stay who would have to wait. Those who have
// said nothing do not count: for whom they are in the way, they are closed.
func (p *pairing) full() bool {
	return p.connections()-p.queues[fresh].n >= p.limits.Connections
}

// become takes a leg into another state. This is the only place where that
// happens: what is counted and listed by state is so here.
func (p *pairing) become(l *leg, s state, now time.Time) {
	p.count(l, -1)
	switch l.state {
	case waiting:
		k := p.keys[l.name]
		k.waiting = without(k.waiting, l)
		p.tidy(l.name, k)
	case held:
		k := p.keys[l.name]
		k.held = without(k.held, l)
		p.tidy(l.name, k)
	case observing:
		if p.observed[l.name]--; p.observed[l.name] == 0 {
			delete(p.observed, l.name)
		}
	case proposed:
		if left := without(p.proposals[l.name], l); len(left) > 0 {
			p.proposals[l.name] = left
		} else {
			delete(p.proposals, l.name)
		}
	}
	l.queue.leave()
	l.shake.leave()

	l.state = s
	p.count(l, +1)
	switch s {
	case waiting:
		k := p.key(l.name)
		k.owner = l.owner
		k.waiting = append(k.waiting, l)
	case held:
		k := p.key(l.name)
		k.held = append(k.held, l)
	case observing:
		p.observed[l.name]++
	case proposed:
		p.proposals[l.name] = append(p.proposals[l.name], l)
	}
	if lifetimes[s] > 0 {
		l.due = now.Add(lifetimes[s])
		p.queues[s].push(l, &l.queue)
	}

	p.addresses.settle(l.addr, now)
	if l.owner != nil {
		p.owners.settle(l.owner, now)
	}
}

// count adds n legs in the state of l to what its accounts have.
func (p *pairing) count(l *leg, n int) {
	if l.state.halfOpen() {
		l.addr.halfOpen += n
		if l.owner != nil {
			l.owner.halfOpen += n
		}
	}
	if l.state.takesStream() {
		l.addr.streams += n
		if l.owner != nil {
			l.owner.streams += n
		}
	}
	switch l.state {
	case held:
		l.addr.held += n
	case proposed:
		l.addr.proposed += n
	}
}

func (p *pairing) key(name string) *served {
	k := p.keys[name]
	if k == nil {
		k = &served{}
		p.keys[name] = k
	}
	return k
}

// tidy forgets a key that nobody serves or names, and whose it was when nobody
// serves it.
func (p *pairing) tidy(name string, k *served) {
	if len(k.waiting) == 0 && k.joined == 0 {
		k.owner = nil
		if len(k.held) == 0 {
			delete(p.keys, name)
		}
	}
}

func without(legs []*leg, l *leg) []*leg {
	i := slices.Index(legs, l)
	return slices.Delete(legs, i, i+1)
}

package dtcp

import (
	"slices"
	"time"
)

// This file is the pure part of a negotiation: which path is dialed, nominated,
// agreed to or let go, and when it is over. It knows no sockets, no goroutines
// and no clock; session.go feeds it events and carries out its actions. The
// rules are those of Sections 1, 2 and 4 of protocol.md.

// Times of Sections 2 and 4 of protocol.md.
const (
	attemptTime   = 30 * time.Second       // from the iq-result to the end of trying
	answerTime    = 5 * time.Second        // a nominated path may be silent
	relayWaitMin  = 100 * time.Millisecond // a ready relay waits for direct paths
	relayWaitMax  = 500 * time.Millisecond
	relayWaitLong = time.Second // while a direct connection is in its handshake
)

// maxUnfinished is how many accepted connections of one session may be short of
// a nomination; beyond that the oldest is dropped (Section 2 of protocol.md).
const maxUnfinished = 32

type role uint8

const (
	requester role = iota // sent the iq-set, nominates
	responder             // answered it, agrees to one nomination
)

// phase is where a negotiation stands.
//
//	asking ──begun──▶ racing ◀──silence or death──▶ nominating (requester only)
//	                    │                              │
//	                    ├─nomination (responder)──▶ held ◀──accepted
//	                    └─cancelled, exhausted, out of time, declined──▶ over
type phase uint8

const (
	asking     phase = iota // offers are not exchanged yet; connections that come in wait
	racing                  // paths are dialed, accepted and proven
	nominating              // requester: one path is nominated, its answer is awaited
	held                    // there is a stream
	over                    // there will be none
)

// stage is where one connection stands.
type stage uint8

const (
	waiting   stage = iota // accepted, with our key, before we know what the peer speaks
	dialing                // our dial is pending
	shaking                // connected, in its handshake
	ready                  // the other end has proven itself
	nominated              // requester: chosen, not answered yet
	won                    // carries the stream
	dead                   // failed, or let go
)

// connection is one connection of the race. Its number is the session's.
type connection struct {
	id     int
	direct bool
	dialed bool // by this end
	stage  stage
}

func (c connection) alive() bool { return c.stage != dead }

// state is all that decide knows. Values are never changed in place.
type state struct {
	role        role
	phase       phase
	connections []connection
	gaveUp      bool          // we have said, or it goes without saying, that we dial no more
	peerGaveUp  bool          // the peer has
	indirect    bool          // the peer has nothing direct to dial
	limit       time.Time     // end of trying
	silence     time.Time     // end of waiting for the answer to a nomination
	relayReady  time.Time     // requester: when a relay was first ready and no direct path was
	relayTrip   time.Duration // the round trip of that relay path
}

// eventKind says what happened.
type eventKind uint8

const (
	begun      eventKind = iota // offers are exchanged: the result has come (requester) or is about to leave (responder)
	arrived                     // an accepted connection has named our key
	connected                   // a dial has succeeded
	proven                      // the other end has proven itself
	died                        // a connection has failed
	nomination                  // responder: a valid nomination has come
	accepted                    // requester: the nomination was answered ok
	declined                    // requester: it was answered error
	gone                        // the peer has given up dialing
	cancelled                   // the caller, or a rule that ends everything, wants no stream any more
	handed                      // the stream is handed over
	tick                        // time has passed
)

// event is an input of decide. Which fields count depends on the kind.
type event struct {
	kind     eventKind
	id       int           // of a connection: arrived, connected, proven, died, nomination, accepted, declined
	direct   bool          // arrived
	trip     time.Duration // proven: the connection's round trip
	targets  []connection  // begun: what we dial, ids and direct set
	nothing  bool          // begun: the peer offered nothing to dial
	peerIdle bool          // begun: we offered nothing, so the peer has nothing to dial
	indirect bool          // begun: we offered nothing but relays
}

// actionKind says what is to be done.
type actionKind uint8

const (
	dial     actionKind = iota // open the connection
	proceed                    // go on with an accepted connection that waits
	nominate                   // send the nomination
	confirm                    // answer the nomination ok, and hand the stream over
	refuse                     // answer the nomination error, and let the connection go
	deliver                    // requester: hand the stream over
	reset                      // let the connection go
	sayGone                    // tell the peer that we have given up dialing
	fail                       // there will be no stream
)

// action is an output of decide.
type action struct {
	kind actionKind
	id   int
}

// decide returns the state after an event, what is to be done, in this order,
// and nothing else. Events of connections that are dead already are ignored,
// for they were under way when it was decided to let those go.
func decide(s state, e event, now time.Time) (state, []action) {
	d := decision{state: s, now: now}
	d.connections = slices.Clone(s.connections)
	d.take(e)
	d.settle()
	return d.state, d.actions
}

// next returns when decide wants a tick, the zero time for never.
func (s state) next() time.Time {
	if s.phase == asking || s.finished() {
		return time.Time{}
	}
	at := s.limit
	if s.phase == nominating && s.silence.Before(at) {
		at = s.silence
	}
	if s.phase == racing && !s.relayReady.IsZero() && s.relayUntil().Before(at) {
		at = s.relayUntil()
	}
	return at
}

// relayUntil returns when a ready relay stops waiting for direct paths
// (Section 4 of protocol.md).
func (s state) relayUntil() time.Time {
	wait := min(max(2*s.relayTrip, relayWaitMin), relayWaitMax)
	if s.has(func(c connection) bool { return c.direct && c.stage == shaking }) {
		wait = relayWaitLong
	}
	return s.relayReady.Add(wait)
}

// finished reports whether there is nothing left to do: the stream, if any, is
// handed over, and every other connection is gone.
func (s state) finished() bool {
	return (s.phase == held || s.phase == over) &&
		!s.has(func(c connection) bool { return c.alive() && c.stage != won })
}

func (s state) has(f func(connection) bool) bool { return slices.ContainsFunc(s.connections, f) }

// decision is one call of decide.
type decision struct {
	state
	now     time.Time
	actions []action
}

func (d *decision) act(k actionKind, id int) { d.actions = append(d.actions, action{k, id}) }

// find returns the connection if it is alive.
func (d *decision) find(id int) *connection {
	for i := range d.connections {
		if c := &d.connections[i]; c.id == id && c.alive() {
			return c
		}
	}
	return nil
}

// take changes the state by what the event says.
func (d *decision) take(e event) {
	done := d.phase == held || d.phase == over
	switch e.kind {
	case begun:
		if d.phase == asking {
			d.begin(e)
		}
		return
	case arrived:
		if done {
			d.act(reset, e.id)
			return
		}
		d.arrive(e)
		return
	case gone:
		d.peerGaveUp = true
		return
	case cancelled:
		if !done {
			d.end()
		}
		return
	case tick:
		if c := d.chosen(); c != nil && d.phase == nominating && !d.now.Before(d.silence) {
			d.drop(c)
			d.phase = racing
		}
		return
	}
	c := d.find(e.id)
	if c == nil {
		return
	}
	switch e.kind {
	case connected:
		if c.stage == dialing {
			c.stage = shaking
		}
	case proven:
		if c.stage == shaking {
			c.stage = ready
			if !c.direct && d.relayReady.IsZero() && d.role == requester {
				d.relayReady, d.relayTrip = d.now, e.trip
			}
		}
	case died:
		if c.stage == nominated {
			d.phase = racing
		}
		c.stage = dead
	case nomination:
		if d.role == responder && d.phase == racing {
			// Other paths stay, for the requester may nominate one of them if this
			// one dies before our ok arrives, and must then hear that it is too late.
			d.win(c, confirm)
			d.dropWhere(func(c connection) bool { return c.stage == dialing })
		} else if c.stage != won {
			c.stage = dead
			d.act(refuse, c.id)
		}
	case accepted:
		if c.stage == nominated {
			d.win(c, deliver)
			d.dropOthers()
		}
	case declined:
		if c.stage == nominated {
			d.end()
		}
	}
}

func (d *decision) begin(e event) {
	d.phase = racing
	d.limit = d.now.Add(attemptTime)
	d.peerGaveUp = d.peerGaveUp || e.peerIdle
	d.gaveUp = e.nothing // it goes without saying
	d.indirect = e.indirect
	for i := range d.connections {
		if c := &d.connections[i]; c.stage == waiting {
			c.stage = shaking
			d.act(proceed, c.id)
		}
	}
	for _, t := range e.targets {
		t.dialed, t.stage = true, dialing
		d.connections = append(d.connections, t)
		d.act(dial, t.id)
	}
}

func (d *decision) arrive(e event) {
	unfinished, oldest := 0, (*connection)(nil)
	for i := range d.connections {
		c := &d.connections[i]
		if c.dialed || c.stage != waiting && c.stage != shaking && c.stage != ready {
			continue
		}
		// Who has proven nothing goes first, or whoever saw the key on the wire
		// could push out who has.
		if unfinished++; oldest == nil || oldest.stage == ready && c.stage != ready {
			oldest = c
		}
	}
	if unfinished >= maxUnfinished {
		d.drop(oldest)
	}
	// What is dead is of no more use; a stranger who has the key must not make
	// the list grow.
	d.connections = slices.DeleteFunc(d.connections, func(c connection) bool { return !c.alive() && !c.dialed })
	c := connection{id: e.id, direct: e.direct, stage: waiting}
	if d.phase != asking {
		c.stage = shaking
		d.act(proceed, c.id)
	}
	d.connections = append(d.connections, c)
}

// settle draws the conclusions that do not depend on which event it was.
func (d *decision) settle() {
	late := d.phase != asking && !d.now.Before(d.limit)
	switch {
	case d.phase == held && late:
		d.dropOthers()
		return
	case d.phase != racing && d.phase != nominating:
		return
	case late:
		d.end()
		return
	}
	if d.phase == racing && d.role == requester {
		d.choose()
	}
	// Not while a connection of the peer's may still become the stream: then the
	// word would cross a nomination, and be one iq too many.
	if !d.gaveUp && !d.has(connection.alive) {
		d.gaveUp = true
		d.act(sayGone, 0)
	}
	if d.peerGaveUp && !d.has(connection.alive) {
		d.end()
	}
}

// choose nominates a path if there is one to be nominated now. All direct
// types are one class; a relay waits a little for them.
func (d *decision) choose() {
	var direct, relayed *connection
	pending := !d.peerGaveUp && !d.indirect
	for i := range d.connections {
		switch c := &d.connections[i]; {
		case c.stage == ready && c.direct && direct == nil:
			direct = c
		case c.stage == ready && !c.direct && relayed == nil:
			relayed = c
		case c.direct && (c.stage == dialing || c.stage == shaking):
			pending = true
		}
	}
	switch {
	case direct != nil:
		d.nominate(direct)
	case relayed == nil:
		d.relayReady = time.Time{} // it died: the next one waits for itself
	case !pending || !d.now.Before(d.relayUntil()):
		d.nominate(relayed)
	}
}

func (d *decision) nominate(c *connection) {
	c.stage = nominated
	d.phase = nominating
	d.silence = d.now.Add(answerTime)
	d.act(nominate, c.id)
}

func (d *decision) chosen() *connection {
	for i := range d.connections {
		if d.connections[i].stage == nominated {
			return &d.connections[i]
		}
	}
	return nil
}

// win ends the race with a stream on c.
func (d *decision) win(c *connection, k actionKind) {
	c.stage = won
	d.phase = held
	d.act(k, c.id)
}

// end ends the race without a stream. Whoever may still have dials pending
// says that they are not.
func (d *decision) end() {
	begun := d.phase != asking
	d.phase = over
	d.dropOthers()
	if begun && !d.gaveUp {
		d.gaveUp = true
		d.act(sayGone, 0)
	}
	d.act(fail, 0)
}

func (d *decision) dropOthers() { d.dropWhere(connection.alive) }

// dropWhere lets every connection go that f picks, but never the stream's.
func (d *decision) dropWhere(f func(connection) bool) {
	for i := range d.connections {
		if c := &d.connections[i]; c.alive() && c.stage != won && f(*c) {
			d.drop(c)
		}
	}
}

func (d *decision) drop(c *connection) {
	c.stage = dead
	d.act(reset, c.id)
}

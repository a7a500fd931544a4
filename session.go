package dtcp

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// session is one negotiation. Its goroutine, run, owns the state, which only
// [decide] changes; each connection has a goroutine of its own, an [attempt],
// that reports events and gets verdicts. The states are drawn at [phase].
type session struct {
	e       *Endpoint
	role    role
	stream  string // its name in traces
	peer    jid.JID
	local   jid.JID // our full JID in this negotiation
	key     string  // ours
	service string
	own     offer
	began   time.Time
	trace   tracer

	ctx      context.Context // ends when nobody wants the session any more
	cancel   context.CancelCauseFunc
	inputs   chan input
	begun    chan struct{}    // closed when run has seen begin
	offered  chan struct{}    // closed when the iq that offers our half is sent
	done     chan struct{}    // closed when run has ended
	result   chan *Conn       // the stream of a requester; capacity 1
	arrivals atomic.Int64     // accepted connections so far
	failed   chan struct{}    // closed when there will be no stream
	ended    sync.Once        // guards cause
	cause    error            // why not; set before failed is closed
	alive    sync.WaitGroup   // attempts
	attempts map[int]*attempt // owned by run
	legs     context.Context  // ends when no further connection is wanted at our relay
	stopLegs context.CancelFunc
	lent     relaying   // what our offer names of relays
	indirect bool       // it names nothing else
	hidden   bool       // whoever finds us elsewhere is not to know that it is us
	port     *punchPort // from which holes are punched; nil: none
	winner   *attempt   // chosen, and not handed over yet; owned by run
	refusing int        // attempts that still have to answer error; owned by run

	// Set by begin, before any attempt proceeds.
	peerKey     string
	peerSession *sessionOffer // nil: a stock peer
	agreed      wire.Session
	rules       dialRules
	targets     []Candidate
	holes       []Candidate // of targets: dialed from the punch port
	skipped     []Attempt   // candidates that must not be dialed, and why

	failures []Attempt // what became of the others; owned by run until done

	verifying chan struct{} // held by who asks VerifyPeer
	verified  bool          // guarded by verifying
	verdict   error         // guarded by verifying
}

// input is an event and what the shell needs to know beside it.
type input struct {
	event
	attempt *attempt // arrived, died
	failure *Attempt // of what is no attempt yet: a leg at our relay
}

// maxInputs lets attempts go on without waiting for the loop in all but wild
// cases.
const maxInputs = 64

func (e *Endpoint) newSession(r role, peer jid.JID, service string) *session {
	s := &session{
		e: e, role: r, peer: peer, local: e.signaling.LocalAddr(), key: wire.NewKey(), service: service,
		stream: e.nextStream(), began: time.Now(), trace: tracer{e.config.Trace},
		inputs: make(chan input, maxInputs), done: make(chan struct{}), failed: make(chan struct{}),
		begun: make(chan struct{}), offered: make(chan struct{}), result: make(chan *Conn, 1), attempts: map[int]*attempt{}, verifying: make(chan struct{}, 1),
	}
	s.ctx, s.cancel = context.WithCancelCause(e.ctx)
	s.legs, s.stopLegs = context.WithCancel(s.ctx)
	if r == requester {
		close(s.offered) // nothing is said before the answer to it is there
	}
	s.trace.offered(s.stream, peer, service, r == requester)
	return s
}

func (s *session) extended() bool { return s.peerSession != nil }

// begin tells the session what the peer offered. The responder calls it before
// its result leaves, the requester when it has the result.
func (s *session) begin(peer offer, rules dialRules) {
	s.peerKey, s.peerSession, s.rules = peer.key, peer.session, rules
	s.agreed = wire.Session{
		RequesterKey: s.key, ResponderKey: s.peerKey, Service: s.service,
		Requester: s.local.String(), Responder: s.peer.String(),
	}
	if s.role == responder {
		s.agreed.RequesterKey, s.agreed.ResponderKey = s.agreed.ResponderKey, s.agreed.RequesterKey
		s.agreed.Requester, s.agreed.Responder = s.agreed.Responder, s.agreed.Requester
	}
	if s.extended() {
		s.agreed.Features = inForce(s.own.session.features, peer.session.features)
	}
	e := event{
		kind: begun, nothing: len(peer.candidates()) == 0, peerIdle: len(s.own.candidates()) == 0, indirect: s.indirect,
	}
	for _, c := range peer.candidates() {
		if err := rules.check(c); err != nil {
			s.skipped = append(s.skipped, Attempt{Candidate: c, Err: err})
			s.trace.failed(s.stream, c, err)
			continue
		}
		if slices.ContainsFunc(s.targets, func(t Candidate) bool { return t.address() == c.address() }) {
			continue // one connection to one address: a peer may name a third party's
		}
		// The number of a dialed connection is its candidate's, from 1; those of
		// accepted ones come after them.
		s.targets = append(s.targets, c)
		e.targets = append(e.targets, connection{id: len(s.targets), direct: c.Type.direct()})
	}
	if s.port != nil {
		s.holes = holes(s.targets)
	}
	s.post(input{event: e})
}

// hasBegun waits until run has seen begin, and reports whether it did so before
// it ended.
func (s *session) hasBegun() bool {
	select {
	case <-s.begun:
		return true
	case <-s.done:
	}
	select {
	case <-s.begun:
		return true
	default:
		return false
	}
}

// post gives an input to the loop, unless that has ended.
func (s *session) post(in input) {
	select {
	case s.inputs <- in:
	case <-s.done:
	}
}

// accept takes a connection that has named the session's key. It is called on
// the goroutine that accepted it, which becomes that of the attempt.
func (s *session) accept(t *transport) { s.take(t, Candidate{}) }

// take is accept for a connection that came by way of a relay, if via is one.
func (s *session) take(t *transport, via Candidate) {
	a := s.newAttempt(maxCandidates + int(s.arrivals.Add(1)))
	a.t, a.candidate = t, via
	s.trace.accepted(s.stream, addrPort(t.rec.Conn.RemoteAddr()))
	select {
	case s.inputs <- input{event: event{kind: arrived, id: a.id, direct: !a.relayed()}, attempt: a}:
		a.acceptKey()
	case <-s.done:
		a.cancel()
		_ = t.send(wire.Error, "")
		_ = t.rec.Conn.Close()
	}
}

// run is the loop. Its goroutine is owned by the Endpoint, ends when the
// decision is final and every attempt has ended, and is waited for by Close.
func (s *session) run() {
	defer s.e.forget(s)
	defer s.stopLegs()
	if s.port != nil {
		defer s.port.close() // a stream on it goes on
	}
	s.serve()
	st := state{role: s.role}
	timer := time.NewTimer(attemptTime)
	defer timer.Stop()
	ended := s.ctx.Done()
	for !st.finished() || s.winner != nil || s.refusing > 0 {
		var in input
		var ticks <-chan time.Time
		if at := st.next(); !at.IsZero() {
			timer.Reset(time.Until(at))
			ticks = timer.C
		}
		select {
		case in = <-s.inputs:
		case <-ticks:
			in.kind = tick
		case <-ended:
			ended = nil
			in.kind = cancelled
		}
		s.note(in)
		var actions []action
		st, actions = decide(st, in.event, time.Now())
		for _, a := range actions {
			s.do(a, st)
		}
		if st.phase == held {
			s.e.forgetKey(s) // there is a stream: nobody else has business with the key
			s.stopLegs()
		}
	}
	s.e.forgetKey(s)
	close(s.done)
	s.cancel(nil)
	s.alive.Wait()
}

// note keeps what the shell needs of an input.
func (s *session) note(in input) {
	if in.failure != nil {
		s.remember(*in.failure)
	}
	switch in.kind {
	case begun:
		close(s.begun)
	case arrived:
		s.attempts[in.id] = in.attempt
	case gone:
		s.trace.gaveUp(s.stream, true)
	case declined:
		s.setCause(&PeerError{Peer: s.peer, Err: errDeclined})
	case handed:
		s.winner = nil
	case died:
		a := in.attempt
		delete(s.attempts, in.id)
		if a.refused {
			s.refusing--
		}
		if a == s.winner {
			s.winner = nil
			s.fail(s.lost(a.err))
			return
		}
		if errors.Is(a.err, errLetGo) || errors.Is(a.err, context.Canceled) {
			return
		}
		failure := Attempt{Candidate: a.candidate, Err: a.err}
		switch {
		case a.dialed:
		case a.relayed():
			failure.Ours, failure.Err = true, fmt.Errorf("a connection through it: %w", a.err)
		default:
			local := addrPort(a.t.rec.Conn.LocalAddr())
			remote := addrPort(a.t.rec.Conn.RemoteAddr())
			failure.Candidate = Candidate{Type: a.kind(local, remote), Addr: local}
			failure.Ours, failure.Err = true, fmt.Errorf("connection from %v: %w", remote, a.err)
		}
		s.remember(failure)
	}
}

// remember keeps what became of a candidate.
func (s *session) remember(failure Attempt) {
	if len(s.failures) < maxFailures {
		s.failures = append(s.failures, failure)
	}
	s.trace.failed(s.stream, failure.Candidate, failure.Err)
}

// serve has our relay, or proxy, wait for the peer, if the offer names one.
func (s *session) serve() {
	var wait func()
	switch l, p := s.lent.lease, s.lent.proxy; {
	case l != nil:
		wait = func() { s.serveRelay(l) }
	case p != nil:
		wait = func() { s.serveProxy(p, p.candidates(s.key)[0]) }
	default:
		return
	}
	s.alive.Add(1)
	// Owned by the session, ended by stopLegs, waited for by run.
	go func() {
		defer s.alive.Done()
		wait()
	}()
}

// maxFailures bounds what a stranger who has the key can make an error say.
const maxFailures = 64

// do carries out one action.
func (s *session) do(act action, st state) {
	a := s.attempts[act.id]
	switch act.kind {
	case dial:
		a = s.newAttempt(act.id)
		a.candidate, a.dialed = s.targets[act.id-1], true
		s.attempts[act.id] = a
		s.alive.Add(1)
		// Owned by the session, ended by its context or its own deadlines,
		// waited for by run.
		go func() {
			defer s.alive.Done()
			a.dialCandidate()
		}()
	case reset:
		if a != nil {
			a.cancel()
		}
	case sayGone:
		s.trace.gaveUp(s.stream, false)
		s.sayGone()
	case fail:
		s.fail(s.noPath(st))
	default:
		if a == nil {
			break
		}
		switch act.kind {
		case confirm, deliver:
			s.winner = a
		case refuse:
			a.refused = true
			s.refusing++
		}
		a.verdicts <- act.kind
	}
}

// sayGone tells the peer that we have stopped dialing.
func (s *session) sayGone() {
	s.alive.Add(1)
	// Owned by the session, ended by the context's deadline, waited for by run.
	go func() {
		defer s.alive.Done()
		<-s.offered // the answer to the request comes first; it has a deadline
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), answerTime)
		defer cancel()
		_ = s.e.signaling.Send(ctx, giveUp(s.peer, s.local, wire.NewKey(), s.peerKey)) // a courtesy: the peer has timers
	}()
}

func (s *session) setCause(err error) { s.ended.Do(func() { s.cause = err }) }

// fail closes failed, once. When the caller hears of it the key is forgotten
// (Section 4 of protocol.md).
func (s *session) fail(err error) {
	if errors.Is(context.Cause(s.ctx), ErrClosed) {
		err = ErrClosed // it says all there is to say
	}
	s.setCause(err)
	s.e.forgetKey(s)
	close(s.failed)
	s.trace.ended(s.stream, time.Since(s.began), s.cause)
}

// lost is the error of a negotiation whose chosen path died before it was
// handed over, most often because nobody wants it any more.
func (s *session) lost(err error) error {
	if cause := context.Cause(s.ctx); cause != nil {
		err = cause
	}
	return &NoPathError{Peer: s.peer, Err: err}
}

// noPath gathers every candidate tried and what became of it.
func (s *session) noPath(st state) error {
	e := &NoPathError{Peer: s.peer, Err: errBothGaveUp}
	if err := context.Cause(s.ctx); err != nil {
		e.Err = err
	} else if slices.ContainsFunc(s.skipped, func(a Attempt) bool { return a.Err == errOtherRelay }) {
		e.Err = errOtherRelays
	} else if !st.limit.IsZero() && !time.Now().Before(st.limit) {
		e.Err = errOutOfTime
	}
	tried := map[Candidate]bool{}
	reached := map[Candidate]bool{}
	for _, f := range s.failures {
		e.Attempts = append(e.Attempts, f)
		if f.Ours {
			reached[f.Candidate] = true
		} else {
			tried[f.Candidate] = true
		}
	}
	if !st.limit.IsZero() { // begin has been seen to be over
		for _, c := range s.targets {
			if !tried[c] {
				e.Attempts = append(e.Attempts, Attempt{Candidate: c, Err: errNoAnswer})
			}
		}
		e.Attempts = append(e.Attempts, s.skipped...)
	}
	for _, c := range s.own.candidates() {
		if !reached[c] {
			e.Attempts = append(e.Attempts, Attempt{Candidate: c, Ours: true, Err: errNoConnection})
		}
	}
	if len(e.Attempts) == 0 {
		e.Err = errNothingToTry
	}
	return e
}

// Reasons of a [NoPathError].
var (
	errBothGaveUp   = errors.New("nothing is left to try on either side")
	errOutOfTime    = fmt.Errorf("no connection within %v", attemptTime)
	errNoAnswer     = errors.New("no answer")
	errNothingToTry = errors.New("neither side has an address to offer")
	errOtherRelays  = errors.New("only relayed streams are wanted here, and the peer, which may want the same, uses another relay")
)

// handOver makes the stream of an attempt that has won.
func (s *session) handOver(a *attempt) {
	p := a.path()
	c := &Conn{
		carrier: newCarrier(a.t.rec, a.t.tls, a.t.in, p),
		peer:    s.peer, service: s.service, stream: s.stream, end: func() { s.trace.closed(s.stream) },
	}
	s.trace.nominated(s.stream, p)
	s.trace.ended(s.stream, time.Since(s.began), nil)
	if s.role == requester {
		s.result <- c
		return
	}
	s.e.deliver(c)
}

// checkCertificate is asked on each path about the certificate that the peer
// presents, and before it has proven to hold its key.
func (s *session) checkCertificate(c *x509.Certificate) error {
	return pinned(c, s.peerSession.fingerprint)
}

// verifyPeer asks VerifyPeer, on the first path that is proven.
func (s *session) verifyPeer(c *x509.Certificate) error {
	verify := s.e.config.VerifyPeer
	if verify == nil {
		return nil
	}
	select {
	case s.verifying <- struct{}{}:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	defer func() { <-s.verifying }()
	if !s.verified {
		s.verified = true
		s.verdict = verify(Peer{JID: s.peer, Fingerprint: s.peerSession.fingerprint, Ephemeral: s.peerSession.ephemeral, Certificate: c})
		if s.verdict != nil {
			s.setCause(&PeerError{Peer: s.peer, Err: s.verdict})
		}
	}
	return s.verdict
}

// refusal makes the answer to a request that is refused.
func refusal(err error) *stanza.Error {
	var e *stanza.Error
	if errors.As(err, &e) {
		return e
	}
	return stanza.NewError(stanza.Forbidden, "")
}

package dtcp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// This file is the signalling: the iqs of a negotiation, sent and answered.

// askTime is how long Config.Allow may take (Section 4 of protocol.md).
const askTime = 3 * time.Minute

// sendTime bounds the sending of an answer.
const sendTime = 30 * time.Second

// request returns the requester's iq-set.
func (s *session) request() stanza.IQ {
	return stanza.IQ{Header: stanza.Header{To: s.peer}, Type: stanza.Set, Payload: s.own.element()}
}

// unanswered makes of RoundTrip's error that of Dial.
func (s *session) unanswered(err error) error {
	var refused *stanza.Error
	if errors.As(err, &refused) {
		return &RefusedError{Peer: s.peer, Err: refused}
	}
	return fmt.Errorf("dtcp: %v did not answer: %w", s.peer, err)
}

// handleIQ takes what Signaling has for us. It does not block.
func (e *Endpoint) handleIQ(q stanza.IQ) {
	switch q.Type {
	case stanza.Set, stanza.Get:
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.closed || e.asked.Add(1) > 2*maxSessions {
			e.asked.Add(-1)
			return // beyond refusing politely
		}
		e.tasks.Add(1)
		// Owned by the Endpoint, ended by its context or after askTime, waited for
		// by Close.
		go func() {
			defer e.tasks.Done()
			defer e.asked.Add(-1)
			e.answer(q)
		}()
	case stanza.Failed:
		e.peerGaveUp(q)
	}
}

// peerGaveUp takes the iq by which a peer says that it dials no more. It names
// our key, and counts only from the peer itself.
func (e *Endpoint) peerGaveUp(q stanza.IQ) {
	o, err := parseOffer(q.Payload)
	if err != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.sessions {
		if s.key == o.key && s.peer == q.From {
			select {
			case s.inputs <- input{event: event{kind: gone}}:
			default: // its loop has more to do than this is worth
			}
		}
	}
}

// answer answers a request.
func (e *Endpoint) answer(q stanza.IQ) {
	if q.Type == stanza.Get {
		e.reply(q.Fail(stanza.NewError(stanza.FeatureNotImplemented, "a stream is asked for by an iq of type set")))
		return
	}
	ctx, cancel := context.WithTimeout(e.ctx, askTime)
	defer cancel()
	peer, err := parseOffer(q.Payload)
	if err != nil {
		e.reply(q.Fail(stanza.NewError(stanza.BadRequest, err.Error())))
		return
	}
	r := &Request{From: q.From, Stock: peer.session == nil, Files: -1, Bytes: -1}
	if s := peer.session; s != nil {
		r.Service, r.Files, r.Bytes, r.Fingerprint, r.Ephemeral = s.service, s.files, s.bytes, s.fingerprint, s.ephemeral
		e.sawExtended(q.From)
	}
	if err := e.reserve(q.From, maxPerPeer); err != nil {
		e.refuse(q, r, stanza.NewError(stanza.ResourceConstraint, err.Error()))
		return
	}
	s, err := e.admit(ctx, r, peer)
	if err != nil {
		e.release(q.From)
		e.refuse(q, r, err)
		return
	}
	// Dialing begins before the result leaves.
	s.begin(peer, e.rules(e.policy(r.From), r.Stranger))
	defer close(s.offered)
	if !s.hasBegun() { // the Endpoint was closed just now, and nobody would say so later
		e.refuse(q, r, stanza.NewError(stanza.ServiceUnavailable, ""))
		return
	}
	e.reply(q.Result(s.own.element()))
}

// admit decides about a request and starts its session.
func (e *Endpoint) admit(ctx context.Context, r *Request, peer offer) (*session, error) {
	if !r.Stock && !wire.ValidService(r.Service) {
		return nil, stanza.NewError(stanza.BadRequest, "no service is named")
	}
	if r.Stock && !e.plainAllowed(r.From) {
		return nil, stanza.NewError(stanza.Forbidden, "only authenticated streams ("+NSSession+") are accepted")
	}
	if e.config.Allow == nil {
		return nil, stanza.NewError(stanza.Forbidden, "")
	}
	if len(e.waiting) == cap(e.waiting) {
		return nil, stanza.NewError(stanza.ResourceConstraint, "too many streams wait to be accepted")
	}
	if err := e.config.Allow(ctx, r); err != nil {
		return nil, refusal(err)
	}
	if !r.Stock && r.Fingerprint == e.fingerprint {
		return nil, stanza.NewError(stanza.NotAcceptable, ErrOwnFingerprint.Error())
	}
	policy := e.policy(r.From)
	if err := e.awaitOffer(ctx, policy); errors.Is(err, ErrPolicy) {
		return nil, stanza.NewError(stanza.NotAcceptable, "only relayed streams are accepted, and there is no relay")
	} else if err != nil {
		return nil, stanza.NewError(stanza.ServiceUnavailable, "")
	}
	if r.Stranger {
		if err := e.strangerMayHaveMore(r); err != nil {
			return nil, err
		}
	}
	s := e.newSession(responder, r.From, r.Service)
	var session *sessionOffer
	if !r.Stock {
		session = &sessionOffer{files: -1, bytes: -1}
	}
	s.own = e.offer(ctx, s, policy, session)
	if err := e.start(s); err != nil {
		s.cancel(err)
		return nil, stanza.NewError(stanza.ServiceUnavailable, "")
	}
	return s, nil
}

// strangerMayHaveMore holds a stranger to its lower limit; the request itself
// is already counted.
func (e *Endpoint) strangerMayHaveMore(r *Request) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.peers[r.From.Bare()] > maxPerStranger {
		return stanza.NewError(stanza.ResourceConstraint, errBusy.Error())
	}
	return nil
}

// refuse answers a request by an error.
func (e *Endpoint) refuse(q stanza.IQ, r *Request, err error) {
	if e.ctx.Err() != nil {
		err = stanza.NewError(stanza.ServiceUnavailable, "") // whatever Allow made of its context's end
	}
	tracer{e.config.Trace}.refused(r, err)
	e.reply(q.Fail(refusal(err)))
}

// reply sends an answer. If it cannot be sent the requester's timers speak.
func (e *Endpoint) reply(q stanza.IQ) {
	ctx, d := e.ctx, sendTime
	if ctx.Err() != nil { // Close waits for this
		ctx, d = context.WithoutCancel(ctx), answerTime
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_ = e.signaling.Send(ctx, q)
}

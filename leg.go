package dtcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// This file is the listener's side of the relay (Section 3 of protocol.md): the
// legs that wait there for whoever dials our key.

const (
	maxLegs    = 8                      // joined legs of a session at a time
	tlsDelay   = 300 * time.Millisecond // between two ways to reach a relay
	legPause   = time.Second            // before a leg that was lost is replaced; doubles
	alpnRelay  = "dtcp-relay"           // of the TLS to a relay, which protects nothing end to end
	maxReasons = 64                     // characters of a relay's reason that are repeated
)

// serveRelay keeps a leg waiting at the relay until the session has a stream or
// ends: one more whenever one is joined, so that nobody who has learned the key
// can use it up. It is a goroutine of the session's own.
func (s *session) serveRelay(l *lease) {
	room := make(chan struct{}, maxLegs)
	for pause := legPause; ; {
		select {
		case room <- struct{}{}:
		case <-s.legs.Done():
			return
		}
		t, via, err := s.waitAtRelay(l)
		if err == nil {
			pause = legPause
			s.alive.Add(1)
			// Owned by the session, ended by its context or the deadlines of the
			// attempt, waited for by run.
			go func() {
				defer s.alive.Done()
				defer func() { <-room }()
				s.acceptRelayed(t, via)
			}()
			continue
		}
		<-room
		if s.legs.Err() != nil {
			return
		}
		s.post(input{event: event{kind: tick}, failure: &Attempt{Candidate: via, Ours: true, Err: err}})
		var refused *RelayError
		switch {
		case !errors.As(err, &refused):
		case slices.Contains([]string{wire.Expired, wire.BadLease, wire.WrongNode}, refused.Reason):
			if l, err = s.e.relays.after(s.legs, l); err != nil {
				return
			}
		default:
			return // the operator's word; the offer names what it cannot be had at, and others race on
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-s.legs.Done():
			return
		}
	}
}

// waitAtRelay opens a leg and returns it when it is joined.
func (s *session) waitAtRelay(l *lease) (*transport, Candidate, error) {
	t, via, err := s.e.openLeg(s.legs, l, l.claim(wire.Serve, s.key, time.Now()))
	if err != nil {
		return nil, via, err
	}
	stop := t.interrupt(s.legs)
	first, err := t.in.Peek(1)
	if !stop() && err == nil {
		err = s.legs.Err()
	}
	if err == nil && first[0] == 'e' {
		var line wire.Line
		if line, err = t.line(); err == nil {
			err = refusedBy(l, line)
		}
	}
	if err != nil {
		_ = t.rec.abort()
		return nil, via, err
	}
	return t, via, nil
}

// acceptRelayed takes a leg that has been joined. Whoever did that comes first
// with the key line, as on any accepted connection.
func (s *session) acceptRelayed(t *transport, via Candidate) {
	err := t.rec.Conn.SetDeadline(time.Now().Add(handshakeTime))
	var line wire.Line
	if err == nil {
		line, err = t.line()
	}
	if err != nil || line.Command != wire.Key || line.Argument != s.key {
		_ = t.rec.abort()
		return
	}
	s.take(t, via)
}

// openLeg opens a connection to the relay, makes a claim there, and returns it
// when that is granted. Ways to reach the relay are tried one after the other,
// 300 ms apart; the first that answers is taken.
func (e *Endpoint) openLeg(ctx context.Context, l *lease, claim wire.Line) (*transport, Candidate, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	type opened struct {
		t   *transport
		via way
		err error
	}
	ways := l.ways()
	results := make(chan opened, len(ways))
	start := func(w way) {
		e.tasks.Add(1)
		// Owned by the Endpoint, ended by ctx, waited for by Close; who comes too
		// late closes what it has opened.
		go func() {
			defer e.tasks.Done()
			t, err := e.openWay(ctx, l, w, claim)
			results <- opened{t, w, err}
		}()
	}
	var failed []error
	begun := 0
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if begun < len(ways) {
				start(ways[begun])
				begun++
				next.Reset(tlsDelay)
			}
		case r := <-results:
			if r.err == nil {
				cancel()
				for range begun - len(failed) - 1 { // the others end at once
					if late := <-results; late.err == nil {
						_ = late.t.rec.abort()
					}
				}
				return r.t, r.via.host.Candidate, nil
			}
			failed = append(failed, r.err)
			var refused *RelayError
			if errors.As(r.err, &refused) || len(failed) == len(ways) {
				cancel()
				for range begun - len(failed) {
					if late := <-results; late.err == nil {
						_ = late.t.rec.abort()
					}
				}
				return nil, r.via.host.Candidate, r.err
			}
			next.Reset(0)
		}
	}
}

// openWay opens a leg in one way.
func (e *Endpoint) openWay(ctx context.Context, l *lease, w way, claim wire.Line) (t *transport, err error) {
	at := w.at
	if !at.IsValid() {
		addrs, err := e.resolve(ctx, w.host.Candidate)
		if err != nil {
			return nil, err
		}
		at = addrs[0]
	}
	c, err := e.network.Dial(ctx, netip.AddrPort{}, at)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = abort(c)
			t = nil
		}
	}()
	if w.tls {
		secured := tls.Client(c, relayTLS(w.host))
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		t = newTransport(secured)
	} else {
		t = newTransport(c)
	}
	if err := t.send(claim.Command, claim.Argument); err != nil {
		return nil, err
	}
	line, err := t.line()
	switch {
	case err != nil:
		return nil, fmt.Errorf("the relay closed the connection: %w", err)
	case line.Command != wire.OK:
		return nil, refusedBy(l, line)
	}
	return t, nil
}

// refusedBy makes an error of what a relay answers in place of ok.
func refusedBy(l *lease, line wire.Line) error {
	if line.Command != wire.Error {
		return fmt.Errorf("%w (at the relay %v)", errNotDTCP, l.relay)
	}
	return &RelayError{Relay: l.relay, Reason: line.Argument[:min(len(line.Argument), maxReasons)]}
}

// relayTLS returns the configuration of TLS to a relay, whose certificate the
// lease has pinned.
func relayTLS(h leaseHost) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{alpnRelay}, ServerName: h.Name,
		InsecureSkipVerify: true, // the pin is all that counts
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.NegotiatedProtocol != alpnRelay {
				return errNoALPN
			}
			return pinned(state.PeerCertificates[0], h.pin)
		},
	}
}

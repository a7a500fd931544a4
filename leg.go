package dtcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// This file is the listener's side of the relay (Section 3 of protocol.md): the
// legs that wait there for whoever dials our key.

const (
	maxLegs    = 8                      // joined legs of a session at a time, and of those that nothing bounds but them
	legGap     = time.Second / 16       // between further legs
	wayDelay   = 300 * time.Millisecond // between two ways to reach a relay
	legPause   = time.Second            // before a leg that was lost is replaced; doubles
	alpnRelay  = "dtcp-relay"           // of the TLS to a relay, which protects nothing end to end
	maxReasons = 64                     // characters of a relay's reason that are repeated
)

// serveRelay keeps a leg waiting at the relay until the session has a stream or
// ends: one more whenever one is joined, so that nobody who has learned the key
// can use it up. It is a goroutine of the session's own.
func (s *session) serveRelay(l *lease) {
	room := make(chan struct{}, maxLegs)
	joined, renewed := 0, false
	for pause := legPause; ; {
		select {
		case room <- struct{}{}:
		case <-s.legs.Done():
			return
		}
		if joined >= maxLegs && rest(s.legs, legGap) != nil {
			return
		}
		if joined == 1 && s.beforeOthers(s.legs) != nil {
			return
		}
		t, via, err := s.waitAtRelay(l)
		if err == nil {
			pause = legPause
			joined++
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
		case !errors.As(err, &refused), refused.Reason == wire.Shutdown, refused.Reason == wire.Full:
			// It may be another the next time: it restarts, or has room again.
		case slices.Contains([]string{wire.Expired, wire.BadLease, wire.WrongNode}, refused.Reason):
			if l, err = s.e.relays.after(s.legs, l); err != nil {
				return
			}
			if !renewed {
				renewed = true
				continue // at once: the peer may be there already
			}
		default:
			return // the operator's word; the offer names what it cannot be had at, and others race on
		}
		if rest(s.legs, pause) != nil {
			return
		}
		pause *= 2
	}
}

// rest waits, or returns why ctx is over.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
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
	if err != nil {
		err = fmt.Errorf("the relay ended a connection that waited: %w", err)
	}
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
	stop := t.interrupt(s.legs)
	err := t.rec.Conn.SetDeadline(time.Now().Add(handshakeTime))
	if err == nil {
		err = s.legs.Err() // it may have ended just before, and set a deadline that is now lost
	}
	var line wire.Line
	if err == nil {
		line, err = t.line()
	}
	if !stop() || err != nil || line.Command != wire.Key || line.Argument != s.key {
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
	ways := l.ways()
	dials := make([]func(context.Context) (*transport, error), len(ways))
	for i, w := range ways {
		dials[i] = func(ctx context.Context) (*transport, error) { return e.openWay(ctx, l, w, claim) }
	}
	t, i, err := firstOf(ctx, dials, func(t *transport) { _ = t.rec.abort() })
	return t, ways[i].host.Candidate, err
}

// openWay opens a leg in one way.
func (e *Endpoint) openWay(ctx context.Context, l *lease, w way, claim wire.Line) (t *transport, err error) {
	c, err := e.dialRelay(ctx, w.host.Candidate, w.host.at)
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
		t = newTransport(securedLeg{secured})
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

// securedLeg is a connection to a relay inside TLS that can be reset.
type securedLeg struct{ *tls.Conn }

// SetLinger is that of [*net.TCPConn].
func (l securedLeg) SetLinger(seconds int) error {
	if c, ok := l.NetConn().(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(seconds)
	}
	return errors.ErrUnsupported
}

// dialRelay connects to a relay or proxy: at one of its addresses, which are
// looked up if at is empty, or by Config.DialRelay.
func (e *Endpoint) dialRelay(ctx context.Context, c Candidate, at []netip.AddrPort) (net.Conn, error) {
	discard := func(c net.Conn) { _ = abort(c) }
	direct := func(ctx context.Context) (net.Conn, error) {
		at, err := at, error(nil)
		if len(at) == 0 {
			if at, err = e.resolve(ctx, c); err != nil {
				return nil, err
			}
		}
		var dials []func(context.Context) (net.Conn, error)
		for _, a := range firstOfEach(at) {
			dials = append(dials, func(ctx context.Context) (net.Conn, error) { return e.network.Dial(ctx, netip.AddrPort{}, a) })
		}
		conn, _, err := firstOf(ctx, dials, discard)
		return conn, err
	}
	if e.config.DialRelay == nil {
		return direct(ctx)
	}
	conn, _, err := firstOf(ctx, []func(context.Context) (net.Conn, error){direct, func(ctx context.Context) (net.Conn, error) {
		return e.config.DialRelay(ctx, "tcp", c.address())
	}}, discard)
	return conn, err
}

// firstOfEach returns the first address of each family, the one that comes first
// first: a machine may have but one of them, and a name is not to have us dial
// a crowd.
func firstOfEach(at []netip.AddrPort) []netip.AddrPort {
	found := at[:1:1]
	other := slices.IndexFunc(at, func(a netip.AddrPort) bool { return a.Addr().Is4() != at[0].Addr().Is4() })
	if other > 0 {
		found = append(found, at[other])
	}
	return found
}

// firstOf returns what the first of several ways leads to, and its number. Each is
// begun when the one before it has failed, or has not come to an end for 300 ms.
// What comes too late is discarded. The error is that of the last to fail; a
// relay's refusal ends it, for the relay refuses whatever the way.
func firstOf[T any](ctx context.Context, ways []func(context.Context) (T, error), discard func(T)) (found T, number int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		found  T
		number int
		err    error
	}
	results := make(chan result, len(ways))
	begun, ended := 0, 0
	defer func() {
		cancel()
		for range begun - ended { // at once, now
			if late := <-results; late.err == nil {
				discard(late.found)
			}
		}
	}()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if begun == len(ways) {
				continue
			}
			number := begun
			begun++
			// Owned by this call, which waits for it; ctx ends it.
			go func() {
				found, err := ways[number](ctx)
				results <- result{found, number, err}
			}()
			next.Reset(wayDelay)
		case r := <-results:
			ended++
			var refused *RelayError
			if r.err == nil || errors.As(r.err, &refused) || ended == len(ways) {
				return r.found, r.number, r.err
			}
			next.Reset(0)
		}
	}
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

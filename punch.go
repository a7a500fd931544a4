package dtcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// This file is the dialing of a hole punch (Section 4 of protocol.md). The ports
// from which that is done are kept in port.go.

const (
	punchTime  = 5 * time.Second  // of dialing again
	maxPunched = 2                // candidates that are dialed from the punch port
	hostFirst  = time.Millisecond // head start of a port that is open to all, where there may be no need for a hole

	// A dial whose outside port was foretold has a head start, for any other would
	// take that port; and a responder's waits for the requester to have dialed, for
	// if it is refused it has taken that port, too.
	foretoldFirst = 5 * time.Millisecond
	foretoldHold  = 200 * time.Millisecond
)

// foretold reports whether the session dials from a port of which the peer has
// been told what the NAT will make of it.
func (s *session) foretold() bool { return s.port != nil && s.port.foretold }

// beforeOthers waits, if need be, until the one dial that comes before all others
// has left.
func (s *session) beforeOthers(ctx context.Context) error {
	if !s.foretold() {
		return nil
	}
	select {
	case <-s.begun:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.role == responder {
		return rest(ctx, foretoldHold+foretoldFirst)
	}
	return rest(ctx, foretoldFirst)
}

// errCrossed says that a connection between the same two ports exists already.
var errCrossed = errors.New("the peer's own connection got there first")

// punch dials remote from the session's punch port, and again whenever it is
// refused, for a while: a pinhole is open from our SYN until its reset returns,
// so dialing again at the refusal keeps it open, and the two ends' SYNs cross in
// the end (Section 4 of protocol.md, "Punching"). The gap is drawn anew each
// time, or two ends could stay out of step for ever.
func (a *attempt) punch(remote netip.AddrPort) (net.Conn, error) {
	local := a.s.port.local(remote)
	if a.s.foretold() && a.s.role == responder {
		if err := rest(a.ctx, foretoldHold); err != nil {
			return nil, err
		}
	}
	if a.s.hostAt(remote.Addr()) {
		if err := rest(a.ctx, hostFirst); err != nil {
			return nil, err
		}
	}
	for began := time.Now(); ; {
		dialed := time.Now()
		c, err := a.s.e.network.Dial(a.ctx, local, remote)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EADDRINUSE):
			return nil, errCrossed
		case !turnedAway(err) || time.Since(began) >= punchTime:
			return nil, err
		}
		if err := rest(a.ctx, time.Until(dialed.Add(a.s.e.gap(punchGap(dialed.Sub(began)))))); err != nil {
			return nil, err
		}
	}
}

// holes picks what is dialed from the punch port: what was observed first, for
// behind a mapping there is no need for a hole as a rule.
func holes(targets []Candidate) (found []Candidate) {
	for _, kind := range []CandidateType{Reflexive, Mapped} {
		for _, c := range targets {
			if c.Type == kind && len(found) < maxPunched {
				found = append(found, c)
			}
		}
	}
	return found
}

// hostAt reports whether we also dial the peer at a listening port of its own at
// the same address: there is no NAT, but perhaps a firewall.
func (s *session) hostAt(addr netip.Addr) bool {
	return slices.ContainsFunc(s.targets, func(c Candidate) bool { return c.Type == Host && c.Addr.Addr() == addr })
}

// turnedAway reports whether a dial was answered by somebody who refuses it, and
// may not do so the next time.
func turnedAway(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EHOSTUNREACH)
}

// punchGap returns the bounds of the time between two dials, so long after the
// first.
func punchGap(since time.Duration) (least, most time.Duration) {
	if since < 2*time.Second {
		return 10 * time.Millisecond, 30 * time.Millisecond
	}
	return 50 * time.Millisecond, 150 * time.Millisecond
}

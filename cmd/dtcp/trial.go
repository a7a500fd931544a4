package main

import (
	"errors"
	"maps"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/dtcp-relay/dtcp"
)

// trial is what became of the candidates of a negotiation.
type trial struct {
	mu     sync.Mutex
	own    map[string]bool // candidates that this end offers
	events []attemptEvent
	theirs map[dtcp.CandidateType]bool // types that the peer has offered
}

// pendingResult is that of a dial of which nothing is known yet.
const pendingResult = "no answer before there was a path"

// set says what became of a candidate, in place of what was said before.
func (t *trial) set(candidate string, ours bool, result string) {
	for i, e := range t.events {
		if e.Candidate == candidate && e.Ours == ours {
			t.events[i].Result = result
			return
		}
	}
	t.events = append(t.events, attemptEvent{"attempt", candidate, ours, result})
}

// watch has a trace tell of candidates.
func (t *trial) watch(trace *dtcp.Trace) {
	before := *trace
	trace.Dialing = func(stream string, c dtcp.Candidate) {
		t.mu.Lock()
		t.theirs[c.Type] = true
		t.set(c.String(), false, pendingResult)
		t.mu.Unlock()
		if before.Dialing != nil {
			before.Dialing(stream, c)
		}
	}
	trace.Failed = func(stream string, c dtcp.Candidate, err error) {
		t.mu.Lock()
		dialed := slices.ContainsFunc(t.events, func(e attemptEvent) bool { return e.Candidate == c.String() && !e.Ours })
		ours := !dialed && t.own[c.String()]
		if !ours {
			t.theirs[c.Type] = true
		}
		t.set(c.String(), ours, outcome(err))
		t.mu.Unlock()
		if before.Failed != nil {
			before.Failed(stream, c, err)
		}
	}
	trace.Ready = func(stream string, p dtcp.Path) {
		t.mu.Lock()
		t.set(candidateOf(p), !p.Dialed, "the peer has proven itself")
		t.mu.Unlock()
		if before.Ready != nil {
			before.Ready(stream, p)
		}
	}
	trace.Nominated = func(stream string, p dtcp.Path) {
		t.mu.Lock()
		t.set(candidateOf(p), !p.Dialed, "taken")
		t.mu.Unlock()
		if before.Nominated != nil {
			before.Nominated(stream, p)
		}
	}
}

// outcome words why a candidate was of no use, whose address the line has already.
func outcome(err error) string {
	var dial *net.OpError
	var call *os.SyscallError
	if errors.As(err, &dial) && dial.Op == "dial" && errors.As(dial.Err, &call) {
		return call.Err.Error()
	}
	return trimmed(err)
}

// candidateOf names the candidate by which a path came about.
func candidateOf(p dtcp.Path) string {
	switch {
	case p.Relay != "":
		return string(p.Kind) + " " + p.Relay
	case p.Dialed:
		return string(p.Kind) + " " + p.Remote.String()
	}
	return string(p.Kind) + " " + p.Local.String()
}

// offers takes what this end offers.
func (t *trial) offers(candidates []dtcp.Candidate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range candidates {
		t.own[c.String()] = true
	}
}

// result returns what became of each candidate; of a Dial that failed with noPath,
// which knows more. theirs are the types that the peer has offered.
func (t *trial) result(noPath *dtcp.NoPathError) (events []attemptEvent, theirs map[dtcp.CandidateType]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if noPath == nil {
		return slices.Clone(t.events), maps.Clone(t.theirs)
	}
	for _, a := range noPath.Attempts {
		events = append(events, attemptEvent{"attempt", a.Candidate.String(), a.Ours, outcome(a.Err)})
	}
	return events, maps.Clone(t.theirs)
}

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/dtcp-relay/dtcp"
)

// A trial has one line for each candidate: the last that was heard of it, and of
// ours only what the peer was to dial.
func TestTrial(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(publicHost.Addr), Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	tried := &trial{own: map[string]bool{}, theirs: map[dtcp.CandidateType]bool{}}
	tried.offers([]dtcp.Candidate{privateHost})
	trace := &dtcp.Trace{}
	tried.watch(trace)
	trace.Dialing("s1", publicHost)
	trace.Dialing("s1", relayed)
	trace.Dialing("s1", reflexive)
	trace.Failed("s1", publicHost, fmt.Errorf("dtcp: %w", refused))
	trace.Failed("s1", privateHost, errors.New("dtcp: nothing arrived"))
	path := dtcp.Path{Kind: dtcp.Relay, Relay: relayed.Addr.String(), Dialed: true}
	trace.Ready("s1", path)
	trace.Nominated("s1", path)
	events, theirs := tried.result(nil)
	want := []attemptEvent{
		{"attempt", publicHost.String(), false, "connection refused"},
		{"attempt", relayed.String(), false, "taken"},
		{"attempt", reflexive.String(), false, pendingResult},
		{"attempt", privateHost.String(), true, "nothing arrived"},
	}
	if !slices.Equal(events, want) {
		t.Errorf("got %+v, want %+v", events, want)
	}
	if len(theirs) != 3 || !theirs[dtcp.Host] || !theirs[dtcp.Relay] || !theirs[dtcp.Reflexive] {
		t.Errorf("the peer offers %v", theirs)
	}

	// A Dial that failed knows better.
	failed := &dtcp.NoPathError{Attempts: []dtcp.Attempt{{Candidate: relayed, Err: refused}}}
	if events, _ := tried.result(failed); len(events) != 1 || events[0].Result != "connection refused" {
		t.Errorf("of a failed dial: %+v", events)
	}
}

package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// A place is taken by the request that is let in, not by the stream that may
// come of it, and is free again when none does.
func TestServerTakesAPlaceWithTheRequest(t *testing.T) {
	for _, test := range []struct {
		name string
		once bool
		max  int
		want string // the condition beyond
	}{
		{"one stream", true, 4, stanza.ServiceUnavailable},
		{"many streams", false, 3, stanza.ResourceConstraint},
	} {
		var stderr strings.Builder
		s := &server{
			tool: &tool{out: newOutput(io.Discard, &stderr)}, noun: "stream", once: test.once, max: test.max,
		}
		s.open()
		places := test.max
		if test.once {
			places = 1
		}
		allowed := 0
		allow := s.admitting(func(context.Context, *dtcp.Request) error {
			allowed++
			return nil
		})
		var trace dtcp.Trace
		s.watch(&trace)
		request := &dtcp.Request{From: romeo}
		results := make(chan error)
		for range places + 2 {
			// Owned by the test, which waits for its result.
			go func() {
				results <- s.admitting(func(context.Context, *dtcp.Request) error { return nil })(t.Context(), request)
			}()
		}
		in := 0
		for range places + 2 {
			err := <-results
			var answer *stanza.Error
			switch {
			case err == nil:
				in++
			case !errors.As(err, &answer) || answer.Condition != test.want:
				t.Errorf("%s: refused by %v, want %s", test.name, err, test.want)
			}
		}
		if in != places {
			t.Errorf("%s: %d were let in at once, want %d", test.name, in, places)
		}
		trace.Offered("s1", romeo, "pipe", false)
		trace.Offered("s2", romeo, "pipe", false)
		trace.Ended("s2", time.Second, nil) // a stream
		if s.busy() == nil {
			t.Errorf("%s: there is a place while all are taken", test.name)
		}
		full := dtcp.Attempt{Ours: true, Err: &dtcp.RelayError{Relay: jid.MustParse("relay.example.org"), Reason: "full"}}
		trace.Ended("s1", time.Second, &dtcp.NoPathError{Peer: romeo, Err: errors.New("nothing is left"), Attempts: []dtcp.Attempt{full, full}})
		if err := allow(t.Context(), request); err != nil || allowed != 1 {
			t.Errorf("%s: after a failed negotiation: %v", test.name, err)
		}
		if got := stderr.String(); got != "dtcp: no stream came about with romeo@example.org/orchard: no path: nothing is left; the relay relay.example.org refused: it has no room at the moment; try again later (full)\n" {
			t.Errorf("%s: says %q", test.name, got)
		}
	}
}

// A request that the Endpoint refuses after all gives its place back, and no other
// does; strangers have a few places in all.
func TestServerRefusedAfterAll(t *testing.T) {
	s := &server{tool: &tool{out: newOutput(io.Discard, io.Discard)}, noun: "transfer", max: 16}
	s.open()
	var trace dtcp.Trace
	s.watch(&trace)
	strange := true
	allow := s.admitting(func(_ context.Context, r *dtcp.Request) error {
		r.Stranger = strange
		return nil
	})
	var requests []*dtcp.Request
	for i := range maxStrangers + 1 {
		r := &dtcp.Request{From: romeo, Ephemeral: i == 0}
		if i > 1 {
			r.From = juliet
		}
		if err := allow(t.Context(), r); (err == nil) != (i < maxStrangers) {
			t.Errorf("stranger %d: %v", i, err)
		}
		requests = append(requests, r)
	}
	if !s.isEphemeral(romeo) || s.isEphemeral(juliet) {
		t.Error("who has announced what is mixed up")
	}
	strange = false
	known := &dtcp.Request{From: juliet}
	if err := allow(t.Context(), known); err != nil {
		t.Errorf("strangers keep others out: %v", err)
	}
	want := func(places int, when string) {
		t.Helper()
		if s.places != places {
			t.Errorf("%s: %d places are taken, want %d", when, s.places, places)
		}
	}
	want(maxStrangers+1, "all let in")
	trace.Offered("s1", romeo, fileService, false)
	trace.Refused(requests[1], errors.New("no relay any more"))
	want(maxStrangers, "one of two requests refused")
	trace.Refused(requests[1], errors.New("again"))
	trace.Refused(requests[4], errors.New("was never let in"))
	want(maxStrangers, "refused, and never let in")
	trace.Ended("s1", time.Second, dtcp.ErrClosed)
	want(maxStrangers-1, "the other negotiation ended")
	if len(s.strangers) != 1 {
		t.Errorf("%d strangers are remembered, want one", len(s.strangers))
	}
	for i, stream := range []string{"s2", "s3", "s4"} {
		trace.Offered(stream, juliet, fileService, false)
		trace.Ended(stream, time.Second, dtcp.ErrClosed)
		want(2-i, stream)
	}
	if len(s.admitted)+len(s.begun)+len(s.strangers)+len(s.negotiating) != 0 {
		t.Errorf("remembered for ever: %v %v %v %v", s.admitted, s.begun, s.strangers, s.negotiating)
	}

	// A check of the path takes none.
	if err := allow(t.Context(), &dtcp.Request{From: romeo, Service: checkService}); err != nil {
		t.Errorf("a check is refused: %v", err)
	}
	trace.Offered("s5", romeo, checkService, false)
	trace.Ended("s5", time.Second, errors.New("no path"))
	want(0, "after a check")
}

// A place that nobody was given is not given twice.
func TestServerGivesNoPlaceToThoseRefused(t *testing.T) {
	s := &server{tool: &tool{out: newOutput(io.Discard, io.Discard)}, noun: "stream", once: true, max: 1}
	s.open()
	no := stanza.NewError(stanza.Forbidden, "")
	if err := s.admitting(func(context.Context, *dtcp.Request) error { return no })(t.Context(), &dtcp.Request{}); err != error(no) {
		t.Errorf("refused by %v", err)
	}
	if err := s.busy(); err != nil {
		t.Errorf("the place is taken: %v", err)
	}
}

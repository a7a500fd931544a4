package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
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
		trace.Ended("s1", time.Second, &dtcp.NoPathError{Peer: romeo, Err: errors.New("nothing is left")})
		if err := allow(t.Context(), request); err != nil || allowed != 1 {
			t.Errorf("%s: after a failed negotiation: %v", test.name, err)
		}
		if got := stderr.String(); got != "dtcp: no stream came about with romeo@example.org/orchard: no path: nothing is left\n" {
			t.Errorf("%s: says %q", test.name, got)
		}
	}
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

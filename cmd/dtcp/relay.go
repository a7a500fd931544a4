package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// namedTime is how long --relay waits for the relay where there are other paths,
// too: as long as a first offer does.
const namedTime = time.Second

// relayError says that no relay lends us an address.
type relayError struct {
	only  bool // and that without one there is nothing to try, by --relay-only
	named bool // by --relay
	err   error
}

func (e *relayError) Error() string { return e.err.Error() }
func (e *relayError) Unwrap() error { return e.err }

// checkRelay has --relay-only fail at once where there is no relay, and not
// when somebody wants a stream; and says so where one that was named is of no
// use.
func (l *link) checkRelay(ctx context.Context) error {
	if l.relayOnly {
		return l.awaitRelay(ctx)
	}
	if l.relay.IsZero() {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, namedTime)
	defer cancel()
	if err := l.awaitRelay(bounded); err != nil && ctx.Err() == nil {
		what, _ := explain(err)
		l.out.say("%s; going on without it", what)
	}
	return nil
}

// awaitRelay waits until it is known whether a relay lends us an address, and
// returns why none does.
func (l *link) awaitRelay(ctx context.Context) error {
	select {
	case <-l.opened:
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err := l.endpoint.AwaitRelay(ctx)
	if err != nil {
		err = &relayError{l.relayOnly, !l.relay.IsZero(), because(ctx, err)}
	}
	return err
}

// gathered waits until peers can be told all that there is to offer.
func (l *link) gathered(ctx context.Context) error {
	select {
	case <-l.endpoint.Ready():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// tellRefusal says that the relay of our server does not want us: who waits for
// peers should not learn it by their absence.
func (l *link) tellRefusal() {
	r := l.endpoint.Report()
	var answer *stanza.Error
	if !l.relay.IsZero() || !r.Relay.IsZero() || !errors.As(r.RelayErr, &answer) || answerStatus(answer) != exitRefused {
		return // or it was said
	}
	what, _ := explainNoRelay(&relayError{err: r.RelayErr})
	l.out.say("%s; going on without it", what)
}

// refusals returns what relays have refused, once each.
func refusals(e *dtcp.NoPathError) (found []*dtcp.RelayError) {
	for _, a := range e.Attempts {
		var refused *dtcp.RelayError
		if errors.As(a.Err, &refused) && !slices.ContainsFunc(found, func(r *dtcp.RelayError) bool { return *r == *refused }) {
			found = append(found, refused)
		}
	}
	return found
}

// relayHint is what helps who has no relay.
const relayHint = "whoever runs the XMPP server can add one, by dtcpd; --relay JID names another"

// namedHint is what helps whom a relay is of no use that was named.
const namedHint = "is the address right? without --relay, the one that the XMPP server lists is used"

func explainNoRelay(e *relayError) (what string, hints []string) {
	var answer *stanza.Error
	var silence *silenceError
	why := strings.ReplaceAll(trimmed(e.err), "\n", "; ") // of several relays
	switch {
	case errors.As(e.err, &answer) && answerStatus(answer) == exitRefused:
		what, hints = "our relay refuses to lend an address: "+why, []string{"whoever runs it has to allow this account (allow_domains and deny of dtcpd); --relay JID names another"}
	case errors.As(e.err, &answer) && answer.Condition == stanza.ResourceConstraint:
		what, hints = "our relay lends no address now: "+why, []string{"it may be back soon; --relay JID names another"}
	case errors.As(e.err, &answer):
		what, hints = "no relay lends us an address: "+why, []string{relayHint}
	case errors.As(e.err, &silence), errors.Is(e.err, context.DeadlineExceeded):
		what, hints = "our relay does not answer", []string{"it may be back soon; --relay JID names another"}
	default:
		what, hints = "there is no relay: "+why, []string{relayHint}
	}
	if e.named && slices.Equal(hints, []string{relayHint}) {
		hints = []string{namedHint}
	}
	if e.only {
		return "--relay-only: " + what, append(hints, "without --relay-only an address of this machine would be told to the peer")
	}
	return what, hints
}

// pathHints says what can be done when there is no path.
func pathHints(e *dialError, noPath *dtcp.NoPathError) (hints []string) {
	relayed := false
	for _, refused := range refusals(noPath) {
		hints = append(hints, refusedHint(refused))
	}
	for _, a := range noPath.Attempts {
		relayed = relayed || a.Candidate.Type == dtcp.Relay || a.Candidate.Type == dtcp.Proxy
	}
	if e.paths == dtcp.RelayOnly {
		return append(hints, "with --relay-only at both ends both need the same relay: name it by --relay JID")
	}
	hints = append(hints, "one of the two must be reachable: open a TCP port there and name it by --port N, behind a NAT also by --public ADDR:PORT")
	switch {
	case e.paths == dtcp.DirectOnly:
		hints = append(hints, "or leave out --direct-only, and go through a relay")
	case !relayed && e.relay != nil:
		what, more := explainNoRelay(e.relay)
		hints = append(hints, "or go through a relay, but "+what)
		hints = append(hints, more...)
	}
	return hints
}

// refusedHint says what helps when a relay does not serve us any more.
func refusedHint(e *dtcp.RelayError) string {
	switch e.Reason {
	case "denied":
		return fmt.Sprintf("whoever runs %v has to allow this account; --relay JID names another", e.Relay)
	case "quota", "full", "shutdown":
		return fmt.Sprintf("%v may serve again later; --relay JID names another", e.Relay)
	}
	return fmt.Sprintf("trying again asks %v for a new lease; if that does not help, its operator finds the reason in the log of dtcpd", e.Relay)
}

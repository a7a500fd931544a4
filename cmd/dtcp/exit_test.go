package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/internal/transfer"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

var (
	juliet = jid.MustParse("juliet@example.org/balcony")
	romeo  = jid.MustParse("romeo@example.org/orchard")
)

// Every failure has its exit status, and an explanation that says the one thing
// that helps.
func TestFailures(t *testing.T) {
	refused := func(condition, text string) error {
		return &dtcp.RefusedError{Peer: juliet, Err: stanza.NewError(condition, text)}
	}
	dial := func(err error) error { return &dialError{peer: juliet, service: "ssh", own: romeo, err: err} }
	unknown := &profile.UnknownError{Peer: juliet.Bare(), Fingerprint: dtcp.FingerprintOf(nil), Known: 1}
	noPath := &dtcp.NoPathError{Peer: juliet, Err: errors.New("no connection within 30s"), Attempts: []dtcp.Attempt{
		{Candidate: dtcp.Candidate{Type: dtcp.Host}, Err: syscall.ECONNREFUSED},
	}}
	relayed := func(reason string) error {
		return &dtcp.NoPathError{Peer: juliet, Err: errors.New("no connection within 30s"), Attempts: []dtcp.Attempt{
			{Candidate: dtcp.Candidate{Type: dtcp.Relay}, Ours: true, Err: &dtcp.RelayError{Relay: jid.MustParse("relay.example.org"), Reason: reason}},
		}}
	}
	file := func(name string, err error) transfer.File { return transfer.File{Name: name, Err: err} }
	sending := func(err error) error {
		return &transferError{peer: juliet, sending: true, result: &transfer.Result{Files: 2}, err: err}
	}
	receiving := func(err error) error {
		return &transferError{peer: romeo, result: &transfer.Result{Files: 2}, err: err}
	}
	cut := fmt.Errorf("%w: %w", transfer.ErrCut, io.ErrUnexpectedEOF)
	for _, test := range []struct {
		err  error
		want int
		says string // in what happened
		help string // in what can be done about it
	}{
		{&usageError{errors.New("what?")}, exitUsage, "what?", ""},
		{errInterrupted, exitInterrupted, "interrupted", ""},
		{errors.New("dtcp: x"), exitFailed, "x", ""},
		{profile.ErrNoAccount, exitLogin, "no such account", "dtcp login JID"},
		{&loginError{&xmpp.AuthError{Condition: "not-authorized"}}, exitLogin, "wrong user name or password", "dtcp login JID"},
		{&loginError{fmt.Errorf("xmpp: %w", &xmpp.StreamError{Condition: "conflict"})}, exitLogin, "conflict", "--account JID/RESOURCE"},
		{&loginError{&xmpp.ConnectError{Domain: "example.org", Attempts: []xmpp.Attempt{{Err: syscall.ECONNREFUSED}}}}, exitLogin, "connection refused", "--server"},
		{&loginError{context.DeadlineExceeded}, exitLogin, "login failed", "online"},
		{&loginError{errNoPassword}, exitLogin, "no password", "--password-file"},

		{dial(refused(stanza.Forbidden, "go away")), exitRefused, "go away", "--allow romeo@example.org"},
		{dial(&dtcp.RefusedError{Peer: juliet, Err: &stanza.Error{Condition: "odd", Code: 403}}), exitRefused, "odd", "--allow"},
		{dial(refused(stanza.ServiceUnavailable, "")), exitAbsent, "nobody at juliet@example.org/balcony", "dtcp listen --service ssh"},
		{dial(refused(stanza.RecipientUnavailable, "")), exitAbsent, "nobody", "dtcp listen"},
		{dial(refused(stanza.FeatureNotImplemented, "")), exitAbsent, "nobody", "dtcp listen"},
		{dial(refused(stanza.ItemNotFound, "")), exitAbsent, "nobody", "dtcp listen"},
		{dial(refused(stanza.RemoteServerNotFound, "")), exitAbsent, "that of example.org", "address"},
		{dial(refused(stanza.RemoteServerTimeout, "")), exitAbsent, "that of example.org", "address"},
		{dial(refused(stanza.ResourceConstraint, "busy")), exitFailed, "busy", ""},
		{dial(refused(stanza.BadRequest, "")), exitFailed, "bad-request", ""},
		{dial(refused(stanza.NotAcceptable, dtcp.ErrOwnFingerprint.Error())), exitFailed, "same certificate", "--config"},
		{dial(&dtcp.PeerError{Peer: juliet, Err: dtcp.ErrOwnFingerprint}), exitFailed, "same certificate", "--config"},
		{dial(&dtcp.PeerError{Peer: juliet, Err: dtcp.ErrPlain}), exitAbsent, "XEP-0046", "--allow-plain"},
		{dial(&dtcp.PeerError{Peer: juliet, Err: unknown}), exitFailed, "not among the 1 known", "dtcp peers trust juliet@example.org"},
		{dial(&dtcp.PeerError{Peer: juliet, Err: dtcp.ErrProof}), exitFailed, "does not prove", ""},
		{dial(noPath), exitAbsent, "no path to juliet@example.org/balcony", "connection refused"},
		{dial(fmt.Errorf("dtcp: %w", &silenceError{juliet, 30 * time.Second})), exitAbsent, "no answer from juliet@example.org/balcony in 30s", "dtcp listen"},
		{dial(context.DeadlineExceeded), exitAbsent, "--timeout", "dtcp listen"},
		{dial(&xmpp.LoggedOutError{Lost: syscall.ECONNREFUSED, Err: context.DeadlineExceeded}), exitLogin, "our XMPP server is out of reach: connection refused", ""},
		{dial(&xmpp.LoggedOutError{Lost: fmt.Errorf("xmlstream: %w", io.EOF), Err: context.DeadlineExceeded}), exitLogin, "out of reach: it closed the connection", ""},
		{&relayError{true, false, errors.New("dtcp: nothing listed")}, exitAbsent, "--relay-only: there is no relay: nothing listed", "address of this machine"},
		{&relayError{false, false, fmt.Errorf("dtcp: relay.example.org: %w", stanza.NewError(stanza.Forbidden, "no"))}, exitAbsent, "refuses to lend an address: relay.example.org: forbidden", "allow this account"},
		{&relayError{false, false, fmt.Errorf("dtcp: relay.example.org: %w", stanza.NewError(stanza.RemoteServerNotFound, ""))}, exitAbsent, "no relay lends us", "dtcpd"},
		{&relayError{false, true, fmt.Errorf("dtcp: nope: %w", stanza.NewError(stanza.RemoteServerNotFound, ""))}, exitAbsent, "no relay lends us", "is the address right?"},
		{&relayError{true, true, errors.New("dtcp: neither")}, exitAbsent, "there is no relay: neither", "without --relay, "},
		{&relayError{false, false, fmt.Errorf("dtcp: r: %w", stanza.NewError(stanza.ResourceConstraint, "about to stop"))}, exitAbsent, "no address now: r: resource-constraint: about to stop", "back soon"},
		{&relayError{false, false, context.DeadlineExceeded}, exitAbsent, "does not answer", "--relay JID"},
		{&relayError{false, false, errors.Join(errors.New("a: no"), errors.New("b: no"))}, exitAbsent, "a: no; b: no", "--relay JID"},
		{dial(refused(stanza.NotAcceptable, relayedOnlyText)), exitAbsent, "relay of its own only", "--relay JID"},
		{dial(relayed("denied")), exitAbsent, "no path", "relay.example.org has to allow"},
		{dial(relayed("quota")), exitAbsent, "no path", "may serve again later"},
		{dial(relayed("bad-lease")), exitAbsent, "no path", "operator"},
		{&dialError{peer: juliet, paths: dtcp.RelayOnly, err: relayed("full")}, exitAbsent, "no path", "both need the same relay"},
		{&dialError{peer: juliet, paths: dtcp.DirectOnly, err: noPath}, exitAbsent, "no path", "leave out --direct-only"},
		{&dialError{peer: juliet, relay: &relayError{err: errors.New("dtcp: nothing listed")}, err: noPath}, exitAbsent, "no path", "but there is no relay: nothing listed"},
		{&dialError{peer: juliet, relay: &relayError{err: errors.New("dtcp: gone")}, err: fmt.Errorf("x: %w", dtcp.ErrPolicy)}, exitAbsent, "there is no relay: gone", "dtcpd"},

		{sending(transfer.Refuse("busy")), exitRefused, "juliet@example.org/balcony declined: busy", ""},
		{sending(transfer.Refuse("")), exitRefused, "juliet@example.org/balcony declined", ""},
		{sending(&transfer.RefusedError{Reason: "there is no room"}), exitFailed, "cannot take it: there is no room", ""},
		{sending(&transfer.PartialError{Failed: []transfer.File{file("a", io.EOF)}}), exitFailed, "1 of 3 did not arrive", ""},
		{sending(cut), exitFailed, "cut before its end, by the peer", "the same command resumes"},
		{sending(fmt.Errorf("%w for 30s", transfer.ErrStalled)), exitFailed, "no progress for 30s: juliet@example.org/balcony is asleep", "resumes"},
		{&transferError{peer: juliet, sending: true, piped: true, result: &transfer.Result{}, err: &transfer.PeerError{Reason: "stopped"}}, exitFailed, "stopped", "has to be sent anew"},
		{sending(&transfer.PeerError{Reason: "stopped"}), exitFailed, "stopped the transfer: stopped", "resumes"},
		{sending(fmt.Errorf("a.bin: %w", transfer.ErrDiskFull)), exitFailed, "the disk is full", "room"},
		{sending(&transfer.SourceError{Name: "x", Err: io.EOF}), exitFailed, "sending x: EOF", ""},
		{sending(&transfer.SourceError{Name: "stdin", Err: cut}), exitFailed, "stdin is gone", ""},
		{sending(&transfer.LimitError{What: "more than 3 files"}), exitFailed, "more than 3 files", ""},
		{sending(errInterrupted), exitInterrupted, "interrupted", ""},
		{receiving(errDeclined), exitFailed, "declined here", ""},
		{receiving(&transfer.RefusedError{Reason: "there is no room"}), exitFailed, "cannot be taken: there is no room", ""},
		{receiving(cut), exitFailed, "cut before its end, by the peer", "when the sender sends the same again"},
		{receiving(transfer.ErrSuperseded), exitFailed, "has taken over", ""},
		{receiving(&transfer.ProtocolError{What: "noise"}), exitFailed, "broke the file protocol: noise", ""},
		{&dialError{peer: juliet, service: fileService, own: romeo, err: refused(stanza.Forbidden, "")}, exitRefused, "refuses", "dtcp receive --from romeo@example.org"},
		{&dialError{peer: juliet, service: fileService, own: romeo, err: refused(stanza.ServiceUnavailable, "")}, exitAbsent, "nobody", "dtcp receive running"},

		{&cutError{io.ErrUnexpectedEOF}, exitFailed, "cut before its end", ""},
		{&localError{"writing to", "stdout", syscall.ENOSPC}, exitFailed, "writing to stdout: no space", ""},
		{profile.ErrAmbiguous, exitFailed, "several", "dtcp peers trust JID FINGERPRINT"},
		{&profile.DamagedError{Path: "/x/peers.json", Err: io.EOF}, exitFailed, "/x/peers.json is damaged", "copy"},
	} {
		if got := status(test.err); got != test.want {
			t.Errorf("%v: status %d, want %d", test.err, got, test.want)
		}
		what, hints := explain(test.err)
		if !strings.Contains(what, test.says) {
			t.Errorf("%v: says %q, want something with %q", test.err, what, test.says)
		}
		if !strings.Contains(strings.Join(hints, "\n"), test.help) {
			t.Errorf("%v: hints are %q, want something with %q", test.err, hints, test.help)
		}
		if strings.Contains(what, "dtcp: ") || strings.Contains(what, "xmpp: ") {
			t.Errorf("%v: names a package: %q", test.err, what)
		}
	}
	if status(nil) != exitOK {
		t.Error("success has a status")
	}
	if status(errHangup) != exitInterrupted {
		t.Error("a hangup is no interruption")
	}
	if status(fmt.Errorf("writing: %w", errQuiet)) != exitFailed {
		t.Error("a reader that went away is no success")
	}
}

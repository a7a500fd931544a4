package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/egress"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// dialError is a failed attempt to get a stream, with what its explanation
// needs.
type dialError struct {
	peer    jid.JID // that was dialed
	service string
	own     jid.JID
	paths   dtcp.PathPolicy
	relay   *relayError // why there is no relay of our own; nil: there is, or it did not matter
	err     error
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// contextError says which of several streams failed.
type contextError struct {
	which string
	err   error
}

func (e *contextError) Error() string { return e.which + ": " + e.err.Error() }
func (e *contextError) Unwrap() error { return e.err }

// explain says in one line what happened and why, and in further ones what can
// be done about it.
func explain(err error) (what string, hints []string) {
	var dial *dialError
	var login *loginError
	var unknown *profile.UnknownError
	var damaged *profile.DamagedError
	var cut *cutError
	var one *contextError
	var files *transferError
	var usage *usageError
	var relay *relayError
	switch {
	case errors.As(err, &usage):
		return explainUsage(usage)
	case errors.As(err, &one):
		what, hints = explain(one.err)
		return one.which + ": " + what, hints
	case errors.As(err, &files):
		return explainTransfer(files)
	case errors.As(err, &dial):
		return explainDial(dial)
	case errors.As(err, &login):
		return explainLogin(login.err)
	case errors.Is(err, profile.ErrNoAccount):
		return "no such account is remembered", []string{"dtcp login JID remembers one; or name it by --account, with --password-file or " + passwordVariable}
	case errors.As(err, &unknown):
		return explainUnknown(unknown)
	case errors.As(err, &damaged):
		return trimmed(err), []string{
			"bring back a copy of it; without it dtcp starts afresh, with nothing remembered of what was in it",
		}
	case errors.As(err, &relay):
		return explainNoRelay(relay)
	case errors.Is(err, errInterrupted):
		return errInterrupted.Error(), nil
	case errors.As(err, &cut):
		return explainCut(cut), nil
	case errors.Is(err, profile.ErrNoPeer):
		return "nothing is known of this peer", []string{"dtcp peers lists those that are known"}
	case errors.Is(err, profile.ErrNoPending):
		return "no fingerprint of this peer was refused", []string{"name the one to trust: dtcp peers trust JID FINGERPRINT"}
	case errors.Is(err, profile.ErrAmbiguous):
		return "several fingerprints of this peer were refused", []string{"dtcp peers verify JID lists them; name the one to trust: dtcp peers trust JID FINGERPRINT"}
	case isAny(err, inUseErrors):
		return trimmed(err), []string{"another program has this port: name another"}
	}
	return trimmed(err), nil
}

// explainUsage tells a mistake from what was meant, which cobra puts below.
func explainUsage(e *usageError) (what string, hints []string) {
	what, meant, _ := strings.Cut(trimmed(e), "\n\nDid you mean this?\n")
	for m := range strings.FieldsSeq(meant) {
		hints = append(hints, "did you mean dtcp "+m+"?")
	}
	return what, hints
}

func explainLogin(err error) (what string, hints []string) {
	var auth *xmpp.AuthError
	var certificate *xmpp.TLSError
	var connect *xmpp.ConnectError
	var proxy *egress.Error
	what = "login failed: " + trimmed(err)
	switch {
	case errors.Is(err, xmpp.ErrConflict):
		return "the account is in conflict: " + trimmed(err), []string{"the other one goes on, this one ends; to have both, give one another resource: --account JID/RESOURCE"}
	case errors.As(err, &auth) && auth.Condition == "not-authorized":
		return what, []string{"check the address and the password; dtcp login JID remembers a new one"}
	case errors.As(err, &certificate) && certificate.Certificate != nil:
		return what, []string{
			"if this is the right server, ask whoever runs it, and then either give its certificate by --ca FILE,",
			"or accept this one alone by --trust " + certificate.Fingerprint(),
		}
	case errors.Is(err, errNoPassword):
		return what, []string{"give it by --password-file FILE or " + passwordVariable + ", or have dtcp login JID remember it"}
	case errors.As(err, &proxy):
		return what, []string{proxyHint(proxy)}
	case isAny(err, refusedErrors):
		return what, []string{"no XMPP server listens there: is the address right? --server HOST:PORT names another"}
	case errors.Is(err, context.DeadlineExceeded):
		return what, []string{"is this machine online? --server HOST:PORT names another address of the XMPP server"}
	case errors.As(err, &connect):
		return what, []string{"is the address of the account right? --server HOST:PORT names its XMPP server"}
	}
	return what, nil
}

// attemptMark begins the hints that are no advice, but name what was tried.
const attemptMark = "  tried "

func explainDial(e *dialError) (what string, hints []string) {
	var refused *dtcp.RefusedError
	var answer *stanza.Error
	var noPath *dtcp.NoPathError
	var unknown *profile.UnknownError
	var silence *silenceError
	var out *xmpp.LoggedOutError
	who := e.peer
	switch {
	case errors.As(e.err, &refused) && errors.As(refused.Err, &answer):
		return explainRefusal(e, answer)
	case errors.As(e.err, &unknown):
		return explainUnknown(unknown)
	case errors.As(e.err, &noPath):
		what = fmt.Sprintf("no path to %v: %v", who, reason(noPath.Err))
		for _, a := range noPath.Attempts {
			hints = append(hints, attemptMark+a.String())
		}
		return what, append(hints, pathHints(e, noPath)...)
	case e.relay != nil: // that was all there was to try
		return explainNoRelay(e.relay)
	case errors.Is(e.err, dtcp.ErrPlain):
		return fmt.Sprintf("%v offers only a stream without authentication (XEP-0046), or somebody between makes it look so", who),
			[]string{"--allow-plain takes it, if nothing like that was ever different with this peer"}
	case errors.Is(e.err, xmpp.ErrConflict):
		return explainLogin(e.err)
	case errors.Is(e.err, dtcp.ErrOwnFingerprint):
		return explainSelf(who)
	case errors.As(e.err, &out):
		return explainLoggedOut(out), nil // it comes back by itself
	case errors.As(e.err, &silence):
		return silence.Error(), []string{listenHint(e)}
	case errors.Is(e.err, context.DeadlineExceeded):
		return fmt.Sprintf("no stream with %v in the time that --timeout gives", who), []string{listenHint(e)}
	}
	return trimmed(e.err), nil
}

// relayedOnlyText is how package dtcp words the answer of who takes relayed
// streams only, and has no relay.
const relayedOnlyText = "only relayed streams are accepted, and there is no relay"

func explainRefusal(e *dialError, answer *stanza.Error) (what string, hints []string) {
	who := e.peer
	switch {
	case answer.Text == dtcp.ErrOwnFingerprint.Error():
		return explainSelf(who)
	case answer.Text == unknownText:
		own := e.own.Bare()
		return fmt.Sprintf("%v refuses: it knows %v by another certificate than that of this machine", who, own),
			[]string{fmt.Sprintf("at the other end, dtcp peers verify %v prints words to compare by voice, and dtcp peers trust %[1]v lets this machine in", own)}
	case answer.Text == relayedOnlyText:
		return fmt.Sprintf("%v takes streams through a relay of its own only, and has none", who),
			[]string{"at the other end, --relay JID names one, and without --relay-only there are other paths"}
	case answer.Condition == stanza.RemoteServerNotFound, answer.Condition == stanza.RemoteServerTimeout:
		return fmt.Sprintf("%v: no connection between our XMPP server and that of %s: %v", who, who.Domain(), answer),
			[]string{"is the address right?"}
	}
	switch answerStatus(answer) {
	case exitRefused:
		return fmt.Sprintf("%v refuses: %v", who, answer),
			[]string{allowHint(e)}
	case exitAbsent:
		return fmt.Sprintf("nobody at %v offers the service %s: %v", who, e.service, answer), []string{listenHint(e)}
	}
	return fmt.Sprintf("%v cannot give a stream: %v", who, answer), nil
}

func allowHint(e *dialError) string {
	if e.service == fileService {
		return fmt.Sprintf("it has to let this account in: as a contact, or by dtcp receive --from %v", e.own.Bare())
	}
	return fmt.Sprintf("it has to allow this account: dtcp listen --allow %v", e.own.Bare())
}

func listenHint(e *dialError) string {
	if e.service == checkService {
		return fmt.Sprintf("is dtcp listen or dtcp receive running there, with the account %v?", e.peer.Bare())
	}
	if e.service == fileService {
		return fmt.Sprintf("is dtcp receive running there, with the account %v?", e.peer.Bare())
	}
	if e.service == "" || e.service == "pipe" {
		return fmt.Sprintf("is dtcp listen running there, with the account %v?", e.peer.Bare())
	}
	return fmt.Sprintf("is dtcp listen --service %s running there, with the account %v?", e.service, e.peer.Bare())
}

func explainLoggedOut(e *xmpp.LoggedOutError) string {
	what := "our XMPP server is out of reach"
	if e.Lost != nil {
		what += ": " + loss(e.Lost)
	}
	return what
}

// loss words why there is no connection to our XMPP server any more.
func loss(err error) string {
	if errors.Is(err, io.EOF) {
		return "it closed the connection"
	}
	return trimmed(err)
}

func explainSelf(who jid.JID) (string, []string) {
	return fmt.Sprintf("%v has the same certificate as this end, so one cannot be told from the other", who),
		[]string{"both use one configuration directory; give one of them another by --config DIR or " + profile.Environment}
}

func explainUnknown(e *profile.UnknownError) (string, []string) {
	what := fmt.Sprintf("%v shows the fingerprint %v, which is not among the %d known for it: another machine, a new certificate, or somebody else", e.Peer, e.Fingerprint, e.Known)
	if e.Ephemeral {
		return what, []string{fmt.Sprintf("it is made for one process and cannot be kept; dtcp peers forget %v forgets the others", e.Peer)}
	}
	return what, []string{
		fmt.Sprintf("compare by voice: dtcp peers verify %v; then let it in: dtcp peers trust %[1]v %v", e.Peer, e.Fingerprint),
	}
}

func explainCut(e *cutError) string {
	switch {
	case errors.Is(e, io.ErrUnexpectedEOF), isAny(e, resetErrors):
		return "the stream was cut before its end, by the peer, the network or a relay"
	}
	return "the stream was cut before its end: " + trimmed(e.err)
}

// isAny reports whether an error is one of several.
func isAny(err error, these []error) bool {
	return slices.ContainsFunc(these, func(e error) bool { return errors.Is(err, e) })
}

// reason words an error for people.
func reason(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "not in the time that --timeout gives"
	}
	return trimmed(err)
}

// trimmed returns err's text without the names of packages, which say nothing
// to people.
func trimmed(err error) string {
	text := err.Error()
	for _, prefix := range []string{"dtcp: ", "xmpp: ", "profile: ", "jid: ", "xmlstream: ", "stanza: ", "wire: ", "transfer: ", "precis: "} {
		text = strings.ReplaceAll(text, prefix, "")
	}
	return text
}

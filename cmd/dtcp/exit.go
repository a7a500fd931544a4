package main

import (
	"context"
	"errors"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Exit statuses. Scripts rely on them.
const (
	exitOK          = 0
	exitFailed      = 1   // or cut
	exitUsage       = 2   //
	exitRefused     = 3   // by the peer's policy
	exitAbsent      = 4   // nobody there, or no path
	exitLogin       = 5   // login failed, or the account in conflict
	exitInterrupted = 130 // by a signal
)

// errInterrupted is the cause of the context that a signal ended.
var errInterrupted = errors.New("interrupted")

// errHangup is its cause when the terminal, or whoever started us, has gone.
var errHangup = errors.New("hung up")

// errQuiet fails without a message: whoever read our output has gone, and
// nobody wants to be told so.
var errQuiet = errors.New("the reader of stdout has gone")

// usageError says that the command line makes no sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// loginError is whatever went wrong between the command line and a login.
type loginError struct{ err error }

func (e *loginError) Error() string { return e.err.Error() }
func (e *loginError) Unwrap() error { return e.err }

// toldError is a failure that the user knows of already.
type toldError struct{ err error }

func (e *toldError) Error() string { return e.err.Error() }
func (e *toldError) Unwrap() error { return e.err }

// status returns the exit status that an error means.
func status(err error) int {
	var usage *usageError
	var login *loginError
	var answer *stanza.Error
	var noPath *dtcp.NoPathError
	var peer *dtcp.PeerError
	var files *transferError
	var out *xmpp.LoggedOutError
	var relay *relayError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errInterrupted), errors.Is(err, errHangup):
		return exitInterrupted
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &files):
		return transferStatus(files)
	case errors.As(err, &login), errors.As(err, &out), errors.Is(err, xmpp.ErrConflict), errors.Is(err, profile.ErrNoAccount):
		return exitLogin
	case errors.Is(err, dtcp.ErrPlain), errors.Is(err, dtcp.ErrPolicy), errors.As(err, &relay):
		return exitAbsent
	case errors.As(err, &peer):
		return exitFailed
	case errors.As(err, &answer):
		return answerStatus(answer)
	case errors.As(err, &noPath), errors.Is(err, context.DeadlineExceeded): // set-up is all that has a deadline
		return exitAbsent
	}
	return exitFailed
}

// answerStatus returns the exit status that a refusal by iq means.
func answerStatus(e *stanza.Error) int {
	switch e.Condition {
	case stanza.Forbidden:
		return exitRefused
	case stanza.ServiceUnavailable, stanza.RecipientUnavailable, stanza.FeatureNotImplemented, stanza.ItemNotFound, stanza.Gone,
		stanza.RemoteServerNotFound, stanza.RemoteServerTimeout:
		return exitAbsent
	}
	switch {
	case e.Code == 403:
		return exitRefused
	case e.Text == relayedOnlyText:
		return exitAbsent
	}
	return exitFailed
}

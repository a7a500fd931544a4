package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/dtcp-relay/dtcp/internal/transfer"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// transferError is a transfer that failed, with what its explanation needs.
type transferError struct {
	peer    jid.JID
	sending bool
	piped   bool             // some of it comes from stdin, which cannot be read again
	result  *transfer.Result // nil while there are further attempts
	err     error
}

func (e *transferError) Error() string { return e.err.Error() }
func (e *transferError) Unwrap() error { return e.err }

// transferStatus returns the exit status that a failed transfer means.
func transferStatus(e *transferError) int {
	var refused *transfer.RefusedError
	switch {
	case errors.Is(e, errInterrupted), errors.Is(e, errHangup):
		return exitInterrupted
	case e.sending && errors.As(e.err, &refused) && refused.Declined():
		return exitRefused
	}
	return exitFailed
}

// What helps when a transfer did not come to its end.
const (
	resumeSending   = "what has arrived is kept there: the same command resumes; with --retry DURATION it does so by itself"
	anewSending     = "what was read from stdin is gone: it has to be sent anew"
	resumeReceiving = "what has arrived is kept: it resumes when the sender sends the same again"
)

func explainTransfer(e *transferError) (what string, hints []string) {
	var partial *transfer.PartialError
	var source *transfer.SourceError
	var refused *transfer.RefusedError
	var peer *transfer.PeerError
	resume := []string{resumeReceiving}
	switch {
	case e.piped:
		resume = []string{anewSending}
	case e.sending:
		resume = []string{resumeSending}
	}
	switch {
	case errors.As(e.err, &partial):
		failed := len(partial.Failed)
		return fmt.Sprintf("%d of %d did not arrive", failed, failed+e.result.Files), nil
	case errors.As(e.err, &source):
		return explainSource(source), nil
	case errors.Is(e.err, errDeclined):
		return fmt.Sprintf("the files of %v were declined here", e.peer), nil
	case errors.As(e.err, &refused) && e.sending:
		return explainNo(e.peer, refused), nil
	case errors.As(e.err, &refused):
		return fmt.Sprintf("the files of %v cannot be taken: %s", e.peer, refused.Reason), nil
	case errors.Is(e.err, transfer.ErrSuperseded):
		return "another attempt to send the same has taken over", nil
	case errors.As(e.err, &peer):
		return withReason(fmt.Sprintf("%v stopped the transfer", e.peer), peer.Reason), resume
	case errors.Is(e.err, transfer.ErrDiskFull):
		return trimmed(e.err), []string{"what has arrived is kept; when there is room again, sending the same resumes"}
	case errors.Is(e.err, transfer.ErrStalled):
		return fmt.Sprintf("%v: %v is asleep, or the network between is gone", e.err, e.peer), resume
	case errors.Is(e.err, io.ErrUnexpectedEOF), isAny(e.err, resetErrors):
		return "the transfer was cut before its end, by the peer, the network or a relay", resume
	case errors.Is(e.err, transfer.ErrCut):
		return "the transfer was cut before its end: " + trimmed(e.err), resume
	}
	return trimmed(e.err), nil
}

// explainNo words what a receiver answered that does not want, or cannot.
func explainNo(who jid.JID, refused *transfer.RefusedError) string {
	verb := "cannot take it"
	if refused.Declined() {
		verb = "declined"
	}
	return withReason(fmt.Sprintf("%v %s", who, verb), refused.Reason)
}

// withReason adds the reason, if there is one.
func withReason(what, reason string) string {
	if reason == "" {
		return what
	}
	return what + ": " + reason
}

func explainSource(e *transfer.SourceError) string {
	if errors.Is(e, transfer.ErrCut) || errors.Is(e, transfer.ErrStalled) {
		return "the transfer was cut before its end, and what was read from " + e.Name + " is gone: it cannot resume"
	}
	return "sending " + e.Name + ": " + trimmed(e.Err)
}

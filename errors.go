package dtcp

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Errors of Dial and Accept that a caller can tell apart with [errors.Is].
// See also [*RefusedError], [*NoPathError] and [*PeerError].
var (
	// ErrClosed says that the Endpoint was closed. It is [net.ErrClosed], too,
	// which servers over a [net.Listener] look for.
	ErrClosed = fmt.Errorf("dtcp: endpoint closed: %w", net.ErrClosed)

	// ErrPlain says that the peer knows only XEP-0046, or that somebody between
	// makes it look so, and that such streams are not allowed with it.
	ErrPlain = errors.New("the peer offers only a stream without authentication (XEP-0046), which is not allowed")

	// ErrPolicy says that the path policy leaves nothing to try.
	ErrPolicy = errors.New("the path policy leaves no path to try")

	// ErrOwnFingerprint says that the peer announces our own certificate.
	ErrOwnFingerprint = errors.New("the peer has the same certificate as this end")

	// ErrFingerprint says that a certificate is not the one announced.
	ErrFingerprint = errors.New("the certificate is not the one announced")

	// ErrProof says that a nomination does not belong to this session and this
	// connection: somebody forwards, replays or rewrites.
	ErrProof = errors.New("the nomination does not prove this session")
)

// RefusedError is returned by Dial when the iq was answered by an error, of the
// peer or of a server on the way.
type RefusedError struct {
	Peer jid.JID
	Err  error // a *stanza.Error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("dtcp: %v: %v", e.Peer, e.Err) }

// Unwrap returns the stanza error.
func (e *RefusedError) Unwrap() error { return e.Err }

// PeerError is returned by Dial when the peer was reached and turned out not
// to be the one expected: [Config].VerifyPeer, or a rule of the protocol,
// refused it.
type PeerError struct {
	Peer jid.JID
	Err  error
}

func (e *PeerError) Error() string { return fmt.Sprintf("dtcp: %v: %v", e.Peer, e.Err) }

// Unwrap returns the reason.
func (e *PeerError) Unwrap() error { return e.Err }

// NoPathError is returned by Dial when no path was found in time. It names
// every candidate tried.
type NoPathError struct {
	Peer     jid.JID
	Attempts []Attempt // in the order of preference
	Err      error     // why it ended: a timeout, or that both sides gave up
}

// Attempt is what became of one candidate.
type Attempt struct {
	Candidate Candidate
	Ours      bool  // the candidate is ours, and the peer was to dial it
	Err       error // never nil
}

func (a Attempt) String() string {
	if a.Ours {
		return fmt.Sprintf("%v, offered to the peer: %v", a.Candidate, a.Err)
	}
	return fmt.Sprintf("%v: %v", a.Candidate, a.Err)
}

func (e *NoPathError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "dtcp: no path to %v: %v", e.Peer, e.Err)
	for _, a := range e.Attempts {
		fmt.Fprintf(&b, "; %v", a)
	}
	return b.String()
}

// Unwrap returns why it ended and the errors of the attempts.
func (e *NoPathError) Unwrap() []error {
	errs := []error{e.Err}
	for _, a := range e.Attempts {
		errs = append(errs, a.Err)
	}
	return errs
}

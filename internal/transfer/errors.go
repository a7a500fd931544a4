package transfer

import (
	"context"
	"errors"
	"fmt"
)

// Errors to be told apart with [errors.Is].
var (
	// ErrStalled is the end of a transfer in which nothing moved for the time
	// of [Sender.Stall] or [Receiver.Stall].
	ErrStalled = errors.New("no progress")

	// ErrCut is the end of a stream before the end of the transfer. Another
	// attempt resumes.
	ErrCut = errors.New("the connection was cut")

	// ErrSuperseded is the end of a transfer on the receiving side when the
	// same sender has begun the same one again.
	ErrSuperseded = errors.New("the sender has begun anew")

	// ErrDiskFull is the end of a transfer for which the receiver has no room.
	// What arrived is kept.
	ErrDiskFull = errors.New("the disk is full")
)

// A RefusedError says that the receiver did not accept the offer. Nothing was
// written. Another attempt would be refused as well.
type RefusedError struct {
	Reason string // words of the receiver, fit to be printed
	code   code
}

func (e *RefusedError) Error() string {
	if e.Reason == "" {
		return "refused"
	}
	return "refused: " + e.Reason
}

// Declined is true if a person or a policy said no, and false if the offer did
// not fit: too large for the disk or for a limit.
func (e *RefusedError) Declined() bool { return e.code == codeDeclined }

// Is makes a refusal for want of room an [ErrDiskFull].
func (e *RefusedError) Is(target error) bool { return e.code == codeFull && target == ErrDiskFull }

// Refuse is an error for [Receiver.Accept] to return: the sender is told the
// reason. Of any other error it is told nothing but that it was declined.
func Refuse(reason string) error { return &RefusedError{Reason: reason, code: codeDeclined} }

// A PeerError says that the peer ended the transfer, and in its words why.
type PeerError struct {
	Reason string // fit to be printed
	code   code
}

func (e *PeerError) Error() string {
	if e.Reason == "" {
		return "the peer ended the transfer"
	}
	return "the peer ended the transfer: " + e.Reason
}

// Is makes a peer without room an [ErrDiskFull], and so on.
func (e *PeerError) Is(target error) bool {
	switch target {
	case ErrDiskFull:
		return e.code == codeFull
	case ErrStalled:
		return e.code == codeStalled
	case ErrSuperseded:
		return e.code == codeSuperseded
	}
	return false
}

// A ProtocolError says that the peer broke the protocol of doc/transfer.md.
type ProtocolError struct {
	What string // "a frame of unknown type 0x00"
}

func (e *ProtocolError) Error() string { return "the peer broke the file protocol: " + e.What }

func protocolError(format string, a ...any) error {
	return &ProtocolError{What: fmt.Sprintf(format, a...)}
}

// A VersionError says that the two ends speak different versions of the file
// protocol.
type VersionError struct {
	Theirs uint64
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("the peer speaks version %d of the file protocol, and this program speaks version %d: update the older one", e.Theirs, version)
}

// A LimitError says that what is to be sent is beyond one of the [Limits].
type LimitError struct {
	What string // "more than 250000 files and folders"
}

func (e *LimitError) Error() string { return e.What }

// A SourceError says that something that was named for sending cannot be sent.
// Nothing was dialed, or the attempt before was the last.
type SourceError struct {
	Name string // as named by the caller
	Err  error
}

func (e *SourceError) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *SourceError) Unwrap() error { return e.Err }

// An EntryError says why the receiver did not store one entry.
type EntryError struct {
	Reason string // words of the receiver, fit to be printed
}

func (e *EntryError) Error() string { return "not stored there: " + e.Reason }

// maxReasons is how many reasons of the peer are kept, of a transfer in which
// more entries failed.
const maxReasons = 1000

var errMore = fmt.Errorf("the other end said why, but only %d reasons are kept", maxReasons)

// A PartialError says that the transfer went to its end, and that some of what
// was offered did not arrive.
type PartialError struct {
	Failed []File // in the order of the offer
}

func (e *PartialError) Error() string {
	first := e.Failed[0]
	text := fmt.Sprintf("%s: %v", first.Name, first.Err)
	if n := len(e.Failed) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return text
}

// codeOf is what the peer is told of an error that ends a transfer here.
func codeOf(err error) code {
	var protocol *ProtocolError
	var limit *LimitError
	var version *VersionError
	switch {
	case errors.As(err, &protocol):
		return codeProtocol
	case errors.As(err, &version):
		return codeUnsupported
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return codeStopped
	case errors.As(err, &limit):
		return codeLimit
	case errors.Is(err, ErrDiskFull):
		return codeFull
	case errors.Is(err, ErrSuperseded):
		return codeSuperseded
	case errors.Is(err, ErrStalled):
		return codeStalled
	}
	return codeOther
}

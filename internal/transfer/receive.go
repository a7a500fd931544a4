package transfer

import (
	"context"
	"errors"
	"io"
	"time"
)

// A Receiver receives one transfer. Accept must be set, and one of Folder and
// Output. Its hooks are called by the goroutines of the transfer, several at
// once if need be; a hook other than Accept that blocks holds the transfer up.
type Receiver struct {
	// From says who sends: whatever name the caller has proven, the same for
	// all transfers of that person. Only with the same name is a part resumed.
	From string

	// Folder is where files are stored. Output, if set, takes the bytes of the
	// one file that is then accepted, as they come; nothing else is written,
	// and nothing can be resumed.
	Folder *Folder
	Output io.Writer

	// Accept is asked, once, before anything is written. It returns nil to
	// accept, or an error made by [Refuse], whose reason the sender is told; of
	// other errors it is told nothing. It may take long: the sender knows that
	// somebody is being asked. Its ctx ends when the sender goes away.
	Accept func(ctx context.Context, offer *Offer) error

	// Unattended says that Accept asks nobody. Then entries at the top whose names
	// begin with a dot are not stored, with what they hold: in a home folder they
	// are what programs obey, such as .bashrc and .ssh.
	Unattended bool

	// Stall is the time without progress after which the transfer ends with
	// [ErrStalled]. If zero, 30 seconds; if negative, none.
	Stall time.Duration

	// Limits of what is accepted.
	Limits Limits

	// Progress, if set, hears about four times a second how far it is, and once
	// at the end.
	Progress func(Progress)

	// Report, if set, hears of each entry when it is known what became of it:
	// of files all, of folders and links those that failed.
	Report func(File)
}

// Receive receives one transfer from rw, which it closes, from a goroutine of
// its own: Close must end a Read and a Write that wait, as that of a net.Conn
// does. If rw has a method CloseWrite() error, it is used. The result is never
// nil.
//
// The error is nil only if everything that was offered is stored. It is a
// *[PartialError] if the transfer went to its end without some of it, what
// Accept returned or a *[RefusedError] if it was refused, a *[PeerError], a
// *[ProtocolError], a *[VersionError], a *[LimitError], or one that [ErrCut],
// [ErrStalled], [ErrDiskFull] or [ErrSuperseded] match. A ctx that ends stops
// the transfer; the sender is told, and what has arrived is kept.
func (r *Receiver) Receive(ctx context.Context, rw io.ReadWriteCloser) (*Result, error) {
	began := time.Now()
	t := newReceiving(ctx, r, rw)
	err := t.run()
	result := t.result()
	result.Elapsed = time.Since(began)
	if err == nil && len(result.Failed) > 0 {
		err = &PartialError{Failed: result.Failed}
	}
	return result, err
}

// refusal is what the sender is told of an error of Accept.
func refusal(err error) *RefusedError {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused
	}
	return &RefusedError{code: codeDeclined}
}

package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// A Sender sends. Dial must be set; the zero value of everything else works.
// A Sender may be used several times, one after the other or at once. Its
// hooks are called by the goroutines of a transfer, several at once if need be;
// a hook that blocks holds the transfer up.
type Sender struct {
	// Dial opens a stream to the receiver. It is called once per attempt. The
	// sender closes what it returns, from a goroutine of its own: Close must end
	// a Read and a Write that wait, as that of a net.Conn does. If there is a
	// method CloseWrite() error, it is used.
	Dial func(ctx context.Context) (io.ReadWriteCloser, error)

	// Retry is for how long an attempt that failed for the connection's sake is
	// followed by another one, counted from the last time that anything moved.
	// If zero, there is one attempt.
	Retry time.Duration

	// Again says whether an error of Dial is worth another attempt. If nil,
	// each is.
	Again func(error) bool

	// Stall is the time without progress after which an attempt ends with
	// [ErrStalled]. If zero, 30 seconds; if negative, none.
	Stall time.Duration

	// Limits of what is sent. The receiver has its own.
	Limits Limits

	// Listed, if set, hears before each call of Dial what there is to send.
	Listed func(*Offer)

	// Accepted, if set, hears when the receiver has accepted, in each attempt.
	// Until then a person may be making up his mind.
	Accepted func()

	// Progress, if set, hears about four times a second how far it is, and once
	// at the end.
	Progress func(Progress)

	// Report, if set, hears of each entry when it is known what became of it:
	// of files all, of folders and links those that failed. An entry may be
	// reported again in a later attempt.
	Report func(File)

	// Retrying, if set, hears before each further attempt why the last one
	// failed, and how long it is until the next.
	Retrying func(err error, wait time.Duration)
}

// Waits between two attempts.
const (
	firstWait = time.Second
	maxWait   = 30 * time.Second
)

// Send sends the sources in one transfer, until the receiver has confirmed it
// or there is no more to try. The result is never nil; after an error it is
// that of the last attempt. The error is nil only if everything arrived that
// was offered and could be listed. It is a *[PartialError] if the transfer went
// to its end without some of it, a *[RefusedError], a *[SourceError], a
// *[LimitError], a *[PeerError], a *[ProtocolError], a *[VersionError], an error of Dial, or one
// that [ErrCut] or [ErrStalled] match. A ctx that ends stops the transfer; the
// receiver is told, and keeps what it has.
func (s *Sender) Send(ctx context.Context, sources ...Source) (*Result, error) {
	began := time.Now()
	moved := began
	wait := firstWait
	for try := 1; ; try++ {
		result, progress, err := s.attempt(ctx, sources, try)
		result.Tries, result.Elapsed = try, time.Since(began)
		if err == nil || ctx.Err() != nil || !s.again(err) {
			return result, stripDial(err)
		}
		now := time.Now()
		if progress {
			moved, wait = now, firstWait
		}
		left := s.Retry - now.Sub(moved)
		if left <= 0 {
			return result, stripDial(err)
		}
		pause := min(wait, left) // so that the last attempt is made when the time is over, and not before
		if s.Retrying != nil {
			s.Retrying(stripDial(err), pause)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return result, stripDial(err)
		}
		wait = min(2*wait, maxWait)
	}
}

// A dialError marks an error as one of Dial.
type dialError struct{ error }

func stripDial(err error) error {
	var dial dialError
	if errors.As(err, &dial) {
		return dial.error
	}
	return err
}

// again says whether another attempt could fare better.
func (s *Sender) again(err error) bool {
	var dial dialError
	if errors.As(err, &dial) {
		return s.Again == nil || s.Again(dial.error)
	}
	var source *SourceError
	if errors.As(err, &source) {
		return false
	}
	return errors.Is(err, ErrCut) || errors.Is(err, ErrStalled)
}

// attempt lists, dials and sends once. The bool says whether anything moved.
func (s *Sender) attempt(ctx context.Context, sources []Source, try int) (*Result, bool, error) {
	l, err := list(ctx, sources, s.Limits)
	if err != nil {
		return &Result{}, false, err
	}
	defer l.close()
	if try == 1 && s.Report != nil {
		for _, f := range l.omitted {
			s.Report(f)
		}
		for _, f := range l.failed {
			s.Report(f)
		}
	}
	if s.Listed != nil {
		s.Listed(summary(l.entries, func(int) bool { return true }))
	}
	rw, err := s.Dial(ctx)
	if err != nil {
		return &Result{Omitted: l.omitted}, false, dialError{err}
	}
	a := newSending(ctx, s, l, rw)
	err = a.run()
	a.st.end(err, false)
	if err == nil {
		a.say()
	}
	result := a.result()
	if err == nil && len(result.Failed) > 0 {
		err = &PartialError{Failed: result.Failed}
	}
	if a.consumed && err != nil && s.again(err) {
		err = &SourceError{Name: a.consumedName, Err: fmt.Errorf("%w; %w", err, errConsumed)}
	}
	return result, a.moved.Load(), err
}

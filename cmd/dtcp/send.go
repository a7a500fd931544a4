package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/transfer"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// stdinName is what a receiver sees of stdin, which has no name.
const stdinName = "stdin"

// patientTime is how long the peer may think before the user is told that we
// wait for it.
const patientTime = time.Second

// sender is the state of dtcp send.
type sender struct {
	*link
	peer jid.JID
	what *transfer.Offer

	found    jid.JID                   // the resource that was said last
	waiting  *time.Timer               // until the user is told that the peer thinks; nil before the first stream
	accepted atomic.Pointer[time.Time] // when it was first; nil: not yet
}

func (t *tool) sendCommand() *cobra.Command {
	var recursive bool
	c := &cobra.Command{
		Use:   "send FILE... JID",
		Short: "Send files and folders to a peer",
		Long: `send sends files, and with -r folders, to a peer that runs dtcp receive; "-" is
stdin, which arrives as a file of the name ` + stdinName + `. Names, times and modes are kept,
and symbolic links inside folders.

A JID without a resource stands for the resource that announces that it receives
files, or else for JID/dtcp. A transfer that was cut resumes when the same command
is run again; --retry DURATION has it do so by itself, for that long after the last
progress. What the receiver has already is not sent again.`,
		Example: `  dtcp send photo.jpg notes.txt juliet@example.org
  dtcp send -r holiday juliet@example.org --retry 1h
  tar c . | dtcp send - juliet@example.org`,
		Args: func(c *cobra.Command, args []string) error {
			switch {
			case t.showVersion:
				return nil
			case len(args) == 0:
				return fmt.Errorf("FILE and JID are missing: see '%s --help'", c.CommandPath())
			case len(args) == 1:
				return fmt.Errorf("FILE or JID is missing: see '%s --help'", c.CommandPath())
			}
			return nil
		},
		Annotations: map[string]string{retries: "yes"},
	}
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "send folders with all that is in them")
	c.RunE = func(c *cobra.Command, args []string) error {
		files, last := args[:len(args)-1], args[len(args)-1]
		peer, err := parseAccount(last)
		if err != nil {
			return &usageError{fmt.Errorf("the last argument is whom to send to: %w", err)}
		}
		sources, err := parseSources(files, recursive)
		if err != nil {
			return err
		}
		return t.send(c.Context(), peer, sources)
	}
	return c
}

// parseSources looks at what is to be sent, before anybody is bothered.
func parseSources(files []string, recursive bool) ([]transfer.Source, error) {
	var sources []transfer.Source
	stdin := false
	for _, name := range files {
		if name == "-" {
			if stdin {
				return nil, &usageError{errors.New("stdin (-) is named twice")}
			}
			stdin = true
			sources = append(sources, transfer.Stream(stdinName, os.Stdin))
			continue
		}
		info, err := os.Stat(name)
		var path *os.PathError
		switch {
		case errors.As(err, &path):
			return nil, &localError{"sending", name, path.Err}
		case err != nil:
			return nil, &localError{"sending", name, err}
		case info.IsDir() && !recursive:
			return nil, &usageError{fmt.Errorf("%s is a folder: -r sends folders", name)}
		}
		sources = append(sources, transfer.Path(name, recursive))
	}
	return sources, nil
}

func (t *tool) send(ctx context.Context, peer jid.JID, sources []transfer.Source) error {
	bounded, cancel := t.setUp(ctx)
	defer cancel()
	l, err := t.link(bounded, linkConfig{
		resource:    func(jid.JID) string { return randomResource() },
		noReconnect: t.retry == 0, // a stream does not need the login any more, another attempt does
	})
	if err != nil {
		return err
	}
	defer l.close()
	cancel()
	s := &sender{link: l, peer: peer}
	files := &ledger{out: t.out, peer: "there"}
	gauge := newMeter(t.out).gauge()
	defer gauge.end()
	transfers := transfer.Sender{
		Dial: s.dial, Retry: t.retry, Again: s.again,
		Listed:   func(o *transfer.Offer) { s.what = o },
		Accepted: s.accept,
		Progress: gauge.show, Report: files.file,
		Retrying: func(err error, wait time.Duration) {
			what, _ := explain(s.failure(nil, err))
			t.out.say("%s; next try in %v", what, wait.Round(100*time.Millisecond))
		},
	}
	result, err := transfers.Send(ctx, sources...)
	gauge.end()
	files.failed(result.Failed)
	switch {
	case err == nil:
		t.out.stored("sent", result, "to "+s.found.String(), time.Since(*s.accepted.Load()))
		return nil
	case ctx.Err() != nil && s.accepted.Load() != nil:
		how := "the same command resumes"
		if s.what.Streams > 0 {
			how = "but " + anewSending
		}
		t.out.say("stopped: what %v has is kept there; %s", s.found, how)
	}
	return s.failure(result, err)
}

// failure is err with what its explanation needs.
func (s *sender) failure(r *transfer.Result, err error) error {
	var dial *dialError
	if errors.As(err, &dial) {
		return err
	}
	who := s.peer
	if !s.found.IsZero() {
		who = s.found
	}
	return &transferError{peer: who, sending: true, piped: s.what != nil && s.what.Streams > 0, result: r, err: err}
}

// dial gets a stream for an attempt. The peer may be at another resource each
// time.
func (s *sender) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	ctx, cancel := s.setUp(ctx)
	defer cancel()
	conn, err := s.dialSummary(ctx, s.peer, fileService, int64(s.what.Files), offered(s.what), func(full jid.JID) {
		if full != s.found {
			s.found = full
			s.out.say("sending %s to %v", describe(s.what), full)
		}
	})
	if err != nil {
		return nil, err
	}
	s.out.took(conn, true)
	s.waiting = time.AfterFunc(patientTime, func() { s.out.say("waiting for %v to accept", conn.Peer()) })
	return &sendingConn{conn, s.waiting}, nil
}

// sendingConn is a stream whose end leaves nothing to wait for.
type sendingConn struct {
	*dtcp.Conn
	waiting *time.Timer
}

func (c *sendingConn) Close() error {
	c.waiting.Stop()
	return c.Conn.Close()
}

func (s *sender) accept() {
	now := time.Now()
	s.accepted.CompareAndSwap(nil, &now)
	if !s.waiting.Stop() {
		s.out.say("accepted")
	}
}

// again reports whether an attempt that got no stream is worth another: whoever
// is not there may come back, but no means no.
func (s *sender) again(err error) bool {
	select {
	case <-s.session.Done():
		return false
	default:
	}
	var peer *dtcp.PeerError
	var answer *stanza.Error
	var out *xmpp.LoggedOutError
	switch {
	case errors.As(err, &peer), errors.Is(err, dtcp.ErrPolicy):
		return false
	case errors.As(err, &out):
		return true
	case errors.As(err, &answer) && status(err) == exitFailed:
		return answer.Condition == stanza.ResourceConstraint || answer.Condition == stanza.InternalServerError
	}
	return status(err) == exitAbsent || status(err) == exitFailed
}

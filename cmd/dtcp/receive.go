package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/transfer"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// How many senders receive deals with at once. Those in between are asked
// about, and wait for their turn.
const (
	maxTransfers = 4
	maxSenders   = 16
)

// toStdout is the value of --dir that stands for stdout, and stdoutName its name
// for people.
const (
	toStdout   = "-"
	stdoutName = "stdout"
)

// receiver is the state of dtcp receive.
type receiver struct {
	server
	consent consent
	folder  *transfer.Folder // nil: stdout
	where   string           // for people
	meter   *meter
	places  chan struct{} // a place for each transfer
}

func (t *tool) receiveCommand() *cobra.Command {
	r := &receiver{
		server: server{tool: t, max: maxSenders, noun: "transfer"},
		places: make(chan struct{}, maxTransfers),
	}
	r.serveOne = r.receive
	var dir string
	var from []string
	c := &cobra.Command{
		Use:   "receive",
		Short: "Receive files and folders",
		Long: `receive stores what others send by dtcp send, until it is ended. It asks on the
terminal before anything is written. Who is no contact gets in through our relay
alone, which tells no address of this machine; where there is no relay, or nobody
to be asked, not at all. With --from, only those who are named may send.
With --yes it does not ask, and accepts from those who are named or, without --from,
from contacts who may see this account's presence and from its own machines, but
nothing whose name begins with a dot, unless it lies in a folder that is sent. Where
there is no terminal and no --yes, everybody is refused.

It is found at the resource of --account, or at dtcp without one. Nothing is
overwritten: a file whose name is taken becomes "name (1).ext". What is not complete
is called NAME.part, and resumes when the sender repeats.

"--dir -" writes one file, as sent by "dtcp send -", to stdout and ends.`,
		Example: `  dtcp receive --dir Downloads
  dtcp receive --yes --from romeo@example.org --once
  dtcp receive --dir - --yes | tar x`,
		Args: t.positional(0),
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", ".", "`directory` to store in, which must be there; - writes one file to stdout")
	f.StringArrayVar(&from, "from", nil, "`JID` that may send; a bare one with all its resources; may be repeated")
	f.BoolVar(&r.once, "once", false, "end with the first transfer, and with its status")
	f.BoolVar(&r.consent.yes, "yes", false, "do not ask: accept from --from, else from contacts and own machines")
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		if r.consent.from, err = parseAllowed("--from", from); err != nil {
			return err
		}
		if dir == toStdout {
			r.once, r.where = true, stdoutName
			return r.run(c.Context())
		}
		if r.folder, err = transfer.OpenFolder(dir); err != nil {
			var path *os.PathError
			if errors.As(err, &path) {
				err = path.Err
			}
			return &localError{"--dir", dir, err}
		}
		defer r.folder.Close()
		if r.where, err = filepath.Abs(dir); err != nil {
			r.where = dir
		}
		return r.run(c.Context())
	}
	return c
}

func (r *receiver) run(ctx context.Context) error {
	c := &r.consent
	c.out, c.busy, c.where, c.visitor = r.out, r.busy, r.where, r.isEphemeral
	c.contacts = map[jid.JID]bool{}
	if !c.yes {
		c.terminal = openAsker(r.out)
	}
	r.meter = newMeter(r.out)
	return r.server.run(ctx, linkConfig{
		resource: func(jid.JID) string { return r.resource(fileService) },
		features: features(fileService),
		allow: func(l *link) func(context.Context, *dtcp.Request) error {
			c.link, l.trust.isStranger = l, c.isStranger
			return c.allow
		},
		paths: c.paths,
	}, func() {
		r.out.say("receiving at %v into %s; %s", r.link.session.LocalAddr(), r.where, c.rule())
	})
}

// receive takes one transfer.
func (r *receiver) receive(ctx context.Context, conn *dtcp.Conn) error {
	peer := conn.Peer()
	r.out.took(conn, true)
	files := &ledger{out: r.out, peer: "here"}
	var gauge *gauge
	var began time.Time
	t := transfer.Receiver{
		From: peer.Bare().String(), Folder: r.folder, Unattended: r.consent.yes,
		Accept: func(ctx context.Context, o *transfer.Offer) error {
			r.out.event(offerEvent{Event: "offer", From: peer, Service: conn.Service(), Files: int64(o.Files), Bytes: offered(o)})
			if err := r.consent.decide(ctx, conn, o); err != nil {
				return err
			}
			if err := r.takePlace(ctx, peer); err != nil {
				return err
			}
			gauge, began = r.meter.gauge(), time.Now()
			r.out.say("receiving %s from %v: %s", describe(o), peer, listed(o))
			return nil
		},
		Progress: func(p transfer.Progress) { gauge.show(p) },
		Report:   files.file,
	}
	if r.folder == nil {
		t.Output = quietWriter{os.Stdout}
	}
	result, err := t.Receive(ctx, conn)
	if gauge != nil {
		<-r.places
		gauge.end()
	}
	if slices.ContainsFunc(result.Failed, func(f transfer.File) bool { return errors.Is(f.Err, errQuiet) }) {
		return errQuiet
	}
	files.failed(result.Failed)
	switch {
	case err == nil:
		r.out.stored("received", result, "from "+peer.String(), time.Since(began))
		return nil
	case ctx.Err() != nil && gauge != nil && r.folder != nil:
		r.out.say("stopped: what has arrived of %v is kept; it resumes when the same is sent again", peer)
	}
	return &transferError{peer: peer, result: result, err: err}
}

// takePlace waits for the turn of a transfer: those who came first go first.
func (r *receiver) takePlace(ctx context.Context, peer jid.JID) error {
	select {
	case r.places <- struct{}{}:
		return nil
	default:
	}
	r.out.say("%v has to wait: %d transfers are under way", peer, maxTransfers)
	select {
	case r.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

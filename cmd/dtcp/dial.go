package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func (t *tool) dialCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dial JID",
		Short: "Join stdin and stdout to a service of a peer",
		Long: `dial gets a stream to a service of the peer and copies stdin to it and what comes
to stdout. Each direction ends by itself: the end of stdin is passed on, and the
peer may go on sending. Where stdin is a terminal, dial ends when the peer has ended
its direction. The exit status is 0 only if both ended as they should.

A JID without a resource stands for the resource that announces the service, or
else for JID/dtcp.NAME, which dtcp listen takes. With a resource it is dialed as
it stands, which saves a question.`,
		Example: `  tar c photos | dtcp dial juliet@example.org
  ssh -o ProxyCommand='dtcp dial juliet@example.org --service ssh' juliet@balcony`,
		Args:        t.positional(1, "JID"),
		Annotations: map[string]string{dataOnStdout: "yes"},
	}
	service := serviceFlag(c.Flags(), "what to ask the peer for")
	c.RunE = func(c *cobra.Command, args []string) error {
		peer, err := parsePeer(args[0])
		if err != nil {
			return err
		}
		return t.dial(c.Context(), peer, service.String())
	}
	return c
}

func (t *tool) dial(ctx context.Context, peer jid.JID, service string) error {
	bounded, cancel := t.setUp(ctx)
	defer cancel()
	l, err := t.link(bounded, linkConfig{
		resource:    func(jid.JID) string { return randomResource() },
		noReconnect: true, // the stream does not need the login any more
	})
	if err != nil {
		return err
	}
	defer l.close()
	conn, err := l.dialPeer(bounded, peer, service)
	if err != nil {
		return err
	}
	cancel() // a stream has all the time
	t.out.took(conn, false)
	began := time.Now()
	bytes, err := join(ctx, conn, standard())
	if err != nil {
		return err
	}
	t.out.ended(bytes, time.Since(began))
	return nil
}

// dialPeer gets a stream. The loss of the login fails it only while the peer's
// answer is outstanding; from there on the stream comes about without.
func (l *link) dialPeer(ctx context.Context, peer jid.JID, service string) (*dtcp.Conn, error) {
	return l.dialSummary(ctx, peer, service, -1, -1, func(jid.JID) {})
}

// dialSummary is dialPeer with a summary of what is to be sent, -1 for what is
// not known. found is told which resource is dialed.
func (l *link) dialSummary(ctx context.Context, peer jid.JID, service string, files, bytes int64, found func(jid.JID)) (*dtcp.Conn, error) {
	full := peer
	failed := &dialError{service: service, own: l.session.LocalAddr(), paths: l.paths()}
	err := waitLogin(ctx, l.session)
	if err == nil {
		full, err = l.resolve(ctx, peer, service)
	}
	if err == nil {
		found(full)
		var conn *dtcp.Conn
		if conn, err = l.endpoint.DialSummary(ctx, full, service, files, bytes); err == nil {
			return conn, nil
		}
		var noPath *dtcp.NoPathError
		if errors.As(err, &noPath) || errors.Is(err, dtcp.ErrPolicy) {
			asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), namedTime)
			errors.As(l.awaitRelay(asking), &failed.relay)
			cancel()
		}
	} else {
		full = peer
	}
	failed.peer, failed.err = full, because(ctx, err)
	return nil, failed
}

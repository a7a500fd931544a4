package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// maxStreams is how many streams listen serves at once; further requests are
// refused. forward opens no more than so many.
const maxStreams = 128

// targetTime bounds the connection to the --to address.
const targetTime = 10 * time.Second

// listener is the state of dtcp listen.
type listener struct {
	*tool
	link    *link // set before there is anything to serve
	service string
	to      string
	command string
	once    bool

	active atomic.Int64 // streams that are being served
	taken  atomic.Bool  // no further ones are wanted
}

func (t *tool) listenCommand() *cobra.Command {
	r := &listener{tool: t}
	var allow []string
	c := &cobra.Command{
		Use:   "listen",
		Short: "Offer a service to peers: stdin and stdout, a TCP address, or a command",
		Long: `listen offers a service to those who are allowed. Without --to and --exec it
joins one stream to stdin and stdout, and ends with it. With one of them it serves
many streams at once until it is ended.

It is found at the resource of --account, or at dtcp.NAME without one. Without
--allow only the own account is let in, from another of its resources.`,
		Example: `  dtcp listen > photos.tar
  dtcp listen --service ssh --to 127.0.0.1:22
  dtcp listen --service hash --exec sha256sum --allow romeo@example.org`,
		Args:        t.positional(0),
		Annotations: map[string]string{dataOnStdout: "yes"},
	}
	f := c.Flags()
	service := serviceFlag(f, "what peers ask for to get here")
	f.StringArrayVar(&allow, "allow", nil, "`JID` to let in; a bare one with all its resources; may be repeated")
	f.StringVar(&r.to, "to", "", "TCP `host:port` to join each stream to")
	f.StringVar(&r.command, "exec", "", "`command` line to run for each stream, with DTCP_PEER and DTCP_SERVICE set; its failure cuts the stream")
	f.BoolVar(&r.once, "once", false, "end with the first stream, and with its status")
	c.RunE = func(c *cobra.Command, _ []string) error {
		r.service = service.String()
		allowed, err := parseAllowed(allow)
		if err != nil {
			return err
		}
		if r.to != "" && r.command != "" {
			return &usageError{errors.New("--to and --exec: which of the two?")}
		}
		if r.to != "" {
			if _, _, err := net.SplitHostPort(r.to); err != nil {
				return &usageError{fmt.Errorf("--to: %w", err)}
			}
		}
		r.once = r.once || r.to == "" && r.command == ""
		return r.listen(c.Context(), allowed)
	}
	return c
}

func parseAllowed(values []string) ([]jid.JID, error) {
	var allowed []jid.JID
	for _, v := range values {
		who, err := jid.Parse(v)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--allow: %w", err)}
		}
		allowed = append(allowed, who)
	}
	return allowed, nil
}

func (r *listener) listen(ctx context.Context, allowed []jid.JID) error {
	bounded, cancel := r.setUp(ctx)
	defer cancel()
	l, err := r.tool.link(bounded, linkConfig{
		resource: r.resource,
		features: []string{featureDTCP, featureSession, featureSession + "#" + r.service},
		allow: func(t *trust, own jid.JID) func(context.Context, *dtcp.Request) error {
			if len(allowed) == 0 {
				allowed = []jid.JID{own.Bare()}
			}
			return (&guest{allowed: allowed, service: r.service, trust: t, busy: r.busy}).allow
		},
	})
	if err != nil {
		return err
	}
	defer l.close()
	r.link = l
	// Its answer says that the server has read our presence, so that whoever
	// waits for "ready" finds us.
	if err := l.session.Ping(bounded, l.session.LocalAddr().Server()); err != nil && bounded.Err() != nil {
		return &loginError{because(ctx, err)}
	}
	cancel()
	r.out.say("listening at %v for the service %s; let in: %s", l.session.LocalAddr(), r.service, names(allowed))
	r.out.event(readyEvent{Event: "ready", Address: l.session.LocalAddr()})
	return r.serve(ctx)
}

// resource is where the listener is found.
func (r *listener) resource(jid.JID) string {
	if own := r.account.Resource(); own != "" {
		return own
	}
	return wellKnown(r.service)
}

// busy refuses streams beyond what is served.
func (r *listener) busy() error {
	switch {
	case r.taken.Load():
		return stanza.NewError(stanza.ServiceUnavailable, "there was one stream to be had here, and it is taken")
	case r.active.Load() >= maxStreams:
		return stanza.NewError(stanza.ResourceConstraint, "too many streams at once")
	}
	return nil
}

// serve takes streams until ctx or the login ends. The streams that are open
// then do not need the login, and are let go on; ctx cuts them.
func (r *listener) serve(ctx context.Context) error {
	accepting, cancel := r.link.whileLoggedIn(ctx)
	defer cancel()
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		conn, err := r.link.endpoint.Accept(accepting)
		if err != nil {
			if n := r.active.Load(); n > 0 && ctx.Err() == nil {
				r.out.say("no longer listening; waiting for %d open streams to end", n)
			}
			return because(accepting, err)
		}
		r.active.Add(1)
		if r.once {
			r.taken.Store(true)
			return r.serveOne(ctx, conn)
		}
		// Owned by serve, which waits for it; it ends with its stream, or by ctx.
		streams.Go(func() {
			if err := r.serveOne(ctx, conn); err != nil && ctx.Err() == nil {
				r.out.fail(&contextError{"stream with " + conn.Peer().String(), err})
			}
		})
	}
}

func (r *listener) serveOne(ctx context.Context, conn *dtcp.Conn) error {
	defer r.active.Add(-1)
	r.out.took(conn, true)
	began := time.Now()
	var bytes int64
	var err error
	switch {
	case r.command != "":
		bytes, err = runCommand(ctx, conn, r.command, conn.Peer(), r.service)
	case r.to != "":
		bytes, err = r.connect(ctx, conn)
	default:
		bytes, err = join(ctx, conn, standard())
	}
	if err != nil {
		return err
	}
	r.out.trace("stream with %v ended: %d bytes", conn.Peer(), bytes)
	r.out.ended(bytes, time.Since(began), "")
	return nil
}

// connect joins a stream to the --to address.
func (r *listener) connect(ctx context.Context, conn *dtcp.Conn) (int64, error) {
	bounded, cancel := context.WithTimeout(ctx, targetTime)
	defer cancel()
	local, err := new(net.Dialer).DialContext(bounded, "tcp", r.to)
	if err != nil {
		conn.Abort()
		return 0, because(ctx, &localError{"connecting to", r.to, err})
	}
	defer local.Close()
	return join(ctx, conn, socket(local.(*net.TCPConn)))
}

func names(list []jid.JID) string {
	text := ""
	for i, j := range list {
		if i > 0 {
			text += ", "
		}
		text += j.String()
	}
	return text
}

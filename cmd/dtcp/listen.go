package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// maxStreams is how many streams listen serves at once; further requests are
// refused. forward opens no more than so many.
const maxStreams = 128

// targetTime bounds the connection to the --to address.
const targetTime = 10 * time.Second

// listener is the state of dtcp listen.
type listener struct {
	server
	service string
	to      string
	command string
}

func (t *tool) listenCommand() *cobra.Command {
	r := &listener{server: server{tool: t, max: maxStreams, noun: "stream"}}
	r.serveOne = r.join
	var allow []string
	c := &cobra.Command{
		Use:   "listen",
		Short: "Offer a service to peers: stdin and stdout, a TCP address, or a command",
		Long: `listen offers a service to those who are allowed. Without --to and --exec it
joins one stream to stdin and stdout, and ends with it: when both directions have
ended, or, where stdin is a terminal, when the peer has ended its own. With one of
them it serves many streams at once until it is ended.

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
	f.StringVar(&r.command, "exec", "", "`command` line to run for each stream, with DTCP_PEER and DTCP_SERVICE set; its failure cuts the stream; its stderr is that of listen, with --json a message a line")
	f.BoolVar(&r.once, "once", false, "end with the first stream, and with its status")
	c.RunE = func(c *cobra.Command, _ []string) error {
		r.service = service.String()
		allowed, err := parseAllowed("--allow", allow)
		if err != nil {
			return err
		}
		if r.to != "" && r.command != "" {
			return &usageError{errors.New("--to and --exec: which of the two?")}
		}
		if r.to != "" {
			if _, port, err := net.SplitHostPort(r.to); err != nil || !isPort(port) {
				return &usageError{fmt.Errorf("--to: %q is not HOST:PORT", r.to)}
			}
		}
		r.once = r.once || r.to == "" && r.command == ""
		return r.listen(c.Context(), allowed)
	}
	return c
}

// parseAllowed reads the values of a flag that says who is let in.
func parseAllowed(flag string, values []string) ([]jid.JID, error) {
	var allowed []jid.JID
	for _, v := range values {
		who, err := jid.Parse(v)
		if err != nil {
			return nil, &usageError{fmt.Errorf("%s: %w", flag, err)}
		}
		allowed = append(allowed, who)
	}
	return allowed, nil
}

func (r *listener) listen(ctx context.Context, allowed []jid.JID) error {
	return r.run(ctx, linkConfig{
		resource: func(jid.JID) string { return r.resource(r.service) },
		features: features(r.service),
		allow: func(l *link) func(context.Context, *dtcp.Request) error {
			if len(allowed) == 0 {
				allowed = []jid.JID{l.session.LocalAddr().Bare()}
			}
			return (&guest{allowed: allowed, service: r.service, trust: l.trust, busy: r.busy}).allow
		},
	}, func() {
		r.out.say("listening at %v for the service %s; let in: %s", r.link.session.LocalAddr(), r.service, names(allowed))
	})
}

// join joins a stream to what it is for.
func (r *listener) join(ctx context.Context, conn *dtcp.Conn) error {
	r.out.took(conn, true)
	began := time.Now()
	var bytes int64
	var err error
	switch {
	case r.command != "":
		bytes, err = r.serveByCommand(ctx, conn)
	case r.to != "":
		bytes, err = r.connect(ctx, conn)
	default:
		bytes, err = join(ctx, conn, standard())
	}
	if err != nil {
		return err
	}
	r.out.trace("stream with %v ended: %d bytes", conn.Peer(), bytes)
	r.out.ended(bytes, time.Since(began))
	return nil
}

// serveByCommand runs the --exec command. What it has to complain goes where our
// messages go: as it is, unless that is for events.
func (r *listener) serveByCommand(ctx context.Context, conn *dtcp.Conn) (int64, error) {
	to := served{peer: conn.Peer(), service: r.service, stderr: os.Stderr}
	if r.json {
		w := &complaints{out: r.out}
		defer w.flush()
		to.stderr = w
	}
	return r.commands.run(ctx, conn, r.command, to)
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

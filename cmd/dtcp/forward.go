package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// maxDials is how many connections forward negotiates for at once; the others
// wait their turn. A peer allows 32.
const maxDials = 16

// acceptPause is between two attempts to accept a connection.
const acceptPause = time.Second

// forwarder is the state of dtcp forward.
type forwarder struct {
	*link
	peer    jid.JID
	service string

	dials chan struct{} // a place for each negotiation
	mu    sync.Mutex
	found jid.JID // the peer's resource that worked last; zero: to be looked for
}

func (t *tool) forwardCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "forward LISTEN JID",
		Short: "Forward a local TCP port to a service of a peer",
		Long: `forward accepts connections at LISTEN, which is PORT or HOST:PORT, and opens a
stream to the peer for each. The host is 127.0.0.1 if none is given; port 0 is any
free one. When there is no stream for a connection, or a stream is cut, the
connection is reset and forward goes on.`,
		Example: `  dtcp forward 8080 juliet@example.org --service http`,
		Args:    t.positional(2, "LISTEN", "JID"),
	}
	service := serviceFlag(c.Flags(), "what to ask the peer for")
	c.RunE = func(c *cobra.Command, args []string) error {
		address, err := parseListen(args[0])
		if err != nil {
			return err
		}
		peer, err := parsePeer(args[1])
		if err != nil {
			return err
		}
		return t.forward(c.Context(), address, peer, service.String())
	}
	return c
}

// parseListen reads LISTEN. Other machines get in only where an address is
// named that they can reach.
func parseListen(s string) (string, error) {
	host, port, err := "", s, error(nil)
	if strings.Contains(s, ":") {
		host, port, err = net.SplitHostPort(s)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", &usageError{fmt.Errorf("%q is neither PORT nor HOST:PORT", s)}
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

func (t *tool) forward(ctx context.Context, address string, peer jid.JID, service string) error {
	local, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer local.Close()
	bounded, cancel := t.setUp(ctx)
	defer cancel()
	l, err := t.link(bounded, linkConfig{resource: func(jid.JID) string { return randomResource() }})
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.gathered(bounded); err != nil {
		return err
	}
	l.tellRefusal()
	cancel()
	f := &forwarder{link: l, peer: peer, service: service, dials: make(chan struct{}, maxDials)}
	t.out.say("forwarding %v to the service %s of %v", local.Addr(), service, peer)
	t.out.event(readyEvent{Event: "ready", Address: l.session.LocalAddr(), Listen: local.Addr().String()})
	return f.serve(ctx, local)
}

// serve takes connections until ctx or the login ends. The streams that are
// open then do not need the login, and are let go on; ctx cuts them.
func (f *forwarder) serve(ctx context.Context, local net.Listener) error {
	accepting, cancel := f.whileLoggedIn(ctx)
	defer cancel()
	defer context.AfterFunc(accepting, func() { local.Close() })()
	var streams sync.WaitGroup
	defer streams.Wait()
	places := make(chan struct{}, maxStreams)
	for {
		select {
		case places <- struct{}{}:
		case <-accepting.Done():
			return context.Cause(accepting)
		}
		conn, err := local.Accept()
		switch {
		case err == nil:
		case accepting.Err() != nil:
			err := context.Cause(accepting)
			if n := len(places) - 1; n > 0 && ctx.Err() == nil {
				f.out.fail(err)
				f.out.say("no longer forwarding; waiting for %s to end", count(n, "open connection"))
				err = &toldError{err}
			}
			return err
		default: // out of descriptors, or a client that was gone too soon: these pass
			<-places
			f.out.say("accepting a connection: %v", err)
			if err := pause(accepting, acceptPause); err != nil {
				return err
			}
			continue
		}
		// Owned by serve, which waits for it; it ends with its stream, or by ctx.
		streams.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			if err := f.carry(ctx, conn.(*net.TCPConn)); err != nil && ctx.Err() == nil {
				f.out.fail(err)
			}
		})
	}
}

// pause waits, and returns why ctx has ended if that comes first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// carry gives a connection a stream.
func (f *forwarder) carry(ctx context.Context, local *net.TCPConn) error {
	s := socket(local)
	conn, err := f.dial(ctx)
	if err != nil {
		s.cut()
		return err
	}
	f.out.took(conn, false)
	began := time.Now()
	bytes, err := join(ctx, conn, s)
	if err != nil {
		return &contextError{"connection from " + local.RemoteAddr().String(), err}
	}
	f.out.ended(bytes, time.Since(began))
	return nil
}

// dial gets a stream from the resource that worked last, or from another if
// nobody is there any more: looking for one costs a question each time.
func (f *forwarder) dial(ctx context.Context) (*dtcp.Conn, error) {
	ctx, cancel := f.setUp(ctx)
	defer cancel()
	select {
	case f.dials <- struct{}{}:
		defer func() { <-f.dials }()
	case <-ctx.Done():
		return nil, because(ctx, ctx.Err())
	}
	f.mu.Lock()
	peer := f.found
	f.mu.Unlock()
	if !peer.IsZero() {
		conn, err := f.dialPeer(ctx, peer, f.service)
		var refused *dtcp.RefusedError
		if err == nil || !errors.As(err, &refused) || status(err) != exitAbsent {
			return conn, err
		}
	}
	conn, err := f.dialPeer(ctx, f.peer, f.service)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.found = jid.JID{}
		return nil, err
	}
	f.found = conn.Peer()
	return conn, nil
}

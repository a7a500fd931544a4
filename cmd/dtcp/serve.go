package main

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// server is what listen and receive have in common: a place where peers find
// a service, and streams that are served, several at once.
type server struct {
	*tool
	link     *link // set before there is anything to serve
	noun     string
	once     bool
	max      int64 // streams at once
	serveOne func(context.Context, *dtcp.Conn) error

	active atomic.Int64 // streams that are being served
	taken  atomic.Bool  // no further ones are wanted
}

// features is what is announced of a service.
func features(service string) []string {
	return []string{featureDTCP, featureSession, featureSession + "#" + service}
}

// resource is where a service is found.
func (s *server) resource(service string) string {
	if own := s.account.Resource(); own != "" {
		return own
	}
	return wellKnown(service)
}

// run logs in, tells the world, and serves until ctx or the login ends. ready is
// called when peers can find us.
func (s *server) run(ctx context.Context, c linkConfig, ready func()) error {
	bounded, cancel := s.setUp(ctx)
	defer cancel()
	l, err := s.tool.link(bounded, c)
	if err != nil {
		return err
	}
	defer l.close()
	s.link = l
	// Its answer says that the server has read our presence, so that whoever
	// waits for "ready" finds us.
	if err := l.session.Ping(bounded, l.session.LocalAddr().Server()); err != nil && bounded.Err() != nil {
		return &loginError{because(ctx, err)}
	}
	cancel()
	ready()
	s.out.event(readyEvent{Event: "ready", Address: l.session.LocalAddr()})
	return s.serve(ctx)
}

// busy refuses streams beyond what is served.
func (s *server) busy() error {
	switch {
	case s.taken.Load():
		return stanza.NewError(stanza.ServiceUnavailable, "there was one "+s.noun+" to be had here, and it is taken")
	case s.active.Load() >= s.max:
		return stanza.NewError(stanza.ResourceConstraint, "too many "+s.noun+"s at once")
	}
	return nil
}

// serve takes streams until ctx or the login ends. The streams that are open
// then do not need the login, and are let go on; ctx cuts them.
func (s *server) serve(ctx context.Context) error {
	accepting, cancel := s.link.whileLoggedIn(ctx)
	defer cancel()
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		conn, err := s.link.endpoint.Accept(accepting)
		if err != nil {
			if n := s.active.Load(); n > 0 && ctx.Err() == nil {
				s.out.say("no longer listening; waiting for %d open %ss to end", n, s.noun)
			}
			return because(accepting, err)
		}
		s.active.Add(1)
		if s.once {
			s.taken.Store(true)
			return s.serveOne(ctx, conn)
		}
		// Owned by serve, which waits for it; it ends with its stream, or by ctx.
		streams.Go(func() {
			defer s.active.Add(-1)
			if err := s.serveOne(ctx, conn); err != nil && ctx.Err() == nil {
				s.out.fail(&contextError{s.noun + " with " + conn.Peer().String(), err})
			}
		})
	}
}

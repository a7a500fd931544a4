package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// server is what listen and receive have in common: a place where peers find
// a service, and streams that are served, several at once.
type server struct {
	*tool
	link     *link // set before there is anything to serve
	noun     string
	once     bool
	max      int // streams at once
	serveOne func(context.Context, *dtcp.Conn) error

	active atomic.Int64 // streams that are being served

	mu          sync.Mutex                 // held for moments
	places      int                        // taken: by negotiations and by streams
	strangers   map[jid.JID]*visit         // who has places of these, and is a stranger
	admitted    map[*dtcp.Request]struct{} // with a place, and perhaps not negotiated yet
	begun       map[jid.JID]int            // negotiations that came of those
	negotiating map[string]jid.JID         // with whom, by the stream's name
}

// maxStrangers is how many places all strangers together may have, so that they
// cannot keep others out by letting the user think.
const maxStrangers = 4

// visit is a stranger who was let in.
type visit struct {
	places    int
	ephemeral bool // a certificate that he announced is not to be remembered
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
	allow := c.allow
	c.allow = func(l *link) func(context.Context, *dtcp.Request) error { return s.admitting(allow(l)) }
	s.open()
	c.watch = s.watch
	l, err := s.tool.link(bounded, c)
	if err != nil {
		return err
	}
	defer l.close()
	s.link = l
	// Its answer says that the server has read our presence, so that whoever
	// waits for "ready" finds us.
	asking, done := context.WithTimeout(bounded, answerTime)
	defer done()
	if err := l.session.Ping(asking, l.session.LocalAddr().Server()); err != nil && asking.Err() != nil {
		return &loginError{because(ctx, err)}
	}
	if err := l.gathered(bounded); err != nil {
		return err
	}
	l.tellRefusal()
	cancel()
	ready()
	s.out.event(readyEvent{Event: "ready", Address: l.session.LocalAddr()})
	return s.serve(ctx)
}

// open makes what places are counted by.
func (s *server) open() {
	s.strangers, s.negotiating = map[jid.JID]*visit{}, map[string]jid.JID{}
	s.admitted, s.begun = map[*dtcp.Request]struct{}{}, map[jid.JID]int{}
}

// busy says whether there is no place for another stream. It is asked before
// the peer's certificate is judged; takePlace decides.
func (s *server) busy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full()
}

// full is busy with s.mu held.
func (s *server) full() error {
	switch {
	case s.once && s.places > 0:
		return stanza.NewError(stanza.ServiceUnavailable, "there was one "+s.noun+" to be had here, and it is taken")
	case s.places >= s.max:
		return stanza.NewError(stanza.ResourceConstraint, "too many "+s.noun+"s at once")
	}
	return nil
}

// admitting is allow, which in the end takes a place: for the negotiation,
// which begins at once, or is refused by the Endpoint after all, and for its
// stream.
func (s *server) admitting(allow func(context.Context, *dtcp.Request) error) func(context.Context, *dtcp.Request) error {
	return func(ctx context.Context, r *dtcp.Request) error {
		if err := allow(ctx, r); err != nil || r.Service == checkService {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.full(); err != nil {
			return err
		}
		if r.Stranger {
			if err := s.visited(r); err != nil {
				return err
			}
		}
		s.places++
		s.admitted[r] = struct{}{}
		return nil
	}
}

// settle forgets the requests of a peer when all of them have become
// negotiations, for nothing says which did. s.mu is held.
func (s *server) settle(peer jid.JID) {
	var admitted []*dtcp.Request
	for r := range s.admitted {
		if r.From == peer {
			admitted = append(admitted, r)
		}
	}
	if s.begun[peer] < len(admitted) {
		return
	}
	delete(s.begun, peer)
	for _, r := range admitted {
		delete(s.admitted, r)
	}
}

// visited takes a place among those for strangers. s.mu is held.
func (s *server) visited(r *dtcp.Request) error {
	taken := 0
	for _, v := range s.strangers {
		taken += v.places
	}
	if taken >= maxStrangers {
		return stanza.NewError(stanza.ResourceConstraint, "too many "+s.noun+"s at once")
	}
	v := s.strangers[r.From]
	if v == nil {
		v = &visit{}
		s.strangers[r.From] = v
	}
	v.places++
	v.ephemeral = v.ephemeral || r.Ephemeral
	return nil
}

// isEphemeral reports whether a stranger has announced a certificate that is not
// to be remembered.
func (s *server) isEphemeral(stranger jid.JID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.strangers[stranger]
	return v == nil || v.ephemeral
}

// freePlace ends what a place was taken for. s.mu is held.
func (s *server) freePlace(peer jid.JID) {
	s.places--
	if v := s.strangers[peer]; v != nil {
		if v.places--; v.places == 0 {
			delete(s.strangers, peer)
		}
	}
}

// watch has negotiations that fail free their place, and be told of: whoever is
// let in should not have to guess alone why there is no stream.
func (s *server) watch(trace *dtcp.Trace) {
	refused, offered, ended := trace.Refused, trace.Offered, trace.Ended
	trace.Refused = func(r *dtcp.Request, err error) {
		s.mu.Lock()
		if _, admitted := s.admitted[r]; admitted {
			delete(s.admitted, r)
			s.freePlace(r.From)
			s.settle(r.From)
		}
		s.mu.Unlock()
		if refused != nil {
			refused(r, err)
		}
	}
	trace.Offered = func(stream string, peer jid.JID, service string, requester bool) {
		if service != checkService {
			s.mu.Lock()
			s.negotiating[stream] = peer
			s.begun[peer]++
			s.settle(peer)
			s.mu.Unlock()
		}
		if offered != nil {
			offered(stream, peer, service, requester)
		}
	}
	trace.Ended = func(stream string, d time.Duration, err error) {
		s.mu.Lock()
		peer, places := s.negotiating[stream]
		delete(s.negotiating, stream)
		if err != nil && places {
			s.freePlace(peer) // else it is its stream's
		}
		s.mu.Unlock()
		if ended != nil {
			ended(stream, d, err)
		}
		if err != nil && places && !errors.Is(err, dtcp.ErrClosed) {
			what, _ := explain(&dialError{peer: peer, err: err})
			if noPath := (*dtcp.NoPathError)(nil); errors.As(err, &noPath) {
				what = "no path: " + reason(noPath.Err)
				for _, refused := range refusals(noPath) {
					what += "; " + trimmed(refused)
				}
			}
			s.out.say("no stream came about with %v: %s", peer, what)
		}
	}
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
			err = because(accepting, err)
			if n := s.active.Load(); n > 0 && ctx.Err() == nil {
				s.out.fail(err)
				s.out.say("no longer listening; waiting for %s to end", count(int(n), "open "+s.noun))
				err = &toldError{err}
			}
			return err
		}
		if conn.Service() == checkService {
			// Owned by serve, which waits for it; closing takes 2 s at most.
			streams.Go(func() {
				s.out.say("%v checks the path: %s", conn.Peer(), wayOf(conn.Path()))
				conn.Close()
			})
			continue
		}
		if s.once {
			return s.serveOne(ctx, conn)
		}
		s.active.Add(1)
		// Owned by serve, which waits for it; it ends with its stream, or by ctx.
		streams.Go(func() {
			defer func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.freePlace(conn.Peer())
			}()
			defer s.active.Add(-1)
			if err := s.serveOne(ctx, conn); err != nil && ctx.Err() == nil {
				s.out.fail(&contextError{s.noun + " with " + conn.Peer().String(), err})
			}
		})
	}
}

package rendezvous

import (
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// presence is what a client has said of itself, and to whom. Server.mu guards
// it.
type presence struct {
	available  bool
	priority   int8
	last       stanza.Element       // as it was broadcast, with 'from'
	directed   map[jid.JID]struct{} // who else was told
	interested bool                 // asked for the roster, and is told its changes
}

// routePresence follows RFC 6121, 3 and 4. st.out is e.
func (st *stream) routePresence(e stanza.Element, to jid.JID) {
	s := st.server
	kind := e.Attr("type")
	switch kind {
	case stanza.Available, stanza.Unavailable:
		switch {
		case !to.IsZero():
			st.direct(e, to, kind)
		case kind == stanza.Unavailable:
			s.vanish(st, e)
		default:
			st.appear(e)
		}
	case stanza.Failed:
		if target := s.lookup(to); target != nil {
			target.offer(st.out)
		}
	case stanza.Subscribe, stanza.Subscribed, stanza.Unsubscribe, stanza.Unsubscribed:
		peer := to.Bare()
		if to.IsZero() || peer.Local() == "" || peer == st.account.bare {
			st.bounce(e, stanza.BadRequest)
			return
		}
		// Subscriptions are between accounts (RFC 6121, 3.1.2).
		e = address(address(e, "from", st.account.bare), "to", peer)
		if !s.subscription(st.account, peer, kind, e) {
			st.bounce(e, stanza.ResourceConstraint)
		}
	case stanza.Probe:
		if a := s.account(to); a != nil {
			s.probe(st, a)
		}
	default:
		st.bounce(e, stanza.BadRequest)
	}
}

// appear makes st available, or changes how it is (RFC 6121, 4.2 and 4.4).
func (st *stream) appear(e stanza.Element) {
	s, a := st.server, st.account
	initial := !st.available
	p, err := stanza.ParsePresence(e)
	if err != nil {
		return // its addresses were parsed before
	}
	st.available, st.priority, st.last = true, p.Priority, e
	s.broadcast(st, e)
	if !initial {
		return
	}
	for peer, c := range a.roster {
		if c.to {
			if b := s.account(peer); b != nil {
				s.probe(st, b)
			}
		}
	}
	s.probe(st, a)
	for peer, c := range a.roster {
		if c.in {
			st.send(stanza.Presence{Header: stanza.Header{From: peer, To: a.bare}, Type: stanza.Subscribe}.Element(stanza.NSClient))
		}
	}
}

// probe tells st of the available resources of an account, if it may know
// (RFC 6121, 4.3). It is not told of itself.
func (s *Server) probe(st *stream, a *account) {
	if !a.shows(st.account.bare) {
		return
	}
	for _, other := range a.streams {
		if other.available && other != st {
			st.send(address(other.last, "to", st.jid))
		}
	}
}

// shows reports whether a's presence is for who to see.
func (a *account) shows(who jid.JID) bool {
	c := a.roster[who]
	return who == a.bare || (c != nil && c.from)
}

// broadcast sends a presence of st to all who may see it (RFC 6121, 4.2.2),
// its own account's resources included.
func (s *Server) broadcast(st *stream, e stanza.Element) {
	for peer, c := range st.account.roster {
		if c.from {
			s.show(e, peer)
		}
	}
	s.show(e, st.account.bare)
}

// show sends a presence to the available resources of one account.
func (s *Server) show(e stanza.Element, to jid.JID) {
	a := s.account(to)
	if a == nil || len(a.streams) == 0 {
		return
	}
	e = address(e, "to", to)
	for _, st := range a.streams {
		if st.available {
			st.send(e)
		}
	}
}

// direct sends a presence to somebody in particular (RFC 6121, 4.6), who is
// then told of the end, too.
func (st *stream) direct(e stanza.Element, to jid.JID, kind string) {
	s := st.server
	a := s.account(to)
	if a == nil {
		return
	}
	if kind == stanza.Unavailable {
		delete(st.directed, to)
	} else {
		if _, known := st.directed[to]; !known && len(st.directed) >= s.limits.directed {
			st.bounce(e, stanza.PolicyViolation)
			return
		}
		if st.directed == nil {
			st.directed = make(map[jid.JID]struct{})
		}
		st.directed[to] = struct{}{}
	}
	if target := s.lookup(to); target != nil {
		st.pass(e, target)
		return
	}
	if to.IsBare() {
		for _, target := range a.streams {
			if target.available {
				target.offer(st.out)
			}
		}
	}
}

// vanish makes st unavailable, by the presence e (RFC 6121, 4.5). s.mu is held.
func (s *Server) vanish(st *stream, e stanza.Element) {
	was := st.available
	st.available, st.last = false, stanza.Element{}
	if was {
		s.broadcast(st, e)
	}
	for to := range st.directed {
		if !was || !st.account.shows(to.Bare()) {
			if target := s.lookup(to); target != nil {
				target.send(address(e, "to", to))
			} else if to.IsBare() {
				s.show(e, to)
			}
		}
	}
	st.directed = nil
}

// hide tells an account that the resources of another are not for it to see
// any more.
func (s *Server) hide(a *account, from jid.JID) {
	for _, st := range a.streams {
		if st.available {
			s.show(stanza.Presence{Header: stanza.Header{From: st.jid}, Type: stanza.Unavailable}.Element(stanza.NSClient), from)
		}
	}
}

// reveal tells an account of the available resources of another.
func (s *Server) reveal(a *account, to jid.JID) {
	for _, st := range a.streams {
		if st.available {
			s.show(st.last, to)
		}
	}
}

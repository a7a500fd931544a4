package rendezvous

import (
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// subscription handles a presence by which the account a changes what it and
// peer see of each other (RFC 6121, 3): first a's side, then peer's, if that
// is an account. e is addressed from bare JID to bare JID. It returns false
// when the roster of a has no room.
func (s *Server) subscription(a *account, peer jid.JID, kind string, e stanza.Element) bool {
	switch kind {
	case stanza.Subscribe:
		c := s.contact(a, peer)
		if c == nil {
			return false
		}
		if !c.to && !c.ask {
			c.ask = true
			s.push(a, c.item())
		}
		s.asked(s.account(peer), a, e)
	case stanza.Subscribed:
		// A grant that nobody asked for would be a pre-approval
		// (RFC 6121, 3.4), which is optional and not offered.
		if c := a.roster[peer]; c != nil && c.in {
			c.in, c.from = false, true
			s.push(a, c.item())
			s.granted(s.account(peer), a, e)
			s.reveal(a, peer)
		}
	case stanza.Unsubscribe:
		if c := a.roster[peer]; c != nil && (c.to || c.ask) {
			c.to, c.ask = false, false
			s.push(a, c.item())
			a.tidy(c)
		}
		s.forgone(s.account(peer), a, e)
	case stanza.Unsubscribed:
		if c := a.roster[peer]; c != nil && (c.from || c.in) {
			s.revoke(a, c, e)
			if c.visible() {
				s.push(a, c.item())
			}
			a.tidy(c)
		}
	}
	return true
}

// asked brings a's request for b's presence to b (RFC 6121, 3.1.3).
func (s *Server) asked(b, a *account, e stanza.Element) {
	if b == nil {
		return
	}
	c := s.contact(b, a.bare)
	switch {
	case c == nil: // no room; a keeps waiting
	case c.from: // granted before, and a has lost track
		s.granted(a, b, stanza.Presence{Header: stanza.Header{From: b.bare, To: a.bare}, Type: stanza.Subscribed}.Element(stanza.NSClient))
		s.reveal(b, a.bare)
	case !c.in: // once; it is told again at b's next login (RFC 6121, A.3.1)
		c.in = true
		b.tell(e, func(st *stream) bool { return st.available })
	}
}

// granted tells b that it sees a's presence from now on (RFC 6121, 3.1.6).
func (s *Server) granted(b, a *account, e stanza.Element) {
	if b == nil {
		return
	}
	if c := b.roster[a.bare]; c != nil && c.ask {
		c.ask, c.to = false, true
		b.tell(e, (*stream).follows)
		s.push(b, c.item())
	}
}

// forgone tells b that a wants to see its presence no more (RFC 6121, 3.3.3).
func (s *Server) forgone(b, a *account, e stanza.Element) {
	if b == nil {
		return
	}
	c := b.roster[a.bare]
	if c == nil || (!c.from && !c.in) {
		return
	}
	shown := c.from
	c.from, c.in = false, false
	b.tell(e, (*stream).follows)
	if c.visible() {
		s.push(b, c.item())
	}
	b.tidy(c)
	if shown {
		s.hide(b, a.bare)
	}
}

// revoke ends or refuses the peer's view of a's presence (RFC 6121, 3.2).
func (s *Server) revoke(a *account, c *contact, e stanza.Element) {
	shown := c.from
	c.from, c.in = false, false
	if b := s.account(c.peer); b != nil {
		if d := b.roster[a.bare]; d != nil && (d.to || d.ask) {
			d.to, d.ask = false, false
			b.tell(e, (*stream).follows)
			s.push(b, d.item())
			b.tidy(d)
		}
	}
	if shown {
		s.hide(a, c.peer)
	}
}

// dismiss removes a's entry for a peer with all subscriptions
// (RFC 6121, 2.5.2).
func (s *Server) dismiss(a *account, peer jid.JID) {
	c := a.roster[peer]
	say := func(kind string) stanza.Element {
		return stanza.Presence{Header: stanza.Header{From: a.bare, To: peer}, Type: kind}.Element(stanza.NSClient)
	}
	if c.to || c.ask {
		s.forgone(s.account(peer), a, say(stanza.Unsubscribe))
	}
	if c.from || c.in {
		s.revoke(a, c, say(stanza.Unsubscribed))
	}
	delete(a.roster, peer)
}

// tell brings a presence about a subscription to some of an account's clients.
// One whose queue is crowded learns of it by its roster.
func (a *account) tell(e stanza.Element, which func(*stream) bool) {
	b := e.Append(nil, stanza.NSClient)
	for _, st := range a.streams {
		if which(st) {
			st.offer(b)
		}
	}
}

// follows reports whether st wants to know of changes to its account's roster.
func (st *stream) follows() bool { return st.interested || st.available }

package rendezvous

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const nsRoster = "jabber:iq:roster"

// contact is an entry of a roster (RFC 6121, 2) with the state of the
// subscriptions in both directions (RFC 6121, appendix A). Server.mu guards
// it.
type contact struct {
	peer   jid.JID
	name   string
	groups []string
	listed bool // the user put it there, rather than a subscription
	to     bool // the user sees the peer's presence
	from   bool // the peer sees the user's
	ask    bool // the user asked for 'to' and waits: pending out
	in     bool // the peer asked for 'from' and waits: pending in
}

// visible reports whether the user's clients are told of c: a request of the
// peer alone does not make an entry (RFC 6121, 3.1.3).
func (c *contact) visible() bool { return c.listed || c.to || c.from || c.ask }

func (c *contact) subscription() string {
	switch {
	case c.to && c.from:
		return "both"
	case c.to:
		return "to"
	case c.from:
		return "from"
	}
	return "none"
}

func (c *contact) item() stanza.Element {
	e := stanza.New(nsRoster, "item").With("jid", c.peer.String()).With("name", c.name).With("subscription", c.subscription())
	if c.ask {
		e = e.With("ask", stanza.Subscribe)
	}
	for _, g := range c.groups {
		e.Children = append(e.Children, stanza.New(nsRoster, "group", stanza.Text(g)))
	}
	return e
}

// contact returns the entry for a peer, made if missing and if there is room
// for it; else nil. A new entry is worth nothing until one of its states is
// set.
func (s *Server) contact(a *account, peer jid.JID) *contact {
	if c := a.roster[peer]; c != nil {
		return c
	}
	c := &contact{peer: peer}
	if !s.fits(a, c) {
		return nil
	}
	a.roster[peer] = c
	return c
}

// fits reports whether a's roster can hold c in place of what it has for that
// peer.
func (s *Server) fits(a *account, c *contact) bool {
	contacts, size := 1, len(c.item().String())
	for peer, other := range a.roster {
		if peer != c.peer {
			contacts++
			size += len(other.item().String())
		}
	}
	return contacts <= s.limits.contacts && size <= s.limits.roster
}

// tidy drops an entry that has become meaningless.
func (a *account) tidy(c *contact) {
	if !c.visible() && !c.in {
		delete(a.roster, c.peer)
	}
}

// push tells the interested clients of a change (RFC 6121, 2.1.6).
func (s *Server) push(a *account, item stanza.Element) {
	for _, st := range a.streams {
		if st.interested {
			q := stanza.IQ{Header: stanza.Header{To: st.jid, ID: s.nextID()}, Type: stanza.Set, Payload: stanza.New(nsRoster, "query", item)}
			st.send(q.Element(stanza.NSClient))
		}
	}
}

// rosterGet answers with the whole roster and makes st interested
// (RFC 6121, 2.1.3).
func (st *stream) rosterGet() stanza.Element {
	st.interested = true
	query := stanza.New(nsRoster, "query")
	contacts := slices.SortedFunc(maps.Values(st.account.roster), func(a, b *contact) int {
		return cmp.Compare(a.peer.String(), b.peer.String())
	})
	for _, c := range contacts {
		if c.visible() {
			query.Children = append(query.Children, c.item())
		}
	}
	return query
}

// rosterSet adds, changes or removes one entry (RFC 6121, 2.3 to 2.5).
func (st *stream) rosterSet(query stanza.Element) *stanza.Error {
	s, a := st.server, st.account
	items := query.Elements()
	if len(items) != 1 || !items[0].Is(nsRoster, "item") {
		return stanza.NewError(stanza.BadRequest, "one item is expected")
	}
	item := items[0]
	peer, err := jid.Parse(item.Attr("jid"))
	if err != nil {
		return stanza.NewError(stanza.BadRequest, "the address is malformed")
	}
	peer = peer.Bare()
	if peer == a.bare {
		return stanza.NewError(stanza.NotAllowed, "one's own address is no contact")
	}
	if item.Attr("subscription") == "remove" {
		c := a.roster[peer]
		if c == nil || !c.visible() {
			return stanza.NewError(stanza.ItemNotFound, "")
		}
		s.dismiss(a, peer)
		s.push(a, stanza.New(nsRoster, "item").With("jid", peer.String()).With("subscription", "remove"))
		return nil
	}
	changed := contact{peer: peer}
	if c := a.roster[peer]; c != nil {
		changed = *c
	}
	changed.listed, changed.name, changed.groups = true, item.Attr("name"), nil
	for _, g := range item.All(nsRoster, "group") {
		name := g.Text()
		if strings.TrimSpace(name) == "" {
			return stanza.NewError(stanza.NotAcceptable, "a group needs a name")
		}
		if slices.Contains(changed.groups, name) {
			return stanza.NewError(stanza.BadRequest, "a group is named twice")
		}
		changed.groups = append(changed.groups, name)
	}
	if !s.fits(a, &changed) {
		return stanza.NewError(stanza.ResourceConstraint, "the roster is full")
	}
	a.roster[peer] = &changed
	s.push(a, changed.item())
	return nil
}

// Subscribe makes two accounts of the server see each other's presence: an
// entry with subscription "both" in both rosters. Clients that are logged in
// are told.
func (s *Server) Subscribe(a, b jid.JID) error {
	a, b = a.Bare(), b.Bare()
	if a == b {
		return errors.New("rendezvous: an account cannot subscribe to itself")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range []jid.JID{a, b} {
		if s.account(j) == nil {
			return fmt.Errorf("%w: %s", ErrNoAccount, j)
		}
	}
	for _, pair := range [][2]jid.JID{{a, b}, {b, a}} {
		me, peer := s.account(pair[0]), pair[1]
		c := s.contact(me, peer)
		if c == nil {
			return fmt.Errorf("rendezvous: the roster of %s is full", me.bare)
		}
		shown := c.from
		c.to, c.from, c.ask, c.in = true, true, false, false
		s.push(me, c.item())
		if !shown {
			s.reveal(me, peer)
		}
	}
	return nil
}

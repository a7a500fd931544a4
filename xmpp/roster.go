package xmpp

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const nsRoster = "jabber:iq:roster"

// maxRoster bounds the contacts that pushes can add.
const maxRoster = 16384

// RosterItem is a contact (RFC 6121, 2.1.2).
type RosterItem struct {
	JID          jid.JID
	Name         string
	Subscription string // "none", "to", "from" or "both"
}

// Roster returns the contacts of the account, sorted by address. They are
// asked for once per login, and kept true by what the server tells since.
func (s *Session) Roster(ctx context.Context) ([]RosterItem, error) {
	st, err := s.login(ctx)
	if err != nil {
		return nil, err
	}
	if items, ok := st.contacts(); ok {
		return items, nil
	}
	q := stanza.IQ{Type: stanza.Get, Payload: stanza.New(nsRoster, "query")}
	// The answer is taken in on the read loop, for a push may follow it at once.
	if _, err := st.ask(ctx, q, st.fetched); err != nil {
		return nil, wrapAsked(q.To, err)
	}
	items, _ := st.contacts()
	return items, nil
}

func (st *stream) contacts() ([]RosterItem, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	items := slices.Collect(maps.Values(st.roster))
	slices.SortFunc(items, func(a, b RosterItem) int { return cmp.Compare(a.JID.String(), b.JID.String()) })
	return items, st.roster != nil
}

// fetched takes in the whole roster.
func (st *stream) fetched(answer stanza.IQ) {
	if answer.Type != stanza.Result {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.roster = make(map[jid.JID]RosterItem)
	for _, item := range parseRoster(answer.Payload) {
		st.roster[item.JID] = item
	}
}

// push takes in a change of the roster, which only the account itself may
// tell (RFC 6121, 2.1.6); otherwise anybody could make himself a contact. It
// reports whether q was one.
func (st *stream) push(q stanza.IQ) bool {
	if !q.From.IsZero() && q.From != st.addr.Bare() {
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.roster == nil {
		return true // the whole of it has not been asked for
	}
	for _, item := range parseRoster(q.Payload) {
		if item.Subscription == "remove" {
			delete(st.roster, item.JID)
		} else if _, known := st.roster[item.JID]; known || len(st.roster) < maxRoster {
			st.roster[item.JID] = item
		}
	}
	return true
}

// parseRoster reads the items of a roster. Those without a usable address are
// left out: nothing can be done with them.
func parseRoster(query stanza.Element) []RosterItem {
	var items []RosterItem
	for _, e := range query.All(nsRoster, "item") {
		addr, err := jid.Parse(e.Attr("jid"))
		if err != nil {
			continue
		}
		subscription := e.Attr("subscription")
		if subscription == "" {
			subscription = "none"
		}
		items = append(items, RosterItem{JID: addr, Name: e.Attr("name"), Subscription: subscription})
	}
	return items
}

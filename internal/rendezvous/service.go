package rendezvous

import (
	"cmp"
	"maps"
	"slices"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Namespaces of what the server itself answers.
const (
	nsInfo  = "http://jabber.org/protocol/disco#info"
	nsItems = "http://jabber.org/protocol/disco#items"
	nsPing  = "urn:xmpp:ping"
)

// answer answers an iq that asks the server, an account, or nobody in
// particular, which is one's own account (RFC 6120, 10.3.3). Server.mu is held.
func (st *stream) answer(e stanza.Element, to jid.JID) {
	q, err := stanza.ParseIQ(e)
	if err != nil {
		st.bounce(e, stanza.BadRequest)
		return
	}
	var payload stanza.Element
	fault := stanza.NewError(stanza.ServiceUnavailable, "")
	switch {
	case to == st.server.domain:
		payload, fault = st.answerServer(q)
	case to.IsZero() || to == st.account.bare:
		payload, fault = st.answerOwn(q)
	case to.IsBare() && to.Local() != "":
		// To those who do not see its presence, an account looks the same
		// whether it exists or not.
		if a := st.server.account(to); a != nil && a.shows(st.account.bare) && q.Type == stanza.Get {
			payload, fault = answerAccount(a, q.Payload)
		}
	}
	if fault != nil {
		st.send(q.Fail(fault).Element(stanza.NSClient))
		return
	}
	st.send(q.Result(payload).Element(stanza.NSClient))
}

// answerServer speaks for the domain.
func (st *stream) answerServer(q stanza.IQ) (stanza.Element, *stanza.Error) {
	p := q.Payload
	switch {
	case q.Type == stanza.Set && p.Is(nsSession, "session"):
		return stanza.Element{}, nil
	case q.Type == stanza.Get && p.Is(nsPing, "ping"):
		return stanza.Element{}, nil
	case q.Type == stanza.Get && (p.Is(nsInfo, "query") || p.Is(nsItems, "query")) && p.Attr("node") != "":
		return stanza.Element{}, stanza.NewError(stanza.ItemNotFound, "")
	case q.Type == stanza.Get && p.Is(nsInfo, "query"):
		return info("server", "im", nsInfo, nsItems, nsPing, nsRoster), nil
	case q.Type == stanza.Get && p.Is(nsItems, "query"):
		query := stanza.New(nsItems, "query")
		for _, domain := range slices.Sorted(maps.Keys(st.server.services)) {
			query.Children = append(query.Children, stanza.New(nsItems, "item").With("jid", domain))
		}
		return query, nil
	}
	return stanza.Element{}, stanza.NewError(stanza.ServiceUnavailable, "")
}

// answerOwn speaks for the account that asks.
func (st *stream) answerOwn(q stanza.IQ) (stanza.Element, *stanza.Error) {
	p := q.Payload
	switch {
	case q.Type == stanza.Set && p.Is(nsSession, "session"):
		return stanza.Element{}, nil
	case q.Type == stanza.Get && p.Is(nsPing, "ping"):
		return stanza.Element{}, nil
	case q.Type == stanza.Get && p.Is(nsRoster, "query"):
		return st.rosterGet(), nil
	case q.Type == stanza.Set && p.Is(nsRoster, "query"):
		return stanza.Element{}, st.rosterSet(p)
	case q.Type == stanza.Get:
		return answerAccount(st.account, p)
	}
	return stanza.Element{}, stanza.NewError(stanza.ServiceUnavailable, "")
}

// answerAccount speaks for an account to those who see its presence
// (XEP-0030, 8).
func answerAccount(a *account, p stanza.Element) (stanza.Element, *stanza.Error) {
	switch {
	case (p.Is(nsInfo, "query") || p.Is(nsItems, "query")) && p.Attr("node") != "":
		return stanza.Element{}, stanza.NewError(stanza.ItemNotFound, "")
	case p.Is(nsInfo, "query"):
		return info("account", "registered", nsInfo, nsItems), nil
	case p.Is(nsItems, "query"):
		query := stanza.New(nsItems, "query")
		streams := slices.SortedFunc(maps.Values(a.streams), func(a, b *stream) int {
			return cmp.Compare(a.jid.Resource(), b.jid.Resource())
		})
		for _, st := range streams {
			if st.available {
				query.Children = append(query.Children, stanza.New(nsItems, "item").With("jid", st.jid.String()))
			}
		}
		return query, nil
	}
	return stanza.Element{}, stanza.NewError(stanza.ServiceUnavailable, "")
}

// info is the answer to a disco#info query (XEP-0030, 3.1).
func info(category, kind string, features ...string) stanza.Element {
	query := stanza.New(nsInfo, "query", stanza.New(nsInfo, "identity").With("category", category).With("type", kind))
	for _, f := range features {
		query.Children = append(query.Children, stanza.New(nsInfo, "feature").With("var", f))
	}
	return query
}

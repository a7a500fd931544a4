package relay

import (
	"slices"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Access says who may have a lease, serve and be observed with it, and activate
// streams of the proxy. An entry is a bare JID, or a domain, which stands for
// everybody at it (but not at domains below it). The zero value lets nobody in.
type Access struct {
	Allow []jid.JID
	Deny  []jid.JID // wins over Allow
}

// Allows reports whether j may, whatever its resource.
func (a Access) Allows(j jid.JID) bool { return covers(a.Allow, j) && !covers(a.Deny, j) }

func covers(list []jid.JID, j jid.JID) bool {
	bare, server := j.Bare(), j.Server()
	return slices.ContainsFunc(list, func(entry jid.JID) bool {
		entry = entry.Bare()
		return !entry.IsZero() && (entry == bare || entry == server)
	})
}

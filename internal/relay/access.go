package relay

import "github.com/dtcp-relay/dtcp/xmpp/jid"

// Access says who may have a lease, serve and be observed with it, and activate
// streams of the proxy. An entry is a bare JID, or a domain, which stands for
// everybody at it (but not at domains below it). The zero value lets nobody in.
type Access struct {
	Allow []jid.JID
	Deny  []jid.JID // wins over Allow
}

// admission is Access as it is looked at for every claim, whatever its length.
type admission struct{ allow, deny map[jid.JID]bool }

func (a Access) admission() admission {
	index := func(list []jid.JID) map[jid.JID]bool {
		m := make(map[jid.JID]bool, len(list))
		for _, entry := range list {
			if entry = entry.Bare(); !entry.IsZero() {
				m[entry] = true
			}
		}
		return m
	}
	return admission{index(a.Allow), index(a.Deny)}
}

// allows reports whether j may, whatever its resource.
func (a admission) allows(j jid.JID) bool {
	bare, server := j.Bare(), j.Server()
	return (a.allow[bare] || a.allow[server]) && !a.deny[bare] && !a.deny[server]
}

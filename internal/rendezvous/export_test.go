package rendezvous

import (
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Limits lets a test make limits smaller; zero fields stay as they are.
type Limits struct {
	Guests, GuestsPerAddress int
	Accounts, Contacts       int
	Roster, Directed         int
	QueueBytes, QueueStanzas int
	Penalty                  time.Duration
}

// SetLimits is for before the first Serve.
func (s *Server) SetLimits(l Limits) {
	set := func(field *int, n int) {
		if n != 0 {
			*field = n
		}
	}
	set(&s.limits.guests, l.Guests)
	set(&s.limits.guestsPerAddress, l.GuestsPerAddress)
	set(&s.limits.accounts, l.Accounts)
	set(&s.limits.contacts, l.Contacts)
	set(&s.limits.roster, l.Roster)
	set(&s.limits.directed, l.Directed)
	set(&s.limits.queueBytes, l.QueueBytes)
	set(&s.limits.queueStanzas, l.QueueStanzas)
	if l.Penalty != 0 {
		s.limits.penalty = l.Penalty
	}
}

// Adopt gives s the accounts of another server, without their rosters: the
// keys of a password take long to derive.
func (s *Server) Adopt(from *Server) {
	from.mu.Lock()
	defer from.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, a := range from.accounts {
		s.accounts[name] = &account{bare: a.bare, keys: a.keys, roster: make(map[jid.JID]*contact), streams: make(map[string]*stream)}
	}
}

// Guests returns how many streams have not logged in.
func (s *Server) Guests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.guests)
}

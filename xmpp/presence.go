package xmpp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Bounds on the presences that are kept: in all, and of one account, so that
// no single contact can use up the first. Further ones are not noticed.
const (
	maxPresences   = 4096
	maxPresencesOf = 64
)

// SendPresence sends a presence. One without an address is what the contacts
// see; it is kept and sent again after each login.
func (s *Session) SendPresence(ctx context.Context, p stanza.Presence) error {
	if s.component != nil {
		return errors.New("xmpp: a component has no presence")
	}
	p.From = jid.JID{}
	status := p.To.IsZero() && (p.Type == stanza.Available || p.Type == stanza.Unavailable)
	if status {
		s.mu.Lock()
		s.presence = &p
		s.mu.Unlock()
	}
	st, err := s.send(ctx, p.Element(stanza.NSClient))
	if err == nil && status {
		st.wasAnnounced()
	}
	return err
}

// announce sends the presence that follows a login, if there is one yet. It
// writes by itself: the loops of st have not begun.
func (s *Session) announce(st *stream) {
	s.mu.Lock()
	p := s.presence
	s.mu.Unlock()
	if p != nil && st.put(s.encoded(p.Element(stanza.NSClient))) == nil {
		st.wasAnnounced()
	}
}

// wasAnnounced notes that the server now has reason to tell who else is there.
func (st *stream) wasAnnounced() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.announced, st.settled = time.Now(), false
}

// presence notes who is there. It runs on the read loop.
func (st *stream) presence(e stanza.Element) {
	p, err := stanza.ParsePresence(e)
	if err != nil || p.From.IsZero() {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case p.Type == stanza.Available && p.From.IsFull() && p.From != st.addr:
		st.available(p.From, p.Priority)
	case p.Type == stanza.Unavailable:
		st.unavailable(p.From)
	default:
		return // subscriptions, errors and probes are none of our business
	}
	close(st.told)
	st.told = make(chan struct{})
}

func (st *stream) available(full jid.JID, priority int8) {
	of := st.presences[full.Bare()]
	if _, known := of[full]; !known {
		if st.known >= maxPresences || len(of) >= maxPresencesOf {
			return
		}
		st.known++
	}
	if of == nil {
		of = make(map[jid.JID]int8)
		st.presences[full.Bare()] = of
	}
	of[full] = priority
}

// unavailable forgets a resource, or with a bare JID all of an account.
func (st *stream) unavailable(who jid.JID) {
	of := st.presences[who.Bare()]
	st.known -= len(of)
	if who.IsFull() {
		delete(of, who)
		st.known += len(of)
	}
	if who.IsBare() || len(of) == 0 {
		delete(st.presences, who.Bare())
	}
}

// Resources returns the available resources of a contact, or the others of
// one's own account, as presence tells: the highest priority first, then by
// name. After login it waits, within ctx, until the server has had its turn
// to say who is there: a moment for further resources, and a second at most for
// a contact of whom it said nothing. The presence of a contact is told only to those who subscribed to
// it. None is no error.
func (s *Session) Resources(ctx context.Context, bare jid.JID) ([]jid.JID, error) {
	st, err := s.login(ctx)
	if err != nil {
		return nil, err
	}
	if err := st.settle(ctx); err != nil {
		return nil, fmt.Errorf("xmpp: waiting for presences: %w", err)
	}
	st.mu.Lock()
	announced := st.announced
	st.mu.Unlock()
	grace := time.NewTimer(time.Until(announced.Add(presenceWait)))
	defer grace.Stop()
	for {
		found, told := st.resources(bare.Bare())
		if time.Since(announced) >= presenceWait {
			return found, nil
		}
		var quiet <-chan time.Time
		if len(found) > 0 {
			quiet = time.After(presenceQuiet)
		}
		select {
		case <-told:
		case <-grace.C:
		case <-quiet:
			return found, nil
		case <-ctx.Done():
			return nil, fmt.Errorf("xmpp: waiting for presences: %w", ctx.Err())
		case <-st.lost:
			return nil, fmt.Errorf("xmpp: waiting for presences: %w", st.failed())
		}
	}
}

// resources returns what Resources does, and a channel that is closed at the
// next change.
func (st *stream) resources(bare jid.JID) ([]jid.JID, <-chan struct{}) {
	st.mu.Lock()
	defer st.mu.Unlock()
	of := st.presences[bare]
	found := slices.SortedFunc(maps.Keys(of), func(a, b jid.JID) int {
		return cmp.Or(cmp.Compare(of[b], of[a]), cmp.Compare(a.Resource(), b.Resource()))
	})
	return found, st.told
}

// settle waits until a ping that was sent after our presence is answered, by
// whatever: the server has read the presence then.
func (st *stream) settle(ctx context.Context) error {
	st.mu.Lock()
	settled := st.settled
	st.mu.Unlock()
	if settled {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	answer, err := st.ask(bounded, pingOf(st.addr.Server()), nil)
	if err != nil && answer.Type == "" && (ctx.Err() != nil || bounded.Err() == nil) {
		return err
	}
	st.mu.Lock()
	st.settled = true
	st.mu.Unlock()
	return nil
}

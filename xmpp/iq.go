package xmpp

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// request is an iq of ours that waits for its answer.
type request struct {
	to     jid.JID
	answer chan stanza.IQ  // of capacity 1
	first  func(stanza.IQ) // runs on the read loop before answer; may be nil
}

// handler is what HandleIQ registers.
type handler struct{ h func(stanza.IQ) }

// RoundTrip sends a get or set and waits for its answer. The id is chosen here,
// at random, and 'from' is left to the server, or that of a component. The answer counts only from the
// address asked (RFC 6120, 8.1.2.1): from exactly q.To; if that is empty or the
// account itself, from the account, this resource, or nobody; if it is empty,
// from the server too. An answer of type error is returned together with its
// [*stanza.Error].
//
// While the session is not logged in, RoundTrip waits for that within ctx; if in
// vain, nothing was sent, and the error is a [*LoggedOutError]. When
// the connection is lost before the answer, whether the question arrived is
// unknown; the error has a method Temporary that returns true if the session
// will be back.
func (s *Session) RoundTrip(ctx context.Context, q stanza.IQ) (stanza.IQ, error) {
	if q.Type != stanza.Get && q.Type != stanza.Set {
		return stanza.IQ{}, fmt.Errorf("xmpp: an iq of type %q is not answered", q.Type)
	}
	st, err := s.login(ctx)
	if err != nil {
		return stanza.IQ{}, err
	}
	answer, err := st.ask(ctx, q, nil)
	if err != nil {
		return answer, wrapAsked(q.To, err)
	}
	return answer, nil
}

// wrapAsked prefixes errors of a request. An answer of the other side is not
// wrapped: it is the answer.
func wrapAsked(to jid.JID, err error) error {
	var answer *stanza.Error
	if errors.As(err, &answer) {
		return err
	}
	name := to.String()
	if to.IsZero() {
		name = "the account"
	}
	return fmt.Errorf("xmpp: no answer from %s: %w", name, err)
}

// ask sends q on this login and waits for the answer. first, if not nil, sees
// the answer on the read loop, in the order of the stream.
func (st *stream) ask(ctx context.Context, q stanza.IQ, first func(stanza.IQ)) (stanza.IQ, error) {
	q.ID, q.From = st.s.newID(), st.s.stamp(q.From)
	if st.s.component != nil && q.To.IsZero() {
		return stanza.IQ{}, errNoAccount
	}
	r := &request{to: q.To, answer: make(chan stanza.IQ, 1), first: first}
	st.mu.Lock()
	st.pending[q.ID] = r
	st.mu.Unlock()
	defer func() {
		st.mu.Lock()
		delete(st.pending, q.ID)
		st.mu.Unlock()
	}()
	err := st.send(ctx, st.s.encoded(q.Element(st.s.content)))
	if err == nil {
		select {
		case answer := <-r.answer:
			return answered(answer)
		case <-ctx.Done():
			err = ctx.Err()
		case <-st.lost:
			err = st.failed()
		}
	}
	// An answer that is there is worth more than the reason not to wait.
	select {
	case answer := <-r.answer:
		return answered(answer)
	default:
		return stanza.IQ{}, err
	}
}

func answered(answer stanza.IQ) (stanza.IQ, error) {
	if answer.Type == stanza.Failed {
		return answer, answer.Error
	}
	return answer, nil
}

// answers reports whether an answer from this address answers a question to that
// one (RFC 6120, 8.1.2.1 and 10.3.3). own is our full address. An absent 'from'
// can only come from our own server, which stamps everything it passes on.
func answers(from, asked, own jid.JID) bool {
	switch {
	case from == asked:
		return true
	case asked.IsZero():
		return from == own.Bare() || from == own || from == own.Server()
	case asked == own.Bare():
		return from.IsZero() || from == own
	}
	return false
}

// Send sends an iq and expects nothing: an answer to a question of the other
// side, or an error of our own accord. An id is chosen if there is none. While
// the session is not logged in, Send waits for that within ctx, and its error is a
// [*LoggedOutError] if that was in vain.
func (s *Session) Send(ctx context.Context, q stanza.IQ) error {
	if q.ID == "" {
		q.ID = s.newID()
	}
	q.From = s.stamp(q.From)
	if s.component != nil && q.To.IsZero() {
		return fmt.Errorf("xmpp: %w", errNoAccount)
	}
	_, err := s.send(ctx, q.Element(s.content))
	return err
}

// send sends e and returns the login it was sent on.
func (s *Session) send(ctx context.Context, e stanza.Element) (*stream, error) {
	st, err := s.login(ctx)
	if err != nil {
		return nil, err
	}
	if err := st.send(ctx, s.encoded(e)); err != nil {
		return nil, fmt.Errorf("xmpp: %s not sent: %w", e.Name.Local, err)
	}
	return st, nil
}

// HandleIQ has h called with iqs that carry this payload: get and set, which h
// or somebody on its behalf must answer by Send; results and errors that answer
// no request of ours. It holds across logins until stop, which does not wait for
// a call of h that is under way. h runs on the read loop and must not block; Send
// and RoundTrip do. Of several handlers of one payload the newest is called; one
// of the zero name gets what has no other, also what this package would answer.
// Questions that nobody handles are answered by service-unavailable (RFC 6120,
// 8.4).
func (s *Session) HandleIQ(payload xml.Name, h func(stanza.IQ)) (stop func()) {
	entry := &handler{h}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[payload] = append(s.handlers[payload], entry)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		left := slices.DeleteFunc(s.handlers[payload], func(e *handler) bool { return e == entry })
		if s.handlers[payload] = left; len(left) == 0 {
			delete(s.handlers, payload)
		}
	}
}

// handle passes q to its handler, if there is one.
func (s *Session) handle(q stanza.IQ) bool {
	s.mu.Lock()
	entries := s.handlers[q.Payload.Name]
	if len(entries) == 0 {
		entries = s.handlers[xml.Name{}]
	}
	var h func(stanza.IQ)
	if len(entries) > 0 && !q.Payload.IsZero() {
		h = entries[len(entries)-1].h
	}
	s.mu.Unlock()
	if h != nil {
		h(q)
	}
	return h != nil
}

// iq routes an iq that came. It runs on the read loop.
func (st *stream) iq(e stanza.Element) {
	q, err := stanza.ParseIQ(e)
	question := q.Type == stanza.Get || q.Type == stanza.Set
	switch {
	case err != nil && question && q.ID != "" && e.Attr("from") == q.From.String():
		st.reply(q.Fail(stanza.NewError(stanza.BadRequest, "")))
	case err != nil:
	case question:
		st.question(q)
	case !st.answer(q):
		st.s.handle(q)
	}
}

// question answers what this package answers itself, and finds somebody for
// the rest.
func (st *stream) question(q stanza.IQ) {
	switch {
	case q.Payload.Is(nsRoster, "query") && q.Type == stanza.Set && st.push(q):
		st.reply(q.Result(stanza.Element{}))
	case st.s.handle(q):
	case q.Payload.Is(nsPing, "ping") && q.Type == stanza.Get:
		st.reply(q.Result(stanza.Element{}))
	case q.Payload.Is(nsInfo, "query") && q.Type == stanza.Get:
		st.reply(st.s.describe(q))
	default:
		st.reply(q.Fail(stanza.NewError(stanza.ServiceUnavailable, "")))
	}
}

// answer passes q to the request that it answers, if there is one.
func (st *stream) answer(q stanza.IQ) bool {
	st.mu.Lock()
	r := st.pending[q.ID]
	ours := r != nil && answers(q.From, r.to, st.addr)
	if ours {
		delete(st.pending, q.ID)
	}
	st.mu.Unlock()
	if !ours {
		return false
	}
	if r.first != nil {
		r.first(q)
	}
	r.answer <- q
	return true
}

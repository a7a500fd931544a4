package rendezvous

import (
	"errors"
	"fmt"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// ErrTaken is wrapped by the error of [Server.Attach] for a domain that is the
// server's, or that of another service.
var ErrTaken = errors.New("rendezvous: the domain is taken")

// Attach gives a service of this process a domain of its own, such as
// relay.example.org, and lists it among the items of the server (XEP-0030, 4),
// where clients look for it. answer is asked for the answer to each get and set
// with an id and one payload that is addressed to the domain itself, with 'from'
// stamped. It is called by the goroutine of the asker's stream, so by several at
// once; it must be quick, because that stream waits, and nobody else does.
// Whatever it returns goes to the asker, from the domain and under the
// question's id, and is internal-server-error unless it is a result or an error.
// Everything else that the domain is sent is service-unavailable.
//
// detach takes the service away again; it does not wait for calls of answer
// that are under way, for which [Server.Close] does.
func (s *Server) Attach(domain string, answer func(stanza.IQ) stanza.IQ) (detach func(), err error) {
	d, err := jid.New("", domain, "")
	if err != nil {
		return nil, fmt.Errorf("rendezvous: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d == s.domain || s.services[d.Domain()] != nil {
		return nil, fmt.Errorf("%w: %s", ErrTaken, d)
	}
	s.services[d.Domain()] = answer
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.services, d.Domain())
	}, nil
}

// service returns the function of the service that to belongs to, or nil.
func (s *Server) service(to jid.JID) func(stanza.IQ) stanza.IQ {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.services[to.Domain()]
}

// routeService answers e, which is addressed to a service's domain. Server.mu
// is not held.
func (st *stream) routeService(e stanza.Element, to jid.JID, answer func(stanza.IQ) stanza.IQ) {
	asks := e.Name.Local == "iq" && (e.Attr("type") == stanza.Get || e.Attr("type") == stanza.Set)
	q, err := stanza.ParseIQ(e)
	malformed := err != nil || len(e.Elements()) != 1
	if !asks || malformed || to != to.Server() {
		st.server.mu.Lock()
		defer st.server.mu.Unlock()
		switch {
		case e.Name.Local == "presence": // it has none and wants none
		case asks && malformed:
			st.bounce(e, stanza.BadRequest)
		default:
			st.bounce(e, stanza.ServiceUnavailable)
		}
		return
	}
	a := answer(q)
	if a.Type != stanza.Result && a.Type != stanza.Failed {
		a = q.Fail(stanza.NewError(stanza.InternalServerError, ""))
	}
	a.Header = stanza.Header{From: to, To: st.jid, ID: q.ID}
	st.server.mu.Lock()
	defer st.server.mu.Unlock()
	st.send(a.Element(stanza.NSClient))
}

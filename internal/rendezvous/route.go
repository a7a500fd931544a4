package rendezvous

import (
	"encoding/xml"
	"fmt"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// handle takes one element from a client: stamps it, and routes it or what
// Config.Intercept makes of it. An error ends the stream.
func (st *stream) handle(e stanza.Element) error {
	if !routable(e) {
		return &streamError{condition: "unsupported-stanza-type", text: fmt.Sprintf("<%.40s/>", e.Name.Local)}
	}
	// RFC 6120, 8.1.2.1: 'from' may be there if it is true, and is replaced by
	// what we know in any case.
	if from := e.Attr("from"); from != "" {
		if j, err := jid.Parse(from); err != nil || (j != st.jid && j != st.jid.Bare()) {
			return &streamError{condition: "invalid-from"}
		}
	}
	e = address(e, "from", st.jid)
	if f := st.server.config.Intercept; f != nil {
		for _, e := range f(st.jid, e) {
			if routable(e) {
				st.route(e)
			}
		}
		return nil
	}
	st.route(e)
	return nil
}

func routable(e stanza.Element) bool {
	return e.Is(stanza.NSClient, "iq") || e.Is(stanza.NSClient, "message") || e.Is(stanza.NSClient, "presence")
}

// address returns e with the address set in place of what it has there.
func address(e stanza.Element, attr string, j jid.JID) stanza.Element {
	attrs := make([]xml.Attr, 0, len(e.Attrs)+1)
	for _, a := range e.Attrs {
		if a.Name.Space != "" || a.Name.Local != attr {
			attrs = append(attrs, a)
		}
	}
	e.Attrs = attrs
	return e.With(attr, j.String())
}

// route brings e, whose 'from' is set, to where it goes (RFC 6120, 10).
func (st *stream) route(e stanza.Element) {
	var to jid.JID
	malformed := to.UnmarshalText([]byte(e.Attr("to")))
	// Written once, and before the lock is taken.
	st.out = e.Append(st.out[:0], stanza.NSClient)
	s := st.server
	// Outside of the lock, because a service's function is called.
	if serve := s.service(to); serve != nil && e.Attr("from") == st.jid.String() {
		st.routeService(e, to, serve)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case st.ended:
	case e.Attr("from") != st.jid.String(): // only Config.Intercept does this
		s.inject(st.out, to)
	case malformed != nil:
		st.bounce(e, stanza.JIDMalformed)
	case !to.IsZero() && to.Domain() != s.domain.Domain():
		st.bounce(e, stanza.RemoteServerNotFound)
	case e.Name.Local == "iq":
		st.routeIQ(e, to)
	case e.Name.Local == "message":
		st.routeMessage(e, to)
	default:
		st.routePresence(e, to)
	}
	if cap(st.out) > spareBuffer {
		st.out = nil
	}
}

// bounce answers e with an error, unless it is of a kind that has no answer
// (RFC 6120, 8.3.1).
func (st *stream) bounce(e stanza.Element, condition string) {
	kind := e.Attr("type")
	switch {
	case kind == stanza.Failed:
		return
	case e.Name.Local == "iq" && kind == stanza.Result:
		return
	case e.Name.Local == "presence" && kind == stanza.Unavailable:
		return
	}
	answer := stanza.New(stanza.NSClient, e.Name.Local, stanza.NewError(condition, "").Element(stanza.NSClient)).
		With("type", stanza.Failed).With("id", e.Attr("id")).With("to", st.jid.String())
	if condition != stanza.JIDMalformed {
		answer = answer.With("from", e.Attr("to"))
	}
	st.send(answer)
}

// lookup returns the stream of a full JID, or nil. s.mu is held.
func (s *Server) lookup(full jid.JID) *stream {
	if a := s.account(full); a != nil && full.IsFull() {
		return a.streams[full.Resource()]
	}
	return nil
}

// inject delivers a stanza that no client sent.
func (s *Server) inject(b []byte, to jid.JID) {
	if st := s.lookup(to); st != nil {
		st.offer(b)
		return
	}
	if a := s.account(to); a != nil && to.IsBare() {
		for _, st := range a.streams {
			st.offer(b)
		}
	}
}

// pass brings e, of which st.out is the text, to one stream, or tells the
// sender that it has no room for it now.
func (st *stream) pass(e stanza.Element, target *stream) {
	if !target.offer(st.out) {
		st.bounce(e, stanza.ResourceConstraint)
	}
}

// routeIQ follows RFC 6121, 8.5. st.out is e.
func (st *stream) routeIQ(e stanza.Element, to jid.JID) {
	asks := false
	switch e.Attr("type") {
	case stanza.Get, stanza.Set:
		asks = true
		if e.Attr("id") == "" || len(e.Elements()) != 1 {
			st.bounce(e, stanza.BadRequest)
			return
		}
	case stanza.Result, stanza.Failed:
		// Without an id it answers nothing, and servers do not pass it on.
		if e.Attr("id") == "" {
			return
		}
	default:
		st.bounce(e, stanza.BadRequest)
		return
	}
	switch {
	case to.IsFull() && to.Local() != "":
		if target := st.server.lookup(to); target != nil {
			st.pass(e, target)
			return
		}
		st.bounce(e, stanza.ServiceUnavailable)
	case asks:
		st.answer(e, to)
	}
}

// routeMessage follows RFC 6121, 8.5. st.out is e.
func (st *stream) routeMessage(e stanza.Element, to jid.JID) {
	if to.IsZero() {
		to = st.jid.Bare()
	}
	if target := st.server.lookup(to); target != nil {
		st.pass(e, target)
		return
	}
	kind := e.Attr("type")
	if kind == stanza.Failed {
		return
	}
	delivered, crowded := false, false
	if a := st.server.account(to); a != nil && (to.IsBare() && kind != "groupchat" || kind == "chat") {
		for _, target := range a.streams {
			if target.available && target.priority >= 0 {
				if target.offer(st.out) {
					delivered = true
				} else {
					crowded = true
				}
			}
		}
	}
	switch {
	case delivered, kind == "headline":
	case crowded:
		st.bounce(e, stanza.ResourceConstraint)
	default:
		st.bounce(e, stanza.ServiceUnavailable)
	}
}

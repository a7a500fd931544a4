package stanza

import (
	"errors"
	"fmt"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Namespaces of streams.
const (
	NSClient    = "jabber:client"
	NSServer    = "jabber:server"
	NSComponent = "jabber:component:accept"
	NSStream    = "http://etherx.jabber.org/streams"
	NSStanzas   = "urn:ietf:params:xml:ns:xmpp-stanzas"
)

// Header is what the three kinds of stanza have in common (RFC 6120, 8.1).
// The zero JID stands for an absent address.
type Header struct {
	To, From jid.JID
	ID       string
	Lang     string
}

func (h Header) apply(e Element, kind string) Element {
	if h.Lang != "" {
		e.Attrs = append(e.Attrs[:len(e.Attrs):len(e.Attrs)], attrLang(h.Lang))
	}
	return e.With("type", kind).With("id", h.ID).With("to", h.To.String()).With("from", h.From.String())
}

func parseHeader(e Element) (h Header, err error) {
	if err := h.To.UnmarshalText([]byte(e.Attr("to"))); err != nil {
		return h, fmt.Errorf("'to': %w", err)
	}
	if err := h.From.UnmarshalText([]byte(e.Attr("from"))); err != nil {
		return h, fmt.Errorf("'from': %w", err)
	}
	h.ID = e.Attr("id")
	for _, a := range e.Attrs {
		if a.Name.Local == "lang" && a.Name.Space != "" {
			h.Lang = a.Value
		}
	}
	return h, nil
}

// Types of an [IQ] (RFC 6120, 8.2.3).
const (
	Get    = "get"
	Set    = "set"
	Result = "result"
	Failed = "error"
)

// IQ is a question or its answer (RFC 6120, 8.2.3). An answer of type
// [Failed] holds an Error, and may repeat the payload.
type IQ struct {
	Header
	Type    string
	Payload Element
	Error   *Error
}

// Result returns the answer to q that carries payload, which may be zero.
func (q IQ) Result(payload Element) IQ {
	return IQ{Header: Header{To: q.From, From: q.To, ID: q.ID}, Type: Result, Payload: payload}
}

// Fail returns the answer to q that carries an error.
func (q IQ) Fail(e *Error) IQ {
	return IQ{Header: Header{To: q.From, From: q.To, ID: q.ID}, Type: Failed, Error: e}
}

// Element returns q as an element of the namespace space, [NSClient] in a
// client's stream.
func (q IQ) Element(space string) Element {
	e := q.Header.apply(New(space, "iq"), q.Type)
	if !q.Payload.IsZero() {
		e.Children = append(e.Children, q.Payload)
	}
	if q.Error != nil {
		e.Children = append(e.Children, q.Error.Element(space))
	}
	return e
}

// ParseIQ reads an iq of any stream namespace. It is strict on the type and,
// for questions, on the id and the one payload; it is lax on answers, for
// servers differ.
func ParseIQ(e Element) (IQ, error) {
	h, err := parseHeader(e)
	q := IQ{Header: h, Type: e.Attr("type")}
	if err != nil {
		return q, fmt.Errorf("stanza: iq: %w", err)
	}
	for _, c := range e.Elements() {
		switch {
		case c.Is(e.Name.Space, "error"):
			q.Error = ParseError(c)
		case q.Payload.IsZero():
			q.Payload = c
		}
	}
	switch q.Type {
	case Get, Set:
		if q.ID == "" || q.Payload.IsZero() {
			return q, errors.New("stanza: iq without an id or a payload")
		}
	case Result:
	case Failed:
		if q.Error == nil {
			q.Error = &Error{Type: Cancel, Condition: UndefinedCondition}
		}
	default:
		return q, fmt.Errorf("stanza: iq of type %.20q", q.Type)
	}
	return q, nil
}

// Message is a message (RFC 6121, 5). Type is "" for normal ones.
type Message struct {
	Header
	Type    string
	Payload []Element // body, subject, extensions and an error as they came
}

// Element returns m as an element of the namespace space.
func (m Message) Element(space string) Element {
	e := m.Header.apply(New(space, "message"), m.Type)
	e.Children = append(e.Children, m.Payload...)
	return e
}

// ParseMessage reads a message.
func ParseMessage(e Element) (Message, error) {
	h, err := parseHeader(e)
	if err != nil {
		return Message{}, fmt.Errorf("stanza: message: %w", err)
	}
	return Message{Header: h, Type: e.Attr("type"), Payload: e.Elements()}, nil
}

// Types of a [Presence] that this project uses (RFC 6121, 4.7.1).
const (
	Available    = ""
	Unavailable  = "unavailable"
	Subscribe    = "subscribe"
	Subscribed   = "subscribed"
	Unsubscribe  = "unsubscribe"
	Unsubscribed = "unsubscribed"
	Probe        = "probe"
)

// Presence says that a resource is there, or manages a subscription
// (RFC 6121, 3 and 4).
type Presence struct {
	Header
	Type     string
	Priority int8      // -128 to 127; below 0: no chat messages, please
	Payload  []Element // everything but the priority
}

// Element returns p as an element of the namespace space.
func (p Presence) Element(space string) Element {
	e := p.Header.apply(New(space, "presence"), p.Type)
	if p.Priority != 0 {
		e.Children = append(e.Children, New(space, "priority", Text(fmt.Sprint(p.Priority))))
	}
	e.Children = append(e.Children, p.Payload...)
	return e
}

// ParsePresence reads a presence. A priority that is no number counts as 0.
func ParsePresence(e Element) (Presence, error) {
	h, err := parseHeader(e)
	if err != nil {
		return Presence{}, fmt.Errorf("stanza: presence: %w", err)
	}
	p := Presence{Header: h, Type: e.Attr("type")}
	for _, c := range e.Elements() {
		if c.Is(e.Name.Space, "priority") {
			if _, err := fmt.Sscan(c.Text(), &p.Priority); err != nil {
				p.Priority = 0
			}
			continue
		}
		p.Payload = append(p.Payload, c)
	}
	return p, nil
}

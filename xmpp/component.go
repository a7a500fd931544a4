package xmpp

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"net"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// componentHandshake is how [AuthError] names the login of a component.
const componentHandshake = "handshake"

// ComponentConfig says how to log in as a component (XEP-0114,
// jabber:component:accept). It is read by [NewComponent] only.
type ComponentConfig struct {
	// Domain is the component's address, a domain that the server's
	// configuration names, such as relay.example.org.
	Domain jid.JID
	// Secret is what the server's configuration has for that domain.
	Secret string
	// Server is the "host:port" where the server waits for components; without
	// a port, 5347. The connection is not encrypted: it belongs on the loopback
	// interface, or into a network that is.
	Server string
	// Dial opens TCP connections. If nil, a [net.Dialer] does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Features are announced by service discovery (XEP-0030) besides those of
	// this package.
	Features []string
	// NoReconnect ends the Session with its first connection, or with the first
	// that fails.
	NoReconnect bool
	// Trace is told what happens. If nil, nobody is.
	Trace *Trace
}

// component is what a Session that is one knows more.
type component struct {
	target target
	secret string
}

// NewComponent makes the session of a component. It returns at once, so that
// handlers can be installed before anybody asks, logs in as soon as the server
// can be reached, and again whenever the login is lost, for ever: a wrong secret
// or a conflict, too, can be mended at the server. [Session.WaitLogin] waits for
// the login; [Trace] tells of each that failed, with an [*AuthError] if the
// secret is wrong, and a [*StreamError] if the server has another reason.
//
// The session gets what is sent to any address of its domain. A 'from' is the
// domain, but for stanzas that say another address of it, as answers must. There
// is no presence, no roster, and no account to ask. Questions that nobody
// handles are answered as those to a client are.
func NewComponent(c *ComponentConfig) (*Session, error) {
	if c.Domain.IsZero() || c.Domain != c.Domain.Server() {
		return nil, fmt.Errorf("xmpp: %q is not the domain of a component", c.Domain)
	}
	if c.Secret == "" {
		return nil, errors.New("xmpp: a component needs a secret")
	}
	t, err := given(c.Server, componentPort)
	if err != nil {
		return nil, fmt.Errorf("xmpp: %w", err)
	}
	s := newSession(Config{JID: c.Domain, Dial: c.Dial, Features: c.Features, NoReconnect: c.NoReconnect, Trace: c.Trace}, stanza.NSComponent)
	s.component = &component{target{host: t.host, port: t.port, component: true}, c.Secret}
	s.addr = c.Domain
	s.start(nil)
	return s, nil
}

// errNoAccount is for stanzas without 'to', by which a client means its account.
var errNoAccount = errors.New("a component has no account: who is meant?")

// stamp is the 'from' of what is sent. A client leaves it to the server, which
// knows, and may object to another form of it. A component says it, and may
// speak for every address of its domain (XEP-0114, 3).
func (s *Session) stamp(from jid.JID) jid.JID {
	switch {
	case s.component == nil:
		return jid.JID{}
	case from.Domain() == s.account.Domain():
		return from
	}
	return s.account
}

// component does all steps of a component's login (XEP-0114, 3).
func (l *login) component() (jid.JID, error) {
	l.step = "the handshake"
	l.conn = l.s.wrap(l.conn)
	l.buf = bufio.NewReader(l.conn)
	if err := l.header(jid.JID{}); err != nil {
		return jid.JID{}, err
	}
	h, err := l.opened(MaxStanza)
	if err != nil {
		return jid.JID{}, err
	}
	sum := sha1.Sum([]byte(h.ID + l.s.component.secret))
	proof := stanza.New(stanza.NSComponent, "handshake", stanza.Text(hex.EncodeToString(sum[:])))
	unsent := l.write(proof)
	e, err := l.next() // in any case: who hung up may have said why
	var refused *StreamError
	switch {
	case errors.As(err, &refused) && refused.Condition == "not-authorized":
		return jid.JID{}, &AuthError{Mechanism: componentHandshake, Condition: refused.Condition, Text: refused.Text}
	case refused == nil && unsent != nil:
		return jid.JID{}, unsent
	case err != nil:
		return jid.JID{}, worded(err)
	case !e.Is(stanza.NSComponent, "handshake"):
		return jid.JID{}, fmt.Errorf("<%.40s/> where the answer to the handshake belongs", e.Name.Local)
	}
	return l.s.account, nil
}

// streamError reads the error by which the server ends the stream, in words
// that fit who is told.
func (s *Session) streamError(e stanza.Element) error {
	err := parseStreamError(e)
	if s.component == nil {
		return err
	}
	return &componentError{s.account, err}
}

// componentError is a [StreamError] in the words of a component.
type componentError struct {
	domain jid.JID
	err    *StreamError
}

func (e *componentError) Error() string {
	said := e.err.Condition
	if e.err.Text != "" {
		said += fmt.Sprintf(": %.200q", e.err.Text)
	}
	switch e.err.Condition {
	case "conflict":
		return fmt.Sprintf("another program is connected as component %s (the server says %s)", e.domain, said)
	case "host-unknown":
		return fmt.Sprintf("the server has no component %s in its configuration (it says %s)", e.domain, said)
	case "invalid-namespace":
		return fmt.Sprintf("the server's port is not one for components (it says %s)", said)
	}
	return fmt.Sprintf("the server ended the stream (it says %s)", said)
}

// Unwrap returns the [StreamError].
func (e *componentError) Unwrap() error { return e.err }

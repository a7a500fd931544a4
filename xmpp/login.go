package xmpp

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const (
	nsTLS     = "urn:ietf:params:xml:ns:xmpp-tls"
	nsBind    = "urn:ietf:params:xml:ns:xmpp-bind"
	nsSession = "urn:ietf:params:xml:ns:xmpp-session"
)

// maxRedirects bounds how often see-other-host is followed in one login.
const maxRedirects = 2

// maxBefore bounds the stanzas that may come before the answer to a question
// asked during the login.
const maxBefore = 32

// login is one attempt to log in at one address, from the TCP connection to
// the bind. It is straight-line code of one goroutine.
type login struct {
	s    *Session
	conn net.Conn      // TCP, then TLS
	buf  *bufio.Reader // over conn
	r    *xmlstream.Reader
	tls  tls.ConnectionState
	step string // under way, for the error of a login that takes too long
}

// connect logs in: it tries the addresses one after the other, until one
// works or has an answer that another would not change. If hint is not zero,
// it is tried first.
func (s *Session) connect(ctx context.Context, hint target) (*stream, error) {
	failed := &ConnectError{Domain: s.account.Domain()}
	var targets []target
	switch {
	case s.component != nil:
		targets = []target{s.component.target}
	case s.config.Server != "":
		t, err := given(s.config.Server, clientPort)
		if err != nil {
			return nil, err
		}
		targets = []target{t}
	default:
		targets, failed.Attempts = lookup(ctx, s.config.Resolver, s.account.Domain())
	}
	if hint.host != "" {
		targets = append([]target{hint}, targets...)
	}
	redirects := 0
	for len(targets) > 0 {
		t := targets[0]
		targets = targets[1:]
		st, err := s.attempt(ctx, t)
		if err == nil {
			return st, nil
		}
		failed.Attempts = append(failed.Attempts, Attempt{t.address(), t.mode(), err})
		var auth *AuthError
		var moved *StreamError
		switch {
		case ctx.Err() != nil:
			return nil, failed
		case errors.As(err, &auth), errors.Is(err, ErrConflict):
			return nil, err // nothing that another address would judge otherwise
		case errors.As(err, &moved) && moved.Host != "" && redirects < maxRedirects:
			if to, ok := redirected(moved.Host); ok {
				redirects++
				targets = append([]target{to}, targets...)
			}
		case t.detect && (errors.Is(err, errNotTLS) || errors.Is(err, errNotXML)):
			t.detect, t.direct = false, !t.direct
			targets = append([]target{t}, targets...)
		}
	}
	return nil, failed
}

// attempt logs in at one address.
func (s *Session) attempt(ctx context.Context, t target) (*stream, error) {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := s.config.Dial(dialing, "tcp", t.address())
	cancel()
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(loginTimeout)); err != nil {
		conn.Close()
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	// The end of ctx ends whatever read or write is under way. A deadline in
	// the past does it without closing what this goroutine owns.
	stop := context.AfterFunc(bounded, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	l := &login{s: s, conn: conn}
	addr, err := l.run(bounded, t)
	if !stop() && err == nil {
		err = bounded.Err()
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case timedOut(err) || bounded.Err() != nil:
			return nil, fmt.Errorf("the login was not done after %v: the server was too slow in %s", loginTimeout, l.step)
		}
		return nil, err
	}
	l.r.Prune() // from here on others than the server are heard
	return newStream(s, l.conn, l.r, addr), nil
}

// errNotXML says that a port does not answer like one for STARTTLS.
var errNotXML = errors.New("the port does not speak XMPP")

// run does all steps of a login and returns the address that was bound.
func (l *login) run(ctx context.Context, t target) (jid.JID, error) {
	if t.component {
		return l.component()
	}
	if !t.direct {
		l.step = "STARTTLS"
		tcp := l.conn
		l.conn = l.s.wrap(tcp)
		l.buf = bufio.NewReader(l.conn)
		if err := l.starttls(t.detect); err != nil {
			return jid.JID{}, err
		}
		l.conn = tcp
	}
	l.step = "the TLS handshake"
	conn, err := l.s.handshake(ctx, l.conn, t.direct)
	if err != nil {
		return jid.JID{}, err
	}
	l.conn, l.tls = l.s.wrap(conn), conn.ConnectionState()
	l.buf = bufio.NewReader(l.conn)
	l.step = "the authentication"
	features, err := l.open(l.s.account.Bare(), stanza.MaxBytes)
	if err != nil {
		return jid.JID{}, err
	}
	if err := l.authenticate(features); err != nil {
		return jid.JID{}, err
	}
	l.step = "the resource binding"
	if features, err = l.open(l.s.account.Bare(), MaxStanza); err != nil {
		return jid.JID{}, err
	}
	return l.bind(features)
}

// starttls does RFC 6120, 5. Without TLS there is no login, so a server whose
// offer was taken away, or that has none, is left at once.
func (l *login) starttls(detect bool) error {
	if err := l.header(jid.JID{}); err != nil {
		return err
	}
	first, err := l.buf.Peek(1)
	switch {
	case timedOut(err):
		return err
	case err != nil && detect: // a port for direct TLS may hang up
		return fmt.Errorf("%w: %w", errNotXML, worded(err))
	case err != nil:
		return fmt.Errorf("opening the stream: %w", worded(err))
	case detect && (first[0] == 0x15 || first[0] == 0x16): // or answers by an alert
		return fmt.Errorf("%w, but TLS", errNotXML)
	case !strings.ContainsRune("< \t\r\n", rune(first[0])):
		// What is no line of XML may never end.
		said, _ := l.buf.Peek(min(l.buf.Buffered(), 20))
		return fmt.Errorf("the port does not speak XMPP: it says %q", said)
	}
	features, err := l.features(stanza.MaxBytes)
	if err != nil {
		return err
	}
	if features.Child(nsTLS, "starttls").IsZero() {
		return errors.New("the server offers no STARTTLS, and there is no login without encryption")
	}
	if err := l.write(stanza.New(nsTLS, "starttls")); err != nil {
		return err
	}
	e, err := l.next()
	switch {
	case err != nil:
		return err
	case !e.Is(nsTLS, "proceed"):
		return fmt.Errorf("the server refuses STARTTLS: <%.40s/>", e.Name.Local)
	case l.buf.Buffered() > 0:
		// Somebody in the middle could add what we would later take for the
		// server's words inside TLS.
		return errors.New("bytes in clear after <proceed/>: somebody may be interfering with the connection")
	}
	return nil
}

var errHungUp = errors.New("the server hung up")

// worded returns err, as something that people understand.
func worded(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errHungUp
	}
	return err
}

// open begins a stream and returns the server's features.
func (l *login) open(from jid.JID, max int) (stanza.Element, error) {
	if err := l.header(from); err != nil {
		return stanza.Element{}, err
	}
	return l.features(max)
}

// header sends our opening tag. Our own address is told inside TLS only
// (RFC 6120, 4.7.1).
func (l *login) header(from jid.JID) error {
	h := xmlstream.Header{To: l.s.account.Server(), From: from, Version: "1.0", Content: l.s.content}
	if l.s.component != nil {
		h.Version = "" // XEP-0114 has none
	}
	b := h.Append(nil)
	if l.s.tracing() {
		l.s.config.Trace.Element(true, string(b))
	}
	_, err := l.conn.Write(b)
	return err
}

// opened reads the server's opening tag.
func (l *login) opened(max int) (xmlstream.Header, error) {
	l.r = xmlstream.NewReader(l.buf, max)
	h, err := l.r.Header()
	if err != nil {
		return h, fmt.Errorf("opening the stream: %w", worded(err))
	}
	if l.s.tracing() {
		l.s.config.Trace.Element(false, string(h.Append(nil)))
	}
	if h.Content != l.s.content {
		return h, fmt.Errorf("the server's stream is of %.80q, not %q", h.Content, l.s.content)
	}
	return h, nil
}

// features reads the server's opening tag and its features (RFC 6120, 4.3.2).
func (l *login) features(max int) (stanza.Element, error) {
	if _, err := l.opened(max); err != nil {
		return stanza.Element{}, err
	}
	e, err := l.next()
	if err != nil {
		return stanza.Element{}, err
	}
	if !e.Is(stanza.NSStream, "features") {
		return stanza.Element{}, fmt.Errorf("<%.40s/> where the stream's features belong", e.Name.Local)
	}
	return e, nil
}

// bind takes a resource (RFC 6120, 7) and, from servers that still want it,
// a session (RFC 3921, 3).
func (l *login) bind(features stanza.Element) (jid.JID, error) {
	if features.Child(nsBind, "bind").IsZero() {
		return jid.JID{}, errors.New("the server offers no resource binding")
	}
	request := stanza.New(nsBind, "bind")
	if r := l.s.account.Resource(); r != "" {
		request.Children = append(request.Children, stanza.New(nsBind, "resource", stanza.Text(r)))
	}
	answer, err := l.ask(request)
	if err != nil {
		var refused *stanza.Error
		if errors.As(err, &refused) && refused.Condition == stanza.Conflict {
			err = fmt.Errorf("%w: %w", ErrConflict, err)
		}
		return jid.JID{}, fmt.Errorf("binding resource %q: %w", l.s.account.Resource(), err)
	}
	addr, err := jid.Parse(strings.TrimSpace(answer.Payload.Child(nsBind, "jid").Text()))
	if err != nil || !addr.IsFull() {
		return jid.JID{}, errors.New("the server bound no full address")
	}
	if old := features.Child(nsSession, "session"); !old.IsZero() && old.Child(nsSession, "optional").IsZero() {
		if _, err := l.ask(stanza.New(nsSession, "session")); err != nil {
			return jid.JID{}, fmt.Errorf("opening the session: %w", err)
		}
	}
	return addr, nil
}

// ask sends an iq to the server and waits for its answer. Only the server can
// send anything before the first presence.
func (l *login) ask(payload stanza.Element) (stanza.IQ, error) {
	q := stanza.IQ{Header: stanza.Header{ID: l.s.newID()}, Type: stanza.Set, Payload: payload}
	if err := l.write(q.Element(stanza.NSClient)); err != nil {
		return stanza.IQ{}, err
	}
	for range maxBefore {
		e, err := l.next()
		if err != nil {
			return stanza.IQ{}, err
		}
		if !e.Is(stanza.NSClient, "iq") || e.Attr("id") != q.ID {
			continue
		}
		answer, err := stanza.ParseIQ(e)
		switch {
		case err != nil:
			return stanza.IQ{}, err
		case answer.Type == stanza.Result:
			return answer, nil
		case answer.Type == stanza.Failed:
			return stanza.IQ{}, answer.Error
		}
	}
	return stanza.IQ{}, errors.New("no answer among many stanzas")
}

// next reads an element; a stream error becomes a Go error.
func (l *login) next() (stanza.Element, error) {
	e, err := l.r.Next()
	if err != nil {
		return stanza.Element{}, err
	}
	l.s.traceElement(false, e)
	if e.Is(stanza.NSStream, "error") {
		return stanza.Element{}, l.s.streamError(e)
	}
	return e, nil
}

func (l *login) write(e stanza.Element) error {
	l.s.traceElement(true, e)
	_, err := l.conn.Write(e.Append(nil, l.s.content))
	return err
}

func (s *Session) tracing() bool { return s.config.Trace != nil && s.config.Trace.Element != nil }

// traceElement shows e to the hook, without what SASL and a component's
// handshake carry.
func (s *Session) traceElement(sent bool, e stanza.Element) {
	if !s.tracing() {
		return
	}
	if (e.Name.Space == nsSASL || e.Is(stanza.NSComponent, "handshake")) && e.Text() != "" {
		e.Children = []stanza.Element{stanza.Text("[hidden]")}
	}
	s.config.Trace.Element(sent, string(e.Append(nil, s.content)))
}

func (s *Session) wrap(conn net.Conn) net.Conn {
	if h := s.config.hooks; h != nil && h.wrap != nil {
		return h.wrap(conn)
	}
	return conn
}

// newID returns an id that nobody can guess, so that nobody can answer what he
// was not asked.
func (s *Session) newID() string {
	if h := s.config.hooks; h != nil && h.id != nil {
		return h.id()
	}
	return rand.Text()
}

package rendezvous

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Namespaces of the stages of a login.
const (
	nsTLS      = "urn:ietf:params:xml:ns:xmpp-tls"
	nsSASL     = "urn:ietf:params:xml:ns:xmpp-sasl"
	nsBindings = "urn:xmpp:sasl-cb:0"
	nsBind     = "urn:ietf:params:xml:ns:xmpp-bind"
	nsSession  = "urn:ietf:params:xml:ns:xmpp-session"
	nsErrors   = "urn:ietf:params:xml:ns:xmpp-streams"
)

// stream is one connection of a client. It is, one after the other,
//
//	guest    before bind: one goroutine, run, reads and writes in turn, under
//	         one deadline for the whole login
//	bound    run reads; a second goroutine, write, writes what others enqueue
//	ended    no longer an address: what is queued is written, then the stream
//	         is closed; what the client still sends is discarded
//
// bind makes a guest a bound stream, and end a bound one an ended one, at
// once, whoever calls it. A guest that fails is closed by run alone.
type stream struct {
	server *Server
	conn   net.Conn // the connection below TLS

	// Of run, and once bound, of its reading side.
	in     *bufio.Reader
	xml    *xmlstream.Reader
	source *source
	opened bool      // our header was sent, and an error would be understood
	secure *tls.Conn // set by the handshake; shared with write from bind on
	out    []byte    // scratch for stanzas under way to other streams

	read    chan struct{} // closed when run reads no more
	written chan struct{} // closed when write has ended, and with it the connection
	wake    chan struct{} // tells write that there is something to do; one token

	// Of the server, guarded by its mu.
	jid     jid.JID // full, from bind on
	account *account
	ended   bool
	why     error
	queue
	presence
}

func newStream(s *Server, conn net.Conn) *stream {
	st := &stream{
		server:  s,
		conn:    conn,
		source:  &source{conn: conn},
		read:    make(chan struct{}),
		written: make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
	st.in = bufio.NewReader(st.source)
	return st
}

// source is what a stream is read from. Once the login is over, it puts a
// deadline on each read and notes when the client was heard last.
type source struct {
	conn   net.Conn
	limits *limits // nil during login
	heard  atomic.Int64
}

func (s *source) Read(p []byte) (int, error) {
	if s.limits != nil {
		s.conn.SetReadDeadline(time.Now().Add(s.limits.ping + s.limits.answer))
	}
	n, err := s.conn.Read(p)
	if n > 0 && s.limits != nil {
		s.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// replay is a connection of which a buffered reader holds the first bytes.
type replay struct {
	net.Conn
	in *bufio.Reader
}

func (r replay) Read(p []byte) (int, error) { return r.in.Read(p) }

// streamError ends a stream (RFC 6120, 4.9). It is also the error that
// [Trace] gets.
type streamError struct {
	condition string
	text      string
}

func (e *streamError) Error() string {
	if e.text == "" {
		return "stream closed: " + e.condition
	}
	return "stream closed: " + e.condition + ": " + e.text
}

// element has its prefix written out, for clients that look for it.
func (e *streamError) element() stanza.Element {
	el := stanza.New(stanza.NSClient, "stream:error", stanza.New(nsErrors, e.condition))
	if e.text != "" {
		el.Children = append(el.Children, stanza.New(nsErrors, "text", stanza.Text(e.text)))
	}
	return el
}

// explain turns an error of reading into the one that the client is told, or
// returns nil when there is nobody to tell, or nothing.
func explain(err error) *streamError {
	var told *streamError
	var timeout net.Error
	switch {
	case errors.As(err, &told):
		return told
	case errors.Is(err, xmlstream.ErrTooLarge):
		return &streamError{condition: "policy-violation", text: "stanza too large"}
	case errors.Is(err, stanza.ErrForbidden):
		return &streamError{condition: "restricted-xml"}
	case errors.As(err, &timeout) && timeout.Timeout():
		return &streamError{condition: "connection-timeout"}
	case errors.Is(err, xmlstream.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &timeout), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return nil
	}
	if syntax := new(xml.SyntaxError); errors.As(err, &syntax) {
		return &streamError{condition: "not-well-formed"}
	}
	return &streamError{condition: "bad-format"}
}

// run serves the connection to its end.
func (st *stream) run() {
	s := st.server
	st.conn.SetDeadline(time.Now().Add(s.limits.login))
	mechanism, err := st.login()
	if err != nil {
		s.leave(st)
		st.turnAway(err)
		s.refused(st.conn, err)
		return
	}
	st.conn.SetDeadline(time.Time{})
	st.source.heard.Store(time.Now().UnixNano())
	st.source.limits = &s.limits
	// The writing goroutine: it ends when the stream has ended, which every
	// way out of the loop below brings about, or when a write fails; it is
	// waited for here.
	go st.write()
	if f := s.config.Trace.Login; f != nil {
		f(st.jid, st.conn.RemoteAddr(), mechanism)
	}
	err = st.serve()
	s.mu.Lock()
	st.end(err)
	s.mu.Unlock()
	// What the client still had under way is taken in, lest a reset makes it
	// lose our last words; write bounds this by closing the connection.
	io.Copy(io.Discard, st.in)
	close(st.read)
	<-st.written
	if f := s.config.Trace.Logout; f != nil {
		why := st.why
		if errors.Is(why, xmlstream.ErrClosed) {
			why = nil
		}
		f(st.jid, why)
	}
}

// serve routes what the client sends until it or the connection ends.
func (st *stream) serve() error {
	for {
		e, err := st.xml.Next()
		if err != nil {
			return err
		}
		if err := st.handle(e); err != nil {
			return err
		}
	}
}

// end makes st no longer an address and has its last words written: why, if
// it is for the client to know, and the closing tag. Server.mu is held. Only
// the first call counts.
func (st *stream) end(why error) {
	if st.ended {
		return
	}
	st.ended, st.why = true, why
	st.server.unbind(st)
	if e := explain(why); e != nil {
		st.pending = e.element().Append(st.pending, stanza.NSClient)
	}
	st.pending = append(st.pending, xmlstream.End...)
	// A write may be in progress; this only moves its deadline.
	st.conn.SetWriteDeadline(time.Now().Add(st.server.limits.final))
	st.signal()
}

// turnAway ends the stream of a guest.
func (st *stream) turnAway(why error) {
	defer st.conn.Close()
	told := explain(why)
	if !st.opened || (told == nil && !errors.Is(why, xmlstream.ErrClosed)) {
		return
	}
	st.conn.SetDeadline(time.Now().Add(st.server.limits.linger))
	var b []byte
	if told != nil {
		b = told.element().Append(b, stanza.NSClient)
	}
	if st.say(append(b, xmlstream.End...)) != nil {
		return
	}
	if st.secure != nil {
		st.secure.CloseWrite()
	}
	io.Copy(io.Discard, st.in) // as in run; the deadline bounds it
}

// say writes during login.
func (st *stream) say(b []byte) error {
	var w io.Writer = st.conn
	if st.secure != nil {
		w = st.secure
	}
	_, err := w.Write(b)
	return err
}

func (st *stream) sayElement(e stanza.Element) error {
	return st.say(e.Append(nil, stanza.NSClient))
}

// login takes a connection from its first byte to a bound resource
// (RFC 6120, 4 to 7), and returns the SASL mechanism.
func (st *stream) login() (mechanism string, err error) {
	first, err := st.in.Peek(1)
	if err != nil {
		return "", err
	}
	switch first[0] {
	case 0x16: // a TLS handshake record
	case '<', ' ', '\t', '\r', '\n':
		if err := st.startTLS(); err != nil {
			return "", err
		}
	default:
		return "", errors.New("neither XML nor TLS")
	}
	if err := st.handshake(); err != nil {
		return "", err
	}
	name, mechanism, err := st.authenticate()
	if err != nil {
		return "", err
	}
	return mechanism, st.bind(name)
}

// open reads the client's stream header and answers with ours and the
// features, in one write.
func (st *stream) open(features ...stanza.Element) error {
	st.xml = xmlstream.NewReader(st.in, 0)
	h, err := st.xml.Header()
	var fault *streamError
	switch {
	case err != nil:
		if fault = explain(err); fault == nil {
			return err
		}
	case !h.To.IsZero() && h.To != st.server.domain:
		fault = &streamError{condition: "host-unknown"}
	case h.Content != stanza.NSClient:
		fault = &streamError{condition: "invalid-namespace"}
	case h.Version != "1.0":
		fault = &streamError{condition: "unsupported-version"}
	}
	b := xmlstream.Header{
		To:      h.From,
		From:    st.server.domain,
		ID:      random(),
		Version: "1.0",
		Content: stanza.NSClient,
	}.Append(nil)
	if fault == nil {
		b = stanza.New(stanza.NSClient, "stream:features", features...).Append(b, stanza.NSClient)
	}
	if err := st.say(b); err != nil {
		return err
	}
	st.opened = true
	if fault != nil {
		return fault
	}
	return nil
}

// startTLS is the part of a login that is spoken in the clear (RFC 6120, 5).
func (st *stream) startTLS() error {
	if err := st.open(stanza.New(nsTLS, "starttls", stanza.New(nsTLS, "required"))); err != nil {
		return err
	}
	e, err := st.xml.Next()
	if err != nil {
		return err
	}
	if !e.Is(nsTLS, "starttls") {
		return &streamError{condition: "not-authorized", text: "STARTTLS is required"}
	}
	// What stands behind <starttls/> came before TLS, from whomever, and must
	// not be taken for what comes inside (RFC 6120, 5.3.1).
	if st.in.Buffered() > 0 {
		return &streamError{condition: "policy-violation", text: "data behind <starttls/>"}
	}
	return st.sayElement(stanza.New(nsTLS, "proceed"))
}

func (st *stream) handshake() error {
	st.opened = false
	c := tls.Server(replay{st.conn, st.in}, st.server.tls)
	if err := c.Handshake(); err != nil {
		return err
	}
	st.secure = c
	st.source = &source{conn: c}
	st.in = bufio.NewReader(st.source)
	return nil
}

// maxBinds is how many resources may be asked for in vain in one stream.
const maxBinds = 5

// bind gives the stream its resource (RFC 6120, 7).
func (st *stream) bind(name string) error {
	optional := stanza.New(nsSession, "session", stanza.New(nsSession, "optional"))
	if err := st.open(stanza.New(nsBind, "bind"), optional); err != nil {
		return err
	}
	for range maxBinds {
		e, err := st.xml.Next()
		if err != nil {
			return err
		}
		q, err := stanza.ParseIQ(e)
		if !e.Is(stanza.NSClient, "iq") || err != nil || q.Type != stanza.Set || !q.Payload.Is(nsBind, "bind") {
			return &streamError{condition: "not-authorized", text: "a resource must be bound first"}
		}
		fault, err := st.server.bind(st, name, q)
		if fault == nil || err != nil {
			return err
		}
		if err := st.sayElement(q.Fail(fault).Element(stanza.NSClient)); err != nil {
			return err
		}
	}
	return &streamError{condition: "policy-violation", text: "too many attempts to bind"}
}

// bind makes st the stream of the resource that q asks for, or of a random
// one, and enqueues the answer, so that it precedes all that is routed there.
// It returns a fault to tell the client, or an error that ends the stream.
func (s *Server) bind(st *stream, name string, q stanza.IQ) (*stanza.Error, error) {
	resource := q.Payload.Child(nsBind, "resource").Text()
	if resource == "" {
		resource = random()
	}
	full, err := jid.New(name, s.domain.Domain(), resource)
	if err != nil {
		return stanza.NewError(stanza.BadRequest, "the resource is malformed"), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[name]
	switch {
	case s.closed:
		return nil, &streamError{condition: "system-shutdown"}
	case a == nil: // removed since it logged in
		return nil, &streamError{condition: "not-authorized"}
	}
	if old := a.streams[full.Resource()]; old != nil {
		// RFC 6120, 7.7.2.2: the old one may be a ghost that its user cannot
		// reach any more; the new one cannot.
		old.end(&streamError{condition: "conflict", text: "replaced by a new login"})
	}
	if len(a.streams) >= s.limits.resources {
		return stanza.NewError(stanza.ResourceConstraint, "too many resources"), nil
	}
	delete(s.guests, st)
	st.account, st.jid = a, full
	a.streams[full.Resource()] = st
	answer := q.Result(stanza.New(nsBind, "bind", stanza.New(nsBind, "jid", stanza.Text(full.String()))))
	st.send(answer.Element(stanza.NSClient))
	return nil, nil
}

// unbind takes st from its account, and tells those who saw its presence.
// s.mu is held.
func (s *Server) unbind(st *stream) {
	if st.account.streams[st.jid.Resource()] == st {
		delete(st.account.streams, st.jid.Resource())
	}
	s.vanish(st, stanza.Presence{Header: stanza.Header{From: st.jid}, Type: stanza.Unavailable}.Element(stanza.NSClient))
}

// random returns a name that nobody else has or guesses: 96 bits.
func random() string {
	b := make([]byte, 12)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

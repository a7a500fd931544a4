package dtcp_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// actor is an extended peer whose part a story plays, line by line, so that it
// can do what no Endpoint would.
type actor struct {
	w        *world
	session  login
	host     *memnet.Host
	addr     netip.AddrPort // where it listens
	listener net.Listener
	cert     tls.Certificate
	print    dtcp.Fingerprint
	key      string
	heard    chan stanza.IQ // requests that reach it
	gaveUp   chan stanza.IQ // errors that answer nothing
}

// instead closes the Endpoint of p and lets an actor play its part.
func (p *peer) instead() *actor {
	p.w.t.Helper()
	p.w.check(p.Endpoint.Close())
	return p.w.play(p.session, p.host)
}

// stranger logs a third user in, with a host of its own, at no distance.
func (w *world) stranger(name string, addr string) *actor {
	w.t.Helper()
	host := w.net.Host(name, netip.MustParseAddr(addr))
	session := w.login(name, host)
	w.t.Cleanup(func() { _ = session.Close() })
	return w.play(session, host)
}

func (w *world) play(session login, host *memnet.Host) *actor {
	w.t.Helper()
	m := &actor{w: w, session: session, host: host, key: wire.NewKey(), heard: make(chan stanza.IQ, 64), gaveUp: make(chan stanza.IQ, 64)}
	addrs, err := host.Addrs()
	w.check(err)
	m.addr = netip.AddrPortFrom(addrs[0], 4000)
	m.listener, err = host.Listen(w.t.Context(), m.addr)
	w.check(err)
	w.t.Cleanup(func() { _ = m.listener.Close() })
	m.cert, err = dtcp.NewCertificate()
	w.check(err)
	m.print = dtcp.FingerprintOf(m.cert.Certificate[0])
	stop := session.HandleIQ(xml.Name{Space: dtcp.NSStock, Local: "query"}, func(q stanza.IQ) {
		to := m.heard
		if q.Type == stanza.Failed {
			to = m.gaveUp
		}
		select {
		case to <- q:
		default:
			w.t.Errorf("%v hears more than a story can hold", session.LocalAddr())
		}
	})
	w.t.Cleanup(stop)
	return m
}

func (m *actor) jid() jid.JID { return m.session.LocalAddr() }

// at is a host candidate.
func at(addr string) dtcp.Candidate {
	return dtcp.Candidate{Type: dtcp.Host, Addr: netip.MustParseAddrPort(addr)}
}

// query says what an offer holds; empty fields are left out.
type query struct {
	key        string
	hosts      []string
	service    string
	print      dtcp.Fingerprint // zero: no <session/>
	candidates []dtcp.Candidate
}

func (q query) element() stanza.Element {
	e := stanza.New(dtcp.NSStock, "query", stanza.New(dtcp.NSStock, "key", stanza.Text(q.key)))
	for _, h := range q.hosts {
		e.Children = append(e.Children, stanza.New(dtcp.NSStock, "host", stanza.Text(h)))
	}
	if q.print.IsZero() {
		return e
	}
	s := stanza.New(dtcp.NSSession, "session").With("service", q.service)
	s.Children = append(s.Children, stanza.New("urn:xmpp:jingle:apps:dtls:0", "fingerprint", stanza.Text(q.print.String())).With("hash", "sha-256"))
	for _, c := range q.candidates {
		addr, port := c.Name, c.Port
		if addr == "" {
			addr, port = c.Addr.Addr().String(), c.Addr.Port()
		}
		s.Children = append(s.Children, stanza.New(dtcp.NSSession, "candidate").
			With("type", string(c.Type)).With("addr", addr).With("port", strconv.Itoa(int(port))).
			With("jid", c.JID.String()).With("sid", c.SID))
	}
	e.Children = append(e.Children, s)
	return e
}

// parseQuery reads what an Endpoint offers.
func parseQuery(e stanza.Element) (q query) {
	q.key = e.Child(dtcp.NSStock, "key").Text()
	for _, h := range e.All(dtcp.NSStock, "host") {
		q.hosts = append(q.hosts, h.Text())
	}
	s := e.Child(dtcp.NSSession, "session")
	if s.IsZero() {
		return q
	}
	q.service = s.Attr("service")
	q.print, _ = dtcp.ParseFingerprint(s.Child("urn:xmpp:jingle:apps:dtls:0", "fingerprint").Text())
	for _, c := range s.All(dtcp.NSSession, "candidate") {
		if a, err := netip.ParseAddrPort(net.JoinHostPort(c.Attr("addr"), c.Attr("port"))); err == nil {
			q.candidates = append(q.candidates, dtcp.Candidate{Type: dtcp.CandidateType(c.Attr("type")), Addr: a})
		}
	}
	return q
}

// offer is what an honest peer in the actor's place would send.
func (m *actor) offer(candidates ...dtcp.Candidate) query {
	return query{key: m.key, print: m.print, candidates: candidates}
}

// ask sends a request and returns what the answer offers.
func (m *actor) ask(to jid.JID, q query) (query, error) {
	a, err := m.session.RoundTrip(m.w.patience(), stanza.IQ{Header: stanza.Header{To: to}, Type: stanza.Set, Payload: q.element()})
	if err != nil {
		return query{}, err
	}
	return parseQuery(a.Payload), nil
}

// asked waits for a request and returns it, and what it offers.
func (m *actor) asked() (stanza.IQ, query) {
	m.w.t.Helper()
	select {
	case q := <-m.heard:
		return q, parseQuery(q.Payload)
	case <-m.w.patience().Done():
		m.w.t.Fatalf("nobody asks %v", m.jid())
		return stanza.IQ{}, query{}
	}
}

// answer sends a result.
func (m *actor) answer(to stanza.IQ, q query) {
	m.w.t.Helper()
	m.w.check(m.session.Send(m.w.patience(), to.Result(q.element())))
}

// giveUp says that the actor dials no more.
func (m *actor) giveUp(to jid.JID, key string) {
	m.w.t.Helper()
	m.w.check(m.session.Send(m.w.patience(), stanza.IQ{
		Header: stanza.Header{To: to, ID: wire.NewKey()}, Type: stanza.Failed,
		Payload: query{key: key}.element(), Error: stanza.NewError(stanza.ServiceUnavailable, ""),
	}))
}

// wantGiveUp checks that the actor was told so, once, for its key.
func (m *actor) wantGiveUp() {
	m.w.t.Helper()
	select {
	case g := <-m.gaveUp:
		if got := parseQuery(g.Payload); got.key != m.key || g.Error.Condition != stanza.ServiceUnavailable {
			m.w.t.Errorf("gave up with the key %q and %v, want %q", got.key, g.Error, m.key)
		}
	case <-m.w.patience().Done():
		m.w.t.Errorf("nobody gives up")
	}
}

// raw is a connection on which a story says what it likes.
type raw struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func newRaw(t *testing.T, c net.Conn) *raw { return &raw{t, c, bufio.NewReader(c)} }

// Read goes on where hear stopped.
func (k *raw) Read(p []byte) (int, error) { return k.r.Read(p) }

func (m *actor) dial(to netip.AddrPort) *raw {
	m.w.t.Helper()
	c, err := m.host.Dial(m.w.patience(), netip.AddrPort{}, to)
	m.w.check(err)
	m.w.t.Cleanup(func() { _ = c.Close() })
	return newRaw(m.w.t, c)
}

func (m *actor) accept() *raw {
	m.w.t.Helper()
	c, err := m.listener.Accept()
	m.w.check(err)
	m.w.t.Cleanup(func() { _ = c.Close() })
	return newRaw(m.w.t, c)
}

// acceptAll accepts everything, says nothing, and counts.
func (m *actor) acceptAll() (count func() int) {
	n := make(chan int, 1)
	n <- 0
	// Ends when the listener is closed, which the world waits for.
	go func() {
		for {
			c, err := m.listener.Accept()
			if err != nil {
				return
			}
			m.w.t.Cleanup(func() { _ = c.Close() })
			n <- <-n + 1
		}
	}()
	return func() int { i := <-n; n <- i; return i }
}

func (k *raw) say(s string) {
	k.t.Helper()
	if _, err := io.WriteString(k, s); err != nil {
		k.t.Errorf("saying %q: %v", s, err)
	}
}

// hear reads one line, "" if the connection ends.
func (k *raw) hear() string {
	_ = k.SetReadDeadline(time.Now().Add(5 * time.Minute))
	line, err := k.r.ReadString('\n')
	if err != nil {
		return ""
	}
	return line
}

func (k *raw) want(line string) {
	k.t.Helper()
	if got := k.hear(); got != line {
		k.t.Errorf("heard %q, want %q", got, line)
	}
}

// wantEnd checks that the other end says nothing more and that the connection
// ends after d.
func (k *raw) wantEnd(d time.Duration) {
	k.t.Helper()
	began := time.Now()
	_ = k.SetReadDeadline(began.Add(5 * time.Minute))
	rest, err := io.ReadAll(k.r)
	if after := time.Since(began); after != d || len(rest) > 0 {
		k.t.Errorf("%q and %v after %v, want the end after %v", rest, err, after, d)
	}
}

// tls is how an extended peer is configured (Section 2 of protocol.md, 3).
func (m *actor) tls() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{m.cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"dtcp"},
		ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true, InsecureSkipVerify: true,
	}
}

// secured is a raw connection inside TLS.
type secured struct {
	*raw
	tls *tls.Conn
}

// client and server go on under TLS; err is of the handshake.
func (k *raw) client(c *tls.Config) (*secured, error) { return secure(k.t, tls.Client(k, c)) }
func (k *raw) server(c *tls.Config) (*secured, error) { return secure(k.t, tls.Server(k, c)) }

func secure(t *testing.T, c *tls.Conn) (*secured, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	return &secured{newRaw(t, c), c}, c.HandshakeContext(ctx)
}

// meant is what a session is about in the eyes of a requester and a responder.
func meant(requester, responder jid.JID, requesterKey, responderKey, service string) wire.Session {
	return wire.Session{
		RequesterKey: requesterKey, ResponderKey: responderKey, Service: service,
		Requester: requester.String(), Responder: responder.String(),
	}
}

// proof of a session on this connection.
func (s *secured) proof(about wire.Session) string {
	s.t.Helper()
	p, err := about.Proof(s.tls.ConnectionState())
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// wantNothing checks that p accepts no stream for a while.
func (p *peer) wantNothing() {
	p.w.t.Helper()
	ctx, cancel := context.WithTimeout(p.w.t.Context(), time.Minute)
	defer cancel()
	c, err := p.Accept(ctx)
	if err == nil {
		p.w.t.Errorf("%s has a stream from %v: %+v", p.name, c.Peer(), c.Path())
		_ = c.Abort()
	} else if !errors.Is(err, context.DeadlineExceeded) {
		p.w.t.Errorf("%s accepts: %v", p.name, err)
	}
}

// noPath checks that a Dial failed for want of a path, and returns what became
// of each candidate, by its address and, if it is the dialer's own, a plus.
func (d dialed) noPath(t *testing.T) map[string]error {
	t.Helper()
	var e *dtcp.NoPathError
	if !errors.As(d.err, &e) {
		t.Fatalf("Dial: %v, %v; want a NoPathError", d.conn, d.err)
	}
	became := map[string]error{}
	for _, a := range e.Attempts {
		name := a.Candidate.Addr.String()
		if a.Candidate.Name != "" {
			name = a.Candidate.Name
		}
		if a.Ours {
			name = "+" + name
		}
		if a.Err == nil || became[name] != nil {
			t.Errorf("candidate %s is named twice, or without a reason: %v", name, e)
		}
		became[name] = a.Err
	}
	return became
}

// opens counts the SYNs to each address that anybody sends from now on.
func (w *world) opens() func(to netip.AddrPort) int {
	n := make(chan map[netip.AddrPort]int, 1)
	n <- map[netip.AddrPort]int{}
	w.t.Cleanup(w.net.Tap(func(p memnet.Packet) {
		if p.Opens() {
			m := <-n
			m[p.To]++
			n <- m
		}
	}))
	return func(to netip.AddrPort) int {
		m := <-n
		defer func() { n <- m }()
		if to.IsValid() {
			return m[to]
		}
		total := 0
		for _, i := range m {
			total += i
		}
		return total
	}
}

// listening is where p can be reached.
func (p *peer) listening() netip.AddrPort {
	p.w.t.Helper()
	addrs, err := p.host.Addrs()
	p.w.check(err)
	return netip.AddrPortFrom(addrs[0], p.Addr().Port())
}

// wantDialed waits for a Dial and checks when it returned.
func (w *world) wantDialed(result <-chan dialed, after time.Duration) dialed {
	w.t.Helper()
	select {
	case d := <-result:
		if d.after != after {
			w.t.Errorf("Dial returned after %v, want %v (%v)", d.after, after, d.err)
		}
		return d
	case <-w.patience().Done():
		w.t.Fatal("Dial does not return")
		return dialed{}
	}
}

// lying makes a server that changes offers on their way: lie is told whether
// one is a "set" or a "result".
func lying(lie func(kind string, q *query)) func(jid.JID, stanza.Element) []stanza.Element {
	return func(_ jid.JID, e stanza.Element) []stanza.Element {
		offer := e.Child(dtcp.NSStock, "query")
		if e.Name.Local == "iq" && e.Attr("type") != stanza.Failed && !offer.IsZero() {
			q := parseQuery(offer)
			lie(e.Attr("type"), &q)
			e.Children = []stanza.Element{q.element()}
		}
		return []stanza.Element{e}
	}
}

package rendezvous_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const (
	domain = "example.org"
	oneWay = 20 * time.Millisecond // between any client and the server
)

var (
	juliet = jid.MustParse("juliet@example.org")
	romeo  = jid.MustParse("romeo@example.org")
	nurse  = jid.MustParse("nurse@example.org")
)

// world is a server on the internet in memory, with the accounts juliet,
// romeo and nurse, whose password is their name twice.
type world struct {
	t       *testing.T
	net     *memnet.Net
	host    *memnet.Host
	server  *rendezvous.Server
	addr    netip.AddrPort
	roots   *x509.CertPool
	trace   rendezvous.Trace
	clients int
}

// accounts returns a server that is never served, for its accounts.
var accounts = sync.OnceValues(func() (*rendezvous.Server, error) {
	cert, err := rendezvous.SelfSigned(domain, time.Now())
	if err != nil {
		return nil, err
	}
	s, err := rendezvous.New(rendezvous.Config{Domain: domain, Certificate: cert, Iterations: 4096})
	if err != nil {
		return nil, err
	}
	for _, j := range []jid.JID{juliet, romeo, nurse} {
		if err := s.SetAccount(j.Local(), password(j.Local())); err != nil {
			return nil, err
		}
	}
	return s, nil
})

func password(name string) string { return name + name }

// inBubble runs a story in virtual time, with a server that is closed at its
// end.
func inBubble(t *testing.T, change func(*rendezvous.Config), story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: memnet.New(), addr: netip.MustParseAddrPort("192.0.2.1:5222")}
		w.host = w.net.Host("server", w.addr.Addr())
		cert, err := rendezvous.SelfSigned(domain, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.roots = x509.NewCertPool()
		w.roots.AddCert(cert.Leaf)
		config := rendezvous.Config{Domain: domain, Certificate: cert, Iterations: 4096, Trace: &w.trace}
		if change != nil {
			change(&config)
		}
		if w.server, err = rendezvous.New(config); err != nil {
			t.Fatal(err)
		}
		family, err := accounts()
		if err != nil {
			t.Fatal(err)
		}
		w.server.Adopt(family)
		l, err := w.host.Listen(t.Context(), w.addr)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		// Ends when the server is closed below, which is waited for there.
		go func() { served <- w.server.Serve(l) }()
		defer func() {
			w.server.Close()
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		}()
		story(t, w)
	})
}

// client is a peer that says what it is told to, and nothing else.
type client struct {
	t    *testing.T
	w    *world
	host *memnet.Host
	raw  net.Conn
	tls  *tls.Conn
	conn net.Conn // raw or tls
	in   *bufio.Reader
	xml  *xmlstream.Reader
	jid  jid.JID
	what string // the sentence of the story that is being told

	dripping sync.WaitGroup
}

// dial connects from a host of its own.
func (w *world) dial() *client {
	w.t.Helper()
	w.clients++
	h := w.net.Host(fmt.Sprintf("client %d", w.clients), netip.AddrFrom4([4]byte{198, 51, byte(100 + w.clients/250), byte(1 + w.clients%250)}))
	w.net.SetLatency(h, w.host, oneWay)
	conn, err := h.Dial(w.t.Context(), netip.AddrPort{}, w.addr)
	if err != nil {
		w.t.Fatalf("dial: %v", err)
	}
	w.t.Cleanup(func() { conn.Close() })
	c := w.clientOn(conn)
	c.host = h
	return c
}

func (w *world) clientOn(conn net.Conn) *client {
	return &client{t: w.t, w: w, raw: conn, conn: conn, in: bufio.NewReader(conn)}
}

// write writes text as it stands.
func (c *client) write(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatalf("%v: write: %v", c.jid, err)
	}
}

const header = "<?xml version='1.0'?><stream:stream to='example.org' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"

// open opens a stream and returns the features.
func (c *client) open() stanza.Element {
	c.t.Helper()
	c.write(header)
	c.header()
	return c.next()
}

func (c *client) header() {
	c.t.Helper()
	c.xml = xmlstream.NewReader(c.in, 1<<20)
	h, err := c.xml.Header()
	if err != nil {
		c.t.Fatalf("stream header: %v", err)
	}
	if h.From != jid.MustParse(domain) || h.Version != "1.0" || h.ID == "" || h.Content != stanza.NSClient {
		c.t.Fatalf("stream header: %+v", h)
	}
}

// next reads the next element.
func (c *client) next() stanza.Element {
	c.t.Helper()
	e, err := c.read()
	if err != nil {
		c.t.Fatalf("%v: read: %v", c.jid, err)
	}
	return e
}

func (c *client) read() (stanza.Element, error) {
	c.raw.SetReadDeadline(time.Now().Add(time.Hour))
	return c.xml.Next()
}

// want reads elements and compares them with what is wanted, in order: XML in
// which "*" stands for any value of an attribute or any text.
func (c *client) want(wanted ...string) {
	c.t.Helper()
	for _, w := range wanted {
		if got := c.next(); !match(got, parse(c.t, w)) {
			c.t.Fatalf("%v: %s\n got %v\nwant %v", c.jid, c.what, got, w)
		}
	}
}

// wantAnyOrder is want for elements whose order is not fixed.
func (c *client) wantAnyOrder(wanted ...string) {
	c.t.Helper()
	for range len(wanted) {
		got := c.next()
		i := slices.IndexFunc(wanted, func(w string) bool { return match(got, parse(c.t, w)) })
		if i < 0 {
			c.t.Fatalf("%v:\n got %v\nwant one of %q", c.jid, got, wanted)
		}
		wanted = slices.Delete(slices.Clone(wanted), i, i+1)
	}
}

// wantEnd reads the end of the stream: an error with the condition, if one is
// given, the closing tag, and the end of the connection.
func (c *client) wantEnd(condition string) {
	c.t.Helper()
	if condition != "" {
		if e := c.next(); !e.Is(stanza.NSStream, "error") || e.Child("urn:ietf:params:xml:ns:xmpp-streams", condition).IsZero() {
			c.t.Fatalf("%v:\n got %v\nwant a stream error %s", c.jid, e, condition)
		}
	}
	if e, err := c.read(); !errors.Is(err, xmlstream.ErrClosed) {
		c.t.Fatalf("%v: got %v, %v, want the closing tag", c.jid, e, err)
	}
	c.wantEOF()
}

func (c *client) wantEOF() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.in); err != nil || len(rest) > 0 {
		c.t.Fatalf("%v: at the end: %q, %v", c.jid, rest, err)
	}
}

func parse(t *testing.T, s string) stanza.Element {
	t.Helper()
	e, err := stanza.Parse("<s xmlns='jabber:client' xmlns:stream='" + stanza.NSStream + "'>" + s + "</s>")
	if err != nil || len(e.Children) != 1 {
		t.Fatalf("%q: %v", s, err)
	}
	return e.Children[0]
}

func match(got, want stanza.Element) bool {
	if got.Name != want.Name || len(got.Attrs) != len(want.Attrs) || len(got.Children) != len(want.Children) {
		return false
	}
	if got.Name.Local == "" {
		return got.Data == want.Data || want.Data == "*"
	}
	for _, w := range want.Attrs {
		if !slices.ContainsFunc(got.Attrs, func(a xml.Attr) bool {
			return a.Name == w.Name && (a.Value == w.Value || w.Value == "*")
		}) {
			return false
		}
	}
	for i := range got.Children {
		if !match(got.Children[i], want.Children[i]) {
			return false
		}
	}
	return true
}

// startTLS goes through STARTTLS, if the stream is in the clear, and to the
// features inside TLS.
func (c *client) startTLS() stanza.Element {
	c.t.Helper()
	c.open()
	c.write("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
	c.want("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
	return c.directTLS(&tls.Config{})
}

func (c *client) directTLS(config *tls.Config) stanza.Element {
	c.t.Helper()
	config.ServerName, config.RootCAs = domain, c.w.roots
	c.tls = tls.Client(c.raw, config)
	if err := c.tls.HandshakeContext(context.Background()); err != nil {
		c.t.Fatalf("TLS: %v", err)
	}
	c.conn = c.tls
	c.in = bufio.NewReader(c.conn)
	return c.open()
}

const saslNS = " xmlns='urn:ietf:params:xml:ns:xmpp-sasl'"

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// authPlain returns what the server says to a PLAIN login.
func (c *client) authPlain(authzid, name, password string) stanza.Element {
	c.t.Helper()
	c.write("<auth" + saslNS + " mechanism='PLAIN'>" + b64(authzid+"\x00"+name+"\x00"+password) + "</auth>")
	return c.next()
}

// authScram goes through a SCRAM login, checks that the server proves itself
// too, and returns the last thing the server said.
func (c *client) authScram(mechanism string, conversation *scram.ClientConversation) stanza.Element {
	c.t.Helper()
	step := func(challenge string) string {
		r, err := conversation.Step(challenge)
		if err != nil {
			c.t.Fatalf("%s: %v", mechanism, err)
		}
		return b64(r)
	}
	c.write("<auth" + saslNS + " mechanism='" + mechanism + "'>" + step("") + "</auth>")
	e := c.next()
	if e.Name.Local != "challenge" {
		return e
	}
	challenge, err := base64.StdEncoding.DecodeString(e.Text())
	if err != nil {
		c.t.Fatal(err)
	}
	c.write("<response" + saslNS + ">" + step(string(challenge)) + "</response>")
	e = c.next()
	if e.Name.Local == "success" {
		proof, err := base64.StdEncoding.DecodeString(e.Text())
		if err != nil {
			c.t.Fatal(err)
		}
		if step(string(proof)); !conversation.Valid() {
			c.t.Fatalf("%s: the server did not prove itself", mechanism)
		}
	}
	return e
}

// bind opens the stream after login and binds a resource.
func (c *client) bind(resource string) {
	c.t.Helper()
	f := c.open()
	if f.Child("urn:ietf:params:xml:ns:xmpp-bind", "bind").IsZero() {
		c.t.Fatalf("features after login: %v", f)
	}
	c.write("<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>" + resource + "</resource></bind></iq>")
	e := c.next()
	c.jid = jid.MustParse(e.Child("urn:ietf:params:xml:ns:xmpp-bind", "bind").Child("urn:ietf:params:xml:ns:xmpp-bind", "jid").Text())
	if e.Attr("type") != "result" || e.Attr("id") != "bind" || !c.jid.IsFull() {
		c.t.Fatalf("bind: %v", e)
	}
}

// login logs in by PLAIN over direct TLS, the shortest way.
func (w *world) login(j jid.JID, resource string) *client {
	w.t.Helper()
	c := w.dial()
	c.directTLS(&tls.Config{})
	if e := c.authPlain("", j.Local(), password(j.Local())); e.Name.Local != "success" {
		w.t.Fatalf("login of %v: %v", j, e)
	}
	c.bind(resource)
	return c
}

// present sends initial presence and reads its echo.
func (c *client) present() {
	c.t.Helper()
	c.write("<presence/>")
	c.want(fmt.Sprintf("<presence from='%s' to='%s'/>", c.jid, c.jid.Bare()))
}

// sync makes sure that all the client has sent was handled, and that nothing
// came in return.
func (c *client) sync() {
	c.t.Helper()
	c.write("<iq type='get' id='sync' to='example.org'><ping xmlns='urn:xmpp:ping'/></iq>")
	c.want(fmt.Sprintf("<iq type='result' id='sync' from='example.org' to='%s'/>", c.jid))
}

package xmpp_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const (
	nsTLS     = "urn:ietf:params:xml:ns:xmpp-tls"
	nsSASL    = "urn:ietf:params:xml:ns:xmpp-sasl"
	nsBind    = "urn:ietf:params:xml:ns:xmpp-bind"
	nsSession = "urn:ietf:params:xml:ns:xmpp-session"
	nsPing    = "urn:xmpp:ping"
	nsInfo    = "http://jabber.org/protocol/disco#info"
	nsRoster  = "jabber:iq:roster"

	starttlsFeature = "<starttls xmlns='" + nsTLS + "'><required/></starttls>"
	bindFeature     = "<bind xmlns='" + nsBind + "'/>"
)

var (
	romeo    = jid.MustParse("romeo@example.org/orchard")
	juliet   = jid.MustParse("juliet@example.org/balcony")
	password = "wherefore art thou"
)

// certificate makes a self-signed certificate that is valid both now and in
// virtual time, which begins in the year 2000.
func certificate(names []string, ed bool) tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "scripted server"},
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	var key any
	var public any
	if ed {
		pub, priv, err := ed25519.GenerateKey(nil)
		key, public = priv, pub
		must(err)
	} else {
		priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		key, public = priv, &priv.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	must(err)
	leaf, err := x509.ParseCertificate(der)
	must(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// stock is the certificate of example.org in most tests.
var stock = certificate([]string{"example.org", "*.wild.example.org", "localhost", "127.0.0.1", "::1"}, false)

func poolOf(c tls.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.Leaf)
	return p
}

// network stands for the network of a test: it hands the server's end of each
// connection that is dialed to the test, which plays the server.
type network struct {
	t     *testing.T
	conns chan *end

	mu      sync.Mutex
	refused map[string]bool
	dialed  []string
	clients []*end // the client's ends, in order
}

func newNetwork(t *testing.T) *network {
	return &network{t: t, conns: make(chan *end, 64), refused: make(map[string]bool)}
}

func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialed = append(n.dialed, address)
	if n.refused[address] || n.refused["*"] {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	client, server := newPair()
	n.clients = append(n.clients, client)
	n.conns <- server
	return client, nil
}

func (n *network) refuse(address string, yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refused[address] = yes
}

func (n *network) addresses() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.dialed...)
}

func (n *network) config() *xmpp.Config {
	return &xmpp.Config{JID: romeo, Password: password, Server: "server:5222", RootCAs: poolOf(stock), Dial: n.dial, Priority: -1}
}

// connection is the outcome of a Connect that runs beside the test.
type connection struct {
	s   *xmpp.Session
	err error
}

func start(ctx context.Context, c *xmpp.Config) <-chan connection {
	done := make(chan connection, 1)
	// Ends with Connect; the test takes the result.
	go func() {
		s, err := xmpp.Connect(ctx, c)
		done <- connection{s, err}
	}()
	return done
}

// peer is the server's side of one connection. Its methods fail the test when
// the client does something else than the story says.
type peer struct {
	t    *testing.T
	raw  *end
	conn net.Conn
	buf  *bufio.Reader
	r    *xmlstream.Reader
	cert tls.Certificate
	max  uint16 // version of TLS
	tls  *tls.Conn
	pass string // that the server knows; "": password
}

// accept waits for the next connection.
func (n *network) accept() *peer {
	n.t.Helper()
	select {
	case c := <-n.conns:
		return &peer{t: n.t, raw: c, conn: c, buf: bufio.NewReader(c), cert: stock}
	case <-time.After(10 * time.Minute):
		n.t.Fatal("nobody connects")
		return nil
	}
}

func (p *peer) send(format string, args ...any) {
	p.t.Helper()
	s := format
	if len(args) > 0 {
		s = fmt.Sprintf(format, args...)
	}
	if _, err := p.conn.Write([]byte(s)); err != nil {
		p.t.Fatalf("sending %.200q: %v", s, err)
	}
}

// wantStream reads the client's opening tag and answers it with features.
func (p *peer) wantStream(features string) xmlstream.Header {
	p.t.Helper()
	p.r = xmlstream.NewReader(p.buf, 0)
	p.patience()
	h, err := p.r.Header()
	if err != nil {
		p.t.Fatalf("stream header: %v", err)
	}
	p.send("%s<stream:features>%s</stream:features>", xmlstream.Header{From: jid.MustParse("example.org"), ID: "s1", Version: "1.0", Content: stanza.NSClient}.Append(nil), features)
	return h
}

func (p *peer) patience() { _ = p.raw.SetReadDeadline(time.Now().Add(10 * time.Minute)) }

// want reads an element and checks its name.
func (p *peer) want(space, local string) stanza.Element {
	p.t.Helper()
	p.patience()
	e, err := p.r.Next()
	if err != nil {
		p.t.Fatalf("waiting for <%s xmlns='%s'>: %v", local, space, err)
	}
	if !e.Is(space, local) {
		p.t.Fatalf("got %v, want <%s xmlns='%s'>", e, local, space)
	}
	return e
}

// wantIQ reads an iq with this payload.
func (p *peer) wantIQ(kind, space, local string) stanza.IQ {
	p.t.Helper()
	q, err := stanza.ParseIQ(p.want(stanza.NSClient, "iq"))
	if err != nil || q.Type != kind || (local != "" && !q.Payload.Is(space, local)) {
		p.t.Fatalf("got %v (%v), want an iq of type %s with <%s xmlns='%s'>", q.Element(stanza.NSClient), err, kind, local, space)
	}
	return q
}

// wantEnd reads the client's closing tag, or the end of the connection.
func (p *peer) wantEnd() {
	p.t.Helper()
	p.patience()
	e, err := p.r.Next()
	if err == nil {
		p.t.Fatalf("got %v, want the end of the stream", e)
	}
}

// secure does the server's side of the TLS handshake.
func (p *peer) secure() error {
	config := &tls.Config{Certificates: []tls.Certificate{p.cert}, MaxVersion: p.max, NextProtos: []string{"xmpp-client"}}
	p.patience()
	c := tls.Server(&buffered{p.conn, p.buf}, config)
	if err := c.Handshake(); err != nil {
		return err
	}
	p.tls, p.conn, p.buf = c, c, bufio.NewReader(c)
	return nil
}

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// starttls does the part in clear.
func (p *peer) starttls() {
	p.t.Helper()
	p.wantStream(starttlsFeature)
	p.want(nsTLS, "starttls")
	p.send("<proceed xmlns='" + nsTLS + "'/>")
	if err := p.secure(); err != nil {
		p.t.Fatalf("TLS: %v", err)
	}
}

func mechanisms(names ...string) string {
	var b strings.Builder
	b.WriteString("<mechanisms xmlns='" + nsSASL + "'>")
	for _, n := range names {
		b.WriteString("<mechanism>" + n + "</mechanism>")
	}
	return b.String() + "</mechanisms>"
}

// announce is the server's list of channel bindings (XEP-0440).
func announce(kinds ...string) string {
	var b strings.Builder
	b.WriteString("<sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'>")
	for _, k := range kinds {
		b.WriteString("<channel-binding type='" + k + "'/>")
	}
	return b.String() + "</sasl-channel-binding>"
}

// credentials is what a server stores for the password of the tests.
func credentials(hash scram.HashGeneratorFcn, password string) scram.CredentialLookup {
	return func(name string) (scram.StoredCredentials, error) {
		if name != romeo.Local() {
			return scram.StoredCredentials{}, errors.New("no such user")
		}
		c, err := hash.NewClientUnprepped(name, password, "")
		must(err)
		return c.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt of the sea", Iters: 4096})
	}
}

// wantSCRAM plays the server of SCRAM and returns the mechanism, the client's
// first message, and whether the server is content.
func (p *peer) wantSCRAM(plusOffered bool) (mechanism, first string, ok bool) {
	p.t.Helper()
	auth := p.want(nsSASL, "auth")
	mechanism = auth.Attr("mechanism")
	hash := scram.SHA256
	switch {
	case strings.HasPrefix(mechanism, "SCRAM-SHA-1"):
		hash = scram.SHA1
	case strings.HasPrefix(mechanism, "SCRAM-SHA-512"):
		hash = scram.SHA512
	}
	server, err := hash.NewServer(credentials(hash, cmp.Or(p.pass, password)))
	must(err)
	first = unbase64(p.t, auth.Text())
	conversation := server.NewConversation()
	if plusOffered {
		state := p.tls.ConnectionState()
		binding, err := scram.NewTLSExporterBinding(&state)
		if strings.HasPrefix(first, "p=tls-server-end-point") {
			sum, _ := scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{p.cert.Leaf}})
			binding, err = sum, nil
		}
		must(err)
		conversation = server.NewConversationWithChannelBinding(binding)
	}
	challenge, err := conversation.Step(first)
	if err != nil {
		p.send("<failure xmlns='" + nsSASL + "'><not-authorized/></failure>")
		return mechanism, first, false
	}
	p.send("<challenge xmlns='%s'>%s</challenge>", nsSASL, base64.StdEncoding.EncodeToString([]byte(challenge)))
	last, err := conversation.Step(unbase64(p.t, p.want(nsSASL, "response").Text()))
	if err != nil || !conversation.Valid() {
		p.send("<failure xmlns='" + nsSASL + "'><not-authorized/><text xml:lang='en'>No, thank you.</text></failure>")
		return mechanism, first, false
	}
	p.send("<success xmlns='%s'>%s</success>", nsSASL, base64.StdEncoding.EncodeToString([]byte(last)))
	return mechanism, first, true
}

func unbase64(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return string(b)
}

// authenticate opens the stream inside TLS and logs the client in.
func (p *peer) authenticate() {
	p.t.Helper()
	p.wantStream(mechanisms("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN") + announce("tls-exporter"))
	if _, _, ok := p.wantSCRAM(true); !ok {
		p.t.Fatal("SCRAM failed")
	}
}

// bind binds the resource that is asked for.
func (p *peer) bind() {
	p.t.Helper()
	p.wantStream(bindFeature)
	q := p.wantIQ(stanza.Set, nsBind, "bind")
	resource := q.Payload.Child(nsBind, "resource").Text()
	if resource == "" {
		resource = "picked by the server"
	}
	p.send("<iq type='result' id='%s'><bind xmlns='%s'><jid>%s/%s</jid></bind></iq>", q.ID, nsBind, romeo.Bare(), resource)
}

// login does all of it, up to the first presence.
func (p *peer) login() *peer {
	p.t.Helper()
	p.starttls()
	p.authenticate()
	p.bind()
	p.want(stanza.NSClient, "presence")
	return p
}

// goodbye plays the server's part in a Close, whose result is on done.
func (p *peer) goodbye(s *xmpp.Session) {
	p.t.Helper()
	done := make(chan error, 1)
	// Ends with Close, which is waited for below.
	go func() { done <- s.Close() }()
	if e := p.want(stanza.NSClient, "presence"); e.Attr("type") != "unavailable" {
		p.t.Errorf("last presence: %v", e)
	}
	p.patience()
	if _, err := p.r.Next(); !errors.Is(err, xmlstream.ErrClosed) {
		p.t.Errorf("end of the stream: %v", err)
	}
	p.send(xmlstream.End)
	if err := <-done; err != nil {
		p.t.Errorf("Close: %v", err)
	}
}

// loggedIn is a session and its server, right after the login.
func loggedIn(t *testing.T, n *network, c *xmpp.Config) (*xmpp.Session, *peer) {
	t.Helper()
	done := start(t.Context(), c)
	p := n.accept().login()
	got := <-done
	if got.err != nil {
		t.Fatalf("Connect: %v", got.err)
	}
	return got.s, p
}

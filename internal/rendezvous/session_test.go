package rendezvous_test

import (
	"context"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// connect logs in with package xmpp, from a host of its own in memory.
func (w *world) connect(t *testing.T, j jid.JID, change func(*xmpp.Config)) (*xmpp.Session, error) {
	w.clients++
	h := w.net.Host(fmt.Sprintf("session %d", w.clients), netip.AddrFrom4([4]byte{203, 0, 113, byte(w.clients)}))
	w.net.SetLatency(h, w.host, oneWay)
	c := &xmpp.Config{JID: j, Password: password(j.Local()), Server: w.addr.String(), RootCAs: w.roots, Dial: h.DialContext}
	if change != nil {
		change(c)
	}
	return xmpp.Connect(t.Context(), c)
}

// TestSessions is two users of package xmpp who ask each other, by STARTTLS and
// by direct TLS, in virtual time.
func TestSessions(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.friends()
		mechanisms := make(chan string, 8)
		w.trace.Login = func(_ jid.JID, _ net.Addr, mechanism string) { mechanisms <- mechanism }
		a, err := w.connect(t, juliet, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		direct, err := w.host.Listen(t.Context(), netip.AddrPortFrom(w.addr.Addr(), 5223))
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		// Ends with the listener, which is closed and waited for below.
		go func() { served <- w.server.Serve(direct) }()
		defer func() {
			direct.Close()
			if err := <-served; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Serve: %v", err)
			}
		}()
		var first byte // that b sends
		b, err := w.connect(t, romeo, func(c *xmpp.Config) {
			c.JID = jid.MustParse("romeo@example.org/orchard")
			c.Server = direct.Addr().String()
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				return firstWrite{conn, &first}, err
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if first != 0x16 {
			t.Errorf("the first byte to a port for direct TLS is %#x", first)
		}
		asks(t, a, b, 4*oneWay)
		asks(t, b, a, 4*oneWay)
		here, err := a.Resources(t.Context(), romeo)
		if err != nil || len(here) != 1 || here[0] != b.LocalAddr() {
			t.Errorf("resources of romeo: %v, %v", here, err)
		}
		contacts, err := b.Roster(t.Context())
		if err != nil || len(contacts) != 1 || contacts[0].JID != juliet || contacts[0].Subscription != "both" {
			t.Errorf("roster of romeo: %v, %v", contacts, err)
		}
		if _, err := a.Info(t.Context(), b.LocalAddr()); err != nil {
			t.Error(err)
		}
		if info, err := a.Info(t.Context(), juliet.Server()); err != nil || !info.Has("urn:xmpp:ping") {
			t.Errorf("disco of the server: %v, %v", info, err)
		}
		_, err = a.RoundTrip(t.Context(), stanza.IQ{Header: stanza.Header{To: jid.MustParse("a@elsewhere.example/x")}, Type: stanza.Get, Payload: stanza.New("u:q", "q")})
		var refused *stanza.Error
		if !errors.As(err, &refused) || refused.Condition != stanza.RemoteServerNotFound {
			t.Errorf("another domain: %v", err)
		}
		// A login of the same resource ends the first, and it stays away.
		again, err := w.connect(t, romeo, func(c *xmpp.Config) { c.JID = b.LocalAddr() })
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		<-b.Done()
		if !errors.Is(b.Err(), xmpp.ErrConflict) {
			t.Errorf("the replaced session: %v", b.Err())
		}
		asks(t, a, again, 4*oneWay)
		for range 3 {
			if m := <-mechanisms; m != "SCRAM-SHA-256-PLUS" {
				t.Errorf("logged in by %s", m)
			}
		}
		_, err = w.connect(t, nurse, func(c *xmpp.Config) { c.Password = "wrong" })
		var denied *xmpp.AuthError
		if !errors.As(err, &denied) || denied.Condition != "not-authorized" {
			t.Errorf("wrong password: %v", err)
		}
		// A whole day of silence does not part them.
		<-time.After(24 * time.Hour) // virtual
		asks(t, a, again, 4*oneWay)
	})
}

// firstWrite notes the first byte of the first write.
type firstWrite struct {
	net.Conn
	first *byte
}

func (c firstWrite) Write(p []byte) (int, error) {
	if *c.first == 0 {
		*c.first = p[0]
	}
	return c.Conn.Write(p)
}

// asks has one session ask the other.
func asks(t *testing.T, from, to *xmpp.Session, want time.Duration) {
	t.Helper()
	stop := to.HandleIQ(xml.Name{Space: "u:q", Local: "question"}, func(q stanza.IQ) {
		if q.From != from.LocalAddr() {
			t.Errorf("question from %v, want %v", q.From, from.LocalAddr())
		}
		if err := to.Send(context.Background(), q.Result(stanza.New("u:q", "answer"))); err != nil {
			t.Error(err)
		}
	})
	defer stop()
	start := time.Now()
	a, err := from.RoundTrip(t.Context(), stanza.IQ{Header: stanza.Header{To: to.LocalAddr()}, Type: stanza.Get, Payload: stanza.New("u:q", "question")})
	if err != nil || !a.Payload.Is("u:q", "answer") {
		t.Errorf("answer: %v, %v", a, err)
	}
	if d := time.Since(start); want > 0 && d != want {
		t.Errorf("the answer took %v, want %v", d, want)
	}
}

// TestLoopback is the same over the real network stack.
func TestLoopback(t *testing.T) {
	cert, err := rendezvous.SelfSigned("localhost", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := rendezvous.New(rendezvous.Config{Domain: "localhost", Certificate: cert, Iterations: 4096})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	served := make(chan error, 2)
	var addrs []string
	for range 2 { // listeners
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, l.Addr().String())
		// Ends when the server is closed at the end of the test.
		go func() { served <- s.Serve(l) }()
	}
	var sessions []*xmpp.Session
	for i, name := range []string{"juliet", "romeo"} {
		if err := s.SetAccount(name, "secret"); err != nil {
			t.Fatal(err)
		}
		j, err := jid.New(name, "localhost", "")
		if err != nil {
			t.Fatal(err)
		}
		session, err := xmpp.Connect(t.Context(), &xmpp.Config{JID: j, Password: "secret", Server: addrs[i], RootCAs: roots, NoReconnect: true})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		sessions = append(sessions, session)
	}
	asks(t, sessions[0], sessions[1], 0)
	asks(t, sessions[1], sessions[0], 0)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, session := range sessions {
		<-session.Done()
		var end *xmpp.StreamError
		if !errors.As(session.Err(), &end) || end.Condition != "system-shutdown" {
			t.Errorf("session ended by %v", session.Err())
		}
	}
	for range 2 {
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

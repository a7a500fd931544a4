package xmpp_test

import (
	"context"
	"crypto/sha1"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

var relay = jid.MustParse("relay.example.org")

func (n *network) component() *xmpp.ComponentConfig {
	return &xmpp.ComponentConfig{Domain: relay, Secret: "s3kr1t", Server: "server:5347", Dial: n.dial}
}

// wantHandshake plays the server of a component up to its proof, with the
// stream id of XEP-0114, example 2, and returns the proof.
func (p *peer) wantHandshake() string {
	p.t.Helper()
	p.r = xmlstream.NewReader(p.buf, 0)
	p.patience()
	h, err := p.r.Header()
	if want := (xmlstream.Header{To: relay, Content: stanza.NSComponent}); err != nil || h != want {
		p.t.Fatalf("stream header %+v, %v, want %+v", h, err, want)
	}
	p.send("%s", xmlstream.Header{From: relay, ID: "3BF96D32", Content: stanza.NSComponent}.Append(nil))
	return p.want(stanza.NSComponent, "handshake").Text()
}

// component lets a component in.
func (p *peer) component() *peer {
	p.t.Helper()
	if got, want := p.wantHandshake(), fmt.Sprintf("%x", sha1.Sum([]byte("3BF96D32s3kr1t"))); got != want {
		p.t.Fatalf("handshake %q, want %q", got, want)
	}
	p.send("<handshake/>")
	return p
}

// wantComponentIQ reads an iq of a component, and checks that it has both
// addresses, as it must.
func (p *peer) wantComponentIQ(kind, from, to string) stanza.IQ {
	p.t.Helper()
	q, err := stanza.ParseIQ(p.want(stanza.NSComponent, "iq"))
	if err != nil || q.Type != kind || q.From.String() != from || q.To.String() != to {
		p.t.Fatalf("got %v (%v), want an iq of type %s from %s to %s", q.Element(stanza.NSComponent), err, kind, from, to)
	}
	return q
}

// farewell plays the server's part in the Close of a component.
func (p *peer) farewell(s *xmpp.Session) {
	p.t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Close() }() // waited for below
	p.patience()
	if e, err := p.r.Next(); !errors.Is(err, xmlstream.ErrClosed) {
		p.t.Errorf("got %v, %v, want the end of the stream", e, err)
	}
	p.send(xmlstream.End)
	if err := <-done; err != nil || !errors.Is(s.Err(), xmpp.ErrClosed) {
		p.t.Errorf("Close: %v, then %v", err, s.Err())
	}
}

func newComponent(t *testing.T, c *xmpp.ComponentConfig) *xmpp.Session {
	t.Helper()
	s, err := xmpp.NewComponent(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestComponent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.component()
		var shown strings.Builder
		c.Trace = &xmpp.Trace{Element: func(_ bool, xml string) { shown.WriteString(xml) }}
		s := newComponent(t, c)
		got := make(chan stanza.IQ, 8)
		s.HandleIQ(xml.Name{Space: "u:q", Local: "q"}, func(q stanza.IQ) { got <- q })
		p := n.accept().component()
		if err := s.WaitLogin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.LocalAddr() != relay {
			t.Errorf("LocalAddr %v, want %v", s.LocalAddr(), relay)
		}

		// It is asked, at two addresses of its domain.
		for _, at := range []string{"relay.example.org", "x@relay.example.org/y"} {
			p.send("<iq type='get' id='1' from='%s' to='%s'><q xmlns='u:q'/></iq>", juliet, at)
			q := <-got
			if err := s.Send(t.Context(), q.Result(stanza.Element{})); err != nil {
				t.Fatal(err)
			}
			if a := p.wantComponentIQ(stanza.Result, at, juliet.String()); a.ID != "1" {
				t.Errorf("answer %v", a)
			}
		}
		// It asks.
		done := make(chan stanza.IQ, 1)
		go func() { // ends with RoundTrip, which is answered below
			a, _ := s.RoundTrip(t.Context(), stanza.IQ{Header: stanza.Header{To: juliet, From: romeo}, Type: stanza.Get, Payload: stanza.New("u:q", "q")})
			done <- a
		}()
		q := p.wantComponentIQ(stanza.Get, relay.String(), juliet.String())
		p.send("<iq type='result' id='%s' from='%s' to='%s'><q xmlns='u:q'/></iq>", q.ID, romeo, relay)
		if stray := <-got; stray.From != romeo {
			t.Errorf("an answer of somebody else: %v", stray)
		}
		p.send("<iq type='result' id='%s' from='%s' to='%s'><yes xmlns='u:q'/></iq>", q.ID, juliet, relay)
		if a := <-done; !a.Payload.Is("u:q", "yes") {
			t.Errorf("answer %v", a)
		}
		// It may take everything, and the particular goes before the general.
		all := make(chan stanza.IQ, 1)
		stop := s.HandleIQ(xml.Name{}, func(q stanza.IQ) { all <- q })
		p.send("<iq type='get' id='2' from='%s' to='%s'><ping xmlns='urn:xmpp:ping'/></iq>", juliet, relay)
		if q := <-all; !q.Payload.Is(nsPing, "ping") {
			t.Errorf("asked %v", q)
		}
		p.send("<iq type='get' id='3' from='%s' to='%s'><q xmlns='u:q'/></iq>", juliet, relay)
		if q := <-got; q.ID != "3" {
			t.Errorf("asked %v", q)
		}
		stop()
		p.farewell(s)
		if strings.Contains(shown.String(), "s3kr1t") || !strings.Contains(shown.String(), "<handshake>[hidden]</handshake>") {
			t.Errorf("the trace shows %s", shown.String())
		}
	})
}

// TestComponentAnswersAll: everybody who asks gets one answer, from the address
// that was asked; nobody can end the login by what is sent.
func TestComponentAnswersAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.component()
		c.Features = []string{"u:feature"}
		s := newComponent(t, c)
		s.HandleIQ(xml.Name{Space: "u:q", Local: "q"}, func(q stanza.IQ) {}) // is given no results of others
		p := n.accept().component()
		const ask = "<iq type='get' id='1' from='juliet@example.org/balcony' to='%s'>%s</iq>"
		for _, tt := range []struct{ name, to, payload, want string }{
			{"ping", "relay.example.org", "<ping xmlns='urn:xmpp:ping'/>", "type='result'"},
			{"disco", "relay.example.org", "<query xmlns='http://jabber.org/protocol/disco#info'/>", "<feature var='u:feature'/>"},
			{"what nobody handles", "relay.example.org", "<a xmlns='u:a'/>", "<service-unavailable "},
			{"somebody at the domain", "romeo@relay.example.org/x", "<a xmlns='u:a'/>", "<service-unavailable "},
			{"the roster, as if a client", "relay.example.org", "<query xmlns='jabber:iq:roster'><item jid='a@b'/></query>", "<service-unavailable "},
			{"nothing", "relay.example.org", "", "<bad-request "},
			{"depths", "relay.example.org", strings.Repeat("<a>", 50) + strings.Repeat("</a>", 50), "<bad-request "},
			{"masses", "relay.example.org", "<a>" + strings.Repeat("<b/>", stanza.MaxNodes) + "</a>", "<bad-request "},
			{"bulk", "relay.example.org", "<a>" + strings.Repeat("&quot;", 512<<10) + "</a>", "<service-unavailable "},
		} {
			p.send(ask, tt.to, tt.payload)
			if a := p.wantComponentIQ(p.kind(tt.want), tt.to, juliet.String()); a.ID != "1" || !strings.Contains(a.Element(stanza.NSComponent).String(), tt.want) {
				t.Errorf("%s: answered %v, want %s", tt.name, a.Element(stanza.NSComponent), tt.want)
			}
		}
		// None of these has an answer; the ping behind them shows it.
		p.send("<iq type='get' id='2' to='relay.example.org'><a xmlns='u:a'/></iq>")
		p.send("<iq type='get' id='3' from='@' to='relay.example.org'><a xmlns='u:a'/></iq>")
		p.send("<iq type='result' id='4' from='juliet@example.org/balcony' to='relay.example.org'><a xmlns='u:a'/></iq>")
		p.send("<presence from='juliet@example.org/balcony' to='relay.example.org'/>")
		p.send("<presence type='subscribe' from='juliet@example.org' to='relay.example.org'/>")
		p.send("<message from='juliet@example.org/balcony' to='relay.example.org'><body>hello</body></message>")
		p.send(ask, relay, "<ping xmlns='urn:xmpp:ping'/>")
		p.wantComponentIQ(stanza.Result, relay.String(), juliet.String())

		none := stanza.IQ{Type: stanza.Get, Payload: stanza.New("u:q", "q")}
		if err := s.Send(t.Context(), none); err == nil {
			t.Error("sent to nobody")
		}
		if _, err := s.RoundTrip(t.Context(), none); err == nil {
			t.Error("asked nobody")
		}
		if _, err := s.Roster(t.Context()); err == nil {
			t.Error("a component has a roster")
		}
		if err := s.SendPresence(t.Context(), stanza.Presence{}); err == nil {
			t.Error("a component has presence")
		}
		p.farewell(s)
	})
}

// kind is the type of an answer that holds this.
func (p *peer) kind(want string) string {
	if strings.HasSuffix(want, "-unavailable ") || strings.HasSuffix(want, "-request ") {
		return stanza.Failed
	}
	return stanza.Result
}

// TestComponentRefused: what the server has against a login is told in words,
// and it is tried again.
func TestComponentRefused(t *testing.T) {
	const streams = " xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>"
	for _, tt := range []struct{ said, want, condition string }{
		{"<stream:error><not-authorized" + streams + "</stream:error>", "wrong secret", ""},
		{"<stream:error><host-unknown" + streams + "</stream:error>", "no component relay.example.org", "host-unknown"},
		{"<stream:error><conflict" + streams + "<text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>Already\n</text></stream:error>",
			"another program is connected as component relay.example.org (the server says conflict: \"Already\\n\")", "conflict"},
		{"<stream:error><invalid-namespace" + streams + "</stream:error>", "not one for components", "invalid-namespace"},
		{"<stream:error><system-shutdown" + streams + "</stream:error>", "ended the stream (it says system-shutdown)", "system-shutdown"},
		{"<iq/>", "<iq/> where", ""},
		{xmlstream.End, "closed", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			c := n.component()
			failed := make(chan error, 1)
			c.Trace = &xmpp.Trace{Retrying: func(err error, in time.Duration) { failed <- err }}
			s := newComponent(t, c)
			p := n.accept()
			p.wantHandshake()
			p.send("%s", tt.said)
			err := <-failed
			var auth *xmpp.AuthError
			var stream *xmpp.StreamError
			if !strings.Contains(err.Error(), tt.want) || errors.As(err, &auth) != (tt.want == "wrong secret") ||
				errors.As(err, &stream) != (tt.condition != "") || stream != nil && stream.Condition != tt.condition {
				t.Errorf("%s: %v, want %q", tt.said, err, tt.want)
			}
			soon, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			var out *xmpp.LoggedOutError
			if err := s.WaitLogin(soon); !errors.As(err, &out) || out.Lost == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: WaitLogin: %v", tt.said, err)
			}
			// The server has been mended.
			p = n.accept().component()
			if err := s.WaitLogin(t.Context()); err != nil {
				t.Errorf("%s: then %v", tt.said, err)
			}
			p.farewell(s)
		})
	}
}

// recordedComponents is what servers said to a component with the secret of
// these tests, and to others: stream header, answer to the handshake.
var recordedComponents = []struct{ server, header, answer, want string }{
	{"Prosody 0.12.3",
		"<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' from='relay.example.org' xmlns='jabber:component:accept' xml:lang='en' id='7d5a6f2d-4c24-4664-b399-f14655d9467c'>",
		"<handshake/>", ""},
	{"Prosody 0.12.3, wrong secret",
		"<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' from='relay.example.org' xmlns='jabber:component:accept' xml:lang='en' id='b4eac590-44e4-4f42-bc9c-0ab4c028c4bc'>",
		"<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>Given token does not match calculated token</text></stream:error></stream:stream>",
		"wrong secret"},
	{"Prosody 0.12.3, unknown component",
		"<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:component:accept' version='1.0' id=''><stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>" +
			"<text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>relay.example.org does not match any configured external components</text></stream:error></stream:stream>",
		"", "no component relay.example.org in its configuration"},
	{"Prosody 0.12.3, second of its name",
		"<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' from='relay.example.org' xmlns='jabber:component:accept' xml:lang='en' id='7d5a6f2d-4c24-4664-b399-f14655d9467c'>",
		"<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>Component already connected</text></stream:error></stream:stream>",
		"another program is connected"},
	{"ejabberd 23.01",
		"<?xml version='1.0'?><stream:stream id='1855741403406201082' xml:lang='en' xmlns:stream='http://etherx.jabber.org/streams' from='relay.example.org' xmlns='jabber:component:accept'>",
		"<handshake/>", ""},
	{"ejabberd 23.01, wrong secret or unknown component",
		"<?xml version='1.0'?><stream:stream id='1163965034827876124' xml:lang='en' xmlns:stream='http://etherx.jabber.org/streams' from='relay.example.org' xmlns='jabber:component:accept'>",
		"<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>",
		"wrong secret"},
}

func TestComponentOfServers(t *testing.T) {
	for _, tt := range recordedComponents {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			c := n.component()
			c.NoReconnect = true
			s := newComponent(t, c)
			p := n.accept()
			p.r = xmlstream.NewReader(p.buf, 0)
			if _, err := p.r.Header(); err != nil {
				t.Fatal(err)
			}
			p.send("%s", tt.header)
			if tt.answer != "" {
				p.want(stanza.NSComponent, "handshake")
				p.send("%s", tt.answer)
			}
			if tt.want != "" {
				p.raw.Close()
			}
			err := s.WaitLogin(t.Context())
			switch {
			case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%s: %v, want %q", tt.server, err, tt.want)
			case tt.want == "":
				p.raw.Close()
			}
			s.Close()
		})
	}
}

// TestComponentForEver: the server is not there yet, comes, and goes.
func TestComponentForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.refuse("*", true)
		s := newComponent(t, n.component())
		pass(24 * time.Hour)
		if tries := len(n.addresses()); tries < 24*60*60/121 || tries > 24*60*60/75 {
			t.Errorf("%d attempts in a day", tries)
		}
		n.refuse("*", false)
		p := n.accept().component()
		if err := s.WaitLogin(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.send("<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>" + xmlstream.End)
		p = n.accept().component()
		// Silence: it asks itself, by way of the server.
		start := time.Now()
		q := p.wantComponentIQ(stanza.Get, relay.String(), relay.String())
		if d := time.Since(start); d != xmpp.IdleTimeout || !q.Payload.Is(nsPing, "ping") {
			t.Errorf("%v after %v, want a ping after %v", q, d, xmpp.IdleTimeout)
		}
		p.send("%s", q.Element(stanza.NSComponent).Append(nil, stanza.NSComponent))
		p.wantComponentIQ(stanza.Result, relay.String(), relay.String())
		p.wantComponentIQ(stanza.Get, relay.String(), relay.String())
		if d := time.Since(start); d != 2*xmpp.IdleTimeout {
			t.Errorf("pinged again after %v", d)
		}
		// Not answered: the login is lost, and there is another.
		p = n.accept().component()
		if err := s.WaitLogin(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.farewell(s)
	})
}

// TestComponentWithoutReconnect: a program that checks a configuration wants one
// answer.
func TestComponentWithoutReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.refuse("*", true)
		c := n.component()
		c.NoReconnect = true
		s := newComponent(t, c)
		err := s.WaitLogin(t.Context())
		var failed *xmpp.ConnectError
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), "server:5347 (component): ") {
			t.Errorf("WaitLogin: %v", err)
		}
		s.Close()
	})
}

func TestComponentConfig(t *testing.T) {
	for _, c := range []xmpp.ComponentConfig{
		{},
		{Domain: romeo.Bare(), Secret: "s", Server: "localhost"},
		{Domain: jid.MustParse("example.org/x"), Secret: "s", Server: "localhost"},
		{Domain: relay, Server: "localhost"},
		{Domain: relay, Secret: "s"},
		{Domain: relay, Secret: "s", Server: "localhost:0"},
	} {
		if s, err := xmpp.NewComponent(&c); err == nil {
			s.Close()
			t.Errorf("%+v was taken", c)
		}
	}
}

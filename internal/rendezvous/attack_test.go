package rendezvous_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const bomb = `<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>`

// TestBadStreams says what no client says, at every stage of a stream, and
// wants the stream to end with the condition; the server must serve others
// afterwards.
func TestBadStreams(t *testing.T) {
	endless := strings.Repeat("x", 2*stanza.MaxBytes)
	clear := func(w *world) *client { return w.dial() }
	opened := func(w *world) *client { c := w.dial(); c.open(); return c }
	secure := func(w *world) *client { c := w.dial(); c.directTLS(&tls.Config{}); return c }
	loggedIn := func(w *world) *client {
		c := secure(w)
		c.authPlain("", "juliet", password("juliet"))
		c.open()
		return c
	}
	bound := func(w *world) *client { return w.login(juliet, "balcony") }
	replaceHeader := func(old, new string) string { return strings.Replace(header, old, new, 1) }
	tests := []struct {
		name  string
		stage func(*world) *client
		say   string
		want  string // condition; "" is an end without a word
	}{
		{"not a stream", clear, "<html>", "bad-format"},
		{"entity bomb", clear, "<?xml version='1.0'?>" + bomb + header, "restricted-xml"},
		{"endless header", clear, "<stream:stream " + endless, "policy-violation"},
		{"endless white space", clear, strings.Repeat(" ", 2*stanza.MaxBytes), "policy-violation"},
		{"another domain", clear, replaceHeader("example.org", "elsewhere.example"), "host-unknown"},
		{"a server", clear, replaceHeader("jabber:client", "jabber:server"), "invalid-namespace"},
		{"before RFC 3920", clear, replaceHeader("version='1.0' xmlns=", "xmlns="), "unsupported-version"},
		{"a malformed address", clear, replaceHeader("example.org", "@"), "bad-format"},
		{"login in the clear", opened, "<auth" + saslNS + " mechanism='PLAIN'>" + b64("\x00juliet\x00julietjuliet") + "</auth>", "not-authorized"},
		{"stanza in the clear", opened, "<message to='romeo@example.org'/>", "not-authorized"},
		{"stanza behind starttls", opened, "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><message to='romeo@example.org'/>", "policy-violation"},
		{"white space behind starttls", opened, "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/> ", "policy-violation"},
		{"stanza before login", secure, "<message to='romeo@example.org'/>", "not-authorized"},
		{"bind before login", secure, "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>", "not-authorized"},
		{"starttls inside TLS", secure, "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", "not-authorized"},
		{"endless login", secure, "<auth" + saslNS + ">" + endless, "policy-violation"},
		{"stanza in place of a response", secure, "<auth" + saslNS + " mechanism='PLAIN'/><message/>", "*"},
		{"message before bind", loggedIn, "<message to='romeo@example.org'/>", "not-authorized"},
		{"iq before bind", loggedIn, "<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>", "not-authorized"},
		{"malformed bind", loggedIn, "<iq type='get' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>", "not-authorized"},
		{"DTD between stanzas", bound, bomb, "restricted-xml"},
		{"entity in a stanza", bound, "<message><body>&a;</body></message>", "not-well-formed"},
		{"comment", bound, "<message><!-- hello --></message>", "restricted-xml"},
		{"processing instruction", bound, "<?php ?>", "restricted-xml"},
		{"crossed tags", bound, "<message><a><b></a></b></message>", "not-well-formed"},
		{"deep", bound, strings.Repeat("<a>", 100), "restricted-xml"},
		{"many nodes", bound, "<message>" + strings.Repeat("<b/>", stanza.MaxNodes), "policy-violation"},
		{"endless stanza", bound, "<message><body>" + endless, "policy-violation"},
		{"text between stanzas", bound, "hello<", "restricted-xml"},
		{"unknown stanza", bound, "<hello/>", "unsupported-stanza-type"},
		{"stanza of a server", bound, "<message xmlns='jabber:server'/>", "unsupported-stanza-type"},
		{"half a stanza, and the end", bound, "<message></stream:stream>", "not-well-formed"},
		{"the end", bound, "</stream:stream>", ""},
		{"the end before login", secure, "</stream:stream>", ""},
		{"the end in the clear", opened, "</stream:stream>", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				c := tt.stage(w)
				start := time.Now()
				wrote := make(chan struct{})
				go func() { // ends when the server has taken it in, or has closed; waited for below
					defer close(wrote)
					io.WriteString(c.conn, tt.say)
				}()
				if c.xml == nil {
					c.header()
				}
				if tt.want == "*" {
					c.next()
					tt.want = "not-authorized"
				}
				c.wantEnd(tt.want)
				<-wrote
				if d := time.Since(start); d > 2*time.Second {
					t.Errorf("the end took %v", d)
				}
				w.login(romeo, "orchard").sync()
			})
		})
	}
}

// TestNotTLS: what follows starttls, or comes with the first byte of TLS, is
// no TLS; nothing is said to that.
func TestNotTLS(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		var refused atomic.Int32
		w.trace.Refused = func(net.Addr, error) { refused.Add(1) }
		c := w.dial()
		c.open()
		c.write("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
		c.want("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
		// The one who injects is late, but before the client's TLS.
		c.write("<iq type='get' id='1'/>")
		if rest, err := io.ReadAll(c.in); len(rest) > 64 || strings.Contains(string(rest), "<") {
			t.Errorf("got %q, %v", rest, err)
		}
		c = w.dial()
		c.write("GET / HTTP/1.1\r\n\r\n")
		c.wantEOF()
		c = w.dial()
		c.write("\x16garbage that is not TLS at all")
		if rest, err := io.ReadAll(c.in); len(rest) > 64 || strings.Contains(string(rest), "<") {
			t.Errorf("got %q, %v", rest, err)
		}
		c = w.dial()
		c.tls = tls.Client(c.raw, &tls.Config{ServerName: domain, RootCAs: w.roots, NextProtos: []string{"http/1.1"}})
		if err := c.tls.Handshake(); err == nil {
			t.Error("a client of HTTP was let in")
		}
		c = w.dial()
		c.tls = tls.Client(c.raw, &tls.Config{ServerName: domain, RootCAs: w.roots, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
		if err := c.tls.Handshake(); err == nil {
			t.Error("TLS 1.1 was let in")
		}
		synctest.Wait()
		if n := refused.Load(); n != 5 {
			t.Errorf("%d refused", n)
		}
	})
}

// TestSlowLogin: a login has 30 s, however it spends them.
func TestSlowLogin(t *testing.T) {
	for name, stall := range map[string]func(c *client){
		"says nothing":          func(*client) {},
		"one byte at a time":    func(c *client) { c.drip(header) },
		"half a header":         func(c *client) { c.write(header[:20]) },
		"nothing but the hello": func(c *client) { c.open() },
		"stalls in TLS":         func(c *client) { c.write("\x16\x03\x01\x02\x00\x01") },
		"stalls before login":   func(c *client) { c.directTLS(&tls.Config{}) },
		"stalls in SCRAM": func(c *client) {
			c.directTLS(&tls.Config{})
			c.write("<auth" + saslNS + " mechanism='SCRAM-SHA-1'>" + b64("n,,n=juliet,r=abc") + "</auth>")
		},
		"stalls before bind": func(c *client) {
			c.directTLS(&tls.Config{})
			c.authPlain("", "juliet", password("juliet"))
			c.open()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				c := w.dial()
				start := time.Now().Add(-oneWay) // accepted half a round trip ago, half to come
				stall(c)
				if n, err := io.Copy(io.Discard, c.in); n > 3000 || (err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "reset")) {
					t.Errorf("read %d bytes, %v", n, err)
				}
				c.raw.Close()
				c.dripping.Wait()
				if d := time.Since(start); d < 30*time.Second || d > 33*time.Second {
					t.Errorf("closed after %v", d)
				}
				if n := w.server.Guests(); n != 0 {
					t.Errorf("%d guests are left", n)
				}
			})
		})
	}
}

// drip writes one byte a second for ever.
func (c *client) drip(text string) {
	// Ends with the connection.
	c.dripping.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := 0; ; i++ {
			<-tick.C
			if _, err := io.WriteString(c.conn, text[i%len(text):i%len(text)+1]); err != nil {
				return
			}
		}
	})
}

func TestCrowds(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.server.SetLimits(rendezvous.Limits{Guests: 5, GuestsPerAddress: 3})
		var refused atomic.Int32
		w.trace.Refused = func(net.Addr, error) { refused.Add(1) }
		// Three from one address, as many as may be.
		h := w.net.Host("crowd", netip.MustParseAddr("198.51.100.1"))
		w.net.SetLatency(h, w.host, oneWay)
		from := func() *client {
			conn, err := h.Dial(t.Context(), netip.AddrPort{}, w.addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return w.clientOn(conn)
		}
		var crowd []*client
		for range 3 {
			c := from()
			c.open()
			crowd = append(crowd, c)
		}
		from().wantEOF()
		synctest.Wait()
		if n := refused.Load(); n != 1 {
			t.Errorf("%d refused", n)
		}
		// Others find room, up to the limit for all.
		w.dial().open()
		w.dial().open()
		w.dial().wantEOF()
		// Who leaves, makes room; who has logged in, too.
		crowd[0].raw.Close()
		crowd[1].write("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
		crowd[1].next()
		crowd[1].directTLS(&tls.Config{})
		crowd[1].authPlain("", "juliet", password("juliet"))
		crowd[1].bind("")
		synctest.Wait()
		if n := w.server.Guests(); n != 3 {
			t.Errorf("%d guests", n)
		}
		from().open()
	})
}

// TestSlowReader: one client stops reading while another sends it much. The
// rest are served as before; what is kept is bounded, and the sender is told of
// what is not; the reader finds all of what was kept, and is still there.
func TestSlowReader(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		slow, a, c := w.login(romeo, "orchard"), w.login(juliet, "balcony"), w.login(nurse, "kitchen")
		body := strings.Repeat("x", 60000)
		const all = 60
		var kept []string
		for i := range all {
			id := fmt.Sprint(i)
			a.write("<message to='romeo@example.org/orchard' id='" + id + "'><body>" + body + "</body></message>")
			start := time.Now()
			a.write("<message to='nurse@example.org/kitchen' id='1'/>")
			c.want("<message to='nurse@example.org/kitchen' id='1' from='juliet@example.org/balcony'/>")
			if d := time.Since(start); d != 2*oneWay {
				t.Fatalf("message %d to another took %v", i, d)
			}
			a.write("<iq type='get' id='sync' to='example.org'><ping xmlns='urn:xmpp:ping'/></iq>")
			if e := a.next(); e.Attr("id") == "sync" {
				kept = append(kept, id)
			} else {
				if want := "<message type='error' id='" + id + "' from='romeo@example.org/orchard' to='juliet@example.org/balcony'>" + crowded + "</message>"; !match(e, parse(t, want)) {
					t.Fatalf("message %d: %v", i, e)
				}
				a.next()
			}
		}
		// A window of 256 KiB, one batch on its way, and 512 KiB behind it.
		if len(kept) < 10 || len(kept) > 25 {
			t.Errorf("%d messages of 60 kB were kept for a client that does not read", len(kept))
		}
		for _, id := range kept {
			if e := slow.next(); e.Attr("id") != id || len(e.Child(stanza.NSClient, "body").Text()) != len(body) {
				t.Fatalf("got message %s of %d bytes, want %s", e.Attr("id"), len(e.String()), id)
			}
		}
		slow.sync()
		a.write("<message to='romeo@example.org/orchard' id='again'/>")
		slow.want("<message to='romeo@example.org/orchard' id='again' from='juliet@example.org/balcony'/>")
	})
}

var crowded = fault("wait", "500", "resource-constraint")

// TestStuckReader: a client that does not read for 30 s is given up.
func TestStuckReader(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.friends()
		out := make(chan error, 1)
		w.trace.Logout = func(who jid.JID, why error) {
			if who.Bare() == romeo {
				out <- why
			}
		}
		a, stuck := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		a.present()
		stuck.write("<presence/>")
		a.want(here("romeo@example.org/orchard", "juliet@example.org"))
		start := time.Now()
		for range 6 {
			a.write("<message to='romeo@example.org/orchard'><body>" + strings.Repeat("x", 60000) + "</body></message>")
		}
		a.want(gone("romeo@example.org/orchard", "juliet@example.org"))
		if d := time.Since(start); d < 30*time.Second || d > 31*time.Second {
			t.Errorf("given up after %v", d)
		}
		if why := <-out; why == nil || !strings.Contains(why.Error(), "timeout") {
			t.Errorf("logout: %v", why)
		}
	})
}

// TestOverflow: what the server itself has to say, such as the presence of
// contacts, comes first, and ends the stream when it is too much.
func TestOverflow(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.friends()
		out := make(chan error, 1)
		w.trace.Logout = func(who jid.JID, why error) {
			if who.Bare() == romeo {
				out <- why
			}
		}
		a, stuck := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		stuck.write("<presence/>")
		stuck.next()
		for i := range 100 {
			a.write("<presence><status>" + strings.Repeat("x", 60000) + "</status></presence>")
			if i == 0 {
				a.next()
				a.want(here("romeo@example.org/orchard", "juliet@example.org/balcony"))
				continue
			}
			e := a.next()
			if e.Attr("type") == stanza.Unavailable {
				if i < 15 || i > 40 {
					t.Errorf("ended after %d presences of 60 kB", i)
				}
				break
			}
			if i == 99 {
				t.Error("never ended")
			}
		}
		if why := <-out; why == nil || !strings.Contains(why.Error(), "resource-constraint") {
			t.Errorf("logout: %v", why)
		}
		w.login(romeo, "orchard").sync()
	})
}

// TestManySmallStanzas is TestSlowReader by count.
func TestManySmallStanzas(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.server.SetLimits(rendezvous.Limits{QueueStanzas: 400})
		a := w.login(juliet, "balcony")
		w.net.SetWindow(16 << 10)
		slow := w.login(romeo, "orchard")
		for range 20 {
			a.write("<message to='romeo@example.org/orchard'>" + strings.Repeat("<x/>", 1000) + "</message>")
		}
		a.sync()
		<-time.After(time.Second) // virtual: until no more of them fits into the window
		for i := range 350 {
			a.write(fmt.Sprintf("<iq type='get' id='%d' to='romeo@example.org/orchard'><q/></iq>", i))
		}
		a.write("<iq type='get' id='sync' to='example.org'><ping xmlns='urn:xmpp:ping'/></iq>")
		refused := 0
		for a.next().Attr("id") != "sync" {
			refused++
		}
		if refused < 149 || refused > 170 {
			t.Errorf("%d of 350 were refused", refused)
		}
		slow.raw.Close()
	})
}

// TestSilentClient: a client that says nothing is asked whether it is there;
// one that does not answer is closed, and one that is cut off, too.
func TestSilentClient(t *testing.T) {
	ping := "<iq type='get' id='*' from='example.org' to='%s'><ping xmlns='urn:xmpp:ping'/></iq>"
	inBubble(t, nil, func(t *testing.T, w *world) {
		a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		start := time.Now()
		for range 3 {
			a.want(fmt.Sprintf(ping, a.jid))
			a.write("<iq type='result' id='x' to='example.org'/>")
		}
		if d := time.Since(start); d < 9*time.Minute-time.Second || d > 9*time.Minute {
			t.Errorf("three questions in %v", d)
		}
		b.want(fmt.Sprintf(ping, b.jid))
		b.wantEnd("connection-timeout")
		// White space is a sign of life as well (RFC 6120, 4.6.1).
		for range 3 {
			<-time.After(2 * time.Minute)
			a.write(" ")
		}
		a.sync()
	})
}

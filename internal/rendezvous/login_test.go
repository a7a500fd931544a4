package rendezvous_test

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const starttls = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>"

func TestFeaturesInOrder(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		c := w.dial()
		start := time.Now()
		if f := c.open(); !match(f, parse(t, starttls)) {
			t.Fatalf("before TLS: %v", f)
		}
		if d := time.Since(start); d != 2*oneWay {
			t.Errorf("header and features came after %v, want %v", d, 2*oneWay)
		}
		c = w.dial()
		f := c.startTLS()
		want := "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>" +
			"<mechanism>SCRAM-SHA-256-PLUS</mechanism><mechanism>SCRAM-SHA-1-PLUS</mechanism>" +
			"<mechanism>SCRAM-SHA-256</mechanism><mechanism>SCRAM-SHA-1</mechanism><mechanism>PLAIN</mechanism></mechanisms>" +
			"<sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'><channel-binding type='tls-exporter'/><channel-binding type='tls-server-end-point'/></sasl-channel-binding></stream:features>"
		if !match(f, parse(t, want)) {
			t.Errorf("inside TLS:\n got %v\nwant %v", f, want)
		}
		if e := c.authPlain("", "juliet", password("juliet")); !match(e, parse(t, "<success"+saslNS+"/>")) {
			t.Fatalf("login: %v", e)
		}
		want = "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><session xmlns='urn:ietf:params:xml:ns:xmpp-session'><optional/></session></stream:features>"
		if f := c.open(); !match(f, parse(t, want)) {
			t.Errorf("after login:\n got %v\nwant %v", f, want)
		}
	})
}

// TestMechanisms logs in in every way that there is.
func TestMechanisms(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		tried := 0
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, h := range []struct {
				name string
				hash scram.HashGeneratorFcn
			}{{"SCRAM-SHA-1", scram.SHA1}, {"SCRAM-SHA-256", scram.SHA256}} {
				for _, kind := range []scram.ChannelBindingType{scram.ChannelBindingNone, scram.ChannelBindingTLSExporter, scram.ChannelBindingTLSServerEndpoint} {
					if kind == scram.ChannelBindingTLSExporter && version < tls.VersionTLS13 {
						continue
					}
					tried++
					mechanism := h.name
					c := w.dial()
					f := c.directTLS(&tls.Config{MaxVersion: version, NextProtos: []string{"xmpp-client"}})
					if announced := len(f.Child("urn:xmpp:sasl-cb:0", "sasl-channel-binding").Children); announced != int(version-tls.VersionTLS12)+1 {
						t.Errorf("TLS %x: %d channel bindings announced", version, announced)
					}
					user, err := h.hash.NewClient("Juliet", password("juliet"), "")
					if err != nil {
						t.Fatal(err)
					}
					conversation := user.NewConversation()
					if b := c.binding(kind); b.IsSupported() {
						mechanism += "-PLUS"
						conversation = user.NewConversationWithChannelBinding(b)
					}
					if e := c.authScram(mechanism, conversation); e.Name.Local != "success" {
						t.Errorf("%s, %s, TLS %x: %v", mechanism, kind, version, e)
						continue
					}
					c.bind("")
					if c.jid.Bare() != juliet {
						t.Errorf("logged in as %v", c.jid)
					}
					c.sync()
				}
			}
		}
		if tried != 10 {
			t.Errorf("%d combinations tried", tried)
		}
	})
}

func (c *client) binding(kind scram.ChannelBindingType) scram.ChannelBinding {
	c.t.Helper()
	var b scram.ChannelBinding
	var err error
	state := c.tls.ConnectionState()
	switch kind {
	case scram.ChannelBindingTLSExporter:
		b, err = scram.NewTLSExporterBinding(&state)
	case scram.ChannelBindingTLSServerEndpoint:
		b, err = scram.NewTLSServerEndpointBinding(&state)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func TestRefusedLogins(t *testing.T) {
	auth := func(mechanism, message string) func(*client) stanza.Element {
		return func(c *client) stanza.Element {
			c.write("<auth" + saslNS + " mechanism='" + mechanism + "'>" + message + "</auth>")
			return c.next()
		}
	}
	plain := func(authzid, name, password string) func(*client) stanza.Element {
		return func(c *client) stanza.Element { return c.authPlain(authzid, name, password) }
	}
	scramAs := func(name, password, mechanism string, conversation func(*client, *scram.Client) *scram.ClientConversation) func(*client) stanza.Element {
		return func(c *client) stanza.Element {
			user, err := scram.SHA256.NewClient(name, password, "")
			if err != nil {
				t.Fatal(err)
			}
			return c.authScram(mechanism, conversation(c, user))
		}
	}
	unbound := func(_ *client, u *scram.Client) *scram.ClientConversation { return u.NewConversation() }
	tests := []struct {
		name  string
		do    func(*client) stanza.Element
		want  string
		guess bool // is answered late
	}{
		{"PLAIN, wrong password", plain("", "juliet", "wrong"), "not-authorized", true},
		{"PLAIN, no password", plain("", "juliet", ""), "not-authorized", true},
		{"PLAIN, unknown account", plain("", "tybalt", "tybalttybalt"), "not-authorized", true},
		{"PLAIN, no account", plain("", "", "x"), "not-authorized", true},
		{"PLAIN, name that is no localpart", plain("", "a b@c/", "x"), "not-authorized", true},
		{"PLAIN, acting for another", plain("romeo@example.org", "juliet", "julietjuliet"), "invalid-authzid", false},
		{"PLAIN, too few parts", auth("PLAIN", b64("juliet\x00julietjuliet")), "malformed-request", false},
		{"not base64", auth("PLAIN", "!"), "incorrect-encoding", false},
		{"unknown mechanism", auth("DIGEST-MD5", ""), "invalid-mechanism", false},
		{"no mechanism", auth("", ""), "invalid-mechanism", false},
		{"SCRAM, wrong password", scramAs("juliet", "wrong", "SCRAM-SHA-256", unbound), "not-authorized", true},
		{"SCRAM, unknown account", scramAs("tybalt", "x", "SCRAM-SHA-256", unbound), "not-authorized", true},
		{"SCRAM, nonsense", auth("SCRAM-SHA-256", b64("n,,nonsense")), "not-authorized", false},
		{"SCRAM, unbound under -PLUS", scramAs("juliet", "julietjuliet", "SCRAM-SHA-256-PLUS", unbound), "malformed-request", false},
		{"SCRAM, bound to another channel", scramAs("juliet", "julietjuliet", "SCRAM-SHA-256-PLUS", func(c *client, u *scram.Client) *scram.ClientConversation {
			b := c.binding(scram.ChannelBindingTLSExporter)
			b.Data[0] ^= 1
			return u.NewConversationWithChannelBinding(b)
		}), "not-authorized", true},
		{"SCRAM, bound to what is not offered", scramAs("juliet", "julietjuliet", "SCRAM-SHA-256-PLUS", func(c *client, u *scram.Client) *scram.ClientConversation {
			return u.NewConversationWithChannelBinding(scram.NewTLSUniqueBinding([]byte("x")))
		}), "not-authorized", false},
		{"SCRAM, bound under the plain mechanism", scramAs("juliet", "julietjuliet", "SCRAM-SHA-256", func(c *client, u *scram.Client) *scram.ClientConversation {
			return u.NewConversationWithChannelBinding(c.binding(scram.ChannelBindingTLSExporter))
		}), "malformed-request", false},
		{"SCRAM, -PLUS was taken from the list", scramAs("juliet", "julietjuliet", "SCRAM-SHA-256", func(_ *client, u *scram.Client) *scram.ClientConversation {
			return u.NewConversationAdvertisingChannelBinding()
		}), "not-authorized", false},
		{"aborted", func(c *client) stanza.Element {
			auth("PLAIN", "")(c)
			c.write("<abort" + saslNS + "/>")
			return c.next()
		}, "aborted", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				c := w.dial()
				c.directTLS(&tls.Config{})
				start := time.Now()
				e := tt.do(c)
				if !match(e, parse(t, "<failure"+saslNS+"><"+tt.want+"/></failure>")) {
					t.Errorf("got %v, want %s", e, tt.want)
				}
				if late := time.Since(start) >= 500*time.Millisecond; late != tt.guess {
					t.Errorf("answered after %v", time.Since(start))
				}
				// The stream goes on.
				if e := c.authPlain("juliet@example.org", "juliet", "julietjuliet"); e.Name.Local != "success" {
					t.Errorf("next attempt: %v", e)
				}
			})
		})
	}
}

// TestAccountsAreNotTold compares what an attacker sees of an account that
// exists with what he sees of one that does not.
func TestAccountsAreNotTold(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		salt := func(mechanism, name string) string {
			c := w.dial()
			c.directTLS(&tls.Config{})
			c.write("<auth" + saslNS + " mechanism='" + mechanism + "'>" + b64("n,,n="+name+",r=abc") + "</auth>")
			e := c.next()
			if e.Name.Local != "challenge" {
				t.Fatalf("%s: %v", name, e)
			}
			m := decode(t, e.Text())
			var nonce, salt string
			var iterations int
			if _, err := fmt.Sscanf(commasToSpaces(m), "r=%s s=%s i=%d", &nonce, &salt, &iterations); err != nil || iterations != 4096 || len(salt) != 24 {
				t.Fatalf("%s: %q: %v", name, m, err)
			}
			return salt
		}
		seen := map[string]string{}
		for _, mechanism := range []string{"SCRAM-SHA-1", "SCRAM-SHA-256"} {
			for _, name := range []string{"juliet", "tybalt", "mercutio"} {
				s := salt(mechanism, name)
				if again := salt(mechanism, name); again != s {
					t.Errorf("%s, %s: salt %s, then %s", mechanism, name, s, again)
				}
				if other, dup := seen[s]; dup {
					t.Errorf("%s has the salt of %s", name, other)
				}
				seen[s] = name
			}
		}
		if salt("SCRAM-SHA-1", "TYBALT") != salt("SCRAM-SHA-1", "tybalt") || salt("SCRAM-SHA-1", "JULIET") != salt("SCRAM-SHA-1", "juliet") {
			t.Error("the case of a name matters")
		}
	})
}

func TestAttemptsAreFewAndSlow(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		denied := 0
		w.trace.Denied = func(string, net.Addr, error) { denied++ }
		c := w.dial()
		c.directTLS(&tls.Config{})
		start := time.Now()
		for range 5 {
			if e := c.authPlain("", "juliet", "wrong"); e.Name.Local != "failure" {
				t.Fatalf("got %v", e)
			}
		}
		c.wantEnd("policy-violation")
		if d := time.Since(start); d < 15*time.Second {
			t.Errorf("five attempts took %v", d)
		}
		if denied != 5 {
			t.Errorf("%d attempts traced", denied)
		}
	})
}

func TestBind(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		a, b := w.login(juliet, ""), w.login(juliet, "")
		if a.jid == b.jid || len(a.jid.Resource()) < 16 {
			t.Errorf("random resources %v, %v", a.jid, b.jid)
		}
		c := w.dial()
		c.directTLS(&tls.Config{})
		c.authPlain("", "juliet", password("juliet"))
		c.open()
		c.write("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>a&#9;b</resource></bind></iq>")
		c.want("<iq type='error' id='1'><error type='modify' code='400'><bad-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>*</text></error></iq>")
		c.write("<iq type='set' id='2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>balcony</resource></bind></iq>")
		c.want("<iq type='result' id='2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>juliet@example.org/balcony</jid></bind></iq>")
	})
}

func TestConflict(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		old := w.login(juliet, "balcony")
		renewed := w.login(juliet, "balcony")
		old.wantEnd("conflict")
		romeo := w.login(romeo, "orchard")
		romeo.write("<message to='juliet@example.org/balcony'><body>hi</body></message>")
		renewed.want("<message to='juliet@example.org/balcony' from='romeo@example.org/orchard'><body>hi</body></message>")
	})
}

func TestTooManyResources(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		var first *client
		for i := range 32 {
			c := w.login(juliet, fmt.Sprint("r", i))
			if first == nil {
				first = c
			}
		}
		c := w.dial()
		c.directTLS(&tls.Config{})
		c.authPlain("", "juliet", password("juliet"))
		c.open()
		for i := range 5 {
			c.write("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
			if e := c.next(); e.Attr("type") != "error" || e.Child(stanza.NSClient, "error").Child(stanza.NSStanzas, "resource-constraint").IsZero() {
				t.Fatalf("attempt %d: %v", i, e)
			}
		}
		c.wantEnd("policy-violation")
		// In place of another there is room.
		w.login(juliet, "r0").sync()
		first.wantEnd("conflict")
	})
}

func TestRemovedBetweenLoginAndBind(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		c := w.dial()
		c.directTLS(&tls.Config{})
		c.authPlain("", "juliet", password("juliet"))
		c.open()
		if err := w.server.RemoveAccount("juliet"); err != nil {
			t.Fatal(err)
		}
		c.write("<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
		c.wantEnd("not-authorized")
	})
}

func TestShutdown(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		bound, guest := w.login(juliet, "balcony"), w.dial()
		guest.open()
		closed := make(chan struct{})
		// Ends with Close, which is waited for below.
		go func() {
			defer close(closed)
			w.server.Close()
		}()
		bound.wantEnd("system-shutdown")
		bound.conn.Close()
		start := time.Now()
		<-closed
		if d := time.Since(start); d > time.Second {
			t.Errorf("Close took %v more", d)
		}
		if w.server.Guests() != 0 {
			t.Error("a guest is left")
		}
		l, err := w.host.Listen(t.Context(), netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.server.Serve(l); err == nil {
			t.Error("Serve after Close succeeded")
		}
	})
}

func decode(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func commasToSpaces(s string) string { return strings.ReplaceAll(s, ",", " ") }

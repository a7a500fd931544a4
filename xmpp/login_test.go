package xmpp_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

func TestConfigErrors(t *testing.T) {
	tests := []struct {
		name   string
		change func(*xmpp.Config)
		want   string
	}{
		{"no account", func(c *xmpp.Config) { c.JID = jid.JID{} }, `xmpp: "" is no account`},
		{"a server as account", func(c *xmpp.Config) { c.JID = jid.MustParse("example.org") }, "is no account"},
		{"pin of another hash", func(c *xmpp.Config) { c.Pin = "sha1:00" }, "no sha256: at its beginning"},
		{"pin of letters", func(c *xmpp.Config) { c.Pin = "sha256:xyz" }, "is not hexadecimal"},
		{"short pin", func(c *xmpp.Config) { c.Pin = "sha256:00:01" }, "has 2 bytes, a SHA-256 has 32"},
		{"server without a port number", func(c *xmpp.Config) { c.Server = "example.org:xmpp" }, "is not host:port"},
		{"server without a host", func(c *xmpp.Config) { c.Server = ":5222" }, "is not host:port"},
	}
	for _, tt := range tests {
		n := newNetwork(t)
		c := n.config()
		tt.change(c)
		if _, err := xmpp.Connect(t.Context(), c); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "xmpp: ") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if len(n.addresses()) > 0 {
			t.Errorf("%s: dialed %q", tt.name, n.addresses())
		}
	}
}

// TestLoginStories has servers go wrong at each step before SASL and after it.
func TestLoginStories(t *testing.T) {
	proceed := "<proceed xmlns='" + nsTLS + "'/>"
	secured := func(p *peer) { p.starttls(); p.authenticate() }
	tests := []struct {
		name  string
		story func(p *peer)
		want  string
	}{
		{"STARTTLS taken away", func(p *peer) { p.wantStream(mechanisms("PLAIN")) }, "offers no STARTTLS, and there is no login without encryption"},
		{"STARTTLS refused", func(p *peer) {
			p.wantStream(starttlsFeature)
			p.want(nsTLS, "starttls")
			p.send("<failure xmlns='" + nsTLS + "'/>")
		}, "refuses STARTTLS: <failure/>"},
		{"stanza injected after proceed", func(p *peer) {
			p.wantStream(starttlsFeature)
			p.want(nsTLS, "starttls")
			p.send("%s", proceed+"<iq type='set' id='1'/>")
		}, "bytes in clear after <proceed/>"},
		{"white space after proceed", func(p *peer) {
			p.wantStream(starttlsFeature)
			p.want(nsTLS, "starttls")
			p.send("%s", proceed+"\n")
		}, "bytes in clear after <proceed/>"},
		{"something else than TLS after proceed", func(p *peer) {
			p.wantStream(starttlsFeature)
			p.want(nsTLS, "starttls")
			p.send("%s", proceed)
			_, _ = p.buf.Peek(1)
			p.send("<stream:features/>")
		}, "TLS handshake"},
		{"no stream", func(p *peer) { _, _ = p.buf.Peek(1); p.send("HTTP/1.1 400 Bad Request\r\n\r\n"); p.conn.Close() }, "does not speak XMPP"},
		{"stream of servers", func(p *peer) {
			p.send("<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>")
		}, `the server's stream is of "jabber:server"`},
		{"no features", func(p *peer) {
			p.send("<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'><message/>")
		}, "<message/> where the stream's features belong"},
		{"host unknown", func(p *peer) {
			p.send("<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'><stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>Who?</text></stream:error>")
		}, `the server ended the stream: host-unknown (the server says "Who?")`},
		{"endless features", func(p *peer) {
			p.send("<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'><stream:features>%s", strings.Repeat(starttlsFeature, 2000))
		}, "stanza too large"},
		{"DTD", func(p *peer) { p.send("<!DOCTYPE a [<!ENTITY b 'c'>]>") }, "not allowed in a stream"},
		{"no bind", func(p *peer) { secured(p); p.wantStream("") }, "offers no resource binding"},
		{"bind refused", func(p *peer) {
			secured(p)
			p.wantStream(bindFeature)
			q := p.wantIQ(stanza.Set, nsBind, "bind")
			p.send("<iq type='error' id='%s'><error type='wait'><resource-constraint xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>", q.ID)
		}, `binding resource "orchard": resource-constraint`},
		{"bound to nothing", func(p *peer) {
			secured(p)
			p.wantStream(bindFeature)
			q := p.wantIQ(stanza.Set, nsBind, "bind")
			p.send("<iq type='result' id='%s'/>", q.ID)
		}, "bound no full address"},
		{"session refused", func(p *peer) {
			secured(p)
			p.wantStream(bindFeature + "<session xmlns='" + nsSession + "'/>")
			q := p.wantIQ(stanza.Set, nsBind, "bind")
			p.send("<iq type='result' id='%s'><bind xmlns='%s'><jid>%s</jid></bind></iq>", q.ID, nsBind, romeo)
			q = p.wantIQ(stanza.Set, nsSession, "session")
			p.send("<iq type='error' id='%s'><error type='cancel'><forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>", q.ID)
		}, "opening the session: forbidden"},
		{"chatter without an answer", func(p *peer) {
			secured(p)
			p.wantStream(bindFeature)
			p.wantIQ(stanza.Set, nsBind, "bind")
			p.send("%s", strings.Repeat("<message/>", 100))
		}, "no answer among many stanzas"},
		{"hangs up", func(p *peer) { secured(p); _, _ = p.buf.Peek(1); p.conn.Close() }, "the server hung up"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				done := start(t.Context(), n.config())
				p := n.accept()
				tt.story(p)
				got := <-done
				var failed *xmpp.ConnectError
				if !errors.As(got.err, &failed) || !strings.Contains(got.err.Error(), tt.want) {
					t.Fatalf("Connect: %v, want %q", got.err, tt.want)
				}
				if len(failed.Attempts) != 1 || failed.Attempts[0].Address != "server:5222" || failed.Attempts[0].Mode != "STARTTLS" {
					t.Errorf("attempts %+v", failed.Attempts)
				}
			})
		})
	}
}

func TestLegacySession(t *testing.T) {
	for _, optional := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			done := start(t.Context(), n.config())
			p := n.accept()
			p.starttls()
			p.authenticate()
			inner := ""
			if optional {
				inner = "<optional/>"
			}
			p.wantStream(bindFeature + "<session xmlns='" + nsSession + "'>" + inner + "</session>")
			q := p.wantIQ(stanza.Set, nsBind, "bind")
			p.send("<message>not yet</message><iq type='result' id='%s'><bind xmlns='%s'><jid>%s</jid></bind></iq>", q.ID, nsBind, romeo)
			if !optional {
				q = p.wantIQ(stanza.Set, nsSession, "session")
				p.send("<iq type='result' id='%s'/>", q.ID)
			}
			p.want(stanza.NSClient, "presence")
			got := <-done
			if got.err != nil {
				t.Fatal(got.err)
			}
			p.goodbye(got.s)
		})
	}
}

// What is said in clear must not tell who logs in; inside TLS the server is
// told (RFC 6120, 4.7.1).
func TestHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		c.JID = romeo.Bare()
		done := start(t.Context(), c)
		p := n.accept()
		if h := p.wantStream(starttlsFeature); h.To != romeo.Server() || !h.From.IsZero() || h.Version != "1.0" {
			t.Errorf("header in clear: %+v", h)
		}
		p.want(nsTLS, "starttls")
		p.send("<proceed xmlns='" + nsTLS + "'/>")
		if err := p.secure(); err != nil {
			t.Fatal(err)
		}
		state := p.tls.ConnectionState()
		if state.ServerName != "example.org" || state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "" {
			t.Errorf("TLS: name %q, version %x, protocol %q", state.ServerName, state.Version, state.NegotiatedProtocol)
		}
		if h := p.wantStream(mechanisms("SCRAM-SHA-1")); h.From != romeo.Bare() {
			t.Errorf("header inside TLS: %+v", h)
		}
		p.wantSCRAM(false)
		p.bind()
		if e := p.want(stanza.NSClient, "presence"); e.Child(stanza.NSClient, "priority").Text() != "-1" {
			t.Errorf("presence: %v", e)
		}
		got := <-done
		if got.err != nil || got.s.LocalAddr().Resource() != "picked by the server" {
			t.Fatalf("Connect: %v, %v", got.s, got.err)
		}
		p.goodbye(got.s)
	})
}

func pinOf(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return hex.EncodeToString(sum[:])
}

func TestCertificates(t *testing.T) {
	other := certificate([]string{"other.example"}, false)
	bare := certificate(nil, false)
	colons := strings.ToUpper(strings.Join(slices.Collect(func(yield func(string) bool) {
		for i := 0; i < 64; i += 2 {
			if !yield(pinOf(other)[i : i+2]) {
				return
			}
		}
	}), ":"))
	tests := []struct {
		name   string
		cert   tls.Certificate
		domain string
		change func(*xmpp.Config)
		want   string // "": accepted
	}{
		{"self-signed, in the pool", stock, "example.org", func(c *xmpp.Config) {}, ""},
		{"wild card", stock, "a.wild.example.org", func(c *xmpp.Config) {}, ""},
		{"wild card is one label", stock, "a.b.wild.example.org", func(c *xmpp.Config) {}, "not accepted for a.b.wild.example.org: x509: certificate is valid for"},
		{"localhost", stock, "localhost", func(c *xmpp.Config) {}, ""},
		{"IPv4", stock, "127.0.0.1", func(c *xmpp.Config) {}, ""},
		{"IPv6", stock, "[::1]", func(c *xmpp.Config) {}, ""},
		{"other IPv4", stock, "127.0.0.2", func(c *xmpp.Config) {}, "x509: certificate is valid for 127.0.0.1, ::1, not 127.0.0.2"},
		{"not in the pool", other, "other.example", func(c *xmpp.Config) {}, "(presented: subject \"CN=scripted server\", names other.example, issuer \"CN=scripted server\", valid from 1999-01-01 to 2199-01-01, sha256:" + pinOf(other) + ")"},
		{"for the name dialed only", certificate([]string{"server"}, false), "example.org", func(c *xmpp.Config) {}, "names server"},
		{"without names", bare, "example.org", func(c *xmpp.Config) { c.RootCAs = poolOf(bare) }, "names nothing"},
		{"in the pool, but for another domain", other, "example.org", func(c *xmpp.Config) { c.RootCAs = poolOf(other) }, "x509: certificate is valid for other.example, not example.org"},
		{"pinned, for another domain", other, "example.org", func(c *xmpp.Config) { c.Pin = "sha256:" + pinOf(other) }, ""},
		{"pinned, in capitals and colons", other, "example.org", func(c *xmpp.Config) { c.Pin = "SHA256:" + colons }, ""},
		{"pinned, another one", stock, "example.org", func(c *xmpp.Config) { c.Pin = "sha256:" + pinOf(other) }, "it is not the pinned certificate sha256:" + pinOf(other)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				c := n.config()
				c.JID = jid.MustParse("romeo@" + tt.domain)
				tt.change(c)
				done := start(t.Context(), c)
				p := n.accept()
				p.cert = tt.cert
				p.wantStream(starttlsFeature)
				p.want(nsTLS, "starttls")
				p.send("<proceed xmlns='" + nsTLS + "'/>")
				err := p.secure()
				if tt.want == "" {
					if err != nil {
						t.Fatalf("TLS: %v", err)
					}
					p.wantStream("") // the client goes on
					<-done
					return
				}
				if err == nil {
					// TLS 1.3: the server is done before the client has judged.
					_, err = p.conn.Read(make([]byte, 1))
				}
				if err == nil {
					t.Error("the client sent something inside TLS")
				}
				got := <-done
				var refused *xmpp.TLSError
				if !errors.As(got.err, &refused) || !strings.Contains(got.err.Error(), tt.want) {
					t.Fatalf("Connect: %v, want %q", got.err, tt.want)
				}
				if refused.Domain != tt.domain || refused.Fingerprint() != "sha256:"+pinOf(tt.cert) {
					t.Errorf("error for %q with %q", refused.Domain, refused.Fingerprint())
				}
			})
		})
	}
}

func TestExpiredCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pass(200 * 365 * 24 * time.Hour)
		n := newNetwork(t)
		done := start(t.Context(), n.config())
		p := n.accept()
		p.wantStream(starttlsFeature)
		p.want(nsTLS, "starttls")
		p.send("<proceed xmlns='" + nsTLS + "'/>")
		_ = p.secure()
		got := <-done
		var invalid x509.CertificateInvalidError
		if !errors.As(got.err, &invalid) || invalid.Reason != x509.Expired {
			t.Errorf("Connect: %v", got.err)
		}
	})
}

func TestOldTLSIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		done := start(t.Context(), n.config())
		p := n.accept()
		p.wantStream(starttlsFeature)
		p.want(nsTLS, "starttls")
		p.send("<proceed xmlns='" + nsTLS + "'/>")
		p.max = tls.VersionTLS11
		if err := p.secure(); err == nil {
			t.Error("TLS 1.1 was negotiated")
		}
		if got := <-done; got.err == nil {
			t.Error("logged in by TLS 1.1")
		}
	})
}

// TestSlowServers has a server stop at each step: the login ends after its
// time, or with its context, whichever is first.
func TestSlowServers(t *testing.T) {
	steps := []struct {
		name string
		step func(p *peer)
	}{
		{"says nothing", func(p *peer) {}},
		{"stops in the header", func(p *peer) { p.send("<?xml version='1.0'?>") }},
		{"sends no features", func(p *peer) {
			p.send("<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>")
		}},
		{"does not proceed", func(p *peer) { p.wantStream(starttlsFeature) }},
		{"does no TLS", func(p *peer) {
			p.wantStream(starttlsFeature)
			p.want(nsTLS, "starttls")
			p.send("<proceed xmlns='" + nsTLS + "'/>")
		}},
		{"no stream inside TLS", func(p *peer) { p.starttls() }},
		{"no challenge", func(p *peer) { p.starttls(); p.wantStream(mechanisms("SCRAM-SHA-256")) }},
		{"no bind", func(p *peer) { p.starttls(); p.authenticate(); p.wantStream(bindFeature) }},
	}
	for _, tt := range steps {
		for _, cancelled := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				ctx, want := t.Context(), xmpp.LoginTimeout
				if cancelled {
					want = 3 * time.Second
					bounded, cancel := context.WithTimeout(ctx, want)
					defer cancel()
					ctx = bounded
				}
				began := time.Now()
				done := start(ctx, n.config())
				p := n.accept()
				tt.step(p)
				got := <-done
				if took := time.Since(began); took != want {
					t.Errorf("%s: took %v, want %v", tt.name, took, want)
				}
				if got.err == nil || errors.Is(got.err, context.DeadlineExceeded) != cancelled {
					t.Errorf("%s: %v", tt.name, got.err)
				}
				if !cancelled && !strings.Contains(got.err.Error(), "the login was not done after 20s") {
					t.Errorf("%s: %v", tt.name, got.err)
				}
				p.patience()
				if _, err := io.Copy(io.Discard, p.raw); err != nil {
					t.Errorf("%s: the connection stays open: %v", tt.name, err)
				}
			})
		}
	}
}

// A server that sends a byte a second does not get more time.
func TestDrippingServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		began := time.Now()
		done := start(t.Context(), n.config())
		p := n.accept()
		for {
			select {
			case got := <-done:
				if took := time.Since(began); got.err == nil || took != xmpp.LoginTimeout {
					t.Errorf("%v after %v", got.err, took)
				}
				return
			case <-time.After(time.Second):
				_, _ = p.conn.Write([]byte(" "))
			}
		}
	})
}

func TestConflictAtBind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		done := start(t.Context(), n.config())
		p := n.accept()
		p.starttls()
		p.authenticate()
		p.wantStream(bindFeature)
		q := p.wantIQ(stanza.Set, nsBind, "bind")
		p.send("<iq type='error' id='%s'><error type='modify'><conflict xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>", q.ID)
		if got := <-done; !errors.Is(got.err, xmpp.ErrConflict) {
			t.Errorf("Connect: %v", got.err)
		}
	})
}

func TestSeeOtherHost(t *testing.T) {
	moved := func(p *peer, to string) {
		p.wantStream(starttlsFeature)
		p.want(nsTLS, "starttls")
		p.send("<stream:error><see-other-host xmlns='urn:ietf:params:xml:ns:xmpp-streams'>%s</see-other-host></stream:error>", to)
	}
	t.Run("followed, with the same certificate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			done := start(t.Context(), n.config())
			moved(n.accept(), "[2001:db8::5]:9222")
			p := n.accept().login()
			got := <-done
			if got.err != nil {
				t.Fatal(got.err)
			}
			if want := []string{"server:5222", "[2001:db8::5]:9222"}; !slices.Equal(n.addresses(), want) {
				t.Errorf("dialed %q, want %q", n.addresses(), want)
			}
			p.goodbye(got.s)
		})
	})
	t.Run("with another certificate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			done := start(t.Context(), n.config())
			moved(n.accept(), "elsewhere.example")
			p := n.accept()
			p.cert = certificate([]string{"elsewhere.example"}, true)
			p.wantStream(starttlsFeature)
			p.want(nsTLS, "starttls")
			p.send("<proceed xmlns='" + nsTLS + "'/>")
			_ = p.secure()
			var refused *xmpp.TLSError
			if got := <-done; !errors.As(got.err, &refused) || refused.Domain != "example.org" {
				t.Errorf("Connect: %v", got.err)
			}
		})
	})
	t.Run("not for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			done := start(t.Context(), n.config())
			for range 3 {
				moved(n.accept(), "round.example")
			}
			if got := <-done; got.err == nil || len(n.addresses()) != 3 {
				t.Errorf("Connect: %v after %q", got.err, n.addresses())
			}
		})
	})
	t.Run("nonsense", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			done := start(t.Context(), n.config())
			moved(n.accept(), "http://evil.example/")
			if got := <-done; got.err == nil || len(n.addresses()) != 1 {
				t.Errorf("Connect: %v after %q", got.err, n.addresses())
			}
		})
	})
}

// TestLoopback logs in over real sockets, with the standard dialer.
func TestLoopback(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newNetwork(t).config()
	c.Dial, c.Server = nil, l.Addr().String()
	done := start(t.Context(), c)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a, b := newPair()
	go func() { _, _ = io.Copy(a, conn); a.Close() }()    // ends with the client
	go func() { _, _ = io.Copy(conn, a); conn.Close() }() // ends with the peer below
	p := &peer{t: t, raw: b, conn: b, buf: bufio.NewReader(b), cert: stock}
	p.login()
	got := <-done
	if got.err != nil {
		t.Fatal(got.err)
	}
	p.goodbye(got.s)
	b.Close()
}

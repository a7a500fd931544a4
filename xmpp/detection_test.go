package xmpp_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// directly does a login on a port where TLS begins at once.
func directly(p *peer) {
	p.t.Helper()
	if err := p.secure(); err != nil {
		p.t.Fatalf("TLS: %v", err)
	}
	if got := p.tls.ConnectionState().NegotiatedProtocol; got != "xmpp-client" {
		p.t.Errorf("protocol %q", got)
	}
	p.authenticate()
	p.bind()
	p.want(stanza.NSClient, "presence")
}

// TestDetection connects to a given port that speaks what was not expected.
func TestDetection(t *testing.T) {
	// What a port for TLS makes of a stream header, and one for STARTTLS of a
	// ClientHello.
	alert := func(p *peer) { _, _ = p.buf.Peek(1); p.send("\x15\x03\x01\x00\x02\x02\x46"); p.conn.Close() }
	hangUp := func(p *peer) { _, _ = p.buf.Peek(1); p.conn.Close() }
	xmlError := func(p *peer) {
		_, _ = p.buf.Peek(1)
		p.send("<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'><stream:error><not-well-formed xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
		p.conn.Close()
	}
	tests := []struct {
		name, server string
		first        func(p *peer) // nil: the first guess is right
		then         func(p *peer)
	}{
		{"STARTTLS", "server:5222", nil, func(p *peer) { p.login() }},
		{"STARTTLS without a port", "server", nil, func(p *peer) { p.login() }},
		{"direct TLS on its port", "server:5223", nil, directly},
		{"direct TLS on that of HTTPS", "server:443", nil, directly},
		{"direct TLS on another, which alerts", "server:5222", alert, directly},
		{"direct TLS on another, which hangs up", "server:4711", hangUp, directly},
		{"STARTTLS on 5223, which complains", "server:5223", xmlError, func(p *peer) { p.login() }},
		{"STARTTLS on 443, which hangs up", "server:443", hangUp, func(p *peer) { p.login() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				c := n.config()
				c.Server = tt.server
				done := start(t.Context(), c)
				dials := 1
				if tt.first != nil {
					tt.first(n.accept())
					dials++
				}
				p := n.accept()
				tt.then(p)
				got := <-done
				if got.err != nil {
					t.Fatal(got.err)
				}
				if len(n.addresses()) != dials {
					t.Errorf("dialed %q", n.addresses())
				}
				p.goodbye(got.s)
			})
		})
	}
}

// Neither of the two guesses is tried more than once.
func TestDetectionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		done := start(t.Context(), n.config())
		for range 2 {
			p := n.accept()
			_, _ = p.buf.Peek(1)
			p.conn.Close()
		}
		got := <-done
		var failed *xmpp.ConnectError
		if !errors.As(got.err, &failed) || len(failed.Attempts) != 2 || failed.Attempts[0].Mode != "STARTTLS" || failed.Attempts[1].Mode != "direct TLS" {
			t.Errorf("Connect: %v", got.err)
		}
	})
}

// What is no XMPP at all is told at once, and what it said.
func TestOtherProtocols(t *testing.T) {
	for _, says := range []string{"SSH-2.0-OpenSSH_9.2p1\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "220 mail.example.org"} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			began := time.Now()
			done := start(t.Context(), n.config())
			p := n.accept()
			p.send("%s", says)
			got := <-done
			if got.err == nil || !strings.Contains(got.err.Error(), "does not speak XMPP: it says \""+says[:7]) {
				t.Errorf("Connect: %v", got.err)
			}
			if d := time.Since(began); d > time.Second {
				t.Errorf("%q took %v", says, d)
			}
		})
	}
}

package xmpp_test

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

func TestChoose(t *testing.T) {
	const (
		exporter = scram.ChannelBindingTLSExporter
		endPoint = scram.ChannelBindingTLSServerEndpoint
	)
	tls13 := []scram.ChannelBindingType{exporter, endPoint}
	tls12 := []scram.ChannelBindingType{endPoint}
	all := []string{"PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
	tests := []struct {
		name                  string
		offered, announced    []string
		possible              []scram.ChannelBindingType
		mechanism, flag, bind string
	}{
		{"best of all", all, []string{"tls-server-end-point", "tls-exporter"}, tls13, "SCRAM-SHA-256-PLUS", "p", "tls-exporter"},
		{"end point only", all, []string{"tls-server-end-point"}, tls13, "SCRAM-SHA-256-PLUS", "p", "tls-server-end-point"},
		{"TLS 1.2", all, []string{"tls-server-end-point", "tls-exporter"}, tls12, "SCRAM-SHA-256-PLUS", "p", "tls-server-end-point"},
		{"binding before hash", []string{"SCRAM-SHA-256", "SCRAM-SHA-1-PLUS"}, []string{"tls-exporter"}, tls13, "SCRAM-SHA-1-PLUS", "p", "tls-exporter"},
		{"bindings of the server unknown", all, nil, tls13, "SCRAM-SHA-256", "n", ""},
		{"unknown, but insisted on", []string{"SCRAM-SHA-1-PLUS", "PLAIN"}, nil, tls13, "SCRAM-SHA-1-PLUS", "p", "tls-exporter"},
		{"unknown, insisted on, TLS 1.2", []string{"SCRAM-SHA-1-PLUS"}, nil, tls12, "SCRAM-SHA-1-PLUS", "p", "tls-server-end-point"},
		{"no binding in common", all, []string{"tls-unique"}, tls13, "SCRAM-SHA-256", "n", ""},
		{"no binding possible", all, []string{"tls-exporter"}, nil, "SCRAM-SHA-256", "n", ""},
		{"no PLUS offered", []string{"SCRAM-SHA-1", "SCRAM-SHA-256"}, nil, tls13, "SCRAM-SHA-256", "y", ""},
		{"no PLUS offered, bindings all the same", []string{"SCRAM-SHA-256"}, []string{"tls-exporter"}, tls13, "SCRAM-SHA-256", "y", ""},
		{"no PLUS offered and none possible", []string{"SCRAM-SHA-256"}, nil, nil, "SCRAM-SHA-256", "n", ""},
		{"a PLUS that we do not know counts as offered", []string{"SCRAM-SHA3-512-PLUS", "SCRAM-SHA-256"}, nil, tls13, "SCRAM-SHA-256", "n", ""},
		{"SHA-512", []string{"SCRAM-SHA-512", "SCRAM-SHA-1"}, nil, tls13, "SCRAM-SHA-512", "y", ""},
		{"SHA-1", []string{"PLAIN", "SCRAM-SHA-1"}, nil, tls13, "SCRAM-SHA-1", "y", ""},
		{"PLAIN alone", []string{"PLAIN", "DIGEST-MD5"}, nil, tls13, "PLAIN", "n", ""},
		{"no PLAIN beside an unknown SCRAM", []string{"PLAIN", "SCRAM-SHA3-512"}, nil, tls13, "", "", ""},
		{"no PLAIN beside a PLUS that cannot be used", []string{"PLAIN", "SCRAM-SHA-256-PLUS"}, []string{"tls-unique"}, tls13, "", "", ""},
		{"nothing known", []string{"ANONYMOUS", "EXTERNAL"}, nil, tls13, "", "", ""},
		{"nothing", nil, nil, tls13, "", "", ""},
	}
	for _, tt := range tests {
		mechanism, flag, bind, err := xmpp.Choose(tt.offered, tt.announced, tt.possible)
		if mechanism != tt.mechanism || flag != tt.flag || bind != tt.bind || (err == nil) != (tt.mechanism != "") {
			t.Errorf("%s: %q %q %q, %v; want %q %q %q", tt.name, mechanism, flag, bind, err, tt.mechanism, tt.flag, tt.bind)
		}
	}
}

func TestIterations(t *testing.T) {
	tests := []struct {
		challenge string
		ok        bool
	}{
		{"r=n,s=c2FsdA==,i=4096", true},
		{"r=n,s=c2FsdA==,i=10000000", true},
		{"r=n,s=c2FsdA==,i=4095", false},
		{"r=n,s=c2FsdA==,i=1", false},
		{"r=n,s=c2FsdA==,i=0", false},
		{"r=n,s=c2FsdA==,i=-4096", false},
		{"r=n,s=c2FsdA==,i=10000001", false},
		{"r=n,s=c2FsdA==,i=99999999999999999999", false},
		{"r=n,s=c2FsdA==,i=", false},
		{"r=n,i=4096,s=c2FsdA==,i=1", false},
		{"v=c2ln", true},
		{"", true},
	}
	for _, tt := range tests {
		if err := xmpp.CheckIterations(tt.challenge); (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.challenge, err)
		}
	}
}

// TestSCRAM logs in by real SCRAM of every kind.
func TestSCRAM(t *testing.T) {
	ed := certificate([]string{"example.org"}, true)
	tests := []struct {
		name, features string
		plus           bool // offered by the server, in its own view
		version        uint16
		cert           tls.Certificate
		mechanism      string
		first          string // how the client's first message begins
	}{
		{"exporter", mechanisms("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256") + announce("tls-exporter"), true, 0, stock, "SCRAM-SHA-256-PLUS", "p=tls-exporter,,n=romeo,r="},
		{"end point", mechanisms("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256") + announce("tls-server-end-point"), true, 0, stock, "SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=romeo,r="},
		{"TLS 1.2", mechanisms("SCRAM-SHA-1-PLUS", "SCRAM-SHA-1") + announce("tls-exporter", "tls-server-end-point"), true, tls.VersionTLS12, stock, "SCRAM-SHA-1-PLUS", "p=tls-server-end-point,,n=romeo,r="},
		{"unsaid", mechanisms("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"), true, 0, stock, "SCRAM-SHA-256", "n,,n=romeo,r="},
		{"insisting", mechanisms("SCRAM-SHA-512-PLUS"), true, 0, stock, "SCRAM-SHA-512-PLUS", "p=tls-exporter,,n=romeo,r="},
		{"certificate without a hash", mechanisms("SCRAM-SHA-1-PLUS", "SCRAM-SHA-1") + announce("tls-server-end-point"), true, 0, ed, "SCRAM-SHA-1", "n,,n=romeo,r="},
		{"SHA-256", mechanisms("SCRAM-SHA-256", "SCRAM-SHA-1"), false, 0, stock, "SCRAM-SHA-256", "y,,n=romeo,r="},
		{"SHA-512", mechanisms("SCRAM-SHA-512", "SCRAM-SHA-1"), false, 0, stock, "SCRAM-SHA-512", "y,,n=romeo,r="},
		{"SHA-1", mechanisms("SCRAM-SHA-1", "PLAIN"), false, 0, stock, "SCRAM-SHA-1", "y,,n=romeo,r="},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				c := n.config()
				c.RootCAs = poolOf(tt.cert)
				done := start(t.Context(), c)
				p := n.accept()
				p.cert, p.max = tt.cert, tt.version
				p.starttls()
				p.wantStream(tt.features)
				mechanism, first, ok := p.wantSCRAM(tt.plus)
				if mechanism != tt.mechanism || !strings.HasPrefix(first, tt.first) || !ok {
					t.Fatalf("%s with %q, %v; want %s with %q", mechanism, first, ok, tt.mechanism, tt.first)
				}
				p.bind()
				p.want(stanza.NSClient, "presence")
				got := <-done
				if got.err != nil {
					t.Fatal(got.err)
				}
				p.goodbye(got.s)
			})
		})
	}
}

// A password is prepared by SASLprep where that knows its characters, and taken
// as it is where it does not.
func TestPasswords(t *testing.T) {
	tests := []struct{ typed, known string }{
		{"I\u00adX", "IX"}, {"\u2168", "IX"}, {"a\u00a0b", "a b"}, {"пароль", "пароль"},
		{"\U0001F5DD key", "\U0001F5DD key"}, {" spaces ", " spaces "}, {"a,b=c", "a,b=c"},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			c := n.config()
			c.Password = tt.typed
			done := start(t.Context(), c)
			p := n.accept()
			p.pass = tt.known
			p.login()
			got := <-done
			if got.err != nil {
				t.Fatalf("password %q: %v", tt.typed, got.err)
			}
			p.goodbye(got.s)
		})
	}
}

// A server that has -PLUS learns from the signed flag that somebody took its
// offer away.
func TestDowngradeIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		done := start(t.Context(), n.config())
		p := n.accept()
		p.starttls()
		p.wantStream(mechanisms("SCRAM-SHA-256"))
		if _, first, ok := p.wantSCRAM(true); ok || !strings.HasPrefix(first, "y,,") {
			t.Errorf("server content: %v with %q", ok, first)
		}
		var auth *xmpp.AuthError
		if got := <-done; !errors.As(got.err, &auth) {
			t.Errorf("Connect: %v", got.err)
		}
	})
}

// TestSASLStories lets the server of a login do what it should not, and some
// things that it may.
func TestSASLStories(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	challenge := func(p *peer, s string) { p.send("<challenge xmlns='%s'>%s</challenge>", nsSASL, b64(s)) }
	failure := func(inner string) string { return "<failure xmlns='" + nsSASL + "'>" + inner + "</failure>" }
	// conversation does SCRAM up to the client's proof and returns the server's.
	conversation := func(p *peer) string {
		server, err := scram.SHA256.NewServer(credentials(scram.SHA256, password))
		must(err)
		c := server.NewConversation()
		first, err := c.Step(unbase64(p.t, p.want(nsSASL, "auth").Text()))
		must(err)
		challenge(p, first)
		last, err := c.Step(unbase64(p.t, p.want(nsSASL, "response").Text()))
		must(err)
		return last
	}
	nonce := func(p *peer) string {
		_, r, _ := strings.Cut(unbase64(p.t, p.want(nsSASL, "auth").Text()), "r=")
		return r
	}
	const scram256 = "SCRAM-SHA-256"
	tests := []struct {
		name, offered string
		story         func(p *peer)
		want          string // in the error; "": the login goes on
	}{
		{"last word in a challenge", scram256, func(p *peer) {
			challenge(p, conversation(p))
			if e := p.want(nsSASL, "response"); len(e.Children) != 0 {
				p.t.Errorf("answer to the last word: %v", e)
			}
			p.send("<success xmlns='" + nsSASL + "'/>")
		}, ""},
		{"last word in a challenge, success of no length", scram256, func(p *peer) {
			challenge(p, conversation(p))
			p.want(nsSASL, "response")
			p.send("<success xmlns='" + nsSASL + "'>=</success>")
		}, ""},
		{"PLAIN", "PLAIN", func(p *peer) {
			if got := unbase64(p.t, p.want(nsSASL, "auth").Text()); got != "\x00romeo\x00"+password {
				p.t.Errorf("PLAIN with %q", got)
			}
			p.send("<success xmlns='" + nsSASL + "'/>")
		}, ""},
		{"PLAIN, challenged", "PLAIN", func(p *peer) { p.want(nsSASL, "auth"); challenge(p, "who?") }, "a challenge where PLAIN has none"},
		{"wrong signature", scram256, func(p *peer) {
			conversation(p)
			p.send("<success xmlns='%s'>%s</success>", nsSASL, b64("v="+b64(strings.Repeat("x", 32))))
		}, "did not prove that it knows the password"},
		{"no signature", scram256, func(p *peer) { conversation(p); p.send("<success xmlns='" + nsSASL + "'/>") }, "did not prove that it knows the password"},
		{"signature of no length", scram256, func(p *peer) {
			conversation(p)
			p.send("<success xmlns='%s'>%s</success>", nsSASL, b64("v="))
		}, "did not prove that it knows the password"},
		{"error in success", scram256, func(p *peer) {
			conversation(p)
			p.send("<success xmlns='%s'>%s</success>", nsSASL, b64("e=other-error"))
		}, "did not prove that it knows the password"},
		{"success at once", scram256, func(p *peer) { p.want(nsSASL, "auth"); p.send("<success xmlns='" + nsSASL + "'/>") }, "did not prove that it knows the password"},
		{"too few iterations", scram256, func(p *peer) { challenge(p, "r="+nonce(p)+"x,s=c2FsdA==,i=4095") }, `"4095" iterations`},
		{"too many iterations", scram256, func(p *peer) { challenge(p, "r="+nonce(p)+"x,s=c2FsdA==,i=10000001") }, `"10000001" iterations`},
		{"nonce of somebody else", scram256, func(p *peer) { p.want(nsSASL, "auth"); challenge(p, "r=x,s=c2FsdA==,i=4096") }, "nonce"},
		{"mandatory extension", scram256, func(p *peer) { challenge(p, "m=x,r="+nonce(p)+"x,s=c2FsdA==,i=4096") }, "extensions"},
		{"not base64", scram256, func(p *peer) { p.want(nsSASL, "auth"); p.send("<challenge xmlns='" + nsSASL + "'>!</challenge>") }, "not base64"},
		{"another element", scram256, func(p *peer) { p.want(nsSASL, "auth"); p.send("<message/>") }, "<message/> in the midst of the login"},
		{"account disabled", scram256, func(p *peer) { p.want(nsSASL, "auth"); p.send("%s", failure("<account-disabled/>")) }, "the account is disabled"},
		{"expired", scram256, func(p *peer) { p.want(nsSASL, "auth"); p.send("%s", failure("<credentials-expired/>")) }, "the password has expired"},
		{"some other failure", scram256, func(p *peer) {
			p.want(nsSASL, "auth")
			p.send("%s", failure("<mechanism-too-weak/><text>no</text>"))
		}, `the server refuses the login (mechanism-too-weak; by SCRAM-SHA-256; the server says "no"; offered: SCRAM-SHA-256)`},
		{"nothing in common", "ANONYMOUS", func(p *peer) {}, "no way to log in by a password that is known here (offered: ANONYMOUS)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				done := start(t.Context(), n.config())
				p := n.accept()
				p.starttls()
				p.wantStream(mechanisms(tt.offered))
				tt.story(p)
				if tt.want == "" {
					p.bind()
					p.want(stanza.NSClient, "presence")
					got := <-done
					if got.err != nil {
						t.Fatal(got.err)
					}
					p.goodbye(got.s)
					return
				}
				got := <-done
				var auth *xmpp.AuthError
				if !errors.As(got.err, &auth) || !strings.Contains(got.err.Error(), tt.want) {
					t.Errorf("Connect: %v, want an AuthError with %q", got.err, tt.want)
				}
				if auth != nil && auth.Temporary() {
					t.Errorf("%v is temporary", auth)
				}
				if len(n.addresses()) != 1 {
					t.Errorf("dialed %q: a refused login must not be repeated", n.addresses())
				}
			})
		})
	}
}

// What SASL carries must not reach a log, nor must the password.
func TestTraceIsBlanked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		var mu sync.Mutex // the hook is called from two loops
		var seen strings.Builder
		c.Trace = &xmpp.Trace{Element: func(sent bool, xml string) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintln(&seen, sent, xml)
		}}
		done := start(t.Context(), c)
		p := n.accept()
		p.starttls()
		p.wantStream(mechanisms("PLAIN"))
		secret := p.want(nsSASL, "auth").Text()
		p.send("<success xmlns='" + nsSASL + "'/>")
		p.bind()
		p.want(stanza.NSClient, "presence")
		got := <-done
		if got.err != nil {
			t.Fatal(got.err)
		}
		p.goodbye(got.s)
		for _, want := range []string{"true <?xml version='1.0'?><stream:stream to='example.org'", "mechanism='PLAIN'>[hidden]</auth>", "false <success", "<resource>orchard</resource>", "false <iq type='result'", "true <presence><priority>-1</priority></presence>"} {
			if !strings.Contains(seen.String(), want) {
				t.Errorf("trace lacks %q:\n%s", want, &seen)
			}
		}
		if strings.Contains(seen.String(), secret) || strings.Contains(seen.String(), password) {
			t.Errorf("the trace holds the password:\n%s", &seen)
		}
	})
}

package xmpp_test

import (
	"context"
	"encoding/xml"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

func TestLoginAndRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		if got := s.LocalAddr(); got != romeo {
			t.Errorf("LocalAddr %v, want %v", got, romeo)
		}
		type result struct {
			q   stanza.IQ
			err error
		}
		done := make(chan result, 1)
		go func() { // ends with RoundTrip, which the server answers below
			q, err := s.RoundTrip(t.Context(), stanza.IQ{Header: stanza.Header{To: juliet}, Type: stanza.Get, Payload: stanza.New("u:q", "q")})
			done <- result{q, err}
		}()
		q := p.wantIQ(stanza.Get, "u:q", "q")
		if q.To != juliet || q.ID == "" {
			t.Errorf("asked %v with id %q", q.To, q.ID)
		}
		p.send("<iq type='result' id='%s' from='%s'><q xmlns='u:q'>yes</q></iq>", q.ID, juliet)
		if got := <-done; got.err != nil || got.q.Payload.Text() != "yes" {
			t.Errorf("answer %v, %v", got.q, got.err)
		}
		p.goodbye(s)
		if err := s.Err(); !errors.Is(err, xmpp.ErrClosed) {
			t.Errorf("Err after Close: %v", err)
		}
	})
}

func TestHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		got := make(chan stanza.IQ, 8)
		stop := s.HandleIQ(xml.Name{Space: "u:q", Local: "q"}, func(q stanza.IQ) { got <- q })
		p.send("<iq type='set' id='1' from='%s'><q xmlns='u:q'/></iq>", juliet)
		q := <-got
		if err := s.Send(t.Context(), q.Result(stanza.Element{})); err != nil {
			t.Fatal(err)
		}
		if answer := p.wantIQ(stanza.Result, "", ""); answer.ID != "1" || answer.To != juliet {
			t.Errorf("answer %+v", answer)
		}
		p.send("<iq type='error' id='of nothing' from='%s'><q xmlns='u:q'/><error type='cancel'/></iq>", juliet)
		if q := <-got; q.Type != stanza.Failed || q.From != juliet {
			t.Errorf("error that answers nothing: %+v", q)
		}
		stop()
		p.send("<iq type='set' id='2' from='%s'><q xmlns='u:q'/></iq>", juliet)
		if answer := p.wantIQ(stanza.Failed, "", ""); answer.ID != "2" || answer.Error.Condition != stanza.ServiceUnavailable {
			t.Errorf("unhandled question answered by %+v", answer)
		}
		if len(got) != 0 {
			t.Error("handler called after stop")
		}
		p.goodbye(s)
	})
}

func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		var retries []time.Duration
		c.Trace = &xmpp.Trace{Retrying: func(err error, in time.Duration) { retries = append(retries, in) }}
		s, p := loggedIn(t, n, c)
		n.refuse("*", true)
		p.raw.Close()
		synctest.Wait()
		done := make(chan error, 1)
		go func() { // ends with RoundTrip, which waits for the next login
			_, err := s.RoundTrip(t.Context(), stanza.IQ{Header: stanza.Header{To: juliet}, Type: stanza.Get, Payload: stanza.New("u:q", "q")})
			done <- err
		}()
		pass(10 * time.Minute)
		n.refuse("*", false)
		p = n.accept().login()
		q := p.wantIQ(stanza.Get, "u:q", "q")
		p.send("<iq type='result' id='%s' from='%s'/>", q.ID, juliet)
		if err := <-done; err != nil {
			t.Errorf("RoundTrip across a lost connection: %v", err)
		}
		for i, d := range retries {
			if least := min(time.Second<<i, 80*time.Second); d < least || d > least*3/2 {
				t.Errorf("wait %d is %v, want %v to %v", i, d, least, least*3/2)
			}
		}
		if len(retries) < 10 || len(retries) > 15 {
			t.Errorf("%d attempts in 10 minutes: %v", len(retries), retries)
		}
		p.goodbye(s)
	})
}

func TestBackoff(t *testing.T) {
	for n := range 100 {
		least, most := xmpp.Backoff(n, 0), xmpp.Backoff(n, 1)
		if want := min(time.Second<<min(n, 20), 80*time.Second); least != want || most != want*3/2 {
			t.Errorf("attempt %d after %v to %v, want %v to %v", n, least, most, want, want*3/2)
		}
	}
}

// events notes what a trace is told.
type events struct {
	c chan string
}

func (e *events) trace() *xmpp.Trace {
	return &xmpp.Trace{
		Connected:    func(addr jid.JID) { e.c <- "connected " + addr.String() },
		Disconnected: func(err error) { e.c <- "disconnected: " + err.Error() },
		Retrying:     func(err error, _ time.Duration) { e.c <- "retrying: " + err.Error() },
	}
}

// want checks that the next events contain these words.
func (e *events) want(t *testing.T, words ...string) {
	t.Helper()
	for _, w := range words {
		if got := <-e.c; !strings.Contains(got, w) {
			t.Errorf("event %q, want %q", got, w)
		}
	}
}

const streamErrors = "xmlns='urn:ietf:params:xml:ns:xmpp-streams'"

// TestLosses lets the server end a stream in every way after which the session
// comes back.
func TestLosses(t *testing.T) {
	tests := []struct {
		name string
		lose func(p *peer)
		want string
	}{
		{"hangs up", func(p *peer) { p.raw.Close() }, "EOF"},
		{"ends TLS", func(p *peer) { p.conn.Close() }, "EOF"},
		{"closes the stream", func(p *peer) { p.send("</stream:stream>"); p.wantEnd() }, "stream closed by the peer"},
		{"shuts down", func(p *peer) {
			p.send("<stream:error><system-shutdown %s/><text %[1]s>Back soon</text></stream:error></stream:stream>", streamErrors)
		}, `system-shutdown (the server says "Back soon")`},
		{"fails without a word", func(p *peer) { p.send("<stream:error/>") }, "undefined-condition"},
		{"sends broken XML", func(p *peer) { p.send("<message></presence>") }, "syntax error"},
		{"sends a comment", func(p *peer) { p.send("<!-- a -->") }, "not allowed in a stream"},
		{"sends a stanza without end", func(p *peer) { p.send("<message><body>%s", strings.Repeat("x", xmpp.MaxStanza)) }, "stanza too large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				c := n.config()
				e := &events{make(chan string, 16)}
				c.Trace = e.trace()
				s, p := loggedIn(t, n, c)
				e.want(t, "connected "+romeo.String())
				tt.lose(p)
				e.want(t, "disconnected: ", "retrying: ")
				if err := s.Err(); err != nil {
					t.Errorf("Err %v in a session that goes on", err)
				}
				p = n.accept().login()
				e.want(t, "connected "+romeo.String())
				p.goodbye(s)
				e.want(t, "disconnected: session closed")
			})
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				c := n.config()
				c.NoReconnect = true
				s, p := loggedIn(t, n, c)
				tt.lose(p)
				<-s.Done()
				if err := s.Err(); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "xmpp: ") {
					t.Errorf("Err %v, want %q", err, tt.want)
				}
				s.Close()
			})
		})
	}
}

// TestMonsters: stanzas of strangers that are more than we read do not end the
// session.
func TestMonsters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		for id, inside := range []string{
			strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100),
			"<a>" + strings.Repeat("<a/>", stanza.MaxNodes) + "</a>",
			"<!-- a -->",
		} {
			p.send("<message from='%s'>%s</message>", juliet, inside)
			p.send("<iq type='get' id='%d' from='%s'>%s</iq>", id, juliet, inside)
			if q := p.wantIQ(stanza.Failed, "", ""); q.Error.Condition != stanza.BadRequest || q.ID != strconv.Itoa(id) {
				t.Errorf("%.20q: answered %v", inside, q.Element(stanza.NSClient))
			}
		}
		p.goodbye(s)
	})
}

// TestEnds lets the session end for good.
func TestEnds(t *testing.T) {
	refuse := func(condition string) func(p *peer, n *network) {
		return func(p *peer, n *network) {
			p.raw.Close()
			p = n.accept()
			p.starttls()
			p.wantStream(mechanisms("SCRAM-SHA-256"))
			p.want(nsSASL, "auth")
			p.send("<failure xmlns='%s'><%s/></failure>", nsSASL, condition)
		}
	}
	tests := []struct {
		name string
		end  func(p *peer, n *network)
		is   func(error) bool
	}{
		{"conflict", func(p *peer, n *network) {
			p.send("<stream:error><conflict %s/><text %[1]s>Replaced by new connection</text></stream:error></stream:stream>", streamErrors)
		}, func(err error) bool { return errors.Is(err, xmpp.ErrConflict) }},
		{"conflict at the next bind", func(p *peer, n *network) {
			p.raw.Close()
			p = n.accept()
			p.starttls()
			p.authenticate()
			p.wantStream(bindFeature)
			q := p.wantIQ(stanza.Set, nsBind, "bind")
			p.send("<iq type='error' id='%s'><error type='cancel'><conflict xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>", q.ID)
		}, func(err error) bool { return errors.Is(err, xmpp.ErrConflict) }},
		{"password changed", refuse("not-authorized"), func(err error) bool { var auth *xmpp.AuthError; return errors.As(err, &auth) }},
		{"account disabled", refuse("account-disabled"), func(err error) bool {
			var auth *xmpp.AuthError
			return errors.As(err, &auth) && auth.Condition == "account-disabled"
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				s, p := loggedIn(t, n, n.config())
				before := len(n.addresses())
				asked := ask(t.Context(), s, juliet)
				p.wantIQ(stanza.Get, "u:q", "q")
				tt.end(p, n)
				<-s.Done()
				if err := s.Err(); !tt.is(err) {
					t.Errorf("Err %v", err)
				}
				if got := <-asked; got.err == nil {
					t.Error("a question was answered")
				} else if _, temporary := lost(got.err); temporary == tt.is(got.err) {
					t.Errorf("temporary %v: %v", temporary, got.err)
				}
				pass(time.Hour)
				if got := len(n.addresses()) - before; got > 1 {
					t.Errorf("%d more attempts", got)
				}
				s.Close()
			})
		})
	}
}

// A server that cannot check the password at the moment is asked again.
func TestTemporaryAuthFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		p.raw.Close()
		for range 3 {
			p = n.accept()
			p.starttls()
			p.wantStream(mechanisms("SCRAM-SHA-256"))
			p.want(nsSASL, "auth")
			p.send("<failure xmlns='%s'><temporary-auth-failure/></failure>", nsSASL)
		}
		n.accept().login().goodbye(s)
	})
}

// A login that is lost at once does not start the waits from the beginning;
// one that lasted does.
func TestBackoffIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		var waits []time.Duration
		for range 4 {
			lost := time.Now()
			p.raw.Close()
			p = n.accept().login()
			waits = append(waits, time.Since(lost))
		}
		for i, d := range waits {
			if d < time.Second<<i {
				t.Errorf("waits %v", waits)
			}
		}
		pass(59 * time.Second)
		p.send("<message/>")
		pass(59 * time.Second)
		lost := time.Now()
		p.raw.Close()
		p = n.accept().login()
		if d := time.Since(lost); d > 2*time.Second {
			t.Errorf("waited %v after a login that lasted", d)
		}
		p.goodbye(s)
	})
}

// A session that is sent elsewhere goes there first, and only once.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		n.refuse("other.example:5222", true)
		p.send("<stream:error><see-other-host %s>other.example</see-other-host></stream:error>", streamErrors)
		p = n.accept().login()
		if want := []string{"server:5222", "other.example:5222", "server:5222"}; !slices.Equal(n.addresses(), want) {
			t.Errorf("dialed %q, want %q", n.addresses(), want)
		}
		p.goodbye(s)
	})
}

// Close ends the session in every state, at once where there is nobody to say
// good-bye to.
func TestCloseWhileLoggedOut(t *testing.T) {
	t.Run("waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			s, p := loggedIn(t, n, n.config())
			n.refuse("*", true)
			p.raw.Close()
			pass(time.Hour)
			began := time.Now()
			s.Close()
			if took := time.Since(began); took != 0 || !errors.Is(s.Err(), xmpp.ErrClosed) {
				t.Errorf("Close took %v; %v", took, s.Err())
			}
		})
	})
	t.Run("logging in", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			s, p := loggedIn(t, n, n.config())
			p.raw.Close()
			p = n.accept()
			p.starttls()
			began := time.Now()
			s.Close()
			if took := time.Since(began); took != 0 || !errors.Is(s.Err(), xmpp.ErrClosed) {
				t.Errorf("Close took %v; %v", took, s.Err())
			}
		})
	})
}

// Connect's context bounds Connect, not the session.
func TestContextOfConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, n.config())
		p := n.accept().login()
		s := (<-done).s
		cancel()
		p.raw.Close()
		n.accept().login().goodbye(s)
	})
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := xmpp.Connect(ctx, n.config()); !errors.Is(err, context.Canceled) {
			t.Errorf("Connect: %v", err)
		}
	})
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

package xmpp_test

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// answered is the outcome of a RoundTrip that runs beside the test.
type answered struct {
	q   stanza.IQ
	err error
}

func ask(ctx context.Context, s *xmpp.Session, to jid.JID) <-chan answered {
	done := make(chan answered, 1)
	go func() { // ends with RoundTrip; the test takes the result
		q, err := s.RoundTrip(ctx, stanza.IQ{Header: stanza.Header{To: to, ID: "mine", From: juliet}, Type: stanza.Get, Payload: stanza.New("u:q", "q")})
		done <- answered{q, err}
	}()
	return done
}

func TestAnswers(t *testing.T) {
	own := romeo
	parse := func(s string) jid.JID {
		if s == "" {
			return jid.JID{}
		}
		return jid.MustParse(s)
	}
	tests := []struct {
		asked, from string
		want        bool
	}{
		{"juliet@example.org/balcony", "juliet@example.org/balcony", true},
		{"juliet@example.org/balcony", "juliet@example.org", false},
		{"juliet@example.org/balcony", "juliet@example.org/garden", false},
		{"juliet@example.org/balcony", "example.org", false},
		{"juliet@example.org/balcony", "", false},
		{"juliet@example.org", "juliet@example.org/balcony", false},
		{"juliet@example.org", "", false},
		{"", "", true},
		{"", "romeo@example.org", true},
		{"", "romeo@example.org/orchard", true},
		{"", "romeo@example.org/elsewhere", false},
		{"", "example.org", true},
		{"", "example.com", false},
		{"", "juliet@example.org", false},
		{"romeo@example.org", "", true},
		{"romeo@example.org", "romeo@example.org", true},
		{"romeo@example.org", "romeo@example.org/orchard", true},
		{"romeo@example.org", "romeo@example.org/elsewhere", false},
		{"romeo@example.org", "example.org", false},
		{"romeo@example.org/orchard", "romeo@example.org/orchard", true},
		{"romeo@example.org/orchard", "", false},
		{"example.org", "example.org", true},
		{"example.org", "", false},
		{"example.org", "romeo@example.org", false},
		{"relay.example.org", "relay.example.org", true},
		{"relay.example.org", "relay.example.org/1", false},
	}
	for _, tt := range tests {
		if got := xmpp.Answers(parse(tt.from), parse(tt.asked), own); got != tt.want {
			t.Errorf("an answer from %q to a question to %q counts: %v, want %v", tt.from, tt.asked, got, tt.want)
		}
	}
}

// A stranger who knows the id still cannot answer.
func TestAnswerFromElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		done := ask(t.Context(), s, juliet)
		q := p.wantIQ(stanza.Get, "u:q", "q")
		if !q.From.IsZero() || q.ID == "mine" || len(q.ID) < 20 {
			t.Errorf("asked with id %q from %v", q.ID, q.From)
		}
		for _, from := range []string{"mallory@example.org/x", "juliet@example.org", "example.org", "romeo@example.org"} {
			p.send("<iq type='result' id='%s' from='%s'><q xmlns='u:q'>lies</q></iq>", q.ID, from)
			p.send("<iq type='error' id='%s' from='%s'><error type='cancel'/></iq>", q.ID, from)
		}
		p.send("<iq type='result' id='%s'><q xmlns='u:q'>lies</q></iq>", q.ID)
		p.send("<iq type='get' id='%s' from='%s'><ping xmlns='%s'/></iq>", q.ID, juliet, nsPing)
		if pong := p.wantIQ(stanza.Result, "", ""); pong.ID != q.ID || len(done) != 0 {
			t.Errorf("a question with the id of an answer: %+v", pong)
		}
		p.send("<iq type='result' id='%s' from='%s'><q xmlns='u:q'>truth</q></iq>", q.ID, juliet)
		if got := <-done; got.err != nil || got.q.Payload.Text() != "truth" {
			t.Errorf("answer %v, %v", got.q, got.err)
		}
		p.goodbye(s)
	})
}

func TestErrorAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		done := ask(t.Context(), s, juliet)
		q := p.wantIQ(stanza.Get, "u:q", "q")
		p.send("<iq type='error' id='%s' from='%s'><q xmlns='u:q'/><error type='auth'><forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>", q.ID, juliet)
		got := <-done
		var refused *stanza.Error
		if !errors.As(got.err, &refused) || refused.Condition != stanza.Forbidden || got.q.Type != stanza.Failed || got.q.From != juliet {
			t.Errorf("answer %+v, %v", got.q, got.err)
		}
		p.goodbye(s)
	})
}

func TestNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		began := time.Now()
		done := ask(ctx, s, juliet)
		q := p.wantIQ(stanza.Get, "u:q", "q")
		got := <-done
		if !errors.Is(got.err, context.DeadlineExceeded) || !strings.Contains(got.err.Error(), "xmpp: no answer from "+juliet.String()) || time.Since(began) != 7*time.Second {
			t.Errorf("after %v: %v", time.Since(began), got.err)
		}
		// The answer that comes too late answers nothing, and hurts nobody.
		late := make(chan stanza.IQ, 1)
		defer s.HandleIQ(xml.Name{Space: "u:q", Local: "q"}, func(q stanza.IQ) { late <- q })()
		p.send("<iq type='result' id='%s' from='%s'><q xmlns='u:q'/></iq>", q.ID, juliet)
		if q := <-late; q.Type != stanza.Result {
			t.Errorf("late answer: %+v", q)
		}
		p.goodbye(s)
	})
}

func TestWrongQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		for _, kind := range []string{"", stanza.Result, stanza.Failed} {
			if _, err := s.RoundTrip(t.Context(), stanza.IQ{Type: kind}); err == nil {
				t.Errorf("RoundTrip of type %q", kind)
			}
		}
		p.goodbye(s)
	})
}

// lost reports whether an error says that the connection was lost, and will
// be back.
func lost(err error) (yes, temporary bool) {
	var e interface{ Temporary() bool }
	if !errors.As(err, &e) {
		return false, false
	}
	return true, e.Temporary()
}

func TestLostWhileAsking(t *testing.T) {
	for _, final := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			c := n.config()
			c.NoReconnect = final
			s, p := loggedIn(t, n, c)
			done := ask(t.Context(), s, juliet)
			p.wantIQ(stanza.Get, "u:q", "q")
			p.raw.Close()
			if yes, temporary := lost((<-done).err); !yes || temporary == final {
				t.Errorf("NoReconnect %v: lost %v, temporary %v", final, yes, temporary)
			}
			if final {
				<-s.Done()
				if got := <-ask(t.Context(), s, juliet); got.err == nil {
					t.Error("RoundTrip after the end")
				}
				if err := s.Send(t.Context(), stanza.IQ{Type: stanza.Result, Header: stanza.Header{To: juliet, ID: "1"}}); err == nil {
					t.Error("Send after the end")
				}
			}
			s.Close()
		})
	}
}

// While there is no login, a request waits for one as long as it may.
func TestAskingWhileLoggedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		n.refuse("*", true)
		p.raw.Close()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if got := <-ask(ctx, s, juliet); !errors.Is(got.err, context.DeadlineExceeded) || !strings.Contains(got.err.Error(), "xmpp: not logged in") {
			t.Errorf("%v", got.err)
		} else if lost := (*xmpp.LoggedOutError)(nil); !errors.As(got.err, &lost) || lost.Lost == nil {
			t.Errorf("%v does not say why", got.err)
		}
		if err := s.WaitLogin(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitLogin: %v", err)
		}
		patient := ask(t.Context(), s, juliet)
		synctest.Wait()
		s.Close()
		if got := <-patient; !errors.Is(got.err, xmpp.ErrClosed) {
			t.Errorf("after Close: %v", got.err)
		}
	})
}

// What nobody handles is refused, what is malformed is refused or passed over,
// and the stream goes on.
func TestIncoming(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"get", "<iq type='get' id='1' from='juliet@example.org/balcony'><q xmlns='u:other'/></iq>", "service-unavailable"},
		{"set", "<iq type='set' id='1' from='juliet@example.org/balcony'><q xmlns='u:other'/></iq>", "service-unavailable"},
		{"from nobody", "<iq type='get' id='1'><q xmlns='u:other'/></iq>", "service-unavailable"},
		{"set of a ping", "<iq type='set' id='1' from='juliet@example.org/balcony'><ping xmlns='urn:xmpp:ping'/></iq>", "service-unavailable"},
		{"no payload", "<iq type='get' id='1' from='juliet@example.org/balcony'/>", "bad-request"},
		{"no id", "<iq type='get' from='juliet@example.org/balcony'><q xmlns='u:other'/></iq>", ""},
		{"no such type", "<iq type='ask' id='1' from='juliet@example.org/balcony'><q xmlns='u:other'/></iq>", ""},
		{"bad address", "<iq type='get' id='1' from='@'><q xmlns='u:other'/></iq>", ""},
		{"bad own address", "<iq type='get' id='1' from='juliet@example.org/balcony' to='@'><q xmlns='u:other'/></iq>", ""},
		{"answer to nothing", "<iq type='result' id='1' from='juliet@example.org/balcony'/>", ""},
		{"error about nothing", "<iq type='error' id='1' from='juliet@example.org/balcony'><error/></iq>", ""},
		{"message", "<message from='juliet@example.org/balcony'><body>Wherefore?</body></message>", ""},
		{"subscription", "<presence type='subscribe' from='juliet@example.org'/>", ""},
		{"unknown", "<enabled xmlns='urn:xmpp:sm:3'/>", ""},
		{"features again", "<stream:features/>", ""},
		{"white space", "\n \n", ""},
	}
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		for _, tt := range tests {
			p.send("%s<iq type='get' id='end' from='%s'><ping xmlns='%s'/></iq>", tt.in, juliet, nsPing)
			if tt.want != "" {
				q := p.wantIQ(stanza.Failed, "", "")
				if q.Error.Condition != tt.want || q.ID != "1" || !q.From.IsZero() {
					t.Errorf("%s: answered by %v, want %s", tt.name, q.Element(stanza.NSClient), tt.want)
				}
			}
			if q := p.wantIQ(stanza.Result, "", ""); q.ID != "end" {
				t.Errorf("%s: answered by %v, want nothing", tt.name, q.Element(stanza.NSClient))
			}
		}
		p.goodbye(s)
	})
}

// Of several handlers the newest is asked, across logins, until it stops.
func TestHandlersAreStacked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		name := xml.Name{Space: "u:q", Local: "q"}
		called := make(chan string, 8)
		stopA := s.HandleIQ(name, func(stanza.IQ) { called <- "a" })
		stopB := s.HandleIQ(name, func(stanza.IQ) { called <- "b" })
		question := fmt.Sprintf("<iq type='set' id='1' from='%s'><q xmlns='u:q'/></iq>", juliet)
		p.send("%s", question)
		if got := <-called; got != "b" {
			t.Errorf("called %s", got)
		}
		p.raw.Close()
		p = n.accept().login()
		p.send("%s", question)
		if got := <-called; got != "b" {
			t.Errorf("after another login called %s", got)
		}
		stopB()
		stopB()
		p.send("%s", question)
		if got := <-called; got != "a" {
			t.Errorf("after stop called %s", got)
		}
		stopA()
		p.send("%s", question)
		p.wantIQ(stanza.Failed, "", "")
		p.goodbye(s)
	})
}

// Each stanza is one write on the connection, however large.
func TestOneWriteEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		synctest.Wait()
		out := n.clients[0].out
		for _, size := range []int{1, 1000, 10_000} {
			before := out.writes
			q := stanza.IQ{Header: stanza.Header{To: juliet, ID: "1"}, Type: stanza.Result, Payload: stanza.New("u:q", "q", stanza.Text(strings.Repeat("x", size)))}
			if err := s.Send(t.Context(), q); err != nil {
				t.Fatal(err)
			}
			p.wantIQ(stanza.Result, "u:q", "q")
			if got := out.writes - before; got != 1 {
				t.Errorf("a stanza with %d bytes of text took %d writes", size, got)
			}
		}
		p.goodbye(s)
	})
}

// A server that asks without end and reads nothing neither blocks the read
// loop nor grows a queue.
func TestFloodOfQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		synctest.Wait()
		out := n.clients[0].out
		out.update(func() { out.stalled = true })
		for range 10 * xmpp.MaxReplies {
			p.send("<iq type='get' id='1'><ping xmlns='%s'/></iq>", nsPing)
		}
		done := make(chan struct{})
		s.HandleIQ(xml.Name{Space: "u:q", Local: "q"}, func(stanza.IQ) { close(done) })
		p.send("<iq type='get' id='1'><q xmlns='u:q'/></iq>")
		<-done
		out.update(func() { out.stalled = false })
		synctest.Wait()
		if err := s.Send(t.Context(), stanza.IQ{Header: stanza.Header{ID: "end"}, Type: stanza.Result}); err != nil {
			t.Fatal(err)
		}
		answers := 0
		for p.wantIQ(stanza.Result, "", "").ID != "end" {
			answers++
		}
		if answers == 0 || answers > xmpp.MaxReplies+2 {
			t.Errorf("%d answers", answers)
		}
		p.goodbye(s)
	})
}

package xmpp_test

import (
	"encoding/xml"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp"
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

func TestWrongPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		c.Password = "guess"
		done := start(t.Context(), c)
		p := n.accept()
		p.starttls()
		p.wantStream(mechanisms("SCRAM-SHA-256"))
		if _, _, ok := p.wantSCRAM(false); ok {
			t.Fatal("the server accepts a wrong password")
		}
		got := <-done
		var auth *xmpp.AuthError
		if !errors.As(got.err, &auth) || auth.Condition != "not-authorized" || auth.Text != "No, thank you." || auth.Mechanism != "SCRAM-SHA-256" {
			t.Fatalf("Connect: %v", got.err)
		}
	})
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

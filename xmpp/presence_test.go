package xmpp_test

import (
	"context"
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

// resources calls Resources beside the test.
func resources(ctx context.Context, s *xmpp.Session, bare jid.JID) <-chan string {
	done := make(chan string, 1)
	go func() { // ends with Resources; the test takes the result
		found, err := s.Resources(ctx, bare)
		var names []string
		for _, f := range found {
			names = append(names, f.String())
		}
		if err != nil {
			names = append(names, err.Error())
		}
		done <- strings.Join(names, " ")
	}()
	return done
}

// settle answers the ping by which Resources finds out that the server has
// told what it knows.
func (p *peer) settle() {
	p.t.Helper()
	q := p.wantIQ(stanza.Get, nsPing, "ping")
	if q.To != romeo.Server() {
		p.t.Errorf("pinged %v", q.To)
	}
	p.send("<iq type='result' id='%s' from='%s'/>", q.ID, q.To)
}

func TestResources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		began := time.Now()
		done := resources(t.Context(), s, juliet)
		for _, who := range []string{"balcony", "attic", "chapel"} {
			p.send("<presence from='juliet@example.org/%s'/>", who)
		}
		p.send("<presence from='juliet@example.org/garden'><priority>5</priority><show>away</show></presence>")
		p.send("<presence from='juliet@example.org/tomb'><priority>-1</priority></presence>")
		p.send("<presence from='%s'><priority>-1</priority></presence>", romeo)
		p.send("<presence from='romeo@example.org/mantua'/>")
		p.settle()
		if got, want := <-done, "juliet@example.org/garden juliet@example.org/attic juliet@example.org/balcony juliet@example.org/chapel juliet@example.org/tomb"; got != want {
			t.Errorf("resources %q, want %q", got, want)
		}
		if took := time.Since(began); took != xmpp.PresenceQuiet {
			t.Errorf("took %v", took)
		}
		pass(xmpp.PresenceWait)
		// Settled: no further ping. One's own resource is not among the others.
		if got := <-resources(t.Context(), s, romeo.Bare()); got != "romeo@example.org/mantua" {
			t.Errorf("own resources %q", got)
		}
		steps := []struct{ in, want string }{
			{"<presence from='juliet@example.org/attic' type='unavailable'/>", "juliet@example.org/garden juliet@example.org/balcony juliet@example.org/chapel juliet@example.org/tomb"},
			{"<presence from='juliet@example.org/garden'/>", "juliet@example.org/balcony juliet@example.org/chapel juliet@example.org/garden juliet@example.org/tomb"},
			{"<presence from='juliet@example.org' type='error'><error/></presence>", "juliet@example.org/balcony juliet@example.org/chapel juliet@example.org/garden juliet@example.org/tomb"},
			{"<presence from='juliet@example.org/new' type='subscribe'/>", "juliet@example.org/balcony juliet@example.org/chapel juliet@example.org/garden juliet@example.org/tomb"},
			{"<presence from='juliet@example.org'/>", "juliet@example.org/balcony juliet@example.org/chapel juliet@example.org/garden juliet@example.org/tomb"},
			{"<presence from='juliet@example.org' type='unavailable'/>", ""},
		}
		for _, step := range steps {
			p.send("%s", step.in)
			synctest.Wait()
			if got := <-resources(t.Context(), s, juliet); got != step.want {
				t.Errorf("after %s: %q, want %q", step.in, got, step.want)
			}
		}
		p.goodbye(s)
	})
}

// Right after a login there is a second for the presence of a contact of whom
// the server has said nothing yet; later there is none.
func TestResourcesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		began := time.Now()
		done := resources(t.Context(), s, juliet)
		nobody := resources(t.Context(), s, jid.MustParse("tybalt@example.org"))
		synctest.Wait() // both have asked
		p.settle()
		p.settle()
		pass(400 * time.Millisecond)
		p.send("<presence from='paris@example.org/x'/><presence from='%s'/>", juliet)
		pass(70 * time.Millisecond)
		p.send("<presence from='juliet@example.org/attic'/>")
		if got := <-done; got != "juliet@example.org/attic juliet@example.org/balcony" || time.Since(began) != 470*time.Millisecond+xmpp.PresenceQuiet {
			t.Errorf("resources %q after %v", got, time.Since(began))
		}
		if got := <-nobody; got != "" || time.Since(began) != xmpp.PresenceWait {
			t.Errorf("resources of nobody %q after %v", got, time.Since(began))
		}
		began = time.Now()
		if got := <-resources(t.Context(), s, jid.MustParse("tybalt@example.org")); got != "" || time.Since(began) != 0 {
			t.Errorf("later: %q after %v", got, time.Since(began))
		}
		p.goodbye(s)
	})
}

// The wait is bounded when the server does not answer, ends with its context,
// and with the connection.
func TestResourcesWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if got := <-resources(ctx, s, juliet); !strings.Contains(got, context.DeadlineExceeded.Error()) || time.Since(began) != 2*time.Second {
			t.Errorf("resources %q after %v", got, time.Since(began))
		}
		began = time.Now()
		if got := <-resources(t.Context(), s, juliet); got != "" || time.Since(began) != xmpp.SettleWait {
			t.Errorf("resources %q after %v", got, time.Since(began))
		}
		p.conn.Close()
		synctest.Wait()
		p = n.accept().login()
		done := resources(t.Context(), s, juliet)
		p.wantIQ(stanza.Get, nsPing, "ping")
		p.raw.Close()
		if got := <-done; !strings.Contains(got, "connection lost") {
			t.Errorf("resources %q", got)
		}
		s.Close()
		if _, err := s.Resources(t.Context(), juliet); !errors.Is(err, xmpp.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// An error as the answer to the ping is an answer. Presences do not survive
// the login by which they came.
func TestPresencesOfALogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		done := resources(t.Context(), s, juliet)
		p.send("<presence from='%s'/>", juliet)
		q := p.wantIQ(stanza.Get, nsPing, "ping")
		p.send("<iq type='error' id='%s' from='%s'><error type='cancel'/></iq>", q.ID, q.To)
		if got := <-done; got != juliet.String() {
			t.Errorf("resources %q", got)
		}
		p.conn.Close()
		synctest.Wait()
		p = n.accept().login()
		done = resources(t.Context(), s, juliet)
		p.settle()
		if got := <-done; got != "" {
			t.Errorf("resources of the login before: %q", got)
		}
		p.goodbye(s)
	})
}

func TestPresencesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		done := resources(t.Context(), s, juliet)
		var b strings.Builder
		for i := range xmpp.MaxOfContact + 10 {
			fmt.Fprintf(&b, "<presence from='juliet@example.org/%03d'/>", i)
		}
		for i := range xmpp.MaxPresences {
			fmt.Fprintf(&b, "<presence from='mallory%d@example.org/x'/>", i)
		}
		b.WriteString("<presence from='paris@example.org/x'/><presence from='juliet@example.org/000'><priority>9</priority></presence>")
		p.send("%s", b.String())
		p.settle()
		pass(xmpp.PresenceWait)
		got := strings.Fields(<-done)
		if len(got) != xmpp.MaxOfContact || got[0] != "juliet@example.org/000" {
			t.Errorf("%d resources, first %q", len(got), got[0])
		}
		known := 0
		for i := range xmpp.MaxPresences {
			found, err := s.Resources(t.Context(), jid.MustParse(fmt.Sprintf("mallory%d@example.org", i)))
			if err != nil {
				t.Fatal(err)
			}
			known += len(found)
			if len(found) == 0 {
				break // each further one waits for its second
			}
		}
		if known != xmpp.MaxPresences-xmpp.MaxOfContact {
			t.Errorf("%d presences are known", known)
		}
		p.goodbye(s)
	})
}

// What the program says about itself is said again after each login.
func TestSendPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		c.NoPresence = true
		done := start(t.Context(), c)
		p := n.accept()
		p.starttls()
		p.authenticate()
		p.bind()
		got := <-done
		if got.err != nil {
			t.Fatal(got.err)
		}
		s := got.s
		if err := s.SendPresence(t.Context(), stanza.Presence{Header: stanza.Header{To: juliet.Bare()}, Type: stanza.Subscribe}); err != nil {
			t.Fatal(err)
		}
		if e := p.want(stanza.NSClient, "presence"); e.Attr("type") != "subscribe" || e.Attr("to") != "juliet@example.org" {
			t.Errorf("first presence %v", e)
		}
		if err := s.SendPresence(t.Context(), stanza.Presence{Header: stanza.Header{From: juliet}, Priority: -7}); err != nil {
			t.Fatal(err)
		}
		if e := p.want(stanza.NSClient, "presence"); e.Child(stanza.NSClient, "priority").Text() != "-7" || e.Attr("from") != "" {
			t.Errorf("presence %v", e)
		}
		// The server has something to tell from now on.
		began := time.Now()
		asked := resources(t.Context(), s, juliet)
		p.settle()
		if got := <-asked; got != "" || time.Since(began) != xmpp.PresenceWait {
			t.Errorf("resources %q after %v", got, time.Since(began))
		}
		p.conn.Close()
		p = n.accept()
		p.starttls()
		p.authenticate()
		p.bind()
		if e := p.want(stanza.NSClient, "presence"); e.Child(stanza.NSClient, "priority").Text() != "-7" {
			t.Errorf("presence after another login %v", e)
		}
		p.goodbye(s)
	})
}

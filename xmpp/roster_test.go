package xmpp_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// roster calls Roster beside the test.
func roster(ctx context.Context, s *xmpp.Session) <-chan string {
	done := make(chan string, 1)
	go func() { // ends with Roster; the test takes the result
		items, err := s.Roster(ctx)
		var lines []string
		for _, i := range items {
			lines = append(lines, fmt.Sprintf("%s %q %s", i.JID, i.Name, i.Subscription))
		}
		if err != nil {
			lines = append(lines, err.Error())
		}
		done <- strings.Join(lines, "; ")
	}()
	return done
}

func TestRoster(t *testing.T) {
	const (
		both  = `juliet@example.org "Juliet" both`
		nurse = `nurse@example.org "" none`
	)
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		done := roster(t.Context(), s)
		q := p.wantIQ(stanza.Get, nsRoster, "query")
		// A push may follow the answer at once.
		p.send("<iq type='result' id='%s'><query xmlns='%s'><item jid='nurse@example.org'/><item jid='juliet@example.org' name='Juliet' subscription='both'><group>Capulet</group></item><item jid='@'/><item/></query></iq>"+
			"<iq type='set' id='p0'><query xmlns='%[2]s'><item jid='paris@example.org' subscription='from'/></query></iq>", q.ID, nsRoster)
		p.wantIQ(stanza.Result, "", "")
		<-done
		steps := []struct {
			name, from, item string
			refused          bool
			want             string
		}{
			{"known before", "", "<item jid='paris@example.org' subscription='remove'/>", false, both + "; " + nurse},
			{"by the account", "from='romeo@example.org'", "<item jid='tybalt@example.org' subscription='to'/>", false, both + "; " + nurse + `; tybalt@example.org "" to`},
			{"by a stranger", "from='mallory@example.org/x'", "<item jid='mallory@example.org' subscription='both'/>", true, both + "; " + nurse + `; tybalt@example.org "" to`},
			{"by another resource", "from='romeo@example.org/x'", "<item jid='mallory@example.org' subscription='both'/>", true, both + "; " + nurse + `; tybalt@example.org "" to`},
			{"by the server's own address", "from='example.org'", "<item jid='mallory@example.org' subscription='both'/>", true, both + "; " + nurse + `; tybalt@example.org "" to`},
			{"change", "", "<item jid='tybalt@example.org' name='Cat' subscription='none'/>", false, both + "; " + nurse + `; tybalt@example.org "Cat" none`},
			{"removal", "", "<item jid='tybalt@example.org' subscription='remove'/>", false, both + "; " + nurse},
			{"removal of nobody", "", "<item jid='tybalt@example.org' subscription='remove'/>", false, both + "; " + nurse},
		}
		for i, step := range steps {
			p.send("<iq type='set' id='p%d' %s><query xmlns='%s'>%s</query></iq>", i, step.from, nsRoster, step.item)
			want := stanza.Result
			if step.refused {
				want = stanza.Failed
			}
			if q := p.wantIQ(want, "", ""); q.ID != fmt.Sprintf("p%d", i) {
				t.Errorf("%s: answered by %+v", step.name, q)
			}
			if got := <-roster(t.Context(), s); got != step.want {
				t.Errorf("%s: roster %q, want %q", step.name, got, step.want)
			}
		}
		// Another login, another roster.
		p.conn.Close()
		p = n.accept().login()
		p.send("<iq type='set' id='early'><query xmlns='%s'><item jid='early@example.org'/></query></iq>", nsRoster)
		p.wantIQ(stanza.Result, "", "")
		done = roster(t.Context(), s)
		q = p.wantIQ(stanza.Get, nsRoster, "query")
		p.send("<iq type='result' id='%s' from='romeo@example.org'/>", q.ID)
		if got := <-done; got != "" {
			t.Errorf("roster after another login %q", got)
		}
		if got := <-roster(t.Context(), s); got != "" {
			t.Errorf("empty roster, again %q", got)
		}
		p.goodbye(s)
	})
}

func TestRosterRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		for range 2 { // a refusal is not remembered
			done := roster(t.Context(), s)
			q := p.wantIQ(stanza.Get, nsRoster, "query")
			p.send("<iq type='error' id='%s'><error type='cancel'><not-allowed xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>", q.ID)
			if got := <-done; got != "not-allowed" {
				t.Errorf("roster %q", got)
			}
		}
		p.goodbye(s)
	})
}

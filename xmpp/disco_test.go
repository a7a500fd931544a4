package xmpp_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

func TestDescribed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		c.Features = []string{"u:z"}
		s, p := loggedIn(t, n, c)
		wants := func(want string) {
			t.Helper()
			p.send("<iq type='get' id='1' from='%s'><query xmlns='%s'/></iq>", juliet, nsInfo)
			q := p.wantIQ(stanza.Result, nsInfo, "query")
			identity := q.Payload.Child(nsInfo, "identity")
			if identity.Attr("category") != "client" || identity.Attr("type") != "pc" || identity.Attr("name") != "dtcp" {
				t.Errorf("identity %v", identity)
			}
			var got []string
			for _, f := range q.Payload.All(nsInfo, "feature") {
				got = append(got, f.Attr("var"))
			}
			if strings.Join(got, " ") != want {
				t.Errorf("features %q, want %q", got, want)
			}
		}
		wants(nsInfo + " u:z " + nsPing)
		removeA, removeA2, removeZ := s.AddFeature("u:a"), s.AddFeature("u:a"), s.AddFeature("u:z")
		wants(nsInfo + " u:a u:z " + nsPing)
		removeA()
		removeA()
		removeZ()
		wants(nsInfo + " u:a u:z " + nsPing)
		removeA2()
		wants(nsInfo + " u:z " + nsPing)
		p.send("<iq type='get' id='1' from='%s'><query xmlns='%s' node='u:node'/></iq>", juliet, nsInfo)
		if q := p.wantIQ(stanza.Failed, "", ""); q.Error.Condition != stanza.ItemNotFound {
			t.Errorf("a node: %+v", q)
		}
		p.goodbye(s)
	})
}

func TestInfoAndPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		type result struct {
			info xmpp.Info
			err  error
		}
		done := make(chan result, 1)
		ask := func() { // ends with Info; the test takes the result
			info, err := s.Info(t.Context(), juliet)
			done <- result{info, err}
		}
		go ask()
		q := p.wantIQ(stanza.Get, nsInfo, "query")
		p.send("<iq type='result' id='%s' from='%s'><query xmlns='%s'><identity category='proxy' type='dtcp' name='Relay'/><feature var='u:a'/><feature var='u:b'/><x xmlns='jabber:x:data'/></query></iq>", q.ID, juliet, nsInfo)
		got := <-done
		if got.err != nil || !slices.Equal(got.info.Identities, []xmpp.Identity{{Category: "proxy", Type: "dtcp", Name: "Relay"}}) || !got.info.Has("u:a") || !got.info.Has("u:b") || got.info.Has("u:c") {
			t.Errorf("Info: %+v", got)
		}
		go ask()
		q = p.wantIQ(stanza.Get, nsInfo, "query")
		p.send("<iq type='error' id='%s' from='%s'><error type='cancel'><service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>", q.ID, juliet)
		var refused *stanza.Error
		if got := <-done; !errors.As(got.err, &refused) || refused.Condition != stanza.ServiceUnavailable {
			t.Errorf("Info: %+v", got)
		}
		pinged := make(chan error, 1)
		go func() { pinged <- s.Ping(t.Context(), juliet) }() // ends with Ping; the test takes the result
		q = p.wantIQ(stanza.Get, nsPing, "ping")
		p.send("<iq type='result' id='%s' from='%s'/>", q.ID, juliet)
		if err := <-pinged; err != nil {
			t.Errorf("Ping: %v", err)
		}
		p.goodbye(s)
	})
}

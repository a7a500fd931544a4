package rendezvous_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// friends makes juliet and romeo see each other.
func (w *world) friends() {
	w.t.Helper()
	if err := w.server.Subscribe(juliet, romeo); err != nil {
		w.t.Fatal(err)
	}
}

func here(from, to string) string { return "<presence from='" + from + "' to='" + to + "'/>" }

func gone(from, to string) string {
	return "<presence type='unavailable' from='" + from + "' to='" + to + "'/>"
}

func TestPresence(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.friends()
		a, stranger := w.login(juliet, "balcony"), w.login(nurse, "kitchen")
		a.present()
		stranger.present()

		// A contact logs in: both learn of each other, by broadcast and probe.
		b := w.login(romeo, "orchard")
		start := time.Now()
		b.write("<presence><show>away</show><priority>-1</priority></presence>")
		a.want("<presence from='romeo@example.org/orchard' to='juliet@example.org'><show>away</show><priority>-1</priority></presence>")
		if d := time.Since(start); d != 2*oneWay {
			t.Errorf("presence took %v", d)
		}
		b.want("<presence from='romeo@example.org/orchard' to='romeo@example.org'><show>away</show><priority>-1</priority></presence>",
			here("juliet@example.org/balcony", "romeo@example.org/orchard"))

		// A second resource of one's own, too.
		b2 := w.login(romeo, "street")
		b2.write("<presence/>")
		a.want(here("romeo@example.org/street", "juliet@example.org"))
		b.want(here("romeo@example.org/street", "romeo@example.org"))
		b2.want(here("romeo@example.org/street", "romeo@example.org"))
		b2.wantAnyOrder(here("juliet@example.org/balcony", "romeo@example.org/street"),
			"<presence from='romeo@example.org/orchard' to='romeo@example.org/street'><show>away</show><priority>-1</priority></presence>")

		// A change is told, and nobody is probed again.
		b.write("<presence/>")
		for _, c := range []*client{a, b, b2} {
			c.want(here("romeo@example.org/orchard", c.jid.Bare().String()))
		}

		// The end, by three ways: said, closed, cut.
		b.write("<presence type='unavailable'><status>tired</status></presence>")
		a.want("<presence type='unavailable' from='romeo@example.org/orchard' to='juliet@example.org'><status>tired</status></presence>")
		b2.want("<presence type='unavailable' from='romeo@example.org/orchard' to='romeo@example.org'><status>tired</status></presence>")
		b.sync()
		b.write("<presence/>")
		a.want(here("romeo@example.org/orchard", "juliet@example.org"))
		b2.want(here("romeo@example.org/orchard", "romeo@example.org"))
		b.write("</stream:stream>")
		a.want(gone("romeo@example.org/orchard", "juliet@example.org"))
		b2.want(gone("romeo@example.org/orchard", "romeo@example.org"))
		b2.raw.Close()
		a.want(gone("romeo@example.org/street", "juliet@example.org"))
		a.sync()
		stranger.sync()
	})
}

// TestPresenceAcrossConflict: contacts see the old stream go before the new
// one comes.
func TestPresenceAcrossConflict(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.friends()
		a := w.login(juliet, "balcony")
		a.present()
		w.login(romeo, "orchard").write("<presence/>")
		a.want(here("romeo@example.org/orchard", "juliet@example.org"))
		again := w.login(romeo, "orchard")
		again.write("<presence/>")
		a.want(gone("romeo@example.org/orchard", "juliet@example.org"), here("romeo@example.org/orchard", "juliet@example.org"))
		a.sync()
	})
}

func TestDirectedPresence(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.server.SetLimits(rendezvous.Limits{Directed: 3})
		a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		b.present()
		a.write("<presence to='romeo@example.org/orchard' id='1'/>")
		b.want("<presence from='juliet@example.org/balcony' to='romeo@example.org/orchard' id='1'/>")
		a.write("<presence to='romeo@example.org' id='2'/>")
		b.want("<presence from='juliet@example.org/balcony' to='romeo@example.org' id='2'/>")
		a.write("<presence to='romeo@example.org' type='unavailable'/>")
		b.want(gone("juliet@example.org/balcony", "romeo@example.org"))
		a.present()
		b.sync()
		for _, resource := range []string{"1", "2"} {
			a.write("<presence to='nurse@example.org/" + resource + "'/>")
		}
		a.sync()
		a.write("<presence to='nurse@example.org/3' id='4'/>")
		a.want("<presence type='error' id='4' from='nurse@example.org/3' to='juliet@example.org/balcony'>" + fault("modify", "406", "policy-violation") + "</presence>")
		a.raw.Close()
		b.want(gone("juliet@example.org/balcony", "romeo@example.org/orchard"))
		b.sync()

		b.write("<presence type='error' to='nurse@example.org/x'/>")
		c := w.login(nurse, "kitchen")
		b.write("<presence type='error' to='nurse@example.org/kitchen'/>")
		c.want("<presence type='error' from='romeo@example.org/orchard' to='nurse@example.org/kitchen'/>")
		b.sync()
	})
}

func TestProbeOfAClient(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.friends()
		a, b, c := w.login(juliet, "balcony"), w.login(romeo, "orchard"), w.login(nurse, "kitchen")
		b.present()
		a.write("<presence type='probe' to='romeo@example.org'/>")
		a.want(here("romeo@example.org/orchard", "juliet@example.org/balcony"))
		c.write("<presence type='probe' to='romeo@example.org'/><presence type='probe' to='tybalt@example.org'/>")
		c.sync()
	})
}

const rosterGet = "<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>"

func roster(to jid.JID, items string) string {
	query := "<query xmlns='jabber:iq:roster'/>"
	if items != "" {
		query = "<query xmlns='jabber:iq:roster'>" + items + "</query>"
	}
	return fmt.Sprintf("<iq type='result' id='roster' to='%s'>%s</iq>", to, query)
}

func push(to jid.JID, item string) string {
	return fmt.Sprintf("<iq type='set' id='*' to='%s'><query xmlns='jabber:iq:roster'>%s</query></iq>", to, item)
}

// story is two users who follow their rosters, and one who does not.
func story(t *testing.T, tell func(t *testing.T, w *world, a, b *client)) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		a, b, silent := w.login(juliet, "balcony"), w.login(romeo, "orchard"), w.login(romeo, "silent")
		for _, c := range []*client{a, b} {
			c.write(rosterGet)
			c.want(roster(c.jid, ""))
			c.present()
		}
		tell(t, w, a, b)
		a.sync()
		b.sync()
		silent.sync()
	})
}

func subscribe(a, b *client) {
	a.write("<presence type='subscribe' to='romeo@example.org' id='s'><nick xmlns='u:n'>J</nick></presence>")
	a.want(push(a.jid, "<item jid='romeo@example.org' subscription='none' ask='subscribe'/>"))
	b.want("<presence type='subscribe' from='juliet@example.org' to='romeo@example.org' id='s'><nick xmlns='u:n'>J</nick></presence>")
}

func grant(a, b *client) {
	subscribe(a, b)
	b.write("<presence type='subscribed' to='juliet@example.org'/>")
	b.want(push(b.jid, "<item jid='juliet@example.org' subscription='from'/>"))
	a.want("<presence type='subscribed' from='romeo@example.org' to='juliet@example.org'/>",
		push(a.jid, "<item jid='romeo@example.org' subscription='to'/>"),
		here("romeo@example.org/orchard", "juliet@example.org"))
}

func mutual(a, b *client) {
	grant(a, b)
	b.write("<presence type='subscribe' to='juliet@example.org'/>")
	b.want(push(b.jid, "<item jid='juliet@example.org' subscription='from' ask='subscribe'/>"))
	a.want("<presence type='subscribe' from='romeo@example.org' to='juliet@example.org'/>")
	a.write("<presence type='subscribed' to='romeo@example.org'/>")
	a.want(push(a.jid, "<item jid='romeo@example.org' subscription='both'/>"))
	b.want("<presence type='subscribed' from='juliet@example.org' to='romeo@example.org'/>",
		push(b.jid, "<item jid='juliet@example.org' subscription='both'/>"),
		here("juliet@example.org/balcony", "romeo@example.org"))
}

func TestSubscription(t *testing.T) {
	t.Run("granted", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			grant(a, b)
			b.write("<presence id='x'/>")
			a.want("<presence id='x' from='romeo@example.org/orchard' to='juliet@example.org'/>")
			b.want("<presence id='x' from='romeo@example.org/orchard' to='romeo@example.org'/>")
			a.write("<presence id='x'/>")
			a.want("<presence id='x' from='juliet@example.org/balcony' to='juliet@example.org'/>")
		})
	})
	t.Run("mutual", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) { mutual(a, b) })
	})
	t.Run("refused", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			subscribe(a, b)
			b.write("<presence type='unsubscribed' to='juliet@example.org'/>")
			a.want("<presence type='unsubscribed' from='romeo@example.org' to='juliet@example.org'/>",
				push(a.jid, "<item jid='romeo@example.org' subscription='none'/>"))
			b.write(rosterGet)
			b.want(roster(b.jid, ""))
		})
	})
	t.Run("withdrawn before the answer", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			subscribe(a, b)
			a.write("<presence type='unsubscribe' to='romeo@example.org'/>")
			a.want(push(a.jid, "<item jid='romeo@example.org' subscription='none'/>"))
			b.want("<presence type='unsubscribe' from='juliet@example.org' to='romeo@example.org'/>")
			b.write("<presence type='subscribed' to='juliet@example.org'/>")
		})
	})
	t.Run("ended by the one who sees", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			mutual(a, b)
			a.write("<presence type='unsubscribe' to='romeo@example.org'/>")
			a.want(push(a.jid, "<item jid='romeo@example.org' subscription='from'/>"), gone("romeo@example.org/orchard", "juliet@example.org"))
			b.want("<presence type='unsubscribe' from='juliet@example.org' to='romeo@example.org'/>",
				push(b.jid, "<item jid='juliet@example.org' subscription='to'/>"))
		})
	})
	t.Run("ended by the one who is seen", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			mutual(a, b)
			b.write("<presence type='unsubscribed' to='juliet@example.org'/>")
			b.want(push(b.jid, "<item jid='juliet@example.org' subscription='to'/>"))
			a.want("<presence type='unsubscribed' from='romeo@example.org' to='juliet@example.org'/>",
				push(a.jid, "<item jid='romeo@example.org' subscription='from'/>"), gone("romeo@example.org/orchard", "juliet@example.org"))
		})
	})
	t.Run("ended by removal", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			mutual(a, b)
			b.write("<iq type='set' id='1'><query xmlns='jabber:iq:roster'><item jid='juliet@example.org' subscription='remove'/></query></iq>")
			b.want(gone("juliet@example.org/balcony", "romeo@example.org"),
				push(b.jid, "<item jid='juliet@example.org' subscription='remove'/>"),
				fmt.Sprintf("<iq type='result' id='1' to='%s'/>", b.jid))
			a.want("<presence type='unsubscribe' from='romeo@example.org' to='juliet@example.org'/>",
				push(a.jid, "<item jid='romeo@example.org' subscription='to'/>"),
				"<presence type='unsubscribed' from='romeo@example.org' to='juliet@example.org'/>",
				push(a.jid, "<item jid='romeo@example.org' subscription='none'/>"),
				gone("romeo@example.org/orchard", "juliet@example.org"))
		})
	})
	t.Run("asked while away", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			b.write("<presence type='unavailable'/>")
			b.sync()
			a.write("<presence type='subscribe' to='romeo@example.org'/>")
			a.want(push(a.jid, "<item jid='romeo@example.org' subscription='none' ask='subscribe'/>"))
			a.sync()
			b.present()
			b.want("<presence type='subscribe' from='juliet@example.org' to='romeo@example.org'/>")
		})
	})
	t.Run("asked again when granted", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			grant(a, b)
			a.write("<presence type='subscribe' to='romeo@example.org'/>")
			a.want(here("romeo@example.org/orchard", "juliet@example.org"))
		})
	})
	t.Run("granted unasked", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			b.write("<presence type='subscribed' to='juliet@example.org'/><presence type='unsubscribed' to='juliet@example.org'/><presence type='unsubscribe' to='juliet@example.org'/>")
		})
	})
	t.Run("given by the operator", func(t *testing.T) {
		story(t, func(t *testing.T, w *world, a, b *client) {
			w.friends()
			a.want(push(a.jid, "<item jid='romeo@example.org' subscription='both'/>"), here("romeo@example.org/orchard", "juliet@example.org"))
			b.want(here("juliet@example.org/balcony", "romeo@example.org"), push(b.jid, "<item jid='juliet@example.org' subscription='both'/>"))
			w.friends() // changes nothing but the pushes
			a.next()
			b.next()
			a.write("<iq type='get' id='1' to='romeo@example.org'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>")
			a.want(fmt.Sprintf("<iq type='result' id='1' from='romeo@example.org' to='%s'><query xmlns='http://jabber.org/protocol/disco#items'><item jid='romeo@example.org/orchard'/></query></iq>", a.jid))
			for _, bad := range [][2]jid.JID{{juliet, juliet}, {juliet, jid.MustParse("tybalt@example.org")}, {juliet, jid.MustParse("romeo@elsewhere.example")}} {
				if err := w.server.Subscribe(bad[0], bad[1]); err == nil {
					t.Errorf("Subscribe(%v, %v) succeeded", bad[0], bad[1])
				}
			}
		})
	})
}

func TestRemoveAccount(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.friends()
		a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		a.write(rosterGet)
		a.want(roster(a.jid, "<item jid='romeo@example.org' subscription='both'/>"))
		a.present()
		b.write("<presence/>")
		a.want(here("romeo@example.org/orchard", "juliet@example.org"))
		if err := w.server.RemoveAccount("Romeo"); err != nil {
			t.Fatal(err)
		}
		b.want(here("romeo@example.org/orchard", "romeo@example.org"), here("juliet@example.org/balcony", "romeo@example.org/orchard"))
		b.wantEnd("not-authorized")
		a.want(gone("romeo@example.org/orchard", "juliet@example.org"),
			"<presence type='unsubscribe' from='romeo@example.org' to='juliet@example.org'/>",
			push(a.jid, "<item jid='romeo@example.org' subscription='to'/>"),
			"<presence type='unsubscribed' from='romeo@example.org' to='juliet@example.org'/>",
			push(a.jid, "<item jid='romeo@example.org' subscription='none'/>"))
		a.sync()
		if err := w.server.RemoveAccount("romeo"); !errors.Is(err, rendezvous.ErrNoAccount) {
			t.Errorf("second removal: %v", err)
		}
	})
}

func TestRoster(t *testing.T) {
	set := func(items string) string {
		return "<iq type='set' id='set'><query xmlns='jabber:iq:roster'>" + items + "</query></iq>"
	}
	inBubble(t, nil, func(t *testing.T, w *world) {
		a, other := w.login(juliet, "balcony"), w.login(juliet, "chamber")
		for _, c := range []*client{a, other} {
			c.write(rosterGet)
			c.want(roster(c.jid, ""))
		}
		ok := fmt.Sprintf("<iq type='result' id='set' to='%s'/>", a.jid)
		for _, item := range []string{
			"<item jid='romeo@example.org' name='R' subscription='none'><group>lovers</group><group>Montague</group></item>",
			"<item jid='romeo@example.org' subscription='none'/>",
			"<item jid='a@elsewhere.example' name='&lt;&amp;&#39;' subscription='none'/>",
		} {
			a.write(set(item))
			a.want(push(a.jid, item), ok)
			other.want(push(other.jid, item))
		}
		a.write(rosterGet)
		a.want(roster(a.jid, "<item jid='a@elsewhere.example' name='&lt;&amp;&#39;' subscription='none'/><item jid='romeo@example.org' subscription='none'/>"))
		// What only the server decides, a client cannot.
		a.write(set("<item jid='nurse@example.org/x' subscription='both' ask='subscribe'/>"))
		a.want(push(a.jid, "<item jid='nurse@example.org' subscription='none'/>"), ok)
		other.next()
		for _, bad := range []struct{ items, condition string }{
			{"", stanza.BadRequest},
			{"<item jid='a@b.example'/><item jid='c@d.example'/>", stanza.BadRequest},
			{"<item jid='@'/>", stanza.BadRequest},
			{"<item/>", stanza.BadRequest},
			{"<x jid='a@b.example'/>", stanza.BadRequest},
			{"<item jid='juliet@example.org'/>", stanza.NotAllowed},
			{"<item jid='tybalt@example.org' subscription='remove'/>", stanza.ItemNotFound},
			{"<item jid='a@b.example'><group/></item>", stanza.NotAcceptable},
			{"<item jid='a@b.example'><group>x</group><group>x</group></item>", stanza.BadRequest},
			{"<item jid='romeo@example.org' name='" + strings.Repeat("x", 60000) + "'/>", stanza.ResourceConstraint},
		} {
			a.write(set(bad.items))
			if e := a.next(); e.Attr("type") != "error" || e.Child(stanza.NSClient, "error").Child(stanza.NSStanzas, bad.condition).IsZero() {
				t.Errorf("%.100s: got %v, want %s", bad.items, e, bad.condition)
			}
		}
		a.sync()
		other.sync()
	})
}

func TestRosterIsBounded(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.server.SetLimits(rendezvous.Limits{Contacts: 2})
		a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		for i := range 2 {
			a.write(fmt.Sprintf("<presence type='subscribe' to='x%d@example.org'/>", i))
		}
		a.sync()
		a.write("<presence type='subscribe' to='x3@example.org' id='1'/>")
		a.want("<presence type='error' id='1' from='x3@example.org' to='juliet@example.org/balcony'>" + fault("wait", "500", "resource-constraint") + "</presence>")
		// Another's request does not fit either, and is not taken in.
		a.present()
		b.write("<presence type='subscribe' to='juliet@example.org'/>")
		b.sync()
		a.sync()
		if err := w.server.Subscribe(juliet, romeo); err == nil {
			t.Error("Subscribe succeeded")
		}
	})
}

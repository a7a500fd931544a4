package rendezvous_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// fault is the error that the server makes of a condition.
func fault(kind, code, condition string) string {
	return fmt.Sprintf("<error type='%s' code='%s'><%s xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>", kind, code, condition)
}

var (
	unavailable = fault("cancel", "503", "service-unavailable")
	badRequest  = fault("modify", "400", "bad-request")
	elsewhere   = fault("cancel", "404", "remote-server-not-found")
)

// TestLatency checks that an iq takes exactly the two one-way latencies, and
// the whole question and answer four.
func TestLatency(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		start := time.Now()
		a.write("<iq type='get' id='1' to='romeo@example.org/orchard'><q xmlns='u:q'/></iq>")
		b.want("<iq type='get' id='1' to='romeo@example.org/orchard' from='juliet@example.org/balcony'><q xmlns='u:q'/></iq>")
		if d := time.Since(start); d != 2*oneWay {
			t.Errorf("the question took %v, want %v", d, 2*oneWay)
		}
		b.write("<iq type='result' id='1' to='juliet@example.org/balcony'><q xmlns='u:q'><a/></q></iq>")
		a.want("<iq type='result' id='1' to='juliet@example.org/balcony' from='romeo@example.org/orchard'><q xmlns='u:q'><a/></q></iq>")
		if d := time.Since(start); d != 4*oneWay {
			t.Errorf("question and answer took %v, want %v", d, 4*oneWay)
		}
	})
}

// TestAnswers sends one stanza each and compares what comes back to the
// sender; a ping behind it shows that nothing else does.
func TestAnswers(t *testing.T) {
	const me = "to='juliet@example.org/balcony'"
	info := "<query xmlns='http://jabber.org/protocol/disco#info'/>"
	tests := []struct{ name, say, want string }{
		{"iq to nobody there", "<iq type='get' id='1' to='romeo@example.org/absent'><q xmlns='u:q'/></iq>",
			"<iq type='error' id='1' from='romeo@example.org/absent' " + me + ">" + unavailable + "</iq>"},
		{"iq to no account", "<iq type='get' id='1' to='tybalt@example.org/x'><q xmlns='u:q'/></iq>",
			"<iq type='error' id='1' from='tybalt@example.org/x' " + me + ">" + unavailable + "</iq>"},
		{"iq to another domain", "<iq type='set' id='1' to='a@elsewhere.example/x'><q xmlns='u:q'/></iq>",
			"<iq type='error' id='1' from='a@elsewhere.example/x' " + me + ">" + elsewhere + "</iq>"},
		{"iq to another server", "<iq type='get' id='1' to='elsewhere.example'>" + info + "</iq>",
			"<iq type='error' id='1' from='elsewhere.example' " + me + ">" + elsewhere + "</iq>"},
		{"message to another domain", "<message id='1' to='a@elsewhere.example'/>",
			"<message type='error' id='1' from='a@elsewhere.example' " + me + ">" + elsewhere + "</message>"},
		{"presence to another domain", "<presence id='1' type='subscribe' to='a@elsewhere.example'/>",
			"<presence type='error' id='1' from='a@elsewhere.example' " + me + ">" + elsewhere + "</presence>"},
		{"iq without an id", "<iq type='get' to='romeo@example.org/orchard'><q xmlns='u:q'/></iq>",
			"<iq type='error' from='romeo@example.org/orchard' " + me + ">" + badRequest + "</iq>"},
		{"iq without a payload", "<iq type='get' id='1' to='romeo@example.org/orchard'/>",
			"<iq type='error' id='1' from='romeo@example.org/orchard' " + me + ">" + badRequest + "</iq>"},
		{"iq with two", "<iq type='get' id='1' to='romeo@example.org/orchard'><a/><b/></iq>",
			"<iq type='error' id='1' from='romeo@example.org/orchard' " + me + ">" + badRequest + "</iq>"},
		{"iq of no type", "<iq id='1' to='romeo@example.org/orchard'><a/></iq>",
			"<iq type='error' id='1' from='romeo@example.org/orchard' " + me + ">" + badRequest + "</iq>"},
		{"iq to no address", "<iq type='get' id='1' to='@'><a/></iq>",
			"<iq type='error' id='1' " + me + ">" + fault("modify", "400", "jid-malformed") + "</iq>"},
		{"result to nobody there", "<iq type='result' id='1' to='romeo@example.org/absent'/>", ""},
		{"error to nobody there", "<iq type='error' id='1' to='romeo@example.org/absent'/>", ""},
		{"error to no address", "<iq type='error' id='1' to='@'/>", ""},
		{"error to another domain", "<iq type='error' id='1' to='elsewhere.example'/>", ""},
		{"result to the server", "<iq type='result' id='1' to='example.org'/>", ""},
		{"result to oneself", "<iq type='result' id='1'/>", ""},
		{"message to nobody there", "<message id='1' to='romeo@example.org/absent'/>",
			"<message type='error' id='1' from='romeo@example.org/absent' " + me + ">" + unavailable + "</message>"},
		{"message to no account", "<message id='1' type='chat' to='tybalt@example.org'/>",
			"<message type='error' id='1' from='tybalt@example.org' " + me + ">" + unavailable + "</message>"},
		{"groupchat to an account", "<message id='1' type='groupchat' to='romeo@example.org'/>",
			"<message type='error' id='1' from='romeo@example.org' " + me + ">" + unavailable + "</message>"},
		{"message to the server", "<message id='1' to='example.org'/>",
			"<message type='error' id='1' from='example.org' " + me + ">" + unavailable + "</message>"},
		{"headline to nobody there", "<message type='headline' to='romeo@example.org/absent'/>", ""},
		{"error message to nobody there", "<message type='error' to='romeo@example.org/absent'/>", ""},
		{"presence to no account", "<presence to='tybalt@example.org'/>", ""},
		{"subscription to no account", "<presence type='subscribe' to='tybalt@example.org'/>", ""},
		{"subscription to nobody", "<presence type='subscribe' id='1'/>",
			"<presence type='error' id='1' " + me + ">" + badRequest + "</presence>"},
		{"subscription to oneself", "<presence type='subscribe' id='1' to='juliet@example.org'/>",
			"<presence type='error' id='1' from='juliet@example.org' " + me + ">" + badRequest + "</presence>"},
		{"presence of no type", "<presence type='x' id='1'/>",
			"<presence type='error' id='1' " + me + ">" + badRequest + "</presence>"},
		{"ping to the server", "<iq type='get' id='1' to='example.org'><ping xmlns='urn:xmpp:ping'/></iq>",
			"<iq type='result' id='1' from='example.org' " + me + "/>"},
		{"ping to nobody", "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
			"<iq type='result' id='1' " + me + "/>"},
		{"session to nobody", "<iq type='set' id='1'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>",
			"<iq type='result' id='1' " + me + "/>"},
		{"session to the server", "<iq type='set' id='1' to='example.org'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>",
			"<iq type='result' id='1' from='example.org' " + me + "/>"},
		{"unknown question to the server", "<iq type='get' id='1' to='example.org'><q xmlns='u:q'/></iq>",
			"<iq type='error' id='1' from='example.org' " + me + ">" + unavailable + "</iq>"},
		{"unknown question to oneself", "<iq type='get' id='1'><q xmlns='u:q'/></iq>",
			"<iq type='error' id='1' " + me + ">" + unavailable + "</iq>"},
		{"question to a resource of the server", "<iq type='get' id='1' to='example.org/x'>" + info + "</iq>",
			"<iq type='error' id='1' from='example.org/x' " + me + ">" + unavailable + "</iq>"},
		{"a second bind", "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
			"<iq type='error' id='1' " + me + ">" + unavailable + "</iq>"},
		{"disco of the server", "<iq type='get' id='1' to='example.org'>" + info + "</iq>",
			"<iq type='result' id='1' from='example.org' " + me + "><query xmlns='http://jabber.org/protocol/disco#info'>" +
				"<identity category='server' type='im'/><feature var='http://jabber.org/protocol/disco#info'/>" +
				"<feature var='http://jabber.org/protocol/disco#items'/><feature var='urn:xmpp:ping'/><feature var='jabber:iq:roster'/></query></iq>"},
		{"disco of a node", "<iq type='get' id='1' to='example.org'><query xmlns='http://jabber.org/protocol/disco#info' node='x'/></iq>",
			"<iq type='error' id='1' from='example.org' " + me + ">" + fault("cancel", "404", "item-not-found") + "</iq>"},
		{"items of the server", "<iq type='get' id='1' to='example.org'><query xmlns='http://jabber.org/protocol/disco#items'/></iq>",
			"<iq type='result' id='1' from='example.org' " + me + "><query xmlns='http://jabber.org/protocol/disco#items'/></iq>"},
		{"disco of oneself", "<iq type='get' id='1' to='juliet@example.org'>" + info + "</iq>",
			"<iq type='result' id='1' from='juliet@example.org' " + me + "><query xmlns='http://jabber.org/protocol/disco#info'>" +
				"<identity category='account' type='registered'/><feature var='http://jabber.org/protocol/disco#info'/><feature var='http://jabber.org/protocol/disco#items'/></query></iq>"},
		{"disco of a stranger", "<iq type='get' id='1' to='romeo@example.org'>" + info + "</iq>",
			"<iq type='error' id='1' from='romeo@example.org' " + me + ">" + unavailable + "</iq>"},
		{"disco of no account", "<iq type='get' id='1' to='tybalt@example.org'>" + info + "</iq>",
			"<iq type='error' id='1' from='tybalt@example.org' " + me + ">" + unavailable + "</iq>"},
		{"roster of another", "<iq type='get' id='1' to='romeo@example.org'><query xmlns='jabber:iq:roster'/></iq>",
			"<iq type='error' id='1' from='romeo@example.org' " + me + ">" + unavailable + "</iq>"},
	}
	inBubble(t, nil, func(t *testing.T, w *world) {
		c := w.login(juliet, "balcony")
		for _, tt := range tests {
			c.what = tt.name
			c.write(tt.say)
			if tt.want != "" {
				c.want(tt.want)
			}
			c.sync()
		}
	})
}

func TestMessages(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		a := w.login(juliet, "balcony")
		high, low, absent := w.login(romeo, "high"), w.login(romeo, "low"), w.login(romeo, "absent")
		high.write("<presence><priority>5</priority></presence>")
		high.next()
		low.write("<presence><priority>-1</priority></presence>")
		low.next()
		low.next() // of high
		high.next()
		a.write("<message to='romeo@example.org' type='chat' id='1'/>")
		high.want("<message to='romeo@example.org' type='chat' id='1' from='juliet@example.org/balcony'/>")
		a.write("<message to='romeo@example.org/low' id='2'/>")
		low.want("<message to='romeo@example.org/low' id='2' from='juliet@example.org/balcony'/>")
		a.write("<message to='romeo@example.org/absent' id='3'/>")
		absent.want("<message to='romeo@example.org/absent' id='3' from='juliet@example.org/balcony'/>")
		// RFC 6121, 8.5.3.2.1: chat goes on to the others.
		a.write("<message to='romeo@example.org/gone' type='chat' id='4'/>")
		high.want("<message to='romeo@example.org/gone' type='chat' id='4' from='juliet@example.org/balcony'/>")
		high.write("<presence type='unavailable'/>")
		high.sync()
		low.want("<presence type='unavailable' from='romeo@example.org/high' to='romeo@example.org'/>")
		a.write("<message to='romeo@example.org' id='5'/>")
		a.want("<message type='error' id='5' from='romeo@example.org' to='juliet@example.org/balcony'>" + unavailable + "</message>")
		for _, c := range []*client{a, high, low, absent} {
			c.sync()
		}
		// To nobody in particular is to oneself (RFC 6120, 10.3.1).
		a.present()
		a.write("<message id='6'/>")
		a.want("<message id='6' from='juliet@example.org/balcony'/>")
	})
}

// TestDTCPGiveUp: stock XEP-0046 gives up by an iq of type error, which only
// gets through with an id.
func TestErrorWithoutAnIDIsDropped(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		a.write("<iq type='error' to='romeo@example.org/orchard'><q xmlns='u:q'/></iq><iq type='result' to='romeo@example.org/orchard'/>")
		a.write("<iq type='error' id='1' to='romeo@example.org/orchard'><q xmlns='u:q'/></iq>")
		b.want("<iq type='error' id='1' to='romeo@example.org/orchard' from='juliet@example.org/balcony'><q xmlns='u:q'/></iq>")
		a.sync()
	})
}

func TestFromIsTheServersWord(t *testing.T) {
	for _, tt := range []struct {
		from string
		ok   bool
	}{
		{"juliet@example.org/balcony", true},
		{"juliet@example.org", true},
		{"Juliet@Example.org/balcony", true},
		{"juliet@example.org/other", false},
		{"romeo@example.org/orchard", false},
		{"romeo@example.org", false},
		{"example.org", false},
		{"@", false},
	} {
		inBubble(t, nil, func(t *testing.T, w *world) {
			a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
			a.write("<message from='" + tt.from + "' to='romeo@example.org/orchard'/>")
			if tt.ok {
				b.want("<message from='juliet@example.org/balcony' to='romeo@example.org/orchard'/>")
				return
			}
			a.wantEnd("invalid-from")
			b.sync()
		})
	}
}

// TestOrder sends stanzas of all kinds from one to another, with much in
// between for others, and wants them in order.
func TestOrder(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		a, b, c := w.login(juliet, "balcony"), w.login(romeo, "orchard"), w.login(nurse, "kitchen")
		const n = 300
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, "<message id='%d' to='romeo@example.org/orchard'><body>%s</body></message>", i, strings.Repeat("x", i*7%500))
			fmt.Fprintf(&text, "<iq type='get' id='%d' to='nurse@example.org/kitchen'><q/></iq>", i)
		}
		// All ends are served at once: none may hold up another.
		wrote := make(chan struct{})
		go func() { // ends when all is written, which is waited for below
			defer close(wrote)
			a.write(text.String())
		}()
		for i := range n {
			if got := b.next().Attr("id"); got != fmt.Sprint(i) {
				t.Fatalf("b: got %s, want %d", got, i)
			}
		}
		for i := range n {
			if got := c.next().Attr("id"); got != fmt.Sprint(i) {
				t.Fatalf("c: got %s, want %d", got, i)
			}
		}
		<-wrote
	})
}

// TestIntercept is a server that lies in all the ways there are.
func TestIntercept(t *testing.T) {
	var seen []string
	lie := func(from jid.JID, e stanza.Element) []stanza.Element {
		seen = append(seen, fmt.Sprint(from, " ", e.Name.Local, " ", e.Attr("id"), " ", e.Attr("from")))
		switch e.Attr("id") {
		case "drop":
			return nil
		case "twice":
			return []stanza.Element{e, e}
		case "change":
			e.Children = []stanza.Element{stanza.New("u:other", "other")}
		case "forge":
			e.Attrs = slices.Clone(e.Attrs)
			for i, a := range e.Attrs {
				if a.Name.Local == "from" {
					e.Attrs[i].Value = "nurse@example.org/kitchen"
				}
			}
		case "junk":
			return []stanza.Element{stanza.New("u:q", "q"), {}}
		}
		return []stanza.Element{e}
	}
	inBubble(t, func(c *rendezvous.Config) { c.Intercept = lie }, func(t *testing.T, w *world) {
		a, b := w.login(juliet, "balcony"), w.login(romeo, "orchard")
		say := func(id string) {
			a.write("<iq type='get' id='" + id + "' to='romeo@example.org/orchard'><q xmlns='u:q'/></iq>")
		}
		got := func(id, from, payload string) {
			t.Helper()
			b.want("<iq type='get' id='" + id + "' to='romeo@example.org/orchard' from='" + from + "'>" + payload + "</iq>")
		}
		for _, id := range []string{"drop", "twice", "change", "forge", "junk", "honest"} {
			say(id)
		}
		got("twice", "juliet@example.org/balcony", "<q xmlns='u:q'/>")
		got("twice", "juliet@example.org/balcony", "<q xmlns='u:q'/>")
		got("change", "juliet@example.org/balcony", "<other xmlns='u:other'/>")
		got("forge", "nurse@example.org/kitchen", "<q xmlns='u:q'/>")
		got("honest", "juliet@example.org/balcony", "<q xmlns='u:q'/>")
		a.sync()
		if len(seen) != 7 || seen[0] != "juliet@example.org/balcony iq drop juliet@example.org/balcony" {
			t.Errorf("seen: %q", seen)
		}
	})
}

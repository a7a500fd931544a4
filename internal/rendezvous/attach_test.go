package rendezvous_test

import (
	"errors"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// TestAttach: a service answers under its own domain, is listed by the server,
// and is gone when it is detached.
func TestAttach(t *testing.T) {
	const (
		me    = "to='juliet@example.org/balcony'"
		it    = "from='relay.example.org' "
		items = "<query xmlns='http://jabber.org/protocol/disco#items'/>"
	)
	var asked []stanza.IQ
	answer := func(q stanza.IQ) stanza.IQ {
		asked = append(asked, q)
		switch q.Payload.Name.Local {
		case "lease":
			return q.Result(stanza.New("u:relay", "lease").With("for", q.From.String()))
		case "refuse":
			return q.Fail(stanza.NewError(stanza.Forbidden, "not you"))
		case "forge":
			a := q.Result(stanza.Element{})
			a.From, a.To, a.ID = romeo, nurse, "another"
			return a
		}
		return q // which is no answer
	}
	tests := []struct{ name, say, want string }{
		{"question", "<iq type='get' id='1' to='relay.example.org'><lease xmlns='u:relay'/></iq>",
			"<iq type='result' id='1' " + it + me + "><lease xmlns='u:relay' for='juliet@example.org/balcony'/></iq>"},
		{"another spelling", "<iq type='set' id='2' to='Relay.Example.org'><lease xmlns='u:relay'/></iq>",
			"<iq type='result' id='2' " + it + me + "><lease xmlns='u:relay' for='juliet@example.org/balcony'/></iq>"},
		{"refusal", "<iq type='get' id='3' to='relay.example.org'><refuse xmlns='u:relay'/></iq>",
			"<iq type='error' id='3' " + it + me + "><error type='auth' code='403'><forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>" +
				"<text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>not you</text></error></iq>"},
		{"an answer with addresses of its own", "<iq type='get' id='4' to='relay.example.org'><forge xmlns='u:relay'/></iq>",
			"<iq type='result' id='4' " + it + me + "/>"},
		{"no answer", "<iq type='get' id='5' to='relay.example.org'><q xmlns='u:relay'/></iq>",
			"<iq type='error' id='5' " + it + me + ">" + fault("wait", "500", "internal-server-error") + "</iq>"},
		{"no id", "<iq type='get' to='relay.example.org'><lease xmlns='u:relay'/></iq>", "<iq type='error' " + it + me + ">" + badRequest + "</iq>"},
		{"two payloads", "<iq type='get' id='6' to='relay.example.org'><lease xmlns='u:relay'/><a/></iq>", "<iq type='error' id='6' " + it + me + ">" + badRequest + "</iq>"},
		{"an account of the service", "<iq type='get' id='7' to='x@relay.example.org'><lease xmlns='u:relay'/></iq>",
			"<iq type='error' id='7' from='x@relay.example.org' " + me + ">" + unavailable + "</iq>"},
		{"result", "<iq type='result' id='8' to='relay.example.org'/>", ""},
		{"message", "<message id='9' to='relay.example.org'/>", "<message type='error' id='9' " + it + me + ">" + unavailable + "</message>"},
		{"presence", "<presence to='relay.example.org'/>", ""},
		{"subscription", "<presence type='subscribe' to='relay.example.org'/>", ""},
		{"beside it", "<iq type='get' id='10' to='other.example.org'><lease xmlns='u:relay'/></iq>",
			"<iq type='error' id='10' from='other.example.org' " + me + ">" + elsewhere + "</iq>"},
		{"items", "<iq type='get' id='11' to='example.org'>" + items + "</iq>",
			"<iq type='result' id='11' from='example.org' " + me + "><query xmlns='http://jabber.org/protocol/disco#items'>" +
				"<item jid='proxy.example.org'/><item jid='relay.example.org'/></query></iq>"},
	}
	inBubble(t, nil, func(t *testing.T, w *world) {
		detach, err := w.server.Attach("relay.example.org", answer)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.server.Attach("proxy.example.org", answer); err != nil {
			t.Fatal(err)
		}
		for _, taken := range []string{"example.org", "RELAY.example.org"} {
			if _, err := w.server.Attach(taken, answer); !errors.Is(err, rendezvous.ErrTaken) {
				t.Errorf("Attach(%q): %v, want ErrTaken", taken, err)
			}
		}
		if _, err := w.server.Attach("", answer); err == nil {
			t.Error("a service without a domain was taken")
		}
		c := w.login(juliet, "balcony")
		for _, tt := range tests {
			c.what = tt.name
			start := time.Now()
			c.write(tt.say)
			if tt.want != "" {
				c.want(tt.want)
				if d := time.Since(start); d != 2*oneWay {
					t.Errorf("%s: answered after %v, want %v", tt.name, d, 2*oneWay)
				}
			}
			c.sync()
		}
		for _, q := range asked {
			if q.From != c.jid || q.To != jid.MustParse("relay.example.org") {
				t.Errorf("the service was asked %v", q)
			}
		}
		if len(asked) != 5 {
			t.Errorf("the service was asked %d questions, want 5", len(asked))
		}
		detach()
		detach()
		c.what = "after it was detached"
		c.write("<iq type='get' id='1' to='relay.example.org'><lease xmlns='u:relay'/></iq>")
		c.want("<iq type='error' id='1' " + it + me + ">" + elsewhere + "</iq>")
		c.write("<iq type='get' id='2' to='example.org'>" + items + "</iq>")
		c.want("<iq type='result' id='2' from='example.org' " + me + "><query xmlns='http://jabber.org/protocol/disco#items'><item jid='proxy.example.org'/></query></iq>")
	})
}

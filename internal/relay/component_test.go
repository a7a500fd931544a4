package relay

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dtcp-relay/dtcp/internal/socks5"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// office is a component with the core of a relay behind it, and without ports.
type office struct {
	*component
	core  *pairing
	lends terms
	now   time.Time
	stops bool
	told  []string // refusals
	done  []action // of the core
}

func newOffice(rules Rules) *office {
	o := &office{now: leaseTime}
	o.core = newPairing(rules.Limits, func(c wire.Claim, now time.Time) (lease, string) {
		return o.lends.keys.verify(c, o.node, o.lends.who, now)
	})
	o.lends = terms{keys: testKeys(1), who: rules.admission(), hosts: []Host{
		{Addr: "2001:DB8:0::5", Port: 5280},
		{Addr: "relay.example.org", Port: 443, TLS: &tls.Certificate{Certificate: [][]byte{[]byte("a certificate")}}},
	}}
	o.component = &component{
		domain:  jid.MustParse("relay.example.org"),
		node:    "a",
		terms:   func() (terms, Limits, bool) { return o.lends, rules.Limits, o.stops },
		ask:     func(owner jid.JID) bool { return o.core.ask(owner, o.now) },
		refused: func(reason string, owner jid.JID) { o.told = append(o.told, reason+" "+owner.String()) },
		activate: func(name string, owner jid.JID) (reason string, there int) {
			there = len(o.core.proposals[name])
			o.done, reason = o.core.activate(nil, name, owner, o.now)
			return reason, there
		},
	}
	return o
}

// allowed lets in example.org, but not its nurse.
var allowed = Access{Allow: []jid.JID{jid.MustParse("example.org")}, Deny: []jid.JID{jid.MustParse("nurse@example.org")}}

// ask returns the answer, written as XML, to a question that is written so.
func (o *office) ask(t *testing.T, question string) string {
	t.Helper()
	e, err := stanza.Parse(question)
	if err != nil {
		t.Fatalf("%s: %v", question, err)
	}
	q, err := stanza.ParseIQ(e)
	if err != nil {
		t.Fatalf("%s: %v", question, err)
	}
	answer := o.answer(q, o.now)
	if answer.To != q.From || answer.From != q.To || answer.ID != q.ID {
		t.Errorf("%s: answered to %v from %v with id %q", question, answer.To, answer.From, answer.ID)
	}
	answer.Header = stanza.Header{}
	return answer.Element("").String()
}

// failure returns an answer of type error.
func failure(condition, text string) string {
	return stanza.IQ{Type: stanza.Failed, Error: stanza.NewError(condition, text)}.Element("").String()
}

const (
	fromJuliet = ` id='1' from='juliet@example.org/balcony' to='relay.example.org'`
	fromNurse  = ` id='1' from='nurse@example.org/kitchen' to='relay.example.org'`
	fromRomeo  = ` id='1' from='romeo@example.net/orchard' to='relay.example.org'`

	askLease   = `<lease xmlns='urn:x-dtcp:relay:0'/>`
	askAddress = `<query xmlns='http://jabber.org/protocol/bytestreams'/>`

	tooShort = "only one of the two is connected"
	nobody   = "no connection waits for this stream"
	stopping = "this relay is about to stop; try again later"
)

func refusedTo(who string) string {
	return failure(stanza.Forbidden, "the operator of this relay does not allow "+who)
}

func TestAnswers(t *testing.T) {
	const info = `<query xmlns='http://jabber.org/protocol/disco#info'`
	const items = `<query xmlns='http://jabber.org/protocol/disco#items'`
	unknown := failure(stanza.ServiceUnavailable, "")
	unserved := failure(stanza.FeatureNotImplemented, "")
	for _, c := range []struct{ what, question, want string }{
		{"disco#info, also for those who may not use it", `<iq type='get'` + fromRomeo + `>` + info + `/></iq>`,
			`<iq type='result'>` + info + `>` +
				`<identity category='proxy' type='dtcp' name='DTCP relay'/><identity category='proxy' type='bytestreams' name='DTCP relay'/>` +
				`<feature var='http://jabber.org/protocol/disco#info'/><feature var='http://jabber.org/protocol/disco#items'/>` +
				`<feature var='urn:xmpp:ping'/><feature var='urn:x-dtcp:relay:0'/><feature var='http://jabber.org/protocol/bytestreams'/></query></iq>`},
		{"disco#info of a node", `<iq type='get'` + fromJuliet + `>` + info + ` node='x'/></iq>`, failure(stanza.ItemNotFound, "")},
		{"disco#items", `<iq type='get'` + fromJuliet + `>` + items + `/></iq>`, `<iq type='result'>` + items + `/></iq>`},
		{"disco#items of a node", `<iq type='get'` + fromJuliet + `>` + items + ` node='x'/></iq>`, failure(stanza.ItemNotFound, "")},
		{"ping", `<iq type='get'` + fromRomeo + `><ping xmlns='urn:xmpp:ping'/></iq>`, `<iq type='result'/>`},

		{"the proxy's address", `<iq type='get'` + fromJuliet + `>` + askAddress + `</iq>`,
			`<iq type='result'><query xmlns='http://jabber.org/protocol/bytestreams'>` +
				`<streamhost jid='relay.example.org' host='2001:db8::5' port='5280'/></query></iq>`},
		{"the proxy's address, with a sid as of old", `<iq type='get'` + fromJuliet + `><query xmlns='http://jabber.org/protocol/bytestreams' sid='x'/></iq>`,
			`<iq type='result'><query xmlns='http://jabber.org/protocol/bytestreams'>` +
				`<streamhost jid='relay.example.org' host='2001:db8::5' port='5280'/></query></iq>`},
		{"the proxy's address, to a stranger", `<iq type='get'` + fromRomeo + `>` + askAddress + `</iq>`, refusedTo("romeo@example.net")},
		{"the proxy's address, to somebody denied", `<iq type='get'` + fromNurse + `>` + askAddress + `</iq>`, refusedTo("nurse@example.org")},
		{"a lease, to a stranger", `<iq type='get'` + fromRomeo + `>` + askLease + `</iq>`, refusedTo("romeo@example.net")},
		{"a lease, to somebody denied", `<iq type='get'` + fromNurse + `>` + askLease + `</iq>`, refusedTo("nurse@example.org")},
		{"a lease, to nobody", `<iq type='get' id='1' to='relay.example.org'>` + askLease + `</iq>`, refusedTo("")},
		{"a lease, to an address too long", `<iq type='get' id='1' from='` + strings.Repeat("j", 300) + `@example.org/x' to='relay.example.org'>` + askLease + `</iq>`,
			failure(stanza.NotAcceptable, "the address "+strings.Repeat("j", 300)+"@example.org is too long for a lease")},

		{"setting a lease", `<iq type='set'` + fromJuliet + `>` + askLease + `</iq>`, unserved},
		{"setting disco#info", `<iq type='set'` + fromJuliet + `>` + info + `/></iq>`, unserved},
		{"something else of a known namespace", `<iq type='get'` + fromJuliet + `><other xmlns='urn:x-dtcp:relay:0'/></iq>`, unserved},
		{"something of another namespace", `<iq type='get'` + fromJuliet + `><query xmlns='jabber:iq:last'/></iq>`, unknown},
		{"a stock question", `<iq type='set'` + fromJuliet + `><query xmlns='http://jabber.org/protocol/dtcp'><key>k</key></query></iq>`, unknown},
		{"a user of the relay", `<iq type='get' id='1' from='juliet@example.org/x' to='nurse@relay.example.org'>` + info + `/></iq>`, unknown},
		{"a resource of the relay", `<iq type='get' id='1' from='juliet@example.org/x' to='relay.example.org/x'>` + askLease + `</iq>`, unknown},
		{"to no address", `<iq type='get' id='1' from='juliet@example.org/x'>` + askLease + `</iq>`, unknown},

		{"a stream offered to the relay", activation(`sid='s'`, `<streamhost jid='j@b' host='192.0.2.1' port='1'/>`), failure(stanza.NotAcceptable, "")},
		{"activation of UDP", activation(`sid='s' mode='udp'`, `<activate>romeo@example.net/orchard</activate>`), unserved},
		{"activation without a sid", activation(``, `<activate>romeo@example.net/orchard</activate>`), failure(stanza.BadRequest, "")},
		{"activation without a target", activation(`sid='s'`, `<activate> </activate>`), failure(stanza.BadRequest, "")},
		{"activation of nothing", activation(`sid='s'`, `<activate>romeo@example.net/orchard</activate>`), failure(stanza.ItemNotFound, nobody)},
		{"activation by a stranger", `<iq type='set'` + fromRomeo + `><query xmlns='http://jabber.org/protocol/bytestreams' sid='s'><activate>juliet@example.org/x</activate></query></iq>`,
			refusedTo("romeo@example.net")},
	} {
		o := newOffice(Rules{Access: allowed})
		if diff := cmp.Diff(c.want, o.ask(t, c.question)); diff != "" {
			t.Errorf("%s: want -, got +\n%s", c.what, diff)
		}
		refused := slices.ContainsFunc([]string{"does not allow", "too long", nobody}, func(why string) bool { return strings.Contains(c.want, why) })
		if refused != (len(o.told) == 1) {
			t.Errorf("%s: the operator was told %q", c.what, o.told)
		}
	}
}

func activation(attributes, child string) string {
	return `<iq type='set'` + fromJuliet + `><query xmlns='http://jabber.org/protocol/bytestreams' ` + attributes + `>` + child + `</query></iq>`
}

// TestNobodyByDefault: without rules nobody gets anything.
func TestNobodyByDefault(t *testing.T) {
	o := newOffice(Rules{})
	for _, question := range []string{askLease, askAddress} {
		if got := o.ask(t, `<iq type='get'`+fromJuliet+`>`+question+`</iq>`); got != refusedTo("juliet@example.org") {
			t.Errorf("%s: %s", question, got)
		}
	}
}

// TestLend lets an owner get a lease and claim by it.
func TestLend(t *testing.T) {
	o := newOffice(Rules{Access: allowed, Limits: Limits{PerOwner: Quota{Streams: 7, Rate: 1 << 20, BytesPerDay: 10 << 30}}})
	e, err := stanza.Parse(o.ask(t, `<iq type='get'`+fromJuliet+`>`+askLease+`</iq>`))
	if err != nil {
		t.Fatal(err)
	}
	got := e.Child(nsRelay, "lease")
	secret, err := base64.RawURLEncoding.DecodeString(got.Attr("secret"))
	if err != nil || len(secret) != 32 {
		t.Errorf("secret %q: %v, want 32 bytes", got.Attr("secret"), err)
	}
	claim := wire.NewClaim(wire.Serve, "key", got.Attr("id"), secret, o.now)
	_, reason := o.lends.keys.verify(claim, "a", o.lends.who, o.now.Add(leaseLife-time.Second))
	if reason != wire.BadLease { // the claim is an hour old
		t.Errorf("an old claim: %q", reason)
	}
	l, reason := o.lends.keys.verify(claim, "a", o.lends.who, o.now)
	want := lease{jid.MustParse("juliet@example.org"), o.now.Add(leaseLife), "a", Quota{-1, 7, -1, 1 << 20, 10 << 30}.filled(unlimited)}
	if reason != "" || l != want {
		t.Errorf("the claim: %q\ngot  %+v\nwant %+v", reason, l, want)
	}
	for i := range got.Attrs { // random, and looked at
		if name := got.Attrs[i].Name.Local; name == "id" || name == "secret" {
			got.Attrs[i].Value = "…"
		}
	}
	const wantXML = `<lease xmlns='urn:x-dtcp:relay:0' id='…' secret='…' expires='3600' time='1795000000' streams='7' rate='1048576' bytes-per-day='10737418240'>` +
		`<host addr='2001:db8::5' port='5280'/>` +
		`<host addr='relay.example.org' port='443' tls='1' fingerprint='` +
		`81:AC:D7:62:14:0F:A6:92:A1:42:82:2D:2F:BE:4D:C6:F5:4B:CA:A5:01:F6:8A:B3:7E:5A:EE:D0:BA:FE:4D:99'/></lease>`
	if diff := cmp.Diff(wantXML, got.String()); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}

	// Limits that there are not are not named, and no two leases are the same.
	o = newOffice(Rules{Access: allowed, Limits: Limits{PerOwner: Quota{Streams: -1}}})
	first := o.ask(t, `<iq type='get'`+fromJuliet+`>`+askLease+`</iq>`)
	if strings.Contains(first, "streams=") || strings.Contains(first, "rate=") || strings.Contains(first, "bytes-per-day=") {
		t.Errorf("names limits that there are not: %s", first)
	}
	if first == o.ask(t, `<iq type='get'`+fromJuliet+`>`+askLease+`</iq>`) {
		t.Error("the same lease twice")
	}
}

// TestLeasesPerSecond: who asks for leases all the time is asked to wait.
func TestLeasesPerSecond(t *testing.T) {
	o := newOffice(Rules{Access: allowed, Limits: Limits{PerOwner: Quota{Handshakes: 1}}})
	lent := func() int {
		n := 0
		for range 20 {
			switch got := o.ask(t, `<iq type='get'`+fromJuliet+`>`+askLease+`</iq>`); {
			case strings.Contains(got, "secret="):
				n++
			case got != failure(stanza.ResourceConstraint, "a limit of this relay is reached (owner-handshakes); try again later"):
				t.Fatalf("answered %s", got)
			}
		}
		return n
	}
	if n := lent(); n != burstTime {
		t.Errorf("%d leases at once, want %d", n, burstTime)
	}
	if len(o.told) != 20-burstTime || o.told[0] != "owner-handshakes juliet@example.org" {
		t.Errorf("the operator was told %q", o.told)
	}
	o.now = o.now.Add(3 * time.Second)
	if n := lent(); n != 3 {
		t.Errorf("%d leases after three seconds, want 3", n)
	}
}

func TestDraining(t *testing.T) {
	o := newOffice(Rules{Access: allowed})
	o.stops = true
	for _, c := range []struct{ question, want string }{
		{`<iq type='get'` + fromJuliet + `>` + askLease + `</iq>`, failure(stanza.ResourceConstraint, stopping)},
		{`<iq type='get'` + fromJuliet + `>` + askAddress + `</iq>`, failure(stanza.NotAllowed, stopping)},
		{`<iq type='get'` + fromRomeo + `>` + askAddress + `</iq>`, refusedTo("romeo@example.net")},
		{activation(`sid='s'`, `<activate>romeo@example.net/orchard</activate>`), failure(stanza.ResourceConstraint, stopping)},
		{`<iq type='get'` + fromJuliet + `><ping xmlns='urn:xmpp:ping'/></iq>`, `<iq type='result'/>`},
	} {
		if got := o.ask(t, c.question); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.question, got, c.want)
		}
	}
	if want := []string{"shutdown juliet@example.org", "shutdown juliet@example.org", "denied romeo@example.net", "shutdown juliet@example.org"}; !cmp.Equal(o.told, want) {
		t.Errorf("the operator was told %q, want %q", o.told, want)
	}
}

// clientAddr is where the proxy's clients of these tests come from.
var clientAddr = netip.MustParseAddrPort("192.0.2.1:40000")

// asks does the handshake of a client, all in one piece, and returns its leg and
// the proxy's last answer.
func (o *office) asks(t *testing.T, name string) (*leg, string) {
	t.Helper()
	l := &leg{}
	if out := o.core.arrive(nil, l, clientAddr, o.now); len(out) > 0 {
		t.Fatalf("on arrival: %+v", out)
	}
	request := append(append([]byte{5, 1, 0, 5, 1, 0, 3, 40}, name...), 0, 0)
	q, err := readProposal(struct {
		io.Reader
		io.Writer
	}{bytes.NewReader(request), io.Discard})
	if err != nil || q.Addr != name {
		t.Fatalf("read %+v, %v", q, err)
	}
	out := o.core.propose(nil, l, q, err, o.now)
	if len(out) != 1 || out[0].leg != l {
		t.Fatalf("told to do %+v", out)
	}
	return l, out[0].text
}

// TestActivation is Section 6 of XEP-0065, from the target's connection on, and
// what can go wrong with it.
func TestActivation(t *testing.T) {
	const sid, juliet, romeo = "vxf9n471bn46", "juliet@example.org/balcony", "romeo@example.net/orchard"
	name := socks5.DstAddr(sid, juliet, romeo)
	activate := activation(`sid='`+sid+`'`, `<activate>`+romeo+`</activate>`)
	const done = `<iq type='result'/>`
	o := newOffice(Rules{Access: Access{Allow: []jid.JID{jid.MustParse("example.org"), jid.MustParse("example.net")}}})

	expect := func(sentence, question, want string) {
		t.Helper()
		o.done = nil
		if got := o.ask(t, question); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", sentence, got, want)
		}
		if joined := len(o.done) == 1 && o.done[0].do == join; joined != (want == done) {
			t.Errorf("%s: the relay is to do %+v", sentence, o.done)
		}
	}
	answered := func(sentence, got string, reply socks5.Reply) {
		t.Helper()
		if want := "\x05" + string(rune(reply)) + "\x00\x03\x28" + name + "\x00\x00"; got != want {
			t.Errorf("%s: answered %q, want %q", sentence, got, want)
		}
	}

	expect("nobody is there", activate, failure(stanza.ItemNotFound, nobody))
	target, got := o.asks(t, name)
	answered("the target connects", got, socks5.Succeeded)
	expect("only the target is there", activate, failure(stanza.NotAllowed, tooShort))
	requester, got := o.asks(t, name)
	answered("the requester connects", got, socks5.Succeeded)
	_, got = o.asks(t, name)
	answered("a third connects", got, socks5.NotAllowed)

	expect("the target activates", strings.NewReplacer(juliet, romeo, romeo, juliet).Replace(activate), failure(stanza.ItemNotFound, nobody))
	expect("another resource of the requester activates", strings.Replace(activate, juliet, "juliet@example.org/other", 1), failure(stanza.ItemNotFound, nobody))
	expect("somebody else activates", strings.Replace(activate, juliet, "nurse@example.org/x", 1), failure(stanza.ItemNotFound, nobody))
	expect("another sid is activated", strings.Replace(activate, sid, "x", 1), failure(stanza.ItemNotFound, nobody))
	expect("another target is named", strings.Replace(activate, romeo, "romeo@example.net", 1), failure(stanza.ItemNotFound, nobody))

	expect("the requester activates", strings.Replace(activate, "<activate>", "<activate>\n ", 1), done)
	if s := o.done[0].stream; s.kind != KindProxy || s.listener != target || s.dialer != requester || s.listener.owner.name != jid.MustParse("juliet@example.org") {
		t.Errorf("joined %+v; want target and requester, for juliet", s)
	}
	expect("the requester activates again", activate, failure(stanza.ItemNotFound, nobody))
	if len(o.told) != 8 || slices.ContainsFunc(o.told, func(s string) bool { return !strings.HasPrefix(s, RefusedUnserved+" ") }) {
		t.Errorf("the operator was told %q, want that 8 activations were not served", o.told)
	}
}

// TestActivationOverLimit: the limits of owners hold for the proxy's streams.
func TestActivationOverLimit(t *testing.T) {
	o := newOffice(Rules{Access: allowed, Limits: Limits{PerOwner: Quota{Streams: 1}}})
	for i, sid := range []string{"one", "two"} {
		name := socks5.DstAddr(sid, "juliet@example.org/balcony", "romeo@example.net/orchard")
		o.asks(t, name)
		o.asks(t, name)
		want := `<iq type='result'/>`
		if i == 1 {
			want = failure(stanza.ResourceConstraint, "a limit of this relay is reached (owner-streams); try again later")
		}
		if got := o.ask(t, activation(`sid='`+sid+`'`, `<activate>romeo@example.net/orchard</activate>`)); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", sid, got, want)
		}
	}
}

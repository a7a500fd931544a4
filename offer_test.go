package dtcp

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

var testFingerprint = FingerprintOf([]byte("a certificate"))

// testOffer is an offer with everything in it.
func testOffer() offer {
	return offer{
		key:   "c7b5ea3f",
		hosts: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::5]:40001"), netip.MustParseAddrPort("192.0.2.1:40001")},
		session: &sessionOffer{
			service: "file", features: []string{"a", "b"}, files: 3, bytes: 123456, fingerprint: testFingerprint, ephemeral: true,
			candidates: []Candidate{
				{Type: Host, Addr: netip.MustParseAddrPort("[2001:db8::5]:40001")},
				{Type: Mapped, Addr: netip.MustParseAddrPort("203.0.113.9:40001")},
				{Type: Reflexive, Addr: netip.MustParseAddrPort("203.0.113.9:40002")},
				{Type: Relay, Name: "relay.example.org", Port: 5280},
				{Type: Proxy, Name: "proxy.example.org", Port: 7777, JID: jid.MustParse("proxy.example.org"), SID: "s1"},
			},
		},
	}
}

const wireOffer = `<query xmlns='http://jabber.org/protocol/dtcp'><key>c7b5ea3f</key>` +
	`<host>[2001:db8::5]:40001</host><host>192.0.2.1:40001</host>` +
	`<session xmlns='urn:x-dtcp:session:0' service='file' features='a b'><summary files='3' bytes='123456'/>` +
	`<fingerprint xmlns='urn:xmpp:jingle:apps:dtls:0' hash='sha-256' ephemeral='1'>%s</fingerprint>` +
	`<candidate type='host' addr='2001:db8::5' port='40001'/>` +
	`<candidate type='mapped' addr='203.0.113.9' port='40001'/>` +
	`<candidate type='reflexive' addr='203.0.113.9' port='40002'/>` +
	`<candidate type='relay' addr='relay.example.org' port='5280'/>` +
	`<candidate type='proxy' addr='proxy.example.org' port='7777' jid='proxy.example.org' sid='s1'/></session></query>`

func TestOfferOnTheWire(t *testing.T) {
	want := testOffer()
	text := fmt.Sprintf(wireOffer, testFingerprint)
	if got := want.element().String(); got != text {
		t.Errorf("written\n got %s\nwant %s", got, text)
	}
	e, err := stanza.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseOffer(e); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read\n got %+v, %v\nwant %+v", got, err, want)
	}
}

// parse reads an offer whose inside is given.
func parseInside(t *testing.T, inside string) (offer, error) {
	t.Helper()
	e, err := stanza.Parse("<query xmlns='" + NSStock + "'>" + inside + "</query>")
	if err != nil {
		t.Fatalf("%s: %v", inside, err)
	}
	return parseOffer(e)
}

func sessionXML(inside string) string {
	return "<key>k</key><session xmlns='" + NSSession + "' service='pipe'>" + inside + "</session>"
}

func fingerprintXML(attrs string) string {
	return "<fingerprint xmlns='" + nsFingerprint + "' " + attrs + ">" + testFingerprint.String() + "</fingerprint>"
}

func TestOfferRefused(t *testing.T) {
	good := fingerprintXML("hash='sha-256'")
	tests := []struct{ name, inside string }{
		{"no key", ""},
		{"two keys", "<key>a</key><key>b</key>"},
		{"an empty key", "<key/>"},
		{"a key with a line of its own", "<key>a&#10;key:b</key>"},
		{"a key of other letters", "<key>schlüssel</key>"},
		{"a key that is too long", "<key>" + strings.Repeat("k", 129) + "</key>"},
		{"a session without a fingerprint", sessionXML("")},
		{"only another hash", sessionXML(fingerprintXML("hash='sha-1'"))},
		{"a fingerprint that is none", sessionXML("<fingerprint xmlns='" + nsFingerprint + "' hash='sha-256'>AB:CD</fingerprint>")},
		{"a fingerprint of zeros", sessionXML("<fingerprint xmlns='" + nsFingerprint + "' hash='sha-256'>" + strings.Repeat("00", 32) + "</fingerprint>")},
		{"a service of other letters", "<key>k</key><session xmlns='" + NSSession + "' service='a b'>" + good + "</session>"},
		{"a service that is too long", "<key>k</key><session xmlns='" + NSSession + "' service='" + strings.Repeat("s", 65) + "'>" + good + "</session>"},
	}
	for _, tt := range tests {
		if o, err := parseInside(t, tt.inside); err == nil {
			t.Errorf("%s: read as %+v", tt.name, o)
		}
	}
	if _, err := parseOffer(stanza.New("jabber:iq:version", "query")); err == nil {
		t.Error("another query is read as an offer")
	}
}

// TestOfferTolerates: what is passed over, and what is bounded.
func TestOfferTolerates(t *testing.T) {
	hosts := "<key>k</key><host>192.0.2.1</host><host>nonsense</host><host> 192.0.2.2:8000 </host><host>192.0.2.3:0</host><host>[fe80::1%eth0]:80</host>"
	o, err := parseInside(t, hosts+strings.Repeat("<host>192.0.2.4:8000</host>", 1000))
	if err != nil || len(o.hosts) != 3 || o.hosts[0].String() != "192.0.2.2:8000" {
		t.Errorf("hosts %v, %v", o.hosts, err)
	}
	candidates := "<candidate type='teleport' addr='192.0.2.1' port='1'/>" + // of a later version
		"<candidate type='host' addr='example.org' port='5000'/>" + // only a relay may have a name
		"<candidate type='host' addr='192.0.2.1'/><candidate type='host' addr='192.0.2.1' port='0'/><candidate type='host' addr='192.0.2.1' port='65536'/>" +
		"<candidate type='host' addr='fe80::1%eth0' port='5000'/>" +
		"<candidate type='relay' addr='127.1' port='5000'/><candidate type='relay' addr='a b' port='5000'/><candidate type='relay' addr='-a.example' port='5000'/>" +
		"<candidate type='relay' addr='" + strings.Repeat("a", 64) + ".example' port='5000'/>" +
		"<candidate type='proxy' addr='192.0.2.1' port='5000'/>" +
		"<unknown/><candidate xmlns='u:other' type='host' addr='192.0.2.1' port='5000'/>" +
		"<candidate type='host' addr='::ffff:192.0.2.9' port='5000' future='x'/>"
	inside := sessionXML(fingerprintXML("hash='sha-1'") + fingerprintXML("hash='sha-256'") + "<summary files='-1' bytes='x'/>" + candidates)
	o, err = parseInside(t, inside)
	if err != nil {
		t.Fatal(err)
	}
	s := o.session
	if len(s.candidates) != 1 || s.candidates[0].Addr.String() != "192.0.2.9:5000" || s.ephemeral || s.files != -1 || s.bytes != -1 {
		t.Errorf("read as %+v", s)
	}
	o, err = parseInside(t, sessionXML(fingerprintXML("hash='sha-256'")+strings.Repeat("<candidate type='host' addr='192.0.2.1' port='5000'/>", 1000)))
	if err != nil || len(o.session.candidates) != maxCandidates {
		t.Errorf("of a thousand candidates %d are kept, %v", len(o.session.candidates), err)
	}
}

func TestFeaturesInForce(t *testing.T) {
	if got := inForce([]string{"z", "a", "m"}, []string{"a", "x", "z"}); !reflect.DeepEqual(got, []string{"a", "z"}) {
		t.Errorf("in force: %v", got)
	}
}

// FuzzOffer: whatever is read keeps the limits and is the same when written and
// read again.
func FuzzOffer(f *testing.F) {
	f.Add(fmt.Sprintf(wireOffer, testFingerprint))
	f.Add("<query xmlns='" + NSStock + "'><key>k</key><host>192.0.2.1:8000</host></query>")
	f.Add("<query xmlns='" + NSStock + "'>" + sessionXML(fingerprintXML("hash='sha-256'")+"<candidate type='relay' addr='::1' port='1'/>") + "</query>")
	f.Add("<query xmlns='" + NSStock + "'><key>k\n</key></query>")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := stanza.Parse(s)
		if err != nil {
			return
		}
		o, err := parseOffer(e)
		if err != nil {
			return
		}
		if len(o.hosts) > maxHosts || len(o.candidates()) > maxCandidates {
			t.Fatalf("%q: %d hosts, %d candidates", s, len(o.hosts), len(o.candidates()))
		}
		for _, c := range o.candidates() {
			if c.Name == "" && !c.Addr.IsValid() {
				t.Fatalf("%q: candidate %+v", s, c)
			}
		}
		again, err := parseOffer(o.element())
		if err != nil || !reflect.DeepEqual(again, o) {
			t.Fatalf("%q was read as %+v, then as %+v, %v", s, o, again, err)
		}
	})
}

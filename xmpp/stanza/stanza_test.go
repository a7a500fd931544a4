package stanza_test

import (
	"encoding/xml"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

var (
	juliet = jid.MustParse("juliet@example.org/balcony")
	romeo  = jid.MustParse("romeo@example.net/orchard")
)

func TestIQRoundTrip(t *testing.T) {
	payload := stanza.New("u:x", "query", stanza.New("u:x", "key", stanza.Text("a<b>&'\"\n")), stanza.New("u:y", "other").With("n", "1 & 2"))
	tests := []stanza.IQ{
		{Header: stanza.Header{To: romeo, From: juliet, ID: "1"}, Type: stanza.Set, Payload: payload},
		{Header: stanza.Header{To: romeo, ID: "2", Lang: "de"}, Type: stanza.Get, Payload: payload},
		{Header: stanza.Header{From: romeo, ID: "3"}, Type: stanza.Result},
		{Header: stanza.Header{From: romeo, ID: "4"}, Type: stanza.Failed, Payload: payload, Error: stanza.NewError(stanza.Forbidden, "go <away>")},
	}
	for _, want := range tests {
		for _, space := range []string{stanza.NSClient, stanza.NSComponent} {
			text := want.Element(space).String()
			e, err := stanza.Parse(text)
			if err != nil {
				t.Errorf("%s: %v", text, err)
				continue
			}
			if got, err := stanza.ParseIQ(e); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s\n got %+v, %v\nwant %+v", text, got, err, want)
			}
		}
	}
}

func TestEncoding(t *testing.T) {
	e := stanza.New("jabber:client", "iq", stanza.New("u:q", "q", stanza.New("u:q", "same"), stanza.New("jabber:client", "back")))
	e.Attrs = []xml.Attr{{Name: xml.Name{Space: "u:a", Local: "odd"}, Value: "'"}}
	want := `<iq xmlns='jabber:client' xmlns:n0='u:a' n0:odd='&#39;'><q xmlns='u:q'><same/><back xmlns='jabber:client'/></q></iq>`
	if got := e.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := string(e.Append(nil, "jabber:client"))[:9], "<iq xmlns"; got != want {
		t.Errorf("inside its own namespace: %s", got)
	}
	again, err := stanza.Parse(want)
	if err != nil || !reflect.DeepEqual(again, e) {
		t.Errorf("parsed back: %#v, %v", again, err)
	}
	if got := stanza.Text("a\x00b\xffc\uffff").String(); got != "a\uFFFDb\uFFFDc\uFFFD" {
		t.Errorf("what XML cannot hold became %q", got)
	}
}

func TestParseIQRefuses(t *testing.T) {
	tests := []string{
		"<iq xmlns='jabber:client' type='get'><a/></iq>",
		"<iq xmlns='jabber:client' type='get' id='1'/>",
		"<iq xmlns='jabber:client' type='gett' id='1'><a/></iq>",
		"<iq xmlns='jabber:client' id='1'><a/></iq>",
		"<iq xmlns='jabber:client' type='get' id='1' from='@'><a/></iq>",
	}
	for _, s := range tests {
		e, err := stanza.Parse(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		if q, err := stanza.ParseIQ(e); err == nil {
			t.Errorf("%s: read as %+v", s, q)
		}
	}
}

// TestErrors: old codes and new conditions mean the same (XEP-0086).
func TestErrors(t *testing.T) {
	tests := []struct {
		in        string
		condition string
		code      int
	}{
		{"<error xmlns='jabber:client' code='503'>Could not connect</error>", stanza.ServiceUnavailable, 503},
		{"<error xmlns='jabber:client' code='501'/>", stanza.FeatureNotImplemented, 501},
		{"<error xmlns='jabber:client' code='403' type='auth'><forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>no</text></error>", stanza.Forbidden, 403},
		{"<error xmlns='jabber:client' type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>xmpp:a@b</gone></error>", stanza.Gone, 0},
		{"<error xmlns='jabber:client'/>", stanza.UndefinedCondition, 0},
	}
	for _, tt := range tests {
		el, err := stanza.Parse(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if e := stanza.ParseError(el); e.Condition != tt.condition || e.Code != tt.code || e.Type == "" {
			t.Errorf("%s: %+v, want condition %s and code %d", tt.in, e, tt.condition, tt.code)
		}
	}
	if e := stanza.NewError(stanza.Forbidden, "no"); e.Error() != "forbidden: no" || e.Code != 403 || e.Type != stanza.Auth {
		t.Errorf("NewError: %+v", e)
	}
}

func TestPresence(t *testing.T) {
	want := stanza.Presence{Header: stanza.Header{From: juliet}, Priority: -1, Payload: []stanza.Element{stanza.New("jabber:client", "show", stanza.Text("away"))}}
	e, err := stanza.Parse(want.Element(stanza.NSClient).String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := stanza.ParsePresence(e); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	m := stanza.Message{Header: stanza.Header{To: romeo}, Type: "chat", Payload: []stanza.Element{stanza.New("jabber:client", "body", stanza.Text("hi"))}}
	e, err = stanza.Parse(m.Element(stanza.NSClient).String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := stanza.ParseMessage(e); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("got %+v, %v; want %+v", got, err, m)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		in   string
		want error
	}{
		{"<a/><b/>", stanza.ErrForbidden},
		{"<a/>x", stanza.ErrForbidden},
		{"<!-- x --><a/>", stanza.ErrForbidden},
		{"<!DOCTYPE a><a/>", stanza.ErrForbidden},
		{"<a><?x y?></a>", stanza.ErrForbidden},
		{strings.Repeat("<a>", 50), stanza.ErrForbidden},
		{"<a" + strings.Repeat(" b='c'", 100) + "/>", stanza.ErrForbidden},
		// What a strict parser would take for the end of the stream, were it passed on.
		{"<a to='b' to='c'/>", stanza.ErrForbidden},
		{"<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>", stanza.ErrForbidden},
		{"<:a/>", stanza.ErrForbidden},
		{"<a :b='1'/>", stanza.ErrForbidden},
		{"<a b:='1'/>", stanza.ErrForbidden},
		{"<xml:a/>", stanza.ErrForbidden},
		{"<a xmlns='http://www.w3.org/2000/xmlns/'/>", stanza.ErrForbidden},
		{strings.Repeat(" ", stanza.MaxBytes+1), stanza.ErrForbidden},
		{"", nil}, {"x", nil}, {"<a>", nil}, {"<a></b>", nil},
	}
	for _, tt := range tests {
		e, err := stanza.Parse(tt.in)
		if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) {
			t.Errorf("Parse(%.40q) = %v, %v; want %v", tt.in, e, err, tt.want)
		}
	}
}

// FuzzStanza: whatever parses as an iq can be written and read to the same
// value, and an error never panics.
func FuzzStanza(f *testing.F) {
	seeds := []string{
		"<iq xmlns='jabber:client' type='set' id='1' to='a@b/c'><query xmlns='http://jabber.org/protocol/dtcp'><key>k</key></query></iq>",
		"<iq xmlns='jabber:client' type='error'><error code='503'>x</error></iq>",
		"<iq xmlns='jabber:client' type='result' id='1' xml:lang='de'/>",
		"<presence><priority>-1</priority></presence>",
		"<message to='a@b'><body>x</body></message>",
		"<a xmlns:p='u' p:q='1'>&#x41;<![CDATA[<]]></a>",
	}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := stanza.Parse(s)
		if err != nil {
			return
		}
		_, _ = stanza.ParsePresence(e)
		_, _ = stanza.ParseMessage(e)
		q, err := stanza.ParseIQ(e)
		if err != nil {
			return
		}
		text := q.Element(e.Name.Space).String()
		if len(text) > stanza.MaxBytes {
			return // escaping made it longer than Parse takes
		}
		e2, err := stanza.Parse(text)
		if err != nil {
			t.Fatalf("%q was written as %q: %v", s, text, err)
		}
		q2, err := stanza.ParseIQ(e2)
		if err != nil || !reflect.DeepEqual(q, q2) {
			t.Fatalf("%q was read as %+v, then %+v, %v", s, q, q2, err)
		}
	})
}

package xmlstream_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const open = "<?xml version='1.0'?><stream:stream to='example.org' id='x1' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"

func TestHeaderRoundTrip(t *testing.T) {
	h := xmlstream.Header{To: jid.MustParse("example.org"), From: jid.MustParse("a@example.org"), ID: "i<'d", Version: "1.0", Content: stanza.NSClient}
	r := xmlstream.NewReader(bufio.NewReader(strings.NewReader(string(h.Append(nil)))), 0)
	got, err := r.Header()
	if err != nil || got != h {
		t.Errorf("header %+v, %v; want %+v", got, err, h)
	}
}

func TestElementsOneByOne(t *testing.T) {
	in := open + "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features> \n<iq type='get' id='1'><q xmlns='u:q'>a&amp;b</q></iq>" + xmlstream.End + "rest"
	buf := bufio.NewReader(strings.NewReader(in))
	r := xmlstream.NewReader(buf, 0)
	if h, err := r.Header(); err != nil || h.ID != "x1" {
		t.Fatalf("header %+v, %v", h, err)
	}
	f, err := r.Next()
	if err != nil || !f.Is(stanza.NSStream, "features") || f.Child("urn:ietf:params:xml:ns:xmpp-bind", "bind").IsZero() {
		t.Fatalf("features: %v, %v", f, err)
	}
	q, err := r.Next()
	if err != nil || !q.Is(stanza.NSClient, "iq") || q.Child("u:q", "q").Text() != "a&b" {
		t.Fatalf("iq: %v, %v", q, err)
	}
	if _, err := r.Next(); !errors.Is(err, xmlstream.ErrClosed) {
		t.Fatalf("end of stream: %v", err)
	}
	// Nothing beyond the closing tag was taken: what follows <proceed/> is TLS.
	if rest, _ := io.ReadAll(buf); string(rest) != "rest" {
		t.Errorf("left in the buffer: %q", rest)
	}
}

func TestRefused(t *testing.T) {
	bomb := `<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>`
	tests := []struct {
		name, in string
		want     error // nil: any error will do
	}{
		{"entity bomb before the header", "<?xml version='1.0'?>" + bomb + open, stanza.ErrForbidden},
		{"DTD between stanzas", open + bomb, stanza.ErrForbidden},
		{"unknown entity", open + "<a>&b;</a>", nil},
		{"comment", open + "<!-- hello -->", stanza.ErrForbidden},
		{"comment in a stanza", open + "<a><!-- hello --></a>", stanza.ErrForbidden},
		{"processing instruction", open + "<?php ?>", stanza.ErrForbidden},
		{"second declaration", "<?xml version='1.0'?>" + open, stanza.ErrForbidden},
		{"other encoding", "<?xml version='1.0' encoding='utf-16'?>" + open, stanza.ErrForbidden},
		{"text between stanzas", open + "hello", stanza.ErrForbidden},
		{"endless stanza", open + "<a>" + strings.Repeat("x", 2*stanza.MaxBytes), xmlstream.ErrTooLarge},
		{"endless tag", open + "<a " + strings.Repeat("x", 2*stanza.MaxBytes), xmlstream.ErrTooLarge},
		{"endless white space", open + strings.Repeat(" ", 2*stanza.MaxBytes), xmlstream.ErrTooLarge},
		{"endless header", strings.Repeat(" ", 2*stanza.MaxBytes), xmlstream.ErrTooLarge},
		{"depth", open + strings.Repeat("<a>", 100), stanza.ErrForbidden},
		{"crossed tags", open + "<a><b></a></b>", nil},
		{"not a stream", "<html>", nil},
		{"bad address", "<stream:stream from='@' xmlns:stream='http://etherx.jabber.org/streams'>", nil},
		{"not UTF-8", open + "<a>\xff\xfe</a>", nil},
		{"cut", open + "<a>", io.EOF},
	}
	for _, tt := range tests {
		r := xmlstream.NewReader(bufio.NewReader(strings.NewReader(tt.in)), 0)
		_, err := r.Header()
		if err == nil {
			_, err = r.Next()
		}
		if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("%s: error of %d bytes", tt.name, len(err.Error()))
		}
	}
}

// TestNodes: a reader that allows more bytes is still bounded in what it builds.
func TestNodes(t *testing.T) {
	for n, want := range map[int]error{stanza.MaxNodes - 1: nil, stanza.MaxNodes: stanza.ErrForbidden} {
		in := open + "<a>" + strings.Repeat("<b/>", n) + "</a>"
		r := xmlstream.NewReader(bufio.NewReader(strings.NewReader(in)), 1<<20)
		if _, err := r.Header(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(); !errors.Is(err, want) {
			t.Errorf("%d nodes in an element: %v, want %v", n, err, want)
		}
	}
}

// TestPrune: what is too much for one element does not end the stream, but
// the limit in bytes holds.
func TestPrune(t *testing.T) {
	const question = "<iq type='get' id='1' from='a@b/c' to='d' x='y'>"
	many := ""
	for i := range stanza.MaxAttrs + 1 {
		many += fmt.Sprintf(" a%d=''", i)
	}
	for name, in := range map[string]string{
		"depth":         question + strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100) + "</iq>",
		"nodes":         question + strings.Repeat("<b>x</b>", stanza.MaxNodes) + "</iq>",
		"attributes":    question + "<a" + many + "/></iq>",
		"own":           "<iq type='get' id='1' from='a@b/c' to='d'" + many + "><a/></iq>",
		"two of a kind": question + "<a b='' b=''/></iq>",
	} {
		r := xmlstream.NewReader(bufio.NewReader(strings.NewReader(open+in+"<iq id='2'><ok/></iq>")), 1<<20)
		r.Prune()
		if _, err := r.Header(); err != nil {
			t.Fatal(err)
		}
		e, err := r.Next()
		want := stanza.New(stanza.NSClient, "iq").With("type", "get").With("id", "1").With("from", "a@b/c").With("to", "d")
		if err != nil || e.String() != want.String() {
			t.Errorf("%s: %v, %v, want %v", name, e, err, want)
		}
		if e, err = r.Next(); err != nil || e.Attr("id") != "2" || len(e.Children) != 1 {
			t.Errorf("%s: then %v, %v, want the next stanza", name, e, err)
		}
	}
	for name, in := range map[string]string{
		"bytes":    question + strings.Repeat("<a>", 2*stanza.MaxBytes),
		"cut":      question + strings.Repeat("<a>", 100),
		"crossing": question + strings.Repeat("<a>", 100) + "</b>",
	} {
		r := xmlstream.NewReader(bufio.NewReader(strings.NewReader(open+in)), 0)
		r.Prune()
		if _, err := r.Header(); err != nil {
			t.Fatal(err)
		}
		if e, err := r.Next(); err == nil {
			t.Errorf("%s: %v, want an error", name, e)
		}
	}
}

// FuzzReader feeds a stream in pieces of every size: no panic, no element
// over the limits, and what is read can be written and read again.
func FuzzReader(f *testing.F) {
	seeds := []string{open, open + "<iq type='get' id='1'><q xmlns='u:q'/></iq>", open + "<a b='&lt;' xml:lang='de'>x<c/>y</a>" + xmlstream.End, "<?xml?>", "<!DOCTYPE a>", "<a:b xmlns:a='u'/>"}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := xmlstream.NewReader(bufio.NewReaderSize(strings.NewReader(s), 16), 4096)
		if _, err := r.Header(); err != nil {
			return
		}
		for {
			e, err := r.Next()
			if err != nil {
				return
			}
			again, err := stanza.Parse(e.String())
			if err != nil {
				t.Fatalf("%q was read as %q, which does not parse: %v", s, e, err)
			}
			if again.String() != e.String() {
				t.Fatalf("%q was read as %q, then as %q", s, e, again)
			}
		}
	})
}

package dtcp_test

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// FuzzHandshake says anything at all to an Endpoint at which two requesters are
// awaited, an extended and a stock one, and the first of whose keys the stranger knows: he
// gets lines of the protocol and an end, and never a stream.
func FuzzHandshake(f *testing.F) {
	n := memnet.New()
	board := newSwitchboard()
	host := n.Host("E", netip.MustParseAddr("192.0.2.1"))
	dark := n.Host("stranger", netip.MustParseAddr("192.0.2.2"))
	e, err := dtcp.NewEndpoint(board.user("e@example.org/e"), &dtcp.Config{
		Network: host, AllowPlain: func(jid.JID) bool { return true },
		Allow: func(context.Context, *dtcp.Request) error { return nil },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = e.Close() })
	extended, stock := board.user("a@example.org/a"), board.user("old@example.org/a")
	own := jid.MustParse("e@example.org/e")
	ask := func(t *testing.T, asker *user) (key string, giveUp func()) {
		q := stanza.New(dtcp.NSStock, "query", stanza.New(dtcp.NSStock, "key", stanza.Text("c7b5ea3f")))
		if asker == extended {
			s := stanza.New(dtcp.NSSession, "session", stanza.New("urn:xmpp:jingle:apps:dtls:0", "fingerprint",
				stanza.Text(dtcp.FingerprintOf([]byte("x")).String())).With("hash", "sha-256")).With("service", "pipe")
			q.Children = append(q.Children, s)
		}
		var a stanza.IQ
		for until := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
			// The negotiations of earlier inputs may be ending still.
			a, err = asker.RoundTrip(t.Context(), stanza.IQ{Header: stanza.Header{To: own}, Type: stanza.Set, Payload: q})
			if err == nil {
				break
			}
			if time.Now().After(until) {
				t.Fatal(err)
			}
		}
		key = a.Payload.Child(dtcp.NSStock, "key").Text()
		return key, func() {
			_ = asker.Send(t.Context(), stanza.IQ{
				Header: stanza.Header{To: own, ID: "x"}, Type: stanza.Failed, Error: stanza.NewError(stanza.ServiceUnavailable, ""),
				Payload: stanza.New(dtcp.NSStock, "query", stanza.New(dtcp.NSStock, "key", stanza.Text(key))),
			})
		}
	}
	for _, s := range []string{
		"key:EXTENDED\n\x16\x03\x01\x00\x05hello", "key:EXTENDED\nok\n", "key:EXTENDED\n\x15\x03\x03\x00\x02\x02\x28",
		"starttls\n\x16\x03\x01", "starttls\nkey:STOCK\n", "key:wrong\nkey:EXTENDED\n", "ok\n", "error\n", "GET / HTTP/1.1\r\n\r\n",
		strings.Repeat("x", 600), "key:EXTENDED\nkey:EXTENDED\n", "\x16\x03\x01\x02\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		key, done := ask(t, extended)
		defer done()
		in = strings.ReplaceAll(in, "EXTENDED", key)
		// A stock requester's key is all there is to that handshake, so the
		// stranger may not have that one as well.
		_, done = ask(t, stock)
		defer done()
		c, err := dark.Dial(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), e.Addr().Port()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, in); err != nil {
			return // it was refused at an early byte
		}
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatalf("%q: no end: %v", in, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if s, err := e.Accept(ctx); err == nil {
			t.Fatalf("%q became a stream: %+v", in, s.Path())
		}
	})
}

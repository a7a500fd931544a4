package xmpp_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const streamOpen = "<?xml version='1.0'?><stream:stream id='1' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"

// seedFuzz adds the seeds and fails when there are none, so that a target
// cannot run on nothing.
func seedFuzz(f *testing.F, seeds ...string) {
	f.Helper()
	if len(seeds) < 3 {
		f.Fatalf("%d seeds", len(seeds))
	}
	for _, s := range seeds {
		f.Add(s)
	}
}

// FuzzStream lets a server send anything after the login: no panic, and all
// that is answered is well-formed.
func FuzzStream(f *testing.F) {
	seedFuzz(f,
		"<iq type='get' id='1' from='juliet@example.org/x'><query xmlns='"+nsInfo+"'/></iq>",
		"<iq type='set' id='1'><query xmlns='"+nsRoster+"'><item jid='a@b' subscription='remove'/></query></iq>",
		"<iq type='get' id='&lt;&#39;' from='a@b'><ping xmlns='"+nsPing+"'/></iq>",
		"<iq type='error' id='1'/><iq type='result'/><iq/>",
		"<presence from='a@b/c'><priority>x</priority></presence><presence from='a@b' type='unavailable'/><presence/>",
		"<message><body>x</body></message> \n</stream:stream>",
		"<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
		"<a><b></a>", "&", "<!-- -->",
	)
	f.Fuzz(func(t *testing.T, in string) {
		client, server := newPair()
		_, _ = server.Write([]byte(streamOpen + in))
		server.out.update(func() { server.out.closed = true })
		if err := xmpp.ReadStream(client, romeo); err == nil {
			t.Error("the stream ended without a reason")
		}
		answers, _ := io.ReadAll(server)
		r := xmlstream.NewReader(bufio.NewReader(strings.NewReader(streamOpen+string(answers))), xmpp.MaxStanza)
		if _, err := r.Header(); err != nil {
			t.Fatal(err)
		}
		for {
			e, err := r.Next()
			if errors.Is(err, io.EOF) || errors.Is(err, xmlstream.ErrClosed) {
				return
			}
			if err != nil || !e.Is(stanza.NSClient, "iq") {
				t.Fatalf("%q was answered by %q: %v", in, answers, err)
			}
		}
	})
}

// FuzzClear lets a server, or somebody in between, send anything before TLS:
// no login comes of it, and the client says nothing in clear but its header
// and its wish for TLS.
func FuzzClear(f *testing.F) {
	seedFuzz(f,
		streamOpen+"<stream:features>"+starttlsFeature+"</stream:features>",
		streamOpen+"<stream:features>"+starttlsFeature+"</stream:features><proceed xmlns='"+nsTLS+"'/>",
		streamOpen+"<stream:features>"+mechanisms("PLAIN")+"</stream:features><success xmlns='"+nsSASL+"'/>",
		"\x15\x03\x01\x00\x02\x02\x46", "HTTP/1.1 400\r\n", "", "<", streamOpen+"<stream:error/>",
	)
	f.Fuzz(func(t *testing.T, in string) {
		n := newNetwork(t)
		done := start(t.Context(), n.config())
		p := n.accept()
		p.send("%s", in)
		p.raw.out.update(func() { p.raw.out.closed = true })
		// A guess that fails is followed by another, to which nothing is said.
		for {
			select {
			case again := <-n.conns:
				again.Close()
				continue
			case got := <-done:
				if got.err == nil {
					t.Fatalf("logged in after %q", in)
				}
			}
			break
		}
		said, _ := io.ReadAll(p.raw)
		header := xmlstream.Header{To: romeo.Server(), Version: "1.0", Content: stanza.NSClient}.Append(nil)
		rest, ok := bytes.CutPrefix(said, header)
		if ok {
			rest = bytes.TrimPrefix(rest, []byte("<starttls xmlns='"+nsTLS+"'/>"))
		}
		if !ok || (len(rest) > 0 && rest[0] != 0x16 && rest[0] != 0x15) {
			t.Errorf("after %q the client said %q", in, said)
		}
	})
}

// FuzzChallenge lets a server that does not know the password send any
// challenges: it is never believed.
func FuzzChallenge(f *testing.F) {
	seedFuzz(f, "r=nonce,s=c2FsdA==,i=4096|v=c2ln", "r=nonce1,s=,i=4096|v=", "|", "r=nonce,s=c2FsdA==,i=4096|e=other-error", "m=x,r=nonce,s=c2FsdA==,i=4096|v=c2ln")
	f.Fuzz(func(t *testing.T, in string) {
		if strings.Contains(in, "i=") && !strings.Contains(in, "i=4096|") {
			return // costs time, and nothing else
		}
		if xmpp.Challenges(strings.Split(in, "|")...) {
			t.Errorf("%q was believed", in)
		}
	})
}

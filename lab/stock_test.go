//go:build linux

package lab_test

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestLabStockAlone holds the stock peer against itself, so that the stories
// which meet ours with it start from something that works.
func TestLabStockAlone(t *testing.T) {
	for _, kind := range lab.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			server := kind.Start(t)
			asker, answerer := server.Account(t, "asker"), server.Account(t, "answerer")
			checked := 0
			for _, tls := range []bool{false, true} {
				for _, who := range []string{"asker", "answerer", "both", "neither"} {
					t.Run(fmt.Sprintf("%s accepts, tls %v", who, tls), func(t *testing.T) {
						before := len(server.IQs(t))
						a := lab.StartStock(t, server, asker, stockOptions(tls, who == "asker" || who == "both")...)
						b := lab.StartStock(t, server, answerer, stockOptions(tls, who == "answerer" || who == "both")...)
						a.Command(t, "dial %s", b.Address)
						b.Await(t, "request")
						if who == "neither" {
							a.Await(t, "failed")
							b.Await(t, "failed")
							wantOneRoundTrip(t, server.IQs(t)[before:], a.Address, b.Address)
							return
						}
						if got := a.Await(t, "open"); got.TLS != tls || got.Role != "requester" {
							t.Errorf("asker: got %+v, want a requester with tls %v", got, tls)
						}
						if got := b.Await(t, "open"); got.TLS != tls || got.Role != "responder" {
							t.Errorf("answerer: got %+v, want a responder with tls %v", got, tls)
						}
						const length = 3_000_001
						b.Command(t, "digest 1")
						a.Command(t, "send 1 %d", length)
						got, want := a.Await(t, "done"), b.Await(t, "done")
						if want.Received != length || strings.TrimSpace(got.Answer) != fmt.Sprintf("%s %d", want.SHA256, length) || got.SHA256 != want.SHA256 {
							t.Errorf("sent %+v, digested %+v", got, want)
						}
						wantOneRoundTrip(t, server.IQs(t)[before:], a.Address, b.Address)
					})
					checked++
				}
			}
			if checked != 8 {
				t.Errorf("checked %d cells, want 8", checked)
			}
		})
	}
}

// stockOptions are those of a stock peer that dials whatever it is offered.
func stockOptions(tls, listens bool) []string {
	var options []string
	if tls {
		options = append(options, "--starttls")
	}
	if !listens {
		options = append(options, "--no-listen")
	}
	return options
}

// wantOneRoundTrip checks that the peers exchanged one question and its answer,
// and nothing else, over XMPP.
func wantOneRoundTrip(t *testing.T, iqs []lab.IQ, asker, answerer string) {
	t.Helper()
	got := lab.Between(iqs, asker, answerer)
	if len(got) != 2 || got[0].Type != "set" || got[0].From != asker || got[1].Type != "result" || got[1].ID != got[0].ID {
		t.Errorf("iqs between the peers: got %+v, want one set and its result", got)
	}
}

// A cell is one meeting of ours with a stock peer.
type cell struct {
	ours, theirs bool // who can accept a connection
	tls          bool // the stock peer knows starttls
}

// eachCell runs meet in every cell and counts them.
func eachCell(t *testing.T, meet func(*testing.T, cell)) {
	t.Helper()
	checked := 0
	for _, tls := range []bool{false, true} {
		for _, who := range []string{"ours", "theirs", "both", "neither"} {
			c := cell{ours: who == "ours" || who == "both", theirs: who == "theirs" || who == "both", tls: tls}
			t.Run(fmt.Sprintf("%s accepts, starttls %v", who, tls), func(t *testing.T) { meet(t, c) })
			checked++
		}
	}
	if checked != 8 {
		t.Errorf("checked %d cells, want 8", checked)
	}
}

// reach are the flags that let our peer accept connections or, by a firewall
// that refuses them, not.
func (c cell) reach(t *testing.T) []string {
	t.Helper()
	if c.ours {
		return nil
	}
	port := lab.FreePort(t)
	lab.Unreachable(t, port)
	return []string{"--port", strconv.Itoa(port)}
}

// A stock peer is dialed by us, or dials us, when we asked.
func tellStockAsked(t *testing.T, s *stage) {
	eachCell(t, func(t *testing.T, c cell) {
		alice := s.user(t, "alice")
		stock := lab.StartStock(t, s.server, s.server.Account(t, "stock"), stockOptions(c.tls, c.theirs)...)
		data := bytesOf(7, 3_000_001)
		var stdout bytes.Buffer
		streams := lab.Streams{Stdin: bytes.NewReader(data), Stdout: &stdout}
		dial := alice.Start(t, streams, append([]string{"dial", stock.Address, "--allow-plain"}, c.reach(t)...)...)
		stock.Await(t, "request")
		if !c.ours && !c.theirs {
			if status := dial.Status(t); status != 4 {
				t.Errorf("exit status %d, want 4", status)
			}
			stock.Await(t, "failed")
			return
		}
		if got := stock.Await(t, "open"); got.TLS != c.tls {
			t.Errorf("the stock peer got %+v, want TLS %v", got, c.tls)
		}
		if got := dial.Await(t, "path"); got.Kind != "stock" {
			t.Errorf("path of kind %q, want stock", got.Kind)
		}
		stock.Command(t, "digest 1")
		digest := stock.Await(t, "done")
		if status := dial.Status(t); status != 0 {
			t.Errorf("exit status %d, want 0", status)
		}
		if got, want := stdout.String(), fmt.Sprintf("%s %d\n", digest.SHA256, len(data)); got != want || digest.SHA256 != strings.Fields(digestLine(data))[0] {
			t.Errorf("dial printed %q, want %q; the stock peer got %+v", got, want, digest)
		}
	})
}

// A stock peer dials us, or is dialed by us, when it asked.
func tellStockAsks(t *testing.T, s *stage) {
	eachCell(t, func(t *testing.T, c cell) {
		bob := s.user(t, "bob")
		stock := lab.StartStock(t, s.server, s.server.Account(t, "stock"), stockOptions(c.tls, c.theirs)...)
		listener := bob.Listen(t, lab.Streams{Stdout: io.Discard}, append([]string{
			"--exec", "sha256sum", "--allow-plain", "--allow", bareOf(stock.Address)}, c.reach(t)...)...)
		stock.Command(t, "dial %s", bob.Address("pipe"))
		if !c.ours && !c.theirs {
			stock.Await(t, "failed")
			if !listener.Running() {
				t.Error("the listener ended")
			}
			return
		}
		if got := stock.Await(t, "open"); got.TLS != c.tls {
			t.Errorf("the stock peer got %+v, want TLS %v", got, c.tls)
		}
		if got := listener.Await(t, "path"); got.Kind != "stock" {
			t.Errorf("path of kind %q, want stock", got.Kind)
		}
		stock.Command(t, "send 1 3000001")
		done := stock.Await(t, "done")
		if want := done.SHA256 + "  -\n"; done.Sent != 3_000_001 || done.Answer != want {
			t.Errorf("the stock peer got %+v, want the answer %q", done, want)
		}
	})
}

// bareOf is a full address without its resource.
func bareOf(address string) string {
	bare, _, _ := strings.Cut(address, "/")
	return bare
}

// Without --allow-plain nothing is shared with a stock peer, whoever asks: to
// it we are somebody who refuses, in the words of 2002 and those of today.
func tellStockRefused(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	stock := lab.StartStock(t, s.server, s.server.Account(t, "stock"))
	bob.Listen(t, lab.Streams{}, "--exec", "cat", "--allow", bareOf(stock.Address))
	stock.Command(t, "dial %s", bob.Address("pipe"))
	if why := stock.Await(t, "failed").Why; !strings.Contains(why, `code="`) || !strings.Contains(why, "urn:ietf:params:xml:ns:xmpp-stanzas") {
		t.Errorf("the stock peer was told %q, want an error with a code and a condition", why)
	}
	wantStatus(t, "dial of a stock peer", alice.Do(t, nil, "dial", stock.Address), 4)

	for _, refusal := range []struct {
		options []string
		status  int
	}{
		{[]string{"--refuse"}, 3},
		{[]string{"--refuse", "--old"}, 4}, // 501, not implemented
	} {
		stock := lab.StartStock(t, s.server, s.server.Account(t, "stock"), refusal.options...)
		got := alice.Do(t, nil, "dial", stock.Address, "--allow-plain")
		wantStatus(t, fmt.Sprintf("dial of a stock peer with %q", refusal.options), got, refusal.status)
	}
}

// A peer as of 2002 has its stream, too. When neither can accept, its giving up
// has no id and is lost on the way; then only time tells, which -long takes.
func tellOldStock(t *testing.T, s *stage) {
	alice := s.user(t, "alice")
	stock := lab.StartStock(t, s.server, s.server.Account(t, "stock"), "--old")
	dial := alice.Start(t, lab.Streams{Stdin: strings.NewReader("hello")}, "dial", stock.Address, "--allow-plain")
	stock.Await(t, "request")
	stock.Await(t, "open")
	stock.Command(t, "digest 1")
	if got := stock.Await(t, "done"); got.Received != 5 {
		t.Errorf("the old peer got %+v, want 5 bytes", got)
	}
	if status := dial.Status(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	if *longFlag {
		stock := lab.StartStock(t, s.server, s.server.Account(t, "stock"), "--old", "--no-listen")
		got := alice.Do(t, nil, append([]string{"dial", stock.Address, "--allow-plain"}, cell{}.reach(t)...)...)
		wantStatus(t, "dial of an old peer when neither can accept", got, 4)
	}
}

//go:build linux

package lab_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestLabGridTimes measures what the table in Section 4 of protocol.md says of
// hosts that are 100 ms from each other, from the server and from the relay:
// s = 100, r = 100, A = B = 100. The median of nine may be 60 ms late.
func TestLabGridTimes(t *testing.T) {
	const late = 60 * time.Millisecond
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	cells := []struct {
		requester, responder string
		flags                []string
		route                string
		responderHas         time.Duration
		requesterHas         time.Duration
		sentence             string
	}{
		{"open", "home", nil, direct, ms(400), ms(450), "direct, responder dialed: max(2s, s+1.5r) + 1.5r"},
		{"home", "open", nil, direct, ms(450), ms(500), "direct, requester dialed: 2s + 2.5r"},
		{"home", "home", nil, direct, ms(450), ms(500), "punched at the requester's first SYN: 2s + 2.5r"},
		{"wall", "wall", nil, direct, ms(450), ms(500), "the same between firewalls"},
		{"v6-wall", "v6-wall", nil, direct, ms(450), ms(500), "the same over IPv6"},
		{"open", "open", []string{"--relay-only"}, relayed, ms(600), ms(700), "either's relay, with nothing else to wait for"},
		{"enclosed", "enclosed", nil, relayed, ms(1000), ms(1100), "the relay, and the wait for direct paths that are black holes: twice its round trip"},
		{"symmetric", "symmetric", nil, relayed, ms(1000), ms(1100), "the same, with ports that cannot be told"},
	}
	var names []string
	for _, c := range cells {
		names = append(names, c.requester+"-1", c.responder+"-2")
	}
	g := newGrid(t, names...)
	var checked atomic.Int64
	t.Cleanup(func() { t.Logf("%d cells", checked.Load()) })
	for _, c := range cells {
		t.Run(c.requester+"/"+c.responder, func(t *testing.T) {
			t.Parallel()
			first, second := g.stations[c.requester+"-1"], g.stations[c.responder+"-2"]
			defer g.take(first, second)()
			a, b := *first, *second
			a.more, b.more = c.flags, c.flags
			g.listen(t, &b)
			defer b.listener.Stop()
			got := g.ask(t, &a, &b, 10)
			if len(got.paths) != 10 {
				t.Fatalf("%d streams of 10", len(got.paths))
			}
			responderHas := got.median(func(p path) time.Duration { return p.responder })
			requesterHas := got.median(func(p path) time.Duration { return p.requester })
			t.Logf("%s: %s: responder %v, requester %v (%s)", got.route(), got.entry(), responderHas, requesterHas, c.sentence)
			if want := fmt.Sprintf("[%s]", c.route); got.route() != want {
				t.Errorf("route %s, want %s", got.route(), want)
			}
			for _, m := range []struct {
				who       string
				got, want time.Duration
			}{{"responder", responderHas, c.responderHas}, {"requester", requesterHas, c.requesterHas}} {
				if m.got < m.want-late || m.got > m.want+late {
					t.Errorf("%s: the %s has its stream after %v, want %v ± %v", c.sentence, m.who, m.got, m.want, late)
				}
			}
			checked.Add(1)
		})
	}
}

// TestLabGridTogether has several streams between two hosts, each behind a NAT of
// its own: two asked for at one moment, ten of one forward, all of them open at
// once, and two hosts asking each other at one moment. All are punched.
func TestLabGridTogether(t *testing.T) {
	g := newGrid(t, "home-1", "home-2")
	a, b := g.stations["home-1"], g.stations["home-2"]
	g.listen(t, a)
	g.listen(t, b)
	checked := 0
	wantPunched := func(t *testing.T, run *lab.Run, n int) {
		t.Helper()
		for range n {
			checked++
			if p := run.Await(t, "path", "error"); p.Kind != reflexive {
				t.Errorf("path %q %s, want %s", p.Kind, p.Message, reflexive)
			}
		}
	}
	there, back := g.forward(t, a, b), g.forward(t, b, a)
	// Until a program has looked around, it has fewer ports than later.
	for _, f := range []*forwarding{there, back} {
		f.open(t)
		wantPunched(t, f.run, 1)
	}
	t.Run("two at one moment", func(t *testing.T) {
		done := make(chan error, 2)
		for range 2 {
			// Owned by this test; ends with the stream, or its limit; received below.
			go func() { done <- exchange(there.from, there.at, []byte("at once\n")) }()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		wantPunched(t, there.run, 2)
	})
	t.Run("both ways at one moment", func(t *testing.T) {
		done := make(chan error, 2)
		for _, f := range []*forwarding{there, back} {
			// Owned by this test; ends with the stream, or its limit; received below.
			go func() { done <- exchange(f.from, f.at, []byte("crossing\n")) }()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		wantPunched(t, there.run, 1)
		wantPunched(t, back.run, 1)
	})
	t.Run("ten open", func(t *testing.T) {
		for range 10 {
			there.open(t)
			wantPunched(t, there.run, 1)
		}
	})
	if checked != 16 {
		t.Errorf("checked %d streams, want 16", checked)
	}
}

// A forwarding is a running dtcp forward.
type forwarding struct {
	run     *lab.Run
	from    *lab.Host
	at      netip.AddrPort // the local port that leads to the other
	address string         // of the program
}

// forward starts dtcp forward from one station to another's listener.
func (g *grid) forward(t *testing.T, a, b *station) *forwarding {
	t.Helper()
	run := a.user.Start(t, lab.Streams{}, append([]string{"forward", "127.0.0.1:0", b.address, "--service", gridService}, a.flags()...)...)
	ready := run.Await(t, "ready")
	return &forwarding{run, a.host, netip.MustParseAddrPort(ready.Listen), ready.Address}
}

// open opens a stream, has something come back, and leaves it open until the
// test's end.
func (f *forwarding) open(t *testing.T) {
	t.Helper()
	c, err := f.from.Dial(netip.AddrPort{}, f.at, time.Second)
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { c.Close() })
	const word = "still there\n"
	if err := roundTrip(c, word); err != nil {
		t.Error(err)
	}
}

func roundTrip(c net.Conn, word string) error {
	if err := c.SetDeadline(time.Now().Add(streamLimit)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(word)); err != nil {
		return err
	}
	if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != word {
		return fmt.Errorf("got back %q: %w", got, err)
	}
	return nil
}

// TestLabRelayDoubleNAT has two hosts that reach nothing but the server and the
// relay: a stream forms after one round trip of iqs, and carries both ways.
func TestLabRelayDoubleNAT(t *testing.T) {
	g := newGrid(t, "enclosed-1", "enclosed-2")
	alice, bob := g.stations["enclosed-1"].user, g.stations["enclosed-2"].user
	listener := bob.Start(t, lab.Streams{}, "listen", "--exec", "sha256sum", "--allow", alice.JID)
	address := listener.Await(t, "ready").Address

	data := bytesOf(4, 2_000_003)
	var out bytes.Buffer
	dial := alice.Start(t, lab.Streams{Stdin: bytes.NewReader(data), Stdout: &out}, "dial", address)
	near, far := dial.Await(t, "path"), listener.Await(t, "path")
	if near.Kind != relayed || far.Kind != relayed {
		t.Errorf("paths %q and %q, want the relay", near.Kind, far.Kind)
	}
	if status := dial.Status(t); status != 0 {
		t.Errorf("dial: exit status %d", status)
	}
	if got, want := out.String(), digestLine(data); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var types []string
	for _, iq := range lab.Between(g.server.IQs(t), far.Peer, address) {
		types = append(types, iq.Type)
	}
	if got := fmt.Sprint(types); got != "[set result]" {
		t.Errorf("iqs between the two: %s, want one round trip", got)
	}
}

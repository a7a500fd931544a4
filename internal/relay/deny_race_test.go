package relay_test

import (
	"bufio"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// TestDenyRaces: whoever is denied while his legs are being joined, over sockets
// of the system, has no stream in the end.
func TestDenyRaces(t *testing.T) {
	yes := relay.Rules{Access: relay.Access{Allow: []jid.JID{alice}}, Limits: relay.Limits{PerAddress: relay.Quota{Handshakes: -1}, PerOwner: relay.Quota{Handshakes: -1}}}
	no := yes
	no.Deny = []jid.JID{alice}
	const pairs = 100
	usage := make(chan relay.Usage, pairs)
	r, err := relay.New(relay.Config{
		Domain: jid.MustParse("relay.example.org"), Keys: keys, Node: "a",
		Hosts: []relay.Host{{Addr: "127.0.0.1", Port: 5280}},
		Rules: yes, Usage: func(u relay.Usage) { usage <- u },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	// Owned by the test, ended by Close, awaited by served.
	go func() { served <- r.Serve(l) }()
	lease := (&place{T: t, Relay: r}).lend(alice)
	say := func(text string) net.Conn {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // fails only if c is closed
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for i := range pairs {
		r.Reload(yes)
		listener := say(lease.claim("k"))
		if _, err := bufio.NewReader(listener).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		dialer := say("key:k\n")
		for i%2 == 0 && r.Stats().Streams == 0 { // known to be a stream, but perhaps not begun yet
			runtime.Gosched()
		}
		r.Reload(no)
		if _, err := io.Copy(io.Discard, listener); err != nil && err.(net.Error).Timeout() {
			t.Fatal("a leg of somebody who is denied stays")
		}
		_, _ = listener.Close(), dialer.Close() // nobody is left to tell
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	close(usage)
	n := 0
	for u := range usage {
		n++
		if u.Why != relay.EndedDenied {
			t.Errorf("a stream ended by %s", u.Why)
		}
	}
	if n < pairs/2 {
		t.Errorf("only %d streams were cut: this tests too little", n)
	}
}

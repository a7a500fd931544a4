package memnet_test

import (
	"bytes"
	"net"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

func TestTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		var got []string
		marker := 0
		stop := n.Tap(func(p memnet.Packet) {
			marker += bytes.Count(p.Data, []byte("secret"))
			got = append(got, p.String())
			a.Conns() // a tap may call anything
		})
		ca, cb := connect(t, a, b)
		write(t, ca, "a secret")
		read(t, cb, "a secret")
		ca.Close()
		synctest.Wait()
		stop()
		stop()
		write(t, cb, "unseen")
		synctest.Wait()
		want := []string{
			"00:00:00.000000 a: 192.0.2.1:49152 -> 192.0.2.2:49152 SYN 0 bytes",
			"00:00:00.050000 b: 192.0.2.2:49152 -> 192.0.2.1:49152 SYN|ACK 0 bytes",
			"00:00:00.100000 a: 192.0.2.1:49152 -> 192.0.2.2:49152 ACK 0 bytes",
			"00:00:00.150000 a: 192.0.2.1:49152 -> 192.0.2.2:49152 ACK 8 bytes",
			"00:00:00.200000 b: 192.0.2.2:49152 -> 192.0.2.1:49152 ACK 0 bytes",
			"00:00:00.200000 a: 192.0.2.1:49152 -> 192.0.2.2:49152 ACK|FIN 0 bytes",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%q\nwant\n%q", got, want)
		}
		if marker != 1 {
			t.Errorf("seen %d markers, want 1", marker)
		}
	})
}

// A tap sees packets as their sender sent them; TapLost sees where they were
// lost, and says why.
func TestTapLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		home := n.NAT("home", natA, memnet.PortRestricted)
		a, b := home.Host("a", insideA), n.Host("b", addrB)
		b.Firewall(memnet.Reject)
		var got []string
		n.Tap(func(p memnet.Packet) { got = append(got, p.String()[len("00:00:00.000000 "):]) })
		stop := n.TapLost(func(p memnet.Packet, why string) { got = append(got, "lost "+p.From.String()+" "+why) })
		for _, remote := range []string{"192.0.2.2:80", "203.0.113.1:80"} {
			home.Unsolicited(memnet.Reject)
			if c, err := a.Dial(t.Context(), any0, ap(remote)); err == nil {
				c.Close()
				t.Errorf("dialed %s", remote)
			}
		}
		a.Dial(within(t, 1500*ms), any0, ap("192.0.2.9:80"))
		synctest.Wait()
		stop()
		b.Silence(true)
		a.Dial(within(t, ms), any0, ap("192.0.2.2:80"))
		synctest.Wait()
		want := []string{
			"a: 10.0.0.1:49152 -> 192.0.2.2:80 SYN 0 bytes",
			"lost 203.0.113.1:20001 b has a firewall",
			"b: 192.0.2.2:80 -> 203.0.113.1:20001 ACK|RST 0 bytes",
			"a: 10.0.0.1:49153 -> 203.0.113.1:80 SYN 0 bytes",
			"lost 10.0.0.1:49153 home lets nobody in there",
			"home: 203.0.113.1:80 -> 10.0.0.1:49153 ACK|RST 0 bytes",
			"a: 10.0.0.1:49154 -> 192.0.2.9:80 SYN 0 bytes",
			"lost 203.0.113.1:20002 nobody has this address",
			"a: 10.0.0.1:49154 -> 192.0.2.9:80 SYN 0 bytes again",
			"lost 203.0.113.1:20002 nobody has this address",
			"a: 10.0.0.1:49155 -> 192.0.2.2:80 SYN 0 bytes",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%q\nwant\n%q", got, want)
		}
	})
}

// A connection whose ends are closed leaves nothing behind: no goroutine, for
// then the bubble would not end, and no connection.
func TestNothingRemains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		packets := 0
		n.Tap(func(memnet.Packet) { packets++ })
		l := listen(t, b, at(addrB, 80))
		var conns []net.Conn
		for range 100 {
			conns = append(conns, dial(t, a, at(addrB, 80)), accept(t, l))
		}
		for _, c := range conns {
			c.Close()
		}
		before := newClock(t)
		for len(a.Conns())+len(b.Conns()) > 0 {
			synctest.Wait()
			if before.since() > r {
				t.Fatalf("connections remain after %v", before.since())
			}
			wait(ms)
		}
		synctest.Wait()
		settled := packets
		wait(1000 * r)
		if packets != settled {
			t.Errorf("%d packets after the end", packets-settled)
		}
	})
}

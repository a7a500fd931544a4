package memnet_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

func TestHandshakeTakesOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		l := listen(t, b, at(addrB, 80))
		now := newClock(t)

		var accepted sync.WaitGroup
		accepted.Go(func() {
			c := accept(t, l)
			now.want(r+oneWay, "accept")
			read(t, c, "hello")
			now.want(r+oneWay, "first byte")
			if got, want := c.LocalAddr().String(), "192.0.2.2:80"; got != want {
				t.Errorf("local address %s, want %s", got, want)
			}
			if got, want := c.RemoteAddr().String(), "192.0.2.1:49152"; got != want {
				t.Errorf("remote address %s, want %s", got, want)
			}
			write(t, c, "world")
		})

		c := dial(t, a, at(addrB, 80))
		now.want(r, "dial")
		write(t, c, "hello")
		now.want(r, "write")
		read(t, c, "world")
		now.want(2*r, "answer")
		accepted.Wait()
	})
}

func TestDialFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		remote string
		setup  func(n *memnet.Net, a, b *memnet.Host)
		want   error
		after  time.Duration
		syns   int
	}{
		{"nobody listens", "192.0.2.2:81", nil, syscall.ECONNREFUSED, r, 1},
		{"no such address", "192.0.2.9:80", nil, syscall.ETIMEDOUT, 127 * time.Second, 7},
		{"other family", "[2001:db8::1]:80", nil, syscall.ENETUNREACH, 0, 0},
		{"loopback", "127.0.0.1:80", nil, syscall.ECONNREFUSED, 0, 1},
		{"unspecified is loopback", "0.0.0.0:80", nil, syscall.ECONNREFUSED, 0, 1},
		{"own address", "192.0.2.1:80", nil, syscall.ECONNREFUSED, 0, 1},
		{"silence", "192.0.2.2:80", func(_ *memnet.Net, _, b *memnet.Host) { b.Silence(true) },
			syscall.ETIMEDOUT, 127 * time.Second, 7},
		{"silence at home", "192.0.2.2:80", func(_ *memnet.Net, a, _ *memnet.Host) { a.Silence(true) },
			syscall.ETIMEDOUT, 127 * time.Second, 7},
		{"cut", "192.0.2.2:80", func(_ *memnet.Net, a, b *memnet.Host) { a.Cut(b) },
			syscall.ETIMEDOUT, 127 * time.Second, 7},
		{"partition", "192.0.2.2:80", func(n *memnet.Net, a, _ *memnet.Host) { n.Partition(a) },
			syscall.ETIMEDOUT, 127 * time.Second, 7},
		{"firewall drops", "192.0.2.2:80", func(_ *memnet.Net, _, b *memnet.Host) { b.Firewall(memnet.Drop) },
			syscall.ETIMEDOUT, 127 * time.Second, 7},
		{"firewall rejects", "192.0.2.2:80", func(_ *memnet.Net, _, b *memnet.Host) { b.Firewall(memnet.Reject) },
			syscall.ECONNREFUSED, r, 1},
		{"crashed", "192.0.2.2:80", func(_ *memnet.Net, _, b *memnet.Host) { b.Crash() },
			syscall.ECONNREFUSED, r, 1},
		{"listener closed", "192.0.2.2:82", nil, syscall.ECONNREFUSED, r, 1},
	} {
		bubble(t, test.name, func(t *testing.T) {
			n, a, b := two()
			listen(t, b, at(addrB, 80))
			listen(t, b, at(addrB, 82)).Close()
			if test.setup != nil {
				test.setup(n, a, b)
			}
			syns := 0
			n.Tap(func(p memnet.Packet) {
				if p.Opens() {
					syns++
				}
			})
			now := newClock(t)
			c, err := a.Dial(t.Context(), any0, ap(test.remote))
			if c != nil || !errors.Is(err, test.want) {
				t.Errorf("dial: %v, %v; want %v", c, err, test.want)
			}
			if op := new(net.OpError); !errors.As(err, &op) || op.Op != "dial" {
				t.Errorf("dial: error is a %T, want a *net.OpError", err)
			}
			now.want(test.after, "dial failed")
			synctest.Wait()
			if syns != test.syns {
				t.Errorf("sent %d SYNs, want %d", syns, test.syns)
			}
		})
	}
}

func TestSYNIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _ := two()
		now := newClock(t)
		var got []time.Duration
		n.Tap(func(p memnet.Packet) {
			if got = append(got, p.Time.Sub(now.start)); p.Again != (len(got) > 1) {
				t.Errorf("packet %d: %v", len(got), p)
			}
		})
		a.Dial(t.Context(), any0, ap("192.0.2.9:80"))
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63}
		if len(got) != len(want) {
			t.Fatalf("%d SYNs, want %d", len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i]*time.Second {
				t.Errorf("SYN %d at %v, want %v", i, got[i], want[i]*time.Second)
			}
		}
	})
}

func TestDialEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		now := newClock(t)
		_, err := a.Dial(within(t, 2500*ms), any0, ap("192.0.2.9:80"))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("dial: %v, want a timeout", err)
		}
		now.want(2500*ms, "dial")

		// A listener who answers too late is told so.
		l := listen(t, b, at(addrB, 80))
		resets := 0
		n.Tap(func(p memnet.Packet) {
			if p.Flags.Has(memnet.RST) && p.From.Addr() == addrA {
				resets++
			}
		})
		if _, err := a.Dial(within(t, r-1), any0, at(addrB, 80)); err == nil {
			t.Error("dial succeeded before its SYN was answered")
		}
		wait(r)
		synctest.Wait()
		if resets != 1 {
			t.Errorf("%d resets for an answer that came late, want 1", resets)
		}
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
	})
}

// Both hosts dial each other between the same two addresses; the SYNs cross.
func TestSimultaneousOpen(t *testing.T) {
	// However far apart, each end is connected one round trip after its SYN.
	for _, test := range []struct {
		name  string
		later time.Duration // b dials so long after a
	}{
		{"at the same time", 0},
		{"in flight", 30 * ms},
		{"just in time", oneWay - 1},
	} {
		bubble(t, test.name, func(t *testing.T) {
			_, a, b := two()
			now := newClock(t)
			dial := func(h *memnet.Host, local, remote netip.AddrPort) net.Conn {
				c, err := h.Dial(t.Context(), local, remote)
				if err != nil {
					t.Errorf("%s: %v", h.Name(), err)
				}
				return c
			}
			var ca, cb net.Conn
			var dials sync.WaitGroup
			dials.Go(func() {
				ca = dial(a, at(addrA, 1000), at(addrB, 2000))
				now.want(r, "a connected")
			})
			dials.Go(func() {
				wait(test.later)
				cb = dial(b, at(addrB, 2000), at(addrA, 1000))
				now.want(test.later+r, "b connected")
			})
			dials.Wait()
			if t.Failed() {
				return
			}
			write(t, ca, "from a")
			write(t, cb, "from b")
			read(t, ca, "from b")
			read(t, cb, "from a")
			ca.Close()
			if _, err := cb.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("read after close: %v", err)
			}
			cb.Close()
		})
	}

	// A dial that is given up after the SYNs have crossed resets the other.
	bubble(t, "given up", func(t *testing.T) {
		_, a, b := two()
		now := newClock(t)
		var dials sync.WaitGroup
		dials.Go(func() {
			if _, err := a.Dial(within(t, oneWay+ms), at(addrA, 1000), at(addrB, 2000)); err == nil {
				t.Error("a: connected")
			}
		})
		dials.Go(func() {
			c, err := b.Dial(t.Context(), at(addrB, 2000), at(addrA, 1000))
			if err != nil {
				t.Errorf("b: %v", err)
				return
			}
			fails(t, c, syscall.ECONNRESET)
			now.want(r+ms, "b reset")
		})
		dials.Wait()
	})

	// When b's SYN leaves after a's has come, a is refused.
	bubble(t, "too late", func(t *testing.T) {
		_, a, b := two()
		now := newClock(t)
		var dials sync.WaitGroup
		dials.Go(func() {
			_, err := a.Dial(t.Context(), at(addrA, 1000), at(addrB, 2000))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a: %v", err)
			}
			now.want(r, "a refused")
		})
		dials.Go(func() {
			wait(oneWay + ms)
			_, err := b.Dial(t.Context(), at(addrB, 2000), at(addrA, 1000))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("b: %v", err)
			}
			now.want(oneWay+ms+r, "b refused")
		})
		dials.Wait()
	})
}

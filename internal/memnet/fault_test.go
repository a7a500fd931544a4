package memnet_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

// Whatever hides the hosts from each other for a while, the connection goes on
// when what was lost is sent again: after r+200 ms, and twice that, and so on.
func TestOutage(t *testing.T) {
	const (
		first  = r + 200*ms
		second = first + 2*first
		third  = second + 4*first
	)
	for _, test := range []struct {
		name     string
		off, on  func(n *memnet.Net, a, b *memnet.Host)
		duration time.Duration
		arrives  time.Duration
	}{
		{"silence", func(_ *memnet.Net, _, b *memnet.Host) { b.Silence(true) },
			func(_ *memnet.Net, _, b *memnet.Host) { b.Silence(false) }, time.Second, third + oneWay},
		{"own silence", func(_ *memnet.Net, a, _ *memnet.Host) { a.Silence(true) },
			func(_ *memnet.Net, a, _ *memnet.Host) { a.Silence(false) }, time.Second, third + oneWay},
		{"cut", func(_ *memnet.Net, a, b *memnet.Host) { a.Cut(b) },
			func(_ *memnet.Net, a, b *memnet.Host) { b.Mend(a) }, 800 * ms, second + oneWay},
		{"partition", func(n *memnet.Net, a, _ *memnet.Host) { n.Partition(a) },
			func(n *memnet.Net, _, _ *memnet.Host) { n.Heal() }, 100 * ms, first + oneWay},
		{"readdress", func(_ *memnet.Net, a, _ *memnet.Host) { a.SetAddrs(ip("192.0.2.7")) },
			func(_ *memnet.Net, a, _ *memnet.Host) { a.SetAddrs(addrA) }, 100 * ms, first + oneWay},
	} {
		bubble(t, test.name, func(t *testing.T) {
			n, a, b := two()
			ca, cb := connect(t, a, b)
			test.off(n, a, b)
			now := newClock(t)
			write(t, ca, "one ")
			write(t, ca, "two")
			ca.CloseWrite()
			time.AfterFunc(test.duration, func() { test.on(n, a, b) })
			read(t, cb, "one two")
			now.want(test.arrives, "data")
			write(t, cb, "back")
			read(t, ca, "back")
			now.want(test.arrives+oneWay, "answer")
		})
	}
}

// The end of a closed connection gets through an outage too, and so both hosts
// forget it.
func TestCloseInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		ca, cb := connect(t, a, b)
		b.Silence(true)
		now := newClock(t)
		write(t, ca, "last words")
		ca.Close()
		time.AfterFunc(100*ms, func() { b.Silence(false) })
		got, err := io.ReadAll(cb)
		if string(got) != "last words" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		now.want(r+200*ms+oneWay, "end")
		b.Silence(true)
		cb.Close()
		time.AfterFunc(100*ms, func() { b.Silence(false) })
		wait(time.Second)
		if n := len(a.Conns()) + len(b.Conns()); n != 0 {
			t.Errorf("%d connections remain", n)
		}
	})
}

// A dialer that vanishes after its SYN does not occupy the listener for ever.
func TestHalfOpenIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		listen(t, b, at(addrB, 80))
		answers := 0
		n.Tap(func(p memnet.Packet) {
			if p.Flags == memnet.SYN|memnet.ACK {
				answers++
			}
		})
		time.AfterFunc(ms, func() { a.Silence(true) })
		if _, err := a.Dial(t.Context(), any0, at(addrB, 80)); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("dial: %v", err)
		}
		synctest.Wait()
		if answers != 6 {
			t.Errorf("the SYN was answered %d times, want 6", answers)
		}
	})
}

// A router does not answer for hosts from which the sender is cut off, and a
// neighbour of theirs can still be reached.
func TestCutBehindNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		home := n.NAT("home", natA, memnet.PortRestricted)
		home.Unsolicited(memnet.Reject)
		b, neighbour := home.Host("b", insideB), home.Host("neighbour", insideA)
		a := n.Host("a", addrA)
		home.Forward(80, at(insideA, 80))
		listen(t, neighbour, at(insideA, 80))
		a.Cut(b)
		if _, err := a.Dial(t.Context(), any0, at(natA, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial to the router: %v", err)
		}
		dial(t, a, at(natA, 80))
		a.Cut(neighbour)
		for _, port := range []uint16{80, 81} {
			if _, err := a.Dial(t.Context(), any0, at(natA, port)); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("dial to port %d of a router that is cut off: %v", port, err)
			}
		}
	})
}

// A packet on its way when the cut comes is lost.
func TestCutInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		ca, cb := connect(t, a, b)
		wait(time.Second)
		var lost []string
		n.TapLost(func(p memnet.Packet, why string) { lost = append(lost, p.Flags.String()+" "+why) })
		now := newClock(t)
		write(t, ca, "late")
		wait(oneWay - 1)
		a.Cut(b)
		wait(1)
		synctest.Wait()
		a.Mend(b)
		read(t, cb, "late")
		now.want(r+200*ms+oneWay, "second try")
		if len(lost) != 1 || lost[0] != "ACK cut off from b" {
			t.Errorf("lost: %q", lost)
		}
	})
}

func TestOutageForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		ca, cb := connect(t, a, b)
		b.Silence(true)
		now := newClock(t)
		write(t, ca, "lost")
		fails(t, ca, syscall.ETIMEDOUT)
		now.want(300*ms*(1<<9-1)+7*120*time.Second, "sixteen waits, doubled up to 120 s")
		writeFails(t, ca, syscall.EPIPE)

		// b has noticed nothing, until it writes.
		b.Silence(false)
		write(t, cb, "hello?")
		fails(t, cb, syscall.ECONNRESET)
	})
}

// An acknowledgement that opens a closed window is lost.
func TestOutageWithClosedWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		n.SetWindow(10)
		ca, cb := connect(t, a, b)
		write(t, ca, "0123456789")
		wait(time.Second)
		now := newClock(t)
		b.Silence(true)
		read(t, cb, "0123456789")
		time.AfterFunc(ms, func() { b.Silence(false) })
		write(t, ca, "a")
		now.want(r+200*ms+oneWay, "write after the window has opened")
		read(t, cb, "a")
	})
}

func TestHandshakeThroughAnOutage(t *testing.T) {
	for _, test := range []struct {
		lost      memnet.Flags // the first packet with these flags
		connected time.Duration
		accepted  time.Duration
	}{
		{memnet.SYN, time.Second + r, time.Second + r + oneWay},
		{memnet.SYN | memnet.ACK, time.Second + r, time.Second + r + oneWay},
		// The dialer is through; b repeats its SYN-ACK after a second.
		{memnet.ACK, r, time.Second + r + oneWay},
	} {
		bubble(t, test.lost.String(), func(t *testing.T) {
			n, a, b := two()
			l := listen(t, b, at(addrB, 80))
			now := newClock(t)
			var once sync.Once
			n.Tap(func(p memnet.Packet) {
				if p.Flags == test.lost {
					once.Do(func() {
						a.Cut(b) // and so it does not arrive
						time.AfterFunc(500*ms, func() { a.Mend(b) })
					})
				}
			})
			dial(t, a, at(addrB, 80))
			now.want(test.connected, "dial")
			accept(t, l)
			now.want(test.accepted, "accept")
		})
	}
}

func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		ca, cb := connect(t, a, b)
		l := listen(t, b, at(addrB, 80))
		closed := make(chan error)
		go func() { // ends with the crash; the test waits for closed
			_, err := l.Accept()
			closed <- err
		}()
		b.Crash()
		if err := <-closed; !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		fails(t, cb, syscall.ECONNABORTED)
		wait(time.Hour) // nobody tells a
		now := newClock(t)
		write(t, ca, "hello?")
		fails(t, ca, syscall.ECONNRESET)
		now.want(r, "reset")

		// The host is up again.
		connect(t, a, b)
	})
}

func TestReaddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		ca, cb := connect(t, a, b)
		everywhere := listen(t, b, at(addrB, 80))
		b.SetAddrs(ip("192.0.2.22"))
		if _, err := a.Dial(within(t, time.Second), any0, at(addrB, 80)); err == nil {
			t.Error("dialed the old address")
		}
		_, err := b.Dial(t.Context(), at(addrB, 0), at(addrA, 80))
		if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("dial from the old address: %v", err)
		}
		everywhere.Close()
		everywhere = listen(t, b, ap("[::]:80"))
		dial(t, a, ap("192.0.2.22:80"))
		accept(t, everywhere)

		// The old connection is not told, at either end.
		cb.SetReadDeadline(time.Now().Add(time.Minute))
		write(t, ca, "lost")
		if n, err := cb.Read(make([]byte, 10)); n != 0 || err == nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		fails(t, ca, syscall.ETIMEDOUT)

		home := n.NAT("home", ip("203.0.113.1"), memnet.PortRestricted)
		b.Move(home, ip("10.0.0.2"))
		l := listen(t, a, at(addrA, 80))
		dial(t, b, at(addrA, 80))
		if got := accept(t, l).RemoteAddr().String(); got != "203.0.113.1:20001" {
			t.Errorf("after the move b is %s", got)
		}
	})
}

// A packet that was on its way to an address when the host lost it.
func TestReaddressInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		ca, _ := connect(t, a, b)
		wait(time.Second)
		var lost []string
		n.TapLost(func(_ memnet.Packet, why string) { lost = append(lost, why) })
		write(t, ca, "x")
		b.SetAddrs()
		wait(oneWay)
		synctest.Wait()
		if len(lost) != 1 || lost[0] != "b has lost its address" {
			t.Errorf("lost: %q", lost)
		}
		ca.Reset()
	})
}

func TestFirewallLetsCrossingSYNsIn(t *testing.T) {
	for _, f := range []memnet.Firewall{memnet.Drop, memnet.Reject} {
		bubble(t, []string{"open", "drop", "reject"}[f], func(t *testing.T) {
			_, a, b := two()
			a.Firewall(f)
			b.Firewall(f)
			now := newClock(t)
			done := make(chan net.Conn)
			go func() { // ends when the dial does; the test waits for done
				c, err := b.Dial(t.Context(), at(addrB, 2000), at(addrA, 1000))
				if err != nil {
					t.Errorf("b: %v", err)
				}
				done <- c
			}()
			ca, err := a.Dial(t.Context(), at(addrA, 1000), at(addrB, 2000))
			if err != nil {
				t.Errorf("a: %v", err)
			}
			now.want(r, "connected")
			cb := <-done
			if t.Failed() {
				return
			}
			ca.Close()
			cb.Close()

			// What it sends to itself is not its business.
			l := listen(t, a, at(addrA, 80))
			dial(t, a, at(addrA, 80))
			accept(t, l)
		})
	}
}

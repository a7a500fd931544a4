package memnet_test

import (
	"context"
	"errors"
	"fmt"
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

var kinds = []memnet.NATKind{memnet.FullCone, memnet.PortRestricted, memnet.Symmetric, memnet.SymmetricSequential}

var (
	natA     = ip("203.0.113.1")
	natB     = ip("203.0.113.2")
	insideA  = ip("10.0.0.1")
	insideB  = ip("10.0.0.2")
	mirror   = ip("198.51.100.1")
	mirror2  = ip("198.51.100.2")
	punching = uint16(4000)
)

// natted returns hosts behind two NATs of their own, oneWay from each other, as
// far from a mirror that says where connections come from.
func natted(t *testing.T, kindA, kindB memnet.NATKind) (ra, rb *memnet.Router, a, b *memnet.Host) {
	n := memnet.New()
	n.SetDefaultLatency(oneWay)
	s := n.Host("mirror", mirror, mirror2)
	ra, rb = n.NAT("ra", natA, kindA), n.NAT("rb", natB, kindB)
	a, b = ra.Host("a", insideA), rb.Host("b", insideB)
	l := listen(t, s, ap("0.0.0.0:3478"))
	go func() { // ends when the test closes l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, c.RemoteAddr().String()+"\n")
			c.Close()
		}
	}()
	return ra, rb, a, b
}

// reflexive asks a mirror for the outside address of a local port. The
// connection is closed, the mapping stays.
func reflexive(t *testing.T, h *memnet.Host, local netip.AddrPort, mirror netip.Addr) netip.AddrPort {
	t.Helper()
	c, err := h.Dial(t.Context(), local, at(mirror, 3478))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	line, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return ap(string(line[:len(line)-1]))
}

func TestMapping(t *testing.T) {
	checked := 0
	for _, kind := range kinds {
		bubble(t, kind.String(), func(t *testing.T) {
			_, _, a, _ := natted(t, kind, kind)
			local := at(insideA, punching)
			one, two := reflexive(t, a, local, mirror), reflexive(t, a, local, mirror2)
			other := reflexive(t, a, at(insideA, punching+1), mirror)
			symmetric := kind == memnet.Symmetric || kind == memnet.SymmetricSequential
			if symmetric == (one == two) {
				t.Errorf("towards two destinations: %v and %v", one, two)
			}
			if one == other || two == other {
				t.Errorf("two local ports are both %v", other)
			}
			if kind != memnet.Symmetric && other.Port() != max(one.Port(), two.Port())+1 {
				t.Errorf("ports %d, %d, %d do not count up", one.Port(), two.Port(), other.Port())
			}
			if one.Addr() != natA {
				t.Errorf("outside address %v, want %v", one.Addr(), natA)
			}
			checked++
		})
	}
	if checked != len(kinds) {
		t.Errorf("checked %d kinds, want %d", checked, len(kinds))
	}
}

func TestPreservePorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ra, _, a, _ := natted(t, memnet.PortRestricted, memnet.PortRestricted)
		ra.PreservePorts(true)
		second := ra.Host("second", ip("10.0.0.3"))
		if got := reflexive(t, a, at(insideA, punching), mirror).Port(); got != punching {
			t.Errorf("port %d, want %d", got, punching)
		}
		if got := reflexive(t, second, at(ip("10.0.0.3"), punching), mirror).Port(); got == punching {
			t.Errorf("two hosts have port %d", got)
		}
	})
}

// Random ports are the same in each run, and not the same for each router.
func TestRandomPortsAreRepeatable(t *testing.T) {
	var runs [2]string
	for i := range runs {
		bubble(t, fmt.Sprint("run ", i), func(t *testing.T) {
			_, _, a, b := natted(t, memnet.Symmetric, memnet.Symmetric)
			for range 3 {
				pa := reflexive(t, a, at(insideA, punching), mirror).Port()
				pb := reflexive(t, b, at(insideB, punching), mirror).Port()
				if pa == pb {
					t.Errorf("both routers chose %d", pa)
				}
				runs[i] += fmt.Sprintf("%d %d ", pa, pb)
				wait(2 * time.Minute) // longer than an orphan keeps the addresses
			}
		})
	}
	if runs[0] != runs[1] || runs[0] == "" {
		t.Errorf("ports differ: %q, %q", runs[0], runs[1])
	}
}

// punch has h dial remote from local, and listen there, until the deadline of
// ctx or until a connection is there. A refused dial is repeated after gap.
func punch(t *testing.T, ctx context.Context, h *memnet.Host, local, remote netip.AddrPort, gap func() time.Duration) (net.Conn, error) {
	l, err := h.Listen(ctx, local)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	got := make(chan net.Conn, 2)
	var trying sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer trying.Wait()
	defer cancel()
	defer l.Close()
	trying.Go(func() { // ends with l
		if c, err := l.Accept(); err == nil {
			got <- c
		}
	})
	trying.Go(func() { // ends with ctx
		for {
			c, err := h.Dial(ctx, local, remote)
			if err == nil {
				got <- c
				return
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return
			}
			select {
			case <-time.After(gap()):
			case <-ctx.Done():
				return
			}
		}
	})
	select {
	case c := <-got:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestUnsolicited(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(*memnet.Router)
		want  error
		after time.Duration
	}{
		{"drop", func(*memnet.Router) {}, syscall.ETIMEDOUT, 127 * time.Second},
		{"reset", func(r *memnet.Router) { r.Unsolicited(memnet.Reject) }, syscall.ECONNREFUSED, r},
		{"forward", func(r *memnet.Router) { r.Forward(80, at(insideB, 8080)) }, nil, r},
		{"forward to nobody", func(r *memnet.Router) { r.Forward(80, at(insideB, 8081)) }, syscall.ECONNREFUSED, r},
		{"forward to nowhere", func(r *memnet.Router) { r.Forward(80, ap("10.0.0.9:80")) }, syscall.ETIMEDOUT, 127 * time.Second},
	} {
		for _, kind := range kinds {
			bubble(t, test.name+"/"+kind.String(), func(t *testing.T) {
				_, rb, a, b := natted(t, memnet.PortRestricted, kind)
				test.setup(rb)
				l := listen(t, b, at(insideB, 8080))
				now := newClock(t)
				c, err := a.Dial(t.Context(), any0, at(natB, 80))
				if !errors.Is(err, test.want) {
					t.Fatalf("dial: %v, want %v", err, test.want)
				}
				now.want(test.after, "dial")
				if test.want != nil {
					return
				}
				peer := accept(t, l)
				if got := peer.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != natA {
					t.Errorf("b sees %v, want %v", got, natA)
				}
				write(t, c, "x")
				read(t, peer, "x")
				write(t, peer, "y")
				read(t, c, "y")
				c.Close()
			})
		}
	}
}

func TestHairpin(t *testing.T) {
	for _, on := range []bool{false, true} {
		bubble(t, fmt.Sprint(on), func(t *testing.T) {
			ra, _, a, _ := natted(t, memnet.FullCone, memnet.FullCone)
			ra.Hairpin(on)
			ra.Unsolicited(memnet.Reject)
			c := ra.Host("c", ip("10.0.0.3"))
			l := listen(t, c, at(ip("10.0.0.3"), punching))
			pc := reflexive(t, c, at(ip("10.0.0.3"), punching), mirror)
			now := newClock(t)
			conn, err := a.Dial(t.Context(), any0, pc)
			if !on {
				now.want(0, "refused by its own router")
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			now.want(r, "dial")
			peer := accept(t, l)
			if got := peer.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != natA {
				t.Errorf("c sees %v, want %v", got, natA)
			}
			write(t, conn, "hi")
			read(t, peer, "hi")
			conn.Close()

			now = newClock(t)
			if _, err := a.Dial(t.Context(), any0, at(natA, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial to a port that is nobody's: %v", err)
			}
			now.want(0, "refused by its own router")

			// A host can come back to itself, seen as somebody else.
			dial(t, c, pc)
			now.want(0, "dial to itself")
			if got := accept(t, l).RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != natA {
				t.Errorf("c sees %v, want %v", got, natA)
			}
		})
	}
}

func TestInsideOneNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		home := n.NAT("home", natA, memnet.Symmetric)
		a, b := home.Host("a", insideA), home.Host("b", insideB)
		n.SetLatency(a, b, ms)
		l := listen(t, b, at(insideB, 80))
		now := newClock(t)
		c := dial(t, a, at(insideB, 80))
		now.want(2*ms, "dial")
		peer := accept(t, l)
		if got, want := peer.RemoteAddr().String(), c.LocalAddr().String(); got != want {
			t.Errorf("b sees %s, want %s", got, want)
		}

		// Addresses inside mean nothing outside.
		elsewhere := n.Host("elsewhere", addrA)
		if _, err := elsewhere.Dial(within(t, time.Second), any0, at(insideB, 80)); err == nil {
			t.Error("dialed an inside address from outside")
		}
	})
}

func TestNestedNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		carrier := n.NAT("carrier", natA, memnet.PortRestricted)
		home := carrier.NAT("home", ip("100.64.0.7"), memnet.PortRestricted)
		a := home.Host("a", insideA)
		b := n.Host("b", addrB)
		neighbour := carrier.Host("neighbour", ip("100.64.0.8"))
		n.SetLatency(a, b, oneWay)
		n.SetLatency(a, neighbour, 5*ms)

		l := listen(t, b, at(addrB, 80))
		now := newClock(t)
		c := dial(t, a, at(addrB, 80))
		now.want(r, "dial")
		peer := accept(t, l)
		now.want(r+oneWay, "accept")
		if got := peer.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != natA {
			t.Errorf("b sees %v, want %v", got, natA)
		}
		write(t, peer, "down")
		read(t, c, "down")

		near := listen(t, neighbour, ap("100.64.0.8:80"))
		now = newClock(t)
		dial(t, a, ap("100.64.0.8:80"))
		now.want(10*ms, "dial to the neighbour")
		if got := accept(t, near).RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != ip("100.64.0.7") {
			t.Errorf("the neighbour sees %v", got)
		}

		// A way in needs a forward at each of the two.
		la := listen(t, a, at(insideA, 80))
		if _, err := b.Dial(within(t, time.Second), any0, at(natA, 80)); err == nil {
			t.Error("dialed in without a forward")
		}
		carrier.Forward(80, ap("100.64.0.7:81"))
		if _, err := b.Dial(within(t, time.Second), any0, at(natA, 80)); err == nil {
			t.Error("dialed in with one forward of two")
		}
		home.Unsolicited(memnet.Reject)
		now = newClock(t)
		if _, err := b.Dial(t.Context(), any0, at(natA, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial to a home that resets: %v", err)
		}
		now.want(r, "refused by the inner router")
		home.Forward(81, at(insideA, 80))
		now = newClock(t)
		in := dial(t, b, at(natA, 80))
		now.want(r, "dial in")
		write(t, in, "in")
		read(t, accept(t, la), "in")
	})
}

// A host behind a NAT for IPv4 is on the internet with its IPv6 address.
func TestDualStack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		v6a, v6b := ip("2001:db8::a"), ip("2001:db8::b")
		home := n.NAT("home", natA, memnet.Symmetric)
		a := home.NAT("inner", ip("10.0.0.9"), memnet.Symmetric).Host("a", ip("192.168.0.2"), v6a)
		b := n.Host("b", addrB, v6b)
		n.SetLatency(a, b, oneWay)
		l := listen(t, a, ap("[::]:80"))
		now := newClock(t)
		dial(t, b, at(v6a, 80))
		now.want(r, "dial in")
		if got := accept(t, l).RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != v6b {
			t.Errorf("a sees %v, want %v", got, v6b)
		}
		a.Firewall(memnet.Drop)
		if _, err := b.Dial(within(t, time.Second), any0, at(v6a, 80)); err == nil {
			t.Error("dialed through the firewall")
		}
	})
}

// Two hosts behind one router, not equally far away.
func TestDistancesBehindOneNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		home := n.NAT("home", natA, memnet.PortRestricted)
		near, far := home.Host("near", insideA), home.Host("far", insideB)
		b := n.Host("b", addrB)
		n.SetLatency(b, near, 10*ms)
		n.SetLatency(b, far, oneWay)
		home.Forward(1, at(insideA, 80))
		home.Forward(2, at(insideB, 80))
		listen(t, near, at(insideA, 80))
		listen(t, far, at(insideB, 80))
		now := newClock(t)
		dial(t, b, at(natA, 1))
		now.want(20*ms, "dial to the near one")
		dial(t, b, at(natA, 2))
		now.want(20*ms+r, "dial to the far one")

		home.Unsolicited(memnet.Reject)
		now = newClock(t)
		if _, err := b.Dial(t.Context(), any0, at(natA, 3)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
		now.want(20*ms, "refused by the router")

		// The hole is made while the SYN is on its way.
		now = newClock(t)
		time.AfterFunc(5*ms, func() {
			go func() { // ends with its context, before the test
				far.Dial(within(t, r), at(insideB, punching), at(addrB, 5000))
			}()
		})
		c, err := b.Dial(t.Context(), at(addrB, 5000), at(natA, 20001))
		if err != nil {
			t.Fatal(err)
		}
		now.want(r, "crossing a SYN that left later")
		c.Close()
		wait(r)
	})
}

// A router whose ports are all taken has none for another connection.
func TestPortsRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		home := n.NAT("home", natA, memnet.PortRestricted)
		home.Unsolicited(memnet.Reject)
		n.Host("b", addrB)
		const ports = 1<<16 - 20001
		taken := 0
		for i := range 2 {
			h := home.Host("inside", netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
			for range 1<<16 - 49152 {
				_, err := h.Dial(t.Context(), any0, at(addrB, 80))
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatal(err)
				}
				taken++
			}
		}
		h := home.Host("last", ip("10.0.1.0"))
		for range ports - taken {
			if _, err := h.Dial(t.Context(), any0, at(addrB, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatal(err)
			}
		}
		if _, err := h.Dial(within(t, time.Second), any0, at(addrB, 80)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one dial too many: %v", err)
		}
	})
}

// What is configured outlives a reboot.
func TestForwardOutlivesReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rb, a, b := natted(t, memnet.FullCone, memnet.FullCone)
		rb.Forward(80, at(insideB, 80))
		rb.Reboot()
		l := listen(t, b, at(insideB, 80))
		dial(t, a, at(rb.Public(), 80))
		accept(t, l)
		// The mirror sees the forwarded port too.
		if got := reflexive(t, b, at(insideB, 80), mirror); got != at(natB, 80) {
			t.Errorf("a forwarded port is seen as %v", got)
		}
	})
}

func TestReboot(t *testing.T) {
	for _, unsolicited := range []memnet.Firewall{memnet.Drop, memnet.Reject} {
		bubble(t, []string{"open", "drop", "reject"}[unsolicited], func(t *testing.T) {
			n := memnet.New()
			home := n.NAT("home", natA, memnet.PortRestricted)
			home.Unsolicited(unsolicited)
			a, b := home.Host("a", insideA), n.Host("b", addrB)
			n.SetLatency(a, b, oneWay)
			ca, cb := connect(t, a, b)
			home.Reboot()
			now := newClock(t)
			write(t, cb, "down")
			if unsolicited == memnet.Reject {
				fails(t, cb, syscall.ECONNRESET)
				now.want(r, "reset by the router")
			}
			// a leaves from another port now, which b does not know.
			write(t, ca, "up")
			fails(t, ca, syscall.ECONNRESET)
		})
	}
}

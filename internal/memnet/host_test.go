package memnet_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

// A Host can be the network of package dtcp.
var _ interface {
	Listen(ctx context.Context, local netip.AddrPort) (net.Listener, error)
	Dial(ctx context.Context, local, remote netip.AddrPort) (net.Conn, error)
	Addrs() ([]netip.Addr, error)
} = (*memnet.Host)(nil)

func TestContextThatHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h := memnet.New().Host("h", addrA)
	if _, err := h.Listen(ctx, at(addrA, 80)); !errors.Is(err, context.Canceled) {
		t.Errorf("listen: %v", err)
	}
	if _, err := h.Dial(ctx, any0, at(addrA, 80)); !errors.Is(err, context.Canceled) {
		t.Errorf("dial: %v", err)
	}
}

func TestListenAddresses(t *testing.T) {
	for _, test := range []struct {
		first, second string // empty: no first listener
		want          error
		addr          string
	}{
		{"", "192.0.2.1:80", nil, "192.0.2.1:80"},
		{"", "192.0.2.1:0", nil, "192.0.2.1:49152"},
		{"", "0.0.0.0:80", nil, "0.0.0.0:80"},
		{"", "[::]:80", nil, "[::]:80"},
		{"", "[::ffff:192.0.2.1]:80", nil, "192.0.2.1:80"},
		{"", "127.0.0.1:80", nil, "127.0.0.1:80"},
		{"", "192.0.2.9:80", syscall.EADDRNOTAVAIL, ""},
		{"192.0.2.1:80", "192.0.2.1:80", syscall.EADDRINUSE, ""},
		{"192.0.2.1:80", "[::]:80", syscall.EADDRINUSE, ""},
		{"0.0.0.0:80", "192.0.2.1:80", syscall.EADDRINUSE, ""},
		{"192.0.2.1:80", "127.0.0.1:80", nil, "127.0.0.1:80"},
		{"192.0.2.1:80", "192.0.2.1:81", nil, "192.0.2.1:81"},
		{"192.0.2.1:49152", "192.0.2.1:0", nil, "192.0.2.1:49153"},
	} {
		bubble(t, test.first+" "+test.second, func(t *testing.T) {
			a := memnet.New().Host("a", addrA)
			if test.first != "" {
				listen(t, a, ap(test.first))
			}
			l, err := a.Listen(t.Context(), ap(test.second))
			if !errors.Is(err, test.want) {
				t.Fatalf("listen: %v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			if got := l.Addr().String(); got != test.addr {
				t.Errorf("address %s, want %s", got, test.addr)
			}
			l.Close()
			again, err := a.Listen(t.Context(), l.Addr().(*net.TCPAddr).AddrPort())
			if err != nil {
				t.Fatalf("listen after close: %v", err)
			}
			again.Close()
		})
	}
}

func TestZeroAddressListensEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		a, b := n.Host("a", addrA, ip("2001:db8::1")), n.Host("b", addrB, ip("2001:db8::2"))
		l := listen(t, a, netip.AddrPort{})
		port := l.Addr().(*net.TCPAddr).AddrPort().Port()
		for _, test := range []struct {
			from *memnet.Host
			to   netip.Addr
		}{
			{b, addrA}, {b, ip("2001:db8::1")}, {b, ip("::ffff:192.0.2.1")},
			{a, ip("127.0.0.1")}, {a, ip("::1")}, {a, addrA},
		} {
			c := dial(t, test.from, at(test.to, port))
			if got := accept(t, l).LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != test.to.Unmap() {
				t.Errorf("accepted at %v, want %v", got, test.to)
			}
			if c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Is4() != test.to.Unmap().Is4() {
				t.Errorf("dialed %v from %v", test.to, c.LocalAddr())
			}
		}
	})
}

func TestSharedLocalPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		local := at(addrA, 1000)
		listen(t, a, local)
		l1, l2 := listen(t, b, at(addrB, 80)), listen(t, b, at(addrB, 81))
		for _, l := range []net.Listener{l1, l2} {
			c, err := a.Dial(t.Context(), local, l.Addr().(*net.TCPAddr).AddrPort())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		if _, err := a.Dial(t.Context(), local, at(addrB, 80)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("dial with the same four values: %v", err)
		}
		// The listener still accepts there.
		dial(t, b, local)
	})
}

func TestDialAddresses(t *testing.T) {
	for _, test := range []struct {
		local, remote string
		want          error
	}{
		{"192.0.2.1:0", "192.0.2.2:80", nil},
		{"0.0.0.0:1000", "192.0.2.2:80", nil},
		{"192.0.2.9:0", "192.0.2.2:80", syscall.EADDRNOTAVAIL},
		{"127.0.0.1:0", "192.0.2.2:80", syscall.EINVAL},
		{"[::1]:0", "192.0.2.2:80", syscall.EINVAL},
		{"127.0.0.1:0", "192.0.2.1:80", nil},
	} {
		bubble(t, test.local+" "+test.remote, func(t *testing.T) {
			_, a, b := two()
			listen(t, b, at(addrB, 80))
			listen(t, a, at(addrA, 80))
			c, err := a.Dial(t.Context(), ap(test.local), ap(test.remote))
			if !errors.Is(err, test.want) {
				t.Errorf("dial: %v, want %v", err, test.want)
			}
			if err == nil {
				c.Close()
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		_, a, _ := two()
		if _, err := a.Dial(t.Context(), any0, any0); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("dial to the zero address: %v", err)
		}
	})
}

func TestEphemeralPortsRunOut(t *testing.T) {
	a := memnet.New().Host("a", addrA)
	listened := 0
	for {
		if _, err := a.Listen(t.Context(), at(addrA, 0)); err != nil {
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("listen: %v", err)
			}
			break
		}
		listened++
	}
	if want := 1<<16 - 49152; listened != want {
		t.Errorf("listened on %d ports, want %d", listened, want)
	}
	if _, err := a.Dial(t.Context(), any0, at(addrA, 80)); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("dial: %v", err)
	}
}

func TestAddrs(t *testing.T) {
	n := memnet.New()
	h := n.Host("h", addrA, ip("fd00::1"), ip("2001:db8::1"), ip("::ffff:192.0.2.3"))
	got, err := h.Addrs()
	want := []netip.Addr{ip("2001:db8::1"), addrA, ip("fd00::1"), ip("192.0.2.3")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Addrs() = %v, %v; want %v", got, err, want)
	}
}

func TestBadTopology(t *testing.T) {
	n := memnet.New()
	n.Host("a", addrA)
	home := n.NAT("home", natA, memnet.FullCone)
	home.Host("b", addrA) // the same address, on another network
	for name, build := range map[string]func(){
		"taken":       func() { memnet.New().Host("x", addrB, addrB) },
		"by a router": func() { m := memnet.New(); m.NAT("r", addrA, 0); m.Host("x", addrA) },
		"loopback":    func() { memnet.New().Host("x", ip("127.0.0.1")) },
		"unspecified": func() { memnet.New().Host("x", ip("::")) },
		"none":        func() { memnet.New().NAT("x", netip.Addr{}, 0) },
		"no window":   func() { memnet.New().SetWindow(0) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			build()
		})
	}
}

func TestDialContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		v6 := ip("2001:db8::b")
		a, b := n.Host("a", addrA, ip("2001:db8::a")), n.Host("b", addrB, v6)
		n.AddName("both.example", ip("192.0.2.2"))
		n.AddName("both.example", v6)
		n.AddName("second.example", ip("2001:db8::dead"))
		n.AddName("second.example", addrB)
		n.Host("refuses", ip("2001:db8::dead"))
		for _, port := range []string{"0.0.0.0:80"} {
			listen(t, b, ap(port))
		}
		for _, test := range []struct{ network, addr, want string }{
			{"tcp", "192.0.2.2:80", "192.0.2.2:80"},
			{"tcp", "[2001:db8::b]:80", "[2001:db8::b]:80"},
			{"tcp", "both.example:80", "192.0.2.2:80"},
			{"tcp6", "both.example:80", "[2001:db8::b]:80"},
			{"tcp4", "both.example:80", "192.0.2.2:80"},
			{"tcp", "second.example:80", "192.0.2.2:80"},
			{"tcp", "second.example:81", "dial tcp [2001:db8::dead]:81: connect: connection refused"},
			{"tcp", "localhost:80", "dial tcp 127.0.0.1:80: connect: connection refused"},
			{"tcp", "nobody.example:80", "dial tcp: lookup nobody.example: no such host"},
			{"tcp4", "[2001:db8::b]:80", "dial tcp4: lookup 2001:db8::b: no such host"},
			{"tcp", "192.0.2.2:http", "dial tcp: address 192.0.2.2:http: port is not a number"},
			{"tcp", "192.0.2.2", "dial tcp: address 192.0.2.2: missing port in address"},
		} {
			var got string
			if c, err := a.DialContext(t.Context(), test.network, test.addr); err != nil {
				got = err.Error()
			} else {
				got = c.RemoteAddr().String()
				c.Close()
			}
			if got != test.want {
				t.Errorf("%s %s: %s, want %s", test.network, test.addr, got, test.want)
			}
		}
	})
}

func TestConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		var want []string
		for range 5 {
			ca, _ := connect(t, a, b)
			want = append(want, fmt.Sprint(ca.LocalAddr(), ca.RemoteAddr()))
		}
		for i, c := range a.Conns() {
			if got := fmt.Sprint(c.LocalAddr(), c.RemoteAddr()); got != want[i] {
				t.Errorf("connection %d is %s, want %s", i, got, want[i])
			}
		}
		for _, c := range b.Conns() {
			c.Reset()
			c.Reset()
		}
		connect(t, a, b)
		if got := len(a.Conns()); got != 1 {
			t.Errorf("%d connections, want 1", got)
		}
	})
}

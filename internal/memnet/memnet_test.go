package memnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

const (
	ms     = time.Millisecond
	oneWay = 50 * ms
	r      = 2 * oneWay // round trip
)

var (
	addrA = netip.MustParseAddr("192.0.2.1")
	addrB = netip.MustParseAddr("192.0.2.2")
	any0  netip.AddrPort
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// bubble runs a story in virtual time.
func bubble(t *testing.T, name string, story func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, story) })
}

// two returns an internet with two hosts at a distance of oneWay.
func two() (n *memnet.Net, a, b *memnet.Host) {
	n = memnet.New()
	a, b = n.Host("a", addrA), n.Host("b", addrB)
	n.SetLatency(a, b, oneWay)
	return n, a, b
}

// clock tells the time since it was made.
type clock struct {
	t     *testing.T
	start time.Time
}

func newClock(t *testing.T) clock { return clock{t, time.Now()} }

func (c clock) want(d time.Duration, what string) {
	c.t.Helper()
	if got := time.Since(c.start); got != d {
		c.t.Errorf("%s: at %v, want %v", what, got, d)
	}
}

func listen(t *testing.T, h *memnet.Host, local netip.AddrPort) net.Listener {
	t.Helper()
	l, err := h.Listen(t.Context(), local)
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, h *memnet.Host, remote netip.AddrPort) *memnet.Conn {
	t.Helper()
	c, err := h.Dial(t.Context(), any0, remote)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*memnet.Conn)
}

func accept(t *testing.T, l net.Listener) *memnet.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*memnet.Conn)
}

// connect returns both ends of a connection from a to b, whose handshake is
// complete at both ends.
func connect(t *testing.T, a, b *memnet.Host) (ca, cb *memnet.Conn) {
	t.Helper()
	addrs, _ := b.Addrs()
	l := listen(t, b, at(addrs[0], 0))
	defer l.Close()
	ca = dial(t, a, l.Addr().(*net.TCPAddr).AddrPort())
	return ca, accept(t, l)
}

func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b[:n], err, want)
	}
}

// fails reads once and wants an error.
func fails(t *testing.T, c net.Conn, want error) {
	t.Helper()
	n, err := c.Read(make([]byte, 100))
	if n != 0 || !errors.Is(err, want) {
		t.Errorf("read %d bytes, %v; want %v", n, err, want)
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(s), err)
	}
}

// writeFails writes once and wants an error.
func writeFails(t *testing.T, c net.Conn, want error) {
	t.Helper()
	if n, err := c.Write([]byte("x")); n != 0 || !errors.Is(err, want) {
		t.Errorf("wrote %d bytes, %v; want %v", n, err, want)
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func (c clock) since() time.Duration { return time.Since(c.start) }

// wait lets virtual time pass.
func wait(d time.Duration) { <-time.After(d) }

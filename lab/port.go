//go:build linux

package lab

import (
	"net"
	"strconv"
	"testing"
	"time"
)

// FreePort returns a TCP port of loopback that nobody listened on a moment ago,
// for programs that cannot be told to listen on port 0. Another program may
// still take it first; then the program's start fails, with its log.
func FreePort(tb testing.TB) int {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// loopback is the address of that port.
func loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// awaitPort returns when addr accepts connections. It fails the test when p
// ends before that, or after limit.
func awaitPort(tb testing.TB, p *Process, addr string, limit time.Duration) {
	tb.Helper()
	deadline := time.Now().Add(limit)
	for {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("lab: %s does not accept on %s: %v", p.Name, addr, err)
		}
		select {
		case <-p.done:
			tb.Fatalf("lab: %s ended (%v) before it accepted on %s", p.Name, p.err, addr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

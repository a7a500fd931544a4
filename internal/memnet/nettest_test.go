package memnet_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

// TestConn runs the conformance tests of net.Conn in real time: they set
// deadlines of some milliseconds and busy themselves until then.
func TestConn(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(n *memnet.Net)
	}{
		{"plain", func(*memnet.Net) {}},
		{"latency", func(n *memnet.Net) { n.SetDefaultLatency(10 * time.Microsecond) }},
		{"window", func(n *memnet.Net) { n.SetWindow(700) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				n := memnet.New()
				test.setup(n)
				a, b := n.Host("a", addrA), n.Host("b", addrB)
				l, err := b.Listen(t.Context(), at(addrB, 0))
				if err != nil {
					return nil, nil, nil, err
				}
				defer l.Close()
				if c1, err = a.Dial(t.Context(), any0, l.Addr().(*net.TCPAddr).AddrPort()); err != nil {
					return nil, nil, nil, err
				}
				if c2, err = l.Accept(); err != nil {
					return nil, nil, nil, err
				}
				stop = func() {
					c1.Close()
					c2.Close()
				}
				return c1, c2, stop, nil
			})
		})
	}
}

//go:build !linux

package pump

import (
	"net"
	"time"
)

// kernel is empty where bytes pass through user space.
type kernel struct{}

func (p *Pump) joinSockets(net.Conn, net.Conn, Stream) *Pair { return nil }

func (p *Pump) closeKernel() {}

// grace is what a socket gets to deliver the rest where nobody can be asked
// how much that is.
const grace = time.Second

// undelivered is how many bytes the peer of a TCP connection has not
// acknowledged; ok is false if the system does not say.
func undelivered(*net.TCPConn) (n int, ok bool) { return 0, false }

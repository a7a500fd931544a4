//go:build !linux

package relay

import "net"

// frontServes says whether serveFront serves TCP listeners.
const frontServes = false

func (r *Relay) serveFront(*net.TCPListener) error { return net.ErrClosed }

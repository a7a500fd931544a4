package main

import (
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
)

// The runtime gives memory back to the system so slowly that a relay would look
// for hours as if the crowd of the morning were still there, and what it holds
// is not there for others on a small machine.

const (
	crowdCheck = 2 * time.Second // between looks
	crowdSize  = 256             // connections that are worth it
)

// crowd watches connections come and go.
type crowd struct{ most int }

// gone reports whether half of a crowd has gone since it last did, when there are
// n connections now.
func (c *crowd) gone(n int) bool {
	c.most = max(c.most, n)
	if c.most < crowdSize || n > c.most/2 {
		return false
	}
	c.most = n
	return true
}

// connections returns how many connections a relay has.
func connections(s relay.Stats) int { return s.Fresh + s.Waiting + s.Held + s.Observing + 2*s.Streams }

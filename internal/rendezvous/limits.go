package rendezvous

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// limits are a server's bounds. Tests make some of them smaller.
type limits struct {
	login    time.Duration // from accept to bind
	attempts int           // of SASL, in one stream
	penalty  time.Duration // before the first failed attempt is answered; doubles with each

	guests, guestsPerAddress int // streams that have not logged in

	accounts  int
	resources int // of an account
	contacts  int // of a roster
	roster    int // bytes of a roster, so that it fits in one stanza
	directed  int // addresses that were sent directed presence, for each stream

	queueBytes, queueStanzas int // waiting to be written to one client

	write  time.Duration // for one batch
	final  time.Duration // for the last batch of a stream that is ended
	linger time.Duration // for the client to close after that
	ping   time.Duration // of silence before the client is asked whether it is there
	answer time.Duration // for its answer
}

var defaultLimits = limits{
	login:            30 * time.Second,
	attempts:         5,
	penalty:          500 * time.Millisecond,
	guests:           1024,
	guestsPerAddress: 64,
	accounts:         10000,
	resources:        32,
	contacts:         500,
	roster:           48 << 10,
	directed:         128,
	queueBytes:       1 << 20,
	queueStanzas:     4096,
	write:            30 * time.Second,
	final:            2 * time.Second,
	linger:           time.Second,
	ping:             3 * time.Minute,
	answer:           time.Minute,
}

var errCrowded = errors.New("too many streams that have not logged in")

// welcome counts st among the streams that have not logged in, and as active.
func (s *Server) welcome(st *stream) error {
	address := origin(st.conn.RemoteAddr())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if len(s.guests) >= s.limits.guests {
		return errCrowded
	}
	same := 0
	for _, a := range s.guests {
		if a == address {
			same++
		}
	}
	if same >= s.limits.guestsPerAddress {
		return fmt.Errorf("%w from %s", errCrowded, address)
	}
	s.guests[st] = address
	s.active.Add(1)
	return nil
}

// leave ends what welcome began for a stream that did not log in.
func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.guests, st)
}

// origin is what counts as one address: an IPv4 address or an IPv6 /64, of
// which one host commands all.
func origin(a net.Addr) string {
	if a == nil {
		return ""
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return ip.String()
	}
	return p.String()
}

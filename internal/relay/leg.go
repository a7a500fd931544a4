package relay

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/dtcp-relay/dtcp/internal/firstbyte"
	"github.com/dtcp-relay/dtcp/internal/wire"
)

// writeTime bounds the writing of a line to a leg. It fits into an empty socket,
// so only who means harm needs any time.
const writeTime = 5 * time.Second

// past is a deadline that wakes who reads.
var past = time.Unix(1, 0)

// connLeg is a leg on a net.Conn: on any connection, on any system. One
// goroutine has it until it is joined or closed. How long that may take is for
// the core to say, so reading has no deadline of its own: who tells the leg
// something sets one that has passed, first.
type connLeg struct {
	*leg
	relay *Relay
	raw   net.Conn      // the socket
	conn  net.Conn      // what is spoken on: raw, or TLS over it
	begun bool          // something has been read
	head  []byte        // read from conn, and to be passed on: a dialer's key line, or the byte that came to who waits
	told  chan action   // by others: an end or a join, and so one at most
	let   chan struct{} // closed when the goroutine has let go of the connection of a dialer
}

// greet takes in a connection that was accepted.
func (r *Relay) greet(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive) // fails only if c is closed
	}
	if !r.begin(nil) {
		_ = c.Close()
		return
	}
	l := newConnLeg(r, &leg{}, c)
	l.hand = l
	// Owned by the relay, ended by the core when the leg has had its time, or
	// earlier by its connection; Close waits for it.
	go func() {
		defer r.running.Done()
		done := l.tell(func(p *pairing, out []action, now time.Time) []action {
			return p.arrive(out, l.leg, remote(c), now)
		})
		if !done {
			l.run()
		}
	}()
}

func newConnLeg(r *Relay, l *leg, c net.Conn) *connLeg {
	return &connLeg{leg: l, relay: r, raw: c, conn: c, told: make(chan action, 1), let: make(chan struct{})}
}

// remote returns where a connection comes from; zero if that is no address.
func remote(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// run has the leg until it is joined or closed. It has arrived.
func (l *connLeg) run() {
	for done := false; !done; {
		switch l.stands() {
		case fresh, observing:
			done = l.hear()
		case waiting, proposed:
			done = l.watch()
		default:
			done = l.act(<-l.told)
		}
	}
}

// stands returns the state of the leg.
func (l *connLeg) stands() state {
	l.relay.mu.Lock()
	defer l.relay.mu.Unlock()
	return l.state
}

// tell tells the core of an event of this leg, and does what comes of it. It
// reports whether the leg is done.
func (l *connLeg) tell(event func(p *pairing, out []action, now time.Time) []action) (done bool) {
	for _, a := range l.relay.tell(l.leg, event) {
		done = done || l.act(a)
	}
	return done
}

// act does what the leg is told. It reports whether that was the last.
func (l *connLeg) act(a action) (done bool) {
	if a.text != "" {
		_ = l.conn.SetWriteDeadline(time.Now().Add(writeTime)) // fails only if it is closed
		if _, err := io.WriteString(l.conn, a.text); err != nil && a.do == say {
			return l.gone() // if not, what it is told next will tell
		}
	}
	switch {
	case a.do == say:
		return false
	case a.do == end:
		_ = l.conn.Close() // nobody is left to tell
	case a.stream.listener == l.leg:
		a.stream.run(l.handOver(), a.stream.dialer.hand.give(a))
	default:
		close(l.let)
	}
	return true
}

// lost is called when reading has failed, or come to the end. The leg is done, if
// need be after what it is just being told.
func (l *connLeg) lost() (done bool) {
	return l.gone() || l.act(<-l.told)
}

// gone tells the core that the connection is no more, and reports whether the
// leg was still on its way.
func (l *connLeg) gone() bool {
	l.relay.mu.Lock()
	now := time.Now()
	gone := l.relay.core.gone(l.leg, now)
	l.relay.settle(now)
	l.relay.mu.Unlock()
	if gone {
		_ = l.conn.Close() // nobody is left to tell
	}
	return gone
}

// do implements [hand].
func (l *connLeg) do(a action) {
	// Before it is told, for afterwards the deadline is somebody else's.
	_ = l.raw.SetReadDeadline(past) // fails only if it is closed
	l.told <- a
}

// give implements [hand].
func (l *connLeg) give(a action) net.Conn {
	l.do(a)
	<-l.let
	return l.handOver()
}

// handOver returns the connection as the other leg is to see it.
func (l *connLeg) handOver() net.Conn {
	_ = l.raw.SetDeadline(time.Time{}) // fails only if it is closed
	if len(l.head) == 0 {
		return l.conn
	}
	return &headed{Conn: l.conn, head: l.head, raw: l.raw}
}

// watch waits for the end of a connection that has nothing to say, or for it to
// say something nevertheless: one byte of that is read, and stays with the leg;
// from then on its end is not noticed. Nor is that of a dialer which is held,
// before it is joined.
func (l *connLeg) watch() (done bool) {
	if len(l.head) > 0 {
		return l.act(<-l.told)
	}
	var b [1]byte
	n, err := l.conn.Read(b[:])
	if n > 0 {
		l.head = b[:n]
	} else if err != nil {
		return l.lost()
	}
	return false
}

// hear reads a line and tells it, or goes through what comes before lines. It
// takes byte by byte: what follows a line may belong to the other leg, and stays
// in the socket until that is there.
func (l *connLeg) hear() (done bool) {
	var line [wire.MaxLine]byte
	for n := range line {
		if _, err := io.ReadFull(l.conn, line[n:n+1]); err != nil {
			return l.lost()
		}
		if !l.begun {
			l.begun = true
			if proto := firstbyte.Of(line[0]); proto != firstbyte.Line {
				return l.open(proto, line[:1])
			}
		}
		// What is wrong with a line is known at its first bad byte, and at the last
		// that it may have.
		switch c := line[n]; {
		case c == '\n':
			return l.said(line[:n], line[:n+1])
		case c < 0x20, c > 0x7e, n == len(line)-1:
			return l.said(line[:n+1], nil)
		}
	}
	panic("unreachable")
}

// said tells the core a line; whole is what to pass on of it if it names a key.
func (l *connLeg) said(line, whole []byte) (done bool) {
	if bytes.HasPrefix(line, []byte(wire.Key+":")) {
		l.head = bytes.Clone(whole)
	}
	return l.tell(func(p *pairing, out []action, now time.Time) []action {
		return p.line(out, l.leg, line, now)
	})
}

// open goes through the handshake of a connection that does not begin with a
// line. What was read of it is its first byte.
func (l *connLeg) open(proto firstbyte.Protocol, first []byte) (done bool) {
	secure := l.relay.serverTLS()
	spoken := proto == firstbyte.SOCKS5 || proto == firstbyte.TLS && secure != nil
	if l.tell(func(p *pairing, out []action, now time.Time) []action {
		return p.open(out, l.leg, spoken, now)
	}) {
		return true
	}
	if l.stands() != fresh {
		return false
	}
	_ = l.raw.SetWriteDeadline(time.Now().Add(lineTime)) // fails only if it is closed
	rest := &headed{Conn: l.raw, head: first, raw: l.raw}
	if proto == firstbyte.TLS {
		secured := tls.Server(rest, secure)
		l.conn = secured
		if secured.Handshake() == nil {
			return false
		}
		return l.tell(func(p *pairing, out []action, now time.Time) []action {
			return p.open(out, l.leg, false, now)
		})
	}
	request, err := readProposal(rest)
	return l.tell(func(p *pairing, out []action, now time.Time) []action {
		return p.propose(out, l.leg, request, err, now)
	})
}

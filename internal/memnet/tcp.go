package memnet

import (
	"syscall"
	"time"
)

// A state is where a connection is in the diagram of RFC 9293 3.3.2. The
// closing states are not told apart here: finSent, finRead and flying say them.
type state int

const (
	synSent     state = iota // dialed; a SYN is out
	synReceived              // a SYN has come, and ours with its ACK is out
	established              // both ends have seen the other's SYN
)

// The times of Linux.
const (
	firstSYNRepeat  = time.Second            // TCP_TIMEOUT_INIT
	synRepeats      = 6                      // tcp_syn_retries
	synackRepeats   = 5                      // tcp_synack_retries
	leastRepeat     = 200 * time.Millisecond // TCP_RTO_MIN, beyond the round trip
	mostRepeat      = 120 * time.Second      // TCP_RTO_MAX
	dataRepeats     = 15                     // tcp_retries2
	orphanLife      = 60 * time.Second       // tcp_fin_timeout
	windowThreshold = 1460                   // bytes; room less than that is not announced
)

func (h *Host) newConn(ends flow) *Conn {
	h.net.ids++
	c := &Conn{host: h, ends: ends, id: h.net.ids, window: h.net.window}
	h.conns[ends] = c
	h.ports[ends.local.Port()]++
	return c
}

// receive takes a packet that has come to the host.
func (h *Host) receive(p *packet) {
	if c := h.conns[flow{p.dst, p.src}]; c != nil {
		c.receive(p)
		return
	}
	if p.flags.Has(RST) {
		return
	}
	if p.flags&(SYN|ACK) == SYN {
		if h.firewall != Open && p.origin != h {
			h.net.lose(p, h.name+" has a firewall")
			if h.firewall == Reject {
				h.net.transmit(h, p.reset())
			}
			return
		}
		if l := h.listener(p.dst); l != nil {
			l.receive(p)
			return
		}
	}
	h.net.transmit(h, p.reset())
}

// receive answers a SYN.
func (l *Listener) receive(p *packet) {
	if len(l.queue)+l.opening >= backlog {
		l.host.net.lose(p, "backlog of "+l.host.name+" is full")
		return
	}
	l.opening++
	c := l.host.newConn(flow{p.dst, p.src})
	c.listener = l
	c.meet(p)
}

// meet learns of the other end from its SYN, and answers with SYN and ACK.
func (c *Conn) meet(p *packet) {
	c.peer, c.edge = p.id, p.edge
	c.state = synReceived
	c.tries = 0
	c.sendSYN()
}

// sendSYN sends the SYN, or the SYN that acknowledges one, and arranges for its
// repetition.
func (c *Conn) sendSYN() {
	p := &packet{flags: SYN, again: c.tries > 0}
	if c.state == synReceived {
		p.flags |= ACK
	}
	c.lastSYN = time.Now()
	c.send(p)
	c.armRepeat()
}

// send completes a packet and sends it. Data and FIN are kept until they are
// acknowledged.
func (c *Conn) send(p *packet) {
	n := c.host.net
	p.src, p.dst = c.ends.local, c.ends.remote
	p.id, p.peer, p.conn = c.id, c.peer, c
	p.ack = c.wanted
	c.granted = c.wanted + int64(c.window-len(c.received))
	p.edge = c.granted
	if !p.again && (len(p.data) > 0 || p.flags.Has(FIN)) {
		c.flying = append(c.flying, p)
		c.armRepeat()
	}
	n.transmit(c.host, p)
}

func (c *Conn) sendACK() { c.send(&packet{flags: ACK}) }

// receive takes a packet with the addresses of this connection.
func (c *Conn) receive(p *packet) {
	n := c.host.net
	switch {
	case p.flags.Has(RST):
		if p.peer == c.id {
			c.reset()
		}
	case c.state == synSent && p.flags.Has(SYN|ACK) && p.peer == c.id:
		c.peer, c.edge = p.id, p.edge
		c.establish()
		c.sendACK()
	case c.state == synSent && p.flags.Has(ACK): // it belongs to an earlier connection
		n.transmit(c.host, p.reset())
	case c.state == synSent: // their SYN has crossed ours
		c.meet(p)
	case p.flags.Has(SYN) && p.id == c.peer:
		switch {
		case c.state == established:
			c.sendACK() // the last one was lost
		case p.flags.Has(ACK) && p.peer == c.id:
			c.establish()
		default:
			c.send(&packet{flags: SYN | ACK, again: true})
		}
	case p.flags.Has(SYN):
		// A new attempt, while we think that the old connection is alive: tell
		// them, and they will reset it (RFC 9293 3.10.7.4).
		c.sendACK()
	case p.id == c.peer && p.peer == c.id:
		if c.state == synReceived {
			c.establish()
		}
		c.receiveStream(p)
	}
}

// establish ends the handshake.
func (c *Conn) establish() {
	if c.tries == 0 {
		c.roundTrip = time.Since(c.lastSYN)
	}
	c.state = established
	c.tries = 0
	c.disarmRepeat()
	if l := c.listener; l != nil {
		l.opening--
		l.queue = append(l.queue, c)
		l.changed.wake()
		return
	}
	close(c.settled)
}

// receiveStream takes the acknowledgement, data and FIN of a packet.
func (c *Conn) receiveStream(p *packet) {
	if p.ack > c.acked {
		c.acked = p.ack
		c.tries = 0
		for len(c.flying) > 0 && c.flying[0].end() <= p.ack {
			if !c.flying[0].again {
				c.roundTrip = time.Since(c.flying[0].sent)
			}
			c.flying[0] = nil
			c.flying = c.flying[1:]
		}
		c.disarmRepeat()
		if len(c.flying) > 0 {
			c.armRepeat()
		}
	}
	if len(c.flying) == 0 {
		c.tries = 0 // the peer can be heard
	}
	if p.edge > c.edge {
		c.edge = p.edge
		c.writable.wake()
	}
	if p.end() > p.seq {
		switch skip := c.wanted - p.seq; {
		case skip < 0 || p.end() <= c.wanted:
			// Something before it was lost, or it came twice.
		case c.closed && len(p.data) > 0:
			// Nobody will read it (RFC 2525 2.17).
			c.abort()
			return
		default:
			if skip < int64(len(p.data)) {
				c.received = append(c.received, p.data[skip:]...)
			}
			c.finRead = p.flags.Has(FIN)
			c.wanted = p.end()
			c.readable.wake()
		}
		c.sendACK()
	}
	if c.closed {
		c.retire()
	}
}

// end is the position after the packet in its sender's stream.
func (p *packet) end() int64 {
	end := p.seq + int64(len(p.data))
	if p.flags.Has(FIN) {
		end++
	}
	return end
}

// grant tells the peer of room in the window, when it is worth telling.
func (c *Conn) grant() {
	room := c.wanted + int64(c.window-len(c.received))
	worth := int64(max(1, min(c.window/2, windowThreshold)))
	if !c.gone && !c.finRead && room-c.granted >= worth {
		c.send(&packet{flags: ACK, grants: true})
	}
}

// retire forgets a connection that the program has closed, when both FINs have
// arrived, or when the other one does not come.
func (c *Conn) retire() {
	switch {
	case c.gone || len(c.flying) > 0:
	case c.finRead:
		c.forget()
	case c.repeat == nil:
		c.repeat = c.host.net.at(time.Now().Add(orphanLife), c.forget)
	}
}

// forget takes the connection out of the host.
func (c *Conn) forget() {
	if c.gone {
		return
	}
	c.gone = true
	c.disarmRepeat()
	c.flying = nil
	delete(c.host.conns, c.ends)
	if c.host.ports[c.ends.local.Port()]--; c.host.ports[c.ends.local.Port()] == 0 {
		delete(c.host.ports, c.ends.local.Port())
	}
	if c.listener != nil && c.state != established {
		c.listener.opening--
	}
}

// fail ends the connection with an error for whoever uses it.
func (c *Conn) fail(err syscall.Errno) {
	dialing := c.settled != nil && c.state != established
	c.forget()
	c.err, c.wasReset = err, true
	if dialing {
		c.dialErr = err
		close(c.settled)
	}
	c.readable.wake()
	c.writable.wake()
}

// reset ends the connection because a RST has come.
func (c *Conn) reset() {
	if c.host.net.resetDiscards {
		c.received = nil
	}
	switch {
	case c.state == synSent:
		c.fail(syscall.ECONNREFUSED)
	case c.finRead && !c.finSent:
		c.fail(syscall.EPIPE)
	default:
		c.fail(syscall.ECONNRESET)
	}
}

// abort sends a reset and forgets the connection.
func (c *Conn) abort() {
	c.send(&packet{flags: RST | ACK, seq: c.next})
	c.forget()
}

// abandon gives a dial up. Nothing was promised to the peer unless its SYN was
// answered.
func (c *Conn) abandon() {
	if c.state == synReceived {
		c.abort()
		return
	}
	c.forget()
}

// armRepeat arranges for the repetition of what was sent, unless that is done.
func (c *Conn) armRepeat() {
	if c.repeat != nil || c.gone {
		return
	}
	wait := firstSYNRepeat << c.tries
	if c.state == established {
		wait = min((c.roundTrip+leastRepeat)<<c.tries, mostRepeat)
	}
	c.repeat = c.host.net.at(time.Now().Add(wait), c.sendAgain)
}

func (c *Conn) disarmRepeat() {
	c.host.net.cancel(c.repeat)
	c.repeat = nil
}

// sendAgain repeats everything that was not acknowledged.
func (c *Conn) sendAgain() {
	c.repeat = nil
	c.tries++
	if c.state != established {
		limit := synRepeats
		if c.listener != nil {
			limit = synackRepeats
		}
		if c.tries > limit {
			c.fail(syscall.ETIMEDOUT)
			return
		}
		c.sendSYN()
		return
	}
	if c.tries > dataRepeats && len(c.flying) > 0 {
		c.fail(syscall.ETIMEDOUT)
		return
	}
	if c.grantLost && c.tries <= dataRepeats {
		c.grantLost = false
		c.send(&packet{flags: ACK, grants: true})
	}
	for _, p := range c.flying {
		p.again = true // its acknowledgement says nothing about the round trip
		c.send(&packet{flags: p.flags, data: p.data, seq: p.seq, again: true})
	}
	if len(c.flying) > 0 {
		c.armRepeat()
	}
	if c.closed {
		c.retire()
	}
}

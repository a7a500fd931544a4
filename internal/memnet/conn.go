package memnet

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// A Conn is one end of a connection, and the dynamic type of what [Host.Dial]
// and [Listener.Accept] return. Its methods may be called concurrently. Who
// holds it closes it.
type Conn struct {
	host     *Host
	ends     flow
	id       uint64
	peer     uint64 // id of the other end; 0 until a packet of it has come
	state    state
	gone     bool          // no longer in host.conns
	settled  chan struct{} // of a dial; closed when the connection is there, or failed
	dialErr  error
	listener *Listener // until accepted
	closed   bool      // Close was called
	linger0  bool

	// What is sent. Positions in the stream count from 0; the FIN takes one.
	next    int64     // position after the last byte sent
	edge    int64     // the peer permits to send up to here
	acked   int64     // all before this has arrived
	flying  []*packet // sent and not acknowledged
	finSent bool
	writing bool // a Write is under way; others wait their turn

	// What is received.
	received []byte // not yet read
	wanted   int64  // position of the next byte to come
	granted  int64  // the edge last told to the peer
	window   int
	finRead  bool // the peer's FIN has come
	wasReset bool
	err      error // of a reset or timeout, not yet reported
	reading  int   // how many calls of Read wait: err is theirs, whoever wakes first

	repeat      *event // when to send again
	tries       int    // how often that was done in a row
	lastSYN     time.Time
	roundTrip   time.Duration
	grantLost   bool
	lastArrival time.Time // of what was sent

	readable, writable          signal
	readDeadline, writeDeadline deadline
}

var _ net.Conn = (*Conn)(nil)

// A deadline is one of a Conn. The zero value is none.
type deadline struct {
	timer  *time.Timer
	passed bool
}

// set changes a deadline. When it passes, wake is called with the lock held.
func (d *deadline) set(n *Net, t time.Time, wake func()) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.passed = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		wake()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		n.lock()
		defer n.unlock()
		// Stop can come too late; then the deadline has another timer now.
		if d.timer == timer {
			d.passed = true
			wake()
		}
	})
	d.timer = timer
}

func (c *Conn) opError(op string, err error) error {
	if errno, ok := err.(syscall.Errno); ok {
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Read reads what has arrived, one byte at most while [Net.SplitBytes] is on.
// After a reset it returns what had arrived before (unless
// [Net.ResetDiscards] is on), then ECONNRESET unless Write has reported that
// already, then io.EOF, as Linux does.
func (c *Conn) Read(b []byte) (int, error) {
	n := c.host.net
	n.lock()
	defer n.unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("read", net.ErrClosed)
		case c.readDeadline.passed:
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		case len(c.received) > 0:
			if n.splitBytes {
				b = b[:1]
			}
			k := copy(b, c.received)
			c.received = c.received[k:]
			c.grant()
			return k, nil
		case c.finRead:
			return 0, io.EOF
		case c.err != nil:
			return 0, c.opError("read", c.report())
		case c.wasReset:
			return 0, io.EOF
		}
		c.reading++
		n.await(c.readable.wait())
		c.reading--
	}
}

// report returns the error of the connection, which is told only once.
func (c *Conn) report() error {
	err := c.err
	c.err = nil
	return err
}

// Write sends b, as one packet if the peer's window has room. It waits while
// the window is full. On a deadline it returns how much was sent. After a reset
// it fails with ECONNRESET, or with EPIPE if a Read has reported that or is
// waiting to.
func (c *Conn) Write(b []byte) (int, error) {
	n := c.host.net
	n.lock()
	defer n.unlock()
	for c.writing {
		if err := c.writeErr(); err != nil {
			return 0, err
		}
		n.await(c.writable.wait())
	}
	c.writing = true
	defer func() {
		c.writing = false
		c.writable.wake()
	}()
	if err := c.writeErr(); err != nil {
		return 0, err
	}
	sent := 0
	for sent < len(b) {
		room := c.edge - c.next
		if room <= 0 {
			n.await(c.writable.wait())
			if err := c.writeErr(); err != nil {
				return sent, err
			}
			continue
		}
		data := append([]byte(nil), b[sent:min(len(b), sent+int(room))]...)
		c.send(&packet{flags: ACK, data: data, seq: c.next})
		c.next += int64(len(data))
		sent += len(data)
	}
	return sent, nil
}

// writeErr is why nothing can be written, or nil.
func (c *Conn) writeErr() error {
	switch {
	case c.closed:
		return c.opError("write", net.ErrClosed)
	case c.writeDeadline.passed:
		return c.opError("write", os.ErrDeadlineExceeded)
	case c.err != nil && c.reading == 0:
		return c.opError("write", c.report())
	case c.finSent || c.wasReset:
		return c.opError("write", syscall.EPIPE)
	}
	return nil
}

// CloseWrite sends a FIN: the peer reads io.EOF after what was written before.
func (c *Conn) CloseWrite() error {
	n := c.host.net
	n.lock()
	defer n.unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	if c.wasReset {
		return c.opError("close", os.NewSyscallError("shutdown", syscall.ENOTCONN))
	}
	c.finish()
	return nil
}

// finish sends the FIN, unless that is done.
func (c *Conn) finish() {
	if c.finSent {
		return
	}
	c.finSent = true
	c.send(&packet{flags: FIN | ACK, seq: c.next})
	c.next++
	c.writable.wake()
}

// Close ends both directions. What was written is still delivered. If there is
// unread input, or SetLinger(0) was called, the peer gets a reset instead of a
// FIN; it also does when it sends more.
func (c *Conn) Close() error {
	n := c.host.net
	n.lock()
	defer n.unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	unread := len(c.received) > 0
	c.received = nil
	c.readDeadline.set(n, time.Time{}, nil)
	c.writeDeadline.set(n, time.Time{}, nil)
	c.readable.wake()
	c.writable.wake()
	switch {
	case c.gone:
	case unread || c.linger0:
		c.abort()
	default:
		c.finish()
		c.retire()
	}
	return nil
}

// SetLinger with 0 makes Close reset the connection. Other values have no
// effect: Close does not wait.
func (c *Conn) SetLinger(seconds int) error {
	n := c.host.net
	n.lock()
	defer n.unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	c.linger0 = seconds == 0
	return nil
}

// LocalAddr returns the address of this end, a [*net.TCPAddr].
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.ends.local) }

// RemoteAddr returns the address of the other end as it is seen here: behind a
// NAT that is the outside address. It is a [*net.TCPAddr].
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.ends.remote) }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadlines(t, true, true) }

// SetReadDeadline sets the time after which Read fails with
// [os.ErrDeadlineExceeded], also if there is something to read. The zero time
// is never.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, true, false) }

// SetWriteDeadline sets the time after which Write fails with
// [os.ErrDeadlineExceeded]. The zero time is never.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, false, true) }

func (c *Conn) setDeadlines(t time.Time, read, write bool) error {
	n := c.host.net
	n.lock()
	defer n.unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	if read {
		c.readDeadline.set(n, t, c.readable.wake)
	}
	if write {
		c.writeDeadline.set(n, t, c.writable.wake)
	}
	return nil
}

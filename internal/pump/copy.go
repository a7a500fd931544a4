package pump

import (
	"io"
	"net"
	"sync"
	"time"
)

// pieceCopied is how much is read at once from connections that the kernel
// cannot join.
const pieceCopied = 64 << 10

var buffers = sync.Pool{New: func() any { return new([pieceCopied]byte) }}

// A copier is a pair that two goroutines copy, one for each direction. The last
// of them to end tells the stream.
type copier struct {
	Pair
	legs [2]net.Conn
	cut  chan struct{} // closed when both legs are reset

	mu      sync.Mutex
	isCut   bool
	running int       // goroutines
	over    [2]bool   // nothing more is to be delivered in this direction
	err     error     // why the pair ends before its time
	broken  Direction // the leg that failed first, if one did
	tail    *time.Timer
}

// joinConns is Join for what the kernel cannot copy.
func (p *Pump) joinConns(a, b net.Conn, s Stream) *Pair {
	c := &copier{Pair: Pair{pump: p, stream: s}, legs: [2]net.Conn{a, b}, cut: make(chan struct{}), running: 2}
	c.by = c
	p.live.Add(1)
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.copiers[c] = struct{}{}
		for _, d := range []Direction{AB, BA} {
			// Owned by the pair. Ends with its direction, or when the pair is
			// reset; Close does that, and waits.
			p.running.Go(func() { c.run(d) })
		}
	}
	p.mu.Unlock()
	if closed {
		resetConn(a)
		resetConn(b)
		c.done(ErrClosed)
	}
	return &c.Pair
}

// run copies one direction to its end, and then tells what that means for the
// pair.
func (c *copier) run(d Direction) {
	failure := c.copy(d)
	if c.settle(d, failure) {
		c.deliver(c.legs[c.broken.other()])
		c.reset(nil, nil)
	}
	c.mu.Lock()
	c.running--
	last, err := c.running == 0, c.err
	c.mu.Unlock()
	if !last {
		return
	}
	if err == nil {
		c.legs[AB].Close()
		c.legs[BA].Close()
	} else if c.tail != nil {
		c.tail.Stop()
	}
	p := c.pump
	p.mu.Lock()
	delete(p.copiers, c)
	p.mu.Unlock()
	c.done(err)
}

// settle takes down how a direction ended. It reports whether the caller is to
// deliver the rest and then to cut: a leg has failed, and the way from it is
// over.
func (c *copier) settle(d Direction, failure *LegError) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over[d] = true
	if c.isCut || failure == nil && c.err == nil {
		return false
	}
	if c.err == nil {
		c.err, c.broken = failure, failure.Leg
		c.tail = time.AfterFunc(c.pump.tail, func() { c.reset(nil, nil) })
	}
	return c.over[c.broken]
}

// copy copies one direction until it ends. The error is nil if that was the end
// of what the leg sends, and the other leg has been told.
func (c *copier) copy(d Direction) *LegError {
	buffer := buffers.Get().(*[pieceCopied]byte)
	defer buffers.Put(buffer)
	from, to := c.legs[d], c.legs[d.other()]
	for {
		n, wait := c.grant(d, len(buffer))
		if n <= 0 {
			if !c.pause(wait) {
				return &LegError{d, net.ErrClosed}
			}
			continue
		}
		n, err := from.Read(buffer[:n])
		if n > 0 {
			c.read(d, n)
			k, failed := to.Write(buffer[:n])
			c.wrote(d, k)
			if failed != nil {
				return &LegError{d.other(), failed}
			}
		}
		if err == nil {
			continue
		}
		if err != io.EOF {
			return &LegError{d, err}
		}
		if c.hasFailed(d) { // a reset is told once, and then reads as an end
			return nil
		}
		if to, ok := to.(interface{ CloseWrite() error }); ok {
			if err := to.CloseWrite(); err != nil {
				return &LegError{d.other(), err}
			}
		}
		return nil
	}
}

// pause waits for the next grant. It reports false when there will be none.
func (c *copier) pause(wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.cut:
		return false
	}
}

func (c *copier) hasFailed(leg Direction) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil && c.broken == leg
}

// deliver waits until the peer of a leg has what was written to it, or the pair
// is cut: a reset takes back what the system has not sent.
func (c *copier) deliver(leg net.Conn) {
	socket, ok := innermost(leg).(*net.TCPConn)
	if !ok {
		return
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		n, known := undelivered(socket)
		if !known {
			c.pause(grace)
			return
		}
		if n == 0 || !c.pause(wait) {
			return
		}
	}
}

// reset cuts the pair. The error counts if there was none before.
func (c *copier) reset(_ *Pair, err error) {
	c.mu.Lock()
	over := c.isCut || c.running == 0
	c.isCut = true
	if c.err == nil && !over {
		c.err = err
	}
	c.mu.Unlock()
	if !over {
		close(c.cut)
		resetConn(c.legs[AB])
		resetConn(c.legs[BA])
	}
}

// resetConn closes a connection so that its peer sees a cut (TCP RST). What is
// around the socket, such as TLS, is not asked: its farewell would say that all
// is well.
func resetConn(c net.Conn) {
	c = innermost(c)
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0) // if it fails the connection is closed already
	}
	c.Close()
}

// innermost returns the socket under TLS and its like.
func innermost(c net.Conn) net.Conn {
	for {
		outer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = outer.NetConn()
	}
}

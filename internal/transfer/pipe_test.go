package transfer_test

import (
	"errors"
	"io"
	"sync"
)

// errPipeCut is what both ends of a pipe see after a cut.
var errPipeCut = errors.New("pipe: cut")

// An end is one end of a buffered stream in memory with half-close. Its waits
// are conditions, which a synctest bubble counts as blocked.
type end struct {
	in, out *half
}

// A half carries bytes in one direction.
type half struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	limit  int   // bytes in flight
	left   int64 // bytes until the whole pipe is cut; below 0: never
	closed bool  // the writer closed
	broken error // both ends are dead
	other  *half
}

// pipe makes a pair of ends.
func pipe() (*end, *end) {
	a, b := newHalf(), newHalf()
	a.other, b.other = b, a
	return &end{in: a, out: b}, &end{in: b, out: a}
}

func newHalf() *half {
	h := &half{limit: 256 << 10, left: -1}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken == nil {
		h.broken = err
	}
	h.cond.Broadcast()
}

// cutAfter cuts the pipe after n more bytes in this end's direction out. What
// was written before arrives.
func (e *end) cutAfter(n int64) {
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	e.out.left = n
}

func (e *end) Read(b []byte) (int, error) {
	h := e.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case len(h.buf) > 0:
			n := copy(b, h.buf)
			h.buf = h.buf[n:]
			if len(h.buf) == 0 {
				h.buf = nil
			}
			h.cond.Broadcast()
			return n, nil
		case h.broken != nil:
			return 0, h.broken
		case h.closed:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (e *end) Write(b []byte) (int, error) {
	h := e.out
	h.mu.Lock()
	defer h.mu.Unlock()
	done := 0
	for len(b) > 0 {
		switch {
		case h.broken != nil:
			return done, h.broken
		case h.closed:
			return done, io.ErrClosedPipe
		case h.left == 0:
			h.broken = errPipeCut
			h.cond.Broadcast()
			h.mu.Unlock()
			h.other.fail(errPipeCut)
			h.mu.Lock()
			return done, errPipeCut
		case len(h.buf) >= h.limit:
			h.cond.Wait()
			continue
		}
		n := min(len(b), h.limit-len(h.buf))
		if h.left > 0 {
			n = int(min(int64(n), h.left))
			h.left -= int64(n)
		}
		h.buf = append(h.buf, b[:n]...)
		b, done = b[n:], done+n
		h.cond.Broadcast()
	}
	return done, nil
}

func (e *end) CloseWrite() error {
	h := e.out
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.cond.Broadcast()
	return nil
}

// Close is that of a socket: the other end reads what is there, and then EOF;
// what it writes fails.
func (e *end) Close() error {
	_ = e.CloseWrite()
	e.in.fail(io.ErrClosedPipe)
	return nil
}

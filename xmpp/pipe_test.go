package xmpp_test

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// half is one direction of a connection in memory: a buffer without a limit,
// so that writes never wait, as on a network with large windows. Waiting in
// it blocks durably, for virtual time.
type half struct {
	mu       sync.Mutex
	data     []byte
	writes   int
	closed   bool // by the writer: EOF after the data
	broken   bool // by the reader, or reset
	stalled  bool // writes wait for their deadline: a dead peer
	changed  chan struct{}
	deadline [2]time.Time // of reading, of writing
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) update(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

// wait waits until ready, which is called with the lock held, or the deadline.
func (h *half) wait(side int, ready func() bool) error {
	for {
		h.mu.Lock()
		if ready() {
			h.mu.Unlock()
			return nil
		}
		changed, deadline := h.changed, h.deadline[side]
		h.mu.Unlock()
		var timeout <-chan time.Time
		if !deadline.IsZero() {
			left := time.Until(deadline)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			timer := time.NewTimer(left)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case <-changed:
		case <-timeout:
		}
	}
}

func (h *half) read(p []byte) (n int, err error) {
	waited := h.wait(0, func() bool {
		switch {
		case len(h.data) > 0:
			n = copy(p, h.data)
			h.data = h.data[n:]
		case h.broken:
			err = io.ErrClosedPipe
		case h.closed:
			err = io.EOF
		default:
			return len(p) == 0
		}
		return true
	})
	if waited != nil {
		return 0, waited
	}
	return n, err
}

func (h *half) write(p []byte) (int, error) {
	h.mu.Lock()
	expired := !h.deadline[1].IsZero() && time.Until(h.deadline[1]) <= 0
	h.mu.Unlock()
	if expired {
		return 0, os.ErrDeadlineExceeded
	}
	if err := h.wait(1, func() bool { return !h.stalled || h.closed || h.broken }); err != nil {
		return 0, err
	}
	var err error
	h.update(func() {
		if h.closed || h.broken {
			err = io.ErrClosedPipe
			return
		}
		h.data = append(h.data, p...)
		h.writes++
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// end is one end of a connection in memory.
type end struct{ in, out *half }

// newPair makes the two ends of a connection.
func newPair() (*end, *end) {
	a, b := newHalf(), newHalf()
	return &end{a, b}, &end{b, a}
}

func (e *end) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *end) Write(p []byte) (int, error) { return e.out.write(p) }

func (e *end) Close() error {
	e.out.update(func() { e.out.closed = true })
	e.in.update(func() { e.in.broken = true })
	return nil
}

func (e *end) SetDeadline(t time.Time) error {
	_ = e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.in.update(func() { e.in.deadline[0] = t })
	return nil
}

func (e *end) SetWriteDeadline(t time.Time) error {
	e.out.update(func() { e.out.deadline[1] = t })
	return nil
}

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "mem" }

func (e *end) LocalAddr() net.Addr  { return memAddr{} }
func (e *end) RemoteAddr() net.Addr { return memAddr{} }

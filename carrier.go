package dtcp

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// lingerTime is how long Close waits for the peer to have taken what was sent
// (Section 2 of protocol.md, 5).
const lingerTime = 2 * time.Second

// tcpCarrier carries a stream over one TCP connection, under TLS or, for stock
// peers, without.
//
// Locks that are held across I/O are channels of capacity one, not mutexes, so
// that virtual time goes on while a goroutine waits for them.
type tcpCarrier struct {
	rec   *record
	tls   *tls.Conn     // nil: not encrypted
	early *bufio.Reader // what was read together with the last line; nil when used up
	path  Path

	reading chan struct{} // held by Read
	writing chan struct{} // held by Write, CloseWrite and Close

	mu            sync.Mutex
	closed        bool
	cut           bool // a Write has failed for good
	writeDeadline time.Time

	sentEOF bool  // guarded by writing
	readEnd error // guarded by reading: what every Read returns from now on
	grown   bool  // guarded by reading: the buffer is of full size
}

func newCarrier(rec *record, c *tls.Conn, early *bufio.Reader, p Path) *tcpCarrier {
	t := &tcpCarrier{rec: rec, tls: c, path: p, reading: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
	if c == nil {
		t.early = rec.r
		return t
	}
	rec.hold()
	if early.Buffered() > 0 {
		t.early = early
	}
	return t
}

func (t *tcpCarrier) Path() Path { return t.path }

func (t *tcpCarrier) ConnectionState() tls.ConnectionState {
	if t.tls == nil {
		return tls.ConnectionState{}
	}
	return t.tls.ConnectionState()
}

func (t *tcpCarrier) Read(p []byte) (int, error) {
	if t.isClosed() {
		return 0, net.ErrClosed // not after waiting for Close
	}
	t.reading <- struct{}{}
	defer func() { <-t.reading }()
	if t.isClosed() {
		return 0, net.ErrClosed
	}
	if t.readEnd != nil {
		return 0, t.readEnd // Linux would call a connection that was reset ended
	}
	n, err := t.read(p)
	switch {
	case err == nil:
	case t.isClosed():
		err = net.ErrClosed
	case err == io.EOF && !t.wasCut():
		t.readEnd = err
	case errors.Is(err, os.ErrDeadlineExceeded):
	default:
		// Whatever happened to the connection, it was not the peer who ended the
		// stream: a truncated one must not look whole.
		t.readEnd = io.ErrUnexpectedEOF
		err = t.readEnd
	}
	return n, err
}

func (t *tcpCarrier) read(p []byte) (int, error) {
	if !t.grown { // only now: streams may wait to be accepted
		t.grown = true
		t.rec.grow()
		if t.tls == nil {
			t.early = t.rec.r
		}
	}
	if t.early != nil {
		if t.tls == nil || t.early.Buffered() > 0 {
			return t.early.Read(p)
		}
		t.early = nil
	}
	return t.tls.Read(p)
}

func (t *tcpCarrier) Write(p []byte) (n int, err error) {
	if t.isClosed() {
		return 0, net.ErrClosed // not after waiting for Close
	}
	t.writing <- struct{}{}
	defer func() { <-t.writing }()
	for {
		if err := t.writable(); err != nil {
			return n, err
		}
		if t.tls == nil {
			n, err := t.rec.Conn.Write(p)
			return n, t.writeError(err)
		}
		if err := t.rec.flush(); err != nil || len(p) == 0 {
			return n, t.writeError(err)
		}
		// From here on the bytes are on their way: a write that is interrupted
		// counts them, and the next flush goes on with them.
		chunk := p[:min(len(p), gatherSize)]
		if err := t.rec.gather(func() error { _, err := t.tls.Write(chunk); return err }); err != nil {
			return n, t.writeError(err)
		}
		n, p = n+len(chunk), p[len(chunk):]
	}
}

// writable is asked before bytes are encrypted, for they cannot be taken back.
func (t *tcpCarrier) writable() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return net.ErrClosed
	case t.sentEOF:
		return errWriteClosed
	case !t.writeDeadline.IsZero() && !time.Now().Before(t.writeDeadline):
		return os.ErrDeadlineExceeded
	}
	return nil
}

var errWriteClosed = &net.OpError{Op: "write", Net: "dtcp", Err: syscall.EPIPE}

// writeError makes of the socket's error that of Write. Linux reports a reset
// once, here or to Read, which is then told of an end that is none; under TLS
// there is close_notify to know it by, and on a plain stream only this.
func (t *tcpCarrier) writeError(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case t.closed:
		return net.ErrClosed
	case !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.EPIPE):
		t.cut = true
	}
	return err
}

func (t *tcpCarrier) wasCut() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cut && t.tls == nil
}

func (t *tcpCarrier) CloseWrite() error {
	t.writing <- struct{}{}
	defer func() { <-t.writing }()
	if t.isClosed() {
		return net.ErrClosed
	}
	return t.closeWrite()
}

// closeWrite ends our direction: by close_notify alone under TLS, for the
// connection must go on carrying alerts, by FIN otherwise. The caller holds
// writing.
func (t *tcpCarrier) closeWrite() error {
	if !t.sentEOF {
		t.sentEOF = true
		if t.tls == nil {
			return t.finish()
		}
		if err := t.rec.gather(t.tls.CloseWrite); err != nil {
			return err
		}
	}
	if t.tls == nil {
		return nil
	}
	return t.rec.flush()
}

func (t *tcpCarrier) finish() error {
	if c, ok := t.rec.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.New("dtcp: the network's connections cannot be half-closed")
}

// Close ends both directions. What is unread is discarded, and what was written
// has 2 s to arrive: a socket closed over unread input is reset, which would
// destroy the tail of our own bytes at the peer's.
func (t *tcpCarrier) Close() error {
	if !t.setClosed() {
		return net.ErrClosed
	}
	// Interrupt who is at the socket, then be alone there.
	_ = t.rec.Conn.SetDeadline(time.Unix(1, 0))
	t.writing <- struct{}{}
	defer func() { <-t.writing }()
	t.reading <- struct{}{}
	defer func() { <-t.reading }()
	_ = t.rec.Conn.SetDeadline(time.Now().Add(lingerTime))
	if err := t.closeWrite(); err != nil {
		_ = t.rec.abort()
		return err
	}
	if t.readEnd != io.EOF {
		if t.tls != nil {
			if err := t.finish(); err != nil {
				_ = t.rec.abort()
				return err
			}
		}
		// Ends at EOF, at the deadline, or when the peer resets.
		_, _ = io.Copy(io.Discard, t.rec.r)
	}
	return t.rec.Conn.Close()
}

// Abort resets the connection.
func (t *tcpCarrier) Abort() error {
	if !t.setClosed() {
		return net.ErrClosed
	}
	return t.rec.abort()
}

// setClosed reports whether it was this call that closed.
func (t *tcpCarrier) setClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.closed
	t.closed = true
	return !was
}

func (t *tcpCarrier) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

func (t *tcpCarrier) SetReadDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return net.ErrClosed
	}
	return t.rec.Conn.SetReadDeadline(at)
}

func (t *tcpCarrier) SetWriteDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return net.ErrClosed
	}
	t.writeDeadline = at
	return t.rec.Conn.SetWriteDeadline(at)
}

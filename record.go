package dtcp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Sizes, in bytes, of what is gathered on the way to and from the socket of a
// stream. One write(2) carries many TLS records, and one read(2) fetches many:
// bare crypto/tls makes one call and more for each record of 16 KiB. On the way
// out the buffers are shared; on the way in each stream has its own. A
// connection that is no stream yet makes do with a small one.
const (
	gatherSize = 256 << 10
	readSize   = 256 << 10
	greetSize  = 4 << 10
)

// maxUnasked bounds what TLS may want to send while nobody writes: answers to
// key updates, which a hostile peer could ask for without end.
const maxUnasked = 4 << 10

// record is the connection beneath TLS. Until it carries a stream it writes
// through, but for a line that is to leave together with the first flight; from
// hold on it gathers what TLS writes until flush, which alone touches the
// socket. Deadlines that crypto/tls sets are ignored: those of the socket are
// its owner's.
type record struct {
	net.Conn
	r     *bufio.Reader
	first func(*bufio.Reader) error // run before the first read; nil: none, or done

	mu      sync.Mutex // guards what follows; never held across I/O
	out     []byte     // gathered, on its way to the socket
	holding bool
	writing bool // the owner writes: out may grow
}

func newRecord(c net.Conn) *record {
	return &record{Conn: c, r: bufio.NewReaderSize(c, greetSize)}
}

// NetConn returns the socket.
func (r *record) NetConn() net.Conn { return r.Conn }

// errNoNotify says that the connection ended beneath TLS. crypto/tls would take
// io.EOF between two records for the end of the stream (its comment says for
// whose sake), and so would everybody who can forge a FIN, or who reads after a
// write has swallowed the report of a reset. Only close_notify ends a stream
// (Section 2 of protocol.md, 5).
var errNoNotify = errors.New("the other end closed the connection")

// Read implements [net.Conn] for TLS. It never returns io.EOF.
func (r *record) Read(p []byte) (n int, err error) {
	if check := r.first; check != nil {
		r.first = nil
		err = check(r.r)
	}
	if err == nil {
		n, err = r.r.Read(p)
	}
	if err == io.EOF {
		err = errNoNotify
	}
	return n, err
}

// SetDeadline does nothing.
func (r *record) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (r *record) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing: crypto/tls would leave one in the past behind
// after its close_notify.
func (r *record) SetWriteDeadline(time.Time) error { return nil }

// queue has line leave in front of what is written next.
func (r *record) queue(line []byte) { r.out = append(r.out, line...) }

// hold begins to gather what is written.
func (r *record) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holding = true
}

// grow exchanges the small buffer for a large one. What is in it goes first.
func (r *record) grow() {
	rest, _ := r.r.Peek(r.r.Buffered()) // never fails: it is there
	r.r = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(rest), r.Conn), readSize)
}

// Write implements [net.Conn] for TLS.
func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	if r.holding {
		defer r.mu.Unlock()
		if !r.writing && len(r.out)+len(p) > maxUnasked {
			return 0, errors.New("dtcp: the peer asks for too many key updates")
		}
		if r.out == nil {
			r.out = (*outBuffers.Get().(*[]byte))[:0]
		}
		r.out = append(r.out, p...)
		return len(p), nil
	}
	out := r.out
	r.out = nil
	r.mu.Unlock()
	if len(out) == 0 {
		return r.Conn.Write(p)
	}
	if _, err := r.Conn.Write(append(out, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// gather runs f, which writes through TLS, with room for what it writes.
func (r *record) gather(f func() error) error {
	r.setWriting(true)
	defer r.setWriting(false)
	return f()
}

func (r *record) setWriting(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writing = on
}

// flush writes what was gathered to the socket. After an error, a deadline for
// one, the rest stays for the next flush, so that no record is ever torn. It is
// for one goroutine at a time.
func (r *record) flush() error {
	for {
		r.mu.Lock()
		out := r.out
		r.out = nil
		r.mu.Unlock()
		if len(out) == 0 {
			r.recycle(out)
			return nil
		}
		n, err := r.Conn.Write(out)
		if err != nil {
			r.mu.Lock()
			r.out = append(out[n:len(out):len(out)], r.out...)
			r.mu.Unlock()
			return err
		}
		r.recycle(out)
	}
}

// outBuffers holds buffers that fit a gathered write: an idle stream has none.
var outBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, gatherSize+gatherSize/64)
	return &b
}}

func (r *record) recycle(b []byte) {
	if cap(b) >= gatherSize {
		b = b[:0]
		outBuffers.Put(&b)
	}
}

// abort resets the connection, so that the other end sees an error and never an
// empty success (Section 2 of protocol.md).
func (r *record) abort() error { return abort(r.Conn) }

func abort(c net.Conn) error {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0) // then Close is a reset; if it fails, Close is what remains
	}
	return c.Close()
}

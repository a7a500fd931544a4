package dtcp

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Conn is a stream to a peer. It is a [net.Conn] whose two directions end by
// themselves: Read returns [io.EOF] only when the peer closed its side, and
// [io.ErrUnexpectedEOF] when anything else cut the stream.
//
// Methods may be called from several goroutines at once. The owner of a Conn
// closes it; it outlives the Endpoint it came from.
type Conn struct {
	carrier
	peer    jid.JID
	service string
	stream  string
	end     func() // run once, at Close or Abort
	once    sync.Once
}

// carrier moves the bytes of a stream. Its errors are those of [Conn]. Path is
// asked each time, for a stream may change its path while in use some day.
type carrier interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	CloseWrite() error
	Close() error
	Abort() error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	Path() Path
	ConnectionState() tls.ConnectionState
}

// Read reads from the stream.
func (c *Conn) Read(p []byte) (int, error) { return c.carrier.Read(p) }

// Write writes to the stream. After a write deadline has passed, the stream can
// be used further; the bytes counted cannot be taken back, and what the socket
// has not taken of them leaves with the next Write, of no bytes if need be,
// CloseWrite or Close.
func (c *Conn) Write(p []byte) (int, error) { return c.carrier.Write(p) }

// CloseWrite ends this side: the peer reads [io.EOF] after what was written.
// Reading goes on.
func (c *Conn) CloseWrite() error { return c.carrier.CloseWrite() }

// Close ends the stream. The peer gets everything written and then [io.EOF];
// what it sent and nobody read is discarded. Close waits, 2 s at the most, for
// the peer to end its side, for otherwise the tail could be lost.
func (c *Conn) Close() error {
	defer c.once.Do(c.end)
	return c.carrier.Close()
}

// Abort cuts the stream: the peer's reads fail with [io.ErrUnexpectedEOF]. It is
// how one says that what was sent is not all.
func (c *Conn) Abort() error {
	defer c.once.Do(c.end)
	return c.carrier.Abort()
}

// Path returns the path that the stream is on now.
func (c *Conn) Path() Path { return c.carrier.Path() }

// Peer returns the full JID of the other end, as the XMPP server stamped it.
func (c *Conn) Peer() jid.JID { return c.peer }

// Service returns what the requester asked for; "" on a stock stream that a
// peer asked for.
func (c *Conn) Service() string { return c.service }

// Stream returns the name by which [Trace] calls the stream.
func (c *Conn) Stream() string { return c.stream }

// ConnectionState returns the state of TLS between the two ends; the zero value
// on a stock stream that is not encrypted.
func (c *Conn) ConnectionState() tls.ConnectionState { return c.carrier.ConnectionState() }

// LocalAddr returns the address of this end's socket, a [*net.TCPAddr].
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Path().Local) }

// RemoteAddr returns the address at the other end of this end's socket, a
// [*net.TCPAddr].
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Path().Remote) }

// SetDeadline sets both deadlines, as [net.Conn] says.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of Read, as [net.Conn] says.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.carrier.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of Write, as [net.Conn] says.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.carrier.SetWriteDeadline(t) }

// copySize is the size of the pieces of ReadFrom.
const copySize = gatherSize

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// ReadFrom implements [io.ReaderFrom], so that [io.Copy] to a Conn moves large
// pieces: that is what TLS is fast at.
func (c *Conn) ReadFrom(r io.Reader) (n int64, err error) {
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	return io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{r}, buffer[:])
}

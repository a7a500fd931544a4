package main

import (
	"bytes"
	"net"
	"sync/atomic"
)

// tap looks at all that comes in over the connections of a listener.
type tap struct {
	marker []byte       // looked for
	bytes  atomic.Int64 // seen
	found  atomic.Int64 // times that the marker was among them
}

// tappedListener is a listener whose connections are looked at.
type tappedListener struct {
	net.Listener
	tap *tap
}

func (l *tappedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tappedConn{Conn: c, tap: l.tap}, nil
}

// tappedConn is one of them. It hides what could read from the socket by itself.
type tappedConn struct {
	net.Conn
	tap  *tap
	tail []byte // of what was seen, too short for the marker; for Read alone
}

func (c *tappedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.see(b[:n])
	return n, err
}

// see looks at the next bytes of the connection.
func (c *tappedConn) see(b []byte) {
	c.tap.bytes.Add(int64(len(b)))
	m := c.tap.marker
	across := append(c.tail, b[:min(len(b), len(m)-1)]...)
	c.tap.found.Add(int64(bytes.Count(across, m) + bytes.Count(b, m)))
	if len(b) >= len(m)-1 {
		across = b
	}
	c.tail = append([]byte(nil), across[max(len(across)-(len(m)-1), 0):]...)
}

// CloseWrite ends this direction.
func (c *tappedConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// NetConn returns the socket, which a reset needs.
func (c *tappedConn) NetConn() net.Conn { return c.Conn }

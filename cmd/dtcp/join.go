package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/term"
)

// stream is what a dtcp.Conn can do that matters here.
type stream interface {
	io.ReadWriteCloser
	CloseWrite() error
	Abort() error
}

// side is what a stream is joined to: a socket, or stdin and stdout.
type side struct {
	in       io.Reader
	out      io.Writer
	inName   string // for errors
	outName  string
	closeOut func() error // passes on that the peer has ended its direction
	typed    bool         // in is a person, who has nothing to say to a peer that has ended
	cut      func()       // says to the other end that this is not all, and unblocks in and out; nil if it cannot be done
}

// standard is stdin and stdout.
func standard() side {
	return side{
		in: os.Stdin, out: quietWriter{os.Stdout}, inName: "stdin", outName: "stdout",
		typed:    term.IsTerminal(int(os.Stdin.Fd())),
		closeOut: os.Stdout.Close, // so that a pipe behind it ends, too, whatever stdin does
	}
}

// socket is a connection to a local program.
func socket(c *net.TCPConn) side {
	name := c.RemoteAddr().String()
	return side{
		in: c, out: c, inName: name, outName: name,
		closeOut: func() error {
			// Some systems say so of a connection that the other end has closed.
			if err := c.CloseWrite(); !isAny(err, notConnectedErrors) {
				return err
			}
			return nil
		},
		cut: func() {
			c.SetLinger(0) // a reset, not an end
			c.Close()
		},
	}
}

// quietWriter is a writer whose reader may go away without a word.
type quietWriter struct{ io.Writer }

func (w quietWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if isAny(err, noReaderErrors) {
		err = errQuiet
	}
	return n, err
}

// localError is a failure on this side of the stream.
type localError struct {
	doing, name string
	err         error
}

func (e *localError) Error() string { return fmt.Sprintf("%s %s: %v", e.doing, e.name, e.err) }
func (e *localError) Unwrap() error { return e.err }

// cutError is a failure of the stream itself.
type cutError struct{ err error }

func (e *cutError) Error() string { return fmt.Sprintf("the stream was cut: %v", e.err) }
func (e *cutError) Unwrap() error { return e.err }

// The two wrap what is local, so that its errors are told from those of the
// stream, whose ReadFrom and WriteTo do the copying.
type (
	localReader struct{ side }
	localWriter struct{ side }
)

func (r localReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	if err != nil && err != io.EOF {
		err = &localError{"reading from", r.inName, err}
	}
	return n, err
}

func (w localWriter) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	if err != nil {
		err = &localError{"writing to", w.outName, err}
	}
	return n, err
}

// join copies both ways until both directions have ended, each by itself, and
// closes the stream. When anything fails, or ctx ends, both sides are cut, so
// that neither takes what it has for the whole. bytes counts both directions.
// Where s is typed, both end with the direction of the peer, and bytes counts
// that one alone.
//
// Where s has no cut, join may return while something still waits for s.in: it
// is the last thing that the process does.
func join(ctx context.Context, conn stream, s side) (bytes int64, err error) {
	type half struct {
		bytes    int64
		err      error
		received bool
	}
	halves := make(chan half, 2)
	// Both are owned by this call. They end with their direction, or by cut, or,
	// where there is none, with the process.
	go func() {
		n, err := io.Copy(conn, localReader{s})
		if err == nil {
			err = conn.CloseWrite()
		}
		halves <- half{n, err, false}
	}()
	go func() {
		n, err := io.Copy(localWriter{s}, conn)
		if err == nil {
			if err = s.closeOut(); err != nil {
				err = &localError{"closing", s.outName, err}
			}
		}
		halves <- half{n, err, true}
	}()
	stop := context.AfterFunc(ctx, func() { conn.Abort() })
	defer stop()
	var interrupted <-chan struct{}
	if s.cut == nil {
		interrupted = ctx.Done() // else cut makes both end
	}
	for range 2 {
		var h half
		select {
		case h = <-halves:
		case <-interrupted:
			select {
			case h = <-halves:
			default:
				conn.Abort()
				return bytes, context.Cause(ctx)
			}
		}
		bytes += h.bytes
		if h.err == nil && h.received && s.typed {
			break
		}
		if h.err == nil || err != nil {
			continue
		}
		err = blame(h.err)
		conn.Abort()
		if s.cut == nil {
			break
		}
		s.cut()
	}
	if err != nil {
		return bytes, because(ctx, err)
	}
	if err := conn.Close(); err != nil {
		return bytes, because(ctx, &cutError{err})
	}
	return bytes, nil
}

// blame returns err, as one of the stream unless it is of this side.
func blame(err error) error {
	var local *localError
	if errors.As(err, &local) {
		return err
	}
	return &cutError{err}
}

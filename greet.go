package dtcp

import (
	"errors"
	"net"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// This file takes accepted connections up to the key that tells whose they are.

// acceptPause is how long the loop rests after a failed accept, of descriptors
// say.
const acceptPause = 50 * time.Millisecond

// acceptLoop accepts connections until the listener is closed, which is that of
// a punch port unless port is nil.
func (e *Endpoint) acceptLoop(l net.Listener, port *punchPort) {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			t := newTransport(c)
			t.port = port
			e.greetInBackground(t)
		case errors.Is(err, net.ErrClosed), e.ctx.Err() != nil:
			return
		default:
			select {
			case <-time.After(acceptPause):
			case <-e.ctx.Done():
				return
			}
		}
	}
}

// greetInBackground greets a connection, the oldest being dropped when there
// are too many that have said nothing yet.
func (e *Endpoint) greetInBackground(t *transport) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		_ = t.rec.abort()
		return
	}
	if len(e.greeting) == maxGreeting {
		_ = e.greeting[0].rec.abort() // its goroutine sees an error, and ends
		e.greeting = slices.Delete(e.greeting, 0, 1)
	}
	e.greeting = append(e.greeting, t)
	e.tasks.Add(1)
	// Owned by the Endpoint, ended by the deadline of the greeting and then by its
	// session, waited for by Close.
	go func() {
		defer e.tasks.Done()
		handler := e.greet(t)
		if !e.greeted(t) || handler == nil {
			_ = t.rec.Conn.Close()
			return
		}
		handler(t)
	}()
}

// greeted takes a connection off the list and reports whether it was on it.
func (e *Endpoint) greeted(t *transport) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := len(e.greeting)
	e.greeting = slices.DeleteFunc(e.greeting, func(other *transport) bool { return other == t })
	return len(e.greeting) < n
}

// greet reads lines until one names a key of ours, and returns who takes the
// connection, or nil. What came behind the key line stays unread.
func (e *Endpoint) greet(t *transport) func(*transport) {
	if err := t.rec.Conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil
	}
	lines := wire.NewReader(t.in)
	for {
		line, err := lines.Line()
		if err != nil {
			return nil
		}
		switch {
		case line.Command == wire.Key:
			if handler := e.handler(line.Argument); handler != nil {
				return handler
			}
		case line.Command == wire.StartTLS && t.tls == nil && e.stockExpected():
			certificate, err := e.stockCert()
			if err != nil {
				return nil
			}
			if t.send(wire.OK, "") != nil || t.secure(false, stockTLS(&certificate)) != nil {
				return nil
			}
			lines = wire.NewReader(t.in)
			continue
		}
		// The connection stays open for another command (XEP-0046, "The
		// handshake"), but not for TLS that no session will take.
		if t.send(wire.Error, "") != nil {
			return nil
		}
		if b, err := t.in.Peek(1); err != nil || b[0] == 0x16 {
			return nil
		}
	}
}

// handler returns who takes a connection that names this key.
func (e *Endpoint) handler(key string) func(*transport) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.handlers[key]
}

// stockExpected reports whether a stock peer may be at the door: only then is
// starttls answered, for it comes before the key that tells whose door it is.
func (e *Endpoint) stockExpected() bool {
	e.mu.Lock()
	sessions := make([]*session, 0, len(e.sessions))
	for s := range e.sessions {
		if !s.hidden {
			sessions = append(sessions, s)
		}
	}
	e.mu.Unlock()
	return slices.ContainsFunc(sessions, func(s *session) bool { return e.plainAllowed(s.peer) })
}

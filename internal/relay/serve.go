package relay

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// acceptPause is how long accepting rests when the system lacks something that
// will be given back.
const acceptPause = 50 * time.Millisecond

// keepAlive keeps streams that are idle, and finds out that a peer is no more.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6}

// Serve accepts connections from l until [Relay.Close]; then it returns nil. Any
// other error of l ends it, but not a lack of descriptors or memory, nor a
// connection that is gone before it was accepted. In any case l is closed then.
// Several listeners may be served at once.
//
// On Linux, TCP listeners of the system are served by one goroutine, without
// any for the connections. Their sockets are taken over: l is closed at once,
// and only Close ends the listening. All other listeners and systems have a
// goroutine for each connection that is not joined yet.
func (r *Relay) Serve(l net.Listener) error {
	if !r.begin(l) {
		_ = l.Close() // nobody serves it
		return nil
	}
	defer r.running.Done()
	err := r.serve(l)
	_ = l.Close() // if it has failed, its port is free again
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.listeners, l)
	if r.closed {
		return nil
	}
	return err
}

// serve chooses how l is served.
func (r *Relay) serve(l net.Listener) error {
	if tcp, ok := l.(*net.TCPListener); ok && frontServes {
		return r.serveFront(tcp)
	}
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			r.greet(c)
		case passing(err):
			<-time.After(acceptPause)
		default:
			return err
		}
	}
}

// begin reports whether the relay is open, and then counts a goroutine, which
// must call running.Done. l, if not nil, is closed by Close.
func (r *Relay) begin(l net.Listener) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.running.Add(1)
	if l != nil {
		r.listeners[l] = struct{}{}
	}
	return true
}

// passing reports whether accept failed for a reason that will pass.
func passing(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

package relay

import (
	"bytes"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dtcp-relay/dtcp/internal/firstbyte"
	"github.com/dtcp-relay/dtcp/internal/wire"
)

// lineBatch is how many lines of a leg are read between two looks at the others.
const lineBatch = 16

// rawLeg is a leg on a descriptor.
type rawLeg struct {
	leg
	front *front
	fd    int32    // -1 when it is closed, or somebody else's
	place int32    // -1 if epoll does not watch it
	begun bool     // it has said a line
	conn  *connLeg // guarded by front.mu: the hand of the leg since it was handed over, or nil
}

// do implements [hand].
func (l *rawLeg) do(a action) {
	if c := l.front.post(note{leg: l, action: a}); c != nil {
		c.do(a)
	}
}

// give implements [hand].
func (l *rawLeg) give(a action) net.Conn {
	given := make(chan int, 1)
	if c := l.front.post(note{leg: l, give: given}); c != nil {
		return c.give(a)
	}
	return connOf(<-given)
}

// followed is what epoll tells of a leg.
const followed = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&(1<<32-1)

// follow has epoll watch a leg.
func (f *front) follow(l *rawLeg) {
	if n := len(f.free); n > 0 {
		l.place, f.free = f.free[n-1], f.free[:n-1]
	} else {
		l.place = int32(len(f.places))
		f.places = append(f.places, nil)
	}
	f.places[l.place] = l
	if err := f.poll.Add(int(l.fd), followed, l.place); err != nil {
		f.gone(l)
	}
}

// detach lets go of a leg, whose descriptor it returns.
func (f *front) detach(l *rawLeg) int {
	fd := int(l.fd)
	if l.place >= 0 {
		_ = f.poll.Remove(fd) // it is watched
	}
	f.forget(l)
	return fd
}

// drop closes a leg.
func (f *front) drop(l *rawLeg) {
	_ = unix.Close(int(l.fd)) // nobody is left to tell
	f.forget(l)
}

func (f *front) forget(l *rawLeg) {
	if l.place >= 0 {
		f.places[l.place] = nil
		f.free = append(f.free, l.place)
	}
	l.fd, l.place = -1, -1
	f.legs--
}

// stands returns the state of the leg.
func (l *rawLeg) stands() state {
	r := l.front.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	return l.state
}

// event does what epoll tells of a leg.
func (f *front) event(l *rawLeg, events uint32) {
	failed := events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
	ended := failed || events&unix.EPOLLRDHUP != 0
	if s := l.stands(); s == fresh || s == observing {
		f.hear(l, ended)
	}
	if l.fd < 0 {
		return
	}
	switch l.stands() {
	case waiting:
		// It may say something already, which stays where it is; but its end is one.
		if failed || ended && f.peek(l) == 0 {
			f.gone(l)
		}
	case held:
		if failed { // an end passes through, later
			f.gone(l)
		}
	}
}

// peek looks at what can be read from a leg, at most a line's worth. It returns
// how much that is: 0 at the end, or after a failure, -1 if there is nothing yet.
func (f *front) peek(l *rawLeg) int {
	for {
		n, _, err := unix.Recvfrom(int(l.fd), f.buffer[:wire.MaxLine], unix.MSG_PEEK)
		switch err {
		case nil:
			return n
		case unix.EAGAIN:
			return -1
		case unix.EINTR:
		default:
			return 0
		}
	}
}

// hear reads lines and tells them, or hands the leg over if it begins with
// something else. Unless it is a dialer's key line, which goes to the other leg,
// a line is taken out of the socket, and nothing behind it. If the leg has ended
// nothing more will come.
func (f *front) hear(l *rawLeg, ended bool) {
	for range lineBatch {
		if l.fd < 0 {
			return
		}
		if s := l.stands(); s != fresh && s != observing {
			return
		}
		n := f.peek(l)
		if n < 0 {
			return
		}
		if n == 0 {
			f.gone(l)
			return
		}
		if proto := firstbyte.Of(f.buffer[0]); !l.begun && proto != firstbyte.Line {
			f.open(l, proto)
			return
		}
		end := lineEnd(f.buffer[:n])
		if end == 0 {
			if ended {
				f.gone(l)
			}
			return
		}
		l.begun = true
		line := f.buffer[:end]
		if line[end-1] == '\n' {
			line = line[:end-1]
			if !bytes.HasPrefix(line, []byte(wire.Key+":")) {
				_, _ = unix.Read(int(l.fd), f.buffer[:end]) // the bytes are there, the same ones
			}
		}
		f.tell(l, func(p *pairing, out []action, now time.Time) []action { return p.line(out, &l.leg, line, now) })
	}
	if l.place >= 0 { // it says more than its share; this tells again of what is there
		_ = f.poll.Change(int(l.fd), followed, l.place) // it is watched
	}
}

// lineEnd returns how long the line is with which b begins: up to its LF, or to
// what shows that it is none; 0 if that is not to be seen yet.
func lineEnd(b []byte) int {
	for i, c := range b {
		if c < 0x20 || c > 0x7e || i == wire.MaxLine-1 {
			return i + 1
		}
	}
	return 0
}

// tell tells the core of an event of a leg, and does what comes of it.
func (f *front) tell(l *rawLeg, event func(p *pairing, out []action, now time.Time) []action) {
	for _, a := range f.relay.tell(&l.leg, event) {
		f.act(l, a)
	}
}

// gone tells the core that a leg is no more, and drops it; unless the leg is
// told something else instead, which is noted already.
func (f *front) gone(l *rawLeg) {
	r := f.relay
	r.mu.Lock()
	now := time.Now()
	gone := r.core.gone(&l.leg, now)
	r.settle(now)
	r.mu.Unlock()
	if gone {
		f.drop(l)
	}
}

// act does what a leg is told.
func (f *front) act(l *rawLeg, a action) {
	if l.fd < 0 {
		return
	}
	written := true
	if a.text != "" {
		// Into an empty socket, unless somebody asks and does not read.
		n, err := unix.Write(int(l.fd), []byte(a.text))
		written = err == nil && n == len(a.text)
	}
	switch {
	case a.do == join:
		f.join(l, a.stream)
	case a.do == end:
		if a.text != "" {
			// To close with input unread would be a reset, which could overtake the text.
			_, _ = unix.Read(int(l.fd), f.buffer[:])
		}
		f.drop(l)
	case !written:
		f.gone(l)
	}
}

// join hands a stream over to the pump, whose listener's leg is l.
func (f *front) join(l *rawLeg, s *stream) {
	listener := f.detach(l)
	if dialer, ok := s.dialer.hand.(*rawLeg); ok {
		f.mu.Lock()
		mine := dialer.front == f && dialer.conn == nil
		f.mu.Unlock()
		if mine {
			s.carry(listener, f.detach(dialer))
			return
		}
		n := note{leg: dialer, action: action{do: join, leg: &l.leg, stream: s}, listener: listener}
		if dialer.front.post(n) == nil {
			return
		}
	}
	// Owned by the relay, ended by the goroutine of the dialer's leg, which lets go
	// at once; Close waits for it.
	f.relay.running.Go(func() {
		s.run(connOf(listener), s.dialer.hand.give(action{do: join, leg: &l.leg, stream: s}))
	})
}

// carry has the stream copied between descriptors, and takes them over.
func (s *stream) carry(listener, dialer int) {
	s.begun(s.relay.pump.JoinDescriptors(listener, dialer, s))
}

// open hands a leg over that does not begin with a line, if it is something
// that is spoken here.
func (f *front) open(l *rawLeg, proto firstbyte.Protocol) {
	if proto != firstbyte.SOCKS5 && (proto != firstbyte.TLS || f.relay.serverTLS() == nil) {
		f.tell(l, func(p *pairing, out []action, now time.Time) []action { return p.open(out, &l.leg, false, now) })
		return
	}
	c := newConnLeg(f.relay, &l.leg, connOf(f.detach(l)))
	f.mu.Lock()
	l.conn = c
	var noted []action
	f.notes = slices.DeleteFunc(f.notes, func(n note) bool {
		if n.leg == l {
			noted = append(noted, n.action)
		}
		return n.leg == l
	})
	f.mu.Unlock()
	for _, a := range noted {
		c.do(a)
	}
	// Owned by the relay, ended by the core when the leg has had its time, or
	// earlier by its connection; Close waits for it.
	f.relay.running.Go(c.run)
}

// connOf makes a connection of a descriptor, which it takes over. Where that
// fails, for want of a further descriptor, it is a connection that has failed.
func connOf(fd int) net.Conn {
	file := os.NewFile(uintptr(fd), "")
	c, err := net.FileConn(file)
	_ = file.Close() // c has a descriptor of its own
	if err != nil {
		c, _ = net.Pipe()
		_ = c.Close()
	}
	return c
}

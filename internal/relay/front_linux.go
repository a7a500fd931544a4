package relay

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dtcp-relay/dtcp/internal/epoll"
	"github.com/dtcp-relay/dtcp/internal/firstbyte"
	"github.com/dtcp-relay/dtcp/internal/wire"
)

// frontServes says whether serveFront serves TCP listeners.
const frontServes = true

const (
	backlog     = 4096 // connections that the system keeps ready to be accepted
	acceptBatch = 64   // are accepted between two looks at the others
	lineBatch   = 16   // lines of a leg are read between two looks at the others
)

// front is the shell of the legs that come to a TCP listener of the system, for
// as long as they are on their way. It is one goroutine, that of Serve, around
// epoll. A leg costs a descriptor and a few hundred bytes; what it sends stays
// in its socket until it is a whole line, and that of a dialer until the pump
// takes it from there. When two legs are joined their descriptors are handed to
// the pump; a leg that begins with TLS or SOCKS goes to a [connLeg].
//
// The fields without a comment belong to the goroutine.
type front struct {
	net.Listener // tells the address
	relay        *Relay
	socket       int         // the listening one; -1 when it is closed
	poll         *epoll.Poll // is rung when there are notes

	mu      sync.Mutex
	notes   []note // what others want of legs
	asleep  bool   // the goroutine waits, and must be woken
	stopped bool

	places  []*rawLeg // epoll knows a leg by its place
	free    []int32
	legs    int
	buffer  [4096]byte
	resting time.Time // no accepting until then; zero: it goes on
}

// atSocket is the place of the listening socket; those of legs are not negative.
const atSocket = epoll.Bell - 1

// rawLeg is a leg on a descriptor.
type rawLeg struct {
	leg
	front *front
	fd    int32    // -1 when it is closed, or somebody else's
	place int32    // -1 if epoll does not watch it
	begun bool     // it has said a line
	conn  *connLeg // guarded by front.mu: the hand of the leg since it was handed over, or nil
}

// note is what somebody else wants of a leg.
type note struct {
	leg      *rawLeg
	action   action
	listener int      // with the join of a dialer's leg, which comes from its listener's front: that one's descriptor
	give     chan int // if not nil, there is no action: the descriptor is to be handed over
}

// serveFront is serve for a listener of the system. It takes its socket over:
// l is closed, and only Relay.Close ends the listening.
func (r *Relay) serveFront(l *net.TCPListener) error {
	f, err := newFront(r, l)
	if err != nil {
		return err
	}
	if !r.begin(f) {
		f.release()
		return nil
	}
	defer r.running.Done()
	f.run()
	r.mu.Lock()
	delete(r.listeners, f)
	r.mu.Unlock()
	return nil
}

func newFront(r *Relay, l *net.TCPListener) (*front, error) {
	f := &front{Listener: l, relay: r, socket: -1}
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) { f.socket, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = controlErr
	}
	if err == nil {
		f.poll, err = epoll.New()
	}
	if err == nil {
		err = f.prepare()
	}
	if err != nil {
		f.release()
		return nil, err
	}
	_ = l.Close() // the runtime would look at each connection too
	return f, nil
}

// prepare sets what accepted sockets inherit, and has epoll watch.
func (f *front) prepare() error {
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive.Idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive.Interval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlive.Count},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		// Who connects speaks first. The system keeps to itself, for about as long
		// as a line may take, who has not said anything.
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, int(lineTime / time.Second)},
	} {
		if err := unix.SetsockoptInt(f.socket, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Listen(f.socket, backlog); err != nil { // again: the runtime asked for less
		return os.NewSyscallError("listen", err)
	}
	return f.poll.Add(f.socket, unix.EPOLLIN, atSocket)
}

// release closes what the front has open.
func (f *front) release() {
	if f.socket >= 0 {
		_ = unix.Close(f.socket)
		f.socket = -1
	}
	if f.poll != nil {
		f.poll.Close()
	}
}

// Close ends the listening; the legs are for the core to end. It implements
// [net.Listener], for Relay.Close.
func (f *front) Close() error {
	f.mu.Lock()
	f.stopped = true
	f.wake()
	return nil
}

// wake unlocks the front and has it look at what is new.
func (f *front) wake() {
	asleep := f.asleep
	f.asleep = false
	f.mu.Unlock()
	if asleep {
		f.poll.Ring()
	}
}

// run serves until the front is closed and has no leg.
func (f *front) run() {
	defer f.release()
	for !f.attend() {
		events := f.poll.Wait(f.timeout())
		f.mu.Lock()
		f.asleep = false
		f.mu.Unlock()
		arrived := false
		for _, e := range events {
			switch {
			case e.Fd == atSocket:
				arrived = true
			case e.Fd == epoll.Bell: // it was only to wake
			case f.places[e.Fd] != nil:
				f.event(f.places[e.Fd], e.Events)
			}
		}
		if f.resumes() || arrived { // last: it gives away places that events may have meant
			f.accept()
		}
	}
}

// timeout is how long to wait for events.
func (f *front) timeout() time.Duration {
	if f.resting.IsZero() {
		return -1
	}
	return max(0, time.Until(f.resting))
}

// attend does what is noted. It reports whether everything is over.
func (f *front) attend() (done bool) {
	for {
		f.mu.Lock()
		notes, stopped := f.notes, f.stopped
		f.notes = nil
		f.asleep = len(notes) == 0
		f.mu.Unlock()
		if stopped && f.socket >= 0 {
			_ = unix.Close(f.socket) // so it is not watched either
			f.socket = -1
		}
		if len(notes) == 0 {
			return stopped && f.legs == 0
		}
		for _, n := range notes {
			switch {
			case n.give != nil:
				n.give <- f.detach(n.leg)
			case n.action.do == join && n.action.stream.dialer == &n.leg.leg:
				n.action.stream.carry(n.listener, f.detach(n.leg))
			default:
				f.act(n.leg, n.action)
			}
		}
	}
}

// post notes what is wanted of a leg; if that was handed over, it returns who
// has it.
func (f *front) post(n note) *connLeg {
	f.mu.Lock()
	if c := n.leg.conn; c != nil {
		f.mu.Unlock()
		return c
	}
	f.notes = append(f.notes, n)
	f.wake()
	return nil
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

// accept takes in who has arrived.
func (f *front) accept() {
	if f.socket < 0 {
		return
	}
	for range acceptBatch {
		fd, from, errno := acceptFrom(f.socket)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED:
			continue
		default: // something is lacking that will be given back
			f.resting = time.Now().Add(acceptPause)
			_ = f.poll.Change(f.socket, 0, atSocket) // if it fails the next look is early
			return
		}
		l := &rawLeg{front: f, fd: int32(fd), place: -1}
		l.hand = l
		f.legs++
		f.tell(l, func(p *pairing, out []action, now time.Time) []action {
			return p.arrive(out, &l.leg, from, now)
		})
		f.hear(l) // many have said already what they want
		if l.fd >= 0 && l.stands().halfOpen() {
			f.follow(l)
		}
	}
}

// resumes reports whether accepting has rested long enough, and lets it go on.
func (f *front) resumes() bool {
	if f.resting.IsZero() || time.Now().Before(f.resting) || f.socket < 0 {
		return false
	}
	f.resting = time.Time{}
	_ = f.poll.Change(f.socket, unix.EPOLLIN, atSocket) // what can fail here has succeeded before
	return true
}

// acceptFrom is accept4(2). That of package unix asks the socket for its
// protocol, which is one system call more for each connection.
func acceptFrom(socket int) (fd int, from netip.AddrPort, errno unix.Errno) {
	var a [unix.SizeofSockaddrInet6]byte // struct sockaddr_in or sockaddr_in6
	size := uint32(len(a))
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(socket), uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&size)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, from, errno
	}
	port := binary.BigEndian.Uint16(a[2:])
	switch binary.NativeEndian.Uint16(a[:]) {
	case unix.AF_INET:
		from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), port)
	case unix.AF_INET6:
		from = netip.AddrPortFrom(netip.AddrFrom16([16]byte(a[8:24])), port)
	}
	return int(n), from, 0
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
	switch l.stands() {
	case fresh, observing:
		f.hear(l)
	case waiting:
		// It may say something already, which stays where it is; but its end is one.
		if failed || events&unix.EPOLLRDHUP != 0 && f.peek(l) == 0 {
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
// a line is taken out of the socket, and nothing behind it.
func (f *front) hear(l *rawLeg) {
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

package relay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dtcp-relay/dtcp/internal/epoll"
)

// frontServes says whether serveFront serves TCP listeners.
const frontServes = true

const (
	backlog     = 4096 // connections that the system keeps ready to be accepted
	acceptBatch = 64   // are accepted between two looks at the others
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
	begun   bool      // all that connected before the socket was prepared is accepted
	resting time.Time // no accepting until then; zero: it goes on
}

// atSocket is the place of the listening socket; those of legs are not negative.
const atSocket = epoll.Bell - 1

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

// prepare sets the listening socket up, and has epoll watch it.
func (f *front) prepare() error {
	if err := setOptions(f.socket); err != nil {
		return err
	}
	// Who connects speaks first. The system keeps to itself, for about as long as
	// a line may take, who has not said anything.
	if err := unix.SetsockoptInt(f.socket, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, int(lineTime/time.Second)); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Listen(f.socket, backlog); err != nil { // again: the runtime asked for less
		return os.NewSyscallError("listen", err)
	}
	return f.poll.Add(f.socket, unix.EPOLLIN, atSocket)
}

// setOptions sets what a leg is to have. Accepted sockets inherit it.
func setOptions(fd int) error {
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive.Idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive.Interval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlive.Count},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
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
			f.begun = true
			return
		case unix.EINTR, unix.ECONNABORTED:
			continue
		default: // something is lacking that will be given back
			f.resting = time.Now().Add(acceptPause)
			_ = f.poll.Change(f.socket, 0, atSocket) // if it fails the next look is early
			return
		}
		if !f.begun {
			_ = setOptions(fd) // fails only if it is gone, which is told elsewhere
		}
		l := &rawLeg{front: f, fd: int32(fd), place: -1}
		l.hand = l
		f.legs++
		f.tell(l, func(p *pairing, out []action, now time.Time) []action {
			return p.arrive(out, &l.leg, from, now)
		})
		f.hear(l, false) // many have said already what they want
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

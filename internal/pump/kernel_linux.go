package pump

import (
	"cmp"
	"net"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// kernel is the loops of a pump, which begin with the first pair of sockets: in
// virtual time, where a goroutine in a system call stops the clock, there must
// be none.
type kernel struct {
	loops []*loop // guarded by Pump.mu
	// openPipe is a field because a test cannot make the system refuse one.
	openPipe func() (pipe, error)
}

// startLoops returns the loops; none if the pump is closed or they cannot be
// had, with the reason.
func (p *Pump) startLoops() ([]*loop, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if p.kernel.loops != nil {
		return p.kernel.loops, nil
	}
	if p.kernel.openPipe == nil {
		p.kernel.openPipe = openPipe
	}
	n := p.config.Loops
	if n <= 0 {
		n = (min(runtime.GOMAXPROCS(0), runtime.NumCPU()) + 1) / 2
	}
	var loops []*loop
	for range n {
		l, err := newLoop(p)
		if err != nil {
			for _, l := range loops {
				l.release()
			}
			return nil, err
		}
		loops = append(loops, l)
	}
	for _, l := range loops {
		// Owned by the pump. Ends by Close, which waits.
		p.running.Go(l.run)
	}
	p.kernel.loops = loops
	return loops, nil
}

// closeKernel ends the loops; who waits for Pump.running knows that they have.
func (p *Pump) closeKernel() {
	p.mu.Lock()
	loops := p.kernel.loops
	p.mu.Unlock()
	for _, l := range loops {
		l.close()
	}
}

// joinSockets is Join for two TCP connections; nil means that goroutines must
// do it: these are others, or there is no descriptor to be had.
func (p *Pump) joinSockets(a, b net.Conn, s Stream) *Pair {
	first, ok := a.(*net.TCPConn)
	if !ok {
		return nil
	}
	second, ok := b.(*net.TCPConn)
	if !ok {
		return nil
	}
	loops, err := p.startLoops()
	if err != nil {
		return nil
	}
	var fds [2]int
	if fds[0], err = duplicate(first); err != nil {
		return nil
	}
	if fds[1], err = duplicate(second); err != nil {
		unix.Close(fds[0])
		return nil
	}
	a.Close()
	b.Close()
	return p.join(loops, fds, s)
}

// duplicate returns a second descriptor of a connection, so that the first,
// which belongs to the poller of the runtime, can be closed.
func duplicate(c *net.TCPConn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if controlErr != nil {
		return -1, controlErr
	}
	return fd, err
}

// JoinDescriptors is [Pump.Join] for the descriptors of two TCP sockets. They
// must be non-blocking, and in no other epoll set. It takes them over in any
// case: if they cannot be joined they are reset, and the stream is told.
func (p *Pump) JoinDescriptors(a, b int, s Stream) *Pair {
	loops, err := p.startLoops()
	if err != nil {
		pair := &sockets{Pair: Pair{pump: p, stream: s}}
		pair.by = pair
		p.live.Add(1)
		resetDescriptor(a)
		resetDescriptor(b)
		pair.done(err)
		return &pair.Pair
	}
	return p.join(loops, [2]int{a, b}, s)
}

func (p *Pump) join(loops []*loop, fds [2]int, s Stream) *Pair {
	l := slices.MinFunc(loops, func(a, b *loop) int { return cmp.Compare(a.pairs.Load(), b.pairs.Load()) })
	pair := &sockets{Pair: Pair{pump: p, stream: s}, loop: l, fds: [2]int32{int32(fds[0]), int32(fds[1])}}
	pair.by = pair
	p.live.Add(1)
	l.pairs.Add(1)
	if err := l.add(pair); err != nil {
		resetDescriptor(fds[0])
		resetDescriptor(fds[1])
		l.pairs.Add(-1)
		pair.done(err)
	}
	return &pair.Pair
}

// grace is not needed where undelivered knows.
const grace = 0 * time.Second

// undelivered is how many bytes the peer of a TCP connection has not
// acknowledged; ok is false if the system does not say.
func undelivered(c *net.TCPConn) (n int, ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, true // closed
	}
	raw.Control(func(fd uintptr) { n = unacknowledged(int(fd)) })
	return n, true
}

// unacknowledged is how many bytes of a socket the peer does not have yet. Of a
// dead socket nothing will be delivered any more, so it has none.
func unacknowledged(fd int) int {
	const stateClose = 7 // TCP_CLOSE of the kernel's tcp_states.h
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.State == stateClose {
		return 0
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// resetDescriptor closes a socket so that its peer sees a cut.
func resetDescriptor(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

package epoll

import (
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bell is the place of events that say that somebody has rung.
const Bell = -1

// moment is how long a loop may wait with its processor held, in milliseconds.
const moment = 1

// Poll is a set of descriptors to wait for. Make one with [New]. One goroutine
// waits; the other methods but Close may be called by any.
type Poll struct {
	fd, bell int
	events   [256]unix.EpollEvent
	spare    bool
}

// New returns an empty set. Whoever waits for it closes it.
func New() (*Poll, error) {
	p := &Poll{spare: runtime.GOMAXPROCS(0) >= Spare}
	var err error
	if p.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if p.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = unix.Close(p.fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	// Edge triggered, so that nobody needs to read it.
	if err := p.Add(p.bell, unix.EPOLLIN|unix.EPOLLET, Bell); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close ends the waiting for good. Nobody may use p any more.
func (p *Poll) Close() {
	_ = unix.Close(p.bell)
	_ = unix.Close(p.fd)
}

// Add waits for events of a descriptor too, which are to be told under place,
// which is not negative.
func (p *Poll) Add(fd int, events uint32, place int32) error {
	return p.control(unix.EPOLL_CTL_ADD, fd, events, place)
}

// Change replaces what Add has said of a descriptor, and looks at it anew: what
// is there already is told again.
func (p *Poll) Change(fd int, events uint32, place int32) error {
	return p.control(unix.EPOLL_CTL_MOD, fd, events, place)
}

// Remove undoes Add. A descriptor that is closed need not be removed, unless
// its socket has others.
func (p *Poll) Remove(fd int) error { return p.control(unix.EPOLL_CTL_DEL, fd, 0, 0) }

func (p *Poll) control(op, fd int, events uint32, place int32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, op, fd, &unix.EpollEvent{Events: events, Fd: place}))
}

// Ring has Wait return an event of [Bell], at once or when it is called next.
func (p *Poll) Ring() {
	_, _ = unix.Write(p.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails only after 2^64 times
}

// Wait returns the events of now, if there are any; else it waits for the next,
// for at most timeout, which is rounded up to milliseconds, or, if that is
// negative, for as long as it takes. What it returns holds until it is called
// again.
func (p *Poll) Wait(timeout time.Duration) []unix.EpollEvent {
	ms := -1
	if timeout >= 0 {
		ms = int(min((timeout+time.Millisecond-1)/time.Millisecond, 1<<30))
	}
	if ms == 0 || p.spare {
		first := moment
		if ms >= 0 {
			first = min(ms, moment)
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(first), 0, 0)
		if errno == 0 && n > 0 || ms == 0 {
			return p.found(int(n), errno)
		}
	}
	n, err := unix.EpollWait(p.fd, p.events[:], ms)
	return p.found(n, err)
}

// found returns n events. An error is EINTR: nothing else can happen to a valid
// descriptor.
func (p *Poll) found(n int, err error) []unix.EpollEvent {
	if err != nil && err != unix.Errno(0) {
		n = 0
	}
	return p.events[:n]
}

// Pause sleeps for d, which is to be short: less than a timer of the runtime
// can measure.
func (p *Poll) Pause(d time.Duration) {
	wait := unix.NsecToTimespec(int64(d))
	if p.spare {
		_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&wait)), 0, 0) // a signal may cut it short
	} else {
		_ = unix.Nanosleep(&wait, nil)
	}
}

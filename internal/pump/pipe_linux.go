package pump

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pipeSize is how large a pipe must be to be worth its while: in a smaller one
// splice(2) is slower than copying. It is counted in pages, of which each may
// stand for more where the socket has it in one piece.
const pipeSize = 1 << 20

// askAgain is how long a loop does without a pipe that was refused.
const askAgain = 10 * time.Second

// A pipe is what splice(2) needs between two sockets. The zero value is closed.
type pipe struct {
	in, out int
	open    bool
}

func openPipe() (pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, err
	}
	p := pipe{in: fds[1], out: fds[0], open: true}
	if _, err := unix.FcntlInt(uintptr(p.in), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		p.close()
		return pipe{}, err
	}
	return p, nil
}

// empty reads all there is, which is as long as b.
func (p *pipe) empty(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(p.out, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (p *pipe) close() {
	if p.open {
		unix.Close(p.in)
		unix.Close(p.out)
		p.open = false
	}
}

// hasPipe opens the pipe of the loop if it is not there, and reports whether it
// is. The system may refuse it: for want of descriptors, or because the user
// has too many already (pipe(7), pipe-user-pages-soft).
func (l *loop) hasPipe() bool {
	if l.pipe.open {
		return true
	}
	now := time.Since(l.started)
	if l.refused != 0 && now-l.refused < askAgain {
		return false
	}
	var err error
	if l.pipe, err = l.pump.kernel.openPipe(); err != nil {
		l.refused = now
	}
	return l.pipe.open
}

// room is how many bytes a TCP socket would take now, about, and whether that
// is enough for epoll to call it writable (a third of its buffer).
func room(fd int) (free int, enough bool) {
	var info struct{ _, _, _, limit, _, queued, _, _, _ uint32 } // SK_MEMINFO_VARS of the kernel's sock_diag.h
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return small, true
	}
	free = int(info.limit) - int(info.queued)
	return free, free >= int(info.queued)/2
}

// splice moves up to n bytes from one descriptor to another. The scheduler of
// the runtime is not told of this system call, for it never blocks: to take the
// processor away meanwhile and give it back costs more than the call.
func splice(from, to, n int) (int, error) {
	const flags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), flags)
	if errno != 0 {
		return 0, errno
	}
	return int(moved), nil
}

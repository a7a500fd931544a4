package pump

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	quantum    = 4 << 20  // bytes of one turn, where few wait for theirs
	turnPieces = 16       // and pieces
	largest    = 4 << 20  // bytes of a piece, if the pipe holds so many
	largeCopy  = 1 << 20  // bytes of a piece through user space
	small      = 16 << 10 // bytes that go through user space sooner than through a pipe
)

// sockets is a pair that a loop carries. All but the Pair belongs to the
// goroutine of the loop.
type sockets struct {
	Pair
	loop *loop
	fds  [2]int32
	slot int32
	legs [2]leg
	half [2]half

	gone   bool
	broken Direction     // the leg that failed first, if err is set
	err    error         // why the pair ends before its time
	check  time.Duration // between looks at what is undelivered
}

// leg is what is known of a socket.
type leg struct {
	readable bool // until a read finds nothing
	full     bool // nothing can be written, until epoll says so
	told     bool // epoll says so; not before that is needed, for most sockets are never full
	muted    bool // epoll does not say what can be read
	roomy    bool // epoll has just said that it can be written to
	ended    bool // an end or a failure is there to be read: no read is the last before it
}

// half is one direction.
type half struct {
	rest   []byte // what was read and found no room
	bulk   bool   // the last read brought much
	queued bool
	waits  bool // for a grant, with a timer
	over   bool // nothing more will be read
}

// reset orders the loop to cut the pair.
func (p *sockets) reset(_ *Pair, err error) {
	l := p.loop
	if l == nil {
		return // it was never carried
	}
	l.mu.Lock()
	alive := l.slots[p.slot] == p
	if alive {
		l.resets = append(l.resets, order{p, err})
	}
	l.mu.Unlock()
	if alive {
		l.poll.Ring()
	}
}

// event takes down what epoll tells of a leg.
func (l *loop) event(p *sockets, d Direction, events uint32) {
	if p.gone {
		return
	}
	leg := &p.legs[d]
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		leg.ended = true
		events |= unix.EPOLLIN | unix.EPOLLOUT
	}
	if events&unix.EPOLLIN != 0 {
		leg.readable = true
		l.line(p, d)
	}
	if events&unix.EPOLLOUT != 0 && leg.full {
		leg.full, leg.roomy = false, true
		l.line(p, d.other())
	}
	if events&unix.EPOLLERR != 0 {
		if n, err := unix.GetsockoptInt(int(p.fds[d]), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && n != 0 {
			l.fail(p, d, unix.Errno(n))
		}
	}
}

// turn copies in one direction until there is nothing to do, the share of this
// turn is used up, or the direction belongs to the other line.
func (l *loop) turn(p *sockets, d Direction, share int) {
	h, from, to := &p.half[d], &p.legs[d], &p.legs[d.other()]
	bulk := h.bulk
	for range turnPieces {
		if to.full || h.over || len(h.rest) > 0 && !l.flush(p, d) {
			return
		}
		if !from.readable {
			l.drained(p, d) // it may be muted
			return
		}
		if h.waits {
			return
		}
		asked := l.piece(p, d)
		if asked == 0 {
			return
		}
		asked, wait := p.grant(d, asked)
		if asked <= 0 {
			h.waits = true
			l.mute(p, d)
			l.after(wait, p, alarm(d))
			return
		}
		spliced := asked > small && l.hasPipe()
		var n int
		if spliced {
			n = l.splicePiece(p, d, asked)
		} else {
			asked = min(asked, largeCopy)
			n = l.copyPiece(p, d, asked)
		}
		if n == 0 {
			return
		}
		if !spliced && n < asked && !from.ended {
			l.drained(p, d) // epoll(7): a short read has emptied the socket
		}
		if share -= n; share <= 0 || h.bulk != bulk {
			break
		}
	}
	l.line(p, d)
}

// piece is how much to read next: what the receiver has room for, so that a
// receiver who pauses costs nothing. If that is none, epoll is to tell when it
// is worth a turn again. Where little comes at a time nobody asks for the room,
// as long as not too much is left over altogether.
func (l *loop) piece(p *sockets, d Direction) int {
	spent := l.pump.held.Load() >= l.pump.config.Held
	if !p.half[d].bulk && !spent {
		return small
	}
	to := d.other()
	free, enough := room(int(p.fds[to]))
	roomy := p.legs[to].roomy
	p.legs[to].roomy = false
	switch {
	case enough:
		return max(1, min(free, largest))
	case roomy: // other sockets than those of plain TCP may count otherwise
		return small
	}
	p.legs[to].told = false // the kernel tells who was refused, or who asks
	l.await(p, to)
	return 0
}

// mute has epoll not tell what comes from a leg while it cannot be read, which
// would wake the loop for nothing.
func (l *loop) mute(p *sockets, from Direction) {
	if !p.legs[from].muted {
		p.legs[from].muted = true
		l.watch(p, from)
	}
}

// await has epoll tell when a leg can be written to again.
func (l *loop) await(p *sockets, to Direction) {
	p.legs[to].full = true
	l.mute(p, to.other())
	if !p.legs[to].told {
		p.legs[to].told = true
		l.watch(p, to)
	}
}

// drained takes down that there is nothing to be read from a leg.
func (l *loop) drained(p *sockets, from Direction) {
	p.legs[from].readable = false
	if p.legs[from].muted {
		p.legs[from].muted = false
		l.watch(p, from)
	}
}

// watch has epoll look at a leg anew.
func (l *loop) watch(p *sockets, d Direction) {
	if p.gone {
		return
	}
	leg := &p.legs[d]
	var events uint32 = watched
	if leg.muted {
		events &^= unix.EPOLLIN
	}
	if leg.told {
		events |= unix.EPOLLOUT
	}
	if err := l.poll.Change(int(p.fds[d]), events, p.place(d)); err != nil {
		l.finish(p, err)
	}
}

// came takes down the outcome of a read: n bytes, an end, nothing, a failure. It
// reports whether there are bytes to write.
func (l *loop) came(p *sockets, d Direction, n int, err error) bool {
	h := &p.half[d]
	switch {
	case err == unix.EAGAIN:
		l.drained(p, d)
		return false
	case err == unix.EINTR:
		l.line(p, d)
		return false
	case err != nil:
		h.over = true
		l.fail(p, d, err)
		return false
	case n > 0:
		h.bulk = n >= small
		p.read(d, n)
		return true
	}
	h.over = true
	if p.err != nil { // a reset is told once, and then reads as an end
		l.settle(p)
	} else if p.half[d.other()].over {
		l.finish(p, nil) // which tells of the end too
	} else if err := unix.Shutdown(int(p.fds[d.other()]), unix.SHUT_WR); err != nil {
		l.fail(p, d.other(), err)
	}
	return false
}

// went takes down the outcome of a write, and reports whether the next one may
// succeed.
func (l *loop) went(p *sockets, d Direction, n int, err error) bool {
	switch err {
	case nil:
		p.wrote(d, n)
		return true
	case unix.EINTR:
		return true
	case unix.EAGAIN:
		l.await(p, d.other())
		return false
	}
	p.half[d].over = true
	l.keep(p, d, nil)
	l.fail(p, d.other(), err)
	return false
}

// send writes as much of b as there is room for, and returns the rest. The rest
// of a leg that has failed is nothing.
func (l *loop) send(p *sockets, d Direction, b []byte) []byte {
	for len(b) > 0 {
		n, err := unix.Write(int(p.fds[d.other()]), b)
		if !l.went(p, d, n, err) {
			if p.half[d].over {
				return nil
			}
			break
		}
		b = b[max(n, 0):]
	}
	return b
}

// copyPiece passes up to n bytes on through user space. It returns how many were
// read, 0 if there is nothing more to do.
func (l *loop) copyPiece(p *sockets, d Direction, n int) int {
	if len(l.buffer) < n {
		l.buffer = make([]byte, max(n, small))
	}
	n, err := unix.Read(int(p.fds[d]), l.buffer[:n])
	if !l.came(p, d, n, err) {
		return 0
	}
	if rest := l.send(p, d, l.buffer[:n]); len(rest) > 0 {
		l.keep(p, d, append([]byte(nil), rest...))
	}
	return n
}

// splicePiece passes up to n bytes on through the pipe, which is empty before
// and after. It returns how many were read, 0 if there is nothing more to do.
func (l *loop) splicePiece(p *sockets, d Direction, n int) int {
	n, err := splice(int(p.fds[d]), l.pipe.in, n)
	if !l.came(p, d, n, err) {
		return 0
	}
	l.moved = true
	for left := n; left > 0; {
		k, err := splice(l.pipe.out, int(p.fds[d.other()]), left)
		if l.went(p, d, k, err) {
			left -= k
			continue
		}
		if p.half[d].over { // nobody wants what is left in there
			l.pipe.close()
			return 0
		}
		rest := make([]byte, left)
		if err := l.pipe.empty(rest); err != nil {
			l.pipe.close()
			l.finish(p, err)
			return 0
		}
		l.keep(p, d, rest)
		left = 0
	}
	return n
}

// keep replaces the rest of a direction.
func (l *loop) keep(p *sockets, d Direction, rest []byte) {
	h := &p.half[d]
	l.pump.held.Add(int64(len(rest) - len(h.rest)))
	h.rest = rest
}

// flush writes the rest, and reports whether there is none any more.
func (l *loop) flush(p *sockets, d Direction) bool {
	rest := l.send(p, d, p.half[d].rest)
	if len(rest) == 0 {
		rest = nil // do not keep its buffer
	}
	l.keep(p, d, rest)
	return rest == nil
}

// fail ends a pair because of one leg: what that had sent is delivered, then
// the other is reset.
func (l *loop) fail(p *sockets, leg Direction, err error) {
	switch {
	case p.gone:
		return
	case p.err == nil:
		p.err, p.broken = &LegError{leg, err}, leg
		l.after(p.pump.tail, p, giveUp)
	case leg != p.broken:
		l.finish(p, nil) // nobody is left to deliver to
		return
	}
	back := leg.other()
	p.half[back].over = true
	l.keep(p, back, nil)
	if p.half[leg].over {
		l.settle(p)
		return
	}
	p.legs[leg].readable, p.legs[leg].ended = true, true
	l.line(p, leg)
}

// settle resets a pair of which a leg has failed, as soon as the other has all
// that came from it. A reset takes back what the system has not sent, so that
// is waited for.
func (l *loop) settle(p *sockets) {
	if p.gone || !p.half[p.broken].over {
		return
	}
	if unacknowledged(int(p.fds[p.broken.other()])) == 0 {
		l.finish(p, nil)
		return
	}
	p.check = max(time.Millisecond, min(2*p.check, 50*time.Millisecond))
	l.after(p.check, p, checkOut)
}

// finish closes both sockets, and resets them if the pair does not end by
// itself. The error counts if there was none before.
func (l *loop) finish(p *sockets, err error) {
	if p.gone {
		return
	}
	p.gone = true
	if p.err == nil {
		p.err = err
	}
	for d, fd := range p.fds {
		p.half[d].over = true
		l.keep(p, Direction(d), nil)
		if p.err != nil {
			resetDescriptor(int(fd))
		} else {
			unix.Close(int(fd))
		}
	}
	l.mu.Lock()
	l.slots[p.slot] = nil
	l.free = append(l.free, p.slot)
	l.mu.Unlock()
	l.pairs.Add(-1)
	p.done(p.err)
}

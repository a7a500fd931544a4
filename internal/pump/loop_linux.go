package pump

import (
	"container/heap"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dtcp-relay/dtcp/internal/epoll"
)

// A loop carries pairs of sockets. One goroutine runs it; its fields belong to
// that goroutine, except those behind the mutex.
//
// A direction gets a turn when its leg has something to read and the other may
// have room, or when something else lets it go on. Whoever is not through at
// the end of a turn lines up again behind the others, so that each gets the
// same share. Those that move bytes in bulk have a line of their own: between
// two of their turns everybody else gets one.
type loop struct {
	pump    *Pump
	poll    *epoll.Poll // is rung when something is new behind the mutex
	started time.Time
	pairs   atomic.Int64 // that it carries

	mu      sync.Mutex
	slots   []*sockets // epoll knows a pair by its place
	free    []int32
	resets  []order
	closing bool

	ready   []readiness
	words   []turn // directions that move little at a time
	spare   []turn // takes turns with words
	bulk    []turn // the others; from head on
	head    int
	due     timers
	pipe    pipe
	moved   bool          // bytes in bulk since the last rest
	refused time.Duration // when a pipe was refused, as a timer counts
	buffer  []byte        // for what does not go through the pipe
}

// An order to reset a pair comes from outside.
type order struct {
	pair *sockets
	err  error
}

// readiness is an event of epoll.
type readiness struct {
	pair   *sockets
	leg    Direction
	events uint32
}

// watched is what epoll tells of every leg. That it can be written to is told of
// those only that were full.
const watched = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&math.MaxUint32

// place is how epoll names a leg.
func (p *sockets) place(leg Direction) int32 { return p.slot<<1 | int32(leg) }

// A turn is due to one direction of a pair.
type turn struct {
	pair *sockets
	d    Direction
}

func newLoop(p *Pump) (*loop, error) {
	poll, err := epoll.New()
	if err != nil {
		return nil, err
	}
	return &loop{pump: p, poll: poll, started: time.Now()}, nil
}

// release closes the descriptors of the loop itself.
func (l *loop) release() {
	l.pipe.close()
	l.poll.Close()
}

// add lets the loop carry a pair. The pair is not to be touched afterwards. The
// mutex is held over epoll_ctl, which does not block, so that the loop sees no
// event of the first socket before the second is there.
func (l *loop) add(p *sockets) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return ErrClosed
	}
	if n := len(l.free); n > 0 {
		p.slot, l.free = l.free[n-1], l.free[:n-1]
	} else {
		p.slot = int32(len(l.slots))
		l.slots = append(l.slots, nil)
	}
	for leg, fd := range p.fds {
		if err := l.poll.Add(int(fd), watched, p.place(Direction(leg))); err != nil {
			l.free = append(l.free, p.slot) // the caller closes both, which takes them out
			return err
		}
	}
	l.slots[p.slot] = p
	return nil
}

func (l *loop) close() {
	l.mu.Lock()
	again := l.closing
	l.closing = true
	l.mu.Unlock()
	if !again {
		l.poll.Ring()
	}
}

// run is the loop. It returns when it is closed, after everything is released.
func (l *loop) run() {
	defer l.release()
	for {
		l.gather()
		closing := l.collect(l.poll.Wait(l.timeout()))
		for _, r := range l.ready {
			l.event(r.pair, r.leg, r.events)
		}
		clear(l.ready)
		if closing {
			l.finishAll()
			return
		}
		l.expire()
		l.round()
	}
}

// pause is what a loop sleeps between two rounds of bulk.
const pause = 150 * time.Microsecond

// gather lets bytes gather while they come in bulk: to be woken for each
// segment makes a GB cost a third more. Where nothing is in bulk nobody waits.
func (l *loop) gather() {
	if len(l.words)+len(l.bulk) > 0 {
		return
	}
	if l.moved {
		l.poll.Pause(pause)
	}
	l.moved = false
}

// timeout is how long to wait for events.
func (l *loop) timeout() time.Duration {
	switch {
	case len(l.words)+len(l.bulk) > 0:
		return 0
	case len(l.due) == 0:
		return -1
	}
	return max(0, l.due[0].at-time.Since(l.started))
}

// collect finds the pairs of events, and does what was ordered from outside. It
// reports whether the loop is to end.
func (l *loop) collect(events []unix.EpollEvent) (closing bool) {
	l.ready = l.ready[:0]
	l.mu.Lock()
	for _, e := range events {
		if e.Fd == epoll.Bell {
			continue
		}
		if p := l.slots[e.Fd>>1]; p != nil {
			l.ready = append(l.ready, readiness{p, Direction(e.Fd & 1), e.Events})
		}
	}
	resets := l.resets
	l.resets = nil
	closing = l.closing
	l.mu.Unlock()
	for _, o := range resets {
		l.finish(o.pair, o.err)
	}
	return closing
}

// round gives each direction of few words a turn, and one of those in bulk.
func (l *loop) round() {
	l.words, l.spare = l.spare[:0], l.words
	for _, t := range l.spare {
		l.take(t, quantum)
	}
	clear(l.spare)
	if len(l.bulk) == 0 {
		return
	}
	t, share := l.bulk[l.head], quantum/min(4, len(l.bulk)-l.head)
	l.bulk[l.head] = turn{}
	if l.head++; 2*l.head >= len(l.bulk) {
		n := copy(l.bulk, l.bulk[l.head:])
		clear(l.bulk[n:])
		l.bulk, l.head = l.bulk[:n], 0
	}
	l.take(t, share)
}

// take lets a direction have its turn.
func (l *loop) take(t turn, share int) {
	t.pair.half[t.d].queued = false
	if !t.pair.gone {
		l.turn(t.pair, t.d, share)
	}
}

// line puts a direction into its line, unless it is in one.
func (l *loop) line(p *sockets, d Direction) {
	h := &p.half[d]
	switch {
	case h.queued || h.over:
		return
	case h.bulk:
		l.bulk = append(l.bulk, turn{p, d})
	default:
		l.words = append(l.words, turn{p, d})
	}
	h.queued = true
}

// finishAll resets every pair.
func (l *loop) finishAll() {
	l.mu.Lock()
	var left []*sockets
	for _, p := range l.slots {
		if p != nil {
			left = append(left, p)
		}
	}
	l.mu.Unlock()
	for _, p := range left {
		l.finish(p, ErrClosed)
	}
}

// A timer lets a pair go on.
type timer struct {
	at   time.Duration // since the loop was started
	pair *sockets
	what alarm
}

// An alarm is what a timer is for.
type alarm uint8

const (
	askAB    alarm = iota // ask for a grant again
	askBA                 // same
	checkOut              // has the rest been delivered?
	giveUp                // the time to deliver the rest is over
)

// after sets a timer. There is no taking back: one that no longer means
// anything does nothing.
func (l *loop) after(d time.Duration, p *sockets, what alarm) {
	heap.Push(&l.due, timer{time.Since(l.started) + d, p, what})
}

// expire does what timers ask for that are due.
func (l *loop) expire() {
	for len(l.due) > 0 && l.due[0].at <= time.Since(l.started) {
		t := heap.Pop(&l.due).(timer)
		p := t.pair
		switch {
		case p.gone:
		case t.what <= askBA:
			d := Direction(t.what)
			p.half[d].waits = false
			l.line(p, d)
		case t.what == checkOut:
			l.settle(p)
		case t.what == giveUp:
			l.finish(p, nil)
		}
	}
}

// timers is a heap, soonest first.
type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at < t[j].at }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *timers) Push(x any)        { *t = append(*t, x.(timer)) }
func (t *timers) Pop() any {
	old := *t
	last := old[len(old)-1]
	old[len(old)-1] = timer{}
	*t = old[:len(old)-1]
	return last
}

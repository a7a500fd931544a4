package memnet

import (
	"container/heap"
	"time"
)

// An event is something that happens at a given time, with the lock held.
type event struct {
	at     time.Time
	serial uint64
	run    func()
	index  int // in the queue; -1 when it is not in it
}

// eventQueue is a heap of events, soonest first, and in the order of their
// making when they are due at the same time.
type eventQueue []*event

func (q eventQueue) Len() int { return len(q) }

func (q eventQueue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].serial < q[j].serial
}

func (q eventQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *eventQueue) Push(x any) {
	e := x.(*event)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *eventQueue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	e.index = -1
	return e
}

// at has run called at time t, or when the lock is next released if t has
// passed.
func (n *Net) at(t time.Time, run func()) *event {
	n.serial++
	e := &event{at: t, serial: n.serial, run: run}
	heap.Push(&n.queue, e)
	return e
}

// cancel takes an event back. It may be nil, or have happened.
func (n *Net) cancel(e *event) {
	if e != nil && e.index >= 0 {
		heap.Remove(&n.queue, e.index)
	}
}

// pump runs the events that are due, and sets the timer for the next one.
// There is a timer only while there are events, so that a test in which
// nothing can happen any more is reported as a deadlock.
func (n *Net) pump() {
	for len(n.queue) > 0 {
		next := n.queue[0]
		wait := time.Until(next.at)
		if wait > 0 {
			n.arm(next.at, wait)
			return
		}
		heap.Pop(&n.queue)
		next.run()
	}
	if !n.armed.IsZero() {
		n.timer.Stop()
		n.armed = time.Time{}
	}
}

func (n *Net) arm(at time.Time, wait time.Duration) {
	if n.armed.Equal(at) {
		return
	}
	n.armed = at
	if n.timer == nil {
		n.timer = time.AfterFunc(wait, n.fire)
		return
	}
	n.timer.Reset(wait)
}

func (n *Net) fire() {
	n.lock()
	defer n.unlock()
	n.armed = time.Time{}
}

// A signal wakes all who wait for something to change. The zero value is
// ready. The channel is made by the one who waits, hence inside his bubble.
type signal struct{ ch chan struct{} }

func (s *signal) wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) wake() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

package relay

// queue is a list in the order of arrival, from whose middle things leave. What
// is in it holds its node, so that a queue allocates nothing. The zero value is
// an empty queue.
type queue[T any] struct {
	first, last *node[T]
	n           int
}

// node is what a T has in order to be in one queue at a time.
type node[T any] struct {
	of         *T
	in         *queue[T]
	prev, next *node[T]
}

// push appends t, by its node, which must be in no queue.
func (q *queue[T]) push(t *T, n *node[T]) {
	*n = node[T]{of: t, in: q, prev: q.last}
	if q.last == nil {
		q.first = n
	} else {
		q.last.next = n
	}
	q.last = n
	q.n++
}

// head returns what has been in the queue for longest, or nil.
func (q *queue[T]) head() *T {
	if q.first == nil {
		return nil
	}
	return q.first.of
}

// leave takes n out of the queue it is in, if any.
func (n *node[T]) leave() {
	q := n.in
	if q == nil {
		return
	}
	if n.prev == nil {
		q.first = n.next
	} else {
		n.prev.next = n.next
	}
	if n.next == nil {
		q.last = n.prev
	} else {
		n.next.prev = n.prev
	}
	q.n--
	*n = node[T]{}
}

// Package pump copies bytes between pairs of connections, both ways, many
// pairs at once: the part of a relay (Section 3 of protocol.md) that follows
// the first line.
//
//	p := pump.New(pump.Config{})
//	p.Join(a, b, stream) // takes both over; stream.Done is called at the end
//	p.Close()
//
// # What a pair is promised
//
// Bytes pass unchanged and in order, and so does the end of each direction: a
// half-closed stream goes on in the other. When both directions have ended,
// both legs are closed. When a leg fails, what it had sent is delivered to the
// other first, for at most [Tail]; then that is reset, so that its owner never
// takes a cut for an end. A pair that is reset from outside is cut at once.
//
// A leg may pause for as long as it likes: nothing here takes that for a
// failure, for it is TCP keepalive that tells whether the leg is alive, and
// who accepted the leg has set that. The sender of bytes is held up by the
// receiver's window alone; what is read and not delivered is a few KiB.
//
// # How
//
// On Linux, pairs of TCP sockets have neither goroutines nor buffers of their
// own: each belongs to one of a few loops around epoll (edge triggered), and
// bytes that come in bulk go by splice(2) through the one pipe of the loop,
// never through user space. A loop reads no more than the receiving socket has
// room for, so the pipe is empty again at the end of every turn; the little
// that a socket refuses nevertheless waits in a buffer of just its size. An
// idle pair costs two descriptors and about 300 bytes.
//
// All other connections, such as TLS or those of package memnet, and all
// connections on other systems, are copied by two goroutines with buffers from
// a pool. They follow the same rules, and run in virtual time too.
package pump

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Tail is how long what a leg had sent before it failed may take to reach the
// other (Section 3 of protocol.md).
const Tail = 10 * time.Second

// ErrClosed is why pairs end when their [Pump] is closed, also those that are
// joined afterwards.
var ErrClosed = errors.New("the pump is closed")

// A Direction is one of the two ways through a pair.
type Direction int

// The directions, and at the same time the legs of a pair: direction d copies
// from leg d to the other.
const (
	AB Direction = iota // from the first leg to the second
	BA
)

// other returns the way back.
func (d Direction) other() Direction { return 1 - d }

// A Stream is asked and told about one pair. Its methods are called from the
// goroutines of the pump, for the two directions perhaps at once, and Done
// perhaps from that of Join; they must not block. They may use the pump and the
// pair.
type Stream interface {
	// Grant says how many of want bytes may be read now in a direction. If none
	// may, it says how long to wait before it is asked again, at least 1 ms; a
	// share worth the work is some 10 ms of the permitted rate. Leave that was
	// granted costs nothing until it is used: see Copied.
	Grant(now time.Time, d Direction, want int) (n int, wait time.Duration)
	// Copied tells that n bytes were read, never more than the last Grant for
	// this direction allowed.
	Copied(now time.Time, d Direction, n int)
	// Done tells how the pair ended. It is called once, after everything else,
	// and perhaps before Join returns; the legs are closed by then.
	Done(Result)
}

// A Count is what one direction has copied, in bytes.
type Count struct {
	In  int64 // read from the one leg
	Out int64 // taken over by the system for delivery to the other
}

// A Result is how a pair ended.
type Result struct {
	Bytes [2]Count // by Direction
	// Err is nil when both directions came to their end. Else it is a
	// [*LegError], what [Pair.Reset] was given, or [ErrClosed].
	Err error
}

// A LegError says which leg failed first, and how.
type LegError struct {
	Leg Direction // the one this direction reads from
	Err error
}

func (e *LegError) Error() string {
	return fmt.Sprintf("the %s leg failed: %v", [...]string{"first", "second"}[e.Leg], e.Err)
}

// Unwrap returns what the system said.
func (e *LegError) Unwrap() error { return e.Err }

// Config says how a [Pump] works. The zero value is good.
type Config struct {
	// Loops is how many loops share the pairs of sockets. If zero or less, one
	// for each two processors in use: the network's own work for them keeps
	// the others busy, and more loops make more of it.
	Loops int
	// Held is how many bytes may wait in user space for receivers. Beyond it,
	// pieces of 4 KiB are read, so that each pair can add no more than twice
	// that. If zero or less, 64 MiB.
	Held int64
	// Now is the time for Stream; timers run by the system's clock. If nil,
	// time.Now.
	Now func() time.Time
}

// A Pump copies. Its methods may be called concurrently. Who made it closes it.
type Pump struct {
	config Config
	tail   time.Duration // Tail, but in tests
	held   atomic.Int64
	kernel kernel // loops around epoll, where there is such a thing

	mu      sync.Mutex
	closed  bool
	copiers map[*copier]struct{}
	running sync.WaitGroup // goroutines of loops and copiers
	total   [2]atomic.Int64
	live    atomic.Int64
}

// New returns a Pump. It starts no goroutine before the first pair is joined.
func New(config Config) *Pump {
	if config.Held <= 0 {
		config.Held = 64 << 20
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Pump{config: config, tail: Tail, copiers: map[*copier]struct{}{}}
}

// Stats are counters and gauges of a [Pump].
type Stats struct {
	Pairs int64 // that have not ended
	In    int64 // bytes read from legs, since New
	Out   int64 // bytes given to the system for delivery, since New
	Held  int64 // bytes that wait in user space for receivers
}

// Stats returns what is counted, live.
func (p *Pump) Stats() Stats {
	return Stats{Pairs: p.live.Load(), In: p.total[0].Load(), Out: p.total[1].Load(), Held: p.held.Load()}
}

// A Pair is two joined connections. It needs no closing.
type Pair struct {
	pump   *Pump
	stream Stream // nil if nobody asks
	count  [2]struct{ in, out atomic.Int64 }
	by     interface{ reset(*Pair, error) }
}

// Join copies between a and b until [Stream.Done] of s, and takes both over:
// nobody else may use or close them. The stream may be nil. Half-close needs a
// connection with CloseWrite, as TCP and TLS have; reset needs SetLinger, of
// the connection or of what its method NetConn returns.
//
// On Linux two *net.TCPConn give up their descriptors: they are closed as
// net.Conns, and each lives on in one descriptor.
func (p *Pump) Join(a, b net.Conn, s Stream) *Pair {
	if pair := p.joinSockets(a, b, s); pair != nil {
		return pair
	}
	return p.joinConns(a, b, s)
}

// Reset cuts both legs at once (TCP RST), whatever is under way; err goes into
// the result. A pair that has ended stays as it is.
func (p *Pair) Reset(err error) { p.by.reset(p, err) }

// Bytes returns what was copied so far, live.
func (p *Pair) Bytes() (n [2]Count) {
	for d := range n {
		n[d] = Count{In: p.count[d].in.Load(), Out: p.count[d].out.Load()}
	}
	return n
}

// grant asks how much may be read. Without a stream that is everything.
func (p *Pair) grant(d Direction, want int) (n int, wait time.Duration) {
	if p.stream == nil {
		return want, 0
	}
	n, wait = p.stream.Grant(p.pump.config.Now(), d, want)
	return min(n, want), max(wait, time.Millisecond)
}

// read counts bytes that came.
func (p *Pair) read(d Direction, n int) {
	p.count[d].in.Add(int64(n))
	p.pump.total[0].Add(int64(n))
	if p.stream != nil {
		p.stream.Copied(p.pump.config.Now(), d, n)
	}
}

// wrote counts bytes that went.
func (p *Pair) wrote(d Direction, n int) {
	p.count[d].out.Add(int64(n))
	p.pump.total[1].Add(int64(n))
}

// done tells the stream. Nothing is counted after it.
func (p *Pair) done(err error) {
	p.pump.live.Add(-1)
	if p.stream != nil {
		p.stream.Done(Result{Bytes: p.Bytes(), Err: err})
	}
}

// Close resets what is left and returns when every pair has ended, all
// goroutines are gone, and all descriptors are closed. It may be called again.
// It must not be called by a [Stream].
func (p *Pump) Close() {
	p.mu.Lock()
	p.closed = true
	var left []*copier
	for c := range p.copiers {
		left = append(left, c)
	}
	p.mu.Unlock()
	for _, c := range left {
		c.reset(&c.Pair, ErrClosed)
	}
	p.closeKernel()
	p.running.Wait()
}

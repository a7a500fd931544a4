package transfer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Times of Section 7 of transfer.md.
const (
	stallTime   = 30 * time.Second // without progress
	beatTime    = time.Second      // between two heartbeats, and two looks of the watchdog
	tickTime    = beatTime / 4     // between two reports of progress
	offerTime   = 5 * time.Minute  // until the offer must be complete
	idleTime    = 10 * time.Minute // with nothing of the sender but heartbeats, where files are due
	syncTime    = 10 * time.Minute // one call that writes a file to the disk
	partingTime = 2 * time.Second  // for the last words to a peer
	closingTime = 5 * time.Second  // for the sender to close after the last words of the receiver
)

// bufferSize is the size of the pieces in which bytes of files are handed from
// one goroutine to the next: a frame of data fits.
const bufferSize = headerSize + maxData

type buffer [bufferSize]byte

// buffers holds those that are not in use.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// A piece is whole frames on their way out. The buffer they lie in, if they
// lie in one, goes back to buffers afterwards.
type piece struct {
	b  []byte
	in *buffer
}

// A stream is the connection of one transfer: frames in both directions,
// heartbeats and the watchdog. Three goroutines belong to it: read hands
// frames to the handler, write writes what is put, watch looks at the time.
// Whoever finds the first reason to end calls fail; everybody else wakes up by
// ctx. Then the owner of the stream calls end, which alone closes rw.
type stream struct {
	rw      io.ReadWriteCloser
	in      *bufio.Reader
	handler func(k kind, n int) error // reads n bytes with payload or into; called by read
	busy    func() bool               // true while this end works, and does not wait for the peer
	due     func() bool               // true while the peer has to send more than heartbeats; nil: never
	tick    func()                    // called every tickTime
	stall   time.Duration             // below 0: never

	ctx    context.Context // ends with the stream; its cause is the first error
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup

	out      chan piece
	finish   chan struct{} // closed when nothing more will be put
	readDone chan struct{}
	wrote    chan struct{} // closed when write has ended
	closed   chan struct{} // closed when rw is
	once     sync.Once

	heard   atomic.Int64 // grows with everything that shows the peer to be alive
	moved   atomic.Int64 // grows with everything of the peer but heartbeats
	worked  atomic.Int64 // grows with everything done here: the reason for heartbeats
	blocked atomic.Int32 // above 0 while somebody waits in put
	outside atomic.Int32 // above 0 while this end waits for a person or a pipe
	syncing atomic.Int32 // above 0 while a file is being written to the disk
	beats   atomic.Bool  // whether heartbeats may be sent
	closing atomic.Bool  // all is said: the peer may go
}

// newStream takes rw over. Its goroutines start with start and are waited for
// by end.
func newStream(ctx context.Context, rw io.ReadWriteCloser, stall time.Duration) *stream {
	if stall == 0 {
		stall = stallTime
	}
	s := &stream{
		rw: rw, stall: stall, out: make(chan piece, 4),
		finish: make(chan struct{}), readDone: make(chan struct{}), wrote: make(chan struct{}), closed: make(chan struct{}),
	}
	s.in = bufio.NewReaderSize(listener{s}, 64<<10)
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

// start says hello and begins to read, write and watch.
func (s *stream) start() {
	s.out <- piece{b: hello()} // it has room, and whatever is said later comes behind it
	// Owned by the stream. read ends when rw is closed, write when finish is
	// closed and rw takes no more, watch with ctx. end waits for the three.
	s.tasks.Go(s.read)
	s.tasks.Go(s.write)
	s.tasks.Go(s.watch)
}

// listener counts what comes in.
type listener struct{ s *stream }

func (l listener) Read(b []byte) (int, error) {
	n, err := l.s.rw.Read(b)
	if n > 0 {
		l.s.heard.Add(1)
	}
	return n, err
}

// fail ends the stream for this reason, unless it has ended before.
func (s *stream) fail(err error) { s.cancel(err) }

// cause is why the stream ended; nil while it has not.
func (s *stream) cause() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return context.Cause(s.ctx)
}

// read hands every frame to the handler until the stream has ended, and then
// reads on without looking, until the peer closes or rw is closed: a connection
// closed while something unread lies in it may lose what was written last.
func (s *stream) read() {
	defer close(s.readDone)
	for {
		err := s.readFrame()
		switch {
		case err == nil && s.ctx.Err() == nil:
			continue
		case err == nil, s.ctx.Err() != nil, s.closing.Load():
		default:
			s.fail(err)
		}
		break
	}
	_, _ = io.Copy(io.Discard, s.in)
}

func (s *stream) readFrame() error {
	var header [headerSize]byte
	if _, err := io.ReadFull(s.in, header[:]); err != nil {
		return cut(err)
	}
	k, n, err := parseHeader(header[:])
	if err != nil {
		return err
	}
	switch k {
	case kindHeartbeat:
		if _, err := s.in.Discard(n); err != nil {
			return cut(err)
		}
		return nil
	case kindAbort:
		b, err := s.payload(n)
		if err != nil {
			return err
		}
		f := fields{b: b}
		e := &PeerError{code: code(f.number()), Reason: f.text()}
		if err := f.end(k); err != nil {
			return err
		}
		return e
	}
	s.worked.Add(1)
	s.moved.Add(1)
	return s.handler(k, n)
}

// payload reads the n bytes of a frame into memory of its own.
func (s *stream) payload(n int) ([]byte, error) {
	b := make([]byte, n)
	return b, s.into(b)
}

// into reads the payload of a frame. A long frame may take long on a slow
// path, so that every piece of it counts as work.
func (s *stream) into(b []byte) error {
	for len(b) > 0 {
		n, err := s.in.Read(b)
		b = b[n:]
		if n > 0 {
			s.worked.Add(1)
			s.moved.Add(1)
		}
		if err != nil && len(b) > 0 {
			return cut(err)
		}
	}
	return nil
}

// cut is an error of rw as a caller sees it.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrCut, err)
}

// put gives a piece to write. It waits while four are waiting already.
func (s *stream) put(p piece) error {
	if err := s.cause(); err != nil {
		return err
	}
	select {
	case s.out <- p:
		return nil
	default:
	}
	s.blocked.Add(1)
	defer s.blocked.Add(-1)
	select {
	case s.out <- p:
		return nil
	case <-s.ctx.Done():
		return s.cause()
	}
}

// say puts one frame.
func (s *stream) say(frame []byte) error { return s.put(piece{b: frame}) }

// write writes what is put: small pieces together, large ones as they are.
func (s *stream) write() {
	defer close(s.wrote)
	batch := make([]byte, 0, 32<<10)
	broken := false
	send := func(b []byte) {
		if len(b) == 0 || broken {
			return
		}
		if _, err := s.rw.Write(b); err != nil {
			broken = true
			s.lost(err)
			return
		}
		s.heard.Add(1)
	}
	take := func(p piece) {
		if len(batch)+len(p.b) > cap(batch) {
			send(batch)
			batch = batch[:0]
		}
		if len(p.b) > cap(batch)/2 {
			send(batch)
			batch = batch[:0]
			send(p.b)
		} else {
			batch = append(batch, p.b...)
		}
		if p.in != nil {
			buffers.Put(p.in)
		}
	}
	for {
		select {
		case p := <-s.out:
			take(p)
			continue
		default:
		}
		send(batch)
		batch = batch[:0]
		select {
		case p := <-s.out:
			take(p)
		case <-s.finish:
			if len(s.out) > 0 {
				continue
			}
			if half, ok := s.rw.(interface{ CloseWrite() error }); ok && !broken {
				_ = half.CloseWrite()
			}
			return
		}
	}
}

// lost ends the stream because nothing can be written. A peer that ends a
// transfer says why and closes; what it said may still be on its way in, and
// is the better reason, so the reader has a moment to find it.
func (s *stream) lost(err error) {
	if s.closing.Load() {
		return
	}
	timer := time.NewTimer(partingTime)
	defer timer.Stop()
	select {
	case <-s.readDone:
	case <-s.ctx.Done():
	case <-timer.C:
	}
	s.fail(cut(err))
}

// watch sends the heartbeats, calls tick, and ends a stream in which nothing
// moves although it is the peer's turn.
func (s *stream) watch() {
	ticker := time.NewTicker(tickTime)
	defer ticker.Stop()
	var heard, worked, moved int64
	idle := time.Now()    // since when the peer has sent nothing but heartbeats
	quiet := time.Now()   // since when the peer has not been heard of
	syncing := time.Now() // since when a file is being written to the disk
	for round := 1; ; round++ {
		var now time.Time
		select {
		case now = <-ticker.C:
		case <-s.ctx.Done():
			return
		}
		if s.tick != nil {
			s.tick()
		}
		if round%int(beatTime/tickTime) != 0 {
			continue
		}
		if h := s.heard.Load(); h != heard || s.busy() && s.blocked.Load() == 0 {
			heard, quiet = h, now
		}
		if s.stall > 0 && now.Sub(quiet) >= s.stall {
			s.fail(fmt.Errorf("%w for %v", ErrStalled, s.stall))
			return
		}
		if m := s.moved.Load(); m != moved || s.due == nil || !s.due() {
			moved, idle = m, now
		}
		if s.stall > 0 && now.Sub(idle) >= idleTime {
			s.fail(fmt.Errorf("%w for %v, but for signs of life", ErrStalled, idleTime))
			return
		}
		if s.syncing.Load() == 0 {
			syncing = now
		}
		w := s.worked.Load()
		alive := w != worked || s.outside.Load() > 0 || s.syncing.Load() > 0 && now.Sub(syncing) < syncTime
		worked = w
		if alive && s.beats.Load() {
			select {
			case s.out <- piece{b: numbers(kindHeartbeat)}:
			default: // The peer does not read: it would not see this either.
			}
		}
	}
}

// end ends the stream and waits for its goroutines. Nobody may put anything
// any more. With an error of this end the peer hears of it. Without one, the
// receiver, who speaks last, waits a moment for the sender to close; last says
// that this end is the receiver.
func (s *stream) end(err error, last bool) {
	limit := partingTime
	if err == nil {
		s.closing.Store(true)
		limit = closingTime
	} else {
		s.fail(err)
	}
	// Owned by end, which stops it or finds that it has run.
	timer := time.AfterFunc(limit, s.close)
	if text, ok := parting(err); ok {
		select {
		case s.out <- piece{b: reason(kindAbort, text, uint64(codeOf(err)))}:
		case <-s.closed:
		}
		last = true
	}
	close(s.finish)
	if !errors.Is(err, ErrCut) {
		s.await(s.wrote)
		if last {
			s.await(s.readDone)
		}
	}
	timer.Stop()
	s.close()
	s.cancel(context.Canceled)
	s.tasks.Wait()
}

// await waits for done, or for rw to be closed.
func (s *stream) await(done <-chan struct{}) {
	select {
	case <-done:
	case <-s.closed:
	}
}

func (s *stream) close() {
	s.once.Do(func() {
		_ = s.rw.Close()
		close(s.closed)
	})
}

// parting is what the peer is told of err, if it is told anything: not where
// the connection is gone, or the peer itself has ended the transfer.
func parting(err error) (string, bool) {
	var peer *PeerError
	var refused *RefusedError
	switch {
	case err == nil, errors.As(err, &peer), errors.As(err, &refused), errors.Is(err, ErrCut):
		return "", false
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "it was stopped there", true
	}
	return err.Error(), true
}

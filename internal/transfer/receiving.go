package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// A receiving is one transfer of a receiver. Three kinds of goroutines share
// it: handle, called by the stream's reader, takes frames apart and hands on
// jobs; run decides, answers and writes large files; a few workers write small
// ones. The state below mu is shared by all.
//
//	hello ──> offer ──> deciding ──> planning ──> receiving ──> finishing
//	                        └> refused
type receiving struct {
	r  *Receiver
	st *stream

	offer      *manifest // handle's until offered is closed, then read only but for statuses
	offered    chan struct{}
	few        bool        // there are so few small files that each is written to the disk
	accepted   atomic.Bool // by Accept
	ready      atomic.Bool // files may come: the maps below do not change their keys any more
	jobs       chan job
	small      chan job
	mayWait    bool         // before ready: the bytes come from or go to a pipe, which may be silent for hours
	unanswered atomic.Int32 // files whose hashes the sender has to tell, which may take it hours
	working    atomic.Int32 // above 0 while there is something to do here
	tally      tally
	total      atomic.Int64

	greeted  bool      // handle's
	cur      *incoming // handle's: the file that is coming in
	released chan struct{}

	places  *places
	journal *journal
	large   *part // run's: the large file that is being written
	reasons int   // run's: why entries were given up, in words of the sender

	finishing sync.WaitGroup // files that are being written to the disk
	slots     chan struct{}  // for them

	mu       sync.Mutex
	errs     map[int]error
	saved    map[int]string
	resumed  map[int]int64
	wants    map[int]*want
	begun    []bool          // by entry: its bytes have begun to come
	parts    map[string]note // that exist, by the name of their file in the offer
	dirs     map[string]note // that were made, likewise
	dirPaths map[int32]string
	made     map[int32]bool // folders of this transfer, to be dressed at the end
	sum      string         // of the last file at the top

	key      string          // in Folder.active; empty if it is not there
	workers  *sync.WaitGroup // of small; nil once they have ended
	finished bool            // all is stored that can be
	over     bool            // handle's: nothing more may come
}

// A job is something to be done in the order of frames.
type job struct {
	kind kind
	i    int
	n    int64   // offset, size, or 1 to discard
	buf  *buffer // of kindData and small files
	data []byte  // in buf
	sum  [hashSize]byte
	text string
	got  [][hashSize]byte // of kindPrefix
}

// incoming is a file as handle sees it come in.
type incoming struct {
	i     int
	at    int64
	small *buffer // where a small file gathers; nil for a large one
	drop  bool    // nobody wants it any more
}

// smallSize is the size up to which a file is written in one piece, by one of
// smallWorkers.
const (
	smallSize    = 128 << 10
	smallWorkers = 2
)

func newReceiving(ctx context.Context, r *Receiver, rw io.ReadWriteCloser) *receiving {
	t := &receiving{
		r: r, offer: newManifest(r.Limits, r.Unattended && r.Output == nil), offered: make(chan struct{}), released: make(chan struct{}),
		jobs: make(chan job, 4), small: make(chan job, 8), slots: make(chan struct{}, maxFinishing),
		errs: make(map[int]error), saved: make(map[int]string), resumed: make(map[int]int64), wants: make(map[int]*want),
		parts: make(map[string]note), dirs: make(map[string]note), dirPaths: make(map[int32]string), made: make(map[int32]bool),
	}
	t.st = newStream(ctx, rw, r.Stall)
	t.st.handler = t.handle
	t.st.busy = func() bool { return t.working.Load() > 0 }
	t.st.due = func() bool { return t.ready.Load() && t.working.Load() == 0 && t.unanswered.Load() == 0 && !t.mayWait }
	t.st.tick = t.say
	return t
}

// say tells the caller how far it is.
func (t *receiving) say() {
	if t.r.Progress != nil && t.accepted.Load() {
		t.r.Progress(Progress{Bytes: t.tally.bytes.Load(), Resumed: t.tally.resumed.Load(), Total: t.total.Load(), Files: int(t.tally.files.Load())})
	}
}

// run does the transfer, from the first frame to the last.
func (t *receiving) run() error {
	t.st.beats.Store(true)
	t.st.start()
	err := t.negotiate()
	var refused *refusedHere
	if errors.As(err, &refused) {
		t.st.end(nil, true)
		t.leave()
		return refused.err
	}
	if err == nil {
		err = t.store()
	}
	t.st.end(err, true)
	t.leave()
	t.say()
	return err
}

// refusedHere is the end of a transfer that was refused: the sender has been
// told.
type refusedHere struct{ err error }

func (e *refusedHere) Error() string { return e.err.Error() }

// negotiate waits for the offer, asks, and plans.
func (t *receiving) negotiate() error {
	timer := time.NewTimer(offerTime)
	defer timer.Stop()
	select {
	case <-t.offered:
	case <-t.st.ctx.Done():
		return t.st.cause()
	case <-timer.C:
		return fmt.Errorf("%w: the offer was not complete after %v", ErrStalled, offerTime)
	}
	t.working.Add(1)
	defer t.working.Add(-1)
	t.begun = make([]bool, len(t.offer.entries))
	offer := t.offer.offer(t.r.From)
	t.few = offer.Files <= maxFew
	t.mayWait = offer.Streams > 0 || t.r.Output != nil
	t.total.Store(offer.Bytes)
	if offer.Streams > 0 {
		t.total.Store(-1)
	}
	if t.r.Output != nil {
		if offer.Files != 1 || len(t.offer.entries) != 1 {
			return t.refuse(&RefusedError{code: codeUnsupported, Reason: "only one file can be taken at a time here"})
		}
	} else {
		t.places = newPlaces(t.r.Folder, t.dirPath)
		if err := t.survey(offer); err != nil {
			return t.refuse(err)
		}
	}
	t.st.outside.Add(1)
	err := t.r.Accept(t.st.ctx, offer)
	t.st.outside.Add(-1)
	if cause := t.st.cause(); cause != nil {
		return cause
	}
	if err != nil {
		return t.refuse(err)
	}
	// Not before: what was declined must not end what is under way. An offer with
	// a stream is never the same again.
	if t.r.Output == nil && offer.Streams == 0 {
		t.key = t.r.From + "\x00" + string(t.offer.hash.Sum(nil))
		if err := t.r.Folder.claim(t.key, t); err != nil {
			return err
		}
	}
	t.accepted.Store(true)
	return t.plan()
}

// refuse tells the sender no.
func (t *receiving) refuse(err error) error {
	r := refusal(err)
	if err := t.st.say(reason(kindRefuse, r.Reason, uint64(r.code))); err != nil {
		return err
	}
	return &refusedHere{err}
}

// handle takes a frame of the sender.
func (t *receiving) handle(k kind, n int) error {
	if k == kindData && !t.over {
		return t.handleData(n)
	}
	b, err := t.st.payload(n)
	if err != nil {
		return err
	}
	f := fields{b: b}
	switch {
	case !t.greeted:
		t.greeted = true
		return checkHello(k, b)
	case !isClosed(t.offered):
		switch k {
		case kindEntries:
			return t.offer.add(b)
		case kindOffered:
			count, bytes := f.number(), f.size()
			if err := f.end(k); err != nil {
				return err
			}
			if count != uint64(len(t.offer.entries)) || bytes != t.offer.bytes || count == 0 {
				return protocolError("an offer that does not add up")
			}
			t.offer.seen = nil
			close(t.offered)
			return nil
		}
	case !t.ready.Load() || t.over:
	case k == kindPrefix:
		return t.handlePrefix(f)
	case k == kindFile && t.cur == nil:
		return t.handleFile(f)
	case k == kindEnd && t.cur != nil:
		return t.handleEnd(f)
	case k == kindGiveUp:
		return t.handleGiveUp(f)
	case k == kindSent && t.cur == nil:
		t.over = true
		return t.hand(t.jobs, job{kind: kindSent})
	}
	return protocolError("a frame %q out of turn", k)
}

// hand gives a job on. Jobs that were handed on are done even when the
// connection is cut, so that all that came is there for the next attempt.
func (t *receiving) hand(c chan job, j job) error {
	t.working.Add(1)
	select {
	case c <- j:
		return nil
	default:
	}
	select {
	case c <- j:
		return nil
	case <-t.st.ctx.Done():
		t.working.Add(-1)
		return t.st.cause()
	}
}

// index takes the number of an entry with data.
func (t *receiving) index(f *fields) (int, error) {
	i := f.number()
	if f.bad || i >= uint64(len(t.offer.entries)) {
		return 0, protocolError("an entry that was not offered")
	}
	return int(i), nil
}

func (t *receiving) handlePrefix(f fields) error {
	i, err := t.index(&f)
	if err != nil {
		return err
	}
	var got [][hashSize]byte
	for len(f.b) > 0 && len(got) < maxPrefixes {
		got = append(got, f.hash())
	}
	if err := f.end(kindPrefix); err != nil {
		return err
	}
	t.mu.Lock()
	w := t.wants[i]
	ok := w != nil && !w.answered && (len(got) == 0 || len(got) == len(w.lengths()))
	if ok {
		w.answered = true
	}
	t.mu.Unlock()
	if ok {
		defer t.unanswered.Add(-1) // when the job is handed on
	}
	if !ok {
		return protocolError("hashes that were not asked for")
	}
	return t.hand(t.jobs, job{kind: kindPrefix, i: i, got: got})
}

// handleFile begins a file.
func (t *receiving) handleFile(f fields) error {
	i, err := t.index(&f)
	if err != nil {
		return err
	}
	offset := f.size()
	if err := f.end(kindFile); err != nil {
		return err
	}
	e := &t.offer.entries[i]
	t.mu.Lock()
	w := t.wants[i]
	ok := e.hasData() && !t.begun[i] && (w == nil && offset == 0 || w != nil && w.decided && offset == w.offset)
	t.begun[i] = true
	dead := e.status != Pending
	t.mu.Unlock()
	if !ok {
		return protocolError("a file that it was not to send so")
	}
	t.cur = &incoming{i: i, at: offset, drop: dead}
	if dead {
		return nil
	}
	if e.typ == typeFile && e.size <= smallSize && offset == 0 && t.r.Output == nil {
		t.cur.small = buffers.Get().(*buffer)
		return nil
	}
	return t.hand(t.jobs, job{kind: kindFile, i: i, n: offset})
}

// handleData takes bytes of the current file.
func (t *receiving) handleData(n int) error {
	c := t.cur
	if c == nil || n == 0 {
		return protocolError("a frame %q out of turn", kindData)
	}
	e := &t.offer.entries[c.i]
	if e.typ == typeFile && int64(n) > e.size-c.at {
		return protocolError("more bytes of a file than were offered")
	}
	if c.small != nil {
		if err := t.st.into(c.small[c.at : c.at+int64(n)]); err != nil {
			return err
		}
		c.at += int64(n)
		t.tally.bytes.Add(int64(n))
		return nil
	}
	buf := buffers.Get().(*buffer)
	if err := t.st.into(buf[:n]); err != nil {
		return err
	}
	c.at += int64(n)
	t.tally.bytes.Add(int64(n))
	if c.drop {
		buffers.Put(buf)
		return nil
	}
	return t.hand(t.jobs, job{kind: kindData, i: c.i, buf: buf, data: buf[:n]})
}

// handleEnd ends the current file.
func (t *receiving) handleEnd(f fields) error {
	c := t.cur
	size, sum := f.size(), f.hash()
	if err := f.end(kindEnd); err != nil {
		return err
	}
	e := &t.offer.entries[c.i]
	if size != c.at || e.typ == typeFile && size != e.size {
		return protocolError("a file of another length than was offered")
	}
	t.cur = nil
	switch {
	case c.drop:
		return nil
	case c.small != nil:
		return t.hand(t.small, job{kind: kindEnd, i: c.i, buf: c.small, data: c.small[:size], sum: sum})
	}
	return t.hand(t.jobs, job{kind: kindEnd, i: c.i, n: size, sum: sum})
}

// handleGiveUp takes the sender's word that an entry will not come.
func (t *receiving) handleGiveUp(f fields) error {
	i, err := t.index(&f)
	if err != nil {
		return err
	}
	discard, text := f.number(), f.text()
	if f.bad {
		return f.end(kindGiveUp)
	}
	t.mu.Lock()
	t.begun[i] = true
	t.mu.Unlock()
	if c := t.cur; c != nil {
		if c.i != i {
			return protocolError("a file given up in the middle of another")
		}
		t.cur = nil
		if c.small != nil {
			buffers.Put(c.small)
		}
		if c.drop {
			return nil
		}
	}
	return t.hand(t.jobs, job{kind: kindGiveUp, i: i, n: int64(discard), text: text})
}

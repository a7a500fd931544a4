package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

// maxParts is how many files of one transfer may be resumed in the middle:
// more than that many are never begun at once (Section 5 of transfer.md).
const maxParts = 1024

// A sending is one attempt of a sender. run is the goroutine that reads files
// and puts frames; handle, called by the stream's reader, takes what the
// receiver says. The state below mu is shared by the two.
//
//	hello, offer ──> accepted ──> asked ──> sending ──> sent ──> complete
//	              └> refused
type sending struct {
	s    *Sender
	st   *stream
	list *listing
	rd   reader
	pack packer

	idle   atomic.Bool // true while run waits for the receiver
	tally  tally
	total  int64
	moved  atomic.Bool
	sent   atomic.Bool       // all is sent: the receiver may say so
	states map[int]hash.Hash // of files that are resumed in the middle
	sums   map[int]string    // of files at the top, for the result

	reasons int // handle's: why entries failed, in words of the receiver

	consumed     bool // a stream has been read from
	consumedName string

	mu       sync.Mutex
	greeted  bool
	accepted bool
	asks     []ask
	asked    []int32       // by entry: 1 + its place in asks, 0 without an open ask; nil until the first
	parts    int           // asks about the middle of a file
	open     int           // asks without an answer
	from     map[int]int64 // offsets the receiver named
	errs     map[int]error // why entries failed
	resumed  map[int]int64
	went     chan struct{} // closed when no more is asked
	answered chan struct{} // holds one while open may have reached 0
	complete chan struct{} // closed at the end
}

// An ask is a receiver's question for hashes of the first bytes of a file.
type ask struct {
	entry   int
	lengths [maxPrefixes]int64
	n       int
}

// tally counts for [Progress].
type tally struct {
	bytes, resumed, files atomic.Int64
}

func newSending(ctx context.Context, s *Sender, l *listing, rw io.ReadWriteCloser) *sending {
	a := &sending{
		s: s, list: l, rd: reader{list: l, at: -1}, total: l.bytes,
		states: make(map[int]hash.Hash), sums: make(map[int]string), from: make(map[int]int64), errs: make(map[int]error), resumed: make(map[int]int64),
		went: make(chan struct{}), answered: make(chan struct{}, 1), complete: make(chan struct{}),
	}
	if l.streams > 0 {
		a.total = -1
	}
	a.st = newStream(ctx, rw, s.Stall)
	a.st.handler = a.handle
	a.st.busy = func() bool { return !a.idle.Load() }
	a.st.tick = a.say
	a.pack.st = a.st
	return a
}

// say tells the caller how far it is.
func (a *sending) say() {
	if a.s.Progress != nil {
		a.s.Progress(Progress{Bytes: a.tally.bytes.Load(), Resumed: a.tally.resumed.Load(), Total: a.total, Files: int(a.tally.files.Load())})
	}
}

// run does the attempt, from the first frame to the receiver's last.
func (a *sending) run() error {
	a.st.start()
	defer a.rd.close()
	defer a.pack.drop()
	if err := a.offer(); err != nil {
		return err
	}
	if err := a.wait(a.went); err != nil {
		return err
	}
	if err := a.answer(); err != nil {
		return err
	}
	for i := range a.list.entries {
		e := &a.list.entries[i]
		if !e.hasData() || a.status(i) != Pending {
			continue
		}
		var err error
		if e.typ == typeStream {
			err = a.sendStream(i)
		} else {
			err = a.sendFile(i)
		}
		if err != nil {
			return err
		}
	}
	a.sent.Store(true)
	if err := a.pack.frame(numbers(kindSent)); err != nil {
		return err
	}
	if err := a.pack.flush(); err != nil {
		return err
	}
	return a.wait(a.complete)
}

// wait waits for the receiver.
func (a *sending) wait(c <-chan struct{}) error {
	a.idle.Store(true)
	defer a.idle.Store(false)
	select {
	case <-c:
		return nil
	case <-a.st.ctx.Done():
		// A result that is there counts more than the end of the stream.
		select {
		case <-c:
			return nil
		default:
			return a.st.cause()
		}
	}
}

// offer says what there is to send.
func (a *sending) offer() error {
	var b []byte
	for i := range a.list.entries {
		b = appendEntry(b, &a.list.entries[i])
		if len(b) > maxEntries-maxEntry || i == len(a.list.entries)-1 {
			if err := a.pack.frame(frame(kindEntries, b)); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	if err := a.pack.frame(numbers(kindOffered, uint64(len(a.list.entries)), uint64(a.list.bytes))); err != nil {
		return err
	}
	if err := a.pack.flush(); err != nil {
		return err
	}
	a.st.beats.Store(true)
	return nil
}

// answer hashes what the receiver asked for, and waits until it has said of
// each file from where to send it.
func (a *sending) answer() error {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	for _, q := range a.asks {
		b := binary.AppendUvarint(nil, uint64(q.entry))
		b = append(b, a.prefixes(q, buf)...)
		if err := a.pack.frame(frame(kindPrefix, b)); err != nil {
			return err
		}
	}
	if err := a.pack.flush(); err != nil {
		return err
	}
	for {
		a.mu.Lock()
		open := a.open
		a.mu.Unlock()
		if open == 0 {
			return nil
		}
		if err := a.wait(a.answered); err != nil {
			return err
		}
	}
}

// prefixes is the hashes that were asked for, one after the other; nothing, if
// the file cannot be read so far. Then it is sent from the start, where the
// failure will show again, and is reported.
func (a *sending) prefixes(q ask, buf *buffer) []byte {
	in, err := a.rd.open(q.entry)
	if err != nil {
		return nil
	}
	defer in.Close()
	h := newHash()
	var b []byte
	at := int64(0)
	for _, length := range q.lengths[:q.n] {
		for at < length {
			if a.st.ctx.Err() != nil {
				return nil
			}
			n, err := io.ReadFull(in, buf[:min(int64(len(buf)), length-at)])
			if err != nil {
				return nil
			}
			h.Write(buf[:n])
			at += int64(n)
			a.st.worked.Add(1)
		}
		b = h.Sum(b)
		if length < a.list.entries[q.entry].size {
			if c, ok := h.(hash.Cloner); ok {
				if state, err := c.Clone(); err == nil {
					a.states[q.entry] = state
				}
			}
		} else if a.list.entries[q.entry].parent < 0 {
			a.mu.Lock()
			a.sums[q.entry] = hexOf([hashSize]byte(h.Sum(nil)))
			a.mu.Unlock()
		}
	}
	return b
}

func (a *sending) status(i int) Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.list.entries[i].status
}

// settle says what became of entry i, once.
func (a *sending) settle(i int, status Status, err error) {
	a.mu.Lock()
	if a.list.entries[i].status != Pending {
		a.mu.Unlock()
		return
	}
	a.list.entries[i].status = status
	if err != nil {
		a.errs[i] = err
	}
	if size := a.list.entries[i].size; status == Present {
		a.resumed[i] = size
		a.tally.bytes.Add(size)
		a.tally.resumed.Add(size)
	}
	f := a.file(i)
	a.mu.Unlock()
	if status == Stored || status == Present {
		a.tally.files.Add(1)
	}
	if a.s.Report != nil {
		a.s.Report(f)
	}
}

// file is what a caller is told of entry i. a.mu must be held.
func (a *sending) file(i int) File {
	f := fileOf(a.list.entries, i)
	f.Err, f.Resumed = a.errs[i], a.resumed[i]
	if f.Status == Stored || f.Status == Present {
		f.SHA256 = a.sums[i]
	}
	return f
}

// sendFile sends one file, from where the receiver wants it.
func (a *sending) sendFile(i int) error {
	e := &a.list.entries[i]
	a.mu.Lock()
	offset := a.from[i]
	a.mu.Unlock()
	in, err := a.rd.open(i)
	if err != nil {
		return a.giveUp(i, err)
	}
	defer in.Close()
	h := a.states[i]
	delete(a.states, i)
	if h == nil || offset == 0 {
		if offset != 0 {
			return protocolError("an offset of which it could not know the hash")
		}
		h = newHash()
	}
	if err := in.skip(offset); err != nil {
		return a.giveUp(i, unreadable(err))
	}
	if err := a.pack.frame(numbers(kindFile, uint64(i), uint64(offset))); err != nil {
		return err
	}
	a.tally.bytes.Add(offset)
	a.tally.resumed.Add(offset)
	left := e.size - offset
	for left > 0 {
		if a.status(i) == Failed {
			// The receiver could not store it, and said so.
			return a.pack.frame(reason(kindGiveUp, "", uint64(i), 0))
		}
		b, err := a.pack.room(left)
		if err != nil {
			return err
		}
		n, err := in.Read(b)
		if n > 0 {
			h.Write(b[:n])
			a.pack.data(n)
			left -= int64(n)
			a.tally.bytes.Add(int64(n))
			a.moved.Store(true)
			a.st.worked.Add(1)
		}
		if errors.Is(err, io.EOF) && left > 0 {
			return a.giveUp(i, errShrank)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return a.giveUp(i, unreadable(err))
		}
	}
	if err := in.unchanged(); err != nil {
		return a.giveUp(i, err)
	}
	return a.finish(i, e.size, h)
}

// finish says that entry i is complete.
func (a *sending) finish(i int, size int64, h hash.Hash) error {
	sum := [hashSize]byte(h.Sum(nil))
	if a.list.entries[i].parent < 0 {
		a.mu.Lock()
		a.sums[i] = hexOf(sum)
		a.mu.Unlock()
	}
	b := binary.AppendUvarint(nil, uint64(size))
	return a.pack.frame(frame(kindEnd, append(b, sum[:]...)))
}

// giveUp says that entry i will not come, and why. What changed under our
// hands makes the part useless; what could not be read may be read next time.
func (a *sending) giveUp(i int, err error) error {
	discard := uint64(0)
	if errors.Is(err, errChanged) || errors.Is(err, errShrank) || errors.Is(err, errGrew) {
		discard = 1
	}
	a.settle(i, Failed, err)
	return a.pack.frame(reason(kindGiveUp, err.Error(), uint64(i), discard))
}

// sendStream sends what can be read once, until it ends.
func (a *sending) sendStream(i int) error {
	if err := a.pack.frame(numbers(kindFile, uint64(i), 0)); err != nil {
		return err
	}
	r := a.list.tops[i].source.stream
	a.consumed, a.consumedName = true, a.list.entries[i].name
	h := newHash()
	size := int64(0)
	for {
		if a.status(i) == Failed {
			return a.pack.frame(reason(kindGiveUp, "", uint64(i), 0))
		}
		n, err := a.readStream(r)
		if n > 0 {
			b := a.pack.buf[a.pack.n+headerSize:]
			h.Write(b[:n])
			a.pack.data(n)
			size += int64(n)
			a.tally.bytes.Add(int64(n))
			// Somebody may wait for just these bytes.
			if err := a.pack.flush(); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if a.st.ctx.Err() != nil {
				return a.st.cause()
			}
			return a.giveUp(i, unreadable(err))
		}
	}
	a.mu.Lock()
	a.list.entries[i].size = size
	a.mu.Unlock()
	return a.finish(i, size, h)
}

// readStream reads once, into the room that the packer has. A pipe may have
// nothing to read for hours: then the receiver hears that we wait for it.
func (a *sending) readStream(r io.Reader) (int, error) {
	b, err := a.pack.room(maxData)
	if err != nil {
		return 0, err
	}
	if err := a.pack.flush(); err != nil {
		return 0, err
	}
	if b, err = a.pack.room(maxData); err != nil {
		return 0, err
	}
	a.st.outside.Add(1)
	defer a.st.outside.Add(-1)
	type read struct {
		n   int
		err error
	}
	done := make(chan read, 1)
	// Owned by this call, which waits for it unless the transfer ends before.
	// Then it ends when the pipe gives something or is closed; the buffer it
	// reads into is left to it.
	go func() {
		n, err := r.Read(b)
		done <- read{n, err}
	}()
	select {
	case got := <-done:
		return got.n, got.err
	case <-a.st.ctx.Done():
		a.pack.abandon()
		return 0, a.st.cause()
	}
}

// settleRest is for the end: folders and links of which nothing was said are
// stored; files of which nothing was said are not.
func (a *sending) settleRest() {
	for i := range a.list.entries {
		if a.status(i) != Pending {
			continue
		}
		if a.list.entries[i].hasData() {
			a.settle(i, Failed, &EntryError{Reason: "the receiver did not say that it is stored"})
			continue
		}
		a.mu.Lock()
		a.list.entries[i].status = Stored
		a.mu.Unlock()
	}
}

// result sums up. The stream must have ended.
func (a *sending) result() *Result {
	r := &Result{Omitted: a.list.omitted, Failed: append([]File(nil), a.list.failed...)}
	files, only := 0, -1
	for i := range a.list.entries {
		e := &a.list.entries[i]
		if e.status == Failed {
			r.Failed = append(r.Failed, a.file(i))
		}
		if !e.hasData() {
			continue
		}
		files, only = files+1, i
		if e.status == Stored || e.status == Present {
			r.Files++
			r.Bytes += e.size
		}
		if e.status == Present {
			r.Present++
		}
	}
	r.Resumed = a.tally.resumed.Load()
	if files == 1 && a.list.entries[only].parent < 0 {
		r.SHA256 = a.file(only).SHA256
	}
	return r
}

package transfer

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"
)

// writeError is a failed write as it ends a transfer or a file.
func writeError(err error) error {
	if isFull(err) {
		return ErrDiskFull
	}
	return err
}

// store takes the files as they come, and makes what can only be made at the
// end.
func (t *receiving) store() error {
	var workers sync.WaitGroup
	for range smallWorkers {
		// Owned by store. They end when small is closed: below, after the last
		// frame of the sender, or in leave, after the stream has ended.
		workers.Go(t.storeSmall)
	}
	t.workers = &workers
	for {
		select {
		case j := <-t.jobs:
			if j.kind == kindSent {
				err := t.finish()
				t.working.Add(-1)
				return err
			}
			err := t.do(j)
			t.working.Add(-1)
			if err != nil {
				return err
			}
		case <-t.st.ctx.Done():
			return t.st.cause()
		}
	}
}

// do does one job of the large files.
func (t *receiving) do(j job) error {
	switch j.kind {
	case kindPrefix:
		return t.compare(j.i, j.got)
	case kindFile:
		return t.beginLarge(j.i, j.n)
	case kindData:
		return t.writeLarge(j)
	case kindEnd:
		return t.endLarge(j.i, j.n, j.sum)
	case kindGiveUp:
		return t.giveUp(j.i, j.n == 1, j.text)
	}
	return nil
}

func (t *receiving) beginLarge(i int, offset int64) error {
	e := &t.offer.entries[i]
	if t.r.Output != nil {
		t.large = &part{i: i, hash: newHash(), out: t.r.Output}
		return nil
	}
	var p *part
	var err error
	if offset > 0 {
		n, _ := t.partOf(i)
		if p, err = t.openPart(i, n, offset); err == nil {
			p.hash, p.n, p.flushed = t.wants[i].state, offset, offset
			if err = p.f.Truncate(offset); err == nil {
				_, err = p.f.Seek(offset, io.SeekStart)
			}
			if err != nil {
				p.close()
			}
		}
	} else {
		p, err = t.createPart(i, e)
	}
	if err != nil {
		return t.fail(i, err)
	}
	t.large = p
	return nil
}

// writeLarge appends to the large file. Bytes of a file that has failed are on
// their way until the sender has heard of it; they are dropped.
func (t *receiving) writeLarge(j job) error {
	p := t.large
	if p == nil || p.i != j.i {
		buffers.Put(j.buf)
		return nil
	}
	p.hash.Write(j.data)
	var err error
	if p.out != nil {
		err = t.writeOut(p.out, j)
	} else {
		err = t.write(p.f, p.name, j.data)
		buffers.Put(j.buf)
	}
	if err != nil {
		p.close()
		t.large = nil
		return t.fail(j.i, err)
	}
	p.wrote(len(j.data))
	t.st.worked.Add(1)
	return nil
}

// write writes to a part. Tests make it fail.
func (t *receiving) write(f *os.File, name string, b []byte) error {
	if d := t.r.Folder; d.fault != nil {
		if err := d.fault(name, len(b)); err != nil {
			return err
		}
	}
	_, err := f.Write(b)
	return err
}

// writeOut writes to what may be a pipe that nobody reads for hours. The
// sender hears that we wait for it. The buffer goes back to buffers unless the
// transfer ends before the pipe has taken it.
func (t *receiving) writeOut(w io.Writer, j job) error {
	t.st.outside.Add(1)
	defer t.st.outside.Add(-1)
	done := make(chan error, 1)
	// Owned by this call, which waits for it unless the transfer ends before.
	// Then it ends when the pipe takes the bytes or is closed.
	go func() {
		_, err := w.Write(j.data)
		done <- err
	}()
	select {
	case err := <-done:
		buffers.Put(j.buf)
		return err
	case <-t.st.ctx.Done():
		return t.st.cause()
	}
}

func (t *receiving) endLarge(i int, size int64, sum [hashSize]byte) error {
	p := t.large
	if p == nil || p.i != i {
		return nil
	}
	t.large = nil
	t.mu.Lock()
	t.offer.entries[i].size = size
	t.mu.Unlock()
	if p.out == nil {
		return t.finishLater(p, sum)
	}
	if [hashSize]byte(p.hash.Sum(nil)) != sum {
		return t.fail(i, errHash)
	}
	return t.done(i, Stored, nil, sum)
}

// maxFinishing is how many files are written to the disk at once while the
// next ones come in.
const maxFinishing = 4

// finishLater finishes a part beside what comes next: writing to the disk takes
// long, and costs nothing but waiting.
func (t *receiving) finishLater(p *part, sum [hashSize]byte) error {
	t.working.Add(1)
	t.slots <- struct{}{}
	// Owned by store: finish or leave wait for it. It ends with the disk.
	t.finishing.Go(func() {
		err := t.finishPart(p, sum, 0)
		<-t.slots
		t.working.Add(-1)
		if err != nil {
			t.st.fail(err)
		}
	})
	return nil
}

var errHash = errors.New("what arrived is not what was sent: its hash differs")

// storeSmall is a worker: it writes files that came in one piece.
func (t *receiving) storeSmall() {
	for j := range t.small {
		err := t.storeOne(j)
		buffers.Put(j.buf)
		t.working.Add(-1)
		if err != nil {
			t.st.fail(err)
		}
	}
}

func (t *receiving) storeOne(j job) error {
	if sha256.Sum256(j.data) != j.sum {
		return t.fail(j.i, errHash)
	}
	p, err := t.createPart(j.i, &t.offer.entries[j.i])
	if err != nil {
		return t.fail(j.i, err)
	}
	if err := t.write(p.f, p.name, j.data); err != nil {
		p.close()
		return t.fail(j.i, err)
	}
	p.hash.Write(j.data)
	t.st.worked.Add(1)
	return t.finishPart(p, j.sum, 0)
}

// giveUp notes that the sender will not send file i. What changed under its
// hands will not fit a later version of itself.
func (t *receiving) giveUp(i int, discard bool, text string) error {
	if p := t.large; p != nil && p.i == i {
		p.close()
		t.large = nil
	}
	if discard && t.r.Output == nil {
		t.dropPart(i)
	}
	err := errMore
	if t.reasons++; t.reasons <= maxReasons {
		err = fmt.Errorf("not sent: %s", text)
	}
	t.settle(i, Failed, err, "")
	return nil
}

// fail notes that file i could not be stored, and tells the sender; want of
// room ends the transfer.
func (t *receiving) fail(i int, err error) error {
	if isFull(err) || errors.Is(err, ErrDiskFull) {
		return fmt.Errorf("%w: %s", ErrDiskFull, clean(pathOf(t.offer.entries, i)))
	}
	if cause := t.st.cause(); cause != nil && errors.Is(err, cause) {
		return cause
	}
	return t.done(i, Failed, bareLink(err), [hashSize]byte{})
}

// done settles entry i and tells the sender.
func (t *receiving) done(i int, status Status, err error, sum [hashSize]byte) error {
	text := ""
	if status != Failed {
		text = hexOf(sum)
	}
	t.settle(i, status, err, text)
	return t.tell(i)
}

// settlePresent is for a file that was there.
func (t *receiving) settlePresent(i int, sum [hashSize]byte) {
	size := t.offer.entries[i].size
	t.mu.Lock()
	t.resumed[i] = size
	t.mu.Unlock()
	t.tally.bytes.Add(size)
	t.tally.resumed.Add(size)
	t.settle(i, Present, nil, hexOf(sum))
}

// settle says here what became of entry i, once.
func (t *receiving) settle(i int, status Status, err error, sum string) {
	t.mu.Lock()
	e := &t.offer.entries[i]
	if e.status != Pending {
		t.mu.Unlock()
		return
	}
	e.status = status
	if err != nil {
		t.errs[i] = err
	}
	if sum != "" && e.parent < 0 {
		t.sum = sum
	}
	f := t.file(i)
	f.SHA256 = sum
	delete(t.saved, i)
	t.mu.Unlock()
	if e.hasData() && status != Failed {
		t.tally.files.Add(1)
	}
	if t.r.Report != nil && (e.hasData() || status == Failed) {
		t.r.Report(f)
	}
}

// file is what a caller is told of entry i. t.mu must be held.
func (t *receiving) file(i int) File {
	f := fileOf(t.offer.entries, i)
	f.Err, f.Resumed, f.Saved = t.errs[i], t.resumed[i], t.saved[i]
	return f
}

// tell tells the sender what became of entry i, if anything has.
func (t *receiving) tell(i int) error {
	t.mu.Lock()
	status, err := t.offer.entries[i].status, t.errs[i]
	t.mu.Unlock()
	switch status {
	case Stored:
		return t.st.say(numbers(kindResult, uint64(i), 0))
	case Present:
		return t.st.say(numbers(kindResult, uint64(i), 1))
	case Failed:
		return t.st.say(reason(kindResult, err.Error(), uint64(i), 2))
	}
	return nil
}

// finish is for when the sender has sent all: links, which nothing may be
// written through, and modes and times of folders, which writing would change.
func (t *receiving) finish() error {
	close(t.small)
	t.workers.Wait()
	t.workers = nil
	t.finishing.Wait()
	if err := t.st.cause(); err != nil {
		return err
	}
	for i := range t.offer.entries {
		e := &t.offer.entries[i]
		t.mu.Lock()
		pending := e.status == Pending
		t.mu.Unlock()
		switch {
		case !pending:
		case e.hasData():
			if err := t.done(i, Failed, errNotSent, [hashSize]byte{}); err != nil {
				return err
			}
		case e.typ == typeLink:
			if err := t.makeLink(i); err != nil {
				return err
			}
		}
	}
	if t.r.Output == nil {
		if err := t.dressFolders(); err != nil {
			return err
		}
		t.sync()
	}
	t.finished = true
	return t.st.say(numbers(kindComplete, uint64(t.tally.files.Load()), uint64(t.tally.bytes.Load())))
}

// maxFew is how many small files are written to the disk one by one.
const maxFew = 64

// maxSync is how long the last writing to the disk may hold up the good news:
// it may be somebody else's gigabytes that it waits for.
const maxSync = 5 * time.Second

// sync writes names to the disk, and the bytes of small files if there are many.
func (t *receiving) sync() {
	t.st.syncing.Add(1)
	defer t.st.syncing.Add(-1)
	if t.few {
		t.syncFolders()
		return
	}
	dir, err := t.r.Folder.root.Open(".")
	if err != nil {
		return
	}
	done := make(chan struct{})
	// Owned by this call, which waits for it, but not for long. It ends with the
	// disk.
	go func() {
		defer close(done)
		syncAll(dir)
		_ = dir.Close()
	}()
	timer := time.NewTimer(maxSync)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// syncFolders writes the names of the files that were stored to the disk, and
// those of the folders around them.
func (t *receiving) syncFolders() {
	written := make(map[int32]bool)
	for i := range t.offer.entries {
		if e := &t.offer.entries[i]; e.typ != typeFolder && e.status == Stored {
			for id := e.parent; !written[id]; id = t.offer.entries[id].parent {
				written[id] = true
				if id < 0 {
					break
				}
			}
		}
	}
	for id := range written {
		if at, err := t.places.get(id); err == nil {
			_ = syncDir(at.dir) // systems that cannot do it do it anyway
			t.places.put(at)
		}
		t.st.worked.Add(1)
	}
}

// syncDir is a variable for one test, which looks at what is synced.
var syncDir = (*os.File).Sync

var errNotSent = errors.New("the sender did not send it")

func (t *receiving) makeLink(i int) error {
	e := &t.offer.entries[i]
	at, err := t.places.get(e.parent)
	if err != nil {
		return t.fail(i, err)
	}
	defer t.places.put(at)
	t.st.worked.Add(1)
	if _, err := at.link(e.target, e.name); err != nil {
		return t.fail(i, err)
	}
	t.settle(i, Stored, nil, "")
	return nil
}

// dressFolders gives the folders that were made for this transfer their modes
// and times, the inner ones first. Those that were there before are left as
// they are.
func (t *receiving) dressFolders() error {
	ids := make([]int32, 0, len(t.made))
	for id := range t.made {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	for _, id := range ids {
		e := &t.offer.entries[id]
		at, err := t.places.get(e.parent)
		if err == nil {
			_, name := split(t.dirPath(id))
			t.r.Folder.dressFolder(at, name, e)
			t.places.put(at)
		}
		t.st.worked.Add(1)
		if err != nil {
			if err := t.fail(int(id), err); err != nil {
				return err
			}
		}
	}
	for i := range t.offer.entries {
		if e := &t.offer.entries[i]; e.typ == typeFolder && e.status == Pending {
			t.settle(i, Stored, nil, "")
		}
	}
	return nil
}

// leave is for after the stream has ended: what has come is kept, and the
// next attempt may begin. Nobody hands on any more.
func (t *receiving) leave() {
	full := errors.Is(t.st.cause(), ErrDiskFull)
	if t.workers != nil {
		close(t.small)
		t.workers.Wait()
	}
	for len(t.jobs) > 0 {
		j := <-t.jobs
		if !full && j.kind != kindPrefix && t.accepted.Load() {
			_ = t.do(j)
		}
		t.working.Add(-1)
	}
	t.finishing.Wait()
	if c := t.cur; c != nil && c.small != nil {
		if !full && c.at > 0 {
			t.keepSmall(c)
		}
		buffers.Put(c.small)
	}
	if t.large != nil {
		t.large.close()
		t.large = nil
	}
	if t.journal != nil {
		if len(t.parts) == 0 && (len(t.made) == 0 || t.finished) {
			t.journal.discard()
		} else {
			t.journal.close()
		}
	}
	if t.places != nil {
		t.places.close()
	}
	if t.key != "" {
		t.r.Folder.release(t.key, t)
	}
}

// keepSmall makes a part of the beginning of a small file.
func (t *receiving) keepSmall(c *incoming) {
	p, err := t.createPart(c.i, &t.offer.entries[c.i])
	if err != nil {
		return
	}
	_ = t.write(p.f, p.name, c.small[:c.at])
	p.close()
}

// result sums up. The transfer must have ended.
func (t *receiving) result() *Result {
	r := &Result{Resumed: t.tally.resumed.Load()}
	files := 0
	for i := range t.offer.entries {
		e := &t.offer.entries[i]
		if e.status == Failed {
			r.Failed = append(r.Failed, t.file(i))
		}
		if !e.hasData() {
			continue
		}
		files++
		if e.status == Stored || e.status == Present {
			r.Files++
			r.Bytes += e.size
		}
		if e.status == Present {
			r.Present++
		}
	}
	if files == 1 && r.Files == 1 {
		r.SHA256 = t.sum
	}
	return r
}

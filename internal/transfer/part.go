package transfer

import (
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
)

// A part is an incomplete file that is open for writing.
type part struct {
	i       int
	at      *place // held until close
	places  *places
	name    string
	f       *os.File
	hash    hash.Hash
	n       int64 // bytes in it
	flushed int64
	flush   chan struct{} // closed when the last call of flush has returned; nil before the first
	out     io.Writer     // instead of all but i, hash and n, if there is no folder
}

// close leaves the part for another attempt.
func (p *part) close() {
	if p.f == nil {
		return
	}
	p.settle()
	_ = p.f.Close()
	p.f = nil
	p.places.put(p.at)
}

// flushSize is after how many bytes of a large file the system is told to
// begin writing them to the disk, so that little is left to wait for at the
// end.
const flushSize = 8 << 20

// wrote counts n bytes that were written.
func (p *part) wrote(n int) {
	p.n += int64(n)
	if p.out != nil || p.n-p.flushed < flushSize {
		return
	}
	if p.flush != nil && !isClosed(p.flush) {
		return // the disk is slower than the stream
	}
	done, f, from, size := make(chan struct{}), p.f, p.flushed, p.n-p.flushed
	p.flush, p.flushed = done, p.n
	// Owned by the part: settle waits for it. It ends with the call, which takes
	// some milliseconds that the stream need not wait for.
	go func() {
		defer close(done)
		flush(f, from, size)
	}()
}

// settle waits until nothing uses the file any more.
func (p *part) settle() {
	if p.flush != nil {
		<-p.flush
	}
}

// createPart makes the part of file i, in place of an earlier one of ours.
func (t *receiving) createPart(i int, e *entry) (*part, error) {
	t.dropPart(i)
	at, err := t.places.get(e.parent)
	if err != nil {
		return nil, err
	}
	dir, name := t.dirPath(e.parent), pathOf(t.offer.entries, i)
	size := e.size
	if e.typ == typeStream {
		size = -1
	}
	for n := range maxNumber {
		file := partName(e.name, n)
		// Not ours: then it must never stand in the journal.
		switch _, err := at.root.Lstat(file); {
		case err == nil:
			continue
		case !errors.Is(err, fs.ErrNotExist):
			t.places.put(at)
			return nil, err
		}
		own := note{Part: join(dir, file), Name: name, Size: size, Sec: e.sec, Nsec: e.nsec}
		if err := t.journal.write(own); err != nil {
			t.places.put(at)
			return nil, err
		}
		f, err := at.root.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			t.mu.Lock()
			t.parts[name] = own
			t.mu.Unlock()
			return &part{i: i, at: at, places: t.places, name: file, f: f, hash: newHash()}, nil
		}
		if err2 := t.journal.write(note{Part: own.Part, Gone: true}); err2 != nil || !errors.Is(err, fs.ErrExist) {
			t.places.put(at)
			return nil, err
		}
	}
	t.places.put(at)
	return nil, errNumbers
}

// openPart opens the part that is there, of at least n bytes.
func (t *receiving) openPart(i int, own note, n int64) (*part, error) {
	at, err := t.places.get(t.offer.entries[i].parent)
	if err != nil {
		return nil, err
	}
	_, file := split(own.Part)
	f, err := openRegular(at.root, file)
	if err == nil {
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && info.Size() < n {
			err = errChanged
		}
		if err != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		t.places.put(at)
		return nil, err
	}
	return &part{i: i, at: at, places: t.places, name: file, f: f}, nil
}

// openRegular opens a file for reading and writing that is not a link, nor
// takes the place of another while it is opened.
func openRegular(root *os.Root, name string) (*os.File, error) {
	before, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, errLink
	}
	f, err := root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	after, err := f.Stat()
	if err != nil || !os.SameFile(before, after) {
		_ = f.Close()
		return nil, errLink
	}
	return f, nil
}

// resumePart opens the part of file i and hashes its first n bytes.
func (t *receiving) resumePart(i int, own note, n int64) (*part, error) {
	p, err := t.openPart(i, own, n)
	if err != nil {
		return nil, err
	}
	p.hash, p.n = newHash(), n
	if err := t.hashInto(p.hash, p.f, n); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// dropPart removes the part of file i, if there is one of ours.
func (t *receiving) dropPart(i int) {
	own, ok := t.partOf(i)
	if !ok {
		return
	}
	dir, file := split(own.Part)
	if at, err := openReal(t.r.Folder.root, dir); err == nil {
		_ = at.Remove(file)
		_ = at.Close()
	}
	t.gone(own)
}

// gone notes that a part is no more.
func (t *receiving) gone(own note) {
	t.mu.Lock()
	delete(t.parts, own.Name)
	t.mu.Unlock()
	// If it cannot be noted, the next attempt looks for a part that is not there.
	_ = t.journal.write(note{Part: own.Part, Gone: true})
}

// finishPart gives a complete part its name. Before that its hash must be the
// sender's, and its bytes on the disk. status is 0, or 1 if nothing of it had
// to be sent.
func (t *receiving) finishPart(p *part, sum [hashSize]byte, status int) error {
	i := p.i
	e := &t.offer.entries[i]
	p.settle()
	if [hashSize]byte(p.hash.Sum(nil)) != sum {
		p.close()
		t.dropPart(i)
		return t.fail(i, errHash)
	}
	if e.typ == typeStream || e.size > smallSize || t.few {
		t.st.syncing.Add(1)
		err := p.f.Sync()
		t.st.syncing.Add(-1)
		if err != nil {
			p.close()
			return t.fail(i, err)
		}
	}
	t.r.Folder.dress(p.at, p.f, p.name, e)
	err := p.f.Close()
	p.f = nil
	defer t.places.put(p.at)
	if err != nil {
		return t.fail(i, err)
	}
	name, err := p.at.place(p.name, e.name)
	if err != nil {
		return t.fail(i, err)
	}
	own, _ := t.partOf(i)
	t.gone(own)
	t.mu.Lock()
	t.saved[i] = join(t.dirPaths[e.parent], name)
	t.mu.Unlock()
	if status == 1 {
		return t.done(i, Present, nil, sum)
	}
	return t.done(i, Stored, nil, sum)
}

package transfer

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// A want is what there is already of a file that is offered.
type want struct {
	size     int64 // of the file
	part     int64 // bytes of it in a part
	whole    bool  // there is a file of its name and size
	answered bool  // the sender has sent its hashes
	decided  bool  // the sender has been told the offset
	offset   int64
	state    hash.Hash // of the part, up to offset
}

// lengths are the lengths whose hashes decide, in ascending order.
func (w *want) lengths() []int64 {
	var l []int64
	if w.part > 0 {
		l = append(l, w.part)
	}
	if w.whole && w.part != w.size {
		l = append(l, w.size)
	}
	return l
}

// dirPath is where folder i lies, below the Folder; "" is the Folder.
func (t *receiving) dirPath(i int32) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dirPaths[i]
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// survey looks, before anybody is asked, at what is there already and how much
// room there is. It writes nothing.
func (t *receiving) survey(offer *Offer) error {
	parts, dirs := t.r.Folder.peek(t.r.From)
	t.parts, t.dirs = parts, dirs
	t.lookAll(func(i int, w *want) {
		if w.whole {
			offer.Present += w.size
		} else {
			offer.Present += w.part
		}
	})
	offer.Room = t.r.Folder.free()
	if need := offer.Bytes - offer.Present; offer.Room >= 0 && need > offer.Room {
		return &RefusedError{code: codeFull, Reason: fmt.Sprintf("there is no room: %d bytes are needed and %d are free", need, offer.Room)}
	}
	return nil
}

// peek reads the journals of a sender without touching them.
func (d *Folder) peek(from string) (parts, dirs map[string]note) {
	parts, dirs = make(map[string]note), make(map[string]note)
	names, err := d.journals()
	if err != nil {
		return parts, dirs
	}
	for _, name := range names {
		info, err := d.root.Lstat(name)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		f, err := d.root.Open(name)
		if err != nil {
			continue
		}
		notes, _ := readJournal(f, from)
		_ = f.Close()
		for _, n := range notes {
			if n.Dir != "" {
				dirs[n.Name] = n
			} else {
				parts[n.Name] = n
			}
		}
	}
	return parts, dirs
}

// free is the room in the folder; -1 if unknown.
func (d *Folder) free() int64 {
	if d.room != nil {
		return d.room()
	}
	return freeSpace(d.dir)
}

// lookAll finds, for each folder of the offer that there is already, where it
// lies, and for each file what there is of it; found is called for those of
// which there is something.
func (t *receiving) lookAll(found func(int, *want)) {
	clear(t.dirPaths)
	t.dirPaths[-1] = ""
	for i := range t.offer.entries {
		e := &t.offer.entries[i]
		if t.offer.refused[i] != nil || e.status != Pending {
			continue
		}
		t.mu.Lock()
		_, there := t.dirPaths[e.parent]
		t.mu.Unlock()
		if !there {
			continue
		}
		at, err := t.places.get(e.parent)
		if err != nil {
			continue
		}
		switch e.typ {
		case typeFolder:
			if name, ok := t.lookFolder(at, i); ok {
				t.mu.Lock()
				t.dirPaths[int32(i)] = join(t.dirPaths[e.parent], name)
				t.mu.Unlock()
			}
		case typeFile:
			if w := t.lookFile(at, i); w != nil {
				found(i, w)
			}
		}
		t.places.put(at)
	}
}

// lookFolder finds the folder that entry i was made as, or would be merged
// into: the first of its numbered names that is a folder, if all before are
// taken by something else.
func (t *receiving) lookFolder(at *place, i int) (string, bool) {
	if len(t.dirs) > 0 {
		if n, ok := t.dirs[pathOf(t.offer.entries, i)]; ok {
			dir, name := split(n.Dir)
			if info, err := at.root.Lstat(name); err == nil && info.IsDir() && dir == t.dirPath(t.offer.entries[i].parent) {
				return name, true
			}
		}
	}
	for n := range maxNumber {
		name := numbered(t.offer.entries[i].name, n)
		info, err := at.root.Lstat(name)
		if err != nil {
			return "", false
		}
		if info.IsDir() {
			return name, true
		}
	}
	return "", false
}

func split(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// lookFile says what there is of file i; nil if nothing.
func (t *receiving) lookFile(at *place, i int) *want {
	e := &t.offer.entries[i]
	w := &want{size: e.size}
	n, ok := t.partOf(i)
	dir, _ := split(n.Part)
	if ok && n.Size == e.size && n.Sec == e.sec && n.Nsec == e.nsec && dir == t.dirPath(e.parent) {
		if info, err := lstatReal(t.r.Folder.root, n.Part); err == nil && info.Mode().IsRegular() && info.Size() <= e.size {
			w.part = info.Size()
		}
	}
	t.sameSize(at, e, func(string) bool {
		w.whole = true
		return false
	})
	if w.part == 0 && !w.whole {
		return nil
	}
	return w
}

// partOf is the living part of file i.
func (t *receiving) partOf(i int) (note, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.parts) == 0 {
		return note{}, false
	}
	n, ok := t.parts[pathOf(t.offer.entries, i)]
	return n, ok
}

// sameSize calls f with the names of files that could be e, whole: of its name
// or a numbered one, and of its size.
func (t *receiving) sameSize(at *place, e *entry, f func(name string) bool) {
	for n := range maxNumber {
		name := numbered(e.name, n)
		info, err := at.root.Lstat(name)
		if err != nil {
			return
		}
		if info.Mode().IsRegular() && info.Size() == e.size && !f(name) {
			return
		}
	}
}

// plan begins to write: the journal and the folders. Then it says what will not
// be stored, asks for the hashes of what is there already, and lets the sender
// begin.
func (t *receiving) plan() error {
	for i := range t.offer.entries {
		if err := t.offer.refused[i]; err != nil {
			t.settle(i, Failed, err, "")
		}
	}
	if err := t.st.say(frame(kindAccept, nil)); err != nil {
		return err
	}
	if t.r.Output == nil {
		var err error
		if t.journal, t.parts, t.dirs, err = openJournal(t.r.Folder, t.r.From); err != nil {
			return writeError(err)
		}
		t.lookAll(func(i int, w *want) { t.wants[i] = w })
		if err := t.makeFolders(); err != nil {
			return err
		}
	}
	// In the order of the offer, which is that of the sender's disk.
	order := make([]int, 0, len(t.wants))
	for i := range t.wants {
		order = append(order, i)
	}
	slices.Sort(order)
	inMiddle := 0
	for _, i := range order {
		w := t.wants[i]
		if w.size == 0 {
			t.settlePresent(i, sha256.Sum256(nil))
			delete(t.wants, i)
			continue
		}
		if w.part > 0 && w.part < w.size {
			if inMiddle++; inMiddle > maxParts {
				w.part = 0
			}
		}
		n := []uint64{uint64(i)}
		for _, length := range w.lengths() {
			n = append(n, uint64(length))
		}
		if len(n) == 1 {
			delete(t.wants, i)
			continue
		}
		t.unanswered.Add(1)
		if err := t.st.say(numbers(kindAsk, n...)); err != nil {
			return err
		}
	}
	for i := range t.offer.entries {
		if err := t.tell(i); err != nil {
			return err
		}
	}
	t.ready.Store(true)
	return t.st.say(frame(kindGo, nil))
}

// makeFolders makes the folders that are not there. A folder that cannot be
// made fails with all that it holds.
func (t *receiving) makeFolders() error {
	for i := range t.offer.entries {
		e := &t.offer.entries[i]
		if e.status != Pending {
			continue
		}
		if e.parent >= 0 && t.offer.entries[e.parent].status == Failed {
			t.settle(i, Failed, errParent, "")
			continue
		}
		if e.typ != typeFolder {
			continue
		}
		id := int32(i)
		t.st.worked.Add(1)
		if path, there := t.dirPaths[id]; there {
			if n, ok := t.dirs[pathOf(t.offer.entries, i)]; ok && n.Dir == path {
				t.made[id] = true
			}
			continue
		}
		if err := t.makeFolder(i); err != nil {
			if isFull(err) {
				return ErrDiskFull
			}
			t.settle(i, Failed, bare(err), "")
		}
	}
	return nil
}

var errParent = errors.New("its folder could not be made")

func (t *receiving) makeFolder(i int) error {
	e := &t.offer.entries[i]
	at, err := t.places.get(e.parent)
	if err != nil {
		return err
	}
	defer t.places.put(at)
	for n := range maxNumber {
		name := numbered(e.name, n)
		if info, err := at.root.Lstat(name); err == nil && !info.IsDir() {
			continue
		}
		path := join(t.dirPath(e.parent), name)
		if err := t.journal.write(note{Name: pathOf(t.offer.entries, i), Dir: path}); err != nil {
			return err
		}
		if err := at.root.Mkdir(name, 0o700); err != nil {
			if errors.Is(err, fs.ErrExist) {
				continue
			}
			return err
		}
		t.mu.Lock()
		t.dirPaths[int32(i)], t.made[int32(i)] = path, true
		t.mu.Unlock()
		return nil
	}
	return errNumbers
}

// compare is the answer to the sender's hashes of file i.
func (t *receiving) compare(i int, got [][hashSize]byte) error {
	t.mu.Lock()
	w := t.wants[i]
	t.mu.Unlock()
	e := &t.offer.entries[i]
	at, err := t.places.get(e.parent)
	if err != nil {
		return t.fail(i, err)
	}
	defer t.places.put(at)
	theirs := make(map[int64][hashSize]byte)
	for n, length := range w.lengths() {
		if n < len(got) {
			theirs[length] = got[n]
		}
	}
	sum, sent := theirs[w.size]
	if w.whole && sent {
		name := ""
		t.sameSize(at, e, func(candidate string) bool {
			if h, err := t.hashFile(at.root, candidate, w.size); err == nil && h == sum {
				name = candidate
			}
			return name == "" && t.st.ctx.Err() == nil
		})
		if name != "" {
			t.dropPart(i)
			t.mu.Lock()
			t.saved[i] = join(t.dirPaths[e.parent], name)
			t.mu.Unlock()
			t.settlePresent(i, sum)
			return t.tell(i)
		}
	}
	offset := int64(0)
	if theirSum, sent := theirs[w.part]; w.part > 0 && sent {
		n, _ := t.partOf(i)
		p, err := t.resumePart(i, n, w.part)
		switch {
		case err != nil:
		case [hashSize]byte(p.hash.Sum(nil)) != theirSum:
			p.close()
		case w.part == w.size:
			// Killed between the last byte and the new name.
			t.mu.Lock()
			t.resumed[i] = w.size
			t.mu.Unlock()
			t.tally.bytes.Add(w.size)
			t.tally.resumed.Add(w.size)
			return t.finishPart(p, theirSum, 1)
		default:
			offset = w.part
			w.state = p.hash
			p.close()
		}
	}
	if cause := t.st.cause(); cause != nil {
		return cause
	}
	t.mu.Lock()
	w.offset, w.decided = offset, true
	t.resumed[i] = offset
	t.mu.Unlock()
	t.tally.bytes.Add(offset)
	t.tally.resumed.Add(offset)
	return t.st.say(numbers(kindFrom, uint64(i), uint64(offset)))
}

// hashFile hashes the first size bytes of a file that was there before.
func (t *receiving) hashFile(root *os.Root, name string, size int64) (sum [hashSize]byte, err error) {
	f, err := root.OpenFile(name, openFlags, 0)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return sum, errLink
	}
	h := newHash()
	if err := t.hashInto(h, f, size); err != nil {
		return sum, err
	}
	return [hashSize]byte(h.Sum(nil)), nil
}

// hashInto hashes exactly n bytes. It ends early if the transfer does.
func (t *receiving) hashInto(h io.Writer, r io.Reader, n int64) error {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	for n > 0 {
		if err := t.st.cause(); err != nil {
			return err
		}
		got, err := io.ReadFull(r, buf[:min(int64(len(buf)), n)])
		if err != nil {
			return err
		}
		_, _ = h.Write(buf[:got])
		n -= int64(got)
		t.st.worked.Add(1)
	}
	return nil
}

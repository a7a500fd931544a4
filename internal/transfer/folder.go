package transfer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// A Folder is where files are received into. It is opened once and used for
// all transfers, several at once among them. Nothing is ever written outside of
// it, nor through a link in it.
type Folder struct {
	root *os.Root
	dir  *os.File

	room  func() int64                   // for tests: the free space
	fault func(name string, n int) error // for tests: makes a write fail

	umask fs.FileMode // of the user

	mu     sync.Mutex
	active map[string]*receiving // by sender and hash of the offer
}

// OpenFolder opens a folder, which must be there.
func OpenFolder(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	dir, err := root.Open(".")
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return &Folder{root: root, dir: dir, umask: userMask(), active: make(map[string]*receiving)}, nil
}

// Close closes the folder. Transfers into it must have ended.
func (d *Folder) Close() error {
	return errors.Join(d.dir.Close(), d.root.Close())
}

// claim makes t the one transfer of its sender and offer. One that is still at
// it is the attempt before, whose connection is gone without a word: it is
// ended and waited for, so that its parts are free.
func (d *Folder) claim(key string, t *receiving) error {
	for {
		d.mu.Lock()
		old := d.active[key]
		if old == nil {
			d.active[key] = t
		}
		d.mu.Unlock()
		if old == nil {
			return nil
		}
		old.st.fail(ErrSuperseded)
		select {
		case <-old.released:
		case <-t.st.ctx.Done():
			return t.st.cause()
		}
	}
}

func (d *Folder) release(key string, t *receiving) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active[key] == t {
		delete(d.active, key)
		close(t.released)
	}
}

// A place is one open folder that entries are written into.
type place struct {
	root *os.Root
	dir  *os.File // the same, for what a Root cannot do
	top  bool     // the Folder itself, which is not for a transfer to close
	uses int
	id   int32
}

// places keeps the folders open that entries are written into: most files lie
// beside the one before. Safe for use by several goroutines.
type places struct {
	folder *Folder
	path   func(id int32) string // where folder id lies, below the Folder

	mu   sync.Mutex
	open map[int32]*place
}

// maxPlaces is how many folders are kept open without being in use.
const maxPlaces = 16

func newPlaces(d *Folder, path func(int32) string) *places {
	return &places{folder: d, path: path, open: map[int32]*place{-1: {root: d.root, dir: d.dir, top: true, id: -1}}}
}

// get opens folder id; put gives it back.
func (p *places) get(id int32) (*place, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.open[id]
	if at == nil {
		root, err := openReal(p.folder.root, p.path(id))
		if err != nil {
			return nil, err
		}
		dir, err := root.Open(".")
		if err != nil {
			_ = root.Close()
			return nil, err
		}
		at = &place{root: root, dir: dir, id: id}
		p.open[id] = at
	}
	at.uses++
	return at, nil
}

func (p *places) put(at *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at.uses--
	if len(p.open) <= maxPlaces {
		return
	}
	for id, other := range p.open {
		if other.uses == 0 && !other.top {
			other.close()
			delete(p.open, id)
		}
	}
}

func (at *place) close() {
	if !at.top {
		_ = at.dir.Close()
		_ = at.root.Close()
	}
}

// close closes all; none may be in use.
func (p *places) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.open {
		at.close()
	}
	clear(p.open)
}

// openReal opens the folder at path below root, if no component of the path is
// a link. A Root would follow links that stay inside.
func openReal(root *os.Root, path string) (*os.Root, error) {
	at := root
	for len(path) > 0 {
		name, rest := path, ""
		for i := range len(path) {
			if path[i] == '/' {
				name, rest = path[:i], path[i+1:]
				break
			}
		}
		next, err := openStep(at, name)
		if at != root {
			_ = at.Close()
		}
		if err != nil {
			return nil, err
		}
		at, path = next, rest
	}
	if at == root {
		return root.OpenRoot(".")
	}
	return at, nil
}

var errLink = errors.New("there is a link in the way")

// openStep opens the folder name in at, and makes sure that what it opened is
// the folder that it looked at.
func openStep(at *os.Root, name string) (*os.Root, error) {
	before, err := at.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.IsDir() {
		return nil, errLink
	}
	next, err := at.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	after, err := next.Stat(".")
	if err != nil || !os.SameFile(before, after) {
		_ = next.Close()
		return nil, errLink
	}
	return next, nil
}

// maxNumber is how many names are tried for a file whose name is taken.
const maxNumber = 1000

var errNumbers = fmt.Errorf("its name is taken %d times over", maxNumber)

// place moves the file part to its name, or to the first numbered one that is
// free, and says which. Nothing is replaced.
func (at *place) place(part, name string) (string, error) {
	for n := range maxNumber {
		to := numbered(name, n)
		err := at.move(part, to)
		if err == nil {
			return to, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return "", errNumbers
}

// move renames, and fails with fs.ErrExist where the new name is taken. What
// the system cannot do in one step is a link and a removal; where there are no
// links, a look and a rename.
func (at *place) move(from, to string) error {
	err := renameNew(at.dir, from, to)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	err = at.root.Link(from, to)
	switch {
	case err == nil:
		return at.root.Remove(from)
	case errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, err := at.root.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return fs.ErrExist
	}
	return at.root.Rename(from, to)
}

// link makes a symbolic link, under the first name that is free; one that is
// there already and leads to the same is left.
func (at *place) link(target, name string) (string, error) {
	for n := range maxNumber {
		to := numbered(name, n)
		err := at.root.Symlink(target, to)
		if err == nil {
			return to, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", bareLink(err)
		}
		if there, err := at.root.Readlink(to); err == nil && there == target {
			return to, nil
		}
	}
	return "", errNumbers
}

func bareLink(err error) error {
	var link *os.LinkError
	if errors.As(err, &link) {
		return link.Err
	}
	return bare(err)
}

// Variables for one test, in which the system refuses them.
var (
	chmod     = (*os.File).Chmod
	chmodIn   = (*os.Root).Chmod
	chtimesIn = (*os.Root).Chtimes
)

// dress gives an open file the mode and time of its entry, the mode less what
// the user's umask takes away. Both are best effort: file systems without modes
// (vfat, SMB, the shared storage of Android) refuse to change them, and the file
// is none the worse.
func (d *Folder) dress(at *place, f *os.File, name string, e *entry) {
	_ = chmod(f, fs.FileMode(e.mode)&^d.umask)
	_ = chtimesIn(at.root, name, e.mtime(), e.mtime())
}

// dressFolder does the same for a folder.
func (d *Folder) dressFolder(at *place, name string, e *entry) {
	_ = chmodIn(at.root, name, fs.FileMode(e.mode)&^d.umask)
	_ = chtimesIn(at.root, name, e.mtime(), e.mtime())
}

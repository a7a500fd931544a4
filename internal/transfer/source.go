package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Source is something to send: made by [Path], [Stream] or [Blob].
type Source struct {
	path      string // on the disk
	recursive bool
	name      string
	size      int64
	mtime     time.Time
	stream    io.Reader
	open      func() (io.ReadCloser, error)
}

// Path is a file, or, if recursive, a folder with all it holds. The path may
// lead through links; links inside the folder are sent as links. It takes the
// name of its last component; "." and ".." are looked up.
func Path(path string, recursive bool) Source { return Source{path: path, recursive: recursive} }

// Stream is a file of unknown size, read from r until it ends. It can be sent
// once, not resumed.
func Stream(name string, r io.Reader) Source { return Source{name: name, size: -1, stream: r} }

// Blob is a file of that size and time, opened when its turn comes and in every
// attempt again. If what is opened is an [io.Seeker], a resumed attempt seeks.
func Blob(name string, size int64, mtime time.Time, open func() (io.ReadCloser, error)) Source {
	return Source{name: name, size: size, mtime: mtime, open: open}
}

// Errors of sources.
var (
	errChanged   = errors.New("it changed while it was sent")
	errShrank    = errors.New("it became shorter while it was sent")
	errGrew      = errors.New("it became longer while it was sent")
	errFolder    = errors.New("it is a folder, and only files were asked for")
	errKind      = errors.New("it is neither a file nor a folder")
	errConsumed  = errors.New("what was read from it is gone, so that it cannot be sent again")
	errNoName    = errors.New("it has no name that could be sent")
	errNothing   = errors.New("there is nothing to send")
	errFifo      = errors.New("it is a fifo")
	errSocket    = errors.New("it is a socket")
	errDevice    = errors.New("it is a device")
	errIrregular = errors.New("it is neither file, folder nor link")
)

// A listing is what the sources hold, found in one walk before an attempt.
type listing struct {
	entries []entry
	tops    map[int]*top // by the index of an entry at the top
	omitted []File
	failed  []File // what cannot even be offered
	bytes   int64
	streams int
	limits  Limits
	size    int // of the entries as they are sent
	paths   int // lengths of all paths
}

// A top is where an entry at the top, and what lies in it, is read from.
type top struct {
	source Source
	root   *os.Root // of a folder
}

func (l *listing) close() {
	for _, t := range l.tops {
		if t.root != nil {
			_ = t.root.Close()
		}
	}
}

// list walks the sources. An error means that one of them cannot be sent at
// all; what is wrong inside a folder is in failed and omitted.
func list(ctx context.Context, sources []Source, limits Limits) (*listing, error) {
	l := &listing{limits: limits.filled(), tops: make(map[int]*top)}
	for _, src := range sources {
		if err := l.addSource(ctx, src); err != nil {
			l.close()
			var limit *LimitError
			if errors.As(err, &limit) || ctx.Err() != nil {
				return nil, err
			}
			name := src.path
			if name == "" {
				name = src.name
			}
			return nil, &SourceError{Name: clean(name), Err: bare(err)}
		}
	}
	if len(l.entries) == 0 {
		l.close()
		return nil, &SourceError{Name: "nothing named", Err: errNothing}
	}
	return l, nil
}

// bare drops the operation and the path that package os puts before an error:
// whoever reads the error has named the path.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func (l *listing) addSource(ctx context.Context, src Source) error {
	if src.path == "" {
		if err := checkName(src.name); err != nil {
			return err
		}
		if src.stream != nil {
			l.streams++
			return l.add(entry{name: src.name, typ: typeStream, mode: 0o644, sec: time.Now().Unix(), parent: -1}, &top{source: src})
		}
		return l.add(entry{name: src.name, size: src.size, mode: 0o644, sec: src.mtime.Unix(), nsec: int32(src.mtime.Nanosecond()), parent: -1}, &top{source: src})
	}
	info, err := os.Stat(src.path)
	if err != nil {
		return err
	}
	name, err := nameOf(src.path)
	if err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	e := entryOf(name, info)
	switch {
	case info.Mode().IsRegular():
		// What cannot be opened now is better said before anybody is asked.
		f, err := os.Open(src.path)
		if err != nil {
			return err
		}
		_ = f.Close()
		return l.add(e, &top{source: src})
	case info.IsDir() && !src.recursive:
		return errFolder
	case !info.IsDir():
		return errKind
	}
	root, err := os.OpenRoot(src.path)
	if err != nil {
		return err
	}
	if err := l.add(e, &top{source: src, root: root}); err != nil {
		return err
	}
	return l.walk(ctx, root, len(l.entries)-1)
}

// nameOf is the name under which a path is sent.
func nameOf(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	name := filepath.Base(abs)
	if strings.ContainsAny(name, `/\`) || name == "." {
		return "", errNoName
	}
	return name, nil
}

func entryOf(name string, info fs.FileInfo) entry {
	e := entry{name: name, mode: uint16(info.Mode().Perm()), sec: info.ModTime().Unix(), nsec: int32(info.ModTime().Nanosecond()), parent: -1}
	switch {
	case info.IsDir():
		e.typ = typeFolder
	case info.Mode()&fs.ModeSymlink != 0:
		e.typ = typeLink
	default:
		e.size = info.Size()
	}
	return e
}

// add appends an entry; at is where it is read from, if it lies at the top.
func (l *listing) add(e entry, at *top) error {
	if at != nil {
		l.tops[len(l.entries)] = at
	}
	if err := measurePath(l.entries, &e, &l.paths); err != nil {
		return err
	}
	l.entries = append(l.entries, e)
	l.bytes += e.size
	l.size += len(e.name) + len(e.target) + 16
	return l.limits.check(len(l.entries), l.size, int(e.depth)+1)
}

// walk adds what lies in dir, which is entry parent, in the order of names:
// the same folder makes the same offer.
func (l *listing) walk(ctx context.Context, dir *os.Root, parent int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := l.names(dir)
	if err != nil {
		var limit *LimitError
		if errors.As(err, &limit) {
			return err
		}
		l.fail(parent, "", bare(err))
		return nil
	}
	depth := l.entries[parent].depth + 1
	for _, name := range names {
		info, err := dir.Lstat(name)
		if err != nil {
			l.fail(parent, name, bare(err))
			continue
		}
		if err := checkName(name); err != nil {
			l.fail(parent, name, err)
			continue
		}
		e := entryOf(name, info)
		e.parent, e.depth = int32(parent), depth
		if err := special(info.Mode()); err != nil {
			l.omitted = append(l.omitted, File{Name: l.path(parent, name), Type: info.Mode().Type(), Status: Omitted, Err: err})
			continue
		}
		if e.typ == typeLink {
			if e.target, err = dir.Readlink(name); err != nil {
				l.fail(parent, name, bare(err))
				continue
			}
			e.target = filepath.ToSlash(e.target)
			if len(e.target) > maxTarget {
				l.fail(parent, name, errTargetLong)
				continue
			}
		}
		if err := l.add(e, nil); err != nil {
			return err
		}
		if e.typ != typeFolder {
			continue
		}
		at := len(l.entries) - 1
		sub, err := dir.OpenRoot(name)
		if err != nil {
			l.fail(at, "", bare(err))
			continue
		}
		err = l.walk(ctx, sub, at)
		_ = sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// names lists a folder, in order. More than may be sent is an error before it
// takes memory.
func (l *listing) names(dir *os.Root) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var names []string
	for {
		some, err := f.Readdirnames(1024)
		names = append(names, some...)
		switch {
		case errors.Is(err, io.EOF):
			slices.Sort(names)
			return names, nil
		case err != nil:
			return nil, err
		}
		if err := l.limits.check(len(l.entries)+len(names), 0, 0); err != nil {
			return nil, err
		}
	}
}

func (l *listing) path(parent int, name string) string {
	path := pathOf(l.entries, parent)
	if name != "" {
		path += "/" + name
	}
	return clean(path)
}

// fail notes something in a folder that cannot be offered, or a folder whose
// content cannot be listed.
func (l *listing) fail(parent int, name string, err error) {
	l.failed = append(l.failed, File{Name: l.path(parent, name), Status: Failed, Err: err})
}

// special is an error for what is never sent.
func special(mode fs.FileMode) error {
	switch mode.Type() {
	case 0, fs.ModeDir, fs.ModeSymlink:
		return nil
	case fs.ModeNamedPipe:
		return errFifo
	case fs.ModeSocket:
		return errSocket
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return errDevice
	}
	return errIrregular
}

// A reader opens the files of a listing, one after the other. It keeps the
// folder of the last one open, for most files lie beside the one before.
type reader struct {
	list *listing
	at   int32 // the folder that dir is
	dir  *os.Root
}

func (r *reader) close() {
	if r.dir != nil {
		_ = r.dir.Close()
		r.dir = nil
	}
}

// An input is an open file of the sender.
type input struct {
	io.ReadCloser
	file *os.File // what can be asked whether it changed
	want *entry
}

// open opens entry i from its first byte, and makes sure that it is still what
// was listed.
func (r *reader) open(i int) (*input, error) {
	e := &r.list.entries[i]
	if e.parent < 0 {
		src := r.list.tops[i].source
		if src.open != nil {
			rc, err := src.open()
			return &input{ReadCloser: rc, want: e}, err
		}
		f, err := os.OpenFile(src.path, openFlags, 0)
		return opened(f, err, e)
	}
	if r.dir == nil || r.at != e.parent {
		r.close()
		dir, err := r.folder(int(e.parent))
		if err != nil {
			return nil, bare(err)
		}
		r.dir, r.at = dir, e.parent
	}
	f, err := r.dir.OpenFile(e.name, openFlags, 0)
	return opened(f, err, e)
}

// folder opens folder i below the root of its top.
func (r *reader) folder(i int) (*os.Root, error) {
	path := pathOf(r.list.entries, i)
	at := i
	for r.list.entries[at].parent >= 0 {
		at = int(r.list.entries[at].parent)
	}
	rel, inside := strings.CutPrefix(path, r.list.entries[at].name+"/")
	if !inside {
		rel = "."
	}
	return r.list.tops[at].root.OpenRoot(rel)
}

func opened(f *os.File, err error, e *entry) (*input, error) {
	if err != nil {
		return nil, bare(err)
	}
	in := &input{ReadCloser: f, file: f, want: e}
	if err := in.unchanged(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return in, nil
}

// unchanged is an error if the file is no longer what was offered.
func (in *input) unchanged() error {
	if in.file == nil {
		return nil
	}
	info, err := in.file.Stat()
	switch {
	case err != nil:
		return bare(err)
	case !info.Mode().IsRegular():
		return errChanged
	case info.Size() < in.want.size:
		return errShrank
	case info.Size() > in.want.size:
		return errGrew
	case !info.ModTime().Equal(in.want.mtime()):
		return errChanged
	}
	return nil
}

// skip moves to an offset.
func (in *input) skip(offset int64) error {
	if offset == 0 {
		return nil
	}
	if s, ok := in.ReadCloser.(io.Seeker); ok {
		_, err := s.Seek(offset, io.SeekStart)
		return bare(err)
	}
	n, err := io.CopyN(io.Discard, in, offset)
	if n < offset && errors.Is(err, io.EOF) {
		return errShrank
	}
	return bare(err)
}

// unreadable says that reading failed, in a way that a person understands.
func unreadable(err error) error { return fmt.Errorf("it cannot be read: %w", bare(err)) }

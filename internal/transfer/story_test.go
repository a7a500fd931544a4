package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// receiver is one that accepts everything into dir.
func receiver(t testing.TB, dir string) *transfer.Receiver {
	return &transfer.Receiver{From: "romeo@example.org", Folder: folder(t, dir), Accept: accept}
}

// TestNamesOfTheWorld: names in ten scripts arrive as they are.
func TestNamesOfTheWorld(t *testing.T) {
	to := t.TempDir()
	var sources []transfer.Source
	want := make(map[string]string)
	for _, name := range goodNames {
		sources = append(sources, blob(name, "content of "+name))
		want[name] = "-rw-r--r-- content of " + name
	}
	run(t, &transfer.Sender{}, receiver(t, to), nil, sources...).ok(t)
	same(t, tree(t, to), want)
}

// TestOffered: whoever is asked sees names, count, size and room, and nothing
// is written before the answer.
func TestOffered(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, "12345", from, "docs", "a")
	write(t, "123", from, "docs", "sub", "b")
	if err := os.Symlink("a", filepath.Join(from, "docs", "l")); err != nil {
		t.Fatal(err)
	}
	var offer *transfer.Offer
	r := receiver(t, to)
	r.Accept = func(_ context.Context, o *transfer.Offer) error {
		offer = o
		same(t, tree(t, to), nil)
		return errors.New("a secret reason")
	}
	var listed *transfer.Offer
	o := run(t, &transfer.Sender{Listed: func(o *transfer.Offer) { listed = o }}, r, nil, transfer.Path(filepath.Join(from, "docs"), true), blob("c", "1"), transfer.Stream("s", strings.NewReader("")))
	if offer.From != "romeo@example.org" || offer.Files != 4 || offer.Folders != 2 || offer.Links != 1 || offer.Bytes != 9 || offer.Streams != 1 || offer.Refused != 0 || offer.Present != 0 || offer.Room <= 0 || strings.Join(offer.Names, " ") != "docs c s" {
		t.Errorf("the offer is %+v", offer)
	}
	if listed.Files != 4 || listed.Bytes != 9 {
		t.Errorf("listed is %+v", listed)
	}
	var refused *transfer.RefusedError
	if !errors.As(o.sendErr, &refused) || !refused.Declined() || refused.Reason != "" || o.receiveErr.Error() != "a secret reason" {
		t.Errorf("send: %v, receive: %v", o.sendErr, o.receiveErr)
	}
	same(t, tree(t, to), nil)
}

// TestNoRoom: what does not fit is refused before anybody is asked; what is
// there already does not count.
func TestNoRoom(t *testing.T) {
	to := t.TempDir()
	content := strings.Repeat("x", 10_000)
	r := receiver(t, to)
	r.Folder.SetRoom(func() int64 { return 9_999 })
	r.Accept = func(context.Context, *transfer.Offer) error { t.Error("somebody was asked"); return nil }
	o := run(t, &transfer.Sender{}, r, nil, blob("f", content))
	var refused *transfer.RefusedError
	if !errors.As(o.sendErr, &refused) || refused.Declined() || !errors.Is(o.sendErr, transfer.ErrDiskFull) || !strings.Contains(o.sendErr.Error(), "10000 bytes are needed and 9999 are free") || !errors.Is(o.receiveErr, transfer.ErrDiskFull) {
		t.Errorf("send: %v, receive: %v", o.sendErr, o.receiveErr)
	}
	same(t, tree(t, to), nil)
	write(t, content, to, "f")
	r.Accept = accept
	run(t, &transfer.Sender{}, r, nil, blob("f", content)).ok(t)
	same(t, tree(t, to), map[string]string{"f": "-rw-r--r-- " + content})
}

// TestDiskFull: the part stays, the sender hears why, and the next attempt
// goes on from there.
func TestDiskFull(t *testing.T) {
	for _, size := range []int{100_000, 1_000_000} {
		to := t.TempDir()
		content := strings.Repeat("x", size)
		r := receiver(t, to)
		left := size / 2
		r.Folder.SetFault(func(name string, n int) error {
			if name != "f.part" {
				return nil
			}
			if left -= n; left < 0 {
				return &os.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
			}
			return nil
		})
		synctest.Test(t, func(t *testing.T) {
			o := run(t, &transfer.Sender{}, r, nil, blob("f", content), blob("g", content))
			var peer *transfer.PeerError
			if !errors.As(o.sendErr, &peer) || !errors.Is(o.sendErr, transfer.ErrDiskFull) || !strings.Contains(o.sendErr.Error(), "the disk is full: f") || !errors.Is(o.receiveErr, transfer.ErrDiskFull) {
				t.Errorf("send: %v, receive: %v", o.sendErr, o.receiveErr)
			}
			if _, ok := tree(t, to)["f.part"]; !ok {
				t.Errorf("the part is gone: %d files", len(tree(t, to)))
			}
			r.Folder.SetFault(nil)
			o = run(t, &transfer.Sender{}, r, nil, blob("f", content), blob("g", content)).ok(t)
			if size > 500_000 && o.sent.Resumed == 0 {
				t.Error("nothing was resumed")
			}
		})
		same(t, tree(t, to), map[string]string{"f": "-rw-r--r-- " + content, "g": "-rw-r--r-- " + content})
	}
}

// TestClash: what is there is never replaced. What is the same is not sent
// again, under a numbered name either.
func TestClash(t *testing.T) {
	to := t.TempDir()
	write(t, "mine", to, "a.txt")
	write(t, "mine, but longer", to, "b.txt")
	write(t, "data", to, "same.txt")
	write(t, "a file", to, "dir")
	r := receiver(t, to)
	from := t.TempDir()
	write(t, "theirs", from, "dir", "x")
	for range 2 {
		o := run(t, &transfer.Sender{}, r, nil, blob("a.txt", "data"), blob("b.txt", "data"), blob("same.txt", "data"), transfer.Path(filepath.Join(from, "dir"), true)).ok(t)
		same(t, tree(t, to), map[string]string{
			"a.txt": "-rw-r--r-- mine", "a (1).txt": "-rw-r--r-- data", "b.txt": "-rw-r--r-- mine, but longer", "b (1).txt": "-rw-r--r-- data", "same.txt": "-rw-r--r-- data",
			"dir": "-rw-r--r-- a file", "dir (1)": "drwxr-xr-x", "dir (1)/x": "-rw-r--r-- theirs",
		})
		if o.sent.Present < 1 {
			t.Errorf("%d were present, want at least 1", o.sent.Present)
		}
	}
}

// TestForeignParts: a file that only looks like a part of ours is somebody's.
func TestForeignParts(t *testing.T) {
	to := t.TempDir()
	write(t, "my novel, part", to, "f.part")
	write(t, "another", to, "f.1.part")
	content := strings.Repeat("x", 200_000)
	r := receiver(t, to)
	o := run(t, &transfer.Sender{}, r, func(a, b *end) { a.cutAfter(150_000) }, blob("f", content))
	if o.sendErr == nil {
		t.Fatal("not cut")
	}
	run(t, &transfer.Sender{}, r, nil, blob("f", content), blob("f.part", "data")).ok(t)
	same(t, tree(t, to), map[string]string{"f.part": "-rw-r--r-- my novel, part", "f.1.part": "-rw-r--r-- another", "f": "-rw-r--r-- " + content, "f (1).part": "-rw-r--r-- data"})
}

// TestPartOfAnother: a part is resumed for the same sender, size and time
// only, and only if its bytes are the same.
func TestPartOfAnother(t *testing.T) {
	content := strings.Repeat("0123456789", 60_000)
	at := func(mtime time.Time, content string) transfer.Source {
		return transfer.Blob("f", int64(len(content)), mtime, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil })
	}
	for _, c := range []struct {
		name    string
		from    string
		source  transfer.Source
		spoil   bool
		content string
		resumes bool
		part    bool // the old part is still there afterwards
	}{
		{"the same", "romeo@example.org", at(epoch, content), false, content, true, false},
		{"another sender", "mallory@example.org", at(epoch, content), false, content, false, true},
		{"another time", "romeo@example.org", at(epoch.Add(1), content), false, content, false, false},
		{"another size", "romeo@example.org", at(epoch, content+"!"), false, content + "!", false, false},
		{"another content", "romeo@example.org", at(epoch, strings.ToUpper("x"+content[1:])), false, "X" + content[1:], false, false},
		{"a spoilt part", "romeo@example.org", at(epoch, content), true, content, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := t.TempDir()
			r := receiver(t, to)
			if o := run(t, &transfer.Sender{}, r, func(a, b *end) { a.cutAfter(400_000) }, at(epoch, content)); o.sendErr == nil {
				t.Fatal("not cut")
			}
			if c.spoil {
				f, err := os.OpenFile(filepath.Join(to, "f.part"), os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt([]byte("?"), 777); err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			r.From = c.from
			o := run(t, &transfer.Sender{}, r, nil, c.source).ok(t)
			if (o.sent.Resumed > 0) != c.resumes || o.received.Resumed != o.sent.Resumed || o.sent.SHA256 != o.received.SHA256 || o.sent.SHA256 == "" {
				t.Errorf("resumed %d and %d bytes, hashes %s and %s", o.sent.Resumed, o.received.Resumed, o.sent.SHA256, o.received.SHA256)
			}
			got := tree(t, to)
			if got["f"] != "-rw-r--r-- "+c.content {
				t.Errorf("f is %.60q", got["f"])
			}
			if _, there := got["f.part"]; there != c.part || !c.part && len(got) != 1 {
				t.Errorf("afterwards there are %d files, the part %t", len(got), there)
			}
		})
	}
}

// TestChangingSources: a file that is not what it was fails by name, and is
// never padded; the others arrive.
func TestChangingSources(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	size := int64(1 << 20)
	broken := errors.New("input/output error")
	reader := func(n int64, err error) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) {
			r := io.MultiReader(bytes.NewReader(make([]byte, n)), &failingReader{err})
			return io.NopCloser(r), nil
		}
	}
	for _, name := range []string{"grows", "shrinks", "touched", "gone", "folder"} {
		write(t, strings.Repeat("x", 1000), from, "d", name)
	}
	write(t, "fine", from, "d", "zzz")
	path := func(name string) string { return filepath.Join(from, "d", name) }
	var failed []string
	s := &transfer.Sender{
		Report: func(f transfer.File) {
			if f.Status == transfer.Failed {
				failed = append(failed, fmt.Sprintf("%s: %v", f.Name, f.Err))
			}
		},
		// After listing, before sending.
		Listed: func(*transfer.Offer) {
			write(t, strings.Repeat("x", 1001), path("grows"))
			write(t, strings.Repeat("x", 999), path("shrinks"))
			if err := errors.Join(os.Chtimes(path("touched"), epoch, epoch), os.Remove(path("gone")), os.Remove(path("folder")), os.Mkdir(path("folder"), 0o700)); err != nil {
				t.Error(err)
			}
		},
	}
	o := run(t, s, receiver(t, to), nil,
		transfer.Blob("short", size, epoch, reader(size-1, io.EOF)),
		transfer.Blob("broken", size, epoch, reader(size/2, broken)),
		transfer.Blob("closed", size, epoch, func() (io.ReadCloser, error) { return nil, os.ErrPermission }),
		transfer.Path(filepath.Join(from, "d"), true), blob("last", "fine"))
	want := []string{
		"short: it became shorter while it was sent", "broken: it cannot be read: input/output error", "closed: permission denied",
		"d/folder: it changed while it was sent", "d/gone: no such file or directory", "d/grows: it became longer while it was sent", "d/shrinks: it became shorter while it was sent", "d/touched: it changed while it was sent",
	}
	var partial *transfer.PartialError
	if !errors.As(o.sendErr, &partial) || len(partial.Failed) != len(want) || !errors.As(o.receiveErr, &partial) || len(partial.Failed) != len(want) {
		t.Fatalf("send: %v, receive: %v", o.sendErr, o.receiveErr)
	}
	if strings.Join(failed, "\n") != strings.Join(want, "\n") {
		t.Errorf("failed:\n%s\nwant:\n%s", strings.Join(failed, "\n"), strings.Join(want, "\n"))
	}
	got := tree(t, to)
	if part := got["broken.part"]; len(part) != len("-rw------- ")+int(size/2) {
		t.Errorf("of the broken file %d bytes are kept", len(part))
	}
	for name := range got {
		if strings.HasPrefix(name, transfer.JournalPrefix) || name == "broken.part" {
			delete(got, name)
		}
	}
	same(t, got, map[string]string{"d": "drwxr-xr-x", "d/zzz": "-rw-r--r-- fine", "last": "-rw-r--r-- fine"})
}

type failingReader struct{ err error }

func (f *failingReader) Read([]byte) (int, error) { return 0, f.err }

// TestUnwritable: a file that the receiver cannot store fails by name, the
// sender stops sending it, and the others arrive.
func TestUnwritable(t *testing.T) {
	to := t.TempDir()
	r := receiver(t, to)
	written := 0
	r.Folder.SetFault(func(name string, n int) error {
		if name == "bad.part" {
			written += n
			return &os.PathError{Op: "write", Path: name, Err: syscall.EFBIG}
		}
		return nil
	})
	o := run(t, &transfer.Sender{}, r, nil, blob("bad", strings.Repeat("x", 50<<20)), blob("good", "data"))
	var partial *transfer.PartialError
	if !errors.As(o.sendErr, &partial) || !strings.Contains(o.sendErr.Error(), "bad: not stored there: file too large") || !errors.As(o.receiveErr, &partial) {
		t.Fatalf("send: %v, receive: %v", o.sendErr, o.receiveErr)
	}
	if got := tree(t, to)["good"]; got != "-rw-r--r-- data" || o.sent.Files != 1 {
		t.Errorf("good is %q", got)
	}
}

// TestOutput: one file goes to a pipe, and nothing else does.
func TestOutput(t *testing.T) {
	var out bytes.Buffer
	content := strings.Repeat("piped ", 100_000)
	o := run(t, &transfer.Sender{}, &transfer.Receiver{Output: &out, Accept: accept}, nil, transfer.Stream("stdin", strings.NewReader(content))).ok(t)
	if out.String() != content || o.received.SHA256 != o.sent.SHA256 || o.received.Bytes != int64(len(content)) {
		t.Errorf("%d bytes arrived, %+v", out.Len(), o.received)
	}
	out.Reset()
	o = run(t, &transfer.Sender{}, &transfer.Receiver{Output: &out, Accept: accept}, nil, blob("a", "1"), blob("b", "2"))
	var refused *transfer.RefusedError
	if !errors.As(o.sendErr, &refused) || refused.Declined() || out.Len() != 0 {
		t.Errorf("two files to a pipe: %v", o.sendErr)
	}
	o = run(t, &transfer.Sender{}, &transfer.Receiver{Output: brokenPipe{}, Accept: accept}, nil, blob("a", "1"))
	if o.sendErr == nil || o.receiveErr == nil || !strings.Contains(o.sendErr.Error(), "broken pipe") {
		t.Errorf("a broken pipe: %v, %v", o.sendErr, o.receiveErr)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// TestStreamToFolder: a stream becomes a file, and is complete only when it
// has ended.
func TestStreamToFolder(t *testing.T) {
	to := t.TempDir()
	r := receiver(t, to)
	content := strings.Repeat("streamed ", 50_000)
	o := run(t, &transfer.Sender{}, r, nil, transfer.Stream("log", strings.NewReader(content)), transfer.Stream("empty", strings.NewReader(""))).ok(t)
	same(t, tree(t, to), map[string]string{"log": "-rw-r--r-- " + content, "empty": "-rw-r--r-- "})
	if o.sent.Bytes != int64(len(content)) || o.sent.Files != 2 {
		t.Errorf("sent %+v", o.sent)
	}
	for range 2 {
		o = run(t, &transfer.Sender{}, r, func(a, b *end) { a.cutAfter(100_000) }, transfer.Stream("cut", strings.NewReader(content)))
		if !errors.Is(o.receiveErr, transfer.ErrCut) {
			t.Fatalf("receive: %v", o.receiveErr)
		}
	}
	got := tree(t, to)
	if _, ok := got["cut"]; ok || got["cut.part"] == "" || len(got) != 4 {
		t.Errorf("after the cut there are %d files", len(got))
	}
}

// TestSources: what cannot be sent is said before anything is dialed.
func TestSources(t *testing.T) {
	dir := t.TempDir()
	s := &transfer.Sender{Dial: func(context.Context) (io.ReadWriteCloser, error) {
		t.Error("dialed")
		return nil, io.EOF
	}}
	for _, c := range []struct {
		source transfer.Source
		want   string
	}{
		{transfer.Path(dir, false), "it is a folder, and only files were asked for"},
		{transfer.Path(filepath.Join(dir, "none"), true), "no such file or directory"},
		{transfer.Path("/", true), "it has no name that could be sent"},
		{transfer.Path(os.DevNull, true), "it is neither a file nor a folder"},
		{transfer.Stream("a/b", nil), "a name with a slash"},
		{blob("NUL", ""), "a device on Windows"},
	} {
		result, err := s.Send(t.Context(), c.source)
		var source *transfer.SourceError
		if !errors.As(err, &source) || !strings.Contains(err.Error(), c.want) || result == nil {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	if _, err := s.Send(t.Context()); err == nil {
		t.Error("nothing was sent without an error")
	}
	for i := range 50 {
		write(t, "", dir, "many", fmt.Sprint(i))
	}
	s.Limits = transfer.Limits{Entries: 40}
	var limit *transfer.LimitError
	if _, err := s.Send(t.Context(), transfer.Path(dir, true)); !errors.As(err, &limit) {
		t.Errorf("too many: %v", err)
	}
	deep := dir
	for range 70 {
		deep = filepath.Join(deep, "d")
	}
	write(t, "", deep, "f")
	s.Limits = transfer.Limits{}
	if _, err := s.Send(t.Context(), transfer.Path(dir, true)); !errors.As(err, &limit) {
		t.Errorf("too deep: %v", err)
	}
}

// TestTenThousandFiles: many small files take no round trip each, and hardly
// any memory.
func TestTenThousandFiles(t *testing.T) {
	to := t.TempDir()
	var sources []transfer.Source
	for i := range 10_000 {
		sources = append(sources, blob(fmt.Sprintf("f%05d", i), fmt.Sprintf("content of %d", i)))
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	o := run(t, &transfer.Sender{}, receiver(t, to), nil, sources...).ok(t)
	runtime.ReadMemStats(&after)
	if o.received.Files != 10_000 {
		t.Errorf("%d files arrived", o.received.Files)
	}
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 48<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	entries, err := os.ReadDir(to)
	if err != nil || len(entries) != 10_000 {
		t.Fatalf("%d files lie there: %v", len(entries), err)
	}
	for _, i := range []int{0, 1, 4999, 9999} {
		b, err := os.ReadFile(filepath.Join(to, fmt.Sprintf("f%05d", i)))
		if err != nil || string(b) != fmt.Sprintf("content of %d", i) {
			t.Errorf("file %d is %q: %v", i, b, err)
		}
	}
}

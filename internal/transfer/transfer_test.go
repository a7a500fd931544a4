package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// accept accepts everything.
func accept(context.Context, *transfer.Offer) error { return nil }

// An outcome is what both ends say of a transfer.
type outcome struct {
	sent, received *transfer.Result
	sendErr        error
	receiveErr     error
}

// run lets s send to r. wire, if set, may prepare the two ends.
func run(t testing.TB, s *transfer.Sender, r *transfer.Receiver, wire func(sender, receiver *end), sources ...transfer.Source) outcome {
	t.Helper()
	var o outcome
	done := make(chan struct{})
	s.Dial = func(context.Context) (io.ReadWriteCloser, error) {
		a, b := pipe()
		if wire != nil {
			wire(a, b)
		}
		// Owned by run, which waits for done.
		go func() {
			defer close(done)
			o.received, o.receiveErr = r.Receive(context.Background(), b)
		}()
		return a, nil
	}
	o.sent, o.sendErr = s.Send(context.Background(), sources...)
	<-done
	return o
}

func (o outcome) ok(t testing.TB) outcome {
	t.Helper()
	if o.sendErr != nil || o.receiveErr != nil {
		t.Fatalf("send: %v, receive: %v; want no errors", o.sendErr, o.receiveErr)
	}
	return o
}

// folder opens a new folder to receive into.
func folder(t testing.TB, dir string) *transfer.Folder {
	t.Helper()
	f, err := transfer.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// write makes a file, with the folders around it.
func write(t testing.TB, content string, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// tree lists what lies in dir: paths, modes, and content or target, but not
// the times.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += " " + string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " -> " + to
		}
		found[rel] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func same(t testing.TB, got, want map[string]string) {
	t.Helper()
	for path, w := range want {
		if g, ok := got[path]; !ok {
			t.Errorf("%s is missing", path)
		} else if g != w {
			t.Errorf("%s is %.80q, want %.80q", path, g, w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s should not be there", path)
		}
	}
}

func TestFolder(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, "one", from, "photos", "a.txt")
	write(t, "", from, "photos", "empty")
	write(t, "deep", from, "photos", "x", "y", "z", "deep.txt")
	os.Chmod(filepath.Join(from, "photos", "a.txt"), 0o640)
	os.Mkdir(filepath.Join(from, "photos", "bare"), 0o750)
	os.Symlink("x/y", filepath.Join(from, "photos", "link"))
	for i := range 300 {
		write(t, fmt.Sprintf("content of %d", i), from, "photos", "many", fmt.Sprintf("%d.dat", i))
	}
	f := folder(t, to)
	o := run(t, &transfer.Sender{}, &transfer.Receiver{From: "romeo@example.org", Folder: f, Accept: accept}, nil, transfer.Path(filepath.Join(from, "photos"), true)).ok(t)
	same(t, tree(t, to), tree(t, from))
	if o.sent.Files != 303 || o.received.Files != 303 {
		t.Errorf("sent %d and received %d files, want 303", o.sent.Files, o.received.Files)
	}
	o = run(t, &transfer.Sender{}, &transfer.Receiver{From: "romeo@example.org", Folder: f, Accept: accept}, nil, transfer.Path(filepath.Join(from, "photos"), true)).ok(t)
	same(t, tree(t, to), tree(t, from))
	if o.sent.Present != 303 || o.sent.Resumed != o.sent.Bytes {
		t.Errorf("the second time %d were there and %d of %d bytes, want 303 and all", o.sent.Present, o.sent.Resumed, o.sent.Bytes)
	}
}

// TestCutAnywhere cuts the stream after every so many bytes, of the sender and
// of the receiver. What arrived is kept and not sent again, and never lies
// under a name before it is whole.
func TestCutAnywhere(t *testing.T) {
	from := t.TempDir()
	const large = 300_000
	write(t, "the first one", from, "set", "a.txt")
	write(t, strings.Repeat("x", large), from, "set", "big.bin")
	write(t, "", from, "set", "empty")
	write(t, "last", from, "set", "sub", "z.txt")
	want := tree(t, from)
	source := transfer.Path(filepath.Join(from, "set"), true)
	try := func(at int64, cut func(a, b *end)) (resumed int64, whole bool) {
		to := t.TempDir()
		r := receiver(t, to)
		o := run(t, &transfer.Sender{}, r, cut, source)
		if o.sendErr == nil && o.receiveErr == nil {
			return 0, true
		}
		for _, err := range []error{o.sendErr, o.receiveErr} {
			// The end that said the last word may not notice a cut behind it.
			if err != nil && !errors.Is(err, transfer.ErrCut) {
				t.Fatalf("cut after %d: send says %v, receive %v; want ErrCut", at, o.sendErr, o.receiveErr)
			}
		}
		arrived := int64(0)
		for path, what := range tree(t, to) {
			if w := want[path]; filepath.Ext(path) != ".part" && path[0] != '.' && what[0] == '-' && w != what {
				t.Fatalf("cut after %d: %s is %.60q", at, path, what)
			}
			if what[0] == '-' && path[0] != '.' {
				arrived += int64(len(what) - len("-rw-r--r-- "))
			}
		}
		o = run(t, &transfer.Sender{}, r, nil, source).ok(t)
		same(t, tree(t, to), want)
		if o.sent.Resumed != arrived || o.received.Resumed != arrived {
			t.Fatalf("cut after %d: %d bytes had arrived, and the ends resumed %d and %d", at, arrived, o.sent.Resumed, o.received.Resumed)
		}
		return arrived, false
	}
	cuts, resumed := 0, 0
	for at := int64(0); ; at += 1 + at/9 {
		n, whole := try(at, func(a, b *end) { a.cutAfter(at) })
		if whole {
			break
		}
		cuts++
		if n > 0 {
			resumed++
		}
	}
	if cuts < 60 || resumed < 10 {
		t.Errorf("%d cuts, %d resumed: too few to say anything", cuts, resumed)
	}
	cuts = 0
	for at := int64(0); at < 1000; at++ {
		if _, whole := try(at, func(a, b *end) { b.cutAfter(at) }); whole {
			break
		}
		cuts++
	}
	if cuts < 40 {
		t.Errorf("%d cuts of the receiver's words: too few to say anything", cuts)
	}
}

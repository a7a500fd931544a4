package transfer_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

func symlink(t testing.TB, target string, path ...string) {
	t.Helper()
	if err := os.Symlink(target, filepath.Join(path...)); err != nil {
		t.Fatal(err)
	}
}

// TestLinks: links stay links. Those that lead out of their folder are refused
// by name, and what they lead to is never sent.
func TestLinks(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, "secret", from, "outside", "secret.txt")
	write(t, "inside", from, "f", "sub", "a.txt")
	symlink(t, "sub/a.txt", from, "f", "file")
	symlink(t, "sub", from, "f", "folder")
	symlink(t, "../f/../outside", from, "f", "out")
	symlink(t, "../../outside/secret.txt", from, "f", "sub", "out")
	symlink(t, "../file", from, "f", "sub", "up")
	symlink(t, filepath.Join(from, "outside"), from, "f", "absolute")
	symlink(t, "nowhere", from, "f", "dangling")
	symlink(t, "self", from, "f", "self")
	r := receiver(t, to)
	want := map[string]string{
		"f": "drwxr-xr-x", "f/sub": "drwxr-xr-x", "f/sub/a.txt": "-rw-r--r-- inside", "f/file": "Lrwxrwxrwx -> sub/a.txt", "f/folder": "Lrwxrwxrwx -> sub",
		"f/sub/up": "Lrwxrwxrwx -> ../file", "f/dangling": "Lrwxrwxrwx -> nowhere", "f/self": "Lrwxrwxrwx -> self",
	}
	for range 2 {
		o := run(t, &transfer.Sender{}, r, nil, transfer.Path(filepath.Join(from, "f"), true))
		var partial *transfer.PartialError
		if !errors.As(o.sendErr, &partial) {
			t.Fatalf("send: %v", o.sendErr)
		}
		var names []string
		for _, f := range partial.Failed {
			names = append(names, f.Name)
		}
		if got := strings.Join(names, " "); got != "f/absolute f/out f/sub/out" {
			t.Errorf("failed: %s", got)
		}
		same(t, tree(t, to), want)
	}
	// A link that was named is followed: whoever names it means what it leads to.
	symlink(t, "f", from, "named")
	to = t.TempDir()
	o := run(t, &transfer.Sender{}, receiver(t, to), nil, transfer.Path(filepath.Join(from, "named"), true), transfer.Path(filepath.Join(from, "f", "file"), false))
	got := tree(t, to)
	if o.received.Files != 2 || got["named/sub/a.txt"] != "-rw-r--r-- inside" || got["file"] != "-rw-r--r-- inside" {
		t.Errorf("there is %v", got)
	}
}

// TestLinksInTheWay: a link that lies where something is received is left
// alone, and nothing is written through it.
func TestLinksInTheWay(t *testing.T) {
	from, to, outside := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, "data", from, "d", "sub", "a")
	symlink(t, outside, to, "d")
	write(t, "", to, "other", "keep")
	symlink(t, "other", to, "e")
	symlink(t, filepath.Join(outside, "x"), to, "file")
	symlink(t, "other/keep", to, "near")
	symlink(t, filepath.Join(outside, "y"), to, "new.part")
	write(t, "data", from, "e", "b")
	run(t, &transfer.Sender{}, receiver(t, to), nil, transfer.Path(filepath.Join(from, "d"), true), transfer.Path(filepath.Join(from, "e"), true), blob("file", "data"), blob("near", ""), blob("new", "data")).ok(t)
	same(t, tree(t, outside), nil)
	got := tree(t, to)
	for name := range got {
		if strings.HasPrefix(got[name], "L") {
			delete(got, name)
		}
	}
	same(t, got, map[string]string{
		"d (1)": "drwxr-xr-x", "d (1)/sub": "drwxr-xr-x", "d (1)/sub/a": "-rw-r--r-- data", "other": "drwxr-xr-x", "other/keep": "-rw-r--r-- ", "e (1)": "drwxr-xr-x", "e (1)/b": "-rw-r--r-- data",
		"file (1)": "-rw-r--r-- data", "near (1)": "-rw-r--r-- ", "new": "-rw-r--r-- data",
	})
}

// TestLinksLast: a sender that offers a link and a file behind it gets no
// further: as a folder the link is none, and it is made when all files are.
func TestLinksLast(t *testing.T) {
	to := t.TempDir()
	write(t, "mine", to, "d", "sub", "a")
	symlink(t, "sub", to, "d", "old")
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		done := receive(receiver(t, to), b)
		peer := raw{t, a}
		peer.send(transfer.RawHello(), offerOf(2,
			transfer.RawEntry(1, -1, "d", "", 0, epoch),
			transfer.RawEntry(2, 0, "l", "sub", 0, epoch),
			transfer.RawEntry(1, 0, "L", "", 0, epoch), // equal to the link but for case
			transfer.RawEntry(0, 2, "a", "", 1, epoch),
			transfer.RawEntry(1, 0, "old", "", 0, epoch), // a link that was there
			transfer.RawEntry(0, 4, "a", "", 1, epoch)))
		peer.want("hyrrg")
		peer.send(transfer.RawNumbers('f', 5, 0), transfer.RawFrame('d', []byte("x")), rawEnd("x"), transfer.RawNumbers('q'))
		if said := peer.rest(); said != "rc" {
			t.Errorf("got %q", said)
		}
		_ = a.Close()
		if err := <-done; err == nil {
			t.Error("no error")
		}
	})
	same(t, tree(t, to), map[string]string{
		"d": "drwxr-xr-x", "d/sub": "drwxr-xr-x", "d/sub/a": "-rw-r--r-- mine", "d/l": "Lrwxrwxrwx -> sub", "d/old": "Lrwxrwxrwx -> sub",
		"d/old (1)": "drwxr-xr-x", "d/old (1)/a": "-rw-r--r-- x",
	})
}

// TestModesAndTimes: those of files and folders are kept, without setuid; a
// folder that was there keeps its own.
func TestModesAndTimes(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	past := time.Date(2001, 2, 3, 4, 5, 6, 789_000_000, time.UTC)
	modes := map[string]os.FileMode{"d": 0o751, "d/ro": 0o555, "d/ro/script": 0o755, "d/ro/readonly": 0o444, "d/private": 0o600, "d/setuid": 0o4755 &^ 0o7000}
	for path := range modes {
		if path != "d" && path != "d/ro" {
			write(t, strings.Repeat(path, 100), from, path)
		}
	}
	write(t, strings.Repeat("large", 100_000), from, "d", "large")
	modes["d/large"] = 0o640
	for _, path := range []string{"d/ro/script", "d/ro/readonly", "d/private", "d/setuid", "d/large", "d/ro", "d"} {
		name, mode := filepath.Join(from, path), modes[path]
		if path == "d/setuid" {
			mode |= os.ModeSetuid | os.ModeSetgid | os.ModeSticky
		}
		if err := errors.Join(os.Chmod(name, mode), os.Chtimes(name, past, past)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(path string, mode os.FileMode) {
		info, err := os.Lstat(filepath.Join(to, path))
		if err != nil {
			t.Error(err)
			return
		}
		if got := info.Mode() &^ os.ModeDir; got != mode || !info.ModTime().Equal(past) {
			t.Errorf("%s has mode %v and time %v, want %v and %v", path, got, info.ModTime(), mode, past)
		}
	}
	r := receiver(t, to)
	t.Cleanup(func() {
		_ = os.Chmod(filepath.Join(from, "d/ro"), 0o755)
		_ = os.Chmod(filepath.Join(to, "d/ro"), 0o755)
	})
	for range 2 {
		run(t, &transfer.Sender{}, r, nil, transfer.Path(filepath.Join(from, "d"), true)).ok(t)
		for path, mode := range modes {
			check(path, mode)
		}
	}
	if err := os.Chmod(filepath.Join(to, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, &transfer.Sender{}, r, nil, transfer.Path(filepath.Join(from, "d"), true)).ok(t)
	check("d", 0o700)
}

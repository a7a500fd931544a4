package transfer_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// TestRefusedModes: where the system refuses modes and times, as on vfat, files
// and folders are stored without.
func TestRefusedModes(t *testing.T) {
	for _, refused := range []error{syscall.EPERM, syscall.EINVAL, syscall.ENOSYS} {
		from, to := t.TempDir(), t.TempDir()
		write(t, "x", from, "d", "f")
		restore := transfer.RefuseModes(refused)
		run(t, &transfer.Sender{}, receiver(t, to), nil, transfer.Path(filepath.Join(from, "d"), true)).ok(t)
		restore()
		if b, err := os.ReadFile(filepath.Join(to, "d", "f")); string(b) != "x" {
			t.Errorf("after %v there is %q, %v", refused, b, err)
		}
		if left, err := os.ReadDir(to); err != nil || len(left) != 1 {
			t.Errorf("after %v there are %v, %v", refused, left, err)
		}
	}
}

// TestMask: a received file gets no right that one made here would not get.
func TestMask(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	file, dir := write(t, "x", from, "d", "f"), filepath.Join(from, "d")
	for _, path := range []string{file, dir} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	modeOf := func(path ...string) os.FileMode {
		info, err := os.Stat(filepath.Join(path...))
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	if err := os.WriteFile(filepath.Join(to, "own"), nil, 0o777); err != nil {
		t.Fatal(err)
	}
	run(t, &transfer.Sender{}, receiver(t, to), nil, transfer.Path(file, false)).ok(t)
	if got, want := modeOf(to, "f"), modeOf(to, "own"); got != want {
		t.Errorf("a file has the mode %v, and one made here %v", got, want)
	}
	d := folder(t, to)
	d.SetMask(0o077)
	run(t, &transfer.Sender{}, &transfer.Receiver{From: "m@x", Folder: d, Accept: accept}, nil, transfer.Path(dir, true)).ok(t)
	for _, path := range []string{"d", "d/f"} {
		if got, want := modeOf(to, path), modeOf(from, path)&^0o077; got != want {
			t.Errorf("%s has the mode %v, want %v", path, got, want)
		}
	}
}

// TestSync: of a few files, every folder around one that was stored is written
// to the disk, and no other.
func TestSync(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, "x", from, "top", "sub", "photo.jpg")
	if err := os.Mkdir(filepath.Join(from, "top", "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	count, restore := transfer.CountSyncs()
	defer restore()
	r := receiver(t, to)
	for _, want := range []int{3, 3} {
		run(t, &transfer.Sender{}, r, nil, transfer.Path(filepath.Join(from, "top"), true)).ok(t)
		if *count != want {
			t.Errorf("%d folders were written to the disk, want %d", *count, want)
		}
	}
}

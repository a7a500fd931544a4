//go:build linux

package lab_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A node is what lies at one path of a folder, as far as it is sent.
type node struct {
	Mode    fs.FileMode
	Time    int64  // of modification, in nanoseconds since 1970; 0 of links
	Size    int64  // of files
	Content string // the SHA-256 of a file, the target of a link
}

// treeOf reads everything below root, which may change meanwhile: what goes away
// is left out.
func treeOf(t *testing.T, root string) map[string]node {
	t.Helper()
	nodes := make(map[string]node)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if path == root {
			return err
		}
		if err != nil {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreGone(err)
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		n := node{Mode: info.Mode(), Time: info.ModTime().UnixNano()}
		switch {
		case info.Mode().IsRegular():
			n.Size = info.Size()
			n.Content, err = hashOf(path, n.Size)
		case info.Mode()&fs.ModeSymlink != 0:
			n.Time = 0
			n.Content, err = os.Readlink(path)
		}
		if err == nil {
			nodes[name] = n
		}
		return ignoreGone(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

// ignoreGone is for what is renamed between two looks.
func ignoreGone(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// hashOf is the SHA-256 of a file of about size bytes, in hexadecimal digits.
func hashOf(file string, size int64) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, min(1<<20, size+1))); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// wantTree fails the test when folder does not hold exactly want.
func wantTree(t *testing.T, folder string, want map[string]node) {
	t.Helper()
	wantSame(t, treeOf(t, folder), want)
}

func wantSame(t *testing.T, got, want map[string]node) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the folder is not what was sent (-want +got):\n%.4000s", diff)
	}
}

// sow makes a file of size bytes that no compression or repetition could stand
// for, the same ones for the same seed, and the folders above it. Its mode and
// its time depend on the seed.
func sow(t *testing.T, file string, seed uint64, size int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(rand.NewChaCha8(key), size), make([]byte, min(1<<20, size+1))); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod([]fs.FileMode{0o644, 0o600, 0o755, 0o444}[seed%4]); err != nil {
		t.Fatal(err)
	}
	dress(t, file, seed)
}

// dress gives a file or a folder a time that no other has.
func dress(t *testing.T, path string, seed uint64) {
	t.Helper()
	at := time.Unix(1_000_000_000+int64(seed)*3607, int64(seed*1_234_567%1_000_000_000))
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// plant makes files below root, a hundred to a folder, and in each folder a
// link; it returns how many bytes the files hold.
func plant(t *testing.T, root string, files int, size func(i int) int64) (total int64) {
	t.Helper()
	const each = 100
	var folders []string
	for i := range files {
		folder := filepath.Join(root, fmt.Sprintf("folder %d", i/each))
		n := size(i)
		sow(t, filepath.Join(folder, fmt.Sprintf("file-%d", i)), uint64(i), n)
		total += n
		if i%each == 0 {
			folders = append(folders, folder)
			if err := os.Symlink(fmt.Sprintf("file-%d", i), filepath.Join(folder, "link")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, folder := range append(folders, root) {
		if i%2 == 1 {
			if err := os.Chmod(folder, 0o750); err != nil {
				t.Fatal(err)
			}
		}
		dress(t, folder, uint64(files+i))
	}
	return total
}

package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// TestPour copies everything, and says what went wrong.
func TestPour(t *testing.T) {
	var got bytes.Buffer
	want := strings.Repeat("0123456789", bufferSize/4)
	if err := pour(&got, strings.NewReader(want)); err != nil || got.String() != want {
		t.Errorf("got %d bytes (%v), want %d", got.Len(), err, len(want))
	}
	r, w := io.Pipe()
	r.Close()
	if err := pour(w, strings.NewReader("x")); err != io.ErrClosedPipe {
		t.Errorf("got %v, want %v", err, io.ErrClosedPipe)
	}
	if err := run(nil); err == nil {
		t.Error("no arguments: want an error")
	}
}

// TestTake writes what give sends, and notices what is wrong with it.
func TestTake(t *testing.T) {
	source, target := filepath.Join(t.TempDir(), "source"), filepath.Join(t.TempDir(), "target")
	for _, size := range []int{0, 1, bufferSize, 3*bufferSize + 7} {
		want := bytes.Repeat([]byte{'x'}, size)
		if err := os.WriteFile(source, want, 0o600); err != nil {
			t.Fatal(err)
		}
		var sent bytes.Buffer
		if err := give(&sent, source); err != nil || sent.Len() != size+sha256.Size {
			t.Fatalf("gave %d bytes of %d, %v", sent.Len(), size, err)
		}
		whole := sent.Bytes()
		if err := take(target, iotest.OneByteReader(bytes.NewReader(whole[:min(len(whole), 100)]))); (err == nil) != (len(whole) <= 100) {
			t.Errorf("%d bytes, cut after 100: %v", size, err)
		}
		if err := take(target, bytes.NewReader(whole)); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, want) {
			t.Errorf("took %d bytes of %d, %v", len(got), size, err)
		}
		whole[0]++
		if err := take(target, bytes.NewReader(whole)); err == nil {
			t.Errorf("%d bytes, one of them wrong: no error", size)
		}
	}
}

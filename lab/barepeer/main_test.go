package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
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

package main

import (
	"io"
	"net"
	"strings"
	"testing"
)

// The marker is found wherever reads cut it, and counted once.
func TestTap(t *testing.T) {
	const marker = "marker"
	text := "x" + marker + "ymarke" + marker + "mark" + marker
	for size := 1; size <= len(text); size++ {
		tap := &tap{marker: []byte(marker)}
		ours, theirs := net.Pipe()
		// Owned by the test, which reads until its end.
		go func() {
			defer theirs.Close()
			for rest := text; rest != ""; {
				n := min(size, len(rest))
				io.WriteString(theirs, rest[:n])
				rest = rest[n:]
			}
		}()
		got, err := io.ReadAll(&tappedConn{Conn: ours, tap: tap})
		if err != nil || string(got) != text {
			t.Fatalf("pieces of %d: read %q, %v", size, got, err)
		}
		if n := tap.bytes.Load(); n != int64(len(text)) {
			t.Errorf("pieces of %d: %d bytes seen, want %d", size, n, len(text))
		}
		if n := tap.found.Load(); n != int64(strings.Count(text, marker)) {
			t.Errorf("pieces of %d: found %d times, want %d", size, n, strings.Count(text, marker))
		}
	}
}

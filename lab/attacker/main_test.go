package main

import (
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
)

// TestRun attacks a port that accepts and says nothing, with every kind, until
// something has come; and knows what it does not know.
func TestRun(t *testing.T) {
	for kind := range attacks {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		stdin, stop := io.Pipe()
		var out strings.Builder
		done := make(chan error, 1)
		// Owned by this loop, which waits for it; the end of stdin ends it.
		go func() { done <- run([]string{kind, l.Addr().String(), "lease", "c2VjcmV0"}, stdin, &out) }()
		if c, err := l.Accept(); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		stop.Close()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		l.Close()
		var got struct{ Opened, Most int64 }
		if err := json.Unmarshal([]byte(out.String()), &got); err != nil || got.Opened == 0 || got.Most == 0 {
			t.Errorf("%s: %q, %v", kind, out.String(), err)
		}
	}
	for _, args := range [][]string{nil, {"none", "127.0.0.1:1"}, {"scan", "127.0.0.1:1", "lease", "="}} {
		if err := run(args, strings.NewReader(""), io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

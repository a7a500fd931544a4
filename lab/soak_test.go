//go:build linux

package lab_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestLabLongForward opens and closes 3,000 streams, ten at a time, through one
// forward and one listener: neither may keep memory or descriptors of streams
// that are gone.
func TestLabLongForward(t *testing.T) {
	const streams, parallel, warm = 3000, 10, 300
	server := lab.StartProsody(t)
	alice, bob := lab.NewUser(t, server, dtcpBinary, "alice"), lab.NewUser(t, server, dtcpBinary, "bob")
	echo := startEcho(t)
	listener := bob.Listen(t, lab.Streams{}, "--service", "echo", "--to", echo, "--allow", alice.JID)
	forward := alice.Start(t, lab.Streams{}, "forward", "127.0.0.1:0", bob.Address("echo"), "--service", "echo")
	local := forward.Await(t, "ready").Listen

	type usage struct{ rss, files int64 }
	measure := func() (u [2]usage) {
		t.Helper()
		for i, run := range []*lab.Run{listener, forward} {
			var err error
			if u[i].rss, err = run.RSS(); err == nil {
				u[i].files, err = run.Files()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return u
	}
	var before [2]usage
	for done := 0; done < streams; done += parallel {
		if done == warm {
			before = measure()
		}
		errs := make(chan error, parallel)
		for i := range parallel {
			// Owned by this test; ends with its connection, at most a minute;
			// the receives below wait for all of them.
			go func() { errs <- echoed(local, bytesOf(byte(i), 10_000)) }()
		}
		for range parallel {
			if err := <-errs; err != nil {
				t.Fatalf("after %d streams: %v", done, err)
			}
		}
	}
	// The last streams take a moment to end on both sides.
	var after [2]usage
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		after = measure()
		if after[0].files <= before[0].files+2 && after[1].files <= before[1].files+2 || time.Now().After(deadline) {
			break
		}
	}
	for i, name := range []string{"listen", "forward"} {
		t.Logf("%s: RSS %.1f to %.1f MiB, descriptors %d to %d", name,
			float64(before[i].rss)/(1<<20), float64(after[i].rss)/(1<<20), before[i].files, after[i].files)
		if after[i].files > before[i].files+2 {
			t.Errorf("%s has %d descriptors after %d streams, had %d after %d", name, after[i].files, streams, before[i].files, warm)
		}
		if after[i].rss > before[i].rss+16<<20 {
			t.Errorf("%s has %d bytes after %d streams, had %d after %d", name, after[i].rss, streams, before[i].rss, warm)
		}
	}
}

// startEcho listens on loopback and sends back what it gets.
func startEcho(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	// Owned by the test; ends when the listener is closed at its end. The
	// connections end with their peers, which the test starts and stops.
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// echoed sends data to addr, ends its side, and wants the same back.
func echoed(addr string, data []byte) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.Write(data); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("%d bytes came back, want %d", len(got), len(data))
	}
	return nil
}

//go:build unix

package transfer_test

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// TestSpecials: a fifo, a socket and a device are left out, and said; hard
// links become copies.
func TestSpecials(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, "data", from, "d", "a")
	if err := os.Link(filepath.Join(from, "d", "a"), filepath.Join(from, "d", "b")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(from, "d", "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The path of a socket is short: it is made from inside.
	t.Chdir(filepath.Join(from, "d"))
	l, err := net.Listen("unix", "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var reported []string
	s := &transfer.Sender{Report: func(f transfer.File) {
		if f.Status == transfer.Omitted {
			reported = append(reported, f.Name+": "+f.Err.Error())
		}
	}}
	o := run(t, s, receiver(t, to), nil, transfer.Path(filepath.Join(from, "d"), true)).ok(t)
	same(t, tree(t, to), map[string]string{"d": "drwxr-xr-x", "d/a": "-rw-r--r-- data", "d/b": "-rw-r--r-- data"})
	if len(o.sent.Omitted) != 2 || len(reported) != 2 || reported[0] != "d/fifo: it is a fifo" || reported[1] != "d/socket: it is a socket" {
		t.Errorf("omitted: %v", reported)
	}
	// A fifo that takes the place of a file does not block the sender.
	path := filepath.Join(from, "d", "a")
	s = &transfer.Sender{Listed: func(*transfer.Offer) {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Error(err)
		}
	}}
	o = run(t, s, receiver(t, t.TempDir()), nil, transfer.Path(path, false))
	if o.sendErr == nil || o.sendErr.Error() != "a: it changed while it was sent" {
		t.Errorf("send: %v", o.sendErr)
	}
}

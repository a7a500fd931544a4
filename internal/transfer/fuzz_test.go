package transfer_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// A tape is a peer that says what is on it, and listens to nothing.
type tape struct{ io.Reader }

func (tape) Write(b []byte) (int, error) { return len(b), nil }
func (tape) Close() error                { return nil }

// recorder keeps what is written.
type recorder struct {
	*end
	said *bytes.Buffer
}

func (r recorder) Write(b []byte) (int, error) {
	r.said.Write(b)
	return r.end.Write(b)
}

// recordings are what the two ends of a real transfer said, of a receiver that
// had something of it already.
func recordings(f *testing.F) (sender, receiver []byte) {
	to := f.TempDir()
	write(f, "data", to, "there")
	var said, answered bytes.Buffer
	a, b := pipe()
	done := receive(&transfer.Receiver{Folder: folder(f, to), Accept: accept}, recorder{b, &answered})
	s := &transfer.Sender{Dial: dial(recorder{a, &said})}
	if _, err := s.Send(f.Context(), fuzzSources()...); err != nil {
		f.Fatal(err)
	}
	if err := <-done; err != nil {
		f.Fatal(err)
	}
	return said.Bytes(), answered.Bytes()
}

func fuzzSources() []transfer.Source {
	return []transfer.Source{blob("there", "data"), blob("new", strings.Repeat("new", 1000)), transfer.Stream("flow", strings.NewReader("flow"))}
}

// inTime fails where an end was waited for that had come: nothing is to be
// waited for when the peer has closed.
func inTime(t *testing.T, began time.Time) {
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
}

// FuzzReceive is a hostile sender: whatever it says, nothing is written outside
// of the folder, what was there stays, and the receiver comes to an end.
func FuzzReceive(f *testing.F) {
	sender, _ := recordings(f)
	f.Add(sender)
	f.Add(sender[:len(sender)/2])
	f.Add(append(transfer.RawHello(), offerOf(1, rawFile("f", 1))...))
	f.Add(bytes.Join([][]byte{transfer.RawHello(), offerOf(0, transfer.RawEntry(1, -1, "d", "", 0, epoch), transfer.RawEntry(2, 0, "l", "../x", 0, epoch)), transfer.RawNumbers('q')}, nil))
	f.Add([]byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, said []byte) {
		base := t.TempDir()
		to := filepath.Join(base, "to")
		write(t, "data", to, "there")
		d, err := transfer.OpenFolder(to)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		r := &transfer.Receiver{Folder: d, Accept: accept}
		began := time.Now()
		result, _ := r.Receive(context.Background(), tape{bytes.NewReader(said)})
		if result == nil {
			t.Error("no result")
		}
		inTime(t, began)
		if b, err := os.ReadFile(filepath.Join(to, "there")); err != nil || string(b) != "data" {
			t.Errorf("what was there is %q: %v", b, err)
		}
		if names, err := os.ReadDir(base); err != nil || len(names) != 1 {
			t.Errorf("beside the folder there is something: %v, %v", names, err)
		}
	})
}

// FuzzSend is a hostile receiver: whatever it says, the sender comes to an end
// with a result.
func FuzzSend(f *testing.F) {
	_, receiver := recordings(f)
	f.Add(receiver)
	f.Add(receiver[:len(receiver)/2])
	f.Add(bytes.Join([][]byte{transfer.RawHello(), transfer.RawNumbers('y'), transfer.RawNumbers('k', 1, 5, 3000), transfer.RawNumbers('g'), transfer.RawNumbers('o', 1, 5), transfer.RawNumbers('c', 0, 0)}, nil))
	f.Add([]byte{'a', 0, 0, 0, 1, 3})
	f.Fuzz(func(t *testing.T, said []byte) {
		s := &transfer.Sender{Dial: dial(tape{bytes.NewReader(said)})}
		began := time.Now()
		if result, err := s.Send(context.Background(), fuzzSources()...); result == nil || err == nil && result.Files != 3 {
			t.Errorf("result %+v, error %v", result, err)
		}
		inTime(t, began)
	})
}

// FuzzCheckName: a name that is allowed is one component that stays in its
// folder, and so is all that is made of it.
func FuzzCheckName(f *testing.F) {
	f.Add("a.txt")
	f.Add("..")
	f.Add("com1.x")
	f.Add("a\u0301")
	f.Fuzz(func(t *testing.T, name string) {
		if transfer.CheckName(name) != nil {
			return
		}
		for _, made := range []string{name, transfer.Numbered(name, 1), transfer.PartName(name, 0), transfer.PartName(name, 1)} {
			if !filepath.IsLocal(made) || strings.ContainsAny(made, "/\\\x00") || transfer.CheckName(made) != nil {
				t.Errorf("of %q is made %q", name, made)
			}
		}
	})
}

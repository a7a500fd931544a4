package transfer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// TestResultTwice: a receiver that repeats that a file was there, or says so
// unasked, does not count it twice.
func TestResultTwice(t *testing.T) {
	num := transfer.RawNumbers
	for _, c := range []struct {
		name    string
		says    [][]byte
		breach  bool
		resumed int64
	}{
		{"unasked", [][]byte{num('r', 0, 1)}, true, 0},
		{"once", [][]byte{num('k', 0, 4), num('g'), nil, num('r', 0, 1)}, false, 4},
		{"twice", [][]byte{num('k', 0, 4), num('g'), nil, num('r', 0, 1), num('r', 0, 1)}, true, 4},
		{"early", [][]byte{num('k', 0, 4), num('r', 0, 1), num('r', 0, 1), num('g'), nil, num('r', 0, 0)}, false, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			// In virtual time: an end that finds a breach waits 2 s for the other's.
			synctest.Test(t, func(t *testing.T) {
				a, b := pipe()
				peer := raw{t, b}
				var last transfer.Progress
				done := make(chan *transfer.Result, 1)
				var err error
				s := &transfer.Sender{Dial: dial(a), Progress: func(p transfer.Progress) { last = p }}
				// Owned by the test, which waits for done.
				go func() {
					var r *transfer.Result
					r, err = s.Send(context.Background(), blob("f", "four"))
					done <- r
				}()
				peer.send(transfer.RawHello(), num('y'))
				for _, f := range c.says {
					if f == nil {
						peer.want("hmep")
						continue
					}
					peer.send(f)
				}
				if !c.breach {
					peer.want("q")
					peer.send(num('c', 1, 4))
				}
				go func() { _, _ = io.Copy(io.Discard, b) }() // ends with the pipe
				r := <-done
				_ = b.Close()
				var breach *transfer.ProtocolError
				if errors.As(err, &breach) != c.breach || c.breach == (err == nil) {
					t.Errorf("it ended with %v", err)
				}
				if r.Resumed != c.resumed || last.Bytes > 4 {
					t.Errorf("resumed %d bytes of 4, progress %+v", r.Resumed, last)
				}
			})
		})
	}
}

// TestManyReasons: of the words of a sender that gives up file after file, only
// the first are kept.
func TestManyReasons(t *testing.T) {
	const n = 1200
	d := folder(t, t.TempDir())
	a, b := pipe()
	done := make(chan *transfer.Result, 1)
	// Owned by the test, which waits for done.
	go func() {
		r, _ := (&transfer.Receiver{From: "m@x", Folder: d, Accept: accept}).Receive(context.Background(), b)
		done <- r
	}()
	peer := raw{t, a}
	files := make([][]byte, n)
	for i := range files {
		files[i] = rawFile(fmt.Sprint(i), 1)
	}
	peer.send(transfer.RawHello(), offerOf(n, files...))
	peer.want("hyg")
	for i := range n {
		peer.send(transfer.RawFrame('x', append(binary.AppendUvarint(nil, uint64(i)), append([]byte{0}, bytes.Repeat([]byte{1}, 1024)...)...)))
	}
	peer.send(transfer.RawNumbers('q'))
	peer.want("c")
	_ = a.Close()
	r := <-done
	words := make(map[error]int)
	for _, f := range r.Failed {
		words[f.Err]++
	}
	if len(r.Failed) != n || len(words) != transfer.MaxReasons+1 {
		t.Errorf("%d entries failed, for %d reasons", len(r.Failed), len(words))
	}
}

// TestDiscardUnbegun: a file that changed is given up before it begins, and its
// part goes all the same.
func TestDiscardUnbegun(t *testing.T) {
	dir := t.TempDir()
	d := folder(t, dir)
	for try := range 2 {
		a, b := pipe()
		done := receive(&transfer.Receiver{From: "m@x", Folder: d, Accept: accept}, b)
		peer := raw{t, a}
		peer.send(transfer.RawHello(), offerOf(1<<20, rawFile("f", 1<<20)))
		if try == 0 {
			peer.want("hyg")
			peer.send(transfer.RawNumbers('f', 0, 0), transfer.RawFrame('d', make([]byte, 1000)))
		} else {
			peer.want("hykg")
			peer.send(transfer.RawNumbers('p', 0))
			peer.want("o")
			peer.send(transfer.RawNumbers('x', 0, 1), transfer.RawNumbers('q'))
			peer.want("c")
		}
		_ = a.Close()
		<-done
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

package transfer_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// nothing is a file of zeros, which costs nothing to read.
type nothing struct{ at, size int64 }

func (p *nothing) Read(b []byte) (int, error) {
	n := min(int64(len(b)), p.size-p.at)
	if n == 0 {
		return 0, io.EOF
	}
	b[0], b[n-1] = 0, 0 // as much of it as the sketch looks at
	p.at += n
	return int(n), nil
}

func (p *nothing) Seek(to int64, _ int) (int64, error) { p.at = to; return to, nil }
func (p *nothing) Close() error                        { return nil }

// A sketch is a hash that looks at little, and so takes no time.
type sketch struct{ sum uint64 }

func (s *sketch) Write(b []byte) (int, error) {
	if len(b) > 0 {
		s.sum += uint64(len(b)) + uint64(b[0])<<32 + uint64(b[len(b)-1])<<40
	}
	return len(b), nil
}

func (s *sketch) Sum(b []byte) []byte {
	h := sha256.New()
	for i := range 8 {
		_, _ = h.Write([]byte{byte(s.sum >> (8 * i))})
	}
	return h.Sum(b)
}

func (s *sketch) Reset()                      { s.sum = 0 }
func (s *sketch) Size() int                   { return sha256.Size }
func (s *sketch) BlockSize() int              { return sha256.BlockSize }
func (s *sketch) Clone() (hash.Cloner, error) { c := *s; return &c, nil }

// TestBeyond4GiB: sizes and places past 32 bits. What is said to be there
// already need not be moved, which would take too long here.
func TestBeyond4GiB(t *testing.T) {
	t.Cleanup(transfer.UseHash(func() hash.Hash { return &sketch{} }))
	const size, there = 1<<32 + 12345, 1<<32 + 7
	a, b := pipe()
	var last transfer.Progress
	var result *transfer.Result
	done := make(chan error, 1)
	// Owned by the test, which waits for done.
	go func() {
		s := &transfer.Sender{Dial: dial(a), Progress: func(p transfer.Progress) { last = p }}
		var err error
		result, err = s.Send(t.Context(), transfer.Blob("huge", size, epoch, func() (io.ReadCloser, error) { return &nothing{size: size}, nil }))
		done <- err
	}()
	peer := raw{t, b}
	peer.want("hme")
	peer.send(transfer.RawHello(), transfer.RawNumbers('y'), transfer.RawNumbers('k', 0, there), transfer.RawNumbers('g'))
	peer.want("p")
	peer.send(transfer.RawNumbers('o', 0, there))
	if got, want := peer.want("f"), transfer.RawNumbers('f', 0, there)[5:]; !bytes.Equal(got, want) {
		t.Errorf("it begins with %x, want %x", got, want)
	}
	got := len(peer.want("d"))
	end := peer.want("z")
	if n, _ := binary.Uvarint(end); n != size || got != size-there {
		t.Errorf("it ends at %d after %d bytes, want %d after %d", n, got, size, size-there)
	}
	peer.want("q")
	peer.send(transfer.RawNumbers('r', 0, 0), transfer.RawNumbers('c', 1, size))
	_ = b.Close()
	if err := <-done; err != nil || result.Bytes != size || result.Resumed != there {
		t.Errorf("%+v, %v", result, err)
	}
	if want := (transfer.Progress{Bytes: size, Resumed: there, Total: size, Files: 1}); last != want {
		t.Errorf("progress ends with %+v, want %+v", last, want)
	}
}

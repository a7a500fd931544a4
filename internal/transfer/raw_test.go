package transfer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// A raw is a peer of which a test says every byte.
type raw struct {
	t  testing.TB
	rw io.ReadWriteCloser
}

func (r raw) send(frames ...[]byte) {
	r.t.Helper()
	for _, f := range frames {
		if _, err := r.rw.Write(f); err != nil {
			r.t.Logf("the raw peer cannot write: %v", err)
			return
		}
	}
}

// next is the next frame that is not a heartbeat; 0 at the end of the stream.
func (r raw) next() (byte, []byte) {
	r.t.Helper()
	for {
		var header [5]byte
		if _, err := io.ReadFull(r.rw, header[:]); err != nil {
			return 0, nil
		}
		b := make([]byte, binary.BigEndian.Uint32(header[1:]))
		if _, err := io.ReadFull(r.rw, b); err != nil {
			return 0, nil
		}
		if header[0] != 'b' {
			return header[0], b
		}
	}
}

// want reads frames of these types.
func (r raw) want(types string) (last []byte) {
	r.t.Helper()
	for i := range len(types) {
		k, b := r.next()
		if k != types[i] {
			r.t.Fatalf("got a frame %q (%q), want %q of %q", k, b, types[i], types)
		}
		last = b
	}
	return last
}

// rest reads to the end, and gives the types of the frames.
func (r raw) rest() string {
	r.t.Helper()
	var types []byte
	for {
		k, _ := r.next()
		if k == 0 {
			return string(types)
		}
		types = append(types, k)
	}
}

var epoch = time.Unix(1_000_000_000, 123_456_789)

// offerOf is an offer of these entries.
func offerOf(bytes uint64, entries ...[]byte) []byte {
	var all []byte
	for _, e := range entries {
		all = append(all, e...)
	}
	return append(transfer.RawFrame('m', all), transfer.RawNumbers('e', uint64(len(entries)), bytes)...)
}

func rawFile(name string, size int64) []byte { return transfer.RawEntry(0, -1, name, "", size, epoch) }

// rawEnd is the frame that ends a file of this content.
func rawEnd(content string) []byte {
	sum := sha256.Sum256([]byte(content))
	return transfer.RawFrame('z', append(binary.AppendUvarint(nil, uint64(len(content))), sum[:]...))
}

// TestHostileSender: every breach ends with an error that names it, tells the
// peer, and leaves no file.
func TestHostileSender(t *testing.T) {
	hello, num, frame := transfer.RawHello, transfer.RawNumbers, transfer.RawFrame
	one := offerOf(4, rawFile("f", 4))
	begun := func(more ...[]byte) [][]byte {
		return append([][]byte{hello(), one, nil, num('f', 0, 0)}, more...)
	}
	tests := []struct {
		name string
		send [][]byte // nil waits for "go"
		want string   // of the error
	}{
		{"another protocol", [][]byte{[]byte("GET / HTTP/1.1\r\n\r\n")}, "unknown type"},
		{"an unknown frame", [][]byte{hello(), frame('!', nil)}, "unknown type 0x21"},
		{"a hello of another", [][]byte{frame('h', []byte("rsync 31"))}, "does not speak"},
		{"a later version", [][]byte{frame('h', []byte("dtcp-file\x02"))}, "version 2"},
		{"half a version", [][]byte{frame('h', []byte("dtcp-file\x80"))}, "malformed"},
		{"no hello", [][]byte{one}, "does not speak"},
		{"two hellos", [][]byte{hello(), hello()}, "out of turn"},
		{"a frame of 4 GiB", [][]byte{hello(), {'m', 0xff, 0xff, 0xff, 0xff}}, "4294967295 bytes"},
		{"too long an accept", [][]byte{hello(), {'q', 0, 0, 0, 1}}, "1 bytes, where 0"},
		{"files before the answer", [][]byte{hello(), one, num('f', 0, 0), num('f', 0, 0)}, "out of turn"},
		{"data before the answer", [][]byte{hello(), one, frame('d', []byte("data"))}, "out of turn"},
		{"an empty offer", [][]byte{hello(), num('e', 0, 0)}, "does not add up"},
		{"a wrong count", [][]byte{hello(), frame('m', rawFile("f", 4)), num('e', 2, 4)}, "does not add up"},
		{"a wrong sum", [][]byte{hello(), frame('m', rawFile("f", 4)), num('e', 1, 5)}, "does not add up"},
		{"half an entry", [][]byte{hello(), frame('m', rawFile("f", 4)[:3])}, "malformed entry"},
		{"an unknown type", [][]byte{hello(), frame('m', transfer.RawEntry(9, -1, "f", "", 0, epoch))}, "unknown type 9"},
		{"a folder that is none", [][]byte{hello(), frame('m', append(rawFile("f", 4), transfer.RawEntry(0, 0, "g", "", 1, epoch)...))}, "folder that there is not"},
		{"a folder to come", [][]byte{hello(), frame('m', transfer.RawEntry(0, 7, "g", "", 1, epoch))}, "folder that there is not"},
		{"itself as a folder", [][]byte{hello(), frame('m', transfer.RawEntry(1, 0, "g", "", 0, epoch))}, "folder that there is not"},
		{"sizes beyond all", [][]byte{hello(), frame('m', append(rawFile("f", 1<<62), rawFile("g", 1<<62)...))}, "more than"},
		{"a negative size", [][]byte{hello(), frame('m', rawFile("f", -1))}, "malformed entry"},
		{"heartbeats that say much", [][]byte{hello(), frame('b', make([]byte, 65))}, "65 bytes"},
		{"an entry there is not", [][]byte{hello(), one, nil, num('f', 1, 0)}, "not offered"},
		{"an offset of its own", [][]byte{hello(), one, nil, num('f', 0, 2)}, "not to send so"},
		{"the same file twice", begun(frame('d', []byte("data")), rawEnd("data"), num('f', 0, 0)), "not to send so"},
		{"a file in a file", begun(num('f', 0, 0)), "out of turn"},
		{"too many bytes", begun(frame('d', []byte("data!"))), "more bytes"},
		{"too few bytes", begun(frame('d', []byte("dat")), rawEnd("dat")), "another length"},
		{"no bytes", begun(frame('d', nil)), "out of turn"},
		{"an end of nothing", [][]byte{hello(), one, nil, rawEnd("data")}, "out of turn"},
		{"an end cut short", begun(frame('z', []byte{4, 1, 2, 3})), "malformed"},
		{"hashes unasked", [][]byte{hello(), one, nil, num('p', 0)}, "not asked for"},
		{"giving up what is not", [][]byte{hello(), one, nil, num('x', 9, 0)}, "not offered"},
		{"giving up another", begun(frame('x', []byte{1, 0})), "not offered"},
		{"the end in a file", begun(num('q')), "out of turn"},
		{"more after the end", [][]byte{hello(), one, nil, num('q'), num('q')}, ""}, // the end may have been sooner
		{"data after the end", [][]byte{hello(), one, nil, num('q'), frame('d', []byte("data"))}, ""},
		{"a receiver's frame", [][]byte{hello(), one, nil, frame('g', nil)}, "out of turn"},
		{"abort", begun(append(num('a', 4)[:4], 6, 4, 's', 'o', 'r', 'r', 'y')), "sorry"},
		{"the end of the stream", begun(frame('d', []byte("da"))), "cut"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			to := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				a, b := pipe()
				d := folder(t, to)
				done := make(chan error, 1)
				// Owned by the test, which waits for done.
				go func() {
					r := &transfer.Receiver{From: "mallory@example.org", Folder: d, Accept: accept}
					_, err := r.Receive(t.Context(), b)
					done <- err
				}()
				peer := raw{t, a}
				for _, f := range test.send {
					if f == nil {
						peer.want("hyg")
						continue
					}
					peer.send(f)
				}
				_ = a.CloseWrite()
				said := peer.rest()
				err := <-done
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				var protocol *transfer.ProtocolError
				if told := strings.Contains(said, "a"); told != errors.As(err, &protocol) && test.want != "" && test.want != "version 2" {
					t.Errorf("the peer was told: %t, error: %v", told, err)
				}
			})
			for path := range tree(t, to) {
				if path != "f" && path != "f.part" && !strings.HasPrefix(path, transfer.JournalPrefix) {
					t.Errorf("%s was made", path)
				}
			}
		})
	}
	if len(tests) < 35 {
		t.Errorf("%d breaches: too few", len(tests))
	}
}

// TestHostileReceiver: every breach ends with an error that names it.
func TestHostileReceiver(t *testing.T) {
	hello, num, frame := transfer.RawHello, transfer.RawNumbers, transfer.RawFrame
	tests := []struct {
		name string
		send [][]byte
		want string
	}{
		{"another protocol", [][]byte{[]byte("HTTP/1.1 200 OK\r\n")}, "unknown type"},
		{"no hello", [][]byte{num('y')}, "does not speak"},
		{"a later version", [][]byte{frame('h', []byte("dtcp-file\x07"))}, "version 7"},
		{"go before accept", [][]byte{hello(), num('g')}, "out of turn"},
		{"accept twice", [][]byte{hello(), num('y'), num('y')}, "out of turn"},
		{"go twice", [][]byte{hello(), num('y'), num('g'), num('g')}, "out of turn"},
		{"refuse after accept", [][]byte{hello(), num('y'), num('n', 6)}, "out of turn"},
		{"refusal", [][]byte{hello(), append([]byte{'n', 0, 0, 0, 4, 6}, "no\a"...)}, "refused: no\ufffd"},
		{"complete before go", [][]byte{hello(), num('y'), num('c', 1, 1)}, "out of turn"},
		{"a question about nothing", [][]byte{hello(), num('y'), num('k', 99, 1)}, "not offered"},
		{"a question about a stream", [][]byte{hello(), num('y'), num('k', 1, 1)}, "malformed"},
		{"a question twice", [][]byte{hello(), num('y'), num('k', 0, 1), num('k', 0, 1)}, "has none"},
		{"a question without length", [][]byte{hello(), num('y'), num('k', 0)}, "has none"},
		{"lengths in disorder", [][]byte{hello(), num('y'), num('k', 0, 3, 2)}, "malformed"},
		{"three lengths", [][]byte{hello(), num('y'), num('k', 0, 1, 2, 3)}, "malformed"},
		{"beyond the file", [][]byte{hello(), num('y'), num('k', 0, 9)}, "malformed"},
		{"a question after go", [][]byte{hello(), num('y'), num('g'), num('k', 0, 1)}, "has none"},
		{"an offset unasked", [][]byte{hello(), num('y'), num('g'), num('o', 0, 1)}, "answer to nothing"},
		{"another offset", [][]byte{hello(), num('y'), num('k', 0, 2), num('g'), num('o', 0, 3)}, "did not ask"},
		{"the whole as offset", [][]byte{hello(), num('y'), num('k', 0, 4), num('g'), num('o', 0, 4)}, "did not ask"},
		{"a result of nothing", [][]byte{hello(), num('y'), num('r', 7, 0)}, "not offered"},
		{"a result of no sort", [][]byte{hello(), num('y'), num('r', 0, 3)}, "unknown sort"},
		{"a sender's frame", [][]byte{hello(), num('y'), num('f', 0, 0)}, "out of turn"},
		{"complete too early", [][]byte{hello(), num('y'), num('k', 0, 4), num('g'), num('c', 0, 0)}, "out of turn"},
		{"complete without results", [][]byte{hello(), num('y'), num('g'), nil, num('c', 2, 8)}, "did not say that it is stored"},
		{"a failure with colours", [][]byte{hello(), num('y'), append([]byte{'r', 0, 0, 0, 6, 0, 2}, "\x1b[1m"...), num('g'), nil, num('r', 1, 0), num('c', 2, 8)}, "not stored there: \ufffd[1m"},
		{"abort", [][]byte{hello(), append([]byte{'a', 0, 0, 0, 5, 3}, "full"...)}, "full"},
		{"the end of the stream", [][]byte{hello(), num('y'), num('g')}, "cut"},
		{"half a frame", [][]byte{hello(), {'y', 0, 0}}, "cut"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pipe()
				done := make(chan error, 1)
				// Owned by the test, which waits for done.
				go func() {
					s := &transfer.Sender{Dial: func(context.Context) (io.ReadWriteCloser, error) { return a, nil }}
					_, err := s.Send(t.Context(), blob("f", "data"), transfer.Stream("s", strings.NewReader("flow")))
					done <- err
				}()
				peer := raw{t, b}
				for _, f := range test.send {
					if f == nil {
						for k := byte(1); k != 'q' && k != 0; {
							k, _ = peer.next()
						}
						continue
					}
					peer.send(f)
				}
				_ = b.CloseWrite()
				peer.rest()
				if err := <-done; err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
			})
		})
	}
	if len(tests) < 25 {
		t.Errorf("%d breaches: too few", len(tests))
	}
}

// blob is a file in memory.
func blob(name, content string) transfer.Source {
	return transfer.Blob(name, int64(len(content)), epoch, func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	})
}

// TestHostileNames: what has an unfit name is refused by that name, and the
// rest arrives.
func TestHostileNames(t *testing.T) {
	to := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		d := folder(t, to)
		var result *transfer.Result
		done := make(chan error, 1)
		// Owned by the test, which waits for done.
		go func() {
			r := &transfer.Receiver{From: "mallory@example.org", Folder: d, Accept: accept}
			var err error
			result, err = r.Receive(t.Context(), b)
			done <- err
		}()
		var entries [][]byte
		for _, name := range hostileNames {
			entries = append(entries, rawFile(name, 1))
		}
		folders := len(entries)
		for _, name := range hostileNames {
			// A folder of that name, with a file in it whose name is good.
			entries = append(entries, transfer.RawEntry(1, -1, name, "", 0, epoch), transfer.RawEntry(0, int32(len(entries)), "inner", "", 1, epoch))
		}
		unfit := len(entries)
		entries = append(entries, rawFile("good", 1), rawFile("GOOD", 1), rawFile("\u00e9", 1), rawFile("e\u0301", 1), transfer.RawEntry(2, -1, "toplink", "good", 0, epoch))
		// As a frame is bounded, the offer takes several.
		peer := raw{t, a}
		peer.send(transfer.RawHello())
		for _, e := range entries {
			peer.send(transfer.RawFrame('m', e))
		}
		peer.send(transfer.RawNumbers('e', uint64(len(entries)), uint64(folders+folders+4)))
		peer.want("hy")
		refused := make(map[uint64]string)
		for {
			k, b := peer.next()
			if k == 'g' {
				break
			}
			i, n := binary.Uvarint(b)
			if k != 'r' || b[n] != 2 {
				t.Fatalf("got %q %q, want a result", k, b)
			}
			refused[i] = string(b[n+1:])
		}
		for i := range unfit {
			if refused[uint64(i)] == "" {
				t.Errorf("entry %d is not refused", i)
			}
		}
		for i, want := range []bool{false, true, false, true, true} {
			if got := refused[uint64(unfit+i)] != ""; got != want {
				t.Errorf("entry %d is refused: %t, want %t", unfit+i, got, want)
			}
		}
		for _, i := range []int{unfit, unfit + 2} {
			peer.send(transfer.RawNumbers('f', uint64(i), 0), transfer.RawFrame('d', []byte("x")), rawEnd("x"))
		}
		peer.send(transfer.RawNumbers('q'))
		if said := peer.rest(); said != "rrc" {
			t.Errorf("at the end came %q, want rrc", said)
		}
		_ = a.Close()
		err := <-done
		var partial *transfer.PartialError
		if !errors.As(err, &partial) || len(partial.Failed) != unfit+3 || result.Files != 2 {
			t.Errorf("got %v, %d files", err, result.Files)
		}
		for _, f := range result.Failed {
			if transfer.Clean(f.Name) != f.Name {
				t.Errorf("the name %q could not be printed", f.Name)
			}
		}
	})
	same(t, tree(t, to), map[string]string{"good": "-rw-r--r-- x", "\u00e9": "-rw-r--r-- x"})
}

// TestLimits: an offer beyond a limit is refused with its name, by either end.
func TestLimits(t *testing.T) {
	many := make([][]byte, 1001)
	for i := range many {
		many[i] = rawFile(fmt.Sprintf("f%d", i), 0)
	}
	var deep [][]byte
	for i := range 300 {
		deep = append(deep, transfer.RawEntry(1, int32(i-1), "d", "", 0, epoch))
	}
	var long [][]byte
	for i := range 17 {
		long = append(long, transfer.RawEntry(1, int32(i-1), strings.Repeat("d", 250), "", 0, epoch))
	}
	below := long[:16:16] // 4,015 bytes of path, which 17,000 more entries repeat
	for i := range 17_000 {
		below = append(below, transfer.RawEntry(1, 15, fmt.Sprint(i), "", 0, epoch))
	}
	for _, c := range []struct {
		name    string
		entries [][]byte
		limits  transfer.Limits
		want    string
	}{
		{"entries", many, transfer.Limits{Entries: 1000}, "more than 1000 files, folders and links"},
		{"depth", deep, transfer.Limits{}, "more than 64 folders inside each other"},
		{"endless depth", deep, transfer.Limits{Depth: 1 << 20}, "more than 255 folders inside each other"},
		{"names", many, transfer.Limits{Manifest: 10_000}, "more than 10000 bytes of names"},
		{"a path", long, transfer.Limits{}, "a path longer than 4096 bytes"},
		{"paths", below, transfer.Limits{}, "paths of more than 67108864 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				a, b := pipe()
				d := folder(t, to)
				done := make(chan error, 1)
				// Owned by the test, which waits for done.
				go func() {
					r := &transfer.Receiver{Folder: d, Accept: accept, Limits: c.limits}
					_, err := r.Receive(t.Context(), b)
					done <- err
				}()
				peer := raw{t, a}
				peer.send(transfer.RawHello())
				for some := range slices.Chunk(c.entries, 1024) {
					peer.send(transfer.RawFrame('m', bytes.Join(some, nil)))
				}
				said := peer.want("ha")
				_ = a.Close()
				var limit *transfer.LimitError
				if err := <-done; !errors.As(err, &limit) || !strings.Contains(err.Error(), c.want) || said[0] != 2 || !strings.Contains(string(said), c.want) {
					t.Errorf("got %v and told %q, want %q", err, said, c.want)
				}
			})
			same(t, tree(t, to), nil)
		})
	}
}

package pump_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/pump"
)

// The tests here are told of TCP over loopback twice: as the kernel joins it
// where it can, and as goroutines do.
var kinds = []struct {
	name string
	conn func(*net.TCPConn) net.Conn
}{
	{"sockets", func(c *net.TCPConn) net.Conn { return c }},
	{"conns", func(c *net.TCPConn) net.Conn { return hidden{c} }},
}

// hidden is a connection that is not to be known for a socket.
type hidden struct{ *net.TCPConn }

func (h hidden) NetConn() net.Conn { return h.TCPConn }

// stream is a [pump.Stream] that grants what is left of its leave.
type stream struct {
	ended  chan pump.Result // buffered, so that Done does not block
	bound  bool             // to leave
	leave  atomic.Int64
	copied [2]atomic.Int64
}

func newStream() *stream { return &stream{ended: make(chan pump.Result, 2)} }

func (s *stream) Grant(_ time.Time, _ pump.Direction, want int) (int, time.Duration) {
	if s.bound {
		want = int(min(int64(want), s.leave.Load()))
	}
	return want, time.Millisecond
}

func (s *stream) Copied(_ time.Time, d pump.Direction, n int) {
	s.leave.Add(int64(-n))
	s.copied[d].Add(int64(n))
}

func (s *stream) Done(r pump.Result) { s.ended <- r }

// result waits for the end, which must come once, and checks the counters.
func (s *stream) result(t *testing.T, p *pump.Pump) pump.Result {
	t.Helper()
	var r pump.Result
	select {
	case r = <-s.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the pair does not end")
	}
	p.Close()
	select {
	case again := <-s.ended:
		t.Fatalf("the pair has ended twice: %+v, %+v", r, again)
	default:
	}
	for d, n := range r.Bytes {
		if n.Out > n.In || n.In != s.copied[d].Load() {
			t.Errorf("direction %d: %d in, %d out, %d told", d, n.In, n.Out, s.copied[d].Load())
		}
	}
	if got := p.Stats(); got.Pairs != 0 || got.Held != 0 || got.In != r.Bytes[0].In+r.Bytes[1].In || got.Out != r.Bytes[0].Out+r.Bytes[1].Out {
		t.Errorf("%+v after %+v", got, r)
	}
	return r
}

// story tells of one pair, in each of the kinds. When it is over nothing may be
// left.
func story(t *testing.T, tell func(t *testing.T, p *pump.Pump, s *stream, join func() (a, b *net.TCPConn, pair *pump.Pair))) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			checkLeaks(t)
			p, s := pump.New(pump.Config{}), newStream()
			t.Cleanup(p.Close)
			tell(t, p, s, func() (a, b *net.TCPConn, pair *pump.Pair) {
				a, first := link(t)
				b, second := link(t)
				return a, b, p.Join(kind.conn(first), kind.conn(second), s)
			})
		})
	}
}

// checkLeaks compares what is open at the end of a test, after its other
// clean-ups, with now.
func checkLeaks(t *testing.T) {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	t.Cleanup(func() {
		for range 200 { // a goroutine that has done all may need a moment to be gone
			if runtime.NumGoroutine() <= goroutines {
				break
			}
			<-time.After(5 * time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			t.Errorf("%d goroutines are left", n-goroutines)
		}
		if left := descriptors(t); len(left) > len(files) {
			t.Errorf("descriptors are left: %v, before: %v", left, files)
		}
	})
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// sendAll writes b in pieces of random sizes, some after a pause.
func sendAll(t *testing.T, c net.Conn, b []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(1<<(1+r.IntN(19))))
		if _, err := c.Write(b[:n]); err != nil {
			t.Error(err)
			return
		}
		b = b[n:]
		if r.IntN(16) == 0 {
			<-time.After(time.Duration(r.IntN(1000)) * time.Microsecond)
		}
	}
}

// slowly is a reader that takes random amounts, and pauses.
type slowly struct {
	io.Reader
	r *rand.Rand
}

func (s slowly) Read(b []byte) (int, error) {
	if s.r.IntN(16) == 0 {
		<-time.After(time.Duration(s.r.IntN(2000)) * time.Microsecond)
	}
	return s.Reader.Read(b[:min(len(b), 1+s.r.IntN(256<<10))])
}

func receiveAll(t *testing.T, c net.Conn, want []byte, seed uint64) {
	got := bytes.NewBuffer(make([]byte, 0, len(want)+bytes.MinRead))
	_, err := got.ReadFrom(slowly{c, rand.New(rand.NewPCG(seed, 2))})
	if err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got %d bytes, %v; want %d, and the same ones", got.Len(), err, len(want))
	}
}

func TestExact(t *testing.T) {
	story(t, exact)
}

// exact sends both ways at once, and ends the directions one after the other.
func exact(t *testing.T, p *pump.Pump, s *stream, join func() (a, b *net.TCPConn, pair *pump.Pair)) {
	a, b, pair := join()
	there, back := random(12<<20, 1), random(7<<20, 2)
	var all sync.WaitGroup
	all.Go(func() { sendAll(t, a, there, 3); a.CloseWrite() })
	all.Go(func() { sendAll(t, b, back, 4); b.CloseWrite() })
	all.Go(func() { receiveAll(t, a, back, 5) })
	all.Go(func() { receiveAll(t, b, there, 6) })
	all.Wait()
	want := [2]pump.Count{{In: 12 << 20, Out: 12 << 20}, {In: 7 << 20, Out: 7 << 20}}
	if r := s.result(t, p); r.Err != nil || r.Bytes != want || pair.Bytes() != want {
		t.Errorf("%+v, %v", r, pair.Bytes())
	}
}

func TestHalfClose(t *testing.T) {
	story(t, func(t *testing.T, p *pump.Pump, s *stream, join func() (a, b *net.TCPConn, pair *pump.Pair)) {
		a, b, _ := join()
		io.WriteString(b, "question")
		b.CloseWrite()
		if got, err := io.ReadAll(a); string(got) != "question" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		go func() { // ends with b
			io.WriteString(a, "answer")
			a.Close()
		}()
		if got, err := io.ReadAll(b); string(got) != "answer" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if r := s.result(t, p); r.Err != nil {
			t.Error(r.Err)
		}
	})
}

// TestLegFails cuts a leg at some point of a transfer whose receiver pauses. All
// that had been read of it arrives, and then a cut, not an end.
func TestLegFails(t *testing.T) {
	for _, sent := range []int{0, 1, 5_000, 300_000, 3 << 20} {
		story(t, func(t *testing.T, p *pump.Pump, s *stream, join func() (a, b *net.TCPConn, pair *pump.Pair)) {
			a, b, pair := join()
			// The other direction has bytes on their way too, which nobody will get.
			io.WriteString(b, "lost")
			text := random(sent, 7)
			a.SetWriteDeadline(time.Now().Add(20 * time.Second))
			n, err := a.Write(text)
			if err != nil {
				t.Fatal(err)
			}
			for pair.Bytes()[pump.AB].In == 0 && sent > 0 {
				runtime.Gosched()
			}
			a.SetLinger(0)
			a.Close()
			got, err := io.ReadAll(b)
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%d: the other leg ends with %v, want a reset", n, err)
			}
			r := s.result(t, p)
			if !bytes.HasPrefix(text, got) || int64(len(got)) != r.Bytes[pump.AB].In {
				t.Errorf("%d bytes arrive of %d", len(got), r.Bytes[pump.AB].In)
			}
			var failed *pump.LegError
			if !errors.As(r.Err, &failed) || failed.Leg != pump.AB || !errors.Is(r.Err, syscall.ECONNRESET) && !errors.Is(r.Err, syscall.EPIPE) {
				t.Errorf("the pair ends with %v", r.Err)
			}
		})
	}
}

// TestReaderFails: who can no longer deliver stops the sender.
func TestReaderFails(t *testing.T) {
	story(t, func(t *testing.T, p *pump.Pump, s *stream, join func() (a, b *net.TCPConn, pair *pump.Pair)) {
		a, b, _ := join()
		b.CloseRead()
		go func() { // ends when b has come
			var one [1]byte
			b.Read(one[:])
		}()
		io.WriteString(a, "first")
		b.SetLinger(0)
		b.Close()
		piece := make([]byte, 64<<10)
		var err error
		for err == nil {
			_, err = a.Write(piece)
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the sender ends with %v", err)
		}
		var failed *pump.LegError
		if r := s.result(t, p); !errors.As(r.Err, &failed) || failed.Leg != pump.BA {
			t.Errorf("the pair ends with %v", r.Err)
		}
	})
}

// TestGrant: not a byte passes without leave, and all that has it does.
func TestGrant(t *testing.T) {
	story(t, func(t *testing.T, p *pump.Pump, s *stream, join func() (a, b *net.TCPConn, pair *pump.Pair)) {
		s.bound = true
		a, b, pair := join()
		text := random(2<<20, 8)
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := a.Write(text); err != nil {
				t.Error(err)
			}
			a.CloseWrite()
		})
		passed := 0
		for _, leave := range []int{1, 100, 70_000, 500_000, 1} {
			s.leave.Store(int64(leave))
			got := make([]byte, leave)
			if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, text[passed:passed+leave]) {
				t.Fatalf("of %d bytes at %d: %v", leave, passed, err)
			}
			passed += leave
			if in := pair.Bytes()[pump.AB].In; in != int64(passed) || s.leave.Load() != 0 {
				t.Errorf("%d bytes were read and %d are left with leave for %d", in, s.leave.Load(), passed)
			}
		}
		s.leave.Store(1 << 40)
		receiveAll(t, b, text[passed:], 9)
		b.Close()
		all.Wait()
		if r := s.result(t, p); r.Err != nil {
			t.Error(r.Err)
		}
	})
}

func TestReset(t *testing.T) {
	why := errors.New("enough")
	for _, by := range []string{"Reset", "Close"} {
		story(t, func(t *testing.T, p *pump.Pump, s *stream, join func() (a, b *net.TCPConn, pair *pump.Pair)) {
			a, b, pair := join()
			io.WriteString(a, "x")
			if _, err := b.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			want := why
			if by == "Reset" {
				pair.Reset(why)
			} else {
				want = pump.ErrClosed
				p.Close()
			}
			for _, c := range []*net.TCPConn{a, b} {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("a leg ends with %v, want a reset", err)
				}
			}
			if r := s.result(t, p); r.Err != want {
				t.Errorf("the pair ends with %v", r.Err)
			}
			pair.Reset(errors.New("too late"))
			late := newStream()
			c, d := link(t)
			p.Join(c, d, late)
			if r := <-late.ended; r.Err != pump.ErrClosed {
				t.Errorf("what is joined too late ends with %v", r.Err)
			}
		})
	}
}

// TestCrowd cuts, ends and resets many busy pairs at once.
func TestCrowd(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			checkLeaks(t)
			p := pump.New(pump.Config{})
			defer p.Close()
			text := random(300_000, 10)
			var all sync.WaitGroup
			for i := range 40 {
				s := newStream()
				a, first := link(t)
				b, second := link(t)
				pair := p.Join(kind.conn(first), kind.conn(second), s)
				cut := i%4 == 1 || i%4 == 2
				for _, c := range []*net.TCPConn{a, b} {
					all.Go(func() {
						sendAllOrFail(c, text)
						if !cut { // else it might have ended before
							c.CloseWrite()
						}
					})
				}
				all.Go(func() {
					if got, err := io.ReadAll(a); !bytes.HasPrefix(text, got) || err == nil && i%4 != 1 && len(got) < len(text) {
						t.Errorf("got %d bytes, %v", len(got), err)
					}
				})
				all.Go(func() {
					one := make([]byte, 1+i*7000)
					n, err := io.ReadFull(b, one)
					switch {
					case err != nil:
					case i%4 == 1:
						b.SetLinger(0)
						b.Close()
					case i%4 == 2:
						pair.Reset(io.ErrShortWrite)
					}
					rest, err := io.ReadAll(b)
					if got := slices.Concat(one[:n], rest); !bytes.HasPrefix(text, got) || err == nil && len(got) < len(text) {
						t.Errorf("got %d bytes, %v", len(got), err)
					}
					if r := <-s.ended; (r.Err != nil) != cut {
						t.Errorf("pair %d ends with %v", i, r.Err)
					}
				})
			}
			all.Wait()
		})
	}
}

func sendAllOrFail(c net.Conn, b []byte) {
	for len(b) > 0 {
		n, err := c.Write(b[:min(len(b), 50_000)])
		if err != nil {
			return
		}
		b = b[n:]
	}
}

// TestFair: a stream that could fill the loop leaves room for one that says a
// word at a time.
func TestFair(t *testing.T) {
	checkLeaks(t)
	p := pump.New(pump.Config{Loops: 1})
	defer p.Close()
	for range 3 {
		a, first := link(t)
		b, second := link(t)
		p.Join(first, second, nil)
		defer a.Close()
		defer b.Close()
		go sendAllOrFail(a, make([]byte, 1<<30)) // ends when it is closed
		go io.Copy(io.Discard, b)                // same
	}
	a, first := link(t)
	b, second := link(t)
	p.Join(first, second, nil)
	began := time.Now()
	word := make([]byte, 4)
	const rounds = 50
	for range rounds {
		for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}} {
			if _, err := io.WriteString(way[0], "word"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(way[1], word); err != nil {
				t.Fatal(err)
			}
		}
	}
	if each := time.Since(began) / rounds; each > 100*time.Millisecond {
		t.Errorf("a round trip takes %v beside three streams in bulk", each)
	} else {
		t.Logf("a round trip takes %v", each)
	}
}

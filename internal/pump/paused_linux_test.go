package pump_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/pump"
)

// TestRefusedPipe: what would go through a pipe goes through user space.
func TestRefusedPipe(t *testing.T) {
	checkLeaks(t)
	p, s := pump.New(pump.Config{}), newStream()
	pump.RefusePipes(p)
	defer p.Close()
	exact(t, p, s, func() (a, b *net.TCPConn, pair *pump.Pair) {
		a, first := link(t)
		b, second := link(t)
		return a, b, p.Join(first, second, s)
	})
}

// fill writes until nothing has been taken for a while, and returns how much
// was.
func fill(c net.Conn, most int) (n int) {
	piece := make([]byte, 64<<10)
	for n < most {
		c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		k, err := c.Write(piece[:min(len(piece), most-n)])
		if n += k; err != nil {
			break
		}
	}
	c.SetWriteDeadline(time.Time{})
	return n
}

// TestPaused has many fast senders behind receivers who read nothing: next to
// nothing waits in the process, and no pipe is taken; then all of it arrives.
func TestPaused(t *testing.T) {
	for _, c := range []struct {
		name string
		held int64
	}{
		{"as usual", 0},
		{"with no memory to spare", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkLeaks(t)
			const pairs = 24
			p := pump.New(pump.Config{Held: c.held, Loops: 1})
			defer p.Close()
			var filled, drained sync.WaitGroup
			read := make(chan struct{})
			for range pairs {
				a, first := link(t)
				b, second := link(t)
				// What the system holds would be much; here that is not the question.
				first.SetReadBuffer(32 << 10)
				second.SetWriteBuffer(32 << 10)
				b.SetReadBuffer(32 << 10)
				s := newStream()
				p.Join(first, second, s)
				filled.Add(1)
				drained.Go(func() {
					n := fill(a, 64<<20)
					filled.Done()
					<-read
					go func() { // ends when all has been sent
						a.Write(make([]byte, 1<<20))
						a.CloseWrite()
					}()
					got, err := io.Copy(io.Discard, b)
					if err != nil || got != int64(n)+1<<20 {
						t.Errorf("got %d bytes, %v; want %d", got, err, n+1<<20)
					}
					b.Close()
					if r := <-s.ended; r.Err != nil {
						t.Error(r.Err)
					}
				})
			}
			filled.Wait()
			if got := p.Stats(); got.Pairs != pairs || got.Held > pairs*pump.Small || got.In == 0 {
				t.Errorf("%d pairs, %d bytes held, want at most %d", got.Pairs, got.Held, pairs*pump.Small)
			}
			if n := strings.Count(strings.Join(descriptors(t), " "), "pipe:"); n > 2+countPipes {
				t.Errorf("%d ends of pipes are open, want the loop's 2", n-countPipes)
			}
			close(read)
			drained.Wait()
		})
	}
}

// countPipes is how many ends of pipes the process had at its start.
var countPipes = func() int {
	t := &testing.T{}
	return strings.Count(strings.Join(descriptors(t), " "), "pipe:")
}()

// TestTail: who takes nothing of what a failed leg had sent is cut in the end.
func TestTail(t *testing.T) {
	checkLeaks(t)
	p, s := pump.New(pump.Config{}), newStream()
	defer p.Close()
	pump.SetTail(p, 50*time.Millisecond)
	a, first := link(t)
	b, second := link(t)
	p.Join(first, second, s)
	fill(a, 1<<30)
	began := time.Now()
	a.SetLinger(0)
	a.Close()
	var failed *pump.LegError
	if r := s.result(t, p); !errors.As(r.Err, &failed) || failed.Leg != pump.AB || time.Since(began) < 50*time.Millisecond {
		t.Errorf("the pair ends with %v after %v", r.Err, time.Since(began))
	}
	if _, err := io.Copy(io.Discard, b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the receiver ends with %v, want a reset", err)
	}
}

// TestIdle: a pair costs two descriptors and no goroutine, and wakes up.
func TestIdle(t *testing.T) {
	checkLeaks(t)
	const pairs = 1000
	p := pump.New(pump.Config{Loops: 1})
	defer p.Close()
	goroutines, files := runtime.NumGoroutine(), len(descriptors(t))
	var ends [pairs][2]*net.TCPConn
	for i := range ends {
		a, first := link(t)
		b, second := link(t)
		ends[i] = [2]*net.TCPConn{a, b}
		p.Join(first, second, nil)
	}
	for _, e := range ends {
		if _, err := io.WriteString(e[0], "hello"); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 5)
	for _, e := range ends {
		if _, err := io.ReadFull(e[1], got); err != nil || !bytes.Equal(got, []byte("hello")) {
			t.Fatal(err)
		}
	}
	if n := runtime.NumGoroutine() - goroutines; n > 1 {
		t.Errorf("%d goroutines for %d pairs, want the loop's", n, pairs)
	}
	if n := len(descriptors(t)) - files; n > 4*pairs+2 {
		t.Errorf("%d descriptors for %d pairs, want 4 a pair with their peers, and 2 of the loop", n, pairs)
	}
	for _, e := range ends {
		e[0].Close()
		if _, err := e[1].Read(got); err != io.EOF {
			t.Fatal(err)
		}
		e[1].Close()
	}
	for p.Stats().Pairs > 0 {
		<-time.After(time.Millisecond)
	}
}

// TestMultipath: sockets of Multipath TCP, where the system has it, may not be
// for splice(2); their bytes pass nevertheless.
func TestMultipath(t *testing.T) {
	multipath := func() (outer, inner *net.TCPConn) {
		t.Helper()
		var listening net.ListenConfig
		listening.SetMultipathTCP(true)
		l, err := listening.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var dialer net.Dialer
		dialer.SetMultipathTCP(true)
		c, err := dialer.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); accepted.Close() })
		return c.(*net.TCPConn), accepted.(*net.TCPConn)
	}
	checkLeaks(t)
	p, s := pump.New(pump.Config{}), newStream()
	defer p.Close()
	exact(t, p, s, func() (a, b *net.TCPConn, pair *pump.Pair) {
		a, first := multipath()
		b, second := link(t)
		if is, err := first.MultipathTCP(); err == nil {
			t.Logf("multipath: %v", is)
		}
		return a, b, p.Join(first, second, s)
	})
}

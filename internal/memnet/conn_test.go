package memnet_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		ca, cb := connect(t, a, b)
		now := newClock(t)
		write(t, ca, "request")
		if err := ca.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(cb)
		if string(got) != "request" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		now.want(oneWay, "end of the request")
		writeFails(t, ca, syscall.EPIPE)

		wait(time.Hour) // a half-open connection lives as long as it is wanted
		write(t, cb, "answer")
		cb.Close()
		now.want(oneWay+time.Hour, "close does not wait")
		got, err = io.ReadAll(ca)
		if string(got) != "answer" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		now.want(time.Hour+r, "end of the answer")
		if err := ca.Close(); err != nil {
			t.Error(err)
		}
		wait(r)
		if len(a.Conns())+len(b.Conns()) > 0 {
			t.Errorf("connections remain: %v, %v", a.Conns(), b.Conns())
		}
	})
}

// A connection that one end has closed is forgotten after a minute even if the
// other end never closes.
func TestOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		ca, cb := connect(t, a, b)
		ca.Close()
		wait(r + time.Minute - 1)
		if got := len(a.Conns()); got != 1 {
			t.Errorf("%d connections before the minute is over, want 1", got)
		}
		wait(1)
		synctest.Wait()
		if got := len(a.Conns()); got != 0 {
			t.Errorf("%d connections after the minute, want 0", got)
		}
		fails(t, cb, io.EOF)
	})
}

// The errors below are those of Linux 6 over loopback, operation by operation.
func TestReset(t *testing.T) {
	type pair struct{ us, peer *memnet.Conn }
	for _, test := range []struct {
		name  string
		reset func(t *testing.T, p pair) // what the peer does, and we before it
		after func(t *testing.T, p pair) // what we see
	}{
		{
			"linger", func(t *testing.T, p pair) {
				write(t, p.peer, "hello")
				p.peer.SetLinger(0)
				p.peer.Close()
			}, func(t *testing.T, p pair) {
				read(t, p.us, "hello")
				fails(t, p.us, syscall.ECONNRESET)
				writeFails(t, p.us, syscall.EPIPE)
				fails(t, p.us, io.EOF)
			},
		}, {
			"unread input", func(t *testing.T, p pair) {
				write(t, p.us, "unread")
				wait(r)
				p.peer.Close()
			}, func(t *testing.T, p pair) {
				fails(t, p.us, syscall.ECONNRESET)
				fails(t, p.us, io.EOF)
			},
		}, {
			"write first", func(t *testing.T, p pair) {
				p.peer.SetLinger(0)
				p.peer.Close()
			}, func(t *testing.T, p pair) {
				writeFails(t, p.us, syscall.ECONNRESET)
				writeFails(t, p.us, syscall.EPIPE)
				fails(t, p.us, io.EOF)
			},
		}, {
			"write to one who has closed", func(t *testing.T, p pair) {
				p.peer.Close()
				wait(r)
				write(t, p.us, "zz")
				wait(r)
			}, func(t *testing.T, p pair) {
				writeFails(t, p.us, syscall.EPIPE)
				fails(t, p.us, io.EOF)
			},
		}, {
			"after its FIN", func(t *testing.T, p pair) {
				p.peer.CloseWrite()
				wait(r)
				p.peer.SetLinger(0)
				p.peer.Close()
			}, func(t *testing.T, p pair) {
				fails(t, p.us, io.EOF)
				writeFails(t, p.us, syscall.EPIPE)
			},
		}, {
			"after our FIN", func(t *testing.T, p pair) {
				p.us.CloseWrite()
				wait(r)
				p.peer.SetLinger(0)
				p.peer.Close()
			}, func(t *testing.T, p pair) {
				fails(t, p.us, syscall.ECONNRESET)
				fails(t, p.us, io.EOF)
				writeFails(t, p.us, syscall.EPIPE)
				if err := p.us.CloseWrite(); !errors.Is(err, syscall.ENOTCONN) {
					t.Errorf("CloseWrite after a reset: %v", err)
				}
			},
		}, {
			"from outside", func(t *testing.T, p pair) {
				p.peer.Reset()
				fails(t, p.peer, syscall.ECONNRESET)
			}, func(t *testing.T, p pair) {
				fails(t, p.us, syscall.ECONNRESET)
			},
		},
	} {
		bubble(t, test.name, func(t *testing.T) {
			_, a, b := two()
			us, peer := connect(t, a, b)
			test.reset(t, pair{us, peer})
			wait(oneWay)
			synctest.Wait()
			test.after(t, pair{us, peer})
			if n := len(a.Conns()) + len(b.Conns()); n != 0 {
				t.Errorf("%d connections remain", n)
			}
		})
	}
}

func TestResetWakesReaderAndWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		n.SetWindow(10)
		ca, cb := connect(t, a, b)
		now := newClock(t)
		var waiting sync.WaitGroup
		waiting.Go(func() {
			fails(t, ca, syscall.ECONNRESET) // in each run it is told first
			now.want(time.Second+oneWay, "read")
		})
		waiting.Go(func() {
			n, err := ca.Write(make([]byte, 30))
			if n != 10 || !errors.Is(err, syscall.EPIPE) {
				t.Errorf("wrote %d bytes, %v", n, err)
			}
			now.want(time.Second+oneWay, "write")
		})
		wait(time.Second)
		cb.Close()
		waiting.Wait()
	})
}

func TestResetDiscards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		n.ResetDiscards(true)
		ca, cb := connect(t, a, b)
		write(t, ca, "lost")
		ca.SetLinger(0)
		ca.Close()
		wait(oneWay)
		synctest.Wait()
		fails(t, cb, syscall.ECONNRESET)
	})
}

func TestListenerCloseResetsTheUnaccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		l := listen(t, b, at(addrB, 80))
		c := dial(t, a, at(addrB, 80))
		wait(oneWay)
		l.Close()
		fails(t, c, syscall.ECONNRESET)
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
	})
}

// No packet overtakes another of its connection.
func TestLatencyFalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		ca, cb := connect(t, a, b)
		now := newClock(t)
		write(t, ca, "first ")
		n.SetLatency(b, a, ms)
		write(t, ca, "second")
		read(t, cb, "first second")
		now.want(oneWay, "both")
		write(t, cb, "back")
		read(t, ca, "back")
		now.want(oneWay+ms, "answer")
	})
}

func TestBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		a, b := n.Host("a", addrA), n.Host("b", addrB)
		l := listen(t, b, at(addrB, 80))
		const backlog = 4096
		for range backlog {
			dial(t, a, at(addrB, 80))
		}
		now := newClock(t)
		time.AfterFunc(2*time.Second, func() { accept(t, l) })
		dial(t, a, at(addrB, 80))
		now.want(3*time.Second, "dial that found room at its third SYN")
	})
}

func TestWindow(t *testing.T) {
	// A window's worth goes out in each round trip.
	bubble(t, "bulk", func(t *testing.T) {
		_, a, b := two()
		ca, cb := connect(t, a, b)
		now := newClock(t)
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, four windows
		var writing sync.WaitGroup
		writing.Go(func() {
			write(t, ca, string(sent))
			now.want(3*r, "last window sent")
			ca.CloseWrite()
		})
		got, err := io.ReadAll(cb)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		now.want(3*r+oneWay, "last window read")
		writing.Wait()
	})

	bubble(t, "reader who stops", func(t *testing.T) {
		n, a, b := two()
		n.SetWindow(1000)
		ca, cb := connect(t, a, b)
		now := newClock(t)
		ca.SetWriteDeadline(time.Now().Add(time.Minute))
		k, err := ca.Write(make([]byte, 1500))
		if k != 1000 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d bytes, %v; want 1000 and a timeout", k, err)
		}
		now.want(time.Minute, "deadline")

		ca.SetWriteDeadline(time.Time{})
		var writing sync.WaitGroup
		writing.Go(func() {
			if k, err := ca.Write(make([]byte, 500)); k != 500 || err != nil {
				t.Errorf("wrote %d bytes, %v", k, err)
			}
			now.want(time.Minute+2*time.Second+oneWay, "write goes on")
		})
		wait(time.Second)
		read(t, cb, string(make([]byte, 499))) // not worth telling
		wait(time.Second)
		read(t, cb, string(make([]byte, 1)))
		writing.Wait()
	})
}

// Two writes at once do not mix, even if the first has to wait.
func TestWritesDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		n.SetWindow(3)
		ca, cb := connect(t, a, b)
		var writing sync.WaitGroup
		for _, s := range []string{"aaaaaaaa", "bbbbbbbb"} {
			writing.Go(func() { write(t, ca, s) })
		}
		got := make([]byte, 16)
		if _, err := io.ReadFull(cb, got); err != nil {
			t.Fatal(err)
		}
		if s := string(got); s != "aaaaaaaabbbbbbbb" && s != "bbbbbbbbaaaaaaaa" {
			t.Errorf("read %q", s)
		}
		writing.Wait()
	})
}

func TestSplitBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := two()
		ca, cb := connect(t, a, b)
		n.SplitBytes(true)
		write(t, ca, "abc")
		now := newClock(t)
		for _, want := range "abc" {
			buf := make([]byte, 10)
			if k, err := cb.Read(buf); k != 1 || err != nil || rune(buf[0]) != want {
				t.Errorf("read %d bytes %q, %v; want %q", k, buf[:k], err, want)
			}
		}
		now.want(oneWay, "all bytes")
		n.SplitBytes(false)
		write(t, ca, "d")
		write(t, ca, "ef")
		wait(oneWay)
		buf := make([]byte, 10)
		if k, _ := cb.Read(buf); string(buf[:k]) != "def" {
			t.Errorf("read %q, want what two writes wrote", buf[:k])
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		ca, cb := connect(t, a, b)
		now := newClock(t)

		ca.SetReadDeadline(time.Now().Add(time.Second))
		fails(t, ca, os.ErrDeadlineExceeded)
		now.want(time.Second, "deadline in the future")
		fails(t, ca, os.ErrDeadlineExceeded)

		ca.SetDeadline(time.Now())
		fails(t, ca, os.ErrDeadlineExceeded)
		writeFails(t, ca, os.ErrDeadlineExceeded)
		write(t, cb, "there")
		wait(oneWay)
		fails(t, ca, os.ErrDeadlineExceeded) // input or not
		ca.SetDeadline(time.Time{})
		if k, err := ca.Read(nil); k != 0 || err != nil {
			t.Errorf("empty read: %d, %v", k, err)
		}
		read(t, ca, "there")

		// A deadline that moves while a Read waits.
		now = newClock(t)
		ca.SetReadDeadline(time.Now().Add(time.Second))
		time.AfterFunc(500*ms, func() { ca.SetReadDeadline(now.start.Add(3 * time.Second)) })
		fails(t, ca, os.ErrDeadlineExceeded)
		now.want(3*time.Second, "deadline moved")

		ca.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { ca.Close() })
		fails(t, ca, net.ErrClosed)
		now.want(4*time.Second, "close")
		writeFails(t, ca, net.ErrClosed)
		for _, err := range []error{ca.Close(), ca.CloseWrite(), ca.SetDeadline(time.Time{}), ca.SetLinger(0)} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("after close: %v", err)
			}
		}
	})
}

// Packets of an earlier connection on the same pair of addresses do no harm.
func TestSameAddressesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := two()
		local, remote := at(addrA, 1000), at(addrB, 80)
		if _, err := a.Dial(within(t, 10*ms), local, remote); err == nil {
			t.Fatal("dial without an answer succeeded")
		}
		// The RST for the first SYN is still on its way.
		wait(60 * ms)
		l := listen(t, b, remote)
		now := newClock(t)
		c, err := a.Dial(t.Context(), local, remote)
		if err != nil {
			t.Fatal(err)
		}
		now.want(r, "second dial")
		peer := accept(t, l)

		if _, err := a.Dial(t.Context(), local, remote); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("third dial: %v", err)
		}
		// After a crash a does not know the connection. Its SYN makes b ask,
		// the answer resets the old one, and the repeated SYN succeeds.
		a.Crash()
		fails(t, c, syscall.ECONNABORTED)
		now = newClock(t)
		c, err = a.Dial(t.Context(), local, remote)
		if err != nil {
			t.Fatal(err)
		}
		now.want(time.Second+r, "dial after the crash")
		fails(t, peer, syscall.ECONNRESET)
		peer = accept(t, l)
		write(t, c, "new")
		read(t, peer, "new")
		c.Close()
	})
}

func TestSelfConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, _ := two()
		c, err := a.Dial(t.Context(), at(addrA, 1000), at(addrA, 1000))
		if err != nil {
			t.Fatal(err)
		}
		write(t, c, "echo")
		read(t, c, "echo")
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

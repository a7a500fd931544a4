package pump_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/pump"
)

// Each end is this far from the pump, one way.
const away = 10 * time.Millisecond

// inBubble tells a story of one pair in virtual time.
func inBubble[S pump.Stream](t *testing.T, fresh func() S, tell func(t *testing.T, p *pump.Pump, s S, a, b *memnet.Conn, pair *pump.Pair)) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh()
		n := memnet.New()
		middle := n.Host("pump", netip.MustParseAddr("192.0.2.1"))
		l, err := middle.Listen(context.Background(), netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort(l.Addr().String())
		at = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), at.Port())
		connect := func(name, addr string) (outer, inner *memnet.Conn) {
			h := n.Host(name, netip.MustParseAddr(addr))
			n.SetLatency(h, middle, away)
			c, err := h.Dial(context.Background(), netip.AddrPort{}, at)
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return c.(*memnet.Conn), accepted.(*memnet.Conn)
		}
		a, first := connect("a", "192.0.2.2")
		b, second := connect("b", "192.0.2.3")
		l.Close()
		p := pump.New(pump.Config{})
		pair := p.Join(first, second, s)
		tell(t, p, s, a, b, pair)
		p.Close()
		a.Close()
		b.Close()
	})
}

func TestBubbleFailure(t *testing.T) {
	inBubble(t, newStream, func(t *testing.T, p *pump.Pump, s *stream, a, b *memnet.Conn, _ *pump.Pair) {
		began := time.Now()
		a.Write([]byte("the last words"))
		a.SetLinger(0)
		a.Close()
		got, err := io.ReadAll(b)
		if string(got) != "the last words" || !errors.Is(err, syscall.ECONNRESET) || time.Since(began) != 2*away {
			t.Errorf("%q, %v after %v; want all, and a reset, after %v", got, err, time.Since(began), 2*away)
		}
		if r := s.result(t, p); r.Bytes[pump.AB].Out != 14 {
			t.Errorf("%+v", r)
		}
	})
}

// TestBubbleTail: a receiver who takes nothing of what a failed leg has sent is
// cut after ten seconds, and not before.
func TestBubbleTail(t *testing.T) {
	inBubble(t, newStream, func(t *testing.T, p *pump.Pump, s *stream, a, b *memnet.Conn, _ *pump.Pair) {
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		if _, err := a.Write(make([]byte, 1<<20)); err == nil {
			t.Fatal("all was taken")
		}
		io.WriteString(b, "and b fails to reach a")
		began := time.Now()
		a.SetLinger(0)
		a.Close()
		r := <-s.ended
		// The pump learns of it by what b says.
		var failed *pump.LegError
		if d := time.Since(began); d != away+pump.Tail || !errors.As(r.Err, &failed) || failed.Leg != pump.AB {
			t.Errorf("the pair ends with %v after %v, want %v", r.Err, d, away+pump.Tail)
		}
		if _, err := io.Copy(io.Discard, b); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the receiver ends with %v", err)
		}
	})
}

// paced is a stream that grants a rate exactly, to the first direction.
type paced struct {
	*stream
	began time.Time
	used  int64
}

const pace = 100_000 // bytes a second

func (s *paced) Grant(now time.Time, d pump.Direction, want int) (int, time.Duration) {
	if d == pump.BA {
		return want, 0
	}
	if s.began.IsZero() {
		s.began = now
	}
	n := int64(now.Sub(s.began))*pace/int64(time.Second) - s.used
	if n < pace/100 {
		return 0, 10 * time.Millisecond
	}
	return int(min(n, int64(want))), 0
}

func (s *paced) Copied(now time.Time, d pump.Direction, n int) {
	if d == pump.AB {
		s.used += int64(n)
	}
	s.stream.Copied(now, d, n)
}

func TestBubblePace(t *testing.T) {
	inBubble(t, func() *paced { return &paced{stream: newStream()} }, func(t *testing.T, p *pump.Pump, s *paced, a, b *memnet.Conn, _ *pump.Pair) {
		began := time.Now()
		text := random(1_000_000, 11)
		go func() { // ends when all has been taken
			a.Write(text)
			a.CloseWrite()
		}()
		b.CloseWrite()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, text) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if d := time.Since(began); d < 10*time.Second || d > 10*time.Second+100*time.Millisecond {
			t.Errorf("a million bytes took %v at %d a second", d, pace)
		}
		if r := s.result(t, p); r.Err != nil {
			t.Error(r.Err)
		}
	})
}

// TestBubbleReset cuts a pair that waits for leave.
func TestBubbleReset(t *testing.T) {
	bound := func() *stream { s := newStream(); s.bound = true; return s }
	inBubble(t, bound, func(t *testing.T, p *pump.Pump, s *stream, a, b *memnet.Conn, pair *pump.Pair) {
		io.WriteString(a, "never to be read")
		<-time.After(time.Second)
		if n := pair.Bytes(); n != [2]pump.Count{} {
			t.Errorf("read without leave: %v", n)
		}
		pair.Reset(io.ErrShortBuffer)
		if r := s.result(t, p); r.Err != io.ErrShortBuffer {
			t.Errorf("the pair ends with %v", r.Err)
		}
		for _, c := range []*memnet.Conn{a, b} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a leg ends with %v", err)
			}
		}
	})
}

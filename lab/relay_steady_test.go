//go:build linux

package lab_test

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A steady is a number of streams through a relay, each at a rate far below what
// relay and machine can do, as those of people are. A stream that is held up
// does not make up for it, so what is lost shows in the rate.
type steady struct {
	pairs   []pair
	got     atomic.Int64
	pause   atomic.Int64 // the longest since it was last asked for, in nanoseconds, in which a stream had nothing
	failed  atomic.Pointer[error]
	over    chan struct{}
	running sync.WaitGroup
}

// What each stream of a steady sends.
const (
	steadyPiece = 64 << 10
	steadyRate  = 20e6 // bytes a second
	steadyEvery = time.Second * steadyPiece / steadyRate
)

func startSteady(t *testing.T, r *relay, streams int) *steady {
	t.Helper()
	s := &steady{over: make(chan struct{})}
	t.Cleanup(s.close)
	for i := range streams {
		p, err := r.stream(sourceAddress(i))
		if err != nil {
			t.Fatal(err)
		}
		s.pairs = append(s.pairs, p)
		// Both owned by s; close ends and awaits them.
		s.running.Go(func() { s.send(p) })
		s.running.Go(func() { s.receive(p) })
	}
	return s
}

// send writes a piece whenever one is due. One that is late makes the next ones
// due later.
func (s *steady) send(p pair) {
	piece := make([]byte, steadyPiece)
	due := time.Now()
	for {
		if _, err := p.dialer.Write(piece); err != nil {
			s.fail(err)
			return
		}
		due = due.Add(steadyEvery)
		if now := time.Now(); due.Before(now.Add(-2 * steadyEvery)) {
			due = now // more than what a timer may be late
		}
		select {
		case <-s.over:
			return
		case <-time.After(time.Until(due)):
		}
	}
}

func (s *steady) receive(p pair) {
	buffer := make([]byte, steadyPiece)
	for last := time.Now(); ; {
		n, err := p.listener.Read(buffer)
		if err != nil {
			s.fail(err)
			return
		}
		s.got.Add(int64(n))
		now := time.Now()
		for gap := int64(now.Sub(last)); ; {
			if longest := s.pause.Load(); gap <= longest || s.pause.CompareAndSwap(longest, gap) {
				break
			}
		}
		last = now
	}
}

// fail keeps the first error, unless the streams are being closed.
func (s *steady) fail(err error) {
	select {
	case <-s.over:
	default:
		s.failed.CompareAndSwap(nil, &err)
	}
}

// window measures for so long: bytes a second of all streams together, and the
// longest time in which one of them got nothing.
func (s *steady) window(length time.Duration) (rate float64, pause time.Duration, err error) {
	s.pause.Store(0)
	before, began := s.got.Load(), time.Now()
	time.Sleep(length)
	rate = float64(s.got.Load()-before) / time.Since(began).Seconds()
	if failed := s.failed.Load(); failed != nil {
		return rate, 0, fmt.Errorf("an established stream: %w", *failed)
	}
	return rate, time.Duration(s.pause.Load()), nil
}

func (s *steady) close() {
	select {
	case <-s.over:
		return
	default:
	}
	close(s.over)
	closeAll(s.pairs)
	s.running.Wait()
}

// A newcomer is how a stream fared that was formed in the middle of something.
func newcomer(r *relay, from netip.Addr) string {
	began := time.Now()
	p, err := r.stream(from)
	took := time.Since(began)
	if err != nil {
		return fmt.Sprintf("refused: %v", err)
	}
	p.close()
	return fmt.Sprintf("%.1f ms", milliseconds(took))
}

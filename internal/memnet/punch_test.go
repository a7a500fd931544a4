package memnet_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
)

// TestGrid lets every kind of NAT meet every other, silent ones and ones that
// answer with a reset.
func TestGrid(t *testing.T) {
	checked := 0
	for _, unsolicited := range []memnet.Firewall{memnet.Drop, memnet.Reject} {
		for _, kindA := range kinds {
			for _, kindB := range kinds {
				name := fmt.Sprintf("%v/%v/%v", []string{"open", "drop", "reject"}[unsolicited], kindA, kindB)
				bubble(t, name, func(t *testing.T) {
					// A symmetric one gets through only to one that lets
					// everybody in: the others wait for another port.
					hard := func(k memnet.NATKind) bool { return k == memnet.Symmetric || k == memnet.SymmetricSequential }
					want := !(hard(kindA) && kindB != memnet.FullCone || hard(kindB) && kindA != memnet.FullCone)

					ra, rb, a, b := natted(t, kindA, kindB)
					ra.Unsolicited(unsolicited)
					rb.Unsolicited(unsolicited)
					la, lb := at(insideA, punching), at(insideB, punching)
					pa, pb := reflexive(t, a, la, mirror), reflexive(t, b, lb, mirror)
					now := newClock(t)
					ctx := within(t, 5*time.Second)
					gap := func() time.Duration { return 20 * ms }
					var ca, cb net.Conn
					var errA, errB error
					var both sync.WaitGroup
					both.Go(func() { ca, errA = punch(t, ctx, a, la, pb, gap) })
					both.Go(func() { cb, errB = punch(t, ctx, b, lb, pa, gap) })
					both.Wait()
					if got := errA == nil && errB == nil; got != want {
						t.Fatalf("connected: %v (%v, %v), want %v", got, errA, errB, want)
					}
					checked++
					if !want {
						return
					}
					// The SYNs cross; at worst one of the two is accepted.
					if got := time.Since(now.start); got > r+oneWay {
						t.Errorf("connected after %v", got)
					}
					write(t, ca, "from a")
					write(t, cb, "from b")
					read(t, ca, "from b")
					read(t, cb, "from a")
					ca.Close()
					cb.Close()
				})
			}
		}
	}
	if want := 2 * len(kinds) * len(kinds); checked != want {
		t.Errorf("checked %d pairs, want %d", checked, want)
	}
}

func TestPunchUneven(t *testing.T) {
	bubble(t, "silent NATs", func(t *testing.T) {
		_, _, a, b := natted(t, memnet.PortRestricted, memnet.PortRestricted)
		la, lb := at(insideA, punching), at(insideB, punching)
		pa, pb := reflexive(t, a, la, mirror), reflexive(t, b, lb, mirror)
		now := newClock(t)
		done := make(chan struct{})
		go func() { // ends when the dial does; the test waits for done
			defer close(done)
			wait(80 * ms) // a's SYN has been dropped by then
			c, err := b.Dial(t.Context(), lb, pa)
			if err != nil {
				t.Errorf("b: %v", err)
				return
			}
			now.want(80*ms+r, "b connected")
			c.Close()
		}()
		c, err := a.Dial(t.Context(), la, pb)
		if err != nil {
			t.Fatal(err)
		}
		now.want(80*ms+r+oneWay, "a connected")
		<-done
		c.Close()
	})

	// The reset for the first SYN shuts the hole it had made, so that dialing
	// again and again is needed until two SYNs cross.
	bubble(t, "NATs that reset", func(t *testing.T) {
		ra, rb, a, b := natted(t, memnet.PortRestricted, memnet.PortRestricted)
		ra.Unsolicited(memnet.Reject)
		rb.Unsolicited(memnet.Reject)
		la, lb := at(insideA, punching), at(insideB, punching)
		pa, pb := reflexive(t, a, la, mirror), reflexive(t, b, lb, mirror)
		now := newClock(t)
		if _, err := a.Dial(t.Context(), la, pb); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("first dial: %v", err)
		}
		now.want(r, "refused")
		if _, err := b.Dial(t.Context(), lb, pa); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial into a hole that a reset has shut: %v", err)
		}
		now.want(2*r, "refused again")

		gap := func(seed uint64) func() time.Duration {
			random := rand.New(rand.NewPCG(seed, 0))
			return func() time.Duration { return 10*ms + time.Duration(random.Int64N(int64(20*ms))) }
		}
		ctx := within(t, 5*time.Second)
		var both sync.WaitGroup
		both.Go(func() {
			c, err := punch(t, ctx, a, la, pb, gap(1))
			if err != nil {
				t.Errorf("a: %v", err)
				return
			}
			c.Close()
		})
		both.Go(func() {
			wait(70 * ms)
			c, err := punch(t, ctx, b, lb, pa, gap(2))
			if err != nil {
				t.Errorf("b: %v", err)
				return
			}
			c.Close()
		})
		both.Wait()
	})
}

//go:build linux

package lab_test

import (
	"io"
	"testing"
)

// spread sends n messages of that size over the streams in turn, several at a
// time, each to its end before the same worker takes the next, and returns what
// that cost the relay. What the round counts as bytes are messages.
func spread(r *relay, pairs []pair, n, size int) (round, error) {
	const parallel = 16
	before, err := r.cpu()
	if err != nil {
		return round{}, err
	}
	errs := make(chan error, 2*parallel)
	message := make([]byte, size)
	for w := range parallel {
		written := make(chan struct{})
		// Both owned by this call, which waits for them; they end with their
		// messages, or when the deadline of a stream has passed.
		go func() {
			defer close(written)
			for i := w; i < n; i += parallel {
				if _, err := pairs[i%len(pairs)].dialer.Write(message); err != nil {
					errs <- err
					return
				}
				written <- struct{}{}
			}
			errs <- nil
		}()
		go func() {
			got := make([]byte, size)
			var err error
			for i := w; i < n && err == nil; i += parallel {
				_, err = io.ReadFull(pairs[i%len(pairs)].listener, got)
				<-written
			}
			errs <- err
			for range written { // after an error: let the writer end
			}
		}()
	}
	for range 2 * parallel {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	if err != nil {
		return round{}, err
	}
	after, err := r.cpu()
	return round{bytes: int64(n), cpu: after - before}, err
}

// growth opens so many streams through relays of one kind, one relay for each
// number, and measures in turns what a message costs each.
func growth(t *testing.T, start func(*testing.T) *relay, numbers []int, rounds, messages, size int) [][]round {
	t.Helper()
	relays, pairs := make([]*relay, len(numbers)), make([][]pair, len(numbers))
	for i, n := range numbers {
		relays[i] = start(t)
		var err error
		if pairs[i], err = formAll(relays[i], 0, n); err != nil {
			t.Fatal(err)
		}
		defer closeAll(pairs[i])
	}
	measured := make([][]round, len(numbers))
	for n := -1; n < rounds; n++ { // one to warm up
		for i := range numbers {
			got, err := spread(relays[i], pairs[i], messages, size)
			if err != nil {
				t.Fatal(err)
			}
			if n >= 0 {
				measured[i] = append(measured[i], got)
			}
		}
	}
	return measured
}

// TestLabRelayBenchGrowth measures what a message costs a relay that has few
// streams, and one that has many.
func TestLabRelayBenchGrowth(t *testing.T) {
	numbers := []int{50, 5000}
	if *longFlag {
		numbers = []int{50, 150, 500, 1500, 5000}
	}
	const messages = 5000
	measured := growth(t, func(t *testing.T) *relay { return startOurs(t, oursName, unlimited) }, numbers, 5, messages, pieceSize)
	for i, n := range numbers {
		t.Logf("%5d streams: %.2f µs of the relay's processor for each message of %d KiB, %.3f of the cost with %d",
			n, medianOf(measured[i], cpuPerStream), pieceSize>>10, medianRatio(measured[i], measured[0], cpuPerStream), numbers[0])
	}
	atMost(t, "cost of a message with many streams, beside that with few",
		medianRatio(measured[len(numbers)-1], measured[0], cpuPerStream), 1.25)
}

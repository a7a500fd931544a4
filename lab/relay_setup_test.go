//go:build linux

package lab_test

import (
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// formAll forms n streams from as many addresses, the first that of source
// first, several at a time.
func formAll(r *relay, first, n int) ([]pair, error) {
	const parallel = 16
	pairs, errs := make([]pair, n), make(chan error, parallel)
	for w := range parallel {
		// Owned by this call, which waits for it; forming has a limit.
		go func() {
			for i := w; i < n; i += parallel {
				var err error
				if pairs[i], err = r.stream(sourceAddress(first + i)); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var err error
	for range parallel {
		if e := <-errs; e != nil {
			err = e
		}
	}
	if err != nil {
		closeAll(pairs)
		return nil, err
	}
	return pairs, nil
}

func closeAll(pairs []pair) {
	for _, p := range pairs {
		p.close()
	}
}

// settled waits until the relay's process holds at most so many descriptors.
func (r *relay) settled(files int64) error {
	var got int64
	for deadline := time.Now().Add(formLimit); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		var err error
		if got, err = r.process.Files(); err != nil || got <= files {
			return err
		}
	}
	return fmt.Errorf("%s: %d descriptors, want %d", r.name, got, files)
}

// A setup is what forming streams through a relay took.
type setup struct {
	times []time.Duration // one stream after the other
	cpu   []round         // rounds of many at a time: bytes counts streams
}

// cpuPerStream is in microseconds.
func cpuPerStream(r round) float64 { return float64(r.cpu.Microseconds()) / float64(r.bytes) }

func (s *setup) quantile(q float64) time.Duration {
	slices.Sort(s.times)
	return s.times[min(len(s.times)-1, int(q*float64(len(s.times))))]
}

// measureSetup forms and closes streams through each relay in turns: one at a
// time for the times, many at a time for the processor time of a set-up with its
// tear-down. Those that are slow form fewer.
func measureSetup(t *testing.T, relays []*relay, rounds, streams int) []setup {
	t.Helper()
	results := make([]setup, len(relays))
	rests := make([]int64, len(relays)) // descriptors that a relay holds without streams
	for n := -1; n < rounds; n++ {      // one to warm up
		for i, r := range relays {
			count := streams
			if r.slow {
				if count /= 20; !*longFlag && n != rounds/2 {
					continue
				}
			}
			first := 2 * (n + 1) * streams // of the addresses: no two rounds of a relay share any
			times, err := oneByOne(r, first, count)
			if err != nil {
				t.Fatal(err)
			}
			if n >= 0 {
				results[i].times = append(results[i].times, times...)
			}
			if r.process == nil {
				continue
			}
			if rests[i] == 0 {
				time.Sleep(100 * time.Millisecond) // the last one's end
				if rests[i], err = r.process.Files(); err != nil {
					t.Fatal(err)
				}
			}
			cost, err := manyAtOnce(r, first+streams, count, rests[i]+2)
			if err != nil {
				t.Fatal(err)
			}
			if n >= 0 {
				results[i].cpu = append(results[i].cpu, cost)
			}
		}
	}
	return results
}

// oneByOne forms and closes count streams and returns how long each took to form.
func oneByOne(r *relay, first, count int) ([]time.Duration, error) {
	times := make([]time.Duration, count)
	for i := range times {
		began := time.Now()
		p, err := r.stream(sourceAddress(first + i))
		if err != nil {
			return nil, err
		}
		times[i] = time.Since(began)
		p.close()
	}
	return times, nil
}

// manyAtOnce forms and closes count streams, and measures until the relay, which
// rests with so many descriptors, has nothing of them any more.
func manyAtOnce(r *relay, first, count int, rest int64) (round, error) {
	if err := r.settled(rest); err != nil {
		return round{}, err
	}
	before, err := r.cpu()
	if err != nil {
		return round{}, err
	}
	began := time.Now()
	pairs, err := formAll(r, first, count)
	if err != nil {
		return round{}, err
	}
	closeAll(pairs)
	took := time.Since(began)
	if err := r.settled(rest); err != nil {
		return round{}, err
	}
	after, err := r.cpu()
	return round{bytes: int64(count), took: took, cpu: after - before}, err
}

// TestLabRelayBenchSetup measures how long a stream through a relay takes to
// form, how many round trips one after the other that is, and what it costs the
// relay.
func TestLabRelayBenchSetup(t *testing.T) {
	relays := append([]*relay{startOurs(t, oursName, unlimited)}, others(t)...)
	scale := scaleOfRelay()
	results := measureSetup(t, relays, scale.rounds, scale.streams)
	trips := make([]float64, len(relays))
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-28s %8s %10s %10s %12s %12s %12s\n", "forming and closing streams", "streams", "median ms", "p99 ms", "a second", "CPU µs each", "round trips")
	for i, r := range relays {
		var err error
		if trips[i], err = roundTrips(t, r); err != nil {
			t.Error(err)
		}
		s, cpu, rate := &results[i], "-", "-"
		if r.process != nil {
			cpu = fmt.Sprintf("%.0f", medianOf(s.cpu, cpuPerStream))
			rate = fmt.Sprintf("%.0f", medianOf(s.cpu, func(r round) float64 { return float64(r.bytes) / r.took.Seconds() }))
		}
		fmt.Fprintf(&table, "%-28s %8d %10.3f %10.3f %12s %12s %12.2f\n", r.name, len(s.times),
			milliseconds(s.quantile(0.5)), milliseconds(s.quantile(0.99)), rate, cpu, trips[i])
	}
	t.Log(strings.TrimSuffix(table.String(), "\n"))

	ours, haproxy := &results[0], &results[named(relays, haproxyName)]
	atMost(t, "median time of a set-up in ms", milliseconds(ours.quantile(0.5)), 1)
	atMost(t, "99th percentile of the time of a set-up in ms", milliseconds(ours.quantile(0.99)), 5)
	if got := math.Round(trips[0]); got != 3 {
		t.Errorf("a set-up takes %.2f round trips, want 3", trips[0])
	}
	atMost(t, "CPU of a set-up and tear-down beside "+haproxyName, medianRatio(ours.cpu, haproxy.cpu, cpuPerStream), 1.5)
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }

// farAway is half a round trip to the relay in roundTrips: long enough for
// everything else to be nothing beside it.
const farAway = 25 * time.Millisecond

// roundTrips forms a stream over a path to the relay that is long in time, and
// returns how many of its round trips that took, one after the other. Round
// trips between a requester and his XMPP server are not lengthened, so those of
// an activation are not among them.
func roundTrips(t *testing.T, r *relay) (float64, error) {
	t.Helper()
	addr := delayed(t, r.addr)
	least := math.Inf(1)
	for range 3 { // the least is the one that nothing disturbed
		began := time.Now()
		p, err := r.form(sourceAddress(0), addr)
		if err != nil {
			return 0, fmt.Errorf("%s, far away: %w", r.name, err)
		}
		least = min(least, float64(time.Since(began))/float64(2*farAway))
		p.close()
	}
	return least, nil
}

// delayed listens in front of addr and passes everything on with the delays
// that a connection over a long path has: its set-up takes a round trip, and
// every piece half of one.
func delayed(t *testing.T, addr string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Add(1)
	// Owned by the test; ends when the listener is closed at its end.
	go func() {
		defer running.Done()
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			running.Add(1)
			// Owned by the test; ends with its two connections, which have deadlines.
			go func() {
				defer running.Done()
				passOn(near, addr, time.Now())
			}()
		}
	}()
	return l.Addr().String()
}

// passOn connects near, which was accepted at began, to addr.
func passOn(near net.Conn, addr string, began time.Time) {
	defer near.Close()
	time.Sleep(time.Until(began.Add(farAway))) // the SYN travels
	far, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer far.Close()
	deadline := began.Add(formLimit)
	if near.SetDeadline(deadline) != nil || far.SetDeadline(deadline) != nil {
		return
	}
	// What a client sends leaves when its connection stands, a round trip from
	// the beginning, and takes half a one more.
	back := make(chan struct{})
	// Owned by this call, which waits for it; ends with far.
	go func() {
		defer close(back)
		late(near, far, time.Time{})
	}()
	late(far, near, began.Add(3*farAway))
	<-back
}

// late copies each piece from r to w half a round trip after it came, and not
// before earliest, and then the end.
func late(w, r net.Conn, earliest time.Time) {
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, 64)
	// Owned by this call: ends when r does.
	go func() {
		defer close(pieces)
		for {
			data := make([]byte, 4096)
			n, err := r.Read(data)
			due := time.Now().Add(farAway)
			if due.Before(earliest) {
				due = earliest
			}
			pieces <- piece{data[:n], due}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		if _, err := w.Write(p.data); err != nil {
			break
		}
	}
	if c, ok := w.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	for range pieces { // after an error: let the reader end
	}
}

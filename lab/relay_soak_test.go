//go:build linux

package lab_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/lab"
)

// soakLimit bounds every wait of a soaked stream: what a relay takes to deliver
// what is left, and more.
const soakLimit = 40 * time.Second

// A soakEnd is one end of a soaked stream: what it sent and what it got. Each
// end sends what a generator makes of its seed, so that the other can check
// every byte without keeping any.
type soakEnd struct {
	conn   *net.TCPConn
	killed bool
	sent   int64 // bytes that Write took
	got    int64
	wrong  bool  // a byte that was not sent, or not there
	ended  error // of reading: io.EOF when the other end ended its direction
}

// A soakPlan is what happens to one stream.
type soakPlan struct {
	proxy    bool     // not by a lease, but through the XEP-0065 proxy
	sizes    [2]int64 // what dialer and listener send, if they live
	seeds    [2][32]byte
	lazy     [2]bool // reads with pauses
	kill     int     // which end dies: 0, 1, or -1 for none
	reset    bool    // by a reset, not by closing
	after    time.Duration
	from     netip.Addr
	beforeIt bool // the dying one dies before the legs are joined
}

// plan makes the plan of stream n.
func plan(seed uint64, n int) soakPlan {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	p := soakPlan{
		proxy: r.IntN(8) == 0, kill: r.IntN(4), reset: r.IntN(2) == 0, beforeIt: r.IntN(6) == 0,
		after: time.Duration(r.ExpFloat64() * float64(20*time.Millisecond)), from: sourceAddress(r.IntN(1 << 12)),
	}
	if p.kill > 1 {
		p.kill = -1
	}
	for i := range 2 {
		p.sizes[i] = int64(1) << r.IntN(24) // up to 8 MiB
		p.sizes[i] += r.Int64N(p.sizes[i])
		p.lazy[i] = r.IntN(4) == 0
		for j := range p.seeds[i] {
			p.seeds[i][j] = byte(r.Uint32())
		}
	}
	return p
}

// send sends what the generator of its seed makes, and ends the direction.
func (e *soakEnd) send(seed [32]byte, size int64) {
	source, sizes := rand.NewChaCha8(seed), rand.New(rand.NewPCG(uint64(size), 1))
	buffer := make([]byte, 1<<17)
	for e.sent < size {
		piece := buffer[:min(size-e.sent, 1+sizes.Int64N(int64(len(buffer))))]
		_, _ = source.Read(piece) // it never fails
		n, err := e.conn.Write(piece)
		e.sent += int64(n)
		if err != nil {
			return // killed, or reset by the relay
		}
	}
	_ = e.conn.CloseWrite()
}

// receive reads to the end, and compares with what the other end sends.
func (e *soakEnd) receive(seed [32]byte, lazy bool) {
	source, pauses := rand.NewChaCha8(seed), rand.New(rand.NewPCG(uint64(seed[0]), 2))
	buffer, want := make([]byte, 1<<17), make([]byte, 1<<17)
	for {
		if lazy && pauses.IntN(16) == 0 {
			time.Sleep(time.Duration(pauses.IntN(20)) * time.Millisecond)
		}
		n, err := e.conn.Read(buffer)
		_, _ = source.Read(want[:n])
		if !bytes.Equal(buffer[:n], want[:n]) {
			e.wrong = true
		}
		e.got += int64(n)
		if err != nil {
			e.ended = err
			return
		}
	}
}

// soakStream forms one stream, lets it live as planned, and returns its two
// ends, dialer first, after both have ended; nil when the plan was that it is
// never joined.
func soakStream(p soakPlan, lease, proxy *relay) ([]*soakEnd, error) {
	r := lease
	if p.proxy {
		r = proxy
	}
	if p.kill >= 0 && p.beforeIt {
		return nil, killedBefore(p, r.addr)
	}
	formed, err := r.stream(p.from)
	if err != nil {
		return nil, err
	}
	ends := []*soakEnd{{conn: formed.dialer}, {conn: formed.listener}}
	var running sync.WaitGroup
	for i, e := range ends {
		if err := e.conn.SetDeadline(time.Now().Add(soakLimit)); err != nil {
			return nil, err
		}
		// Both owned by this call, which waits for them; the deadline ends them.
		running.Go(func() { e.send(p.seeds[i], p.sizes[i]) })
		running.Go(func() { e.receive(p.seeds[1-i], p.lazy[i]) })
	}
	if p.kill >= 0 {
		time.Sleep(p.after)
		dying := ends[p.kill]
		dying.killed = true
		if p.reset {
			_ = dying.conn.SetLinger(0)
		}
		dying.conn.Close()
	}
	running.Wait()
	formed.close()
	return ends, nil
}

// killedBefore ends a leg that has said half of what it had to say, or waits.
func killedBefore(p soakPlan, addr string) error {
	c, err := dialFrom(p.from, addr)
	if err != nil {
		return err
	}
	line := wire.Line{Command: "key", Argument: newKey()}.Append(nil)
	if _, err := c.Write(line[:int(p.sizes[0])%(len(line)+1)]); err != nil {
		return err
	}
	time.Sleep(p.after)
	if p.reset {
		_ = c.SetLinger(0)
	}
	return c.Close()
}

// TestLabRelaySoak sends bytes both ways over streams whose ends die at random
// moments, and then counts: the relay has kept no goroutine, descriptor or pipe,
// and every byte that it says it delivered is one that was received.
func TestLabRelaySoak(t *testing.T) {
	length := time.Minute
	if *longFlag {
		length = 10 * time.Minute
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const parallel = 12
	server := lab.StartProsody(t, lab.Component)
	dtcpd := lab.StartRelay(t, dtcpdBinary, server, unlimited)
	owner := login(t, server, "owner")
	lease, proxy := throughDtcpd(t, oursName, dtcpd, owner), throughProxy(t, "its proxy", dtcpd.Process, owner, dtcpd.Domain)

	tally := &soakTally{streams: map[string][]*soakEnd{}}
	soak := func(first int, until time.Time) {
		t.Helper()
		var running sync.WaitGroup
		for w := range parallel {
			// Owned by this call, which waits; each stream has its limit.
			running.Go(func() {
				for n := first + w; time.Now().Before(until); n += parallel {
					p := plan(seed, n)
					ends, err := soakStream(p, lease, proxy)
					if err != nil {
						t.Errorf("stream %d: %v", n, err)
						return
					}
					tally.add(t, n, p, ends)
				}
			})
		}
		running.Wait()
	}
	soak(0, time.Now().Add(3*time.Second))
	before := restOf(t, dtcpd)
	soak(1<<20, time.Now().Add(length))
	after := restOf(t, dtcpd)
	for end := time.Now().Add(shrinkLimit); after.exceeds(before) && time.Now().Before(end); time.Sleep(time.Second) {
		after = restOf(t, dtcpd)
	}
	t.Logf("%d streams, %d of them cut, %d never joined; before: %v; after: %v", tally.joined, tally.cut, tally.never, before, after)
	if after.exceeds(before) {
		t.Errorf("the relay kept something: had %v, has %v", before, after)
	}
	if tally.cut < tally.joined/10 || tally.cut > tally.joined*9/10 {
		t.Errorf("%d of %d streams were cut: the plans are wrong", tally.cut, tally.joined)
	}
	tally.compare(t, dtcpd)
}

// A soakRest is what the relay holds with no streams.
type soakRest struct {
	goroutines, files, pipes int
	rss                      int64
}

func (r soakRest) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d of pipes, RSS %.1f MiB", r.goroutines, r.files, r.pipes, float64(r.rss)/(1<<20))
}

// exceeds allows for the connection that reads the metrics, and for memory that
// comes and goes.
func (r soakRest) exceeds(base soakRest) bool {
	return r.goroutines > base.goroutines+2 || r.files > base.files+2 || r.pipes > base.pipes || r.rss > base.rss+16<<20
}

// restOf waits until the relay has no connection left and measures.
func restOf(t *testing.T, dtcpd *lab.Relay) (r soakRest) {
	t.Helper()
	var busy []string
	for end := time.Now().Add(soakLimit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		m, err := dtcpd.Metrics()
		if err != nil {
			t.Fatal(err)
		}
		busy = nil
		for name, n := range m {
			if n != 0 && (name == "dtcpd_relay_streams" || strings.HasPrefix(name, "dtcpd_relay_connections{")) {
				busy = append(busy, fmt.Sprintf("%s %.0f", name, n))
			}
		}
		if len(busy) > 0 {
			continue
		}
		r.goroutines = int(m["go_goroutines"])
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", dtcpd.PID()))
		if err != nil {
			t.Fatal(err)
		}
		r.files = len(files)
		for _, file := range files {
			if target, err := os.Readlink(file); err == nil && strings.HasPrefix(target, "pipe:") {
				r.pipes++
			}
		}
		if r.rss, err = dtcpd.RSS(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	slices.Sort(busy)
	t.Fatalf("the relay does not come to rest: %s", strings.Join(busy, ", "))
	return r
}

// A soakTally is what came of all streams.
type soakTally struct {
	mu                 sync.Mutex
	joined, cut, never int
	streams            map[string][]*soakEnd // by the addresses of the ends: "listener dialer"
}

// What goes before the soak on each stream, in bytes: the key line, and the
// answer to it.
const (
	beforeToListener = int64(len("key:") + 22 + len("\n"))
	beforeToDialer   = 1
)

// add checks one stream by itself.
func (y *soakTally) add(t *testing.T, n int, p soakPlan, ends []*soakEnd) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if ends == nil {
		y.never++
		return
	}
	y.joined++
	if p.kill >= 0 {
		y.cut++
	}
	name := ends[1].conn.LocalAddr().String() + " " + ends[0].conn.LocalAddr().String()
	if y.streams[name] != nil {
		t.Errorf("stream %d: its addresses were used before: %s", n, name)
	}
	y.streams[name] = ends
	for i, e := range ends {
		other := ends[1-i]
		switch {
		case e.wrong:
			t.Errorf("stream %d (%+v): end %d got bytes that were not sent", n, p, i)
		case e.got > other.sent:
			t.Errorf("stream %d (%+v): end %d got %d bytes, %d were sent", n, p, i, e.got, other.sent)
		case p.kill < 0 && (e.got != p.sizes[1-i] || e.ended != io.EOF):
			t.Errorf("stream %d (%+v): end %d got %d bytes of %d, then %v", n, p, i, e.got, p.sizes[1-i], e.ended)
		case os.IsTimeout(e.ended):
			t.Errorf("stream %d (%+v): end %d heard nothing more after %d bytes", n, p, i, e.got)
		}
	}
}

// compare holds the usage log and the metrics against what was received.
func (y *soakTally) compare(t *testing.T, dtcpd *lab.Relay) {
	t.Helper()
	var total int64
	checked := 0
	for _, u := range awaitUsage(t, dtcpd, y.joined) {
		total += u.ToListener + u.ToDialer
		listener, dialer := u.Listener, u.Dialer
		toListener, toDialer := u.ToListener, u.ToDialer
		ends := y.streams[listener+" "+dialer]
		if ends == nil && u.Kind == "proxy" { // which leg of a proxy came first is nobody's choice
			ends = y.streams[dialer+" "+listener]
			toListener, toDialer = toDialer, toListener
		}
		if ends == nil {
			t.Errorf("usage log: %+v was none of ours", u)
			continue
		}
		checked++
		for i, delivered := range []int64{toDialer - beforeToDialer, toListener - beforeToListener} {
			e, other := ends[i], ends[1-i]
			// One that was killed need not have read what was delivered to it.
			if delivered > other.sent || delivered < e.got || !e.killed && delivered != e.got {
				t.Errorf("usage log: %d bytes delivered to end %d, which got %d of %d (killed: %v, the other: %v; it ended with %v): %+v",
					delivered, i, e.got, other.sent, e.killed, other.killed, e.ended, u)
			}
		}
		if killed := ends[0].killed || ends[1].killed; !killed && u.Why != "closed" {
			t.Errorf("usage log: ended for %q, want closed: %+v", u.Why, u)
		}
	}
	if checked != y.joined {
		t.Errorf("usage log: %d streams, want %d", checked, y.joined)
	}
	m, err := dtcpd.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	in, out := m[`dtcpd_relay_bytes_total{direction="in"}`], m[`dtcpd_relay_bytes_total{direction="out"}`]
	t.Logf("%d MB delivered", total/1e6)
	if int64(out) != total || in < out {
		t.Errorf("metrics: %.0f bytes in, %.0f out; the usage log has %d", in, out, total)
	}
	if n := m[`dtcpd_relay_streams_total{kind="lease"}`] + m[`dtcpd_relay_streams_total{kind="proxy"}`]; int(n) != y.joined {
		t.Errorf("metrics: %.0f streams, want %d", n, y.joined)
	}
	if lost := m["dtcpd_usage_lost_total"]; lost != 0 {
		t.Errorf("metrics: %.0f records lost", lost)
	}
}

// Package memnet is a TCP internet in memory, for tests: hosts, NATs,
// firewalls, latency, and the faults of real networks. It has the timing of
// TCP to the nanosecond when it runs under [testing/synctest], and works in
// real time as well.
//
//	n := memnet.New()
//	a := n.Host("a", netip.MustParseAddr("192.0.2.1"))
//	b := n.Host("b", netip.MustParseAddr("192.0.2.2"))
//	n.SetLatency(a, b, 50*time.Millisecond) // one way; r below is 100 ms
//
// # Timing
//
// A dial returns after one round trip r, successful or refused. Accept returns
// after 1.5 r, together with whatever the dialer wrote at once. A packet that
// nothing answers is sent again as Linux does: a SYN after 1, 3, 7, 15, 31 and
// 63 s, and the dial fails at 127 s with ETIMEDOUT; data after a round trip
// plus 200 ms, and then twice as long each time up to 120 s, and the
// connection fails after fifteen repetitions. Bandwidth is unlimited, but no
// more than a receive window is in flight, so that a reader who stops holds
// the writer up. Packets that are due at the same instant arrive in the order
// in which they were sent.
//
// # What is modelled
//
// Connections behave as those of Linux: simultaneous open, half-close, resets
// by linger and by unread input, one error report per reset, packets of an
// earlier connection on the same pair of addresses. Not modelled: TIME_WAIT,
// keepalive, congestion, loss other than by the faults below, and the expiry
// of NAT mappings other than by [Router.Reboot] or a reset.
//
// # Goroutines
//
// Connections have no goroutines of their own. Everything blocks on channels
// and timers, so a synctest bubble sees it as durably blocked. When all
// connections and listeners are closed nothing remains but timers of at most a
// minute. A Net must be created and used inside one bubble, or outside any.
// All methods of all types may be called concurrently.
package memnet

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// defaultWindow is the receive window of a connection in bytes.
const defaultWindow = 256 << 10

// A Net is an internet: a set of hosts and routers, and the distances between
// them. Make one with [New]. It needs no closing.
type Net struct {
	// mu guards everything in the package. It is never held while waiting,
	// nor while a tap runs. Take it by lock, release it by unlock.
	mu sync.Mutex

	queue  eventQueue  // what is to happen, soonest first
	timer  *time.Timer // fires when the head of queue is due
	armed  time.Time   // when timer fires; zero if it is stopped
	serial uint64      // of the last event, to order those of one instant
	ids    uint64      // of the last connection

	internet *realm
	hosts    []*Host
	names    map[string][]netip.Addr

	latency        map[hostPair]time.Duration
	defaultLatency time.Duration
	cuts           map[hostPair]bool

	window        int
	splitBytes    bool
	resetDiscards bool

	taps taps
}

// New returns an empty internet: no latency, a receive window of 256 KiB.
func New() *Net {
	return &Net{
		internet: newRealm(nil),
		names:    make(map[string][]netip.Addr),
		latency:  make(map[hostPair]time.Duration),
		cuts:     make(map[hostPair]bool),
		window:   defaultWindow,
	}
}

func (n *Net) lock() { n.mu.Lock() }

// unlock lets everything that is due happen, releases the lock, and runs the
// taps for the packets sent meanwhile.
func (n *Net) unlock() {
	n.pump()
	n.runTaps()
	n.mu.Unlock()
}

// await gives the lock up until something changes.
func (n *Net) await(change <-chan struct{}) {
	n.unlock()
	<-change
	n.lock()
}

// Host adds a host on the open internet with the given addresses. It panics if
// an address is taken. The name is for messages only.
func (n *Net) Host(name string, addrs ...netip.Addr) *Host {
	n.lock()
	defer n.unlock()
	return n.newHost(name, nil, addrs)
}

// NAT adds a router on the open internet whose outside address is public. It
// panics if the address is taken.
func (n *Net) NAT(name string, public netip.Addr, kind NATKind) *Router {
	n.lock()
	defer n.unlock()
	return n.newRouter(name, n.internet, public, kind)
}

// AddName makes name stand for addr, beside those it already stands for, in
// [Host.DialContext].
func (n *Net) AddName(name string, addr netip.Addr) {
	n.lock()
	defer n.unlock()
	n.names[name] = append(n.names[name], addr.Unmap())
}

// hostPair names two hosts, in either order.
type hostPair struct{ a, b *Host }

func pairOf(a, b *Host) hostPair {
	if a.serial > b.serial {
		a, b = b, a
	}
	return hostPair{a, b}
}

// SetLatency sets the time a packet takes from a to b, and from b to a,
// whatever lies between them. A router is as far away as the nearest of the
// hosts behind it for which a latency was set, and at no distance from these. Packets already on their way are not affected, and none
// overtakes another of its connection.
func (n *Net) SetLatency(a, b *Host, oneWay time.Duration) {
	n.lock()
	defer n.unlock()
	n.latency[pairOf(a, b)] = oneWay
}

// SetDefaultLatency sets the one-way latency between hosts for which
// [Net.SetLatency] says nothing. It is zero at first.
func (n *Net) SetDefaultLatency(oneWay time.Duration) {
	n.lock()
	defer n.unlock()
	n.defaultLatency = oneWay
}

// oneWay is the latency between two hosts. From a host to itself it is none.
func (n *Net) oneWay(a, b *Host) time.Duration {
	if a == b {
		return 0
	}
	if d, ok := n.latency[pairOf(a, b)]; ok {
		return d
	}
	return n.defaultLatency
}

// distance is the latency from a host to a router.
func (n *Net) distance(a *Host, r *Router) time.Duration {
	if a.behind(r) {
		return 0
	}
	nearest, found := n.defaultLatency, false
	for _, b := range n.hosts {
		if d, ok := n.latency[pairOf(a, b)]; ok && b.behind(r) && (!found || d < nearest) {
			nearest, found = d, true
		}
	}
	return nearest
}

// SetWindow sets the receive window, in bytes, of connections made from now
// on. It panics unless bytes is positive.
func (n *Net) SetWindow(bytes int) {
	if bytes <= 0 {
		panic(fmt.Sprintf("memnet: window of %d bytes", bytes))
	}
	n.lock()
	defer n.unlock()
	n.window = bytes
}

// SplitBytes makes every Read on every connection return one byte at most, as
// if each byte had come in a packet of its own. The packets that a tap sees
// stay whole.
func (n *Net) SplitBytes(on bool) {
	n.lock()
	defer n.unlock()
	n.splitBytes = on
}

// ResetDiscards chooses what becomes of input that had arrived before a reset
// and is not read yet. It stays readable as on Linux, which is the default, or
// is lost as on Windows and the BSDs.
func (n *Net) ResetDiscards(on bool) {
	n.lock()
	defer n.unlock()
	n.resetDiscards = on
}

// Partition cuts every one of the given hosts off from all hosts that are not
// among them, as by [Host.Cut]. Hosts added later are not affected.
func (n *Net) Partition(group ...*Host) {
	n.lock()
	defer n.unlock()
	inside := make(map[*Host]bool)
	for _, h := range group {
		inside[h] = true
	}
	for _, h := range group {
		for _, other := range n.hosts {
			if !inside[other] {
				n.cuts[pairOf(h, other)] = true
			}
		}
	}
}

// Heal undoes every [Net.Partition] and [Host.Cut].
func (n *Net) Heal() {
	n.lock()
	defer n.unlock()
	clear(n.cuts)
}

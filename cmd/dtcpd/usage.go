package main

import (
	"encoding/json"
	"math"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
)

// maxUsageQueue is how many records wait for a slow disk; further ones are lost,
// and counted.
const maxUsageQueue = 4096

// usageRecord is a line of the usage log: a stream that has ended.
type usageRecord struct {
	Time       time.Time `json:"time"`        // of the end
	Owner      string    `json:"owner"`       // bare JID
	Kind       string    `json:"kind"`        // "lease" or "proxy"
	Listener   string    `json:"listener"`    // where the owner's leg came from
	Dialer     string    `json:"dialer"`      // where the other came from
	ToListener int64     `json:"to_listener"` // bytes delivered
	ToDialer   int64     `json:"to_dialer"`
	Seconds    float64   `json:"seconds"`
	Why        string    `json:"why"`
}

func newUsageRecord(u relay.Usage) usageRecord {
	return usageRecord{
		Time: u.End.UTC().Truncate(time.Millisecond), Owner: u.Owner.String(), Kind: u.Kind,
		Listener: unmapped(u.Listener).String(), Dialer: unmapped(u.Dialer).String(),
		ToListener: u.ToListener, ToDialer: u.ToDialer,
		Seconds: float64(u.End.Sub(u.Start).Milliseconds()) / 1000, Why: u.Why,
	}
}

// unmapped is how people know an IPv4 address that came to an IPv6 socket.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// blurredRecord keeps what a bill for a domain needs, and little that tells who
// did what: the domain of the user, the network of the address, the hour, and
// sizes of one digit.
func blurredRecord(u relay.Usage) usageRecord {
	r := newUsageRecord(u)
	r.Time = r.Time.Truncate(time.Hour)
	r.Owner = u.Owner.Domain()
	r.Listener, r.Dialer = network(u.Listener), network(u.Dialer)
	r.ToListener, r.ToDialer = int64(oneDigit(float64(r.ToListener))), int64(oneDigit(float64(r.ToDialer)))
	r.Seconds = oneDigit(r.Seconds)
	return r
}

// network is the /24 or /48 of an address.
func network(a netip.AddrPort) string {
	ip, bits := a.Addr().Unmap().WithZone(""), 48
	if ip.Is4() {
		bits = 24
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}

func oneDigit(n float64) float64 {
	if n < 1 {
		return math.Round(n)
	}
	unit := math.Pow10(int(math.Log10(n)))
	return math.Round(n/unit) * unit
}

// usageLog appends records to a file. The relay's goroutines put them into a
// queue, and one of its own writes.
type usageLog struct {
	path    string
	log     *logger
	blur    atomic.Bool
	queue   chan relay.Usage
	reopen  chan struct{}
	lost    atomic.Int64
	stopped chan struct{}
}

// openUsageLog makes the file if it is not there; its directory must be.
func openUsageLog(path string, blur bool, log *logger) (*usageLog, error) {
	u := &usageLog{
		path: path, log: log, queue: make(chan relay.Usage, maxUsageQueue),
		reopen: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	u.blur.Store(blur)
	f, err := u.open()
	if err != nil {
		return nil, err
	}
	// Owned by the log; close ends it and waits for it.
	go u.write(f)
	return u, nil
}

func (u *usageLog) open() (*os.File, error) {
	return os.OpenFile(u.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
}

// add never blocks.
func (u *usageLog) add(record relay.Usage) {
	select {
	case u.queue <- record:
	default:
		u.lost.Add(1)
	}
}

// rotated has the file opened anew, after somebody moved it away.
func (u *usageLog) rotated() {
	select {
	case u.reopen <- struct{}{}:
	default: // it is about to be
	}
}

// close writes what waits. Nobody may call add any more.
func (u *usageLog) close() {
	close(u.queue)
	<-u.stopped
}

// write appends each record by one write of a whole line.
func (u *usageLog) write(f *os.File) {
	defer close(u.stopped)
	defer func() { f.Close() }()
	failing := false
	for {
		select {
		case <-u.reopen:
			again, err := u.open()
			if err != nil {
				u.log.say("usage log: %v; the old file goes on", err)
				continue
			}
			f.Close()
			f = again
		case record, more := <-u.queue:
			if !more {
				return
			}
			line := newUsageRecord(record)
			if u.blur.Load() {
				line = blurredRecord(record)
			}
			text, err := json.Marshal(line)
			if err == nil {
				_, err = f.Write(append(text, '\n'))
			}
			if err != nil {
				u.lost.Add(1)
				if !failing { // once, not for every stream
					u.log.say("usage log: %v", err)
				}
			}
			failing = err != nil
		}
	}
}

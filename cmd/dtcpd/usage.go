package main

import (
	"encoding/json"
	"io"
	"math"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
)

// maxUsageQueue is how many records wait for a slow disk, far more than streams
// can end at once; further ones are lost, and counted.
const maxUsageQueue = 1 << 16

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
	lost    atomic.Int64
	reopen  chan struct{}
	wake    chan struct{} // there are records; closed by close
	stopped chan struct{}

	mu    sync.Mutex
	queue []relay.Usage

	// Of the goroutine that writes.
	torn   bool  // the file ends within a line
	failed int64 // records that were lost since one was written
}

// openUsageLog makes the file if it is not there; its directory must be.
func openUsageLog(path string, blur bool, log *logger) (*usageLog, error) {
	u := &usageLog{
		path: path, log: log,
		reopen: make(chan struct{}, 1), wake: make(chan struct{}, 1), stopped: make(chan struct{}),
	}
	u.blur.Store(blur)
	f, err := u.open()
	if err != nil {
		return nil, err
	}
	// Owned by the log; close ends it and waits for it.
	go u.run(f)
	return u, nil
}

func (u *usageLog) open() (*os.File, error) {
	f, err := os.OpenFile(u.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err == nil {
		u.torn = endsTorn(u.path)
	}
	return f, err
}

// endsTorn reports whether a file ends within a line, as a full disk leaves it.
func endsTorn(path string) bool {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false // it may be written, and not read
	}
	defer f.Close()
	var last [1]byte
	_, err = f.ReadAt(last[:], info.Size()-1)
	return err == nil && last[0] != '\n'
}

// add never blocks.
func (u *usageLog) add(record relay.Usage) {
	u.mu.Lock()
	full := len(u.queue) == maxUsageQueue
	if !full {
		u.queue = append(u.queue, record)
	}
	u.mu.Unlock()
	if full {
		u.lost.Add(1)
		return
	}
	select {
	case u.wake <- struct{}{}:
	default: // it is awake
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
	close(u.wake)
	<-u.stopped
}

// run writes what is put into the queue, until it is closed.
func (u *usageLog) run(f *os.File) {
	defer close(u.stopped)
	defer func() { f.Close() }()
	for more := true; more; {
		select {
		case <-u.reopen:
			again, err := u.open()
			if err != nil {
				u.log.say("usage log: %v; the old file goes on", err)
				continue
			}
			f.Close()
			f = again
		case _, more = <-u.wake:
			u.mu.Lock()
			records := u.queue
			u.queue = nil
			u.mu.Unlock()
			for _, r := range records {
				u.write(f, r)
			}
		}
	}
}

// write appends a record by one write of a whole line.
func (u *usageLog) write(w io.Writer, record relay.Usage) {
	line := newUsageRecord(record)
	if u.blur.Load() {
		line = blurredRecord(record)
	}
	var text []byte
	if u.torn { // so that only the line is lost that was being written
		text = append(text, '\n')
	}
	marshaled, err := json.Marshal(line)
	if err == nil {
		text = append(append(text, marshaled...), '\n')
		var n int
		if n, err = w.Write(text); n > 0 {
			u.torn = text[n-1] != '\n'
		}
	}
	switch {
	case err != nil:
		u.lost.Add(1)
		if u.failed++; u.failed == 1 { // once, not for every stream
			u.log.say("usage log: %v: records are lost until it can be written again", err)
		}
	case u.failed > 0:
		u.log.say("usage log: it is written again; %d records are lost", u.failed)
		u.failed = 0
	}
}

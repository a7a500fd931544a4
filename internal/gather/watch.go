package gather

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Watcher says when the machine may have come into another network. Its
// methods may be called by several goroutines.
type Watcher struct {
	changed chan struct{}
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// A hint says that something about the network has changed.
type hint struct {
	// sure: even if everything looks as before. What goes and comes back the
	// same may be another network: many have 192.168.1.0/24.
	sure bool
}

// Changes come in bursts: a link, its addresses, a route. A burst is over when
// nothing has come for settleTime, or has lasted for settleMost.
const (
	settleTime = 500 * time.Millisecond
	settleMost = 3 * time.Second
)

// Watch begins to watch, and sends nothing. The caller closes the Watcher.
func Watch() *Watcher {
	return watch(hints, func() []netip.Addr {
		interfaces, err := System()
		if err != nil {
			return nil
		}
		return HostAddrs(interfaces)
	})
}

// watch has source send hints until ctx ends, and look say what the network
// looks like.
func watch(source func(ctx context.Context, to chan<- hint), look func() []netip.Addr) *Watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watcher{changed: make(chan struct{}, 1), cancel: cancel}
	to := make(chan hint)
	before := look()
	// Owned by w; both end with ctx; Close waits.
	w.running.Go(func() { source(ctx, to) })
	w.running.Go(func() { w.judge(ctx, to, before, look) })
	return w
}

// Changed returns a channel that has one value after any number of changes. One
// goroutine should receive from it.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Close ends the watching. It may be called again.
func (w *Watcher) Close() {
	w.cancel()
	w.running.Wait()
}

// judge looks at the network after each burst of hints.
func (w *Watcher) judge(ctx context.Context, from <-chan hint, before []netip.Addr, look func() []netip.Addr) {
	for {
		sure, ok := burst(ctx, from)
		if !ok {
			return
		}
		after := look()
		if !sure && slices.Equal(before, after) {
			continue
		}
		before = after
		select {
		case w.changed <- struct{}{}:
		default: // the last one was not taken yet
		}
	}
}

// burst waits until a burst of hints is over, and reports whether one of them
// was sure. It returns false when ctx has ended.
func burst(ctx context.Context, from <-chan hint) (sure, ok bool) {
	var quiet, most <-chan time.Time // nil before the first hint
	for {
		select {
		case h := <-from:
			sure = sure || h.sure
			quiet = time.After(settleTime)
			if most == nil {
				most = time.After(settleMost)
			}
		case <-quiet:
			return sure, true
		case <-most:
			return sure, true
		case <-ctx.Done():
			return false, false
		}
	}
}

// pollInterval is how often the network is looked at where nobody says that it
// has changed.
const pollInterval = 15 * time.Second

// poll has the network looked at, time and again, until ctx ends.
func poll(ctx context.Context, to chan<- hint) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			give(ctx, to, hint{})
		case <-ctx.Done():
			return
		}
	}
}

// give hands a hint over unless ctx ends first.
func give(ctx context.Context, to chan<- hint, h hint) {
	select {
	case to <- h:
	case <-ctx.Done():
	}
}

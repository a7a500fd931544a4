package gather

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatch: bursts of hints become one change, which comes when they are over,
// or after three seconds of them; what changes nothing is none, unless sure.
func TestWatch(t *testing.T) {
	ms := time.Millisecond
	type told struct {
		at   time.Duration
		hint hint
		addr string // of the machine from then on; empty: as before
	}
	var endless []told
	for i := range 40 {
		endless = append(endless, told{at: time.Duration(i) * 100 * ms, addr: "192.0.2.2"})
	}
	for what, test := range map[string]struct {
		told []told
		want []time.Duration
	}{
		"nothing":                     {nil, nil},
		"a link that changes nothing": {[]told{{at: 0}}, nil},
		"another address":             {[]told{{at: 100 * ms, addr: "192.0.2.2"}}, []time.Duration{600 * ms}},
		"a burst":                     {[]told{{at: 0}, {at: 400 * ms}, {at: 800 * ms, addr: "192.0.2.2"}}, []time.Duration{1300 * ms}},
		"gone and back in one burst":  {[]told{{at: 0, addr: "192.0.2.2"}, {at: 100 * ms, addr: "192.0.2.1"}}, nil},
		"the same, and it is certain": {[]told{{at: 0, hint: hint{sure: true}}, {at: 100 * ms}}, []time.Duration{600 * ms}},
		"two changes":                 {[]told{{at: 0, addr: "192.0.2.2"}, {at: 2000 * ms, addr: "192.0.2.1"}}, []time.Duration{500 * ms, 2500 * ms}},
		"a burst that does not end":   {endless, []time.Duration{3000 * ms}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var addr atomic.Value
			addr.Store("192.0.2.1")
			source := func(ctx context.Context, to chan<- hint) {
				began := time.Now()
				for _, s := range test.told {
					timer := time.NewTimer(time.Until(began.Add(s.at)))
					<-timer.C
					if s.addr != "" {
						addr.Store(s.addr)
					}
					give(ctx, to, s.hint)
				}
			}
			w := watch(source, func() []netip.Addr { return []netip.Addr{netip.MustParseAddr(addr.Load().(string))} })
			defer w.Close()
			began := time.Now()
			var got []time.Duration
			for over := time.After(time.Minute); ; {
				select {
				case <-w.Changed():
					got = append(got, time.Since(began))
					continue
				case <-over:
				}
				break
			}
			if len(got) != len(test.want) {
				t.Fatalf("%s: changes after %v, want %v", what, got, test.want)
			}
			for i := range got {
				if got[i] != test.want[i] {
					t.Errorf("%s: changes after %v, want %v", what, got, test.want)
				}
			}
		})
	}
}

// TestWatchByClock: without the kernel's help an address is seen at the next
// look. Changes that nobody takes are one, and hold nothing up.
func TestWatchByClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		w := watch(poll, func() []netip.Addr { return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(looks.Add(1))})} })
		began := time.Now()
		<-w.Changed()
		if took := time.Since(began); took != pollInterval+settleTime {
			t.Errorf("noticed after %v, want %v", took, pollInterval+settleTime)
		}
		hour := time.NewTimer(time.Hour)
		<-hour.C
		<-w.Changed()
		select {
		case <-w.Changed():
			t.Error("two changes were kept")
		default:
		}
		if n := looks.Load(); n < 200 {
			t.Errorf("looked %d times in an hour", n)
		}
		w.Close()
		w.Close()
	})
}

// TestWatchSystem begins and ends with the system's own hints.
func TestWatchSystem(t *testing.T) {
	w := Watch()
	w.Close()
}

package relay

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestQuotaFilled(t *testing.T) {
	got := Limits{PerAddress: Quota{HalfOpen: 3, Streams: -1, Rate: 5}, Connections: -1}.filled()
	want := Limits{
		PerAddress:  Quota{HalfOpen: 3, Streams: noLimitInt, Handshakes: 50, Rate: 5, BytesPerDay: noLimit},
		PerOwner:    defaultPerOwner,
		Connections: noLimitInt,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if again := got.filled(); again != got {
		t.Errorf("filled again: %+v", again)
	}
}

func TestOrigin(t *testing.T) {
	for _, c := range []struct{ address, want string }{
		{"192.0.2.1", "192.0.2.1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"2001:db8:1:2:3::4", "2001:db8:1:2::"},
		{"fe80::1%eth0", "fe80::"},
	} {
		if got := origin(netip.MustParseAddr(c.address)); got != netip.MustParseAddr(c.want) {
			t.Errorf("%s counts for %v, want %s", c.address, got, c.want)
		}
	}
	if got := origin(netip.Addr{}); got.IsValid() {
		t.Errorf("no address counts for %v", got)
	}
}

// TestMeterRate: whoever takes what there is room for, for as long as he likes,
// gets the rate and no more, whatever he asks for at a time.
func TestMeterRate(t *testing.T) {
	for _, perSecond := range []int64{1, 50, 1000, 1 << 20, 1 << 40} {
		for _, piece := range []int64{1, 4096, 1 << 20, math.MaxInt64} {
			var m meter
			now := noon
			m.limit(Quota{Rate: perSecond, BytesPerDay: noLimit}, now)
			span := 20 * time.Second
			sum, asked, burst := int64(0), 0, max(perSecond, leastBurst)
			for asked < 5000 && now.Before(noon.Add(span)) {
				asked++
				n, wait := m.room(now)
				if n = min(n, piece); n > 0 {
					m.spend(n, now)
					sum += n
					continue
				}
				if wait <= 0 {
					t.Fatalf("%d a second in pieces of %d: no room, and no time to wait", perSecond, piece)
				}
				now = now.Add(wait)
			}
			passed := now.Sub(noon).Seconds()
			if most := float64(burst) + passed*float64(perSecond); float64(sum) > most+1 {
				t.Errorf("%d a second in pieces of %d: %d bytes in %.3f s, at most %.0f may pass", perSecond, piece, sum, passed, most)
			}
			if least := passed * float64(perSecond) * 0.99; float64(sum) < least {
				t.Errorf("%d a second in pieces of %d: %d bytes in %.3f s, at least %.0f should pass", perSecond, piece, sum, passed, least)
			}
			if piece >= 1<<20 && perSecond < 1<<40 && asked > 20*200 {
				t.Errorf("%d a second: asked %d times in %.0f s", perSecond, asked, passed)
			}
		}
	}
}

// TestMeterOverdrawn: streams that are told of the same room at once make it
// good.
func TestMeterOverdrawn(t *testing.T) {
	var m meter
	m.limit(Quota{Rate: 1 << 20, BytesPerDay: noLimit}, noon)
	for range 10 {
		m.spend(1<<20, noon)
	}
	if n, wait := m.room(noon.Add(8 * time.Second)); n > 0 || wait < 900*time.Millisecond {
		t.Errorf("8 s after 10 MiB of 1 MiB a second: %d, %v", n, wait)
	}
	if n, _ := m.room(noon.Add(9500 * time.Millisecond)); n != 1<<19 {
		t.Errorf("9.5 s after 10 MiB of 1 MiB a second: %d", n)
	}
}

func TestMeterDay(t *testing.T) {
	var m meter
	m.limit(Quota{Rate: noLimit, BytesPerDay: 100}, noon)
	m.spend(60, noon)
	if n, wait := m.room(noon); n != 40 || wait != 0 || m.exhausted(noon) {
		t.Errorf("after 60 of 100 bytes: %d, %v, exhausted: %v", n, wait, m.exhausted(noon))
	}
	m.spend(45, noon)
	evening := noon.Add(12*time.Hour - time.Second)
	if n, wait := m.room(evening); n != 0 || wait != 0 || !m.exhausted(evening) {
		t.Errorf("after 105 of 100 bytes: %d, %v, exhausted: %v", n, wait, m.exhausted(evening))
	}
	midnight := noon.Add(12 * time.Hour)
	if n, _ := m.room(midnight); n != 100 || m.exhausted(midnight) {
		t.Errorf("the day after: %d, exhausted: %v", n, m.exhausted(midnight))
	}
	m.limit(Quota{Rate: noLimit, BytesPerDay: noLimit}, evening)
	if n, _ := m.room(evening); n != noLimit || m.exhausted(evening) {
		t.Errorf("without a limit: %d, exhausted: %v", n, m.exhausted(evening))
	}
}

// TestLedgerForgets: accounts are there while they matter, and their number is
// bounded where strangers choose their names.
func TestLedgerForgets(t *testing.T) {
	l := newLedger[string](Quota{Rate: noLimit, BytesPerDay: 100, Handshakes: 1, HalfOpen: 1, Streams: 1})
	const most = 500
	l.most = most
	now := noon
	visit := func(name string, bytes int64) {
		a := l.account(name, now)
		a.handshake(now)
		a.bytes.spend(bytes, now)
		l.settle(a, now)
	}
	visit("alice", 60)
	for i := range 2 * most {
		visit(fmt.Sprint(i), 0)
	}
	now = now.Add(2 * burstTime * time.Second)
	l.forget(now)
	if len(l.accounts) != 1 {
		t.Fatalf("%d accounts are kept, want alice's for what she has used", len(l.accounts))
	}
	visit("alice", 20)
	now = now.Add(2 * burstTime * time.Second)
	l.forget(now)
	if n, _ := l.account("alice", now).bytes.room(now); n != 20 {
		t.Errorf("alice has %d of 100 bytes left after 80", n)
	}
	l.settle(l.account("alice", now), now)
	for i := range most + 1 {
		visit(fmt.Sprint(i), 1)
	}
	now = now.Add(2 * burstTime * time.Second)
	l.forget(now)
	if len(l.accounts) != most || l.accounts["alice"] != nil || l.accounts["1"] == nil {
		t.Errorf("%d accounts, alice among them: %v; want %d, without who came first", len(l.accounts), l.accounts["alice"] != nil, most)
	}
	if next := l.next(); !next.Equal(noon.Add(12 * time.Hour)) {
		t.Errorf("the next thing to do is at %v, want midnight", next)
	}
	l.forget(noon.Add(12 * time.Hour))
	if len(l.accounts) != 0 || !l.next().IsZero() {
		t.Errorf("%d accounts are left the day after, until %v", len(l.accounts), l.next())
	}
}

// TestLedgerIsBounded: whoever comes from ever new addresses fills no memory
// before their time is over, and who is looked at meanwhile is not forgotten.
func TestLedgerIsBounded(t *testing.T) {
	l := newLedger[int](Quota{Rate: noLimit, BytesPerDay: noLimit, Handshakes: 1, HalfOpen: 1, Streams: 1})
	l.most = 100
	l.settle(l.account(-1, noon), noon)
	looked := l.account(-1, noon)
	for i := range 1000 {
		l.settle(l.account(i, noon), noon)
	}
	if n := len(l.accounts); n != l.most+1 || l.accounts[-1] != looked {
		t.Errorf("%d accounts, want %d and the one that is looked at", n, l.most)
	}
	l.settle(looked, noon)
	if n := len(l.accounts); n != l.most || l.accounts[-1] != looked || l.accounts[999] == nil {
		t.Errorf("%d accounts, want the last %d", n, l.most)
	}
}

// TestLedgerAndClocks: what is due is due by the monotonic clock. By the other,
// which can jump ahead of all that is due, the alarm would not be set any more.
func TestLedgerAndClocks(t *testing.T) {
	l := newLedger[string](Quota{Rate: noLimit, BytesPerDay: 100, Handshakes: 1, HalfOpen: 1, Streams: 1})
	now := time.Now()
	a := l.account("alice", now)
	l.settle(a, now)
	for _, what := range []string{"idle", "kept"} {
		next := l.next()
		if !strings.Contains(next.String(), " m=") {
			t.Errorf("%s until %v, without the monotonic clock", what, next)
		}
		if what == "idle" {
			a.bytes.spend(1, next)
			l.forget(next)
		}
	}
	a.due = now // by the clock of days, which was set back, today is not over
	l.forget(now)
	if l.accounts["alice"] == nil || !l.next().After(now) {
		t.Error("forgotten before the day is over")
	}
}

// TestLedgerKeepsDebt: who has used up his rate is not new after a while.
func TestLedgerKeepsDebt(t *testing.T) {
	l := newLedger[string](Quota{Rate: 1000, BytesPerDay: noLimit, Handshakes: 1, HalfOpen: 1, Streams: 1})
	a := l.account("alice", noon)
	a.bytes.spend(leastBurst, noon)
	l.settle(a, noon)
	now := noon
	for steps := 0; !l.next().IsZero(); steps++ {
		if now = l.next(); steps > 10 {
			t.Fatal("never forgotten")
		}
		l.forget(now)
	}
	if d := now.Sub(noon); d < leastBurst*time.Second/1000 {
		t.Errorf("forgotten after %v, %d bytes at 1,000 a second", d, leastBurst)
	}
}

// TestReload: limits that change hold for who is there.
func TestReload(t *testing.T) {
	d := newDesk(Limits{})
	d.do("L arrives 192.0.2.1")
	d.do("L serves k poor")
	a := d.legs["L"].owner
	a.bytes.spend(1000, d.now)
	d.core.reload(Limits{PerOwner: Quota{Streams: 5, Rate: 7, BytesPerDay: 500}, PerAddress: Quota{HalfOpen: 1}}, d.now)
	if got, want := a.quota, (Quota{HalfOpen: 128, Streams: 1, Handshakes: 50, Rate: 7, BytesPerDay: 500}); got != want {
		t.Errorf("the owner of a lease for 1 stream may %+v, want %+v", got, want)
	}
	if got, want := d.do("A arrives 192.0.2.1"), "A ends with error:quota (address-half-open)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	a.bytes.spend(500, d.now)
	for _, c := range [][2]string{
		{"B arrives 192.0.2.2", ""},
		{"B serves l poor", "B ends with error:quota (owner-streams poor)"},
		{"L leaves", ""},
		{"C arrives 192.0.2.2", ""},
		{"C serves l poor", "C ends with error:quota (owner-bytes poor)"},
	} {
		if got := d.do(c[0]); got != c[1] {
			t.Errorf("%s: got %s, want %s", c[0], got, c[1])
		}
	}
	d.core.reload(Limits{}, d.now)
	if got, want := d.do("D arrives 192.0.2.1")+d.do("D serves k poor"), "D is told ok:192.0.2.1:5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestAddressBytes: who has used up the bytes of his address is not let in.
func TestAddressBytes(t *testing.T) {
	d := newDesk(Limits{PerAddress: Quota{BytesPerDay: 10}})
	d.do("A arrives 192.0.2.1")
	d.legs["A"].addr.bytes.spend(10, d.now)
	d.do("B arrives 192.0.2.1")
	for _, c := range [][2]string{
		{"A says key:k", "A ends with error (address-bytes)"},
		{"B serves k alice", "B ends with error:quota (address-bytes alice)"},
		{"12h pass", ""},
		{"C arrives 192.0.2.1", ""},
		{"C serves k alice", "C is told ok:192.0.2.1:3"},
	} {
		if got := d.do(c[0]); got != c[1] {
			t.Errorf("%s: got %s, want %s", c[0], got, c[1])
		}
	}
}

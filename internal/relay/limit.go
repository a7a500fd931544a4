package relay

import (
	"cmp"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what the relay takes upon itself. In every field: if zero, the
// default; if negative, there is no limit.
type Limits struct {
	PerAddress Quota // for each IPv4 address or IPv6 /64
	PerOwner   Quota // for each bare JID; where a lease says less, that holds

	// Connections is how many connections that have said what they want the relay
	// holds at once before it is full: then none that would have to wait is taken,
	// but those that complete a pair are. With a sixteenth more, whoever they are,
	// for each that arrives one is closed that has not said anything yet. Each
	// takes a descriptor. The default is 16,384.
	Connections int
}

// Quota is what one address or one owner may have. In every field: if zero, the
// default; if negative, there is no limit.
type Quota struct {
	HalfOpen    int   // connections that are not joined, at once; default 256 for an address, 128 for an owner
	Streams     int   // legs that are joined, wait or are held, at once; default 512 for an address, 128 for an owner
	Handshakes  int   // connections and further lines, a second, and ten times that in a burst; default 50
	Rate        int64 // bytes a second, both directions together; by default there is no limit
	BytesPerDay int64 // both directions together, from midnight to midnight UTC; by default there is no limit
}

var (
	defaultPerAddress = Quota{HalfOpen: 256, Streams: 512, Handshakes: 50, Rate: noLimit, BytesPerDay: noLimit}
	defaultPerOwner   = Quota{HalfOpen: 128, Streams: 128, Handshakes: 50, Rate: noLimit, BytesPerDay: noLimit}
)

const defaultConnections = 16384

// What filled makes of a limit that there is not. Half of what the type can
// hold, so that nothing overflows where something is added.
const (
	noLimit    = math.MaxInt64 / 2
	noLimitInt = math.MaxInt / 2
)

// filled returns l with every field set: those that are zero to the default,
// those without a limit to the largest number.
func (l Limits) filled() Limits {
	return Limits{
		PerAddress:  l.PerAddress.filled(defaultPerAddress),
		PerOwner:    l.PerOwner.filled(defaultPerOwner),
		Connections: fill(l.Connections, defaultConnections, noLimitInt),
	}
}

func (q Quota) filled(defaults Quota) Quota {
	return Quota{
		HalfOpen:    fill(q.HalfOpen, defaults.HalfOpen, noLimitInt),
		Streams:     fill(q.Streams, defaults.Streams, noLimitInt),
		Handshakes:  fill(q.Handshakes, defaults.Handshakes, noLimitInt),
		Rate:        fill(q.Rate, defaults.Rate, noLimit),
		BytesPerDay: fill(q.BytesPerDay, defaults.BytesPerDay, noLimit),
	}
}

// least returns the lower of each limit of two quotas that are filled.
func (q Quota) least(other Quota) Quota {
	return Quota{
		HalfOpen:    min(q.HalfOpen, other.HalfOpen),
		Streams:     min(q.Streams, other.Streams),
		Handshakes:  min(q.Handshakes, other.Handshakes),
		Rate:        min(q.Rate, other.Rate),
		BytesPerDay: min(q.BytesPerDay, other.BytesPerDay),
	}
}

func fill[T int | int64](v, byDefault, none T) T {
	if v = cmp.Or(v, byDefault); v < 0 {
		return none
	}
	return v
}

// burstTime is how much of a limit per second may be used at once.
const burstTime = 10

// Bytes are different: a second's worth, and at least a piece that is worth
// moving.
const leastBurst = 64 << 10

// account is what one address or one owner has and has used. Only its meter may
// be used by several goroutines.
type account[K comparable] struct {
	name     K
	quota    Quota // filled
	own      Quota // filled: of the lease, if it says less than the rules
	halfOpen int   // legs that are not joined
	streams  int   // legs that are joined, wait, or are held
	held     int   // legs that are held
	proposed int   // legs that wait for the proxy

	handshakes *rate.Limiter // nil: no limit
	bytes      meter

	idle node[account[K]] // while it has no legs
	due  time.Time        // when it may be forgotten, then
}

// limit makes q the quota of the account.
func (a *account[K]) limit(q Quota, now time.Time) {
	if q == a.quota {
		return
	}
	if q.Handshakes != a.quota.Handshakes {
		a.handshakes = limiter(a.handshakes, int64(q.Handshakes), noLimitInt, min(q.Handshakes, 1<<24)*burstTime, now)
	}
	a.quota = q
	a.bytes.limit(q, now)
}

// limiter returns l, or a new one, with a rate per second and a burst; nil if
// the rate is none.
func limiter(l *rate.Limiter, perSecond, none int64, burst int, now time.Time) *rate.Limiter {
	switch {
	case perSecond == none:
		return nil
	case l == nil:
		return rate.NewLimiter(rate.Limit(perSecond), burst)
	}
	l.SetLimitAt(now, rate.Limit(perSecond))
	l.SetBurstAt(now, burst)
	return l
}

// handshake reports whether another connection, or line, may be looked at.
func (a *account[K]) handshake(now time.Time) bool {
	return a.handshakes == nil || a.handshakes.AllowN(now, 1)
}

// meter counts and bounds the bytes of one account. Its methods may be called
// concurrently.
type meter struct {
	mu     sync.Mutex
	bucket *rate.Limiter // nil: no limit
	perDay int64
	day    int64 // the one that used is of, counted from 1970
	used   int64 // counted only while there is a limit
}

func (m *meter) limit(q Quota, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	burst := int(min(max(q.Rate, leastBurst), noLimitInt))
	m.bucket = limiter(m.bucket, q.Rate, noLimit, burst, now)
	m.perDay = q.BytesPerDay
}

func dayOf(now time.Time) int64 { return now.Unix() / (24 * 60 * 60) }

// room returns how many bytes may pass now. If none may, it says how long to
// wait, or, if that is 0, that it is over for the day.
func (m *meter) room(now time.Time) (n int64, wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n = noLimit
	if m.perDay < noLimit {
		if n = m.perDay - m.usedOn(now); n <= 0 {
			return 0, 0
		}
	}
	if m.bucket == nil {
		return n, 0
	}
	tokens := m.bucket.TokensAt(now)
	// Some 10 ms worth at a time, so that a slow stream is not moved byte by byte.
	least := min(max(float64(m.bucket.Limit())/100, 1), float64(m.bucket.Burst()))
	if tokens < least {
		return 0, time.Duration((least-tokens)/float64(m.bucket.Limit())*float64(time.Second)) + time.Millisecond
	}
	return min(n, int64(tokens)), 0
}

// spend takes n bytes off. Streams that were told of the same room at once can
// overdraw it; that is made good before there is room again.
func (m *meter) spend(n int64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.perDay < noLimit {
		m.used = m.usedOn(now) + n
		m.day = dayOf(now)
	}
	for m.bucket != nil && n > 0 { // ReserveN takes no more than the burst at once
		k := min(n, int64(m.bucket.Burst()))
		m.bucket.ReserveN(now, int(k))
		n -= k
	}
}

// exhausted reports whether the bytes of the day are used up.
func (m *meter) exhausted(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.perDay < noLimit && m.usedOn(now) >= m.perDay
}

// indebted reports whether m would be missed, for moments, because of its rate.
func (m *meter) indebted(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bucket != nil && m.bucket.TokensAt(now) < float64(m.bucket.Burst())
}

// begun reports whether bytes of the day are used.
func (m *meter) begun(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.perDay < noLimit && m.usedOn(now) > 0
}

func (m *meter) usedOn(now time.Time) int64 {
	if m.day != dayOf(now) {
		return 0
	}
	return m.used
}

// maxKept is how many accounts without legs are remembered for their bursts, and
// as many for the bytes of their day. Beyond it those are forgotten that have
// been idle for longest.
const maxKept = 1 << 16

// ledger holds the accounts of all addresses, or of all owners. An account is
// there while it has legs, then until it could not be told from a new one.
type ledger[K comparable] struct {
	accounts map[K]*account[K]
	quota    Quota             // filled
	idle     queue[account[K]] // until their bursts are full again
	kept     queue[account[K]] // until their day is over
	most     int               // in either queue
}

func newLedger[K comparable](q Quota) *ledger[K] {
	return &ledger[K]{accounts: map[K]*account[K]{}, quota: q, most: maxKept}
}

// account returns that of name, for a leg: settle must follow when it is
// counted there, or is not to be. Until then it is not forgotten.
func (l *ledger[K]) account(name K, now time.Time) *account[K] {
	a := l.accounts[name]
	if a == nil {
		a = &account[K]{name: name, own: unlimited}
		a.limit(l.quota, now)
		l.accounts[name] = a
	}
	a.idle.leave()
	return a
}

var unlimited = Quota{HalfOpen: -1, Streams: -1, Handshakes: -1, Rate: -1, BytesPerDay: -1}.filled(Quota{})

// settle puts a where it belongs after its counts have changed.
func (l *ledger[K]) settle(a *account[K], now time.Time) {
	a.idle.leave()
	if a.halfOpen > 0 || a.streams > 0 {
		return
	}
	// At round times, so that many are forgotten at once.
	a.due = next(now, burstTime*time.Second).Add(burstTime * time.Second)
	l.idle.push(a, &a.idle)
	if l.idle.n > l.most {
		l.retire(l.idle.head(), now)
	}
}

// forget drops accounts whose time has come.
func (l *ledger[K]) forget(now time.Time) {
	for a := l.idle.head(); a != nil && !now.Before(a.due); a = l.idle.head() {
		if a.bytes.indebted(now) {
			l.settle(a, now) // for another while
		} else {
			l.retire(a, now)
		}
	}
	for a := l.kept.head(); a != nil && !now.Before(a.due); a = l.kept.head() {
		l.retire(a, now)
	}
}

// retire drops an account, but not before midnight if it has used bytes of the
// day.
func (l *ledger[K]) retire(a *account[K], now time.Time) {
	a.idle.leave()
	if !a.bytes.begun(now) {
		delete(l.accounts, a.name)
		return
	}
	a.due = next(now, 24*time.Hour)
	l.kept.push(a, &a.idle)
	if l.kept.n > l.most {
		oldest := l.kept.head()
		oldest.idle.leave()
		delete(l.accounts, oldest.name)
	}
}

// next returns the next time that is a whole number of steps, by the monotonic
// clock of now, if it has one: so nothing comes late because the other is set.
func next(now time.Time, step time.Duration) time.Time {
	return now.Add(step - now.Sub(now.Truncate(step)))
}

// next returns when forget has something to do; zero is never.
func (l *ledger[K]) next() (t time.Time) {
	for _, q := range []*queue[account[K]]{&l.idle, &l.kept} {
		if a := q.head(); a != nil && (t.IsZero() || a.due.Before(t)) {
			t = a.due
		}
	}
	return t
}

// limit makes q the quota of all accounts.
func (l *ledger[K]) limit(q Quota, now time.Time) {
	l.quota = q
	for _, a := range l.accounts {
		a.limit(q.least(a.own), now)
	}
}

// origin is what counts as one address: an IPv4 address or an IPv6 /64, of
// which one host commands all.
func origin(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil { // the zero Addr, of a connection without an address
		return a
	}
	return p.Addr()
}

package relay

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/internal/pump"
)

// stream is a pair of legs that are joined. While it lasts, the pump asks it how
// much may pass; at the end it tells the relay.
type stream struct {
	kind             string // KindLease or KindProxy
	listener, dialer *leg   // who owns the listener owns the stream
	start            time.Time
	queue            node[stream] // of the core, among all streams

	relay  *Relay
	pair   atomic.Pointer[pump.Pair] // nil until it is joined
	denied atomic.Bool               // it is to be cut, or is
}

var _ pump.Stream = (*stream)(nil)

// Why a stream is cut.
var (
	errDay    = errors.New("the bytes of the day are used up")
	errDenied = errors.New("its owner is denied")
)

// grantAgain is when the pump is to ask again about a stream that is to be cut,
// should it not be known yet.
const grantAgain = 10 * time.Millisecond

// run has the stream copied; it takes the connections over.
func (s *stream) run(listener, dialer net.Conn) {
	s.begun(s.relay.pump.Join(listener, dialer, s))
}

// begun notes what the pump has made of the stream.
func (s *stream) begun(pair *pump.Pair) {
	s.pair.Store(pair)
	if s.denied.Load() { // meanwhile
		pair.Reset(errDenied)
	}
}

// deny cuts the stream, at once or when it has begun.
func (s *stream) deny() {
	s.denied.Store(true)
	if pair := s.pair.Load(); pair != nil {
		pair.Reset(errDenied)
	}
}

// Grant implements [pump.Stream].
func (s *stream) Grant(now time.Time, _ pump.Direction, want int) (n int, wait time.Duration) {
	for _, m := range s.meters() {
		if m == nil {
			continue
		}
		room, pause := m.room(now)
		switch {
		case room == 0 && pause == 0:
			if pair := s.pair.Load(); pair != nil {
				pair.Reset(errDay)
			}
			return 0, grantAgain
		case room == 0:
			wait = max(wait, pause)
		default:
			want = int(min(int64(want), room))
		}
	}
	if wait > 0 {
		return 0, wait
	}
	return want, 0
}

// Copied implements [pump.Stream].
func (s *stream) Copied(now time.Time, _ pump.Direction, n int) {
	for _, m := range s.meters() {
		if m != nil {
			m.spend(int64(n), now)
		}
	}
}

// meters returns those that count the stream: of its owner, and of the addresses
// at its ends.
func (s *stream) meters() [3]*meter {
	list := [3]*meter{&s.listener.owner.bytes, &s.listener.addr.bytes}
	if s.dialer.addr != s.listener.addr {
		list[2] = &s.dialer.addr.bytes
	}
	return list
}

// Done implements [pump.Stream].
func (s *stream) Done(result pump.Result) {
	usage := Usage{
		Owner:      s.listener.owner.name,
		Kind:       s.kind,
		Listener:   s.listener.from,
		Dialer:     s.dialer.from,
		Start:      s.start,
		End:        time.Now(),
		ToDialer:   result.Bytes[pump.AB].Out,
		ToListener: result.Bytes[pump.BA].Out,
		Why:        why(result.Err),
	}
	r := s.relay
	if r.config.Usage != nil { // before Drain may return
		r.config.Usage(usage)
	}
	r.tell(nil, func(p *pairing, out []action, now time.Time) []action { return p.ended(out, s, now) })
}

// why puts the end of a pair, whose first leg is the listener's, into the words
// of [Usage].
func why(err error) string {
	var failed *pump.LegError
	switch {
	case err == nil:
		return EndedClosed
	case errors.Is(err, errDay):
		return EndedQuota
	case errors.Is(err, errDenied):
		return EndedDenied
	case errors.As(err, &failed) && failed.Leg == pump.AB:
		return EndedListener
	case errors.As(err, &failed):
		return EndedDialer
	}
	return EndedShutdown
}

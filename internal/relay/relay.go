package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/internal/pump"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Config is what a [Relay] is made of. It must not be changed after [New].
type Config struct {
	Domain jid.JID  // the component's own address, a domain
	Keys   *Keyring // master keys of leases: the first seals, all open; see [Relay.Replace]
	Node   string   // the name of this node, in leases; a node takes its own only
	Hosts  []Host   // what leases name, in order of preference: 1 to 4; see [Relay.Replace]
	Rules  Rules    // see [Relay.Reload]

	// Usage, if not nil, is called once for each stream that has ended. Calls may
	// come from several goroutines at once, and must not block: streams wait.
	Usage func(Usage)

	// Refused, if not nil, is called for everything that is refused, with one of
	// the reasons of [Reasons]; owner is zero where nobody has proven who asks.
	// Calls may come from several goroutines at once, and must not block.
	Refused func(reason string, remote netip.AddrPort, owner jid.JID)
}

// Host is an address at which peers reach the relay. It is what they are told,
// which behind a NAT is not what the relay listens on.
type Host struct {
	Addr string           // an IP literal or a DNS name
	Port uint16           // not 0
	TLS  *tls.Certificate // if not nil, TLS is spoken there as well (Section 3 of protocol.md), and leases name the certificate
}

// Rules are what an operator may change while the relay runs. The zero value
// lets nobody have a lease, and has the default limits.
type Rules struct {
	Access
	Limits
}

// What streams are of.
const (
	KindLease = "lease" // a listener's leg, of a lease, and a dialer's
	KindProxy = "proxy" // two connections to the XEP-0065 proxy
)

// Usage is the record of a stream that has ended.
type Usage struct {
	Owner      jid.JID        // bare: whose lease it was, or who activated the proxy's stream
	Kind       string         // KindLease or KindProxy
	Listener   netip.AddrPort // where the owner's leg came from; of a proxy's stream, the leg that came first
	Dialer     netip.AddrPort // where the other leg came from
	Start      time.Time      // when the legs were joined
	End        time.Time
	ToDialer   int64 // bytes delivered to each end
	ToListener int64
	Why        string // one of the Ended constants
}

// Why a stream has ended.
const (
	EndedClosed   = "closed"   // both ends had ended their direction
	EndedListener = "listener" // the listener's connection failed
	EndedDialer   = "dialer"   // the dialer's connection failed
	EndedQuota    = "quota"    // the bytes of the day are used up
	EndedDenied   = "denied"   // the owner is not allowed any more
	EndedShutdown = "shutdown" // the relay was closed
)

// Stats says what a relay does and has done since it was made.
type Stats struct {
	// Gauges.
	Fresh     int // connections that have not said yet what they want
	Waiting   int // legs of owners that wait for a dialer, and connections to the proxy that wait for activation
	Held      int // dialers that wait for a leg
	Observing int // connections kept for the sake of their address
	Streams   int // joined pairs
	Owners    int // JIDs that limits are counted for
	Addresses int // addresses, or /64 networks, that limits are counted for
	Draining  bool

	// Counters.
	Accepted     int64            // connections
	LeaseStreams int64            // pairs joined for leases
	ProxyStreams int64            // pairs joined for the proxy
	BytesIn      int64            // read from either end of streams, live
	BytesOut     int64            // written to either end of streams, live
	Refused      map[string]int64 // by reason; every one of [Reasons] is there
}

// Relay is a relay and proxy. Make one with [New]; its methods may be called
// concurrently. Who made it closes it.
type Relay struct {
	config    Config // its Keys, Hosts and Rules are those of the beginning
	pump      *pump.Pump
	component *component

	mu        sync.Mutex
	core      *pairing
	terms     terms
	listeners map[net.Listener]struct{} // being served
	closed    bool
	alarm     *time.Timer   // calls expire
	alarmed   time.Time     // when it will; zero: not at all
	empty     chan struct{} // closed when the relay drains and no stream is left
	isEmpty   bool
	running   sync.WaitGroup // goroutines of legs, and what fronts run
}

// terms are what can be replaced while the relay runs. Nothing in them is ever
// changed.
type terms struct {
	keys  *Keyring
	hosts []Host
	tls   *tls.Config // nil if no host has TLS
	who   admission   // the core has the limits
}

// maxHosts is how many a lease may name (Section 3 of protocol.md).
const maxHosts = 4

// New makes a relay, which listens nowhere yet. The error says what of config
// cannot be.
func New(config Config) (*Relay, error) {
	if err := config.check(); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	r := &Relay{
		config:    config,
		pump:      pump.New(pump.Config{}),
		terms:     terms{config.Keys, slices.Clone(config.Hosts), serverTLS(config.Hosts), config.Rules.admission()},
		listeners: map[net.Listener]struct{}{},
		empty:     make(chan struct{}),
	}
	r.core = newPairing(config.Rules.Limits, func(c wire.Claim, now time.Time) (lease, string) {
		return r.terms.keys.verify(c, config.Node, r.terms.who, now)
	})
	r.component = newComponent(r)
	// Stopped by Close; a call that is under way then finds nothing to do.
	r.alarm = time.AfterFunc(time.Hour, r.expire)
	r.alarm.Stop()
	return r, nil
}

func (c *Config) check() error {
	switch {
	case c.Domain.IsZero() || c.Domain != c.Domain.Server():
		return fmt.Errorf("%q is not a domain", c.Domain)
	case len(c.Node) > maxNode:
		return fmt.Errorf("the name of the node is longer than %d bytes", maxNode)
	}
	return checkTerms(c.Keys, c.Hosts)
}

// checkTerms says what of keys and hosts cannot be.
func checkTerms(keys *Keyring, hosts []Host) error {
	switch {
	case keys == nil || len(keys.keys) == 0:
		return errors.New("no master keys")
	case len(hosts) == 0 || len(hosts) > maxHosts:
		return fmt.Errorf("%d addresses to be told to peers; there must be 1 to %d", len(hosts), maxHosts)
	}
	for _, h := range hosts {
		if h.Addr == "" || h.Port == 0 {
			return fmt.Errorf("%q is not the address of a host", net.JoinHostPort(h.Addr, strconv.Itoa(int(h.Port))))
		}
		if h.TLS != nil && len(h.TLS.Certificate) == 0 {
			return fmt.Errorf("no certificate for TLS at %s", h.Addr)
		}
	}
	return nil
}

// Answer returns the answer to an iq of type get or set that is addressed to the
// component. It never blocks.
func (r *Relay) Answer(iq stanza.IQ) stanza.IQ { return r.component.answer(iq, time.Now()) }

// Reload replaces the rules. Who is not allowed any more loses the legs and
// streams that he owns (EndedDenied); all others stay, also beyond new limits.
func (r *Relay) Reload(rules Rules) {
	who := rules.admission()
	r.tell(nil, func(p *pairing, out []action, now time.Time) []action {
		r.terms.who = who
		p.reload(rules.Limits, now)
		return p.deny(out, who, now)
	})
}

// Replace replaces master keys, and what leases name, certificates included.
// Legs and streams that are there stay. A claim by a lease under a key that is
// gone is refused from now on (bad-lease); a lease that names a certificate that
// is gone is good for all but TLS. The error, like that of [New], says what
// cannot be, and then nothing is changed.
func (r *Relay) Replace(keys *Keyring, hosts []Host) error {
	if err := checkTerms(keys, hosts); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	hosts = slices.Clone(hosts)
	secure := serverTLS(hosts)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.terms.keys, r.terms.hosts, r.terms.tls = keys, hosts, secure
	return nil
}

// serverTLS returns how TLS is spoken now; nil: not at all.
func (r *Relay) serverTLS() *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.terms.tls
}

// Stats returns what the relay does now.
func (r *Relay) Stats() Stats {
	bytes := r.pump.Stats()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.core
	s := Stats{
		Fresh:        c.queues[fresh].n,
		Waiting:      c.queues[waiting].n + c.queues[proposed].n,
		Held:         c.queues[held].n,
		Observing:    c.queues[observing].n,
		Streams:      c.streams.n,
		Owners:       len(c.owners.accounts),
		Addresses:    len(c.addresses.accounts),
		Draining:     c.draining,
		Accepted:     c.accepted,
		LeaseStreams: c.joined[KindLease],
		ProxyStreams: c.joined[KindProxy],
		BytesIn:      bytes.In,
		BytesOut:     bytes.Out,
		Refused:      map[string]int64{},
	}
	for _, reason := range Reasons() {
		s.Refused[reason] = c.refused[reason]
	}
	return s
}

// Drain refuses leases and legs from now on (shutdown), lets go of all that are
// not joined, and waits until no stream is left, or until ctx ends. It returns
// how many streams are left.
func (r *Relay) Drain(ctx context.Context) (remaining int) {
	r.tell(nil, func(p *pairing, out []action, now time.Time) []action { return p.drain(out, now) })
	select {
	case <-r.empty:
		return 0
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.streams.n
}

// Close resets all streams, closes the listeners, and waits until everything
// has ended. The error is always nil. It must not be called by the functions of
// [Config].
func (r *Relay) Close() error {
	r.mu.Lock()
	r.closed = true
	listeners := slices.Collect(maps.Keys(r.listeners))
	r.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // Serve returns
	}
	r.tell(nil, func(p *pairing, out []action, now time.Time) []action { return p.shut(out, now) })
	r.pump.Close() // also what is joined from now on
	r.running.Wait()
	r.mu.Lock()
	r.alarm.Stop()
	r.mu.Unlock()
	return nil
}

// tell tells the core of an event, and has done what comes of it: what concerns
// the leg whose event it was, if any, is returned and for the caller to do
// before anything else with the leg; the others' hands do theirs.
func (r *Relay) tell(own *leg, event func(p *pairing, out []action, now time.Time) []action) (mine []action) {
	r.mu.Lock()
	now := time.Now()
	out := event(r.core, nil, now)
	r.settle(now)
	r.mu.Unlock()
	for _, a := range out {
		if a.reason != "" && r.config.Refused != nil {
			r.config.Refused(a.reason, a.leg.from, a.owner)
		}
		if a.do == join {
			a.stream.relay = r
		}
		switch {
		case a.do == cut:
			a.stream.deny()
		case a.leg == own:
			mine = append(mine, a)
		default:
			a.leg.hand.do(a)
		}
	}
	return mine
}

// settle follows every event, under the lock.
func (r *Relay) settle(now time.Time) {
	if r.core.draining && r.core.streams.n == 0 && !r.isEmpty {
		r.isEmpty = true
		close(r.empty)
	}
	// The alarm may come early, for what it was set for is often gone by then:
	// that costs less than to set it at every event.
	if next := r.core.next(); !r.closed && !next.IsZero() && (r.alarmed.IsZero() || next.Before(r.alarmed)) {
		r.alarmed = next
		r.alarm.Reset(next.Sub(now))
	}
}

// expire is what the alarm does.
func (r *Relay) expire() {
	r.mu.Lock()
	r.alarmed = time.Time{}
	r.mu.Unlock()
	r.tell(nil, func(p *pairing, out []action, now time.Time) []action { return p.expire(out, now) })
}

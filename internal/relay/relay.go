package relay

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Config is what a [Relay] is made of. It must not be changed after [New].
type Config struct {
	Domain jid.JID  // the component's own address, a domain
	Keys   *Keyring // master keys of leases: the first seals, all open
	Node   string   // the name of this node, in leases; a node takes its own only
	Hosts  []Host   // what leases name, in order of preference: 1 to 4
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
// concurrently.
type Relay struct {
	config Config
}

// New makes a relay, which listens nowhere yet. The error says what of config
// cannot be.
func New(config Config) (*Relay, error) { return &Relay{config: config}, nil }

// Serve accepts connections from l until [Relay.Close], which closes l, and
// returns nil then; any other error of l ends it, except lack of descriptors or
// memory and connections that are gone before they are accepted. Several
// listeners may be served at once.
func (r *Relay) Serve(l net.Listener) error { return net.ErrClosed }

// Answer returns the answer to an iq of type get or set that is addressed to the
// component. It never blocks.
func (r *Relay) Answer(iq stanza.IQ) stanza.IQ { return iq }

// Reload replaces the rules. Legs that are there stay; who is denied from now on
// gets no further ones.
func (r *Relay) Reload(rules Rules) {}

// Stats returns what the relay does now.
func (r *Relay) Stats() Stats { return Stats{} }

// Drain refuses leases and legs from now on (shutdown), lets go of all that are
// not joined, and waits until no stream is left, or until ctx ends. It returns
// how many streams are left.
func (r *Relay) Drain(ctx context.Context) (remaining int) { return 0 }

// Close resets all streams, closes the listeners, and waits until everything
// has ended. The error is always nil.
func (r *Relay) Close() error { return nil }

package dtcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Limits of one Endpoint (Section 4 of protocol.md).
const (
	maxPerPeer     = 32   // sessions in negotiation with one allowed peer
	maxDials       = 16   // of which Dial begins that many itself; further calls wait for their turn
	maxPerStranger = 2    // with a stranger
	maxSessions    = 1024 // in all, requests that wait for Allow among them
	maxWaiting     = 128  // streams that wait for Accept
	maxGreeting    = 256  // accepted connections that have named no key yet
	maxRemembered  = 4096 // peers remembered as extended; with more, no peer is served as stock
)

// Endpoint makes streams for one XMPP login: it dials peers, answers requests
// that reach its [Signaling], and owns the listening socket. Its methods may be
// called from several goroutines at once. Close it when it is of no more use;
// streams that it made stay open.
type Endpoint struct {
	signaling   Signaling
	config      Config
	network     Network
	listener    net.Listener
	public      netip.AddrPort // Config.Public; not valid if there is none
	certificate *tls.Certificate
	fingerprint Fingerprint
	ephemeral   bool
	stockCert   func() (tls.Certificate, error)               // for stock peers, who are not to learn the other
	stop        func()                                        // ends the handling of iqs
	relays      *relays                                       // nil: none are wanted
	punching    *punchPorts                                   // nil: no holes are punched
	mapper      *portmap.Mapper                               // nil: no gateway is asked
	gap         func(least, most time.Duration) time.Duration // draws the time between two dials of a punch
	ready       chan struct{}                                 // closed when the first offer need not wait for more to offer

	ctx     context.Context
	cancel  context.CancelCauseFunc
	tasks   sync.WaitGroup // every goroutine of the Endpoint but those of Dial's callers
	waiting chan *Conn
	streams atomic.Int64
	asked   atomic.Int64 // requests that are being answered

	mu          sync.Mutex
	closed      bool
	handlers    map[string]func(*transport) // by our key: who takes a connection that names it
	sessions    map[*session]struct{}
	peers       map[jid.JID]int  // requests and sessions in negotiation, by bare JID
	negotiating int              // their sum
	places      int              // streams about to wait for Accept
	released    chan struct{}    // closed at the next release
	extended    map[jid.JID]bool // bare JIDs seen with <session/>
	greeting    []*transport     // connections that have named no key yet, oldest first
}

// NewEndpoint makes an Endpoint that signals through s. It binds its listening
// socket and, in the background, asks the user's own server for a relay; see
// [Endpoint.Ready]. Nothing else is sent. config may be nil, which is the zero
// Config; its fields are copied.
func NewEndpoint(s Signaling, config *Config) (*Endpoint, error) {
	e := &Endpoint{
		signaling: s, waiting: make(chan *Conn, maxWaiting),
		stockCert: sync.OnceValues(NewCertificate), gap: drawGap,
		handlers: map[string]func(*transport){}, sessions: map[*session]struct{}{},
		released: make(chan struct{}), ready: make(chan struct{}),
		peers: map[jid.JID]int{}, extended: map[jid.JID]bool{},
	}
	if config != nil {
		e.config = *config
	}
	if e.network = e.config.Network; e.network == nil {
		e.network = systemNetwork{}
	}
	if e.certificate = e.config.Certificate; e.certificate == nil {
		c, err := NewCertificate()
		if err != nil {
			return nil, err
		}
		e.certificate, e.ephemeral = &c, true
	}
	if len(e.certificate.Certificate) == 0 {
		return nil, errors.New("dtcp: the certificate of the configuration is empty")
	}
	e.fingerprint = FingerprintOf(e.certificate.Certificate[0])
	local, err := parseListen(e.config.Listen)
	if err != nil {
		return nil, fmt.Errorf("dtcp: listening address: %w", err)
	}
	if e.config.Public != "" {
		if e.public, err = netip.ParseAddrPort(e.config.Public); err != nil {
			return nil, fmt.Errorf("dtcp: public address: %w", err)
		}
	}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	if e.listener, err = e.network.Listen(e.ctx, local); err != nil {
		e.cancel(err)
		return nil, fmt.Errorf("dtcp: listening: %w", err)
	}
	e.tasks.Add(1)
	// Owned by the Endpoint, ended by the closing of the listener, waited for by Close.
	go func() {
		defer e.tasks.Done()
		e.acceptLoop(e.listener, nil)
	}()
	e.stop = sync.OnceFunc(s.HandleIQ(queryName, e.handleIQ))
	e.gather()
	return e, nil
}

// parseListen reads Config.Listen.
func parseListen(s string) (netip.AddrPort, error) {
	if s == "" {
		s = ":0"
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, errors.Unwrap(err))
	}
	if host == "" {
		return netip.AddrPortFrom(netip.Addr{}, uint16(n)), nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// Fingerprint returns the fingerprint of the certificate that peers see, and
// whether it lives no longer than the Endpoint.
func (e *Endpoint) Fingerprint() (f Fingerprint, ephemeral bool) { return e.fingerprint, e.ephemeral }

// Addr returns the listening address.
func (e *Endpoint) Addr() netip.AddrPort { return addrPort(e.listener.Addr()) }

// rules returns what may be dialed of a peer's candidates.
func (e *Endpoint) rules(policy PathPolicy, stranger bool) dialRules {
	local := e.Addr()
	ours := e.direct()
	known := e.relays.current()
	return dialRules{
		policy:   policy,
		loopback: local.Addr().IsLoopback(),
		private:  !stranger,
		own: func(a netip.AddrPort) bool {
			return a == local || slices.ContainsFunc(ours, func(c Candidate) bool { return c.Addr == a })
		},
		lent: func(c Candidate) bool {
			return known.lease.lends(c) || c.Type == Proxy && known.proxy != nil && c.address() == known.proxy.host.address()
		},
	}
}

func (e *Endpoint) policy(peer jid.JID) PathPolicy {
	if e.config.Paths == nil {
		return Any
	}
	return e.config.Paths(peer)
}

// maxAddrs is how many addresses of a name are tried.
const maxAddrs = 4

// resolve returns the addresses of a relay or proxy, which may be given by name:
// one at least, and not more than maxAddrs.
func (e *Endpoint) resolve(ctx context.Context, c Candidate) ([]netip.AddrPort, error) {
	if c.Name == "" {
		return []netip.AddrPort{c.Addr}, nil
	}
	lookup := net.DefaultResolver.LookupNetIP
	if r, ok := e.network.(interface {
		LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	}); ok {
		lookup = r.LookupNetIP
	}
	addrs, err := lookup(ctx, "ip", strings.TrimSuffix(c.Name, "."))
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s has no address", c.Name)
	}
	var found []netip.AddrPort
	for _, a := range addrs[:min(len(addrs), maxAddrs)] {
		found = append(found, netip.AddrPortFrom(a.Unmap(), c.Port))
	}
	return found, nil
}

// nextStream makes the name of a stream.
func (e *Endpoint) nextStream() string { return "s" + strconv.FormatInt(e.streams.Add(1), 10) }

// errBusy is why a request or a Dial is refused at a limit.
var errBusy = errors.New("too many negotiations at once")

// reserve counts a negotiation with a peer against limit; release undoes it.
func (e *Endpoint) reserve(peer jid.JID, limit int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	bare := peer.Bare()
	switch {
	case e.closed:
		return ErrClosed
	case e.peers[bare] >= limit, limit != maxDials && e.negotiating >= maxSessions: // strangers must not keep us from dialing
		return errBusy
	}
	e.peers[bare]++
	e.negotiating++
	return nil
}

// reserveInTurn waits until another negotiation with the peer may begin. The
// limit is half of that of the other side, whose account of a negotiation ends
// a little after ours.
func (e *Endpoint) reserveInTurn(ctx context.Context, peer jid.JID) error {
	for {
		e.mu.Lock()
		released := e.released
		e.mu.Unlock()
		if err := e.reserve(peer, maxDials); !errors.Is(err, errBusy) {
			return err
		}
		select {
		case <-released:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errBusy, ctx.Err())
		}
	}
}

func (e *Endpoint) release(peer jid.JID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.released)
	e.released = make(chan struct{})
	bare := peer.Bare()
	if e.peers[bare]--; e.peers[bare] == 0 {
		delete(e.peers, bare)
	}
	e.negotiating--
}

// start begins to run a session, which holds a reservation from here on.
func (e *Endpoint) start(s *session) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	if !s.hidden {
		e.handlers[s.key] = s.accept
	}
	e.sessions[s] = struct{}{}
	e.tasks.Add(1)
	go func() { // the loop: see run
		defer e.tasks.Done()
		s.run()
	}()
	return nil
}

// forgetKey has connections that name the session's key answered by an error
// from now on.
func (e *Endpoint) forgetKey(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.handlers, s.key)
}

// forget ends the account of a session.
func (e *Endpoint) forget(s *session) {
	e.mu.Lock()
	delete(e.sessions, s)
	e.mu.Unlock()
	e.release(s.peer)
}

// sawExtended remembers that a peer knows <session/>: it is never served as
// stock again, for a server between could strip it.
func (e *Endpoint) sawExtended(peer jid.JID) {
	if e.config.AllowPlain == nil {
		return // nobody is
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.extended) < maxRemembered {
		e.extended[peer.Bare()] = true
	}
}

// plainAllowed reports whether a stock stream with the peer is allowed.
func (e *Endpoint) plainAllowed(peer jid.JID) bool {
	e.mu.Lock()
	extended := e.extended[peer.Bare()] || len(e.extended) == maxRemembered // who knows
	e.mu.Unlock()
	return !extended && e.config.AllowPlain != nil && e.config.AllowPlain(peer)
}

// Dial asks a peer for a stream and returns it when the peer holds it, too.
// peer should be a full JID. service is 1 to 64 characters of A-Z a-z 0-9 . _ ~
// + / = -. ctx bounds the call, the answer of the peer's user included; once
// that is there the attempt ends after 30 s. Of many calls to one peer at once,
// 16 negotiate, and the others wait. The error is a [*RefusedError],
// a [*NoPathError], a [*PeerError], wraps [ErrPlain], [ErrPolicy] or
// [ErrClosed], or is that of the Signaling.
func (e *Endpoint) Dial(ctx context.Context, peer jid.JID, service string) (*Conn, error) {
	return e.DialSummary(ctx, peer, service, -1, -1)
}

// DialSummary is [Endpoint.Dial] with a summary of what is to be sent, which
// the peer's user may be shown when he is asked: the number of files, and of
// bytes in all, each -1 if unknown.
func (e *Endpoint) DialSummary(ctx context.Context, peer jid.JID, service string, files, bytes int64) (*Conn, error) {
	if !wire.ValidService(service) {
		return nil, fmt.Errorf("dtcp: service %.70q: must be 1 to %d characters of A-Z a-z 0-9 . _ ~ + / = -", service, wire.MaxService)
	}
	if peer.IsZero() {
		return nil, errors.New("dtcp: no address to dial")
	}
	if peer == e.signaling.LocalAddr() {
		return nil, fmt.Errorf("dtcp: %v is this end's own address", peer)
	}
	policy := e.policy(peer)
	if err := e.awaitOffer(ctx, policy); err != nil {
		return nil, fmt.Errorf("dtcp: %v: %w", peer, err)
	}
	if err := e.reserveInTurn(ctx, peer); errors.Is(err, ErrClosed) {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("dtcp: %v: %w", peer, err)
	}
	s := e.newSession(requester, peer, service)
	s.own = e.offer(ctx, s, policy, &sessionOffer{service: service, files: files, bytes: bytes})
	if err := e.start(s); err != nil {
		s.cancel(err)
		e.release(peer)
		return nil, err
	}
	if err := e.ask(ctx, s, policy); err != nil {
		s.setCause(err)
		s.cancel(err)
	}
	select {
	case c := <-s.result:
		return c, nil
	case <-s.failed:
	case <-ctx.Done():
		s.cancel(ctx.Err())
		// The loop answers at once. A stream that was there before counts.
		select {
		case c := <-s.result:
			return c, nil
		case <-s.failed:
		}
	}
	return nil, s.cause
}

// ask does the one round trip of signalling and begins the race.
func (e *Endpoint) ask(ctx context.Context, s *session, policy PathPolicy) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)() // the Endpoint may be closed meanwhile
	answer, err := e.signaling.RoundTrip(ctx, s.request())
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	if err != nil {
		return s.unanswered(err)
	}
	peer, err := parseOffer(answer.Payload)
	switch {
	case err != nil:
		return &PeerError{Peer: s.peer, Err: fmt.Errorf("its answer cannot be used: %w", err)}
	case peer.session == nil && !e.plainAllowed(s.peer):
		return &PeerError{Peer: s.peer, Err: ErrPlain}
	case peer.session != nil && peer.session.fingerprint == e.fingerprint:
		return &PeerError{Peer: s.peer, Err: ErrOwnFingerprint}
	}
	if peer.session != nil {
		e.sawExtended(s.peer)
	}
	s.begin(peer, e.rules(policy, false))
	return nil
}

// Accept returns the next stream that a peer asked for. At most 128 wait;
// further requests are refused.
func (e *Endpoint) Accept(ctx context.Context) (*Conn, error) {
	select {
	case c := <-e.waiting:
		return c, nil
	default:
	}
	select {
	case c := <-e.waiting:
		return c, nil
	case <-e.ctx.Done():
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// takePlace reserves a place among the streams that wait for Accept, for deliver
// or freePlace.
func (e *Endpoint) takePlace() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.waiting)+e.places >= cap(e.waiting) {
		return false
	}
	e.places++
	return true
}

func (e *Endpoint) freePlace() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.places--
}

// deliver hands a stream, which has a place, to Accept.
func (e *Endpoint) deliver(c *Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.places--
	if e.closed {
		_ = c.Abort()
		return
	}
	e.waiting <- c // never waits
}

// Close ends the listening and every negotiation and waits for all goroutines
// of the Endpoint. Streams stay open, but for those that nobody accepted.
func (e *Endpoint) Close() error {
	e.stop() // first: from here on the Signaling answers requests, which would be lost
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return ErrClosed
	}
	e.closed = true
	greeting := slices.Clone(e.greeting)
	e.mu.Unlock()
	e.cancel(ErrClosed)
	err := e.listener.Close()
	if e.mapper != nil {
		e.mapper.Close()
	}
	for _, t := range greeting {
		_ = t.rec.abort()
	}
	e.tasks.Wait()
	for {
		select {
		case c := <-e.waiting:
			_ = c.Abort()
		default:
			return err
		}
	}
}

// Listener returns a [net.Listener] over Accept, for [net/http.Serve] and its
// like. Closing it closes the Endpoint.
func (e *Endpoint) Listener() net.Listener { return listener{e} }

type listener struct{ e *Endpoint }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.e.Accept(context.Background())
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (l listener) Close() error   { return l.e.Close() }
func (l listener) Addr() net.Addr { return l.e.listener.Addr() }

package dtcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// This file finds the relay of our own server and keeps a lease with it, or, if
// there is none, finds an XEP-0065 proxy; in the background, ahead of sessions.

// Namespaces by which they are found (XEP-0030, XEP-0065).
const (
	nsInfo        = "http://jabber.org/protocol/disco#info"
	nsItems       = "http://jabber.org/protocol/disco#items"
	nsBytestreams = "http://jabber.org/protocol/bytestreams"
	nsServices    = "urn:xmpp:extdisco:2" // XEP-0215
)

// Bounds of the search.
const (
	maxItems     = 32               // entities of our server that are asked what they are
	maxSTUN      = 2                // STUN servers that are used
	lookTime     = 10 * time.Second // for the whole
	refusedPause = 10 * time.Minute // before who refused us, or has nothing, is asked again
	retryMin     = 2 * time.Second  // after what may be temporary; doubles
	retryMax     = time.Minute
	proxyLife    = time.Hour // before the addresses of a proxy are asked for again
)

// relaying is what is known of relays at one moment. Values are never changed.
type relaying struct {
	lease *lease        // nil: none
	proxy *proxyService // looked for only where there is no lease; nil: none
	err   error         // why there is no lease, or no newer one; nil: nobody lends
	stun  []Candidate   // STUN servers over TCP, which say how they see us
}

// relays keeps an Endpoint's lease.
//
//	looking ──lease──▶ leased ──half its life──▶ renewing ──▶ leased
//	   ▲  └─none, refused: after 10 minutes─┐        │
//	   └────────── failed, over, refused ───┴────────┘
type relays struct {
	signaling Signaling
	named     []jid.JID // asked in place of those of our server; nil: find them
	resolve   func(context.Context, Candidate) ([]netip.AddrPort, error)
	stale     chan *lease   // a relay has refused it
	moved     chan struct{} // capacity 1: the network may be another
	looked    chan struct{} // closed when the first search is over

	mu      sync.Mutex
	known   relaying
	changed chan struct{} // closed when known changes
}

func newRelays(s Signaling, named []jid.JID) *relays {
	return &relays{signaling: s, named: named, stale: make(chan *lease, 1), moved: make(chan struct{}, 1), looked: make(chan struct{}), changed: make(chan struct{})}
}

// run searches and renews until ctx ends.
func (r *relays) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := retryMin
	for first := true; ; {
		select {
		case <-timer.C:
		case l := <-r.stale:
			if known := r.get(); known.lease == l { // otherwise it is gone already
				r.set(relaying{err: errLeaseRefused, stun: known.stun})
			} else {
				continue
			}
		case <-r.moved:
			retry = retryMin
		case <-ctx.Done():
			return
		}
		found := r.look(ctx, r.get().lease) // though it be over: its relay may just have been away
		r.set(found)
		if first {
			first = false
			close(r.looked)
		}
		pause := refusedPause
		switch {
		case found.err != nil && !permanentRefusal(found.err):
			pause, retry = retry, min(2*retry, retryMax)
		case found.lease != nil:
			pause, retry = found.lease.life/2, retryMin
		case found.proxy != nil:
			pause, retry = proxyLife, retryMin
		}
		timer.Reset(pause)
	}
}

// permanentRefusal reports whether asking again soon is of no use.
func permanentRefusal(err error) bool {
	var refused *stanza.Error
	return errors.Is(err, errNotRelay) || errors.As(err, &refused) && slices.Contains([]string{
		stanza.Forbidden, stanza.NotAllowed, stanza.NotAuthorized, stanza.PolicyViolation, stanza.NotAcceptable,
		stanza.ServiceUnavailable, stanza.FeatureNotImplemented, stanza.ItemNotFound,
	}, refused.Condition)
}

func (r *relays) set(k relaying) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = k
	close(r.changed)
	r.changed = make(chan struct{})
}

// get returns what was found last.
func (r *relays) get() relaying {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known
}

// current returns what is of use now, and nothing if r is nil.
func (r *relays) current() relaying {
	if r == nil {
		return relaying{}
	}
	known := r.get()
	if l := known.lease; l != nil && !time.Now().Before(l.ends) {
		return relaying{err: errors.Join(errLeaseOver, known.err), stun: known.stun}
	}
	return known
}

// forget has the search begun anew, for addresses may be others in another
// network, and the login is soon back. A lease is good until then.
func (r *relays) forget() {
	if r == nil {
		return
	}
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

// Why there is no lease for a while.
var (
	errLeaseOver    = errors.New("the lease is over, and was not renewed")
	errLeaseRefused = errors.New("it no longer honours our lease, and is asked for another")
)

// await returns what is known when the first search is over.
func (r *relays) await(ctx context.Context) relaying {
	if r == nil {
		return relaying{}
	}
	select {
	case <-r.looked:
	case <-ctx.Done():
	}
	return r.current()
}

// after returns the lease that takes the place of one that the relay no longer
// honours.
func (r *relays) after(ctx context.Context, refused *lease) (*lease, error) {
	select {
	case r.stale <- refused:
	default: // it is being dealt with
	}
	for {
		r.mu.Lock()
		known, changed := r.known, r.changed
		r.mu.Unlock()
		if known.lease != nil && known.lease != refused {
			return known.lease, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errNotRelay is why what the user has named lends nothing.
var errNotRelay = errors.New("neither a relay nor a proxy")

// look renews a lease or finds another.
func (r *relays) look(ctx context.Context, old *lease) relaying {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	servers := r.current().stun
	var asked sync.WaitGroup
	if old == nil {
		// Owned and waited for by this call; ctx ends it.
		asked.Go(func() { servers = r.stunServers(ctx, servers) })
	}
	found := r.find(ctx, old)
	asked.Wait()
	found.stun = servers
	return found
}

// find is look without STUN servers.
func (r *relays) find(ctx context.Context, old *lease) relaying {
	if old != nil {
		l, err := r.ask(ctx, old.relay)
		if err == nil {
			return relaying{lease: l}
		}
		if !permanentRefusal(err) {
			return relaying{lease: old, err: err}
		}
	}
	entities, err := r.entities(ctx)
	if err != nil {
		return relaying{err: err}
	}
	kinds := make([]map[string]bool, len(entities))
	failed := make([]error, len(entities))
	var asked sync.WaitGroup
	for i, entity := range entities {
		// Owned and waited for by this call; ctx ends it.
		asked.Go(func() { kinds[i], failed[i] = r.proxyKinds(ctx, entity) })
	}
	asked.Wait()
	var found relaying
	for i, entity := range entities {
		err := failed[i]
		switch {
		case kinds[i]["dtcp"]:
			var l *lease
			if l, err = r.ask(ctx, entity); err == nil {
				return relaying{lease: l}
			}
		case r.named == nil, kinds[i]["bytestreams"]:
			continue // of what our server lists, a service that is down or another is none
		case err == nil:
			err = errNotRelay
		}
		found.err = errors.Join(found.err, fmt.Errorf("%v: %w", entity, err))
	}
	for i, entity := range entities {
		if kinds[i]["bytestreams"] && !kinds[i]["dtcp"] {
			if found.proxy, err = r.askProxy(ctx, entity); err == nil {
				break
			}
			if r.named != nil {
				found.err = errors.Join(found.err, fmt.Errorf("%v: %w", entity, err))
			}
		}
	}
	return found
}

// entities returns whom to ask: those named, or what our server lists
// (XEP-0030, 4).
func (r *relays) entities(ctx context.Context) ([]jid.JID, error) {
	if r.named != nil {
		return r.named, nil
	}
	server, err := jid.New("", r.signaling.LocalAddr().Domain(), "")
	if err != nil {
		return nil, err
	}
	answer, err := r.signaling.RoundTrip(ctx, stanza.IQ{
		Header: stanza.Header{To: server}, Type: stanza.Get, Payload: stanza.New(nsItems, "query"),
	})
	if err != nil {
		return nil, fmt.Errorf("asking %v for its services: %w", server, err)
	}
	var found []jid.JID
	for _, item := range answer.Payload.All(nsItems, "item") {
		if j, err := jid.Parse(item.Attr("jid")); err == nil && j.Local() == "" && len(found) < maxItems {
			found = append(found, j)
		}
	}
	return found, nil
}

// stunServers returns the STUN servers that our server knows and that speak TCP
// (XEP-0215, 3.1), or those known if it does not say.
func (r *relays) stunServers(ctx context.Context, known []Candidate) []Candidate {
	server, err := jid.New("", r.signaling.LocalAddr().Domain(), "")
	if err != nil {
		return known
	}
	answer, err := r.signaling.RoundTrip(ctx, stanza.IQ{
		Header: stanza.Header{To: server}, Type: stanza.Get, Payload: stanza.New(nsServices, "services").With("type", "stun"),
	})
	if err != nil {
		return known // as a rule none: few servers know any
	}
	var found []Candidate
	for _, s := range answer.Payload.All(nsServices, "service") {
		if s.Attr("type") != "stun" || s.Attr("transport") != "tcp" || len(found) == maxSTUN {
			continue
		}
		port := s.Attr("port")
		if port == "" {
			port = "3478" // RFC 8489, 18.6
		}
		c, ok := parseCandidate(stanza.New(NSSession, "candidate").With("type", string(Relay)).With("addr", s.Attr("host")).With("port", port))
		if ok {
			found = append(found, c)
		}
	}
	return found
}

// proxyKinds returns the types of the identities of category proxy that an
// entity has.
func (r *relays) proxyKinds(ctx context.Context, entity jid.JID) (map[string]bool, error) {
	answer, err := r.signaling.RoundTrip(ctx, stanza.IQ{
		Header: stanza.Header{To: entity}, Type: stanza.Get, Payload: stanza.New(nsInfo, "query"),
	})
	if err != nil {
		return nil, err
	}
	kinds := map[string]bool{}
	for _, identity := range answer.Payload.All(nsInfo, "identity") {
		if identity.Attr("category") == "proxy" {
			kinds[identity.Attr("type")] = true
		}
	}
	return kinds, nil
}

// ask asks a relay for a lease.
func (r *relays) ask(ctx context.Context, relay jid.JID) (*lease, error) {
	answer, err := r.signaling.RoundTrip(ctx, leaseRequest(relay))
	if err != nil {
		return nil, err
	}
	l, err := parseLease(answer.Payload, relay, time.Now())
	if err != nil {
		return nil, err
	}
	for i, h := range l.hosts {
		if h.Name != "" {
			l.hosts[i].at, _ = r.resolve(ctx, h.Candidate) // if not now, then when it is dialed
		}
	}
	return l, nil
}

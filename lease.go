package dtcp

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// nsRelay is the namespace of leases (Section 3 of protocol.md).
const nsRelay = "urn:x-dtcp:relay:0"

// Limits of a lease.
const (
	maxLeaseHosts = 4
	maxLeaseLife  = time.Hour
	minLeaseLife  = time.Minute // a shorter one would have us ask all the time
)

// lease is what a relay lends us: addresses at which we can be dialed, as long
// as a leg of ours waits there. Values are never changed.
type lease struct {
	relay  jid.JID
	id     string
	secret []byte
	life   time.Duration
	ends   time.Time     // by our clock
	skew   time.Duration // the relay's clock less ours
	hosts  []leaseHost
}

// leaseHost is one address of the relay; all are of one node.
type leaseHost struct {
	Candidate                  // of type Relay
	at        []netip.AddrPort // where that is; empty if its name could not be resolved
	pin       Fingerprint      // of the certificate with which it also speaks TLS; zero: it does not
}

// way is one way to reach the relay.
type way struct {
	host leaseHost
	tls  bool
}

func leaseRequest(relay jid.JID) stanza.IQ {
	return stanza.IQ{Header: stanza.Header{To: relay}, Type: stanza.Get, Payload: stanza.New(nsRelay, "lease")}
}

// parseLease reads a relay's answer, which came at now. Hosts that cannot be
// used are passed over.
func parseLease(e stanza.Element, relay jid.JID, now time.Time) (*lease, error) {
	if !e.Is(nsRelay, "lease") {
		return nil, errors.New("not a lease")
	}
	l := &lease{relay: relay, id: e.Attr("id")}
	if l.id == "" || len(l.id) > wire.MaxLease || strings.Trim(l.id, leaseAlphabet) != "" {
		return nil, errors.New("the id of the lease cannot be used")
	}
	var err error
	if l.secret, err = base64.RawURLEncoding.DecodeString(e.Attr("secret")); err != nil || len(l.secret) < 16 {
		return nil, errors.New("the secret of the lease cannot be used")
	}
	seconds, err := strconv.ParseUint(e.Attr("expires"), 10, 31)
	if err != nil {
		return nil, errors.New("the lease does not say when it expires")
	}
	l.life = min(max(time.Duration(seconds)*time.Second, minLeaseLife), maxLeaseLife)
	l.ends = now.Add(l.life)
	if clock, err := strconv.ParseInt(e.Attr("time"), 10, 64); err == nil && clock > 0 {
		l.skew = time.Unix(clock, 0).Sub(now).Truncate(time.Second)
	}
	for _, h := range e.All(nsRelay, "host") {
		if len(l.hosts) == maxLeaseHosts {
			break
		}
		c, ok := parseCandidate(stanza.New(NSSession, "candidate").With("type", string(Relay)).With("addr", h.Attr("addr")).With("port", h.Attr("port")))
		if !ok {
			continue
		}
		host := leaseHost{Candidate: c}
		if c.Name == "" {
			host.at = []netip.AddrPort{c.Addr}
		}
		if tls := h.Attr("tls"); tls == "1" || tls == "true" {
			if host.pin, err = ParseFingerprint(h.Attr("fingerprint")); err != nil {
				continue // without a pin TLS there is with anybody
			}
		}
		l.hosts = append(l.hosts, host)
	}
	if len(l.hosts) == 0 {
		return nil, errors.New("the lease names no address that can be used")
	}
	return l, nil
}

// leaseAlphabet is that of base64url, which the id of a lease is made of.
const leaseAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// claim returns the line by which we ask the relay for what it has lent.
func (l *lease) claim(command, key string, now time.Time) wire.Line {
	return wire.NewClaim(command, key, l.id, l.secret, now.Add(l.skew)).Line()
}

// candidates returns what the lease has us offer: by name, where there is one,
// for what that means may differ where the peer is.
func (l *lease) candidates() []Candidate {
	if l == nil {
		return nil
	}
	var found []Candidate
	for _, h := range l.hosts {
		if !slices.Contains(found, h.Candidate) {
			found = append(found, h.Candidate)
		}
	}
	return found
}

// literal returns an address of the relay that can stand in a <host/>; IPv4
// first, as old clients split an address at the first colon.
func (l *lease) literal() (netip.AddrPort, bool) {
	if l == nil {
		return netip.AddrPort{}, false
	}
	var found netip.AddrPort
	for _, h := range l.hosts {
		for _, at := range h.at {
			if !found.IsValid() || found.Addr().Is6() && at.Addr().Is4() {
				found = at
			}
		}
	}
	return found, found.IsValid()
}

// lends reports whether a candidate is an address of the lease.
func (l *lease) lends(c Candidate) bool {
	return l != nil && slices.ContainsFunc(l.hosts, func(h leaseHost) bool {
		return c.Name != "" && strings.EqualFold(h.Name, c.Name) && h.Port == c.Port || c.Name == "" && slices.Contains(h.at, c.Addr)
	})
}

// ways returns how the relay can be reached, in the order in which that is
// tried: as it stands, then inside TLS, for networks that let nothing else pass.
func (l *lease) ways() []way {
	var plain, secured []way
	for _, h := range l.hosts {
		plain = append(plain, way{h, false})
		if !h.pin.IsZero() {
			secured = append(secured, way{h, true})
		}
	}
	return append(plain, secured...)
}

// RelayError says that a relay refused to serve us.
type RelayError struct {
	Relay  jid.JID
	Reason string // a word of Section 3 of protocol.md, "quota" for one, or what XMPP said
}

func (e *RelayError) Error() string {
	if why, ok := relayReasons[e.Reason]; ok {
		return fmt.Sprintf("the relay %v refused: %s (%s)", e.Relay, why, e.Reason)
	}
	return fmt.Sprintf("the relay %v refused: %s", e.Relay, e.Reason)
}

// relayReasons explains a relay's refusals to people.
var relayReasons = map[string]string{
	wire.Expired:   "the lease is over",
	wire.BadLease:  "it does not know this lease, or the clocks differ",
	wire.Denied:    "its operator does not allow this account",
	wire.Quota:     "this account or address has used up what it may use; try again later",
	wire.Full:      "it has no room at the moment; try again later",
	wire.InUse:     "somebody else uses this key",
	wire.WrongNode: "the lease is of another node",
	wire.Shutdown:  "it is about to stop; try again later",
	wire.Unserved:  "it does not serve this",
}

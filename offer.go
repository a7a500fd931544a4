package dtcp

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Namespaces of the signalling (Sections 1 and 2 of protocol.md).
const (
	// NSStock is XEP-0046's, the namespace of the <query/>.
	NSStock = "http://jabber.org/protocol/dtcp"

	// NSSession is the session extension's. An entity that serves NAME announces
	// the disco#info feature NSSession + "#" + NAME.
	NSSession = "urn:x-dtcp:session:0"

	nsFingerprint = "urn:xmpp:jingle:apps:dtls:0"
)

// queryName is the payload by which an iq is ours.
var queryName = xml.Name{Space: NSStock, Local: "query"}

// Limits of an offer (Sections 1 and 2 of protocol.md).
const (
	maxHosts      = 3
	maxCandidates = 16
	maxName       = 253 // bytes of a DNS name
)

// offer is one half of a negotiation: what the requester's iq-set or the
// responder's iq-result says.
type offer struct {
	key     string
	hosts   []netip.AddrPort // for stock peers
	session *sessionOffer    // nil: the sender is a stock peer
}

// sessionOffer is the <session/> of an extended peer.
type sessionOffer struct {
	service      string
	features     []string
	files, bytes int64 // -1: not said
	fingerprint  Fingerprint
	ephemeral    bool
	candidates   []Candidate // in the order of preference
}

// candidates returns what the offer holds to dial, best first.
func (o offer) candidates() []Candidate {
	if o.session != nil {
		return o.session.candidates
	}
	var found []Candidate
	for _, h := range o.hosts {
		found = append(found, Candidate{Type: Stock, Addr: h})
	}
	return found
}

// element returns the <query/>.
func (o offer) element() stanza.Element {
	e := stanza.New(NSStock, "query", stanza.New(NSStock, "key", stanza.Text(o.key)))
	for _, h := range o.hosts {
		e.Children = append(e.Children, stanza.New(NSStock, "host", stanza.Text(h.String())))
	}
	if o.session != nil {
		e.Children = append(e.Children, o.session.element())
	}
	return e
}

func (s *sessionOffer) element() stanza.Element {
	e := stanza.New(NSSession, "session").With("service", s.service).With("features", strings.Join(s.features, " "))
	if s.files >= 0 || s.bytes >= 0 {
		summary := stanza.New(NSSession, "summary")
		if s.files >= 0 {
			summary = summary.With("files", strconv.FormatInt(s.files, 10))
		}
		if s.bytes >= 0 {
			summary = summary.With("bytes", strconv.FormatInt(s.bytes, 10))
		}
		e.Children = append(e.Children, summary)
	}
	fingerprint := stanza.New(nsFingerprint, "fingerprint", stanza.Text(s.fingerprint.String())).With("hash", "sha-256")
	if s.ephemeral {
		fingerprint = fingerprint.With("ephemeral", "1")
	}
	e.Children = append(e.Children, fingerprint)
	for _, c := range s.candidates {
		e.Children = append(e.Children, c.element())
	}
	return e
}

func (c Candidate) element() stanza.Element {
	addr, port := c.Name, c.Port
	if c.Name == "" {
		addr, port = c.Addr.Addr().String(), c.Addr.Port()
	}
	e := stanza.New(NSSession, "candidate").With("type", string(c.Type)).With("addr", addr).With("port", strconv.Itoa(int(port)))
	return e.With("jid", c.JID.String()).With("sid", c.SID)
}

// parseOffer reads a <query/>. It is strict about what would do harm, the key
// and the fingerprint, and passes over hosts and candidates that it cannot
// use, over unknown children and attributes.
func parseOffer(e stanza.Element) (offer, error) {
	if e.Name != queryName {
		return offer{}, errors.New("not a DTCP query")
	}
	keys := e.All(NSStock, "key")
	if len(keys) != 1 {
		return offer{}, fmt.Errorf("%d keys where there must be one", len(keys))
	}
	o := offer{key: keys[0].Text()}
	if !wire.ValidKey(o.key) {
		return offer{}, fmt.Errorf("a key must be 1 to %d characters of A-Z a-z 0-9 . _ ~ + / = -", wire.MaxKey)
	}
	for _, h := range e.All(NSStock, "host") {
		if len(o.hosts) == maxHosts {
			break
		}
		if a, err := netip.ParseAddrPort(strings.TrimSpace(h.Text())); err == nil && a.Port() != 0 && a.Addr().Zone() == "" {
			o.hosts = append(o.hosts, unmap(a))
		}
	}
	if s := e.Child(NSSession, "session"); !s.IsZero() {
		session, err := parseSession(s)
		if err != nil {
			return offer{}, err
		}
		o.session = session
	}
	return o, nil
}

func parseSession(e stanza.Element) (*sessionOffer, error) {
	s := &sessionOffer{service: e.Attr("service"), files: -1, bytes: -1}
	if s.service != "" && !wire.ValidService(s.service) {
		return nil, fmt.Errorf("a service must be 1 to %d characters of A-Z a-z 0-9 . _ ~ + / = -", wire.MaxService)
	}
	for _, f := range strings.Fields(e.Attr("features")) {
		if wire.ValidService(f) && !slices.Contains(s.features, f) && len(s.features) < 16 {
			s.features = append(s.features, f)
		}
	}
	if summary := e.Child(NSSession, "summary"); !summary.IsZero() {
		s.files, s.bytes = count(summary.Attr("files")), count(summary.Attr("bytes"))
	}
	for _, f := range e.All(nsFingerprint, "fingerprint") {
		if f.Attr("hash") != "sha-256" {
			continue
		}
		fingerprint, err := ParseFingerprint(strings.TrimSpace(f.Text()))
		if err != nil {
			return nil, err
		}
		s.fingerprint, s.ephemeral = fingerprint, f.Attr("ephemeral") == "1" || f.Attr("ephemeral") == "true"
		break
	}
	if s.fingerprint.IsZero() {
		return nil, errors.New("no SHA-256 fingerprint")
	}
	for _, c := range e.All(NSSession, "candidate") {
		if len(s.candidates) == maxCandidates {
			break
		}
		if candidate, ok := parseCandidate(c); ok {
			s.candidates = append(s.candidates, candidate)
		}
	}
	return s, nil
}

// count reads a number of a summary, -1 if it is none.
func count(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

func parseCandidate(e stanza.Element) (Candidate, bool) {
	c := Candidate{Type: CandidateType(e.Attr("type"))}
	switch c.Type {
	case Host, Mapped, Reflexive, Relay, Proxy:
	default:
		return Candidate{}, false // of a later version
	}
	port, err := strconv.ParseUint(e.Attr("port"), 10, 16)
	if err != nil || port == 0 {
		return Candidate{}, false
	}
	if a, err := netip.ParseAddr(e.Attr("addr")); err == nil {
		if a.Zone() != "" {
			return Candidate{}, false
		}
		c.Addr = unmap(netip.AddrPortFrom(a, uint16(port)))
	} else if c.Name = e.Attr("addr"); c.Type.direct() || !validName(c.Name) {
		return Candidate{}, false
	} else {
		c.Port = uint16(port)
	}
	if c.Type == Proxy {
		c.SID = e.Attr("sid")
		if c.JID, err = jid.Parse(e.Attr("jid")); err != nil || !wire.ValidKey(c.SID) {
			return Candidate{}, false
		}
	}
	return c, true
}

// validName reports whether s is a host name (RFC 1123, 2.1). It may be an
// address in nobody's eyes: a resolver would take "127.1" for one.
func validName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > maxName {
		return false
	}
	letters := false
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		letters = false // those of the last label count
		for _, c := range []byte(label) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
				letters = true
			case '0' <= c && c <= '9', c == '-':
			default:
				return false
			}
		}
	}
	return letters
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// inForce returns the features that both sides sent, sorted.
func inForce(a, b []string) []string {
	var both []string
	for _, f := range a {
		if slices.Contains(b, f) {
			both = append(both, f)
		}
	}
	slices.Sort(both)
	return both
}

// giveUp returns the iq of type error by which an entity says that it has
// stopped dialing (Section 1 of protocol.md). It names the other's key.
func giveUp(to, from jid.JID, id, peerKey string) stanza.IQ {
	return stanza.IQ{
		Header:  stanza.Header{To: to, From: from, ID: id},
		Type:    stanza.Failed,
		Payload: stanza.New(NSStock, "query", stanza.New(NSStock, "key", stanza.Text(peerKey))),
		Error:   stanza.NewError(stanza.ServiceUnavailable, "Could not connect to any of the hosts."),
	}
}

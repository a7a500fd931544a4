package relay

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp/internal/socks5"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Namespaces of what the component answers.
const (
	nsInfo        = "http://jabber.org/protocol/disco#info"  // XEP-0030, 3
	nsItems       = "http://jabber.org/protocol/disco#items" // XEP-0030, 4
	nsPing        = "urn:xmpp:ping"                          // XEP-0199
	nsRelay       = "urn:x-dtcp:relay:0"                     // Section 3 of protocol.md
	nsBytestreams = "http://jabber.org/protocol/bytestreams" // XEP-0065, 4 and 6.3.5
)

// features is what disco#info announces: the namespaces above.
var features = []string{nsInfo, nsItems, nsPing, nsRelay, nsBytestreams}

// component is the relay as XMPP sees it. It keeps no state of its own. Its
// functions are called while it answers, and must not block.
type component struct {
	domain jid.JID
	node   string
	terms  func() (t terms, limits Limits, draining bool)

	// ask is pairing.ask.
	ask func(owner jid.JID) bool

	// refused counts that something was refused, and tells the operator.
	refused func(reason string, owner jid.JID)

	// activate is pairing.activate. There is how many wait for the stream.
	activate func(name string, owner jid.JID) (reason string, there int)
}

// newComponent makes the component of a relay.
func newComponent(r *Relay) *component {
	return &component{
		domain: r.config.Domain,
		node:   r.config.Node,
		terms: func() (terms, Limits, bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.terms, r.core.limits, r.core.draining
		},
		ask: func(owner jid.JID) (ok bool) {
			r.tell(nil, func(p *pairing, out []action, now time.Time) []action {
				ok = p.ask(owner, now)
				return out
			})
			return ok
		},
		refused: func(reason string, owner jid.JID) {
			r.mu.Lock()
			r.core.refused[reason]++
			r.mu.Unlock()
			if r.config.Refused != nil {
				r.config.Refused(reason, netip.AddrPort{}, owner)
			}
		},
		activate: func(name string, owner jid.JID) (reason string, there int) {
			r.tell(nil, func(p *pairing, out []action, now time.Time) []action {
				there = len(p.proposals[name])
				out, reason = p.activate(out, name, owner, now)
				return out
			})
			return reason, there
		},
	}
}

// answer answers an iq of type get or set.
func (c *component) answer(q stanza.IQ, now time.Time) stanza.IQ {
	var payload stanza.Element
	var err *stanza.Error
	known := slices.Contains(features, q.Payload.Name.Space)
	is := func(kind, space, local string) bool { return q.Type == kind && q.Payload.Is(space, local) }
	switch {
	case q.To != c.domain: // nobody else lives here (RFC 6121, 8.5.1)
		err = stanza.NewError(stanza.ServiceUnavailable, "")
	case is(stanza.Get, nsInfo, "query"):
		payload, err = describe(q)
	case is(stanza.Get, nsItems, "query"):
		payload, err = items(q)
	case is(stanza.Get, nsPing, "ping"):
	case is(stanza.Get, nsRelay, "lease"):
		payload, err = c.lend(q, now)
	case is(stanza.Get, nsBytestreams, "query"):
		payload, err = c.streamhost(q)
	case is(stanza.Set, nsBytestreams, "query"):
		err = c.start(q)
	case known:
		err = stanza.NewError(stanza.FeatureNotImplemented, "")
	default: // RFC 6120, 8.4
		err = stanza.NewError(stanza.ServiceUnavailable, "")
	}
	if err != nil {
		return q.Fail(err)
	}
	return q.Result(payload)
}

// describe answers disco#info (XEP-0030, 3.1): a relay, and a proxy for clients
// that do not know of relays.
func describe(q stanza.IQ) (stanza.Element, *stanza.Error) {
	e := stanza.New(nsInfo, "query")
	if q.Payload.Attr("node") != "" {
		return e, stanza.NewError(stanza.ItemNotFound, "")
	}
	for _, kind := range []string{"dtcp", "bytestreams"} {
		e.Children = append(e.Children, stanza.New(nsInfo, "identity").With("category", "proxy").With("type", kind).With("name", "DTCP relay"))
	}
	for _, feature := range features {
		e.Children = append(e.Children, stanza.New(nsInfo, "feature").With("var", feature))
	}
	return e, nil
}

// items answers disco#items (XEP-0030, 4.1): there are none.
func items(q stanza.IQ) (stanza.Element, *stanza.Error) {
	e := stanza.New(nsItems, "query")
	if q.Payload.Attr("node") != "" {
		return e, stanza.NewError(stanza.ItemNotFound, "")
	}
	return e, nil
}

// lend answers the question for a lease (Section 3 of protocol.md).
func (c *component) lend(q stanza.IQ, now time.Time) (e stanza.Element, _ *stanza.Error) {
	t, limits, refusal := c.admit(q.From)
	if refusal != nil {
		return e, refusal
	}
	owner := q.From.Bare()
	if !c.ask(owner) {
		c.refused(RefusedOwnerHandshakes, owner)
		return e, overLimit(RefusedOwnerHandshakes)
	}
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails (crypto/rand)
	l := lease{
		owner:   owner,
		expires: now.Add(leaseLife),
		node:    c.node,
		quota:   limits.filled().PerOwner,
	}
	id, secret, err := t.keys.seal(l, nonce)
	if err != nil {
		c.refused(RefusedDenied, owner)
		return e, stanza.NewError(stanza.NotAcceptable, "the address "+owner.String()+" is too long for a lease")
	}
	e = stanza.New(nsRelay, "lease").
		With("id", id).
		With("secret", base64.RawURLEncoding.EncodeToString(secret)).
		With("expires", strconv.Itoa(int(leaseLife/time.Second))).
		With("time", strconv.FormatInt(now.Unix(), 10))
	most := l.limits()
	for i, name := range []string{"streams", "rate", "bytes-per-day"} {
		if most[i] > 0 {
			e = e.With(name, strconv.FormatInt(most[i], 10))
		}
	}
	for _, h := range t.hosts {
		host := stanza.New(nsRelay, "host").With("addr", h.addr()).With("port", h.port())
		if h.TLS != nil {
			host = host.With("tls", "1").With("fingerprint", fingerprint(h.TLS.Certificate[0]))
		}
		e.Children = append(e.Children, host)
	}
	return e, nil
}

// addr returns the host's address in the form of RFC 5952, or its name.
func (h Host) addr() string {
	if a, err := netip.ParseAddr(h.Addr); err == nil {
		return a.String()
	}
	return h.Addr
}

func (h Host) port() string { return strconv.Itoa(int(h.Port)) }

// fingerprint returns the SHA-256 of a certificate in the form that Section 2 of
// protocol.md has.
func fingerprint(certificate []byte) string {
	return strings.ReplaceAll(fmt.Sprintf("% X", sha256.Sum256(certificate)), " ", ":")
}

// streamhost answers the question for the address of the proxy (XEP-0065, 4).
func (c *component) streamhost(q stanza.IQ) (e stanza.Element, _ *stanza.Error) {
	t, _, err := c.admit(q.From)
	if err != nil {
		if err.Condition != stanza.Forbidden { // "unable to act as a StreamHost"
			err = stanza.NewError(stanza.NotAllowed, err.Text)
		}
		return e, err
	}
	h := t.hosts[0]
	host := stanza.New(nsBytestreams, "streamhost").With("jid", c.domain.String()).With("host", h.addr()).With("port", h.port())
	return stanza.New(nsBytestreams, "query", host), nil
}

// start activates a stream of the proxy (XEP-0065, 6.3.5). Who asks must be its
// requester, for his address is in the hash by which its two connections name
// it. The target's is taken as it is written: so it is what the two have hashed.
func (c *component) start(q stanza.IQ) *stanza.Error {
	sid, mode := q.Payload.Attr("sid"), q.Payload.Attr("mode")
	activate := q.Payload.Child(nsBytestreams, "activate")
	target := strings.TrimSpace(activate.Text())
	switch {
	case activate.IsZero(): // somebody wants us for a target (XEP-0065, 5.3.1)
		return stanza.NewError(stanza.NotAcceptable, "")
	case mode != "" && mode != "tcp": // XEP-0065, 8
		return stanza.NewError(stanza.FeatureNotImplemented, "")
	case sid == "" || target == "":
		return stanza.NewError(stanza.BadRequest, "")
	}
	if _, _, err := c.admit(q.From); err != nil {
		return err
	}
	reason, there := c.activate(socks5.DstAddr(sid, q.From.String(), target), q.From.Bare())
	if reason == "" {
		return nil
	}
	c.refused(reason, q.From.Bare())
	switch {
	case reason == RefusedUnserved && there == 0: // or it is another's
		return stanza.NewError(stanza.ItemNotFound, "no connection waits for this stream")
	case reason == RefusedUnserved:
		return stanza.NewError(stanza.NotAllowed, "only one of the two is connected")
	}
	return overLimit(reason)
}

func overLimit(reason string) *stanza.Error {
	return stanza.NewError(stanza.ResourceConstraint, "a limit of this relay is reached ("+reason+"); try again later")
}

// admit returns what holds now, or the error for who may not use the relay, and
// for everybody when it is about to stop.
func (c *component) admit(j jid.JID) (terms, Limits, *stanza.Error) {
	t, limits, draining := c.terms()
	switch {
	case !t.who.allows(j):
		c.refused(RefusedDenied, j.Bare())
		return t, limits, stanza.NewError(stanza.Forbidden, "the operator of this relay does not allow "+j.Bare().String())
	case draining:
		c.refused(RefusedShutdown, j.Bare())
		return t, limits, stanza.NewError(stanza.ResourceConstraint, "this relay is about to stop; try again later")
	}
	return t, limits, nil
}

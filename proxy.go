package dtcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/dtcp-relay/dtcp/internal/socks5"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// This file uses an XEP-0065 proxy as a relay (Section 3 of protocol.md, last
// item): the owner of the candidate is the requester of the bytestream, connects
// and activates it; the other peer connects as its target, and is the dialer.

// proxyService is an XEP-0065 proxy that our server has.
type proxyService struct {
	jid  jid.JID   // whom to ask to activate
	host Candidate // without the sid of a session
}

// candidates returns what a session offers at the proxy, which is to know the
// bytestream by sid. It is one: a proxy joins two connections and no third.
func (p *proxyService) candidates(sid string) []Candidate {
	if p == nil {
		return nil
	}
	c := p.host
	c.SID = sid
	return []Candidate{c}
}

// errNoStreamhost is why a proxy cannot be used.
var errNoStreamhost = errors.New("a proxy that tells no address that can be used")

// askProxy asks a proxy for its address (XEP-0065, 4).
func (r *relays) askProxy(ctx context.Context, proxy jid.JID) (*proxyService, error) {
	answer, err := r.signaling.RoundTrip(ctx, stanza.IQ{
		Header: stanza.Header{To: proxy}, Type: stanza.Get, Payload: stanza.New(nsBytestreams, "query"),
	})
	if err != nil {
		return nil, err
	}
	for _, h := range answer.Payload.All(nsBytestreams, "streamhost") {
		c, ok := parseCandidate(stanza.New(NSSession, "candidate").With("type", string(Proxy)).
			With("addr", h.Attr("host")).With("port", h.Attr("port")).With("jid", h.Attr("jid")).With("sid", "-"))
		if ok {
			return &proxyService{jid: proxy, host: c}, nil
		}
	}
	return nil, errNoStreamhost
}

// Pauses between two attempts to activate: the peer connects when it may, and
// nobody tells us.
const (
	activatePause    = 50 * time.Millisecond // doubles
	activatePauseMax = time.Second
)

// serveProxy connects to the proxy, as the requester of the bytestream that the
// candidate names, and has it activated as soon as the peer is there, too. It
// is a goroutine of the session's own.
func (s *session) serveProxy(p *proxyService, c Candidate) {
	// Not before the peer may connect, too: its user may have to be asked, and a
	// proxy waits for nobody that long.
	select {
	case <-s.begun:
	case <-s.legs.Done():
		return
	}
	ctx, cancel := context.WithTimeout(s.legs, attemptTime)
	defer cancel()
	conn, err := s.e.connectProxy(ctx, c, nil, s.local, s.peer)
	if err == nil {
		if err = s.activate(ctx, p); err != nil {
			_ = abort(conn)
		}
	}
	if err != nil {
		if s.legs.Err() == nil {
			s.post(input{event: event{kind: tick}, failure: &Attempt{Candidate: c, Ours: true, Err: err}})
		}
		return
	}
	s.acceptRelayed(newTransport(conn), c)
}

// activate asks the proxy to join the two connections until it does, or until
// that is forbidden.
func (s *session) activate(ctx context.Context, p *proxyService) error {
	q := stanza.IQ{Header: stanza.Header{To: p.jid}, Type: stanza.Set, Payload: stanza.New(nsBytestreams, "query",
		stanza.New(nsBytestreams, "activate", stanza.Text(s.peer.String()))).With("sid", s.key)}
	for pause := activatePause; ; pause = min(2*pause, activatePauseMax) {
		_, err := s.e.signaling.RoundTrip(ctx, q)
		var refused *stanza.Error
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused) && refused.Condition == stanza.Forbidden, rest(ctx, pause) != nil:
			return err
		}
	}
}

// connectProxy connects to a proxy as requester or target of the bytestream
// that the candidate names. at are the proxy's addresses, if they are known already.
func (e *Endpoint) connectProxy(ctx context.Context, c Candidate, at []netip.AddrPort, owner, other jid.JID) (conn net.Conn, err error) {
	if conn, err = e.dialRelay(ctx, c, at); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err = conn.SetDeadline(time.Now().Add(handshakeTime)); err == nil {
		err = socks5.Connect(conn, socks5.DstAddr(c.SID, owner.String(), other.String()))
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = abort(conn)
		return nil, err
	}
	return conn, nil
}

package dtcp

import (
	"net/netip"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Trace holds hooks, each of which may be nil, in the manner of
// [net/http/httptrace.ClientTrace]. They are called from several goroutines and
// must not block. stream names one negotiation and the stream that comes of it
// and is unique in its Endpoint.
type Trace struct {
	Refused   func(r *Request, err error)                                       // an incoming request was refused, by Allow or by a limit
	Offered   func(stream string, peer jid.JID, service string, requester bool) // a negotiation began
	Dialing   func(stream string, c Candidate)                                  // a dial to the peer's candidate began
	Failed    func(stream string, c Candidate, err error)                       // it, or its handshake, failed, or it must not be dialed
	Accepted  func(stream string, remote netip.AddrPort)                        // a connection that named this session's key came in
	Ready     func(stream string, p Path)                                       // the peer has proven itself on a path
	Nominated func(stream string, p Path)                                       // the stream is on this path
	GaveUp    func(stream string, byPeer bool)                                  // one side has nothing left to dial
	Closed    func(stream string)                                               // the stream was closed or aborted at this end
	Ended     func(stream string, d time.Duration, err error)                   // the negotiation is over, with a stream if err is nil
}

// tracer calls the hooks that are set.
type tracer struct{ t *Trace }

func (t tracer) refused(r *Request, err error) {
	if t.t != nil && t.t.Refused != nil {
		t.t.Refused(r, err)
	}
}

func (t tracer) offered(stream string, peer jid.JID, service string, requester bool) {
	if t.t != nil && t.t.Offered != nil {
		t.t.Offered(stream, peer, service, requester)
	}
}

func (t tracer) dialing(stream string, c Candidate) {
	if t.t != nil && t.t.Dialing != nil {
		t.t.Dialing(stream, c)
	}
}

func (t tracer) failed(stream string, c Candidate, err error) {
	if t.t != nil && t.t.Failed != nil {
		t.t.Failed(stream, c, err)
	}
}

func (t tracer) accepted(stream string, remote netip.AddrPort) {
	if t.t != nil && t.t.Accepted != nil {
		t.t.Accepted(stream, remote)
	}
}

func (t tracer) ready(stream string, p Path) {
	if t.t != nil && t.t.Ready != nil {
		t.t.Ready(stream, p)
	}
}

func (t tracer) nominated(stream string, p Path) {
	if t.t != nil && t.t.Nominated != nil {
		t.t.Nominated(stream, p)
	}
}

func (t tracer) gaveUp(stream string, byPeer bool) {
	if t.t != nil && t.t.GaveUp != nil {
		t.t.GaveUp(stream, byPeer)
	}
}

func (t tracer) closed(stream string) {
	if t.t != nil && t.t.Closed != nil {
		t.t.Closed(stream)
	}
}

func (t tracer) ended(stream string, d time.Duration, err error) {
	if t.t != nil && t.t.Ended != nil {
		t.t.Ended(stream, d, err)
	}
}

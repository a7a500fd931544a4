package main

import (
	"context"
	"errors"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// trust decides by what is known of peers whether one is who it says (Section
// 5 of protocol.md).
type trust struct {
	dir        *profile.Dir
	out        *output
	own        dtcp.Fingerprint
	allowPlain bool
	isStranger func(jid.JID) bool // of whom nothing is kept until the user has said yes; nil: nobody is
}

// unknownText answers a request whose fingerprint is not among those known. It
// is read at the other end, which knows it by its wording.
const unknownText = "the certificate that was announced is not one of those known here for this account"

// verify judges a peer that has proven its certificate, and notes the one of a
// first contact.
func (t *trust) verify(p dtcp.Peer) error {
	if unheard, err := t.isUnheard(p.JID); unheard || err != nil {
		return err
	}
	return t.keep(p)
}

// isUnheard reports whether a peer is a stranger of whom nothing is known:
// whoever can make up addresses must not fill our disk.
func (t *trust) isUnheard(who jid.JID) (bool, error) {
	if t.isStranger == nil || !t.isStranger(who) {
		return false, nil
	}
	known, err := t.dir.Peer(who)
	return len(known.Fingerprints) == 0, err
}

// keep is verify for everybody.
func (t *trust) keep(p dtcp.Peer) error {
	first, err := t.dir.Note(p.JID, p.Fingerprint, p.Ephemeral, time.Now())
	if err != nil {
		return err
	}
	if first && !p.Ephemeral {
		t.out.say("first contact with %v: noted its fingerprint %v; compare by voice: dtcp peers verify %[1]v", p.JID.Bare(), p.Fingerprint)
	}
	return nil
}

// admit judges a request by the fingerprint that it announces, before anything
// of this side is revealed.
func (t *trust) admit(r *dtcp.Request) error {
	if r.Stock {
		return nil // plain was asked
	}
	// The Endpoint looks at this later, when it would be somebody unknown.
	if r.Fingerprint == t.own {
		return stanza.NewError(stanza.NotAcceptable, dtcp.ErrOwnFingerprint.Error())
	}
	if unheard, err := t.isUnheard(r.From); unheard && err == nil {
		return nil
	}
	err := t.dir.Check(r.From, r.Fingerprint, r.Ephemeral, time.Now())
	var unknown *profile.UnknownError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		t.out.fail(err)
		return stanza.NewError(stanza.Forbidden, unknownText)
	}
	t.out.fail(err)
	return stanza.NewError(stanza.InternalServerError, "")
}

// plain reports whether a peer that knows only XEP-0046 may have a stream: not
// one that was ever seen to know more, for then somebody between makes it look
// so.
func (t *trust) plain(who jid.JID) bool {
	if !t.allowPlain {
		return false
	}
	p, err := t.dir.Peer(who)
	return err == nil && !p.Extended
}

// guest says who may have a stream of a listener.
type guest struct {
	allowed []jid.JID // a bare one stands for all its resources
	service string
	trust   *trust
	busy    func() error // nil: there is room
}

func (g *guest) allow(_ context.Context, r *dtcp.Request) error {
	// Strangers learn nothing: not which services there are, nor who is known.
	if !g.isAllowed(r.From) {
		return stanza.NewError(stanza.Forbidden, r.From.Bare().String()+" is not allowed here")
	}
	if !r.Stock && r.Service != g.service && r.Service != checkService {
		return stanza.NewError(stanza.ServiceUnavailable, "there is no service "+r.Service+" here, but "+g.service)
	}
	if err := g.busy(); err != nil && r.Service != checkService {
		return err
	}
	return g.trust.admit(r)
}

func (g *guest) isAllowed(who jid.JID) bool {
	for _, a := range g.allowed {
		if who == a || a.IsBare() && who.Bare() == a {
			return true
		}
	}
	return false
}

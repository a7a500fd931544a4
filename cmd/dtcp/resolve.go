package main

import (
	"context"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// discoTime bounds the search for the right resource; one that does not answer
// is asleep, and no good.
const discoTime = 5 * time.Second

// maxDisco bounds how many resources are asked.
const maxDisco = 16

// fileService is what send asks for and receive offers (doc/transfer.md).
const fileService = "file"

// wellKnown is the resource that a listener takes by itself; that of receive is
// the shortest.
func wellKnown(service string) string {
	if service == fileService {
		return "dtcp"
	}
	return "dtcp." + service
}

// resolve returns the full address to dial. One that is given is taken as it
// is. Else it is the resource that announces the service, of those whose presence
// we see, and without one the well-known.
func (l *link) resolve(ctx context.Context, peer jid.JID, service string) (jid.JID, error) {
	if peer.IsFull() {
		return peer, nil
	}
	known, err := peer.WithResource(wellKnown(service))
	if err != nil {
		return jid.JID{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, discoTime)
	defer cancel()
	found := known
	if l.sees(bounded, peer) {
		found = l.discover(bounded, peer, known, featureSession+"#"+service)
	}
	if ctx.Err() != nil {
		return jid.JID{}, ctx.Err()
	}
	l.out.trace("%v: trying %v", peer, found)
	return found, nil
}

// sees reports whether the presence of an account is told to us. If not, there
// is no use in waiting for it.
func (l *link) sees(ctx context.Context, peer jid.JID) bool {
	if peer == l.session.LocalAddr().Bare() {
		return true
	}
	roster, err := l.session.Roster(ctx)
	if err != nil {
		return false
	}
	for _, contact := range roster {
		if contact.JID == peer {
			return contact.Subscription == "to" || contact.Subscription == "both"
		}
	}
	return false
}

// discover asks the available resources all at once. The first to say yes is
// taken; otherwise it is other.
func (l *link) discover(ctx context.Context, peer, other jid.JID, feature string) jid.JID {
	resources, err := l.session.Resources(ctx, peer)
	if err != nil {
		return other
	}
	resources = resources[:min(len(resources), maxDisco)]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan jid.JID, len(resources))
	for _, r := range resources {
		// Owned by this call, which ends it by ctx; the channel has room for all.
		go func() {
			info, err := l.session.Info(ctx, r)
			if err != nil || !info.Has(feature) {
				r = jid.JID{}
			}
			found <- r
		}()
	}
	for range resources {
		select {
		case r := <-found:
			if !r.IsZero() {
				return r
			}
		case <-ctx.Done():
			return other
		}
	}
	return other
}

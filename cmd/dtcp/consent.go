package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/transfer"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// rosterTime bounds the question to the server who our contacts are.
const rosterTime = 20 * time.Second

// errDeclined is what became of a transfer that the user did not want.
var errDeclined = errors.New("declined here")

// consent decides who may send files: by address when a stream is asked for,
// before anything of this side is revealed (Section 5 of protocol.md), and then,
// when it is known what there is to send, by a question.
type consent struct {
	out      *output
	link     *link // set before the first request
	from     []jid.JID
	yes      bool
	terminal *asker       // nil: there is none, or nobody is to be asked
	busy     func() error // nil: there is room
	where    string
	visitor  func(jid.JID) (ephemeral bool) // asks about a stranger who was let in

	mu       sync.Mutex
	contacts map[jid.JID]bool // bare addresses that were in the roster when they last asked
}

// rule says for people whom consent lets in.
func (c *consent) rule() string {
	switch {
	case c.yes && len(c.from) > 0:
		return "accepting from " + names(c.from)
	case c.yes:
		return "accepting from contacts and own machines"
	case c.terminal == nil:
		return "there is no terminal to ask on, so everybody is refused: --yes accepts without a question"
	case len(c.from) > 0:
		return "asking here when one of these sends: " + names(c.from)
	}
	return "asking here before anything is stored; who is no contact gets in through our relay only"
}

// allow judges a request for a stream. Strangers learn nothing but that.
func (c *consent) allow(ctx context.Context, r *dtcp.Request) error {
	if err := c.mayAsk(ctx, r); err != nil {
		return err
	}
	if r.Service == checkService && !r.Stranger {
		return c.link.trust.admit(r)
	}
	if r.Service != fileService {
		return stanza.NewError(stanza.ServiceUnavailable, "there is no service "+r.Service+" here, but "+fileService)
	}
	if err := c.busy(); err != nil {
		return err
	}
	return c.link.trust.admit(r)
}

// paths is how a peer may reach us: strangers through our relay alone, so that
// they do not learn an address of this machine (Section 5 of protocol.md).
func (c *consent) paths(who jid.JID) dtcp.PathPolicy {
	if c.isStranger(who) {
		return dtcp.RelayOnly
	}
	return c.link.paths()
}

// isStranger reports whether a peer is neither allowed by name nor, as far as it
// was looked up, known. It is one unless mayAsk has found otherwise.
func (c *consent) isStranger(who jid.JID) bool {
	if (&guest{allowed: c.from}).isAllowed(who) || who.Bare() == c.link.session.LocalAddr().Bare() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.contacts[who.Bare()]
}

// mayAsk judges who asks.
func (c *consent) mayAsk(ctx context.Context, r *dtcp.Request) error {
	who := r.From.Bare()
	refusal := stanza.NewError(stanza.Forbidden, who.String()+" is not allowed here")
	switch {
	case r.Stock, !c.yes && c.terminal == nil:
		return refusal
	case len(c.from) > 0:
		if !(&guest{allowed: c.from}).isAllowed(r.From) {
			return refusal
		}
		return nil
	case who == c.link.session.LocalAddr().Bare():
		return nil
	}
	known, err := c.isContact(ctx, who)
	switch {
	case err != nil:
		c.out.say("cannot tell whether %v is a contact: %v", who, trimmed(err))
		return stanza.NewError(stanza.InternalServerError, "")
	case known:
		return nil
	case c.terminal == nil:
		return refusal
	}
	r.Stranger = true
	why := "--direct-only forbids that"
	if !c.link.directOnly {
		err := c.link.awaitRelay(ctx)
		if err == nil {
			return nil
		}
		why, _ = explain(err)
	}
	c.out.say("%v, who is no contact, wants to send %s; strangers are let in through our relay only, but %s. --from %[1]v lets this one in", who, announced(r), why)
	return refusal
}

// announced words what a request says of its files.
func announced(r *dtcp.Request) string {
	if r.Files < 0 {
		return "files"
	}
	text := count(int(r.Files), "file")
	if r.Bytes >= 0 {
		text += ", " + size(r.Bytes)
	}
	return text
}

// isContact reports whether a user may see our presence, and so is no stranger.
func (c *consent) isContact(ctx context.Context, who jid.JID) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, rosterTime)
	defer cancel()
	roster, err := c.link.session.Roster(ctx)
	if err != nil {
		return false, err
	}
	known := slices.ContainsFunc(roster, func(item xmpp.RosterItem) bool {
		return item.JID == who && (item.Subscription == "from" || item.Subscription == "both")
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if known {
		c.contacts[who] = true
	} else {
		delete(c.contacts, who)
	}
	return known, nil
}

// decide asks the user whether to accept an offer, unless all are.
func (c *consent) decide(ctx context.Context, conn *dtcp.Conn, o *transfer.Offer) error {
	if c.yes {
		return nil
	}
	peer, path := conn.Peer(), conn.Path()
	stranger := c.isStranger(peer)
	relay := ""
	if stranger {
		relay = path.Relay
	}
	yes, err := c.terminal.ask(ctx, question(peer, o, c.where, relay))
	switch {
	case err != nil:
		return err
	case !yes:
		return errDeclined
	case stranger:
		return c.link.trust.keep(dtcp.Peer{JID: peer, Fingerprint: path.Fingerprint, Ephemeral: c.visitor(peer)})
	}
	return nil
}

// question is what the user is asked, one line a string. relay is that through
// which a stranger has come, "" if it is none.
func question(peer jid.JID, o *transfer.Offer, where, relay string) []string {
	lines := []string{fmt.Sprintf("%v wants to send %s: %s", peer, describe(o), listed(o))}
	if relay != "" {
		lines = append(lines, fmt.Sprintf("%v is no contact, and so comes through our relay %s alone, which tells no address of this machine", peer.Bare(), relay))
	}
	place := "to be stored in " + where
	if o.Room >= 0 && where != stdoutName {
		place += fmt.Sprintf(", where %s are free", size(o.Room))
	}
	if o.Present > 0 {
		place += fmt.Sprintf("; %s of it seem to be here already", size(o.Present))
	}
	lines = append(lines, place)
	if o.Refused > 0 {
		lines = append(lines, count(o.Refused, "name")+" cannot be stored here, whatever you say")
	}
	return append(lines, "accept? [y/N] ")
}

// isYes reports whether an answer is one.
func isYes(answer string) bool {
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}

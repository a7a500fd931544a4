package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/transfer"
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
	return "asking here before anything is stored"
}

// allow judges a request for a stream. Strangers learn nothing but that.
func (c *consent) allow(ctx context.Context, r *dtcp.Request) error {
	if err := c.mayAsk(ctx, r); err != nil {
		return err
	}
	if r.Service != fileService {
		return stanza.NewError(stanza.ServiceUnavailable, "there is no service "+r.Service+" here, but "+fileService)
	}
	if err := c.busy(); err != nil {
		return err
	}
	return c.link.trust.admit(r)
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
	}
	r.Stranger = true
	if c.terminal != nil {
		// A stream would tell a stranger an address of this machine. Through a relay
		// it would not, and then the user could be asked.
		c.out.say("%v, who is no contact, wants to send %s; strangers are let in through a relay only, and this version has none. --from %[1]v lets this one in", who, announced(r))
	}
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
	for _, contact := range roster {
		if contact.JID == who {
			return contact.Subscription == "from" || contact.Subscription == "both", nil
		}
	}
	return false, nil
}

// decide asks the user whether to accept an offer, unless all are.
func (c *consent) decide(ctx context.Context, peer jid.JID, o *transfer.Offer) error {
	if c.yes {
		return nil
	}
	yes, err := c.terminal.ask(ctx, question(peer, o, c.where))
	switch {
	case err != nil:
		return err
	case !yes:
		return errDeclined
	}
	return nil
}

// question is what the user is asked, one line a string.
func question(peer jid.JID, o *transfer.Offer, where string) []string {
	lines := []string{fmt.Sprintf("%v wants to send %s: %s", peer, describe(o), listed(o))}
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

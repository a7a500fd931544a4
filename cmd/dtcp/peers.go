package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func (t *tool) peersCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "peers",
		Short: "List known peers and their fingerprints; verify, trust and forget them",
		Long: `peers lists, a line each, the peers that are known: address, "trusted" or
"refused", fingerprint, and when it was first seen. The fingerprint of the first
contact with a peer is noted and trusted from then on; any other one is refused
until you say that it is right.`,
		Args: t.positional(0),
	}
	c.RunE = func(*cobra.Command, []string) error {
		dir, err := t.remembered()
		if err != nil {
			return err
		}
		peers, err := dir.Peers()
		if err != nil {
			return err
		}
		listed := 0
		for _, p := range peers {
			t.list(p, nil)
			listed += len(p.Fingerprints) + len(p.Pending)
		}
		if listed == 0 {
			t.out.say("no peer is known yet")
		}
		return nil
	}
	verify := &cobra.Command{
		Use:   "verify JID",
		Short: "Print the phrase that you and a peer compare by voice",
		Long: `verify prints, for each fingerprint of the peer, 12 words made of both
fingerprints and both addresses. The peer gets the same words by the same command
with your address. If they agree, nobody poses as either: not even the XMPP servers.`,
		Args: t.positional(1, "JID"),
	}
	verify.RunE = func(_ *cobra.Command, args []string) error { return t.peerCommand(args, t.verifyPeer) }
	trust := &cobra.Command{
		Use:   "trust JID [FINGERPRINT]",
		Short: "Trust the fingerprint that was refused, or the one given",
		Args:  t.positional(1, "JID", "FINGERPRINT"),
	}
	trust.RunE = func(_ *cobra.Command, args []string) error {
		var f dtcp.Fingerprint // zero: the one that was refused
		if len(args) > 1 {
			var err error
			if f, err = dtcp.ParseFingerprint(args[1]); err != nil {
				return &usageError{err}
			}
		}
		return t.peerCommand(args, func(dir *profile.Dir, peer jid.JID) error { return t.trustPeer(dir, peer, f) })
	}
	forget := &cobra.Command{
		Use:   "forget JID",
		Short: "Forget all that is known of a peer: the next contact is a first one",
		Args:  t.positional(1, "JID"),
	}
	forget.RunE = func(_ *cobra.Command, args []string) error { return t.peerCommand(args, t.forgetPeer) }
	c.AddCommand(verify, trust, forget)
	return c
}

// peerCommand runs a subcommand on the peer that is the first argument.
func (t *tool) peerCommand(args []string, f func(dir *profile.Dir, peer jid.JID) error) error {
	peer, err := parsePeer(args[0])
	if err != nil {
		return err
	}
	dir, err := t.profile()
	if err != nil {
		return err
	}
	return f(dir, peer.Bare())
}

// list prints a line for each fingerprint of a peer. phrase may be nil.
func (t *tool) list(p profile.Peer, phrase func(dtcp.Fingerprint) string) {
	for _, group := range []struct {
		state string
		seen  []profile.Seen
	}{{"trusted", p.Fingerprints}, {"refused", p.Pending}} {
		for _, s := range group.seen {
			e := peerEvent{
				Event: "peer", JID: p.JID, State: group.state,
				Fingerprint: s.Fingerprint.String(), Time: s.Time.Format(time.RFC3339),
			}
			fields := []string{p.JID.String(), e.State, e.Fingerprint, e.Time}
			if phrase != nil {
				e.Phrase = phrase(s.Fingerprint)
				fields = append(fields, e.Phrase)
			}
			t.out.print(e, fields...)
		}
	}
}

// own returns what this side shows to peers.
func (t *tool) own(dir *profile.Dir) (jid.JID, dtcp.Fingerprint, error) {
	who := t.account
	if who.IsZero() {
		a, err := dir.Account(who)
		if err != nil {
			return who, dtcp.Fingerprint{}, err
		}
		who = a.JID
	}
	c, err := t.certificate(dir)
	if err != nil {
		return who, dtcp.Fingerprint{}, err
	}
	return who.Bare(), dtcp.FingerprintOf(c.Certificate[0]), nil
}

func (t *tool) verifyPeer(dir *profile.Dir, peer jid.JID) error {
	own, fingerprint, err := t.own(dir)
	if err != nil {
		return err
	}
	p, err := dir.Peer(peer)
	if err != nil {
		return err
	}
	if len(p.Fingerprints)+len(p.Pending) == 0 {
		return profile.ErrNoPeer
	}
	t.list(p, func(f dtcp.Fingerprint) string { return dtcp.Phrase(own, fingerprint, peer, f) })
	t.out.say("this side is %v with the fingerprint %v", own, fingerprint)
	t.out.say("%v gets the same words by: dtcp peers verify %v; compare them by voice", peer, own)
	return nil
}

func (t *tool) trustPeer(dir *profile.Dir, peer jid.JID, f dtcp.Fingerprint) error {
	f, err := dir.Trust(peer, f, time.Now())
	if err != nil {
		return err
	}
	t.out.say("trusting the fingerprint %v of %v from now on", f, peer)
	if own, fingerprint, err := t.own(dir); err == nil {
		t.out.say("its phrase with %v: %s", own, dtcp.Phrase(own, fingerprint, peer, f))
	} else if !errors.Is(err, profile.ErrNoAccount) {
		return err
	}
	return nil
}

func (t *tool) forgetPeer(dir *profile.Dir, peer jid.JID) error {
	if err := dir.ForgetPeer(peer); err != nil {
		return err
	}
	t.out.say("forgot %v: the next contact is a first one", peer)
	return nil
}

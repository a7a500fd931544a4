package profile

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Bounds on what is kept of one bare JID. A peer with that many machines can
// only be known by a part of them.
const (
	maxFingerprints = 64
	maxPending      = 8
)

// Peer is what is known of a bare JID. The lists are in the order in which
// their entries came.
type Peer struct {
	JID          jid.JID
	Fingerprints []Seen // trusted
	Pending      []Seen // refused, and waiting for the user's word
	Extended     bool   // was seen with <session/>, and so is never served as a stock peer
}

// Seen is a fingerprint and the time when it was first seen.
type Seen struct {
	Fingerprint dtcp.Fingerprint
	Time        time.Time
}

// UnknownError says that a peer presents a fingerprint that is not among those
// known for it, of which there are some: it has another machine, or made a new
// certificate, or somebody poses as it.
type UnknownError struct {
	Peer        jid.JID // bare
	Fingerprint dtcp.Fingerprint
	Ephemeral   bool // it cannot be trusted for longer than its process lives
	Known       int  // number of fingerprints known
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("profile: the fingerprint %v is not one of the %d known for %v", e.Fingerprint, e.Known, e.Peer)
}

// Errors of [Dir.Trust] and [Dir.ForgetPeer].
var (
	ErrNoPeer    = errors.New("profile: this peer is not known")
	ErrNoPending = errors.New("profile: no fingerprint of this peer was refused")
	ErrAmbiguous = errors.New("profile: several fingerprints of this peer were refused")
	ErrFull      = fmt.Errorf("profile: more than %d fingerprints for one peer", maxFingerprints)
)

// Peers returns all that are known, in the order of their addresses.
func (d *Dir) Peers() ([]Peer, error) { return d.readPeers() }

// Peer returns what is known of a JID, whose resource does not matter. Of an
// unknown one only the JID is set.
func (d *Dir) Peer(who jid.JID) (Peer, error) {
	peers, err := d.readPeers()
	if err != nil {
		return Peer{}, err
	}
	if i, ok := findPeer(peers, who); ok {
		return peers[i], nil
	}
	return Peer{JID: who.Bare()}, nil
}

// Check decides by a fingerprint that was announced, and not yet proven,
// whether to go on with a peer (Section 5 of protocol.md): yes on first contact
// and with a known one. Anything else is an [*UnknownError], and the fingerprint
// is kept as pending for [Dir.Trust], unless it is ephemeral. That the peer
// speaks the session extension is recorded in both cases.
func (d *Dir) Check(who jid.JID, f dtcp.Fingerprint, ephemeral bool, now time.Time) error {
	_, err := d.meet(who, f, ephemeral, false, now)
	return err
}

// Note is [Dir.Check] for a fingerprint whose certificate the peer has proven
// to hold: one that comes at first contact is kept, unless it is ephemeral.
// first reports that it was such a contact. The decision and the keeping are
// one step: of two unknown fingerprints that come at once, one wins.
func (d *Dir) Note(who jid.JID, f dtcp.Fingerprint, ephemeral bool, now time.Time) (first bool, err error) {
	return d.meet(who, f, ephemeral, true, now)
}

func (d *Dir) meet(who jid.JID, f dtcp.Fingerprint, ephemeral, keep bool, now time.Time) (first bool, err error) {
	if f.IsZero() {
		return false, errors.New("profile: a peer without a fingerprint")
	}
	// Most meetings change nothing; they need neither the lock nor a write.
	p, err := d.Peer(who)
	if err != nil {
		return false, err
	}
	first, changed, verdict := p.meet(f, ephemeral, keep, now)
	if !changed {
		return first, verdict
	}
	err = d.changePeer(who, func(p *Peer) error {
		first, _, verdict = p.meet(f, ephemeral, keep, now)
		return nil
	})
	if err != nil {
		return false, err
	}
	return first, verdict
}

// meet is the rule of Check and Note, on a value: it does no I/O.
func (p *Peer) meet(f dtcp.Fingerprint, ephemeral, keep bool, now time.Time) (first, changed bool, verdict error) {
	changed = !p.Extended
	p.Extended = true
	seen := Seen{Fingerprint: f, Time: now.UTC().Truncate(time.Second)}
	switch {
	case has(p.Fingerprints, f):
	case len(p.Fingerprints) == 0:
		first = true
		if keep && !ephemeral {
			p.Fingerprints = append(p.Fingerprints, seen)
			changed = true
		}
	default:
		verdict = &UnknownError{Peer: p.JID, Fingerprint: f, Ephemeral: ephemeral, Known: len(p.Fingerprints)}
		// A full list stays as it is: if the newest pushed the others out, an
		// attacker could leave his own as the only one.
		if !ephemeral && !has(p.Pending, f) && len(p.Pending) < maxPending {
			p.Pending = append(p.Pending, seen)
			changed = true
		}
	}
	return first, changed, verdict
}

// Trust adds a fingerprint to those known for a JID, and returns it. The zero
// Fingerprint stands for the pending one, if there is exactly one; else the
// error is [ErrNoPending] or [ErrAmbiguous]. What else is pending stays so.
func (d *Dir) Trust(who jid.JID, f dtcp.Fingerprint, now time.Time) (dtcp.Fingerprint, error) {
	err := d.changePeer(who, func(p *Peer) error {
		if f.IsZero() {
			switch len(p.Pending) {
			case 0:
				return ErrNoPending
			case 1:
				f = p.Pending[0].Fingerprint
			default:
				return ErrAmbiguous
			}
		}
		p.Pending = slices.DeleteFunc(p.Pending, func(s Seen) bool { return s.Fingerprint == f })
		if has(p.Fingerprints, f) {
			return nil
		}
		if len(p.Fingerprints) >= maxFingerprints {
			return ErrFull
		}
		p.Fingerprints = append(p.Fingerprints, Seen{Fingerprint: f, Time: now.UTC().Truncate(time.Second)})
		return nil
	})
	return f, err
}

// ForgetPeer removes all that is known of a JID, so that the next contact is a
// first one again. The error is [ErrNoPeer] if nothing is known.
func (d *Dir) ForgetPeer(who jid.JID) error {
	return d.changePeers(func(peers []Peer) ([]Peer, error) {
		i, ok := findPeer(peers, who)
		if !ok {
			return nil, ErrNoPeer
		}
		return slices.Delete(peers, i, i+1), nil
	})
}

func has(list []Seen, f dtcp.Fingerprint) bool {
	return slices.ContainsFunc(list, func(s Seen) bool { return s.Fingerprint == f })
}

func (d *Dir) changePeer(who jid.JID, f func(*Peer) error) error {
	if who.IsZero() {
		return errors.New("profile: a peer needs an address")
	}
	return d.changePeers(func(peers []Peer) ([]Peer, error) {
		i, ok := findPeer(peers, who)
		if !ok {
			peers = slices.Insert(peers, i, Peer{JID: who.Bare()})
		}
		return peers, f(&peers[i])
	})
}

func (d *Dir) changePeers(f func([]Peer) ([]Peer, error)) error {
	return d.change(func() error {
		peers, err := d.readPeers()
		if err != nil {
			return err
		}
		if peers, err = f(peers); err != nil {
			return err
		}
		return d.writePeers(peers)
	})
}

package profile

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// storedPeers is the content of the file of known peers.
type storedPeers struct {
	Peers []storedPeer `json:"peers"`
}

type storedPeer struct {
	JID          jid.JID      `json:"jid"`
	Fingerprints []storedSeen `json:"fingerprints"`
	Pending      []storedSeen `json:"pending,omitempty"`
	Extended     bool         `json:"extended"`
}

type storedSeen struct {
	Fingerprint string    `json:"fingerprint"`
	Time        time.Time `json:"time"`
}

// readPeers returns the peers in the order of their addresses.
func (d *Dir) readPeers() ([]Peer, error) {
	var stored storedPeers
	if err := d.readJSON(peersFile, &stored); err != nil {
		return nil, err
	}
	peers := make([]Peer, 0, len(stored.Peers))
	for _, s := range stored.Peers {
		if s.JID.IsZero() || s.JID.IsFull() {
			return nil, d.damaged(peersFile, fmt.Errorf("%q is no bare address", s.JID))
		}
		p := Peer{JID: s.JID, Extended: s.Extended}
		var err error
		if p.Fingerprints, err = loadSeen(s.Fingerprints); err != nil {
			return nil, d.damaged(peersFile, err)
		}
		if p.Pending, err = loadSeen(s.Pending); err != nil {
			return nil, d.damaged(peersFile, err)
		}
		i, twice := findPeer(peers, s.JID)
		if twice {
			return nil, d.damaged(peersFile, fmt.Errorf("%v stands in it twice", s.JID))
		}
		peers = slices.Insert(peers, i, p)
	}
	return peers, nil
}

func (d *Dir) writePeers(peers []Peer) error {
	stored := storedPeers{Peers: []storedPeer{}}
	for _, p := range peers {
		stored.Peers = append(stored.Peers, storedPeer{
			JID:          p.JID,
			Fingerprints: storeSeen(p.Fingerprints),
			Pending:      storeSeen(p.Pending),
			Extended:     p.Extended,
		})
	}
	return d.writeJSON(peersFile, stored)
}

func loadSeen(stored []storedSeen) ([]Seen, error) {
	var list []Seen
	for _, s := range stored {
		f, err := dtcp.ParseFingerprint(s.Fingerprint)
		if err != nil {
			return nil, err
		}
		list = append(list, Seen{Fingerprint: f, Time: s.Time})
	}
	return list, nil
}

func storeSeen(list []Seen) []storedSeen {
	stored := []storedSeen{}
	for _, s := range list {
		stored = append(stored, storedSeen{Fingerprint: s.Fingerprint.String(), Time: s.Time})
	}
	return stored
}

func findPeer(peers []Peer, who jid.JID) (int, bool) {
	return slices.BinarySearchFunc(peers, who.Bare(), func(p Peer, who jid.JID) int {
		return cmp.Compare(p.JID.String(), who.String())
	})
}

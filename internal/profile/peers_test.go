package profile_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// story drives one directory through a sequence of meetings.
type story struct {
	*testing.T
	d *profile.Dir
}

// meets checks the verdict of Check and of Note on one fingerprint.
func (s story) meets(sentence string, f dtcp.Fingerprint, ephemeral, wantFirst, wantOK bool) {
	s.Helper()
	check := s.d.Check(romeo, f, ephemeral, now)
	first, err := s.d.Note(romeo, f, ephemeral, now)
	var unknown *profile.UnknownError
	switch {
	case (err == nil) != wantOK || (check == nil) != wantOK:
		s.Errorf("%s: check says %v, note says %v, want ok %v", sentence, check, err, wantOK)
	case err != nil && (!errors.As(err, &unknown) || unknown.Fingerprint != f || unknown.Peer != romeo.Bare() || unknown.Ephemeral != ephemeral):
		s.Errorf("%s: the error is %#v", sentence, err)
	case first != wantFirst:
		s.Errorf("%s: first contact %v, want %v", sentence, first, wantFirst)
	}
}

func (s story) knows(sentence string, known, pending []dtcp.Fingerprint) {
	s.Helper()
	p, err := s.d.Peer(romeo)
	if err != nil {
		s.Fatal(err)
	}
	if got := prints(p.Fingerprints); !slices.Equal(got, known) {
		s.Errorf("%s: knows %v, want %v", sentence, got, known)
	}
	if got := prints(p.Pending); !slices.Equal(got, pending) {
		s.Errorf("%s: pending are %v, want %v", sentence, got, pending)
	}
}

func prints(list []profile.Seen) (all []dtcp.Fingerprint) {
	for _, s := range list {
		all = append(all, s.Fingerprint)
	}
	return all
}

type list = []dtcp.Fingerprint

func TestFirstContactThenOthersAreRefused(t *testing.T) {
	s := story{t, open(t)}
	s.knows("nothing yet", nil, nil)
	s.meets("first contact", mark(1), false, true, true)
	s.knows("it was noted", list{mark(1)}, nil)
	s.meets("the same again", mark(1), false, false, true)
	s.meets("another", mark(2), false, false, false)
	s.knows("it waits for the user", list{mark(1)}, list{mark(2)})

	f, err := s.d.Trust(romeo, dtcp.Fingerprint{}, now)
	if err != nil || f != mark(2) {
		t.Fatalf("trusting the one that waits: %v, %v", f, err)
	}
	s.knows("both are known", list{mark(1), mark(2)}, nil)
	s.meets("the second machine", mark(2), false, false, true)
	s.meets("the first machine still", mark(1), false, false, true)
}

func TestCheckKeepsNothingAtFirstContact(t *testing.T) {
	s := story{t, open(t)}
	if err := s.d.Check(romeo, mark(1), false, now); err != nil {
		t.Fatal(err)
	}
	s.knows("announced is not proven", nil, nil)
}

func TestEphemeralFingerprints(t *testing.T) {
	s := story{t, open(t)}
	s.meets("ephemeral, nothing known", mark(1), true, true, true)
	s.knows("never noted", nil, nil)
	s.meets("another ephemeral one", mark(2), true, true, true)
	s.meets("a lasting one", mark(3), false, true, true)
	s.meets("ephemeral, when one is known", mark(1), true, false, false)
	s.knows("nothing to trust in it", list{mark(3)}, nil)
	s.meets("a known one that claims to be ephemeral", mark(3), true, false, true)
}

func TestTrust(t *testing.T) {
	s := story{t, open(t)}
	if _, err := s.d.Trust(romeo, dtcp.Fingerprint{}, now); !errors.Is(err, profile.ErrNoPending) {
		t.Errorf("nothing refused yet: %v", err)
	}
	s.meets("first contact", mark(1), false, true, true)
	s.meets("a second", mark(2), false, false, false)
	s.meets("and a third", mark(3), false, false, false)
	if _, err := s.d.Trust(romeo, dtcp.Fingerprint{}, now); !errors.Is(err, profile.ErrAmbiguous) {
		t.Errorf("which one: %v", err)
	}
	if _, err := s.d.Trust(romeo, mark(3), now); err != nil {
		t.Fatal(err)
	}
	s.knows("the third by name", list{mark(1), mark(3)}, list{mark(2)})
	if _, err := s.d.Trust(romeo, mark(9), now); err != nil {
		t.Fatal(err)
	}
	s.knows("one that was never seen, told by its owner", list{mark(1), mark(3), mark(9)}, list{mark(2)})
	if _, err := s.d.Trust(romeo, mark(9), now); err != nil {
		t.Errorf("trusting twice: %v", err)
	}
}

// Somebody who poses as the peer many times neither fills the disk nor pushes
// what is waiting out of the list.
func TestPendingIsBounded(t *testing.T) {
	s := story{t, open(t)}
	s.meets("first contact", mark(0), false, true, true)
	var want list
	for n := byte(1); n <= 50; n++ {
		s.meets("one of many", mark(n), false, false, false)
		if n <= 8 {
			want = append(want, mark(n))
		}
	}
	s.knows("the first eight wait", list{mark(0)}, want)
}

func TestFingerprintsAreBounded(t *testing.T) {
	s := story{t, open(t)}
	for n := range byte(64) {
		if _, err := s.d.Trust(romeo, mark(n), now); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.d.Trust(romeo, mark(64), now); !errors.Is(err, profile.ErrFull) {
		t.Errorf("the 65th: %v", err)
	}
}

func TestForgetPeer(t *testing.T) {
	s := story{t, open(t)}
	if err := s.d.ForgetPeer(romeo); !errors.Is(err, profile.ErrNoPeer) {
		t.Errorf("forgetting nobody: %v", err)
	}
	s.meets("first contact", mark(1), false, true, true)
	s.meets("another", mark(2), false, false, false)
	if err := s.d.ForgetPeer(romeo); err != nil {
		t.Fatal(err)
	}
	s.knows("all gone", nil, nil)
	s.meets("a first contact again", mark(2), false, true, true)
}

func TestPeersAreRecordedByBareAddress(t *testing.T) {
	d := open(t)
	for i, who := range []string{"romeo@example.org/a", "abraham@example.org", "romeo@example.org/b", "example.org", "romeo@example.com"} {
		if _, err := d.Note(jid.MustParse(who), mark(7), false, now.Add(time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	peers, err := d.Peers()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range peers {
		got = append(got, p.JID.String())
		if len(p.Fingerprints) != 1 {
			t.Errorf("%v has %d fingerprints", p.JID, len(p.Fingerprints))
		}
	}
	want := []string{"abraham@example.org", "example.org", "romeo@example.com", "romeo@example.org"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if p := peers[len(peers)-1]; !p.Fingerprints[0].Time.Equal(now) {
		t.Errorf("romeo was first seen at %v, want %v", p.Fingerprints[0].Time, now)
	}
	if _, err := d.Note(romeo, dtcp.Fingerprint{}, false, now); err == nil {
		t.Error("a peer without a fingerprint was noted")
	}
	if _, err := d.Trust(jid.JID{}, mark(1), now); err == nil {
		t.Error("nobody was trusted")
	}
}

// Whoever was once seen with the extension is known to have it, even when
// nothing else of it was kept.
func TestExtendedIsRecorded(t *testing.T) {
	for _, test := range []struct {
		name string
		meet func(d *profile.Dir) error
	}{
		{"check", func(d *profile.Dir) error { return d.Check(romeo, mark(1), false, now) }},
		{"check, ephemeral", func(d *profile.Dir) error { return d.Check(romeo, mark(1), true, now) }},
		{"note", func(d *profile.Dir) error { _, err := d.Note(romeo, mark(1), false, now); return err }},
	} {
		d := open(t)
		if p, err := d.Peer(romeo); err != nil || p.Extended {
			t.Fatalf("%s: extended %v before, %v", test.name, p.Extended, err)
		}
		if err := test.meet(d); err != nil {
			t.Fatal(err)
		}
		if p, err := d.Peer(romeo); err != nil || !p.Extended {
			t.Errorf("%s: extended %v, %v", test.name, p.Extended, err)
		}
	}
}

// The file is written when something changes, and else left alone: a stream
// from a known peer must not cost a disk write.
func TestKnownPeersCostNoWrite(t *testing.T) {
	d := open(t)
	if _, err := d.Note(romeo, mark(1), false, now); err != nil {
		t.Fatal(err)
	}
	before := stat(t, d)
	if first, err := d.Note(romeo, mark(1), false, now); err != nil || first {
		t.Fatalf("first %v, %v", first, err)
	}
	if err := d.Check(romeo, mark(1), false, now); err != nil {
		t.Fatal(err)
	}
	if !sameFile(before, stat(t, d)) {
		t.Error("the file was replaced")
	}
	if _, err := d.Note(juliet, mark(1), false, now); err != nil {
		t.Fatal(err)
	}
	if sameFile(before, stat(t, d)) {
		t.Error("this test cannot see a file being replaced")
	}
}

// stat keeps the file open, so that its number is not used again for the one
// that replaces it.
func stat(t *testing.T, d *profile.Dir) os.FileInfo {
	t.Helper()
	f, err := os.Open(filepath.Join(d.Path(), "peers.json"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func sameFile(a, b os.FileInfo) bool { return os.SameFile(a, b) }

package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func sampleUsage() relay.Usage {
	start := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	return relay.Usage{
		Owner: jid.MustParse("juliet@example.org"), Kind: relay.KindLease,
		Listener: netip.MustParseAddrPort("[2001:db8:1:2::3]:40000"), Dialer: netip.MustParseAddrPort("[::ffff:198.51.100.7]:5"),
		Start: start, End: start.Add(1234567 * time.Millisecond), ToListener: 123456789, ToDialer: 0, Why: relay.EndedClosed,
	}
}

func TestUsageRecord(t *testing.T) {
	for _, tt := range []struct {
		make func(relay.Usage) usageRecord
		want string
	}{
		{newUsageRecord, `{"time":"2026-05-06T07:28:43.567Z","owner":"juliet@example.org","kind":"lease","listener":"[2001:db8:1:2::3]:40000",` +
			`"dialer":"198.51.100.7:5","to_listener":123456789,"to_dialer":0,"seconds":1234.567,"why":"closed"}`},
		{blurredRecord, `{"time":"2026-05-06T07:00:00Z","owner":"example.org","kind":"lease","listener":"2001:db8:1::/48",` +
			`"dialer":"198.51.100.0/24","to_listener":100000000,"to_dialer":0,"seconds":1000,"why":"closed"}`},
	} {
		got, err := json.Marshal(tt.make(sampleUsage()))
		if diff := cmp.Diff(tt.want, string(got)); err != nil || diff != "" {
			t.Errorf("%v, record (-want +got):\n%s", err, diff)
		}
	}
	for n, want := range map[float64]float64{0: 0, 0.4: 0, 1: 1, 9: 9, 10: 10, 14: 10, 15: 20, 96: 100, 5e12 + 1: 5e12} {
		if got := oneDigit(n); got != want {
			t.Errorf("one digit of %v: %v, want %v", n, got, want)
		}
	}
}

// TestUsageLogRotates: nothing is lost when the file is moved away.
func TestUsageLogRotates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "usage.jsonl")
	var said strings.Builder
	u, err := openUsageLog(path, false, newLog(&said))
	if err != nil {
		t.Fatal(err)
	}
	u.add(sampleUsage())
	u.close()
	if u, err = openUsageLog(path, false, newLog(&said)); err != nil {
		t.Fatal(err)
	}
	u.add(sampleUsage())
	u.close()
	lines := func(file string) int {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "\n")
	}
	if n := lines("usage.jsonl"); n != 2 {
		t.Errorf("%d lines after a restart, want 2", n)
	}
	if _, err := openUsageLog(filepath.Join(dir, "absent", "usage.jsonl"), false, newLog(&said)); err == nil {
		t.Error("a log in no directory")
	}
	if said.Len() > 0 {
		t.Errorf("said %s", said.String())
	}
}

func TestLogIsClean(t *testing.T) {
	var b strings.Builder
	l := newLog(&b)
	l.say("%s", "a\x1b[2Jb\nc\u202ed")
	l.trace("not shown")
	if got, want := b.String(), "dtcpd: a\ufffd[2Jb\ufffdc\ufffdd\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

package main

import (
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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

// disk is a file on a disk that has room for some more bytes.
type disk struct {
	strings.Builder
	room int
}

func (d *disk) Write(b []byte) (int, error) {
	n := min(len(b), d.room)
	d.room -= n
	d.Builder.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// TestUsageLogOnAFullDisk: what cannot be written is counted and said, once, and
// spoils no other line.
func TestUsageLogOnAFullDisk(t *testing.T) {
	text, err := json.Marshal(newUsageRecord(sampleUsage()))
	if err != nil {
		t.Fatal(err)
	}
	whole := len(text) + 1
	var said strings.Builder
	u := &usageLog{log: newLog(&said)}
	d := &disk{room: whole + 10}
	for range 4 { // a whole one, a torn one, two for which there is no room
		u.write(d, sampleUsage())
	}
	d.room = 1 // for the end of the torn line
	u.write(d, sampleUsage())
	d.room = 1000
	u.write(d, sampleUsage())
	u.write(d, sampleUsage())
	want := string(text) + "\n" + string(text[:10]) + "\n" + string(text) + "\n" + string(text) + "\n"
	if diff := cmp.Diff(want, d.String()); diff != "" {
		t.Errorf("the file (-want +got):\n%s", diff)
	}
	if n := u.lost.Load(); n != 4 {
		t.Errorf("%d are counted as lost, want 4", n)
	}
	wantSaid := "dtcpd: usage log: no space left on device: records are lost until it can be written again\n" +
		"dtcpd: usage log: it is written again; 4 records are lost\n"
	if diff := cmp.Diff(wantSaid, said.String()); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
}

// TestUsageLogAfterACrash: a line that was torn by the last run spoils none of
// this.
func TestUsageLogAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage.jsonl")
	if err := os.WriteFile(path, []byte(`{"time":"20`), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := openUsageLog(path, false, newLog(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	u.add(sampleUsage())
	u.close()
	text, err := os.ReadFile(path)
	if _, rest, ok := strings.Cut(string(text), "\n"); err != nil || !ok || !json.Valid([]byte(rest)) {
		t.Errorf("the file: %q, %v", text, err)
	}
}

// TestUsageLogTakesAll: as many streams as there can be may end at once.
func TestUsageLogTakesAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage.jsonl")
	u, err := openUsageLog(path, false, newLog(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	const streams = defaultConnections
	for range streams {
		u.add(sampleUsage())
	}
	u.close()
	text, err := os.ReadFile(path)
	if n := strings.Count(string(text), "\n"); err != nil || n != streams || u.lost.Load() > 0 {
		t.Errorf("%d lines, %v, %d lost; want %d", n, err, u.lost.Load(), streams)
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

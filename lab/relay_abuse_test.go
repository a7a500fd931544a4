//go:build linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// maxAbuseRSS is what attacks may add to the relay's memory, in bytes, whatever
// they are: 16,384 connections and their buffers.
const maxAbuseRSS = 64 << 20

// abuses are the kinds of attack, and how many connections each must have
// opened, and had open at once, to be one.
var abuses = []struct {
	kind         string
	opened, most int64
}{
	{"half-open", 3000, 3000},
	{"garbage", 3000, 1},
	{"scan", 3000, 1},
	{"loris", 2000, 2000},
	{"keys", 3000, 500},
	{"paused", 200, 200},
	{"exhaust", 10_000, 10_000},
}

// TestLabRelayAbuse attacks the relay, which has its default limits, from 200
// addresses, each below its own cap. Established streams keep their rate, and
// the relay's memory and descriptors are bounded.
//
// The attacker runs at the lowest priority: the processor that he spends is not
// the relay's but that of his own machines.
func TestLabRelayAbuse(t *testing.T) {
	window := time.Second
	if *longFlag {
		window = 15 * time.Second
	}
	pileUp := max(window, 2*time.Second) // what every kind needs to be at its worst
	server := lab.StartProsody(t, lab.Component)
	dtcpd := lab.StartRelay(t, dtcpdBinary, server, "")
	r := throughDtcpd(t, oursName, dtcpd, login(t, server, "owner"))
	mallory := login(t, server, "mallory")
	lease, err := ask(mallory, jid.MustParse(dtcpd.Domain), stanza.Get, stanza.New(leases, "lease"))
	if err != nil {
		t.Fatal(err)
	}

	streams := startSteady(t, r, 8)
	measure := func() (float64, time.Duration) {
		t.Helper()
		rate, pause, err := streams.window(window)
		if err != nil {
			t.Fatal(err)
		}
		return rate, pause
	}
	measure() // to warm up
	base, err := dtcpd.Usage()
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-10s %8s %8s %8s %10s %8s %8s %8s %9s  %s\n", "attack", "before", "during", "after", "pause ms",
		"opened", "most", "RSS MiB", "files", "a new stream; refused")
	fmt.Fprintf(&table, "%-10s %26s %10s %8s %8s %8.1f %9d\n", "none", "MB/s of all", "", "", "", float64(base.RSS)/(1<<20), base.Files)
	before, _ := measure()
	for _, abuse := range abuses {
		refusedBefore := refusals(t, dtcpd)
		attack := startAttack(t, abuse.kind, dtcpd.Addr, lease.Attr("id"), lease.Attr("secret"))
		time.Sleep(pileUp)
		during, pause := measure()
		held, err := dtcpd.Usage()
		if err != nil {
			t.Fatal(err)
		}
		joined := newcomer(r, sourceAddress(1000))
		result := attack.end(t)
		if result.Opened < abuse.opened || result.Most < abuse.most {
			t.Errorf("%s: the attacker opened %d connections, %d at once; want %d and %d at least",
				abuse.kind, result.Opened, result.Most, abuse.opened, abuse.most)
		}
		if err := r.settled(base.Files + 16); err != nil {
			t.Errorf("after %s: %v", abuse.kind, err)
		}
		after, _ := measure()
		fmt.Fprintf(&table, "%-10s %8.1f %8.1f %8.1f %10.1f %8d %8d %8.1f %9d  %s; %s\n", abuse.kind, before/1e6, during/1e6, after/1e6,
			milliseconds(pause), result.Opened, result.Most, float64(held.RSS)/(1<<20), held.Files, joined, refusedSince(refusedBefore, refusals(t, dtcpd)))
		atLeast(t, "rate of established streams under "+abuse.kind+", beside that without", during/((before+after)/2), 0.9)
		before = after
	}
	peak, err := dtcpd.PeakRSS()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%speak RSS %.1f MiB", table.String(), float64(peak)/(1<<20))
	if peak > base.RSS+maxAbuseRSS {
		t.Errorf("attacks made the relay grow by %d bytes, want at most %d", peak-base.RSS, maxAbuseRSS)
	}
}

// An attackRun is a running attacker.
type attackRun struct {
	process *lab.Process
	stdin   io.Closer
	stdout  *os.File
}

// An attackResult is what it says at its end.
type attackResult struct {
	Opened, Closed, Failed, Most int64
}

func startAttack(t *testing.T, kind, addr, lease, secret string) *attackRun {
	t.Helper()
	cmd := exec.Command("nice", "-n", "19", attackerBinary, kind, addr, lease, secret)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd.Stdout = w
	defer w.Close()
	return &attackRun{lab.Launch(t, "attacker "+kind, cmd), stdin, r}
}

// end stops the attacker and returns what it did.
func (a *attackRun) end(t *testing.T) (result attackResult) {
	t.Helper()
	a.stdin.Close()
	if err := json.NewDecoder(a.stdout).Decode(&result); err != nil {
		t.Fatalf("%s: %v", a.process.Name, err)
	}
	if status := a.process.Wait(t, time.Minute); status != 0 {
		t.Errorf("%s: exit status %d", a.process.Name, status)
	}
	return result
}

// refusals is what the relay has refused so far, by reason.
func refusals(t *testing.T, dtcpd *lab.Relay) map[string]float64 {
	t.Helper()
	all, err := dtcpd.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]float64{}
	for name, n := range all {
		if reason, ok := strings.CutPrefix(name, `dtcpd_relay_refused_total{reason="`); ok {
			refused[strings.TrimSuffix(reason, `"}`)] = n
		}
	}
	if len(refused) < 5 {
		t.Fatalf("%d reasons in the metrics", len(refused))
	}
	return refused
}

// refusedSince says what was refused between two calls of refusals.
func refusedSince(before, after map[string]float64) string {
	var list []string
	for _, reason := range slices.Sorted(maps.Keys(after)) {
		if n := after[reason] - before[reason]; n > 0 {
			list = append(list, fmt.Sprintf("%s %.0f", reason, n))
		}
	}
	return strings.Join(list, ", ")
}

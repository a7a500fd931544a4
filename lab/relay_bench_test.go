//go:build linux

package lab_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// relayScale is how long the relay's benchmarks measure. The short form is for
// regressions, on a machine that is busy with other things; the long one holds
// the bars.
type relayScale struct {
	rounds  int           // odd
	window  time.Duration // of each round of bytes
	streams int           // formed in each round of set-ups
	idle    [2]int        // pairs
}

func scaleOfRelay() relayScale {
	if *longFlag {
		return relayScale{rounds: 15, window: time.Second, streams: 500, idle: [2]int{500, 5000}}
	}
	return relayScale{rounds: 5, window: 80 * time.Millisecond, streams: 200, idle: [2]int{500, 5000}}
}

// The names of relays.
const (
	oursName    = "dtcpd"
	limitedName = "dtcpd, shaped and counted"
	haproxyName = "haproxy, forced splice"
	tunedName   = "ejabberd, tuned"
	prosodyName = "prosody"
)

// Configurations of ours. A benchmark comes from one account and few addresses,
// so that the limits for one must not bite; what shaping and counting cost is
// measured with limits that are never reached.
const (
	unlimited = `
[limits.address]
half_open = "none"
streams = "none"
handshakes = "none"
[limits.owner]
half_open = "none"
streams = "none"
handshakes = "none"
`
	limited = `
[limits.address]
half_open = 100000
streams = 100000
handshakes = 1000000
rate = "1000 GB"
bytes_per_day = "1000000 GB"
[limits.owner]
half_open = 100000
streams = 100000
handshakes = 1000000
rate = "1000 GB"
bytes_per_day = "1000000 GB"
`
)

// startOurs starts a server and ours as its component.
func startOurs(t *testing.T, name, lines string) *relay {
	t.Helper()
	server := lab.StartProsody(t, lab.Component)
	return throughDtcpd(t, name, lab.StartRelay(t, dtcpdBinary, server, lines), login(t, server, "owner"))
}

// others are the relays that ours is measured against. ejabberd twice, because
// as it comes it is several times slower than it can be.
func others(t *testing.T) []*relay {
	t.Helper()
	stock, tuned, prosody := lab.StartEjabberd(t, lab.Proxy), lab.StartEjabberd(t, lab.TunedProxy), lab.StartProsody(t, lab.Proxy)
	through := func(name string, s *lab.Server) *relay {
		r := throughProxy(t, name, s.Process(), login(t, s, "requester"), s.Proxy)
		r.slow = true
		return r
	}
	relays := []*relay{
		directly(t),
		throughHAProxy(t),
		through(tunedName, tuned),
		through("ejabberd", stock),
		through(prosodyName, prosody),
	}
	// It keeps the last bytes of a burst back until more come.
	relays[len(relays)-1].keeps = 64 << 10
	return relays
}

// named is the index of the relay of that name.
func named(relays []*relay, name string) int {
	return slices.IndexFunc(relays, func(r *relay) bool { return r.name == name })
}

// The bars of the relay, each a ratio of the medians of one run. What ours is
// compared with is named as others names it.
var relayBars = []struct {
	with      string
	cpu, rate float64 // at most so much processor time for each byte; at least so many bytes a second
}{
	{haproxyName, 0.7, 0.95},
	{tunedName, 0.65, 0.95}, // so at least 0.95 of the better of the two
	{prosodyName, 0.05, 15}, // the rate of bytes only: without any relay, TLS at the ends is hardly faster
}

// TestLabRelayBench measures bytes through relays, plain and as TLS records, in
// rounds that take turns.
func TestLabRelayBench(t *testing.T) {
	relays := append([]*relay{
		startOurs(t, oursName, unlimited),
		startOurs(t, limitedName, limited),
	}, others(t)...)
	scale := scaleOfRelay()
	for _, secure := range []bool{false, true} {
		for _, streams := range []int{1, 8, 64} {
			kind := "bytes"
			if secure {
				kind = "TLS records"
			}
			t.Run(fmt.Sprintf("%d streams of %s", streams, kind), func(t *testing.T) {
				measured := measureFlows(t, relays, scale, streams, secure)
				t.Log(tableOf(relays, measured))
				for _, bar := range relayBars {
					with := measured[named(relays, bar.with)]
					atMost(t, "CPU per GB beside "+bar.with, medianRatio(measured[0], with, round.cpuPerGB), bar.cpu)
					if secure && bar.rate > 1 {
						continue
					}
					atLeast(t, "GB/s beside "+bar.with, medianRatio(measured[0], with, round.rate), bar.rate)
				}
				atMost(t, "CPU per GB with limits, beside that without", medianRatio(measured[1], measured[0], round.cpuPerGB), 1.1)
			})
		}
	}
}

// measureFlows lets the relays carry the streams in turns. The results are
// those of relays.
func measureFlows(t *testing.T, relays []*relay, scale relayScale, streams int, secure bool) [][]round {
	t.Helper()
	flows := make([]*flow, len(relays))
	for i, r := range relays {
		flows[i] = openFlow(t, r, streams, secure)
		defer flows[i].close()
	}
	measured := make([][]round, len(relays))
	for n := -1; n < scale.rounds; n++ { // one to warm up
		for i, f := range flows {
			if f.relay.slow && !*longFlag && n != scale.rounds/2 {
				continue
			}
			got, err := f.round(scale.window)
			if err != nil {
				t.Fatal(err)
			}
			if n >= 0 {
				measured[i] = append(measured[i], got)
			}
		}
	}
	return measured
}

// tableOf is the medians of the rounds of each relay, and what the first is
// beside it.
func tableOf(relays []*relay, measured [][]round) string {
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-28s %10s %8s %16s   %s\n", "medians", "MB", "GB/s", "CPU-s per GB", relays[0].name+" beside it: GB/s, CPU")
	for i, r := range relays {
		var moved int64
		for _, m := range measured[i] {
			moved += m.bytes
		}
		cpu, cpuRatio := "-", "-"
		if r.process != nil {
			cpu = fmt.Sprintf("%.3f", medianOf(measured[i], round.cpuPerGB))
			cpuRatio = fmt.Sprintf("%.3f", medianRatio(measured[0], measured[i], round.cpuPerGB))
		}
		fmt.Fprintf(&table, "%-28s %10d %8.3f %16s   %19.2f %s\n", r.name, moved/1e6, medianOf(measured[i], round.rate), cpu,
			medianRatio(measured[0], measured[i], round.rate), cpuRatio)
	}
	return strings.TrimSuffix(table.String(), "\n")
}

// medianRatio is the median of f(a)/f(b) over rounds that ran one after the
// other: freer of the machine's drift than the ratio of two medians. Where one
// of the two had fewer rounds, it is the ratio of the medians.
func medianRatio(a, b []round, f func(round) float64) float64 {
	if len(a) != len(b) {
		return medianOf(a, f) / medianOf(b, f)
	}
	ratios := make([]float64, len(a))
	for i := range ratios {
		ratios[i] = f(a[i]) / f(b[i])
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// relayNoise is what a figure of a short run may miss its bar by: a relay then
// works for some 50 ms in all, of which the kernel's clock, the other relays'
// leftovers and whoever else uses the machine take their share.
const relayNoise = 0.4

// atMost fails the test when got is above the bar, or, without -long, above it
// by more than relayNoise.
func atMost(t *testing.T, what string, got, bar float64) {
	t.Helper()
	judge(t, what, got, "at most", bar, got > bar, got > bar*(1+relayNoise))
}

// atLeast fails the test when got is below the bar, or, without -long, below it
// by more than relayNoise.
func atLeast(t *testing.T, what string, got, bar float64) {
	t.Helper()
	judge(t, what, got, "at least", bar, got < bar, got < bar*(1-relayNoise))
}

func judge(t *testing.T, what string, got float64, side string, bar float64, missed, missedByFar bool) {
	t.Helper()
	switch {
	case missedByFar || missed && *longFlag:
		t.Errorf("%s: %.3f, want %s %.3f", what, got, side, bar)
	case missed:
		t.Logf("%s: %.3f, the bar is %s %.3f: missed, by less than the noise of a short run", what, got, side, bar)
	}
}

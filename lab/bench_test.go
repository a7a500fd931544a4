//go:build linux

package lab_test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const gigabyte = 1e9 // rates are decimal: GB/s, CPU-seconds per GB

// A round is one measured transfer.
type round struct {
	bytes int64
	took  time.Duration
	cpu   time.Duration // of both ends together
}

func (r round) rate() float64     { return float64(r.bytes) / gigabyte / r.took.Seconds() }
func (r round) cpuPerGB() float64 { return r.cpu.Seconds() / (float64(r.bytes) / gigabyte) }

// A contender is one of the programs that a benchmark compares.
type contender struct {
	name string
	run  func(*testing.T) round
}

// noise is what the ratio of a short run may lose on a machine that others use,
// too. A regression is more than that; the bar itself is for -long, on a machine
// that is left alone.
const noise = 0.2

// compare runs ours and the bare one in turns, prints the table, and fails the
// test when the ratio of the rates is below bar, or, without -long, below it by
// more than noise. Everything shares the machine, so only ratios of one run
// mean anything.
func compare(t *testing.T, rounds int, bar float64, ours, bare contender) {
	t.Helper()
	results := map[string][]round{}
	for range rounds {
		for _, c := range []contender{ours, bare} {
			results[c.name] = append(results[c.name], c.run(t))
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-28s %12s %8s %8s %16s\n", "medians", "bytes", "rounds", "GB/s", "CPU-s per GB")
	for _, c := range []contender{ours, bare} {
		fmt.Fprintf(&table, "%-28s %12d %8d %8.3f %16.3f\n", c.name, results[c.name][0].bytes, rounds,
			medianOf(results[c.name], round.rate), medianOf(results[c.name], round.cpuPerGB))
	}
	// The rounds of one pair ran one after the other: their ratio is freer of
	// the machine's drift than the ratio of two medians.
	ratios := make([]float64, rounds)
	for i := range ratios {
		ratios[i] = results[ours.name][i].rate() / results[bare.name][i].rate()
	}
	slices.Sort(ratios)
	got := ratios[rounds/2]
	fmt.Fprintf(&table, "ratio %.3f (%.3f to %.3f), CPU ratio %.3f, bar %.2f", got, ratios[0], ratios[rounds-1],
		medianOf(results[ours.name], round.cpuPerGB)/medianOf(results[bare.name], round.cpuPerGB), bar)
	t.Log(table.String())
	least := bar
	if !*longFlag {
		least -= noise
	}
	if got < least {
		t.Errorf("%s is at %.3f of %s, want at least %.2f", ours.name, got, bare.name, least)
	}
}

// medianOf is the median of what f says of the rounds, an odd number of them.
func medianOf(rounds []round, f func(round) float64) float64 {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = f(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// processCPU is the processor time this process has used so far.
func processCPU(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// benchSize is how much each round moves.
func benchSize() int64 {
	if *longFlag {
		return 4 << 30
	}
	return 1 << 30
}

// benchRounds is odd, so that there is a median.
const benchRounds = 15

//go:build linux

package lab_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// An idle is what a relay holds for streams over which nothing goes.
type idle struct {
	base, few, many, after lab.Usage // with none, idle[0] and idle[1] pairs, and with none again
}

// TestLabRelayBenchIdle measures what a relay holds for each idle pair, and what
// it still holds when all have ended. Each pair has carried a line and a byte.
func TestLabRelayBenchIdle(t *testing.T) {
	relays := []*relay{startOurs(t, oursName, unlimited)}
	if *longFlag {
		relays = append(relays, throughHAProxy(t))
	}
	counts := scaleOfRelay().idle
	var ours idle
	var perPair, perPairFiles float64
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-28s %12s %12s %10s %10s %10s %10s\n", "idle pairs",
		"KiB a pair", "files a pair", "base MiB", "few MiB", "many MiB", "after MiB")
	for _, r := range relays {
		m, err := measureIdle(r, counts)
		if err != nil {
			t.Error(err)
			continue
		}
		rss, files := m.perPair(counts)
		mib := func(u lab.Usage) float64 { return float64(u.RSS) / (1 << 20) }
		fmt.Fprintf(&table, "%-28s %12.2f %12.2f %10.1f %10.1f %10.1f %10.1f\n",
			r.name, rss/1024, files, mib(m.base), mib(m.few), mib(m.many), mib(m.after))
		if r == relays[0] {
			ours, perPair, perPairFiles = m, rss, files
		}
	}
	t.Log(strings.TrimSuffix(table.String(), "\n"))
	atMost(t, "KiB of RSS of an idle pair", perPair/1024, 2)
	if perPairFiles > 2.01 {
		t.Errorf("an idle pair has %.2f descriptors, want 2", perPairFiles)
	}
	atMost(t, "RSS after all pairs, beside that before", float64(ours.after.RSS)/float64(ours.base.RSS), shrunk)
}

// perPair is bytes and descriptors of one pair among many.
func (m idle) perPair(counts [2]int) (rss, files float64) {
	n := float64(counts[1] - counts[0])
	return float64(m.many.RSS-m.few.RSS) / n, float64(m.many.Files-m.few.Files) / n
}

// measureIdle opens streams and leaves them alone. What is there before any is
// measured after some have come and gone: the relay has then touched all of its
// program that it uses.
func measureIdle(r *relay, counts [2]int) (m idle, err error) {
	var pairs []pair
	defer func() { closeAll(pairs) }()
	grow := func(n int) error {
		more, err := formAll(r, len(pairs), n-len(pairs))
		pairs = append(pairs, more...)
		return err
	}
	if err := grow(counts[0]); err != nil {
		return m, err
	}
	closeAll(pairs)
	pairs = nil
	if m.base, err = r.rests(); err != nil {
		return m, err
	}
	if err := grow(counts[0]); err != nil {
		return m, err
	}
	if m.few, err = r.rests(); err != nil {
		return m, err
	}
	if err := grow(counts[1]); err != nil {
		return m, err
	}
	if m.many, err = r.rests(); err != nil {
		return m, err
	}
	closeAll(pairs)
	pairs = nil
	if err := r.settled(m.base.Files); err != nil {
		return m, err
	}
	// The relay has its time: memory is given back when there is time for it.
	for end := time.Now().Add(shrinkLimit); ; time.Sleep(100 * time.Millisecond) {
		m.after, err = r.process.Usage()
		if err != nil || float64(m.after.RSS) <= shrunk*float64(m.base.RSS) || time.Now().After(end) {
			return m, err
		}
	}
}

// After all streams have ended, a relay is to hold at most that times what it
// held before, within so long.
const (
	shrunk      = 1.05
	shrinkLimit = 30 * time.Second
)

// rests waits until the relay's memory has not shrunk for a while and returns
// what it holds then.
func (r *relay) rests() (lab.Usage, error) {
	const quiet, limit = 2 * time.Second, 30 * time.Second
	last, err := r.process.Usage()
	since := time.Now()
	for end := since.Add(limit); err == nil && time.Now().Before(end) && time.Since(since) < quiet; time.Sleep(100 * time.Millisecond) {
		var now lab.Usage
		if now, err = r.process.Usage(); now.RSS < last.RSS-64<<10 || now.Files < last.Files {
			last, since = now, time.Now()
		} else {
			last.RSS = min(last.RSS, now.RSS)
		}
	}
	return last, err
}

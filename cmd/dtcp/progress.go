package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// rateTime is the time over which the rate is taken.
const rateTime = 5 * time.Second

// meter shows how far the transfers of this process are: by events, and on a
// terminal by a line that is drawn anew. Its methods may be called from several
// goroutines.
type meter struct {
	out   *output
	width func() int // of the terminal, in columns; nil: there is none

	mu     sync.Mutex
	gauges []*gauge // of the transfers under way
	moved  int64    // bytes that came or went, of all transfers so far
	past   []sample // oldest first, over rateTime
}

// sample is what had moved at a time.
type sample struct {
	at    time.Time
	moved int64
}

// gauge is one transfer of a meter.
type gauge struct {
	meter *meter
	last  transfer.Progress
}

// newMeter makes a meter that draws only where stderr is a terminal, and not
// where programs read along.
func newMeter(out *output) *meter {
	m := &meter{out: out}
	if out.events == nil {
		m.width = terminalWidth(out.stderr)
	}
	return m
}

// terminalWidth returns what tells the width of the terminal behind w; nil if
// there is none.
func terminalWidth(w io.Writer) func() int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil || width <= 0 {
			return 80
		}
		return width
	}
}

// gauge adds a transfer, until its end is called.
func (m *meter) gauge() *gauge {
	g := &gauge{meter: m}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gauges = append(m.gauges, g)
	return g
}

// show takes how far the transfer is. What an earlier attempt has moved counts
// once.
func (g *gauge) show(p transfer.Progress) {
	g.meter.out.event(progressEvent{Event: "progress", Bytes: p.Bytes, Total: p.Total})
	g.meter.update(g, p, time.Now())
}

func (m *meter) update(g *gauge, p transfer.Progress, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if fresh := (p.Bytes - p.Resumed) - (g.last.Bytes - g.last.Resumed); fresh > 0 {
		m.moved += fresh
	}
	g.last = p
	for len(m.past) > 1 && now.Sub(m.past[1].at) >= rateTime {
		m.past = m.past[1:]
	}
	m.past = append(m.past, sample{now, m.moved})
	if m.width != nil {
		m.out.draw(m.bar(m.width()))
	}
}

// end takes the transfer, and with the last one the line, away.
func (g *gauge) end() {
	m := g.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, other := range m.gauges {
		if other == g {
			m.gauges = append(m.gauges[:i], m.gauges[i+1:]...)
			break
		}
	}
	switch {
	case m.width == nil:
	case len(m.gauges) == 0:
		m.past = nil
		m.out.draw("")
	default:
		m.out.draw(m.bar(m.width()))
	}
}

// rate is in bytes a second; 0 if it is not known yet. m.mu is held.
func (m *meter) rate() float64 {
	if len(m.past) == 0 {
		return 0
	}
	first, last := m.past[0], m.past[len(m.past)-1]
	d := last.at.Sub(first.at)
	if d < 100*time.Millisecond {
		return 0
	}
	return float64(last.moved-first.moved) / d.Seconds()
}

// bar is the line, in ASCII, that fits into so many columns. m.mu is held.
func (m *meter) bar(width int) string {
	var bytes, total int64
	for _, g := range m.gauges {
		bytes += g.last.Bytes
		if g.last.Total < 0 || total < 0 {
			total = -1
		} else {
			total += g.last.Total
		}
	}
	rate := m.rate()
	text := size(bytes)
	if total >= 0 {
		text += " of " + size(total)
	}
	if len(m.gauges) > 1 {
		text = fmt.Sprintf("%d transfers: %s", len(m.gauges), text)
	}
	if rate > 0 {
		text += ", " + size(int64(rate)) + "/s"
		if total >= bytes {
			text += ", " + clock(float64(total-bytes)/rate) + " left"
		}
	}
	if total > 0 {
		share := max(0, min(1, float64(bytes)/float64(total)))
		text = fmt.Sprintf("%3d%% %s", int(100*share), text)
		// The last column stays free: some terminals go on to the next line there.
		if room := width - 1 - len(text) - 3; room >= 10 {
			room = min(room, 40)
			done := min(room, int(share*float64(room)))
			text += " [" + strings.Repeat("#", done) + strings.Repeat("-", room-done) + "]"
		}
	}
	return text[:max(0, min(len(text), width-1))]
}

// size words a number of bytes, with three digits and decimal units.
func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", max(n, 0))
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"kB", "MB", "GB", "TB", "PB", "EB"} {
		if value /= 1000; value < 999.5 {
			break
		}
	}
	switch {
	case value < 9.995:
		return fmt.Sprintf("%.2f %s", value, unit)
	case value < 99.95:
		return fmt.Sprintf("%.1f %s", value, unit)
	}
	return fmt.Sprintf("%.0f %s", value, unit)
}

// clock words a number of seconds.
func clock(seconds float64) string {
	if seconds >= 100*3600 {
		return "days"
	}
	s := int(seconds + 0.5)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

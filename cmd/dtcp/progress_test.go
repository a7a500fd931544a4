package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{
		-1: "0 B", 0: "0 B", 999: "999 B", 1000: "1.00 kB", 1234: "1.23 kB", 9994: "9.99 kB", 9996: "10.0 kB",
		99940: "99.9 kB", 99960: "100 kB", 999_499: "999 kB", 999_600: "1.00 MB", 1_500_000_000: "1.50 GB",
		5 << 40: "5.50 TB", 1<<63 - 1: "9.22 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0:00", 9.6: "0:10", 65: "1:05", 3600: "1:00:00", 3725: "1:02:05", 1e9: "days"} {
		if got := clock(s); got != want {
			t.Errorf("clock(%v) = %q, want %q", s, got, want)
		}
	}
}

// The line that is drawn tells how far all transfers are together, how fast
// bytes move, and how long it will take; it never fills the last column.
func TestMeter(t *testing.T) {
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	width := 80
	m := &meter{out: newOutput(&bytes.Buffer{}, &bytes.Buffer{}), width: func() int { return width }}
	one, two := m.gauge(), m.gauge()
	step := func(what string, g *gauge, d time.Duration, p transfer.Progress, want string) {
		t.Helper()
		now = now.Add(d)
		m.update(g, p, now)
		if m.out.bar != want {
			t.Errorf("%s:\ngot  %q\nwant %q", what, m.out.bar, want)
		}
		if len(m.out.bar) >= width {
			t.Errorf("%s: %d columns of %d", what, len(m.out.bar), width)
		}
	}
	two.end()
	line := func(text string, done, room int) string {
		return text + " [" + strings.Repeat("#", done) + strings.Repeat("-", room-done) + "]"
	}
	step("nothing yet", one, 0, transfer.Progress{Total: 4e6}, line("  0% 0 B of 4.00 MB", 0, 40))
	step("a quarter in a second", one, time.Second, transfer.Progress{Bytes: 1e6, Total: 4e6},
		line(" 25% 1.00 MB of 4.00 MB, 1.00 MB/s, 0:03 left", 7, 31))
	step("what was there is not speed", one, time.Second, transfer.Progress{Bytes: 3e6, Resumed: 2e6, Total: 4e6},
		line(" 75% 3.00 MB of 4.00 MB, 500 kB/s, 0:02 left", 24, 32))
	for range 5 {
		now = now.Add(time.Second)
		m.update(one, one.last, now)
	}
	step("nothing moves any more", one, time.Second, transfer.Progress{Bytes: 3e6, Resumed: 2e6, Total: 4e6},
		line(" 75% 3.00 MB of 4.00 MB", 30, 40))
	two = m.gauge()
	step("two, of which one moves", two, time.Second, transfer.Progress{Bytes: 1e6, Total: 4e6},
		line(" 50% 2 transfers: 4.00 MB of 8.00 MB, 200 kB/s, 0:20 left", 9, 19))
	width = 30
	step("narrow", two, time.Second, transfer.Progress{Bytes: 2e6, Total: 4e6}, " 62% 2 transfers: 5.00 MB of ")
	width = 60
	step("of unknown length", two, time.Second, transfer.Progress{Bytes: 3e6, Total: -1}, "2 transfers: 6.00 MB, 600 kB/s")
	one.end()
	two.end()
	if m.out.bar != "" {
		t.Errorf("%q is left at the end", m.out.bar)
	}
	two.end() // again
}

// Messages go above the line, and a question has the terminal for itself.
func TestDraw(t *testing.T) {
	var screen bytes.Buffer
	o := newOutput(&bytes.Buffer{}, &screen)
	for _, test := range []struct {
		what string
		do   func()
		want string
	}{
		{"a message without a line", func() { o.say("a") }, "dtcp: a\n"},
		{"the line", func() { o.draw("10%") }, "\r10%"},
		{"a message", func() { o.say("b") }, "\r   \rdtcp: b\n\r10%"},
		{"another line", func() { o.draw("9%") }, "\r   \r\r9%"},
		{"a longer line", func() { o.draw("100%") }, "\r100%"},
		{"a question", func() { o.hold(true) }, "\r    \r"},
		{"a line meanwhile", func() { o.draw("12%") }, ""},
		{"a message meanwhile", func() { o.say("c") }, "dtcp: c\n"},
		{"the answer", func() { o.hold(false) }, "\r12%"},
		{"the end", func() { o.draw("") }, "\r   \r"},
		{"a message after", func() { o.say("d") }, "dtcp: d\n"},
	} {
		screen.Reset()
		test.do()
		if got := screen.String(); got != test.want {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
	}
}

// TestBarShare: whatever is counted, the line is drawn.
func TestBarShare(t *testing.T) {
	for _, bytes := range []int64{-1 << 62, -1, 0, 1 << 61} {
		m := &meter{out: newOutput(io.Discard, io.Discard), width: func() int { return 80 }}
		m.gauge().show(transfer.Progress{Bytes: bytes, Total: 1 << 60})
		if line := m.bar(80); !strings.Contains(line, "[") {
			t.Errorf("%d bytes are drawn as %q", bytes, line)
		}
	}
}

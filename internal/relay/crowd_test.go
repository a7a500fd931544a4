package relay

import (
	"fmt"
	"strings"
	"testing"
)

// TestProposals: strangers can make no more connections wait for the proxy than
// there is room for; the oldest of an address, or of all, goes first.
func TestProposals(t *testing.T) {
	d := newDesk(Limits{PerAddress: Quota{Handshakes: -1}})
	propose := func(name, address string) string {
		return d.do(name+" arrives "+address) + d.do(name+" proposes "+name)
	}
	propose("other", "192.0.2.2")
	for i := range maxProposedPerAddress {
		if got, want := propose(fmt.Sprint("same", i), "192.0.2.1"), fmt.Sprintf("same%d is told reply 0", i); got != want {
			t.Fatalf("connection %d of an address: %s", i, got)
		}
	}
	if got, want := propose("more", "192.0.2.1"), "more is told reply 0, same0 ends (held)"; got != want {
		t.Errorf("one more of the address: %s, want %s", got, want)
	}
	for i := maxProposedPerAddress + 1; i < maxProposed; i++ {
		if got, want := propose(fmt.Sprint("all", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250)), fmt.Sprintf("all%d is told reply 0", i); got != want {
			t.Fatalf("connection %d: %s", i, got)
		}
	}
	check(t, d)
	if got, want := propose("last", "192.0.2.3"), "last is told reply 0, other ends (held)"; got != want {
		t.Errorf("one more: %s, want %s", got, want)
	}
	check(t, d)
}

// TestOpening: those who are in a handshake hold more memory than others, so
// that there are fewer of them, and the oldest goes first.
func TestOpening(t *testing.T) {
	d := newDesk(Limits{PerAddress: Quota{Handshakes: -1, HalfOpen: -1}})
	open := func(i int) string {
		name := fmt.Sprint("leg", i)
		return d.do(name+" arrives 192.0.2.1") + d.do(name+" opens")
	}
	for i := range maxOpening {
		if told := open(i); told != "" {
			t.Fatalf("handshake %d: %s", i, told)
		}
	}
	d.do("leg7 says key:k")
	d.do("leg8 leaves")
	for i := range 2 {
		if told := open(maxOpening + i); told != "" {
			t.Errorf("handshake in place of one that is over: %s", told)
		}
	}
	if got, want := open(maxOpening+2), "leg0 ends (held)"; got != want {
		t.Errorf("one more: %s, want %s", got, want)
	}
	check(t, d)
}

// heldDialers is part of a story: H1 and so on wait for a key.
func heldDialers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `
		H%d arrives 192.0.2.4 =>
		H%[1]d says key:h      =>`, i+1)
	}
	return b.String()
}

// silent is part of a story: S1 and so on say nothing.
func silent(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `
		S%d arrives 192.0.2.3 =>`, i+1)
	}
	return b.String()
}

package relay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

var (
	inBrackets = regexp.MustCompile(`\(([a-z-]+)`)
	pairJoined = regexp.MustCompile(`(\S+) joins ([^ ,]+)`)
)

// TestExplore lets anything happen in any order, under limits so low that they
// are met all the time, and checks after every step what always holds; in the
// end, that everything has ended and nothing is remembered.
func TestExplore(t *testing.T) {
	const worlds, steps = 40, 500
	refused := map[string]int{} // by reason
	pairs := 0
	for seed := range uint64(worlds) {
		r := rand.New(rand.NewPCG(seed, 0))
		low := func(n int) int { // or none, for then others are met
			if r.IntN(2) == 0 {
				return -1
			}
			return n
		}
		d := newDesk(Limits{
			PerAddress:  Quota{HalfOpen: low(6), Streams: low(6), Handshakes: low(1)},
			PerOwner:    Quota{HalfOpen: low(6), Streams: low(6), Handshakes: low(1)},
			Connections: low(32),
		})
		pick := func(from ...string) string { return from[r.IntN(len(from))] }
		names := []string{} // of legs that are not over
		once := map[string]bool{}
		do := func(sentence string) {
			t.Helper()
			told := d.do(sentence)
			check(t, d)
			for _, m := range inBrackets.FindAllStringSubmatch(told, -1) {
				refused[m[1]]++
			}
			for _, m := range pairJoined.FindAllStringSubmatch(told, -1) {
				pairs++
				if once[m[1]] || once[m[2]] {
					t.Fatalf("seed %d: %s: %s, who were joined before", seed, sentence, m[0])
				}
				once[m[1]], once[m[2]] = true, true
			}
			names = slices.DeleteFunc(names, func(n string) bool {
				gone := d.legs[n].state == over
				if gone {
					delete(d.names, d.legs[n])
					delete(d.legs, n)
				}
				return gone
			})
		}
		end := func(n int) { // some streams
			for _, l := range slices.Clone(names) {
				for s := range d.streams {
					if d.names[s.listener] == l && n > 0 {
						do(l + " and " + d.names[s.dialer] + " end")
						n--
					}
				}
			}
		}
		for i := range steps {
			if len(names) == 0 || r.IntN(2) == 0 {
				n := fmt.Sprint("leg", i)
				names = append(names, n)
				do(n + " arrives 192.0.2." + pick("1", "1", "2", "3"))
				if len(names) == 0 || r.IntN(4) == 0 { // it says nothing yet
					continue
				}
			}
			n := names[len(names)-1]
			if r.IntN(5) == 0 {
				n = pick(names...)
			}
			k := r.IntN(22)
			if seed%4 == 0 && 6 <= k && k < 12 {
				k = 0 // hardly a dialer
			}
			key, lease := pick("k", "k", "l", "m"), pick("alice.1", "alice.1", "alice.2", "bob", "denied")
			switch {
			case k < 6:
				do(n + " serves " + key + " " + lease)
			case k < 12:
				do(n + " says key:" + key)
			case k < 14:
				do(n + " observes " + lease)
			case k < 15:
				do(n + " says " + pick("observe", "starttls", "move:x"))
			case k < 17:
				do(n + " proposes " + pick("p", "q"))
			case k < 18:
				do(pick("p", "q") + " is activated by " + pick("alice", "bob"))
			case k < 19 && r.IntN(4) == 0:
				do(pick("alice", "bob") + " is denied") // for a moment
			case k < 19:
				do(n + " leaves")
			case k < 20:
				end(r.IntN(4))
			default:
				do(pick("10ms", "10ms", "10ms", "10ms", "100ms", "100ms", "500ms", "1s", "5s", "5s") + " pass")
			}
			if i == steps*9/10 && seed%5 == 0 {
				do("the relay drains")
			}
		}
		// Now nothing comes any more.
		do("121s pass")
		for _, n := range names {
			if d.legs[n].state != joined {
				t.Fatalf("seed %d: %s is left in state %d", seed, n, d.legs[n].state)
			}
		}
		end(len(names))
		do("20s pass")
		p := d.core
		if n := len(names) + len(p.keys) + len(p.proposals) + len(p.observed) + len(p.addresses.accounts) + len(p.owners.accounts); n > 0 || p.streams.n > 0 || !p.next().IsZero() {
			t.Fatalf("seed %d: left are %v %v %v %v and %d streams, until %v", seed, names, p.keys, p.proposals, p.observed, p.streams.n, p.next())
		}
	}
	for _, reason := range Reasons() {
		switch reason {
		case RefusedAddressBytes, RefusedOwnerBytes, RefusedHeld, RefusedExpired, RefusedWrongNode: // elsewhere
		default:
			if refused[reason] < 5 {
				t.Errorf("%s was met %d times: this explores too little", reason, refused[reason])
			}
		}
	}
	if pairs < 500 {
		t.Errorf("only %d pairs were joined", pairs)
	}
}

// TestHeld: too many dialers, of one address and in all, make room by the oldest.
func TestHeld(t *testing.T) {
	d := newDesk(Limits{Connections: 3 * maxHeld, PerAddress: Quota{Handshakes: -1}})
	hold := func(name, address string) string {
		return d.do(name+" arrives "+address) + d.do(name+" says key:"+name)
	}
	hold("other", "192.0.2.2")
	for i := range maxHeldPerAddress {
		if told := hold(fmt.Sprint("same", i), "192.0.2.1"); told != "" {
			t.Fatalf("dialer %d of an address: %s", i, told)
		}
	}
	if got, want := hold("more", "192.0.2.1"), "same0 ends with error (held)"; got != want {
		t.Errorf("one more of the address: %s, want %s", got, want)
	}
	for i := maxHeldPerAddress + 1; i < maxHeld; i++ {
		if told := hold(fmt.Sprint("all", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250)); told != "" {
			t.Fatalf("dialer %d: %s", i, told)
		}
	}
	check(t, d)
	if got, want := hold("last", "192.0.2.3"), "other ends with error (held)"; got != want {
		t.Errorf("one more: %s, want %s", got, want)
	}
	check(t, d)
	if n := d.core.queues[held].n; n != maxHeld {
		t.Errorf("%d are held", n)
	}
	told := d.do("10s pass")
	if n := strings.Count(told, "ends with error (unserved)"); n != maxHeld || strings.Count(told, ",") != maxHeld-1 {
		t.Errorf("after 10 s, %d of them got error: %.200s", n, told)
	}
}

// check compares what the core has counted and listed to the states of the legs,
// and both to the limits.
func check(t *testing.T, d *desk) {
	t.Helper()
	type counts struct{ halfOpen, streams, held, proposed int }
	addresses, owners := map[netip.Addr]counts{}, map[jid.JID]counts{}
	waits, holds := map[string]int{}, map[string]int{}
	byState := [numStates]int{}
	for _, l := range d.legs {
		byState[l.state]++
		if l.state == over {
			continue
		}
		var c counts
		if l.state.halfOpen() {
			c.halfOpen = 1
		}
		if l.state.takesStream() {
			c.streams = 1
		}
		switch l.state {
		case held:
			c.held = 1
		case proposed:
			c.proposed = 1
		}
		if (l.shake.in != nil) && l.state != fresh {
			t.Fatalf("%s is in a handshake in state %d", d.names[l], l.state)
		}
		add := func(a, b counts) counts {
			return counts{a.halfOpen + b.halfOpen, a.streams + b.streams, a.held + b.held, a.proposed + b.proposed}
		}
		addresses[origin(l.from.Addr())] = add(addresses[origin(l.from.Addr())], c)
		if l.owner != nil {
			owners[l.owner.name] = add(owners[l.owner.name], c)
		}
		switch l.state {
		case waiting:
			waits[l.name]++
		case held:
			holds[l.name]++
		}
		if d.core.addresses.accounts[origin(l.from.Addr())] != l.addr {
			t.Fatalf("%s: its account has been forgotten", d.names[l])
		}
	}
	for s := fresh; s < numStates; s++ {
		if n := d.core.queues[s].n; n != byState[s] {
			t.Fatalf("%d legs are queued in state %d, %d are in it", n, s, byState[s])
		}
	}
	if byState[joined] != 2*len(d.streams) || d.core.streams.n != len(d.streams) {
		t.Fatalf("%d legs are joined, %d streams are counted, %d last", byState[joined], d.core.streams.n, len(d.streams))
	}
	for name, a := range d.core.addresses.accounts {
		if got := (counts{a.halfOpen, a.streams, a.held, a.proposed}); got != addresses[name] {
			t.Fatalf("%v has %+v, counted are %+v", name, addresses[name], got)
		}
		if a.halfOpen > a.quota.HalfOpen || a.streams > a.quota.Streams || a.held > maxHeldPerAddress || a.proposed > maxProposedPerAddress {
			t.Fatalf("%v has more than it may: %+v", name, addresses[name])
		}
	}
	for name, a := range d.core.owners.accounts {
		want := owners[name]
		if a.halfOpen != want.halfOpen || a.streams != want.streams {
			t.Fatalf("%v has %+v, counted are %d and %d", name, want, a.halfOpen, a.streams)
		}
		if a.halfOpen > a.quota.HalfOpen || a.streams > a.quota.Streams {
			t.Fatalf("%v has more than it may: %+v", name, want)
		}
	}
	keys := map[string]int{}
	for s := range d.streams {
		if s.kind == KindLease {
			keys[s.listener.name]++
		}
	}
	for name, k := range d.core.keys {
		if len(k.waiting) != waits[name] || len(k.held) != holds[name] || k.joined != keys[name] {
			t.Fatalf("%s: %d wait, %d are held, %d joined; listed are %d, %d, %d", name,
				waits[name], holds[name], keys[name], len(k.waiting), len(k.held), k.joined)
		}
		if len(k.waiting) > 0 && len(k.held) > 0 && k.joined < maxJoined {
			t.Fatalf("%s: somebody waits and somebody is held", name)
		}
		if (k.owner == nil) != (len(k.waiting)+k.joined == 0) || len(k.waiting)+len(k.held)+k.joined == 0 {
			t.Fatalf("%s: %+v", name, k)
		}
		if len(k.waiting) > maxWaiting || k.joined > maxJoined {
			t.Fatalf("%s: %d wait, %d are joined", name, len(k.waiting), k.joined)
		}
		delete(waits, name)
		delete(holds, name)
		delete(keys, name)
	}
	if len(waits)+len(holds)+len(keys) > 0 {
		t.Fatalf("keys that are forgotten: %v %v %v", waits, holds, keys)
	}
	if n := d.core.connections(); n > d.core.limits.Connections*17/16 {
		t.Fatalf("%d connections", n)
	}
	if byState[held] > maxHeld || byState[proposed] > maxProposed || d.core.opening.n > maxOpening {
		t.Fatalf("%d are held, %d wait for the proxy, %d are in a handshake", byState[held], byState[proposed], d.core.opening.n)
	}
}

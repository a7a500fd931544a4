package relay

import (
	"net/netip"
	"testing"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// check compares what the core has counted and listed to the states of the legs,
// and both to the limits.
func check(t *testing.T, d *desk) {
	t.Helper()
	type counts struct{ halfOpen, streams, held int }
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
		if l.state == held {
			c.held = 1
		}
		add := func(a, b counts) counts {
			return counts{a.halfOpen + b.halfOpen, a.streams + b.streams, a.held + b.held}
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
	if byState[joined] != 2*len(d.streams) || d.core.streams != len(d.streams) {
		t.Fatalf("%d legs are joined, %d streams are counted, %d last", byState[joined], d.core.streams, len(d.streams))
	}
	for name, a := range d.core.addresses.accounts {
		if got := (counts{a.halfOpen, a.streams, a.held}); got != addresses[name] {
			t.Fatalf("%v has %+v, counted are %+v", name, addresses[name], got)
		}
		if a.halfOpen > a.quota.HalfOpen || a.streams > a.quota.Streams || a.held > maxHeldPerAddress {
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
	if byState[held] > maxHeld {
		t.Fatalf("%d are held", byState[held])
	}
}

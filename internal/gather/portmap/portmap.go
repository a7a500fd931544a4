// Package portmap has the gateway of the network let connections from outside
// in to a TCP port of this machine: by PCP (RFC 6887), NAT-PMP (RFC 6886) or
// UPnP IGD 1 and 2, and through an IPv6 firewall by PCP.
//
// A [Mapper] keeps one port mapped until it is closed. What it has got, and why
// the rest failed, is in its [Report]. Nothing is sent unless methods are named
// in [Config].Methods: its zero value is the one switch that is off.
//
// Whoever is on the local network can pretend to be the gateway. So an answer
// must come from the gateway's address, repeat what only the question had,
// and stay within limits of size and time; no URL is followed to any other
// host; and no text of an answer gets into an error. What a false answer can
// still do is name an address that does not lead here, which a peer then dials
// in vain.
package portmap

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Methods is a set of ways to ask a gateway. The zero value is none of them.
type Methods uint8

// The methods, in the order in which they are preferred.
const (
	PCP     Methods = 1 << iota // RFC 6887, IPv4
	NATPMP                      // RFC 6886, the predecessor of PCP
	UPnP                        // UPnP Internet Gateway Device, 1 and 2
	Pinhole                     // RFC 6887, IPv6: a way through a firewall

	All = PCP | NATPMP | UPnP | Pinhole
)

var methodNames = []struct {
	method Methods
	name   string
}{{PCP, "PCP"}, {NATPMP, "NAT-PMP"}, {UPnP, "UPnP"}, {Pinhole, "PCP over IPv6"}}

// String names the methods of the set.
func (m Methods) String() string {
	var names []string
	for _, n := range methodNames {
		if m&n.method != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ", ")
}

// State is what became of a method.
type State uint8

// The states of a method. It may go from any but Off to any but Off and
// Pending: a mapping can be lost, and a gateway can come to its senses.
const (
	Off      State = iota // not to be asked
	Pending               // not answered yet, and not given up
	Works                 // there is a mapping
	Unneeded              // not asked: a method that comes before it works
	Failed                // see Result.Err; tried again later
)

// String is one word.
func (s State) String() string {
	return [...]string{"off", "pending", "works", "unneeded", "failed"}[s]
}

// A Result is what became of one method.
type Result struct {
	Method   Methods // one
	State    State
	Gateway  netip.Addr     // who was asked; invalid if there is no gateway
	External netip.AddrPort // where peers can dial; valid when State is Works
	Expires  time.Time      // end of the mapping if nobody renews it; zero: none
	Detail   string         // what kind of gateway, for people; may be empty
	Renewed  int            // how often this mapping was confirmed after it was made
	Err      error          // why it failed, or failed to be renewed
}

// DoubleNAT reports whether the mapping leads to an address that is not on the
// Internet, either: there is a further NAT behind the gateway, often the
// carrier's (RFC 6598), and peers beyond that cannot use the mapping.
func (r Result) DoubleNAT() bool {
	return r.State == Works && !public(r.External.Addr())
}

// A Report is what became of all methods, at one time.
type Report struct {
	Results  []Result // of each method of Config.Methods, in order of preference
	Restarts int      // how often a gateway turned out to have forgotten its mappings
}

// Pending returns the methods that have neither answered nor failed.
func (r Report) Pending() (pending Methods) {
	for _, one := range r.Results {
		if one.State == Pending {
			pending |= one.Method
		}
	}
	return pending
}

// How long a first offer waits for gateways.
const (
	waitMost = time.Second
	waitUPnP = 3 * time.Second
)

// Awaited reports whether a first offer should still wait for the gateways when
// the Mapper has run for the time elapsed: at most 1 s, and up to 3 s for UPnP
// while that is the one method left.
func (r Report) Awaited(elapsed time.Duration) bool {
	pending := r.Pending()
	return pending&^UPnP != 0 && elapsed < waitMost || pending&UPnP != 0 && elapsed < waitUPnP
}

// External returns the addresses that peers can dial, best first: on the
// Internet first, and each once.
func (r Report) External() []netip.AddrPort {
	var found []netip.AddrPort
	for _, double := range []bool{false, true} {
		for _, one := range r.Results {
			if one.State == Works && one.DoubleNAT() == double && !slices.Contains(found, one.External) {
				found = append(found, one.External)
			}
		}
	}
	return found
}

// shared is the range of carriers' NATs (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// public reports whether an address may be one of the Internet.
func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}

// lifetime is what is asked for. A mapping that nobody renews, because its
// process died, is gone after 20 minutes. Renewing at half of that costs one
// packet in ten minutes, and finds out about a gateway that has restarted
// without a word.
const lifetime = 20 * time.Minute

// A lease is a mapping that a gateway has granted.
type lease struct {
	external netip.AddrPort
	lifetime time.Duration // zero: without end
	detail   string
}

// A refusal is a gateway's answer that is not a mapping.
type refusal struct {
	text  string
	retry time.Duration // the gateway's wish; zero if it had none
}

func (r *refusal) Error() string { return r.text }

//go:build linux

package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A World is an internet with a host for an XMPP server and one for a relay,
// both of which everybody can reach.
type World struct {
	*Internet
	Server *Host
	Relay  *Host // it has a second IPv4 and a second IPv6 address
}

// NewWorld returns a world with nobody else in it.
func NewWorld(delay time.Duration) *World {
	i := NewInternet(delay)
	w := &World{Internet: i, Server: i.Host("server", Dual), Relay: i.Host("relay", Dual)}
	w.Relay.Address(V4)
	w.Relay.Address(V6)
	return w
}

// A Place is a kind of network that a host can be in. Two hosts in places of
// the same kind have nothing in common but its rules.
type Place struct {
	Name string
	Make func(w *World, name string) *Host
}

// ForwardedPort is the public port that is passed to the host of the place
// "forward", as a person who configured his router would have chosen it.
const ForwardedPort = 28_100

// Places are all kinds.
var Places = []Place{
	{"open", func(w *World, name string) *Host { return w.Host(name, V4) }},
	behind("home", V4, Rules{Mapping: Preserve}),
	behind("home-rst", V4, Rules{Mapping: Preserve, Refuse: true}),
	behind("cone", V4, Rules{Mapping: Preserve, Open: true}),
	behind("symmetric", V4, Rules{Mapping: Random}),
	behind("sequential", V4, Rules{Mapping: Sequence}),
	behind("wall", V4, Rules{}),
	behind("wall-rst", V4, Rules{Refuse: true}),
	behind("upnp", V4, Rules{Mapping: Preserve, UPnP: true}),
	{"carrier", func(w *World, name string) *Host {
		return w.Gateway(name+"-carrier", Rules{Mapping: Preserve, Carrier: true}).
			Gateway(name+"-home", Rules{Mapping: Preserve}).Host(name, V4)
	}},
	behind("forward", V4, Rules{Mapping: Preserve, Forward: []uint16{ForwardedPort}}),
	behind("only-443", V4, Rules{Mapping: Preserve, Out: "tcp dport 443"}),
	{"enclosed", func(w *World, name string) *Host {
		out := fmt.Sprintf("ip daddr { %s, %s, %s }", w.Server.V4, w.Relay.V4, w.Relay.More[0])
		return w.Gateway(name+"-gateway", Rules{Mapping: Preserve, Out: out}).Host(name, V4)
	}},
	{"v6", func(w *World, name string) *Host { return w.Host(name, V6) }},
	behind("v6-wall", V6, Rules{}),
	behind("v6-wall-rst", V6, Rules{Refuse: true}),
	behind("dual", Dual, Rules{Mapping: Preserve, Open6: true}),
	behind("dual-wall", Dual, Rules{Mapping: Preserve}),
}

// behind is a place behind one gateway.
func behind(kind string, family Family, rules Rules) Place {
	return Place{kind, func(w *World, name string) *Host {
		return w.Gateway(name+"-gateway", rules).Host(name, family)
	}}
}

// A Pair is a kind of network that two hosts can share.
type Pair struct {
	Name string
	Make func(w *World, name string) (a, b *Host)
}

// Pairs are all kinds.
var Pairs = []Pair{
	together("lan", Rules{Mapping: Preserve}),
	together("guests", Rules{Mapping: Preserve, Isolated: true}),
	together("guests-hairpin", Rules{Mapping: Preserve, Isolated: true, Hairpin: true}),
	neighbours("carrier", Rules{Mapping: Preserve, Carrier: true, Isolated: true}),
	neighbours("carrier-hairpin", Rules{Mapping: Preserve, Carrier: true, Isolated: true, Hairpin: true}),
}

// together is two hosts behind one gateway.
func together(kind string, rules Rules) Pair {
	return Pair{kind, func(w *World, name string) (a, b *Host) {
		g := w.Gateway(name+"-gateway", rules)
		return g.Host(name+"-a", V4), g.Host(name+"-b", V4)
	}}
}

// neighbours is two hosts in homes of their own behind one carrier.
func neighbours(kind string, rules Rules) Pair {
	return Pair{kind, func(w *World, name string) (a, b *Host) {
		carrier := w.Gateway(name+"-carrier", rules)
		home := func(side string) *Host {
			return carrier.Gateway(name+side+"-home", Rules{Mapping: Preserve}).Host(name+side, V4)
		}
		return home("-a"), home("-b")
	}}
}

// PlaceNamed is the place of that name, which there must be.
func PlaceNamed(tb testing.TB, name string) Place {
	tb.Helper()
	var names []string
	for _, p := range Places {
		if p.Name == name {
			return p
		}
		names = append(names, p.Name)
	}
	tb.Fatalf("lab: no place %q; there are %s", name, strings.Join(names, ", "))
	return Place{}
}

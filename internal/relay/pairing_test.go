package relay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/socks5"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// noon is when stories of the core begin.
var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// desk is a shell that does nothing but write down what it is told.
type desk struct {
	core    *pairing
	now     time.Time
	legs    map[string]*leg
	names   map[*leg]string
	streams map[*stream]bool // that last
	ports   uint16
}

// newDesk judges claims by the id of the lease: what is no reason to refuse it
// is the localpart of its owner.
func newDesk(limits Limits) *desk {
	d := &desk{now: noon, legs: map[string]*leg{}, names: map[*leg]string{}, streams: map[*stream]bool{}}
	d.core = newPairing(limits, func(c wire.Claim, _ time.Time) (lease, string) {
		switch c.Lease {
		case wire.Expired, wire.Denied, wire.BadLease, wire.WrongNode:
			return lease{}, c.Lease
		}
		name, _, _ := strings.Cut(c.Lease, ".") // so that an owner can have several
		owner, err := jid.New(name, "example.org", "")
		if err != nil {
			panic(err)
		}
		l := lease{owner: owner, quota: unlimited}
		if name == "poor" {
			l.quota.Streams = 1
		}
		return l, ""
	})
	return d
}

// do lets something happen, written as a sentence, and returns what the shell is
// told, written likewise. Legs are named by their first event:
//
//	L arrives 192.0.2.1
//	L serves KEY LEASE
//	L observes LEASE
//	L says LINE
//	L proposes NAME
//	L opens, L fails to open
//	L leaves
//	NAME is activated by OWNER
//	OWNER is denied
//	L and D end
//	10s pass
//	the relay drains, the relay shuts
func (d *desk) do(sentence string) string {
	w := strings.Fields(sentence)
	l := d.legs[w[0]]
	claim := func(command, key, lease string) []byte {
		return []byte(wire.NewClaim(command, key, lease, nil, d.now).Line().String())
	}
	var out []action
	var extra string
	switch {
	case w[1] == "arrives":
		l = &leg{}
		d.legs[w[0]], d.names[l] = l, w[0]
		d.ports++
		out = d.core.arrive(nil, l, netip.AddrPortFrom(netip.MustParseAddr(w[2]), d.ports), d.now)
	case w[1] == "serves":
		out = d.core.line(nil, l, claim(wire.Serve, w[2], w[3]), d.now)
	case w[1] == "observes":
		out = d.core.line(nil, l, claim(wire.Observe, "", w[2]), d.now)
	case w[1] == "says":
		out = d.core.line(nil, l, []byte(strings.Join(w[2:], " ")), d.now)
	case w[1] == "opens":
		out = d.core.open(nil, l, true, d.now)
	case w[1] == "fails":
		out = d.core.open(nil, l, false, d.now)
	case w[1] == "proposes":
		out = d.core.propose(nil, l, socks5.Request{Addr: w[2]}, nil, d.now)
	case w[1] == "leaves":
		if !d.core.gone(l, d.now) {
			extra = "it had ended"
		}
	case w[1] == "is" && w[2] == "denied":
		who := Access{Allow: []jid.JID{jid.MustParse("example.org")}, Deny: []jid.JID{jid.MustParse(w[0] + "@example.org")}}
		out = d.core.deny(nil, who.admission(), d.now)
	case w[1] == "is":
		var reason string
		if out, reason = d.core.activate(nil, w[0], jid.MustParse(w[4]+"@example.org"), d.now); reason != "" {
			extra = "refused: " + reason
		}
	case w[1] == "and":
		for s := range d.streams {
			if d.names[s.listener] == w[0] && d.names[s.dialer] == w[2] {
				delete(d.streams, s)
				out = d.core.ended(nil, s, d.now)
			}
		}
	case w[1] == "pass", w[1] == "passes":
		span, err := time.ParseDuration(w[0])
		if err != nil {
			panic(err)
		}
		d.now = d.now.Add(span)
		out = d.core.expire(nil, d.now)
	case sentence == "the relay drains":
		out = d.core.drain(nil, d.now)
	case sentence == "the relay shuts":
		out = d.core.shut(nil, d.now)
	default:
		panic("not a sentence: " + sentence)
	}
	var told []string
	for _, a := range out {
		told = append(told, d.write(a))
	}
	if extra != "" {
		told = append(told, extra)
	}
	return strings.Join(told, ", ")
}

// write writes an action down.
func (d *desk) write(a action) string {
	name, text := d.names[a.leg], strings.TrimSuffix(a.text, "\n")
	if strings.HasPrefix(text, "\x05") { // RFC 1928, 6
		text = fmt.Sprintf("reply %d", text[1])
	}
	switch a.do {
	case say:
		return name + " is told " + text
	case join:
		d.streams[a.stream] = true
		return name + " joins " + d.names[a.stream.dialer]
	}
	if text != "" {
		text = " with " + text
	}
	if a.reason != "" {
		text += " (" + strings.TrimSpace(a.reason+" "+a.owner.Local()) + ")"
	}
	if a.do == cut {
		return name + " and " + d.names[a.stream.dialer] + " are cut" + text
	}
	return name + " ends" + text
}

// stories are told line by line: what happens => what the shell is told.
var stories = []struct {
	name   string
	limits Limits
	story  string
}{
	{"listener first", Limits{}, `
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:1
		119s pass           =>
		D arrives 192.0.2.2 =>
		D says key:k        => L joins D
		L leaves            => it had ended
		D says key:k        =>
		1000s pass          =>
		L and D end         =>`},
	{"dialer first", Limits{}, `
		D arrives 192.0.2.2 =>
		D says key:k        =>
		9s pass             =>
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:2, L joins D`},
	{"every leg joins once, the oldest first", Limits{}, `
		D1 arrives 192.0.2.2 =>
		D1 says key:k        =>
		D2 arrives 192.0.2.2 =>
		D2 says key:k        =>
		L1 arrives 192.0.2.1 =>
		L1 serves k alice    => L1 is told ok:192.0.2.1:3, L1 joins D1
		L2 arrives 192.0.2.1 =>
		L2 serves k alice    => L2 is told ok:192.0.2.1:4, L2 joins D2
		L3 arrives 192.0.2.1 =>
		L3 serves k alice    => L3 is told ok:192.0.2.1:5
		L4 arrives 192.0.2.1 =>
		L4 serves k alice.b  => L4 is told ok:192.0.2.1:6
		D3 arrives 192.0.2.2 =>
		D3 says key:k        => L3 joins D3`},
	{"time ends what waits", Limits{}, `
		F arrives 192.0.2.1 =>
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:2
		D arrives 192.0.2.2 =>
		D says key:other    =>
		9999ms pass         =>
		1ms passes          => F ends (silent), D ends with error (unserved)
		109999ms pass       =>
		1ms passes          => L ends
		L leaves            => it had ended`},
	{"a line ends the time for lines", Limits{}, `
		L arrives 192.0.2.1 =>
		9999ms pass         =>
		L serves k alice    => L is told ok:192.0.2.1:1
		119s pass           =>`},
	{"a key is its owner's while somebody serves it", Limits{}, `
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:1
		M arrives 192.0.2.1 =>
		M serves k mallory  => M ends with error:in-use (in-use mallory)
		D arrives 192.0.2.2 =>
		D says key:k        => L joins D
		N arrives 192.0.2.1 =>
		N serves k mallory  => N ends with error:in-use (in-use mallory)
		L and D end         =>
		O arrives 192.0.2.1 =>
		O serves k mallory  => O is told ok:192.0.2.1:5`},
	{"dialers alone own nothing", Limits{}, `
		D arrives 192.0.2.2 =>
		D says key:k        =>
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:2, L joins D
		E arrives 192.0.2.2 =>
		E says key:k        =>
		L and D end         =>
		M arrives 192.0.2.1 =>
		M serves k mallory  => M is told ok:192.0.2.1:4, M joins E`},
	{"who leaves is not joined", Limits{}, `
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:1
		L leaves            =>
		D arrives 192.0.2.2 =>
		D says key:k        =>
		D leaves            =>
		M arrives 192.0.2.1 =>
		M serves k bob      => M is told ok:192.0.2.1:3`},
	{"claims that are refused", Limits{}, `
		A arrives 192.0.2.1   =>
		A serves k expired    => A ends with error:expired (expired)
		B arrives 192.0.2.1   =>
		B serves k bad-lease  => B ends with error:bad-lease (bad-lease)
		C arrives 192.0.2.1   =>
		C serves k denied     => C ends with error:denied (denied)
		D arrives 192.0.2.1   =>
		D serves k wrong-node => D ends with error:wrong-node (wrong-node)
		E arrives 192.0.2.1   =>
		E says serve:k        => E ends with error:bad-lease (bad-lease)
		F arrives 192.0.2.1   =>
		F observes expired    => F ends with error:expired (expired)`},
	{"a dialer that asks for TLS first", Limits{}, `
		D arrives 192.0.2.2 =>
		D says starttls     => D is told error
		D says key:k        =>
		10s pass            => D ends with error (unserved)
		E arrives 192.0.2.2 =>
		E says starttls     => E is told error
		E says starttls     => E ends with error (unknown)
		F arrives 192.0.2.2 =>
		F says starttls     => F is told error
		10s pass            => F ends`},
	{"what is no line, or no line of this", Limits{}, `
		A arrives 192.0.2.1 =>
		A says GET / HTTP/1.1 => A ends with error (unknown)
		B arrives 192.0.2.1 =>
		B says key:         => B ends with error (unknown)
		C arrives 192.0.2.1 =>
		C says key:a,b      => C ends with error (unknown)
		D arrives 192.0.2.1 =>
		D says ké           => D ends with error (unknown)
		E arrives 192.0.2.1 =>
		E fails to open     => E ends (unknown)
		E says key:k        =>`},
	{"observe", Limits{}, `
		A arrives 2001:db8::7 =>
		A says observe      => A is told ok:[2001:db8::7]:1
		9s pass             =>
		A says observe      => A is told ok:[2001:db8::7]:1
		1s passes           => A ends
		B arrives ::ffff:192.0.2.1 =>
		B says observe      => B is told ok:192.0.2.1:2
		B says key:k        =>
		C arrives 192.0.2.1 =>
		C says observe      => C is told ok:192.0.2.1:3
		C says observe      => C is told ok:192.0.2.1:3
		C says observe      => C is told ok:192.0.2.1:3
		C says observe      => C is told ok:192.0.2.1:3
		C says observe      => C is told ok:192.0.2.1:3
		C says observe      => C ends with error (unknown)`},
	{"observe with a claim", Limits{}, `
		A arrives 192.0.2.1 =>
		A observes alice.1  => A is told ok:192.0.2.1:1
		59s pass            =>
		A says observe      => A is told ok:192.0.2.1:1
		59s pass            =>
		A observes alice.2  => A is told ok:192.0.2.1:1
		59s pass            =>
		A observes alice.2  => A is told ok:192.0.2.1:1
		60s pass            => A ends
		B arrives 192.0.2.1 =>
		B observes alice.1  => B is told ok:192.0.2.1:2
		B observes bob.1    => B ends with error:bad-lease (bad-lease bob)
		C arrives 192.0.2.1 =>
		C observes alice.1  => C is told ok:192.0.2.1:3
		C says key:k        => C ends with error (unknown alice)`},
	{"four observed connections a lease", Limits{}, `
		A arrives 192.0.2.1 =>
		A observes alice.1  => A is told ok:192.0.2.1:1
		B arrives 192.0.2.1 =>
		B observes alice.1  => B is told ok:192.0.2.1:2
		C arrives 192.0.2.1 =>
		C observes alice.1  => C is told ok:192.0.2.1:3
		D arrives 192.0.2.1 =>
		D observes alice.1  => D is told ok:192.0.2.1:4
		D observes alice.1  => D is told ok:192.0.2.1:4
		E arrives 192.0.2.1 =>
		E observes alice.1  => E ends with error:quota (observed alice)
		F arrives 192.0.2.1 =>
		F observes alice.2  => F is told ok:192.0.2.1:6
		A leaves            =>
		F observes alice.1  => F is told ok:192.0.2.1:6`},
	{"half-open connections of an address", Limits{PerAddress: Quota{HalfOpen: 2}}, `
		A arrives 192.0.2.1 =>
		B arrives 192.0.2.1 =>
		C arrives 192.0.2.1 => C ends with error:quota (address-half-open)
		D arrives 192.0.2.2 =>
		A leaves            =>
		E arrives 192.0.2.1 =>`},
	{"an IPv6 /64 is one address", Limits{PerAddress: Quota{HalfOpen: 1}}, `
		A arrives 2001:db8:0:1::1   =>
		B arrives 2001:db8:0:1:9::2 => B ends with error:quota (address-half-open)
		C arrives 2001:db8:0:2::1   =>`},
	{"half-open connections of an owner", Limits{PerOwner: Quota{HalfOpen: 2}}, `
		A arrives 192.0.2.1 =>
		A serves k alice    => A is told ok:192.0.2.1:1
		B arrives 192.0.2.2 =>
		B observes alice    => B is told ok:192.0.2.2:2
		C arrives 192.0.2.3 =>
		C serves l alice    => C ends with error:quota (owner-half-open alice)
		D arrives 192.0.2.4 =>
		D says key:k        => A joins D
		E arrives 192.0.2.5 =>
		E serves l alice    => E is told ok:192.0.2.5:5`},
	{"streams of an owner", Limits{PerOwner: Quota{Streams: 1}}, `
		A arrives 192.0.2.1 =>
		A serves k alice    => A is told ok:192.0.2.1:1
		B arrives 192.0.2.1 =>
		B serves k alice    => B ends with error:quota (owner-streams alice)
		D arrives 192.0.2.4 =>
		D says key:k        => A joins D
		C arrives 192.0.2.1 =>
		C serves k alice    => C ends with error:quota (owner-streams alice)
		A and D end         =>
		E arrives 192.0.2.1 =>
		E serves k alice    => E is told ok:192.0.2.1:5`},
	{"streams that a lease allows", Limits{}, `
		A arrives 192.0.2.1 =>
		A serves k poor     => A is told ok:192.0.2.1:1
		B arrives 192.0.2.1 =>
		B serves k poor     => B ends with error:quota (owner-streams poor)`},
	{"streams of an address", Limits{PerAddress: Quota{Streams: 1}}, `
		A arrives 192.0.2.1 =>
		A serves k alice    => A is told ok:192.0.2.1:1
		B arrives 192.0.2.1 =>
		B serves l bob      => B ends with error:quota (address-streams bob)
		D arrives 192.0.2.4 =>
		D says key:k        => A joins D
		E arrives 192.0.2.4 =>
		E says key:k        => E ends with error (address-streams)`},
	{"handshakes of an address", Limits{PerAddress: Quota{Handshakes: 1, HalfOpen: -1}}, `
		A arrives 192.0.2.1 =>
		A says observe      => A is told ok:192.0.2.1:1
		A says observe      => A is told ok:192.0.2.1:1
		A says observe      => A is told ok:192.0.2.1:1
		A says observe      => A is told ok:192.0.2.1:1
		A says observe      => A is told ok:192.0.2.1:1
		B arrives 192.0.2.1 =>
		B says observe      => B is told ok:192.0.2.1:2
		B says observe      => B is told ok:192.0.2.1:2
		B says observe      => B is told ok:192.0.2.1:2
		C arrives 192.0.2.1 =>
		C says observe      => C is told ok:192.0.2.1:3
		C says observe      => C is told ok:192.0.2.1:3
		C says observe      => C ends with error:quota (address-handshakes)
		D arrives 192.0.2.1 =>
		D says key:k        => D ends with error (address-handshakes)
		E arrives 192.0.2.1 =>
		E serves k alice    => E ends with error:quota (address-handshakes)
		F arrives 192.0.2.1 =>
		F opens             => F ends (address-handshakes)
		G arrives 192.0.2.1 =>
		G proposes n        => G ends with reply 2 (address-handshakes)
		1s passes           =>
		H arrives 192.0.2.1 =>
		H says key:k        =>`},
	{"handshakes of an owner", Limits{PerOwner: Quota{Handshakes: 1}}, `
		A arrives 192.0.2.1 =>
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		A observes alice    => A is told ok:192.0.2.1:1
		B arrives 192.0.2.2 =>
		B serves k alice    => B ends with error:quota (owner-handshakes alice)
		1s passes           =>
		C arrives 192.0.2.2 =>
		C serves k alice    => C is told ok:192.0.2.2:3`},
	{"eight streams a key", Limits{}, `
		L1 arrives 192.0.2.1 =>
		L1 serves k alice    => L1 is told ok:192.0.2.1:1
		L2 arrives 192.0.2.1 =>
		L2 serves k alice    => L2 is told ok:192.0.2.1:2
		L3 arrives 192.0.2.1 =>
		L3 serves k alice    => L3 is told ok:192.0.2.1:3
		L4 arrives 192.0.2.1 =>
		L4 serves k alice    => L4 is told ok:192.0.2.1:4
		L5 arrives 192.0.2.1 =>
		L5 serves k alice    => L5 is told ok:192.0.2.1:5
		L6 arrives 192.0.2.1 =>
		L6 serves k alice    => L6 is told ok:192.0.2.1:6
		L7 arrives 192.0.2.1 =>
		L7 serves k alice    => L7 is told ok:192.0.2.1:7
		L8 arrives 192.0.2.1 =>
		L8 serves k alice    => L8 is told ok:192.0.2.1:8
		L9 arrives 192.0.2.1 =>
		L9 serves k alice    => L9 ends with error:quota (waiting alice)
		D1 arrives 192.0.2.2 =>
		D1 says key:k        => L1 joins D1
		D2 arrives 192.0.2.2 =>
		D2 says key:k        => L2 joins D2
		D3 arrives 192.0.2.2 =>
		D3 says key:k        => L3 joins D3
		D4 arrives 192.0.2.2 =>
		D4 says key:k        => L4 joins D4
		D5 arrives 192.0.2.2 =>
		D5 says key:k        => L5 joins D5
		D6 arrives 192.0.2.2 =>
		D6 says key:k        => L6 joins D6
		D7 arrives 192.0.2.2 =>
		D7 says key:k        => L7 joins D7
		D8 arrives 192.0.2.2 =>
		D8 says key:k        => L8 joins D8
		LX arrives 192.0.2.1 =>
		LX serves k alice    => LX is told ok:192.0.2.1:18
		DX arrives 192.0.2.2 =>
		DX says key:k        =>
		L3 and D3 end        => LX joins DX`},
	{"a full relay completes pairs and lets nobody wait", Limits{Connections: 2}, `
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:1
		A arrives 192.0.2.3 =>
		A leaves            =>
		D arrives 192.0.2.2 =>
		D says key:k        => L joins D
		M arrives 192.0.2.1 => M ends with error:full (full)`},
	{"room for those who complete a pair", Limits{Connections: 16}, `
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:1
		E arrives 192.0.2.2 =>
		E says key:x        =>` + heldDialers(14) + `
		A arrives 192.0.2.3 =>
		R arrives 192.0.2.3 => A ends (full)
		R serves l bob      => R ends with error:full (full bob)
		S arrives 192.0.2.3 =>
		S says key:l        => S ends with error (full)
		T arrives 192.0.2.3 =>
		T observes bob      => T ends with error:full (full bob)
		V arrives 192.0.2.3 =>
		V proposes n        => V ends with reply 2 (full)
		U arrives 192.0.2.3 =>
		U serves x bob      => U is told ok:192.0.2.3:22, U joins E
		W arrives 192.0.2.3 => W ends with error:full (full)
		H1 leaves           =>
		X arrives 192.0.2.3 =>
		X says key:k        => L joins X`},
	{"who says nothing keeps nobody out", Limits{Connections: 16}, heldDialers(2) + silent(14) + `
		L arrives 192.0.2.1 =>
		L serves k alice    => L is told ok:192.0.2.1:17
		O arrives 192.0.2.1 => S1 ends (full)
		O observes alice    => O is told ok:192.0.2.1:18
		D arrives 192.0.2.2 => S2 ends (full)
		D says key:k        => L joins D
		P arrives 192.0.2.2 => S3 ends (full)
		P proposes n        => P is told reply 0
		E arrives 192.0.2.2 => S4 ends (full)
		E says key:l        =>`},
	{"the proxy", Limits{}, `
		A arrives 192.0.2.1     =>
		A opens                 =>
		A proposes n            => A is told reply 0
		n is activated by alice => refused: unserved
		B arrives 192.0.2.2     =>
		B proposes n            => B is told reply 0
		C arrives 192.0.2.2     =>
		C proposes n            => C ends with reply 2 (in-use)
		m is activated by alice => refused: unserved
		n is activated by alice => A joins B
		n is activated by alice => refused: unserved
		D arrives 192.0.2.2     =>
		D proposes n            => D is told reply 0
		120s pass               => D ends (unserved)
		A and B end             =>`},
	{"streams of who activates", Limits{PerOwner: Quota{Streams: 1}}, `
		A arrives 192.0.2.1     =>
		A proposes n            => A is told reply 0
		B arrives 192.0.2.2     =>
		B proposes n            => B is told reply 0
		L arrives 192.0.2.1     =>
		L serves k alice        => L is told ok:192.0.2.1:3
		n is activated by alice => refused: owner-streams
		L leaves                =>
		n is activated by alice => A joins B`},
	{"denied", Limits{}, `
		L arrives 192.0.2.1     =>
		L serves k alice        => L is told ok:192.0.2.1:1
		D arrives 192.0.2.2     =>
		D says key:k            => L joins D
		W arrives 192.0.2.1     =>
		W serves k alice        => W is told ok:192.0.2.1:3
		M arrives 192.0.2.1     =>
		M serves l bob          => M is told ok:192.0.2.1:4
		O arrives 192.0.2.1     =>
		O observes alice        => O is told ok:192.0.2.1:5
		H arrives 192.0.2.2     =>
		H says key:h            =>
		A arrives 192.0.2.1     =>
		A proposes n            => A is told reply 0
		B arrives 192.0.2.2     =>
		B proposes n            => B is told reply 0
		n is activated by alice => A joins B
		P arrives 192.0.2.2     =>
		P proposes m            => P is told reply 0
		F arrives 192.0.2.1     =>
		alice is denied         => W ends with error:denied (denied alice), O ends with error:denied (denied alice), L and D are cut (denied alice), A and B are cut (denied alice)
		L and D end             =>
		A and B end             =>
		alice is denied         =>
		bob is denied           => M ends with error:denied (denied bob)`},
	{"drain", Limits{}, `
		L arrives 192.0.2.1     =>
		L serves k alice        => L is told ok:192.0.2.1:1
		D arrives 192.0.2.2     =>
		D says key:k            => L joins D
		W arrives 192.0.2.1     =>
		W serves k alice        => W is told ok:192.0.2.1:3
		H arrives 192.0.2.2     =>
		H says key:h            =>
		O arrives 192.0.2.1     =>
		O observes alice        => O is told ok:192.0.2.1:5
		P arrives 192.0.2.1     =>
		P proposes n            => P is told reply 0
		F arrives 192.0.2.1     =>
		G arrives 192.0.2.1     =>
		the relay drains        => W ends with error:shutdown (shutdown alice), H ends with error (shutdown), O ends with error:shutdown (shutdown alice), P ends (shutdown)
		F serves k alice        => F ends with error:shutdown (shutdown)
		G says key:k            => G ends with error (shutdown)
		E arrives 192.0.2.1     =>
		E proposes n            => E ends with reply 2 (shutdown)
		I arrives 192.0.2.1     =>
		I says observe          => I is told ok:192.0.2.1:10
		the relay shuts         => I ends
		J arrives 192.0.2.1     => J ends
		L and D end             =>`},
}

func TestStories(t *testing.T) {
	steps := 0
	for _, story := range stories {
		t.Run(story.name, func(t *testing.T) {
			d := newDesk(story.limits)
			for _, line := range strings.Split(strings.TrimSpace(story.story), "\n") {
				sentence, want, ok := strings.Cut(line, "=>")
				sentence, want = strings.TrimSpace(sentence), strings.TrimSpace(want)
				if got := d.do(sentence); got != want || !ok {
					t.Fatalf("%s:\ngot  %s\nwant %s", sentence, got, want)
				}
				check(t, d)
				steps++
			}
		})
	}
	if steps < 250 {
		t.Errorf("the stories have %d steps", steps)
	}
}

//go:build linux

package lab_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/google/go-cmp/cmp"

	"github.com/dtcp-relay/dtcp/lab"
)

var updateFlag = flag.Bool("update", false, "write the expected routes into testdata/grid.golden")

// goldenFile has the expected route of every cell of the grid.
const goldenFile = "testdata/grid.golden"

// Routes, and the kinds of candidates that a path event names.
const (
	direct    = "direct"
	relayed   = "relay"
	foretold  = "foretold" // direct, unless another connection has taken the port that was told: a third of the streams at least
	either    = "either"   // as it happens: nothing is promised
	host      = "host"
	mapped    = "mapped"
	reflexive = "reflexive"
)

// A nature is what matters of a place for the routes between it and others:
// what there is in each family of addresses, and what is let out.
type nature struct {
	name string
	v4   side
	v6   side
	out  string // to whom alone connections are let out; empty: to everybody
}

// A side is what a place is for one family of addresses.
type side struct {
	accepts string // the kind of candidate at which anybody gets in; empty: nobody does
	ports   string // what becomes of the ports of connections to the outside; empty: the family is not spoken
	public  bool   // the host has a public address, so what is punched may be called its own
}

// What becomes of ports.
const (
	kept       = "kept"
	sequential = "sequential"
	random     = "random"
)

var (
	nat     = side{ports: kept}
	wall    = side{ports: kept, public: true}
	natures = []nature{
		{name: "open", v4: side{accepts: host, ports: kept, public: true}},
		{name: "home", v4: nat},
		{name: "home-rst", v4: nat},
		{name: "cone", v4: side{accepts: reflexive, ports: kept}},
		{name: "symmetric", v4: side{ports: random}},
		{name: "sequential", v4: side{ports: sequential}},
		{name: "wall", v4: wall},
		{name: "wall-rst", v4: wall},
		{name: "upnp", v4: side{accepts: mapped, ports: kept}},
		{name: "carrier", v4: nat},
		{name: "forward", v4: side{accepts: mapped, ports: kept}},
		{name: "only-443", v4: nat, out: "port 443"},
		{name: "enclosed", v4: nat, out: "server and relay"},
		{name: "v6", v6: side{accepts: host, ports: kept, public: true}},
		{name: "v6-wall", v6: wall},
		{name: "v6-wall-rst", v6: wall},
		{name: "dual", v4: nat, v6: side{accepts: host, ports: kept, public: true}},
		{name: "dual-wall", v4: nat, v6: wall},
	}
)

// A gridCell is what is expected when a host in one place asks one in another.
type gridCell struct {
	Requester, Responder string
	Route                string   // direct, relay, foretold or either
	Kinds                []string // of the listener's candidate, whichever is ready first
	Why                  string
	Punched              bool // nobody accepts: the route is there because both dial
}

// pairCells are those between two hosts behind one gateway.
var pairCells = []gridCell{
	{"lan-a", "lan-b", direct, []string{host}, "both are on one network", false},
	{"guests-a", "guests-b", relayed, []string{relayed}, "kept apart, and their NAT does not hairpin", false},
	{"guests-hairpin-a", "guests-hairpin-b", direct, []string{reflexive}, "kept apart, but their NAT hairpins", true},
	{"carrier-a", "carrier-b", relayed, []string{relayed}, "the carrier's NAT does not hairpin", false},
	{"carrier-hairpin-a", "carrier-hairpin-b", direct, []string{reflexive}, "the carrier's NAT hairpins, the homes' keep ports: punched", true},
}

// expect reasons the route between two places from what they are (Section 4 of
// protocol.md: direct wherever one can accept, a mapping can be had, or the NATs
// can be punched; relayed otherwise).
func expect(a, b nature) gridCell {
	c := gridCell{Requester: a.name, Responder: b.name, Route: relayed, Kinds: []string{relayed}}
	for _, n := range []nature{a, b} {
		if n.out != "" {
			c.Why = n.name + " lets out to " + n.out + " alone"
			return c
		}
	}
	var kinds, accepts, why []string
	spoken, told, guessed := false, false, false
	for _, f := range []struct {
		name string
		a, b side
	}{{"IPv4", a.v4, b.v4}, {"IPv6", a.v6, b.v6}} {
		if f.a.ports == "" || f.b.ports == "" {
			continue
		}
		spoken = true
		for _, n := range []struct {
			name string
			side
		}{{a.name, f.a}, {b.name, f.b}} {
			if n.accepts != "" {
				kinds = append(kinds, n.accepts)
				if n.accepts == host {
					kinds = append(kinds, reflexive) // its punch port is as open as any
				}
				accepts = append(accepts, fmt.Sprintf("%s accepts over %s", n.name, f.name))
			}
		}
		// What the one sees of the other's port must be what its own packets meet.
		ports := []string{f.a.ports, f.b.ports}
		switch {
		case f.a.ports == kept && f.b.ports == kept:
			why = append(why, "both keep ports over "+f.name+": punched")
		case slices.Contains(ports, sequential) && slices.Contains(ports, kept):
			why = append(why, "one keeps ports, the other's next one can be told: punched")
			told = true
		case f.a.ports == sequential && f.b.ports == sequential:
			guessed = true
			continue
		default:
			continue
		}
		kinds = append(kinds, reflexive)
		if f.a.public || f.b.public {
			kinds = append(kinds, host)
		}
	}
	switch {
	case !spoken:
		c.Why = "no family of addresses in common"
		return c
	case len(kinds) == 0 && guessed:
		c.Route, c.Kinds, c.Why = either, []string{reflexive, relayed}, "both next ports would have to be told at once"
		return c
	case len(kinds) == 0:
		c.Why = fmt.Sprintf("nobody accepts, and no port can be told: %s and %s", a.v4.ports, b.v4.ports)
		return c
	}
	slices.Sort(kinds)
	c.Route, c.Kinds, c.Punched, c.Why = direct, slices.Compact(kinds), len(accepts) == 0, append(accepts, why...)[0]
	if told && c.Punched && len(why) == 1 {
		c.Route, c.Kinds = foretold, append(c.Kinds, relayed)
	}
	return c
}

// expectedCells is every cell: each place asking each, and those that share one.
func expectedCells() []gridCell {
	var cells []gridCell
	for _, a := range natures {
		for _, b := range natures {
			cells = append(cells, expect(a, b))
		}
	}
	for _, c := range pairCells {
		cells = append(cells, c)
		c.Requester, c.Responder = c.Responder, c.Requester
		cells = append(cells, c)
	}
	return cells
}

// formatCells writes cells as the golden file has them.
func formatCells(cells []gridCell) []byte {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "# who asks\twho is asked\troute\tlistener's candidate\twhy\n")
	for _, c := range cells {
		punched := ""
		if c.Punched {
			punched = "*"
		}
		fmt.Fprintf(w, "%s\t%s\t%s%s\t%s\t%s\n", c.Requester, c.Responder, c.Route, punched, strings.Join(c.Kinds, "|"), c.Why)
	}
	w.Flush()
	return b.Bytes()
}

// parseCells reads them.
func parseCells(text []byte) ([]gridCell, error) {
	var cells []gridCell
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 5 {
			return nil, fmt.Errorf("%d words in %q", len(f), line)
		}
		route, punched := strings.CutSuffix(f[2], "*")
		cells = append(cells, gridCell{f[0], f[1], route, strings.Split(f[3], "|"), strings.Join(f[4:], " "), punched})
	}
	return cells, nil
}

// goldenCells is what the golden file has.
func goldenCells(t *testing.T) []gridCell {
	t.Helper()
	text, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	cells, err := parseCells(text)
	if err != nil {
		t.Fatalf("%s: %v", goldenFile, err)
	}
	return cells
}

// TestGridExpectations holds the golden file against the reasons for it, and the
// reasons against what must be true of any grid.
func TestGridExpectations(t *testing.T) {
	want := expectedCells()
	if *updateFlag {
		if err := os.WriteFile(goldenFile, formatCells(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, goldenCells(t)); diff != "" {
		t.Errorf("%s is not what places are (-want +got); -update writes it:\n%s", goldenFile, diff)
	}
	if len(natures) != len(lab.Places) || len(pairCells) != len(lab.Pairs) {
		t.Fatalf("%d natures of %d places, %d cells of %d pairs", len(natures), len(lab.Places), len(pairCells), len(lab.Pairs))
	}
	routes := make(map[[2]string]string)
	counts := make(map[string]int)
	for _, c := range want {
		routes[[2]string{c.Requester, c.Responder}] = c.Route
		counts[c.Route]++
		if c.Punched {
			counts["punched"]++
		}
	}
	for i, n := range natures {
		if n.name != lab.Places[i].Name {
			t.Errorf("nature %q, place %q", n.name, lab.Places[i].Name)
		}
		for _, m := range natures {
			if routes[[2]string{n.name, m.name}] != routes[[2]string{m.name, n.name}] {
				t.Errorf("the route between %s and %s depends on who asks", n.name, m.name)
			}
		}
	}
	t.Logf("%d cells: %v", len(want), counts)
	if counts[direct] < 100 || counts[relayed] < 100 || counts["punched"] < 50 {
		t.Errorf("%v: too few of a kind", counts)
	}
}

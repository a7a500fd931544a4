//go:build linux

package lab_test

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// gridDelay is what a packet takes between any two hosts of the grid: a round
// trip is a tenth of a second.
const gridDelay = 50 * time.Millisecond

// gridService is what every responder of the grid offers: what it is sent, back.
const gridService = "grid"

// A grid is a world with a real XMPP server and a real relay, and stations in it.
type grid struct {
	t        *testing.T // for what lives as long as the grid
	world    *lab.World
	server   *lab.Server
	stations map[string]*station

	mu      sync.Mutex
	free    sync.Cond
	running int
	results map[[2]string]outcome // by requester and responder
}

// A station is a host with a user of dtcp. One takes part in one cell at a time:
// what goes on in others must not move the ports of its NAT.
type station struct {
	name     string
	place    string
	host     *lab.Host
	user     *lab.User
	more     []string // flags besides those of the place
	busy     bool     // under the grid's mu
	listener *lab.Run // nil until it is asked for the first time
	address  string   // of the listener
}

// gridParallel is how many cells run at once: most of their time they wait.
const gridParallel = 12

// newGrid makes a world with the stations of these names, each of which is a
// place's and "-1" or "-2", or that of one end of a pair. The relay is that of
// the server's domain.
func newGrid(t *testing.T, names ...string) *grid {
	t.Helper()
	g := &grid{t: t, world: lab.NewWorld(gridDelay), stations: make(map[string]*station), results: make(map[[2]string]outcome)}
	g.free.L = &g.mu
	add := func(name, place string, h *lab.Host) {
		g.stations[name] = &station{name: name, place: place, host: h}
	}
	made := make(map[string]bool)
	for _, name := range names {
		place := name[:len(name)-2]
		if g.stations[name] != nil {
			continue
		}
		if i := slices.IndexFunc(lab.Pairs, func(p lab.Pair) bool { return name == p.Name+"-a" || name == p.Name+"-b" }); i >= 0 {
			if !made[place] {
				made[place] = true
				a, b := lab.Pairs[i].Make(g.world, place)
				add(place+"-a", place, a)
				add(place+"-b", place, b)
			}
			continue
		}
		add(name, place, lab.PlaceNamed(t, place).Make(g.world, name))
	}
	g.world.Start(t)
	g.server = lab.StartProsodyOn(t, g.world.Server, lab.Component)
	lab.StartRelayOn(t, dtcpdBinary, g.server, g.world.Relay)
	for _, name := range slices.Sorted(maps.Keys(g.stations)) {
		s := g.stations[name]
		s.user = lab.NewUserOn(t, g.server, dtcpBinary, name+".", s.host)
		if s.place == "upnp" {
			s.host.Gate.MiniUPnPD(t)
		}
	}
	return g
}

// take waits until nobody else has either station, and returns what gives them
// back.
func (g *grid) take(a, b *station) (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a.busy || b.busy || g.running == gridParallel {
		g.free.Wait()
	}
	g.running++
	a.busy, b.busy = true, true
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.running--
		a.busy, b.busy = false, false
		g.free.Broadcast()
	}
}

// flags are what the person at the station says on every command line.
func (s *station) flags() []string {
	flags := slices.Clone(s.more)
	if s.place == "forward" {
		public := at(s.host.Gate.V4, lab.ForwardedPort)
		flags = append(flags, "--port", strconv.Itoa(lab.ForwardedPort), "--public", public.String())
	}
	return flags
}

// listen has the station's listener run, from now until the grid's end, and lets
// in everybody on the grid. The station must have been taken.
func (g *grid) listen(t *testing.T, s *station) {
	t.Helper()
	if s.listener != nil {
		return
	}
	echo := at(loopbackIP, 7007)
	serve(g.t, s.host, echo, copyBack)
	args := append([]string{"--service", gridService, "--to", echo.String()}, s.flags()...)
	for _, other := range g.stations {
		args = append(args, "--allow", other.user.JID)
	}
	run := s.user.Start(g.t, lab.Streams{}, append([]string{"listen"}, args...)...)
	s.address = run.Await(t, "ready").Address
	s.listener = run
}

// TestLabGrid has a host in every kind of network ask one in every kind, and
// the two in each kind of shared one each other, through a real XMPP server and
// a real relay. Cells are named for who asks and who is asked:
//
//	go test ./lab -lab -v -run TestLabGrid/symmetric/home
func TestLabGrid(t *testing.T) {
	cells := goldenCells(t)
	var names []string
	for _, p := range lab.Places {
		names = append(names, p.Name+"-1", p.Name+"-2")
	}
	for _, p := range lab.Pairs {
		names = append(names, p.Name+"-a", p.Name+"-b")
	}
	g := newGrid(t, names...)
	t.Cleanup(func() { g.report(t, cells) }) // when all cells are done
	for _, c := range cells {
		t.Run(c.Requester+"/"+c.Responder, func(t *testing.T) {
			t.Parallel()
			g.run(t, c)
		})
	}
}

// run fills a cell of the grid.
func (g *grid) run(t *testing.T, c gridCell) {
	a, b := g.stations[c.Requester], g.stations[c.Responder]
	if a == nil {
		a, b = g.stations[c.Requester+"-1"], g.stations[c.Responder+"-2"]
	}
	release := g.take(a, b)
	defer release()
	g.listen(t, b)
	runs := 2
	switch {
	case *longFlag && c.Punched:
		runs = 150 // and as many asked from the other side
	case c.Route == direct, c.Route == foretold:
		runs = 3
	}
	began := time.Now()
	got := g.ask(t, a, b, runs)
	t.Logf("%s asks %s: %s (%.1f s)", c.Requester, c.Responder, got, time.Since(began).Seconds())
	g.mu.Lock()
	g.results[[2]string{c.Requester, c.Responder}] = got
	g.mu.Unlock()
	if len(got.paths) != runs {
		t.Errorf("%d streams of %d", len(got.paths), runs)
	}
	for n, p := range got.paths {
		if !slices.Contains(c.Kinds, p.kind) {
			t.Errorf("stream %d: path %s, want %s (%s)", n, p.kind, strings.Join(c.Kinds, " or "), c.Why)
		}
	}
	if n := got.direct(); c.Route == foretold && 3*n < len(got.paths) {
		t.Errorf("%d of %d streams are direct, want a third at least (%s)", n, len(got.paths), c.Why)
	}
	if want := 2 * len(got.paths); got.iqs != want {
		t.Errorf("%d iqs for %d streams, want %d", got.iqs, len(got.paths), want)
	}
}

// report prints the table, and holds both halves of it against each other.
func (g *grid) report(t *testing.T, cells []gridCell) {
	t.Helper()
	compared, streams := 0, 0
	for _, c := range cells {
		there, ok := g.results[[2]string{c.Requester, c.Responder}]
		back, ok2 := g.results[[2]string{c.Responder, c.Requester}]
		if !ok || !ok2 {
			continue // -run has left it out
		}
		compared++
		streams += len(there.paths)
		if c.Route != either && c.Route != foretold && there.route() != back.route() {
			t.Errorf("between %s and %s it depends on who asks: %s, %s", c.Requester, c.Responder, there.route(), back.route())
		}
	}
	t.Logf("%d cells with both sides, %d streams\n%s", compared, streams, g.table(cells))
	if *natFlag != "" {
		g.writeTable(t, cells)
	}
}

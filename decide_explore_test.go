package dtcp

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The explorer runs both deciders against each other over every order of
// events: signalling and connections that are slow, connections that fail at
// any moment, timers that fire at any moment, a caller who gives up. The world
// is small (a few connections, a bounded number of deaths), the orders are all.

// link is one TCP connection of the world, as far as the deciders can see.
type link struct {
	from      role      // who dialed
	direct    bool      // not by way of a relay
	id        [2]int    // its number at either side, -1 where unknown
	open      [2]bool   // the side still holds it
	up        bool      // the dial succeeded
	proceeded [2]bool   // the side goes on with its handshake
	done      bool      // TLS is complete
	queue     [2]string // what is under way to either side: n(omination), k (ok), e(rror), r(eset)
	died      [2]bool
}

// world is a state of everything. It is copied for each step.
type world struct {
	side    [2]state
	links   []link
	result  bool    // the iq-result is under way
	gone    [2]bool // a give-up is under way to this side
	fresh   [2]int  // next connection number
	deaths  int     // how many more times something may go wrong
	targets [2]int  // dialed by either side, relays included
	relays  [2]int  // of these; the last ones
	stream  [2]int  // the link that carries the stream for this side, -1
	story   []string
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (w world) clone() world {
	w.links = slices.Clone(w.links)
	w.story = slices.Clip(w.story)
	return w
}

// key identifies the world without its story.
func (w world) key() string {
	var b strings.Builder
	for i := range w.side {
		s := w.side[i]
		fmt.Fprintf(&b, "%d%v%t%t%t|", s.phase, s.connections, s.gaveUp, s.peerGaveUp, s.relayReady.IsZero())
	}
	fmt.Fprint(&b, w.links, w.result, w.gone, w.deaths, w.stream)
	return b.String()
}

func (w *world) linkOf(side role, id int) int {
	for i, l := range w.links {
		if l.id[side] == id {
			return i
		}
	}
	return -1
}

// feed gives an event to one side and carries out the actions.
func (w *world) feed(t *testing.T, side role, e event, now time.Time) {
	before := w.side[side]
	after, actions := decide(before, e, now)
	w.side[side] = after
	other := 1 - side
	for _, a := range actions {
		i := w.linkOf(side, a.id)
		switch a.kind {
		case dial:
			l := link{from: side, id: [2]int{-1, -1}, direct: a.id <= w.targets[side]-w.relays[side]}
			l.id[side], l.open[side] = a.id, true
			w.links = append(w.links, l)
		case proceed:
			w.links[i].proceeded[side] = true
		case nominate:
			w.links[i].queue[other] += "n"
		case confirm, deliver:
			if w.stream[side] >= 0 {
				t.Fatalf("two streams at side %d after %v", side, w.story)
			}
			w.stream[side] = i
			if a.kind == confirm {
				w.links[i].queue[other] += "k"
			}
		case refuse:
			w.links[i].queue[other] += "e"
			w.links[i].open[side] = false
		case reset:
			if i < 0 {
				break // it came too late to be known
			}
			w.links[i].open[side] = false
			w.links[i].queue[other] += "r"
		case sayGone:
			for _, c := range after.connections {
				if c.dialed && c.alive() && c.stage != won {
					t.Fatalf("side %d gave up while connection %d is at stage %d; %v", side, c.id, c.stage, w.story)
				}
			}
			w.gone[other] = true
		case fail:
			if w.stream[side] >= 0 {
				t.Fatalf("side %d failed with a stream; %v", side, w.story)
			}
		}
	}
	if w.stream[requester] >= 0 && w.stream[responder] != w.stream[requester] {
		t.Fatalf("the requester has stream %d, the responder %d; %v", w.stream[requester], w.stream[responder], w.story)
	}
}

// waits reports whether a ready relay waits for direct paths, and nothing else
// is nominated.
func (s state) waits() bool {
	return s.phase == racing && !s.relayReady.IsZero() && s.next().Equal(s.relayUntil())
}

// steps returns every world that may follow w.
func (w world) steps(t *testing.T) []world {
	var next []world
	step := func(name string, f func(*world)) {
		n := w.clone()
		n.story = append(n.story, name)
		f(&n)
		next = append(next, n)
	}
	if w.result {
		step("result", func(n *world) {
			n.result = false
			n.feed(t, requester, n.begin(requester), epoch)
		})
	}
	for side := range role(2) {
		if w.gone[side] && !(side == requester && w.result) { // an iq does not overtake another
			step(fmt.Sprintf("give-up reaches %d", side), func(n *world) {
				n.gone[side] = false
				n.feed(t, side, event{kind: gone}, epoch)
			})
		}
		if at := w.side[side].next(); !at.IsZero() && w.side[side].waits() {
			// A relay's wait for direct paths is short, and nothing that went wrong.
			step(fmt.Sprintf("%d has waited long enough for direct paths", side), func(n *world) {
				n.feed(t, side, event{kind: tick}, at)
				if n.side[side].waits() {
					t.Fatalf("side %d asks to be told the time that it has just been told; %v", side, n.story)
				}
			})
		} else if !at.IsZero() && w.deaths > 0 {
			step(fmt.Sprintf("time passes at %d", side), func(n *world) {
				n.deaths--
				n.feed(t, side, event{kind: tick}, at)
			})
		}
	}
	if w.deaths > 0 && (w.side[requester].phase == racing || w.side[requester].phase == nominating) {
		step("the caller gives up", func(n *world) {
			n.deaths--
			n.feed(t, requester, event{kind: cancelled}, epoch)
		})
	}
	for i, l := range w.links {
		w.linkSteps(t, i, l, step)
	}
	return next
}

func (w world) linkSteps(t *testing.T, i int, l link, step func(string, func(*world))) {
	from, to := l.from, 1-l.from
	if l.open[from] && !l.up {
		step(fmt.Sprintf("link %d connects", i), func(n *world) {
			n.links[i].up = true
			n.links[i].proceeded[from] = true
			n.feed(t, from, event{kind: connected, id: l.id[from]}, epoch)
		})
	}
	if l.up && l.id[to] < 0 && !l.died[to] {
		step(fmt.Sprintf("link %d arrives", i), func(n *world) {
			n.fresh[to]++
			id := n.fresh[to]
			n.links[i].id[to], n.links[i].open[to] = id, true
			n.feed(t, to, event{kind: arrived, id: id, direct: l.direct}, epoch)
		})
	}
	if l.open[0] && l.open[1] && l.proceeded[0] && l.proceeded[1] && !l.done {
		step(fmt.Sprintf("link %d is proven", i), func(n *world) {
			n.links[i].done = true
			n.feed(t, requester, event{kind: proven, id: l.id[requester]}, epoch)
			n.feed(t, responder, event{kind: proven, id: l.id[responder]}, epoch)
		})
	}
	for side := range role(2) {
		if l.queue[side] != "" && l.id[side] >= 0 {
			step(fmt.Sprintf("link %d: %c reaches %d", i, l.queue[side][0], side), func(n *world) {
				m := l.queue[side][0]
				n.links[i].queue[side] = l.queue[side][1:]
				if !l.open[side] {
					return
				}
				kind := map[byte]eventKind{'n': nomination, 'k': accepted, 'e': declined, 'r': died}[m]
				if m == 'r' {
					n.links[i].open[side], n.links[i].died[side] = false, true
				}
				n.feed(t, side, event{kind: kind, id: l.id[side]}, epoch)
			})
		}
		if l.open[side] && l.id[side] >= 0 && w.deaths > 0 {
			step(fmt.Sprintf("link %d dies at %d", i, side), func(n *world) {
				n.deaths--
				n.links[i].open[side], n.links[i].died[side] = false, true
				n.links[i].queue[1-side] += "r"
				n.feed(t, side, event{kind: died, id: l.id[side]}, epoch)
			})
		}
	}
}

// begin makes the event that starts a side's dials.
func (w *world) begin(side role) event {
	other := 1 - side
	e := event{
		kind: begun, nothing: w.targets[side] == 0, peerIdle: w.targets[other] == 0,
		indirect: w.targets[other] == w.relays[other],
	}
	for i := range w.targets[side] {
		w.fresh[side]++
		e.targets = append(e.targets, connection{id: w.fresh[side], direct: i < w.targets[side]-w.relays[side]})
	}
	return e
}

// explore visits every world that can follow from the start.
func explore(t *testing.T, targets, relays [2]int, deaths int) (visited, endings int) {
	t.Helper()
	start := world{
		side: [2]state{{role: requester}, {role: responder}}, deaths: deaths, targets: targets, relays: relays,
		stream: [2]int{-1, -1}, result: true,
	}
	start.feed(t, responder, start.begin(responder), epoch)
	seen := map[string]bool{start.key(): true}
	for queue := []world{start}; len(queue) > 0; {
		w := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		next := w.steps(t)
		if len(next) == 0 || (deaths > 0 && w.settled()) {
			endings++
			w.checkEnding(t, deaths)
		}
		for _, n := range next {
			if k := n.key(); !seen[k] {
				seen[k] = true
				queue = append(queue, n)
			}
		}
	}
	return len(seen), endings
}

// settled reports whether nothing is under way but time and deaths.
func (w world) settled() bool {
	for _, l := range w.links {
		if l.queue[0]+l.queue[1] != "" || (l.open[0] || l.open[1]) && !l.done {
			return false
		}
	}
	return !w.result && w.gone == [2]bool{}
}

func (w world) checkEnding(t *testing.T, deaths int) {
	req, res := w.side[requester], w.side[responder]
	if req.phase == held && res.phase != held {
		t.Fatalf("the requester holds a stream, the responder is at phase %d; %v", res.phase, w.story)
	}
	if deaths > 0 {
		return
	}
	// Nothing went wrong: there must be a stream if anything could be dialed,
	// and both must know that there is none otherwise.
	want := held
	if w.targets == [2]int{} {
		want = over
	}
	if req.phase != want || res.phase != want {
		t.Fatalf("nothing went wrong, and the phases are %d and %d, want %d; %v", req.phase, res.phase, want, w.story)
	}
	if !req.finished() || !res.finished() {
		t.Fatalf("connections are left over: %v, %v; %v", req.connections, res.connections, w.story)
	}
}

func TestExploreDecide(t *testing.T) {
	tests := []struct {
		targets [2]int // dialed by requester and responder
		relays  [2]int // of these
		deaths  int
		atLeast int // worlds: a world that shrinks to nothing checks nothing
	}{
		{[2]int{0, 0}, [2]int{}, 0, 2},
		{[2]int{1, 0}, [2]int{}, 0, 7},
		{[2]int{0, 1}, [2]int{}, 0, 9},
		{[2]int{1, 1}, [2]int{}, 0, 80},
		{[2]int{2, 1}, [2]int{}, 0, 1000},
		{[2]int{1, 2}, [2]int{}, 0, 1300},
		{[2]int{1, 0}, [2]int{}, 2, 200},
		{[2]int{0, 1}, [2]int{}, 2, 250},
		{[2]int{1, 1}, [2]int{}, 2, 15000},
		{[2]int{2, 0}, [2]int{}, 2, 9000},
		{[2]int{2, 1}, [2]int{}, 1, 10000},
		{[2]int{1, 0}, [2]int{1, 0}, 0, 7},
		{[2]int{0, 1}, [2]int{0, 1}, 0, 9},
		{[2]int{1, 1}, [2]int{1, 1}, 0, 80},
		{[2]int{2, 1}, [2]int{1, 0}, 0, 1000},
		{[2]int{1, 2}, [2]int{0, 1}, 0, 1000},
		{[2]int{1, 1}, [2]int{1, 0}, 2, 10000},
		{[2]int{1, 1}, [2]int{0, 1}, 2, 10000},
		{[2]int{2, 0}, [2]int{1, 0}, 2, 8000},
		{[2]int{0, 2}, [2]int{0, 1}, 2, 8000},
		{[2]int{2, 1}, [2]int{1, 1}, 1, 10000},
	}
	total := 0
	for _, tt := range tests {
		visited, endings := explore(t, tt.targets, tt.relays, tt.deaths)
		if visited < tt.atLeast || endings == 0 {
			t.Errorf("targets %v, relays %v, deaths %d: %d states, %d endings; want at least %d states", tt.targets, tt.relays, tt.deaths, visited, endings, tt.atLeast)
		}
		t.Logf("targets %v, relays %v, deaths %d: %d states, %d endings", tt.targets, tt.relays, tt.deaths, visited, endings)
		total += visited
	}
	if total < 10000 || total > 1000000 {
		t.Errorf("%d states in all, want 10^4 to 10^6", total)
	}
}

package dtcp

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A play tells decide what happens, one sentence a line, and wants to see what
// it does.
type play struct {
	t   *testing.T
	s   state
	now time.Time
	out []string
}

func newPlay(t *testing.T, r role) *play { return &play{t: t, s: state{role: r}, now: epoch} }

var actionNames = map[actionKind]string{
	dial: "dial", proceed: "proceed", nominate: "nominate", confirm: "confirm", refuse: "refuse",
	deliver: "deliver", reset: "reset", sayGone: "say gone", fail: "fail",
}

func (p *play) take(e event) *play {
	var actions []action
	p.s, actions = decide(p.s, e, p.now)
	for _, a := range actions {
		name := actionNames[a.kind]
		if a.kind != fail && a.kind != sayGone {
			name += fmt.Sprint(" ", a.id)
		}
		p.out = append(p.out, name)
	}
	return p
}

// begin starts the race with direct targets 1 to direct and relays after them.
func (p *play) begin(direct, relays int) *play {
	e := event{kind: begun, nothing: direct+relays == 0}
	for i := range direct + relays {
		e.targets = append(e.targets, connection{id: i + 1, direct: i < direct})
	}
	return p.take(e)
}

func (p *play) is(k eventKind, id int) *play { return p.take(event{kind: k, id: id}) }

// proven says that a connection is, and how long its round trip is.
func (p *play) proven(id int, trip time.Duration) *play {
	return p.is(connected, id).take(event{kind: proven, id: id, trip: trip})
}

// wait lets time pass, with the ticks that are asked for.
func (p *play) wait(d time.Duration) *play {
	end := p.now.Add(d)
	for at := p.s.next(); !at.IsZero() && !at.After(end); at = p.s.next() {
		p.now = at
		p.take(event{kind: tick})
		if p.s.next() == at {
			p.t.Fatalf("decide asks again and again for a tick at %v", at)
		}
	}
	p.now = end
	return p
}

// wantOut compares what was done since the last time.
func (p *play) wantOut(want ...string) *play {
	p.t.Helper()
	if got := strings.Join(p.out, ", "); got != strings.Join(want, ", ") {
		p.t.Errorf("got  %q\nwant %q", got, strings.Join(want, ", "))
	}
	p.out = nil
	return p
}

func TestDecideNominates(t *testing.T) {
	t.Run("the first ready direct path, at once", func(t *testing.T) {
		newPlay(t, requester).begin(2, 1).wantOut("dial 1", "dial 2", "dial 3").
			proven(2, 0).wantOut("nominate 2").
			proven(1, 0).wantOut(). // it stays open until the answer
			is(accepted, 2).wantOut("deliver 2", "reset 1", "reset 3")
	})
	t.Run("another when the nominated one dies", func(t *testing.T) {
		newPlay(t, requester).begin(2, 0).proven(1, 0).proven(2, 0).wantOut("dial 1", "dial 2", "nominate 1").
			is(died, 1).wantOut("nominate 2").is(accepted, 2).wantOut("deliver 2")
	})
	t.Run("another when the nominated one is silent for 5 s", func(t *testing.T) {
		newPlay(t, requester).begin(2, 0).proven(1, 0).proven(2, 0).wantOut("dial 1", "dial 2", "nominate 1").
			wait(answerTime-1).wantOut().wait(1).wantOut("reset 1", "nominate 2")
	})
	t.Run("none after an answer error", func(t *testing.T) {
		newPlay(t, requester).begin(2, 0).proven(1, 0).proven(2, 0).wantOut("dial 1", "dial 2", "nominate 1").
			is(declined, 1).wantOut("reset 1", "reset 2", "say gone", "fail")
	})
	t.Run("a connection that came before the result, when that is there", func(t *testing.T) {
		newPlay(t, requester).take(event{kind: arrived, id: 20, direct: true}).wantOut().
			begin(0, 0).wantOut("proceed 20").is(proven, 20).wantOut("nominate 20")
	})
}

// TestDecideRelayWaits is the second item of Section 4 of protocol.md.
func TestDecideRelayWaits(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name string
		trip time.Duration
		then func(*play) // between the relay's readiness and its nomination
		want time.Duration
	}{
		{"100 ms at the least", 10 * ms, nil, 100 * ms},
		{"twice its round trip", 120 * ms, nil, 240 * ms},
		{"500 ms at the most", 900 * ms, nil, 500 * ms},
		{"up to 1 s while a direct connection is in its handshake", 10 * ms, func(p *play) { p.is(connected, 1) }, time.Second},
		{"100 ms when that connection has died and another is dialed", 10 * ms, func(p *play) { p.is(connected, 1).is(died, 1) }, 100 * ms},
		{"not at all when no direct dial is pending on either side", 10 * ms, func(p *play) { p.is(died, 1).is(died, 2).is(gone, 0) }, 0},
		{"but it does while the peer may be dialing", 10 * ms, func(p *play) { p.is(died, 1).is(died, 2) }, 100 * ms},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlay(t, requester).begin(2, 1).wantOut("dial 1", "dial 2", "dial 3").proven(3, tt.trip)
			if tt.then != nil {
				tt.then(p)
			}
			if tt.want > 0 {
				p.wait(tt.want - 1).wantOut().wait(1)
			}
			p.wantOut("nominate 3")
		})
	}
	t.Run("a direct path that becomes ready while the relay waits is taken", func(t *testing.T) {
		newPlay(t, requester).begin(1, 1).proven(2, ms).wait(50*ms).proven(1, ms).wantOut("dial 1", "dial 2", "nominate 1")
	})
	t.Run("another relay in its handshake makes it wait no longer", func(t *testing.T) {
		newPlay(t, requester).begin(1, 2).proven(2, ms).is(connected, 3).wantOut("dial 1", "dial 2", "dial 3").
			wait(100*ms - 1).wantOut().wait(1).wantOut("nominate 2")
	})
	t.Run("and another ready one does not begin anew", func(t *testing.T) {
		newPlay(t, requester).begin(1, 2).proven(2, ms).is(connected, 3).wait(60*ms).proven(3, ms).wantOut("dial 1", "dial 2", "dial 3").
			wait(39 * ms).wantOut().wait(ms).wantOut("nominate 2")
	})
	t.Run("another relay that is being dialed does not make it wait when no direct dial is pending", func(t *testing.T) {
		newPlay(t, requester).begin(1, 2).is(died, 1).is(gone, 0).wantOut("dial 1", "dial 2", "dial 3").proven(2, ms).wantOut("nominate 2")
	})
	t.Run("a relay that dies while it waits gives way to the next, which waits for itself", func(t *testing.T) {
		newPlay(t, requester).begin(1, 2).proven(2, ms).wait(90*ms).is(died, 2).proven(3, ms).wantOut("dial 1", "dial 2", "dial 3").
			wait(99 * ms).wantOut().wait(ms).wantOut("nominate 3")
	})
}

func TestDecideAnswers(t *testing.T) {
	t.Run("one nomination", func(t *testing.T) {
		newPlay(t, responder).begin(2, 0).take(event{kind: arrived, id: 20, direct: true}).wantOut("dial 1", "dial 2", "proceed 20").
			proven(1, 0).is(proven, 20).is(nomination, 20).wantOut("confirm 20", "reset 2"). // 1 stays: it may be nominated too late
			is(nomination, 1).wantOut("refuse 1")
	})
	t.Run("and lets go of what the requester does not close", func(t *testing.T) {
		newPlay(t, responder).begin(1, 0).take(event{kind: arrived, id: 20, direct: true}).proven(1, 0).is(proven, 20).is(nomination, 20).
			wantOut("dial 1", "proceed 20", "confirm 20").wait(attemptTime).wantOut("reset 1")
	})
}

func TestDecideEnds(t *testing.T) {
	t.Run("when both have given up", func(t *testing.T) {
		newPlay(t, requester).begin(1, 0).is(gone, 0).wantOut("dial 1").is(died, 1).wantOut("say gone", "fail")
	})
	t.Run("at once when neither side offered anything", func(t *testing.T) {
		newPlay(t, requester).take(event{kind: begun, nothing: true, peerIdle: true}).wantOut("fail")
	})
	t.Run("not in silence when the peer offered what must not be dialed", func(t *testing.T) {
		newPlay(t, responder).take(event{kind: begun}).wantOut("say gone").is(gone, 0).wantOut("fail")
	})
	t.Run("not while a connection is alive that the peer made before it gave up", func(t *testing.T) {
		newPlay(t, requester).begin(1, 0).take(event{kind: arrived, id: 20, direct: true}).wantOut("dial 1", "proceed 20").
			is(gone, 0).is(died, 1).wantOut().is(proven, 20).wantOut("nominate 20")
	})
	t.Run("and our own word waits for such a connection, too", func(t *testing.T) {
		newPlay(t, requester).begin(1, 0).take(event{kind: arrived, id: 20, direct: true}).is(died, 1).wantOut("dial 1", "proceed 20").
			is(proven, 20).wantOut("nominate 20").is(died, 20).wantOut("say gone").is(gone, 0).wantOut("fail")
	})
	t.Run("after 30 s", func(t *testing.T) {
		newPlay(t, requester).begin(1, 0).wait(attemptTime-1).wantOut("dial 1").wait(1).wantOut("reset 1", "say gone", "fail")
	})
	t.Run("after 30 s with a nomination that is not answered", func(t *testing.T) {
		newPlay(t, requester).begin(1, 0).wait(attemptTime-1).proven(1, 0).wantOut("dial 1", "nominate 1").
			wait(1).wantOut("reset 1", "say gone", "fail")
	})
	t.Run("when the caller has enough, before the result and after", func(t *testing.T) {
		newPlay(t, requester).is(cancelled, 0).wantOut("fail")
		newPlay(t, requester).begin(1, 0).is(cancelled, 0).wantOut("dial 1", "reset 1", "say gone", "fail")
	})
	t.Run("and nothing that comes later changes it", func(t *testing.T) {
		p := newPlay(t, requester).begin(1, 0).is(cancelled, 0)
		p.out = nil
		p.is(connected, 1).is(proven, 1).is(died, 1).is(gone, 0).is(cancelled, 0).is(tick, 0).wantOut().
			take(event{kind: arrived, id: 20, direct: true}).wantOut("reset 20")
	})
}

// TestDecideKeepsDials: what this end dialed does not count against the limit of
// what others may open.
func TestDecideKeepsDials(t *testing.T) {
	p := newPlay(t, responder).begin(maxCandidates, 0)
	for id := 1; id <= maxCandidates; id++ {
		p.is(connected, id)
	}
	p.out = nil
	for id := 20; id < 20+maxUnfinished; id++ {
		p.take(event{kind: arrived, id: id, direct: true})
	}
	if out := strings.Join(p.out, ", "); strings.Contains(out, "reset") || strings.Count(out, "proceed") != maxUnfinished {
		t.Errorf("%d accepted beside %d dialed: %s", maxUnfinished, maxCandidates, out)
	}
}

// TestDecideDropsOldest: a stranger who has the key, and a peer who proves
// himself again and again, cost a bounded number of connections, and a bounded
// list; and the stranger does not push the peer out.
func TestDecideDropsOldest(t *testing.T) {
	tests := []struct {
		name   string
		proven func(id int) bool
		first  int // to be dropped
	}{
		{"nobody is proven", func(int) bool { return false }, 20},
		{"the first is proven", func(id int) bool { return id == 20 }, 21},
		{"all are proven", func(int) bool { return true }, 20},
	}
	for _, tt := range tests {
		p := newPlay(t, responder).begin(0, 0)
		for id := 20; id < 20+1000; id++ {
			p.take(event{kind: arrived, id: id, direct: true})
			if tt.proven(id) {
				p.is(proven, id)
			}
		}
		resets := 0
		for _, o := range p.out {
			if strings.HasPrefix(o, "reset") {
				if want := fmt.Sprint("reset ", tt.first+resets); o != want {
					t.Fatalf("%s: %s, want %s", tt.name, o, want)
				}
				resets++
			}
		}
		if resets != 1000-maxUnfinished || len(p.s.connections) > maxUnfinished+1 {
			t.Errorf("%s: %d were dropped, %d are listed", tt.name, resets, len(p.s.connections))
		}
	}
}

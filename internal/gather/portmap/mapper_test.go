package portmap_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
)

// TestOff: the zero value of the switch sends nothing, and does not even look
// for a gateway. Nor does port zero, by which gateways understand all ports.
func TestOff(t *testing.T) {
	w := &world{}
	for _, c := range []portmap.Config{{Port: port}, {Methods: portmap.All}} {
		c.Gateways = func() ([]portmap.Gateway, error) {
			t.Error("the gateway was looked up")
			return []portmap.Gateway{home4, home6}, nil
		}
		c.SetDial(w.dial)
		m := portmap.New(c)
		m.Refresh()
		report, _ := m.Report()
		m.Close()
		m.Close()
		if len(report.Results) != 0 || report.Awaited(0) || w.dialed != 0 {
			t.Errorf("got %+v and %d dials, want nothing", report, w.dialed)
		}
	}
}

// TestPCP makes a mapping in no time, renews it at half of its life, and removes
// it; the methods that come after it are not asked.
func TestPCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake("198.51.100.7")
		g.pcp, g.natpmp = true, true
		w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
		m := w.start(t, portmap.All)

		report, took := w.until(t, m, "everything is settled", settled)
		if took != 0 {
			t.Errorf("settled after %v, want at once", took)
		}
		pcp := of(report, portmap.PCP)
		want := netip.MustParseAddrPort("198.51.100.7:40001")
		if pcp.State != portmap.Works || pcp.External != want || !pcp.Expires.Equal(w.began.Add(portmap.Lifetime)) || pcp.DoubleNAT() {
			t.Errorf("PCP: %+v, want %v until %v", pcp, want, w.began.Add(portmap.Lifetime))
		}
		if got := report.External(); !slices.Equal(got, []netip.AddrPort{want}) {
			t.Errorf("external addresses %v", got)
		}
		for _, method := range []portmap.Methods{portmap.NATPMP, portmap.UPnP} {
			if got := of(report, method).State; got != portmap.Unneeded {
				t.Errorf("%v is %v, want unneeded", method, got)
			}
		}
		if got := of(report, portmap.Pinhole); got.State != portmap.Failed || got.Err == nil {
			t.Errorf("without IPv6: %+v", got)
		}

		report, _ = w.until(t, m, "the third renewal", func(r portmap.Report) bool { return of(r, portmap.PCP).Renewed == 3 })
		half := portmap.Lifetime / 2
		if got, want := g.times("PCP"), []time.Duration{0, half, 2 * half, 3 * half}; !slices.Equal(got, want) {
			t.Errorf("asked at %v, want %v", got, want)
		}
		if report.Restarts != 0 || len(g.requests("NAT-PMP")) != 0 {
			t.Errorf("%d restarts, NAT-PMP asked at %v: want neither", report.Restarts, g.times("NAT-PMP"))
		}

		before := time.Now()
		m.Close()
		if took := time.Since(before); took != 0 || g.mapped() != 0 {
			t.Errorf("closed after %v with %d mappings left, want none at once", took, g.mapped())
		}
		all := g.requests("PCP")
		for _, a := range all {
			if a.nonce != all[0].nonce || a.nonce == [12]byte{} || a.internal != port {
				t.Errorf("request %+v: not with the nonce of the first, %x", a, all[0].nonce)
			}
		}
	})
}

// TestFallsBack: a gateway that knows only NAT-PMP says so, and is asked by that
// in the same instant; one that drops what it does not know costs 250 ms.
func TestFallsBack(t *testing.T) {
	for what, test := range map[string]struct {
		prepare func(*fakeGateway)
		took    time.Duration
	}{
		"it answers with its version": {func(*fakeGateway) {}, 0},
		"it drops PCP": {func(g *fakeGateway) {
			g.garble = func(answer []byte) [][]byte {
				if len(answer) == 8 {
					return nil
				}
				return [][]byte{answer}
			}
		}, 250 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newFake("198.51.100.7")
			g.natpmp = true
			test.prepare(g)
			w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
			m := w.start(t, portmap.PCP|portmap.NATPMP|portmap.UPnP)
			report, took := w.until(t, m, "NAT-PMP works", state(portmap.NATPMP, portmap.Works))
			if got := of(report, portmap.NATPMP); took != test.took || got.External.String() != "198.51.100.7:40001" {
				t.Errorf("%s: %+v after %v, want after %v", what, got, took, test.took)
			}
			report, _ = w.until(t, m, "PCP has failed", state(portmap.PCP, portmap.Failed))
			if err := of(report, portmap.PCP).Err; err == nil {
				t.Errorf("%s: PCP failed without a reason", what)
			}
			w.until(t, m, "renewed", func(r portmap.Report) bool { return of(r, portmap.NATPMP).Renewed == 1 })
			m.Close()
			if requests := g.requests("NAT-PMP"); len(requests) != 3 || requests[2].seconds != 0 || requests[2].suggest.Port() != 0 || g.mapped() != 0 {
				t.Errorf("%s: asked %+v, want a mapping, a renewal, and a removal", what, requests)
			}
		})
	}
}

// TestSilence: nobody answers. Each method fails within its time, is asked again
// after a minute, then less and less often, and Close has nothing to wait for.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake("198.51.100.7")
		w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
		m := w.start(t, portmap.PCP|portmap.NATPMP)
		for _, step := range []struct {
			method portmap.Methods
			at     time.Duration
		}{{portmap.PCP, time.Second}, {portmap.NATPMP, 1250 * time.Millisecond}} {
			report, took := w.until(t, m, "failed", state(step.method, portmap.Failed))
			if took != step.at || of(report, step.method).Err == nil {
				t.Errorf("%v: %+v after %v, want after %v", step.method, of(report, step.method), took, step.at)
			}
		}
		ms := time.Millisecond
		if got, want := g.times("PCP"), []time.Duration{0, 250 * ms, 750 * ms}; !slices.Equal(got, want) {
			t.Errorf("PCP was asked at %v, want %v", got, want)
		}
		if got, want := g.times("NAT-PMP"), []time.Duration{250 * ms, 500 * ms, 1000 * ms}; !slices.Equal(got, want) {
			t.Errorf("NAT-PMP was asked at %v, want %v", got, want)
		}
		hours := time.NewTimer(10 * time.Hour)
		<-hours.C
		times := g.times("PCP")
		var rounds []time.Duration
		for i := 3; i < len(times); i += 3 {
			rounds = append(rounds, (times[i] - times[i-3] - time.Second).Round(time.Second))
		}
		want := []time.Duration{portmap.MinRetry, 2 * portmap.MinRetry, 4 * portmap.MinRetry, 8 * portmap.MinRetry, 16 * portmap.MinRetry, portmap.MaxRetry, portmap.MaxRetry}
		if len(rounds) < len(want) || !slices.Equal(rounds[:len(want)], want) {
			t.Errorf("waited %v between rounds, want %v", rounds, want)
		}
		before := time.Now()
		m.Close()
		if took := time.Since(before); took != 0 {
			t.Errorf("closed after %v, want at once", took)
		}
	})
}

// TestRefused: the gateway says no. It is asked again when it wished, and by
// another method meanwhile.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake("198.51.100.7")
		g.pcp, g.natpmp, g.result, g.retry = true, true, 2, 300
		w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
		m := w.start(t, portmap.PCP|portmap.NATPMP)
		report, took := w.until(t, m, "settled", settled)
		if err := of(report, portmap.PCP).Err; took != 0 || err == nil || err.Error() != "the gateway says NOT_AUTHORIZED (2)" {
			t.Errorf("PCP failed after %v: %v", took, err)
		}
		if got := of(report, portmap.NATPMP).State; got != portmap.Works {
			t.Errorf("NAT-PMP is %v", got)
		}
		g.set(func() { g.result = 0 })
		_, took = w.until(t, m, "PCP works", state(portmap.PCP, portmap.Works))
		if took != 300*time.Second {
			t.Errorf("PCP works after %v, want after the 300 s that the gateway wished", took)
		}
	})
}

// TestNonsense: answers that are not to our question are passed over, whatever
// they say; what cannot be an external address is not one.
func TestNonsense(t *testing.T) {
	change := func(at int, to byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = to; return b }
	}
	for what, wrong := range map[string]func(answer []byte) []byte{
		"another nonce":             change(24, 0xee),
		"another internal port":     change(41, 0xee),
		"another protocol":          change(36, 17),
		"a request":                 change(1, 1),
		"another operation":         change(1, 0x82),
		"short":                     func(b []byte) []byte { return b[:56] },
		"odd length":                func(b []byte) []byte { return append(b, 0) },
		"too long":                  func(b []byte) []byte { return append(b, make([]byte, 1100)...) },
		"empty":                     func(b []byte) []byte { return b[:0] },
		"a refusal, another nonce":  func(b []byte) []byte { b[3], b[24] = 2, 0xee; return b },
		"one byte":                  func(b []byte) []byte { return b[:1] },
		"an announcement, unasked ": func(b []byte) []byte { b[1] = 0x80; return b[:24] },
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newFake("198.51.100.7")
			g.pcp = true
			honest := false
			g.garble = func(answer []byte) [][]byte {
				bad := wrong(slices.Clone(answer))
				if honest {
					return [][]byte{bad, answer}
				}
				return [][]byte{bad}
			}
			w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
			m := w.start(t, portmap.PCP)
			report, took := w.until(t, m, "settled", settled)
			if got := of(report, portmap.PCP); got.State != portmap.Failed || took != time.Second {
				t.Errorf("%s: %+v after %v, want a failure after a second", what, got, took)
			}
			g.set(func() { honest = true })
			report, took = w.until(t, m, "works", state(portmap.PCP, portmap.Works))
			if got := of(report, portmap.PCP); got.External.String() != "198.51.100.7:40001" || took != time.Second+portmap.MinRetry {
				t.Errorf("%s, then the answer: %+v after %v", what, got, took)
			}
		})
	}
	for _, external := range []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "255.255.255.255"} {
		synctest.Test(t, func(t *testing.T) {
			g := newFake(external)
			g.pcp, g.natpmp = true, true
			w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
			m := w.start(t, portmap.PCP|portmap.NATPMP)
			report, _ := w.until(t, m, "settled", settled)
			for _, r := range report.Results {
				if r.State != portmap.Failed || r.Err == nil {
					t.Errorf("mapped to %s: %+v, want a failure", external, r)
				}
			}
		})
	}
}

// TestDoubleNAT: an external address that is not on the Internet is reported as
// what it is.
func TestDoubleNAT(t *testing.T) {
	for _, external := range []string{"10.1.2.3", "100.64.0.9", "192.168.178.2"} {
		synctest.Test(t, func(t *testing.T) {
			g := newFake(external)
			g.pcp = true
			w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
			m := w.start(t, portmap.PCP)
			report, _ := w.until(t, m, "settled", settled)
			if got := of(report, portmap.PCP); got.State != portmap.Works || !got.DoubleNAT() || len(report.External()) != 1 {
				t.Errorf("%s: %+v, want a mapping behind a further NAT", external, got)
			}
		})
	}
}

// TestRestart: at a renewal the gateway's clock shows that it has forgotten its
// mappings. What it maps by another method is asked for in the same instant.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		four, six := newFake("198.51.100.7"), newFake("2001:db8::5")
		four.pcp, six.pcp, six.granted = true, true, 600 // so that IPv6 is renewed first
		w := &world{
			gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: four, home6.PCP: six},
			route:    []portmap.Gateway{home4, home6},
		}
		m := w.start(t, portmap.PCP|portmap.Pinhole)
		report, _ := w.until(t, m, "settled", settled)
		if got := report.External(); len(got) != 2 || got[1].String() != "[2001:db8::5]:40001" {
			t.Errorf("external addresses %v", got)
		}
		minute := time.NewTimer(time.Minute)
		<-minute.C
		four.restart()
		six.restart()
		report, took := w.until(t, m, "both again", func(portmap.Report) bool { return four.mapped()+six.mapped() == 2 })
		if took != 5*time.Minute || report.Restarts != 1 {
			t.Errorf("mapped again after %v and %d restarts, want after 5m0s and 1", took, report.Restarts)
		}
		if want := []time.Duration{0, 5 * time.Minute}; !slices.Equal(four.times("PCP"), want) {
			t.Errorf("IPv4 was asked at %v, want %v", four.times("PCP"), want)
		}
	})
}

// TestRenewalFails: a gateway that has become silent keeps its mapping until its
// end; then the next method has its turn.
func TestRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake("198.51.100.7")
		g.pcp = true
		w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
		m := w.start(t, portmap.PCP|portmap.NATPMP)
		w.until(t, m, "settled", settled)
		g.set(func() { g.pcp, g.natpmp = false, false })
		report, took := w.until(t, m, "a renewal fails", func(r portmap.Report) bool { return of(r, portmap.PCP).Err != nil })
		if got := of(report, portmap.PCP).State; got != portmap.Works || took != portmap.Lifetime/2+time.Second {
			t.Errorf("PCP is %v after %v", got, took)
		}
		g.set(func() { g.natpmp = true }) // answers PCP with its version, which is a refusal
		report, took = w.until(t, m, "NAT-PMP works", state(portmap.NATPMP, portmap.Works))
		if took > portmap.Lifetime || of(report, portmap.PCP).State != portmap.Failed {
			t.Errorf("NAT-PMP took over after %v: %+v", took, report)
		}
	})
}

// TestShortLife: a gateway that grants seconds is not asked all the time.
func TestShortLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake("198.51.100.7")
		g.pcp, g.granted = true, 2
		w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
		m := w.start(t, portmap.PCP)
		w.until(t, m, "renewed", func(r portmap.Report) bool { return of(r, portmap.PCP).Renewed == 1 })
		if want := []time.Duration{0, portmap.MinRenewal}; !slices.Equal(g.times("PCP"), want) {
			t.Errorf("asked at %v, want %v", g.times("PCP"), want)
		}
	})
}

// TestMove: another network has its own mappings, those of the one that was left
// are removed if that can still be done, and whoever comes back asks for what
// he had.
func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home, cafe := newFake("198.51.100.7"), newFake("203.0.113.9")
		home.pcp, cafe.pcp = true, true
		home.garble = func(answer []byte) [][]byte { answer[42], answer[43] = 0xc3, 0x51; return [][]byte{answer} } // its port 50001
		w := &world{
			gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: home, cafe4.PCP: cafe},
			route:    []portmap.Gateway{home4},
		}
		m := w.start(t, portmap.PCP)
		at := func(external string) func(portmap.Report) bool {
			return func(r portmap.Report) bool { return of(r, portmap.PCP).External.String() == external }
		}
		w.until(t, m, "mapped at home", at("198.51.100.7:50001"))
		m.Refresh() // nothing has changed, as far as the route says
		w.until(t, m, "asked again", func(r portmap.Report) bool { return of(r, portmap.PCP).Renewed == 1 })
		w.move(cafe4)
		m.Refresh()
		w.until(t, m, "mapped at the café", at("203.0.113.9:40001"))
		if home.mapped() != 0 {
			t.Error("a mapping stayed at home")
		}
		w.move()
		m.Refresh()
		report, _ := w.until(t, m, "offline", state(portmap.PCP, portmap.Failed))
		if got := of(report, portmap.PCP); got.Err == nil || got.Gateway.IsValid() {
			t.Errorf("without a network: %+v", got)
		}
		w.move(home4)
		m.Refresh()
		w.until(t, m, "mapped at home again", at("198.51.100.7:50001"))
		requests := home.requests("PCP")
		last := requests[len(requests)-1]
		if last.suggest.String() != "198.51.100.7:50001" || last.nonce != requests[0].nonce {
			t.Errorf("back at home asked for %+v, want what there was", last)
		}
	})
}

// TestCloseWhileSilent: a gateway that has gone delays Close by a second at most.
func TestCloseWhileSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newFake("198.51.100.7")
		g.pcp = true
		w := &world{gateways: map[netip.AddrPort]*fakeGateway{home4.PCP: g}, route: []portmap.Gateway{home4}}
		m := w.start(t, portmap.PCP)
		w.until(t, m, "settled", settled)
		g.set(func() { g.silent = true })
		before := time.Now()
		m.Close()
		if took := time.Since(before); took != time.Second {
			t.Errorf("closed after %v, want after a second", took)
		}
	})
}

package portmap_test

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
)

// serve has the gateway answer at a UDP socket of loopback.
func (g *fakeGateway) serve(t *testing.T, before func(from netip.AddrPort)) portmap.Gateway {
	t.Helper()
	local := netip.MustParseAddr("127.0.0.1")
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	if err != nil {
		t.Fatal(err)
	}
	began, done := time.Now(), make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(packet)
			if err != nil {
				return
			}
			if before != nil {
				before(from)
			}
			for _, a := range g.answer(packet[:n], began) {
				_, _ = conn.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return portmap.Gateway{Addr: local, Source: local, PCP: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// TestWrongSource: an answer from anybody but the gateway is not one, though it
// has everything else right.
func TestWrongSource(t *testing.T) {
	forger, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer forger.Close()
	g := newFake("198.51.100.7")
	g.natpmp = true
	var forged atomic.Int32
	gateway := g.serve(t, func(from netip.AddrPort) {
		for _, answer := range []string{"00 80 0000 00000000 06060606", "00 82 0000 00000000 9c41 9c41 000004b0"} {
			if _, err := forger.WriteToUDPAddrPort(unhex(t, answer), from); err == nil {
				forged.Add(1)
			}
		}
	})
	m := portmap.New(portmap.Config{Methods: portmap.NATPMP, Port: port, Gateways: func() ([]portmap.Gateway, error) {
		return []portmap.Gateway{gateway}, nil
	}})
	natpmp := of(await(t, m, "settled", settled), portmap.NATPMP)
	m.Close()
	if natpmp.External.String() != "198.51.100.7:40001" || forged.Load() < 2 {
		t.Errorf("got %+v after %d forged answers", natpmp, forged.Load())
	}
}

// TestNobodyListens: a gateway without such a service says so at once.
func TestNobodyListens(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	closed := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	conn.Close()
	began := time.Now()
	m := portmap.New(portmap.Config{Methods: portmap.PCP | portmap.NATPMP, Port: port, Gateways: func() ([]portmap.Gateway, error) {
		return []portmap.Gateway{{Addr: closed.Addr(), Source: closed.Addr(), PCP: closed}}, nil
	}})
	defer m.Close()
	report := await(t, m, "settled", settled)
	for _, r := range report.Results {
		if r.State != portmap.Failed || r.Err == nil {
			t.Errorf("got %+v", r)
		}
	}
	t.Logf("after %v: %v", time.Since(began), report.Results[0].Err)
}

// strangers is a socket to which packets that end with 0xee come from somebody
// else.
type strangers struct{ net.PacketConn }

func (s strangers) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := s.PacketConn.ReadFrom(b)
	if n > 0 && b[n-1] == 0xee {
		from = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 66), Port: 5351}
	}
	return n, from, err
}

// TestAnnouncement: the gateway says that it has restarted, or that its address
// is another; the mapping is made again long before its renewal. What strangers
// say changes nothing.
func TestAnnouncement(t *testing.T) {
	g := newFake("198.51.100.7")
	g.pcp = true
	g.set(func() { g.booted = time.Now().Add(-time.Hour) })
	gateway := g.serve(t, nil)
	gateway.Announce = netip.MustParseAddrPort("127.0.0.1:1") // anything valid: see SetListen
	announced, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	c := portmap.Config{Methods: portmap.PCP, Port: port, Gateways: func() ([]portmap.Gateway, error) {
		return []portmap.Gateway{gateway}, nil
	}}
	c.SetListen(func(g portmap.Gateway) (net.PacketConn, error) {
		if g != gateway {
			return nil, errors.New("another gateway")
		}
		return strangers{announced}, nil
	}, time.Millisecond)
	m := portmap.New(c)
	defer m.Close()
	await(t, m, "settled", settled)

	say := func(packet string) {
		t.Helper()
		conn, err := net.DialUDP("udp4", nil, announced.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(unhex(t, packet)); err != nil {
			t.Fatal(err)
		}
	}
	say("02 80 00 00 00000000 00000000 0000000000000000000000ee") // a stranger: see there
	say("00")                                                     // nonsense
	say("00 82 0000 00000000 9c41 9c41 000004b0")                 // an answer, but no announcement
	g.restart()
	say("02 80 00 00 00000000 00000000 000000000000000000000000")
	await(t, m, "mapped again", func(r portmap.Report) bool { return r.Restarts == 1 && of(r, portmap.PCP).Renewed == 1 })
	if got := len(g.requests("PCP")); got != 2 || g.mapped() != 1 {
		t.Errorf("%d requests and %d mappings, want 2 and 1", got, g.mapped())
	}
	g.set(func() { g.external = netip.MustParseAddr("203.0.113.9") })
	say("00 80 0000 00000000 cb007109")
	report := await(t, m, "another address", func(r portmap.Report) bool {
		return of(r, portmap.PCP).External.Addr() == netip.MustParseAddr("203.0.113.9")
	})
	if report.Restarts != 1 {
		t.Errorf("%d restarts, want 1", report.Restarts)
	}
}

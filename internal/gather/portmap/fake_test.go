package portmap_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
)

// A fakeGateway answers PCP and NAT-PMP as a gateway does, from memory.
type fakeGateway struct {
	mu       sync.Mutex
	external netip.Addr
	pcp      bool
	natpmp   bool
	silent   bool
	result   byte             // of PCP, instead of a mapping
	retry    uint32           // seconds, with result
	granted  uint32           // seconds; zero: what was asked for
	booted   time.Time        // when its clock began
	mappings map[uint16]asked // by internal port
	log      []asked
	garble   func(answer []byte) [][]byte // what is sent instead
}

// asked is one request.
type asked struct {
	at       time.Duration // since the test began
	how      string        // "PCP", "NAT-PMP", "address"
	seconds  uint32
	nonce    [12]byte
	internal uint16
	suggest  netip.AddrPort
}

func newFake(external string) *fakeGateway {
	return &fakeGateway{external: netip.MustParseAddr(external), booted: time.Now(), mappings: map[uint16]asked{}}
}

func (g *fakeGateway) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// restart forgets everything.
func (g *fakeGateway) restart() {
	g.set(func() { g.booted = time.Now(); clear(g.mappings) })
}

func (g *fakeGateway) mapped() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.mappings)
}

// requests returns what was asked, without what is not of that kind.
func (g *fakeGateway) requests(how string) (found []asked) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.log {
		if a.how == how {
			found = append(found, a)
		}
	}
	return found
}

func (g *fakeGateway) times(how string) (found []time.Duration) {
	for _, a := range g.requests(how) {
		found = append(found, a.at)
	}
	return found
}

func (g *fakeGateway) epoch() uint32 { return uint32(time.Since(g.booted) / time.Second) }

// answer returns what the gateway sends back.
func (g *fakeGateway) answer(request []byte, began time.Time) [][]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := time.Since(began)
	var answer []byte
	switch {
	case request[0] == 2 && len(request) == 60:
		a := asked{
			at: at, how: "PCP", seconds: binary.BigEndian.Uint32(request[4:]), nonce: [12]byte(request[24:36]),
			internal: binary.BigEndian.Uint16(request[40:]),
			suggest:  netip.AddrPortFrom(netip.AddrFrom16([16]byte(request[44:60])).Unmap(), binary.BigEndian.Uint16(request[42:])),
		}
		g.log = append(g.log, a)
		if g.silent || !g.pcp && !g.natpmp {
			return nil
		}
		if !g.pcp {
			answer = binary.BigEndian.AppendUint32([]byte{0, 128, 0, 1}, g.epoch()) // RFC 6886, 3.5
			break
		}
		answer = slices.Clone(request)
		clear(answer[8:24])
		answer[1], answer[3] = 0x81, g.result
		binary.BigEndian.PutUint32(answer[8:], g.epoch())
		if g.result != 0 {
			binary.BigEndian.PutUint32(answer[4:], g.retry)
			break
		}
		g.grant(a, answer[4:])
		external := g.external.As16()
		copy(answer[44:], external[:])
	case request[0] == 0 && len(request) == 12:
		a := asked{
			at: at, how: "NAT-PMP", seconds: binary.BigEndian.Uint32(request[8:]), internal: binary.BigEndian.Uint16(request[4:]),
			suggest: netip.AddrPortFrom(netip.IPv4Unspecified(), binary.BigEndian.Uint16(request[6:])),
		}
		g.log = append(g.log, a)
		if g.silent || !g.natpmp {
			return nil
		}
		answer = binary.BigEndian.AppendUint32([]byte{0, 130, 0, 0}, g.epoch())
		answer = append(answer, request[4:]...)
		g.grant(a, answer[12:])
	case request[0] == 0 && len(request) == 2:
		g.log = append(g.log, asked{at: at, how: "address"})
		if g.silent || !g.natpmp {
			return nil
		}
		answer = binary.BigEndian.AppendUint32([]byte{0, 128, 0, 0}, g.epoch())
		answer = append(answer, g.external.AsSlice()...)
	default:
		panic(fmt.Sprintf("a request of another kind: %x", request))
	}
	if g.garble != nil {
		return g.garble(answer)
	}
	return [][]byte{answer}
}

// grant notes or removes a mapping and writes its life.
func (g *fakeGateway) grant(a asked, seconds []byte) {
	if a.seconds == 0 {
		delete(g.mappings, a.internal)
		return
	}
	g.mappings[a.internal] = a
	if g.granted != 0 {
		binary.BigEndian.PutUint32(seconds, g.granted)
	}
}

// A world is the networks of a test in memory: the gateways by their addresses.
// What is not among them is silent, and what is nil refuses.
type world struct {
	began    time.Time
	gateways map[netip.AddrPort]*fakeGateway

	mu     sync.Mutex
	route  []portmap.Gateway
	dialed int
}

// dial connects to a gateway by packets that keep their boundaries.
func (w *world) dial(_ context.Context, network string, _ netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dialed++
	w.mu.Unlock()
	if network != "udp" {
		return nil, errors.New("there is no such network here")
	}
	near, far := net.Pipe()
	answers := make(chan []byte, 100)
	go func() {
		defer close(answers)
		packet := make([]byte, 2000)
		for {
			n, err := far.Read(packet)
			if err != nil {
				return
			}
			if g := w.gateways[remote]; g != nil {
				for _, a := range g.answer(packet[:n], w.began) {
					answers <- a
				}
			}
		}
	}()
	go func() {
		for a := range answers {
			_, _ = far.Write(a)
		}
	}()
	return near, nil
}

func (w *world) routes() ([]portmap.Gateway, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.route) == 0 {
		return nil, errors.New("there is no default gateway")
	}
	return slices.Clone(w.route), nil
}

// move puts the machine into another network.
func (w *world) move(to ...portmap.Gateway) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.route = to
}

// The gateways of the tests: a home's, by both families, and a café's. UPnP
// devices are searched nowhere, so that asking for them fails at once.
var (
	home4 = testGateway("192.168.1.1", "192.168.1.5")
	home6 = testGateway("fe80::1%eth0", "2001:db8::5")
	cafe4 = testGateway("10.0.0.1", "10.0.0.77")
)

func testGateway(gateway, source string) portmap.Gateway {
	addr := netip.MustParseAddr(gateway)
	return portmap.Gateway{Addr: addr, Source: netip.MustParseAddr(source), PCP: netip.AddrPortFrom(addr, 5351)}
}

const port = 40001

// start begins to map the port in the world, and ends it with the test.
func (w *world) start(t *testing.T, methods portmap.Methods) *portmap.Mapper {
	t.Helper()
	w.began = time.Now()
	c := portmap.Config{Methods: methods, Port: port, Gateways: w.routes}
	c.SetDial(w.dial)
	m := portmap.New(c)
	t.Cleanup(m.Close)
	return m
}

// until waits for a report with a property, and returns it with the time that
// the world has existed.
func (w *world) until(t *testing.T, m *portmap.Mapper, what string, property func(portmap.Report) bool) (portmap.Report, time.Duration) {
	t.Helper()
	return awaitFor(t, 2*time.Hour, m, what, property), time.Since(w.began)
}

// await is the same where time is real.
func await(t *testing.T, m *portmap.Mapper, what string, property func(portmap.Report) bool) portmap.Report {
	t.Helper()
	return awaitFor(t, 20*time.Second, m, what, property)
}

func awaitFor(t *testing.T, most time.Duration, m *portmap.Mapper, what string, property func(portmap.Report) bool) portmap.Report {
	t.Helper()
	limit := time.After(most)
	for {
		report, changed := m.Report()
		if property(report) {
			return report
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("%s: not within %v; now %+v", what, most, report)
		}
	}
}

// state is the property of a report that a method has come to a state.
func state(method portmap.Methods, s portmap.State) func(portmap.Report) bool {
	return func(r portmap.Report) bool { return of(r, method).State == s }
}

// of returns the result of a method.
func of(r portmap.Report, method portmap.Methods) portmap.Result {
	for _, one := range r.Results {
		if one.Method == method {
			return one
		}
	}
	return portmap.Result{}
}

// settled is the property that nothing is pending.
func settled(r portmap.Report) bool { return r.Pending() == 0 }

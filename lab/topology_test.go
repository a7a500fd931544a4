//go:build linux

package lab_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// What may become of a connection attempt.
const (
	accepted = "accepted"
	refused  = "refused"
	silent   = "silent"
)

// silence is how long an attempt goes without an answer before it is called
// silent, where nothing adds a delay.
const silence = 400 * time.Millisecond

// attempt dials and says what became of it.
func attempt(n *lab.Host, from, to netip.AddrPort) string {
	c, err := n.Dial(from, to, silence)
	switch {
	case err == nil:
		c.Close()
		return accepted
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.EHOSTUNREACH): // nobody answered ARP
		return silent
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return silent
	}
	return err.Error()
}

// reflect answers every connection to the addresses with the one it came from,
// and keeps it open, until the test ends.
func reflect(t *testing.T, h *lab.Host, at ...netip.AddrPort) {
	t.Helper()
	for _, addr := range at {
		serve(t, h, addr, func(c net.Conn) { fmt.Fprintf(c, "%s\n", c.RemoteAddr()) })
	}
}

// serve listens at addr until the test ends, and calls handle with what it
// accepts, which is closed at the test's end. The returned function ends it earlier.
func serve(t *testing.T, h *lab.Host, addr netip.AddrPort, handle func(net.Conn)) (stop func()) {
	t.Helper()
	l, err := h.Listen(addr)
	if err != nil {
		t.Fatalf("%s: %v", h.Name, err)
	}
	var ended sync.WaitGroup
	// Owned by the test; ends with the listener; the cleanup waits for it.
	ended.Go(func() {
		var conns []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			conns = append(conns, c)
			handle(c)
		}
		for _, c := range conns {
			c.Close()
		}
	})
	stop = func() {
		l.Close()
		ended.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// observe connects from the host's port to a reflector and returns what that
// saw. The connection stays open, and so does what it opened on its way, until
// the test ends.
func observe(t *testing.T, h *lab.Host, from, to netip.AddrPort) (netip.AddrPort, error) {
	t.Helper()
	c, err := h.Dial(from, to, time.Second)
	if err != nil {
		return netip.AddrPort{}, err
	}
	t.Cleanup(func() { _ = c.SetLinger(0); c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Second))
	var line [64]byte
	n, err := c.Read(line[:])
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(strings.TrimSpace(string(line[:n])))
}

// A behaviour is what a network does to one family, in words of RFC 5382.
type behaviour struct {
	mapping   string // none, preserved, random, sequence; empty: that family is not spoken
	stranger  string // what becomes of an attempt, from an address never spoken to, at the mapping
	samePlace string // the same from an address spoken to, from another port
}

// placeBehaviours is what each place is made for: over IPv4 and over IPv6.
var placeBehaviours = map[string][2]behaviour{
	"open":        {{"none", accepted, accepted}},
	"home":        {{"preserved", silent, silent}},
	"home-rst":    {{"preserved", refused, refused}},
	"cone":        {{"preserved", accepted, accepted}},
	"symmetric":   {{"random", silent, silent}},
	"sequential":  {{"sequence", silent, silent}},
	"wall":        {{"none", silent, silent}},
	"wall-rst":    {{"none", refused, refused}},
	"upnp":        {{"preserved", silent, silent}},
	"carrier":     {{"preserved", silent, silent}},
	"forward":     {{"preserved", silent, silent}},
	"only-443":    {{"preserved", silent, silent}},
	"enclosed":    {{"preserved", silent, silent}},
	"v6":          {{}, {"none", accepted, accepted}},
	"v6-wall":     {{}, {"none", silent, silent}},
	"v6-wall-rst": {{}, {"none", refused, refused}},
	"dual":        {{"preserved", silent, silent}, {"none", accepted, accepted}},
	"dual-wall":   {{"preserved", silent, silent}, {"none", silent, silent}},
}

// TestLabTopologyPlaces proves of every place what it is named for, with
// nothing but TCP.
func TestLabTopologyPlaces(t *testing.T) {
	w := lab.NewWorld(0)
	stranger := w.Host("stranger", lab.Dual)
	hosts := make(map[string]*lab.Host)
	for _, p := range lab.Places {
		hosts[p.Name] = p.Make(w, p.Name)
	}
	w.Start(t)
	reflect(t, w.Relay, at(w.Relay.V4, 443), at(w.Relay.More[0], 443), at(w.Relay.V6, 443), at(w.Relay.More[1], 443))
	reflect(t, w.Relay, at(w.Relay.V4, 5280))
	reflect(t, stranger, at(stranger.V4, 443), at(stranger.V4, 5280))

	checked := 0
	t.Run("all", func(t *testing.T) {
		for _, p := range lab.Places {
			want, ok := placeBehaviours[p.Name]
			if !ok {
				t.Errorf("nothing is said of %q", p.Name)
			}
			checked++
			t.Run(p.Name, func(t *testing.T) {
				t.Parallel()
				h := hosts[p.Name]
				relays := [2][2]netip.AddrPort{{at(w.Relay.V4, 443), at(w.Relay.More[0], 443)}, {at(w.Relay.V6, 443), at(w.Relay.More[1], 443)}}
				for family, own := range []netip.Addr{h.V4, h.V6} {
					var got behaviour
					if own.IsValid() {
						got = behave(t, h, at(own, 40_000), relays[family], w.Relay, stranger)
					}
					if got != want[family] {
						t.Errorf("IPv%d: got %q, want %q", 4+2*family, got, want[family])
					}
				}
				everywhere := want[0].mapping != "" && p.Name != "only-443" && p.Name != "enclosed"
				for _, out := range []struct {
					to   netip.AddrPort
					want bool
				}{
					{at(w.Relay.V4, 5280), everywhere || p.Name == "enclosed"},
					{at(stranger.V4, 443), everywhere || p.Name == "only-443"},
					{at(stranger.V4, 5280), everywhere},
				} {
					if !h.V4.IsValid() {
						continue
					}
					if got := attempt(h, netip.AddrPort{}, out.to); (got == accepted) != out.want {
						t.Errorf("out to %s: %s, want it %v", out.to, got, out.want)
					}
				}
			})
		}
	})
	if checked != len(placeBehaviours) || checked < 18 {
		t.Errorf("checked %d places of %d", checked, len(placeBehaviours))
	}
}

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

// behave finds out what lies between a port of a host and the world.
func behave(t *testing.T, h *lab.Host, from netip.AddrPort, relay [2]netip.AddrPort, relayHost, stranger *lab.Host) (b behaviour) {
	t.Helper()
	var seen [2]netip.AddrPort
	for i, to := range relay {
		var err error
		if seen[i], err = observe(t, h, from, to); err != nil {
			t.Errorf("%s: observed by %s: %v", h.Name, to, err)
			return b
		}
	}
	switch {
	case seen[0] == from && seen[1] == from:
		b.mapping = "none"
	case seen[0].Addr() == from.Addr():
		b.mapping = "ports alone"
	case seen[0] == seen[1] && seen[0].Port() == from.Port():
		b.mapping = "preserved"
	case seen[1].Port() == seen[0].Port()+1:
		b.mapping = "sequence"
	case seen[0].Port() != seen[1].Port():
		b.mapping = "random"
	}
	serve(t, h, from, func(net.Conn) {})
	b.stranger = attempt(stranger, netip.AddrPort{}, seen[0])
	b.samePlace = attempt(relayHost, netip.AddrPort{}, seen[0])
	return b
}

// TestLabTopologyMappings has a port forwarded by configuration, and another by
// asking a real miniupnpd (NAT-PMP, RFC 6886).
func TestLabTopologyMappings(t *testing.T) {
	w := lab.NewWorld(0)
	stranger := w.Host("stranger", lab.V4)
	forward := lab.PlaceNamed(t, "forward").Make(w, "forward")
	upnp := lab.PlaceNamed(t, "upnp").Make(w, "upnp")
	w.Start(t)
	upnp.Gate.MiniUPnPD(t)

	serve(t, forward, at(forward.V4, lab.ForwardedPort), func(net.Conn) {})
	if got := attempt(stranger, netip.AddrPort{}, at(forward.Gate.V4, lab.ForwardedPort)); got != accepted {
		t.Errorf("forwarded port: %s", got)
	}
	if got := attempt(stranger, netip.AddrPort{}, at(forward.Gate.V4, lab.ForwardedPort+1)); got != silent {
		t.Errorf("next to the forwarded port: %s", got)
	}

	const port = 40_000
	serve(t, upnp, at(upnp.V4, port), func(net.Conn) {})
	var mapped uint16
	err := upnp.Do(func() error {
		c, err := net.Dial("udp", at(upnp.Gate.LAN, 5351).String())
		if err != nil {
			return err
		}
		defer c.Close()
		request := binary.BigEndian.AppendUint32([]byte{0, 2, 0, 0, port >> 8, port & 0xff, port >> 8, port & 0xff}, 3600)
		if _, err := c.Write(request); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		var answer [16]byte
		if _, err := io.ReadFull(c, answer[:]); err != nil {
			return err
		}
		if result := binary.BigEndian.Uint16(answer[2:]); result != 0 {
			return fmt.Errorf("NAT-PMP result %d", result)
		}
		mapped = binary.BigEndian.Uint16(answer[10:])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := attempt(stranger, netip.AddrPort{}, at(upnp.Gate.V4, mapped)); got != accepted {
		t.Errorf("port mapped by NAT-PMP: %s", got)
	}
}

// TestLabTopologyPairs proves what two hosts behind one gateway can do.
func TestLabTopologyPairs(t *testing.T) {
	want := map[string][3]any{ // at its own address, at the one that the relay saw, when both dial that
		"lan":             {accepted, silent, false},
		"guests":          {silent, silent, false},
		"guests-hairpin":  {silent, accepted, nil}, // no need: and nobody but a listener would answer
		"carrier":         {silent, silent, false},
		"carrier-hairpin": {silent, silent, true}, // each through the other's home
	}
	w := lab.NewWorld(0)
	hosts := make(map[string][2]*lab.Host)
	for _, p := range lab.Pairs {
		a, b := p.Make(w, p.Name)
		hosts[p.Name] = [2]*lab.Host{a, b}
	}
	w.Start(t)
	reflect(t, w.Relay, at(w.Relay.V4, 443))
	checked := 0
	t.Run("all", func(t *testing.T) {
		for name, pair := range hosts {
			checked++
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				a, b := pair[0], pair[1]
				seenA, err := observe(t, a, at(a.V4, 40_001), at(w.Relay.V4, 443))
				if err != nil {
					t.Fatal(err)
				}
				seenB, err := observe(t, b, at(b.V4, 40_002), at(w.Relay.V4, 443))
				if err != nil {
					t.Fatal(err)
				}
				stop := serve(t, b, at(b.V4, 40_002), func(net.Conn) {})
				own := silent // in homes of their own both have the same address
				if a.V4 != b.V4 {
					own = attempt(a, netip.AddrPort{}, at(b.V4, 40_002))
				}
				got := [3]any{own, attempt(a, netip.AddrPort{}, seenB), nil}
				if want[name][2] != nil {
					stop() // a listener would take what is to cross
					got[2] = punch(a, b, at(a.V4, 40_001), at(b.V4, 40_002), seenA, seenB)
				}
				if got != want[name] {
					t.Errorf("got %v, want %v", got, want[name])
				}
			})
		}
	})
	if checked != len(want) {
		t.Errorf("checked %d pairs, want %d", checked, len(want))
	}
}

// punch dials from both hosts at once and reports whether both are connected.
func punch(a, b *lab.Host, fromA, fromB, toA, toB netip.AddrPort) bool {
	const limit = time.Second
	done := make(chan bool, 2)
	dial := func(h *lab.Host, from, to netip.AddrPort) {
		c, err := h.Dial(from, to, limit)
		if err == nil {
			// Not lingering: the address is to be free for the next.
			_ = c.SetLinger(0)
			defer c.Close()
			// Connected is who can be heard: a listener beside us may have taken the other.
			_ = c.SetDeadline(time.Now().Add(limit))
			_, err = c.Write([]byte{1})
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
		}
		done <- err == nil
	}
	// Owned by punch; end within two limits; the receives wait for both.
	go dial(a, fromA, toB)
	go dial(b, fromB, toA)
	first, second := <-done, <-done
	return first && second
}

// TestLabTopologyPunch crosses SYNs a hundred milliseconds apart: what can be
// punched at all is punched by dialing at one moment.
func TestLabTopologyPunch(t *testing.T) {
	cells := []struct {
		a, b string
		want bool
	}{
		{"home", "home", true},
		{"home", "home-rst", true},
		{"home", "wall", true},
		{"home-rst", "home-rst", true},
		{"wall-rst", "wall-rst", true},
		{"wall-rst", "home-rst", true},
		{"carrier", "carrier", true},
		{"carrier", "wall", true},
		{"cone", "symmetric", false}, // one-way: nobody listens here
		{"home", "symmetric", false},
		{"wall", "symmetric", false},
		{"symmetric", "symmetric", false},
		{"home", "sequential", false},
		{"enclosed", "home", false},
		{"v6-wall", "v6-wall", true},
		{"v6-wall", "v6-wall-rst", true},
		{"v6-wall-rst", "v6-wall-rst", true},
		{"dual-wall", "v6-wall", true},
	}
	w := lab.NewWorld(50 * time.Millisecond)
	hosts := make([][2]*lab.Host, len(cells))
	for n, c := range cells {
		hosts[n] = [2]*lab.Host{
			lab.PlaceNamed(t, c.a).Make(w, fmt.Sprintf("%d-a", n)),
			lab.PlaceNamed(t, c.b).Make(w, fmt.Sprintf("%d-b", n)),
		}
	}
	w.Start(t)
	reflect(t, w.Relay, at(w.Relay.V4, 443), at(w.Relay.V6, 443))
	checked := 0
	t.Run("all", func(t *testing.T) {
		for n, c := range cells {
			checked++
			t.Run(c.a+"/"+c.b, func(t *testing.T) {
				t.Parallel()
				a, b := hosts[n][0], hosts[n][1]
				from := [2]netip.AddrPort{at(a.V4, 40_000), at(b.V4, 40_000)}
				relay := at(w.Relay.V4, 443)
				if !a.V4.IsValid() || !b.V4.IsValid() {
					from, relay = [2]netip.AddrPort{at(a.V6, 40_000), at(b.V6, 40_000)}, at(w.Relay.V6, 443)
				}
				var seen [2]netip.AddrPort
				for side, h := range hosts[n] {
					var err error
					if seen[side], err = observe(t, h, from[side], relay); err != nil {
						t.Fatal(err)
					}
				}
				if got := punch(a, b, from[0], from[1], seen[0], seen[1]); got != c.want {
					t.Errorf("punched %v, want %v", got, c.want)
				}
			})
		}
	})
	if checked != len(cells) {
		t.Errorf("checked %d cells, want %d", checked, len(cells))
	}
}

// TestLabTopologyDelay measures the round trip between hosts: the median of
// nine connects, which take one.
func TestLabTopologyDelay(t *testing.T) {
	const delay, late = 50 * time.Millisecond, 10 * time.Millisecond
	w := lab.NewWorld(delay)
	open := w.Host("open", lab.Dual)
	carrier := lab.PlaceNamed(t, "carrier").Make(w, "carrier")
	wall6 := lab.PlaceNamed(t, "v6-wall").Make(w, "v6-wall")
	w.Start(t)
	reflect(t, w.Relay, at(w.Relay.V4, 443), at(w.Relay.V6, 443))
	for _, c := range []struct {
		from *lab.Host
		to   netip.Addr
	}{{open, w.Relay.V4}, {open, w.Relay.V6}, {carrier, w.Relay.V4}, {wall6, w.Relay.V6}} {
		var took []time.Duration
		for range 9 {
			began := time.Now()
			conn, err := c.from.Dial(netip.AddrPort{}, at(c.to, 443), 5*time.Second)
			took = append(took, time.Since(began))
			if err != nil {
				t.Fatalf("%s: %v", c.from.Name, err)
			}
			conn.Close()
		}
		slices.Sort(took)
		t.Logf("%s to %s: %v to %v, median %v", c.from.Name, c.to, took[0], took[8], took[4])
		if took[4] < 2*delay || took[4] > 2*delay+late {
			t.Errorf("%s to %s: median %v, want %v to %v", c.from.Name, c.to, took[4], 2*delay, 2*delay+late)
		}
	}
}

// TestLabTopologyTime makes a world with two hosts of every kind, and takes it
// down: both together in less than a second, and nothing is left.
func TestLabTopologyTime(t *testing.T) {
	names := func() string {
		out, err := exec.Command("ip", "netns", "list").CombinedOutput()
		if err != nil {
			t.Fatalf("ip netns list: %v: %s", err, out)
		}
		return string(out)
	}
	var began time.Time
	t.Run("world", func(t *testing.T) {
		w := lab.NewWorld(50 * time.Millisecond)
		for _, p := range lab.Places {
			p.Make(w, p.Name+"-1")
			p.Make(w, p.Name+"-2")
		}
		for _, p := range lab.Pairs {
			p.Make(w, p.Name+"-pair")
		}
		began = time.Now()
		w.Start(t)
		if n := strings.Count(names(), "\n"); n < 80 {
			t.Errorf("%d namespaces, want more", n)
		} else {
			t.Logf("%d namespaces in %v", n, time.Since(began))
		}
	})
	if took := time.Since(began); took > time.Second {
		t.Errorf("made and taken down in %v, want less than a second", took)
	} else {
		t.Logf("made and taken down in %v", took)
	}
	if left := names(); left != "" {
		t.Errorf("left:\n%s", left)
	}
}

//go:build linux

package lab_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather"
	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
	"github.com/dtcp-relay/dtcp/lab"
)

// A mapper is package portmap at work on a host of the lab: this program, run
// once more in the host's namespace. It maps a port, and prints a line for each
// change; what it reads are commands.

// mapperVariable has the methods, as a number, that make this program a mapper.
const mapperVariable = "DTCP_LAB_MAPPER"

// mappedPort is the port that is mapped.
const mappedPort = 40_000

// A mapperLine is what a mapper prints.
type mapperLine struct {
	Changed  bool // the watcher says that the network has
	Restarts int
	Pending  portmap.Methods
	Results  []mapperResult
}

type mapperResult struct {
	Method                  portmap.Methods
	State, External, Detail string
	Renewed                 int
	DoubleNAT               bool
	Err                     string
}

func init() {
	if methods, err := strconv.Atoi(os.Getenv(mapperVariable)); err == nil {
		runMapper(portmap.Methods(methods))
		os.Exit(0)
	}
}

// runMapper maps the port until its standard input ends; each line of it asks
// for a refresh.
func runMapper(methods portmap.Methods) {
	say := func(l mapperLine) { _ = json.NewEncoder(os.Stdout).Encode(l) }
	commands := make(chan struct{})
	// Owned by the process; ends with the input.
	go func() {
		defer close(commands)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			commands <- struct{}{}
		}
	}()
	w := gather.Watch()
	defer w.Close()
	m := portmap.New(portmap.Config{Methods: methods, Port: mappedPort})
	for {
		report, changed := m.Report()
		line := mapperLine{Restarts: report.Restarts, Pending: report.Pending()}
		for _, r := range report.Results {
			one := mapperResult{Method: r.Method, State: r.State.String(), Detail: r.Detail, Renewed: r.Renewed, DoubleNAT: r.DoubleNAT()}
			if r.State == portmap.Works {
				one.External = r.External.String()
			}
			if r.Err != nil {
				one.Err = r.Err.Error()
			}
			line.Results = append(line.Results, one)
		}
		say(line)
		select {
		case <-changed:
		case <-w.Changed():
			say(mapperLine{Changed: true})
			m.Refresh()
		case _, ok := <-commands:
			if !ok {
				m.Close()
				return
			}
			m.Refresh()
		}
	}
}

// mapperRun is a running mapper.
type mapperRun struct {
	process *lab.Process
	stdin   io.WriteCloser
	lines   chan mapperLine
	last    mapperLine
}

func startMapper(t *testing.T, h *lab.Host, methods portmap.Methods) *mapperRun {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := h.Command(self)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", mapperVariable, methods))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Not StdoutPipe, which Wait closes before everything is read.
	stdout, far, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdout.Close() })
	cmd.Stdout = far
	m := &mapperRun{stdin: stdin, lines: make(chan mapperLine, 1000)}
	m.process = lab.Launch(t, "mapper on "+h.Name, cmd)
	far.Close()
	// Owned by m; ends with the process or the test; Close waits for its end.
	go func() {
		defer close(m.lines)
		for in := json.NewDecoder(stdout); ; {
			var l mapperLine
			if err := in.Decode(&l); err != nil {
				return
			}
			m.lines <- l
		}
	}()
	return m
}

// until waits for a line with a property, at most limit.
func (m *mapperRun) until(t *testing.T, limit time.Duration, what string, property func(mapperLine) bool) mapperLine {
	t.Helper()
	for timer := time.After(limit); ; {
		select {
		case l, ok := <-m.lines:
			if !ok {
				t.Fatalf("%s: the mapper has ended; last: %+v", what, m.last)
			}
			if !l.Changed {
				m.last = l
			}
			if property(l) {
				return l
			}
		case <-timer:
			t.Fatalf("%s: not within %v; last: %+v", what, limit, m.last)
		}
	}
}

// settled waits until no method is pending.
func (m *mapperRun) settled(t *testing.T) mapperLine {
	t.Helper()
	return m.until(t, 10*time.Second, "settled", func(l mapperLine) bool { return !l.Changed && l.Pending == 0 })
}

func (l mapperLine) of(method portmap.Methods) mapperResult {
	for _, r := range l.Results {
		if r.Method == method {
			return r
		}
	}
	return mapperResult{}
}

// refresh has everything asked again, and close removes it.
func (m *mapperRun) refresh(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(m.stdin, "refresh\n"); err != nil {
		t.Fatal(err)
	}
}

func (m *mapperRun) close(t *testing.T) {
	t.Helper()
	m.stdin.Close()
	if status := m.process.Wait(t, 10*time.Second); status != 0 {
		t.Errorf("the mapper ended with status %d", status)
	}
}

// inside runs a program in a namespace and returns its output.
func inside(t *testing.T, n *lab.Namespace, args ...string) string {
	t.Helper()
	return string(outputOf(t, nil, n.Command(args...)))
}

// mappings counts the rules that a gateway's miniupnpd has made, for the port.
func mappings(t *testing.T, g *lab.Gateway) (n int) {
	t.Helper()
	for _, chain := range []string{"prerouting_miniupnpd", "miniupnpd"} {
		for line := range strings.Lines(inside(t, &g.Namespace, "nft", "list", "chain", "inet", "gate", chain)) {
			if strings.Contains(line, strconv.Itoa(mappedPort)) {
				n++
			}
		}
	}
	return n
}

// forget removes the rules, as a gateway does that is switched off.
func forget(t *testing.T, g *lab.Gateway) {
	t.Helper()
	for _, chain := range []string{"prerouting_miniupnpd", "postrouting_miniupnpd", "miniupnpd"} {
		inside(t, &g.Namespace, "nft", "flush", "chain", "inet", "gate", chain)
	}
}

// watchQuestions counts the packets that a gateway is asked by, from the host or
// anybody else on its lan; asked returns how many there were.
func watchQuestions(t *testing.T, g *lab.Gateway) (asked func() int) {
	t.Helper()
	inside(t, &g.Namespace, "nft", "add table inet questions; add chain inet questions in { type filter hook prerouting priority -300; }; "+
		`add rule inet questions in iifname "lan" udp dport { 1900, 5350, 5351 } counter; add rule inet questions in iifname "lan" tcp dport 5000 counter`)
	return func() (n int) {
		for line := range strings.Lines(inside(t, &g.Namespace, "nft", "list", "table", "inet", "questions")) {
			if _, rest, ok := strings.Cut(line, "counter packets "); ok {
				packets, err := strconv.Atoi(strings.Fields(rest)[0])
				if err != nil {
					t.Fatal(err)
				}
				n += packets
			}
		}
		return n
	}
}

// home is a host behind a gateway with a miniupnpd, and a stranger who cannot
// reach it, on an internet of their own.
func home(t *testing.T, family lab.Family, config ...string) (stranger, host *lab.Host, daemon *lab.Process) {
	t.Helper()
	i := lab.NewInternet(0)
	stranger = i.Host("stranger", lab.Dual)
	host = i.Gateway("gateway", lab.Rules{Mapping: lab.Preserve, UPnP: true}).Host("home", family)
	i.Start(t)
	return stranger, host, host.Gate.MiniUPnPD(t, config...)
}

// TestLabMapping maps a port by each method at a real gateway, uses it, renews
// it, loses it to a restart, gets it back, and removes it.
func TestLabMapping(t *testing.T) {
	const kinds = 5
	var done atomic.Int32
	t.Cleanup(func() { // after the parallel ones
		if n := done.Load(); n != kinds {
			t.Errorf("%d kinds of gateway went through, want %d", n, kinds)
		}
	})
	for _, test := range []struct {
		name    string
		methods portmap.Methods
		config  []string
		works   portmap.Methods
		detail  string
	}{
		{"PCP", portmap.PCP, nil, portmap.PCP, ""},
		{"NAT-PMP", portmap.NATPMP, nil, portmap.NATPMP, ""},
		{"UPnP IGD 2", portmap.UPnP, nil, portmap.UPnP, "WANIPConnection:2"},
		{"UPnP IGD 1", portmap.UPnP, []string{"force_igd_desc_v1=yes"}, portmap.UPnP, "WANIPConnection:1"},
		{"everything", portmap.All, nil, portmap.PCP, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stranger, host, daemon := home(t, lab.V4, test.config...)
			serve(t, host, at(host.V4, mappedPort), func(net.Conn) {})
			external := at(host.Gate.V4, mappedPort)
			reach := func(when, want string) {
				t.Helper()
				if got := attempt(stranger, netip.AddrPort{}, external); got != want {
					t.Errorf("%s the port is %s, want %s", when, got, want)
				}
			}
			reach("at first", silent)

			began := time.Now()
			m := startMapper(t, host, test.methods)
			got := m.settled(t).of(test.works)
			t.Logf("%s: %s %s after %v, start of the program included", test.name, got.External, got.Detail, time.Since(began).Round(time.Millisecond))
			if got.State != "works" || got.External != external.String() || got.Detail != test.detail || got.DoubleNAT {
				t.Fatalf("got %+v, want %v %s", got, external, test.detail)
			}
			reach("mapped", accepted)
			made := mappings(t, host.Gate)
			if made == 0 {
				t.Error("the gateway has no rules")
			}

			m.refresh(t)
			m.until(t, 10*time.Second, "renewed", func(l mapperLine) bool { return l.of(test.works).Renewed == 1 })
			if n := mappings(t, host.Gate); n != made {
				t.Errorf("renewed, %d rules, want %d as before", n, made)
			}

			daemon.Kill(t)
			forget(t, host.Gate)
			reach("when the gateway has died", silent)
			host.Gate.MiniUPnPD(t, test.config...)
			// It announces its start; a client may wait 5 s.
			m.until(t, 12*time.Second, "mapped after the restart", func(l mapperLine) bool { return l.of(test.works).Renewed == 2 })
			reach("after the restart", accepted)

			m.close(t)
			if n := mappings(t, host.Gate); n != 0 {
				t.Errorf("closed, %d rules are left", n)
			}
			reach("closed", silent)
			done.Add(1)
		})
	}
}

// TestLabMappingRenewal: a gateway grants 20 s at a time; the mapping is there
// after 30 s.
func TestLabMappingRenewal(t *testing.T) {
	t.Parallel()
	stranger, host, _ := home(t, lab.V4, "min_lifetime=10", "max_lifetime=20")
	serve(t, host, at(host.V4, mappedPort), func(net.Conn) {})
	m := startMapper(t, host, portmap.PCP)
	m.settled(t)
	m.until(t, 40*time.Second, "renewed twice", func(l mapperLine) bool { return l.of(portmap.PCP).Renewed == 2 })
	if got := attempt(stranger, netip.AddrPort{}, at(host.Gate.V4, mappedPort)); got != accepted {
		t.Errorf("after two renewals the port is %s", got)
	}
	m.close(t)
	if n := mappings(t, host.Gate); n != 0 {
		t.Errorf("closed, %d rules are left", n)
	}
}

// TestLabMappingPinhole opens an IPv6 firewall by PCP.
func TestLabMappingPinhole(t *testing.T) {
	t.Parallel()
	stranger, host, _ := home(t, lab.Dual)
	serve(t, host, at(host.V6, mappedPort), func(net.Conn) {})
	if got := attempt(stranger, netip.AddrPort{}, at(host.V6, mappedPort)); got != silent {
		t.Errorf("at first the port is %s", got)
	}
	m := startMapper(t, host, portmap.All)
	l := m.settled(t)
	if got := l.of(portmap.Pinhole); got.State != "works" || got.External != at(host.V6, mappedPort).String() {
		t.Fatalf("got %+v; all: %+v", got, l)
	}
	if got := attempt(stranger, netip.AddrPort{}, at(host.V6, mappedPort)); got != accepted {
		t.Errorf("opened, the port is %s", got)
	}
	m.close(t)
	if got := attempt(stranger, netip.AddrPort{}, at(host.V6, mappedPort)); got != silent {
		t.Errorf("closed, the port is %s", got)
	}
}

// TestLabMappingOff: with the switch off not a packet leaves for the gateway,
// and with it on some do.
func TestLabMappingOff(t *testing.T) {
	t.Parallel()
	_, host, _ := home(t, lab.Dual)
	asked := watchQuestions(t, host.Gate)
	m := startMapper(t, host, 0)
	m.settled(t)
	m.refresh(t)
	m.close(t)
	if n := asked(); n != 0 {
		t.Errorf("%d packets, want none", n)
	}
	m = startMapper(t, host, portmap.All)
	m.settled(t)
	m.close(t)
	if n := asked(); n == 0 {
		t.Error("with the switch on, no packets were counted")
	} else {
		t.Logf("%d packets to map and to remove", n)
	}
}

// TestLabMappingFails: gateways that map nothing, each with its reason and in
// its time.
func TestLabMappingFails(t *testing.T) {
	all := portmap.PCP | portmap.NATPMP | portmap.UPnP
	for _, test := range []struct {
		name  string
		make  func(*lab.Internet) *lab.Host
		start func(*testing.T, *lab.Gateway)
		most  time.Duration
		want  map[portmap.Methods]string
	}{
		{"nobody listens", func(i *lab.Internet) *lab.Host {
			return i.Gateway("gateway", lab.Rules{Mapping: lab.Preserve}).Host("home", lab.V4)
		}, nil, 2500 * time.Millisecond, map[portmap.Methods]string{
			portmap.PCP: "nobody at the gateway listens", portmap.NATPMP: "nobody at the gateway listens", portmap.UPnP: "no UPnP gateway answers",
		}},
		{"silence", func(i *lab.Internet) *lab.Host {
			return i.Gateway("gateway", lab.Rules{Mapping: lab.Preserve}).Host("home", lab.V4)
		}, func(t *testing.T, g *lab.Gateway) {
			inside(t, &g.Namespace, "nft", "add table inet wall; add chain inet wall in { type filter hook input priority -10; }; add rule inet wall in meta l4proto udp drop")
		}, 3 * time.Second, map[portmap.Methods]string{
			portmap.PCP: "the gateway does not answer", portmap.NATPMP: "the gateway does not answer", portmap.UPnP: "no UPnP gateway answers",
		}},
		{"a carrier's NAT is in front", func(i *lab.Internet) *lab.Host {
			carrier := i.Gateway("carrier", lab.Rules{Mapping: lab.Preserve, Carrier: true})
			return carrier.Gateway("gateway", lab.Rules{Mapping: lab.Preserve, UPnP: true}).Host("home", lab.V4)
		}, func(t *testing.T, g *lab.Gateway) { g.MiniUPnPD(t) }, 3 * time.Second, map[portmap.Methods]string{
			portmap.PCP: "the gateway says NO_RESOURCES (8)", portmap.NATPMP: "the gateway says network failure (3)",
			portmap.UPnP: "the UPnP gateway has no external address",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := lab.NewInternet(0)
			host := test.make(i)
			i.Start(t)
			if test.start != nil {
				test.start(t, host.Gate)
			}
			began := time.Now()
			m := startMapper(t, host, all)
			l := m.settled(t)
			took := time.Since(began)
			t.Logf("after %v: %+v", took.Round(time.Millisecond), l.Results)
			if took > test.most {
				t.Errorf("settled after %v, want %v at most", took, test.most)
			}
			for method, want := range test.want {
				if got := l.of(method); got.State != "failed" || got.Err != want {
					t.Errorf("%v: %+v, want %q", method, got, want)
				}
			}
			m.close(t)
		})
	}
}

// TestLabMappingMove: the host gets another address. The watcher says so within
// seconds, and the port is mapped for the new address.
func TestLabMappingMove(t *testing.T) {
	t.Parallel()
	stranger, host, _ := home(t, lab.V4)
	m := startMapper(t, host, portmap.PCP)
	m.settled(t)
	moved := host.V4.Next().Next()
	inside(t, &host.Namespace, "ip", "addr", "del", host.V4.String()+"/24", "dev", "eth0")
	inside(t, &host.Namespace, "ip", "addr", "add", moved.String()+"/24", "dev", "eth0")
	inside(t, &host.Namespace, "ip", "route", "replace", "default", "via", host.Gate.LAN.String())
	began := time.Now()
	m.until(t, 10*time.Second, "the watcher", func(l mapperLine) bool { return l.Changed })
	t.Logf("noticed after %v", time.Since(began).Round(time.Millisecond))
	serve(t, host, at(moved, mappedPort), func(net.Conn) {})
	// The gateway holds the port for the old address, so that there is another now.
	external := m.until(t, 10*time.Second, "mapped anew", func(l mapperLine) bool {
		got := l.of(portmap.PCP)
		return got.State == "works" && got.External != at(host.Gate.V4, mappedPort).String()
	}).of(portmap.PCP).External
	to, err := netip.ParseAddrPort(external)
	if err != nil {
		t.Fatal(err)
	}
	if got := attempt(stranger, netip.AddrPort{}, to); got != accepted {
		t.Errorf("%v is %s", to, got)
	}
	m.close(t)
}

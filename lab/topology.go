//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespaces is where ip keeps the names of network namespaces.
const namespaces = "/run/netns"

// A Namespace is a network of its own inside the lab's: interfaces, routes,
// firewall rules. Its methods may be called from several goroutines once the
// [Internet] that it belongs to has started.
type Namespace struct {
	Name string // as in "ip netns exec NAME"

	lines strings.Builder // what ip is told inside
	over6 strings.Builder // the same, of what it takes to be about IPv4 unless told
	nft   string          // what nft is told inside
	route bool            // it forwards packets
}

// Command is a command line that runs args inside the namespace.
func (n *Namespace) Command(args ...string) []string {
	return append([]string{"ip", "netns", "exec", n.Name}, args...)
}

// Do calls f on a thread that is inside the namespace. Sockets that f itself
// makes belong to the namespace for ever; those made by goroutines that f starts
// do not.
func (n *Namespace) Do(f func() error) error {
	// The thread must go on: programs that it has started would end with it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := os.Open(namespaces + "/" + n.Name)
	if err != nil {
		return err
	}
	defer other.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", n.Name, err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("lab: a thread is lost in namespace %s: %v", n.Name, err))
		}
	}()
	return f()
}

// Listen listens on a TCP address inside the namespace. Others may dial from the
// same port, and listen on it, if they share it too, as those of Dial do.
func (n *Namespace) Listen(at netip.AddrPort) (l *net.TCPListener, err error) {
	config := net.ListenConfig{Control: sharePort, KeepAlive: -1}
	config.SetMultipathTCP(false)
	err = n.Do(func() error {
		made, err := config.Listen(context.Background(), "tcp", at.String())
		if err == nil {
			l = made.(*net.TCPListener)
		}
		return err
	})
	return l, err
}

// Dial connects to a TCP address from inside the namespace, within limit, from
// the local address, which may be zero, and whose port may be.
func (n *Namespace) Dial(from, to netip.AddrPort, limit time.Duration) (c *net.TCPConn, err error) {
	d := net.Dialer{Control: sharePort, KeepAlive: -1, Timeout: limit}
	d.SetMultipathTCP(false)
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	err = n.Do(func() error {
		made, err := d.DialContext(context.Background(), "tcp", to.String())
		if err == nil {
			c = made.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

// sharePort lets several sockets have one port, if all of them say so.
func sharePort(_, _ string, raw syscall.RawConn) error {
	var err error
	err2 := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(err, err2)
}

// A Host is a machine with one interface, eth0.
type Host struct {
	Namespace
	V4, V6 netip.Addr // of eth0; invalid if it does not speak that family
	More   []netip.Addr
	Gate   *Gateway // nil: it is on the internet itself
}

// Family is what addresses a host has: V4, V6 or both.
type Family int

const (
	V4   Family = 1
	V6   Family = 2
	Dual        = V4 | V6
)

// An Internet is hosts and gateways around one router, far from each other, on
// addresses that look as public as any. None of it can reach anything outside.
//
// It is described first, by its methods and those of its gateways; Start makes
// all of it, and its test's end takes it down. It lives in a mount namespace of
// the lab's, so that nothing of it, not even a name, outlives the lab.
type Internet struct {
	Namespace               // the router
	Delay     time.Duration // that a packet takes from any host on it to any other; 0: none is added

	nodes    []*Namespace
	cables   strings.Builder
	attached int
	carrier  *delay
	prefix   string
}

// internets numbers those of this process, for their names.
var internets atomic.Int64

// NewInternet returns an internet with nobody on it. A packet takes delay from
// one host to another, and the answer as much again.
func NewInternet(delay time.Duration) *Internet {
	i := &Internet{Delay: delay, prefix: fmt.Sprintf("lab%d-", internets.Add(1))}
	i.node(&i.Namespace, "internet")
	i.route = true
	// Private addresses lead nowhere from here, and nobody says so.
	for _, network := range []string{"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"} {
		fmt.Fprintf(&i.lines, "route add blackhole %s\n", network)
	}
	return i
}

// node gives a namespace its name and its place among those to be made.
func (i *Internet) node(n *Namespace, name string) {
	n.Name = i.prefix + name
	i.nodes = append(i.nodes, n)
	fmt.Fprintf(&n.lines, "link set lo up\n")
}

// Host puts a host on the internet, one that everybody can reach.
func (i *Internet) Host(name string, family Family) *Host {
	h := &Host{}
	i.node(&h.Namespace, name)
	h.V4, h.V6, _ = i.attach(&h.Namespace, "eth0", family)
	return h
}

// Address gives a host on the internet a further address of that family, which
// must be one of its.
func (h *Host) Address(family Family) netip.Addr {
	first, bits := h.V4, 24
	if family == V6 {
		first, bits = h.V6, 64
	}
	more := first
	for range len(h.More) + 1 {
		more = more.Next()
	}
	h.More = append(h.More, more)
	fmt.Fprintf(&h.lines, "addr add %s/%d dev eth0%s\n", more, bits, nodad(more))
	return more
}

// attach lays a cable from the router to an interface of n, and returns the
// addresses at its far end, and the number of the cable.
func (i *Internet) attach(n *Namespace, device string, family Family) (v4, v6 netip.Addr, cable int) {
	i.attached++
	cable = i.attached
	near := fmt.Sprintf("d%d", cable)
	fmt.Fprintf(&i.cables, "link add %s netns %s type veth peer name %s netns %s\n", device, n.Name, near, i.Name)
	fmt.Fprintf(&i.lines, "link set %s up\n", near)
	fmt.Fprintf(&n.lines, "link set %s up\n", device)
	if family&V4 != 0 {
		v4 = netip.AddrFrom4([4]byte{11, 0, byte(cable), 2})
		join(&i.lines, near, &n.lines, device, v4, 24)
	}
	if family&V6 != 0 {
		v6 = netip.MustParseAddr(fmt.Sprintf("2a11:0:%x::2", cable))
		join(&i.lines, near, &n.lines, device, v6, 64)
	}
	return v4, v6, cable
}

// join gives an address to an interface, the address before it to the one it is
// connected to, and sends everything that way.
func join(near *strings.Builder, nearDevice string, far *strings.Builder, device string, addr netip.Addr, bits int) {
	router := addr.Prev()
	fmt.Fprintf(near, "addr add %s/%d dev %s%s\n", router, bits, nearDevice, nodad(router))
	fmt.Fprintf(far, "addr add %s/%d dev %s%s\n", addr, bits, device, nodad(addr))
	fmt.Fprintf(far, "route add default via %s dev %s\n", router, device)
}

// nodad is the end of a command that adds an address: one of IPv6 is not to be
// probed for duplicates, which takes seconds.
func nodad(addr netip.Addr) string {
	if addr.Is6() {
		return " nodad"
	}
	return ""
}

// ownNames hides the machine's names of namespaces from this process, and this
// process's from the machine.
var ownNames = sync.OnceValue(func() error {
	if !Inside() {
		return errors.New("no network namespaces outside the lab's own")
	}
	if err := os.MkdirAll(namespaces, 0o755); err != nil {
		return err
	}
	return unix.Mount("lab", namespaces, "tmpfs", 0, "mode=0755")
})

// Start makes everything that was described. It is taken down at the test's end.
func (i *Internet) Start(tb testing.TB) {
	tb.Helper()
	if err := ownNames(); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	if i.attached > 250 {
		tb.Fatalf("lab: %d cables to the router; their addresses end at 250", i.attached)
	}
	ip := path(tb, "ip")
	var add, remove strings.Builder
	for _, n := range i.nodes {
		fmt.Fprintf(&add, "netns add %s\n", n.Name)
		fmt.Fprintf(&remove, "netns del %s\n", n.Name)
	}
	tb.Cleanup(func() {
		if i.carrier != nil {
			i.carrier.close()
		}
		if err := feed(remove.String(), ip, "-force", "-batch", "-"); err != nil {
			tb.Errorf("lab: %v", err)
		}
	})
	if err := feed(add.String(), ip, "-batch", "-"); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	for _, n := range i.nodes {
		if err := n.Do(n.configure); err != nil {
			tb.Fatalf("lab: settings of %s: %v", n.Name, err)
		}
	}
	if err := feed(i.cables.String(), ip, "-batch", "-"); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	if i.Delay > 0 {
		if err := i.slow(); err != nil {
			tb.Fatalf("lab: delay: %v", err)
		}
	}
	nft := path(tb, "nft")
	failed := make(chan error, len(i.nodes))
	for _, n := range i.nodes {
		// Owned by Start; ends with its programs, which ask nobody; the receives
		// below wait for all of them.
		go func() { failed <- n.settle(ip, nft) }()
	}
	for range i.nodes {
		if err := <-failed; err != nil {
			tb.Errorf("lab: %v", err)
		}
	}
	if tb.Failed() {
		tb.FailNow()
	}
}

// configure gives a namespace settings that its interfaces inherit, so it must
// have none yet. It runs inside.
func (n *Namespace) configure() error {
	settings := []string{
		// Without a second's wait for duplicates of each address.
		"ipv6/conf/all/accept_dad 0", "ipv6/conf/default/accept_dad 0",
		"ipv4/conf/all/rp_filter 0", "ipv4/conf/default/rp_filter 0",
	}
	if n.route {
		settings = append(settings, "ipv4/ip_forward 1", "ipv6/conf/all/forwarding 1",
			"ipv4/conf/all/send_redirects 0", "ipv4/conf/default/send_redirects 0")
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, " ")
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	// Absent where the kernel does not show bridged packets to the firewall.
	err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0)
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// settle gives a namespace its addresses, routes and rules.
func (n *Namespace) settle(ip, nft string) error {
	if err := feed(n.lines.String(), ip, "-n", n.Name, "-batch", "-"); err != nil {
		return err
	}
	if n.over6.Len() > 0 {
		if err := feed(n.over6.String(), ip, "-6", "-n", n.Name, "-batch", "-"); err != nil {
			return err
		}
	}
	if n.nft == "" {
		return nil
	}
	command := n.Command(nft, "-f", "-")
	return feed(n.nft, command[0], command[1:]...)
}

// feed runs a program with text for its input.
func feed(text, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s\nof:\n%s", strings.Join(cmd.Args, " "), err, out, text)
	}
	return nil
}

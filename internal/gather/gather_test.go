package gather_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/gather"
)

func addrs(s ...string) (a []netip.Addr) {
	for _, x := range s {
		a = append(a, netip.MustParseAddr(x))
	}
	return a
}

func TestHostAddrs(t *testing.T) {
	in := []gather.Interface{
		{Name: "lo", Up: true, Loopback: true, Addrs: addrs("127.0.0.1", "::1", "192.0.2.99")},
		{Name: "eth0", Up: true, Addrs: addrs("fe80::1%eth0", "fd00::2", "192.168.1.5", "2001:db8::5")},
		{Name: "wlan0", Up: true, Addrs: addrs("198.51.100.7", "100.64.0.9", "192.168.1.5", "169.254.3.4", "::ffff:10.0.0.1")},
		{Name: "eth1", Addrs: addrs("203.0.113.1")},
		{Name: "docker0", Up: true, Addrs: addrs("172.17.0.1")},
		{Name: "br-12ab", Up: true, Addrs: addrs("172.18.0.1")},
		{Name: "br0", Up: true, Addrs: addrs("10.1.1.1")}, // a bridge of the user's own
	}
	want := addrs("2001:db8::5", "198.51.100.7", "192.168.1.5", "100.64.0.9", "10.0.0.1", "10.1.1.1", "fd00::2")
	if got := gather.HostAddrs(in); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestSystem: every machine has a loopback interface, and it is not offered.
func TestSystem(t *testing.T) {
	interfaces, err := gather.System()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(interfaces, func(i gather.Interface) bool { return i.Loopback && len(i.Addrs) > 0 }) {
		t.Errorf("no loopback interface with an address among %v", interfaces)
	}
	for _, a := range gather.HostAddrs(interfaces) {
		if a.IsLoopback() || a.Zone() != "" {
			t.Errorf("%v would be offered", a)
		}
	}
}

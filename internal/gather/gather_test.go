package gather_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/gather"
)

func addrs(s ...string) (a []netip.Addr) {
	for _, x := range s {
		a = append(a, netip.MustParseAddr(x))
	}
	return a
}

// of makes the addresses of an interface; after the address may stand letters:
// t for temporary, d for deprecated, u for unusable.
func of(s ...string) (a []gather.Addr) {
	for _, x := range s {
		addr, flags, _ := strings.Cut(x, " ")
		a = append(a, gather.Addr{
			Addr:      netip.MustParseAddr(addr),
			Temporary: strings.Contains(flags, "t"), Deprecated: strings.Contains(flags, "d"), Unusable: strings.Contains(flags, "u"),
		})
	}
	return a
}

func TestHostAddrs(t *testing.T) {
	in := []gather.Interface{
		{Name: "lo", Up: true, Loopback: true, Addrs: of("127.0.0.1", "::1", "192.0.2.99")},
		{Name: "eth0", Up: true, Addrs: of("fe80::1%eth0", "fd00::2", "192.168.1.5", "2001:db8::5")},
		{Name: "wlan0", Up: true, Addrs: of("198.51.100.7", "100.64.0.9", "192.168.1.5", "169.254.3.4", "::ffff:10.0.0.1")},
		{Name: "eth1", Addrs: of("203.0.113.1")},
		{Name: "docker0", Up: true, Addrs: of("172.17.0.1")},
		{Name: "br-12ab", Up: true, Addrs: of("172.18.0.1")},
		{Name: "br0", Up: true, Addrs: of("10.1.1.1")}, // a bridge of the user's own
	}
	want := addrs("2001:db8::5", "198.51.100.7", "192.168.1.5", "100.64.0.9", "10.0.0.1", "10.1.1.1", "fd00::2")
	if got := gather.HostAddrs(in); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestTemporary: of each interface the addresses that its system would dial
// from, and no more.
func TestTemporary(t *testing.T) {
	for what, test := range map[string]struct {
		in   []gather.Addr
		want []netip.Addr
	}{
		"a temporary one and its stable twin":          {of("2001:db8::211:22ff:fe33:4455", "2001:db8::1234 t"), addrs("2001:db8::1234")},
		"of today and of yesterday":                    {of("2001:db8::1 td", "2001:db8::2 t", "2001:db8::3"), addrs("2001:db8::2")},
		"two networks, one without temporary ones":     {of("2001:db8::1", "2001:db8::2 t", "2001:db8:0:1::3"), addrs("2001:db8::2", "2001:db8:0:1::3")},
		"temporary and private":                        {of("fd00::1", "fd00::2 t", "2001:db8::3"), addrs("2001:db8::3", "fd00::2")},
		"the temporary one is not checked yet":         {of("2001:db8::1", "2001:db8::2 tu"), addrs("2001:db8::1")},
		"a duplicate":                                  {of("2001:db8::1 u"), nil},
		"the old network's":                            {of("2001:db8::1 d", "2001:db8:0:1::1"), addrs("2001:db8:0:1::1")},
		"nothing but deprecated ones":                  {of("2001:db8::1 d", "fd00::1"), addrs("2001:db8::1", "fd00::1")},
		"deprecated temporary and a stable one":        {of("2001:db8::1 td", "2001:db8::2"), addrs("2001:db8::2")},
		"IPv4 beside it":                               {of("192.0.2.1", "192.0.2.2", "2001:db8::1 t"), addrs("2001:db8::1", "192.0.2.1", "192.0.2.2")},
		"IPv4 by translation, which nobody else knows": {of("192.0.0.4", "2001:db8::1"), addrs("2001:db8::1")},
	} {
		if got := gather.HostAddrs([]gather.Interface{{Name: "eth0", Up: true, Addrs: test.in}}); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", what, got, test.want)
		}
	}
	// Another interface does not count.
	both := []gather.Interface{{Name: "eth0", Up: true, Addrs: of("2001:db8::1")}, {Name: "wlan0", Up: true, Addrs: of("2001:db8::2 t")}}
	if got, want := gather.HostAddrs(both), addrs("2001:db8::1", "2001:db8::2"); !slices.Equal(got, want) {
		t.Errorf("two interfaces: got %v, want %v", got, want)
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

package gather

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestParseIfInet6 reads what a laptop's kernel wrote.
func TestParseIfInet6(t *testing.T) {
	const text = `00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000005 02 40 00 01     eth0
20010db8000000000211223344556677 02 40 00 a0     eth0
fe800000000000000211223344556677 02 40 20 80     eth0
fe800000000000000211223344556677 03 40 20 c0    wlan0
not an address 02 40 00
zz010db8000000000000000000000005 02 40 00 01     eth0
`
	want := map[string]uint64{
		"::1%lo":                            unix.IFA_F_PERMANENT,
		"2001:db8::5%eth0":                  unix.IFA_F_TEMPORARY,
		"2001:db8::211:2233:4455:6677%eth0": unix.IFA_F_PERMANENT | unix.IFA_F_DEPRECATED,
		"fe80::211:2233:4455:6677%eth0":     unix.IFA_F_PERMANENT,
		"fe80::211:2233:4455:6677%wlan0":    unix.IFA_F_PERMANENT | unix.IFA_F_TENTATIVE,
	}
	got := parseIfInet6(text)
	for addr, flags := range want {
		if got[netip.MustParseAddr(addr)] != flags {
			t.Errorf("%s: got %#x, want %#x", addr, got[netip.MustParseAddr(addr)], flags)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d addresses, want %d: %v", len(got), len(want), got)
	}
}

// TestParseNetlink: what the kernel says of a network that goes is sure; a
// container's link, or a router that repeats itself, is not.
func TestParseNetlink(t *testing.T) {
	message := func(kind uint16, body ...byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(append(b, make([]byte, unix.SizeofNlMsghdr-6)...), body...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	addr := func(scope byte) []byte { return []byte{unix.AF_INET, 24, 0, scope, 2, 0, 0, 0} }
	route := func(length, table byte) []byte { return []byte{unix.AF_INET, length, 0, 0, table, 0, 0, 0, 0, 0, 0, 0} }
	link := message(unix.RTM_NEWLINK, make([]byte, 17)...)
	for what, test := range map[string]struct {
		messages []byte
		sure, ok bool
	}{
		"nothing":                            {nil, false, false},
		"a link":                             {link, false, true},
		"an address comes":                   {message(unix.RTM_NEWADDR, addr(unix.RT_SCOPE_UNIVERSE)...), false, true},
		"an address goes":                    {message(unix.RTM_DELADDR, addr(unix.RT_SCOPE_UNIVERSE)...), true, true},
		"a link-local address goes":          {message(unix.RTM_DELADDR, addr(unix.RT_SCOPE_LINK)...), false, true},
		"the default route comes":            {message(unix.RTM_NEWROUTE, route(0, unix.RT_TABLE_MAIN)...), true, true},
		"the default route goes":             {message(unix.RTM_DELROUTE, route(0, unix.RT_TABLE_MAIN)...), true, true},
		"a route to one network":             {message(unix.RTM_NEWROUTE, route(24, unix.RT_TABLE_MAIN)...), false, false},
		"a default route of somebody else's": {message(unix.RTM_NEWROUTE, route(0, 100)...), false, false},
		"two, of which the second is sure":   {append(link, message(unix.RTM_DELADDR, addr(0)...)...), true, true},
		"cut short":                          {link[:20], false, false},
		"no body":                            {message(unix.RTM_DELADDR), false, true},
		"a length that leads nowhere":        {make([]byte, 100), false, false},
	} {
		h, ok := parseNetlink(test.messages)
		if ok != test.ok || h.sure != test.sure {
			t.Errorf("%s: %+v, %v; want sure %v, %v", what, h, ok, test.sure, test.ok)
		}
	}
}

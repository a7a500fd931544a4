package portmap_test

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
)

// unhex reads bytes written with spaces, as the figures of the RFCs have fields.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var nonce = [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// The fields as in figures 2, 3, 9 and 10 of RFC 6887.
const (
	pcpRequest4 = `02 01 0000  000004b0  00000000000000000000ffffc0a80105
		0102030405060708090a0b0c 06 000000 9c41 9c41 00000000000000000000ffff00000000`
	pcpRequest6 = `02 01 0000  00000000  20010db8000000000000000000000005
		0102030405060708090a0b0c 06 000000 9c41 9c42 20010db8000000000000000000000005`
	pcpSuccess = `02 81 00 00 000004b0 00001234 000000000000000000000000
		0102030405060708090a0b0c 06 000000 9c41 c351 00000000000000000000ffffc6336407`
	pcpRefusal = `02 81 00 08 0000001e 00001234 000000000000000000000000
		0102030405060708090a0b0c 06 000000 9c41 0000 00000000000000000000000000000000`
	pcpAnnouncement = `02 80 00 00 00000000 00000001 000000000000000000000000`
	pcpWithOption   = pcpSuccess + `01 00 0004 00000000`
)

// TestPCPRequests compares requests with vectors, byte by byte.
func TestPCPRequests(t *testing.T) {
	for want, got := range map[string][]byte{
		pcpRequest4: portmap.MapPCP(1200, netip.MustParseAddr("192.168.1.5"), nonce, 40001, netip.MustParseAddrPort("0.0.0.0:40001")),
		pcpRequest6: portmap.MapPCP(0, netip.MustParseAddr("2001:db8::5"), nonce, 40001, netip.MustParseAddrPort("[2001:db8::5]:40002")),
	} {
		if !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("got  %x\nwant %x", got, unhex(t, want))
		}
	}
}

// TestPCPAnswers reads vectors, and nothing that is cut short or too long.
func TestPCPAnswers(t *testing.T) {
	for _, vector := range []string{pcpSuccess, pcpWithOption} {
		a, err := portmap.ParsePCP(unhex(t, vector))
		if err != nil || portmap.EpochOf(a) != 0x1234 || portmap.ExternalOf(a).String() != "198.51.100.7:50001" {
			t.Errorf("%s\nread as %+v, %v", vector, a, err)
		}
	}
	for _, vector := range []string{pcpRefusal, pcpAnnouncement} {
		if a, err := portmap.ParsePCP(unhex(t, vector)); err != nil {
			t.Errorf("%s\nread as %+v, %v", vector, a, err)
		}
	}
	whole := unhex(t, pcpSuccess)
	refused := 0
	for n := range len(whole) {
		if a, err := portmap.ParsePCP(whole[:n]); err == nil {
			t.Errorf("the first %d bytes were read as %+v", n, a)
		}
		refused++
	}
	for _, bad := range [][]byte{
		append(whole[:60:60], make([]byte, 1044)...), // 1,104 bytes
		unhex(t, pcpRequest4),                        // not a response
		unhex(t, "00 81 0001 00001234"),              // NAT-PMP
		unhex(t, "03 81 00 01 00000000 00001234 000000000000000000000000"),
	} {
		if a, err := portmap.ParsePCP(bad); err == nil {
			t.Errorf("%x was read as %+v", bad, a)
		}
		refused++
	}
	if refused != 64 {
		t.Errorf("checked %d bad answers, want 64", refused)
	}
}

// TestNATPMP compares a request with its vector, and reads answers (RFC 6886,
// 3.2 and 3.3).
func TestNATPMP(t *testing.T) {
	if got, want := portmap.MapNATPMP(40001, 50001, 1200), unhex(t, "00 02 0000 9c41 c351 000004b0"); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	for _, vector := range []string{
		"00 80 0000 00001234 c6336407",
		"00 82 0000 00001234 9c41 c351 000004b0",
		"00 82 0002 00001234 9c41 c351 00000000",
		"00 80 0001 00001234", // what an older gateway says to a PCP request
	} {
		if a, err := portmap.ParseNATPMP(unhex(t, vector)); err != nil {
			t.Errorf("%s read as %+v, %v", vector, a, err)
		}
	}
	for _, bad := range []string{
		"", "00", "00 80 0000 000012", "00 80 0000 00001234", "00 80 0000 00001234 c633640701", "00 82 0000 00001234 c6336407",
		"00 81 0000 00001234 9c41 c351 000004b0", // UDP
		"00 02 0000 00001234 9c41 c351 000004b0", // a request
		"01 82 0000 00001234 9c41 c351 000004b0",
	} {
		if a, err := portmap.ParseNATPMP(unhex(t, bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, a)
		}
	}
}

// TestEpoch is the arithmetic of RFC 6887, 8.5.
func TestEpoch(t *testing.T) {
	hour := time.Hour
	for _, test := range []struct {
		before, after uint32
		between       time.Duration
		want          bool
	}{
		{100, 100, 0, true},
		{100, 99, 0, true}, // rounding, or packets out of order
		{100, 98, 0, false},
		{100, 102, 0, true},
		{100, 103, 0, false},
		{100, 3700, hour, true},
		{100, 3700 + 230, hour, true}, // a sixteenth fast
		{100, 3700 + 250, hour, false},
		{100, 3700 - 220, hour, true},
		{100, 3700 - 230, hour, false},
		{100, 100, hour, false},
		{1000, 0, hour, false}, // restarted just now
		{0, 1000, hour, false}, // restarted, and has run for longer than before
		{1<<32 - 1, 0, time.Second, false},
		{0, 1<<32 - 1, (1<<32 - 1) * time.Second, true},
	} {
		if got := portmap.Continues(test.before, test.after, test.between); got != test.want {
			t.Errorf("%d, and %v later %d: %v, want %v", test.before, test.between, test.after, got, test.want)
		}
	}
}

// TestAwaited is the waiting rule of a first offer.
func TestAwaited(t *testing.T) {
	for _, test := range []struct {
		pending portmap.Methods
		elapsed time.Duration
		want    bool
	}{
		{0, 0, false},
		{portmap.PCP, 0, true},
		{portmap.PCP, 999 * time.Millisecond, true},
		{portmap.PCP, time.Second, false},
		{portmap.Pinhole, time.Second, false},
		{portmap.UPnP | portmap.PCP, time.Second, true},
		{portmap.UPnP, 2999 * time.Millisecond, true},
		{portmap.UPnP, 3 * time.Second, false},
	} {
		r := portmap.Report{Results: []portmap.Result{{Method: 0, State: portmap.Works}}}
		for _, m := range []portmap.Methods{portmap.PCP, portmap.NATPMP, portmap.UPnP, portmap.Pinhole} {
			if test.pending&m != 0 {
				r.Results = append(r.Results, portmap.Result{Method: m, State: portmap.Pending})
			}
		}
		if got := r.Awaited(test.elapsed); got != test.want {
			t.Errorf("with %v pending after %v: %v, want %v", test.pending, test.elapsed, got, test.want)
		}
	}
}

// TestExternal puts what is on the Internet first, and names nothing twice.
func TestExternal(t *testing.T) {
	r := portmap.Report{Results: []portmap.Result{
		{State: portmap.Works, External: netip.MustParseAddrPort("100.64.0.9:1024")},
		{State: portmap.Works, External: netip.MustParseAddrPort("198.51.100.7:1025")},
		{State: portmap.Works, External: netip.MustParseAddrPort("198.51.100.7:1025")},
		{State: portmap.Failed, External: netip.MustParseAddrPort("198.51.100.7:1026")},
	}}
	var got []string
	for _, a := range r.External() {
		got = append(got, a.String())
	}
	if want := "198.51.100.7:1025 100.64.0.9:1024"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestGatewayAddresses says where packets go: nowhere but to the gateway and,
// to search, to the group of UPnP.
func TestGatewayAddresses(t *testing.T) {
	four := portmap.NewGateway(netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.1.5"), "eth0")
	if four.PCP.String() != "192.168.1.1:5351" || four.Announce.String() != "224.0.0.1:5350" ||
		four.Search[0].String() != "239.255.255.250:1900" || four.Search[1].String() != "192.168.1.1:1900" {
		t.Errorf("IPv4: %+v", four)
	}
	six := portmap.NewGateway(netip.MustParseAddr("fe80::1"), netip.MustParseAddr("2001:db8::5"), "eth0")
	if six.PCP.String() != "[fe80::1%eth0]:5351" || six.Announce.String() != "[ff02::1%eth0]:5350" || six.Search[0].IsValid() || six.Search[1].IsValid() {
		t.Errorf("IPv6: %+v", six)
	}
}

// TestDefaultGateways asks the system, which may have none; it sends nothing.
func TestDefaultGateways(t *testing.T) {
	found, err := portmap.DefaultGateways()
	if len(found) == 0 && err == nil {
		t.Error("neither a gateway nor a reason")
	}
	for _, g := range found {
		if !g.Addr.IsValid() || g.Addr.Is4() != g.Source.Is4() || g.PCP.Addr() != g.Addr {
			t.Errorf("gateway %+v", g)
		}
	}
	t.Log(found, err)
}

// TestMethods names them.
func TestMethods(t *testing.T) {
	if got := portmap.All.String(); got != "PCP, NAT-PMP, UPnP, PCP over IPv6" {
		t.Errorf("got %q", got)
	}
	if got := portmap.Off.String() + portmap.Failed.String(); got != "offfailed" {
		t.Errorf("got %q", got)
	}
}

func FuzzPCP(f *testing.F) {
	for _, seed := range []string{pcpSuccess, pcpRefusal, pcpAnnouncement, pcpWithOption, pcpRequest6} {
		f.Add(unhex(f, seed))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		a, err := portmap.ParsePCP(packet)
		if err == nil && len(packet) > 1100 {
			t.Errorf("%d bytes read as %+v", len(packet), a)
		}
	})
}

func FuzzNATPMP(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x00\x00\x00\x12\x34\xc6\x33\x64\x07"))
	f.Add([]byte("\x00\x82\x00\x00\x00\x00\x12\x34\x9c\x41\xc3\x51\x00\x00\x04\xb0"))
	f.Add([]byte("\x00\x80\x00\x01\x00\x00\x12\x34"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if a, err := portmap.ParseNATPMP(packet); err == nil && len(packet) < 8 {
			t.Errorf("%x read as %+v", packet, a)
		}
	})
}

func FuzzSearchReply(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:service:WANIPConnection:1\r\nLOCATION: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLocation: https://router.example/\r\n\r\n"))
	f.Add([]byte("NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1/\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://[fe80::1%25eth0]:80/x\r\nContent-Length: 10\r\n\r\nabc"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		location, err := portmap.ParseSearchReply(packet)
		if err != nil {
			return
		}
		if _, err := netip.ParseAddr(location.Hostname()); err != nil || location.Scheme != "http" {
			t.Errorf("%q names %v", packet, location)
		}
	})
}

func FuzzDescription(f *testing.F) {
	f.Add(description("WANIPConnection:2", "/ctl"))
	f.Add(description("WANPPPConnection:1", "http://198.51.100.1/evil"))
	f.Add(`<?xml version="1.0" encoding="ISO-8859-1"?><root xmlns="urn:schemas-upnp-org:device-1-0"><URLBase>::</URLBase></root>`)
	f.Add(`<root><device><deviceList><device/></deviceList></device></root>`)
	f.Fuzz(func(t *testing.T, text string) {
		location := &url.URL{Scheme: "http", Host: "192.168.1.1:5000", Path: "/desc.xml"}
		root, err := portmap.ParseDescription(strings.NewReader(text), location)
		if err == nil {
			portmap.Services(root)
		}
	})
}

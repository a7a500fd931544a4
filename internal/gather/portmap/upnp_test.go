package portmap_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/gather/portmap"
)

// A fakeIGD is a UPnP gateway on loopback: a UDP socket that answers searches
// sent to it, and an HTTP server with a description and one service.
type fakeIGD struct {
	search *net.UDPConn
	web    *httptest.Server

	mu       sync.Mutex
	kind     string // WANIPConnection:2 and so on
	external string
	location string // instead of its own
	control  string // instead of /ctl
	describe http.HandlerFunc
	faults   map[string][]int // error codes that an action answers first
	mappings map[string]string
	calls    []string // actions, with the port and the lease
}

// description is what a device says of itself.
func description(kind, control string) string {
	return `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList><device><deviceList><device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:` + kind + `</serviceType><controlURL>` + control + `</controlURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>`
}

func startIGD(t *testing.T, kind string) *fakeIGD {
	t.Helper()
	g := &fakeIGD{kind: kind, external: "198.51.100.7", control: "/ctl", faults: map[string][]int{}, mappings: map[string]string{}}
	var err error
	g.search, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	g.startWeb(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 2000)
		for {
			n, from, err := g.search.ReadFromUDPAddrPort(packet)
			if err != nil {
				return
			}
			g.mu.Lock()
			location := g.location
			if location == "" {
				location = g.web.URL + "/desc.xml"
			}
			answers := strings.Contains(string(packet[:n]), "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n")
			g.mu.Unlock()
			if answers {
				_, _ = g.search.WriteToUDPAddrPort([]byte("no answer at all"), from)
				_, _ = g.search.WriteToUDPAddrPort([]byte("HTTP/1.1 200 OK\r\nLOCATION: "+location+"\r\n\r\n"), from)
			}
		}
	}()
	t.Cleanup(func() { g.search.Close(); <-done; g.web.Close() })
	return g
}

// startWeb serves at a new port.
func (g *fakeIGD) startWeb(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /desc.xml", func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		describe, text := g.describe, description(g.kind, g.control)
		g.mu.Unlock()
		if describe != nil {
			describe(w, r)
			return
		}
		_, _ = io.WriteString(w, text)
	})
	mux.HandleFunc("POST /ctl", g.call)
	g.web = httptest.NewServer(mux)
}

// argument reads one of an action.
func argument(body, name string) string {
	if found := regexp.MustCompile("<" + name + ">([^<]*)</").FindStringSubmatch(body); found != nil {
		return found[1]
	}
	return ""
}

// call is the control point of the service.
func (g *fakeIGD) call(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	text, _ := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	body := string(text)
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPACTION"), `"`), "#")
	port, seconds := argument(body, "NewExternalPort"), argument(body, "NewLeaseDuration")
	g.calls = append(g.calls, strings.TrimRight(action+" "+port+" "+seconds, " "))
	if codes := g.faults[action]; len(codes) > 0 {
		g.faults[action] = codes[1:]
		if codes[0] != 0 {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>hostile</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`, codes[0])
			return
		}
	}
	result := ""
	switch action {
	case "GetExternalIPAddress":
		result = "<NewExternalIPAddress>" + g.external + "</NewExternalIPAddress>"
	case "AddAnyPortMapping":
		if g.mappings[port] != "" {
			port = "50001"
		}
		result = "<NewReservedPort>" + port + "</NewReservedPort>"
		fallthrough
	case "AddPortMapping":
		g.mappings[port] = argument(body, "NewInternalClient") + ":" + argument(body, "NewInternalPort") + "/" + argument(body, "NewProtocol")
	case "DeletePortMapping":
		delete(g.mappings, port)
	}
	fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:%sResponse xmlns:u="urn:schemas-upnp-org:service:%s">%s</u:%sResponse></s:Body></s:Envelope>`,
		action, g.kind, result, action)
}

func (g *fakeIGD) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// mapped is how many mappings there are, and target where one leads.
func (g *fakeIGD) mapped() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.mappings)
}

func (g *fakeIGD) target(port uint16) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mappings[fmt.Sprint(port)]
}

func (g *fakeIGD) called() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.calls...)
}

// gateway is where a Mapper finds it.
func (g *fakeIGD) gateway() portmap.Gateway {
	local := netip.MustParseAddr("127.0.0.1")
	return portmap.Gateway{Addr: local, Source: local, Search: [2]netip.AddrPort{g.search.LocalAddr().(*net.UDPAddr).AddrPort()}}
}

// startUPnP maps the port there by UPnP alone.
func startUPnP(t *testing.T, gateway portmap.Gateway) *portmap.Mapper {
	t.Helper()
	m := portmap.New(portmap.Config{Methods: portmap.UPnP, Port: port, Gateways: func() ([]portmap.Gateway, error) {
		return []portmap.Gateway{gateway}, nil
	}})
	t.Cleanup(m.Close)
	return m
}

// TestUPnP maps, renews, and removes, with each kind of service, and with what
// each may answer. The calls are those of one mapping, one renewal, and Close.
func TestUPnP(t *testing.T) {
	const lease = " 1200"
	seconds := func(s ...string) string { return strings.Join(s, "\n") }
	for what, test := range map[string]struct {
		kind    string
		prepare func(*fakeIGD)
		want    string // external
		calls   string
	}{
		"version 2": {"WANIPConnection:2", func(*fakeIGD) {}, "198.51.100.7:40001", seconds(
			"GetExternalIPAddress", "GetExternalIPAddress", "AddAnyPortMapping 40001"+lease,
			"GetExternalIPAddress", "AddPortMapping 40001"+lease, "DeletePortMapping 40001")},
		"version 2, the port is taken": {"WANIPConnection:2", func(g *fakeIGD) { g.mappings["40001"] = "somebody else" }, "198.51.100.7:50001", seconds(
			"GetExternalIPAddress", "GetExternalIPAddress", "AddAnyPortMapping 40001"+lease,
			"GetExternalIPAddress", "AddPortMapping 50001"+lease, "DeletePortMapping 50001")},
		"version 2, but only in name": {"WANIPConnection:2", func(g *fakeIGD) { g.faults["AddAnyPortMapping"] = []int{401} }, "198.51.100.7:40001", seconds(
			"GetExternalIPAddress", "GetExternalIPAddress", "AddAnyPortMapping 40001"+lease, "AddPortMapping 40001"+lease,
			"GetExternalIPAddress", "AddPortMapping 40001"+lease, "DeletePortMapping 40001")},
		"version 1": {"WANIPConnection:1", func(*fakeIGD) {}, "198.51.100.7:40001", seconds(
			"GetExternalIPAddress", "GetExternalIPAddress", "AddPortMapping 40001"+lease,
			"GetExternalIPAddress", "AddPortMapping 40001"+lease, "DeletePortMapping 40001")},
		"version 1, permanent leases only": {"WANIPConnection:1", func(g *fakeIGD) { g.faults["AddPortMapping"] = []int{725} }, "198.51.100.7:40001", seconds(
			"GetExternalIPAddress", "GetExternalIPAddress", "AddPortMapping 40001"+lease, "AddPortMapping 40001 0",
			"GetExternalIPAddress", "AddPortMapping 40001 0", "DeletePortMapping 40001")},
		"version 1, the port is taken": {"WANIPConnection:1", func(g *fakeIGD) { g.faults["AddPortMapping"] = []int{718, 501, 729} }, "198.51.100.7:*", seconds(
			"GetExternalIPAddress", "GetExternalIPAddress", "AddPortMapping 40001"+lease, "AddPortMapping *"+lease, "AddPortMapping *"+lease, "AddPortMapping *"+lease,
			"GetExternalIPAddress", "AddPortMapping *"+lease, "DeletePortMapping *")},
		"dialed up, behind another NAT": {"WANPPPConnection:1", func(g *fakeIGD) { g.external = "100.64.0.9" }, "100.64.0.9:40001", seconds(
			"GetExternalIPAddress", "GetExternalIPAddress", "AddPortMapping 40001"+lease,
			"GetExternalIPAddress", "AddPortMapping 40001"+lease, "DeletePortMapping 40001")},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel() // each waits a tenth of a second for more devices
			g := startIGD(t, test.kind)
			g.set(func() { test.prepare(g) })
			before := g.mapped()
			m := startUPnP(t, g.gateway())
			upnp := of(await(t, m, "settled", settled), portmap.UPnP)
			external := upnp.External.String()
			if strings.HasSuffix(test.want, "*") {
				external = upnp.External.Addr().String() + ":*"
			}
			if upnp.State != portmap.Works || external != test.want || upnp.Detail != test.kind {
				t.Errorf("got %+v, want %s by %s", upnp, test.want, test.kind)
			}
			if upnp.Expires.IsZero() != strings.Contains(test.calls, " 0") {
				t.Errorf("expires %v", upnp.Expires)
			}
			if target := g.target(upnp.External.Port()); target != "127.0.0.1:40001/TCP" {
				t.Errorf("it maps to %q", target)
			}
			m.Refresh()
			await(t, m, "renewed", func(r portmap.Report) bool { return of(r, portmap.UPnP).Renewed == 1 })
			m.Close()
			calls := strings.Join(g.called(), "\n")
			if strings.Contains(test.calls, "*") {
				calls = regexp.MustCompile(`(Mapping) (?:[^4]\d+|4[^0]\d+|40[^0]\d*|400[^0]\d*|4000[^1])`).ReplaceAllString(calls, "$1 *")
			}
			if calls != test.calls {
				t.Errorf("called\n%s\nwant\n%s", calls, test.calls)
			}
			if left := g.mapped(); left != before {
				t.Errorf("%d mappings are left, want the %d of before", left, before)
			}
		})
	}
}

// TestUPnPFails: what a device, or somebody who pretends to be one, can do
// instead. It is refused, with a reason that has nothing of the device's words.
func TestUPnPFails(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a request for %s went elsewhere", r.URL)
	}))
	t.Cleanup(elsewhere.Close)
	// The same server by another address than the gateway's.
	other := strings.Replace(elsewhere.URL, "127.0.0.1", "127.0.0.2", 1)
	const improper = "the UPnP gateway does not describe itself properly"
	for what, test := range map[string]struct {
		prepare func(*fakeIGD)
		want    string
	}{
		"it describes itself elsewhere":  {func(g *fakeIGD) { g.location = other + "/desc.xml" }, "a UPnP gateway answers that is not the default gateway"},
		"it is controlled elsewhere":     {func(g *fakeIGD) { g.control = other + "/ctl" }, "the UPnP gateway does not answer as it should"},
		"it redirects":                   {func(g *fakeIGD) { g.describe = http.RedirectHandler(other, http.StatusFound).ServeHTTP }, improper},
		"nothing is there":               {func(g *fakeIGD) { g.describe = http.NotFound }, improper},
		"the description does not end":   {func(g *fakeIGD) { g.describe = endless }, improper},
		"it maps no ports":               {func(g *fakeIGD) { g.kind = "Layer3Forwarding:1" }, "the UPnP gateway maps no ports"},
		"it is not connected":            {func(g *fakeIGD) { g.external = "0.0.0.0" }, "the UPnP gateway has no external address"},
		"its address is none":            {func(g *fakeIGD) { g.external = "\x1b[31m" }, "the UPnP gateway does not answer as it should"},
		"it is not allowed":              {func(g *fakeIGD) { g.faults["AddPortMapping"] = []int{606} }, "the UPnP gateway says: not authorized (606)"},
		"it has an error of its own":     {func(g *fakeIGD) { g.faults["AddPortMapping"] = []int{899} }, "the UPnP gateway says: error 899"},
		"every port is somebody else's":  {func(g *fakeIGD) { g.faults["AddPortMapping"] = []int{718, 718, 718, 718, 718} }, "the UPnP gateway says: conflict with another mapping (718)"},
		"permanent leases are not to be": {func(g *fakeIGD) { g.faults["AddPortMapping"] = []int{725, 725} }, "the UPnP gateway says: only permanent leases supported (725)"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel() // most wait for more devices, one for a second
			g := startIGD(t, "WANIPConnection:1")
			g.set(func() { test.prepare(g) })
			m := startUPnP(t, g.gateway())
			upnp := of(await(t, m, "settled", settled), portmap.UPnP)
			m.Close()
			if upnp.State != portmap.Failed || upnp.Err == nil || upnp.Err.Error() != test.want {
				t.Errorf("got %+v, want the error %q", upnp, test.want)
			}
			for _, call := range g.called() {
				if strings.HasPrefix(call, "Delete") {
					t.Error("what was never made was removed")
				}
			}
		})
	}
}

// endless writes until nobody reads.
func endless(w http.ResponseWriter, _ *http.Request) {
	_, err := io.WriteString(w, `<root xmlns="urn:schemas-upnp-org:device-1-0"><device><friendlyName>`)
	for err == nil {
		_, err = io.WriteString(w, strings.Repeat("x", 1<<12))
	}
}

// TestUPnPMoves: after a restart the daemon is at another port, and has
// forgotten everything.
func TestUPnPMoves(t *testing.T) {
	g := startIGD(t, "WANIPConnection:2")
	m := startUPnP(t, g.gateway())
	await(t, m, "settled", settled)
	g.web.Close()
	g.set(func() { clear(g.mappings); g.startWeb(t) })
	m.Refresh()
	await(t, m, "mapped again", func(r portmap.Report) bool { return of(r, portmap.UPnP).Renewed == 1 })
	if got := g.target(40001); got != "127.0.0.1:40001/TCP" {
		t.Errorf("it maps to %q", got)
	}
	m.Close()
	if left := g.mapped(); left != 0 {
		t.Errorf("%d mappings are left", left)
	}
}

package gather_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/gather"
)

// observed reads "local server seen", for each connection.
func observed(lines ...string) (found []gather.Observation) {
	for _, l := range lines {
		f := strings.Fields(l)
		found = append(found, gather.Observation{
			Local: netip.MustParseAddrPort(f[0]), Server: netip.MustParseAddrPort(f[1]), Seen: netip.MustParseAddrPort(f[2]),
		})
	}
	return found
}

func TestClassify(t *testing.T) {
	const (
		me     = "192.168.1.5:40001 "
		other  = "192.168.1.5:40002 "
		one    = "198.51.100.1:5280 "
		oneTLS = "198.51.100.1:443 "
		two    = "198.51.100.2:5280 "
	)
	type behaviour = gather.Behaviour
	for what, test := range map[string]struct {
		seen    []gather.Observation
		gateway string
		want    behaviour
	}{
		"nothing was observed": {nil, "", behaviour{}},
		"one server":           {observed(me + one + "203.0.113.9:40001"), "", behaviour{PortPreserving: true}},
		"one server, asked twice at one port": {
			observed(me+one+"203.0.113.9:40001", me+one+"203.0.113.9:40001"), "", behaviour{PortPreserving: true}},
		"no NAT": {
			observed("203.0.113.9:40001 "+one+"203.0.113.9:40001", "203.0.113.9:40001 "+two+"203.0.113.9:40001"), "",
			behaviour{Mapping: gather.NoMapping, PortPreserving: true}},
		"no NAT, and one server is enough to know": {
			observed("[2001:db8::5]:40001 [2001:db8:1::1]:5280 [2001:db8::5]:40001"), "",
			behaviour{Mapping: gather.NoMapping, PortPreserving: true}},
		"endpoint-independent": {
			observed(me+one+"203.0.113.9:61000", me+two+"203.0.113.9:61000"), "",
			behaviour{Mapping: gather.EndpointIndependent}},
		"endpoint-independent and port-preserving": {
			observed(me+one+"203.0.113.9:40001", me+two+"203.0.113.9:40001", other+two+"203.0.113.9:40002"), "203.0.113.9",
			behaviour{Mapping: gather.EndpointIndependent, PortPreserving: true}},
		"two addresses, ports at random": {
			observed(me+one+"203.0.113.9:61000", me+two+"203.0.113.9:23456"), "",
			behaviour{Mapping: gather.AddressAndPortDependent}},
		"two addresses, ports in order": {
			observed(me+one+"203.0.113.9:61000", me+two+"203.0.113.9:61001"), "",
			behaviour{Mapping: gather.AddressAndPortDependent, Step: 1}},
		"address-dependent": {
			observed(me+one+"203.0.113.9:61000", me+oneTLS+"203.0.113.9:61000", me+two+"203.0.113.9:23456"), "",
			behaviour{Mapping: gather.AddressDependent}},
		"address-and-port-dependent": {
			observed(me+one+"203.0.113.9:61000", me+oneTLS+"203.0.113.9:61002", me+two+"203.0.113.9:61004"), "",
			behaviour{Mapping: gather.AddressAndPortDependent, Step: 2}},
		"one server at two ports, the same": {
			observed(me+one+"203.0.113.9:61000", me+oneTLS+"203.0.113.9:61000"), "", behaviour{}},
		"one server at two ports, different": {
			observed(me+one+"203.0.113.9:61000", me+oneTLS+"203.0.113.9:11000"), "",
			behaviour{Mapping: gather.AddressAndPortDependent}},
		"different local ports say nothing of each other": {
			observed(me+one+"203.0.113.9:61000", other+two+"203.0.113.9:11000"), "", behaviour{}},
		"several addresses": {
			observed(me+one+"203.0.113.9:40001", me+two+"203.0.113.10:40001"), "",
			behaviour{Mapping: gather.AddressAndPortDependent, PortPreserving: true, SeveralAddresses: true}},
		"a carrier's NAT behind the gateway's": {
			observed(me+one+"203.0.113.9:61000", me+two+"203.0.113.9:61000"), "100.64.0.9",
			behaviour{Mapping: gather.EndpointIndependent, DoubleNAT: true}},
	} {
		var gateway netip.Addr
		if test.gateway != "" {
			gateway = netip.MustParseAddr(test.gateway)
		}
		if got := gather.Classify(test.seen, gateway); got != test.want {
			t.Errorf("%s: got %+v (%v), want %+v (%v)", what, got, got.Mapping, test.want, test.want.Mapping)
		}
	}
}

func TestPunchable(t *testing.T) {
	for b, want := range map[gather.Behaviour]bool{
		{}:                                    false,
		{Mapping: gather.NoMapping}:           true,
		{Mapping: gather.EndpointIndependent}: true,
		{Mapping: gather.AddressDependent}:    false,
		{Mapping: gather.AddressAndPortDependent}:          false,
		{Mapping: gather.AddressAndPortDependent, Step: 1}: true,
	} {
		if got := b.Punchable(); got != want {
			t.Errorf("%+v: %v, want %v", b, got, want)
		}
	}
}

func TestPredict(t *testing.T) {
	for what, test := range map[string]struct {
		ports []uint16
		n     int
		want  []uint16
	}{
		"nothing":                    {nil, 3, nil},
		"one":                        {[]uint16{5000}, 3, nil},
		"two in order":               {[]uint16{5000, 5001}, 3, []uint16{5002, 5003, 5004}},
		"three in order":             {[]uint16{5000, 5001, 5002}, 2, []uint16{5003, 5004}},
		"somebody else in between":   {[]uint16{5000, 5001, 5004}, 2, []uint16{5005, 5006}},
		"every other":                {[]uint16{5000, 5002, 5004}, 2, []uint16{5006, 5008}},
		"every other, with a gap":    {[]uint16{5000, 5004, 5006}, 2, []uint16{5008, 5010}},
		"gaps of different sizes":    {[]uint16{5000, 5004, 5010}, 2, []uint16{5012, 5014}},
		"downwards":                  {[]uint16{5004, 5002, 5000}, 2, []uint16{4998, 4996}},
		"the last ones":              {[]uint16{65533, 65534}, 3, []uint16{65535, 1024, 1025}},
		"the first ones, downwards":  {[]uint16{1026, 1025}, 3, []uint16{1024, 65535, 65534}},
		"blocks of sixteen":          {[]uint16{5000, 5016, 5032}, 1, []uint16{5048}},
		"at random":                  {[]uint16{5000, 61234, 23456}, 3, nil},
		"at random, but for one":     {[]uint16{5000, 5001, 23456}, 3, nil},
		"to and fro":                 {[]uint16{5000, 5001, 5000}, 3, nil},
		"the same":                   {[]uint16{5000, 5000}, 3, nil},
		"too far apart":              {[]uint16{5000, 5017}, 3, nil},
		"in order, but none wanted":  {[]uint16{5000, 5001}, 0, nil},
		"in order, and fewer wanted": {[]uint16{5000, 5001}, -1, nil},
	} {
		if got := gather.Predict(test.ports, test.n); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", what, got, test.want)
		}
	}
}

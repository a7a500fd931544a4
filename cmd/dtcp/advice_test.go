package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// What reports are made of.
var (
	privateHost = dtcp.Candidate{Type: dtcp.Host, Addr: netip.MustParseAddrPort("192.168.1.5:4000")}
	carrierHost = dtcp.Candidate{Type: dtcp.Host, Addr: netip.MustParseAddrPort("100.64.3.4:4000")}
	publicHost  = dtcp.Candidate{Type: dtcp.Host, Addr: netip.MustParseAddrPort("203.0.113.7:4000")}
	mapped      = dtcp.Candidate{Type: dtcp.Mapped, Addr: netip.MustParseAddrPort("203.0.113.7:4000")}
	reflexive   = dtcp.Candidate{Type: dtcp.Reflexive, Addr: netip.MustParseAddrPort("203.0.113.7:4001")}
	relayed     = dtcp.Candidate{Type: dtcp.Relay, Addr: netip.MustParseAddrPort("198.51.100.9:5280")}

	randomPorts = dtcp.NAT{Mapping: "address-and-port-dependent"}
	fixedPorts  = dtcp.NAT{Mapping: "endpoint-independent", Punchable: true}
	noGateway   = dtcp.Gateway{Method: "PCP", State: "failed", Err: errors.New("no answer")}
	works       = dtcp.Gateway{Method: "PCP", State: "works", External: mapped.Addr}
	doubled     = dtcp.Gateway{Method: "UPnP", State: "works", External: carrierHost.Addr, Private: true}
)

func TestProspect(t *testing.T) {
	t.Setenv(noGatewayVariable, "")
	for _, test := range []struct {
		candidates []dtcp.Candidate
		gateways   []dtcp.Gateway
		options    options
		want       string
	}{
		{[]dtcp.Candidate{privateHost, mapped}, []dtcp.Gateway{works}, options{}, "at the address that its gateway opens"},
		{[]dtcp.Candidate{publicHost}, nil, options{}, "unless a firewall"},
		{[]dtcp.Candidate{privateHost, mapped, relayed}, []dtcp.Gateway{doubled}, options{}, "through the relay"},
		{[]dtcp.Candidate{privateHost, reflexive, relayed}, nil, options{}, "through a hole in its NAT where their own allows that, and through the relay"},
		{[]dtcp.Candidate{privateHost, reflexive}, nil, options{}, "with a relay, all could"},
		{[]dtcp.Candidate{privateHost, relayed}, []dtcp.Gateway{noGateway}, options{}, "through the relay"},
		{[]dtcp.Candidate{privateHost}, []dtcp.Gateway{noGateway}, options{}, "enable PCP or UPnP on the router here"},
		{[]dtcp.Candidate{carrierHost}, []dtcp.Gateway{doubled}, options{}, "itself behind a NAT"},
		{[]dtcp.Candidate{privateHost}, nil, options{noGateway: true}, "leave out --no-gateway"},
		{[]dtcp.Candidate{publicHost, relayed}, nil, options{relayOnly: true}, "because of --relay-only"},
	} {
		got := prospect(dtcp.Report{Candidates: test.candidates, Gateways: test.gateways}, &test.options)
		if !strings.Contains(got, test.want) {
			t.Errorf("%v, %v: %q, want something with %q", test.candidates, test.gateways, got, test.want)
		}
	}
}

func TestAdvice(t *testing.T) {
	t.Setenv(noGatewayVariable, "")
	theirs := func(kinds ...dtcp.CandidateType) map[dtcp.CandidateType]bool {
		m := map[dtcp.CandidateType]bool{dtcp.Relay: true}
		for _, k := range kinds {
			m[k] = true
		}
		return m
	}
	for _, test := range []struct {
		kind     dtcp.CandidateType
		nat      dtcp.NAT
		gateways []dtcp.Gateway
		theirs   map[dtcp.CandidateType]bool
		options  options
		want     string // "" means none
	}{
		{dtcp.Host, randomPorts, nil, theirs(dtcp.Host), options{}, ""},
		{dtcp.Reflexive, fixedPorts, nil, theirs(dtcp.Reflexive), options{}, ""},
		{dtcp.Relay, randomPorts, []dtcp.Gateway{noGateway}, theirs(dtcp.Host), options{}, "both NATs choose random ports; enable PCP or UPnP on one router"},
		{dtcp.Proxy, randomPorts, []dtcp.Gateway{noGateway}, theirs(dtcp.Host), options{}, "both NATs choose random ports; enable PCP or UPnP on one router"},
		{dtcp.Relay, randomPorts, []dtcp.Gateway{noGateway}, theirs(dtcp.Host, dtcp.Reflexive), options{}, "the NAT here chooses random ports: enable PCP or UPnP on the router here"},
		{dtcp.Relay, randomPorts, []dtcp.Gateway{doubled}, theirs(dtcp.Reflexive), options{}, "the router here is itself behind a NAT"},
		{dtcp.Relay, randomPorts, []dtcp.Gateway{works}, theirs(dtcp.Reflexive), options{}, "a firewall may be in between"},
		{dtcp.Relay, fixedPorts, nil, theirs(dtcp.Host), options{}, "the NAT of the peer chooses random ports"},
		{dtcp.Relay, dtcp.NAT{Mapping: "none", Punchable: true}, nil, theirs(dtcp.Host, dtcp.Reflexive), options{}, "open a TCP port at one end"},
		{dtcp.Relay, fixedPorts, []dtcp.Gateway{noGateway}, theirs(dtcp.Host, dtcp.Reflexive), options{}, "enable PCP or UPnP on the router here"},
		{dtcp.Relay, dtcp.NAT{Mapping: "unknown"}, []dtcp.Gateway{noGateway}, theirs(dtcp.Host, dtcp.Reflexive), options{}, "enable PCP or UPnP on the router here"},
		{dtcp.Relay, dtcp.NAT{Mapping: "unknown"}, nil, theirs(dtcp.Host), options{noGateway: true}, "leave out --no-gateway"},
		{dtcp.Relay, fixedPorts, nil, theirs(), options{}, "the peer offers a relay alone"},
		{dtcp.Relay, fixedPorts, nil, theirs(dtcp.Host), options{relayOnly: true}, "because of --relay-only"},
	} {
		got := advice(dtcp.Report{NAT: test.nat, Gateways: test.gateways}, test.kind, test.theirs, &test.options)
		if !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("%s, %s, %v: %q, want something with %q", test.kind, test.nat.Mapping, test.theirs, got, test.want)
		}
	}
}

func TestFiltering(t *testing.T) {
	far := netip.MustParseAddrPort("198.51.100.77:50000")
	near := netip.MustParseAddrPort("192.168.1.9:50000")
	for _, test := range []struct {
		own  dtcp.Candidate
		path *dtcp.Path
		want string
	}{
		{publicHost, &dtcp.Path{Kind: dtcp.Host, Remote: far}, "endpoint-independent"},
		{privateHost, &dtcp.Path{Kind: dtcp.Host, Remote: near}, "unknown"},
		{publicHost, &dtcp.Path{Kind: dtcp.Host, Remote: far, Dialed: true}, "unknown"},
		{privateHost, &dtcp.Path{Kind: dtcp.Reflexive, Remote: far}, "unknown"},
		{publicHost, &dtcp.Path{Kind: dtcp.Relay, Remote: far, Relay: "198.51.100.9:5280"}, "address-dependent, or address and port-dependent"},
		{publicHost, nil, "address-dependent, or address and port-dependent"},
		{carrierHost, nil, "unknown"},
	} {
		if got := filtering(dtcp.Report{Candidates: []dtcp.Candidate{test.own}}, test.path, &options{}); got != test.want {
			t.Errorf("%v, %+v: %q, want %q", test.own, test.path, got, test.want)
		}
	}
}

// Every gateway that was asked is told of, and why it did not work; so is what was
// seen of the NAT.
func TestTellMachine(t *testing.T) {
	local := netip.MustParseAddrPort("192.168.1.5:4001")
	r := dtcp.Report{
		Candidates: []dtcp.Candidate{privateHost, reflexive, relayed},
		Relay:      jid.MustParse("relay.example.org"),
		NAT: dtcp.NAT{Mapping: "address-dependent", Step: 2, Punchable: true, DoubleNAT: true, Observed: []dtcp.Observation{
			{Local: local, Server: relayed.Addr, Seen: reflexive.Addr},
		}},
		Gateways: []dtcp.Gateway{
			{Method: "PCP", State: "failed", Addr: netip.MustParseAddr("192.168.1.1"), Err: errors.New("no answer")},
			{Method: "UPnP", State: "works", External: carrierHost.Addr, Private: true, Detail: "a box"},
		},
	}
	var stdout, stderr strings.Builder
	to := &tool{out: newOutput(&stdout, &stderr)}
	to.tellMachine(romeo, r, nil)
	want := strings.Join([]string{
		"account\tromeo@example.org/orchard",
		"offer\thost\t192.168.1.5:4000",
		"offer\treflexive\t203.0.113.7:4001",
		"offer\trelay\t198.51.100.9:5280",
		"relay\trelay.example.org",
		"mapping\taddress-dependent\tports are assigned in steps of 2\tand another NAT behind the gateway\tholes can be punched",
		"seen\t192.168.1.5:4001\tas 203.0.113.7:4001\tby 198.51.100.9:5280",
		"gateway\tPCP\tfailed\tat 192.168.1.1\tno answer",
		"gateway\tUPnP\tworks\tpeers can dial 100.64.3.4:4000\twhich is behind another NAT\ta box",
		"",
	}, "\n")
	if got := stdout.String(); got != want || stderr.String() != "" {
		t.Errorf("got\n%s\nwant\n%s\nand on stderr %q", got, want, stderr.String())
	}
}

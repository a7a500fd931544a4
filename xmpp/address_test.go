package xmpp_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func TestGiven(t *testing.T) {
	tests := []struct{ server, address, mode string }{
		{"xmpp.example.org:5222", "xmpp.example.org:5222", "STARTTLS"},
		{"xmpp.example.org", "xmpp.example.org:5222", "STARTTLS"},
		{"xmpp.example.org:5223", "xmpp.example.org:5223", "direct TLS"},
		{"xmpp.example.org:443", "xmpp.example.org:443", "direct TLS"},
		{"127.0.0.1:4711", "127.0.0.1:4711", "STARTTLS"},
		{"[::1]:5222", "[::1]:5222", "STARTTLS"},
		{"[::1]", "[::1]:5222", "STARTTLS"},
		{"::1", "[::1]:5222", "STARTTLS"},
		{"", "", ""},
		{"host:", "", ""},
		{"host:0", "", ""},
		{"host:65536", "", ""},
		{":5222", "", ""},
		{"romeo@example.org", "", ""},
		{"https://example.org", "", ""},
		{"two words", "", ""},
	}
	for _, tt := range tests {
		address, mode, err := xmpp.Given(tt.server)
		if address != tt.address || mode != tt.mode || (err == nil) != (tt.address != "") {
			t.Errorf("%q: %q %q %v, want %q %q", tt.server, address, mode, err, tt.address, tt.mode)
		}
	}
}

// TestOrder checks RFC 2782: priorities strictly, weights by chance.
func TestOrder(t *testing.T) {
	records := []xmpp.SRV{{"c", 20, 1}, {"a1", 10, 10}, {"a3", 10, 30}, {"zero", 10, 0}, {"b", 15, 0}}
	first := make(map[string]int)
	rnd := rand.New(rand.NewPCG(1, 2))
	const rounds = 4100
	for range rounds {
		got := xmpp.Order(slices.Clone(records), rnd.IntN)
		if len(got) != len(records) || got[3] != "b" || got[4] != "c" {
			t.Fatalf("order %q", got)
		}
		first[got[0]]++
	}
	// Of the 41 numbers that can be drawn, one chooses "zero".
	for host, want := range map[string]int{"zero": rounds / 41, "a1": rounds * 10 / 41, "a3": rounds * 30 / 41} {
		if got := first[host]; got < want*8/10 || got > want*12/10+20 {
			t.Errorf("%s came first %d times of %d, want about %d", host, got, rounds, want)
		}
	}
	var many []xmpp.SRV
	for i := range 100 {
		many = append(many, xmpp.SRV{Host: fmt.Sprint(i), Priority: uint16(i), Weight: 65535})
	}
	if got := xmpp.Order(many, rnd.IntN); len(got) > 16 {
		t.Errorf("%d addresses to try", len(got))
	}
	if got := xmpp.Order(nil, rnd.IntN); len(got) != 0 {
		t.Errorf("order of nothing: %q", got)
	}
}

// zone is a Resolver that knows a few records.
type zone map[string]struct {
	srv []*net.SRV
	err error
}

func (z zone) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	full := "_" + service + "._" + proto + "." + strings.TrimSuffix(name, ".")
	a, ok := z[full]
	if !strings.HasSuffix(name, ".") {
		return "", nil, fmt.Errorf("%s is relative", full)
	}
	if !ok {
		return "", nil, &net.DNSError{Err: "no such host", Name: full, IsNotFound: true}
	}
	return full + ".", a.srv, a.err
}

func TestLookup(t *testing.T) {
	type answer = struct {
		srv []*net.SRV
		err error
	}
	srv := func(target string, port, priority, weight uint16) *net.SRV {
		return &net.SRV{Target: target, Port: port, Priority: priority, Weight: weight}
	}
	broken := errors.New("server misbehaving")
	const direct, starttls = "_xmpps-client._tcp.example.org", "_xmpp-client._tcp.example.org"
	tests := []struct {
		name, account string
		zone          zone
		want          string
	}{
		{"both kinds, mixed by priority", "romeo@example.org", zone{
			direct:   answer{srv: []*net.SRV{srv("d.example.", 443, 5, 0), srv("e.example.", 5223, 20, 0)}},
			starttls: answer{srv: []*net.SRV{srv("s.example.", 5222, 10, 0)}},
		}, "d.example:443 (direct TLS), s.example:5222 (STARTTLS), e.example:5223 (direct TLS)"},
		{"no records", "romeo@example.org", zone{}, "example.org:5222 (STARTTLS)"},
		{"domain of many letters", "romeo@bücher.example", zone{}, "xn--bcher-kva.example:5222 (STARTTLS)"},
		{"its records", "romeo@bücher.example", zone{"_xmpp-client._tcp.xn--bcher-kva.example": answer{srv: []*net.SRV{srv("s.example.", 5222, 1, 0)}}}, "s.example:5222 (STARTTLS)"},
		{"DNS broken", "romeo@example.org", zone{direct: answer{err: broken}, starttls: answer{err: broken}},
			direct + " (DNS), " + starttls + " (DNS), example.org:5222 (STARTTLS)"},
		{"DNS broken for one", "romeo@example.org", zone{direct: answer{err: broken}, starttls: answer{srv: []*net.SRV{srv("s.example.", 5222, 1, 0)}}},
			direct + " (DNS), s.example:5222 (STARTTLS)"},
		{"some answers with an error", "romeo@example.org", zone{starttls: answer{srv: []*net.SRV{srv("s.example.", 5222, 1, 0)}, err: broken}},
			starttls + " (DNS), s.example:5222 (STARTTLS)"},
		{"no service", "romeo@example.org", zone{starttls: answer{srv: []*net.SRV{srv(".", 0, 0, 0)}}}, starttls + " (DNS)"},
		{"direct TLS only", "romeo@example.org", zone{starttls: answer{srv: []*net.SRV{srv(".", 0, 0, 0)}}, direct: answer{srv: []*net.SRV{srv("d.example.", 443, 5, 0)}}},
			"d.example:443 (direct TLS)"},
		{"no direct TLS", "romeo@example.org", zone{direct: answer{srv: []*net.SRV{srv(".", 0, 0, 0)}}}, "example.org:5222 (STARTTLS)"},
		{"port 0", "romeo@example.org", zone{starttls: answer{srv: []*net.SRV{srv("s.example.", 0, 0, 0)}}}, "example.org:5222 (STARTTLS)"},
		{"IPv4", "romeo@127.0.0.1", zone{"_xmpp-client._tcp.127.0.0.1": answer{err: broken}}, "127.0.0.1:5222 (STARTTLS)"},
		{"IPv6", "romeo@[::1]", zone{}, "[::1]:5222 (STARTTLS)"},
		{"localhost", "romeo@localhost", zone{"_xmpp-client._tcp.localhost": answer{err: broken}}, "localhost:5222 (STARTTLS)"},
	}
	for _, tt := range tests {
		n := newNetwork(t)
		n.refuse("*", true)
		c := n.config()
		c.Server, c.JID, c.Resolver = "", jid.MustParse(tt.account), tt.zone
		_, err := xmpp.Connect(t.Context(), c)
		var failed *xmpp.ConnectError
		if !errors.As(err, &failed) {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var got []string
		for _, a := range failed.Attempts {
			got = append(got, a.Address+" ("+a.Mode+")")
			if !strings.Contains(err.Error(), a.Address) || !strings.Contains(err.Error(), a.Err.Error()) {
				t.Errorf("%s: error %q lacks %+v", tt.name, err, a)
			}
		}
		if strings.Join(got, ", ") != tt.want {
			t.Errorf("%s: tried %q, want %q", tt.name, strings.Join(got, ", "), tt.want)
		}
	}
}

// silent never answers.
type silent struct{}

func (silent) LookupSRV(ctx context.Context, _, _, _ string) (string, []*net.SRV, error) {
	<-ctx.Done()
	return "", nil, ctx.Err()
}

// A DNS server that is silent costs ten seconds, not the login; an address
// that is silent five.
func TestSilentAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		c.Server, c.Resolver = "", silent{}
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		began := time.Now()
		_, err := xmpp.Connect(t.Context(), c)
		var failed *xmpp.ConnectError
		if !errors.As(err, &failed) || len(failed.Attempts) != 3 || time.Since(began) != 15*time.Second {
			t.Errorf("Connect: %v after %v", err, time.Since(began))
		}
	})
}

// The next address is tried when one fails.
func TestSecondAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.refuse("d.example:443", true)
		c := n.config()
		c.Server = ""
		c.Resolver = zone{
			"_xmpps-client._tcp.example.org": {srv: []*net.SRV{{Target: "d.example.", Port: 443, Priority: 1}}},
			"_xmpp-client._tcp.example.org":  {srv: []*net.SRV{{Target: "s.example.", Port: 5222, Priority: 2}, {Target: "t.example.", Port: 5222, Priority: 3}}},
		}
		done := start(t.Context(), c)
		p := n.accept()
		p.wantStream("") // no STARTTLS at s.example
		n.accept().login().goodbye((<-done).s)
		if want := []string{"d.example:443", "s.example:5222", "t.example:5222"}; !slices.Equal(n.addresses(), want) {
			t.Errorf("dialed %q, want %q", n.addresses(), want)
		}
	})
}

// TestRealResolver asks a DNS server on loopback by way of package net.
func TestRealResolver(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { // ends when the socket is closed; the test waits for it
		defer close(stopped)
		serveDNS(server)
	}()
	defer func() { server.Close(); <-stopped }()
	n := newNetwork(t)
	n.refuse("*", true)
	c := n.config()
	c.Server = ""
	c.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	_, err = xmpp.Connect(t.Context(), c)
	if want := []string{"tls.example.org:443", "xmpp.example.org:5222"}; !slices.Equal(n.addresses(), want) {
		t.Errorf("dialed %q, want %q; %v", n.addresses(), want, err)
	}
}

// serveDNS answers SRV questions for example.org.
func serveDNS(conn net.PacketConn) {
	records := map[string]dnsmessage.SRVResource{
		"_xmpps-client._tcp.example.org.": {Priority: 1, Port: 443, Target: dnsmessage.MustNewName("tls.example.org.")},
		"_xmpp-client._tcp.example.org.":  {Priority: 2, Port: 5222, Target: dnsmessage.MustNewName("xmpp.example.org.")},
	}
	b := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true}
		m.Additionals = nil
		if r, ok := records[q.Name.String()]; ok && q.Type == dnsmessage.TypeSRV {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: &r}}
		} else {
			m.RCode = dnsmessage.RCodeNameError
		}
		if answer, err := m.Pack(); err == nil {
			_, _ = conn.WriteTo(answer, from)
		}
	}
}

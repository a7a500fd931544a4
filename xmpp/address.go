package xmpp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// maxTargets bounds what a domain's records can make us dial.
const maxTargets = 12

// target is one address to try.
type target struct {
	host, port string
	direct     bool // TLS at once (XEP-0368), else STARTTLS
	detect     bool // direct is a guess
	component  bool // XEP-0114, which has no TLS
}

func (t target) address() string { return net.JoinHostPort(t.host, t.port) }

func (t target) mode() string {
	switch {
	case t.component:
		return "component"
	case t.direct:
		return "direct TLS"
	}
	return "STARTTLS"
}

// hostname returns the name of a domain for DNS, TLS and certificates: IP
// addresses without brackets, others in ASCII.
func hostname(domain string) (name string, ip bool, err error) {
	inner := strings.TrimSuffix(strings.TrimPrefix(domain, "["), "]")
	if a, err := netip.ParseAddr(inner); err == nil {
		return a.String(), true, nil
	}
	name, err = idna.Lookup.ToASCII(domain)
	if err != nil {
		return "", false, fmt.Errorf("domain %q: %w", domain, err)
	}
	return name, false, nil
}

// given makes a target of an address of the user's. The ports on which TLS
// begins at once by custom are tried that way first; either way the port's
// answer decides. usual is the port of an address without one.
func given(server, usual string) (target, error) {
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(server, "["), "]"), usual
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || strings.ContainsAny(host, " /@[]") {
		return target{}, fmt.Errorf("server %.120q is not host:port", server)
	}
	return target{host: host, port: port, direct: port == "5223" || port == "443", detect: true}, nil
}

// The ports where servers listen by custom: for clients (RFC 6120, 14.7), and
// for components.
const (
	clientPort    = "5222"
	componentPort = "5347"
)

const (
	directService   = "xmpps-client"
	starttlsService = "xmpp-client"
)

// lookup finds the addresses of a domain (RFC 6120, 3.2; XEP-0368, 4) and the
// questions that failed.
func lookup(ctx context.Context, r Resolver, domain string) ([]target, []Attempt) {
	host, ip, err := hostname(domain)
	if err != nil {
		return nil, []Attempt{{domain, "DNS", err}}
	}
	fallback := []target{{host: host, port: clientPort}}
	// Neither an IP address nor the names of this machine (RFC 6761, 6.3)
	// have records.
	if ip || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return fallback, nil
	}
	if r == nil {
		r = net.DefaultResolver
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	type answer struct {
		srv []*net.SRV
		err error
	}
	ask := func(service string) answer {
		// With the dot at the end no search list of this machine is added.
		_, srv, err := r.LookupSRV(ctx, service, "tcp", host+".")
		return answer{srv, err}
	}
	direct := make(chan answer, 1)
	// Owned by this call, which waits for it below; it ends with the question.
	go func() { direct <- ask(directService) }()
	plain, tls := ask(starttlsService), <-direct

	var failed []Attempt
	var records []record
	denied := false
	for _, a := range []struct {
		answer
		service string
	}{{tls, directService}, {plain, starttlsService}} {
		if a.err != nil && !notFound(a.err) {
			failed = append(failed, Attempt{"_" + a.service + "._tcp." + host, "DNS", a.err})
		}
		for _, srv := range a.srv {
			name := strings.TrimSuffix(srv.Target, ".")
			switch {
			case name == "" && a.service == starttlsService:
				denied = true // the target "." means: no such service (RFC 2782)
			case name != "" && srv.Port != 0:
				t := target{host: name, port: strconv.Itoa(int(srv.Port)), direct: a.service == directService}
				records = append(records, record{t, srv.Priority, srv.Weight})
			}
		}
	}
	switch {
	case len(records) > 0:
		return order(records, rand.IntN), failed
	case denied:
		err := errors.New("the domain says that it has no XMPP server")
		return nil, append(failed, Attempt{"_" + starttlsService + "._tcp." + host, "DNS", err})
	}
	return fallback, failed
}

func notFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

// record is an SRV record of either kind.
type record struct {
	target
	priority, weight uint16
}

// order sorts records by priority, and those of one priority at random by
// weight (RFC 2782, "Weight"), both kinds mixed (XEP-0368, 4). rnd returns a
// number from 0 to n-1.
func order(records []record, rnd func(n int) int) []target {
	// Those of weight 0 first: so they have a small chance.
	slices.SortStableFunc(records, func(a, b record) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(min(a.weight, 1), min(b.weight, 1)))
	})
	var sorted []target
	for len(records) > 0 && len(sorted) < maxTargets {
		n, sum := 0, 0
		for n < len(records) && records[n].priority == records[0].priority {
			sum += int(records[n].weight)
			n++
		}
		at, rest := 0, rnd(sum+1)
		for rest > int(records[at].weight) {
			rest -= int(records[at].weight)
			at++
		}
		sorted = append(sorted, records[at].target)
		records = slices.Delete(records, at, at+1)
	}
	return sorted
}

// redirected makes a target of the host of a see-other-host (RFC 6120,
// 4.9.3.19). It is safe to follow, since the certificate must be for the
// account's domain there too.
func redirected(host string) (target, bool) {
	t, err := given(host, clientPort)
	return t, err == nil
}

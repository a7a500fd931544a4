package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// checkTimeout bounds each step of a check.
const checkTimeout = 10 * time.Second

// clockTimeout bounds a question that not every server answers.
const clockTimeout = 2 * time.Second

// soon is how long before its end a certificate is a problem.
const soon = 14 * 24 * time.Hour

// errProblems is the end of a check that found some.
var errProblems = fmt.Errorf("%w: problems", errTold)

// check is a run of 'dtcpd check': what was found so far.
type check struct {
	config   *config
	out      io.Writer
	problems int
	running  bool // the daemon is
	compared bool // the clock was, with another
}

func (f *flags) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Does the configuration work, as seen from outside?",
		Long: `check looks at everything that a relay needs, as its users would: do its addresses
resolve and answer, does the component log in, are certificates valid. Each line
of stdout is "ok" or "problem", what, and what to do. It exits with 0 if there is
no problem. The daemon may run, and should: who else would answer.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := f.load()
			if err != nil {
				return err
			}
			k := &check{config: config, out: os.Stdout}
			k.all(c.Context())
			if k.problems > 0 {
				return errProblems
			}
			return nil
		},
	}
}

func (k *check) ok(format string, args ...any) {
	fmt.Fprintf(k.out, "ok\t%s\n", clean(fmt.Sprintf(format, args...)))
}

func (k *check) problem(format string, args ...any) {
	k.problems++
	fmt.Fprintf(k.out, "problem\t%s\n", clean(fmt.Sprintf(format, args...)))
}

func (k *check) all(ctx context.Context) {
	if ctx == nil {
		ctx = context.Background()
	}
	k.ok("configuration: relay %v, for %s", k.config.domain, allowed(k.config.rules.Allow))
	if len(k.config.rules.Allow) == 0 {
		k.problem("access: nobody may have a lease: set relay.allow_domains")
	}
	k.files()
	k.descriptors()
	k.daemon(ctx)
	if k.config.Standalone == nil {
		k.component(ctx)
	} else {
		k.standalone(ctx)
	}
	k.addresses(ctx)
	k.clock()
}

// files looks at what must be secret.
func (k *check) files() {
	c := k.config
	secrets := []string{c.Relay.KeyFile}
	if c.Standalone == nil {
		secrets = append(secrets, c.Component.SecretFile)
	}
	if c.Relay.Key != "" {
		secrets = append(secrets, c.Relay.Key)
	}
	for _, path := range secrets {
		if exposed(path) {
			k.problem("secrets: all users can read %s: chmod o= it", path)
		} else if _, err := os.Stat(path); err != nil && path != c.Relay.KeyFile { // which is made if missing
			k.problem("secrets: %v", err)
		}
	}
	if len(c.Relay.PublicTLS) > 0 && c.Relay.Certificate != "" {
		pair, err := c.relayCertificate(time.Now())
		if err != nil {
			k.problem("certificate: %v", err)
			return
		}
		k.validity("certificate "+c.Relay.Certificate, pair.Leaf, "renew it, and reload dtcpd")
	}
}

// validity says whether a certificate is valid today, and what to do if not.
func (k *check) validity(what string, c *x509.Certificate, remedy string) {
	now := time.Now()
	switch {
	case now.Before(c.NotBefore):
		k.problem("%s: not valid before %s: is the clock right?", what, c.NotBefore.Format(time.DateTime))
	case now.After(c.NotAfter):
		k.problem("%s: expired on %s: %s", what, c.NotAfter.Format(time.DateOnly), remedy)
	case now.After(c.NotAfter.Add(-soon)):
		k.problem("%s: expires on %s: %s", what, c.NotAfter.Format(time.DateOnly), remedy)
	default:
		k.ok("%s: valid until %s", what, c.NotAfter.Format(time.DateOnly))
	}
}

// descriptors compares what the relay may need with what it may have. This is
// the limit of this process: that of a service is in its unit.
func (k *check) descriptors() {
	if short := k.config.shortage(); short != "" {
		k.problem("%s", short)
	} else if limit, known := descriptors(); known {
		k.ok("descriptors: %d at most", limit)
	}
}

// shortage says that a process like this one may have too few descriptors for
// the connections that it is to have, and what to do; "" if not.
func (c *config) shortage() string {
	limit, known := descriptors()
	most := c.rules.Connections
	if most == 0 {
		most = defaultConnections
	}
	// A sixteenth more that say nothing yet, and what all of them share.
	need := uint64(max(most, 0))*17/16 + 128
	if !known || limit >= need {
		return ""
	}
	return fmt.Sprintf("descriptors: %d at most, and limits.connections = %d may need %d: raise LimitNOFILE= or ulimit -n, or set a lower limits.connections", limit, most, need)
}

// defaultConnections is that of [relay.Limits].
const defaultConnections = 16384

// daemon asks the daemon how it is, if it runs.
func (k *check) daemon(ctx context.Context) {
	at := *k.config.Metrics.Listen
	if at == "" {
		k.ok("daemon: metrics.listen is empty, so it cannot be asked how it is")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if host, port, err := net.SplitHostPort(at); err == nil && host == "" {
		at = net.JoinHostPort("localhost", port)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/healthz", nil)
	if err != nil {
		k.problem("daemon: metrics.listen: %v", err)
		return
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		k.problem("daemon: it does not run, or not with this configuration: nobody answers at %s: start dtcpd and check again", at)
		return
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 4096)) // as much as there is
	said := strings.TrimSpace(string(text))
	switch {
	case answer.StatusCode == http.StatusOK && said == "ok":
		k.running = true
		k.ok("daemon: it runs and is well")
	case answer.StatusCode == http.StatusServiceUnavailable:
		k.running = true
		k.problem("daemon: it runs, but: %s", said)
	default:
		k.problem("daemon: something else answers at %s: %s", at, answer.Status)
	}
}

// component logs in for a moment, unless the daemon is logged in: some servers
// would throw that out.
func (k *check) component(ctx context.Context) {
	if k.running {
		return // it has said how the login is
	}
	c := k.config
	session, err := xmpp.NewComponent(&xmpp.ComponentConfig{Domain: c.domain, Secret: c.secret, Server: c.Component.Server, NoReconnect: true})
	if err != nil {
		k.problem("component: %v", err)
		return
	}
	defer session.Close()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var auth *xmpp.AuthError
	switch err := session.WaitLogin(ctx); {
	case err == nil:
		k.ok("component: %v logs in at %s", c.domain, c.Component.Server)
		k.serverClock(ctx, session)
	case errors.Is(err, xmpp.ErrConflict):
		k.ok("component: %v is logged in already", c.domain)
	case errors.As(err, &auth):
		k.problem("component: %v: compare the first line of %s with the server's configuration", auth, c.Component.SecretFile)
	default:
		k.problem("component: %s: see component.server and component.domain, and the server's configuration", strings.TrimPrefix(err.Error(), "xmpp: "))
	}
}

const nsTime = "urn:xmpp:time" // XEP-0202

// serverClock compares this clock with that of the XMPP server, if it tells.
func (k *check) serverClock(ctx context.Context, session *xmpp.Session) {
	_, parent, _ := strings.Cut(k.config.domain.Domain(), ".")
	to, err := parseDomain(parent)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	asked := time.Now()
	answer, err := session.RoundTrip(ctx, stanza.IQ{Header: stanza.Header{To: to}, Type: stanza.Get, Payload: stanza.New(nsTime, "time")})
	if err != nil {
		return
	}
	theirs, err := time.Parse(time.RFC3339Nano, answer.Payload.Child(nsTime, "utc").Text())
	if err != nil {
		return
	}
	k.compared = true
	if d := theirs.Sub(asked).Abs(); d > wire.ClockSkew/5 {
		k.problem("clock: %v from that of %v: set it (leases allow %v)", d.Round(time.Second), to, wire.ClockSkew)
		return
	}
	k.ok("clock: like that of %v", to)
}

// clock says what time it is here, for whoever can compare.
func (k *check) clock() {
	if !k.compared {
		k.ok("clock: %s here; leases allow %v of difference", time.Now().UTC().Format(time.RFC3339), wire.ClockSkew)
	}
}

// standalone looks at the accounts and the XMPP port.
func (k *check) standalone(ctx context.Context) {
	c := k.config
	a, err := readAccounts(c.State)
	switch {
	case err != nil:
		k.problem("accounts: %v", err)
	case len(a) == 0:
		k.problem("accounts: there are none: dtcpd account add NAME --data %s", c.State)
	default:
		k.ok("accounts: %d in %s", len(a), c.State)
	}
	certificate, err := keptCertificate(c.State, "xmpp.pem", c.Standalone.Domain, time.Now())
	if err != nil {
		k.problem("certificate of the XMPP server: %v", err)
		return
	}
	k.validity("certificate of the XMPP server", certificate.Leaf,
		fmt.Sprintf("remove %s and restart dtcpd; then all users log in anew", filepath.Join(c.State, "xmpp.pem")))
	address := c.Standalone.Public
	if address == "" {
		if address = c.Standalone.Listen[0]; strings.HasSuffix(address, ":0") {
			return // only the daemon knows
		}
	}
	conn, err := k.dial(ctx, address)
	if err != nil {
		k.problem("XMPP port %s: %v", address, k.unreachable(err))
		return
	}
	defer conn.Close()
	if _, err := secured(ctx, conn, "xmpp-client", certificate); err != nil {
		k.problem("XMPP port %s: %v", address, err)
		return
	}
	k.ok("XMPP port %s: answers, with the certificate of this server", address)
}

// dial resolves and connects, and gives the whole conversation a deadline.
func (k *check) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: checkTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(checkTimeout))
}

// unreachable adds to a failed connection what it may mean.
func (k *check) unreachable(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("%v: make a DNS record for it", err)
	case !k.running:
		return fmt.Sprintf("%v: start dtcpd and check again", err)
	}
	return fmt.Sprintf("%v: open the port in the firewall, or forward it (a router may refuse its own network: check from outside, too)", err)
}

// secured does a TLS handshake on conn, and compares the certificate, as those
// do who pin it.
func secured(ctx context.Context, conn net.Conn, protocol string, want tls.Certificate) (net.Conn, error) {
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS12})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("no TLS: %w", err)
	}
	got := tls.Certificate{Certificate: [][]byte{c.ConnectionState().PeerCertificates[0].Raw}}
	if pinOf(got) != pinOf(want) {
		return nil, fmt.Errorf("its certificate is %s and should be %s: does something else have the port?", pinOf(got), pinOf(want))
	}
	return c, nil
}

// addresses asks the relay at everything that leases name what it sees.
func (k *check) addresses(ctx context.Context) {
	c := k.config
	public := c.Relay.Public
	if len(public) == 0 {
		public = k.own()
	}
	for _, address := range public {
		k.address(ctx, address, nil)
	}
	if len(c.Relay.PublicTLS) == 0 {
		return
	}
	certificate, err := c.relayCertificate(time.Now())
	if err != nil {
		k.problem("certificate of the relay: %v", err)
		return
	}
	for _, address := range c.Relay.PublicTLS {
		k.address(ctx, address, &certificate)
	}
}

// own returns the addresses that peers are told of when the configuration names
// none.
func (k *check) own() (addresses []string) {
	own, err := interfaceAddresses()
	if err != nil {
		k.problem("addresses: %v", err)
	}
	for _, listen := range k.config.Relay.Listen {
		at, err := net.ResolveTCPAddr("tcp", listen)
		if err != nil || at.Port == 0 {
			continue // newDaemon says why, or only the daemon knows
		}
		if at.IP == nil {
			at.IP = net.IPv6unspecified
		}
		for _, a := range reachable(at, own) {
			addresses = append(addresses, a.String())
		}
	}
	if len(addresses) == 0 {
		k.problem("addresses: this machine has none that peers could be told: set relay.public")
	}
	return addresses[:min(len(addresses), maxHosts-len(k.config.Relay.PublicTLS))]
}

// address tries every IP address that a name stands for: peers may know only
// one family.
func (k *check) address(ctx context.Context, address string, certificate *tls.Certificate) {
	host, number, err := splitPublic(address)
	if err != nil {
		k.problem("address %s: %v", address, err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 3*checkTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		k.problem("address %s: %v: make a DNS record for it", address, err)
		return
	}
	for _, ip := range found {
		at := netip.AddrPortFrom(ip.Unmap(), number)
		what := "address " + address
		if host != ip.Unmap().String() {
			what += " (" + ip.Unmap().String() + ")"
		}
		if certificate != nil {
			what += " by TLS"
		}
		seen, err := k.observe(ctx, at.String(), certificate)
		if err != nil {
			k.problem("%s: %v", what, err)
			continue
		}
		k.ok("%s: answers, and sees this machine as %s", what, seen)
	}
}

// observe has the relay say from where it is asked (Section 3 of protocol.md).
func (k *check) observe(ctx context.Context, address string, certificate *tls.Certificate) (string, error) {
	conn, err := k.dial(ctx, address)
	if err != nil {
		return "", errors.New(k.unreachable(err))
	}
	defer func(tcp net.Conn) { tcp.Close() }(conn)
	if certificate != nil {
		if conn, err = secured(ctx, conn, "dtcp-relay", *certificate); err != nil {
			return "", err
		}
	}
	if _, err := conn.Write(wire.Line{Command: wire.Observe}.Append(nil)); err != nil {
		return "", err
	}
	line, err := wire.NewReader(bufio.NewReader(conn)).Line()
	if err != nil {
		return "", fmt.Errorf("connects, but does not answer like a relay: %w: does something else have the port?", err)
	}
	if line.Command != wire.OK {
		return "", fmt.Errorf("refuses: %s", strconv.Quote(line.String()))
	}
	return line.Argument, nil
}

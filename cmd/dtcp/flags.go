package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// options are the flags that all commands share, before or after the
// arguments. The upper half is what was given, the lower what check made of it.
type options struct {
	accountFlag  string
	passwordFile string
	config       string
	server       string
	caFile       string
	trustFlag    string
	port         int
	publicFlag   string
	directOnly   bool
	relayOnly    bool
	noGateway    bool
	relayFlag    string
	allowPlain   bool
	certFile     string
	keyFile      string
	timeout      time.Duration
	retry        time.Duration
	json         bool
	log          string
	verbose      bool
	showVersion  bool

	account jid.JID          // zero: the default
	relay   jid.JID          // zero: to be found
	pin     dtcp.Fingerprint // zero: none
	ca      string           // PEM, "": the system's
	listen  string           // Config.Listen
	public  string           // Config.Public
}

func (o *options) register(f *pflag.FlagSet) {
	f.StringVar(&o.accountFlag, "account", "", "`JID` to log in as (default: that of the last login)")
	f.StringVar(&o.passwordFile, "password-file", "", "`file` whose first line is the password (default: $DTCP_PASSWORD, what login remembered, or the terminal)")
	f.StringVar(&o.config, "config", "", "configuration `directory` (default: $DTCP_CONFIG, or dtcp in the user's)")
	f.StringVar(&o.server, "server", "", "`host:port` of the XMPP server (default: found by DNS)")
	f.StringVar(&o.caFile, "ca", "", "`file` of certificates that replace the system's authorities for the XMPP server")
	f.StringVar(&o.trustFlag, "trust", "", "`sha256:…` of the one certificate of the XMPP server to accept")
	f.IntVar(&o.port, "port", 0, "TCP `port` to accept streams at (default: any)")
	f.StringVar(&o.publicFlag, "public", "", "`addr:port` to offer besides those found; a loopback address: listen there alone")
	f.BoolVar(&o.directOnly, "direct-only", false, "never go through a relay")
	f.BoolVar(&o.relayOnly, "relay-only", false, "go through a relay of our own alone, and reveal no address of this machine")
	f.StringVar(&o.relayFlag, "relay", "", "`JID` of the relay, or XEP-0065 proxy, to use (default: the one that the XMPP server lists)")
	f.BoolVar(&o.noGateway, "no-gateway", false, "send no packet to the gateway of the network, which else is asked to let peers in (also: $"+noGatewayVariable+")")
	f.BoolVar(&o.allowPlain, "allow-plain", false, "allow streams without authentication with peers that know only XEP-0046")
	f.StringVar(&o.certFile, "cert", "", "`file` of the certificate to present to peers (default: one made at first use)")
	f.StringVar(&o.keyFile, "key", "", "`file` of its private key")
	f.DurationVar(&o.timeout, "timeout", 0, "give up when there is no stream after this `time`, such as 10s (default: 30s for each step)")
	f.DurationVar(&o.retry, "retry", 0, "of send: when it is cut, or nobody is there, try again for this `time`, such as 1h")
	f.BoolVar(&o.json, "json", false, "one JSON object a line: on stdout, for dial, listen and receive --dir - on stderr")
	f.StringVar(&o.log, "log", "", "append messages, stanzas and what happens in between to this `file`")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show stanzas and what happens in between")
	f.BoolVar(&o.showVersion, "version", false, "print the version and exit")
	f.SortFlags = false
}

// check reads the values. Whatever it finds wrong is a usage error.
func (o *options) check() (err error) {
	if o.accountFlag != "" {
		if o.account, err = parseAccount(o.accountFlag); err != nil {
			return fmt.Errorf("--account: %w", err)
		}
	}
	if o.trustFlag != "" {
		if o.pin, err = dtcp.ParseFingerprint(o.trustFlag); err != nil {
			return fmt.Errorf("--trust: %w", err)
		}
		if o.pin.IsZero() {
			return errors.New("--trust: no certificate has this fingerprint")
		}
	}
	if o.caFile != "" {
		if o.ca, err = readCertificates(o.caFile); err != nil {
			return fmt.Errorf("--ca: %w", err)
		}
	}
	if o.relayFlag != "" {
		if o.relay, err = jid.Parse(o.relayFlag); err == nil && o.relay.Local() != "" {
			err = fmt.Errorf("%q is no relay: that looks like relay.example.org", o.relayFlag)
		}
		if err != nil {
			return fmt.Errorf("--relay: %w", err)
		}
	}
	if o.server != "" {
		host, port, err := net.SplitHostPort(o.server)
		if err != nil || host == "" || strings.ContainsAny(host, " /@[]") || !isPort(port) {
			return fmt.Errorf("--server: %q is not HOST:PORT", o.server)
		}
	}
	switch {
	case o.port < 0 || o.port > 65535:
		return fmt.Errorf("--port: %d is no TCP port", o.port)
	case o.directOnly && o.relayOnly:
		return errors.New("--direct-only and --relay-only leave nothing to try")
	case (o.certFile == "") != (o.keyFile == ""):
		return errors.New("--cert and --key go together")
	case o.timeout < 0:
		return fmt.Errorf("--timeout: %v is less than nothing", o.timeout)
	case o.retry < 0:
		return fmt.Errorf("--retry: %v is less than nothing", o.retry)
	}
	return o.checkAddresses()
}

// isPort reports whether s is the number of a TCP port.
func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// checkAddresses reads --port and --public. A loopback address is of use on
// this machine only, so it means: there and nowhere else, for trying things.
func (o *options) checkAddresses() error {
	if o.port != 0 {
		o.listen = ":" + strconv.Itoa(o.port)
	}
	if o.publicFlag == "" {
		return nil
	}
	public, err := netip.ParseAddrPort(o.publicFlag)
	if err != nil || public.Addr().IsUnspecified() {
		return fmt.Errorf("--public: %q is not ADDR:PORT with an IP address", o.publicFlag)
	}
	if !public.Addr().IsLoopback() {
		o.public = public.String()
		return nil
	}
	if public.Port() == 0 {
		public = netip.AddrPortFrom(public.Addr(), uint16(o.port))
	} else if o.port != 0 && int(public.Port()) != o.port {
		return fmt.Errorf("--public %v and --port %d: on a loopback address the port is one", public, o.port)
	}
	o.listen = public.String()
	return nil
}

// paths returns what --direct-only and --relay-only say.
func (o *options) paths() dtcp.PathPolicy {
	switch {
	case o.directOnly:
		return dtcp.DirectOnly
	case o.relayOnly:
		return dtcp.RelayOnly
	}
	return dtcp.Any
}

// noGatewayVariable is --no-gateway for all commands, unless it is empty or 0.
const noGatewayVariable = "DTCP_NO_GATEWAY"

// gateway reports whether the gateway of the network may be asked to let peers
// in. Where none is to come by a direct path, there is no use in it.
func (o *options) gateway() bool {
	set := os.Getenv(noGatewayVariable)
	return !o.noGateway && (set == "" || set == "0") && !o.relayOnly
}

// relays returns what --relay says, for [dtcp.Config].
func (o *options) relays() []jid.JID {
	if o.relay.IsZero() {
		return nil
	}
	return []jid.JID{o.relay}
}

func parseAccount(s string) (jid.JID, error) {
	j, err := jid.Parse(s)
	if err == nil && j.Local() == "" {
		err = fmt.Errorf("%q is no account: it looks like name@example.org", s)
	}
	return j, err
}

func parsePeer(s string) (jid.JID, error) {
	j, err := jid.Parse(s)
	if err != nil {
		return j, &usageError{fmt.Errorf("%w: an address looks like name@example.org", err)}
	}
	return j, nil
}

// maxCertificates bounds what is read of a file of authorities, in bytes: the
// whole set of an operating system has some 300,000.
const maxCertificates = 4 << 20

func readCertificates(path string) (string, error) {
	pem, err := readUpTo(path, maxCertificates)
	if err != nil {
		return "", err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return "", fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	return string(pem), nil
}

// readUpTo reads a file that must not have more than max bytes.
func readUpTo(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readLimited(f, max)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// serviceAlphabet is that of services (Section 2 of protocol.md).
const serviceAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~+/=-"

// serviceFlag adds --service and returns where its value will be.
func serviceFlag(f *pflag.FlagSet, usage string) *serviceName {
	name := serviceName("pipe")
	f.Var(&name, "service", usage)
	return &name
}

// serviceName is a flag value that is a valid service.
type serviceName string

func (n *serviceName) String() string { return string(*n) }
func (n *serviceName) Type() string   { return "name" }
func (n *serviceName) Set(s string) error {
	if s == "" || len(s) > 64 || strings.Trim(s, serviceAlphabet) != "" {
		return errors.New("a service is 1 to 64 of the characters A-Z a-z 0-9 . _ ~ + / = -")
	}
	*n = serviceName(s)
	return nil
}

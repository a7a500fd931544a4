//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// RelayPort is where a relay on a [Host] takes lines.
const RelayPort = 5280

// StartRelayOn starts the built dtcpd at binary on a host with two IPv4
// addresses, as the component of a server on the same internet, and waits until
// it is logged in. It is reached at both addresses and at the first of IPv6, and
// within TLS at port 443 of the first. The further lines are the end of its
// configuration.
func StartRelayOn(tb testing.TB, binary string, server *Server, host *Host, lines ...string) *Process {
	tb.Helper()
	dir := tb.TempDir()
	config := filepath.Join(dir, "dtcpd.toml")
	const metrics = "127.0.0.1:9465"
	text := fmt.Appendf(nil, relayConfig, filepath.Join(dir, "state"), server.ComponentAddr, server.Component, server.SecretFile,
		at(host.V4, RelayPort), at(host.More[0], RelayPort), at(host.V6, RelayPort), at(host.V4, 443), server.Domain, metrics)
	for _, line := range lines {
		text = fmt.Appendf(text, "%s\n", line)
	}
	writeFile(tb, config, text)
	log := &logBuffer{}
	showOnFailure(tb, "dtcpd", log.String)
	command := host.Command(binary, "--config", config)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = os.Environ()
	cmd.Stdout, cmd.Stderr = log, log
	p := Launch(tb, "dtcpd", cmd)

	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			return host.Dial(netip.AddrPort{}, netip.MustParseAddrPort(addr), time.Second)
		},
	}}
	for deadline := time.Now().Add(startLimit); ; {
		answer, err := client.Get("http://" + metrics + "/healthz")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return p
			}
			err = fmt.Errorf("%s", answer.Status)
		}
		if time.Now().After(deadline) {
			tb.Fatalf("lab: dtcpd is not well: %v", err)
		}
		select {
		case <-p.done:
			tb.Fatalf("lab: dtcpd ended (%v) before it was well", p.err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// at is an address and port as configurations have them.
func at(ip netip.Addr, port uint16) string { return netip.AddrPortFrom(ip, port).String() }

// relayConfig takes the state directory, the component's server, domain and
// secret, the four addresses, the domain whose users are let in, and where
// metrics are.
const relayConfig = `state = %q
[component]
server = %q
domain = %q
secret_file = %q
[relay]
listen = [":5280", ":443"]
public = [%q, %q, %q]
public_tls = [%q]
allow_domains = [%q]
[metrics]
listen = %q
`

//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// StartProsody starts a Prosody 0.12 for the domain prosody.test.
//
// Accounts are hashed with SHA-1, Prosody's default, so it offers SCRAM-SHA-1.
// Its proxy has nothing to tune: [TunedProxy] is [Proxy].
func StartProsody(tb testing.TB, extras ...Extra) *Server {
	tb.Helper()
	return startProsody(tb, nil, extras)
}

// StartProsodyOn is StartProsody on a host of an internet, at all its addresses:
// at port 5222 with STARTTLS, at 443 with TLS.
func StartProsodyOn(tb testing.TB, host *Host, extras ...Extra) *Server {
	tb.Helper()
	return startProsody(tb, host, extras)
}

// startProsody starts a Prosody on a host; nil is the lab's own network.
func startProsody(tb testing.TB, host *Host, extras []Extra) *Server {
	tb.Helper()
	const domain = "prosody.test"
	prosody, ctl := path(tb, "prosody"), path(tb, "prosodyctl")
	dir := tb.TempDir()
	certs := newCertificates(tb, dir, domain)
	installModule(tb, filepath.Join(dir, "plugins"), "mod_lab_iq_log.lua")
	config := filepath.Join(dir, "prosody.cfg.lua")
	log := filepath.Join(dir, "prosody.log")
	data := filepath.Join(dir, "data")
	ip, interfaces := netip.AddrFrom4([4]byte{127, 0, 0, 1}), `"127.0.0.1"`
	port, tlsPort := uint16(FreePort(tb)), uint16(FreePort(tb))
	if host != nil {
		ip, interfaces = host.V4, `"*", "::"`
		port, tlsPort = 5222, 443
	}

	s := &Server{
		Name: "prosody", Domain: domain,
		Addr: netip.AddrPortFrom(ip, port).String(), DirectTLS: netip.AddrPortFrom(ip, tlsPort).String(),
		CAFile: certs.CA, Chain: certs.Chain, iqLog: filepath.Join(dir, "iq.log"), host: host,
	}
	s.extend(tb, dir, extras)
	text := fmt.Appendf(nil, prosodyConfig, dir, interfaces, port, tlsPort)
	if s.Component != "" {
		text = fmt.Appendf(text, "component_ports = { %s }\ncomponent_interfaces = { %s }\n", portOf(s.ComponentAddr), interfaces)
	}
	if s.Proxy != "" {
		text = fmt.Appendf(text, "proxy65_ports = { %d }\n", FreePort(tb))
	}
	text = fmt.Appendf(text, "VirtualHost %q\n", domain)
	if s.Component != "" {
		text = fmt.Appendf(text, "Component %q\n\tcomponent_secret = %q\n", s.Component, componentSecret)
	}
	if s.Proxy != "" {
		text = fmt.Appendf(text, "Component %q \"proxy65\"\n\tproxy65_address = \"127.0.0.1\"\n", s.Proxy)
	}
	writeFile(tb, config, text)
	s.register = func(tb testing.TB, a Account) {
		tb.Helper()
		out, err := exec.Command(ctl, "--config", config, "register", a.Name, domain, a.Password).CombinedOutput()
		if err != nil {
			tb.Fatalf("lab: prosodyctl register %s: %v\n%s", a.JID, err, out)
		}
	}
	// The roster is read when its owner logs in, from a file named for it.
	s.befriend = func(tb testing.TB, owner, contact Account) {
		tb.Helper()
		file := filepath.Join(data, strings.ReplaceAll(domain, ".", "%2e"), "roster", owner.Name+".dat")
		addRosterItem(tb, file, contact.JID)
	}

	output := &logBuffer{}
	showOnFailure(tb, "Prosody's output", output.String)
	showOnFailure(tb, "Prosody's log", tailOf(log))
	s.launch = func(tb testing.TB) *Process {
		tb.Helper()
		command := []string{prosody, "-F", "--config", config}
		if host != nil {
			command = host.Command(command...)
		}
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, output, output
		cmd.Env = append(os.Environ(), "LAB_IQ_LOG="+s.iqLog)
		p := Launch(tb, "prosody", cmd)
		s.await(tb, p, s.Addr)
		s.await(tb, p, s.DirectTLS)
		if s.Component != "" {
			s.await(tb, p, s.ComponentAddr)
		}
		return p
	}
	s.process = s.launch(tb)
	return s
}

// prosodyConfig takes the folder, the interfaces, the STARTTLS port and the TLS
// port. The hosts follow it.
const prosodyConfig = `
local dir = %q
run_as_root = true
daemonize = false
pidfile = dir .. "/prosody.pid"
data_path = dir .. "/data"
certificates = dir
plugin_paths = { dir .. "/plugins" }
modules_enabled = { "roster", "saslauth", "tls", "disco", "ping", "smacks", "carbons", "lab_iq_log" }
modules_disabled = { "s2s", "s2s_auth_certs" }
interfaces = { %s }
c2s_ports = { %d }
c2s_direct_tls_ports = { %d }
c2s_require_encryption = true
authentication = "internal_hashed"
ssl = { key = dir .. "/key.pem", certificate = dir .. "/chain.pem" }
log = { { levels = { min = "debug" }, to = "file", filename = dir .. "/prosody.log" } }
`

// addRosterItem adds a contact with a subscription both ways to a roster in
// Prosody's storage format: a Lua file that returns one table.
func addRosterItem(tb testing.TB, file, contact string) {
	tb.Helper()
	items, err := os.ReadFile(file)
	switch {
	case os.IsNotExist(err):
		items = []byte("return {\n\t[false] = { [\"version\"] = 1 };\n};\n")
	case err != nil:
		tb.Fatalf("lab: %v", err)
	}
	item := fmt.Sprintf("\t[%q] = { [\"subscription\"] = \"both\"; [\"groups\"] = {} };\n};\n", contact)
	writeFile(tb, file, []byte(strings.TrimSuffix(string(items), "};\n")+item))
}

//go:build linux

package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// StartEjabberd starts an ejabberd 23.01 for the domain ejabberd.test.
//
// Accounts are hashed with SHA-256, so it offers SCRAM-SHA-256. It runs from
// erl itself, without the name server epmd, which would stay behind.
func StartEjabberd(tb testing.TB, extras ...Extra) *Server {
	tb.Helper()
	const domain = "ejabberd.test"
	path(tb, "ejabberdctl")
	erl, erlc := path(tb, "erl"), path(tb, "erlc")
	dir := tb.TempDir()
	certs := newCertificates(tb, dir, domain)
	module := installModule(tb, dir, "mod_lab_iq_log.erl")
	config := filepath.Join(dir, "ejabberd.yml")
	log := filepath.Join(dir, "ejabberd.log")
	port, tlsPort, apiPort := FreePort(tb), FreePort(tb), FreePort(tb)

	s := &Server{
		Name: "ejabberd", Domain: domain, Addr: loopback(port), DirectTLS: loopback(tlsPort),
		CAFile: certs.CA, Chain: certs.Chain, iqLog: filepath.Join(dir, "iq.log"),
	}
	s.extend(tb, dir, extras)
	text := fmt.Appendf(nil, ejabberdConfig, domain, certs.Both, certs.CA, port, tlsPort, apiPort)
	if s.Component != "" {
		text = fmt.Appendf(text, ejabberdComponent, portOf(s.ComponentAddr), s.Component, componentSecret)
	}
	text = append(text, ejabberdModules...)
	if s.Proxy != "" {
		text = fmt.Appendf(text, ejabberdProxy, s.Proxy, FreePort(tb))
	}
	if slices.Contains(extras, TunedProxy) {
		text = append(text, ejabberdTuning...)
	}
	writeFile(tb, config, text)
	api := "http://" + loopback(apiPort) + "/api/"
	s.register = func(tb testing.TB, a Account) {
		tb.Helper()
		callAPI(tb, api+"register", map[string]string{"user": a.Name, "host": domain, "password": a.Password})
	}
	s.befriend = func(tb testing.TB, owner, contact Account) {
		tb.Helper()
		callAPI(tb, api+"add_rosteritem", map[string]string{
			"localuser": owner.Name, "localhost": domain, "user": contact.Name, "host": domain,
			"nick": contact.Name, "group": "", "subs": "both",
		})
	}

	libs := ejabberdLibraries(tb)
	env := append(os.Environ(),
		"ERL_LIBS="+libs, "HOME="+dir, "ERL_CRASH_DUMP="+filepath.Join(dir, "crash.dump"),
		"EJABBERD_CONFIG_PATH="+config, "EJABBERD_LOG_PATH="+log, "LAB_IQ_LOG="+s.iqLog)
	compile := exec.Command(erlc, "-o", dir, module)
	compile.Env = env
	if out, err := compile.CombinedOutput(); err != nil {
		tb.Fatalf("lab: erlc: %v\n%s", err, out)
	}

	output := &logBuffer{}
	showOnFailure(tb, "ejabberd's output", output.String)
	showOnFailure(tb, "ejabberd's log", tailOf(log))
	s.launch = func(tb testing.TB) *Process {
		tb.Helper()
		cmd := exec.Command(erl, "-noinput", "-pa", dir,
			"-mnesia", "dir", fmt.Sprintf("%q", filepath.Join(dir, "mnesia")), "-s", "ejabberd")
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, output, output
		p := Launch(tb, "ejabberd", cmd)
		for _, addr := range []string{s.Addr, s.DirectTLS, loopback(apiPort)} {
			awaitPort(tb, p, addr, startLimit)
		}
		if s.Component != "" {
			awaitPort(tb, p, s.ComponentAddr, startLimit)
		}
		return p
	}
	s.process = s.launch(tb)
	return s
}

// ejabberdConfig takes the domain, the file with key and certificates, the
// authority's file, the STARTTLS port, the TLS port and the port of the HTTP
// interface by which accounts are made. What else listens follows it, and then
// the modules.
const ejabberdConfig = `
loglevel: info
hosts: [%q]
certfiles: [%q]
ca_file: %q
auth_password_format: scram
auth_scram_hash: sha256
disable_sasl_mechanisms: [digest-md5, x-oauth2]
listen:
  - port: %d
    ip: 127.0.0.1
    module: ejabberd_c2s
    starttls_required: true
  - port: %d
    ip: 127.0.0.1
    module: ejabberd_c2s
    tls: true
  - port: %d
    ip: 127.0.0.1
    module: ejabberd_http
    request_handlers:
      /api: mod_http_api
`

// ejabberdComponent takes the port, the address and the secret.
const ejabberdComponent = `  - port: %s
    ip: 127.0.0.1
    module: ejabberd_service
    hosts:
      %q:
        password: %q
`

// ejabberdModules ends in the list of modules.
const ejabberdModules = `acl:
  loopback:
    ip: [127.0.0.0/8]
api_permissions:
  lab:
    who:
      access:
        allow: {acl: loopback}
    what: [register, add_rosteritem]
modules:
  mod_admin_extra: {}
  mod_carboncopy: {}
  mod_disco: {}
  mod_http_api: {}
  mod_ping: {}
  mod_roster: {}
  mod_stream_mgmt: {}
  mod_lab_iq_log: {}
`

// ejabberdProxy takes the address and the port.
const ejabberdProxy = `  mod_proxy65:
    host: %q
    port: %d
    ip: 127.0.0.1
    max_connections: infinity
`

// ejabberdTuning follows it: what makes that proxy two to three times as fast.
const ejabberdTuning = `    shaper: none
    recbuf: 1048576
    sndbuf: 1048576
`

// ejabberdLibraries finds the folder of ejabberd's Erlang applications, which
// Debian names for the processor.
func ejabberdLibraries(tb testing.TB) string {
	tb.Helper()
	found, err := filepath.Glob("/usr/lib/*/ejabberd-*/ebin/ejabberd.app")
	if err != nil || len(found) == 0 {
		tb.Fatalf("lab: ejabberd's applications are missing (%v): apt-get install --no-install-recommends ejabberd", err)
	}
	// Two names of one folder may be found; what holds them is what counts.
	return filepath.Dir(filepath.Dir(filepath.Dir(found[0])))
}

// callAPI calls one command of mod_http_api.
func callAPI(tb testing.TB, url string, arguments map[string]string) {
	tb.Helper()
	body, err := json.Marshal(arguments)
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	if err != nil || answer.StatusCode != http.StatusOK {
		tb.Fatalf("lab: %s: %s %s (%v)", url, answer.Status, text, err)
	}
}

//go:build linux

package lab

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
)

// An HAProxy is Debian's HAProxy as operators run it in front of TCP services:
// mode tcp, and splice(2) both ways from the first byte on, which is the least
// work it can do. It connects every client to one backend.
type HAProxy struct {
	Addr    string
	Process *Process
}

// StartHAProxy starts one whose backend is at the given address.
func StartHAProxy(tb testing.TB, backend string) *HAProxy {
	tb.Helper()
	program := path(tb, "haproxy")
	dir := tb.TempDir()
	config := filepath.Join(dir, "haproxy.cfg")
	h := &HAProxy{Addr: loopback(FreePort(tb))}
	writeFile(tb, config, fmt.Appendf(nil, haproxyConfig, h.Addr, backend))
	output := &logBuffer{}
	showOnFailure(tb, "HAProxy's output", output.String)
	cmd := exec.Command(program, "-db", "-f", config)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, output, output
	h.Process = Launch(tb, "haproxy", cmd)
	awaitPort(tb, h.Process, h.Addr, startLimit)
	return h
}

// haproxyConfig takes the address to listen on and that of the backend. The
// limit on connections is what 20,000 descriptors allow.
const haproxyConfig = `
global
    maxconn 9000
    maxpipes 800
defaults
    mode tcp
    backlog 4096
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    option splice-request
    option splice-response
listen relay
    bind %s
    server backend %s
`

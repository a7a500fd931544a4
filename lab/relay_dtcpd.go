//go:build linux

package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Relay is a running dtcpd, the component of a lab server, on loopback.
type Relay struct {
	*Process
	Addr     string // of its one port
	Domain   string // its address by XMPP
	config   string
	usage    string
	metrics  string // URL without path
	begin    string // of the configuration
	messages *logBuffer
}

// StartRelay starts the built dtcpd at binary as the component of server, and
// waits until it is logged in and listens. Users of the server may have leases.
// The lines are the end of its configuration: tables other than component,
// relay, metrics and usage.
func StartRelay(tb testing.TB, binary string, server *Server, lines string) *Relay {
	tb.Helper()
	dir := tb.TempDir()
	metrics := loopback(FreePort(tb))
	r := &Relay{
		Addr: loopback(FreePort(tb)), Domain: server.Component,
		config: filepath.Join(dir, "dtcpd.toml"), usage: filepath.Join(dir, "usage.jsonl"),
		metrics: "http://" + metrics, messages: &logBuffer{},
	}
	r.begin = fmt.Sprintf(dtcpdConfig, filepath.Join(dir, "state"), server.ComponentAddr, server.Component, server.SecretFile,
		r.Addr, server.Domain, metrics, r.usage)
	writeFile(tb, r.config, []byte(r.begin+lines))
	showOnFailure(tb, "dtcpd's messages", r.messages.String)
	cmd := exec.Command(binary, "--config", r.config)
	cmd.Env = cleanEnvironment()
	cmd.Stdout, cmd.Stderr = r.messages, r.messages
	r.Process = Launch(tb, "dtcpd", cmd)
	for deadline := time.Now().Add(startLimit); ; time.Sleep(20 * time.Millisecond) {
		_, err := r.get("/healthz")
		switch {
		case err == nil:
			return r
		case !r.Running():
			tb.Fatal("lab: dtcpd ended before it was healthy")
		case time.Now().After(deadline):
			tb.Fatalf("lab: dtcpd: %v", err)
		}
	}
}

// dtcpdConfig takes the state directory, the component's server, domain and
// secret, the port, the domain whose users are let in, where metrics are, and
// the usage log.
const dtcpdConfig = `state = %q
[component]
server = %q
domain = %q
secret_file = %q
[relay]
listen = [%q]
allow_domains = [%q]
[metrics]
listen = %q
[usage]
file = %q
`

// Reload replaces the lines of the configuration and has dtcpd read them.
func (r *Relay) Reload(tb testing.TB, lines string) {
	tb.Helper()
	writeFile(tb, r.config, []byte(r.begin+lines))
	if err := r.Signal(syscall.SIGHUP); err != nil {
		tb.Fatalf("lab: %v", err)
	}
}

// get returns what the port of metrics says at path.
func (r *Relay) get(path string) (string, error) {
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Get(r.metrics + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", path, answer.Status, text)
	}
	return string(text), nil
}

// Metrics returns what /metrics says now, by name with labels as it is written
// there.
func (r *Relay) Metrics() (map[string]float64, error) {
	text, err := r.get("/metrics")
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || at < 0 {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		values[line[:at]] = value
	}
	if len(values) == 0 {
		return nil, errors.New("no metrics")
	}
	return values, nil
}

// A UsageRecord is a line of the usage log.
type UsageRecord struct {
	Owner      string `json:"owner"`
	Kind       string `json:"kind"`
	Listener   string `json:"listener"`
	Dialer     string `json:"dialer"`
	ToListener int64  `json:"to_listener"`
	ToDialer   int64  `json:"to_dialer"`
	Why        string `json:"why"`
}

// UsageLog returns the records that are written so far.
func (r *Relay) UsageLog(tb testing.TB) []UsageRecord {
	tb.Helper()
	f, err := os.Open(r.usage)
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	defer f.Close()
	var records []UsageRecord
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil { // the end, or a line that is being written
			return records
		}
		var u UsageRecord
		if err := json.Unmarshal(line, &u); err != nil {
			tb.Fatalf("lab: usage log: %q: %v", line, err)
		}
		records = append(records, u)
	}
}

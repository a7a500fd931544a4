//go:build linux

package lab

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// An SSHD is a running OpenSSH server that lets in the user who runs the test.
type SSHD struct {
	Addr    string   // on loopback
	Login   string   // the user's name
	Options []string // for ssh: its identity and the server's key, checked under the name Alias
	process *Process
}

// sshAlias is the name under which the server's key is known to the client.
const sshAlias = "lab.invalid"

// StartSSHD starts sshd on loopback with a host key and an authorized key made
// for the test. Run by root, sshd insists on its folder /run/sshd, which is
// made: it is the one thing that the lab leaves outside its own folders.
func StartSSHD(tb testing.TB) *SSHD {
	tb.Helper()
	me, err := user.Current()
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	if me.Uid == "0" {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			tb.Fatalf("lab: %v", err)
		}
	}
	dir := tb.TempDir()
	hostKey, userKey := makeSSHKey(tb, dir, "host"), makeSSHKey(tb, dir, "user")
	port := FreePort(tb)
	config := filepath.Join(dir, "sshd_config")
	writeFile(tb, config, fmt.Appendf(nil, `ListenAddress 127.0.0.1:%d
HostKey %s
AuthorizedKeysFile %s.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
LogLevel VERBOSE
`, port, hostKey, userKey))
	public, err := os.ReadFile(hostKey + ".pub")
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	known := filepath.Join(dir, "known_hosts")
	writeFile(tb, known, []byte(sshAlias+" "+string(public)))

	log := &logBuffer{}
	cmd := exec.Command(path(tb, "sshd"), "-D", "-e", "-f", config)
	cmd.Stdout, cmd.Stderr = log, log
	showOnFailure(tb, "sshd", log.String)
	p := Launch(tb, "sshd", cmd)
	s := &SSHD{Addr: loopback(port), Login: me.Username, process: p, Options: []string{
		"-F", "none", "-i", userKey,
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + known,
		"-o", "HostKeyAlias=" + sshAlias,
	}}
	awaitPort(tb, p, s.Addr, startLimit)
	return s
}

// makeSSHKey makes an Ed25519 key pair and returns the private key's file.
func makeSSHKey(tb testing.TB, dir, name string) string {
	tb.Helper()
	file := filepath.Join(dir, name+"_key")
	out, err := exec.Command(path(tb, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput()
	if err != nil {
		tb.Fatalf("lab: ssh-keygen: %v\n%s", err, out)
	}
	return file
}

// SSH is the command line that runs a command on s through a proxy command,
// which is itself a command line.
func (s *SSHD) SSH(tb testing.TB, proxy []string, command string) []string {
	tb.Helper()
	quoted := make([]string, len(proxy))
	for i, word := range proxy {
		quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	line := append([]string{path(tb, "ssh")}, s.Options...)
	return append(line, "-o", "ProxyCommand="+strings.Join(quoted, " "), s.Login+"@"+sshAlias, command)
}

// SCP is the command line that copies a file, or a folder with all it holds, to
// an absolute path at s.
func (s *SSHD) SCP(tb testing.TB, source, target string) []string {
	tb.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	line := append([]string{path(tb, "scp"), "-q", "-r", "-p", "-P", port}, s.Options...)
	return append(line, source, s.Login+"@"+host+":"+target)
}

// CPU is the processor time of the connections that have ended. It waits until
// none is left.
func (s *SSHD) CPU(tb testing.TB) time.Duration {
	tb.Helper()
	pid := s.process.cmd.Process.Pid
	for deadline := time.Now().Add(stopGrace); ; time.Sleep(time.Millisecond) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		if err != nil {
			tb.Fatalf("lab: %v", err)
		}
		if len(children) == 0 {
			break
		}
		if time.Now().After(deadline) {
			tb.Fatalf("lab: sshd still serves %s", children)
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	// Behind the name, which is in parentheses, the 14th and the 15th field are
	// the times of the reaped children, in hundredths of a second: proc(5).
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	var ticks int64
	for _, field := range fields[13:15] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			tb.Fatalf("lab: /proc/%d/stat: %v", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

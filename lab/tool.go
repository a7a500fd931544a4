//go:build linux

package lab

import (
	"os/exec"
	"testing"
)

// A Tool is a program that the lab runs and the Debian 12 package it comes in.
type Tool struct {
	Name    string // as looked up in PATH
	Package string
}

// Tools lists every program the lab runs. The continuous integration script
// installs their packages; a test holds the two lists together.
var Tools = []Tool{
	{"prosody", "prosody"},
	{"prosodyctl", "prosody"},
	{"ejabberdctl", "ejabberd"}, // never run: its presence tells that ejabberd's modules are there
	{"erl", "erlang-base"},
	{"erlc", "erlang-base"},
	{"haproxy", "haproxy"},
	{"/usr/bin/python3", "python3"}, // Debian's own, which finds Debian's slixmpp
	{"sshd", "openssh-server"},
	{"ssh", "openssh-client"},
	{"ssh-keygen", "openssh-client"},
	{"scp", "openssh-client"},
	{"setpriv", "util-linux"},
	{"git", "git"},
	{"tar", "tar"},
	{"sha256sum", "coreutils"},
	{"ip", "iproute2"},
	{"nft", "nftables"},
	{"miniupnpd", "miniupnpd"},
}

// path finds the program of that name, which must be in [Tools]. It fails the
// test, saying what to install, when the program is missing.
func path(tb testing.TB, name string) string {
	tb.Helper()
	for _, tool := range Tools {
		if tool.Name != name {
			continue
		}
		file, err := exec.LookPath(name)
		if err != nil {
			// sshd lives where a user's PATH does not always lead.
			file, err = exec.LookPath("/usr/sbin/" + name)
		}
		if err != nil {
			tb.Fatalf("lab: %s is missing: apt-get install --no-install-recommends %s", name, tool.Package)
		}
		return file
	}
	tb.Fatalf("lab: %s is not among the lab's tools", name)
	return ""
}

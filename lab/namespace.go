//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// insideVariable tells the process that it runs in the lab's own network.
const insideVariable = "DTCP_LAB_NETWORK"

// Inside reports whether this process runs in the lab's own network.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Reenter runs this program once more, with the same arguments and the further
// environment, in a network namespace of its own that has nothing but loopback,
// and returns its exit status. There no packet can leave the machine, every
// port is free, and firewall rules are nobody else's. What it mounts is its own
// too. It needs root.
func Reenter(environment ...string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(append(os.Environ(), environment...), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET,
		// Not cloned: package syscall makes the mounts private after an unshare only.
		Unshareflags: syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if exit.ExitCode() < 0 {
			return 0, err
		}
		return exit.ExitCode(), nil
	}
	if errors.Is(err, syscall.EPERM) {
		return 0, errors.New("the lab makes a network namespace: run it as root")
	}
	return 0, err
}

// RaiseLoopback switches the loopback interface of a new namespace on.
func RaiseLoopback() error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s (apt-get install --no-install-recommends iproute2)", err, out)
	}
	return nil
}

// Unreachable makes the firewall of the lab's network refuse every connection
// to the TCP port until the test ends: whoever listens there cannot accept.
func Unreachable(tb testing.TB, port int) {
	tb.Helper()
	if !Inside() {
		tb.Fatal("lab: no firewall rules outside the lab's own network")
	}
	nft := path(tb, "nft")
	table := fmt.Sprintf("lab_port_%d", port)
	run := func(rules string) {
		tb.Helper()
		if out, err := exec.Command(nft, rules).CombinedOutput(); err != nil {
			tb.Errorf("lab: nft %s: %v: %s", rules, err, out)
		}
	}
	run(fmt.Sprintf("add table inet %s; add chain inet %s input { type filter hook input priority 0; }; "+
		"add rule inet %s input tcp dport %d ct state new reject with tcp reset", table, table, table, port))
	tb.Cleanup(func() { run("delete table inet " + table) })
}

//go:build unix

package main

import (
	"os"
	"os/exec"
	"syscall"
)

// What the system calls a network error that is explained.
var (
	refusedErrors      = []error{syscall.ECONNREFUSED}
	resetErrors        = []error{syscall.ECONNRESET, syscall.EPIPE}
	inUseErrors        = []error{syscall.EADDRINUSE}
	notConnectedErrors = []error{syscall.ENOTCONN}
	noReaderErrors     = []error{syscall.EPIPE}
)

// modeTells says whether the mode of a file tells who can read it.
const modeTells = true

// openTerminal opens the terminal that the process was started from.
func openTerminal() (in, out *os.File, err error) {
	if in, err = os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	if out, err = os.OpenFile("/dev/tty", os.O_WRONLY, 0); err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, out, nil
}

// shell returns what runs a command line, in a process group of its own, so
// that all that it starts can be ended together.
func shell(line string) *exec.Cmd {
	c := exec.Command("sh", "-c", line)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

// terminate asks the command and what it started to end; kill does not ask.
func terminate(c *exec.Cmd) { syscall.Kill(-c.Process.Pid, syscall.SIGTERM) }
func kill(c *exec.Cmd)      { syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }

package main

import (
	"os"
	"os/exec"
	"syscall"
)

// What the system calls a network error that is explained. The constants of
// package syscall that have the names of Unix are none of Windows's own, but
// what package os and others make up.
var (
	refusedErrors      = []error{syscall.Errno(10061), syscall.ECONNREFUSED}                                        // WSAECONNREFUSED
	resetErrors        = []error{syscall.WSAECONNRESET, syscall.WSAECONNABORTED, syscall.ECONNRESET, syscall.EPIPE} //
	inUseErrors        = []error{syscall.Errno(10048), syscall.EADDRINUSE}                                          // WSAEADDRINUSE
	notConnectedErrors = []error{syscall.Errno(10057), syscall.Errno(10058), syscall.ENOTCONN}                      // WSAENOTCONN, WSAESHUTDOWN
	noReaderErrors     = []error{syscall.ERROR_BROKEN_PIPE, syscall.Errno(232), syscall.EPIPE}                      // ERROR_NO_DATA
)

// modeTells says whether the mode of a file tells who can read it.
const modeTells = false

// openTerminal opens the console that the process was started from.
func openTerminal() (in, out *os.File, err error) {
	if in, err = os.OpenFile("CONIN$", os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	if out, err = os.OpenFile("CONOUT$", os.O_WRONLY, 0); err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, out, nil
}

// shell returns what runs a command line: sh where there is one, as that of
// Git, else the system's. The latter takes the line as it stands; the quoting
// of package exec is not for it.
func shell(line string) *exec.Cmd {
	if sh, err := exec.LookPath("sh"); err == nil {
		return exec.Command(sh, "-c", line)
	}
	c := exec.Command("cmd")
	c.SysProcAttr = &syscall.SysProcAttr{CmdLine: "cmd /S /C \"" + line + "\""}
	return c
}

// Windows knows no way to ask.
func terminate(c *exec.Cmd) { c.Process.Kill() }
func kill(c *exec.Cmd)      { c.Process.Kill() }

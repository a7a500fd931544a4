package main

import (
	"os"
	"os/exec"
	"syscall"
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

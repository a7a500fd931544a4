package main

import (
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is the other end of a process's terminal: what is written to it is
// typed.
type terminal struct {
	*os.File
	theirs  *os.File
	drained chan struct{} // closed when all is read
}

// openTTY gives a program, which is not started yet, a terminal for its stdin
// and stderr. What it prints there goes to w.
func openTTY(c *exec.Cmd, w io.Writer) (*terminal, error) {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	fd := int(ours.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return nil, err
	}
	theirs, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	c.Stdin, c.Stderr = theirs, theirs
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	t := &terminal{ours, theirs, make(chan struct{})}
	// Owned by the process's entry; it ends when nobody has the terminal open any
	// more, and drain waits for it.
	go func() {
		defer close(t.drained)
		io.Copy(w, ours)
	}()
	return t, nil
}

// started is called when the program has the terminal.
func (t *terminal) started() { t.theirs.Close() }

// drain waits for the last that the program has printed.
func (t *terminal) drain() { <-t.drained }

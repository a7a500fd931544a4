package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropTyped drops the lines that were typed on a terminal and not read yet.
func dropTyped(terminal *os.File) {
	if c, err := terminal.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIFLUSH) })
	}
}

package dtcp

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// sharePort has a socket share its port with others. Windows knows no
// SO_REUSEPORT; its SO_REUSEADDR is what that is elsewhere.
func sharePort(_, _ string, c syscall.RawConn) error {
	var err error
	if controlErr := c.Control(func(fd uintptr) {
		err = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
	}); controlErr != nil {
		return controlErr
	}
	return err
}

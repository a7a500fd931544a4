package main

import (
	"net"
	"os"
	"strings"
)

// notify tells systemd how the daemon is (sd_notify(3)), if it wants to know.
// Nothing depends on it.
func notify(states ...string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' { // an abstract address
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(strings.Join(states, "\n")))
}

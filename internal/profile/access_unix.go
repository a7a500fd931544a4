//go:build unix

package profile

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkDir refuses a directory that another user could put files into: he
// could replace the certificate or the list of known peers.
func checkDir(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("other users can write to the configuration directory %s: chmod go-w it, or name another", path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if me := os.Geteuid(); ok && me != 0 && int(stat.Uid) != me {
		return fmt.Errorf("the configuration directory %s belongs to another user: name another", path)
	}
	return nil
}

// checkFile refuses a file that other users can read: it holds a password, a
// private key, or the list of people that this user talks to.
func checkFile(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("other users can read or write %s: chmod go= it, after making sure that it is what it was", path)
	}
	return nil
}

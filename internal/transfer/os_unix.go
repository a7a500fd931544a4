//go:build unix

package transfer

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// openFlags keep an open from waiting for the other end of a fifo that has
// taken the place of a file since it was listed.
const openFlags = os.O_RDONLY | syscall.O_NONBLOCK

// isFull says whether a write failed for want of room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// lock takes a lock that ends with the process, or with f; false if somebody
// else, in this process or another, has it. Where files cannot be locked,
// nobody has it.
func lock(f *os.File) bool {
	return !errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

var maskMu sync.Mutex

// userMask is the umask of the process. It cannot be read without being set:
// for that moment files are made that nobody else may read.
func userMask() fs.FileMode {
	maskMu.Lock()
	defer maskMu.Unlock()
	mask := unix.Umask(0o077)
	unix.Umask(mask)
	return fs.FileMode(mask) & fs.ModePerm
}

// freeSpace is the room that this user has where dir lies; -1 if the system
// does not say.
func freeSpace(dir *os.File) int64 {
	var s unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &s) != nil {
		return -1
	}
	// The types of the two fields differ from system to system.
	room := float64(s.Bavail) * float64(s.Bsize)
	if room < 0 || room > 1<<62 {
		return -1
	}
	return int64(room)
}

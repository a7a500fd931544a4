package transfer

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

const openFlags = os.O_RDONLY

// isFull says whether a write failed for want of room.
func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL) ||
		errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED)
}

// lock takes a lock that ends with the process, or with f; false if somebody
// else, in this process or another, has it. Where files cannot be locked,
// nobody has it. It lies far behind the end of the file, so that others can
// still read it.
func lock(f *os.File) bool {
	at := windows.Overlapped{OffsetHigh: math.MaxInt32}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
	return !errors.Is(err, windows.ERROR_LOCK_VIOLATION) && !errors.Is(err, windows.ERROR_IO_PENDING)
}

// userMask is empty: there is no umask.
func userMask() fs.FileMode { return 0 }

// freeSpace is the room that this user has where dir lies; -1 if the system
// does not say.
func freeSpace(dir *os.File) int64 {
	path, err := syscall.UTF16PtrFromString(dir.Name())
	if err != nil {
		return -1
	}
	var room uint64
	if windows.GetDiskFreeSpaceEx(path, &room, nil, nil) != nil || room > 1<<62 {
		return -1
	}
	return int64(room)
}

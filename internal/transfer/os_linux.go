package transfer

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// renameNew renames within dir, and fails with fs.ErrExist where the new name
// is taken. errors.ErrUnsupported: the file system cannot; nothing was done.
func renameNew(dir *os.File, from, to string) error {
	fd := int(dir.Fd())
	err := unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}

// flush tells the system to begin writing these bytes of f to the disk. It
// waits for nothing: the fsync at the end finds less to do.
func flush(f *os.File, from, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WRITE)
}

// syncAll writes what was written to the file system of dir to the disk.
func syncAll(dir *os.File) { _ = unix.Syncfs(int(dir.Fd())) }

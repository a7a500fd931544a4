//go:build !linux

package transfer

import (
	"errors"
	"os"
)

// renameNew is for systems that can rename without replacing; elsewhere a link
// and a removal do the same.
func renameNew(*os.File, string, string) error { return errors.ErrUnsupported }

// flush would begin writing to the disk. Only Linux has a call that does not
// wait.
func flush(*os.File, int64, int64) {}

// syncAll would write everything to the disk at once. Elsewhere that is left to
// the system, as programs that copy files do.
func syncAll(*os.File) {}

package transfer_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// TestHidden: where nobody is asked, nothing at the top is stored that begins
// with a dot, and both ends hear of it; with a person asked, and inside of
// folders, it is.
func TestHidden(t *testing.T) {
	from := t.TempDir()
	write(t, "key", from, ".ssh", "authorized_keys")
	write(t, "rc", from, ".bashrc")
	write(t, "git", from, "d", ".git", "config")
	sources := []transfer.Source{transfer.Path(filepath.Join(from, ".ssh"), true), transfer.Path(filepath.Join(from, ".bashrc"), false), transfer.Path(filepath.Join(from, "d"), true)}
	all := map[string]string{
		".ssh": "drwxr-xr-x", ".ssh/authorized_keys": "-rw-r--r-- key", ".bashrc": "-rw-r--r-- rc",
		"d": "drwxr-xr-x", "d/.git": "drwxr-xr-x", "d/.git/config": "-rw-r--r-- git",
	}
	for _, unattended := range []bool{false, true} {
		to := t.TempDir()
		r := receiver(t, to)
		r.Unattended = unattended
		o := run(t, &transfer.Sender{}, r, nil, sources...)
		want := make(map[string]string)
		for path, what := range all {
			if !unattended || !strings.HasPrefix(path, ".") {
				want[path] = what
			}
		}
		same(t, tree(t, to), want)
		var there, here *transfer.PartialError
		if errors.As(o.sendErr, &there) != unattended || errors.As(o.receiveErr, &here) != unattended {
			t.Errorf("unattended %t: it ended with %v there and %v here", unattended, o.sendErr, o.receiveErr)
		}
		if unattended && (len(there.Failed) != 3 || !strings.Contains(there.Error(), "begins with a dot")) {
			t.Errorf("the sender hears %v of %d", there, len(there.Failed))
		}
	}
}

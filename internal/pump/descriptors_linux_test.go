package pump_test

import (
	"os"
	"testing"
)

// descriptors lists what is open, without what the runtime keeps for good.
func descriptors(t *testing.T) (open []string) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if target, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil { // else it was that of ReadDir
			open = append(open, target)
		}
	}
	return open
}

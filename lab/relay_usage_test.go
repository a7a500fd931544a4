//go:build linux

package lab_test

import (
	"os/exec"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestUsage watches a program that does nothing but use the processor.
func TestUsage(t *testing.T) {
	p := lab.Launch(t, "busy", exec.Command("sh", "-c", "while :; do :; done"))
	first, err := p.CPUSoFar()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		now, err := p.CPUSoFar()
		if err != nil {
			t.Fatal(err)
		}
		if now > first+10*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processor time %v, then %v", first, now)
		}
	}
	if u, err := p.Usage(); err != nil || u.RSS < 100<<10 || u.Files < 3 {
		t.Errorf("usage %+v, %v", u, err)
	}
	p.Stop()
	if got, err := p.CPUSoFar(); err == nil {
		t.Errorf("processor time of an ended process: %v", got)
	}
}

//go:build linux

package lab_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dtcp-relay/dtcp/lab"
)

var (
	labFlag  = flag.Bool("lab", false, "run the tests against real servers and programs")
	longFlag = flag.Bool("long", false, "with -lab: run soaks and long benchmarks too")
)

// programsVariable names the folder of the built programs.
const programsVariable = "DTCP_LAB_PROGRAMS"

// The programs under test, built before the first test when -lab is given.
var dtcpBinary, dtcpdBinary, barePeerBinary, attackerBinary string

// TestMain takes the tests named TestLab… out of the run, unless they were
// asked for, and those named TestLabLong… unless -long asks for them too: a
// plain go test says nothing of what it did not do.
func TestMain(m *testing.M) {
	flag.Parse()
	switch {
	case !*labFlag:
		leaveOut("^TestLab")
	case !*longFlag:
		leaveOut("^TestLabLong")
	}
	if *labFlag {
		os.Exit(runLab(m))
	}
	os.Exit(m.Run())
}

// leaveOut adds a pattern to those of -skip.
func leaveOut(pattern string) {
	if skip := flag.Lookup("test.skip").Value.String(); skip != "" {
		pattern += "|" + skip
	}
	if err := flag.Set("test.skip", pattern); err != nil {
		panic(err)
	}
}

// runLab builds the programs and runs the tests, this same program once more,
// in a network of their own.
func runLab(m *testing.M) int {
	if lab.Inside() {
		dir := os.Getenv(programsVariable)
		dtcpBinary, dtcpdBinary = filepath.Join(dir, "dtcp"), filepath.Join(dir, "dtcpd")
		barePeerBinary, attackerBinary = filepath.Join(dir, "barepeer"), filepath.Join(dir, "attacker")
		if err := lab.RaiseLoopback(); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
		// What runs in parallel here waits for others, most of the time.
		if err := flag.Set("test.parallel", "400"); err != nil {
			panic(err)
		}
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "dtcp-lab")
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	out, err := exec.Command("go", "build", "-o", dir, "../cmd/dtcp", "../cmd/dtcpd", "./barepeer", "./attacker").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: go build: %v\n%s", err, out)
		return 1
	}
	status, err := lab.Reenter(programsVariable + "=" + dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	return status
}

package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds every wait of a script. It is reached only when a test fails.
const patience = 15 * time.Second

// process is a program that runs while its script goes on.
type process struct {
	cmd    *exec.Cmd
	stderr transcript
	seen   int // how far await has read
}

// running finds the script's processes among its values.
type running struct{}

func named(ts *testscript.TestScript, name string) *process {
	p := ts.Value(running{}).(map[string]*process)[name]
	if p == nil {
		ts.Fatalf("no process was started under the name %s", name)
	}
	return p
}

// start NAME PROGRAM [ARG...] starts a program.
func cmdStart(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: start NAME PROGRAM [ARG...]")
	}
	program := args[1]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			program = path
			break
		}
	}
	p := &process{cmd: exec.Command(program, args[2:]...)}
	p.cmd.Dir = ts.MkAbs(".")
	for _, v := range []string{"PATH", "HOME", "TMPDIR", "STATE_DIRECTORY", "NOTIFY_SOCKET", "DTCP_PASSWORD", "GORACE", "GOCOVERDIR"} {
		if value := ts.Getenv(v); value != "" {
			p.cmd.Env = append(p.cmd.Env, v+"="+value)
		}
	}
	p.cmd.Stderr = &p.stderr
	ts.Check(p.cmd.Start())
	ts.Value(running{}).(map[string]*process)[args[0]] = p
	ts.Defer(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	})
}

// await NAME REGEXP waits until the process has said something that matches,
// beyond what the last await found. What the first group matched is in MATCH
// afterwards.
func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: await NAME REGEXP")
	}
	p := named(ts, args[0])
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		text, changed := p.stderr.now()
		if m := pattern.FindStringSubmatchIndex(text[p.seen:]); m != nil {
			if len(m) > 2 {
				ts.Setenv("MATCH", text[p.seen:][m[2]:m[3]])
			}
			p.seen += m[1]
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			ts.Fatalf("%s did not say %q:\n%.4000s", args[0], args[1], text)
		}
	}
}

// signal NAME TERM|HUP|INT sends a signal.
func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	number, ok := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP}[args[1]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[1])
	}
	ts.Check(named(ts, args[0]).cmd.Process.Signal(number))
}

// end NAME STATUS waits for the end of a process, checks its exit status, and
// hands what it said to the command stderr.
func cmdEnd(ts *testscript.TestScript, _ bool, args []string) {
	p := named(ts, args[0])
	timer := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	p.cmd.Wait() // its error is the status
	text, _ := p.stderr.now()
	io.WriteString(ts.Stderr(), text)
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("exit status %s, want %s\nstderr: %.4000s", got, args[1], text)
	}
}

// transcript is what a process has said so far. The zero value is empty.
type transcript struct {
	mu      sync.Mutex
	b       strings.Builder
	changed chan struct{} // closed at the next write; nil if nobody waits
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
	return t.b.Write(p)
}

// now returns the text, and a channel that is closed when there is more.
func (t *transcript) now() (string, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.b.String(), t.changed
}

// TestLogWithoutReader: the relay goes on when nobody reads its log any more, and
// ends as it should.
func TestLogWithoutReader(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // there is nothing like it
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "dtcpd.toml")
	text := "[standalone]\ndomain = \"example.test\"\nlisten = [\"127.0.0.1:0\"]\n[relay]\nlisten = [\"127.0.0.1:0\"]\n[metrics]\nlisten = \"\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: self, Args: []string{"dtcpd", "--config", file, "--data", filepath.Join(dir, "data")}, Stderr: stderr}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stderr.Close()
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	in := bufio.NewReader(log)
	for line := ""; !strings.Contains(line, "--trust"); {
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	log.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

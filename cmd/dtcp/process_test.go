package main

import (
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds every wait of a script. It is reached only when a test fails.
const patience = 15 * time.Second

// processesKey finds the script's processes among its values.
type processesKey struct{}

type processes struct{ all map[string]*process }

// kill ends what the script left running.
func (ps *processes) kill() {
	for _, p := range ps.all {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	}
}

// process is a program that runs while its script goes on.
type process struct {
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	terminal       *terminal // nil: it has none; else it is stdin and stderr
	stdout, stderr transcript
	seen           map[string]int // how far await has read, by stream
}

// newProcess prepares a program in the script's directory and environment.
func newProcess(ts *testscript.TestScript, args []string) *process {
	name := args[0]
	for _, dir := range strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator)) {
		if path := dir + string(os.PathSeparator) + name; isProgram(path) {
			name = path
			break
		}
	}
	p := &process{cmd: exec.Command(name, args[1:]...), seen: map[string]int{}}
	p.cmd.Dir = ts.MkAbs(".")
	for _, v := range []string{"PATH", "HOME", "TMPDIR", "DTCP_CONFIG", passwordVariable, noGatewayVariable, "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "GORACE", "GOCOVERDIR"} {
		if value := ts.Getenv(v); value != "" {
			p.cmd.Env = append(p.cmd.Env, v+"="+value)
		}
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	stdin, err := p.cmd.StdinPipe()
	ts.Check(err)
	p.stdin = stdin
	return p
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// finish waits for the end of a process, checks its exit status, and hands what
// it printed to the commands stdout and stderr.
func (p *process) finish(ts *testscript.TestScript, want string) {
	ended := make(chan struct{})
	timer := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	// Owned by finish, which waits for it; it ends with the process.
	go func() {
		p.cmd.Wait()
		close(ended)
	}()
	<-ended
	timer.Stop()
	if p.terminal != nil {
		p.terminal.drain()
	}
	stdout, stderr := p.stdout.text(), p.stderr.text()
	io.WriteString(ts.Stdout(), stdout)
	io.WriteString(ts.Stderr(), stderr)
	if got := strconv.Itoa(p.cmd.ProcessState.ExitCode()); got != want {
		ts.Fatalf("exit status %s, want %s\nstdout: %.2000s\nstderr: %.4000s", got, want, stdout, stderr)
	}
}

func named(ts *testscript.TestScript, args []string, n int, usage string) *process {
	if len(args) != n {
		ts.Fatalf("usage: %s", usage)
	}
	p := ts.Value(processesKey{}).(*processes).all[args[0]]
	if p == nil {
		ts.Fatalf("no process was started under the name %s", args[0])
	}
	return p
}

// start [-tty] NAME PROGRAM [ARG...] starts a program. With -tty its stdin and
// its stderr are a terminal of its own.
func cmdStart(ts *testscript.TestScript, _ bool, args []string) {
	tty := len(args) > 0 && args[0] == "-tty"
	if tty {
		args = args[1:]
	}
	if len(args) < 2 {
		ts.Fatalf("usage: start [-tty] NAME PROGRAM [ARG...]")
	}
	all := ts.Value(processesKey{}).(*processes).all
	if all[args[0]] != nil {
		ts.Fatalf("there is a process with the name %s", args[0])
	}
	p := newProcess(ts, args[1:])
	if tty {
		p.stdin.Close()
		var err error
		p.terminal, err = openTTY(p.cmd, &p.stderr)
		ts.Check(err)
		p.stdin = p.terminal
	}
	err := p.cmd.Start()
	if tty {
		p.terminal.started()
	}
	ts.Check(err)
	all[args[0]] = p
}

// await NAME stdout|stderr REGEXP waits until the process has printed something
// that matches, beyond what the last await found. What the first group matched
// is in MATCH afterwards.
func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	p := named(ts, args, 3, "await NAME stdout|stderr REGEXP")
	out := &p.stdout
	if args[1] == "stderr" {
		out = &p.stderr
	}
	pattern, err := regexp.Compile("(?m)" + args[2])
	ts.Check(err)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		text, changed := out.now()
		from := p.seen[args[1]]
		if m := pattern.FindStringSubmatchIndex(text[from:]); m != nil {
			p.seen[args[1]] = from + m[1]
			if len(m) > 2 {
				ts.Setenv("MATCH", text[from:][m[2]:m[3]])
			}
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			ts.Fatalf("%s did not print %q on %s\nstdout: %.2000s\nstderr: %.4000s", args[0], args[2], args[1], p.stdout.text(), p.stderr.text())
		}
	}
}

// feed NAME TEXT writes a line to the stdin of a process.
func cmdFeed(ts *testscript.TestScript, _ bool, args []string) {
	p := named(ts, args, 2, "feed NAME TEXT")
	_, err := io.WriteString(p.stdin, args[1]+"\n")
	ts.Check(err)
}

// eof NAME ends the stdin of a process.
func cmdEOF(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(named(ts, args, 1, "eof NAME").stdin.Close())
}

// signal NAME INT|TERM|HUP|KILL sends a signal.
func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	p := named(ts, args, 2, "signal NAME INT|TERM|HUP|KILL")
	number, ok := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL}[args[1]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[1])
	}
	ts.Check(p.cmd.Process.Signal(number))
}

// end NAME STATUS waits for the end of a process and checks its exit status,
// which is -1 if a signal has ended it.
func cmdEnd(ts *testscript.TestScript, _ bool, args []string) {
	named(ts, args, 2, "end NAME STATUS").finish(ts, args[1])
}

// transcript is what a process has printed so far. The zero value is empty.
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

func (t *transcript) text() string {
	text, _ := t.now()
	return text
}

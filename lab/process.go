//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stopGrace is what a process has to end by itself after SIGTERM.
const stopGrace = 10 * time.Second

// A Process is a program that the test started. It leads a process group of its
// own, so that its end is also the end of whatever it started.
//
// Its methods may be called from several goroutines.
type Process struct {
	Name string
	cmd  *exec.Cmd
	done chan struct{} // closed once the process is reaped
	err  error         // of Wait; read after done
}

// Launch starts cmd in a process group of its own and ends that group when the
// test ends, or when the test dies. The caller has set cmd's standard streams.
func Launch(tb testing.TB, name string, cmd *exec.Cmd) *Process {
	tb.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// A child that inherited our pipe and outlives the process must not hold up Wait.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		tb.Fatalf("lab: start %s: %v", name, err)
	}
	p := &Process{Name: name, cmd: cmd, done: make(chan struct{})}
	// Owned by p; ends when the process does; Stop, run by Cleanup, waits for it.
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	tb.Cleanup(p.Stop)
	return p
}

// Stop ends the process group: SIGTERM, and SIGKILL for whatever is left ten
// seconds later. It returns when the process is gone and may be called again.
func (p *Process) Stop() {
	group := -p.cmd.Process.Pid
	if p.Running() {
		_ = syscall.Kill(group, syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(stopGrace):
		}
	}
	// The leader's children may outlive it; the group is ours alone.
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-p.done
}

// Signal sends sig to the process alone, as a person at the terminal or a
// supervisor would.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.cmd.Process.Signal(sig)
}

// Kill ends the process at once, as a crash would, and waits until it is gone.
func (p *Process) Kill(tb testing.TB) {
	tb.Helper()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		tb.Fatalf("lab: kill %s: %v", p.Name, err)
	}
	<-p.done
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits at most limit for the process to end and returns its exit status,
// 128 plus the signal's number if a signal ended it. It fails the test at the
// limit.
func (p *Process) Wait(tb testing.TB, limit time.Duration) int {
	tb.Helper()
	select {
	case <-p.done:
	case <-time.After(limit):
		tb.Fatalf("lab: %s still runs after %v", p.Name, limit)
	}
	return exitStatus(tb, p.Name, p.err)
}

// exitStatus turns the error of exec.Cmd.Wait into a shell's exit status.
func exitStatus(tb testing.TB, name string, err error) int {
	tb.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return 0
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return exit.ExitCode()
	}
	tb.Fatalf("lab: wait for %s: %v", name, err)
	return -1
}

// PeakRSS is the largest resident set the process has had so far, in bytes
// (VmHWM). The process must still run.
func (p *Process) PeakRSS() (int64, error) { return p.memory("VmHWM:") }

// RSS is the resident set of the process now, in bytes.
func (p *Process) RSS() (int64, error) { return p.memory("VmRSS:") }

// memory reads one line of the process's status in /proc.
func (p *Process) memory(field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		rest, ok := strings.CutPrefix(line, field)
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s %q: %w", field, rest, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("no line %s the process is ending", field)
}

// Files is the number of descriptors the process has open.
func (p *Process) Files() (int64, error) {
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return int64(len(files)), err
}

// CPU is the processor time the ended process and its reaped children used.
func (p *Process) CPU() time.Duration {
	<-p.done
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// A logBuffer keeps the first and last bytes written to it, so that a program
// in a loop cannot fill the memory or the test's output.
type logBuffer struct {
	mu   sync.Mutex
	head []byte
	tail []byte
	cut  int64
}

const logKeep = 64 << 10 // at each end

// Write never fails.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(p)
	if room := logKeep - len(b.head); room > 0 {
		take := min(room, len(p))
		b.head = append(b.head, p[:take]...)
		p = p[take:]
	}
	b.tail = append(b.tail, p...)
	if extra := len(b.tail) - logKeep; extra > 0 {
		b.cut += int64(extra)
		b.tail = append(b.tail[:0], b.tail[extra:]...)
	}
	return n, nil
}

// String is what was written, with the middle left out if it was too long.
func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cut == 0 {
		return string(b.head) + string(b.tail)
	}
	return fmt.Sprintf("%s\n[%d bytes left out]\n%s", b.head, b.cut, b.tail)
}

// showOnFailure prints the text when the test has failed, at its end.
func showOnFailure(tb testing.TB, title string, text func() string) {
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("--- %s\n%s", title, bytes.TrimSpace([]byte(text())))
		}
	})
}

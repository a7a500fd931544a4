package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// graceTime is what a command gets between the request to end and its end.
const graceTime = 2 * time.Second

// commandError is the failure of a command that served a stream.
type commandError struct {
	line string
	err  error
}

func (e *commandError) Error() string { return fmt.Sprintf("the command %q: %v", e.line, e.err) }
func (e *commandError) Unwrap() error { return e.err }

// commands are those that run. The zero value is none.
type commands struct {
	grace time.Duration // if zero, graceTime

	mu      sync.Mutex // held while one is started
	ended   bool
	running map[*command]bool
}

// kill ends all that run, with what they started, and lets no further ones
// start.
func (cs *commands) kill() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.ended = true
	for c := range cs.running {
		c.kill()
	}
}

// served is what a command is told, and where it may complain.
type served struct {
	peer    jid.JID
	service string
	stderr  io.Writer
}

// run serves a stream by a command line, whose stdin and stdout it
// becomes. Only when the command has succeeded does the stream end well; else it
// is cut, so that the peer sees an error. A command whose stream is cut is ended
// before it could take what it has for the whole.
func (cs *commands) run(ctx context.Context, conn stream, line string, to served) (bytes int64, err error) {
	c, err := cs.start(line, to)
	if err != nil {
		conn.Abort()
		return 0, &commandError{line, err}
	}
	var cut atomic.Pointer[cutError]
	fail := func(err error) {
		var local *localError // the command reads or writes no more: its status says why
		if err != nil && !errors.As(err, &local) {
			cut.CompareAndSwap(nil, &cutError{err})
			conn.Abort() // the peer need not wait for the command
			c.end()
		}
	}
	stop := context.AfterFunc(ctx, func() { fail(context.Cause(ctx)) })
	defer stop()
	s := side{in: c.stdout, out: c.stdin, inName: "the command", outName: "the command"}
	received := make(chan int64, 1)
	// Owned by this call, which waits for it; it ends with the peer's direction,
	// or with the stream.
	go func() {
		n, err := io.Copy(localWriter{s}, conn)
		if err == nil {
			c.stdin.Close()
		}
		fail(err)
		received <- n
	}()
	sent, err := io.Copy(conn, localReader{s})
	fail(err)
	exit := c.wait()
	cs.forget(c)
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case cut.Load() != nil:
		err = cut.Load()
	case exit != nil:
		err = &commandError{line, exit}
	default:
		if err = conn.Close(); err != nil {
			err = &cutError{err}
		}
	}
	if err != nil {
		conn.Abort()
	}
	return sent + <-received, err
}

// command is a running command line.
type command struct {
	*exec.Cmd
	stdin  io.WriteCloser
	stdout io.ReadCloser
	grace  time.Duration

	mu     sync.Mutex // held for a system call at most
	over   bool       // its process number may belong to another now
	ending *time.Timer
}

func (cs *commands) start(line string, to served) (*command, error) {
	c := &command{Cmd: shell(line), grace: cmp.Or(cs.grace, graceTime)}
	c.Stderr = to.stderr
	c.WaitDelay = c.grace // for stderr, which something that got away may hold open
	c.Env = commandEnvironment(os.Environ(), to.peer, to.service)
	var err error
	if c.stdin, err = c.StdinPipe(); err != nil {
		return nil, err
	}
	if c.stdout, err = c.StdoutPipe(); err != nil {
		return nil, err
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.ended {
		return nil, errInterrupted
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	if cs.running == nil {
		cs.running = map[*command]bool{}
	}
	cs.running[c] = true
	return c, nil
}

func (cs *commands) forget(c *command) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.running, c)
}

// end asks the command to end, and sees to it that it does.
func (c *command) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.ending != nil {
		return
	}
	terminate(c.Cmd)
	c.ending = time.AfterFunc(c.grace, c.kill)
}

// kill ends the command, without asking.
func (c *command) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		kill(c.Cmd)
		c.stdout.Close() // which something that got away may hold open
	}
}

// wait returns how the command ended.
func (c *command) wait() error {
	err := c.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // the command itself has succeeded
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.ending != nil {
		c.ending.Stop()
	}
	return err
}

// maxComplaint bounds, in bytes, a line of a command's stderr that is kept in one
// piece.
const maxComplaint = 4096

// complaints makes messages of what a command writes to its stderr, line by
// line.
type complaints struct {
	out *output

	mu   sync.Mutex
	line []byte
}

func (w *complaints) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range p {
		if b != '\n' {
			w.line = append(w.line, b)
		}
		if b == '\n' || len(w.line) == maxComplaint {
			w.say()
		}
	}
	return len(p), nil
}

// flush says the rest, which has no end of line.
func (w *complaints) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say()
}

// say has w.mu held.
func (w *complaints) say() {
	if text := strings.TrimSuffix(string(w.line), "\r"); text != "" {
		w.out.say("the command says: %s", text)
	}
	w.line = w.line[:0]
}

// commandEnvironment is ours, without the password, and with what the command
// may want to know of the peer.
func commandEnvironment(environment []string, peer jid.JID, service string) []string {
	var kept []string
	for _, v := range environment {
		if !strings.HasPrefix(v, passwordVariable+"=") {
			kept = append(kept, v)
		}
	}
	return append(kept, "DTCP_PEER="+peer.String(), "DTCP_SERVICE="+service)
}

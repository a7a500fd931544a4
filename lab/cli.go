//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// runLimit bounds one run of the command line program, set-up and all. The
// longest that the contract lets it take to fail is 30 seconds and a login.
const runLimit = 90 * time.Second

// A User is one who runs dtcp with an account and a configuration folder of
// his own. All his addresses are on loopback, unless he has a host.
type User struct {
	Account
	Config string // folder
	Public string // what --public says: where he accepts streams; empty: nothing
	Host   *Host  // on which he runs everything; nil: the lab's own network
	server *Server
	binary string
}

// NewUser makes an account and a user of the built dtcp at binary.
func NewUser(tb testing.TB, server *Server, binary, name string) *User {
	tb.Helper()
	return &User{
		Account: server.Account(tb, name),
		Config:  filepath.Join(tb.TempDir(), "config"),
		Public:  "127.0.0.1:0",
		server:  server,
		binary:  binary,
	}
}

// NewUserOn is NewUser for one who sits at a host of the server's internet.
func NewUserOn(tb testing.TB, server *Server, binary, name string, host *Host) *User {
	tb.Helper()
	u := NewUser(tb, server, binary, name)
	u.Public, u.Host = "", host
	return u
}

// Elsewhere is the same user at another machine: with a configuration folder,
// and so a certificate, of its own.
func (u *User) Elsewhere(tb testing.TB) *User {
	tb.Helper()
	other := *u
	other.Config = filepath.Join(tb.TempDir(), "config")
	return &other
}

// Address is where the user's listener for a service is found. (The command
// line contract's rule of resources; without a flag the service is "pipe".)
func (u *User) Address(service string) string {
	return u.JID + "/dtcp." + service
}

// Command is the command line for args, with the flags that say who and where.
func (u *User) Command(args ...string) []string {
	return u.where(append(append([]string{u.binary}, args...), "--account", u.JID))
}

// LoginCommand is the command line that logs in for the first time.
func (u *User) LoginCommand() []string {
	return u.where([]string{u.binary, "login", u.JID})
}

// Remembered is the command line for args of a user who has logged in.
func (u *User) Remembered(args ...string) []string {
	return u.at(append(append([]string{u.binary}, args...), "--config", u.Config))
}

// where adds the flags that lead to the server.
func (u *User) where(command []string) []string {
	return u.at(append(command, "--password-file", u.PasswordFile, "--config", u.Config,
		"--server", u.server.For(u.Host), "--ca", u.server.CAFile))
}

// at keeps all on loopback, or has the command run on the user's host.
func (u *User) at(command []string) []string {
	if u.Public != "" {
		command = append(command, "--public", u.Public)
	}
	if u.Host != nil {
		command = u.Host.Command(command...)
	}
	return command
}

// An Event is one line of --json. See the command line contract for which
// fields an event has.
type Event struct {
	Event       string  `json:"event"`
	Address     string  `json:"address"`
	Listen      string  `json:"listen"`
	From        string  `json:"from"`
	Service     string  `json:"service"`
	Peer        string  `json:"peer"`
	Kind        string  `json:"kind"`
	Local       string  `json:"local"`
	Remote      string  `json:"remote"`
	Fingerprint string  `json:"fingerprint"`
	SetupMS     float64 `json:"setup_ms"`
	Files       int64   `json:"files"`
	Bytes       int64   `json:"bytes"`
	Resumed     int64   `json:"resumed"`
	SHA256      string  `json:"sha256"`
	Name        string  `json:"name"`
	Code        int     `json:"code"`
	Message     string  `json:"message"`
	Relay       string  `json:"relay"`

	At time.Time `json:"-"` // when it was read
}

// A Run is a started dtcp.
type Run struct {
	*Process
	messages *logBuffer
	events   <-chan Event
	read     chan struct{} // closed when everything the program wrote has been read
}

// Streams are the standard streams of a [Run]. Stdin nil is the null device;
// Stdout nil is read for events, as standard error always is.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
}

// Start starts dtcp with the arguments and --json, plus the flags of
// [User.Command].
func (u *User) Start(tb testing.TB, streams Streams, args ...string) *Run {
	tb.Helper()
	return u.StartCommand(tb, streams, u.Command(append(args, "--json")...))
}

// StartCommand starts a whole command line, as [User.Command] makes one.
func (u *User) StartCommand(tb testing.TB, streams Streams, command []string) *Run {
	tb.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = cleanEnvironment()
	cmd.Stdin, cmd.Stdout = streams.Stdin, streams.Stdout
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	cmd.Stderr = w
	if cmd.Stdout == nil {
		cmd.Stdout = w
	}
	run := &Run{messages: &logBuffer{}, read: make(chan struct{})}
	events := make(chan Event, 1024)
	run.events = events
	what := command
	if u.Host != nil {
		what = command[len(u.Host.Command()):]
	}
	title := "dtcp " + strings.Join(what[1:min(3, len(what))], " ") + " of " + u.JID
	showOnFailure(tb, title, run.messages.String)
	run.Process = Launch(tb, title, cmd)
	w.Close()
	// Owned by run; ends when the process, and whatever inherited its standard
	// error, has ended; the cleanup below waits for it.
	go func() {
		defer close(run.read)
		defer close(events)
		collect(r, run.messages, events)
	}()
	tb.Cleanup(func() {
		run.Stop()
		for range events { // whatever nobody asked for
		}
		<-run.read
		r.Close()
	})
	return run
}

// collect logs every line of r and passes on those that are events. When more
// wait than the channel holds, because nobody awaits any, the newest are lost:
// the program must not be held up.
func collect(r io.Reader, log io.Writer, events chan<- Event) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		_, _ = log.Write(line)
		var e Event
		if bytes.HasPrefix(line, []byte("{")) && json.Unmarshal(line, &e) == nil {
			e.At = time.Now()
			select {
			case events <- e:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// cleanEnvironment is the test's, without what would lead dtcp elsewhere.
func cleanEnvironment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "DTCP_") {
			env = append(env, v)
		}
	}
	return env
}

// Await returns the next event of one of the names, passing over others. It
// fails the test when the program ends without it.
func (r *Run) Await(tb testing.TB, names ...string) Event {
	tb.Helper()
	limit := time.After(runLimit)
	for {
		select {
		case e, ok := <-r.events:
			if !ok {
				tb.Fatalf("lab: %s ended without event %q:\n%s", r.Name, names, r.messages)
			}
			if slices.Contains(names, e.Event) {
				return e
			}
		case <-limit:
			tb.Fatalf("lab: %s: no event %q", r.Name, names)
		}
	}
}

// Status waits for the program's end, and for the end of its messages, and
// returns its exit status.
func (r *Run) Status(tb testing.TB) int {
	tb.Helper()
	status := r.Wait(tb, runLimit)
	select {
	case <-r.read:
	case <-time.After(5 * time.Second): // a child that inherited standard error lives on
	}
	return status
}

// Messages is what the program has written to standard error, and to standard
// output if that was not given elsewhere.
func (r *Run) Messages() string { return r.messages.String() }

// Listen starts "dtcp listen" with the arguments and waits until it is ready.
func (u *User) Listen(tb testing.TB, streams Streams, args ...string) *Run {
	tb.Helper()
	run := u.Start(tb, streams, append([]string{"listen"}, args...)...)
	run.Await(tb, "ready")
	return run
}

// Receive starts "dtcp receive" into a folder, or to standard output if that is
// "-", with further arguments, and waits until it is ready.
func (u *User) Receive(tb testing.TB, streams Streams, dir string, args ...string) *Run {
	tb.Helper()
	run := u.Start(tb, streams, append([]string{"receive", "--dir", dir}, args...)...)
	run.Await(tb, "ready")
	return run
}

// A Result is what came of a finished command.
type Result struct {
	Status   int
	Stdout   []byte
	Messages string
}

// Do runs dtcp with the arguments to its end, without --json.
func (u *User) Do(tb testing.TB, stdin io.Reader, args ...string) Result {
	tb.Helper()
	return u.DoCommand(tb, stdin, u.Command(args...))
}

// DoCommand runs a whole command line to its end.
func (u *User) DoCommand(tb testing.TB, stdin io.Reader, command []string) Result {
	tb.Helper()
	var out bytes.Buffer
	run := u.StartCommand(tb, Streams{Stdin: stdin, Stdout: &out}, command)
	status := run.Status(tb)
	return Result{Status: status, Stdout: out.Bytes(), Messages: run.Messages()}
}

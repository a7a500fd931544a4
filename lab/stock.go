//go:build linux

package lab

import (
	"bufio"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// stockSource is peers in Python: one that speaks XEP-0046 and nothing else, and
// one for XEP-0065.
//
//go:embed stock/*.py
var stockSource embed.FS

// A Stock is a running stock peer. Its methods are for one goroutine.
type Stock struct {
	Address string // full
	process *Process
	stdin   io.WriteCloser
	events  <-chan StockEvent
}

// A StockEvent is one line that the stock peer printed. See stockpeer.py and
// bytestream.py for which fields an event has.
type StockEvent struct {
	Event    string  `json:"event"`
	ID       int     `json:"id"`
	JID      string  `json:"jid"`
	Peer     string  `json:"peer"`
	Role     string  `json:"role"`
	Side     string  `json:"side"`
	TLS      bool    `json:"tls"`
	Why      string  `json:"why"`
	Sent     int64   `json:"sent"`
	Received int64   `json:"received"`
	SHA256   string  `json:"sha256"`
	Answer   string  `json:"answer"`
	Host     string  `json:"host"`
	Setup    float64 `json:"setup"`   // seconds
	Seconds  float64 `json:"seconds"` // of all of it
}

// StartStock logs a stock peer in as account with the resource "stock", with
// further options for stockpeer.py, and waits until it is ready. With the
// option --starttls alone it gets the key and certificate it needs.
func StartStock(tb testing.TB, server *Server, account Account, options ...string) *Stock {
	tb.Helper()
	return startPython(tb, "stockpeer.py", server, account, options)
}

// StartBytestream logs a client of XEP-0065 in as account, and waits until it
// is ready.
func StartBytestream(tb testing.TB, server *Server, account Account) *Stock {
	tb.Helper()
	return startPython(tb, "bytestream.py", server, account, nil)
}

func startPython(tb testing.TB, script string, server *Server, account Account, options []string) *Stock {
	tb.Helper()
	dir := tb.TempDir()
	sources, err := fs.Glob(stockSource, "stock/*.py")
	if err != nil || len(sources) != 3 {
		tb.Fatalf("lab: the stock peer's sources: %q, %v", sources, err)
	}
	for _, name := range sources {
		text, err := stockSource.ReadFile(name)
		if err != nil {
			tb.Fatalf("lab: %v", err)
		}
		writeFile(tb, filepath.Join(dir, filepath.Base(name)), text)
	}
	args := []string{
		"-u", filepath.Join(dir, script), "--jid", account.JID + "/stock",
		"--password-file", account.PasswordFile, "--server", server.Addr, "--ca", server.CAFile,
	}
	for _, option := range options {
		args = append(args, option)
		if option == "--starttls" {
			args = append(args, newCertificates(tb, filepath.Join(dir, "tls"), "stock.invalid").Both)
		}
	}
	cmd := exec.Command(path(tb, "/usr/bin/python3"), args...)
	log := &logBuffer{}
	cmd.Stderr = log
	showOnFailure(tb, "messages of "+script+" "+account.JID, log.String)
	// -I would hide the folder of the script; these two keep a user's Python out.
	cmd.Env = append(os.Environ(), "PYTHONNOUSERSITE=1", "PYTHONPATH=", "PYTHONDONTWRITEBYTECODE=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	stdout, stdoutWriter, err := os.Pipe()
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	cmd.Stdout = stdoutWriter
	s := &Stock{stdin: stdin, process: Launch(tb, script+" "+account.JID, cmd)}
	stdoutWriter.Close()

	events := make(chan StockEvent, 64)
	s.events = events
	finished := make(chan struct{})
	// Owned by s; ends with the process, whose end closes the pipe; the cleanup
	// below, which runs after the process was stopped, waits for it.
	go func() {
		defer close(finished)
		defer close(events)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var e StockEvent
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				fmt.Fprintf(log, "not an event: %q: %v\n", lines.Text(), err)
				continue
			}
			events <- e
		}
	}()
	tb.Cleanup(func() {
		s.process.Stop()
		stdout.Close()
		for range events { // whatever nobody asked for
		}
		<-finished
	})
	s.Address = s.Await(tb, "ready").JID
	return s
}

// Command sends one command line.
func (s *Stock) Command(tb testing.TB, format string, arguments ...any) {
	tb.Helper()
	if _, err := fmt.Fprintf(s.stdin, format+"\n", arguments...); err != nil {
		tb.Fatalf("lab: command to %s: %v", s.process.Name, err)
	}
}

// Await returns the next event, which must be one of those named and come
// within 45 seconds: longer than a stock peer's own patience of 30.
func (s *Stock) Await(tb testing.TB, names ...string) StockEvent {
	tb.Helper()
	select {
	case e, ok := <-s.events:
		if !ok {
			tb.Fatalf("lab: %s ended, want event %q", s.process.Name, names)
		}
		for _, name := range names {
			if e.Event == name {
				return e
			}
		}
		tb.Fatalf("lab: %s: got event %+v, want %q", s.process.Name, e, names)
	case <-time.After(45 * time.Second):
		tb.Fatalf("lab: %s: no event, want %q", s.process.Name, names)
	}
	return StockEvent{}
}

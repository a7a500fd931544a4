package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dtcp-relay/dtcp"
)

// output is where everything but the data of a stream goes: messages for
// people on stderr, results on stdout, events for programs on one of the two,
// and all of it in the log. After configure it may be used by several
// goroutines at once.
type output struct {
	stdout  io.Writer
	stderr  io.Writer
	events  io.Writer // nil without --json
	log     io.Writer // nil without --log
	verbose bool

	mu   sync.Mutex // held for one line
	err  error      // of the first write of a result that failed
	bar  string     // drawn on the terminal where the next line will be
	held bool       // the terminal belongs to a question: nothing is drawn
}

func newOutput(stdout, stderr io.Writer) *output { return &output{stdout: stdout, stderr: stderr} }

// configure applies the flags. data says that stdout is the stream's.
func (o *output) configure(opts *options, data bool) error {
	o.verbose = opts.verbose
	if opts.json {
		o.eventsOn(data)
	}
	if opts.log == "" {
		return nil
	}
	// 0600: stanzas tell with whom this user talks. It is never closed, since
	// any goroutine may write to it until the process ends.
	f, err := os.OpenFile(opts.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	o.log = f
	return nil
}

// eventsOn has events printed: on stdout, unless that is a stream's.
func (o *output) eventsOn(data bool) {
	o.events = o.stdout
	if data {
		o.events = o.stderr
	}
}

// say prints a message for people, a line of its own.
func (o *output) say(format string, args ...any) { o.line("message", fmt.Sprintf(format, args...)) }

// trace prints what only --verbose and the log want to know.
func (o *output) trace(format string, args ...any) {
	switch {
	case o.verbose:
		o.line("trace", fmt.Sprintf(format, args...))
	case o.log != nil:
		o.mu.Lock()
		defer o.mu.Unlock()
		o.logLine(fmt.Sprintf(format, args...))
	}
}

// tracing reports whether trace does anything.
func (o *output) tracing() bool { return o.verbose || o.log != nil }

// line prints to stderr and the log. Where stderr belongs to the events, it
// becomes one.
func (o *output) line(event, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.logLine(text)
	if o.events != nil && o.events == o.stderr {
		o.note(o.events.Write(encode(messageEvent{event, text})))
		return
	}
	o.erase()
	fmt.Fprintf(o.stderr, "dtcp: %s\n", clean(text))
	o.redraw()
}

// draw puts a line where the next message will be, in place of the last one.
// An empty one takes it away. Messages go above it. stderr must be a terminal.
func (o *output) draw(bar string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held {
		o.bar = bar
		return
	}
	if len(bar) < len(o.bar) {
		o.erase()
	}
	o.bar = bar
	o.redraw()
}

// hold has nothing drawn, until it is called with false.
func (o *output) hold(held bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if held {
		o.erase()
	}
	o.held = held
	o.redraw()
}

// erase and redraw are for what writes to the terminal in between. Spaces do
// what not every terminal has a command for. o.mu is held.
func (o *output) erase() {
	if o.bar != "" && !o.held {
		fmt.Fprintf(o.stderr, "\r%s\r", strings.Repeat(" ", len(o.bar)))
	}
}

func (o *output) redraw() {
	if o.bar != "" && !o.held {
		fmt.Fprintf(o.stderr, "\r%s", o.bar)
	}
}

// print writes a result, a line of fields, to stdout; with --json the event
// stands for it.
func (o *output) print(event any, fields ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var err error
	if o.events != nil {
		_, err = o.events.Write(encode(event))
	} else {
		for i, f := range fields {
			fields[i] = clean(f)
		}
		_, err = fmt.Fprintln(o.stdout, strings.Join(fields, "\t"))
	}
	o.note(0, err)
}

// note keeps the first error of a write that somebody relies on. o.mu is held.
func (o *output) note(_ int, err error) {
	if o.err != nil || err == nil {
		return
	}
	doing := "writing to stdout"
	if o.events == o.stderr {
		doing = "writing to stderr"
	}
	o.err = localFailure(doing, err)
}

// results is stdout for what does not look at errors.
type results struct{ o *output }

func (w results) Write(p []byte) (int, error) {
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	n, err := w.o.stdout.Write(p)
	w.o.note(n, err)
	return n, err
}

// event writes an event, if there is somebody for it.
func (o *output) event(event any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.events == nil && o.log == nil {
		return
	}
	line := encode(event)
	if o.events != nil {
		o.note(o.events.Write(line))
	}
	o.logLine("event " + strings.TrimSpace(string(line)))
}

// failure returns why results could not be written, if so.
func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// fail says why the program, or one stream of several, ended badly.
func (o *output) fail(err error) {
	var told *toldError
	if err == nil || errors.Is(err, errQuiet) || errors.Is(err, errHangup) || errors.As(err, &told) {
		return
	}
	what, hints := explain(err)
	if o.events != nil {
		o.event(failed(err, what, hints))
		if o.events == o.stderr {
			return
		}
	}
	o.say("%s", what)
	for _, h := range hints {
		o.say("%s", h)
	}
}

// logLine writes to the log, if there is one. o.mu is held.
func (o *output) logLine(text string) {
	if o.log != nil {
		fmt.Fprintf(o.log, "%s %s\n", time.Now().Format("2006-01-02T15:04:05.000Z07:00"), clean(text))
	}
}

// localFailure names what failed on this side. A reader that went away is no
// news to whoever sent it away (like SIGPIPE, which a program that has others
// to tell cannot afford to die of).
func localFailure(doing string, err error) error {
	if isAny(err, noReaderErrors) {
		return fmt.Errorf("%s: %w", doing, errQuiet)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// clean returns s with everything that a terminal could take for a command, or
// that could make text look like another, written as an escape. It is applied to
// all that is printed, since peers and servers choose parts of it.
func clean(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, hostile) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case hostile(r) && r < utf8.RuneSelf:
			fmt.Fprintf(&b, `\x%02x`, r)
		case hostile(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// hostile reports whether r is a control character (C0, DEL, C1), ends a line,
// or changes the direction or the look of the text around it.
func hostile(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

// pathOf describes the path of a stream.
func pathOf(c *dtcp.Conn) pathEvent {
	p := c.Path()
	e := pathEvent{
		Event: "path", Peer: c.Peer(), Kind: string(p.Kind), Local: p.Local.String(), Remote: p.Remote.String(),
		Relay: p.Relay, SetupMS: milliseconds(p.Setup),
	}
	if !p.Fingerprint.IsZero() {
		e.Fingerprint = p.Fingerprint.String()
	}
	return e
}

// took says on which path a stream is. With loud it tells people, too; a stream
// that is less than encrypted and authenticated is never a secret.
func (o *output) took(c *dtcp.Conn, loud bool) {
	p, e := c.Path(), pathOf(c)
	safety := "encrypted and authenticated"
	if p.Fingerprint.IsZero() {
		safety = "NOT authenticated, but encrypted"
		if !p.Encrypted {
			safety = "NOT authenticated, NOT encrypted"
		}
		loud = true
	}
	o.event(e)
	say := o.trace
	if loud && o.events != o.stderr {
		say = o.say
	}
	say("stream with %v: %s (%s, %v to %v), %s, set up in %.0f ms", c.Peer(), wayOf(p), p.Kind, p.Local, p.Remote, safety, e.SetupMS)
}

// wayOf says in a few words which way a path is.
func wayOf(p dtcp.Path) string {
	if p.Relay != "" {
		return "through the relay " + p.Relay
	}
	return "direct"
}

// ended says that a stream is over, and ended well.
func (o *output) ended(bytes int64, d time.Duration) {
	o.event(doneEvent{Event: "done", Bytes: bytes, Seconds: seconds(d)})
}

// seconds is d with three digits behind the point and no more: Duration.Seconds
// adds two floats, and what comes of that may need seventeen.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1000
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

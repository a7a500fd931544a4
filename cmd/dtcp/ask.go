package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/term"
)

// maxAnswer bounds, in bytes, a line of the terminal that is looked at.
const maxAnswer = 1024

// asker asks the user, one question at a time. It is never closed: something
// may be waiting for a line until the process ends.
type asker struct {
	output *output
	in     *bufio.Reader
	out    *os.File
	typed  *os.File      // the terminal that in reads
	turn   chan struct{} // held by the question that is being asked

	mu      sync.Mutex
	reading bool          // a line is being waited for
	pending chan<- string // who wants it; nil: nobody any more
	prompt  string        // what that one asked
}

// openAsker opens the terminal that the process was started from; nil, if stdin
// is not a terminal, for then nobody sits there: a job in the background that
// reads from its terminal would be stopped.
func openAsker(o *output) *asker {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	in, out, err := openTerminal()
	if err != nil {
		return nil
	}
	return &asker{output: o, in: bufio.NewReaderSize(in, maxAnswer), out: out, typed: in, turn: make(chan struct{}, 1)}
}

// ask prints a question, whose last line is the prompt, and waits for the
// answer. When ctx ends, nobody is interested any more. The end of the input
// means no.
func (a *asker) ask(ctx context.Context, lines []string) (bool, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	a.output.hold(true)
	defer a.output.hold(false)
	if a.typed != nil {
		dropTyped(a.typed)
	}
	prompt := len(lines) - 1
	for _, l := range lines[:prompt] {
		fmt.Fprintf(a.out, "dtcp: %s\n", clean(l))
	}
	fmt.Fprintf(a.out, "dtcp: %s", clean(lines[prompt]))
	answer := make(chan string, 1)
	a.want(answer, clean(lines[prompt]))
	select {
	case line := <-answer:
		if line == "" { // the end of the input, without an end of the line
			fmt.Fprintln(a.out)
		}
		return isYes(line), nil
	case <-ctx.Done():
		a.want(nil, "")
		fmt.Fprintln(a.out)
		return false, context.Cause(ctx)
	}
}

// want says who gets the next line that is typed from now on. Lines that nobody
// wants are dropped.
func (a *asker) want(answer chan<- string, prompt string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending, a.prompt = answer, prompt
	if answer != nil && !a.reading {
		a.read()
	}
}

// read begins to wait for a line, for the question that is pending; a.mu is
// held. A line that an earlier question was waiting for may have been typed
// before the one that is pending now was seen: it answers neither, and whoever
// sits there is asked anew.
func (a *asker) read() {
	a.reading = true
	_, _ = a.in.Discard(a.in.Buffered())
	mine := a.pending
	// Owned by the asker; it ends with a line, or with the process. Nobody waits:
	// a terminal cannot be told to stop.
	go func() {
		line, err := a.in.ReadSlice('\n')
		text := string(line)
		if err != nil {
			text = ""
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.reading = false
		switch {
		case a.pending == nil:
		case a.pending == mine, err != nil:
			a.pending <- text
			a.pending = nil
		default:
			fmt.Fprintf(a.out, "dtcp: that line was begun for an earlier question; once more: %s", a.prompt)
			a.read()
		}
	}()
}

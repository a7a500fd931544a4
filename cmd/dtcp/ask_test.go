package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
)

// A keyboard is the other side of an asker.
type keyboard struct {
	t      *testing.T
	typed  *os.File
	screen *os.File
}

func newKeyboard(t *testing.T) (*asker, *keyboard) {
	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	screen, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []*os.File{typed, out, in, screen} {
			f.Close()
		}
	})
	a := &asker{output: newOutput(io.Discard, io.Discard), in: bufio.NewReaderSize(in, maxAnswer), out: out, turn: make(chan struct{}, 1)}
	return a, &keyboard{t, typed, screen}
}

// ask asks in the background.
func (k *keyboard) ask(ctx context.Context, a *asker, prompt string) <-chan bool {
	answer := make(chan bool, 1)
	// Owned by the test, which waits for the answer.
	go func() {
		yes, _ := a.ask(ctx, []string{prompt})
		answer <- yes
	}()
	return answer
}

// until reads the screen until it ends with this.
func (k *keyboard) until(end string) {
	k.t.Helper()
	var seen bytes.Buffer
	for !strings.HasSuffix(seen.String(), end) {
		if _, err := io.CopyN(&seen, k.screen, 1); err != nil {
			k.t.Fatalf("the screen shows %q: %v", seen.String(), err)
		}
	}
}

func (k *keyboard) enter(text string) {
	if _, err := io.WriteString(k.typed, text); err != nil {
		k.t.Error(err)
	}
}

// TestLineForEarlier: a line that was waited for by a question that was
// withdrawn does not answer the next one, which is asked once more.
func TestLineForEarlier(t *testing.T) {
	a, k := newKeyboard(t)
	ctx, cancel := context.WithCancel(context.Background())
	first := k.ask(ctx, a, "first? ")
	k.until("first? ")
	cancel()
	if <-first {
		t.Error("a question that was withdrawn was answered with yes")
	}
	for _, text := range []string{"no\n", "y\n"} {
		second := k.ask(context.Background(), a, "second? ")
		k.until("second? ")
		if text == "no\n" {
			k.enter("y\n")
			k.until("once more: second? ")
		}
		k.enter(text)
		if yes := <-second; yes != (text == "y\n") {
			t.Errorf("%q answers %t", text, yes)
		}
	}
}

// TestTypedAhead: what was typed before a question is shown does not answer it.
func TestTypedAhead(t *testing.T) {
	a, k := newKeyboard(t)
	first := k.ask(context.Background(), a, "first? ")
	k.until("first? ")
	k.enter("n\ny\n")
	if <-first {
		t.Error("no is taken for yes")
	}
	second := k.ask(context.Background(), a, "second? ")
	k.until("second? ")
	k.enter("n\n")
	if <-second {
		t.Error("a line that was typed before the question answered it")
	}
}

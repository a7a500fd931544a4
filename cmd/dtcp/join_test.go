package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// tcpStream is a stream over a bare TCP connection: it ends by FIN, and is cut
// by RST.
type tcpStream struct{ *net.TCPConn }

func (s tcpStream) Abort() error {
	s.SetLinger(0)
	return s.Close()
}

// pair returns two ends of a connection on loopback.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dialed.Close()
		accepted.Close()
	})
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// result is what join or a command returned.
type result struct {
	bytes int64
	err   error
}

// joined starts join between a stream and a socket, and returns the far end of
// each.
func joined(t *testing.T, ctx context.Context) (peer, program *net.TCPConn, done <-chan result) {
	t.Helper()
	near, peer := pair(t)
	local, program := pair(t)
	results := make(chan result, 1)
	// Owned by the test, which waits for its result.
	go func() {
		n, err := join(ctx, tcpStream{near}, socket(local))
		results <- result{n, err}
	}()
	return peer, program, results
}

func TestJoinPassesTheEndOfEachDirection(t *testing.T) {
	peer, program, done := joined(t, t.Context())
	io.WriteString(program, "question")
	program.CloseWrite()
	if got, err := io.ReadAll(peer); string(got) != "question" || err != nil {
		t.Fatalf("the peer got %q, %v", got, err)
	}
	// One direction has ended; the other lives.
	io.WriteString(peer, "a long answer")
	peer.CloseWrite()
	if got, err := io.ReadAll(program); string(got) != "a long answer" || err != nil {
		t.Fatalf("the program got %q, %v", got, err)
	}
	if r := <-done; r.err != nil || r.bytes != int64(len("question")+len("a long answer")) {
		t.Errorf("join returned %d, %v", r.bytes, r.err)
	}
}

func TestJoinPassesOnACut(t *testing.T) {
	for _, test := range []struct {
		name string
		cut  func(peer, program *net.TCPConn)
		rest func(peer, program *net.TCPConn) *net.TCPConn
		want string
	}{
		{"by the peer", func(peer, _ *net.TCPConn) { tcpStream{peer}.Abort() }, func(_, program *net.TCPConn) *net.TCPConn { return program }, "the stream was cut"},
		{"by the program", func(_, program *net.TCPConn) { tcpStream{program}.Abort() }, func(peer, _ *net.TCPConn) *net.TCPConn { return peer }, "reading from 127.0.0.1"},
	} {
		peer, program, done := joined(t, t.Context())
		io.WriteString(peer, "some")
		io.ReadFull(program, make([]byte, 4)) // both directions are up
		test.cut(peer, program)
		if got, err := io.ReadAll(test.rest(peer, program)); err == nil {
			t.Errorf("cut %s: the other end sees %q and a good end", test.name, got)
		}
		if r := <-done; r.err == nil || !strings.Contains(r.err.Error(), test.want) {
			t.Errorf("cut %s: join returned %v, want something with %q", test.name, r.err, test.want)
		}
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	peer, program, done := joined(t, ctx)
	cancel(errInterrupted)
	if r := <-done; !errors.Is(r.err, errInterrupted) {
		t.Errorf("join returned %v", r.err)
	}
	for name, c := range map[string]*net.TCPConn{"peer": peer, "program": program} {
		if _, err := io.ReadAll(c); err == nil {
			t.Errorf("the %s sees a good end", name)
		}
	}
}

// What cannot be unblocked, stdin, does not hold join up.
func TestJoinDoesNotWaitForStdin(t *testing.T) {
	near, peer := pair(t)
	stdin, typist := io.Pipe()
	defer typist.Close()
	tcpStream{peer}.Abort()
	_, err := join(t.Context(), tcpStream{near}, side{in: stdin, out: io.Discard, closeOut: func() error { return nil }})
	var cut *cutError
	if !errors.As(err, &cut) {
		t.Errorf("join returned %v, want a cut", err)
	}
}

// Nor does it when it is told to end, whatever else has ended by then.
func TestJoinIsInterruptedWhateverStandsStill(t *testing.T) {
	for _, test := range []struct {
		name string
		peer func(*net.TCPConn)
	}{
		{"nobody types, and the peer has ended its direction", func(peer *net.TCPConn) { peer.CloseWrite() }},
		{"nobody types, and the peer is gone", func(peer *net.TCPConn) { peer.Close() }},
		{"nobody reads", func(peer *net.TCPConn) { io.WriteString(peer, "some") }},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		near, peer := pair(t)
		stdin, typist := io.Pipe()
		reader, stdout := io.Pipe()
		ended := make(chan struct{})
		standing := side{
			in: stdin, out: stdout, inName: "stdin", outName: "stdout",
			closeOut: func() error { close(ended); return nil },
		}
		test.peer(peer)
		results := make(chan result, 1)
		// Owned by the test, which waits for its result.
		go func() {
			n, err := join(ctx, tcpStream{near}, standing)
			results <- result{n, err}
		}()
		if test.name == "nobody reads" {
			reader.Read(make([]byte, 1)) // the rest of it stays
		} else {
			<-ended
		}
		cancel(errInterrupted)
		if r := <-results; !errors.Is(r.err, errInterrupted) {
			t.Errorf("%s: join returned %v", test.name, r.err)
		}
		if _, err := io.ReadAll(peer); err == nil && test.name != "nobody types, and the peer is gone" {
			t.Errorf("%s: the peer sees a good end", test.name)
		}
		typist.Close()
		reader.Close()
	}
}

// A person at a terminal has nothing to say to a peer that has ended; a pipe may
// have.
func TestJoinEndsWithThePeerAtATerminal(t *testing.T) {
	near, peer := pair(t)
	stdin, typist := io.Pipe()
	defer typist.Close()
	io.WriteString(peer, "good morrow")
	peer.CloseWrite()
	n, err := join(t.Context(), tcpStream{near}, side{in: stdin, out: io.Discard, closeOut: func() error { return nil }, typed: true})
	if err != nil || n != int64(len("good morrow")) {
		t.Errorf("join returned %d, %v", n, err)
	}
	if got, err := io.ReadAll(peer); err != nil || len(got) > 0 {
		t.Errorf("the peer sees %q, %v, want a good end", got, err)
	}
}

// testCommands get no more grace than a test needs.
var testCommands = &commands{grace: 100 * time.Millisecond}

// servedBy runs a command on a stream and returns the peer's end.
func servedBy(t *testing.T, ctx context.Context, line string) (peer *net.TCPConn, done <-chan result) {
	t.Helper()
	near, peer := pair(t)
	results := make(chan result, 1)
	// Owned by the test, which waits for its result.
	go func() {
		n, err := testCommands.run(ctx, tcpStream{near}, line, served{romeo, "ssh", os.Stderr})
		results <- result{n, err}
	}()
	return peer, results
}

func TestRunCommand(t *testing.T) {
	for _, test := range []struct{ name, line, send, want string }{
		{"a filter", "tr a-z A-Z", "hello", "HELLO"},
		{"an answer after the end of the question", "cat >/dev/null; echo done", "hello", "done\n"},
		{"who and what", "echo $DTCP_PEER $DTCP_SERVICE", "", "romeo@example.org/orchard ssh\n"},
	} {
		peer, done := servedBy(t, t.Context(), test.line)
		io.WriteString(peer, test.send)
		peer.CloseWrite()
		if got, err := io.ReadAll(peer); string(got) != test.want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.want)
		}
		if r := <-done; r.err != nil || r.bytes != int64(len(test.send)+len(test.want)) {
			t.Errorf("%s: returned %d, %v", test.name, r.bytes, r.err)
		}
	}
}

// A command need not read what it is sent.
func TestRunCommandThatReadsNothing(t *testing.T) {
	peer, done := servedBy(t, t.Context(), "exec <&-; echo enough")
	// Owned by the test: it ends when the stream is closed.
	go io.Copy(peer, bytes.NewReader(make([]byte, 1<<22)))
	line := make([]byte, len("enough\n"))
	if _, err := io.ReadFull(peer, line); err != nil || string(line) != "enough\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if r := <-done; r.err != nil {
		t.Errorf("returned %v", r.err)
	}
}

func TestRunCommandThatFailsCutsTheStream(t *testing.T) {
	peer, done := servedBy(t, t.Context(), "exit 3")
	if got, err := io.ReadAll(peer); err == nil {
		t.Errorf("the peer sees %q and a good end", got)
	}
	if r := <-done; r.err == nil || !strings.Contains(r.err.Error(), "exit status 3") {
		t.Errorf("returned %v", r.err)
	}
}

// The command whose input is cut is ended: it must not take what it has for
// the whole, nor the end of its input for the end of the stream.
func TestRunCommandIsEndedByACut(t *testing.T) {
	for _, line := range []string{
		"echo up; cat >/dev/null; echo whole >&2",
		"trap '' TERM; echo up; (cat >/dev/null; cat)", // it will not be asked
	} {
		peer, done := servedBy(t, t.Context(), line)
		if _, err := io.ReadFull(peer, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		tcpStream{peer}.Abort()
		var cut *cutError
		if r := <-done; !errors.As(r.err, &cut) {
			t.Errorf("%q: returned %v, want a cut", line, r.err)
		}
	}
}

func TestRunCommandEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	peer, done := servedBy(t, ctx, "echo up; cat")
	if _, err := io.ReadFull(peer, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel(errInterrupted)
	if r := <-done; !errors.Is(r.err, errInterrupted) {
		t.Errorf("returned %v", r.err)
	}
	if _, err := io.ReadAll(peer); err == nil {
		t.Error("the peer sees a good end")
	}
}

// What a command complains of comes in lines, whatever the pieces, and harmless.
func TestComplaints(t *testing.T) {
	var stderr strings.Builder
	w := &complaints{out: newOutput(io.Discard, &stderr)}
	for _, piece := range []string{"one\ntw", "o\r\n\n", "\x1b[2J\n", strings.Repeat("x", maxComplaint+1)} {
		if n, err := io.WriteString(w, piece); n != len(piece) || err != nil {
			t.Errorf("took %d of %q, %v", n, piece, err)
		}
	}
	w.flush()
	const says = "dtcp: the command says: "
	want := says + "one\n" + says + "two\n" + says + "\\x1b[2J\n" + says + strings.Repeat("x", maxComplaint) + "\n" + says + "x\n"
	if got := stderr.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// What a command leaves behind with its stderr does not hold up its stream.
func TestRunCommandThatLeavesSomethingBehind(t *testing.T) {
	near, peer := pair(t)
	peer.CloseWrite()
	results := make(chan result, 1)
	// Owned by the test, which waits for its result.
	go func() {
		w := &complaints{out: newOutput(io.Discard, io.Discard)}
		n, err := testCommands.run(t.Context(), tcpStream{near}, "sleep 10 >/dev/null & echo here", served{romeo, "ssh", w})
		results <- result{n, err}
	}()
	if got, err := io.ReadAll(peer); string(got) != "here\n" || err != nil {
		t.Errorf("the peer got %q, %v", got, err)
	}
	if r := <-results; r.err != nil {
		t.Errorf("returned %v", r.err)
	}
}

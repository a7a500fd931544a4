package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

func TestCleanLeavesNothingToATerminal(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{"juliet@example.org/balcony", "juliet@example.org/balcony"},
		{"žluťoučký kůň 馬", "žluťoučký kůň 馬"},
		{"a\x1b[31mb", `a\x1b[31mb`},
		{"one\ntwo\r\n", `one\x0atwo\x0d\x0a`},
		{"\x00\a\b\t\x7f", `\x00\x07\x08\x09\x7f`},
		{"C1: \u009b2J", `C1: \u009b2J`},
		{"raw C1: \x9b2J", `raw C1: \x9b2J`},
		{"exe.\u202egpj", `exe.\u202egpj`},
		{"isolate \u2066 mark \u200f joiner \u200d", `isolate \u2066 mark \u200f joiner \u200d`},
		{"line\u2028paragraph\u2029", `line\u2028paragraph\u2029`},
		{"half \xc3", `half \xc3`},
		{"tag \U000e0041", `tag \ue0041`},
	} {
		if got := clean(test.in); got != test.want {
			t.Errorf("clean(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

// Whatever is in an event, the line is JSON, holds it, and is harmless.
func TestEventsAreHarmlessJSON(t *testing.T) {
	const nasty = "a\x1b[2J\u009b\u202e\U000e0041\x7f\n<b>&"
	line := encode(messageEvent{"message", nasty})
	if n := bytes.Count(line, []byte("\n")); n != 1 || line[len(line)-1] != '\n' {
		t.Errorf("%d lines in %q", n, line)
	}
	if bytes.ContainsFunc(line[:len(line)-1], hostile) {
		t.Errorf("%q is not harmless", line)
	}
	if !strings.HasPrefix(string(line), `{"event":"message",`) {
		t.Errorf("%q does not begin with the event", line)
	}
	var back messageEvent
	if err := json.Unmarshal(line, &back); err != nil || back.Message != nasty {
		t.Errorf("%q says %q, %v, want %q", line, back.Message, err, nasty)
	}
}

// The members of the events are what scripts rely on.
func TestEventMembers(t *testing.T) {
	for _, test := range []struct {
		event any
		want  string
	}{
		{readyEvent{Event: "ready"}, `{"event":"ready","address":""}`},
		{pathEvent{Event: "path", Kind: "host", SetupMS: 1.25}, `{"event":"path","peer":"","kind":"host","local":"","remote":"","relay":"","fingerprint":"","setup_ms":1.25}`},
		{doneEvent{Event: "done", Seconds: seconds(1_851_990_000)}, `{"event":"done","bytes":0,"resumed":0,"seconds":1.852,"sha256":""}`},
		{doneEvent{Event: "done", Bytes: 7, Seconds: 0.5}, `{"event":"done","bytes":7,"resumed":0,"seconds":0.5,"sha256":""}`},
		{failed(&usageError{io.EOF}, "no", nil), `{"event":"error","code":2,"message":"no","attempts":[],"hints":[]}`},
		{failed(io.EOF, "no", []string{attemptMark + "that", "do"}), `{"event":"error","code":1,"message":"no","attempts":[],"hints":["do"]}`},
	} {
		if got := strings.TrimSpace(string(encode(test.event))); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

func TestWhereLinesGo(t *testing.T) {
	type streams struct{ stdout, stderr string }
	write := func(o options, data bool) streams {
		var stdout, stderr bytes.Buffer
		out := newOutput(&stdout, &stderr)
		if err := out.configure(&o, data); err != nil {
			t.Fatal(err)
		}
		out.say("said %s", "\x1b")
		out.trace("traced")
		out.event(messageEvent{"e", "event"})
		out.print(messageEvent{"e", "result"}, "result", "\x1b")
		return streams{stdout.String(), stderr.String()}
	}
	const said, traced = "dtcp: said \\x1b\n", "dtcp: traced\n"
	const event, result = `{"event":"e","message":"event"}` + "\n", `{"event":"e","message":"result"}` + "\n"
	const saidEvent, tracedEvent = `{"event":"message","message":"said \u001b"}` + "\n", `{"event":"trace","message":"traced"}` + "\n"
	for _, test := range []struct {
		name string
		opts options
		data bool
		want streams
	}{
		{"plain", options{}, false, streams{"result\t\\x1b\n", said}},
		{"verbose", options{verbose: true}, false, streams{"result\t\\x1b\n", said + traced}},
		{"json", options{json: true}, false, streams{event + result, said}},
		{"json, stdout is data", options{json: true}, true, streams{"", saidEvent + event + result}},
		{"json, verbose, stdout is data", options{json: true, verbose: true}, true, streams{"", saidEvent + tracedEvent + event + result}},
	} {
		if got := write(test.opts, test.data); got != test.want {
			t.Errorf("%s: got %+v\nwant %+v", test.name, got, test.want)
		}
	}
}

package wire_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

func TestLines(t *testing.T) {
	tests := []struct {
		in   string
		want []wire.Line
		err  error // after the lines
	}{
		{"key:c7b5ea3f\nok\n", []wire.Line{{"key", "c7b5ea3f"}, {"ok", ""}}, io.EOF},
		{"error:no such key\n", []wire.Line{{"error", "no such key"}}, io.EOF},
		{"ok:a:b\n", []wire.Line{{"ok", "a:b"}}, io.EOF},
		{"ok:\n", []wire.Line{{"ok", ""}}, io.EOF},
		{"\n", []wire.Line{{"", ""}}, io.EOF},
		{"starttls\n\x16\x03", []wire.Line{{"starttls", ""}}, wire.ErrBadBytes},
		{"ok", nil, io.ErrUnexpectedEOF},
		{"", nil, io.EOF},
		{"ok\r\n", nil, wire.ErrBadBytes},
		{"k\x00\n", nil, wire.ErrBadBytes},
		{"k\xc3\xa9\n", nil, wire.ErrBadBytes},
		{strings.Repeat("a", wire.MaxLine-1) + "\n", []wire.Line{{strings.Repeat("a", wire.MaxLine-1), ""}}, io.EOF},
		{strings.Repeat("a", wire.MaxLine) + "\n", nil, wire.ErrTooLong},
		{strings.Repeat("a", 100*wire.MaxLine), nil, wire.ErrTooLong},
		{strings.Repeat("a\n", wire.MaxCommands+1), slicesOf(wire.Line{Command: "a"}, wire.MaxCommands), wire.ErrTooMany},
	}
	for _, tt := range tests {
		for name, in := range map[string]io.Reader{"whole": strings.NewReader(tt.in), "bytes": iotest.OneByteReader(strings.NewReader(tt.in))} {
			r := wire.NewReader(bufio.NewReaderSize(in, wire.MaxLine))
			for _, want := range tt.want {
				if got, err := r.Line(); err != nil || got != want {
					t.Errorf("%.40q, %s: got %q, %v; want %q", tt.in, name, got, err, want)
				}
			}
			if got, err := r.Line(); !errors.Is(err, tt.err) {
				t.Errorf("%.40q, %s: at the end got %q, %v; want %v", tt.in, name, got, err, tt.err)
			}
		}
	}
}

func slicesOf(l wire.Line, n int) (s []wire.Line) {
	for range n {
		s = append(s, l)
	}
	return s
}

// TestReaderTakesNoMore: TLS begins right behind a line, or application data.
func TestReaderTakesNoMore(t *testing.T) {
	buf := bufio.NewReader(strings.NewReader("key:a\n\x16\x03\x01rest"))
	if l, err := wire.NewReader(buf).Line(); err != nil || l.Argument != "a" {
		t.Fatalf("got %v, %v", l, err)
	}
	if rest, _ := io.ReadAll(buf); string(rest) != "\x16\x03\x01rest" {
		t.Errorf("left: %q", rest)
	}
}

func TestKeys(t *testing.T) {
	form := regexp.MustCompile(`^[A-Za-z0-9_-]{22}$`)
	seen := map[string]bool{}
	for range 100 {
		k := wire.NewKey()
		if !form.MatchString(k) || !wire.ValidKey(k) || seen[k] {
			t.Fatalf("key %q", k)
		}
		seen[k] = true
	}
	tests := []struct {
		key  string
		want bool
	}{
		{"c7b5ea3f", true}, {"dtcp_00ff", true}, {"a+/=.~-_", true}, {strings.Repeat("k", wire.MaxKey), true},
		{"", false}, {strings.Repeat("k", wire.MaxKey+1), false}, {"a b", false}, {"a\nkey:b", false}, {"a:b", false}, {"ä", false}, {"a\x00", false},
	}
	for _, tt := range tests {
		if got := wire.ValidKey(tt.key); got != tt.want {
			t.Errorf("ValidKey(%q) = %t", tt.key, got)
		}
	}
	if !wire.ValidService(strings.Repeat("s", wire.MaxService)) || wire.ValidService(strings.Repeat("s", wire.MaxService+1)) || wire.ValidService("") {
		t.Error("ValidService does not keep to its limits")
	}
}

// FuzzLine: no line read is over the limits or holds what a terminal or a peer
// could take for more than text, and it is written as it was read.
func FuzzLine(f *testing.F) {
	for _, s := range []string{"key:a\n", "ok\nok:b\n", "error:x\n", "starttls\n", ":\n", "\x16\x03\n", strings.Repeat("x", 600)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := wire.NewReader(bufio.NewReaderSize(bytes.NewReader(in), 16))
		for n := 0; ; n++ {
			l, err := r.Line()
			if err != nil {
				return
			}
			if n >= wire.MaxCommands || len(l.String()) >= wire.MaxLine {
				t.Fatalf("line %d of %d bytes", n, len(l.String()))
			}
			again, err := wire.Parse(bytes.TrimSuffix(l.Append(nil), []byte("\n")))
			if err != nil || again != l {
				t.Fatalf("%q became %q, %v", l, again, err)
			}
		}
	})
}

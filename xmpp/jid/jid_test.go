package jid_test

import (
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("a", jid.MaxPart)
	tests := []struct {
		in   string
		want string // "" means refused
	}{
		{"example.org", "example.org"},
		{"juliet@example.org", "juliet@example.org"},
		{"juliet@example.org/balcony", "juliet@example.org/balcony"},
		{"Juliet@Example.ORG/Balcony", "juliet@example.org/Balcony"},
		{"example.org.", "example.org"},
		{"juliet@example.org/a/b@c", "juliet@example.org/a/b@c"},
		{"juliet@example.org/foo bar", "juliet@example.org/foo bar"},
		{"fußball@example.com", "fußball@example.com"},
		{"Σ@example.com/♚", "σ@example.com/♚"},
		{"a@bücher.example", "a@bücher.example"},
		{"a@xn--bcher-kva.example", "a@bücher.example"},
		{"a@BÜCHER.example", "a@bücher.example"},
		{"a@192.0.2.1/x", "a@192.0.2.1/x"},
		{"a@[2001:DB8::1]/x", "a@[2001:db8::1]/x"},
		{"a@localhost", "a@localhost"},
		{long + "@example.org", long + "@example.org"},
		{"", ""},
		{"@example.org", ""},
		{"juliet@", ""},
		{"juliet@/x", ""},
		{"/x", ""},
		{"juliet@example.org/", ""},
		{"\"juliet\"@example.com", ""},
		{"foo bar@example.com", ""},
		{"juliet@example.com/\x00", ""},
		{"juliet@example.com/a\nb", ""},
		{"a@b@example.org", ""},
		{"henryⅣ@example.com", ""},
		{"♚@example.com", ""},
		{"a@[2001:db8::1", ""},
		{"a@[fe80::1%eth0]", ""},
		{"a@[192.0.2.1]", ""},
		{"a@exa mple.org", ""},
		{"a@example..org", ""},
		{"a@.example.org", ""},
		{"a@exa_mple.org", ""},
		{"a@\xff.org", ""},
		{long + "a@example.org", ""},
		{"a@example.org/" + long + "a", ""},
	}
	refused := 0
	for _, tt := range tests {
		got, err := jid.Parse(tt.in)
		if tt.want == "" {
			refused++
			if err == nil {
				t.Errorf("Parse(%q) = %q, want an error", tt.in, got)
			}
			continue
		}
		if err != nil || got.String() != tt.want {
			t.Errorf("Parse(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	if refused < 15 {
		t.Errorf("only %d refusals tried", refused)
	}
}

func TestParts(t *testing.T) {
	j := jid.MustParse("juliet@example.org/balcony")
	if j.Local() != "juliet" || j.Domain() != "example.org" || j.Resource() != "balcony" {
		t.Errorf("parts of %v: %q %q %q", j, j.Local(), j.Domain(), j.Resource())
	}
	if !j.IsFull() || j.IsBare() || j.IsZero() {
		t.Errorf("%v: IsFull %t IsBare %t IsZero %t", j, j.IsFull(), j.IsBare(), j.IsZero())
	}
	if b := j.Bare(); b != jid.MustParse("JULIET@example.org") || !b.IsBare() {
		t.Errorf("bare address is %v", b)
	}
	if s := j.Server(); s.String() != "example.org" {
		t.Errorf("server is %v", s)
	}
	other, err := j.Bare().WithResource("orchard")
	if err != nil || other.String() != "juliet@example.org/orchard" {
		t.Errorf("WithResource: %v, %v", other, err)
	}
	var zero jid.JID
	if !zero.IsZero() || zero.IsBare() || zero.String() != "" {
		t.Errorf("zero JID is %q", zero)
	}
	var u jid.JID
	if err := u.UnmarshalText([]byte("a@b.example/c")); err != nil || u.String() != "a@b.example/c" {
		t.Errorf("UnmarshalText: %v, %v", u, err)
	}
	if err := u.UnmarshalText(nil); err != nil || !u.IsZero() {
		t.Errorf("UnmarshalText of nothing: %v, %v", u, err)
	}
}

// FuzzParse checks that what Parse accepts is stable: its String parses to an
// equal value, and no part is empty, over-long or holds a separator that would
// move on the way back.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"a@b/c", "b", "a@[::1]/x", "Σ@bücher.example/♚", "a@b/", "@", "/", "a@@b", "ß@ß/ß", "\xff@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		j, err := jid.Parse(s)
		if err != nil {
			return
		}
		again, err := jid.Parse(j.String())
		if err != nil || again != j {
			t.Fatalf("Parse(%q) = %q, which parses to %q, %v", s, j, again, err)
		}
		for _, part := range []string{j.Local(), j.Domain(), j.Resource()} {
			if len(part) > jid.MaxPart {
				t.Fatalf("Parse(%q): part of %d bytes", s, len(part))
			}
		}
	})
}

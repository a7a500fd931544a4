package rendezvous_test

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
)

// TestCredentials: what was kept of a password lets in who knows it.
func TestCredentials(t *testing.T) {
	c, err := rendezvous.NewCredentials("a rose", 4096)
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.MarshalText()
	if err != nil || !strings.HasPrefix(string(text), "SCRAM-SHA-1$4096:") || strings.Contains(string(text), "rose") {
		t.Fatalf("text %q, %v", text, err)
	}
	var again rendezvous.Credentials
	if err := again.UnmarshalText(text); err != nil {
		t.Fatal(err)
	}
	inBubble(t, nil, func(t *testing.T, w *world) {
		for _, name := range []string{"juliet", "mercutio"} { // one has another password, one is new
			if err := w.server.SetCredentials(name, again); err != nil {
				t.Fatal(err)
			}
			d := w.dial()
			d.directTLS(&tls.Config{})
			if e := d.authPlain("", name, "a rose"); e.Name.Local != "success" {
				t.Errorf("%s: %v", name, e)
			}
			d = w.dial()
			d.directTLS(&tls.Config{})
			if e := d.authPlain("", name, password(name)); e.Name.Local != "failure" {
				t.Errorf("%s by another password: %v", name, e)
			}
		}
		if err := w.server.SetCredentials("@", again); err == nil {
			t.Error("an account without a name")
		}
		if err := w.server.SetCredentials("a", rendezvous.Credentials{}); err == nil {
			t.Error("an account without credentials")
		}
	})
}

func TestCredentialsRefused(t *testing.T) {
	if _, err := (rendezvous.Credentials{}).MarshalText(); err == nil {
		t.Error("no credentials have a text")
	}
	if _, err := rendezvous.NewCredentials("", 0); err == nil {
		t.Error("no password has credentials")
	}
	if _, err := rendezvous.NewCredentials("x", 100); err == nil {
		t.Error("100 iterations were enough")
	}
	c, err := rendezvous.NewCredentials("x", 4096)
	if err != nil {
		t.Fatal(err)
	}
	good, err := c.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]string{
		"nothing":         "",
		"one of two":      strings.Fields(string(good))[0],
		"the other first": strings.Fields(string(good))[1] + " " + strings.Fields(string(good))[0],
		"few iterations":  strings.ReplaceAll(string(good), "$4096:", "$1:"),
		"many":            strings.ReplaceAll(string(good), "$4096:", "$4096000:"),
		"cut":             string(good[:len(good)-5]),
		"a part less":     strings.Replace(string(good), ":", "", 1),
		"not base64":      strings.ReplaceAll(string(good), "=", "!"),
	} {
		var c rendezvous.Credentials
		if err := c.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%s: was read", what)
		} else if len(err.Error()) > 100 {
			t.Errorf("%s: %v", what, err)
		}
	}
}

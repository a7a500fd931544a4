package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAddresses(t *testing.T) {
	for _, test := range []struct {
		port           int
		public         string
		listen, offers string
		bad            string
	}{
		{0, "", "", "", ""},
		{5000, "", ":5000", "", ""},
		{0, "192.0.2.1:6000", "", "192.0.2.1:6000", ""},
		{5000, "192.0.2.1:0", ":5000", "192.0.2.1:0", ""},
		{5000, "[2001:db8::1]:6000", ":5000", "[2001:db8::1]:6000", ""},
		{0, "127.0.0.1:0", "127.0.0.1:0", "", ""},
		{0, "127.0.0.1:7000", "127.0.0.1:7000", "", ""},
		{7000, "127.0.0.1:7000", "127.0.0.1:7000", "", ""},
		{7000, "127.0.0.1:0", "127.0.0.1:7000", "", ""},
		{0, "[::1]:0", "[::1]:0", "", ""},
		{7001, "127.0.0.1:7000", "", "", "--public"},
		{0, "example.org:7000", "", "", "--public"},
		{0, "192.0.2.1", "", "", "--public"},
		{0, "0.0.0.0:7000", "", "", "--public"},
		{65536, "", "", "", "--port"},
		{-1, "", "", "", "--port"},
	} {
		o := options{port: test.port, publicFlag: test.public}
		err := o.check()
		switch {
		case test.bad != "":
			if err == nil || !strings.Contains(err.Error(), test.bad) {
				t.Errorf("--port %d --public %q: %v, want an error about %s", test.port, test.public, err, test.bad)
			}
		case err != nil:
			t.Errorf("--port %d --public %q: %v", test.port, test.public, err)
		case o.listen != test.listen || o.public != test.offers:
			t.Errorf("--port %d --public %q: listens at %q and offers %q, want %q and %q",
				test.port, test.public, o.listen, o.public, test.listen, test.offers)
		}
	}
}

func TestParseListen(t *testing.T) {
	for in, want := range map[string]string{
		"8080":            "127.0.0.1:8080",
		":8080":           "127.0.0.1:8080",
		"0":               "127.0.0.1:0",
		"0.0.0.0:80":      "0.0.0.0:80",
		"[::1]:80":        "[::1]:80",
		"localhost:http":  "",
		"65536":           "",
		"":                "",
		"localhost":       "",
		"::1:80":          "",
		"127.0.0.1:80:90": "",
	} {
		got, err := parseListen(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("parseListen(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestServiceNames(t *testing.T) {
	for _, good := range []string{"a", "ssh", "A-Z_0.9~+/=", strings.Repeat("x", 64)} {
		var n serviceName
		if err := n.Set(good); err != nil || n.String() != good {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "a b", " a", "a\n", "ä", "a:b", strings.Repeat("x", 65)} {
		var n serviceName
		if err := n.Set(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestReadPassword(t *testing.T) {
	for _, test := range []struct {
		content string
		mode    os.FileMode
		want    string
		exposed bool
	}{
		{"secret\n", 0o600, "secret", false},
		{"secret", 0o400, "secret", false},
		{"secret\r\nmore\n", 0o600, "secret", false},
		{" two words \n", 0o600, " two words ", false},
		{"secret\n", 0o640, "secret", true},
		{"secret\n", 0o604, "secret", true},
		{"", 0o600, "", false},
		{"\nsecret\n", 0o600, "", false},
		{strings.Repeat("x", maxPassword) + "\n", 0o600, strings.Repeat("x", maxPassword), false},
		{strings.Repeat("x", maxPassword+1) + "\n", 0o600, "", false},
		{strings.Repeat("x", 10*maxPassword), 0o600, "", false},
	} {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		got, exposed, err := readPassword(path)
		if got != test.want || (err == nil) != (test.want != "") || exposed != (test.exposed && modeTells) {
			t.Errorf("%.20q: got %.20q, exposed %v, %v, want %.20q, %v", test.content, got, exposed, err, test.want, test.exposed)
		}
	}
}

func TestCommandEnvironment(t *testing.T) {
	got := commandEnvironment([]string{"PATH=/bin", "DTCP_PASSWORD=secret", "DTCP_CONFIG=/c"}, romeo, "ssh")
	want := "PATH=/bin DTCP_CONFIG=/c DTCP_PEER=romeo@example.org/orchard DTCP_SERVICE=ssh"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

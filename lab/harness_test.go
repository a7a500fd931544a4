//go:build linux

package lab_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestPackagesInstalled holds the list of tools against the script that has to
// install them on a machine which has only Go.
func TestPackagesInstalled(t *testing.T) {
	script, err := os.ReadFile("../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`(?m)^packages=\(([^)]*)\)`).FindSubmatch(script)
	if list == nil {
		t.Fatal(".ci/run has no line packages=(…)")
	}
	installed := strings.Fields(string(list[1]))
	checked := 0
	for _, tool := range lab.Tools {
		// Of these the first is there on every Debian, and the second comes with ejabberd.
		if slices.Contains([]string{"coreutils", "tar", "erlang-base"}, tool.Package) {
			continue
		}
		checked++
		if !slices.Contains(installed, tool.Package) {
			t.Errorf(".ci/run does not install %s, which has %s", tool.Package, tool.Name)
		}
	}
	if checked < 5 {
		t.Errorf("checked %d tools, want most of %d", checked, len(lab.Tools))
	}
}

// TestParseIQs reads what the servers' modules write, up to the line that is
// being written.
func TestParseIQs(t *testing.T) {
	const log = "set\tid1\ta@x/r\tb@x/s\tquery\tn:s\n" + "result\tid1\tb@x/s\ta@x/r\t\t\n" + "get\tid2\ta@x"
	got, err := lab.ParseIQs(log)
	want := []lab.IQ{
		{Type: "set", ID: "id1", From: "a@x/r", To: "b@x/s", Name: "query", Space: "n:s"},
		{Type: "result", ID: "id1", From: "b@x/s", To: "a@x/r"},
	}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got := lab.Between(append(want, lab.IQ{From: "a@x/r", To: "c@x/t"}), "b@x/s", "a@x/r"); !cmp.Equal(got, want) {
		t.Errorf("between the two: got %+v, want %+v", got, want)
	}
	if got, err := lab.ParseIQs("set\tid\n"); err == nil {
		t.Errorf("a short line: got %+v, want an error", got)
	}
}

// TestCertificates makes a server's certificate that its authority vouches for,
// for its domain and for no other.
func TestCertificates(t *testing.T) {
	ca, chain := lab.NewCertificates(t, t.TempDir(), "a.test")
	roots := x509.NewCertPool()
	authority, err := os.ReadFile(ca)
	if err != nil || !roots.AppendCertsFromPEM(authority) {
		t.Fatalf("authority: %v", err)
	}
	text, err := os.ReadFile(chain)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "a.test"}); err != nil {
		t.Error(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "b.test"}); err == nil {
		t.Error("the certificate is good for another domain")
	}
}

// TestRosterItem appends to a roster in Prosody's format without losing what
// was there.
func TestRosterItem(t *testing.T) {
	file := filepath.Join(t.TempDir(), "roster", "a.dat")
	lab.AddRosterItem(t, file, "b@x.test")
	lab.AddRosterItem(t, file, "c@x.test")
	got, err := os.ReadFile(file)
	want := `return {
	[false] = { ["version"] = 1 };
	["b@x.test"] = { ["subscription"] = "both"; ["groups"] = {} };
	["c@x.test"] = { ["subscription"] = "both"; ["groups"] = {} };
};
`
	if err != nil || string(got) != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
}

// TestLog keeps both ends of a long text and says how much it left out.
func TestLog(t *testing.T) {
	log := lab.NewLog()
	for range 3 * lab.LogKeep {
		if n, err := log.Write([]byte("x")); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	_, _ = log.Write([]byte("end"))
	got := log.String()
	if !strings.HasPrefix(got, "xxx") || !strings.HasSuffix(got, "xxend") || !strings.Contains(got, "[65539 bytes left out]") {
		t.Errorf("got %d bytes that end in %q", len(got), got[len(got)-40:])
	}
}

// TestProcess ends a program together with what it started, and tells statuses
// apart.
func TestProcess(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// The child holds the pipe; only its end makes the read below return.
	family := exec.Command("sh", "-c", "trap '' TERM; sh -c 'sleep 600' & echo up; wait")
	family.Stdout = w
	p := lab.Launch(t, "family", family)
	w.Close()
	line := make([]byte, 3)
	if _, err := r.Read(line); err != nil || string(line) != "up\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if rss, err := p.PeakRSS(); err != nil || rss < 100<<10 || rss > 1<<30 {
		t.Errorf("peak RSS %d, %v", rss, err)
	}
	p.Kill(t)
	if !p.Running() {
		p.Stop()
	}
	if n, err := r.Read(line); n != 0 || err == nil {
		t.Errorf("the child still holds the pipe: %d, %v", n, err)
	}
	if got := p.Wait(t, time.Minute); got != 128+int(syscall.SIGKILL) {
		t.Errorf("status %d, want that of SIGKILL", got)
	}
	for want, command := range map[int]string{0: "exit 0", 7: "exit 7"} {
		if got := lab.Launch(t, command, exec.Command("sh", "-c", command)).Wait(t, time.Minute); got != want {
			t.Errorf("%q: status %d, want %d", command, got, want)
		}
	}
}

package profile_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

var (
	juliet = jid.MustParse("juliet@example.org/balcony")
	romeo  = jid.MustParse("romeo@example.org/orchard")
	now    = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
)

// mark is a fingerprint that is told apart by one number.
func mark(n byte) dtcp.Fingerprint { return dtcp.FingerprintOf([]byte{n}) }

func open(t *testing.T) *profile.Dir {
	t.Helper()
	d, err := profile.Open(filepath.Join(t.TempDir(), "config", "dtcp"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOpenMakesAPrivateDirectory(t *testing.T) {
	d := open(t)
	info, err := os.Stat(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o700 {
		t.Errorf("mode is %v, want 0700", info.Mode().Perm())
	}
	if _, err := profile.Open(d.Path()); err != nil {
		t.Errorf("opening it a second time: %v", err)
	}
}

// Whoever only looks leaves nothing behind.
func TestOpenToReadMakesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	d, err := profile.OpenToRead(path)
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := d.Accounts()
	if err != nil || len(accounts) != 0 {
		t.Errorf("accounts are %v, %v", accounts, err)
	}
	peers, err := d.Peers()
	if err != nil || len(peers) != 0 {
		t.Errorf("peers are %v, %v", peers, err)
	}
	if err := d.Remember(profile.Account{JID: juliet}); err == nil {
		t.Error("something was kept")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the directory was made")
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := profile.Open(file); err == nil {
		t.Error("a file was taken for a directory")
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, mode := range []os.FileMode{0o770, 0o702, 0o777} {
		path := filepath.Join(t.TempDir(), "dir")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := profile.Open(path)
		if err == nil || !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("mode %v: %v, want an error that says what to do", mode, err)
		}
	}
	// That others may look is the user's business: the files are closed.
	path := t.TempDir()
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := profile.Open(path); err != nil {
		t.Errorf("mode 0755: %v", err)
	}
}

func TestDefaultPath(t *testing.T) {
	t.Setenv(profile.Environment, "/some/where")
	if path, err := profile.DefaultPath(); err != nil || path != "/some/where" {
		t.Errorf("with the variable: %q, %v", path, err)
	}
	t.Setenv(profile.Environment, "")
	base, err := os.UserConfigDir()
	if err != nil {
		t.Logf("this machine has no configuration directory: %v", err)
		return
	}
	if path, err := profile.DefaultPath(); err != nil || path != filepath.Join(base, "dtcp") {
		t.Errorf("without: %q, %v", path, err)
	}
}

// Every file that is damaged is an error that names it, for every way to use
// it, and stays as it is.
func TestDamagedFilesAreRefusedAndKept(t *testing.T) {
	uses := map[string][]func(*profile.Dir) error{
		"accounts.json": {
			func(d *profile.Dir) error { _, err := d.Accounts(); return err },
			func(d *profile.Dir) error { return d.Remember(profile.Account{JID: juliet}) },
			func(d *profile.Dir) error { return d.Forget(juliet) },
		},
		"certificate.pem": {
			func(d *profile.Dir) error { _, err := d.Certificate(); return err },
		},
		"peers.json": {
			func(d *profile.Dir) error { _, err := d.Peers(); return err },
			func(d *profile.Dir) error { return d.Check(romeo, mark(1), false, now) },
			func(d *profile.Dir) error { _, err := d.Note(romeo, mark(1), false, now); return err },
			func(d *profile.Dir) error { _, err := d.Trust(romeo, mark(1), now); return err },
			func(d *profile.Dir) error { return d.ForgetPeer(romeo) },
		},
	}
	contents := map[string]string{
		"empty":         "",
		"cut":           `{"accounts": [`,
		"no JSON":       "hello",
		"followed":      `{} {}`,
		"from later on": `{"later": 1}`,
	}
	more := map[string][]string{
		"accounts.json": {
			`{"accounts":[{"jid":"a@b/c","password":"x"}]}`,
			`{"accounts":[{"jid":"","password":"x"}]}`,
			`{"accounts":[{"jid":"a@b","password":"x","pin":"AB"}]}`,
		},
		"peers.json": {
			`{"peers":[{"jid":"a@b/c","fingerprints":[],"extended":true}]}`,
			`{"peers":[{"jid":"a@b","fingerprints":[{"fingerprint":"AB","time":"2026-07-01T12:00:00Z"}],"extended":true}]}`,
			`{"peers":[{"jid":"a@b","fingerprints":[],"extended":true},{"jid":"a@b","fingerprints":[],"extended":true}]}`,
		},
	}
	checked := 0
	for file, uses := range uses {
		all := more[file]
		for _, c := range contents {
			all = append(all, c)
		}
		for _, content := range all {
			d := open(t)
			path := filepath.Join(d.Path(), file)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			for i, use := range uses {
				err := use(d)
				if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("%s with %q, use %d: %v, want an error that names the damaged file", file, content, i, err)
				}
				checked++
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != content {
				t.Errorf("%s with %q became %q, %v", file, content, after, err)
			}
		}
	}
	if checked != 3*8+1*5+5*8 {
		t.Errorf("%d uses checked", checked)
	}
}

func TestReadableFilesAreRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		return
	}
	d := open(t)
	if _, err := d.Certificate(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path(), "certificate.pem")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Certificate(); err == nil || !strings.Contains(err.Error(), "chmod go=") {
		t.Errorf("got %v, want an error that says what to do", err)
	}
}

func TestFilesArePrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		return
	}
	d := open(t)
	if err := d.Remember(profile.Account{JID: juliet, Password: "secret"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Certificate(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Note(romeo, mark(1), false, now); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, name := range []string{"accounts.json", "certificate.pem", "peers.json"} {
		info, err := os.Stat(filepath.Join(d.Path(), name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode().Perm())
		}
		checked++
	}
	if checked != 3 {
		t.Errorf("%d files checked", checked)
	}
}

// What a crashed process left beside a file is in nobody's way.
func TestWriteAfterACrash(t *testing.T) {
	d := open(t)
	if err := os.WriteFile(filepath.Join(d.Path(), "peers.json.new"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Note(romeo, mark(1), false, now); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Peer(romeo); err != nil || len(p.Fingerprints) != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
}

const (
	writerVariable = "DTCP_PROFILE_TEST_WRITER"
	writes         = 20
)

// TestMain lets this test binary be one of the processes of
// TestTwoProcessesAtOnce.
func TestMain(m *testing.M) {
	if name := os.Getenv(writerVariable); name != "" {
		if err := write(os.Getenv(profile.Environment), name); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// write makes changes of every kind, and prints the certificate.
func write(path, name string) error {
	d, err := profile.Open(path)
	if err != nil {
		return err
	}
	c, err := d.Certificate()
	if err != nil {
		return err
	}
	fmt.Println(dtcp.FingerprintOf(c.Certificate[0]))
	for i := range writes {
		who, err := jid.New(fmt.Sprintf("%s%d", name, i), "example.org", "")
		if err != nil {
			return err
		}
		if _, err := d.Note(who, mark(byte(i)), false, now); err != nil {
			return err
		}
		if err := d.Remember(profile.Account{JID: who, Password: name}); err != nil {
			return err
		}
	}
	return nil
}

// Two processes that start on an empty directory and change it as fast as they
// can lose nothing of each other, and agree on the certificate.
func TestTwoProcessesAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dtcp")
	var outputs [2]bytes.Buffer
	var processes [2]*exec.Cmd
	for i, name := range []string{"a", "b"} {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), writerVariable+"="+name, profile.Environment+"="+path)
		c.Stdout, c.Stderr = &outputs[i], &outputs[i]
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		processes[i] = c
	}
	for i, c := range processes {
		if err := c.Wait(); err != nil {
			t.Fatalf("process %d: %v: %s", i, err, &outputs[i])
		}
	}
	if a, b := outputs[0].String(), outputs[1].String(); a != b || a == "" {
		t.Errorf("two certificates: %s and %s", a, b)
	}
	d, err := profile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	peers, err := d.Peers()
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := d.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	if len(peers) != 2*writes || len(accounts) != 2*writes {
		t.Errorf("%d peers and %d accounts, want %d of each", len(peers), len(accounts), 2*writes)
	}
}

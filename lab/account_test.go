//go:build linux

package lab_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// login checks an account and remembers it: afterwards the configuration
// folder is all that a command needs.
func tellLogin(t *testing.T, s *stage) {
	alice := s.user(t, "alice")
	away := alice.Elsewhere(t)
	for _, user := range []*lab.User{alice, away} {
		wantStatus(t, "login", user.DoCommand(t, nil, user.LoginCommand()), 0)
	}
	listener := alice.StartCommand(t, lab.Streams{}, alice.Remembered("listen", "--exec", "cat", "--json"))
	if got, want := listener.Await(t, "ready").Address, alice.Address("pipe"); got != want {
		t.Errorf("listen after login: address %q, want %q", got, want)
	}
	got := away.DoCommand(t, strings.NewReader("remembered"), away.Remembered("dial", alice.Address("pipe")))
	wantStatus(t, "dial after login", got, 0)
	if string(got.Stdout) != "remembered" {
		t.Errorf("dial after login: got %q", got.Stdout)
	}
}

// accounts lists what login remembered, and logout forgets it.
func tellAccounts(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	bob.Config = alice.Config
	for _, user := range []*lab.User{alice, bob} {
		wantStatus(t, "login", user.DoCommand(t, nil, user.LoginCommand()), 0)
	}
	command := func(args ...string) string {
		t.Helper()
		got := alice.DoCommand(t, nil, append(append([]string{dtcpBinary}, args...), "--config", alice.Config))
		wantStatus(t, strings.Join(args, " "), got, 0)
		return string(got.Stdout)
	}
	if got := command("accounts"); !strings.Contains(got, alice.JID) || !strings.Contains(got, bob.JID) {
		t.Errorf("accounts: got %q, want both %s and %s", got, alice.JID, bob.JID)
	}
	command("logout", bob.JID)
	if got := command("accounts"); !strings.Contains(got, alice.JID) || strings.Contains(got, bob.JID) {
		t.Errorf("accounts after logout: got %q, want %s alone", got, alice.JID)
	}
}

// with returns a command line whose flag has another value.
func with(command []string, flag, value string) []string {
	command = slices.Clone(command)
	command[slices.Index(command, flag)+1] = value
	return command
}

// --server may name a port that speaks TLS at once.
func tellDirectTLS(t *testing.T, s *stage) {
	alice := s.user(t, "alice")
	wantStatus(t, "login", alice.DoCommand(t, nil, with(alice.LoginCommand(), "--server", s.server.DirectTLS)), 0)
}

// The server's certificate counts: not that of another authority, but the one
// that is pinned; and what is wrong is said before any password is sent.
func tellServerCertificate(t *testing.T, s *stage) {
	alice := s.user(t, "alice")
	other, _ := lab.NewCertificates(t, t.TempDir(), s.server.Domain)
	got := alice.DoCommand(t, nil, with(alice.LoginCommand(), "--ca", other))
	wantStatus(t, "login with another authority", got, 5)
	if !strings.Contains(got.Messages, "certificate") {
		t.Errorf("login with another authority said %q, want a word of the certificate", got.Messages)
	}
	chain, err := os.ReadFile(s.server.Chain)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := pem.Decode(chain)
	for pinned, status := range map[[32]byte]int{sha256.Sum256(leaf.Bytes): 0, sha256.Sum256(nil): 5} {
		command := with(alice.LoginCommand(), "--ca", "sha256:"+hex.EncodeToString(pinned[:]))
		command[slices.Index(command, "--ca")] = "--trust"
		wantStatus(t, "login with a pinned certificate", alice.DoCommand(t, nil, command), status)
	}
}

// A contact's address without a resource leads to the resource that announces
// the service; a stranger's to the well-known one.
func tellBareAddress(t *testing.T, s *stage) {
	alice, bob, stranger := s.user(t, "alice"), s.user(t, "bob"), s.user(t, "stranger")
	s.server.Befriend(t, alice.Account, bob.Account)
	bob.Listen(t, lab.Streams{}, "--service", "there", "--exec", "cat", "--allow", alice.JID, "--allow", stranger.JID)
	for _, user := range []*lab.User{alice, stranger} {
		got := user.Do(t, strings.NewReader("found"), "dial", bob.JID, "--service", "there")
		wantStatus(t, "dial of "+user.JID, got, 0)
		if string(got.Stdout) != "found" {
			t.Errorf("dial of %s: got %q", user.JID, got.Stdout)
		}
	}
}

// Without --allow, a listener lets its own account in and nobody else.
func tellOwnAccount(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	bob.Listen(t, lab.Streams{}, "--exec", "cat")
	got := bob.Elsewhere(t).Do(t, strings.NewReader("mine"), "dial", bob.Address("pipe"))
	wantStatus(t, "dial of the own account", got, 0)
	if string(got.Stdout) != "mine" {
		t.Errorf("got %q", got.Stdout)
	}
	wantStatus(t, "dial of another", alice.Do(t, nil, "dial", bob.Address("pipe")), 3)
}

// A peer that is not let in is told so: 3.
func tellRefusal(t *testing.T, s *stage) {
	mallory, bob, friend := s.user(t, "mallory"), s.user(t, "bob"), s.user(t, "friend")
	listener := bob.Listen(t, lab.Streams{}, "--exec", "cat", "--allow", friend.JID)
	wantStatus(t, "dial of a stranger", mallory.Do(t, nil, "dial", bob.Address("pipe")), 3)
	if !listener.Running() {
		t.Error("the listener ended")
	}
	wantStatus(t, "dial of the friend", friend.Do(t, nil, "dial", bob.Address("pipe")), 0)
}

// Nobody there: 4, whether the account exists or not.
func tellAbsence(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	for _, peer := range []string{bob.Address("pipe"), bob.JID, "nobody@" + s.server.Domain + "/dtcp", "nobody@" + s.server.Domain} {
		began := time.Now()
		got := alice.Do(t, nil, "dial", peer)
		wantStatus(t, "dial "+peer, got, 4)
		if !strings.HasPrefix(got.Messages, "dtcp:") {
			t.Errorf("dial %s: said %q, want a message that starts with dtcp:", peer, got.Messages)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("dial %s took %v to find nobody", peer, took)
		}
	}
}

// A wrong password ends every command that logs in: 5.
func tellWrongPassword(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	if err := os.WriteFile(alice.PasswordFile, []byte("not "+alice.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"login", alice.JID}, {"dial", bob.Address("pipe")}, {"listen", "--exec", "cat"}} {
		got := alice.Do(t, nil, args...)
		wantStatus(t, args[0], got, 5)
		if strings.Contains(got.Messages, alice.Password) {
			t.Errorf("%s told the password: %s", args[0], got.Messages)
		}
	}
}

// Two listeners at one address: the server throws one out with a conflict,
// which says why, does not come back, and exits with 5; the other serves on.
func tellConflict(t *testing.T, s *stage) {
	bob := s.user(t, "bob")
	first := bob.Listen(t, lab.Streams{}, "--exec", "echo first")
	second := bob.Start(t, lab.Streams{}, "listen", "--exec", "echo second")
	var thrown, stays *lab.Run
	var want string
	select {
	case <-first.Done():
		thrown, stays, want = first, second, "second\n"
		stays.Await(t, "ready")
	case <-second.Done():
		thrown, stays, want = second, first, "first\n"
	case <-time.After(30 * time.Second):
		t.Fatal("both listeners still run")
	}
	if status := thrown.Status(t); status != 5 {
		t.Errorf("the one thrown out: exit status %d, want 5", status)
	}
	if !strings.Contains(thrown.Messages(), "conflict") {
		t.Errorf("the one thrown out does not name the conflict: %s", thrown.Messages())
	}
	got := bob.Elsewhere(t).Do(t, nil, "dial", bob.Address("pipe"))
	wantStatus(t, "dial", got, 0)
	if string(got.Stdout) != want || !stays.Running() {
		t.Errorf("dial got %q, want %q; the other runs: %v", got.Stdout, want, stays.Running())
	}
}

// Ctrl-C: 130, waiting or in mid-stream.
func tellInterrupt(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	waiting := bob.Listen(t, lab.Streams{}, "--exec", "cat", "--allow", alice.JID)
	dialer := startEnd(t, alice, "dial", bob.Address("pipe"))
	dialer.run.Await(t, "path")
	for _, run := range []*lab.Run{dialer.run, waiting} {
		if err := run.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if status := run.Status(t); status != 130 {
			t.Errorf("%s: exit status %d after an interrupt, want 130", run.Name, status)
		}
	}
}

// TestLabUsage needs no server: a command line that cannot be meant is 2, and
// nothing is made or contacted.
func TestLabUsage(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config")
	checked := 0
	for _, args := range [][]string{
		{"dial"}, {"dial", "not an address"}, {"dial", "a@b.test/c", "surplus"}, {"forward", "127.0.0.1:1"},
		{"listen", "--no-such-flag"}, {"no-such-command"}, {"listen", "--exec", "cat", "--to", "127.0.0.1:1"},
		{"dial", "a@b.test/c", "--service", "bad name!"},
	} {
		command := append(append([]string{dtcpBinary}, args...), "--config", config)
		u := &lab.User{Account: lab.Account{JID: "nobody"}}
		got := u.DoCommand(t, nil, command)
		wantStatus(t, strings.Join(args, " "), got, 2)
		if len(got.Stdout) != 0 {
			t.Errorf("%q wrote to stdout: %q", args, got.Stdout)
		}
		checked++
	}
	if checked != 8 {
		t.Errorf("checked %d command lines, want 8", checked)
	}
}

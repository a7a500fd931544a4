//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// output runs a program, which must succeed, and returns its standard output.
func output(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	return outputOf(t, nil, append([]string{name}, args...))
}

// outputOf is output with a standard input, a whole command line and further
// environment.
func outputOf(t *testing.T, stdin io.Reader, command []string, environment ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), environment...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, stderr.Bytes())
	}
	return stdout.Bytes()
}

// ssh reaches a real sshd with dtcp as its proxy command: output, exit status,
// and a pipe of some size.
func tellSSH(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	sshd := lab.StartSSHD(t)
	bob.Listen(t, lab.Streams{}, "--service", "ssh", "--to", sshd.Addr, "--allow", alice.JID)
	proxy := alice.Command("dial", bob.Address("ssh"), "--service", "ssh")

	if got := outputOf(t, nil, sshd.SSH(t, proxy, "echo reached")); string(got) != "reached\n" {
		t.Errorf("echo over ssh: got %q", got)
	}
	data := bytesOf(3, 20_000_000)
	if got, want := outputOf(t, bytes.NewReader(data), sshd.SSH(t, proxy, "sha256sum")), digestLine(data); string(got) != want {
		t.Errorf("sha256sum over ssh: got %q, want %q", got, want)
	}
	line := sshd.SSH(t, proxy, "exit 42")
	err := exec.CommandContext(t.Context(), line[0], line[1:]...).Run()
	exit, ok := err.(*exec.ExitError)
	if !ok || exit.ExitCode() != 42 {
		t.Errorf("exit 42 over ssh: got %v", err)
	}
}

// Ten HTTP requests at once go through one forward, each on a connection of
// its own; the server answers none until it has all ten.
func tellForward(t *testing.T, s *stage) {
	const parallel = 10
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	var together sync.WaitGroup
	together.Add(parallel)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		together.Done()
		together.Wait()
		seed, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = w.Write(bytesOf(byte(seed), 2_000_000+seed))
	}))
	defer web.Close()
	bob.Listen(t, lab.Streams{}, "--service", "web", "--to", web.Listener.Addr().String(), "--allow", alice.JID)
	forward := alice.Start(t, lab.Streams{}, "forward", "127.0.0.1:0", bob.Address("web"), "--service", "web")
	local := forward.Await(t, "ready").Listen

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	errs := make(chan error, parallel)
	for seed := range parallel {
		// Owned by this test; ends with its request, at most a minute; the
		// receives below wait for all of them.
		go func() { errs <- fetch(client, fmt.Sprintf("http://%s/%d", local, seed), seed) }()
	}
	for range parallel {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// fetch gets url and checks the answer against the bytes of seed.
func fetch(client *http.Client, url string, seed int) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("%s: %w after %d bytes", url, err, len(body))
	}
	if sha256.Sum256(body) != sha256.Sum256(bytesOf(byte(seed), 2_000_000+seed)) {
		return fmt.Errorf("%s: %d bytes that are not the server's", url, len(body))
	}
	return nil
}

// git clones over dtcp by its own means of running a command as a transport.
func tellGitClone(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	source := makeTree(t)
	git := func(dir string, args ...string) string {
		t.Helper()
		command := append([]string{"git", "-C", dir, "-c", "user.name=lab", "-c", "user.email=lab@lab.invalid", "-c", "init.defaultBranch=main"}, args...)
		return strings.TrimSpace(string(outputOf(t, nil, command, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_ALLOW_PROTOCOL=ext")))
	}
	git(source, "init", "-q")
	git(source, "add", ".")
	git(source, "commit", "-q", "-m", "everything")
	bob.Listen(t, lab.Streams{}, "--service", "git", "--allow", alice.JID, "--exec", "git upload-pack '"+source+"'")

	target := filepath.Join(t.TempDir(), "clone")
	dial := alice.Command("dial", bob.Address("git"), "--service", "git")
	git(".", "clone", "-q", "ext::"+strings.Join(dial, " "), target)
	if got, want := git(target, "rev-parse", "HEAD"), git(source, "rev-parse", "HEAD"); got != want {
		t.Errorf("cloned %s, want %s", got, want)
	}
	git(target, "fsck", "--full", "--strict")
	wantSameTree(t, target, withoutGit(t, source))
}

// withoutGit moves a repository's own folder away, so that only its files are left.
func withoutGit(t *testing.T, repository string) string {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(repository, ".git")); err != nil {
		t.Fatal(err)
	}
	return repository
}

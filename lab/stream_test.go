//go:build linux

package lab_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// bytesOf returns n bytes that no compression or repetition could stand for,
// the same ones for the same seed.
func bytesOf(seed byte, n int) []byte {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(data)
	return data
}

// digestLine is what sha256sum prints for data on its standard input.
func digestLine(data []byte) string {
	return fmt.Sprintf("%x  -\n", sha256.Sum256(data))
}

// A dialer that ends its side gets what a command makes of all it sent: the
// half-close goes one way while the answer still comes the other.
func tellDigest(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	bob.Listen(t, lab.Streams{}, "--exec", "sha256sum", "--allow", alice.JID)
	for i, size := range []int{0, 1, 65_537, 8_000_003} {
		data := bytesOf(byte(i), size)
		got := alice.Do(t, bytes.NewReader(data), "dial", bob.Address("pipe"))
		wantStatus(t, "dial", got, 0)
		if want := digestLine(data); string(got.Stdout) != want {
			t.Errorf("%d bytes: got %q, want %q", size, got.Stdout, want)
		}
	}
}

// Exactly one iq-set and its iq-result go between the peers for a stream whose
// address is full, and nothing else, as the server counted.
func tellOneRoundTrip(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	ready := bob.Listen(t, lab.Streams{}, "--exec", "cat", "--allow", alice.JID)
	if !ready.Running() {
		t.Fatal("the listener ended")
	}
	const streams = 3
	for range streams {
		wantStatus(t, "dial", alice.Do(t, strings.NewReader("hello"), "dial", bob.Address("pipe")), 0)
	}
	var got []string
	for _, iq := range s.server.IQs(t) {
		there := strings.HasPrefix(iq.From, alice.JID+"/") && strings.HasPrefix(iq.To, bob.JID)
		back := strings.HasPrefix(iq.From, bob.JID+"/") && strings.HasPrefix(iq.To, alice.JID)
		if there || back {
			got = append(got, fmt.Sprintf("%s %s there=%v", iq.Type, iq.Space, there))
		}
	}
	var want []string
	for range streams {
		want = append(want, "set http://jabber.org/protocol/dtcp there=true", "result http://jabber.org/protocol/dtcp there=false")
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("iqs between the peers:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// plug is a standard stream of a program, held by the test: a pipe that fails
// when nothing has moved it to its end after two minutes.
func plug(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []*os.File{r, w} {
		if err := end.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// talk plays both ends of one stream, dial against listen on their standard
// streams: first writes 3 MB and ends its side, second must see the end, and
// only then answers with 2 MB of its own.
func talk(t *testing.T, first, second *endOfStream) {
	t.Helper()
	there, back := bytesOf(1, 3_000_001), bytesOf(2, 2_000_001)
	written := make(chan error, 1)
	// Owned by this test; ends when first has taken everything or is dead; the
	// receive below waits for it.
	go func() {
		_, err := first.stdin.Write(there)
		written <- err
		first.stdin.Close()
	}()
	got, err := io.ReadAll(second.stdout)
	if err != nil || !bytes.Equal(got, there) {
		t.Errorf("the second got %d bytes (%v), want the first's %d", len(got), err, len(there))
	}
	if err := <-written; err != nil {
		t.Errorf("write to the first: %v", err)
	}
	// Owned by this test; ends as above; the receive below waits for it.
	go func() {
		_, err := second.stdin.Write(back)
		written <- err
		second.stdin.Close()
	}()
	got, err = io.ReadAll(first.stdout)
	if err != nil || !bytes.Equal(got, back) {
		t.Errorf("the first got %d bytes (%v), want the second's %d", len(got), err, len(back))
	}
	if err := <-written; err != nil {
		t.Errorf("write to the second: %v", err)
	}
	for _, end := range []*endOfStream{first, second} {
		if status := end.run.Status(t); status != 0 {
			t.Errorf("%s: exit status %d, want 0", end.run.Name, status)
		}
	}
}

// An endOfStream is a dtcp whose standard streams the test holds.
type endOfStream struct {
	run    *lab.Run
	stdin  *os.File // write to it
	stdout *os.File // read from it
}

// start starts dtcp with the arguments; a listener is waited for.
func startEnd(t *testing.T, user *lab.User, args ...string) *endOfStream {
	t.Helper()
	stdin, toStdin := plug(t)
	fromStdout, stdout := plug(t)
	streams := lab.Streams{Stdin: stdin, Stdout: stdout}
	end := &endOfStream{stdin: toStdin, stdout: fromStdout}
	if args[0] == "listen" {
		end.run = user.Listen(t, streams, args[1:]...)
	} else {
		end.run = user.Start(t, streams, args...)
	}
	// The program has its own copies: with ours gone, its end is an end.
	stdin.Close()
	stdout.Close()
	return end
}

func tellDialerEndsFirst(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	listener := startEnd(t, bob, "listen", "--allow", alice.JID)
	dialer := startEnd(t, alice, "dial", bob.Address("pipe"))
	talk(t, dialer, listener)
}

func tellListenerEndsFirst(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	listener := startEnd(t, bob, "listen", "--allow", alice.JID)
	dialer := startEnd(t, alice, "dial", bob.Address("pipe"))
	talk(t, listener, dialer)
}

// A stream that dies is an error at the end that lives, never a quiet success.
func tellCut(t *testing.T, s *stage) {
	for _, victim := range []string{"listener", "dialer"} {
		t.Run(victim+" dies", func(t *testing.T) {
			alice, bob := s.user(t, "alice"), s.user(t, "bob")
			listener := startEnd(t, bob, "listen", "--allow", alice.JID)
			dialer := startEnd(t, alice, "dial", bob.Address("pipe"))
			dialer.run.Await(t, "path")
			listener.run.Await(t, "path")
			dead, alive := listener, dialer
			if victim == "dialer" {
				dead, alive = dialer, listener
			}
			dead.run.Kill(t)
			if status := alive.run.Status(t); status != 1 {
				t.Errorf("the %s died: exit status %d, want 1", victim, status)
			}
		})
	}
}

// Two ends that have nothing but IPv6 find each other by it.
func tellIPv6(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	alice.Public, bob.Public = "[::1]:0", "[::1]:0"
	bob.Listen(t, lab.Streams{}, "--exec", "sha256sum", "--allow", alice.JID)
	data := bytesOf(6, 100_000)
	var stdout bytes.Buffer
	dial := alice.Start(t, lab.Streams{Stdin: bytes.NewReader(data), Stdout: &stdout}, "dial", bob.Address("pipe"))
	if path := dial.Await(t, "path"); !strings.HasPrefix(path.Remote, "[::1]:") || path.Kind != "host" {
		t.Errorf("path %+v, want kind host to [::1]", path)
	}
	if status := dial.Status(t); status != 0 || stdout.String() != digestLine(data) {
		t.Errorf("exit status %d, got %q, want 0, %q", status, stdout.String(), digestLine(data))
	}
}

// A command that fails cuts the stream, so that the dialer sees an error.
func tellFailingCommand(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	bob.Listen(t, lab.Streams{}, "--allow", alice.JID, "--service", "fails",
		"--exec", `echo "$DTCP_PEER $DTCP_SERVICE"; cat >/dev/null; exit 3`)
	got := alice.Do(t, strings.NewReader("x"), "dial", bob.Address("fails"), "--service", "fails")
	wantStatus(t, "dial", got, 1)
	peer, service, _ := strings.Cut(strings.TrimSuffix(string(got.Stdout), "\n"), " ")
	if !strings.HasPrefix(peer, alice.JID+"/") || service != "fails" {
		t.Errorf("the command saw %q, want DTCP_PEER %s/… and DTCP_SERVICE fails", got.Stdout, alice.JID)
	}
}

// Folders travel as tar archives, either way.
func tellTarThere(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	source, target := makeTree(t), t.TempDir()
	bob.Listen(t, lab.Streams{}, "--service", "tar", "--allow", alice.JID, "--exec", "tar -x -C '"+target+"'")
	archive := output(t, "tar", "-c", "-C", source, ".")
	wantStatus(t, "dial", alice.Do(t, bytes.NewReader(archive), "dial", bob.Address("tar"), "--service", "tar"), 0)
	wantSameTree(t, target, source)
}

func tellTarBack(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	source, target := makeTree(t), t.TempDir()
	bob.Listen(t, lab.Streams{}, "--service", "tar", "--allow", alice.JID, "--exec", "tar -c -C '"+source+"' .")
	got := alice.Do(t, nil, "dial", bob.Address("tar"), "--service", "tar")
	wantStatus(t, "dial", got, 0)
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(archive, got.Stdout, 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, "tar", "-x", "-C", target, "-f", archive)
	wantSameTree(t, target, source)
}

// treeFiles is the number of files that makeTree makes.
const treeFiles = 40

// makeTree makes a folder of files of many sizes, two folders deep.
func makeTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for i := range treeFiles {
		file := filepath.Join(root, fmt.Sprintf("folder %d", i%4), fmt.Sprintf("file-%d", i))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, bytesOf(byte(i), i*i*151), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// wantSameTree compares two folders file by file.
func wantSameTree(t *testing.T, got, want string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(want, func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		name, err := filepath.Rel(want, file)
		if err != nil {
			return err
		}
		a, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(got, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs", name)
		}
		return nil
	})
	if err != nil || files != treeFiles {
		t.Errorf("compared %d files, want %d: %v", files, treeFiles, err)
	}
}

//go:build linux

package lab_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// A courier is one user who sends files to another, who receives them into a
// folder.
type courier struct {
	from, to *lab.User
	receiver *lab.Run
	folder   string
}

// newCourier makes both users and starts the receiver.
func newCourier(t *testing.T, s *stage, args ...string) *courier {
	t.Helper()
	c := &courier{from: s.user(t, "alice"), to: s.user(t, "bob"), folder: t.TempDir()}
	c.receive(t, args...)
	return c
}

// receive starts the receiver, for the first time or again.
func (c *courier) receive(t *testing.T, args ...string) {
	t.Helper()
	c.receiver = c.to.Receive(t, lab.Streams{}, c.folder, append([]string{"--yes", "--from", c.from.JID}, args...)...)
}

// start starts dtcp send.
func (c *courier) start(t *testing.T, args ...string) *lab.Run {
	t.Helper()
	return c.from.Start(t, lab.Streams{}, append(append([]string{"send"}, args...), c.to.JID)...)
}

// send runs dtcp send to its end, which must be a good one, and returns what it
// says then.
func (c *courier) send(t *testing.T, args ...string) lab.Event {
	t.Helper()
	run := c.start(t, args...)
	wantSmall(t, run, c.receiver)
	if status := run.Status(t); status != 0 {
		t.Fatalf("%s: exit status %d, want 0", run.Name, status)
	}
	return run.Await(t, "done")
}

// wantSmall watches two programs until the first ends. None may take more
// memory than [maxRSS].
func wantSmall(t *testing.T, first, second *lab.Run) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var peaks [2]int64
	for seen := 0; ; seen++ {
		for i, run := range []*lab.Run{first, second} {
			if rss, err := run.PeakRSS(); err == nil {
				peaks[i] = max(peaks[i], rss)
			}
		}
		select {
		case <-tick.C:
			continue
		case <-first.Done():
		}
		t.Logf("peak RSS %.1f and %.1f MiB", float64(peaks[0])/(1<<20), float64(peaks[1])/(1<<20))
		for i, run := range []*lab.Run{first, second} {
			if peaks[i] == 0 || peaks[i] >= maxRSS {
				t.Errorf("%s: peak RSS %d bytes, want below %d", run.Name, peaks[i], maxRSS)
			}
		}
		return
	}
}

// A large file arrives whole, and either end says the same of it.
func tellLargeFile(t *testing.T, s *stage) {
	c, source := newCourier(t, s), t.TempDir()
	const size = 1 << 30
	sow(t, filepath.Join(source, "large"), 1, size)
	done := c.send(t, filepath.Join(source, "large"))
	want := treeOf(t, source)
	if done.Bytes != size || done.Resumed != 0 || done.SHA256 != want["large"].Content {
		t.Errorf("done: %+v, want %d bytes of hash %s", done, size, want["large"].Content)
	}
	if there := c.receiver.Await(t, "done"); there.Bytes != done.Bytes || there.SHA256 != done.SHA256 {
		t.Errorf("the receiver is done with %+v, the sender with %+v", there, done)
	}
	wantTree(t, c.folder, want)
}

// Ten thousand small files arrive with modes, times and links, and a second
// time none has to be sent.
func tellManyFiles(t *testing.T, s *stage) {
	c, source := newCourier(t, s), t.TempDir()
	const files = 10_000
	total := plant(t, filepath.Join(source, "many"), files, func(i int) int64 { return int64(i*i) % 8192 })
	done := c.send(t, "-r", filepath.Join(source, "many"))
	if done.Bytes != total || done.Resumed != 0 {
		t.Errorf("done: %+v, want %d bytes", done, total)
	}
	if offer := c.receiver.Await(t, "offer"); offer.Files != files || offer.Bytes != total {
		t.Errorf("offer: %+v, want %d files, %d bytes", offer, files, total)
	}
	want := treeOf(t, source)
	wantTree(t, c.folder, want)
	if done := c.send(t, "-r", filepath.Join(source, "many")); done.Bytes != total || done.Resumed != total {
		t.Errorf("once more: %+v, want all %d bytes resumed", done, total)
	}
	wantTree(t, c.folder, want)
}

// scripts are names in ten scripts and some more that are none.
var scripts = []string{
	"Große Straße.txt", "Ελληνικά", "Русский текст", "עברית", "العربية", "हिन्दी", "ไทย", "中文名字", "ひらがなカタカナ", "한국어",
	"ქართული", "e\u0301 decomposed", "🎼 score", "-leading dash", "quote ' and $HOME `x`", " leading space",
	strings.Repeat("长", 85), // 255 bytes
}

// Names arrive as they are, at the top and below, hidden ones only below: at the
// top they are refused where nobody is asked.
func tellScripts(t *testing.T, s *stage) {
	c, source := newCourier(t, s), t.TempDir()
	args := []string{"-r"}
	for i, name := range scripts {
		file := filepath.Join(source, name)
		if i%2 == 0 {
			file = filepath.Join(source, name, name)
		}
		sow(t, file, uint64(i), int64(1000+i))
		args = append(args, filepath.Join(source, name))
	}
	sow(t, filepath.Join(source, scripts[0], ".hidden"), 99, 1)
	c.send(t, args...)
	want := treeOf(t, source)
	if made := len(scripts) + (len(scripts)+1)/2 + 1; len(want) != made {
		t.Fatalf("made %d, want %d", len(want), made)
	}
	wantTree(t, c.folder, want)
}

// A file without a byte is a file, too.
func tellEmptyFile(t *testing.T, s *stage) {
	c, source := newCourier(t, s), t.TempDir()
	sow(t, filepath.Join(source, "empty"), 0, 0)
	done := c.send(t, filepath.Join(source, "empty"))
	if want := fmt.Sprintf("%x", sha256.Sum256(nil)); done.Bytes != 0 || done.SHA256 != want {
		t.Errorf("done: %+v, want 0 bytes, hash %s", done, want)
	}
	wantTree(t, c.folder, treeOf(t, source))
}

// Standard input and output stand for a file at either end.
func tellStandardStreams(t *testing.T, s *stage) {
	data := bytesOf(4, 20_000_003)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	sources := []struct {
		arg   string
		stdin io.Reader
	}{{"-", bytes.NewReader(data)}, {file, nil}}
	for _, source := range sources {
		alice, bob := s.user(t, "alice"), s.user(t, "bob")
		var stdout bytes.Buffer
		receiver := bob.Receive(t, lab.Streams{Stdout: &stdout}, "-", "--yes", "--from", alice.JID)
		sender := alice.Start(t, lab.Streams{Stdin: source.stdin}, "send", source.arg, bob.JID)
		wantSmall(t, sender, receiver)
		for _, run := range []*lab.Run{sender, receiver} {
			if status := run.Status(t); status != 0 {
				t.Errorf("%s: exit status %d, want 0", run.Name, status)
			}
		}
		if !bytes.Equal(stdout.Bytes(), data) {
			t.Errorf("%s to stdout: %d bytes, not the %d that were sent", source.arg, stdout.Len(), len(data))
		}
	}

	c := newCourier(t, s)
	sender := c.from.Start(t, lab.Streams{Stdin: bytes.NewReader(data)}, "send", "-", c.to.JID)
	wantSmall(t, sender, c.receiver)
	if status := sender.Status(t); status != 0 {
		t.Errorf("%s: exit status %d, want 0", sender.Name, status)
	}
	if got, err := os.ReadFile(filepath.Join(c.folder, "stdin")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("stdin to a folder: %d bytes (%v), not the %d that were sent", len(got), err, len(data))
	}
}

// changes are what may become of a file while it is sent, and what the sender
// says then.
var changes = []struct {
	name, message string
	change        func(f *os.File, size int64) error
}{
	{"changes", "it changed while it was sent", func(f *os.File, size int64) error {
		_, err := f.WriteAt([]byte("x"), size/2)
		return err
	}},
	{"shrinks", "it became shorter while it was sent", func(f *os.File, size int64) error { return f.Truncate(size / 2) }},
	{"grows", "it became longer while it was sent", func(f *os.File, size int64) error { return f.Truncate(size + 1) }},
}

// A file that changes, or cannot be read, fails by its name at both ends. The
// others arrive.
func tellFailingSources(t *testing.T, s *stage) {
	for _, change := range changes {
		t.Run(change.name, func(t *testing.T) {
			c, source := newCourier(t, s), t.TempDir()
			const large, late = 256 << 20, 1 << 20
			at := func(name string) string { return filepath.Join(source, "folder", name) }
			sow(t, at("0 large"), 0, large)
			for i, name := range []string{"1 late", "2 gone", "3 sealed", "4 stays", "5 stays", "6 stays"} {
				sow(t, at(name), uint64(i), late*int64(i%3))
			}
			sow(t, at("1 late"), 1, late)
			if err := os.Chmod(at("3 sealed"), 0); err != nil {
				t.Fatal(err)
			}
			// Root reads everything, unless it gives up what lets it.
			without := []string{"setpriv", "--bounding-set", "-dac_override,-dac_read_search"}
			sender := c.from.StartCommand(t, lab.Streams{}, append(without, c.from.Command("send", "--json", "-r", filepath.Join(source, "folder"), c.to.JID)...))

			// A receiver that stands still holds the sender in the large file.
			part := filepath.Join(c.folder, "folder", "0 large.part")
			await(t, part, sender.Done(), func() bool { return sizeOf(part) > 0 })
			tell(t, c.receiver, syscall.SIGSTOP)
			for _, victim := range []struct {
				name string
				size int64
			}{{"0 large", large}, {"1 late", late}} {
				f, err := os.OpenFile(at(victim.name), os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := change.change(f, victim.size); err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			if err := os.Remove(at("2 gone")); err != nil {
				t.Fatal(err)
			}
			tell(t, c.receiver, syscall.SIGCONT)

			wantSmall(t, sender, c.receiver)
			if status := sender.Status(t); status != 1 {
				t.Errorf("send: exit status %d, want 1", status)
			}
			failures := []struct{ name, message string }{
				{"folder/0 large", change.message}, {"folder/1 late", change.message},
				{"folder/2 gone", "no such file or directory"}, {"folder/3 sealed", "permission denied"},
			}
			for _, end := range []*lab.Run{sender, c.receiver} {
				for _, want := range failures {
					if got := end.Await(t, "failed"); got.Name != want.name || !strings.Contains(got.Message, want.message) {
						t.Errorf("%s: failed %q: %q, want %q: %q", end.Name, got.Name, got.Message, want.name, want.message)
					}
				}
				if got := end.Await(t, "error"); got.Code != 1 || !strings.Contains(got.Message, "4 of 7") {
					t.Errorf("%s: error %+v, want code 1 and that 4 of 7 did not arrive", end.Name, got)
				}
			}
			want := treeOf(t, source)
			for _, failure := range failures {
				delete(want, failure.name)
			}
			if len(want) != 4 {
				t.Fatalf("left to arrive: %v", want)
			}
			// What is gone made the folder a younger one than was offered.
			got := treeOf(t, c.folder)
			folder := want["folder"]
			folder.Time = got["folder"].Time
			want["folder"] = folder
			wantSame(t, got, want)
		})
	}
}

// Where nobody can be asked, everybody is refused and nothing is written.
func tellNoTerminal(t *testing.T, s *stage) {
	alice, bob := s.user(t, "alice"), s.user(t, "bob")
	s.server.Befriend(t, alice.Account, bob.Account)
	folder, source := t.TempDir(), t.TempDir()
	sow(t, filepath.Join(source, "file"), 1, 100)
	bob.Receive(t, lab.Streams{}, folder)
	wantStatus(t, "send", alice.Do(t, nil, "send", filepath.Join(source, "file"), bob.JID), 3)
	wantTree(t, folder, map[string]node{})
}

// With --yes contacts and one's own machines may send; with --from those who
// are named, and nobody else.
func tellWhoMaySend(t *testing.T, s *stage) {
	alice, bob, carol := s.user(t, "alice"), s.user(t, "bob"), s.user(t, "carol")
	s.server.Befriend(t, alice.Account, bob.Account)
	source := t.TempDir()
	give := func(user *lab.User, name string, want int) {
		t.Helper()
		file := filepath.Join(source, name)
		sow(t, file, 1, 100)
		wantStatus(t, name, user.Do(t, nil, "send", file, bob.JID), want)
		if want != 0 {
			_ = os.Remove(file) // what lies here must arrive
		}
	}
	folder := t.TempDir()
	receiver := bob.Receive(t, lab.Streams{}, folder, "--yes")
	give(carol, "of a stranger", 3)
	give(alice, "of a contact", 0)
	give(bob.Elsewhere(t), "of another machine", 0)
	wantTree(t, folder, treeOf(t, source))
	receiver.Stop()
	bob.Receive(t, lab.Streams{}, folder, "--yes", "--from", carol.JID)
	give(alice, "of a contact who is not named", 3)
	give(carol, "of a stranger who is named", 0)
	wantTree(t, folder, treeOf(t, source))
}

// sizeOf is the size of a file, -1 if there is none.
func sizeOf(file string) int64 {
	info, err := os.Lstat(file)
	if err != nil {
		return -1
	}
	return info.Size()
}

// await waits until ok, which it looks at often. It fails the test when the
// program behind done ends before.
func await(t *testing.T, what string, done <-chan struct{}, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-done:
			t.Fatalf("%s: the program ended before", what)
		}
	}
}

func tell(t *testing.T, run *lab.Run, sig syscall.Signal) {
	t.Helper()
	if err := run.Signal(sig); err != nil {
		t.Fatalf("%v to %s: %v", sig, run.Name, err)
	}
}

//go:build linux

package lab_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// How often each is measured: odd numbers, so that there is a median. scp takes
// seconds for the folder, and is far behind.
const (
	fileRounds   = 7
	folderRounds = 3
)

// A fileBench is two users, who know each other, and something to send.
type fileBench struct {
	alice, bob *lab.User
	source     string
	size       int64 // in bytes, of all files
}

func newFileBench(t *testing.T, name string) *fileBench {
	t.Helper()
	server := lab.StartProsody(t)
	b := &fileBench{alice: lab.NewUser(t, server, dtcpBinary, "alice"), bob: lab.NewUser(t, server, dtcpBinary, "bob")}
	b.source = filepath.Join(t.TempDir(), name)
	return b
}

// settle has what was made of the source written to the disk, so that this
// does not go on beside the first rounds.
func (b *fileBench) settle() { syscall.Sync() }

// target makes an empty folder beside the source, on the same file system, and
// what removes it, together with what is not yet on the disk.
func (b *fileBench) target(t *testing.T) (string, func()) {
	t.Helper()
	folder, err := os.MkdirTemp(filepath.Dir(b.source), "target")
	if err != nil {
		t.Fatal(err)
	}
	return folder, func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	}
}

// dtcp sends the source once. The time begins when the stream stands, or, if
// whole, when send is started; it ends when both programs have.
func (b *fileBench) dtcp(t *testing.T, whole bool) round {
	t.Helper()
	folder, remove := b.target(t)
	defer remove()
	receiver := b.bob.Receive(t, lab.Streams{}, folder, "--yes", "--from", b.alice.JID, "--once")
	began := time.Now()
	sender := b.alice.Start(t, lab.Streams{}, "send", "-r", b.source, b.bob.JID)
	if !whole {
		sender.Await(t, "path")
		began = time.Now()
	}
	<-sender.Done()
	<-receiver.Done()
	r := round{bytes: b.size, took: time.Since(began)}
	for _, run := range []*lab.Run{sender, receiver} {
		if status := run.Status(t); status != 0 {
			t.Errorf("%s: exit status %d, want 0", run.Name, status)
		}
		if done := run.Await(t, "done"); done.Bytes != b.size || done.Resumed != 0 {
			t.Errorf("%s: %+v, want %d bytes, none resumed", run.Name, done, b.size)
		}
		r.cpu += run.CPU()
	}
	return r
}

// bare does the same with the bare program.
func (b *fileBench) bare(t *testing.T, identity string) round {
	t.Helper()
	folder, remove := b.target(t)
	defer remove()
	target := filepath.Join(folder, "file")
	_, null := openStreams(t, b.source)
	r := runBare(t, b.size, null, null, []string{identity, target}, []string{identity, b.source})
	if got := sizeOf(target); got != b.size {
		t.Errorf("the bare program wrote %d bytes, want %d", got, b.size)
	}
	return r
}

// scp does the same over a loopback sshd, from its start to its end.
func (b *fileBench) scp(t *testing.T, sshd *lab.SSHD) round {
	t.Helper()
	folder, remove := b.target(t)
	defer remove()
	line := sshd.SCP(t, b.source, folder)
	before := sshd.CPU(t)
	cmd := exec.CommandContext(t.Context(), line[0], line[1:]...)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("scp: %v\n%s", err, out)
	}
	return round{
		bytes: b.size, took: time.Since(began),
		cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() + sshd.CPU(t) - before,
	}
}

// TestLabBenchFile holds send and receive of one large file against a bare
// program that reads, hashes and sends with plain crypto/tls, and receives,
// hashes, writes and syncs; and against scp, from start to end.
func TestLabBenchFile(t *testing.T) {
	b := newFileBench(t, "large")
	b.size = benchSize()
	sow(t, b.source, 1, b.size)
	b.settle()
	identity, sshd := bareIdentity(t), lab.StartSSHD(t)
	compare(t, fileRounds, 0.95,
		contender{"dtcp send | receive", func(t *testing.T) round { return b.dtcp(t, false) }},
		contender{"barepeer, hashing", func(t *testing.T) round { return b.bare(t, identity) }})
	compare(t, fileRounds, 1.0,
		contender{"dtcp send, whole", func(t *testing.T) round { return b.dtcp(t, true) }},
		contender{"scp", func(t *testing.T) round { return b.scp(t, sshd) }})
}

// TestLabBenchFolder holds a folder of small files against scp -r.
func TestLabBenchFolder(t *testing.T) {
	b := newFileBench(t, "many")
	b.size = plant(t, b.source, 10_000, func(i int) int64 { return int64(i*i) % 8192 })
	b.settle()
	sshd := lab.StartSSHD(t)
	compare(t, folderRounds, 1.0,
		contender{"dtcp send -r, whole", func(t *testing.T) round { return b.dtcp(t, true) }},
		contender{"scp -r", func(t *testing.T) round { return b.scp(t, sshd) }})
}

package transfer_test

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// TestMain makes the test binary a program that sends or receives on its
// standard streams, for tests that kill it.
func TestMain(m *testing.M) {
	rw := &process{Reader: os.Stdin, Writer: os.Stdout}
	switch os.Getenv("TRANSFER_TEST_ROLE") {
	case "":
		os.Exit(m.Run())
	case "receive":
		d, err := transfer.OpenFolder(os.Getenv("TRANSFER_TEST_PATH"))
		if err != nil {
			os.Exit(1)
		}
		_, _ = (&transfer.Receiver{From: "romeo@example.org", Folder: d, Accept: accept}).Receive(context.Background(), rw)
	case "send":
		s := &transfer.Sender{Dial: func(context.Context) (io.ReadWriteCloser, error) { return rw, nil }}
		_, _ = s.Send(context.Background(), transfer.Path(os.Getenv("TRANSFER_TEST_PATH"), true))
	}
	os.Exit(0)
}

// A process is a stream to the test binary in another role, or to the test that
// started it. After a number of bytes of files, in whichever direction they go,
// it is killed.
type process struct {
	io.Reader
	io.Writer
	cmd   *exec.Cmd
	sends bool // the other one
	left  int
}

func start(t *testing.T, role, path string, left int) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TRANSFER_TEST_ROLE="+role, "TRANSFER_TEST_PATH="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &process{Reader: out, Writer: in, cmd: cmd, sends: role == "send", left: left}
}

// pass counts bytes, and kills.
func (p *process) pass(n int) {
	if p.left -= n; p.left <= 0 && p.cmd != nil {
		_ = p.cmd.Process.Kill()
	}
}

func (p *process) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if p.sends {
		p.pass(n)
		n = max(0, min(n, n+p.left)) // what came after the kill did not
	}
	return n, err
}

func (p *process) Write(b []byte) (int, error) {
	if p.sends {
		return p.Writer.Write(b)
	}
	// In small pieces, so that it is killed in the middle of things.
	for at := 0; at < len(b); {
		n, err := p.Writer.Write(b[at:min(at+4096, len(b))])
		at += n
		if p.pass(n); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

func (p *process) CloseWrite() error {
	if c, ok := p.Writer.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (p *process) Close() error {
	_ = p.CloseWrite()
	if c, ok := p.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// TestKill kills either end at points all over a transfer. Then there is never
// a wrong byte under a final name, and the next attempt makes everything whole,
// sends nothing again that was there, and leaves nothing behind.
func TestKill(t *testing.T) {
	from := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	content := func(n int) string {
		var b strings.Builder
		for b.Len() < n {
			b.WriteByte(byte(random.UintN(256)))
		}
		return b.String()
	}
	write(t, content(700_000), from, "d", "large.bin")
	write(t, "", from, "d", "empty")
	for _, name := range []string{"a", "b", "c", "z"} {
		write(t, content(3_000), from, "d", "sub", name)
	}
	write(t, content(100_000), from, "d", "zlarge")
	symlink(t, "sub", from, "d", "link")
	want := tree(t, from)
	total := 812_500
	resumed := 0
	for round := range 16 {
		to := t.TempDir()
		at := round*total/8 - round*round*total/200
		if round >= 8 {
			at = (round-8)*total/8 + 500
		}
		if round%2 == 0 {
			child := start(t, "receive", to, at)
			s := &transfer.Sender{Dial: dial(child)}
			_, _ = s.Send(t.Context(), transfer.Path(filepath.Join(from, "d"), true))
			_ = child.cmd.Process.Kill()
			_ = child.cmd.Wait()
		} else {
			child := start(t, "send", filepath.Join(from, "d"), at)
			_, _ = receiver(t, to).Receive(t.Context(), child)
			_ = child.cmd.Process.Kill()
			_ = child.cmd.Wait()
		}
		for path, what := range tree(t, to) {
			if w := want[path]; what[0] == '-' && !strings.HasSuffix(path, ".part") && !strings.HasPrefix(path, transfer.JournalPrefix) && w[strings.IndexByte(w, ' '):] != what[strings.IndexByte(what, ' '):] {
				t.Fatalf("killed after %d bytes: %s is wrong", at, path)
			}
		}
		o := run(t, &transfer.Sender{}, receiver(t, to), nil, transfer.Path(filepath.Join(from, "d"), true)).ok(t)
		same(t, tree(t, to), want)
		if o.sent.Resumed > 0 {
			resumed++
		}
	}
	if resumed < 6 {
		t.Errorf("in %d rounds of 16 something was resumed: too few to say anything", resumed)
	}
}

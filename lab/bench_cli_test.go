//go:build linux

package lab_test

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/lab"
)

// TestLabBenchCLI holds dial and listen, file in and null out, against a bare
// program that does the same with plain crypto/tls: at least as fast, from the
// moment the stream stands.
func TestLabBenchCLI(t *testing.T) {
	server := lab.StartProsody(t)
	alice, bob := lab.NewUser(t, server, dtcpBinary, "alice"), lab.NewUser(t, server, dtcpBinary, "bob")
	size := benchSize()
	file, identity := fileOf(t, size), bareIdentity(t)
	compare(t, benchRounds, 1.0,
		contender{"dtcp dial | listen", func(t *testing.T) round {
			r, _ := pumpDTCP(t, alice, bob, file, size)
			return r
		}},
		contender{"barepeer dial | listen", func(t *testing.T) round {
			return pumpBare(t, identity, file, size)
		}})
}

// maxRSS is what either end of a stream may take, however long the stream.
const maxRSS = 64 << 20

// TestLabMemory sends 4 GiB through dial and listen and watches both.
func TestLabMemory(t *testing.T) {
	server := lab.StartProsody(t)
	alice, bob := lab.NewUser(t, server, dtcpBinary, "alice"), lab.NewUser(t, server, dtcpBinary, "bob")
	const size = 4 << 30
	r, peaks := pumpDTCP(t, alice, bob, fileOf(t, size), size)
	t.Logf("4 GiB at %.3f GB/s, %.3f CPU-s per GB; peak RSS: dial %.1f MiB, listen %.1f MiB",
		r.rate(), r.cpuPerGB(), float64(peaks[0])/(1<<20), float64(peaks[1])/(1<<20))
	for i, name := range []string{"dial", "listen"} {
		if peaks[i] == 0 || peaks[i] >= maxRSS {
			t.Errorf("%s: peak RSS %d bytes, want below %d", name, peaks[i], maxRSS)
		}
	}
}

// fileOf makes a file of size zeros, which takes no room on the disk and, read
// once, is in the page cache.
func fileOf(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "input")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, struct{ io.Reader }{f}); n != size || err != nil {
		t.Fatalf("read back %d bytes, %v", n, err)
	}
	return file
}

// openStreams opens the file to send and the null device.
func openStreams(t *testing.T, file string) (in, null *os.File) {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); null.Close() })
	return in, null
}

// pumpDTCP sends the file from alice's dial to bob's listen, and returns also
// the peak resident set sizes of the two, in bytes.
func pumpDTCP(t *testing.T, alice, bob *lab.User, file string, size int64) (r round, peaks [2]int64) {
	t.Helper()
	in, null := openStreams(t, file)
	listener := bob.Listen(t, lab.Streams{Stdin: null, Stdout: null}, "--service", "bulk", "--allow", alice.JID)
	dialer := alice.Start(t, lab.Streams{Stdin: in, Stdout: null}, "dial", bob.Address("bulk"), "--service", "bulk")
	dialer.Await(t, "path")
	began := time.Now()
	for tick := time.NewTicker(50 * time.Millisecond); dialer.Running() || listener.Running(); {
		for i, run := range []*lab.Run{dialer, listener} {
			if rss, err := run.PeakRSS(); err == nil {
				peaks[i] = max(peaks[i], rss)
			}
		}
		select {
		case <-tick.C:
		case <-listener.Done():
			tick.Stop()
			<-dialer.Done()
		}
	}
	r = round{bytes: size, took: time.Since(began)}
	for _, run := range []*lab.Run{dialer, listener} {
		if status := run.Status(t); status != 0 {
			t.Errorf("%s: exit status %d, want 0", run.Name, status)
		}
		r.cpu += run.CPU()
	}
	if got := listener.Await(t, "done").Bytes; got != size {
		t.Errorf("the listener counted %d bytes, want %d", got, size)
	}
	return r, peaks
}

// bareIdentity writes a certificate of the kind dtcp makes, with its key, for
// the bare program.
func bareIdentity(t *testing.T) string {
	t.Helper()
	certificate, err := dtcp.NewCertificate()
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	file := filepath.Join(t.TempDir(), "identity.pem")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// pumpBare does what pumpDTCP does, with the bare program.
func pumpBare(t *testing.T, identity, file string, size int64) round {
	t.Helper()
	in, null := openStreams(t, file)
	return runBare(t, size, in, null, []string{identity}, []string{identity})
}

// runBare runs the bare program at both ends, with what follows "listen", and
// "dial" and the address, on their command lines.
func runBare(t *testing.T, size int64, in, null *os.File, listen, dial []string) round {
	t.Helper()
	start := func(stdin *os.File, args ...string) (*lab.Process, *bufio.Scanner) {
		t.Helper()
		cmd := exec.Command(barePeerBinary, args...)
		cmd.Stdin, cmd.Stdout = stdin, null
		messages, w := plug(t)
		cmd.Stderr = w
		p := lab.Launch(t, "barepeer "+args[0], cmd)
		w.Close()
		return p, bufio.NewScanner(messages)
	}
	expect := func(lines *bufio.Scanner, want string) string {
		t.Helper()
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Fatalf("barepeer said %q (%v), want %q", lines.Text(), lines.Err(), want)
		}
		return lines.Text()
	}
	listener, heard := start(null, append([]string{"listen"}, listen...)...)
	dialer, said := start(in, append([]string{"dial", expect(heard, "127.0.0.1:")}, dial...)...)
	expect(said, "stream")
	began := time.Now()
	<-listener.Done()
	<-dialer.Done()
	r := round{bytes: size, took: time.Since(began)}
	for _, p := range []*lab.Process{dialer, listener} {
		if status := p.Wait(t, time.Minute); status != 0 {
			t.Errorf("%s: exit status %d, want 0", p.Name, status)
		}
		r.cpu += p.CPU()
	}
	return r
}

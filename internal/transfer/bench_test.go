package transfer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"hash"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// tlsPair is a TLS 1.3 connection over loopback.
func tlsPair(b *testing.B) (client, server io.ReadWriteCloser) {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"bench"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan *tls.Conn, 1)
	// Owned by tlsPair, which waits for accepted.
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
		_ = s.Handshake()
		accepted <- s
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	return c, <-accepted
}

// measure sends path over TLS on loopback, to a new folder each time.
func measure(b *testing.B, path string, recursive bool) {
	b.Helper()
	c, s := tlsPair(b)
	to, err := os.MkdirTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	d := folder(b, to)
	done := make(chan error, 1)
	b.StartTimer()
	// Owned by measure, which waits for done.
	go func() {
		_, err := (&transfer.Receiver{From: "romeo@example.org", Folder: d, Accept: accept}).Receive(context.Background(), s)
		done <- err
	}()
	sender := &transfer.Sender{Dial: func(context.Context) (io.ReadWriteCloser, error) { return c, nil }}
	if _, err := sender.Send(context.Background(), transfer.Path(path, recursive)); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	if err := os.RemoveAll(to); err != nil {
		b.Fatal(err)
	}
}

const largeSize = 512 << 20

func largeFile(b *testing.B) string {
	path := filepath.Join(b.TempDir(), "large")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, largeSize); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkLargeFile sends one file of 512 MiB; the bar is 0.95 of Bare below
// in the same run.
func BenchmarkLargeFile(b *testing.B) {
	path := largeFile(b)
	b.SetBytes(largeSize)
	b.Run("transfer", func(b *testing.B) {
		b.SetBytes(largeSize)
		b.StopTimer()
		for range b.N {
			measure(b, path, false)
		}
	})
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(largeSize)
		b.StopTimer()
		for range b.N {
			bare(b, path)
		}
	})
}

// bare is the program to compare with: read, hash and write to TLS on one side,
// read from it, hash and write on the other.
func bare(b *testing.B, path string) {
	c, s := tlsPair(b)
	to := filepath.Join(b.TempDir(), "bare")
	sums := make(chan string, 1)
	b.StartTimer()
	// Owned by bare, which waits for sums.
	go func() {
		f, err := os.Create(to)
		if err != nil {
			sums <- err.Error()
			return
		}
		h := sha256.New()
		err = copyHashed(f, s, h)
		if err == nil {
			err = f.Close()
		}
		sums <- fmt.Sprintf("%x %v", h.Sum(nil), err)
	}()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	h := sha256.New()
	if err := copyHashed(c, f, h); err != nil {
		b.Fatal(err)
	}
	_ = c.Close()
	if got, want := <-sums, fmt.Sprintf("%x <nil>", h.Sum(nil)); got != want {
		b.Fatalf("received %s, want %s", got, want)
	}
	b.StopTimer()
	_ = f.Close()
	_ = os.Remove(to)
}

func copyHashed(w io.Writer, r io.Reader, h hash.Hash) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// BenchmarkSmallFiles sends a folder of 10,000 files of 1 KiB.
func BenchmarkSmallFiles(b *testing.B) {
	const files = 10_000
	from := filepath.Join(b.TempDir(), "small")
	for i := range files {
		write(b, string(make([]byte, 1024)), from, fmt.Sprintf("d%02d", i%100), fmt.Sprintf("f%05d", i))
	}
	b.ResetTimer()
	b.StopTimer()
	for range b.N {
		measure(b, from, true)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/files, "µs/file")
}

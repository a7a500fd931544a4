package pump_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/pump"
)

// link returns the two ends of a TCP connection over loopback. The test closes
// them in the end.
func link(t testing.TB) (outer, inner *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	outer, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	inner, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close(); inner.Close() })
	return outer, inner
}

// BenchmarkCopy copies in one direction through as many pairs as it says, by
// the pump and by io.Copy between the connections, which splices too but owns a
// pipe and two goroutines for each pair. MB/s compares within one run only.
func BenchmarkCopy(b *testing.B) {
	for _, streams := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("pump/%d", streams), func(b *testing.B) {
			p := pump.New(pump.Config{})
			defer p.Close()
			benchmarkCopy(b, streams, func(from, to *net.TCPConn) { p.Join(from, to, nil) })
		})
		b.Run(fmt.Sprintf("io.Copy/%d", streams), func(b *testing.B) {
			benchmarkCopy(b, streams, func(from, to *net.TCPConn) {
				go func() {
					io.Copy(to, from)
					to.CloseWrite()
				}()
			})
		})
	}
}

func benchmarkCopy(b *testing.B, streams int, join func(from, to *net.TCPConn)) {
	const chunk = 256 << 10
	b.SetBytes(chunk)
	var ends sync.WaitGroup
	buffer := make([]byte, chunk)
	for i := range streams {
		sender, from := link(b)
		receiver, to := link(b)
		join(from, to)
		share := b.N / streams
		if i < b.N%streams {
			share++
		}
		ends.Go(func() {
			for range share {
				if _, err := sender.Write(buffer); err != nil {
					b.Error(err)
					return
				}
			}
			sender.CloseWrite()
		})
		ends.Go(func() {
			got, buffer := 0, make([]byte, chunk)
			for {
				n, err := receiver.Read(buffer)
				if got += n; err != nil {
					break
				}
			}
			if got != share*chunk {
				b.Errorf("got %d bytes, want %d", got, share*chunk)
			}
		})
	}
	ends.Wait()
}

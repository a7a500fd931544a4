//go:build linux

package lab_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
)

// A flow is a number of streams through one relay, kept open while rounds of
// bytes go over them from the dialers to the listeners. The work at the ends is
// the same whatever relay is between.
type flow struct {
	relay *relay
	ends  []net.Conn
	runs  []chan time.Time // one for each writer: write until then

	sent, got atomic.Int64
	written   chan error // one for each writer and round
	readers   sync.WaitGroup
}

// openFlow forms the streams; with secure, TLS runs between their ends.
func openFlow(t *testing.T, r *relay, streams int, secure bool) *flow {
	t.Helper()
	f := &flow{relay: r, written: make(chan error, streams)}
	t.Cleanup(f.close)
	for i := range streams {
		p, err := r.stream(sourceAddress(i))
		if err != nil {
			t.Fatal(err)
		}
		var w, l net.Conn = p.dialer, p.listener
		f.ends = append(f.ends, w, l)
		if secure {
			if w, l, err = secured(p); err != nil {
				t.Fatalf("%s: %v", r.name, err)
			}
		}
		run := make(chan time.Time)
		f.runs = append(f.runs, run)
		// Owned by f, whose close ends it: it closes run. Nobody waits for it
		// then, for it holds nothing.
		go f.write(w, run)
		f.readers.Add(1)
		// Owned by f, whose close ends it by closing the stream, and waits.
		go f.read(l)
	}
	return f
}

// write sends pieces until the time that comes from run, once for each time.
func (f *flow) write(w net.Conn, run <-chan time.Time) {
	piece := make([]byte, pieceSize)
	for until := range run {
		var err error
		for err == nil && time.Now().Before(until) {
			var n int
			n, err = w.Write(piece)
			f.sent.Add(int64(n))
		}
		f.written <- err
	}
}

// read counts what comes until the stream ends.
func (f *flow) read(l net.Conn) {
	defer f.readers.Done()
	for piece := make([]byte, pieceSize); ; {
		n, err := l.Read(piece)
		f.got.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// round lets all writers write for so long, and measures until everything has
// arrived.
func (f *flow) round(length time.Duration) (round, error) {
	sent, got := f.sent.Load(), f.got.Load()
	before, err := f.relay.cpu()
	if err != nil {
		return round{}, err
	}
	began := time.Now()
	for _, run := range f.runs {
		run <- began.Add(length)
	}
	for range f.runs {
		if err := <-f.written; err != nil {
			return round{}, err
		}
	}
	for f.sent.Load()-f.got.Load() > f.relay.keeps*int64(len(f.runs)) {
		if time.Since(began) > length+formLimit {
			return round{}, fmt.Errorf("%s: of %d bytes %d arrived", f.relay.name, f.sent.Load()-sent, f.got.Load()-got)
		}
		time.Sleep(50 * time.Microsecond)
	}
	took := time.Since(began)
	after, err := f.relay.cpu()
	return round{bytes: f.got.Load() - got, took: took, cpu: after - before}, err
}

func (f *flow) close() {
	for _, run := range f.runs {
		close(run)
	}
	f.runs = nil
	for _, c := range f.ends {
		c.Close()
	}
	f.ends = nil
	f.readers.Wait()
}

// cpu is the processor time of the relay's process so far.
func (r *relay) cpu() (time.Duration, error) {
	if r.process == nil {
		return 0, nil
	}
	return r.process.CPUSoFar()
}

// benchCertificate is made once: what it is does not matter.
var benchCertificate = sync.OnceValues(dtcp.NewCertificate)

// secured runs TLS 1.3 between the two ends of a pair, as bare crypto/tls does
// it: the dialer is the client.
func secured(p pair) (client, server net.Conn, err error) {
	certificate, err := benchCertificate()
	if err != nil {
		return nil, nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate},
		InsecureSkipVerify: true, SessionTicketsDisabled: true}
	c, s := tls.Client(p.dialer, config), tls.Server(p.listener, config)
	shaken := make(chan error, 1)
	// Owned by this call, which waits for it; ends with the handshake.
	go func() { shaken <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		p.close()
		<-shaken
		return nil, nil, err
	}
	return c, s, <-shaken
}

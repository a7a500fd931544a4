//go:build linux

package lab_test

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// TestLabBenchConn holds a library Conn against bare crypto/tls, one stream,
// both ends in this process: at least 1.1 times as fast, because it gathers
// records into larger writes.
func TestLabBenchConn(t *testing.T) {
	size := benchSize()
	compare(t, benchRounds, 1.1,
		contender{"dtcp.Conn", func(t *testing.T) round {
			w, r := connPair(t)
			return pump(t, w, r, size)
		}},
		contender{"crypto/tls", func(t *testing.T) round {
			w, r := barePair(t)
			return pump(t, w, r, size)
		}})
}

// halfCloser is what a stream of either kind can do.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// pieceSize is that of each Write and Read, in bytes: what copying to a Conn
// uses, and no worse for crypto/tls than any other.
const pieceSize = 256 << 10

// pump moves size bytes from w to r in such pieces, ends both, and
// measures from the first byte to the end of the stream.
func pump(t *testing.T, w, r halfCloser, size int64) round {
	t.Helper()
	cpu, began := processCPU(t), time.Now()
	sent := make(chan error, 1)
	// Owned by this call; ends when everything is written or a side fails; the
	// receive below waits for it.
	go func() {
		piece := make([]byte, pieceSize)
		for left := size; left > 0; left -= pieceSize {
			if _, err := w.Write(piece[:min(left, pieceSize)]); err != nil {
				sent <- err
				return
			}
		}
		sent <- w.CloseWrite()
	}()
	var got int64
	var err error
	for buffer := make([]byte, pieceSize); err == nil; {
		var n int
		n, err = r.Read(buffer)
		got += int64(n)
	}
	result := round{bytes: size, took: time.Since(began), cpu: processCPU(t) - cpu}
	if err != io.EOF || got != size {
		t.Errorf("read %d bytes, then %v; want %d, then EOF", got, err, size)
		w.Close() // whoever still writes gets an error
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	r.Close()
	w.Close()
	return result
}

// connPair makes a stream between two Endpoints that signal in memory.
func connPair(t *testing.T) (w, r halfCloser) {
	t.Helper()
	ask, answer := newSignalPair()
	config := &dtcp.Config{
		Listen: "127.0.0.1:0", Public: "127.0.0.1:0",
		Allow: func(context.Context, *dtcp.Request) error { return nil },
	}
	var ends [2]*dtcp.Endpoint
	for i, s := range []*signal{ask, answer} {
		e, err := dtcp.NewEndpoint(s, config)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close() // open Conns stay open
		ends[i] = e
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dialed, err := ends[0].Dial(ctx, answer.addr, "pipe")
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ends[1].Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return dialed, accepted
}

// barePair makes a TLS 1.3 connection over loopback with nothing added.
func barePair(t *testing.T) (w, r halfCloser) {
	t.Helper()
	certificate, err := dtcp.NewCertificate()
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate},
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, SessionTicketsDisabled: true,
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b := tls.Client(client, config), tls.Server(server, config)
	shaken := make(chan error, 1)
	// Owned by this call; ends with the handshake; the receive below waits for it.
	go func() { shaken <- b.Handshake() }()
	if err := a.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	return a, b
}

// A signal is one end of XMPP reduced to memory: iqs go to the other end at
// once, and answers find whoever waits for them.
type signal struct {
	addr jid.JID
	peer *signal

	mu      sync.Mutex
	next    int
	waiting map[string]chan stanza.IQ
	handle  map[xml.Name]func(stanza.IQ)
}

// newSignalPair returns two ends that know each other.
func newSignalPair() (a, b *signal) {
	a = &signal{addr: jid.MustParse("a@lab.invalid/x")}
	b = &signal{addr: jid.MustParse("b@lab.invalid/y"), peer: a}
	a.peer = b
	for _, s := range []*signal{a, b} {
		s.waiting, s.handle = map[string]chan stanza.IQ{}, map[xml.Name]func(stanza.IQ){}
	}
	return a, b
}

// LocalAddr implements [dtcp.Signaling].
func (s *signal) LocalAddr() jid.JID { return s.addr }

// RoundTrip implements [dtcp.Signaling].
func (s *signal) RoundTrip(ctx context.Context, q stanza.IQ) (stanza.IQ, error) {
	answer := make(chan stanza.IQ, 1)
	s.mu.Lock()
	s.next++
	q.ID = strconv.Itoa(s.next)
	s.waiting[q.ID] = answer
	s.mu.Unlock()
	if err := s.Send(ctx, q); err != nil {
		return stanza.IQ{}, err
	}
	select {
	case a := <-answer:
		if a.Error != nil {
			return a, a.Error
		}
		return a, nil
	case <-ctx.Done():
		return stanza.IQ{}, ctx.Err()
	}
}

// Send implements [dtcp.Signaling].
func (s *signal) Send(_ context.Context, q stanza.IQ) error {
	q.From = s.addr
	if q.To != s.peer.addr {
		return fmt.Errorf("nobody at %v", q.To)
	}
	s.peer.receive(q)
	return nil
}

// receive takes an iq from the other end.
func (s *signal) receive(q stanza.IQ) {
	s.mu.Lock()
	answer, h := s.waiting[q.ID], s.handle[q.Payload.Name]
	if q.Type == stanza.Result || q.Type == stanza.Failed {
		delete(s.waiting, q.ID)
	} else {
		answer = nil
	}
	s.mu.Unlock()
	switch {
	case answer != nil:
		answer <- q
	case h != nil:
		h(q)
	}
}

// HandleIQ implements [dtcp.Signaling].
func (s *signal) HandleIQ(payload xml.Name, h func(stanza.IQ)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle[payload] = h
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.handle, payload)
	}
}

package xmpp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Sessions with real servers are recorded, and played back in the tests: what
// the client said then it must say again, and understand what it is told.
//
//	go test ./xmpp -run TestReplay -update prosody-0.12.3=127.0.0.1:5222
//
// records anew from a live server of the domain example.org that has the
// accounts romeo and juliet, both with the password of these tests. Its
// certificate is trusted. A recording has a line for each piece that was sent
// (C) or received (S) in clear or inside TLS; TLS itself is left out.
var update = flag.String("update", "", "NAME=HOST:PORT of a live server to record")

const recordings = "../testdata/recordings"

// wantRecordings is how many there are at least: a test of none is no test.
const wantRecordings = 2

func TestReplay(t *testing.T) {
	if name, server, ok := strings.Cut(*update, "="); ok {
		record(t, filepath.Join(recordings, name+".txt"), server)
	}
	files, err := filepath.Glob(filepath.Join(recordings, "*.txt"))
	if err != nil || len(files) < wantRecordings {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				c := n.config()
				deterministic(c, nil)
				done := make(chan struct{})
				go func() { // ends with the story, for which the test waits
					defer close(done)
					scene(t, c)
				}()
				play(n.accept(), string(b))
				<-done
			})
		})
	}
}

// deterministic takes chance out of a login.
func deterministic(c *xmpp.Config, wrap func(net.Conn) net.Conn) {
	var mu sync.Mutex
	n := 0
	id := func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fmt.Sprintf("id-%d", n)
	}
	xmpp.SetHooks(c, func() string { return "fixed for the recording" }, id, wrap)
}

// scene is what is recorded: a login and what this project asks of a server,
// beside juliet, who is logged in too.
func scene(t *testing.T, c *xmpp.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := xmpp.Connect(ctx, c)
	if err != nil {
		t.Errorf("Connect: %v", err)
		return
	}
	defer s.Close()
	if s.LocalAddr() != romeo {
		t.Errorf("bound %v", s.LocalAddr())
	}
	if items, err := s.Roster(ctx); err != nil || !slices.Equal(items, []xmpp.RosterItem{{JID: juliet.Bare(), Subscription: "both"}}) {
		t.Errorf("roster %v, %v", items, err)
	}
	if found, err := s.Resources(ctx, juliet); err != nil || !slices.Equal(found, []jid.JID{juliet}) {
		t.Errorf("resources %v, %v", found, err)
	}
	if i, err := s.Info(ctx, romeo.Server()); err != nil || !i.Has(nsPing) || len(i.Identities) == 0 {
		t.Errorf("server: %+v, %v", i, err)
	}
	if i, err := s.Info(ctx, juliet); err != nil || !i.Has("u:q") {
		t.Errorf("juliet: %+v, %v", i, err)
	}
	for _, to := range []jid.JID{{}, romeo.Bare(), romeo.Server(), romeo, juliet} {
		if err := s.Ping(ctx, to); err != nil {
			t.Errorf("ping of %q: %v", to, err)
		}
	}
	q := stanza.IQ{Type: stanza.Set, Payload: stanza.New("u:q", "q", stanza.Text("<&> 'ü'"))}
	q.To = juliet
	if answer, err := s.RoundTrip(ctx, q); err != nil || answer.Payload.Text() != "<&> 'ü' \"yes\"" {
		t.Errorf("answer of juliet: %+v, %v", answer, err)
	}
	for _, nobody := range []string{"juliet@example.org/tomb", "yorick@example.org/x", "nowhere.example.org"} {
		q.To = jid.MustParse(nobody)
		answer, err := s.RoundTrip(ctx, q)
		var refused *stanza.Error
		if !errors.As(err, &refused) || answer.From != q.To || !slices.Contains([]string{stanza.ServiceUnavailable, stanza.RemoteServerNotFound, stanza.RemoteServerTimeout, stanza.Forbidden, stanza.NotAllowed}, refused.Condition) {
			t.Errorf("answer of %s: %+v, %v", nobody, answer, err)
		}
	}
}

// play is the server of a recording.
func play(p *peer, recording string) {
	p.t.Helper()
	var early []string // elements that came before their line
	said, heard := 0, 0
	for _, line := range strings.Split(recording, "\n") {
		kind, text, _ := strings.Cut(line, ": ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case line == "TLS":
			if err := p.secure(); err != nil {
				p.t.Fatalf("TLS: %v", err)
			}
		case kind == "S":
			p.send("%s", text)
			said++
		case kind == "C" && strings.HasPrefix(text, "<?xml"):
			p.r = xmlstream.NewReader(p.buf, 0)
			p.patience()
			h, err := p.r.Header()
			if err != nil || string(h.Append(nil)) != text {
				p.t.Fatalf("stream header %s, %v, want %s", h.Append(nil), err, text)
			}
			heard++
		case kind == "C":
			for _, want := range elements(p.t, text) {
				early = p.expect(want, early)
				heard++
			}
		default:
			p.t.Fatalf("line %.80q", line)
		}
	}
	if said < 10 || heard < 20 || len(early) > 0 {
		p.t.Errorf("%d lines of the server, %d of the client, %q left", said, heard, early)
	}
	p.conn.Close()
}

// expect waits for an element of the client; answers of its read loop may
// overtake its questions.
func (p *peer) expect(want string, early []string) []string {
	p.t.Helper()
	for {
		if i := slices.Index(early, want); i >= 0 {
			return slices.Delete(early, i, i+1)
		}
		if len(early) > 4 {
			p.t.Fatalf("the client says %q, want %s", early, want)
		}
		p.patience()
		e, err := p.r.Next()
		switch {
		case errors.Is(err, xmlstream.ErrClosed):
			early = append(early, xmlstream.End)
		case err != nil:
			p.t.Fatalf("%v, want %s; early are %q", err, want, early)
		default:
			early = append(early, e.String())
		}
	}
}

// elements splits a piece of a stream.
func elements(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	r := xmlstream.NewReader(bufio.NewReader(strings.NewReader(streamOpen+text)), 0)
	_, err := r.Header()
	for err == nil {
		var e stanza.Element
		if e, err = r.Next(); err == nil {
			found = append(found, e.String())
		}
	}
	switch {
	case errors.Is(err, xmlstream.ErrClosed):
		found = append(found, xmlstream.End)
	case !errors.Is(err, io.EOF):
		t.Fatalf("%q: %v", text, err)
	}
	return found
}

// recorder writes down what passes the connections that it wraps: first that
// in clear, then that inside TLS.
type recorder struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (r *recorder) wrap(conn net.Conn) net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out.Len() > 0 {
		r.out.WriteString("TLS\n")
	}
	return &tap{conn, r}
}

func (r *recorder) line(kind string, b []byte) {
	if len(b) > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		fmt.Fprintf(&r.out, "%s: %s\n", kind, bytes.ReplaceAll(b, []byte("\n"), []byte(" ")))
	}
}

type tap struct {
	net.Conn
	r *recorder
}

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.r.line("S", p[:n])
	return n, err
}

func (c *tap) Write(p []byte) (int, error) {
	c.r.line("C", p)
	return c.Conn.Write(p)
}

// record plays the scene with a live server.
func record(t *testing.T, file, server string) {
	c := &xmpp.Config{JID: juliet, Password: password, Server: server, Features: []string{"u:q"}, Priority: -1}
	_, err := xmpp.Connect(t.Context(), c)
	var unknown *xmpp.TLSError
	if !errors.As(err, &unknown) {
		t.Fatal(err)
	}
	c.Pin = unknown.Fingerprint()
	other, err := xmpp.Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	defer other.HandleIQ(xml.Name{Space: "u:q", Local: "q"}, func(q stanza.IQ) {
		answer := stanza.New("u:q", "q", stanza.Text(q.Payload.Text()+` "yes"`))
		go func() { _ = other.Send(context.Background(), q.Result(answer)) }() // ends at once
	})()
	c.JID, c.Features = romeo, nil
	befriend(t, c, other)
	var r recorder
	deterministic(c, r.wrap)
	scene(t, c)
	if t.Failed() {
		return
	}
	header := fmt.Sprintf("# %s, by %s\n", strings.TrimSuffix(filepath.Base(file), ".txt"), t.Name())
	if err := os.WriteFile(file, append([]byte(header), r.out.Bytes()...), 0o666); err != nil {
		t.Fatal(err)
	}
}

// befriend subscribes the two accounts to each other.
func befriend(t *testing.T, c *xmpp.Config, other *xmpp.Session) {
	s, err := xmpp.Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, kind := range []string{stanza.Subscribe, stanza.Subscribed} {
		for _, from := range []*xmpp.Session{s, other} {
			to := juliet.Bare()
			if from == other {
				to = romeo.Bare()
			}
			if err := from.SendPresence(t.Context(), stanza.Presence{Header: stanza.Header{To: to}, Type: kind}); err != nil {
				t.Fatal(err)
			}
			if err := from.Ping(t.Context(), romeo.Server()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

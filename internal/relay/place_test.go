package relay_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// One way from the hosts of a place to its relay.
const (
	ownersWay  = 10 * time.Millisecond
	dialersWay = 15 * time.Millisecond
)

var (
	relayAt = netip.MustParseAddrPort("192.0.2.1:5280")
	alice   = jid.MustParse("alice@example.org")
	bob     = jid.MustParse("bob@example.org")
	keys    = relay.NewKeyring()
)

// place is a relay with hosts around it, in virtual time.
type place struct {
	*testing.T
	*relay.Relay
	net           *memnet.Net
	host          *memnet.Host // the relay's
	owner, dialer *memnet.Host
	start         time.Time
	mu            sync.Mutex
	usage         []relay.Usage
	refused       []string // reasons, and who if that is known
	served        chan error
}

// at tells a story at a place of its own. In the end the relay is closed, and
// nothing may be left: synctest fails a test whose goroutines remain.
func at(t *testing.T, config relay.Config, story func(s *place)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &place{T: t, net: memnet.New(), start: time.Now(), served: make(chan error, 1)}
		s.host = s.net.Host("relay", relayAt.Addr())
		s.owner = s.net.Host("owner", netip.MustParseAddr("192.0.2.10"))
		s.dialer = s.net.Host("dialer", netip.MustParseAddr("192.0.2.20"))
		s.net.SetLatency(s.host, s.owner, ownersWay)
		s.net.SetLatency(s.host, s.dialer, dialersWay)
		s.open(config)
		story(s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-s.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if got := s.Stats(); got.Fresh+got.Waiting+got.Held+got.Observing+got.Streams > 0 {
			t.Errorf("after Close: %+v", got)
		}
	})
}

// open makes the relay, and has it listen.
func (s *place) open(config relay.Config) {
	config.Domain = jid.MustParse("relay.example.org")
	config.Keys = keys
	config.Node = "a"
	if config.Hosts == nil {
		config.Hosts = []relay.Host{{Addr: "192.0.2.1", Port: 5280}}
	}
	config.Rules.Allow = append(config.Rules.Allow, jid.MustParse("example.org"))
	config.Usage = func(u relay.Usage) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.usage = append(s.usage, u)
	}
	config.Refused = func(reason string, _ netip.AddrPort, owner jid.JID) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused = append(s.refused, strings.TrimSpace(reason+" "+owner.Local()))
	}
	r, err := relay.New(config)
	if err != nil {
		s.Fatal(err)
	}
	s.Relay = r
	l, err := s.host.Listen(context.Background(), relayAt)
	if err != nil {
		s.Fatal(err)
	}
	// Owned by the place, ended by Close, awaited by at.
	go func() { s.served <- r.Serve(l) }()
}

// peer is one end of a connection to the relay.
type peer struct {
	*memnet.Conn
	s *place
	r *bufio.Reader
}

// from dials the relay.
func (s *place) from(h *memnet.Host) *peer {
	s.Helper()
	c, err := h.Dial(context.Background(), netip.AddrPort{}, relayAt)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	return &peer{c.(*memnet.Conn), s, bufio.NewReader(c)}
}

// says dials from h and sends text.
func (s *place) says(h *memnet.Host, text string) *peer {
	s.Helper()
	return s.from(h).says(text)
}

func (p *peer) says(text string) *peer {
	p.s.Helper()
	if _, err := io.WriteString(p, text); err != nil {
		p.s.Fatal(err)
	}
	return p
}

// hears reads text, which must come next.
func (p *peer) hears(text string) *peer {
	p.s.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(p.r, got); err != nil || string(got) != text {
		p.s.Fatalf("heard %q, %v; want %q", got[:n], err, text)
	}
	return p
}

// ends reads the end of the other direction.
func (p *peer) ends() *peer {
	p.s.Helper()
	if rest, err := io.ReadAll(p.r); err != nil || len(rest) > 0 {
		p.s.Fatalf("heard %q, %v; want the end", rest, err)
	}
	return p
}

// address is how the relay sees it.
func (p *peer) address() string { return p.LocalAddr().String() }

// lease is what the relay has lent.
type lease struct {
	id     string
	secret []byte
}

// lend asks for a lease.
func (s *place) lend(owner jid.JID) lease {
	s.Helper()
	const space = "urn:x-dtcp:relay:0"
	answer := s.Answer(stanza.IQ{
		Header:  stanza.Header{From: owner, To: jid.MustParse("relay.example.org"), ID: "1"},
		Type:    stanza.Get,
		Payload: stanza.New(space, "lease"),
	})
	if answer.Error != nil {
		s.Fatalf("a lease for %v: %v", owner, answer.Error)
	}
	secret, err := base64.RawURLEncoding.DecodeString(answer.Payload.Attr("secret"))
	if err != nil {
		s.Fatal(err)
	}
	return lease{answer.Payload.Attr("id"), secret}
}

// claim returns what serves a key, or is observed if there is none.
func (l lease) claim(key string) string { return l.claimAt(key, time.Now()) }

func (l lease) claimAt(key string, when time.Time) string {
	command := wire.Serve
	if key == "" {
		command = wire.Observe
	}
	return wire.NewClaim(command, key, l.id, l.secret, when).Line().String() + "\n"
}

// serves opens a listener's leg.
func (s *place) serves(key string, l lease) *peer {
	s.Helper()
	p := s.says(s.owner, l.claim(key))
	return p.hears("ok:" + p.address() + "\n")
}

// pair opens both legs, and takes what both say of it.
func (s *place) pair(key string, l lease) (listener, dialer *peer) {
	s.Helper()
	listener = s.serves(key, l)
	dialer = s.says(s.dialer, "key:"+key+"\n")
	listener.hears("key:" + key + "\n")
	return listener, dialer
}

// wait lets time pass.
func (s *place) wait(d time.Duration) { <-time.After(d) }

// want checks how long the story has lasted.
func (s *place) want(d time.Duration, what string) {
	s.Helper()
	if got := time.Since(s.start); got != d {
		s.Errorf("%s: at %v, want %v", what, got, d)
	}
}

// wantUsage checks the records so far, without times, and forgets them.
func (s *place) wantUsage(want ...relay.Usage) {
	s.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, u := range s.usage {
		if u.Start.IsZero() || u.End.Before(u.Start) || u.End.After(time.Now()) {
			s.Errorf("usage from %v to %v", u.Start, u.End)
		}
		s.usage[i].Start, s.usage[i].End = time.Time{}, time.Time{}
	}
	if !slices.Equal(s.usage, want) {
		s.Errorf("usage:\ngot  %+v\nwant %+v", s.usage, want)
	}
	s.usage = nil
}

// wantRefused checks what was refused so far, and forgets it.
func (s *place) wantRefused(want ...string) {
	s.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.refused, want) {
		s.Errorf("refused %q, want %q", s.refused, want)
	}
	s.refused = nil
}

func (p *peer) at() netip.AddrPort { return p.LocalAddr().(*net.TCPAddr).AddrPort() }

// cut ends the connection by a reset.
func (p *peer) cut() {
	_ = p.SetLinger(0) // never fails
	p.Close()
}

// wantCut reads text and then a reset.
func (p *peer) wantCut(text string) {
	p.s.Helper()
	got, err := io.ReadAll(p.r)
	if string(got) != text || !errors.Is(err, syscall.ECONNRESET) {
		p.s.Errorf("heard %d bytes, %v; want %d and a reset", len(got), err, len(text))
	}
}

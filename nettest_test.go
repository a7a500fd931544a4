package dtcp_test

import (
	"context"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// switchboard is signalling without a server: it carries iqs between the users
// of one test, stamps them, and pairs answers by address and id.
type switchboard struct {
	delay     time.Duration // from user to user
	intercept func(from jid.JID, e stanza.Element) []stanza.Element

	mu       sync.Mutex
	users    map[jid.JID]*user
	services map[jid.JID]func(stanza.IQ) stanza.IQ // answer at once
}

type user struct {
	board   *switchboard
	address jid.JID

	mu      sync.Mutex
	handler func(stanza.IQ)
	asked   map[string]chan stanza.IQ
	n       int
	inbox   []stanza.IQ // on their way, oldest first
	taking  sync.Mutex  // keeps them in order
}

func newSwitchboard() *switchboard {
	return &switchboard{users: map[jid.JID]*user{}, services: map[jid.JID]func(stanza.IQ) stanza.IQ{}}
}

func (b *switchboard) user(address string) *user {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := &user{board: b, address: jid.MustParse(address), asked: map[string]chan stanza.IQ{}}
	b.users[u.address] = u
	return u
}

// list adds a service that is found as those of a server are.
func (b *switchboard) list(service jid.JID, answer func(stanza.IQ) stanza.IQ) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.services[service] = answer
	b.services[jid.MustParse(service.Domain()[strings.Index(service.Domain(), ".")+1:])] = func(q stanza.IQ) stanza.IQ {
		const nsItems = "http://jabber.org/protocol/disco#items"
		if !q.Payload.Is(nsItems, "query") {
			return q.Fail(stanza.NewError(stanza.ServiceUnavailable, ""))
		}
		return q.Result(stanza.New(nsItems, "query", stanza.New(nsItems, "item").With("jid", service.String())))
	}
}

func (u *user) LocalAddr() jid.JID { return u.address }

func (u *user) RoundTrip(ctx context.Context, q stanza.IQ) (stanza.IQ, error) {
	answer := make(chan stanza.IQ, 1)
	u.mu.Lock()
	u.n++
	q.ID = fmt.Sprint("q", u.n)
	u.asked[q.To.String()+q.ID] = answer
	u.mu.Unlock()
	if err := u.Send(ctx, q); err != nil {
		return stanza.IQ{}, err
	}
	select {
	case a := <-answer:
		if a.Type == stanza.Failed {
			return a, a.Error
		}
		return a, nil
	case <-ctx.Done():
		return stanza.IQ{}, ctx.Err()
	}
}

func (u *user) Send(_ context.Context, q stanza.IQ) error {
	q.From = u.address
	if u.board.intercept == nil {
		return u.board.pass(q)
	}
	for _, e := range u.board.intercept(u.address, q.Element(stanza.NSClient)) {
		changed, err := stanza.ParseIQ(e)
		if err := errors.Join(err, u.board.pass(changed)); err != nil {
			return err
		}
	}
	return nil
}

// pass brings an iq to where it goes.
func (b *switchboard) pass(q stanza.IQ) error {
	b.mu.Lock()
	to, service := b.users[q.To], b.services[q.To]
	b.mu.Unlock()
	switch {
	case service != nil:
		return b.pass(service(q))
	case to == nil:
		return stanza.NewError(stanza.ServiceUnavailable, "")
	case b.delay == 0:
		to.take(q)
		return nil
	}
	to.mu.Lock()
	to.inbox = append(to.inbox, q)
	to.mu.Unlock()
	time.AfterFunc(b.delay, to.takeNext)
	return nil
}

func (u *user) takeNext() {
	u.taking.Lock()
	defer u.taking.Unlock()
	u.mu.Lock()
	q := u.inbox[0]
	u.inbox = u.inbox[1:]
	u.mu.Unlock()
	u.take(q)
}

func (u *user) take(q stanza.IQ) {
	u.mu.Lock()
	answer := u.asked[q.From.String()+q.ID]
	if q.Type == stanza.Result || q.Type == stanza.Failed {
		delete(u.asked, q.From.String()+q.ID)
	} else {
		answer = nil
	}
	handler := u.handler
	u.mu.Unlock()
	switch {
	case answer != nil:
		answer <- q
	case handler != nil && q.Type != stanza.Result:
		handler(q)
	case q.Type == stanza.Set:
		_ = u.board.pass(q.Fail(stanza.NewError(stanza.ServiceUnavailable, "")))
	}
}

func (u *user) HandleIQ(_ xml.Name, h func(stanza.IQ)) (stop func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handler = h
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.handler = nil
	}
}

// loopback returns two Endpoints that reach each other on 127.0.0.1.
func loopback(t testing.TB) (a, b *dtcp.Endpoint, addressOfB jid.JID) {
	t.Helper()
	board := newSwitchboard()
	config := &dtcp.Config{
		Listen: "127.0.0.1:0",
		Allow:  func(context.Context, *dtcp.Request) error { return nil },
	}
	make1 := func(address string) *dtcp.Endpoint {
		e, err := dtcp.NewEndpoint(board.user(address), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		return e
	}
	return make1("a@example.org/1"), make1("b@example.org/2"), jid.MustParse("b@example.org/2")
}

// connect makes a stream between the two.
func connect(t testing.TB, a, b *dtcp.Endpoint, to jid.JID) (near, far *dtcp.Conn) {
	t.Helper()
	accepted := make(chan *dtcp.Conn, 1)
	go func() {
		c, err := b.Accept(t.Context())
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	near, err := a.Dial(t.Context(), to, "test")
	if err != nil {
		t.Fatal(err)
	}
	return near, <-accepted
}

// closeBoth closes both ends at once, for each waits for the other.
func closeBoth(near, far net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = near.Close()
	}()
	_ = far.Close()
	<-done
}

func TestConnIsNetConn(t *testing.T) {
	a, b, to := loopback(t)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		near, far := connect(t, a, b, to)
		return near, far, func() { closeBoth(near, far) }, nil
	})
}

// TestRelayedConnIsNetConn is the same for a stream by way of a relay.
func TestRelayedConnIsNetConn(t *testing.T) {
	board := newSwitchboard()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	r, err := relay.New(relay.Config{
		Domain: relayJID, Keys: relay.NewKeyring(), Hosts: []relay.Host{{Addr: at.Addr().String(), Port: at.Port()}},
		Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	board.services[relayJID] = r.Answer
	served := make(chan error, 1)
	go func() { served <- r.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	var ends []*dtcp.Endpoint
	for _, address := range []string{"a@example.org/1", "b@example.org/2"} {
		e, err := dtcp.NewEndpoint(board.user(address), &dtcp.Config{
			Listen: "127.0.0.1:0", Relays: []jid.JID{relayJID},
			Paths: func(jid.JID) dtcp.PathPolicy { return dtcp.RelayOnly },
			Allow: func(context.Context, *dtcp.Request) error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		ends = append(ends, e)
	}
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		near, far := connect(t, ends[0], ends[1], jid.MustParse("b@example.org/2"))
		if p := near.Path(); p.Kind != dtcp.Relay || p.Relay != at.String() {
			t.Errorf("path %+v", p)
		}
		return near, far, func() { closeBoth(near, far) }, nil
	})
}

// TestPlainConnIsNetConn is the same for a stock stream without TLS, whose other
// end is a bare socket.
func TestPlainConnIsNetConn(t *testing.T) {
	board := newSwitchboard()
	e, err := dtcp.NewEndpoint(board.user("e@example.org/1"), &dtcp.Config{
		Listen: "127.0.0.1:0", AllowPlain: func(jid.JID) bool { return true },
		Allow: func(context.Context, *dtcp.Request) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	old := board.user("old@example.org/1")
	query := stanza.New(dtcp.NSStock, "query", stanza.New(dtcp.NSStock, "key", stanza.Text("k")))
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		a, err := old.RoundTrip(t.Context(), stanza.IQ{Header: stanza.Header{To: jid.MustParse("e@example.org/1")}, Type: stanza.Set, Payload: query})
		if err != nil {
			return nil, nil, nil, err
		}
		raw, err := net.Dial("tcp", e.Addr().String())
		if err != nil {
			return nil, nil, nil, err
		}
		if _, err := fmt.Fprintf(raw, "key:%s\n", a.Payload.Child(dtcp.NSStock, "key").Text()); err != nil {
			return nil, nil, nil, err
		}
		answer := make([]byte, len("ok:k\n"))
		if _, err := io.ReadFull(raw, answer); err != nil || string(answer) != "ok:k\n" {
			return nil, nil, nil, fmt.Errorf("answered %q, %w", answer, err)
		}
		if _, err := io.WriteString(raw, "ok\n"); err != nil {
			return nil, nil, nil, err
		}
		c, err := e.Accept(t.Context())
		return c, raw, func() { _, _ = raw.Close(), c.Close() }, err
	})
}

// TestStrangersDoNotBlockDial: requests that wait for the user fill the account
// of negotiations, but not that of our own.
func TestStrangersDoNotBlockDial(t *testing.T) {
	board := newSwitchboard()
	waiting := make(chan struct{}, 2048)
	config := &dtcp.Config{Listen: "127.0.0.1:0", Allow: func(ctx context.Context, r *dtcp.Request) error {
		if r.From.Domain() == "example.org" {
			return nil
		}
		waiting <- struct{}{}
		<-ctx.Done() // the user is asked
		return ctx.Err()
	}}
	e, err := dtcp.NewEndpoint(board.user("e@example.org/1"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	f, err := dtcp.NewEndpoint(board.user("f@example.org/1"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	session := stanza.New(dtcp.NSSession, "session", stanza.New("urn:xmpp:jingle:apps:dtls:0", "fingerprint",
		stanza.Text(dtcp.FingerprintOf([]byte("x")).String())).With("hash", "sha-256")).With("service", "pipe")
	query := stanza.New(dtcp.NSStock, "query", stanza.New(dtcp.NSStock, "key", stanza.Text("k")), session)
	for i := range 32 {
		u := board.user(fmt.Sprintf("m%d@evil.example/x", i))
		for j := range 32 {
			q := stanza.IQ{Header: stanza.Header{To: jid.MustParse("e@example.org/1"), ID: fmt.Sprint(j)}, Type: stanza.Set, Payload: query}
			if err := u.Send(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 32 * 32 {
		<-waiting
	}
	c, err := e.Dial(t.Context(), jid.MustParse("f@example.org/1"), "pipe")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Abort()
}

// TestBulk moves 64 MiB each way at the same time, and compares hashes.
func TestBulk(t *testing.T) {
	a, b, to := loopback(t)
	near, far := connect(t, a, b, to)
	const size = 64 << 20
	var sums [2][2][32]byte // direction, end
	var all sync.WaitGroup
	for i, d := range []struct{ from, to *dtcp.Conn }{{near, far}, {far, near}} {
		all.Go(func() {
			h := sha256.New()
			_, err := io.Copy(d.from, io.TeeReader(io.LimitReader(&pattern{seed: byte(i)}, size), h))
			if err := errors.Join(err, d.from.CloseWrite()); err != nil {
				t.Errorf("sending: %v", err)
			}
			copy(sums[i][0][:], h.Sum(nil))
		})
		all.Go(func() {
			h := sha256.New()
			n, err := io.Copy(h, d.to)
			if err != nil || n != size {
				t.Errorf("received %d bytes, %v", n, err)
			}
			copy(sums[i][1][:], h.Sum(nil))
		})
	}
	all.Wait()
	for i := range sums {
		if sums[i][0] != sums[i][1] {
			t.Errorf("direction %d: %x was sent, %x arrived", i, sums[i][0], sums[i][1])
		}
	}
	if err := errors.Join(near.Close(), far.Close()); err != nil {
		t.Error(err)
	}
}

// TestManyAtOnce: a hundred calls to one peer wait for their turn, and all
// get a stream.
func TestManyAtOnce(t *testing.T) {
	a, b, to := loopback(t)
	const calls = 100
	var all sync.WaitGroup
	for range calls {
		all.Go(func() {
			c, err := a.Dial(t.Context(), to, "test")
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
				t.Errorf("got %q, %v", got, err)
			}
			_ = c.Close()
		})
		all.Go(func() {
			c, err := b.Accept(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			_, err = io.WriteString(c, "hello")
			if err := errors.Join(err, c.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// pattern is an endless stream of bytes that do not repeat soon.
type pattern struct {
	seed byte
	n    uint64
}

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		p.n++
		b[i] = byte(p.n>>16) ^ byte(p.n>>8)*7 ^ byte(p.n) + p.seed
	}
	return len(b), nil
}

// TestSummary: what is to be sent is there when Allow is asked.
func TestSummary(t *testing.T) {
	board := newSwitchboard()
	asked := make(chan dtcp.Request, 2)
	config := &dtcp.Config{Listen: "127.0.0.1:0", Allow: func(_ context.Context, r *dtcp.Request) error {
		asked <- *r
		return errors.New("not today")
	}}
	a, err := dtcp.NewEndpoint(board.user("a@example.org/1"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := dtcp.NewEndpoint(board.user("b@example.org/2"), config)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	to := jid.MustParse("b@example.org/2")
	fingerprint, ephemeral := a.Fingerprint()
	for _, want := range []dtcp.Request{
		{From: jid.MustParse("a@example.org/1"), Service: "file", Files: 3, Bytes: 5 << 30, Fingerprint: fingerprint, Ephemeral: ephemeral},
		{From: jid.MustParse("a@example.org/1"), Service: "file", Files: -1, Bytes: -1, Fingerprint: fingerprint, Ephemeral: ephemeral},
	} {
		_, err := a.DialSummary(t.Context(), to, want.Service, want.Files, want.Bytes)
		var refused *dtcp.RefusedError
		var e *stanza.Error
		if !errors.As(err, &refused) || !errors.As(err, &e) || e.Condition != stanza.Forbidden || e.Text != "" {
			t.Errorf("DialSummary: %v, want to be forbidden without a word of why", err)
		}
		if got := <-asked; got != want {
			t.Errorf("Allow was asked about %+v, want %+v", got, want)
		}
	}
}

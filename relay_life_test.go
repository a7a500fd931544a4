package dtcp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// moody is a relay that can be exchanged for another while the world runs, and
// counts the leases that it is asked for.
type moody struct {
	mu     sync.Mutex
	now    relayingServer
	leases atomic.Int64
	down   atomic.Bool // its component is not logged in
}

func (m *moody) current() relayingServer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

func (m *moody) become(r relayingServer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = r
}

func (m *moody) Answer(q stanza.IQ) stanza.IQ {
	if m.down.Load() {
		return q.Fail(stanza.NewError(stanza.RemoteServerTimeout, ""))
	}
	if q.Payload.Is("urn:x-dtcp:relay:0", "lease") {
		m.leases.Add(1)
	}
	return m.current().Answer(q)
}

// Serve hands every connection to the relay of the moment.
func (m *moody) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_ = m.current().Serve(&once{c: c, addr: l.Addr()})
	}
}

// once is a listener that has one connection.
type once struct {
	c    net.Conn
	addr net.Addr
}

func (o *once) Accept() (net.Conn, error) {
	if c := o.c; c != nil {
		o.c = nil
		return c, nil
	}
	return nil, io.EOF
}
func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return o.addr }

// newRelay makes one of ours.
func newRelay(t *testing.T, keys *relay.Keyring, limits relay.Limits) *relay.Relay {
	t.Helper()
	r, err := relay.New(relay.Config{
		Domain: relayJID, Keys: keys, Hosts: []relay.Host{{Addr: relayAddr.Addr().String(), Port: relayAddr.Port()}},
		Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}}, Limits: limits},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestLeaseIsRenewed at half its life, in the background, for as long as the
// Endpoint lives.
func TestLeaseIsRenewed(t *testing.T) {
	m := &moody{}
	story(t, options{link: links[0], relay: &relayOptions{run: m}, config: func(p *peer) {
		relayed("A")(p)
		if m.now == nil {
			m.now = newRelay(t, relay.NewKeyring(), relay.Limits{})
		}
	}}, func(w *world) {
		defer func() { w.check(m.now.(*relay.Relay).Close()) }()
		if n := m.leases.Load(); n != 1 {
			t.Fatalf("%d leases fetched at the start, want 1", n)
		}
		<-time.After(3*time.Hour + time.Minute)
		if n := m.leases.Load(); n != 7 {
			t.Errorf("%d leases fetched in three hours, want one and one more each half hour", n)
		}
		near, far, _ := w.a.stream(w.b)
		w.wantTransfer(near, far)
	})
}

// TestRelayForgets: the relay has lost its master key, or restarts with it. In
// the one case the lease is refused, another is fetched, and the session still
// comes about; in the other nobody notices.
func TestRelayForgets(t *testing.T) {
	for _, forgets := range []bool{true, false} {
		m := &moody{}
		keys := relay.NewKeyring()
		var first *relay.Relay
		story(t, options{link: links[0], relay: &relayOptions{run: m}, config: func(p *peer) {
			relayed("A")(p)
			if m.now == nil {
				first = newRelay(t, keys, relay.Limits{})
				m.now = first
			}
		}}, func(w *world) {
			w.check(first.Close())
			if forgets {
				keys = relay.NewKeyring()
			}
			second := newRelay(t, keys, relay.Limits{})
			defer func() { w.check(second.Close()) }()
			m.become(second)
			near, far, after := w.a.stream(w.b)
			w.wantTransfer(near, far)
			want := int64(1)
			if forgets {
				want = 2
			}
			if n := m.leases.Load(); n != want || after > 500*time.Millisecond {
				t.Errorf("forgets %t: %d leases, a stream after %v; want %d leases", forgets, n, after, want)
			}
		})
	}
}

// TestRelayComesLater: when we log in the relay is not there yet; it is found
// without a new login.
func TestRelayComesLater(t *testing.T) {
	m := &moody{}
	m.down.Store(true)
	story(t, options{link: links[0], relay: &relayOptions{run: m}, config: func(p *peer) {
		p.config.NoRelay = p.host.Name() != "A"
		if m.now == nil {
			m.now = newRelay(t, relay.NewKeyring(), relay.Limits{})
		}
	}}, func(w *world) {
		defer func() { w.check(m.now.(*relay.Relay).Close()) }()
		m.down.Store(false)
		<-time.After(11 * time.Minute)
		if n := m.leases.Load(); n != 1 {
			t.Errorf("%d leases, want one", n)
		}
		found := w.a.Candidates()
		if last := found[len(found)-1]; last.Type != dtcp.Relay {
			t.Errorf("candidates %v, want the relay last", found)
		}
	})
}

// TestRelayDies: a stream through it is cut at both ends, and the next one takes
// the relay that is there by then.
func TestRelayDies(t *testing.T) {
	m := &moody{}
	keys := relay.NewKeyring()
	story(t, options{link: links[0], relay: &relayOptions{run: m}, config: func(p *peer) {
		relayed("A")(p)
		if m.now == nil {
			m.now = newRelay(t, keys, relay.Limits{})
		}
	}}, func(w *world) {
		near, far, _ := w.a.stream(w.b)
		first := m.now.(*relay.Relay)
		next := newRelay(t, keys, relay.Limits{})
		defer func() { w.check(next.Close()) }()
		m.become(next)
		w.check(first.Close())
		for _, c := range []*dtcp.Conn{near, far} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("Read: %v, want %v", err, io.ErrUnexpectedEOF)
			}
			_ = c.Abort()
		}
		near, far, _ = w.a.stream(w.b)
		w.wantTransfer(near, far)
	})
}

// TestRelayRestarts: the relay is not there when the two dial, and is a moment
// later, as when it restarts. The same session comes about.
func TestRelayRestarts(t *testing.T) {
	o := &relayOptions{run: newBentRelay(relayAddr.String())}
	story(t, options{link: links[0], relay: o, config: relayed("A")}, func(w *world) {
		w.relay.Firewall(memnet.Reject)
		time.AfterFunc(2500*time.Millisecond, func() { w.relay.Firewall(memnet.Open) })
		near, far, after := w.b.stream(w.a)
		if near.Path().Kind != dtcp.Relay || after > 6*time.Second {
			t.Errorf("after %v: path %+v", after, near.Path())
		}
		w.wantTransfer(near, far)
	})
}

// TestRelayQuota: the relay's word on why it does not serve is in the error; and
// its cut of a stream that has used up the day's bytes is a cut.
func TestRelayQuota(t *testing.T) {
	o := &relayOptions{limits: relay.Limits{PerOwner: relay.Quota{BytesPerDay: 300 << 10}}}
	story(t, options{link: links[0], relay: o, config: relayed("A")}, func(w *world) {
		near, far, _ := w.a.stream(w.b)
		go func() {
			_, _ = near.Write(make([]byte, 1<<20))
			_ = near.CloseWrite()
		}()
		n, err := io.Copy(io.Discard, far)
		if err == nil || n == 0 || n >= 1<<20 {
			t.Errorf("read %d bytes, %v; want a part, and an error", n, err)
		}
		_, _ = near.Abort(), far.Abort()
		d := <-w.a.dial(w.patience(), w.b)
		if d.err == nil || !strings.Contains(d.err.Error(), "used up") {
			t.Errorf("Dial: %v; want it to say that the quota is used up", d.err)
		}
	})
}

// TestLeaseComesBack: the relay, or our login, is away for longer than a lease
// lives. The error says so meanwhile, and soon after it is back so is the lease.
func TestLeaseComesBack(t *testing.T) {
	m := &moody{}
	story(t, options{link: links[0], relay: &relayOptions{run: m}, config: func(p *peer) {
		relayed("A")(p)
		if m.now == nil {
			m.now = newRelay(t, relay.NewKeyring(), relay.Limits{})
		}
	}}, func(w *world) {
		defer func() { w.check(m.now.(*relay.Relay).Close()) }()
		m.down.Store(true)
		<-time.After(10 * time.Hour)
		d := <-w.a.dial(w.patience(), w.b)
		if !errors.Is(d.err, dtcp.ErrPolicy) || !strings.Contains(d.err.Error(), "was not renewed") || !strings.Contains(d.err.Error(), "remote-server-timeout") {
			t.Errorf("Dial: %v; want it to say what became of the lease, and why", d.err)
		}
		m.down.Store(false)
		<-time.After(time.Minute + time.Second)
		near, far, _ := w.a.stream(w.b)
		w.wantTransfer(near, far)
	})
}

// TestLeaseRefusedAtEnd: a session has a lease that is over by our clock, too, by
// the time that the relay refuses it. Another is asked for, whatever the clock.
func TestLeaseRefusedAtEnd(t *testing.T) {
	m := &moody{}
	story(t, options{link: links[0], relay: &relayOptions{run: m}, config: func(p *peer) {
		relayed("A")(p)
		if m.now == nil {
			m.now = newRelay(t, relay.NewKeyring(), relay.Limits{})
		}
		if p.host.Name() == "B" { // who is in no hurry
			p.config.Allow = func(context.Context, *dtcp.Request) error {
				<-time.After(150 * time.Second)
				return nil
			}
		}
	}}, func(w *world) {
		defer func() { w.check(m.now.(*relay.Relay).Close()) }()
		<-time.After(29 * time.Minute) // the lease has half an hour and a minute to live
		m.down.Store(true)
		<-time.After(30 * time.Minute)
		result := w.a.dial(w.patience(), w.b)
		<-time.After(70 * time.Second) // it is over
		w.check(m.now.(*relay.Relay).Close())
		m.become(newRelay(t, relay.NewKeyring(), relay.Limits{}))
		m.down.Store(false)
		far, err := w.b.Accept(w.patience())
		w.check(err)
		d := <-result
		w.check(d.err)
		w.wantTransfer(d.conn, far)
	})
}

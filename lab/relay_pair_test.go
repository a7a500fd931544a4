//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/lab"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// A relay is a running program that joins two connections, and how a stream
// through it is formed.
type relay struct {
	name    string
	process *lab.Process // nil: the two ends are connected to each other
	addr    string       // where it accepts legs
	// form makes a stream through the relay at addr, whose ends connect from the
	// other address, both legs at once. It returns when the dialer has a byte that
	// the listener sent in answer to the dialer's first. The deadlines of the
	// connections are those of forming.
	form func(from netip.Addr, addr string) (pair, error)
	// slow relays get less to do in the short form of a benchmark.
	slow bool
	// keeps is what the relay may hold back of each stream until more comes.
	keeps int64
}

// A pair is the two ends of one stream through a relay.
type pair struct {
	dialer, listener *net.TCPConn
}

// stream forms a stream that has no deadlines.
func (r *relay) stream(from netip.Addr) (pair, error) {
	p, err := r.form(from, r.addr)
	if err != nil {
		return pair{}, fmt.Errorf("%s: %w", r.name, err)
	}
	return p, errors.Join(p.dialer.SetDeadline(time.Time{}), p.listener.SetDeadline(time.Time{}))
}

func (p pair) close() {
	for _, c := range []*net.TCPConn{p.dialer, p.listener} {
		if c != nil {
			c.Close()
		}
	}
}

// formLimit bounds everything that forms one stream.
const formLimit = 20 * time.Second

// sourceAddress is the n-th of the addresses that ends connect from, of which
// loopback has millions: a relay's caps for one address are not what a benchmark
// measures.
func sourceAddress(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(1 + n>>16), byte(n >> 8), byte(n)})
}

// dialFrom connects to addr from the local address, to speak for a while.
func dialFrom(from netip.Addr, addr string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: formLimit, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), KeepAlive: -1}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(formLimit))
}

// newKey is a key as an endpoint makes them, 128 random bits.
func newKey() string { return rand.Text()[:22] }

// readThrough reads from c until n line feeds have come, at most 1 KiB.
func readThrough(c net.Conn, n int) ([]byte, error) {
	buffer := make([]byte, 0, 1024)
	for bytes.Count(buffer, []byte("\n")) < n {
		if len(buffer) == cap(buffer) {
			return buffer, errors.New("lines too long")
		}
		got, err := c.Read(buffer[len(buffer):cap(buffer)])
		buffer = buffer[:len(buffer)+got]
		if err != nil {
			return buffer, fmt.Errorf("%w after %q", err, buffer)
		}
	}
	return buffer, nil
}

// answerKey plays a listener: it wants the dialer's key line, and answers one byte.
func answerKey(c net.Conn, key string, lines int) error {
	got, err := readThrough(c, lines)
	if err != nil {
		return fmt.Errorf("listener: %w", err)
	}
	if !bytes.HasSuffix(got, []byte("key:"+key+"\n")) {
		return fmt.Errorf("listener: got %q, want the key line of %s", got, key)
	}
	_, err = c.Write([]byte{'!'})
	return err
}

// sendKey plays a dialer: it sends the key line and wants one byte.
func sendKey(c net.Conn, key string) error {
	if _, err := c.Write([]byte("key:" + key + "\n")); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, err := c.Read(answer)
	if err != nil || string(answer[:n]) != "!" {
		return fmt.Errorf("dialer: got %q, %v; want one byte", answer[:n], err)
	}
	return nil
}

// bothLegs runs the two sides of a stream's forming, or of a step of it, at
// once.
func bothLegs(dialer, listener func() (*net.TCPConn, error)) (pair, error) {
	var p pair
	var listenerErr error
	listened := make(chan struct{})
	// Owned by this call, which waits for it; its connection has a deadline.
	go func() {
		defer close(listened)
		p.listener, listenerErr = listener()
	}()
	var dialerErr error
	p.dialer, dialerErr = dialer()
	<-listened
	if err := errors.Join(dialerErr, listenerErr); err != nil {
		p.close()
		return pair{}, err
	}
	return p, nil
}

// A sink accepts the connections of a relay that dials one of its legs, and
// gives each to whoever waits for the key in its first line.
type sink struct {
	addr string

	mu      sync.Mutex
	waiting map[string]chan *net.TCPConn
}

func startSink(t *testing.T) *sink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{addr: l.Addr().String(), waiting: map[string]chan *net.TCPConn{}}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Add(1)
	// Owned by the test; ends when the listener is closed at its end.
	go func() {
		defer running.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Add(1)
			// Owned by the test; ends by the deadline of its connection.
			go func() {
				defer running.Done()
				s.take(c.(*net.TCPConn))
			}()
		}
	}()
	return s
}

// take reads the key line of a connection and passes it on.
func (s *sink) take(c *net.TCPConn) {
	if err := c.SetDeadline(time.Now().Add(formLimit)); err != nil {
		c.Close()
		return
	}
	line, err := readThrough(c, 1)
	if err != nil { // a port scan, such as that of awaitPort
		c.Close()
		return
	}
	key := strings.TrimSuffix(strings.TrimPrefix(string(line), "key:"), "\n")
	s.mu.Lock()
	waiting := s.waiting[key]
	delete(s.waiting, key)
	s.mu.Unlock()
	if waiting == nil {
		c.Close()
		return
	}
	waiting <- c
}

// form makes a stream whose dialer connects to addr, which leads here.
func (s *sink) form(from netip.Addr, addr string) (pair, error) {
	key, arrived := newKey(), make(chan *net.TCPConn, 1)
	s.mu.Lock()
	s.waiting[key] = arrived
	s.mu.Unlock()
	return bothLegs(func() (*net.TCPConn, error) {
		c, err := dialFrom(from, addr)
		if err != nil {
			return nil, err
		}
		return c, sendKey(c, key)
	}, func() (*net.TCPConn, error) {
		select {
		case c := <-arrived:
			_, err := c.Write([]byte{'!'})
			return c, err
		case <-time.After(formLimit):
			return nil, errors.New("listener: no connection")
		}
	})
}

// directly is no relay at all.
func directly(t *testing.T) *relay {
	t.Helper()
	s := startSink(t)
	return &relay{name: "no relay", addr: s.addr, form: s.form}
}

// throughHAProxy starts HAProxy in front of a listener.
func throughHAProxy(t *testing.T) *relay {
	t.Helper()
	s := startSink(t)
	h := lab.StartHAProxy(t, s.addr)
	return &relay{name: haproxyName, process: h.Process, addr: h.Addr, form: s.form}
}

// login logs a new account of the server in.
func login(t *testing.T, server *lab.Server, name string) *xmpp.Session {
	t.Helper()
	account := server.Account(t, name)
	authority, err := os.ReadFile(server.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		t.Fatalf("%s holds no certificate", server.CAFile)
	}
	ctx, cancel := context.WithTimeout(t.Context(), formLimit)
	defer cancel()
	s, err := xmpp.Connect(ctx, &xmpp.Config{
		JID: jid.MustParse(account.JID), Password: account.Password, Server: server.Addr, RootCAs: roots,
	})
	if err != nil {
		t.Fatalf("login as %s: %v", account.JID, err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

const bytestreams = "http://jabber.org/protocol/bytestreams" // XEP-0065

// ask sends one question or order and returns the payload of its answer.
func ask(s *xmpp.Session, to jid.JID, kind string, payload stanza.Element) (stanza.Element, error) {
	ctx, cancel := context.WithTimeout(context.Background(), formLimit)
	defer cancel()
	answer, err := s.RoundTrip(ctx, stanza.IQ{Header: stanza.Header{To: to}, Type: kind, Payload: payload})
	return answer.Payload, err
}

// throughProxy forms streams through the XEP-0065 proxy at address, over the
// login s of its requester.
func throughProxy(t *testing.T, name string, process *lab.Process, s *xmpp.Session, address string) *relay {
	t.Helper()
	query, err := ask(s, jid.MustParse(address), stanza.Get, stanza.New(bytestreams, "query"))
	if err != nil {
		t.Fatalf("address of %s: %v", address, err)
	}
	host := query.Child(bytestreams, "streamhost")
	proxy := jid.MustParse(host.Attr("jid"))
	requester, target := s.LocalAddr(), jid.MustParse("target@"+s.LocalAddr().Domain()+"/lab")
	form := func(from netip.Addr, addr string) (pair, error) {
		sid := newKey()
		sum := sha1.Sum([]byte(sid + requester.String() + target.String()))
		leg := func() (*net.TCPConn, error) { return dialSOCKS(from, addr, hex.EncodeToString(sum[:])) }
		p, err := bothLegs(leg, leg)
		if err != nil {
			return pair{}, err
		}
		activate := stanza.New(bytestreams, "query", stanza.New(bytestreams, "activate", stanza.Text(target.String()))).With("sid", sid)
		if _, err := ask(s, proxy, stanza.Set, activate); err != nil {
			p.close()
			return pair{}, fmt.Errorf("activation: %w", err)
		}
		return bothLegs(func() (*net.TCPConn, error) { return p.dialer, sendKey(p.dialer, sid) },
			func() (*net.TCPConn, error) { return p.listener, answerKey(p.listener, sid, 1) })
	}
	return &relay{name: name, process: process, addr: net.JoinHostPort(host.Attr("host"), host.Attr("port")), form: form}
}

// dialSOCKS connects to an XEP-0065 proxy and names the stream.
func dialSOCKS(from netip.Addr, addr, stream string) (*net.TCPConn, error) {
	c, err := dialFrom(from, addr)
	if err != nil {
		return nil, err
	}
	request := append(append([]byte{5, 1, 0, 3, byte(len(stream))}, stream...), 0, 0)
	for _, step := range []struct{ say, want []byte }{
		{[]byte{5, 1, 0}, []byte{5, 0}},
		{request, append([]byte{5, 0}, request[2:]...)},
	} {
		if _, err := c.Write(step.say); err != nil {
			return c, err
		}
		got := make([]byte, len(step.want))
		if _, err := io.ReadFull(c, got); err != nil {
			return c, fmt.Errorf("SOCKS5: %w", err)
		}
		if got[0] != 5 || got[1] != 0 {
			return c, fmt.Errorf("SOCKS5: the proxy says %x, want %x", got, step.want)
		}
	}
	return c, nil
}

const leases = "urn:x-dtcp:relay:0" // Section 3 of protocol.md

// throughDtcpd forms streams through ours, by a lease that its component gives
// the login s.
func throughDtcpd(t *testing.T, name string, dtcpd *lab.Relay, s *xmpp.Session) *relay {
	t.Helper()
	lease, err := ask(s, jid.MustParse(dtcpd.Domain), stanza.Get, stanza.New(leases, "lease"))
	if err != nil {
		t.Fatalf("lease: %v", err)
	}
	id := lease.Attr("id")
	secret, err := base64.RawURLEncoding.DecodeString(lease.Attr("secret"))
	if err != nil {
		t.Fatalf("secret of the lease: %v", err)
	}
	form := func(from netip.Addr, addr string) (pair, error) {
		key := newKey()
		return bothLegs(func() (*net.TCPConn, error) {
			c, err := dialFrom(from, addr)
			if err != nil {
				return nil, err
			}
			return c, sendKey(c, key)
		}, func() (*net.TCPConn, error) {
			c, err := dialFrom(from, addr)
			if err != nil {
				return nil, err
			}
			claim := wire.NewClaim(wire.Serve, key, id, secret, time.Now()).Line()
			if _, err := c.Write(claim.Append(nil)); err != nil {
				return c, err
			}
			return c, answerKey(c, key, 2)
		})
	}
	return &relay{name: name, process: dtcpd.Process, addr: dtcpd.Addr, form: form}
}

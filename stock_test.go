package dtcp_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// stockPeer is a peer as XEP-0046 describes it, and nothing more: the test
// plays its part line by line.
type stockPeer struct {
	t        *testing.T
	user     *user
	host     *memnet.Host
	listener net.Listener
	hosts    []string // it offers
	key      string
	asked    chan stanza.IQ // requests that reached it
	gaveUp   chan stanza.IQ // errors that answer nothing
}

// stockStory runs f with an extended peer E and a stock peer S, 50 ms apart.
func stockStory(t *testing.T, config dtcp.Config, f func(t *testing.T, e *dtcp.Endpoint, host *memnet.Host, s *stockPeer)) {
	t.Helper()
	config.NoRelay = true
	stockStoryAt(t, config, func(*memnet.Net, *switchboard, *memnet.Host) func() { return func() {} }, f)
}

// stockStoryAt is stockStory in an internet where place has placed more.
func stockStoryAt(t *testing.T, config dtcp.Config, place func(*memnet.Net, *switchboard, *memnet.Host) (stop func()), f func(t *testing.T, e *dtcp.Endpoint, host *memnet.Host, s *stockPeer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		n.SetDefaultLatency(25 * time.Millisecond)
		board := newSwitchboard()
		host := n.Host("E", netip.MustParseAddr("192.0.2.1"))
		s := &stockPeer{
			t: t, user: board.user("stock@example.org/old"), host: n.Host("S", netip.MustParseAddr("192.0.2.2")),
			key: "a1b2c3d4", asked: make(chan stanza.IQ, 8), gaveUp: make(chan stanza.IQ, 8),
		}
		defer place(n, board, host)()
		var err error
		if s.listener, err = s.host.Listen(t.Context(), netip.MustParseAddrPort("192.0.2.2:8000")); err != nil {
			t.Fatal(err)
		}
		defer s.listener.Close()
		s.hosts = []string{"192.0.2.2:8000"}
		s.user.HandleIQ(stanza.IQ{}.Payload.Name, func(q stanza.IQ) {
			if q.Type == stanza.Failed {
				s.gaveUp <- q
			} else {
				s.asked <- q
			}
		})
		config.Network = host
		if config.AllowPlain == nil {
			config.AllowPlain = func(jid.JID) bool { return true }
		}
		if config.Allow == nil {
			config.Allow = func(_ context.Context, r *dtcp.Request) error {
				if !r.Stock || r.Service != "" || r.From != s.user.address {
					t.Errorf("request %+v", r)
				}
				return nil
			}
		}
		e, err := dtcp.NewEndpoint(board.user("new@example.org/e"), &config)
		if err != nil {
			t.Fatal(err)
		}
		f(t, e, host, s)
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

var extendedAddress = jid.MustParse("new@example.org/e")

// query is what the stock peer says of itself.
func (s *stockPeer) query() stanza.Element {
	q := stanza.New(dtcp.NSStock, "query", stanza.New(dtcp.NSStock, "key", stanza.Text(s.key)))
	for _, h := range s.hosts {
		q.Children = append(q.Children, stanza.New(dtcp.NSStock, "host", stanza.Text(h)))
	}
	return q
}

// ask sends the iq-set and returns the other's key and hosts.
func (s *stockPeer) ask() (key string, hosts []string, err error) {
	a, err := s.user.RoundTrip(s.t.Context(), stanza.IQ{Header: stanza.Header{To: extendedAddress}, Type: stanza.Set, Payload: s.query()})
	if err != nil {
		return "", nil, err
	}
	if !a.Payload.Child(dtcp.NSSession, "session").IsZero() {
		s.t.Error("the answer to a stock peer holds a <session/>")
	}
	key, hosts = s.read(a.Payload)
	return key, hosts, nil
}

func (s *stockPeer) read(q stanza.Element) (key string, hosts []string) {
	for _, h := range q.All(dtcp.NSStock, "host") {
		hosts = append(hosts, h.Text())
	}
	if len(hosts) > 3 {
		s.t.Errorf("%d hosts are offered", len(hosts))
	}
	return q.Child(dtcp.NSStock, "key").Text(), hosts
}

// talk is a connection that the stock peer reads and writes line by line.
type talk struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (s *stockPeer) talk(c net.Conn, err error) *talk {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	return &talk{s.t, c, bufio.NewReader(c)}
}

func (s *stockPeer) dial(addr string) *talk {
	s.t.Helper()
	return s.talk(s.host.DialContext(s.t.Context(), "tcp", addr))
}

func (s *stockPeer) accept() *talk {
	s.t.Helper()
	return s.talk(s.listener.Accept())
}

func (k *talk) say(line string) {
	k.t.Helper()
	if _, err := io.WriteString(k, line+"\n"); err != nil {
		k.t.Fatalf("saying %q: %v", line, err)
	}
}

func (k *talk) want(line string) {
	k.t.Helper()
	got, err := k.r.ReadString('\n')
	if err != nil || got != line+"\n" {
		k.t.Fatalf("heard %q, %v; want %q", got, err, line)
	}
}

// secure goes on under TLS.
func (k *talk) secure(client bool) *talk {
	k.t.Helper()
	var c *tls.Conn
	if client {
		c = tls.Client(k.Conn, &tls.Config{InsecureSkipVerify: true})
	} else {
		own, err := dtcp.NewCertificate()
		if err != nil {
			k.t.Fatal(err)
		}
		c = tls.Server(k.Conn, &tls.Config{Certificates: []tls.Certificate{own}})
	}
	if err := c.Handshake(); err != nil {
		k.t.Fatal(err)
	}
	return &talk{k.t, c, bufio.NewReader(c)}
}

// wantStream moves bytes both ways between the stock peer and a Conn.
func (k *talk) wantStream(c *dtcp.Conn, encrypted bool) {
	k.t.Helper()
	p := c.Path()
	if p.Kind != dtcp.Stock || p.Encrypted != encrypted || !p.Fingerprint.IsZero() {
		k.t.Errorf("path %+v, want a stock one, encrypted %t", p, encrypted)
	}
	if _, err := io.WriteString(c, "from the new\n"); err != nil {
		k.t.Error(err)
	}
	k.want("from the new")
	k.say("from the old")
	buf := make([]byte, 13)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "from the old\n" {
		k.t.Errorf("got %q, %v", buf, err)
	}
	if err := c.CloseWrite(); err != nil {
		k.t.Error(err)
	}
	if rest, err := io.ReadAll(k.r); err != nil || len(rest) > 0 {
		k.t.Errorf("after CloseWrite the stock peer reads %q, %v", rest, err)
	}
	k.Close()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		k.t.Errorf("after the stock peer closed: %q, %v", rest, err)
	}
	if err := c.Close(); err != nil {
		k.t.Error(err)
	}
}

// TestStock is every way in which a stock peer and ours form a stream: who asks,
// who dials, encrypted or not.
func TestStock(t *testing.T) {
	stories := 0
	for _, secure := range []bool{true, false} {
		suffix := map[bool]string{true: ", starttls", false: ", plain"}[secure]
		t.Run("the stock peer asks and dials"+suffix, func(t *testing.T) {
			stories++
			stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
				s.hosts = nil
				key, hosts, err := s.ask()
				if err != nil || len(hosts) != 1 {
					t.Fatal(hosts, err)
				}
				k := s.dial(hosts[0])
				if secure {
					k.say("starttls")
					k.want("ok")
					k = k.secure(true)
				}
				k.say("key:" + key)
				k.want("ok:" + s.key)
				k.say("ok")
				c, err := e.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				k.wantStream(c, secure)
			})
		})
		t.Run("the stock peer asks and is dialed"+suffix, func(t *testing.T) {
			stories++
			stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, host *memnet.Host, s *stockPeer) {
				host.Firewall(memnet.Drop)
				key, _, err := s.ask()
				if err != nil {
					t.Fatal(err)
				}
				k := s.accept()
				k.want("starttls")
				if secure {
					k.say("ok")
					k = k.secure(false)
				} else {
					k.say("error")
				}
				k.want("key:" + s.key)
				k.say("ok:" + key)
				c, err := e.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				k.wantStream(c, secure) // an ok of ours would be heard as the first line
			})
		})
		for _, theyDial := range []bool{true, false} {
			name := map[bool]string{true: "ours asks and is dialed", false: "ours asks and dials"}[theyDial]
			t.Run(name+suffix, func(t *testing.T) {
				stories++
				stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, host *memnet.Host, s *stockPeer) {
					result := make(chan dialed, 1)
					go func() {
						c, err := e.Dial(t.Context(), s.user.address, "test")
						result <- dialed{conn: c, err: err}
					}()
					q := <-s.asked
					if theyDial {
						s.hosts = nil
					} else {
						host.Firewall(memnet.Drop)
					}
					key, hosts := s.read(q.Payload)
					if err := s.user.Send(t.Context(), q.Result(s.query())); err != nil {
						t.Fatal(err)
					}
					var k *talk
					if theyDial {
						k = s.dial(hosts[0])
						if secure {
							k.say("starttls")
							k.want("ok")
							k = k.secure(true)
						}
						k.say("key:" + key)
						k.want("ok:" + s.key)
					} else {
						k = s.accept()
						k.want("starttls")
						if secure {
							k.say("ok")
							k = k.secure(false)
						} else {
							k.say("error:not here")
						}
						k.want("key:" + s.key)
						k.say("ok:" + key)
						k.want("ok")
					}
					d := <-result
					if d.err != nil {
						t.Fatal(d.err)
					}
					k.wantStream(d.conn, secure)
				})
			})
		}
	}
	if stories != 8 {
		t.Errorf("%d stories told, want 8", stories)
	}
}

// TestStockRefused: what must not become a stream.
func TestStockRefused(t *testing.T) {
	deny := func(jid.JID) bool { return false }
	t.Run("a request, unless plain streams are allowed", func(t *testing.T) {
		stockStory(t, dtcp.Config{AllowPlain: deny, Allow: func(context.Context, *dtcp.Request) error {
			t.Error("Allow was asked")
			return nil
		}}, func(t *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
			_, _, err := s.ask()
			var refused *stanza.Error
			if !errors.As(err, &refused) || refused.Condition != stanza.Forbidden || refused.Code != 403 {
				t.Errorf("answered %v, want forbidden and 403", err)
			}
		})
	})
	t.Run("an answer, unless plain streams are allowed", func(t *testing.T) {
		stockStory(t, dtcp.Config{AllowPlain: deny}, func(t *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
			go func() {
				q := <-s.asked
				_ = s.user.Send(t.Context(), q.Result(s.query()))
			}()
			if _, err := e.Dial(t.Context(), s.user.address, "test"); !errors.Is(err, dtcp.ErrPlain) {
				t.Errorf("Dial: %v, want %v", err, dtcp.ErrPlain)
			}
		})
	})
	t.Run("wrong lines", func(t *testing.T) {
		stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
			s.hosts = nil
			key, hosts, err := s.ask()
			if err != nil {
				t.Fatal(err)
			}
			k := s.dial(hosts[0])
			k.say("hello")
			k.want("error")
			k.say("key:wrong")
			k.want("error")
			k.say("starttls") // the socket stays open for another command
			k.want("ok")
			k = k.secure(true)
			k.say("starttls")
			k.want("error")
			k.say("key:" + key)
			k.want("ok:" + s.key)
			k.say("nonsense")
			if rest, _ := io.ReadAll(k.r); len(rest) > 0 {
				t.Errorf("after nonsense in the place of ok: %q", rest)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if c, err := e.Accept(ctx); err == nil {
				t.Errorf("a stream came of it: %v", c.Path())
			}
		})
	})
	t.Run("an ok with another key", func(t *testing.T) {
		stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, host *memnet.Host, s *stockPeer) {
			if _, _, err := s.ask(); err != nil {
				t.Fatal(err)
			}
			k := s.accept()
			k.want("starttls")
			k.say("error")
			k.want("key:" + s.key)
			k.say("ok:" + s.key)
			if rest, _ := io.ReadAll(k.r); len(rest) > 0 {
				t.Errorf("after a wrong key: %q", rest)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if c, err := e.Accept(ctx); err == nil {
				t.Errorf("a stream came of it: %v", c.Path())
			}
		})
	})
	t.Run("more than five commands", func(t *testing.T) {
		stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
			k := s.dial(fmt.Sprint("192.0.2.1:", e.Addr().Port()))
			for range 5 {
				k.say("key:unknown")
				k.want("error")
			}
			k.say("key:unknown")
			if line, err := k.r.ReadString('\n'); err == nil {
				t.Errorf("a sixth command was answered %q", line)
			}
		})
	})
}

// TestStockGivesUp: the iq by which each says that it dials no more, and that
// both failed ends the Dial at once.
func TestStockGivesUp(t *testing.T) {
	stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, host *memnet.Host, s *stockPeer) {
		s.host.Firewall(memnet.Reject)
		began := time.Now()
		result := make(chan error, 1)
		go func() {
			_, err := e.Dial(t.Context(), s.user.address, "test")
			result <- err
		}()
		q := <-s.asked
		key, _ := s.read(q.Payload)
		_ = s.user.Send(t.Context(), q.Result(s.query()))
		g := <-s.gaveUp
		if g.ID == "" || g.Error.Code != 503 || g.Error.Condition != stanza.ServiceUnavailable {
			t.Errorf("give-up %+v, %+v", g, g.Error)
		}
		if k, _ := s.read(g.Payload); k != s.key {
			t.Errorf("give-up names the key %q, want %q", k, s.key)
		}
		// The stock peer's own, without an id, as XEP-0046 shows it.
		_ = s.user.Send(t.Context(), stanza.IQ{
			Header: stanza.Header{To: extendedAddress}, Type: stanza.Failed, Error: &stanza.Error{Code: 503, Condition: stanza.ServiceUnavailable},
			Payload: stanza.New(dtcp.NSStock, "query", stanza.New(dtcp.NSStock, "key", stanza.Text(key))),
		})
		err := <-result
		var noPath *dtcp.NoPathError
		if !errors.As(err, &noPath) || len(noPath.Attempts) != 2 {
			t.Fatalf("Dial: %v, want both candidates named", err)
		}
		if took := time.Since(began); took != 50*time.Millisecond {
			t.Errorf("Dial failed after %v, want the round trip of the refused dial", took)
		}
		for _, want := range []string{"192.0.2.2:8000", "refused", "192.0.2.1:", "offered to the peer"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not say %q: %v", want, err)
			}
		}
	})
}

// TestStockTwice: a stock peer that calls two connections established gets a
// stream on one, and not a byte on the other.
func TestStockTwice(t *testing.T) {
	stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
		second, err := s.host.Listen(t.Context(), netip.MustParseAddrPort("192.0.2.2:8001"))
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		s.hosts = append(s.hosts, "192.0.2.2:8001")
		key, _, err := s.ask()
		if err != nil {
			t.Fatal(err)
		}
		talks := []*talk{s.accept(), s.talk(second.Accept())}
		for _, k := range talks {
			k.want("starttls")
			k.say("error")
			k.want("key:" + s.key)
		}
		for _, k := range talks {
			k.say("ok:" + key)
		}
		c, err := e.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
		for i, k := range talks {
			if got, _ := io.ReadAll(k.r); len(got) > 0 {
				t.Errorf("the application on connection %d reads %q", i, got)
			}
			k.Close()
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

package dtcp_test

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// plain has both serve stock peers.
func plain(p *peer) { p.config.AllowPlain = func(jid.JID) bool { return true } }

// strip takes the extension out of an offer.
func strip(_ string, q *query) { q.print = dtcp.Fingerprint{} }

// addressless is the network of a host that does not know its addresses.
type addressless struct{ *memnet.Host }

func (addressless) Addrs() ([]netip.Addr, error) { return nil, nil }

// TestEmptyOffers: who offers nothing can still dial.
func TestEmptyOffers(t *testing.T) {
	l := links[0]
	byResponder := max(2*l.signal, l.signal+l.trip*3/2) + l.trip*3/2
	byRequester := 2*l.signal + l.trip*5/2
	told := 0
	for _, tt := range []struct {
		name     string
		empty    string // whose offers are empty
		firewall memnet.Firewall
		stream   time.Duration // when the responder has it; 0: there is none
		failed   time.Duration
	}{
		{"the requester's", "A", memnet.Open, byRequester, 0},
		{"the responder's", "B", memnet.Open, byResponder, 0},
		{"the requester's, and the responder rejects", "A", memnet.Reject, 0, 2*l.signal + l.trip},
		{"the responder's, and the requester rejects", "B", memnet.Reject, 0, 2*l.signal + l.trip},
		{"both", "AB", memnet.Open, 0, 2 * l.signal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := func(p *peer) {
				if strings.Contains(tt.empty, p.host.Name()) {
					p.config.Network = addressless{p.host}
				}
			}
			story(t, options{link: l, config: config, noServer: true}, func(w *world) {
				told++
				w.a.host.Firewall(tt.firewall)
				w.b.host.Firewall(tt.firewall)
				if tt.stream > 0 {
					near, far, after := w.a.stream(w.b)
					if after != tt.stream {
						t.Errorf("the responder has its stream after %v, want %v", after, tt.stream)
					}
					w.wantTransfer(near, far)
					return
				}
				d := w.wantDialed(w.a.dial(w.patience(), w.b), tt.failed)
				if became := d.noPath(t); len(became) != 2-len(tt.empty) {
					t.Errorf("%v names %d candidates", d.err, len(became))
				}
				w.b.wantNothing()
			})
		})
	}
	if told != 5 {
		t.Errorf("%d stories told, want 5", told)
	}
}

// TestThousandCandidates: of an endless offer the first 16 candidates, or for a
// stock peer the first three hosts, are dialed, once each.
func TestThousandCandidates(t *testing.T) {
	l := links[0]
	for _, tt := range []struct {
		name  string
		stock bool
		live  int           // the place of the one that answers, from 1
		want  time.Duration // until the responder has its stream; 0: never
		dials int
	}{
		{"the sixteenth candidate answers", false, 16, 2*l.signal + l.trip*5/2, 16},
		{"the seventeenth candidate would", false, 17, 0, 16},
		{"the third host answers", true, 3, 2*l.signal + l.trip*9/2, 3},
		{"the fourth host would", true, 4, 0, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lie := func(kind string, q *query) {
				if tt.stock {
					strip(kind, q)
				}
				if kind != stanza.Result {
					return
				}
				real, hosts := q.candidates, q.hosts
				q.candidates, q.hosts = nil, nil
				for i := range 1000 {
					dead := fmt.Sprintf("203.0.113.%d:%d", i%200, 5000+i)
					switch {
					case i+1 == tt.live:
						q.candidates, q.hosts = append(q.candidates, real...), append(q.hosts, hosts...)
					case tt.stock:
						q.hosts = append(q.hosts, dead)
					default:
						q.candidates = append(q.candidates, at(dead))
					}
				}
			}
			story(t, options{link: l, config: plain, intercept: lying(lie)}, func(w *world) {
				w.a.host.Firewall(memnet.Drop)
				dials := w.opens()
				if tt.want > 0 {
					near, far, after := w.a.stream(w.b)
					if after != tt.want {
						t.Errorf("the responder has its stream after %v, want %v", after, tt.want)
					}
					if n := dials(netip.AddrPort{}); n != tt.dials+1 { // and B's own
						t.Errorf("%d dials, want %d", n-1, tt.dials)
					}
					_ = near.Close()
					_ = far.Close()
					return
				}
				became := w.wantDialed(w.a.dial(w.patience(), w.b), 2*l.signal+attemptTime).noPath(t)
				if len(became) != tt.dials+1 {
					t.Errorf("%d candidates are named, want those dialed and our own", len(became))
				}
				if n := dials(w.b.listening()); n != 0 {
					t.Errorf("the one beyond the limit was dialed %d times", n)
				}
				w.b.wantNothing()
			})
		})
	}
}

// TestFirstLines: what may be said to a listener that expects nobody, what it
// answers, and when it has had enough.
func TestFirstLines(t *testing.T) {
	const patience = 10 * time.Second
	hello := "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
	told := 0
	for _, tt := range []struct {
		name   string
		say    string
		answer string
		ends   time.Duration
	}{
		{"nothing", "", "", patience},
		{"half a line", "key:abc", "", patience},
		{"an unknown key", "key:abc\n", "error\n", patience},
		{"an unknown key, and TLS behind it", "key:abc\n" + hello, "error\n", 0},
		{"starttls", "starttls\n", "error\n", patience},
		{"starttls, and TLS behind it", "starttls\n" + hello, "error\n", 0},
		{"five commands", strings.Repeat("key:abc\n", 5), strings.Repeat("error\n", 5), patience},
		{"six commands", strings.Repeat("key:abc\n", 6), strings.Repeat("error\n", 5), 0},
		{"ok", "ok\n", "error\n", patience},
		{"a proof", "ok:" + strings.Repeat("A", 43) + "\n", "error\n", patience},
		{"error", "error\n", "error\n", patience},
		{"an empty line", "\n", "error\n", patience},
		{"no key", "key\n", "error\n", patience},
		{"an empty key", "key:\n", "error\n", patience},
		{"TLS", hello, "", 0},
		{"HTTP", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "", 0},
		{"SOCKS", "\x05\x01\x00", "", 0},
		{"NUL", "\x00\n", "", 0},
		{"a line of 511 bytes", strings.Repeat("k", 511) + "\n", "error\n", patience},
		{"a line of 512 bytes", strings.Repeat("k", 512), "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, split := range []bool{false, true} {
				story(t, options{link: links[0], noServer: true}, func(w *world) {
					told++
					w.net.SplitBytes(split)
					k := w.stranger("mallory", "203.0.113.66").dial(w.a.listening())
					k.say(tt.say)
					for _, line := range strings.SplitAfter(tt.answer, "\n") {
						if line != "" {
							k.want(line)
						}
					}
					k.wantEnd(tt.ends)
				})
			}
		})
	}
	if told != 40 {
		t.Errorf("%d stories told, want 40", told)
	}
	t.Run("a byte a second", func(t *testing.T) {
		story(t, options{noServer: true}, func(w *world) {
			k := w.stranger("mallory", "203.0.113.66").dial(w.a.listening())
			n := 0
			for began := time.Now(); ; n++ {
				if _, err := k.Write([]byte("k")); err != nil || time.Since(began) > time.Minute {
					break
				}
				<-time.After(990 * time.Millisecond)
			}
			if n != 12 { // eleven until 9.9 s; the last one is answered by a reset
				t.Errorf("the listener listens to %d bytes, nearly one a second", n)
			}
		})
	})
	t.Run("a line without end", func(t *testing.T) {
		story(t, options{noServer: true}, func(w *world) {
			k := w.stranger("mallory", "203.0.113.66").dial(w.a.listening())
			n := 0
			took := took(func() {
				for n < 100<<20 {
					i, err := k.Write(make([]byte, 1<<16))
					if n += i; err != nil {
						break
					}
				}
			})
			if took != 0 || n > 512<<10 {
				t.Errorf("of an endless line %d bytes were taken in %v", n, took)
			}
		})
	})
}

// TestSlowHandshakes: somebody who knows the key has 10 s to prove himself, and
// until the end of the attempt to nominate.
func TestSlowHandshakes(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(m *actor, k *raw)
		ends time.Duration
	}{
		{"nothing behind the key", func(*actor, *raw) {}, 10 * time.Second},
		{"a record that does not end", func(m *actor, k *raw) { k.say("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") }, 10 * time.Second},
		{"a record that is too long", func(m *actor, k *raw) { k.say("\x16\x03\x01\xff\xff") }, 0},
		{"a message that is too long", func(m *actor, k *raw) { k.say("\x16\x03\x01\x40\x00\x01\xff\xff\xff" + strings.Repeat("a", 1<<14)) }, 0},
		{"no certificate of the client", func(m *actor, k *raw) {
			c := m.tls()
			c.Certificates = nil
			_, err := k.client(c)
			m.w.check(err) // TLS 1.3: the client hears of it later
		}, 0},
		{"no nomination", func(m *actor, k *raw) {
			_, err := k.client(m.tls())
			m.w.check(err)
		}, attemptTime},
		{"a nomination without end", func(m *actor, k *raw) {
			s, err := k.client(m.tls())
			m.w.check(err)
			s.say("ok:" + strings.Repeat("A", wire.MaxLine))
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			story(t, options{noServer: true}, func(w *world) {
				m := w.stranger("mallory", "203.0.113.66")
				q, err := m.ask(w.b.jid(), query{key: m.key, print: m.print, service: "test"})
				w.check(err)
				k := m.dial(q.candidates[0].Addr)
				k.say("key:" + q.key + "\n")
				tt.do(m, k)
				began := time.Now()
				_, _ = io.Copy(io.Discard, k) // alerts, perhaps
				if after := time.Since(began); after != tt.ends {
					t.Errorf("B ends it after %v, want %v", after, tt.ends)
				}
				w.b.wantNothing()
			})
		})
	}
}

// TestTogether: application bytes that come in the same record as the last
// line are not lost, and neither is anything when every byte comes alone.
func TestTogether(t *testing.T) {
	for _, split := range []bool{false, true} {
		name := map[bool]string{false: "", true: ", byte by byte"}[split]
		t.Run("behind the nomination"+name, func(t *testing.T) {
			story(t, options{link: links[0], noServer: true}, func(w *world) {
				w.net.SplitBytes(split)
				m := w.a.instead()
				q, err := m.ask(w.b.jid(), query{key: m.key, print: m.print, service: "test"})
				w.check(err)
				k := m.dial(q.candidates[0].Addr)
				k.say("key:" + q.key + "\n")
				s, err := k.client(m.tls())
				w.check(err)
				s.say("ok:" + s.proof(meant(m.jid(), w.b.jid(), m.key, q.key, "test")) + "\nhello")
				s.want("ok\n")
				w.check(s.tls.CloseWrite())
				far, err := w.b.Accept(w.patience())
				w.check(err)
				if got, err := io.ReadAll(far); string(got) != "hello" || err != nil {
					t.Errorf("B reads %q, %v", got, err)
				}
				w.check(far.Close())
			})
		})
		t.Run("behind the ok"+name, func(t *testing.T) {
			story(t, options{link: links[0], noServer: true}, func(w *world) {
				w.net.SplitBytes(split)
				m := w.b.instead()
				result := w.a.dial(w.patience(), w.b)
				iq, q := m.asked()
				m.answer(iq, m.offer(dtcp.Candidate{Type: dtcp.Host, Addr: m.addr}))
				k := m.accept()
				k.want("key:" + m.key + "\n")
				s, err := k.server(m.tls())
				w.check(err)
				about := meant(w.a.jid(), m.jid(), q.key, m.key, "test")
				s.want("ok:" + s.proof(about) + "\n")
				s.say("ok\nhello")
				w.check(s.tls.CloseWrite())
				d := <-result
				w.check(d.err)
				if got, err := io.ReadAll(d.conn); string(got) != "hello" || err != nil {
					t.Errorf("A reads %q, %v", got, err)
				}
				_ = k.Close()
				w.check(d.conn.Close())
			})
		})
		t.Run("behind the last ok of stock peers"+name, func(t *testing.T) {
			stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, _ *memnet.Host, s *stockPeer) {
				s.hosts = nil
				key, hosts, err := s.ask()
				if err != nil {
					t.Fatal(err)
				}
				k := s.dial(hosts[0])
				k.say("key:" + key)
				k.want("ok:" + s.key)
				k.say("ok\nhello")
				c, err := e.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				_ = k.Close()
				if got, err := io.ReadAll(c); string(got) != "hello\n" || err != nil {
					t.Errorf("read %q, %v", got, err)
				}
				_ = c.Close()
			})
		})
	}
}

// TestSplitBytes: every read of every connection returns one byte, through the
// whole handshake, whoever asks and whoever dials.
func TestSplitBytes(t *testing.T) {
	l := links[0]
	told := 0
	for name, lie := range map[string]func(string, *query){"extended": nil, "stock": strip} {
		for _, asks := range []string{"A", "B"} {
			for _, accepts := range []string{"A", "B"} {
				t.Run(fmt.Sprintf("%s, %s asks, %s accepts", name, asks, accepts), func(t *testing.T) {
					o := options{link: l, config: plain, noServer: true}
					if lie != nil {
						o.intercept = lying(lie)
					}
					story(t, o, func(w *world) {
						told++
						w.net.SplitBytes(true)
						w.a.host.Firewall(memnet.Drop)
						w.b.host.Firewall(memnet.Drop)
						w.peer(accepts).host.Firewall(memnet.Open)
						req, res := w.a, w.b
						if asks == "B" {
							req, res = w.b, w.a
						}
						near, far, after := req.stream(res)
						want := 2*l.signal + l.trip*5/2
						switch {
						case asks == accepts && lie == nil:
							want = max(2*l.signal, l.signal+l.trip*3/2) + l.trip*3/2
						case asks == accepts: // starttls, TLS and key are a round trip each, begun at once
							want = l.signal + 4*l.trip
						case lie != nil:
							want = 2*l.signal + l.trip*9/2
						}
						if after != want {
							t.Errorf("the responder has its stream after %v, want %v", after, want)
						}
						if extended := near.Path().Kind == dtcp.Host; extended != (lie == nil) || !near.Path().Encrypted {
							t.Errorf("path %+v", near.Path())
						}
						w.wantTransfer(near, far)
					})
				})
			}
		}
	}
	if told != 8 {
		t.Errorf("%d stories told, want 8", told)
	}
}

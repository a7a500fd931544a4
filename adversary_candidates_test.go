package dtcp_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// resolving is the network of a host with a resolver.
type resolving struct {
	*memnet.Host
	names map[string]string
}

func (r resolving) LookupNetIP(_ context.Context, _, name string) ([]netip.Addr, error) {
	if a, ok := r.names[name]; ok {
		return []netip.Addr{netip.MustParseAddr(a)}, nil
	}
	return nil, errors.New("no such host")
}

// TestNeverDialed: what a peer may name and must not make us dial, whether it
// asks or is asked. The wire is watched.
func TestNeverDialed(t *testing.T) {
	named := func(name string) dtcp.Candidate { return dtcp.Candidate{Type: dtcp.Relay, Name: name, Port: 4000} }
	told, dialed := 0, 0
	for _, tt := range []struct {
		candidate dtcp.Candidate
		reason    string // "": it is dialed
		stranger  bool
	}{
		{at("0.0.0.0:4000"), "no address of one host", false},
		{at("[::]:4000"), "no address of one host", false},
		{at("0.1.2.3:4000"), "no address of one host", false},
		{at("224.0.0.1:4000"), "no address of one host", false},
		{at("239.1.2.3:4000"), "no address of one host", false},
		{at("[ff02::1]:4000"), "no address of one host", false},
		{at("[ff0e::1]:4000"), "no address of one host", false},
		{at("240.0.0.1:4000"), "no address of one host", false},
		{at("255.255.255.255:4000"), "no address of one host", false},
		{at("169.254.169.254:4000"), "no address of one host", false},
		{at("[fe80::1]:4000"), "no address of one host", false},
		{at("127.0.0.1:4000"), "loopback", false},
		{at("127.8.8.8:4000"), "loopback", false},
		{at("[::1]:4000"), "loopback", false},
		{at("[::ffff:127.0.0.1]:4000"), "loopback", false},
		{at("[::ffff:169.254.1.1]:4000"), "no address of one host", false},
		{at("192.0.2.1:49152"), "at which this end listens", false},
		{at("[::ffff:192.0.2.1]:49152"), "at which this end listens", false},
		{at("203.0.113.9:22"), "below 1024", false},
		{at("203.0.113.9:25"), "below 1024", false},
		{at("203.0.113.9:80"), "below 1024", false},
		{at("203.0.113.9:1023"), "below 1024", false},
		{dtcp.Candidate{Type: dtcp.Relay, Name: "relay.example", Port: 25}, "below 1024", false},
		{dtcp.Candidate{Type: dtcp.Proxy, Addr: at("127.0.0.1:4000").Addr, JID: jid.MustParse("proxy.example.org"), SID: "a"}, "loopback", false},
		{dtcp.Candidate{Type: dtcp.Proxy, Addr: at("203.0.113.9:4000").Addr, JID: jid.MustParse("proxy.example.org"), SID: "a"}, "", false},
		{named("loopback.example"), "loopback", false},
		{named("multicast.example"), "no address of one host", false},
		{named("own.example"), "at which this end listens", false},
		{at("10.0.0.1:4000"), "private", true},
		{at("172.16.0.1:4000"), "private", true},
		{at("192.168.1.1:4000"), "private", true},
		{at("100.64.0.1:4000"), "private", true},
		{at("[fd00::1]:4000"), "private", true},
		{at("[::ffff:10.0.0.1]:4000"), "private", true},
		{at("203.0.113.9:443"), "", false},
		{at("203.0.113.9:1024"), "", true},
		{at("10.0.0.1:4000"), "", false},
		{at("[fd00::1]:4000"), "", false},
		{named("relay.example"), "", false},
	} {
		for _, asks := range []string{"A", "the peer"} {
			if tt.stranger && asks == "A" {
				continue // whom we dial is no stranger
			}
			t.Run(fmt.Sprintf("%v, %s asks", tt.candidate, asks), func(t *testing.T) {
				var mu sync.Mutex
				said := map[string]error{}
				config := func(p *peer) {
					if p.host.Name() != "A" {
						return
					}
					p.config.Listen = ":49152"
					p.config.Network = resolving{p.host, map[string]string{
						"loopback.example": "127.0.0.1", "multicast.example": "224.0.0.1", "own.example": "192.0.2.1", "relay.example": "203.0.113.9",
					}}
					if strings.HasPrefix(tt.candidate.Name, "own") {
						p.config.Listen = ":4000"
					}
					p.config.Allow = func(_ context.Context, r *dtcp.Request) error {
						r.Stranger = tt.stranger
						return nil
					}
					p.config.Trace = &dtcp.Trace{Ended: func(_ string, _ time.Duration, err error) {
						mu.Lock()
						defer mu.Unlock()
						var e *dtcp.NoPathError
						if errors.As(err, &e) {
							for _, a := range e.Attempts {
								if !a.Ours {
									said[a.Candidate.String()] = a.Err
								}
							}
						}
					}}
				}
				var order []string // of what A says
				watch := func(from jid.JID, e stanza.Element) []stanza.Element {
					mu.Lock()
					defer mu.Unlock()
					if from.Local() == "alice" {
						order = append(order, e.Attr("type"))
					}
					return []stanza.Element{e}
				}
				story(t, options{config: config, intercept: watch, noServer: true}, func(w *world) {
					told++
					b := w.b.instead()
					opens := w.opens()
					candidate := tt.candidate
					if asks == "A" {
						result := w.a.dial(w.patience(), w.b)
						iq, q := b.asked()
						b.answer(iq, b.offer(candidate))
						b.giveUp(w.a.jid(), q.key)
						<-result
					} else {
						_, err := b.ask(w.a.jid(), query{key: b.key, print: b.print, service: "test", candidates: []dtcp.Candidate{candidate}})
						w.check(err)
						<-time.After(attemptTime + time.Second)
					}
					b.wantGiveUp()
					mu.Lock()
					defer mu.Unlock()
					if len(order) != 2 || order[1] != stanza.Failed {
						t.Errorf("A says %v; want its half of the offers, and then that it gives up", order)
					}
					if candidate.Addr.IsValid() {
						candidate.Addr = netip.AddrPortFrom(candidate.Addr.Addr().Unmap(), candidate.Addr.Port())
					}
					got, n := said[candidate.String()], opens(netip.AddrPort{})
					if tt.reason == "" {
						dialed++
						if n == 0 && !strings.Contains(fmt.Sprint(got), "unreachable") {
							t.Errorf("it is not dialed: %v", got)
						}
						return
					}
					if n != 0 || got == nil || !strings.Contains(got.Error(), tt.reason) {
						t.Errorf("%d dials; %v, want it to say %q", n, got, tt.reason)
					}
				})
			})
		}
	}
	if told != 71 || dialed != 11 {
		t.Errorf("%d stories told, and in %d it was dialed; want 71 and 11", told, dialed)
	}
}

// TestAllowComesFirst: until Allow has answered, nothing leaves B: no iq, and no
// packet to anybody but the server.
func TestAllowComesFirst(t *testing.T) {
	l := links[0]
	for _, tt := range []struct {
		name    string
		waits   time.Duration
		answers error
		want    func(error) bool // of the Dial; nil: there is a stream
		after   time.Duration
	}{
		{"and says yes", time.Minute, nil, nil, 2*l.signal + l.trip*5/2},
		{"and says no", time.Minute, errors.New("I do not know you"), isRefused(stanza.Forbidden), 2 * l.signal},
		{"and never answers", 3 * time.Minute, nil, isRefused(stanza.Forbidden), 2 * l.signal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asking, leaked bool
			var mu sync.Mutex
			leak := func() {
				mu.Lock()
				defer mu.Unlock()
				leaked = leaked || asking
			}
			set := func(on bool) {
				mu.Lock()
				defer mu.Unlock()
				asking = on
			}
			config := func(p *peer) {
				p.config.Allow = func(ctx context.Context, r *dtcp.Request) error {
					if f, ephemeral := p.w.a.Fingerprint(); r.From != p.w.a.jid() || r.Service != "test" || r.Stock || r.Fingerprint != f || r.Ephemeral != ephemeral {
						t.Errorf("Allow is asked about %+v", r)
					}
					set(true)
					defer set(false)
					if tt.want != nil && tt.answers == nil {
						<-ctx.Done()
						return ctx.Err()
					}
					<-time.After(tt.waits)
					return tt.answers
				}
			}
			watch := func(from jid.JID, e stanza.Element) []stanza.Element {
				if from.Local() == "bob" {
					leak()
				}
				return []stanza.Element{e}
			}
			story(t, options{link: l, config: config, intercept: watch, noServer: true}, func(w *world) {
				w.t.Cleanup(w.net.Tap(func(memnet.Packet) { leak() }))
				w.a.host.Firewall(memnet.Drop)
				began := time.Now()
				result := w.a.dial(w.patience(), w.b)
				if tt.want == nil {
					far, err := w.b.Accept(w.patience())
					w.check(err)
					if after := time.Since(began); after != tt.waits+tt.after {
						t.Errorf("the responder has its stream after %v, want %v", after, tt.waits+tt.after)
					}
					d := <-result
					w.check(d.err)
					w.wantTransfer(d.conn, far)
				} else if d := w.wantDialed(result, tt.waits+tt.after); !tt.want(d.err) {
					t.Errorf("Dial: %v", d.err)
				}
				if leaked {
					t.Error("something left B while its user was asked")
				}
			})
		})
	}
}

// TestRefusals: each way in which a request is refused, what the requester is
// told, and that no address of B is in it and none of its packets leaves.
func TestRefusals(t *testing.T) {
	own := &stanza.Error{Type: stanza.Wait, Condition: stanza.ResourceConstraint, Text: "come back tomorrow", Code: 500}
	allow := func(err error) func(*peer) {
		return func(p *peer) { p.config.Allow = func(context.Context, *dtcp.Request) error { return err } }
	}
	never := func(p *peer) {
		p.config.Allow = func(context.Context, *dtcp.Request) error {
			p.w.t.Error("Allow is asked")
			return nil
		}
	}
	good := func(m *actor) stanza.Element {
		q := m.offer(dtcp.Candidate{Type: dtcp.Host, Addr: m.addr})
		q.service = "test"
		return q.element()
	}
	with := func(change func(*query)) func(*actor) stanza.Element {
		return func(m *actor) stanza.Element {
			q := m.offer(dtcp.Candidate{Type: dtcp.Host, Addr: m.addr})
			q.service = "test"
			change(&q)
			return q.element()
		}
	}
	told := 0
	for _, tt := range []struct {
		name   string
		config func(*peer)
		ask    func(*actor) stanza.Element
		want   stanza.Error // its text only if that is not empty
	}{
		{"there is no Allow", func(p *peer) { p.config.Allow = nil }, good, stanza.Error{Type: stanza.Auth, Condition: stanza.Forbidden, Code: 403}},
		{"Allow says no", allow(errors.New("192.0.2.2 does not like you")), good, stanza.Error{Type: stanza.Auth, Condition: stanza.Forbidden, Code: 403}},
		{"Allow says no in its own words", allow(own), good, *own},
		{"Allow says so in the middle of another error", allow(fmt.Errorf("busy: %w", own)), good, *own},
		{"only relayed streams are wanted", func(p *peer) { p.config.Paths = func(jid.JID) dtcp.PathPolicy { return dtcp.RelayOnly } }, good, stanza.Error{Type: stanza.Modify, Condition: stanza.NotAcceptable, Code: 406}},
		{"a stock peer", never, with(func(q *query) { strip("", q) }), stanza.Error{Type: stanza.Auth, Condition: stanza.Forbidden, Code: 403}},
		{"no key", never, with(func(q *query) { q.key = "" }), stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
		{"a key of two lines", never, with(func(q *query) { q.key = "a\nkey:b" }), stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
		{"a key that is too long", never, with(func(q *query) { q.key = strings.Repeat("a", 129) }), stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
		{"two keys", never, func(m *actor) stanza.Element {
			e := good(m)
			e.Children = append(e.Children, e.Child(dtcp.NSStock, "key"))
			return e
		}, stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
		{"no service", never, with(func(q *query) { q.service = "" }), stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
		{"a service that is no name", never, with(func(q *query) { q.service = "a b" }), stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
		{"no fingerprint", never, func(m *actor) stanza.Element {
			e := good(m)
			s := &e.Children[len(e.Children)-1]
			s.Children = s.Children[1:]
			return e
		}, stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
		{"half a fingerprint", never, func(m *actor) stanza.Element {
			e := good(m)
			s := &e.Children[len(e.Children)-1]
			s.Children[0].Children = []stanza.Element{stanza.Text("AB:CD")}
			return e
		}, stanza.Error{Type: stanza.Modify, Condition: stanza.BadRequest, Code: 400}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var answers []string
			watch := func(from jid.JID, e stanza.Element) []stanza.Element {
				if from.Local() == "bob" {
					answers = append(answers, e.String())
				}
				return []stanza.Element{e}
			}
			config := func(p *peer) {
				if p.host.Name() == "B" {
					tt.config(p)
				}
			}
			story(t, options{config: config, intercept: watch, noServer: true}, func(w *world) {
				told++
				m := w.stranger("mallory", "203.0.113.66")
				opens := w.opens()
				_, err := m.session.RoundTrip(w.patience(), stanza.IQ{Header: stanza.Header{To: w.b.jid()}, Type: stanza.Set, Payload: tt.ask(m)})
				var got *stanza.Error
				if !errors.As(err, &got) {
					t.Fatalf("answered %v", err)
				}
				if text := got.Text; tt.want.Text == "" {
					got.Text = ""
					if strings.Contains(text, "192.0.2.2") {
						t.Errorf("B says %q", text)
					}
				}
				if *got != tt.want {
					t.Errorf("answered %+v, want %+v", *got, tt.want)
				}
				<-time.After(time.Minute)
				if n := opens(netip.AddrPort{}); n != 0 {
					t.Errorf("B dials %d times", n)
				}
				if len(answers) != 1 || strings.Contains(answers[0], "192.0.2.2") || strings.Contains(answers[0], "candidate") {
					t.Errorf("B answers %v", answers)
				}
			})
		})
	}
	if told != 14 {
		t.Errorf("%d stories told, want 14", told)
	}
}

// TestPolicies: what a path policy rules out is neither dialed nor revealed.
func TestPolicies(t *testing.T) {
	relay := dtcp.Candidate{Type: dtcp.Relay, Addr: at("203.0.113.9:4000").Addr}
	policy := func(is dtcp.PathPolicy) func(*peer) {
		return func(p *peer) { p.config.Paths = func(jid.JID) dtcp.PathPolicy { return is } }
	}
	t.Run("only relayed: nothing is asked", func(t *testing.T) {
		asked := 0
		watch := func(_ jid.JID, e stanza.Element) []stanza.Element {
			asked++
			return []stanza.Element{e}
		}
		story(t, options{config: policy(dtcp.RelayOnly), intercept: watch, noServer: true}, func(w *world) {
			if d := w.wantDialed(w.a.dial(w.patience(), w.b), 0); !errors.Is(d.err, dtcp.ErrPolicy) || asked != 0 {
				t.Errorf("Dial: %v, after %d iqs", d.err, asked)
			}
		})
	})
	t.Run("only direct: no relay is dialed", func(t *testing.T) {
		story(t, options{config: policy(dtcp.DirectOnly), noServer: true}, func(w *world) {
			b := w.b.instead()
			opens := w.opens()
			result := w.a.dial(w.patience(), w.b)
			iq, q := b.asked()
			b.answer(iq, b.offer(relay))
			b.giveUp(w.a.jid(), q.key)
			became := w.wantDialed(result, 0).noPath(t)
			if got := became[relay.Addr.String()]; got == nil || !strings.Contains(got.Error(), "policy") || opens(relay.Addr) != 0 {
				t.Errorf("of the relay: %v; %d dials", got, opens(relay.Addr))
			}
			b.wantGiveUp()
		})
	})
}

// TestRelayWaits: a relay that is ready gives direct paths their time, by the
// clock of its own round trip, and none when there is nothing to wait for
// (Section 4 of protocol.md).
func TestRelayWaits(t *testing.T) {
	l := links[0]
	ready := 2*l.signal + 2*l.trip
	dead, silent := at("203.0.113.9:4000"), at("203.0.113.1:4000")
	for _, tt := range []struct {
		name   string
		direct []dtcp.Candidate
		wait   time.Duration
	}{
		{"for a direct dial that is pending", []dtcp.Candidate{dead}, 2 * l.trip},
		{"for a direct connection in its handshake", []dtcp.Candidate{silent}, time.Second},
		{"for nothing, when neither side can dial", nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := func(p *peer) {
				if p.host.Name() == "A" {
					p.config.Network = addressless{p.host} // so that B has nothing to dial
				}
			}
			lie := func(kind string, q *query) {
				if kind == stanza.Result { // what is transparent is a relay
					q.candidates = append([]dtcp.Candidate{{Type: dtcp.Relay, Addr: q.candidates[0].Addr}}, tt.direct...)
				}
			}
			story(t, options{link: l, config: config, intercept: lying(lie), noServer: true}, func(w *world) {
				w.stranger("silent", "203.0.113.1").acceptAll()
				near, far, after := w.a.stream(w.b)
				if want := ready + tt.wait + l.trip/2; after != want {
					t.Errorf("the responder has its stream after %v, want %v", after, want)
				}
				if p := near.Path(); p.Kind != dtcp.Relay || p.Relay != w.b.listening().String() {
					t.Errorf("path %+v", p)
				}
				w.wantTransfer(near, far)
			})
		})
	}
}

// TestOneConnectionToOneAddress: a peer cannot have a third party dialed sixteen
// times over by naming its address sixteen times.
func TestOneConnectionToOneAddress(t *testing.T) {
	story(t, options{link: links[0], intercept: lying(func(kind string, q *query) {
		q.candidates = nil
		for range 16 {
			q.candidates = append(q.candidates, at("203.0.113.66:4000"))
		}
	})}, func(w *world) {
		count := w.stranger("mallory", "203.0.113.66").acceptAll()
		ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
		defer cancel()
		if d := <-w.a.dial(ctx, w.b); d.err == nil {
			w.t.Error("Dial succeeds")
		}
		if n := count(); n != 2 { // one by either side
			w.t.Errorf("%d connections to one address", n)
		}
	})
}

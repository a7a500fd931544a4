package dtcp_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// onlyProxy makes of our relay one that knows nothing but XEP-0065, as the
// proxies of other servers do.
type onlyProxy struct{ *relay.Relay }

func (p onlyProxy) Answer(q stanza.IQ) stanza.IQ {
	const nsInfo = "http://jabber.org/protocol/disco#info"
	switch {
	case q.Payload.Is(nsInfo, "query"):
		return q.Result(stanza.New(nsInfo, "query", stanza.New(nsInfo, "identity").With("category", "proxy").With("type", "bytestreams")))
	case q.Payload.Is("urn:x-dtcp:relay:0", "lease"):
		return q.Fail(stanza.NewError(stanza.ServiceUnavailable, ""))
	}
	return p.Relay.Answer(q)
}

// TestProxy: where a domain has only an XEP-0065 proxy, the two meet there, with
// TLS between them, whoever of them offers it and whoever asks.
func TestProxy(t *testing.T) {
	for _, owners := range []string{"A", "B", "AB"} {
		for _, asks := range []string{"A", "B"} {
			t.Run(fmt.Sprintf("%s has one, %s asks", owners, asks), func(t *testing.T) {
				r, err := relay.New(relay.Config{
					Domain: relayJID, Keys: relay.NewKeyring(), Hosts: []relay.Host{{Addr: relayAddr.Addr().String(), Port: relayAddr.Port()}},
					Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}}},
				})
				if err != nil {
					t.Fatal(err)
				}
				o := &relayOptions{a: 60 * time.Millisecond, b: 80 * time.Millisecond, run: onlyProxy{r}}
				config := func(p *peer) {
					p.config.NoRelay = owners != "AB" && p.host.Name() != owners
				}
				story(t, options{link: links[0], relay: o, config: config}, func(w *world) {
					defer func() { w.check(r.Close()) }()
					w.a.host.Firewall(memnet.Drop)
					w.b.host.Firewall(memnet.Drop)
					req, res := w.a, w.b
					if asks == "B" {
						req, res = w.b, w.a
					}
					near, far, after := req.stream(res)
					for _, c := range []*dtcp.Conn{near, far} {
						if p := c.Path(); p.Kind != dtcp.Proxy || p.Relay != relayAddr.String() || !p.Encrypted || p.Fingerprint.IsZero() {
							t.Errorf("path %+v", p)
						}
					}
					if after > 2*time.Second {
						t.Errorf("the responder has its stream after %v", after)
					}
					w.wantTransfer(near, far)
					if n := w.iqs.Load(); n != 2 {
						t.Errorf("%d iqs between the peers, want a question and an answer", n)
					}
				})
			})
		}
	}
}

// oddProxy is an XEP-0065 proxy whose answers are bent.
type oddProxy struct {
	onlyProxy
	answer     func(address stanza.IQ) stanza.IQ // bends that to the question for the address
	activate   string                            // condition by which activations are refused; "": they are not
	activating *atomic.Int64
}

func (p oddProxy) Answer(q stanza.IQ) stanza.IQ {
	a := p.onlyProxy.Answer(q)
	switch {
	case q.Payload.Is(nsBytestreams, "query") && q.Type == stanza.Get:
		return p.answer(a)
	case q.Payload.Is(nsBytestreams, "query"):
		if p.activating.Add(1); p.activate != "" {
			return q.Fail(stanza.NewError(p.activate, "no"))
		}
	}
	return a
}

const nsBytestreams = "http://jabber.org/protocol/bytestreams"

// oddStory tells a story in which A and B have nothing between them but A's
// proxy, which is odd.
func oddStory(t *testing.T, odd oddProxy, config func(*peer), f func(w *world)) {
	t.Helper()
	r, err := relay.New(relay.Config{
		Domain: relayJID, Keys: relay.NewKeyring(), Hosts: []relay.Host{{Addr: relayAddr.Addr().String(), Port: relayAddr.Port()}},
		Rules: relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	odd.onlyProxy = onlyProxy{r}
	if odd.answer == nil {
		odd.answer = func(a stanza.IQ) stanza.IQ { return a }
	}
	if odd.activating == nil {
		odd.activating = new(atomic.Int64)
	}
	o := &relayOptions{a: 60 * time.Millisecond, b: 80 * time.Millisecond, run: odd}
	story(t, options{link: links[0], relay: o, config: func(p *peer) {
		p.config.NoRelay = p.host.Name() != "A"
		if config != nil {
			config(p)
		}
	}}, func(w *world) {
		defer func() { w.check(r.Close()) }()
		w.a.host.Firewall(memnet.Drop)
		w.b.host.Firewall(memnet.Drop)
		f(w)
	})
}

// TestProxyAnswersOddly: ejabberd names a streamhost with a resource, and others
// name such as cannot be used before one that can.
func TestProxyAnswersOddly(t *testing.T) {
	odd := oddProxy{answer: func(a stanza.IQ) stanza.IQ {
		host := func(jid, host, port string) stanza.Element {
			return stanza.New(nsBytestreams, "streamhost").With("jid", jid).With("host", host).With("port", port)
		}
		a.Payload = stanza.New(nsBytestreams, "query", host("", "198.51.100.9", "5280"), host("a.example", "", "5280"), host("a.example", "198.51.100.9", ""),
			host("a.example", "198.51.100.9", "0"), host("a.example", "fe80::1%eth0", "1"), host("relay.example.org/1795000000", "198.51.100.9", "5280"))
		return a
	}}
	oddStory(t, odd, nil, func(w *world) {
		near, far, _ := w.a.stream(w.b)
		if near.Path().Kind != dtcp.Proxy || far.Path().Kind != dtcp.Proxy {
			t.Errorf("paths %+v, %+v", near.Path(), far.Path())
		}
		w.wantTransfer(near, far)
	})
}

// TestProxyWaitsForUser: the user is asked for longer than a proxy, or an
// attempt, waits.
func TestProxyWaitsForUser(t *testing.T) {
	var activating atomic.Int64
	config := func(p *peer) {
		p.config.Allow = func(context.Context, *dtcp.Request) error {
			<-time.After(150 * time.Second)
			return nil
		}
	}
	oddStory(t, oddProxy{activating: &activating}, config, func(w *world) {
		near, far, after := w.a.stream(w.b)
		if near.Path().Kind != dtcp.Proxy || after > 152*time.Second {
			t.Errorf("path %+v after %v", near.Path(), after)
		}
		w.wantTransfer(near, far)
		if n := activating.Load(); n > 6 {
			t.Errorf("the proxy was asked to activate %d times", n)
		}
	})
}

// TestProxyForbids: its word is in the error, and it is not asked again.
func TestProxyForbids(t *testing.T) {
	var activating atomic.Int64
	oddStory(t, oddProxy{activate: stanza.Forbidden, activating: &activating}, nil, func(w *world) {
		d := <-w.a.dial(w.patience(), w.b)
		if d.err == nil || !strings.Contains(d.err.Error(), "forbidden") || activating.Load() != 1 {
			t.Errorf("Dial: %v after %d activations; want it to say that it is forbidden", d.err, activating.Load())
		}
	})
	refuse := func(a stanza.IQ) stanza.IQ {
		return stanza.IQ{Header: a.Header, Type: stanza.Failed, Error: stanza.NewError(stanza.Forbidden, "not for you")}
	}
	named := func(p *peer) { p.config.Relays = []jid.JID{relayJID} }
	oddStory(t, oddProxy{answer: refuse}, named, func(w *world) {
		if _, err := w.a.AwaitRelay(w.patience()); err == nil || !strings.Contains(err.Error(), "relay.example.org: ") || !strings.Contains(err.Error(), "not for you") {
			t.Errorf("AwaitRelay: %v; want it to say that the one named refuses", err)
		}
	})
}

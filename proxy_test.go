package dtcp_test

import (
	"fmt"
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

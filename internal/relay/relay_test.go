package relay_test

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// broken is a listener that fails.
type broken struct {
	net.Listener
	closed int
}

func (b *broken) Accept() (net.Conn, error) { return nil, net.ErrWriteToConnected }
func (b *broken) Close() error              { b.closed++; return nil }

// TestServeFails: a listener that has failed is closed, so that its port can be
// opened again.
func TestServeFails(t *testing.T) {
	r, err := relay.New(relay.Config{Domain: jid.MustParse("relay.example.org"), Keys: keys, Hosts: []relay.Host{{Addr: "relay.example.org", Port: 5280}}})
	if err != nil {
		t.Fatal(err)
	}
	l := &broken{}
	if err := r.Serve(l); !errors.Is(err, net.ErrWriteToConnected) || l.closed != 1 {
		t.Errorf("Serve: %v, closed %d times", err, l.closed)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestNew(t *testing.T) {
	good := relay.Config{
		Domain: jid.MustParse("relay.example.org"),
		Keys:   keys,
		Hosts:  []relay.Host{{Addr: "relay.example.org", Port: 5280}},
	}
	for _, c := range []struct {
		want   string // in the error; "" is none
		change func(*relay.Config)
	}{
		{"", func(*relay.Config) {}},
		{"not a domain", func(c *relay.Config) { c.Domain = jid.JID{} }},
		{"not a domain", func(c *relay.Config) { c.Domain = alice }},
		{"no master keys", func(c *relay.Config) { c.Keys = nil }},
		{"no master keys", func(c *relay.Config) { c.Keys = &relay.Keyring{} }},
		{"name of the node", func(c *relay.Config) { c.Node = strings.Repeat("n", 33) }},
		{"1 to 4", func(c *relay.Config) { c.Hosts = nil }},
		{"1 to 4", func(c *relay.Config) { c.Hosts = make([]relay.Host, 5) }},
		{`":5280"`, func(c *relay.Config) { c.Hosts = []relay.Host{{Port: 5280}} }},
		{`"192.0.2.1:0"`, func(c *relay.Config) { c.Hosts = []relay.Host{{Addr: "192.0.2.1"}} }},
		{"no certificate", func(c *relay.Config) {
			c.Hosts = []relay.Host{{Addr: "192.0.2.1", Port: 443, TLS: &tls.Certificate{}}}
		}},
	} {
		config := good
		c.change(&config)
		r, err := relay.New(config)
		switch {
		case err == nil && c.want == "":
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		case err == nil || c.want == "" || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "relay: "):
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

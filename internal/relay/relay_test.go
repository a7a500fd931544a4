package relay_test

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

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

package relay

import (
	"testing"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func jids(texts ...string) (list []jid.JID) {
	for _, s := range texts {
		list = append(list, jid.MustParse(s))
	}
	return list
}

func TestAccess(t *testing.T) {
	for _, c := range []struct {
		why         string
		allow, deny []string
		who         string
		want        bool
	}{
		{"nobody by default", nil, nil, "juliet@example.org/balcony", false},
		{"a domain", []string{"example.org"}, nil, "juliet@example.org/balcony", true},
		{"a domain, bare", []string{"example.org"}, nil, "juliet@example.org", true},
		{"a domain, written otherwise", []string{"EXAMPLE.org"}, nil, "juliet@example.org", true},
		{"the domain itself", []string{"example.org"}, nil, "example.org", true},
		{"another domain", []string{"example.org"}, nil, "romeo@example.net", false},
		{"a domain below", []string{"example.org"}, nil, "juliet@a.example.org", false},
		{"a name that ends in the domain", []string{"example.org"}, nil, "juliet@badexample.org", false},
		{"a JID", []string{"juliet@example.org"}, nil, "juliet@example.org/balcony", true},
		{"a JID, named with a resource", []string{"juliet@example.org/x"}, nil, "juliet@example.org/balcony", true},
		{"another JID", []string{"juliet@example.org"}, nil, "nurse@example.org", false},
		{"the domain of an allowed JID", []string{"juliet@example.org"}, nil, "example.org", false},
		{"a denied JID of an allowed domain", []string{"example.org"}, []string{"juliet@example.org"}, "juliet@example.org/x", false},
		{"another than the denied one", []string{"example.org"}, []string{"juliet@example.org"}, "nurse@example.org", true},
		{"an allowed JID of a denied domain", []string{"juliet@example.org"}, []string{"example.org"}, "juliet@example.org", false},
		{"only a deny list", nil, []string{"example.net"}, "juliet@example.org", false},
	} {
		a := Access{Allow: jids(c.allow...), Deny: jids(c.deny...)}
		if got := a.admission().allows(jid.MustParse(c.who)); got != c.want {
			t.Errorf("%s: allowed %v, want %v", c.why, got, c.want)
		}
	}
	if (Access{Allow: []jid.JID{{}}}).admission().allows(jid.JID{}) {
		t.Error("an empty entry allows who has no address")
	}
}
